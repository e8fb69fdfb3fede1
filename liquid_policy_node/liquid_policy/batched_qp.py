"""
The nearest point inside linear bounds, for a batch of points at once.

    minimise    1/2 (u - p)' W (u - p)      over u
    subject to  low <= A u <= high

with a diagonal metric W. In v = W^(1/2) (u - p), with rows of unit length and the largest
violation scaled to 1, this is the point nearest to the origin, `|v*| >= 1`, whatever the units
were: one tolerance then serves all problems. Which rows hold a point back is found by DAQP, one
problem after the other, or by a batched interior point method; a few linear solves then make the
answer exact, and show that it is one. Points that are inside already are not touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from liquid_policy.interior_point import interior_point
from liquid_policy.nearest_point import Problem, confirm

METHODS = ('auto', 'daqp', 'interior_point')
_INFINITE = 1e30        # what DAQP takes for no bound
_EQUALITY = 5           # DAQP's flag for a row whose two bounds are one


class Status(IntEnum):
    """What became of one problem of a batch."""

    INSIDE = 0          # the proposal is within all bounds and comes back unchanged
    PROJECTED = 1       # solved
    INFEASIBLE = 2      # no point is within all bounds
    FAILED = 3          # not converged; treat as infeasible


@dataclass(frozen=True)
class Solution:
    """
    The answers to a batch of problems, in the units of the question.

    :param point: nearest point u; the proposal where there is none, `(batch, n)`.
    :param multiplier: y in `W (u - p) + A' y = 0`, above 0 at the upper bound, below at the
        lower, 0 where a bound does not hold the point back, `(batch, m)`.
    :param active: whether the row holds the point back, `(batch, m)`.
    :param status: of each problem, numbers of `Status`, `(batch,)`.
    """

    point: Tensor
    multiplier: Tensor
    active: Tensor
    status: Tensor


@torch.no_grad()
def solve(proposal: Tensor, matrix: Tensor, low: Tensor, high: Tensor, weight: Tensor,
          method: str = 'auto') -> Solution:
    """
    The nearest points within bounds.

    :param proposal: p, float64, `(batch, n)`.
    :param matrix: A, `(batch, m, n)`.
    :param low: lower bounds, -inf where there is none, `(batch, m)`.
    :param high: upper bounds, inf where there is none, `(batch, m)`.
    :param weight: diagonal of W, above 0, `(batch, n)`.
    :param method: `daqp`, on the processor, the fastest there; `interior_point`, where the tensors
        are; `auto` takes the first where it can be had and the tensors are on the processor.
    :return: points that hold every bound within 1e-10 of the largest violation; see `Status`.
    """
    value = torch.einsum('bmn,bn->bm', matrix, proposal)
    violation = torch.maximum(low - value, value - high)
    inside = (violation <= 0.0).all(1)
    status = torch.where(inside, int(Status.INSIDE), int(Status.FAILED))
    multiplier = torch.zeros_like(low)
    active = torch.zeros_like(low, dtype=torch.bool)
    outside = torch.nonzero(~inside)[:, 0]
    if len(outside) == 0:
        return Solution(proposal.clone(), multiplier, active, status)
    root = weight[outside].rsqrt()
    rows = matrix[outside] * root[:, None]
    length = rows.square().sum(2).sqrt()
    empty = length <= torch.finfo(length.dtype).tiny
    length = torch.where(empty, 1.0, length)
    # A row of zeros says nothing of u: it holds for all or for none.
    hopeless = (empty & (violation[outside] > 0.0)).any(1) | (low > high)[outside].any(1)
    far = torch.where(empty, 0.0, violation[outside] / length).amax(1, keepdim=True)
    far = torch.where(far > 0.0, far, 1.0)
    scale = length * far
    problem = Problem.of(rows / length[..., None],
                          torch.where(empty, -torch.inf, low[outside] - value[outside]) / scale,
                          torch.where(empty, torch.inf, high[outside] - value[outside]) / scale)
    v, y, held, solved, impossible = _FINDERS[_chosen(method, proposal.device)](problem)
    found = torch.where(solved, int(Status.PROJECTED), int(Status.FAILED))
    hopeless |= impossible
    found = torch.where(hopeless, int(Status.INFEASIBLE), found)
    solved = (found == Status.PROJECTED)[:, None]
    point = proposal.clone()
    point[outside] += torch.where(solved, root * far * v, 0.0)
    multiplier[outside] = torch.where(solved, far * y / length, 0.0)
    active[outside] = held & solved
    status[outside] = found
    return Solution(point, multiplier, active, status)


def _chosen(method: str, device: torch.device) -> str:
    if method not in METHODS:
        raise ValueError(f'method: expected one of {", ".join(METHODS)}, came {method!r}')
    if method != 'auto':
        return method
    if device.type != 'cpu':
        return 'interior_point'
    try:
        import daqp  # noqa: F401
    except ImportError:
        return 'interior_point'
    return 'daqp'


def _by_daqp(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return v, multipliers, active rows, and which problems were solved or are infeasible."""
    import daqp

    batch, m, n = problem.rows.shape
    low, high = (side.cpu().numpy() for side in problem.sides(_INFINITE))
    rows = problem.rows.contiguous().cpu().numpy()
    sense = np.where(problem.equal.cpu().numpy(), _EQUALITY, 0).astype(np.int32)
    v, y = np.zeros((batch, n)), np.zeros((batch, m))
    flags = np.zeros(batch, int)
    metric, linear = np.eye(n), np.zeros(n)
    for index in range(batch):
        answer, _, flags[index], details = daqp.solve(
            metric, linear, rows[index], high[index], low[index], sense[index])
        if flags[index] > 0:
            v[index], y[index] = answer, details['lam']
    solved, impossible = (torch.from_numpy(mask).to(problem.rows.device)
                          for mask in (flags > 0, flags == -1))
    point, pull = (torch.from_numpy(item).to(problem.rows) for item in (v, y))
    sharp, multiplier, active, _ = confirm(problem, (pull < 0.0) & ~problem.equal,
                                           (pull > 0.0) & ~problem.equal, point, pull)
    return sharp, multiplier, active, solved, impossible


_FINDERS = {'daqp': _by_daqp, 'interior_point': interior_point}
