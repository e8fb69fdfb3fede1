"""
Safe commands per entry: what can be followed by braking, however late the next call comes.

For a joint commanded by velocity the barrier is

    h(q, u) = q_max - q - reach - u T - u^2 / (2 a)  >=  0        (and its mirror image)

with position q, command u, the longest time T between two calls, the braking deceleration a, and
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

from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np

from liquid_policy.limits import Limits


@dataclass(frozen=True)
class FilterSettings:
    """
    What the guarantee rests on.

    :param longest_period: longest time between two calls that is covered [s]; a call that comes
        later is a missed deadline and voids the guarantee for that instant.
    :param delay: actuation delay plus the time constant of the robot's velocity loop, at most [s].
    :param position_margin: kept free before each position limit [rad or m].
    :param still: speed below which the robot counts as standing [rad/s or m/s].
    :param chance: probability with which each limit is to hold for a proposal drawn from the
        policy's distribution; 0.5 takes the proposal for certain.
    :param other_modes: whether another component of the distribution may be taken when the chosen
        action breaks a limit and that component breaks none.
    :param overshoot: by how much the robot's velocity control overshoots a speed at most, as a
        share of it; joint and tool speeds and every braking distance are stretched by it.
    :param effort_share: brake when a measured effort exceeds this share of its limit.
    """

    longest_period: float = 0.025
    delay: float = 0.02
    position_margin: float = 0.01
    still: float = 0.02
    chance: float = 0.5
    other_modes: bool = False
    effort_share: float = 1.1
    overshoot: float = 0.0

    def __post_init__(self) -> None:
        for name in ('longest_period', 'still', 'effort_share'):
            if not getattr(self, name) > 0.0:
                raise ValueError(f'{name}: must be above 0, got {getattr(self, name)}')
        for name in ('delay', 'position_margin', 'overshoot'):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f'{name}: must be 0 or more, got {getattr(self, name)}')
        if not 0.5 <= self.chance < 1.0:
            raise ValueError(f'chance: must be from 0.5 to below 1, got {self.chance}')

    @cached_property
    def chance_quantile(self) -> float:
        """z(chance), the quantile of the standard normal distribution."""
        return NormalDist().inv_cdf(self.chance)


@dataclass(frozen=True, eq=False)
class JointFeedback:
    """
    What the robot says of itself; arrays of length A in the order of the actions.

    :param position: joint positions [rad or m], NaN where an action moves no measured joint.
    :param velocity: joint velocities, NaN where unknown.
    :param effort: joint torques [N m], NaN where unknown.
    :param age: time since this was measured [s].
    :param base: x, y [m] and yaw [rad] of the base in the odometry's frame, None where unknown.
    """

    position: np.ndarray
    velocity: np.ndarray
    effort: np.ndarray
    age: float = 0.0
    base: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Box:
    """
    Safe commands of this moment: an interval per entry.

    :param low: lowest command, `(A,)`.
    :param high: highest command, `(A,)`.
    :param stages: what the intervals were made of, for `causes`: which are ranges `(A,)`, then
        downwards and upwards, `(2, A)` each.
    """

    low: np.ndarray
    high: np.ndarray
    stages: tuple[np.ndarray, ...]

    @cached_property
    def causes(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices into `CAUSES` of the limits behind each `low` and each `high`, `(A,)` each."""
        ranges, widest, stopping, wanted, slowest, fastest, jerk = self.stages
        found = np.where(stopping < widest, POSITION, ranges)
        found = np.where((fastest < wanted) | (slowest > wanted), ACCELERATION, found)
        if len(jerk):
            found = np.where(jerk < np.clip(wanted, slowest, fastest), JERK, found)
        return found[0], found[1]

    def allows(self, command: np.ndarray) -> bool:
        """Whether a command breaks no limit but those of acceleration and jerk, which delay it."""
        wanted = self.stages[3]
        return bool((_OUTWARDS * command <= wanted).all())


