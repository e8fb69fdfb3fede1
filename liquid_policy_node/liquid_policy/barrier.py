"""
The last word before the robot: any proposal in, a command that keeps every limit out.

Entry by entry the safe commands are an interval (`liquid_policy.barrier_box`), so the nearest one
is found by clipping; limits that couple entries (`liquid_policy.barrier_rows`) make it a quadratic
programme. A safe proposal comes back bit for bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from liquid_policy.barrier_box import (
    CAUSES,
    Box,
    BoxMaker,
    FilterSettings,
    JointFeedback,
    brake,
    greatest_change,
    greatest_speed,
    reach,
    safe_box,
)
from liquid_policy.barrier_rows import Guard, Moment
from liquid_policy.barrier_search import NearestSafe, Proposal
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

    def __init__(
        self, limits: Limits, settings: FilterSettings | None = None,
        guards: Sequence[Guard] = (),
    ) -> None:
        """
        Start from rest.

        :param limits: the robot's limits.
        :param settings: what the guarantee rests on.
        :param guards: limits of the whole robot, see `liquid_policy.barrier_guard`.
        """
        self.limits = limits
        self.settings = settings or FilterSettings()
        self.guards = tuple(guards)
        self._boxes = BoxMaker(limits, self.settings)
        self._search = NearestSafe(limits, self.settings, self.guards)
        self._needs_base = any(getattr(guard, 'needs_odometry', False) for guard in self.guards)
        self._jerky = bool(np.isfinite(limits.jerk).any())
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
        self._rate = np.zeros(len(self.limits.names))
        self._asked: np.ndarray | None = None   # the last proposal, None when there was none
        self.box: Box | None = None   # safe commands of the last call, None when it braked

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
        elapsed: float, reasons: tuple[str, ...] = (), human_distance: float = np.inf,
    ) -> Filtered:
        """
        The command for this moment.

        :param proposal: what is wanted; None when there is nothing usable.
        :param feedback: the robot's joints; None when they are stale or unknown.
        :param elapsed: time since the last call [s].
        :param reasons: why proposal or feedback are None, if they are.
        :param human_distance: distance of the nearest human [m]; infinite without one.
        :return: the command and its reasons. Without usable input it brakes within the
            acceleration limits.
        """
        action = proposal.action if isinstance(proposal, Proposal) else proposal
        reasons = reasons or self._unusable(action, feedback, elapsed)
        elapsed = elapsed if np.isfinite(elapsed) else 0.0
        if self._stop_reason:
            reasons = (self._stop_reason, *reasons)
        self.box = None
        if reasons:
            result, self._asked = self._brake(elapsed, reasons), None
        else:
            assert action is not None and feedback is not None
            wanted = Proposal(np.asarray(action, dtype=float))
            if isinstance(proposal, Proposal):
                wanted = replace(proposal, action=wanted.action)
            result = self._limit(wanted, feedback, elapsed, human_distance)
            self._asked = wanted.action
        if self._jerky and elapsed > 0.0:
            step = min(elapsed, self.settings.longest_period)
            self._rate = (result.command - self.command) / step
        self._time += max(elapsed, 0.0)
        self.command = result.command
        self._issued.append((self._time, self.command))
        return result

    def _unusable(
        self, action: np.ndarray | None, feedback: JointFeedback | None, elapsed: float,
    ) -> tuple[str, ...]:
        """Why nothing can be filtered, empty when it can."""
        found = []
        if elapsed > self.settings.longest_period * (1.0 + 1e-9):
            found.append(
                f'called after {elapsed:.3f} s, the braking distance covers '
                f'{self.settings.longest_period:g} s')
        size = len(self.limits.names)
        if action is None:
            found.append('no proposal')
        elif np.shape(action) != (size,):
            found.append(f'proposal: expected {size} entries, came shape {np.shape(action)}')
        elif not np.logical_and.reduce(np.isfinite(action)):
            bad = [name for name, value in zip(self.limits.names, action, strict=True)
                   if not np.isfinite(value)]
            found.append(f'proposal is not finite: {", ".join(bad)}')
        if feedback is None:
            found.append('no joint states')
        elif not np.logical_and.reduce(np.isfinite(feedback.position[self.limits.joint])):
            found.append('joint positions are not finite')
        else:
            found.extend(self._overloaded(feedback))
            if feedback.base is None and self._needs_base:
                found.append('no odometry, and obstacles are fixed in the world')
        return tuple(found)

    def _brake(self, elapsed: float, reasons: tuple[str, ...]) -> Filtered:
        """One step closer to rest."""
        step = min(max(elapsed, 0.0), self.settings.longest_period)
        state = State.STOPPED if self._stop_reason else State.BRAKING
        return Filtered(brake(self.command, self.limits, step), state, reasons)

    def _overloaded(self, feedback: JointFeedback) -> list[str]:
        """Joints whose measured effort is beyond its limit; what is not measured is not."""
        allowed = self.settings.effort_share * self.limits.effort
        over = np.abs(feedback.effort) > allowed
        if not over.any():
            return []
        return [
            f'effort/{self.limits.names[index]}: measured {abs(feedback.effort[index]):.4g}, '
            f'allowed {allowed[index]:.4g}' for index in np.flatnonzero(over)]

    def _limit(
        self, proposal: Proposal, feedback: JointFeedback, elapsed: float, human_distance: float,
    ) -> Filtered:
        """The nearest safe command."""
        since = self._time + max(elapsed, 0.0) - feedback.age - self.settings.delay
        # In effect during that time: everything issued in it, and the one that held before.
        while len(self._issued) > 1 and self._issued[1][0] <= since:
            self._issued.popleft()
        moment = Moment(
            feedback, self.command, np.array([command for _, command in self._issued]), elapsed,
            human_distance, self._rate if self._jerky else None, self._asked)
        box = self._boxes.make(feedback, self.command, moment.recent, elapsed, moment.rate)
        if not (box.low <= box.high).all():  # false for NaN too, which would let anything pass
            return self._brake(elapsed, ('the limits leave no command; braking',))
        self.box = box
        try:
            found = self._search.find(proposal, moment, box)
        except Exception as error:  # noqa: BLE001 - whatever failed, the robot must be braked
            return self._brake(elapsed, (f'solver fault: {type(error).__name__}: {error}',))
        if found.command is None:
            braked = self._brake(elapsed, found.reasons)
            return replace(braked, active=found.active, amounts=found.amounts)
        state = State.LIMITING if found.reasons else State.PASSING
        return Filtered(found.command, state, found.reasons, found.active, found.amounts)
