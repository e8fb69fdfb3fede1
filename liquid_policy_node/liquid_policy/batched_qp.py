"""
The nearest point inside linear bounds, for a batch of points at once.

    minimise    1/2 (u - p)' W (u - p)      over u
    subject to  low <= A u <= high

with a diagonal metric W. In v = W^(1/2) (u - p), with rows of unit length and the largest
violation scaled to 1, this is the point nearest to the origin, `|v*| >= 1`, whatever the units
were: one tolerance then serves all problems. Mostly the rows that p violates are those that hold
it back, which a few linear solves show. For the rest a primal-dual interior point method
(Mehrotra's predictor and corrector) finds these rows, and the same linear solves make its answer
exact. Points that are inside already are not touched, and those found are taken out of the batch,
so that none is iterated into 0/0 while it waits for the others.

Source: Mehrotra, On the implementation of a primal-dual interior point method, SIAM J. Optim.
2(4), 1992; Amos and Kolter, OptNet, arXiv:1703.00443, for the idea of a batch within a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

# All in the scaled problem, whose solution has a length of at least 1.
_EQUAL = 1e-9           # bounds closer than this are one bound
_TOLERANCE = 1e-8       # of stationarity and feasibility, before the active rows are known
_COMPLEMENTARITY = 1e-11
_SHARP = 1e-11          # of the answer, once the active rows are known
_CORRECTIONS = 5        # of the active rows
_PROXIMAL = 1e-7        # regularisation of the saddle point; costs steps, not accuracy
_FAR = 1e6              # a feasible point farther away than this counts as none
_ITERATIONS = 60        # typical are 10 to 15


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
def solve(proposal: Tensor, matrix: Tensor, low: Tensor, high: Tensor, weight: Tensor) -> Solution:
    """
    The nearest points within bounds.

    :param proposal: p, float64, `(batch, n)`.
    :param matrix: A, `(batch, m, n)`.
    :param low: lower bounds, -inf where there is none, `(batch, m)`.
    :param high: upper bounds, inf where there is none, `(batch, m)`.
    :param weight: diagonal of W, above 0, `(batch, n)`.
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
    problem = _Problem.of(rows / length[..., None],
                          torch.where(empty, -torch.inf, low[outside] - value[outside]) / scale,
                          torch.where(empty, torch.inf, high[outside] - value[outside]) / scale)
    # Mostly the rows that the proposal violates are those that hold it back.
    lower, upper = (problem.bounded & (problem.bound > 0.0)).chunk(2, 1)
    v, y, held, guessed = _confirm(problem, lower, upper, torch.zeros_like(rows[:, 0]),
                                   torch.zeros_like(length))
    found = torch.where(guessed, int(Status.PROJECTED), int(Status.FAILED))
    rest = torch.nonzero(~(guessed | hopeless))[:, 0]
    if len(rest):
        v[rest], y[rest], held[rest], found[rest] = _interior_point(problem.take(rest))
    found = torch.where(hopeless, int(Status.INFEASIBLE), found)
    solved = (found == Status.PROJECTED)[:, None]
    point = proposal.clone()
    point[outside] += torch.where(solved, root * far * v, 0.0)
    multiplier[outside] = torch.where(solved, far * y / length, 0.0)
    active[outside] = held & solved
    status[outside] = found
    return Solution(point, multiplier, active, status)


def solve_saddle(rows: Tensor, first: Tensor, second: Tensor, x: Tensor, y: Tensor,
                 rounds: int = 4) -> tuple[Tensor, Tensor]:
    """
    Solve `x + G' y = first`, `G x = second` where rows of G may depend on each other.

    Each round is a Newton step on the problem regularised around the last answer (the proximal
    method of multipliers), so that the regularisation leaves no error.

    :param rows: G, zeros in rows that do not take part, `(batch, m, n)`.
    :param first: `(batch, n)`.
    :param second: 0 in rows that do not take part, `(batch, m)`.
    :param x: to begin with, `(batch, n)`.
    :param y: to begin with, 0 in rows that do not take part, `(batch, m)`.
    """
    factor = _factor(rows, rows / _PROXIMAL)
    for _ in range(rounds):
        short = second - _times(rows, x)
        step = _substitute(factor, first - x - _transposed(rows, y - short / _PROXIMAL))
        x = x + step
        y = y + (_times(rows, step) - short) / _PROXIMAL
    return x, y


