"""What one interface file says: every part, and whether the parts fit together."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from liquid_policy.interface_specs import (
    LIMITS_OF_UNIT,
    NAME,
    ActionSpec,
    FeatureSpec,
    ImageSpec,
    InterfaceError,
    Limit,
    SourceSpec,
    check_positive,
    expect,
    plain_fields,
)
from liquid_policy.safety_spec import SafetySpec, plain

FORMAT = 1   # version of the file's format


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
        expect(isinstance(self.robot, str) and NAME.fullmatch(self.robot), 'robot', 'a name',
               self.robot)
        expect(isinstance(self.description, str) and self.description, 'description',
               'the file name of a URDF or xacro', self.description)
        check_positive(self, 'rate')
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
            expect(known == kind, where, f'type {known} for topic {topic!r}, as elsewhere', kind)
        return found

    def to_yaml(self) -> str:
        """Give the interface back as the text of a file that reads to an equal interface."""
        data: dict[str, Any] = {
            'format': FORMAT, 'robot': self.robot, 'description': self.description,
            'rate': self.rate, 'clock': self.clock,
        }
        if self.images:
            data['images'] = {name: plain_fields(spec) for name, spec in self.images.items()}
            data['features'] = plain_fields(self.features)
        for section in ('observations', 'actions', 'targets', 'limits'):
            group = getattr(self, section)
            if group:
                data[section] = {name: plain_fields(spec) for name, spec in group.items()}
        if self.safety is not None:
            data['safety'] = plain(self.safety)
        return yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=99)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Interface) and not differences(self, other)

    def __hash__(self) -> int:
        return hash(self.to_yaml())

    def _check_clock(self) -> None:
        names = tuple(self.observations)
        expect(self.clock in names, 'clock', f'one of the observations {names}', self.clock)
        source = self.clock_source
        expect(source.align == 'hold' and source.latency == 0, f'observations.{self.clock}',
               "align 'hold' and latency 0.0, because its stamps are the control clock",
               f'{source.align!r} and {source.latency:g}')
        expect(source.rate >= 0.99 * self.rate, f'observations.{self.clock}.rate',
               f'at least the control rate, {self.rate:g} Hz', source.rate)

    def _check_features(self) -> None:
        if not self.images:
            expect(self.features is None, 'features', 'no features without images', 'features')
            return
        if self.features is None:
            raise InterfaceError('features: expected what perception makes of the images, came '
                                 'nothing')
        chosen = self.features.images
        for name in chosen:
            expect(name in self.images, 'features.images', f'names from {tuple(self.images)}',
                   name)
        expect(len(set(chosen)) == len(chosen), 'features.images', 'each image once', chosen)
        if not chosen:
            complete = dataclasses.replace(self.features, images=tuple(self.images))
            object.__setattr__(self, 'features', complete)

    def _check_duplicates(self) -> None:
        expect(bool(self.observations), 'observations', 'at least one observation', 'none')
        expect(bool(self.actions), 'actions', 'at least one action', 'none')
        sections: dict[str, str] = {'features': 'features'}
        for section in ('images', 'observations', 'targets', 'actions'):
            for name in getattr(self, section):
                expect(name not in sections, f'{section}.{name}',
                       'a name not used before', f'{name!r}, also in {sections.get(name)}')
                sections[name] = section
        seen: dict[str, str] = {}
        for section in ('observations', 'targets', 'actions'):
            for name, spec in getattr(self, section).items():
                for number, path in zip(spec.names, spec.fields, strict=True):
                    where = f'{section}.{name}'
                    if section != 'observations':
                        key = f'{section} {number}'
                        expect(key not in seen, f'{where}.names', 'each name once',
                               f'{number!r}, also in {seen.get(key)}')
                        seen[key] = where
                    key = f'{spec.topic} {path}'
                    expect(key not in seen, f'{where}.fields', 'each field of a topic once',
                           f'{path!r} of {spec.topic!r}, also in {seen.get(key)}')
                    seen[key] = where
        used: dict[str, str] = {}
        for name, spec in self.images.items():
            expect(spec.topic not in used, f'images.{name}.topic', 'a topic of its own',
                   f'{spec.topic!r}, also of images.{used.get(spec.topic)}')
            used[spec.topic] = name

    def _check_limits(self) -> None:
        units = dict(zip(self.action_names, self.action_units, strict=True))
        for name in self.limits:
            expect(name in units, f'limits.{name}', f'one of the actions {tuple(units)}', name)
        for name, unit in units.items():
            needed = LIMITS_OF_UNIT.get(unit, ('range',))
            limit = self.limits.get(name)
            expect(limit is not None, f'limits.{name}',
                   f'{" and ".join(needed)} of this action [{unit}]', 'nothing')
            for key in needed:
                expect(getattr(limit, key) is not None, f'limits.{name}.{key}',
                       f'a limit, because the action is in {unit}', 'nothing')


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



def _leaves(interface: Interface) -> Iterator[tuple[str, Any]]:
    for key in ('robot', 'description', 'rate', 'clock'):
        yield key, getattr(interface, key)
    if interface.features is not None:
        for key, value in plain_fields(interface.features).items():
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
