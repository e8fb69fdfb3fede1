"""ROS 2 message types without ROS: definitions, serialization, messages to fill in."""

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

# Of the distribution this software is made for; a bag's own definitions go first when reading.
_STORE = Stores.ROS2_JAZZY
_SEPARATOR = re.compile(r'^=+$', re.MULTILINE)


class UnknownTypeError(ValueError):
    """No definition of a message type is to be found."""


def message_types(names: Iterable[str] = ()) -> Typestore:
    """
    Give a typestore that knows the common messages and the named ones.

    :param names: further types, `package/msg/Name`; their definitions are read from
        `<prefix>/share/<package>/msg/<Name>.msg`, or from a checkout of this project.
    :raises UnknownTypeError: if a definition is not found, with the places searched.
    """
    store = get_typestore(_STORE)
    add_types(store, names)
    return store


def add_types(store: Typestore, names: Iterable[str]) -> None:
    """
    Make a typestore know the named types too; see `message_types`.

    :raises UnknownTypeError: if a definition is not found, with the places searched.
    """
    found: dict[str, Any] = {}
    for name in names:
        _collect(store, name, found)
    if found:
        store.register(found)


def definition_of(store: Typestore, name: str) -> tuple[str, str]:
    """Give the `.msg` text of a type with all it is made of, and its RIHS01 hash."""
    text, _ = store.generate_msgdef(name, ros_version=2)
    return text, store.hash_rihs01(name)


def new_message(store: Typestore, name: str, /, **values: Any) -> Any:
    """
    Make a message with all fields zero or empty.

    :param store: from `message_types`.
    :param name: its type.
    :param values: fields to set.
    """
    fields = {key: _default(store, kind) for key, kind in store.fielddefs[name][1]}
    unknown = set(values) - set(fields)
    if unknown:
        raise ValueError(f'expected fields {list(fields)} of {name}, came {sorted(unknown)}')
    fields.update(values)
    return store.types[name](**fields)


def part_of(kind: Any) -> str | None:
    """Give the message type a field is made of, or None for numbers and text."""
    node, detail = kind
    if node in (Nodetype.ARRAY, Nodetype.SEQUENCE):
        node, detail = detail[0]
    return detail if node == Nodetype.NAME else None


def _default(store: Typestore, kind: Any) -> Any:
    node, detail = kind
    if node == Nodetype.BASE:
        base = detail[0]
        return '' if base == 'string' else False if base == 'bool' else \
            0.0 if base.startswith('float') else 0
    if node == Nodetype.NAME:
        return new_message(store, detail)
    (element, inner), count = detail
    count = count if node == Nodetype.ARRAY else 0
    if element == Nodetype.BASE and inner[0] != 'string':
        kind_of = {'byte': 'uint8', 'octet': 'uint8', 'char': 'uint8'}.get(inner[0], inner[0])
        return np.zeros(count, dtype=kind_of)
    return [_default(store, (element, inner)) for _ in range(count)]


def _collect(store: Typestore, name: str, found: dict[str, Any]) -> None:
    if name in store.fielddefs or name in found:
        return
    if name.count('/') != 2:
        raise UnknownTypeError(f'expected a type such as sensor_msgs/msg/Imu, came {name!r}')
    package, _, short = name.split('/')
    places = [place / package / 'msg' / f'{short}.msg' for place in _places()]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        searched = ', '.join(str(place) for place in places)
        raise UnknownTypeError(f'expected a definition of {name}, found none at {searched}; '
                               f'build {package} and source its workspace')
    types = get_types_from_msg(path.read_text(encoding='utf-8'), name)
    found.update(types)
    for _, (_, fields) in types.items():
        for _, kind in fields:
            part = part_of(kind)
            if part is not None:
                _collect(store, part, found)


def _places() -> list[Path]:
    prefixes = [Path(entry) for entry in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
                if entry]
    prefixes.append(Path(sys.prefix))
    checkout = Path(__file__).resolve().parents[2]
    return [*(prefix / 'share' for prefix in prefixes), checkout]
