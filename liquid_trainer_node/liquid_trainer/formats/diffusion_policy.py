"""
Demonstrations of Diffusion Policy: zarr arrays of all steps, and where each episode ends.

`data/<name>` hold one row per step, `meta/episode_ends` where the next episode starts; as a
folder (`pusht_cchi_v7_replay.zarr`) or zip file (`.zarr.zip`). Layout:
github.com/real-stanford/diffusion_policy, ReplayBuffer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

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
)
from .zarr_arrays import Store, ZarrArray

ACTION, STAMP = 'action', 'stamp_ns'
_BLOCK = 64     # images read at a time


def read_diffusion_policy(path: str | Path, observations: Sequence[str] = (),
                          images: Sequence[str] | None = None,
                          rate: float | None = None) -> Dataset:
    """
    Open a replay buffer of Diffusion Policy.

    :param path: the `.zarr` folder or `.zarr.zip` file.
    :param observations: arrays of numbers to read, in this order; all but the action when left
        out. More than one number per row and dimension (key points) are laid side by side.
    :param images: arrays of images to read; all when None.
    :param rate: steps per second; taken from the file if it was written here.
    :raises FormatError: if it is not such data, or lacks what is asked for.
    """
    path = Path(path)
    with Store(path) as store:
        names = store.arrays('data')
        if ACTION not in names or 'episode_ends' not in store.arrays('meta'):
            raise FormatError(f'{path}: expected the arrays data/action and meta/episode_ends, '
                              f'came data {names} and meta {store.arrays("meta")}')
        arrays = {name: ZarrArray(store, f'data/{name}') for name in names}
        ends = ZarrArray(store, 'meta/episode_ends').rows().astype(np.int64)
        notes = json.loads(store.get('.zattrs') or '{}')
    _check_ends(ends, arrays, path)
    there = [name for name, array in arrays.items() if name not in (ACTION, STAMP)]
    shown = [name for name in there if _is_picture(arrays[name])]
    told = [name for name in there if name not in shown and arrays[name].dtype.kind in 'fiub']
    seen = shown if images is None else (
        choose(shown, images, str(path), 'images') if images else [])
    layout = Layout(
        str(notes.get('robot', 'robot')), rate or notes.get('rate'),
        tuple(_feature(name, arrays[name])
              for name in choose(told, observations, str(path), 'observations')),
        _feature(ACTION, arrays[ACTION]),
        tuple(_picture(name, arrays[name]) for name in seen))
    episodes = notes.get('episodes') or [{} for _ in ends]
    if len(episodes) != len(ends):
        raise FormatError(f'{path}: .zattrs: expected {len(ends)} episodes, came {len(episodes)}')
    titles = tuple(str(made.get('name', f'episode_{number}'))
                   for number, made in enumerate(episodes))

    def load(number: int) -> Demonstration:
        start, end = int(ends[number - 1]) if number else 0, int(ends[number])
        with Store(path) as store:
            def rows(name: str) -> np.ndarray:
                return ZarrArray(store, f'data/{name}').rows(start, end)

            stamps = rows(STAMP)[:, 0] if STAMP in arrays else even_stamps(
                end - start, layout.rate, number)
            vectors = {feature.name: rows(feature.name).reshape(end - start, -1)
                       for feature in layout.observations}
            actions = rows(ACTION).reshape(end - start, -1)
        return Demonstration(
            titles[number], stamps, vectors, actions,
            {picture.name: _frames(path, picture, start, end) for picture in layout.pictures},
            str(episodes[number].get('task', '')),
            str(episodes[number].get('outcome', 'unmarked')))

    return Dataset(str(path), layout, titles, load)


def _check_ends(ends: np.ndarray, arrays: dict[str, ZarrArray], path: Path) -> None:
    if ends.ndim != 1 or not len(ends) or (np.diff(ends, prepend=0) <= 0).any():
        raise FormatError(f'{path}: meta/episode_ends: expected growing numbers of steps, came '
                          f'{ends[:10]}')
    for name, array in arrays.items():
        if len(array) != ends[-1]:
            raise FormatError(f'{path}: data/{name}: expected {ends[-1]} rows, as episode_ends '
                              f'says, came {len(array)}')


def _is_picture(array: ZarrArray) -> bool:
    return (len(array.shape) == 4 and array.shape[3] == 3) or bool(array.attributes.get('depth'))


def _picture(name: str, array: ZarrArray) -> Picture:
    return Picture(name, array.shape[1], array.shape[2], bool(array.attributes.get('depth')))


def _feature(name: str, array: ZarrArray) -> Feature:
    size = int(np.prod(array.shape[1:])) if len(array.shape) > 1 else 1
    return Feature(name, tuple(array.attributes.get('names') or column_names(name, size)),
                   tuple(array.attributes.get('units') or ()))


def _frames(path: Path, picture: Picture, start: int, end: int):
    def read() -> Iterator[np.ndarray]:
        with Store(path) as store:
            array = ZarrArray(store, f'data/{picture.name}')
            for first in range(start, end, _BLOCK):
                block = array.rows(first, min(first + _BLOCK, end))
                yield from block if picture.depth else _colours(block, path, picture.name)
    return read


def _colours(block: np.ndarray, path: Path, name: str) -> np.ndarray:
    """Give images as bytes; Push-T has them as floats from 0 to 255."""
    if block.dtype == np.uint8:
        return block
    if not np.isfinite(block).all() or block.min() < 0 or block.max() > 255:
        raise FormatError(f'{path}: data/{name}: expected colours from 0 to 255, came '
                          f'{block.min()} to {block.max()}')
    return np.rint(block).astype(np.uint8)