CAUSES = ('velocity', 'range', 'position', 'acceleration', 'jerk')
POSITION, ACCELERATION, JERK = 2, 3, 4   # places in CAUSES


def greatest_speed(room: np.ndarray, acceleration: np.ndarray, period: float) -> np.ndarray:
    """
    The speed that can still be stopped within the room left.

    Solves `u T + u^2 / (2 a) = room`.

    :param room: distance to the limit, `(n,)` or `(..., n)`; negative beyond it.
    :param acceleration: braking deceleration, above 0, `(n,)`.
    :param period: longest time T the speed is held before braking begins [s].
    :return: speed, 0 or more, `(n,)`.
    """
    # no more than any robot has, so that nothing overflows
    room = np.minimum(np.maximum(room, 0.0), 1e12)
    root = np.sqrt(period * period + 2.0 * room / acceleration) + period
    return 2.0 * room / root  # a (root - 2 T) without cancellation near the limit


def reach(
    commands: np.ndarray, velocity: np.ndarray, duration: float,
) -> np.ndarray:
    """
    How far the joints can have moved, at most, since they were measured.

    :param commands: commands in effect during that time, `(m, n)`.
    :param velocity: measured velocity, NaN where unknown, `(n,)`.
    :param duration: age of the measurement plus actuation delay [s].
    :return: downwards and upwards, both 0 or more, `(2, n)`.
    """
    known = np.where(np.isfinite(velocity), velocity, 0.0)
    # downwards and upwards in one array
    fastest = _OUTWARDS * known
    for command in commands:
        np.maximum(fastest, _OUTWARDS * command, out=fastest)
    np.maximum(fastest, 0.0, out=fastest)
    fastest *= duration
    return fastest


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
    change = np.where(limits.moving, limits.deceleration, 0.0) * step
    slower = np.sign(previous) * np.maximum(np.abs(previous) - change, 0.0)
    return np.where(limits.moving, slower, previous)


def eased(
    wanted: np.ndarray, asked: np.ndarray | None, previous: np.ndarray, jerk: np.ndarray,
    step: float,
) -> np.ndarray:
    """
    What to aim at on the way to a proposal, so that a limited jerk does not overshoot it.

    Near the proposal the command changes no faster than can be undone on the rest of the way: by
    j s less in each of the n steps of s that it takes, at a rate of

        |gap| / (n s) + (n - 1) j s / 2,   n the least with   n (n + 1) / 2 j s^2 >= |gap|.

    The rate at which the proposals themselves change comes on top. Proposals that were followed so
    far are left as they are.

    :param wanted: the proposal, `(A,)`.
    :param asked: the one before, `(A,)`; None: like this one.
    :param previous: the last command, `(A,)`.
    :param jerk: largest change of a command's rate per second, inf without, `(A,)`.
    :param step: time since the last command [s].
    :return: `(A,)`; entries that need no easing come back bit for bit.

    Source: the constant-jerk end of a time-optimal profile, as in Berscheid and Kroeger,
    Jerk-limited real-time trajectory generation, RSS 2021, in discrete time.
    """
    if not step > 0.0:
        return wanted
    own = np.zeros(len(wanted)) if asked is None else (wanted - asked) / step
    gap = wanted - previous
    limited = np.isfinite(jerk) & (np.abs(gap / step - own) > jerk * step)
    if not limited.any():
        return wanted
    change = np.where(limited, jerk, 1.0) * step
    way = np.abs(gap) / step
    steps = np.maximum(np.ceil(0.5 * (np.sqrt(1.0 + 8.0 * way / change) - 1.0)), 1.0)
    rate = np.sign(gap) * (way / steps + 0.5 * (steps - 1.0) * change) + own
    return np.where(limited, previous + rate * step, wanted)


