"""
The last word before the robot: any proposal in, a command that keeps every limit out.

Entry by entry the safe commands are an interval (`liquid_policy.barrier_box`), so the nearest one
is found by clipping; limits that couple entries (`liquid_policy.barrier_rows`) make it a quadratic
programme. A safe proposal comes back bit for bit.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from liquid_policy.barrier_box import (
    CAUSES,
    Box,
    FilterSettings,
    JointFeedback,
    brake,
    greatest_change,
    greatest_speed,
    reach,
    safe_box,
)
from liquid_policy.limits import Limits

__all__ = [
    'CAUSES', 'Box', 'Filtered', 'FilterSettings', 'JointFeedback', 'Proposal', 'ReleaseRefused',
    'SafetyFilter', 'State', 'brake', 'greatest_change', 'greatest_speed', 'reach', 'safe_box',
]


class State(IntEnum):
    """What the filter is doing; the numbers are those of `SafetyStatus`."""

    INACTIVE = 0
    PASSING = 1
    LIMITING = 2
    BRAKING = 3
    STOPPED = 4


class ReleaseRefused(ValueError):
    """The stop cannot be released yet; the text says why."""


@dataclass(frozen=True, eq=False)
class Proposal:
    """
    What a policy wants, with its doubts.

    :param action: the chosen action of this moment, `(A,)`.
    :param weights: probability of each component, `(K,)`.
    :param means: each component's action of this moment, `(K, A)`.
    :param deviations: its standard deviations, `(K, A)`.
    """

    action: np.ndarray
    weights: np.ndarray | None = None
    means: np.ndarray | None = None
    deviations: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Filtered:
    """
    What to tell the robot, and why it is not what was proposed.

    :param command: finite, within limits, `(A,)`.
    :param state: what the filter is doing.
    :param reasons: why the state is not PASSING, in words.
    :param active: constraints that changed the command, e.g. `velocity/elbow_joint`.
    :param amounts: by how much each did, in the entry's unit.
    """

    command: np.ndarray
    state: State
    reasons: tuple[str, ...] = ()
    active: tuple[str, ...] = ()
    amounts: tuple[float, ...] = ()


class SafetyFilter:
    """Filters proposals one after the other; remembers what it issued."""

    def __init__(self, limits: Limits, settings: FilterSettings | None = None) -> None:
        """
        Start from rest.

        :param limits: the robot's limits.
        :param settings: what the guarantee rests on.
        """
        self.limits = limits
        self.settings = settings or FilterSettings()
        self._stop_reason = ''
        self.reset()

    def reset(self, feedback: JointFeedback | None = None) -> None:
        """
        Forget the commands issued; a stop stays.

        :param feedback: the robot's joints; commands continue from their measured velocity, so
            that a robot taken over while moving is braked, not jerked. None: from rest.
        """
        self.command = np.clip(np.zeros(len(self.limits.names)), self.limits.low, self.limits.high)
        if feedback is not None:
            known = np.isfinite(feedback.velocity) & self.limits.joint
            velocity = np.clip(feedback.velocity, self.limits.low, self.limits.high)
            self.command = np.where(known, velocity, self.command)
        self._issued: deque[tuple[float, np.ndarray]] = deque([(0.0, self.command)], maxlen=1000)
        self._time = 0.0

    @property
    def stopped(self) -> bool:
        """Whether a stop is latched."""
        return bool(self._stop_reason)

    def stop(self, reason: str) -> None:
        """Brake from now on, whatever is proposed, until released."""
        self._stop_reason = reason or 'stop requested'

    def release(self, feedback: JointFeedback | None) -> None:
        """
        End a latched stop.

        :param feedback: the robot's joints, None when they are stale or unknown.
        :raises ReleaseRefused: while it is unknown or unsafe.
        """
        if feedback is None:
            raise ReleaseRefused('the joint states are stale; release when they are back')
        limits, names = self.limits, np.array(self.limits.names)
        if np.any(self.command[limits.moving] != 0.0):
            raise ReleaseRefused('still braking; release when the robot stands')
        outside = limits.joint & (
            ((feedback.position > limits.upper) & (feedback.velocity > 0.0))
            | ((feedback.position < limits.lower) & (feedback.velocity < 0.0)))
        if outside.any():
            raise ReleaseRefused(
                f'outside its position limits and moving outwards: {", ".join(names[outside])}')
        moving = limits.joint & (np.abs(feedback.velocity) > self.settings.still)
        if moving.any():
            raise ReleaseRefused(
                f'still moving faster than {self.settings.still}: {", ".join(names[moving])}')
        self._stop_reason = ''

    def filter(
        self, proposal: Proposal | np.ndarray | None, feedback: JointFeedback | None,
        elapsed: float, reasons: tuple[str, ...] = (),
    ) -> Filtered:
        """
        The command for this moment.

        :param proposal: what is wanted; None when there is nothing usable.
        :param feedback: the robot's joints; None when they are stale or unknown.
        :param elapsed: time since the last call [s].
        :param reasons: why proposal or feedback are None, if they are.
        :return: the command and its reasons. Without usable input it brakes within the
            acceleration limits.
        """
        action = proposal.action if isinstance(proposal, Proposal) else proposal
        reasons = reasons or self._unusable(action, feedback)
        elapsed = elapsed if np.isfinite(elapsed) else 0.0
        if self._stop_reason:
            reasons = (self._stop_reason, *reasons)
        if reasons:
            result = self._brake(elapsed, reasons)
        else:
            assert action is not None and feedback is not None
            result = self._limit(np.asarray(action, dtype=float), feedback, elapsed)
        self._time += max(elapsed, 0.0)
        self.command = result.command
        self._issued.append((self._time, self.command))
        return result

    def _unusable(
        self, action: np.ndarray | None, feedback: JointFeedback | None,
    ) -> tuple[str, ...]:
        """Why nothing can be filtered, empty when it can."""
        found = []
        size = len(self.limits.names)
        if action is None:
            found.append('no proposal')
        elif np.shape(action) != (size,):
            found.append(f'proposal: expected {size} entries, came shape {np.shape(action)}')
        elif not np.isfinite(action).all():
            bad = [name for name, value in zip(self.limits.names, action, strict=True)
                   if not np.isfinite(value)]
            found.append(f'proposal is not finite: {", ".join(bad)}')
        if feedback is None:
            found.append('no joint states')
        elif not np.isfinite(feedback.position[self.limits.joint]).all():
            found.append('joint positions are not finite')
        return tuple(found)

    def _brake(self, elapsed: float, reasons: tuple[str, ...]) -> Filtered:
        """One step closer to rest."""
        step = min(max(elapsed, 0.0), self.settings.longest_period)
        state = State.STOPPED if self._stop_reason else State.BRAKING
        return Filtered(brake(self.command, self.limits, step), state, reasons)

    def _limit(self, action: np.ndarray, feedback: JointFeedback, elapsed: float) -> Filtered:
        """The nearest safe command."""
        since = self._time + max(elapsed, 0.0) - feedback.age - self.settings.delay
        # In effect during that time: everything issued in it, and the one that held before.
        while len(self._issued) > 1 and self._issued[1][0] <= since:
            self._issued.popleft()
        recent = np.array([command for _, command in self._issued])
        box = safe_box(self.limits, self.settings, feedback, self.command, recent, elapsed)
        if not (box.low <= box.high).all():  # false for NaN too, which would let anything pass
            return self._brake(elapsed, ('the limits leave no command; braking',))
        too_low, too_high = action < box.low, action > box.high
        changed = too_low | too_high
        if not changed.any():
            return Filtered(action.copy(), State.PASSING)
        command = np.where(too_low, box.low, np.where(too_high, box.high, action))
        cause = np.where(too_low, box.low_cause, box.high_cause)
        active = tuple(
            f'{CAUSES[cause[index]]}/{self.limits.names[index]}'
            for index in np.flatnonzero(changed))
        amounts = tuple(float(amount) for amount in np.abs(command - action)[changed])
        return Filtered(command, State.LIMITING, (f'limited by {", ".join(active)}',), active,
                        amounts)
