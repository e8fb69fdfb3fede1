"""The numbers inside messages of any type, by name."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# Longer arrays are not listed number by number.
LONGEST = 32
# Arrays from this size on are pictures, point clouds, maps.
LARGE = 256
# What lists of messages are cut to.
MOST_PARTS = 8

Getter = Callable[[Any], Any]


def number_paths(message: Any) -> dict[str, Getter]:
    """
    Say which numbers a message has and how to read them from messages of its shape.

    Arrays of up to `LONGEST` numbers are listed one by one, by the names beside them where the
    message has as many (`position.elbow_joint`); headers and texts are left out.

    :param message: decoded by rosbags.
    :return: function from message to number, by path.
    """
    return dict(_walk(message, '', lambda same: same))


def large_data(message: Any) -> np.ndarray | None:
    """Return the picture, point cloud or the like inside a message, None without one."""
    arrays = [value for value in vars(message).values()
              if isinstance(value, np.ndarray) and value.size >= LARGE]
    return max(arrays, key=lambda array: array.nbytes) if arrays else None


def digest(data: np.ndarray) -> int:
    """Return a short digest of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(data).view(np.uint8).data)


def shape_of(message: Any) -> tuple:
    """Return what decides which numbers a message has: lengths and names inside it."""
    found: list[Any] = []
    for entry in dataclasses.fields(message):
        value = getattr(message, entry.name)
        if isinstance(value, np.ndarray):
            found.append(len(value))
        elif isinstance(value, list) and entry.name == 'name':
            found.append(tuple(value))
        elif isinstance(value, list) and value and dataclasses.is_dataclass(value[0]):
            found.append((len(value), *(shape_of(part) for part in value[:MOST_PARTS])))
        elif dataclasses.is_dataclass(value) and entry.name != 'header':
            found.append(shape_of(value))
    return tuple(found)


def _item(get: Getter, index: int) -> Getter:
    return lambda message: get(message)[index]


def _field(get: Getter, name: str) -> Getter:
    return lambda message: getattr(get(message), name)


def _walk(value: Any, path: str, get: Getter) -> Iterator[tuple[str, Getter]]:
    if isinstance(value, (bool, int, float, np.number)):
        yield path, get
    elif isinstance(value, np.ndarray):
        if value.size <= LONGEST and value.dtype.kind in 'biuf':
            for index in range(value.size):
                yield f'{path}.{index}', _item(get, index)
    elif isinstance(value, list):
        for index, item in enumerate(value[:MOST_PARTS]):
            if dataclasses.is_dataclass(item):
                yield from _walk(item, f'{path}.{index}' if path else str(index),
                                 _item(get, index))
    elif dataclasses.is_dataclass(value):
        names = getattr(value, 'name', None)
        named = isinstance(names, list) and len(names) > 0
        for entry in dataclasses.fields(value):
            # `__msgtype__` is the library's; constants are in capitals.
            if entry.name in ('header', '__msgtype__') or entry.name.isupper():
                continue
            part = getattr(value, entry.name)
            below = f'{path}.{entry.name}' if path else entry.name
            read = _field(get, entry.name)
            if named and isinstance(part, np.ndarray) and len(part) == len(names or ()):
                for index, label in enumerate(names or ()):
                    yield f'{below}.{label}', _item(read, index)
            else:
                yield from _walk(part, below, read)
