"""What the safety filter enforces: limits of URDF and interface file, the strictest of each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import yaml

from liquid_policy.interface import Interface

SPEED_UNITS = ('rad/s', 'm/s')
TORQUE_UNIT = 'N m'


class LimitsError(ValueError):
    """Limits are missing or contradict each other; the text gives names and numbers."""


@dataclass(frozen=True)
class JointLimits:
    """
    What one URDF joint may do; infinite where nothing is said.

    :param lower: lowest position [rad or m].
    :param upper: highest position [rad or m].
    :param velocity: largest speed [rad/s or m/s].
    :param effort: largest torque or force [N m or N].
    :param command_low: lowest velocity command (ros2_control) [rad/s or m/s].
    :param command_high: highest velocity command.
    :param acceleration: largest change of speed [rad/s2 or m/s2].
    :param deceleration: what braking may count on.
    :param jerk: largest change of acceleration [rad/s3 or m/s3].
    """

    lower: float = -math.inf
    upper: float = math.inf
    velocity: float = math.inf
    effort: float = math.inf
    command_low: float = -math.inf
    command_high: float = math.inf
    acceleration: float = math.inf
    deceleration: float = math.inf
    jerk: float = math.inf

    def stricter(self, other: JointLimits) -> JointLimits:
        """
        The strictest of both, limit by limit.

        :param other: limits of the same joint from another file.
        """
        highest = {'lower', 'command_low'}
        return JointLimits(**{
            item.name: (max if item.name in highest else min)(
                getattr(self, item.name), getattr(other, item.name))
            for item in fields(self)})


@dataclass(frozen=True, eq=False)
class Limits:
    """
    Bounds of every action entry, arrays of length A in the interface's order.

    :param names: what each entry is called; a joint's name where it moves a joint.
    :param units: unit of each entry.
    :param moving: whether the entry is a speed, brought to zero when braking; the others (a
        gripper) keep their last value.
    :param joint: whether the entry is the velocity of a joint whose position is measured.
    :param lower: lowest joint position, -inf without.
    :param upper: highest joint position, inf without.
    :param low: lowest command, from speed limits and ranges.
    :param high: highest command.
    :param range_bound: where `low` and `high` come from a range rather than a speed limit.
    :param acceleration: largest change of a command per second, inf without.
    :param effort: largest torque of the joint [N m], inf without.
    :param deceleration: what braking may count on; None: the acceleration.
    :param jerk: largest change of acceleration per second, inf without; None: none.
    :param weight: what a change of the entry costs; None: all 1.
    :param speed: how fast the joint itself may move, what its control overshoots included; the
        URDF's limit where there is one. `low` and `high` bound what it is told. None: those.
    :param armature: inertia of the rotors of joints that are told torques [kg m2]; None: 0.

    An entry whose unit is N m is the torque of a joint; its `low`, `high` and accelerations are
    those of the joint's speed all the same, and `effort` bounds the torque.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    moving: np.ndarray
    joint: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    low: np.ndarray
    high: np.ndarray
    range_bound: np.ndarray
    acceleration: np.ndarray
    effort: np.ndarray = field(repr=False)
    deceleration: np.ndarray = None  # type: ignore[assignment]
    jerk: np.ndarray = None  # type: ignore[assignment]
    weight: np.ndarray = None  # type: ignore[assignment]
    speed: np.ndarray = None  # type: ignore[assignment]
    armature: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        size = len(self.names)
        for name, default in (('deceleration', self.acceleration), ('jerk', np.full(size, np.inf)),
                              ('weight', np.ones(size)),
                              ('speed', np.maximum(-self.low, self.high)),
                              ('armature', np.zeros(size))):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        for index, name in enumerate(self.names):
            low, high = self.low[index], self.high[index]
            if not low < high:
                raise LimitsError(
                    f'{name}: no command satisfies all limits: lowest {low:g}, highest {high:g} '
                    f'{self.units[index]}; correct the URDF or the interface file')
            if not self.lower[index] < self.upper[index]:
                raise LimitsError(
                    f'{name}: position limits contradict each other: lower '
                    f'{self.lower[index]:g}, upper {self.upper[index]:g}')
            if self.moving[index]:
                self._check_moving(index)

    @property
    def torques(self) -> bool:
        """Whether the robot is told torques."""
        return TORQUE_UNIT in self.units

    def _check_moving(self, index: int) -> None:
        name, unit = self.names[index], self.units[index]
        if unit == TORQUE_UNIT:
            unit = 'rad/s'
            if not math.isfinite(self.effort[index]):
                raise LimitsError(
                    f'{name}: no effort limit; give it in the URDF, or limits.{name}.effort in '
                    'the interface file')
        low, high = self.low[index], self.high[index]
        if not low <= 0.0 <= high:
            raise LimitsError(
                f'{name}: commands from {low:g} to {high:g} {unit} do not allow standing still; '
                'a range of speeds must contain 0')
        if not (math.isfinite(low) and math.isfinite(high)):
            raise LimitsError(
                f'{name}: no speed limit; give limits.{name}.velocity in the interface file')
        acceleration = self.acceleration[index]
        if not (math.isfinite(acceleration) and acceleration > 0.0):
            raise LimitsError(
                f'{name}: no acceleration limit, so no braking distance; give '
                f'limits.{name}.acceleration in the interface file')
        deceleration = self.deceleration[index]
        if not 0.0 < deceleration <= acceleration:
            raise LimitsError(
                f'{name}: braking at {deceleration:g} {unit}2 contradicts the acceleration limit '
                f'of {acceleration:g}; deceleration must be above 0 and at most that')
        room = self.upper[index] - self.lower[index]
        needed = max(-low, high) ** 2 / deceleration
        if room < needed:
            raise LimitsError(
                f'{name}: at {max(-low, high):g} {unit} and {deceleration:g} {unit}2 it needs '
                f'{needed:.3g} to speed up and stop, its range is {room:.3g}; lower the speed or '
                'raise the acceleration')