def safe_box(
    limits: Limits, settings: FilterSettings, feedback: JointFeedback, previous: np.ndarray,
    recent: np.ndarray, elapsed: float, rate: np.ndarray | None = None,
    back: np.ndarray | None = None,
) -> Box:
    """
    Commands that keep every limit now and can be followed by braking for ever after.

    The acceleration limit comes last and wins: where a disturbance has left no command that keeps
    the others, what remains is braking at full deceleration. The jerk limit gives way to all
    others: a robot that must brake now does not wait for its jerk.

    :param limits: the robot's limits.
    :param settings: what the guarantee rests on.
    :param feedback: the robot's joints.
    :param previous: the last command, `(A,)`.
    :param recent: commands in effect since the joints were measured, delay included, `(m, A)`.
    :param elapsed: time since the last command [s].
    :param rate: how fast the command changed in the last step, `(A,)` [1/s of its unit]; needed
        for the jerk limit only.
    :param back: how far to keep from limits of speed and position, `(A,)`: the chance margin of
        an uncertain proposal. No bound is moved past standing still by it.
    :return: the intervals.
    """
    return BoxMaker(limits, settings).make(feedback, previous, recent, elapsed, rate, back)


class BoxMaker:
    """`safe_box` for one robot, with everything that does not change computed beforehand."""

    def __init__(self, limits: Limits, settings: FilterSettings) -> None:
        """
        Prepare the constants.

        :param limits: the robot's limits.
        :param settings: what the guarantee rests on.
        """
        self._limits, self._settings = limits, settings
        joint, margin = limits.joint, settings.position_margin
        self._all_joints = bool(joint.all())
        self._edges = np.where(
            joint, [-(limits.lower + margin), limits.upper - margin], np.inf)
        self._ranges = limits.range_bound.astype(np.intp)
        self._deceleration = np.where(limits.moving & joint, limits.deceleration, 1.0)
        self._widest = np.array([-limits.low, limits.high])
        if settings.overshoot:
            fastest = np.where(joint, limits.speed / (1.0 + settings.overshoot), np.inf)
            self._widest = np.minimum(self._widest, fastest)
        self._bounded = bool(np.isfinite(limits.acceleration).all())

    def make(
        self, feedback: JointFeedback, previous: np.ndarray, recent: np.ndarray, elapsed: float,
        rate: np.ndarray | None = None, back: np.ndarray | None = None,
    ) -> Box:
        """Return `safe_box` of the same arguments."""
        limits, settings, widest = self._limits, self._settings, self._widest
        position, velocity = feedback.position, feedback.velocity
        if not self._all_joints:
            position = np.where(limits.joint, position, 0.0)
        # downwards and upwards in one array, the former with its sign turned
        room = self._edges - _OUTWARDS * position - reach(
            recent, velocity, feedback.age + settings.delay)
        stopping = greatest_speed(room, self._deceleration, settings.longest_period)
        if settings.overshoot:
            stopping /= 1.0 + settings.overshoot
        wanted = np.minimum(widest, stopping)
        if back is not None:
            away = np.where(limits.moving, back, 0.0)
            wanted = np.maximum(wanted - away, np.minimum(wanted, 0.0))
        step = min(max(elapsed, 0.0), settings.longest_period)
        change = limits.acceleration * step if self._bounded else greatest_change(limits, step)
        now, jerk = _OUTWARDS * previous, _NO_JERK
        slowest, fastest = now - change, now + change
        bounds = np.minimum(np.maximum(wanted, slowest), fastest)
        low, high = -bounds[0], bounds[1]
        if rate is not None:
            bend = limits.jerk * step * step if step > 0.0 else np.zeros(len(low))
            smooth = np.isfinite(bend)
            least = np.where(smooth, previous + rate * step - bend, low)
            most = np.where(smooth, previous + rate * step + bend, high)
            jerk = np.array([-least, most])
            low, high = np.clip(least, low, high), np.clip(most, low, high)
        return Box(low, high, (self._ranges, widest, stopping, wanted, slowest, fastest, jerk))


_OUTWARDS = np.array([[-1.0], [1.0]])
_NO_JERK = np.zeros((0, 0))
