"""
Demonstrations of robomimic and robosuite: one hdf5 file, a group per episode.

`data/demo_0/{actions, obs/<name>}`; robosuite's own recordings have `states` instead of `obs`.
Layout: robomimic.github.io/docs/datasets/overview.html.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import hdf5_file
from .dataset import (
    Dataset,
    Demonstration,
    Feature,
    FormatError,
    Layout,
    Picture,
    choose,
    column_names,
    even_stamps,
    natural_order,
)

STAMPS = 'stamps'


def read_robomimic(path: str | Path, observations: Sequence[str] = (), mask: str = '',
                   rate: float | None = None) -> Dataset:
    """
    Open a robomimic or robosuite file.

    :param path: such as `low_dim_v141.hdf5`, `image_v141.hdf5` or robosuite's `demo.hdf5`.
    :param observations: names below `obs`, in this order; all when left out. A file without
        `obs` has one, `states`: MuJoCo's time, positions and velocities.
    :param mask: only the episodes this filter of the file lists, such as `train` or
        `20_percent`.
    :param rate: steps per second; taken from the file's `env_args` when left out.
    :raises FormatError: if it is not such a file, or lacks what is asked for.
    """
    path = Path(path)
    with hdf5_file.opened(path) as file:
        data = hdf5_file.group(file, 'data', str(path))
        names = natural_order(name for name in data if hasattr(data[name], 'keys'))
        if mask:
            names = _masked(file, mask, str(path))
        if not names:
            raise FormatError(f'{path}: expected episodes data/demo_0, ..., came {sorted(data)}')
        robot, own_rate = _environment(data.attrs)
        first = hdf5_file.group(data, names[0], str(path))
        layout = _layout(first, f'{path}, {names[0]}', observations, robot, rate or own_rate)
    return Dataset(str(path), layout, tuple(names),
                   lambda number: _read(path, names[number], number, layout))


def _layout(demo: Any, where: str, observations: Sequence[str], robot: str,
            rate: float | None) -> Layout:
    parts = _observed(demo)
    chosen = choose(list(parts), observations, where, 'observations')
    features, pictures = [], []
    for name in chosen:
        values = parts[name]
        if values.ndim == 4:
            pictures.append(_picture(name, values, where))
        elif values.ndim <= 2:
            features.append(_feature(name, values))
        else:
            raise FormatError(f'{where}: {name}: expected numbers (steps, size) or images '
                              f'(steps, height, width, 3), came {values.shape}; name the '
                              'observations you want')
    actions = demo.get('actions')
    if actions is None:
        raise FormatError(f'{where}: expected an array actions, came {sorted(demo)}')
    return Layout(robot, rate, tuple(features), _feature('action', actions), tuple(pictures))


def _observed(demo: Any) -> dict[str, Any]:
    if 'obs' in demo:
        return hdf5_file.leaves(demo['obs'])
    return {'states': demo['states']} if 'states' in demo else {}


def _feature(name: str, values: Any) -> Feature:
    size = values.shape[1] if values.ndim == 2 else 1
    names, units = (tuple(json.loads(values.attrs.get(key, '[]'))) for key in ('names', 'units'))
    return Feature(name, names or column_names(name, size), units)


def _picture(name: str, values: Any, where: str) -> Picture:
    height, width, channels = values.shape[1:]
    if channels == 1 and np.issubdtype(values.dtype, np.floating):
        return Picture(name, height, width, depth=True)
    if channels != 3 or values.dtype != np.uint8:
        raise FormatError(f'{where}: {name}: expected colour images, uint8 (steps, height, width, '
                          f'3), or depth, floats (steps, height, width, 1), came {values.dtype} '
                          f'{values.shape}')
    return Picture(name, height, width)


def _read(path: Path, name: str, number: int, layout: Layout) -> Demonstration:
    where = f'{path}, {name}'
    with hdf5_file.opened(path) as file:
        demo = hdf5_file.group(file['data'], name, str(path))
        parts = _observed(demo)
        missing = [name for name in layout.part_names if name not in parts]
        if missing:
            raise FormatError(f'{where}: expected the observations {missing} of the first '
                              f'episode, came {list(parts)}')
        actions = _columns(hdf5_file.array(demo, 'actions', where))
        vectors = {feature.name: _columns(np.asarray(parts[feature.name]))
                   for feature in layout.observations}
        for picture in layout.pictures:
            if len(parts[picture.name]) != len(actions):
                raise FormatError(f'{where}: {picture.name}: expected {len(actions)} images, one '
                                  f'per action, came {len(parts[picture.name])}')
        stamps = np.asarray(demo[STAMPS]) if STAMPS in demo else even_stamps(
            len(actions), layout.rate, number)
        task = str(demo.attrs.get('task', ''))
        outcome = str(demo.attrs.get('outcome', 'unmarked'))
        title = str(demo.attrs.get('name', name))
    return Demonstration(title, stamps, vectors, actions, {
        picture.name: _frames(path, name, picture) for picture in layout.pictures}, task, outcome)


def _columns(values: np.ndarray) -> np.ndarray:
    return values[:, None] if values.ndim == 1 else values


def _frames(path: Path, name: str, picture: Picture):
    """Give a function that reads an episode's images, some at a time."""
    def read():
        with hdf5_file.opened(path) as file:
            values = _observed(file['data'][name])[picture.name]
            for first in range(0, len(values), 32):
                for frame in values[first:first + 32]:
                    yield frame[..., 0].astype(np.float32) if picture.depth else frame
    return read


def _masked(file: Any, mask: str, source: str) -> list[str]:
    masks = file.get('mask', {})
    if mask not in masks:
        raise FormatError(f'{source}: expected a mask of {sorted(masks)}, came {mask!r}')
    return natural_order(name.decode() if isinstance(name, bytes) else str(name)
                         for name in masks[mask])


def _environment(attributes: Any) -> tuple[str, float | None]:
    """Give the robot's name and the steps per second as far as the file says."""
    try:
        made = json.loads(attributes.get('env_args', attributes.get('env_info', '{}')))
        options = made.get('env_kwargs', made)
        robot = options.get('robots', '')
        robot = robot[0] if isinstance(robot, list) and robot else robot
        rate = options.get('control_freq')
        return str(robot or made.get('env_name', '') or 'robot'), float(rate) if rate else None
    except (ValueError, TypeError, AttributeError):
        return 'robot', None
