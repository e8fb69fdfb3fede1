"""
What a robot measures and what it can be told: the interface file, validated.

`python3 -m liquid_policy.interface <file>` checks a file and says what it means.
"""

import argparse
import dataclasses
import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from liquid_policy.safety_spec import (
    ObstacleSpec,
    PointSpec,
    SafetySpec,
    SeparationSpec,
    plain,
)

FORMAT = 1
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
}
IMAGE_TYPE = 'sensor_msgs/msg/Image'

_TYPE = re.compile(r'[a-z][a-z0-9_]*/msg/[A-Z][A-Za-z0-9]*')
_TOPIC = re.compile(r'[~/]?/?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*')
_NAME = re.compile(r'[A-Za-z_][A-Za-z0-9_./-]*')


class InterfaceError(ValueError):
    """An interface file says something that cannot be meant; the text says where."""


@dataclass(frozen=True)
class ImageSpec:
    """
    One camera image.

    :param name: its name in the file.
    :param topic: topic, relative so that a namespace works.
    :param type: `sensor_msgs/msg/Image`.
    :param encoding: one of `COLOR_ENCODINGS`, or `32FC1` [m] or `16UC1` [mm] for depth; a message
        with another encoding is refused.
    :param height: rows.
    :param width: columns.
    :param rate: nominal rate [Hz].
    :param unit: depth only: `m` for 32FC1, `mm` for 16UC1; converted images are always metres.
    :param range: depth only: `(nearest, farthest)` [m]. Nearer reads as 0 (nothing known), farther
        as `farthest`.
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

    def __post_init__(self) -> None:
        _check_topic(self)
        encodings = (*COLOR_ENCODINGS, *DEPTH_UNITS)
        _expect(self.type == IMAGE_TYPE, 'type', IMAGE_TYPE, self.type)
        _expect(self.encoding in encodings, 'encoding', f'one of {encodings}', self.encoding)
        for side in ('height', 'width'):
            value = getattr(self, side)
            good = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 8192
            _expect(good, side, 'a whole number of pixels from 1 to 8192', value)
        _check_positive(self, 'rate')
        if self.is_depth:
            _expect(self.unit == DEPTH_UNITS[self.encoding], 'unit',
                    f'{DEPTH_UNITS[self.encoding]!r} for {self.encoding}', self.unit)
            _expect(self.range is not None, 'range', '[nearest, farthest] in metres', self.range)
            nearest, _ = _check_range(self)
            _expect(nearest >= 0, 'range', 'a nearest distance of 0 m or more', self.range)
        else:
            _expect(self.unit is None, 'unit', 'no unit for a colour image', self.unit)
            _expect(self.range is None, 'range', 'no range for a colour image', self.range)

    @property
    def is_depth(self) -> bool:
        """Whether the image holds distances."""
        return self.encoding in DEPTH_UNITS


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
        _expect(good, 'size', 'a positive whole number', self.size)
        _expect(self.align == 'hold', 'align', "'hold'", self.align)
        _expect(isinstance(self.images, tuple), 'images', 'a list of image names', self.images)
        _check_not_negative(self, 'pairing')
        _check_timing(self)
        _expect(self.pairing < 0.5 / self.rate, 'pairing',
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
        _expect(self.align in choices, 'align', f'one of {choices}', self.align)
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
        _expect(self.demonstration != self.topic, 'demonstration',
                'another topic than the command topic', self.demonstration)
        _expect(bool(self.names), 'names', 'a name for each field', self.names)
        _check_numbers(self)
        _expect(self.align == 'next', 'align', "'next'", self.align)
        _check_positive(self, 'rate')
        _check_positive(self, 'max_age')
        _expect(self.max_age >= 1 / self.rate, 'max_age',
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
    :param velocity: largest speed, in the action's unit if that is a speed [rad/s or m/s].
    :param acceleration: largest change of speed [rad/s2 or m/s2].
    :param range: `(lowest, highest)` value, in the action's unit.
    :param deceleration: what braking may count on; the acceleration when left out.
    :param jerk: largest change of acceleration [rad/s3 or m/s3]; gives way to every other limit.
    :param effort: largest torque or force of the joint [N m or N].
    :param weight: how much a change of this action costs when the filter looks for the nearest
        safe command; 1 when left out.
    """

    name: str
    velocity: float | None = None
    acceleration: float | None = None
    range: tuple[float, float] | None = None
    deceleration: float | None = None
    jerk: float | None = None
    effort: float | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        for key in ('velocity', 'acceleration', 'deceleration', 'jerk', 'effort', 'weight'):
            if getattr(self, key) is not None:
                _check_positive(self, key)
        if self.range is not None:
            _check_range(self)


