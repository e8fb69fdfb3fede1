"""
Demonstrations of Minari and D4RL: hdf5 files of reinforcement learning.

Minari has a group per episode, with one observation more than actions; D4RL lays all steps end
to end, and `terminals` or `timeouts` say where an episode ends. Layouts:
minari.farama.org/content/dataset_standards and github.com/Farama-Foundation/D4RL.
"""

from __future__ import annotations

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
    choose,
    column_names,
    even_stamps,
    natural_order,
)


def read_minari(path: str | Path, observations: Sequence[str] = (),
                rate: float | None = None) -> Dataset:
    """
    Open a Minari data set.

    The observation after the last action, which nobody acted on, is left out.

    :param path: its folder, or `data/main_data.hdf5` within.
    :param observations: parts of a dictionary of observations, such as `observation` and
        `desired_goal`, in this order; all when left out. A plain one is called `observations`.
    :param rate: steps per second; Minari does not say.
    :raises FormatError: if it is not such a data set, or lacks what is asked for.
    """
    path = Path(path)
    for inner in ('data/main_data.hdf5', 'main_data.hdf5'):
        if (path / inner).is_file():
            path = path / inner
    with hdf5_file.opened(path) as file:
        names = natural_order(name for name in file if name.startswith('episode_'))
        if not names:
            raise FormatError(f'{path}: expected episode_0, episode_1, ... of Minari, came '
                              f'{sorted(file)}; D4RL files are read as such')
        layout = _layout(_observed(file[names[0]], 'observations'), file[names[0]],
                         f'{path}, {names[0]}', observations, rate)
    return Dataset(str(path), layout, tuple(names),
                   lambda number: _read_minari(path, names[number], number, layout))


def read_d4rl(path: str | Path, observations: Sequence[str] = (),
              rate: float | None = None) -> Dataset:
    """
    Open a D4RL file.

    :param path: such as `maze2d-umaze-sparse-v1.hdf5`.
    :param observations: `observations`, and names below `infos` such as `infos/goal`; the first
        alone when left out.
    :param rate: steps per second; D4RL does not say.
    :raises FormatError: if it is not such a file, lacks what is asked for, or marks no ends.
    """
    path = Path(path)
    with hdf5_file.opened(path) as file:
        parts = _numbers(file)
        if not {'observations', 'actions'} <= set(parts):
            raise FormatError(f'{path}: expected the arrays observations and actions, came '
                              f'{sorted(file)}')
        steps = len(parts['actions'])
        wanted = observations or ['observations']
        there = {name: part for name, part in parts.items() if len(part) == steps
                 and (name == 'observations' or name.startswith('infos/'))}
        if 'observations' not in there:
            raise FormatError(f'{path}: expected {steps} observations, one per action, came '
                              f'{len(parts["observations"])}')
        layout = _layout(there, file, str(path), wanted, rate)
        ends = _ends(file, steps, path)
    starts = [0, *ends[:-1]]
    return Dataset(str(path), layout, tuple(f'episode_{n}' for n in range(len(ends))),
                   lambda number: _read_d4rl(path, number, starts[number], ends[number], layout))


def _ends(file: Any, steps: int, path: Path) -> list[int]:
    """Give where episodes end; steps behind the last mark are an episode of their own."""
    marked = np.zeros(steps, bool)
    for name in ('terminals', 'timeouts'):
        if name in file:
            marks = np.asarray(file[name]).reshape(-1)
            if len(marks) != steps:
                raise FormatError(f'{path}: {name}: expected {steps} marks, one per action, came '
                                  f'{len(marks)}')
            marked |= marks.astype(bool)
    if not marked.any():
        raise FormatError(f'{path}: expected terminals or timeouts that mark where episodes end, '
                          'came none')
    ends = [int(step) + 1 for step in np.flatnonzero(marked)]
    return ends if ends[-1] == steps else [*ends, steps]


def _observed(episode: Any, name: str) -> dict[str, Any]:
    part = episode.get(name)
    if part is None:
        return {}
    return {name: part} if hasattr(part, 'shape') else hdf5_file.leaves(part)


def _numbers(file: Any) -> dict[str, Any]:
    return {name: part for name, part in hdf5_file.leaves(file).items()
            if part.ndim in (1, 2) and part.dtype.kind in 'fiub'}


def _layout(parts: dict[str, Any], owner: Any, where: str, observations: Sequence[str],
            rate: float | None) -> Layout:
    chosen = choose(list(parts), observations, where, 'observations')
    features = []
    for name in chosen:
        if parts[name].ndim > 2:
            raise FormatError(f'{where}: {name}: expected numbers (steps, size), came '
                              f'{parts[name].shape}; name the observations you want')
        features.append(_feature(name, parts[name]))
    actions = owner.get('actions')
    if actions is None or not hasattr(actions, 'shape'):
        raise FormatError(f'{where}: expected an array actions, came {sorted(owner)}')
    return Layout('robot', rate, tuple(features), _feature('action', actions))


def _feature(name: str, values: Any) -> Feature:
    return Feature(name, column_names(name.rpartition('/')[2],
                                      values.shape[1] if values.ndim == 2 else 1))


def _columns(values: np.ndarray) -> np.ndarray:
    return values[:, None] if values.ndim == 1 else values


def _read_minari(path: Path, name: str, number: int, layout: Layout) -> Demonstration:
    where = f'{path}, {name}'
    with hdf5_file.opened(path) as file:
        episode = hdf5_file.group(file, name, str(path))
        actions = _columns(hdf5_file.array(episode, 'actions', where))
        parts = _observed(episode, 'observations')
        vectors = {}
        for feature in layout.observations:
            if feature.name not in parts:
                raise FormatError(f'{where}: expected observations {feature.name!r}, came '
                                  f'{list(parts)}')
            values = _columns(np.asarray(parts[feature.name]))
            if len(values) != len(actions) + 1:
                raise FormatError(f'{where}: {feature.name}: expected {len(actions) + 1} '
                                  f'observations, one more than actions, came {len(values)}')
            vectors[feature.name] = values[:-1]
        success = _observed(episode, 'infos').get('success')
        outcome = 'unmarked' if success is None else (
            'success' if bool(np.asarray(success).any()) else 'failure')
    return Demonstration(name, even_stamps(len(actions), layout.rate, number), vectors, actions,
                         outcome=outcome)


def _read_d4rl(path: Path, number: int, start: int, end: int, layout: Layout) -> Demonstration:
    with hdf5_file.opened(path) as file:
        vectors = {feature.name: _columns(np.asarray(file[feature.name][start:end]))
                   for feature in layout.observations}
        actions = _columns(np.asarray(file['actions'][start:end]))
    return Demonstration(f'episode_{number}', even_stamps(end - start, layout.rate, number),
                         vectors, actions)
