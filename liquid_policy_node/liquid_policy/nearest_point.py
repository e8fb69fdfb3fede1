"""
The point nearest to the origin within linear bounds, once the rows that hold it back are guessed.

    minimise |v|^2 / 2    subject to   low <= G v <= high,    rows of G of unit length

A guess of the active rows gives a linear system; its answer shows whether the guess was right, and
if not, which rows to take in and which to leave out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# All for problems whose solution has a length of at least 1.
EQUAL = 1e-9            # bounds closer than this are one bound
PROXIMAL = 1e-7         # regularisation of the saddle point; costs steps, not accuracy
_SHARP = 1e-11          # of the conditions of optimality
_CORRECTIONS = 5        # of the active rows


@dataclass
class Problem:
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
    def of(cls, rows: Tensor, low: Tensor, high: Tensor) -> Problem:
        """Return the problem with two-sided bounds, infinite where there is none."""
        equal = high - low <= EQUAL
        bound = torch.cat((low, -high), 1)
        bounded = torch.isfinite(bound) & ~equal.repeat(1, 2)
        return cls(rows, torch.where(bounded, bound, 0.0), bounded, equal,
                   torch.where(equal, 0.5 * (low + high), 0.0))

    def sides(self, infinite: float) -> tuple[Tensor, Tensor]:
        """Return lower and upper bounds, `(batch, m)`, with a number for infinity."""
        low, high = self.bound.chunk(2, 1)
        has_low, has_high = self.bounded.chunk(2, 1)
        return (torch.where(self.equal, self.target, torch.where(has_low, low, -infinite)),
                torch.where(self.equal, self.target, torch.where(has_high, -high, infinite)))

    def take(self, keep: Tensor) -> Problem:
        """Return some of the batch."""
        return Problem(self.rows[keep], self.bound[keep], self.bounded[keep], self.equal[keep],
                        self.target[keep])


def solve_saddle(rows: Tensor, first: Tensor, second: Tensor, x: Tensor, y: Tensor,
                 rounds: int = 3) -> tuple[Tensor, Tensor]:
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
    factor = factorise(rows, rows / PROXIMAL)
    for _ in range(rounds):
        short = second - times(rows, x)
        step = substitute(factor, first - x - transposed(rows, y - short / PROXIMAL))
        x = x + step
        y = y + (times(rows, step) - short) / PROXIMAL
    return x, y


def confirm(problem: Problem, lower: Tensor, upper: Tensor, v: Tensor,
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
        value = times(problem.rows, sharp)
        tight = (_SHARP * (1.0 + sharp.abs().amax(1)))[:, None]
        enter_low = has_low & (low - value > tight)
        enter_high = has_high & (high + value > tight)
        leave_low, leave_high = lower & (pull > tight), upper & (pull < -tight)
        right = ~(enter_low | enter_high | leave_low | leave_high).any(1)
        right &= ((value - target).abs() * active <= tight).all(1)
        right &= ((sharp + transposed(rows, pull)).abs() <= tight).all(1)
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


def factorise(rows: Tensor, weighted: Tensor) -> Tensor:
    """Return the Cholesky factor of I + G' D G, from G and D G."""
    eye = torch.eye(rows.shape[2], dtype=rows.dtype, device=rows.device)
    return torch.linalg.cholesky_ex(eye + rows.transpose(1, 2) @ weighted)[0]


def substitute(factor: Tensor, right: Tensor) -> Tensor:
    """Return the solution for a right side `(batch, n)`."""
    return torch.cholesky_solve(right[..., None], factor)[..., 0]


def times(rows: Tensor, x: Tensor) -> Tensor:
    """Return G x, `(batch, m)`."""
    return torch.bmm(rows, x[..., None])[..., 0]


def transposed(rows: Tensor, y: Tensor) -> Tensor:
    """Return G' y, `(batch, n)`."""
    return torch.bmm(y[:, None], rows)[:, 0]
