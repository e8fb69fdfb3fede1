"""
The point nearest to the origin within linear bounds, for a batch at once, by interior points.

Points found are taken out of the batch, so that none is iterated into 0/0 while it waits for the
others. Needs nothing but batched linear algebra, so it runs where the tensors are.

Source: Mehrotra, On the implementation of a primal-dual interior point method, SIAM J. Optim.
2(4), 1992; Amos and Kolter, OptNet, arXiv:1703.00443, for the idea of a batch within a network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from liquid_policy.nearest_point import (
    PROXIMAL,
    Problem,
    confirm,
    factorise,
    substitute,
    times,
    transposed,
)

# All in the scaled problem, whose solution has a length of at least 1.
_TOLERANCE = 1e-8       # of stationarity and feasibility, before the active rows are known
_COMPLEMENTARITY = 1e-11
_FAR = 1e6              # a feasible point farther away than this counts as none
_ITERATIONS = 60        # typical are 10 to 15
_QUICK = 18             # what takes longer than this goes in circles


def interior_point(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """
    Return v, multipliers, active rows, and which problems were solved or are infeasible.

    :return: `(batch, n)`, twice `(batch, m)`, twice bool `(batch,)`.
    """
    # Mostly the rows that the origin violates are those that hold it back.
    lower, upper = (problem.bounded & (problem.bound > 0.0)).chunk(2, 1)
    found_v, found_y, found_active, solved = confirm(
        problem, lower, upper, torch.zeros_like(problem.rows[:, 0]),
        torch.zeros_like(problem.target))
    impossible = torch.zeros_like(solved)
    places = torch.nonzero(~solved)[:, 0]
    problem = problem.take(places)
    v, y = torch.zeros_like(problem.rows[:, 0]), torch.zeros_like(problem.target)
    slack = torch.clamp_min(-problem.bound, 1.0)
    z = problem.bounded.to(v.dtype)

    def keep(which: Tensor, answers: list[Tensor]) -> None:
        at = places[which]
        found_v[at], found_y[at], found_active[at] = answers
        solved[at] = True

    for iteration in range(_ITERATIONS):
        if len(places) == 0:
            break
        optimal, hopeless, residuals = _measure(problem, v, y, slack, z)
        impossible[places[hopeless]] = True
        if bool(optimal.any()):
            *answers, _ = _polish(problem.take(optimal), v[optimal], y[optimal], slack[optimal],
                                  z[optimal])
            keep(optimal, answers)
        going = ~(optimal | hopeless)
        if not bool(going.all()):
            problem, places = problem.take(going), places[going]
            v, y, slack, z = v[going], y[going], slack[going], z[going]
            residuals = tuple(item[going] for item in residuals)
        v, y, slack, z = _step(problem, v, y, slack, z, residuals,
                               iteration >= _QUICK)
    if len(places):
        # Stalled by rounding: what the active rows confirm is an answer all the same.
        *answers, settled = _polish(problem, v, y, slack, z)
        keep(settled, [item[settled] for item in answers])
    return found_v, found_y, found_active, solved, impossible


def _measure(problem: Problem, v: Tensor, y: Tensor, slack: Tensor,
             z: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return which are optimal, which infeasible, and the residuals of the conditions."""
    lower, upper = z.chunk(2, 1)
    pull = transposed(problem.rows, lower - upper) + transposed(problem.rows, y)
    value = times(problem.rows, v)
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


def _step(problem: Problem, v: Tensor, y: Tensor, slack: Tensor, z: Tensor,
          residuals: tuple[Tensor, ...], careful: bool,
          ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    Return the variables after one predictor and corrector step.

    :param careful: towards the middle, and without the second-order correction, which can send
        the iteration back and forth for ever.
    """
    dual, primal, equal, mean = residuals
    rows, bounded = problem.rows, problem.bounded
    stiffness = torch.where(bounded, z / slack, 0.0)
    both = sum(stiffness.chunk(2, 1)) + problem.equal / PROXIMAL
    factor = factorise(rows, both[..., None] * rows)

    def newton(product: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        push = torch.where(bounded, product / slack, 0.0) + stiffness * primal
        lower, upper = push.chunk(2, 1)
        step = substitute(factor, -dual - transposed(rows, lower - upper - equal / PROXIMAL))
        along = times(rows, step)
        by_slack = torch.where(bounded, torch.cat((along, -along), 1) + primal, 0.0)
        by_z = -torch.where(bounded, product / slack, 0.0) - stiffness * by_slack
        by_y = torch.where(problem.equal, (equal - along) / PROXIMAL, 0.0)
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
    if careful:
        centre = torch.maximum(centre, 0.1 * mean)
    second = 0.0 if careful else by_slack * by_z
    product = torch.where(bounded, z * slack + second - centre[:, None], 0.0)
    step, by_y, by_slack, by_z = newton(product)
    reach = (0.995 * longest(by_slack, by_z)).clamp_max(1.0)
    return v + reach * step, y + reach * by_y, slack + reach * by_slack, z + reach * by_z


def _polish(problem: Problem, v: Tensor, y: Tensor, slack: Tensor,
            z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sharpen an interior point's answer; where that does not succeed, it stands as it is."""
    lower, upper = (problem.bounded & (z > slack)).chunk(2, 1)
    pull = torch.sub(*z.chunk(2, 1)).neg() - y
    return confirm(problem, lower, upper, v, pull)
