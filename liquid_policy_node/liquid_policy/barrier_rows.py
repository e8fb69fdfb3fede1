"""
Every limit as rows that are linear in the command: `low <= matrix u <= high`.

One builder serves the run-time filter, the differentiable layer of training and whoever wants
to look: pure functions of limits, settings and the moment. The convention is fixed: `u` is the
command in the interface's order and units; the first `A` rows are the entries of `u` themselves
(the box of `liquid_policy.barrier_box`), further rows come from the guards of the whole robot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from liquid_policy.barrier_box import FilterSettings, JointFeedback, safe_box
from liquid_policy.limits import Limits

HARD = 0   # priority of a row that is never relaxed


@dataclass(frozen=True, eq=False)
class Moment:
    """
    What the constraints of one call depend on.

    :param feedback: the robot's joints.
    :param previous: the last command, `(A,)`.
    :param recent: commands in effect since the joints were measured, delay included, `(m, A)`.
    :param elapsed: time since the last command [s].
    :param human_distance: distance of the nearest human to the robot [m]; infinite without one.
    :param rate: how fast the command changed in the last step, `(A,)`; for jerk limits only.
    :param asked: the last proposal, `(A,)`; for jerk limits only.
    """

    feedback: JointFeedback
    previous: np.ndarray
    recent: np.ndarray
    elapsed: float
    human_distance: float = np.inf
    rate: np.ndarray | None = None
    asked: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class LinearConstraints:
    """
    Commands `u` with `low <= matrix u <= high`; m rows, A entries of the command.

    :param matrix: `(m, A)`; the first A rows are the identity.
    :param low: lower bounds, `(m,)`, -inf where there is none.
    :param high: upper bounds, `(m,)`, inf where there is none.
    :param names: what each row keeps, e.g. `box/elbow_joint`, `torque/elbow_joint`.
    :param priority: 0 for hard rows; soft rows have 1 or more, the greatest is relaxed first,
        `(m,)` int.
    """

    matrix: np.ndarray
    low: np.ndarray
    high: np.ndarray
    names: tuple[str, ...]
    priority: np.ndarray

    def __post_init__(self) -> None:
        rows = len(self.names)
        shapes = {
            'matrix': (rows, self.matrix.shape[-1]), 'low': (rows,), 'high': (rows,),
            'priority': (rows,)}
        for name, shape in shapes.items():
            came = getattr(self, name).shape
            if came != shape:
                raise ValueError(f'{name}: expected shape {shape}, came {came}')

    @property
    def hard(self) -> np.ndarray:
        """Rows that are never relaxed, `(m,)` bool."""
        return self.priority == HARD

    def excess(self, command: np.ndarray) -> np.ndarray:
        """
        By how much a command breaks each row; 0 where it does not.

        :param command: `(A,)` or `(batch, A)`.
        :return: `(m,)` or `(batch, m)`, 0 or more.
        """
        value = command @ self.matrix.T
        return np.maximum(np.maximum(value - self.high, self.low - value), 0.0)


@dataclass(frozen=True, eq=False)
class GuardRows:
    """
    Limits of the whole robot, linearised at a reference command: `low <= matrix u <= high`.

    :param matrix: `(r, A)`.
    :param low: `(r,)`, -inf where there is none.
    :param high: `(r,)`, inf where there is none.
    :param excess: by how much the reference itself breaks each limit, exactly rather than
        linearly; 0 or less where it does not, `(r,)`.
    """

    matrix: np.ndarray
    low: np.ndarray
    high: np.ndarray
    excess: np.ndarray


class Guard(Protocol):
    """Limits that couple several entries of the command."""

    names: tuple[str, ...]
    priority: np.ndarray

    def begin(self, moment: Moment) -> None:
        """Take in a new moment; `excess` and `rows` then speak of it."""

    def excess(self, command: np.ndarray) -> np.ndarray:
        """Return by how much a command breaks each limit, `(r,)`; above 0 where it does."""
        ...

    def rows(self, reference: np.ndarray) -> GuardRows:
        """Return the limits, linearised at the reference."""
        ...


def build_constraints(
    limits: Limits, settings: FilterSettings, moment: Moment, guards: Sequence[Guard] = (),
    reference: np.ndarray | None = None, spread: np.ndarray | None = None,
) -> LinearConstraints:
    """
    Every limit of this moment as rows linear in the command.

    :param limits: the robot's limits.
    :param settings: what the guarantee rests on.
    :param moment: joints, last commands, time.
    :param guards: limits of the whole robot; none for the box alone.
    :param reference: command at which limits that are not linear are linearised, `(A,)`; None:
        the last command.
    :param spread: standard deviations of the proposal, `(A,)`; tightens, see `tighten`.
    :return: the rows; the first A are the box.
    """
    box = safe_box(
        limits, settings, moment.feedback, moment.previous, moment.recent, moment.elapsed,
        moment.rate, None if spread is None else settings.chance_quantile * spread)
    size = len(limits.names)
    matrix, low, high = [np.eye(size)], [box.low], [box.high]
    names = [f'box/{name}' for name in limits.names]
    priority = [np.zeros(size, dtype=np.intp)]
    for guard in guards:
        guard.begin(moment)
        rows = guard.rows(moment.previous if reference is None else reference)
        matrix.append(rows.matrix)
        low.append(rows.low)
        high.append(rows.high)
        names.extend(guard.names)
        priority.append(guard.priority)
    constraints = LinearConstraints(
        np.concatenate(matrix), np.concatenate(low), np.concatenate(high), tuple(names),
        np.concatenate(priority))
    return constraints if spread is None else tighten(constraints, settings, spread)


def tighten(
    constraints: LinearConstraints, settings: FilterSettings, spread: np.ndarray,
) -> LinearConstraints:
    """
    Chance constraints: keep the guards' rows with the set probability for an uncertain proposal.

    For u ~ N(mean, diag(spread^2)) a row `a u <= b` holds with probability p where
    `a mean + z(p) sqrt(sum (a spread)^2) <= b`. The box is left as it is: `safe_box` has moved
    its limits of speed and position already, and limits of acceleration bound the command, which
    is certain, not where the policy wants to go. No bound is moved past standing still, so that
    tightening alone never sets a robot in motion.

    :param constraints: rows whose first A are the box.
    :param settings: gives the probability.
    :param spread: standard deviations of the proposal, `(A,)`.
    :return: tighter rows.

    Source: Charnes and Cooper, Chance-constrained programming, Management Science 6 (1959).
    """
    size = len(spread)
    back = settings.chance_quantile * np.sqrt(((constraints.matrix * spread) ** 2).sum(axis=1))
    back[:size] = 0.0
    high = np.maximum(constraints.high - back, np.minimum(constraints.high, 0.0))
    low = np.minimum(constraints.low + back, np.maximum(constraints.low, 0.0))
    high[:size], low[:size] = constraints.high[:size], constraints.low[:size]
    return replace(constraints, low=low, high=high)
