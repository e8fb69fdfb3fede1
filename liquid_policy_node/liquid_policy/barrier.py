"""
The last word before the robot: any proposal in, a command that keeps every limit out.

For a joint commanded by velocity the barrier is

    h(q, u) = q_max - q - reach - u T - u^2 / (2 a)  >=  0        (and its mirror image)

with position q, command u, the longest time T between two calls, the acceleration limit a, and
`reach`, the farthest the joint can still have moved since q was measured. `u T` is the command
being held until the next call, `u^2 / (2 a)` the braking after it. Braking by `a dt` in a step of
`dt <= T` changes h by

    dh = a dt (T - dt / 2)  >  0

so a command with h >= 0 can always be followed by braking, however the calls jitter, and the joint
comes to rest inside its limits. With `reach = (age + delay) * fastest recent speed` this holds for
every unknown actuation delay up to `delay`, a first-order velocity loop's time constant included.
Per entry the safe set is an interval, so the nearest safe command is found by clipping, and a safe
proposal comes back bit for bit.

Source: the discrete-time view of higher-order control barrier functions, Xiao and Belta,
arXiv:1903.04706; the previous command rather than the measured velocity as the reference of the
acceleration limit, as in ros2_control's joint_limits.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from liquid_policy.limits import Limits


class State(IntEnum):
    """What the filter is doing; the numbers are those of `SafetyStatus`."""

    INACTIVE = 0
    PASSING = 1
    LIMITING = 2
    BRAKING = 3
    STOPPED = 4


class ReleaseRefused(ValueError):
    """The stop cannot be released yet; the text says why."""


@dataclass(frozen=True)
class FilterSettings:
    """
    What the guarantee rests on.

    :param longest_period: longest time between two calls that is covered [s]; a call that comes
        later is a missed deadline and voids the guarantee for that instant.
    :param delay: actuation delay plus the time constant of the robot's velocity loop, at most [s].
    :param position_margin: kept free before each position limit [rad or m].
    :param still: speed below which the robot counts as standing [rad/s or m/s].
    """

    longest_period: float = 0.025
    delay: float = 0.02
    position_margin: float = 0.01
    still: float = 0.02

    def __post_init__(self) -> None:
        for name in ('longest_period', 'still'):
            if not getattr(self, name) > 0.0:
                raise ValueError(f'{name}: must be above 0, got {getattr(self, name)}')
        for name in ('delay', 'position_margin'):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f'{name}: must be 0 or more, got {getattr(self, name)}')


@dataclass(frozen=True, eq=False)
class JointFeedback:
    """
    What the robot says of itself; arrays of length A in the order of the actions.

    :param position: joint positions [rad or m], NaN where an action moves no measured joint.
    :param velocity: joint velocities, NaN where unknown.
    :param effort: joint torques [N m], NaN where unknown.
    :param age: time since this was measured [s].
    """

    position: np.ndarray
    velocity: np.ndarray
    effort: np.ndarray
    age: float = 0.0


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


@dataclass(frozen=True, eq=False)
class Box:
    """
    Safe commands of this moment: an interval per entry.

    :param low: lowest command, `(A,)`.
    :param high: highest command, `(A,)`.
    :param low_cause: index into `CAUSES` of the limit behind each `low`, `(A,)`.
    :param high_cause: likewise for `high`.
    """

    low: np.ndarray
    high: np.ndarray
    low_cause: np.ndarray
    high_cause: np.ndarray


CAUSES = ('velocity', 'range', 'position', 'acceleration')


def greatest_speed(room: np.ndarray, acceleration: np.ndarray, period: float) -> np.ndarray:
    """
    The speed that can still be stopped within the room left.

    Solves `u T + u^2 / (2 a) = room`.

    :param room: distance to the limit, `(n,)`; negative beyond it.
    :param acceleration: braking deceleration, above 0, `(n,)`.
    :param period: longest time T the speed is held before braking begins [s].
    :return: speed, 0 or more, `(n,)`.
    """
    room = np.clip(room, 0.0, 1e12)  # no more than any robot has, so that nothing overflows
    root = np.sqrt(period * period + 2.0 * room / acceleration) + period
    return 2.0 * room / root  # a (root - 2 T) without cancellation near the limit


def reach(
    commands: np.ndarray, velocity: np.ndarray, duration: float,
) -> tuple[np.ndarray, np.ndarray]:
    """
    How far the joints can have moved, at most, since they were measured.

    :param commands: commands in effect during that time, `(m, n)`.
    :param velocity: measured velocity, NaN where unknown, `(n,)`.
    :param duration: age of the measurement plus actuation delay [s].
    :return: downwards and upwards, both 0 or more, `(n,)`.
    """
    known = np.where(np.isfinite(velocity), velocity, 0.0)
    down = np.maximum(0.0, -np.minimum(commands.min(axis=0), known))
    up = np.maximum(0.0, np.maximum(commands.max(axis=0), known))
    return down * duration, up * duration


def greatest_change(limits: Limits, duration: float) -> np.ndarray:
    """
    How far a command may change in a step; infinite for entries without acceleration limit.

    :param limits: the robot's limits.
    :param duration: of the step, may be 0 [s].
    """
    bounded = np.isfinite(limits.acceleration)
    return np.where(bounded, np.where(bounded, limits.acceleration, 0.0) * duration, np.inf)


def brake(previous: np.ndarray, limits: Limits, step: float) -> np.ndarray:
    """
    The command one step closer to rest; a gripper keeps its command.

    A dropped load would be a greater danger than a held one, so braking never opens a gripper.

    :param previous: the last command, `(A,)`.
    :param limits: the robot's limits.
    :param step: time since the last command, at most the longest period [s].
    """
    change = greatest_change(limits, step)
    slower = np.sign(previous) * np.maximum(np.abs(previous) - change, 0.0)
    return np.where(limits.moving, slower, previous)


def safe_box(
    limits: Limits, settings: FilterSettings, feedback: JointFeedback, previous: np.ndarray,
    recent: np.ndarray, elapsed: float,
) -> Box:
    """
    Commands that keep every limit now and can be followed by braking for ever after.

    The acceleration limit comes last and wins: where a disturbance has left no command that keeps
    the others, what remains is braking at full deceleration.

    :param limits: the robot's limits.
    :param settings: what the guarantee rests on.
    :param feedback: the robot's joints.
    :param previous: the last command, `(A,)`.
    :param recent: commands in effect since the joints were measured, delay included, `(m, A)`.
    :param elapsed: time since the last command [s].
    :return: the intervals.
    """
    low, high = limits.low.copy(), limits.high.copy()
    low_cause = limits.range_bound.astype(np.intp)
    high_cause = low_cause.copy()

    joint = limits.joint
    down, up = reach(
        recent[:, joint], feedback.velocity[joint], feedback.age + settings.delay)
    position, acceleration = feedback.position[joint], limits.acceleration[joint]
    margin, period = settings.position_margin, settings.longest_period
    upper = greatest_speed(limits.upper[joint] - margin - position - up, acceleration, period)
    lower = -greatest_speed(position - down - limits.lower[joint] - margin, acceleration, period)
    high_cause[joint] = np.where(upper < high[joint], 2, high_cause[joint])
    low_cause[joint] = np.where(lower > low[joint], 2, low_cause[joint])
    high[joint] = np.minimum(high[joint], upper)
    low[joint] = np.maximum(low[joint], lower)

    step = greatest_change(limits, min(max(elapsed, 0.0), period))
    slowest, fastest = previous - step, previous + step
    high_cause = np.where((fastest < high) | (slowest > high), 3, high_cause)
    low_cause = np.where((slowest > low) | (fastest < low), 3, low_cause)
    return Box(
        np.clip(low, slowest, fastest), np.clip(high, slowest, fastest), low_cause, high_cause)


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
