"""The parts of an interface file: images, features, sources, actions, limits, each checked."""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

ALIGNMENTS = ('hold', 'interpolate', 'next')
COLOR_ENCODINGS = ('rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8')
DEPTH_UNITS = {'32FC1': 'm', '16UC1': 'mm'}
UNITS = (
    '1', 'rad', 'rad/s', 'rad/s2', 'm', 'm/s', 'm/s2', 'N', 'N m', 'kg', 's', 'Hz', 'A', 'V', 'W',
    'Pa', 'T', 'K', 'degC', 'lx',
)
# What must bound an action of this unit; any other unit needs a range.
LIMITS_OF_UNIT = {
    'rad/s': ('velocity', 'acceleration'),
    'm/s': ('velocity', 'acceleration'),
    'rad': ('range', 'velocity', 'acceleration'),
    'm': ('range', 'velocity', 'acceleration'),
    'N m': ('velocity', 'acceleration'),
}
IMAGE_TYPE = 'sensor_msgs/msg/Image'
COMPRESSED_IMAGE_TYPE = 'sensor_msgs/msg/CompressedImage'

_TYPE = re.compile(r'[a-z][a-z0-9_]*/msg/[A-Z][A-Za-z0-9]*')
_TOPIC = re.compile(r'[~/]?/?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*')
NAME = re.compile(r'[A-Za-z_][A-Za-z0-9_./-]*')


class InterfaceError(ValueError):
    """An interface file says something that cannot be meant; the text says where."""


@dataclass(frozen=True)
class ImageSpec:
    """
    One camera image.

    :param name: its name in the file.
    :param topic: topic, relative so that a namespace works.
    :param type: `sensor_msgs/msg/Image`, or `sensor_msgs/msg/CompressedImage` (JPEG or PNG).
    :param encoding: one of `COLOR_ENCODINGS`, or `32FC1` [m] or `16UC1` [mm] for depth; a message
        with another encoding is refused. Of a compressed image, what the camera had before.
    :param height: rows, as the policy sees it.
    :param width: columns, as the policy sees it.
    :param rate: nominal rate [Hz].
    :param unit: depth only: `m` for 32FC1, `mm` for 16UC1; converted images are always metres.
    :param range: depth only: `(nearest, farthest)` [m]. Nearer reads as 0 (nothing known), farther
        as `farthest`.
    :param camera: rows and columns of the messages where they are more: they are shrunk then,
        colour by averages, depth by picking, since an average of two distances is neither.
    """

    name: str
    topic: str
    type: str
    encoding: str
    height: int
    width: int
    rate: float
    unit: str | None = None
    range: tuple[float, float] | None = None
    camera: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _check_topic(self)
        encodings = (*COLOR_ENCODINGS, *DEPTH_UNITS)
        types = (IMAGE_TYPE, COMPRESSED_IMAGE_TYPE)
        expect(self.type in types, 'type', f'one of {types}', self.type)
        expect(self.encoding in encodings, 'encoding', f'one of {encodings}', self.encoding)
        for side in ('height', 'width'):
            value = getattr(self, side)
            good = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 8192
            expect(good, side, 'a whole number of pixels from 1 to 8192', value)
        if self.camera is not None:
            given = self.camera if isinstance(self.camera, tuple) else ()
            good = len(given) == 2 and all(
                isinstance(most, int) and not isinstance(most, bool) and least <= most <= 8192
                for least, most in zip((self.height, self.width), given, strict=True))
            expect(good, 'camera', f'rows and columns of the messages, {self.height} and '
                   f'{self.width} or more, up to 8192', self.camera)
        check_positive(self, 'rate')
        if self.is_depth:
            expect(self.unit == DEPTH_UNITS[self.encoding], 'unit',
                   f'{DEPTH_UNITS[self.encoding]!r} for {self.encoding}', self.unit)
            expect(self.range is not None, 'range', '[nearest, farthest] in metres', self.range)
            nearest, _ = _check_range(self)
            expect(nearest >= 0, 'range', 'a nearest distance of 0 m or more', self.range)
        else:
            expect(self.unit is None, 'unit', 'no unit for a colour image', self.unit)
            expect(self.range is None, 'range', 'no range for a colour image', self.range)

    @property
    def is_depth(self) -> bool:
        """Whether the image holds distances."""
        return self.encoding in DEPTH_UNITS

    @property
    def message_size(self) -> tuple[int, int]:
        """Rows and columns of the messages."""
        return self.camera or (self.height, self.width)