@dataclass(frozen=True, eq=False)
class Interface:
    """
    Everything one interface file says. Mappings keep the file's order and are only to be read.

    :param robot: name of the robot.
    :param description: file name of its URDF or xacro.
    :param rate: control clock [Hz].
    :param clock: the observation whose stamps are the ticks of the control clock.
    :param observations: numbers a policy is fed, in order.
    :param actions: numbers a policy answers, in order.
    :param limits: bounds by action name.
    :param images: images by name; may be empty.
    :param features: what perception makes of the images; None exactly when there are none.
    :param targets: numbers learned from and never needed to run, in order.
    :param safety: limits of the whole robot, enforced by the safety filter only.
    :raises InterfaceError: if the parts do not fit together.
    """

    robot: str
    description: str
    rate: float
    clock: str
    observations: dict[str, SourceSpec]
    actions: dict[str, ActionSpec]
    limits: dict[str, Limit]
    images: dict[str, ImageSpec] = field(default_factory=dict)
    features: FeatureSpec | None = None
    targets: dict[str, SourceSpec] = field(default_factory=dict)
    safety: SafetySpec | None = None

    def __post_init__(self) -> None:
        _expect(isinstance(self.robot, str) and _NAME.fullmatch(self.robot), 'robot', 'a name',
                self.robot)
        _expect(isinstance(self.description, str) and self.description, 'description',
                'the file name of a URDF or xacro', self.description)
        _check_positive(self, 'rate')
        self._check_clock()
        self._check_features()
        self._check_duplicates()
        self._check_limits()
        self.topics()

    @property
    def clock_source(self) -> SourceSpec:
        """The observation that gives the ticks."""
        return self.observations[self.clock]

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of all action numbers, in order."""
        return tuple(name for spec in self.actions.values() for name in spec.names)

    @property
    def action_units(self) -> tuple[str, ...]:
        """Units of all action numbers, in order."""
        return tuple(unit for spec in self.actions.values() for unit in spec.units)

    @property
    def action_size(self) -> int:
        """How many numbers one action has."""
        return sum(spec.size for spec in self.actions.values())

    @property
    def vector_names(self) -> tuple[str, ...]:
        """Names of all observed numbers (without image features), in order."""
        return tuple(name for spec in self.observations.values() for name in spec.names)

    @property
    def vector_units(self) -> tuple[str, ...]:
        """Units of all observed numbers (without image features), in order."""
        return tuple(unit for spec in self.observations.values() for unit in spec.units)

    @property
    def vector_size(self) -> int:
        """How many numbers are observed, image features not counted."""
        return sum(spec.size for spec in self.observations.values())

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of all target numbers, in order."""
        return tuple(name for spec in self.targets.values() for name in spec.names)

    @property
    def target_units(self) -> tuple[str, ...]:
        """Units of all target numbers, in order."""
        return tuple(unit for spec in self.targets.values() for unit in spec.units)

    @property
    def target_size(self) -> int:
        """How many numbers the targets have."""
        return sum(spec.size for spec in self.targets.values())

    def slice_of(self, name: str) -> slice:
        """
        Where an observation, action or target lies in its vector.

        :param name: a name from `observations`, `actions` or `targets`.
        :raises KeyError: if there is no such name.
        """
        for group in (self.observations, self.actions, self.targets):
            if name in group:
                start = 0
                for other, spec in group.items():
                    if other == name:
                        return slice(start, start + spec.size)
                    start += spec.size
        raise KeyError(f'no observation, action or target is called {name!r}')

    def topics(self, demonstrations: bool = True, targets: bool = True) -> dict[str, str]:
        """
        Every topic a recording of this robot holds, with its type, in the file's order.

        Features are left out: they are made from the images.

        :param demonstrations: include the topics on which a teacher sends actions.
        :param targets: include the topics that are only learned from.
        :raises InterfaceError: if one topic is given two types.
        """
        found: dict[str, str] = {}
        groups: list[tuple[str, str, str]] = []
        for section in ('images', 'observations', 'targets', 'actions'):
            if section == 'targets' and not targets:
                continue
            for name, spec in getattr(self, section).items():
                groups.append((f'{section}.{name}.topic', spec.topic, spec.type))
                if section == 'actions' and demonstrations:
                    where = f'{section}.{name}.demonstration'
                    groups.append((where, spec.demonstration, spec.type))
        for where, topic, kind in groups:
            known = found.setdefault(topic, kind)
            _expect(known == kind, where, f'type {known} for topic {topic!r}, as elsewhere', kind)
        return found

    def to_yaml(self) -> str:
        """Give the interface back as the text of a file that reads to an equal interface."""
        data: dict[str, Any] = {
            'format': FORMAT, 'robot': self.robot, 'description': self.description,
            'rate': self.rate, 'clock': self.clock,
        }
        if self.images:
            data['images'] = {name: _plain(spec) for name, spec in self.images.items()}
            data['features'] = _plain(self.features)
        for section in ('observations', 'actions', 'targets', 'limits'):
            group = getattr(self, section)
            if group:
                data[section] = {name: _plain(spec) for name, spec in group.items()}
        if self.safety is not None:
            data['safety'] = plain(self.safety)
        return yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=99)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Interface) and not differences(self, other)

    def __hash__(self) -> int:
        return hash(self.to_yaml())

    def _check_clock(self) -> None:
        names = tuple(self.observations)
        _expect(self.clock in names, 'clock', f'one of the observations {names}', self.clock)
        source = self.clock_source
        _expect(source.align == 'hold' and source.latency == 0, f'observations.{self.clock}',
                "align 'hold' and latency 0.0, because its stamps are the control clock",
                f'{source.align!r} and {source.latency:g}')
        _expect(source.rate >= 0.99 * self.rate, f'observations.{self.clock}.rate',
                f'at least the control rate, {self.rate:g} Hz', source.rate)

    def _check_features(self) -> None:
        if not self.images:
            _expect(self.features is None, 'features', 'no features without images', 'features')
            return
        if self.features is None:
            raise InterfaceError('features: expected what perception makes of the images, came '
                                 'nothing')
        chosen = self.features.images
        for name in chosen:
            _expect(name in self.images, 'features.images', f'names from {tuple(self.images)}',
                    name)
        _expect(len(set(chosen)) == len(chosen), 'features.images', 'each image once', chosen)
        if not chosen:
            complete = dataclasses.replace(self.features, images=tuple(self.images))
            object.__setattr__(self, 'features', complete)

    def _check_duplicates(self) -> None:
        _expect(bool(self.observations), 'observations', 'at least one observation', 'none')
        _expect(bool(self.actions), 'actions', 'at least one action', 'none')
        sections: dict[str, str] = {'features': 'features'}
        for section in ('images', 'observations', 'targets', 'actions'):
            for name in getattr(self, section):
                _expect(name not in sections, f'{section}.{name}',
                        'a name not used before', f'{name!r}, also in {sections.get(name)}')
                sections[name] = section
        seen: dict[str, str] = {}
        for section in ('observations', 'targets', 'actions'):
            for name, spec in getattr(self, section).items():
                for number, path in zip(spec.names, spec.fields, strict=True):
                    where = f'{section}.{name}'
                    if section != 'observations':
                        key = f'{section} {number}'
                        _expect(key not in seen, f'{where}.names', 'each name once',
                                f'{number!r}, also in {seen.get(key)}')
                        seen[key] = where
                    key = f'{spec.topic} {path}'
                    _expect(key not in seen, f'{where}.fields', 'each field of a topic once',
                            f'{path!r} of {spec.topic!r}, also in {seen.get(key)}')
                    seen[key] = where
        used: dict[str, str] = {}
        for name, spec in self.images.items():
            _expect(spec.topic not in used, f'images.{name}.topic', 'a topic of its own',
                    f'{spec.topic!r}, also of images.{used.get(spec.topic)}')
            used[spec.topic] = name

    def _check_limits(self) -> None:
        units = dict(zip(self.action_names, self.action_units, strict=True))
        for name in self.limits:
            _expect(name in units, f'limits.{name}', f'one of the actions {tuple(units)}', name)
        for name, unit in units.items():
            needed = LIMITS_OF_UNIT.get(unit, ('range',))
            limit = self.limits.get(name)
            _expect(limit is not None, f'limits.{name}',
                    f'{" and ".join(needed)} of this action [{unit}]', 'nothing')
            for key in needed:
                _expect(getattr(limit, key) is not None, f'limits.{name}.{key}',
                        f'a limit, because the action is in {unit}', 'nothing')


