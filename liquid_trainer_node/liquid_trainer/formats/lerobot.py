"""
Data sets of LeRobot, versions 2.0, 2.1 and 3.0: parquet tables, and videos or pictures.

Version 2 has a table and a video per episode; version 3 lays many episodes into one file.
Layout: huggingface.co/docs/lerobot/lerobot-dataset-v3.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from liquid_policy.interface import UNITS

from .dataset import (
    NANOSECONDS,
    Dataset,
    Demonstration,
    Feature,
    FormatError,
    Layout,
    Picture,
    choose,
    column_names,
    start_of,
)
from .parquet import numbers, read_table
from .video import MissingFileError, frames

VERSIONS = ('v2.0', 'v2.1', 'v3.0')
# Ours, besides what LeRobot asks for: the time of each step on the robot's clock [ns].
STAMP = 'stamp_ns'
SUCCESS = 'next.success'
_NUMBERS = ('float32', 'float64', 'float16', 'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16',
            'uint32', 'uint64', 'bool')


@dataclass(frozen=True)
class _Entry:
    """Where one episode lies: its index, steps, task, table, and start in the videos [s]."""

    index: int
    length: int
    task: str
    table: Path
    videos: dict[str, tuple[Path, float]]


def read_lerobot(path: str | Path, observations: Sequence[str] = (),
                 images: Sequence[str] | None = None) -> Dataset:
    """
    Open a LeRobot data set.

    :param path: its folder, with `meta/info.json`.
    :param observations: features to read, in this order, such as `observation.state`; all
        features of numbers below `observation` when left out.
    :param images: features of pictures to read; all when None.
    :raises FormatError: if it is of another version, or lacks what is asked for.
    """
    path = Path(path)
    info = _info(path)
    features = info['features']
    kinds = {name: str(made.get('dtype')) for name, made in features.items()}
    there = [name for name, kind in kinds.items()
             if kind in _NUMBERS and name.startswith('observation')]
    pictures = [name for name, kind in kinds.items() if kind in ('video', 'image')]
    chosen = choose(there, observations, str(path), 'observations')
    seen = pictures if images is None else (
        choose(pictures, images, str(path), 'images') if images else [])
    if kinds.get('action') not in _NUMBERS:
        raise FormatError(f'{path}: expected a feature action of numbers, came {kinds}')
    layout = Layout(
        str(info.get('robot_type') or 'robot'), float(info['fps']),
        tuple(_feature(name, features[name], path) for name in chosen),
        _feature('action', features['action'], path),
        tuple(_picture(name, features[name], path) for name in seen))
    entries = _entries(path, info, [name for name in seen if kinds[name] == 'video'])
    stored = {name: kinds[name] for name in seen}
    return Dataset(str(path), layout, tuple(f'episode_{entry.index:06d}' for entry in entries),
                   lambda number: _read(path, entries[number], layout, stored,
                                        STAMP in kinds, SUCCESS in kinds))


def _info(path: Path) -> dict[str, Any]:
    file = path / 'meta' / 'info.json'
    try:
        info = json.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise FormatError(f'{file}: expected the description of a LeRobot data set, came: '
                          f'{error}') from error
    if not isinstance(info, dict):
        raise FormatError(f'{file}: expected a JSON object, came {type(info).__name__}')
    version = info.get('codebase_version')
    if version not in VERSIONS:
        raise FormatError(f'{file}: expected codebase_version of {VERSIONS}, came {version!r}; '
                          "convert the data set with LeRobot's own scripts")
    missing = [key for key in ('features', 'fps', 'data_path') if not info.get(key)]
    if missing:
        raise FormatError(f'{file}: expected {missing}, came {sorted(info)}')
    return info


def _feature(name: str, made: dict[str, Any], path: Path) -> Feature:
    size = int(np.prod(made.get('shape') or (1,)))
    names = tuple(_flat(made.get('names')))
    if names and len(names) != size:
        # Some data sets name axes here ('channel') and not numbers.
        names = ()
    units = tuple((made.get('info') or {}).get('units', ()))     # ours, not LeRobot's
    if len(units) != size or not set(units) <= set(UNITS):
        units = ()
    try:
        return Feature(name, names or column_names(name.rpartition('.')[2], size), units)
    except FormatError as error:
        raise FormatError(f'{path}: {error}') from None


def _flat(names: Any) -> Iterator[str]:
    """Give names that come as a list, a list of lists, or lists by kind."""
    if isinstance(names, dict):
        names = list(names.values())
    if isinstance(names, list):
        for name in names:
            yield from _flat(name)
    elif names is not None:
        yield str(names)


def _picture(name: str, made: dict[str, Any], path: Path) -> Picture:
    shape = tuple(made.get('shape') or ())
    axes = [str(axis) for axis in _flat(made.get('names'))]
    if len(shape) == 3 and (axes[:1] in (['channels'], ['channel'], ['c']) or shape[0] == 3):
        shape = (*shape[1:], shape[0])
    told = {**(made.get('video_info') or {}), **(made.get('info') or {})}
    if told.get('is_depth_map') or told.get('video.is_depth_map'):
        raise FormatError(f'{path}: {name}: expected colour, came a depth video; leave it out by '
                          'naming the images you want')
    if len(shape) != 3 or shape[2] != 3:
        raise FormatError(f'{path}: {name}: expected colour images (height, width, 3), came '
                          f'{shape}; leave it out by naming the images you want')
    return Picture(name, int(shape[0]), int(shape[1]))


def _entries(path: Path, info: dict[str, Any], videos: list[str]) -> list[_Entry]:
    entries = (_entries_of_files(path, info, videos) if info['codebase_version'] < 'v3'
               else _entries_of_table(path, info, videos))
    if not entries:
        raise FormatError(f'{path}: expected episodes, came none')
    total = info.get('total_episodes', len(entries))
    if len(entries) != total:
        raise FormatError(f'{path}: expected {total} episodes as info.json says, came '
                          f'{len(entries)} in the list of episodes')
    return sorted(entries, key=lambda entry: entry.index)


def _entries_of_files(path: Path, info: dict[str, Any], videos: list[str]) -> list[_Entry]:
    file = path / 'meta' / 'episodes.jsonl'
    try:
        lines = [json.loads(line) for line in file.read_text(encoding='utf-8').splitlines()
                 if line.strip()]
        rows = [(int(row['episode_index']), int(row['length']), row.get('tasks') or [])
                for row in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f'{file}: expected one JSON line per episode, with episode_index and '
                          f'length, came: {error!r}') from error
    entries = []
    for index, length, tasks in rows:
        place = {'episode_chunk': index // int(info.get('chunks_size', 1000)),
                 'episode_index': index}
        entries.append(_Entry(
            index, length, '; '.join(map(str, tasks)),
            path / info['data_path'].format(**place),
            {name: (path / info['video_path'].format(**place, video_key=name), 0.0)
             for name in videos}))
    return entries


def _entries_of_table(path: Path, info: dict[str, Any], videos: list[str]) -> list[_Entry]:
    folder = path / 'meta' / 'episodes'
    files = sorted(folder.glob('*/*.parquet'))
    if not files:
        raise FormatError(f'{folder}: expected the list of episodes, chunk-000/file-000.parquet, '
                          'came nothing')
    columns = ['episode_index', 'length', 'tasks', 'data/chunk_index', 'data/file_index']
    for name in videos:
        columns += [f'videos/{name}/{key}' for key in ('chunk_index', 'file_index',
                                                       'from_timestamp')]
    entries = []
    for file in files:
        for row in read_table(file, columns).to_pylist():
            entries.append(_Entry(
                int(row['episode_index']), int(row['length']), '; '.join(row['tasks'] or []),
                path / info['data_path'].format(chunk_index=row['data/chunk_index'],
                                                file_index=row['data/file_index']),
                {name: (path / info['video_path'].format(
                    video_key=name, chunk_index=row[f'videos/{name}/chunk_index'],
                    file_index=row[f'videos/{name}/file_index']),
                    float(row[f'videos/{name}/from_timestamp'])) for name in videos}))
    return entries


def _read(path: Path, entry: _Entry, layout: Layout, stored: dict[str, str], stamped: bool,
          judged: bool) -> Demonstration:
    where = f'{entry.table}, episode {entry.index}'
    parts = [*layout.observations, layout.action]
    extra = ([STAMP] if stamped else []) + ([SUCCESS] if judged else [])
    table = read_table(entry.table, [*(part.name for part in parts), 'timestamp', *extra],
                       entry.index)
    if table.num_rows != entry.length:
        raise FormatError(f'{where}: expected {entry.length} rows, as the list of episodes says, '
                          f'came {table.num_rows}')
    for file, _ in entry.videos.values():
        if not file.is_file():
            raise MissingFileError(f'{file}: expected a video, came nothing of this name')
    values = {part.name: numbers(table, part.name, part.size, where) for part in parts}
    if stamped:
        stamps = numbers(table, STAMP, 1, where)[:, 0].astype(np.int64)
    else:
        seconds = numbers(table, 'timestamp', 1, where)[:, 0].astype(np.float64)
        if not np.isfinite(seconds).all():
            raise FormatError(f'{where}: timestamp: expected finite numbers, came NaN or infinity')
        stamps = start_of(entry.index) + np.round(seconds * NANOSECONDS).astype(np.int64)
    outcome = 'unmarked'
    if judged:
        outcome = 'success' if numbers(table, SUCCESS, 1, where).any() else 'failure'
    pictures = {picture.name: picture for picture in layout.pictures}
    sources: dict[str, Callable[[], Iterator[np.ndarray]]] = {}
    for name, kind in stored.items():
        sources[name] = (_video_frames(*entry.videos[name], entry.length, layout, pictures[name])
                         if kind == 'video' else _embedded_frames(path, entry, pictures[name]))
    actions = values.pop('action')
    return Demonstration(f'episode_{entry.index:06d}', stamps, values, actions, sources,
                         entry.task, outcome)


def _video_frames(file: Path, start: float, count: int, layout: Layout, picture: Picture):
    def read() -> Iterator[np.ndarray]:
        for frame in frames(file, count, layout.rate or 1.0, start):
            if frame.shape != picture.shape:
                raise FormatError(f'{file}: expected frames of {picture.shape}, as info.json '
                                  f'says, came {frame.shape}')
            yield frame
    return read


def _embedded_frames(path: Path, entry: _Entry, picture: Picture):
    def read() -> Iterator[np.ndarray]:
        import cv2
        table = read_table(entry.table, [picture.name], entry.index)
        for row, cell in enumerate(table.column(picture.name)):
            data = (cell.as_py() or {}).get('bytes')
            if data is None:
                name = (cell.as_py() or {}).get('path') or 'nothing'
                file = path / name
                if not file.is_file():
                    raise MissingFileError(f'{file}: expected a picture, came nothing of this '
                                           'name')
                data = file.read_bytes()
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            if image is None or image.shape != picture.shape:
                raise FormatError(f'{entry.table}: {picture.name}, row {row}: expected a picture '
                                  f'of {picture.shape}, came '
                                  f'{"no picture" if image is None else image.shape}')
            yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return read
