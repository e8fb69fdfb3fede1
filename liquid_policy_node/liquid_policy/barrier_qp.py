"""
The command nearest to a proposal among those that keep every row; soft rows give way in order.

    minimise  sum w_i (u_i - p_i)^2   subject to   low <= A u <= high

solved exactly by DAQP's dual active-set method.

Source: Arnstrom, Bemporad and Axehill, A dual active-set solver for embedded quadratic
programming using recursive LDL' updates, IEEE Transactions on Automatic Control 67 (2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from liquid_policy.barrier_rows import HARD, LinearConstraints

INFINITE = 1e30        # what DAQP takes for no bound
TOLERANCE = 1e-9       # largest violation of a row that counts as rounding, relative to its size
SOFT = 8               # DAQP's flag for a row that may be broken at a price


@dataclass(frozen=True, eq=False)
class Nearest:
    """
    Answer of the programme.

    :param command: the nearest command, `(A,)`; None if hard rows contradict each other or the
        solver failed.
    :param relaxed: priority levels of soft rows that had to give way, greatest first.
    :param fault: what went wrong, empty if nothing did.
    """

    command: np.ndarray | None
    relaxed: tuple[int, ...] = ()
    fault: str = ''


def nearest_command(
    proposal: np.ndarray, constraints: LinearConstraints, weights: np.ndarray | None = None,
) -> Nearest:
    """
    The command nearest to the proposal that keeps every row; soft rows only if that is possible.

    Infeasible with every row, the least important soft rows (greatest priority number) may be
    broken as little as possible, then the next, hard rows never. The answer is checked against
    the hard rows before it is returned.

    :param proposal: finite, `(A,)`.
    :param constraints: the rows; the first A are the identity.
    :param weights: of the squared distance, above 0, `(A,)`; None: all 1.
    :return: the command, or why there is none.
    """
    size = len(proposal)
    metric = np.ones(size) if weights is None else weights
    low, high = constraints.low, constraints.high
    # rows without bounds are left out; NaN is no bound that is missing
    used = (low != -np.inf) | (high != np.inf)
    used[:size] = True
    used = used.nonzero()[0]
    matrix, priority = constraints.matrix[used], constraints.priority[used]
    low, high = np.maximum(low[used], -INFINITE), np.minimum(high[used], INFINITE)
    # a sum is finite only if its terms are
    if not math.isfinite(
            np.add.reduce(low) + np.add.reduce(high) + np.add.reduce(matrix, axis=None)):
        return Nearest(None, fault='a row is not finite')
    sense = np.zeros(len(low), dtype=np.int32)
    relaxed: tuple[int, ...] = ()
    levels: list[int] | None = None
    hessian, linear = np.diag(metric), -metric * proposal
    while True:
        answer, flag = _solve(hessian, linear, matrix[size:], high, low, sense)
        if flag > 0:
            break
        if levels is None:
            levels = sorted({int(level) for level in priority if level != HARD}, reverse=True)
        if not levels:
            return Nearest(None, relaxed, f'no command keeps every hard row (DAQP says {flag})')
        relaxed += (levels.pop(0),)
        sense[priority == relaxed[-1]] = SOFT
    value = matrix @ answer
    excess = np.maximum(value - high, low - value)
    if not np.maximum.reduce(excess) <= TOLERANCE:   # true for NaN too
        excess[priority != HARD] = -np.inf
    if not np.maximum.reduce(excess) <= TOLERANCE:   # large values may be rounded more
        scale = 1.0 + np.abs(matrix) @ np.abs(answer)
        if not (excess <= TOLERANCE * scale).all():
            return Nearest(None, relaxed, "the solver's answer breaks a hard row")
    answer = np.minimum(np.maximum(answer, constraints.low[:size]), constraints.high[:size])
    return Nearest(answer, relaxed)


def _solve(
    metric: np.ndarray, linear: np.ndarray, matrix: np.ndarray, high: np.ndarray, low: np.ndarray,
    sense: np.ndarray,
) -> tuple[np.ndarray, int]:
    """DAQP's answer and exit flag; above 0 is solved."""
    import daqp
    # DAQP stops at violations of 1e-6 of its own accord, which the check of hard rows refuses.
    answer, _, flag, _ = daqp.solve(
        metric, linear, matrix, high, low, sense, primal_tol=TOLERANCE)
    return np.asarray(answer, dtype=float), int(flag)
