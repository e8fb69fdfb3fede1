"""Writing demonstrations as robomimic reads them: one hdf5 file, a group per episode."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import Demonstration, Feature, FormatError, Layout, Picture, check
from .hdf5_file import h5py_module
from .robomimic import STAMPS

_BLOCK = 32     # images handed over at a time


def write_robomimic(path: str | Path, layout: Layout, episodes: Iterable[Demonstration]) -> int:
    """
    Write a file, and return its episodes.

    Beside what robomimic asks for (`actions`, `obs`, `next_obs`, `dones`, `rewards`), `stamps` is
    the time of each step [ns], and the names and units of numbers are attributes of their array.

    :param path: takes its name when the file is complete.
    :param layout: of the episodes.
    :param episodes: at least one.
    :raises FormatError: if the file exists, or the episodes cannot be written so.
    """
    h5py, path = h5py_module(), Path(path)
    if path.exists():
        raise FormatError(f'{path}: expected a new file, came one that exists; choose another')
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        with h5py.File(beside, 'w') as file:
            count = _write(file.create_group('data'), layout, episodes)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return count


def _write(data: Any, layout: Layout, episodes: Iterable[Demonstration]) -> int:
    total = count = 0
    options = {'robots': [layout.robot]}
    if layout.rate is not None:
        options['control_freq'] = layout.rate  # type: ignore[assignment]
    # Type 0 stands for robosuite in robomimic; nothing can be simulated from these data.
    data.attrs['env_args'] = json.dumps({'env_name': layout.robot, 'type': 0,
                                         'env_kwargs': options})
    for episode in episodes:
        check(episode, layout, episode.name)
        demo, steps = data.create_group(f'demo_{count}'), len(episode)
        demo.attrs.update({'num_samples': steps, 'task': episode.task,
                           'outcome': episode.outcome, 'name': episode.name})
        _named(demo, 'actions', episode.actions, layout.action)
        demo[STAMPS] = np.asarray(episode.stamps, np.int64)
        last = np.arange(steps) == steps - 1
        demo['dones'] = last.astype(np.int64)
        demo['rewards'] = (last & (episode.outcome == 'success')).astype(np.float64)
        for feature in layout.observations:
            values = np.asarray(episode.vectors[feature.name])
            _named(demo, f'obs/{feature.name}', values, feature)
            demo[f'next_obs/{feature.name}'] = np.concatenate((values[1:], values[-1:]))
        for picture in layout.pictures:
            _images(demo, episode, picture)
        total, count = total + steps, count + 1
    if not count:
        raise FormatError('expected at least one episode, came none')
    data.attrs['total'] = total
    return count


def _named(demo: Any, name: str, values: np.ndarray, feature: Feature) -> None:
    demo[name] = values
    demo[name].attrs.update({'names': json.dumps(feature.names),
                             'units': json.dumps(feature.units)})


def _images(demo: Any, episode: Demonstration, picture: Picture) -> None:
    """Write images a few at a time; what follows the last one is left out of `next_obs`."""
    shape = (*picture.shape, 1) if picture.depth else picture.shape
    # robomimic tells images by the end of their name.
    name = picture.name if picture.name.endswith(('image', 'depth')) else \
        f'{picture.name}_{"depth" if picture.depth else "image"}'
    steps = len(episode)
    array = demo.create_dataset(f'obs/{name}', (steps, *shape), 'f4' if picture.depth else 'u1',
                                chunks=(1, *shape), compression='gzip', compression_opts=1)
    count, block = 0, []
    for frame in episode.frames[picture.name]():
        block.append(np.reshape(frame, shape))
        count += 1
        if count <= steps and (len(block) == _BLOCK or count == steps):
            array[count - len(block):count] = np.stack(block)
            block = []
    if count != steps:
        raise FormatError(f'{episode.name}: {picture.name}: expected {steps} images, one per '
                          f'step, came {count}')
