"""What the safety filter is given: joint states and proposals, checked before they are used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from liquid_policy.barrier import JointFeedback, Proposal
from liquid_policy.conversion import NANOSECONDS, MessageError, nanoseconds
from liquid_policy.limits import Limits
from liquid_policy.stamps import header_stamp

LONGEST_CARRIED = 0.1   # how far a pose is carried on to another time [s]


@dataclass(frozen=True, eq=False)
class PlanarMotion:
    """
    Where a base was, and how it moved on.

    :param pose: x, y [m] and yaw [rad] in the frame of its odometry, `(3,)`.
    :param speed: forwards [m/s].
    :param turn: to the left [rad/s].
    :param stamp: when [ns].
    """

    pose: np.ndarray
    speed: float
    turn: float
    stamp: int

    def at(self, stamp: int) -> np.ndarray:
        """
        The pose at another time, by the chord of the arc that the base drives, `(3,)`.

        :param stamp: at most `LONGEST_CARRIED` from this one, farther is cut off [ns].
        """
        time = min(max(1e-9 * (stamp - self.stamp), -LONGEST_CARRIED), LONGEST_CARRIED)
        middle = self.pose[2] + 0.5 * self.turn * time
        return self.pose + time * np.array([
            self.speed * np.cos(middle), self.speed * np.sin(middle), self.turn])


def planar_motion(message: Any) -> PlanarMotion:
    """
    Where a base is and how it moves.

    :param message: a nav_msgs/Odometry.
    :raises MessageError: if it is not finite.
    """
    place, turn = message.pose.pose.position, message.pose.pose.orientation
    yaw = np.arctan2(2.0 * (turn.w * turn.z + turn.x * turn.y),
                     1.0 - 2.0 * (turn.y * turn.y + turn.z * turn.z))
    twist = message.twist.twist
    known = np.array([place.x, place.y, yaw, twist.linear.x, twist.angular.z])
    if not np.isfinite(known).all():
        raise MessageError(
            f'odometry: expected a finite pose and twist, came {known.tolist()}')
    return PlanarMotion(known[:3], float(known[3]), float(known[4]), header_stamp(message))


class JointReader:
    """Turns JointState messages into the filter's feedback."""

    def __init__(self, limits: Limits) -> None:
        """
        Read the joints that have an action.

        :param limits: says which actions are joints.
        """
        self._limits = limits
        self._names: tuple[str, ...] | None = None
        self._places: list[tuple[int, int]] = []

    def read(self, message: Any) -> JointFeedback:
        """
        Positions, velocities and efforts in the order of the actions, age 0.

        Joints are found by name, so their order does not matter and further ones are ignored.
        Velocity and effort are NaN where a message has none.

        :param message: a sensor_msgs/JointState.
        :raises MessageError: if a joint is missing or a position is missing or not finite.
        """
        names = tuple(message.name)
        if names != self._names:
            self._places = self._find(names)
            self._names = names
        count = len(names)
        if len(message.position) != count:
            raise MessageError(
                f'expected {count} positions, one per joint, came {len(message.position)}')
        size = len(self._limits.names)
        values = {}
        for key in ('position', 'velocity', 'effort'):
            given, array = getattr(message, key), np.full(size, np.nan)
            if len(given) == count:
                for entry, place in self._places:
                    array[entry] = given[place]
            values[key] = array
        wrong = self._limits.joint & ~np.isfinite(values['position'])
        if wrong.any():
            raise MessageError('expected finite positions, came ' + ', '.join(
                f'{self._limits.names[entry]} = {values["position"][entry]}'
                for entry in np.flatnonzero(wrong)))
        return JointFeedback(values['position'], values['velocity'], values['effort'])

    def _find(self, names: tuple[str, ...]) -> list[tuple[int, int]]:
        where = {name: place for place, name in enumerate(names)}
        wanted = [(entry, self._limits.names[entry])
                  for entry in np.flatnonzero(self._limits.joint)]
        missing = [name for _, name in wanted if name not in where]
        if missing:
            raise MessageError(
                f'expected joints {", ".join(name for _, name in wanted)}; missing are '
                f'{", ".join(missing)}, came {", ".join(names) or "none"}')
        return [(int(entry), where[name]) for entry, name in wanted]


@dataclass(frozen=True, eq=False)
class TimedProposal:
    """
    One ActionDistribution, checked.

    :param stamp: stamp of the newest observation behind it [ns].
    :param image_stamp: stamp of the image behind it, 0 if none [ns].
    :param version: version of the model.
    :param dt: time between the steps [s].
    :param chosen: chosen sequence, `(H, A)`.
    :param weights: `(K,)`.
    :param means: `(K, H, A)`.
    :param deviations: `(K, H, A)`.
    """

    stamp: int
    image_stamp: int
    version: str
    dt: float
    chosen: np.ndarray
    weights: np.ndarray
    means: np.ndarray
    deviations: np.ndarray

    def at(self, now: int) -> Proposal:
        """
        What it proposes for a moment: step h holds from stamp + h dt on.

        :param now: the moment [ns].
        """
        step = int((now - self.stamp) / (self.dt * NANOSECONDS))
        step = min(max(step, 0), len(self.chosen) - 1)
        return Proposal(
            self.chosen[step], self.weights, self.means[:, step], self.deviations[:, step])


def read_proposal(message: Any, names: tuple[str, ...]) -> TimedProposal:
    """
    Check an ActionDistribution and unpack it.

    :param message: a liquid_policy_msgs/ActionDistribution.
    :param names: the robot's actions, in order.
    :raises MessageError: for other actions, sizes that do not fit, or a chosen sequence that is
        not finite.
    """
    if tuple(message.action_names) != names:
        raise MessageError(
            f'expected actions {", ".join(names)}, came {", ".join(message.action_names)}')
    horizon, components, size = message.horizon, message.components, len(names)
    if horizon < 1 or components < 1 or not (np.isfinite(message.dt) and message.dt > 0.0):
        raise MessageError(
            'expected horizon, components and dt above 0, came '
            f'{horizon}, {components} and {message.dt}')
    arrays = {}
    for key, shape in (
            ('chosen', (horizon, size)), ('weights', (components,)),
            ('means', (components, horizon, size)),
            ('standard_deviations', (components, horizon, size))):
        given = np.asarray(getattr(message, key), dtype=np.float64)
        if given.size != np.prod(shape):
            raise MessageError(
                f'{key}: expected {np.prod(shape)} numbers {shape}, came {given.size}')
        arrays[key] = given.reshape(shape)
    if not np.isfinite(arrays['chosen']).all():
        raise MessageError('the chosen sequence is not finite: ' + ', '.join(
            name for index, name in enumerate(names)
            if not np.isfinite(arrays['chosen'][:, index]).all()))
    return TimedProposal(
        header_stamp(message), nanoseconds(message.image_stamp), message.model_version,
        message.dt, arrays['chosen'], arrays['weights'], arrays['means'],
        arrays['standard_deviations'])