@dataclass
class _Problem:
    """
    Minimise |v|^2 / 2 with `low <= G v <= high` in one-sided form `C v >= d`, C = [G; -G].

    :param rows: G, unit rows, `(batch, m, n)`.
    :param bound: d, 0 where masked, `(batch, 2 m)`.
    :param bounded: which of C's rows take part, `(batch, 2 m)`.
    :param equal: rows whose two bounds are one, `(batch, m)`.
    :param target: what `equal` rows must be, `(batch, m)`.
    """

    rows: Tensor
    bound: Tensor
    bounded: Tensor
    equal: Tensor
    target: Tensor

    @classmethod
    def of(cls, rows: Tensor, low: Tensor, high: Tensor) -> _Problem:
        equal = high - low <= _EQUAL
        bound = torch.cat((low, -high), 1)
        bounded = torch.isfinite(bound) & ~equal.repeat(1, 2)
        return cls(rows, torch.where(bounded, bound, 0.0), bounded, equal,
                   torch.where(equal, 0.5 * (low + high), 0.0))

    def take(self, keep: Tensor) -> _Problem:
        return _Problem(self.rows[keep], self.bound[keep], self.bounded[keep], self.equal[keep],
                        self.target[keep])


def _interior_point(problem: _Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return v `(batch, n)`, multipliers and active rows `(batch, m)`, status `(batch,)`."""
    batch, m, n = problem.rows.shape
    found_v = problem.rows.new_zeros(batch, n)
    found_y = problem.rows.new_zeros(batch, m)
    found_active = torch.zeros_like(problem.equal)
    status = torch.full((batch,), int(Status.FAILED), device=problem.rows.device)
    places = torch.arange(batch, device=problem.rows.device)
    v, y = torch.zeros_like(found_v), torch.zeros_like(found_y)
    slack = torch.clamp_min(-problem.bound, 1.0)
    z = problem.bounded.to(v.dtype)
    for _ in range(_ITERATIONS):
        optimal, hopeless, residuals = _measure(problem, v, y, slack, z)
        done = optimal | hopeless
        if bool(done.any()):
            status[places[hopeless]] = int(Status.INFEASIBLE)
            if bool(optimal.any()):
                *polished, _ = _polish(problem.take(optimal), v[optimal], y[optimal],
                                       slack[optimal], z[optimal])
                at = places[optimal]
                found_v[at], found_y[at], found_active[at] = polished
                status[at] = int(Status.PROJECTED)
            going = ~done
            if not bool(going.any()):
                break
            problem, places = problem.take(going), places[going]
            v, y, slack, z = v[going], y[going], slack[going], z[going]
            residuals = tuple(item[going] for item in residuals)
        v, y, slack, z = _step(problem, v, y, slack, z, residuals)
    else:
        # Stalled by rounding: what the active rows confirm is an answer all the same.
        *polished, settled = _polish(problem, v, y, slack, z)
        at = places[settled]
        found_v[at], found_y[at], found_active[at] = (item[settled] for item in polished)
        status[at] = int(Status.PROJECTED)
    return found_v, found_y, found_active, status


def _measure(problem: _Problem, v: Tensor, y: Tensor, slack: Tensor,
             z: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return which are optimal, which infeasible, and the residuals of the conditions."""
    lower, upper = z.chunk(2, 1)
    pull = _transposed(problem.rows, lower - upper) + _transposed(problem.rows, y)
    value = _times(problem.rows, v)
    dual = v - pull
    primal = torch.where(problem.bounded,
                         torch.cat((value, -value), 1) - problem.bound - slack, 0.0)
    equal = torch.where(problem.equal, problem.target - value, 0.0)
    mean = (z * slack).sum(1) / problem.bounded.sum(1).clamp_min(1)
    size = 1.0 + v.abs().amax(1)
    worst = torch.stack((dual.abs().amax(1), primal.abs().amax(1), equal.abs().amax(1))).amax(0)
    optimal = (worst < _TOLERANCE * size) & (mean < _COMPLEMENTARITY * size)
    # Farkas: v within bounds has |v| >= (d' z) / |C' z| for every z >= 0.
    certain = (problem.bound * z).sum(1) + (problem.target * y).sum(1)
    hopeless = ~optimal & (certain > _FAR * pull.square().sum(1).sqrt()) & (certain > 0.0)
    return optimal, hopeless, (dual, primal, equal, mean)


def _step(problem: _Problem, v: Tensor, y: Tensor, slack: Tensor, z: Tensor,
          residuals: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the variables after one predictor and corrector step."""
    dual, primal, equal, mean = residuals
    rows, bounded = problem.rows, problem.bounded
    stiffness = torch.where(bounded, z / slack, 0.0)
    both = sum(stiffness.chunk(2, 1)) + problem.equal / _PROXIMAL
    factor = _factor(rows, both[..., None] * rows)

    def newton(product: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        push = torch.where(bounded, product / slack, 0.0) + stiffness * primal
        lower, upper = push.chunk(2, 1)
        step = _substitute(factor, -dual - _transposed(rows, lower - upper - equal / _PROXIMAL))
        along = _times(rows, step)
        by_slack = torch.where(bounded, torch.cat((along, -along), 1) + primal, 0.0)
        by_z = -torch.where(bounded, product / slack, 0.0) - stiffness * by_slack
        by_y = torch.where(problem.equal, (equal - along) / _PROXIMAL, 0.0)
        return step, by_y, by_slack, by_z

    def longest(by_slack: Tensor, by_z: Tensor) -> Tensor:
        limits = torch.where(by_slack < 0.0, -slack / by_slack, torch.inf)
        limits = torch.minimum(limits, torch.where(by_z < 0.0, -z / by_z, torch.inf))
        return limits.amin(1, keepdim=True)

    _, _, by_slack, by_z = newton(z * slack)
    reach = longest(by_slack, by_z).clamp_max(1.0)
    after = ((slack + reach * by_slack) * (z + reach * by_z)).sum(1) \
        / bounded.sum(1).clamp_min(1)
    centre = (after / mean.clamp_min(1e-300)).clamp(0.0, 1.0) ** 3 * mean
    product = torch.where(bounded, z * slack + by_slack * by_z - centre[:, None], 0.0)
    step, by_y, by_slack, by_z = newton(product)
    reach = (0.995 * longest(by_slack, by_z)).clamp_max(1.0)
    return v + reach * step, y + reach * by_y, slack + reach * by_slack, z + reach * by_z


def _confirm(problem: _Problem, lower: Tensor, upper: Tensor, v: Tensor,
             y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    Return v, signed multipliers and active rows for a guess of these, and whether it was right.

    The guess is corrected a few times: a row that pulls the wrong way leaves, one that is violated
    enters. What satisfies all conditions of optimality is the answer, however it was guessed.

    :param lower: rows held at their lower bound, `(batch, m)`; likewise `upper`.
    :param v: to begin with, `(batch, n)`.
    :param y: likewise, signed multipliers, `(batch, m)`.
    """
    low, high = problem.bound.chunk(2, 1)
    has_low, has_high = problem.bounded.chunk(2, 1)
    found_v, found_y = v, y
    active = lower | upper | problem.equal
    found = active
    settled = torch.zeros_like(v[:, 0], dtype=torch.bool)
    for _ in range(_CORRECTIONS):
        target = torch.where(lower, low, torch.where(upper, -high, problem.target))
        rows = problem.rows * active[..., None]
        sharp, pull = solve_saddle(rows, torch.zeros_like(v), target * active, v, y * active)
        value = _times(problem.rows, sharp)
        tight = (_SHARP * (1.0 + sharp.abs().amax(1)))[:, None]
        enter_low = has_low & (low - value > tight)
        enter_high = has_high & (high + value > tight)
        leave_low, leave_high = lower & (pull > tight), upper & (pull < -tight)
        right = ~(enter_low | enter_high | leave_low | leave_high).any(1)
        right &= ((value - target).abs() * active <= tight).all(1)
        right &= ((sharp + _transposed(rows, pull)).abs() <= tight).all(1)
        take = (right & ~settled)[:, None]
        found_v, found_y = torch.where(take, sharp, found_v), torch.where(take, pull, found_y)
        found = torch.where(take, active, found)
        settled = settled | right
        if bool(settled.all()):
            break
        lower = (lower & ~leave_low) | enter_low
        upper = ((upper & ~leave_high) | enter_high) & ~lower
        active = lower | upper | problem.equal
    return found_v, found_y * found, found, settled


def _polish(problem: _Problem, v: Tensor, y: Tensor, slack: Tensor,
            z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sharpen an interior point's answer; where that does not succeed, it stands as it is."""
    lower, upper = (problem.bounded & (z > slack)).chunk(2, 1)
    pull = torch.sub(*z.chunk(2, 1)).neg() - y
    return _confirm(problem, lower, upper, v, pull)


def _factor(rows: Tensor, weighted: Tensor) -> Tensor:
    """Return the Cholesky factor of I + G' D G."""
    eye = torch.eye(rows.shape[2], dtype=rows.dtype, device=rows.device)
    return torch.linalg.cholesky_ex(eye + rows.transpose(1, 2) @ weighted)[0]


def _substitute(factor: Tensor, right: Tensor) -> Tensor:
    return torch.cholesky_solve(right[..., None], factor)[..., 0]


def _times(rows: Tensor, x: Tensor) -> Tensor:
    return torch.bmm(rows, x[..., None])[..., 0]


def _transposed(rows: Tensor, y: Tensor) -> Tensor:
    return torch.bmm(y[:, None], rows)[:, 0]
