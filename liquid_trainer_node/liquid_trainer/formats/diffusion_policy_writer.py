"""Writing demonstrations as Diffusion Policy reads them: zarr arrays in a folder or zip file."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import Demonstration, FormatError, Layout, check
from .diffusion_policy import ACTION, STAMP
from .zarr_arrays import ArrayWriter

_IMAGES = 32        # images per file


def write_diffusion_policy(path: str | Path, layout: Layout,
                           episodes: Iterable[Demonstration]) -> int:
    """
    Write a replay buffer, and return its episodes.

    Besides what Diffusion Policy asks for, `data/stamp_ns` is the time of each step [ns], and
    attributes keep the names and units of numbers and the names of episodes.

    :param path: ending in `.zip` for a zip file, else a folder; takes its name when complete.
    :param layout: of the episodes.
    :param episodes: at least one.
    :raises FormatError: if the path exists, or the episodes cannot be written so.
    """
    path = Path(path)
    if path.exists():
        raise FormatError(f'{path}: expected a new folder or file, came one that exists; choose '
                          'another')
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f'.{path.name}.{os.getpid()}.part')
    shutil.rmtree(beside, ignore_errors=True)
    packed = beside.with_suffix('.zip')
    try:
        count = _write(beside, layout, episodes)
        if path.suffix == '.zip':
            _pack(beside, packed)
            os.replace(packed, path)
        else:
            os.replace(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        packed.unlink(missing_ok=True)
    return count


def _write(folder: Path, layout: Layout, episodes: Iterable[Demonstration]) -> int:
    for group in ('', 'data', 'meta'):
        (folder / group).mkdir(parents=True, exist_ok=True)
        (folder / group / '.zgroup').write_text('{\n    "zarr_format": 2\n}')
    data = folder / 'data'
    numbers: dict[str, ArrayWriter] = {}
    for feature in (*layout.observations, layout.action):
        numbers[feature.name] = ArrayWriter(
            data / feature.name, (feature.size,), 'f4', attributes={
                'names': list(feature.names), 'units': list(feature.units)})
    if layout.action.name != ACTION:
        raise FormatError(f'expected the action to be called {ACTION}, came '
                          f'{layout.action.name}')
    stamps = ArrayWriter(data / STAMP, (1,), 'i8')
    pictures = {picture.name: ArrayWriter(
        data / picture.name, picture.shape, 'f4' if picture.depth else 'u1', _IMAGES,
        {'depth': True} if picture.depth else None) for picture in layout.pictures}
    ends: list[int] = []
    notes: list[dict[str, Any]] = []
    for episode in episodes:
        check(episode, layout, episode.name)
        for feature in layout.observations:
            numbers[feature.name].add(episode.vectors[feature.name])
        numbers[ACTION].add(episode.actions)
        stamps.add(np.asarray(episode.stamps)[:, None])
        for name, writer in pictures.items():
            before = writer.rows
            for frame in episode.frames[name]():
                writer.add(frame[None])
            if writer.rows - before != len(episode):
                raise FormatError(f'{episode.name}: {name}: expected {len(episode)} images, one '
                                  f'per step, came {writer.rows - before}')
        ends.append(stamps.rows)
        notes.append({'name': episode.name, 'task': episode.task, 'outcome': episode.outcome})
    if not ends:
        raise FormatError('expected at least one episode, came none')
    last = ArrayWriter(folder / 'meta' / 'episode_ends', (), 'i8')
    last.add(np.array(ends))
    for writer in (*numbers.values(), *pictures.values(), stamps, last):
        writer.close()
    (folder / '.zattrs').write_text(json.dumps(
        {'robot': layout.robot, 'rate': layout.rate, 'episodes': notes}, indent=4))
    return len(ends)


def _pack(folder: Path, file: Path) -> None:
    """Put a folder's content into a zip file; it is compressed already."""
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as packed:
        for entry in sorted(folder.rglob('*')):
            if entry.is_file():
                packed.write(entry, entry.relative_to(folder).as_posix())