def load_urdf(path: str | Path) -> str:
    """
    The robot's description as URDF text.

    :param path: a `.urdf`, or a `.xacro` to be processed with its default arguments.
    :raises LimitsError: if the file is missing or cannot be processed.
    """
    path = Path(path)
    if not path.is_file():
        raise LimitsError(f'robot description: no file {path}')
    if path.suffix != '.xacro':
        return path.read_text(encoding='utf-8')
    try:
        import xacro
    except ImportError as error:
        raise LimitsError(
            f'{path} needs xacro (apt install ros-jazzy-xacro, or pip install xacro)') from error
    try:
        return xacro.process_file(str(path)).toxml()
    except Exception as error:  # noqa: BLE001 - xacro raises many kinds
        raise LimitsError(f'{path}: xacro: {error}') from error


def joint_limits(urdf: str) -> dict[str, JointLimits]:
    """
    Limits of every movable joint of a URDF.

    Read are `<limit>`, `<safety_controller>` (soft limits) and the velocity command interface of
    `<ros2_control>`; where several speak of the same quantity the strictest counts.

    :param urdf: URDF text.
    :return: limits by joint name.
    :raises LimitsError: if it is no URDF or a number cannot be read.
    """
    try:
        root = ElementTree.fromstring(urdf)
    except ElementTree.ParseError as error:
        raise LimitsError(f'robot description: not XML: {error}') from error
    if root.tag != 'robot':
        raise LimitsError(f'robot description: expected <robot>, came <{root.tag}>')
    commands = {}
    for joint in root.findall('ros2_control/joint'):
        for interface in joint.findall("command_interface[@name='velocity']"):
            given = {item.get('name'): item.text for item in interface.findall('param')}
            commands[joint.get('name')] = given
    result = {}
    for joint in root.findall('joint'):
        name, kind = joint.get('name', ''), joint.get('type')
        if kind not in ('revolute', 'continuous', 'prismatic'):
            continue
        limit, soft = joint.find('limit'), joint.find('safety_controller')
        if limit is None and kind != 'continuous':
            raise LimitsError(f'{name}: a {kind} joint needs <limit>')
        values = {} if limit is None else dict(limit.attrib)
        soft_values = {} if soft is None else dict(soft.attrib)
        given = commands.get(name, {})
        bounded = kind != 'continuous'
        result[name] = JointLimits(
            lower=max(
                _number(values, 'lower', name, 0.0 if bounded else -math.inf),
                _number(soft_values, 'soft_lower_limit', name, -math.inf)),
            upper=min(
                _number(values, 'upper', name, 0.0 if bounded else math.inf),
                _number(soft_values, 'soft_upper_limit', name, math.inf)),
            velocity=_number(values, 'velocity', name, math.inf),
            effort=_number(values, 'effort', name, math.inf),
            command_low=_number(given, 'min', name, -math.inf),
            command_high=_number(given, 'max', name, math.inf))
    return result