@dataclass(frozen=True)
class FeatureSpec:
    """
    What perception makes of the images.

    :param topic: topic of `liquid_policy_msgs/msg/Features`.
    :param size: number of features.
    :param rate: nominal rate [Hz].
    :param images: names of the images that make one stack, the first gives the stamp; all images
        of the file when left out.
    :param pairing: largest stamp difference between images of one stack [s].
    :param align: `hold`.
    :param latency: how long after its stamp a feature vector is sure to have arrived [s].
    :param max_age: age at which it is stale [s].
    """

    topic: str
    size: int
    rate: float
    max_age: float
    images: tuple[str, ...] = ()
    pairing: float = 0.0
    align: str = 'hold'
    latency: float = 0.0

    def __post_init__(self) -> None:
        _check_topic(self)
        good = isinstance(self.size, int) and not isinstance(self.size, bool) and self.size > 0
        expect(good, 'size', 'a positive whole number', self.size)
        expect(self.align == 'hold', 'align', "'hold'", self.align)
        expect(isinstance(self.images, tuple), 'images', 'a list of image names', self.images)
        check_not_negative(self, 'pairing')
        _check_timing(self)
        expect(self.pairing < 0.5 / self.rate, 'pairing',
               f'less than half a period, {0.5 / self.rate:.4g} s, so that one image only fits',
               self.pairing)

    @property
    def type(self) -> str:
        """Message type of the topic."""
        return 'liquid_policy_msgs/msg/Features'


@dataclass(frozen=True)
class SourceSpec:
    """
    Numbers read from one topic: an observation or a target.

    :param name: its name in the file.
    :param topic: topic, relative so that a namespace works.
    :param type: message type, `package/msg/Name`.
    :param fields: where each number is found, in order: `position.<joint>` in a JointState (also
        velocity, effort), else a dotted path (`twist.linear.x`, `data.0`).
    :param units: unit of each number, one of `UNITS`.
    :param names: what each number is called; `<name>.<field>` when left out.
    :param rate: nominal rate [Hz].
    :param align: `hold` or `interpolate` (see alignment.py).
    :param latency: how long after its stamp a message is sure to have arrived [s].
    :param max_age: age at which a value is stale [s].
    """

    name: str
    topic: str
    type: str
    fields: tuple[str, ...]
    units: tuple[str, ...]
    rate: float
    max_age: float
    names: tuple[str, ...] = ()
    align: str = 'hold'
    latency: float = 0.0

    def __post_init__(self) -> None:
        _check_topic(self)
        _check_numbers(self)
        choices = ('hold', 'interpolate')
        expect(self.align in choices, 'align', f'one of {choices}', self.align)
        # q and -q are the same turn, the mean of the two is none.
        turns = [path for path in self.fields if '.' in path
                 and path.split('.')[-2] in ('orientation', 'rotation')]
        expect(self.align == 'hold' or not turns, 'align', "'hold' for quaternions", self.align)
        _check_timing(self)

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return len(self.fields)


@dataclass(frozen=True)
class ActionSpec:
    """
    Numbers the robot can be told on one topic.

    :param name: its name in the file.
    :param topic: command topic of the robot.
    :param type: message type of the command, `package/msg/Name`.
    :param demonstration: topic on which a teacher sends the same message type.
    :param fields: where each number goes, in order; dotted paths as in `SourceSpec`.
    :param units: unit of each number.
    :param names: what each number is called: the joint for an arm; unique in the file.
    :param rate: nominal rate of commands [Hz].
    :param max_age: how long after a tick the demonstrated action may come and still be its [s].
    :param align: `next`: an action belongs to the observation before it.
    """

    name: str
    topic: str
    type: str
    demonstration: str
    fields: tuple[str, ...]
    units: tuple[str, ...]
    names: tuple[str, ...]
    rate: float
    max_age: float
    align: str = 'next'

    def __post_init__(self) -> None:
        _check_topic(self)
        _check_topic(self, 'demonstration')
        expect(self.demonstration != self.topic, 'demonstration',
               'another topic than the command topic', self.demonstration)
        expect(bool(self.names), 'names', 'a name for each field', self.names)
        _check_numbers(self)
        expect(self.align == 'next', 'align', "'next'", self.align)
        check_positive(self, 'rate')
        check_positive(self, 'max_age')
        expect(self.max_age >= 1 / self.rate, 'max_age',
               f'at least one period, {1 / self.rate:g} s', self.max_age)

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return len(self.fields)


@dataclass(frozen=True)
class Limit:
    """
    What bounds one action; limits of the URDF hold besides, the strictest wins.

    :param name: the action's name.
    :param velocity: largest speed, in the action's unit if that is a speed, of the joint if it is
        a torque [rad/s or m/s].
    :param acceleration: largest change of speed [rad/s2 or m/s2].
    :param range: `(lowest, highest)` value, in the action's unit.
    :param deceleration: what braking may count on; the acceleration when left out.
    :param jerk: largest change of acceleration [rad/s3 or m/s3]; gives way to every other limit.
    :param effort: largest torque or force of the joint [N m or N].
    :param weight: how much a change of this action costs when the filter looks for the nearest
        safe command; 1 when left out.
    :param armature: of a joint that is told torques: inertia of its motor's rotor, felt at the
        joint, of which a URDF says nothing [kg m2]; 0 when left out.
    """

    name: str
    velocity: float | None = None
    acceleration: float | None = None
    range: tuple[float, float] | None = None
    deceleration: float | None = None
    jerk: float | None = None
    effort: float | None = None
    weight: float | None = None
    armature: float | None = None

    def __post_init__(self) -> None:
        if self.armature is not None:
            check_not_negative(self, 'armature')
        for key in ('velocity', 'acceleration', 'deceleration', 'jerk', 'effort', 'weight'):
            if getattr(self, key) is not None:
                check_positive(self, key)
        if self.range is not None:
            _check_range(self)