def load_interface(path: str | Path) -> Interface:
    """
    Read an interface file.

    :param path: the file, usually `config/<robot>.interface.yaml`.
    :raises InterfaceError: naming file, field, what was expected and what came.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise InterfaceError(f'{path}: expected a readable interface file, came {error}') from None
    return parse_interface(text, str(path))


def parse_interface(text: str, source: str = 'interface') -> Interface:
    """
    Read the text of an interface file.

    :param text: YAML.
    :param source: what to call it in errors, usually the file's path.
    :raises InterfaceError: naming source, field, what was expected and what came.
    """
    try:
        data = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 (a SafeLoader)
        return _interface_from(data)
    except yaml.YAMLError as error:
        raise InterfaceError(f'{source}: expected YAML, came {error}') from None
    except InterfaceError as error:
        raise InterfaceError(f'{source}: {error}') from None


def differences(a: Interface, b: Interface, running: bool = False) -> list[str]:
    """
    Say in which fields two interfaces differ.

    :param a: what is expected, for example a checkpoint's interface.
    :param b: what is there, for example the robot's.
    :param running: leave out what a running policy never uses (description, targets,
        demonstration topics, limits of the whole robot).
    :return: one line per differing field, empty when they agree.
    """
    left, right = dict(_leaves(a)), dict(_leaves(b))
    lines = []
    for key in [*left, *(key for key in right if key not in left)]:
        if running and (key == 'description' or key.startswith(('targets', 'safety'))
                        or key.endswith('.demonstration')):
            continue
        if key not in right:
            lines.append(f'{key}: expected {left[key]!r}, came nothing')
        elif key not in left:
            lines.append(f'{key}: expected nothing, came {right[key]!r}')
        elif left[key] != right[key] or type(left[key]) is not type(right[key]):
            lines.append(f'{key}: expected {left[key]!r}, came {right[key]!r}')
    return lines


# The C parser is ten times as fast and not in every build of PyYAML.
_Loader: Any = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)


class _StrictLoader(_Loader):
    """A SafeLoader that refuses a key given twice, which YAML otherwise lets win silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if isinstance(key, str):
                _expect(key not in seen, key, 'each field once',
                        f'{key!r} again on line {line} (first on line {seen.get(key)})')
                seen[key] = line
        return super().construct_mapping(node, deep)


