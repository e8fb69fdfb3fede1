"""
Writing data sets of LeRobot, versions 2.1 and 3.0.

LeRobot has evenly spaced steps: `timestamp` is the step's number times the period. The true times
are kept beside it, in `stamp_ns`. Numbers are float32. Depth images are left out: version 2.1
has none.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import Demonstration, Feature, FormatError, Layout, Picture, check
from .lerobot import STAMP, SUCCESS
from .parquet import pyarrow_module
from .statistics import Statistics, merged
from .video import CODECS, QUALITY, VideoWriter

CHUNK = 1000                    # files per folder
DATA_MEGABYTES, VIDEO_MEGABYTES = 100, 200      # a file of version 3 is begun anew at this size
STATE, ACTION, IMAGES = 'observation.state', 'action', 'observation.images.'
_PATHS = {
    'v2.1': ('data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet',
             'videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4'),
    'v3.0': ('data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet',
             'videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4'),
}


@dataclass(frozen=True)
class LeRobotSettings:
    """
    How a data set is written.

    :param version: `v2.1` or `v3.0`.
    :param images: `video`, which is small and loses a little, or `png`, which loses nothing.
    :param codec: of videos, see `video.CODECS`.
    :param quality: of videos: constant rate factor, lower is better.
    """

    version: str = 'v3.0'
    images: str = 'video'
    codec: str = 'av1'
    quality: int = QUALITY

    def __post_init__(self) -> None:
        for name, choices in (('version', tuple(_PATHS)), ('images', ('video', 'png')),
                              ('codec', tuple(CODECS))):
            if getattr(self, name) not in choices:
                raise FormatError(f'{name}: expected one of {choices}, came '
                                  f'{getattr(self, name)!r}')
        if not 0 <= self.quality <= 51:
            raise FormatError(f'quality: expected 0 to 51, came {self.quality}')


def write_lerobot(folder: str | Path, layout: Layout, episodes: Iterable[Demonstration],
                  settings: LeRobotSettings | None = None) -> int:
    """
    Write a data set, and return its episodes.

    :param folder: takes its name when the data set is complete.
    :param layout: of the episodes; with a whole number of steps per second.
    :param episodes: at least one.
    :param settings: how.
    :raises FormatError: if the folder exists, or the episodes cannot be written so.
    """
    folder = Path(folder)
    if folder.exists():
        raise FormatError(f'{folder}: expected a new folder, came one that exists; choose another')
    if layout.rate is None or round(layout.rate) != layout.rate:
        raise FormatError(f'expected a whole number of steps per second, as LeRobot has, came '
                          f'{layout.rate} Hz; take one of several ticks (--every)')
    pyarrow_module()
    beside = folder.with_name(f'.{folder.name}.{os.getpid()}.part')
    shutil.rmtree(beside, ignore_errors=True)
    try:
        writer = _Writer(beside, layout, settings or LeRobotSettings())
        for episode in episodes:
            check(episode, layout, episode.name)
            writer.add(episode)
        writer.finish()
        os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return writer.episodes


@dataclass
class _Video:
    """The video file that is being written for one camera."""

    writer: VideoWriter
    path: Path
    number: int

    @property
    def size(self) -> int:
        """Bytes on disk; encoders keep the newest frames to themselves."""
        return self.path.stat().st_size if self.path.exists() else 0


@dataclass
class _Writer:
    """Writes one data set."""

    folder: Path
    layout: Layout
    settings: LeRobotSettings
    episodes: int = 0
    _steps: int = 0
    _tasks: dict[str, int] = field(default_factory=dict)
    _rows: list[dict[str, Any]] = field(default_factory=list)
    _stats: list[dict[str, Statistics]] = field(default_factory=list)
    _videos: dict[str, _Video] = field(default_factory=dict)
    _table: Any = None
    _table_number: int = 0
    _table_bytes: int = 0

    def __post_init__(self) -> None:
        self._rate = self.layout.rate or 1.0
        self._one_file = self.settings.version == 'v3.0'
        self._video = self.settings.images == 'video'
        self._pictures = {_image_name(picture): picture for picture in self.layout.pictures
                          if not picture.depth}
        self._features = _observed(self.layout)
        self.folder.mkdir(parents=True)
        self._data_path, self._video_path = _PATHS[self.settings.version]

    def add(self, episode: Demonstration) -> None:
        """Write one episode."""
        count, index = len(episode), self.episodes
        task = self._tasks.setdefault(episode.task, len(self._tasks))
        columns: dict[str, np.ndarray] = {}
        for name, parts in self._features.items():
            columns[name] = np.concatenate([np.asarray(episode.vectors[part.name], np.float32)
                                            for part in parts], axis=1)
        columns[ACTION] = np.asarray(episode.actions, np.float32)
        columns['timestamp'] = (np.arange(count) / self._rate).astype(np.float32)
        columns['frame_index'] = np.arange(count)
        columns['episode_index'] = np.full(count, index)
        columns['index'] = np.arange(count) + self._steps
        columns['task_index'] = np.full(count, task)
        columns[STAMP] = np.asarray(episode.stamps, np.int64)
        columns[SUCCESS] = (np.arange(count) == count - 1) & (episode.outcome == 'success')
        stats = {name: Statistics.of(values.reshape(count, -1)) for name, values in
                 columns.items()}
        row: dict[str, Any] = {'episode_index': index, 'tasks': [episode.task], 'length': count}
        embedded: dict[str, list[dict[str, Any]]] = {}
        for name, picture in self._pictures.items():
            frames = _counted(episode, picture)
            if self._video:
                stats[name] = self._add_video(name, picture, frames, index, row)
            else:
                embedded[name], stats[name] = _pngs(frames, index)
        self._add_table(columns, embedded, index, row)
        self._stats.append(stats)
        self._rows.append(row)
        self.episodes += 1
        self._steps += count

    def _add_video(self, name: str, picture: Picture, frames: Iterator[np.ndarray], index: int,
                   row: dict[str, Any]) -> Statistics:
        rate = self._rate
        video = self._videos.get(name)
        if video is not None and not (self._one_file and video.size < VIDEO_MEGABYTES << 20):
            video.writer.__exit__(None, None, None)
            video = None
        if video is None:
            number = self._videos[name].number + 1 if name in self._videos else 0
            path = self.folder / self._video_path.format(
                video_key=name, episode_chunk=index // CHUNK, episode_index=index,
                chunk_index=number // CHUNK, file_index=number % CHUNK)
            video = self._videos[name] = _Video(VideoWriter(
                path, picture.height, picture.width, rate, self.settings.codec,
                self.settings.quality), path, number)
        first = video.writer.count
        stats = Statistics.of_images(_passed(frames, video.writer.add))
        place = f'videos/{name}/'
        row |= {place + 'chunk_index': video.number // CHUNK,
                place + 'file_index': video.number % CHUNK,
                place + 'from_timestamp': first / rate,
                place + 'to_timestamp': video.writer.count / rate}
        return stats

    def _add_table(self, columns: dict[str, np.ndarray],
                   embedded: dict[str, list[dict[str, Any]]], index: int,
                   row: dict[str, Any]) -> None:
        arrow = pyarrow_module()
        arrays = {name: _column(arrow, values) for name, values in columns.items()}
        cell = arrow.struct([('bytes', arrow.binary()), ('path', arrow.string())])
        arrays |= {name: arrow.array(cells, cell) for name, cells in embedded.items()}
        table = arrow.table(arrays)
        if self._table is not None and (not self._one_file or self._table_bytes
                                        > DATA_MEGABYTES << 20):
            self._table.close()
            self._table, self._table_bytes = None, 0
            self._table_number += 1
        number = self._table_number
        if self._table is None:
            path = self.folder / self._data_path.format(
                episode_chunk=index // CHUNK, episode_index=index, chunk_index=number // CHUNK,
                file_index=number % CHUNK)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._table = arrow.parquet.ParquetWriter(path, table.schema)
        self._table.write_table(table)      # a row group per episode, to be read alone
        self._table_bytes += table.nbytes
        row |= {'data/chunk_index': number // CHUNK, 'data/file_index': number % CHUNK,
                'dataset_from_index': self._steps,
                'dataset_to_index': self._steps + table.num_rows}

    def finish(self) -> None:
        """Close all files and write the descriptions."""
        if not self.episodes:
            raise FormatError('expected at least one episode, came none')
        if self._table is not None:
            self._table.close()
        for video in self._videos.values():
            video.writer.__exit__(None, None, None)
        meta = self.folder / 'meta'
        meta.mkdir()
        (meta / 'info.json').write_text(json.dumps(self._info(), indent=4))
        whole = {name: merged([stats[name] for stats in self._stats]).to_lists()
                 for name in self._stats[0]}
        (meta / 'stats.json').write_text(json.dumps(whole, indent=4))
        if self._one_file:
            self._write_episode_table(meta)
        else:
            self._write_lines(meta)

    def _write_lines(self, meta: Path) -> None:
        def write(name: str, rows: Iterable[dict[str, Any]]) -> None:
            (meta / name).write_text(''.join(json.dumps(row) + '\n' for row in rows))

        write('tasks.jsonl', ({'task_index': number, 'task': task}
                              for task, number in self._tasks.items()))
        write('episodes.jsonl', ({key: row[key] for key in ('episode_index', 'tasks', 'length')}
                                 for row in self._rows))
        write('episodes_stats.jsonl', (
            {'episode_index': index,
             'stats': {name: part.to_lists() for name, part in stats.items()}}
            for index, stats in enumerate(self._stats)))

    def _write_episode_table(self, meta: Path) -> None:
        arrow = pyarrow_module()
        tasks = arrow.table({'task_index': list(self._tasks.values()),
                             'task': list(self._tasks)})
        # pandas reads this back with the task as the index, which is where LeRobot looks for it.
        tasks = tasks.replace_schema_metadata({'pandas': json.dumps({
            'index_columns': ['task'], 'column_indexes': [], 'columns': [
                {'name': 'task_index', 'field_name': 'task_index', 'pandas_type': 'int64',
                 'numpy_type': 'int64', 'metadata': None},
                {'name': 'task', 'field_name': 'task', 'pandas_type': 'unicode',
                 'numpy_type': 'object', 'metadata': None}]})})
        arrow.parquet.write_table(tasks, meta / 'tasks.parquet')
        rows = []
        for row, stats in zip(self._rows, self._stats, strict=True):
            rows.append({**row, 'meta/episodes/chunk_index': 0, 'meta/episodes/file_index': 0,
                         **{f'stats/{name}/{key}': value for name, part in stats.items()
                            for key, value in part.to_lists().items()}})
        path = meta / 'episodes' / 'chunk-000' / 'file-000.parquet'
        path.parent.mkdir(parents=True)
        arrow.parquet.write_table(arrow.Table.from_pylist(rows), path)

    def _info(self) -> dict[str, Any]:
        rate = round(self._rate)
        features = {name: _described([n for part in parts for n in part.names],
                                     [u for part in parts for u in part.units])
                    for name, parts in self._features.items()}
        features[ACTION] = _described(list(self.layout.action.names),
                                      list(self.layout.action.units))
        for name, picture in self._pictures.items():
            features[name] = self._described_picture(picture, rate)
        for name, kind in (('timestamp', 'float32'), ('frame_index', 'int64'),
                           ('episode_index', 'int64'), ('index', 'int64'),
                           ('task_index', 'int64'), (STAMP, 'int64'), (SUCCESS, 'bool')):
            features[name] = {'dtype': kind, 'shape': [1], 'names': None}
        data, video = _PATHS[self.settings.version]
        info: dict[str, Any] = {
            'codebase_version': self.settings.version, 'robot_type': self.layout.robot,
            'total_episodes': self.episodes, 'total_frames': self._steps,
            'total_tasks': len(self._tasks), 'chunks_size': CHUNK, 'fps': rate,
            'splits': {'train': f'0:{self.episodes}'}, 'data_path': data,
            'video_path': video if self._video and self._pictures else None,
            'features': features}
        if self._one_file:
            info |= {'data_files_size_in_mb': DATA_MEGABYTES,
                     'video_files_size_in_mb': VIDEO_MEGABYTES}
            for made in features.values():
                if made['dtype'] != 'video':
                    made['fps'] = rate
        else:
            videos = self.episodes * len(self._pictures) if self._video else 0
            info |= {'total_videos': videos, 'total_chunks': -(-self.episodes // CHUNK)}
        return info

    def _described_picture(self, picture: Picture, rate: int) -> dict[str, Any]:
        made: dict[str, Any] = {
            'dtype': 'video' if self._video else 'image', 'shape': [*picture.shape],
            'names': ['height', 'width', 'channels']}
        if self._video:
            made['info'] = {
                'video.height': picture.height, 'video.width': picture.width,
                'video.codec': self.settings.codec, 'video.pix_fmt': 'yuv420p',
                'video.is_depth_map': False, 'video.fps': rate, 'video.channels': 3,
                'has_audio': False}
        return made


def _observed(layout: Layout) -> dict[str, tuple[Feature, ...]]:
    """
    Say which features make which of LeRobot's: one that is LeRobot's own is kept.

    All others make `observation.state`, the one its policies look at.
    """
    own: dict[str, tuple[Feature, ...]] = {
        part.name: (part,) for part in layout.observations
        if part.name.startswith('observation.')}
    others = tuple(part for part in layout.observations if part.name not in own)
    if others:
        if STATE in own:
            raise FormatError(f'expected other names than {STATE} beside it, came '
                              f'{[part.name for part in others]}')
        names = [name for part in others for name in part.names]
        if len(set(names)) != len(names):
            others = tuple(Feature(part.name, tuple(f'{part.name}.{name}' for name in part.names),
                                   part.units) for part in others)
        own[STATE] = others
    return own


def _image_name(picture: Picture) -> str:
    return picture.name if picture.name.startswith('observation.') else IMAGES + picture.name


def _described(names: list[str], units: list[str]) -> dict[str, Any]:
    made: dict[str, Any] = {'dtype': 'float32', 'shape': [len(names)], 'names': names}
    if set(units) != {'1'}:
        made['info'] = {'units': units}
    return made


def _column(arrow: Any, values: np.ndarray) -> Any:
    if values.ndim == 1:
        return arrow.array(values)
    return arrow.FixedSizeListArray.from_arrays(
        arrow.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])


def _counted(episode: Demonstration, picture: Picture) -> Iterator[np.ndarray]:
    """Give an episode's images, and refuse another number of them than of its steps."""
    count = 0
    for frame in episode.frames[picture.name]():
        count += 1
        if count <= len(episode):
            yield frame
    if count != len(episode):
        raise FormatError(f'{episode.name}: {picture.name}: expected {len(episode)} images, one '
                          f'per step, came {count}')


def _passed(frames: Iterator[np.ndarray], take: Any) -> Iterator[np.ndarray]:
    for frame in frames:
        take(frame)
        yield frame


def _pngs(frames: Iterator[np.ndarray], index: int) -> tuple[list[dict[str, Any]], Statistics]:
    import cv2
    cells: list[dict[str, Any]] = []

    def encode(frame: np.ndarray) -> None:
        _, data = cv2.imencode('.png', cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        cells.append({'bytes': data.tobytes(), 'path': f'frame-{len(cells):06d}.png'})

    stats = Statistics.of_images(_passed(frames, encode))
    return cells, stats