def read_joint_limits(path: str | Path) -> dict[str, JointLimits]:
    """
    Limits of a `joint_limits.yaml` as ros2_control and MoveIt write it.

    Read are, per joint, `has_<what>_limits` with `min_position`, `max_position`, `max_velocity`,
    `max_acceleration`, `max_deceleration`, `max_jerk`, `max_effort`, and `has_soft_limits` with
    `soft_lower_limit`, `soft_upper_limit`. The mapping `joint_limits` may stand at the top or
    anywhere under `ros__parameters`.

    :param path: the file.
    :return: limits by joint name.
    :raises LimitsError: if it cannot be read; with joint and key.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LimitsError(f'{path}: expected a readable YAML file, came {error}') from None
    found = _find_mapping(data, 'joint_limits')
    if found is None:
        raise LimitsError(f'{path}: expected a mapping joint_limits, came none')
    result = {}
    for joint, given in found.items():
        where = f'{path}: joint_limits.{joint}'
        if not isinstance(given, dict):
            raise LimitsError(f'{where}: expected a mapping, came {given!r}')
        unknown = set(given) - _JOINT_KEYS
        if unknown:
            raise LimitsError(
                f'{where}: unknown {", ".join(sorted(unknown))}; known are '
                f'{", ".join(sorted(_JOINT_KEYS))}')
        for key, needed in _HAS_LIMITS.items():
            missing = [item for item in needed if given.get(key) is True and item not in given]
            if missing:
                raise LimitsError(f'{where}: {key} is true, so expected {", ".join(missing)}')

        def value(key: str, has: str, default: float, given: dict = given,
                  where: str = where) -> float:
            return _number(given, key, where, default) if given.get(has, key in given) else default

        result[str(joint)] = JointLimits(
            lower=max(value('min_position', 'has_position_limits', -math.inf),
                      value('soft_lower_limit', 'has_soft_limits', -math.inf)),
            upper=min(value('max_position', 'has_position_limits', math.inf),
                      value('soft_upper_limit', 'has_soft_limits', math.inf)),
            velocity=value('max_velocity', 'has_velocity_limits', math.inf),
            effort=value('max_effort', 'has_effort_limits', math.inf),
            acceleration=value('max_acceleration', 'has_acceleration_limits', math.inf),
            deceleration=value('max_deceleration', 'has_deceleration_limits', math.inf),
            jerk=value('max_jerk', 'has_jerk_limits', math.inf))
    return result


_HAS_LIMITS = {
    'has_position_limits': ('min_position', 'max_position'),
    'has_velocity_limits': ('max_velocity',), 'has_effort_limits': ('max_effort',),
    'has_acceleration_limits': ('max_acceleration',),
    'has_deceleration_limits': ('max_deceleration',), 'has_jerk_limits': ('max_jerk',),
    'has_soft_limits': ('soft_lower_limit', 'soft_upper_limit'),
}
_JOINT_KEYS = {*_HAS_LIMITS, 'angle_wraparound', 'k_position', 'k_velocity'}.union(
    *_HAS_LIMITS.values())


def _find_mapping(data: object, key: str) -> dict | None:
    """Return the first mapping under this key, at any depth."""
    if not isinstance(data, dict):
        return None
    if isinstance(data.get(key), dict):
        return data[key]
    return next((found for item in data.values()
                 if (found := _find_mapping(item, key)) is not None), None)


def combine(interface: Interface, joints: dict[str, JointLimits]) -> Limits:
    """
    The strictest of the URDF's and the interface file's limits.

    :param interface: what can be commanded, and its limits.
    :param joints: limits of the URDF by joint name.
    :return: limits of every action entry.
    :raises LimitsError: if a limit is missing, limits contradict each other, an action cannot be
        filtered, or the robot's arm joints are not in the URDF.
    """
    names, units = interface.action_names, interface.action_units
    measured = {
        path.removeprefix('position.') for source in interface.observations.values()
        if source.type == 'sensor_msgs/msg/JointState' for path in source.fields
        if path.startswith('position.')}
    rows = []
    for name, unit in zip(names, units, strict=True):
        limit = interface.limits.get(name)
        if limit is None:
            raise LimitsError(f'{name}: no limits; give limits.{name} in the interface file')
        moving = unit in SPEED_UNITS or unit == TORQUE_UNIT
        if unit in ('rad', 'm'):
            raise LimitsError(
                f"{name}: the safety filter commands speeds or torques, came unit {unit!r}; use "
                "the robot's velocity controller (rad/s or m/s) or effort controller (N m)")
        if unit == TORQUE_UNIT and name not in measured:
            raise LimitsError(
                f'{name}: a torque needs a measured joint of this name; add position.{name} to '
                'the observations')
        if name in measured and name not in joints:
            raise LimitsError(
                f'{name}: the interface measures and commands this joint, but the URDF has only '
                f'{", ".join(sorted(joints))}')
        urdf = joints.get(name, JointLimits())
        speed = min(urdf.velocity, limit.velocity or math.inf)
        lowest, highest = limit.range or (-math.inf, math.inf)
        low = max(-speed, lowest, urdf.command_low)
        high = min(speed, highest, urdf.command_high)
        acceleration = min(urdf.acceleration, limit.acceleration or math.inf)
        rows.append((
            moving, name in joints and name in measured, urdf.lower, urdf.upper, low, high,
            lowest == low or highest == high, acceleration,
            min(urdf.effort, limit.effort or math.inf),
            min(urdf.deceleration, limit.deceleration or acceleration),
            min(urdf.jerk, limit.jerk or math.inf), limit.weight or 1.0,
            urdf.velocity if math.isfinite(urdf.velocity) else max(-low, high),
            limit.armature or 0.0))
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return Limits(tuple(names), tuple(units), *columns)


def load_limits(
    interface: Interface, description: str | Path, joint_limits_file: str | Path | None = None,
) -> Limits:
    """
    Limits of a robot from its files.

    :param interface: the robot's interface.
    :param description: path of its URDF or xacro.
    :param joint_limits_file: path of a `joint_limits.yaml`, if there is one.
    :raises LimitsError: see `load_urdf`, `joint_limits`, `read_joint_limits` and `combine`.
    """
    return limits_of(interface, load_urdf(description), joint_limits_file)


def limits_of(
    interface: Interface, urdf: str, joint_limits_file: str | Path | None = None,
) -> Limits:
    """As `load_limits`, of a URDF that was read already."""
    joints = joint_limits(urdf)
    if joint_limits_file:
        for name, given in read_joint_limits(joint_limits_file).items():
            if name not in joints:
                raise LimitsError(
                    f'{joint_limits_file}: joint {name} is not in the URDF, which has '
                    f'{", ".join(sorted(joints))}')
            joints[name] = joints[name].stricter(given)
    return combine(interface, joints)


def _number(values: dict, key: str, joint: str, default: float) -> float:
    text = values.get(key)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise LimitsError(f'{joint}: {key}: expected a number, came {text!r}')
    return number