def _interface_from(data: Any) -> Interface:
    _expect(isinstance(data, Mapping), 'file', 'a mapping of fields', type(data).__name__)
    data = dict(data)
    version = data.pop('format', None)
    _expect(version == FORMAT and not isinstance(version, bool), 'format',
            f'{FORMAT}, the version this software reads', version)
    kinds = {'images': ImageSpec, 'observations': SourceSpec, 'actions': ActionSpec,
             'targets': SourceSpec, 'limits': Limit}
    for section, kind in kinds.items():
        if section not in data:
            continue
        group = data[section]
        _expect(isinstance(group, Mapping), section, 'a mapping of names', type(group).__name__)
        data[section] = {name: _build(kind, f'{section}.{name}', spec, name)
                         for name, spec in group.items()}
    if data.get('safety') is not None:
        data['safety'] = _safety_from(data['safety'])
    if data.get('features') is not None:
        data['features'] = _build(FeatureSpec, 'features', data['features'])
    return _build(Interface, '', data)


def _safety_from(data: Any) -> SafetySpec:
    _expect(isinstance(data, Mapping), 'safety', 'a mapping of fields', type(data).__name__)
    data = dict(data)
    for section, kind in (('points', PointSpec), ('obstacles', ObstacleSpec)):
        group = data.get(section, {})
        _expect(isinstance(group, Mapping), f'safety.{section}', 'a mapping of names',
                type(group).__name__)
        data[section] = {name: _build(kind, f'safety.{section}.{name}', spec, name)
                         for name, spec in group.items()}
    if data.get('separation') is not None:
        data['separation'] = _build(SeparationSpec, 'safety.separation', data['separation'])
    return _build(SafetySpec, 'safety', data)


