"""
What a robot measures and what it can be told: the interface file, validated.

`python3 -m liquid_policy.interface <file>` checks a file and says what it means.
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from liquid_policy.interface_schema import FORMAT, Interface, differences
from liquid_policy.interface_specs import (
    ALIGNMENTS,
    COLOR_ENCODINGS,
    COMPRESSED_IMAGE_TYPE,
    DEPTH_UNITS,
    IMAGE_TYPE,
    LIMITS_OF_UNIT,
    NAME,
    UNITS,
    ActionSpec,
    FeatureSpec,
    ImageSpec,
    InterfaceError,
    Limit,
    SourceSpec,
    expect,
)
from liquid_policy.safety_spec import (
    ObstacleSpec,
    PointSpec,
    SafetySpec,
    SeparationSpec,
    plain,
)

__all__ = [
    'ALIGNMENTS', 'COLOR_ENCODINGS', 'COMPRESSED_IMAGE_TYPE', 'DEPTH_UNITS', 'FORMAT',
    'IMAGE_TYPE', 'LIMITS_OF_UNIT', 'UNITS', 'ActionSpec', 'FeatureSpec', 'ImageSpec', 'Interface',
    'InterfaceError', 'Limit',
    'SourceSpec', 'describe', 'differences', 'load_interface', 'main', 'parse_interface',
]


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
                expect(key not in seen, key, 'each field once',
                       f'{key!r} again on line {line} (first on line {seen.get(key)})')
                seen[key] = line
        return super().construct_mapping(node, deep)


def _interface_from(data: Any) -> Interface:
    expect(isinstance(data, Mapping), 'file', 'a mapping of fields', type(data).__name__)
    data = dict(data)
    version = data.pop('format', None)
    expect(version == FORMAT and not isinstance(version, bool), 'format',
           f'{FORMAT}, the version this software reads', version)
    kinds = {'images': ImageSpec, 'observations': SourceSpec, 'actions': ActionSpec,
             'targets': SourceSpec, 'limits': Limit}
    for section, kind in kinds.items():
        if section not in data:
            continue
        group = data[section]
        expect(isinstance(group, Mapping), section, 'a mapping of names', type(group).__name__)
        data[section] = {name: _build(kind, f'{section}.{name}', spec, name)
                         for name, spec in group.items()}
    if data.get('safety') is not None:
        data['safety'] = _safety_from(data['safety'])
    if data.get('features') is not None:
        data['features'] = _build(FeatureSpec, 'features', data['features'])
    return _build(Interface, '', data)


def _safety_from(data: Any) -> SafetySpec:
    expect(isinstance(data, Mapping), 'safety', 'a mapping of fields', type(data).__name__)
    data = dict(data)
    for section, kind in (('points', PointSpec), ('obstacles', ObstacleSpec)):
        group = data.get(section, {})
        expect(isinstance(group, Mapping), f'safety.{section}', 'a mapping of names',
               type(group).__name__)
        data[section] = {name: _build(kind, f'safety.{section}.{name}', spec, name)
                         for name, spec in group.items()}
    if data.get('separation') is not None:
        data['separation'] = _build(SeparationSpec, 'safety.separation', data['separation'])
    return _build(SafetySpec, 'safety', data)


def _build(kind: type, where: str, data: Any, name: Any = None) -> Any:
    """Make a dataclass of a mapping from YAML; errors say where it is in the file."""
    prefix = f'{where}.' if where else ''
    expect(isinstance(data, Mapping), where, 'a mapping of fields', type(data).__name__)
    values = {key: tuple(value) if isinstance(value, list) else value
              for key, value in data.items()}
    for key, value in values.items():
        if isinstance(value, tuple):
            plain = all(isinstance(entry, (str, int, float)) for entry in value)
            expect(plain, f'{prefix}{key}', 'a list of names or numbers', list(value))
    if name is not None:
        expect(isinstance(name, str) and NAME.fullmatch(name), where, 'a name', name)
        expect('name' not in values, f'{prefix}name', 'no field of this name', values.get('name'))
        values['name'] = name
    known = {entry.name: entry for entry in dataclasses.fields(kind)}
    allowed = [key for key in known if name is None or key != 'name']
    if 'units' in known and 'unit' in values:
        expect('units' not in values, f'{prefix}unit', 'either unit or units', 'both')
        unit, fields = values.pop('unit'), values.get('fields')
        values['units'] = (unit,) * (len(fields) if isinstance(fields, tuple) else 1)
    if kind in (SourceSpec, ActionSpec) and 'fields' in values and 'units' not in values:
        expect(False, f'{prefix}unit', f'unit or units, from {UNITS}', 'nothing')
    for key in values:
        expect(key in known, f'{prefix}{key}', f'one of the fields {tuple(allowed)}',
               f'unknown field {key!r}')
    for key, entry in known.items():
        optional = (entry.default is not dataclasses.MISSING
                    or entry.default_factory is not dataclasses.MISSING)
        expect(optional or key in values, f'{prefix}{key}', 'a value', 'nothing')
    try:
        return kind(**values)
    except ValueError as error:
        raise InterfaceError(f'{prefix}{error}') from None


def describe(interface: Interface) -> str:
    """Say in a few lines what an interface means."""
    lines = [f'{interface.robot}: {interface.vector_size} observed numbers, '
             f'{interface.features.size if interface.features else 0} image features, '
             f'{interface.action_size} actions, control clock {interface.clock} at '
             f'{interface.rate:g} Hz']
    for name, image in interface.images.items():
        rows, columns = image.message_size
        shrunk = f', shrunk to {image.width}x{image.height}' if image.camera else ''
        lines.append(f'  image {name}: {image.topic} [{image.type}] {image.encoding} '
                     f'{columns}x{rows}{shrunk} at {image.rate:g} Hz')
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