def expect(good: Any, where: str, expected: str, came: Any) -> None:
    """
    Refuse what cannot be meant.

    :param good: true where the value is as expected.
    :param where: the field.
    :param expected: what should have come, in words.
    :param came: what came.
    :raises InterfaceError: naming all three.
    """
    if not good:
        shown = came if isinstance(came, str) and ' ' in came else repr(came)
        if came == 'nothing' or came == 'none' or came == 'both':
            shown = came
        raise InterfaceError(f'{where}: expected {expected}, came {shown}')


def _is_number(value: Any) -> bool:
    return (isinstance(value, (int, float)) and not isinstance(value, bool)
            and math.isfinite(value))


def _check_topic(spec: Any, key: str = 'topic') -> None:
    topic = getattr(spec, key)
    good = isinstance(topic, str) and _TOPIC.fullmatch(topic)
    expect(good, key, "a topic name such as 'camera/color/image_raw'", topic)
    good = isinstance(spec.type, str) and _TYPE.fullmatch(spec.type)
    expect(good, 'type', "a message type such as 'sensor_msgs/msg/Imu'", spec.type)


def _check_numbers(spec: Any) -> None:
    """Check fields, units and names against each other; complete names."""
    good = isinstance(spec.fields, tuple) and bool(spec.fields)
    expect(good, 'fields', 'a list of at least one field', spec.fields)
    for path in spec.fields:
        good = isinstance(path, str) and bool(path) and all(path.split('.'))
        expect(good, 'fields', "dotted paths such as 'twist.linear.x' or 'data.0'", path)
        if spec.type == 'sensor_msgs/msg/JointState':
            head, _, joint = path.partition('.')
            good = head in ('position', 'velocity', 'effort') and bool(joint)
            expect(good, 'fields', 'position.<joint>, velocity.<joint> or effort.<joint>', path)
    expect(len(set(spec.fields)) == len(spec.fields), 'fields', 'each field once', spec.fields)
    good = isinstance(spec.units, tuple) and len(spec.units) == len(spec.fields)
    expect(good, 'units', f'{len(spec.fields)} units, one per field', spec.units)
    for unit in spec.units:
        expect(unit in UNITS, 'units', f'one of {UNITS}', unit)
    if not spec.names:
        object.__setattr__(spec, 'names', tuple(f'{spec.name}.{path}' for path in spec.fields))
    good = isinstance(spec.names, tuple) and len(spec.names) == len(spec.fields)
    expect(good, 'names', f'{len(spec.fields)} names, one per field', spec.names)
    for name in spec.names:
        expect(isinstance(name, str) and NAME.fullmatch(name), 'names', 'names', name)
    expect(len(set(spec.names)) == len(spec.names), 'names', 'each name once', spec.names)


def check_positive(spec: Any, key: str) -> None:
    """
    Make a field of a spec a float.

    :param spec: a frozen dataclass.
    :param key: the field.
    :raises InterfaceError: unless it is a number above 0.
    """
    value = getattr(spec, key)
    expect(_is_number(value) and value > 0, key, 'a positive number', value)
    object.__setattr__(spec, key, float(value))


def check_not_negative(spec: Any, key: str) -> None:
    """Make a field of a spec a float of 0 or more, as `check_positive` does."""
    value = getattr(spec, key)
    expect(_is_number(value) and value >= 0, key, 'a number of 0 or more', value)
    object.__setattr__(spec, key, float(value))


def _check_range(spec: Any) -> tuple[float, float]:
    value = spec.range
    good = isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value))
    expect(good and value[0] < value[1], 'range', 'two numbers, [lowest, highest]', value)
    low, high = float(value[0]), float(value[1])
    object.__setattr__(spec, 'range', (low, high))
    return low, high


def _check_timing(spec: Any) -> None:
    check_positive(spec, 'rate')
    check_not_negative(spec, 'latency')
    check_positive(spec, 'max_age')
    periods = 2 if spec.align == 'interpolate' else 1
    least = spec.latency + periods / spec.rate
    expect(spec.max_age >= least, 'max_age',
           f'at least latency and {periods} period(s), {least:g} s, or every value is stale',
           spec.max_age)


def plain_fields(spec: Any) -> dict[str, Any]:
    """Give a spec as YAML values, without what is left out."""
    data = {}
    for entry in dataclasses.fields(spec):
        value = getattr(spec, entry.name)
        if entry.name == 'name' or value is None:
            continue
        if entry.name == 'units' and len(set(value)) == 1:
            data['unit'] = value[0]
        else:
            data[entry.name] = list(value) if isinstance(value, tuple) else value
    return data