def _build(kind: type, where: str, data: Any, name: Any = None) -> Any:
    """Make a dataclass of a mapping from YAML; errors say where it is in the file."""
    prefix = f'{where}.' if where else ''
    _expect(isinstance(data, Mapping), where, 'a mapping of fields', type(data).__name__)
    values = {key: tuple(value) if isinstance(value, list) else value
              for key, value in data.items()}
    for key, value in values.items():
        if isinstance(value, tuple):
            plain = all(isinstance(entry, (str, int, float)) for entry in value)
            _expect(plain, f'{prefix}{key}', 'a list of names or numbers', list(value))
    if name is not None:
        _expect(isinstance(name, str) and _NAME.fullmatch(name), where, 'a name', name)
        _expect('name' not in values, f'{prefix}name', 'no field of this name', values.get('name'))
        values['name'] = name
    known = {entry.name: entry for entry in dataclasses.fields(kind)}
    allowed = [key for key in known if name is None or key != 'name']
    if 'units' in known and 'unit' in values:
        _expect('units' not in values, f'{prefix}unit', 'either unit or units', 'both')
        unit, fields = values.pop('unit'), values.get('fields')
        values['units'] = (unit,) * (len(fields) if isinstance(fields, tuple) else 1)
    if kind in (SourceSpec, ActionSpec) and 'fields' in values and 'units' not in values:
        _expect(False, f'{prefix}unit', f'unit or units, from {UNITS}', 'nothing')
    for key in values:
        _expect(key in known, f'{prefix}{key}', f'one of the fields {tuple(allowed)}',
                f'unknown field {key!r}')
    for key, entry in known.items():
        optional = (entry.default is not dataclasses.MISSING
                    or entry.default_factory is not dataclasses.MISSING)
        _expect(optional or key in values, f'{prefix}{key}', 'a value', 'nothing')
    try:
        return kind(**values)
    except ValueError as error:
        raise InterfaceError(f'{prefix}{error}') from None


def _expect(good: Any, where: str, expected: str, came: Any) -> None:
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
    _expect(good, key, "a topic name such as 'camera/color/image_raw'", topic)
    good = isinstance(spec.type, str) and _TYPE.fullmatch(spec.type)
    _expect(good, 'type', "a message type such as 'sensor_msgs/msg/Imu'", spec.type)


def _check_numbers(spec: Any) -> None:
    """Check fields, units and names against each other; complete names."""
    good = isinstance(spec.fields, tuple) and bool(spec.fields)
    _expect(good, 'fields', 'a list of at least one field', spec.fields)
    for path in spec.fields:
        good = isinstance(path, str) and bool(path) and all(path.split('.'))
        _expect(good, 'fields', "dotted paths such as 'twist.linear.x' or 'data.0'", path)
        if spec.type == 'sensor_msgs/msg/JointState':
            head, _, joint = path.partition('.')
            good = head in ('position', 'velocity', 'effort') and bool(joint)
            _expect(good, 'fields', 'position.<joint>, velocity.<joint> or effort.<joint>', path)
    _expect(len(set(spec.fields)) == len(spec.fields), 'fields', 'each field once', spec.fields)
    good = isinstance(spec.units, tuple) and len(spec.units) == len(spec.fields)
    _expect(good, 'units', f'{len(spec.fields)} units, one per field', spec.units)
    for unit in spec.units:
        _expect(unit in UNITS, 'units', f'one of {UNITS}', unit)
    if not spec.names:
        object.__setattr__(spec, 'names', tuple(f'{spec.name}.{path}' for path in spec.fields))
    good = isinstance(spec.names, tuple) and len(spec.names) == len(spec.fields)
    _expect(good, 'names', f'{len(spec.fields)} names, one per field', spec.names)
    for name in spec.names:
        _expect(isinstance(name, str) and _NAME.fullmatch(name), 'names', 'names', name)
    _expect(len(set(spec.names)) == len(spec.names), 'names', 'each name once', spec.names)


def _check_positive(spec: Any, key: str) -> None:
    value = getattr(spec, key)
    _expect(_is_number(value) and value > 0, key, 'a positive number', value)
    object.__setattr__(spec, key, float(value))


def _check_not_negative(spec: Any, key: str) -> None:
    value = getattr(spec, key)
    _expect(_is_number(value) and value >= 0, key, 'a number of 0 or more', value)
    object.__setattr__(spec, key, float(value))


def _check_range(spec: Any) -> tuple[float, float]:
    value = spec.range
    good = isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value))
    _expect(good and value[0] < value[1], 'range', 'two numbers, [lowest, highest]', value)
    low, high = float(value[0]), float(value[1])
    object.__setattr__(spec, 'range', (low, high))
    return low, high


def _check_timing(spec: Any) -> None:
    _check_positive(spec, 'rate')
    _check_not_negative(spec, 'latency')
    _check_positive(spec, 'max_age')
    periods = 2 if spec.align == 'interpolate' else 1
    least = spec.latency + periods / spec.rate
    _expect(spec.max_age >= least, 'max_age',
            f'at least latency and {periods} period(s), {least:g} s, or every value is stale',
            spec.max_age)


def _plain(spec: Any) -> dict[str, Any]:
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


def _leaves(interface: Interface) -> Iterator[tuple[str, Any]]:
    for key in ('robot', 'description', 'rate', 'clock'):
        yield key, getattr(interface, key)
    if interface.features is not None:
        for key, value in _plain(interface.features).items():
            yield f'features.{key}', value
    if interface.safety is not None:
        for key, value in plain(interface.safety).items():
            yield f'safety.{key}', value
    for section in ('images', 'observations', 'targets', 'actions', 'limits'):
        group = getattr(interface, section)
        if section != 'limits':  # limits are found by name, the rest by order
            yield f'{section} (order)', list(group)
        for name, spec in group.items():
            for entry in dataclasses.fields(spec):
                value = getattr(spec, entry.name)
                if value is not None and entry.name != 'name':
                    yield f'{section}.{name}.{entry.name}', value


def describe(interface: Interface) -> str:
    """Say in a few lines what an interface means."""
    lines = [f'{interface.robot}: {interface.vector_size} observed numbers, '
             f'{interface.features.size if interface.features else 0} image features, '
             f'{interface.action_size} actions, control clock {interface.clock} at '
             f'{interface.rate:g} Hz']
    for name, image in interface.images.items():
        lines.append(f'  image {name}: {image.topic} [{image.type}] {image.encoding} '
                     f'{image.width}x{image.height} at {image.rate:g} Hz')
    for kind, group in (('observation', interface.observations), ('target', interface.targets)):
        for name, source in group.items():
            lines.append(f'  {kind} {name}: {source.topic} [{source.type}] {source.size} numbers, '
                         f'{source.align}, latency {source.latency:g} s, stale after '
                         f'{source.max_age:g} s')
    for name, action in interface.actions.items():
        lines.append(f'  action {name}: {action.topic} [{action.type}], shown on '
                     f'{action.demonstration}')
        for number, unit in zip(action.names, action.units, strict=True):
            limit = interface.limits[number]
            bounds = [f'{key} {getattr(limit, key):g}'
                      for key in ('velocity', 'acceleration', 'deceleration', 'jerk', 'effort')
                      if getattr(limit, key) is not None]
            if limit.range is not None:
                bounds.append(f'from {limit.range[0]:g} to {limit.range[1]:g}')
            lines.append(f'    {number} [{unit}]: {", ".join(bounds)}')
    if interface.safety is not None:
        lines.append('  safety: ' + ', '.join(
            f'{key} {sorted(value) if isinstance(value, dict) else value}'
            for key, value in plain(interface.safety).items()))
    return '\n'.join(lines)


def main(argv: list[str] | None = None) -> int:
    """Check interface files."""
    parser = argparse.ArgumentParser(description='Check an interface file and say what it means.')
    parser.add_argument('file', type=Path, help='the interface file')
    parser.add_argument('--topics', action='store_true',
                        help='only list the topics a recording needs')
    parser.add_argument('--against', type=Path, help='another file: say which fields differ')
    options = parser.parse_args(argv)
    try:
        interface = load_interface(options.file)
        if options.topics:
            print('\n'.join(interface.topics()))
            return 0
        if options.against is None:
            print(describe(interface))
            return 0
        lines = differences(load_interface(options.against), interface)
    except InterfaceError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print('\n'.join(lines) or 'no difference')
    return 1 if lines else 0


if __name__ == '__main__':
    sys.exit(main())
