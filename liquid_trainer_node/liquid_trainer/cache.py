"""Aligned episodes on disk, memory-mapped, so that bags are decoded once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from liquid_policy.interface import Interface
from liquid_trainer.processes import worker_processes

if TYPE_CHECKING:
    from liquid_trainer.bag_windows import Window
    from liquid_trainer.bags import BagReader

# Depth is kept as whole tenths of a millimetre: half the memory of float32, and 40 times finer
# than what the task asks for. 0 is "not measured".
DEPTH_UNIT = 1e-4
# Changes when what is cached changes its meaning.
_FORMAT = 3
# Half-written parts older than this are nobody's [s].
_FORGOTTEN = 6 * 3600.0
_ARRAYS = ('times', 'vectors', 'image_index', 'image_times', 'colors', 'depths', 'actions',
           'targets')


@dataclass(frozen=True)
class StoredEpisode:
    """
    One episode on the control clock.

    :param name: bag and episode.
    :param times: ticks from the episode's start [s], `(ticks,)`.
    :param vectors: observations without images, `(ticks, vector_size)`.
    :param image_index: newest image that had arrived at each tick; -1: none yet, `(ticks,)`.
    :param image_times: stamps of the images from the first tick [s], `(images,)`.
    :param colors: uint8 `(images, height, width, 3)`.
    :param depths: uint16 in `DEPTH_UNIT`, `(images, height, width)`.
    :param actions: demonstrated, `(ticks, actions)`.
    :param targets: NaN where absent, `(ticks, targets)`.
    """

    name: str
    times: np.ndarray
    vectors: np.ndarray
    image_index: np.ndarray
    image_times: np.ndarray
    colors: np.ndarray
    depths: np.ndarray
    actions: np.ndarray
    targets: np.ndarray

    def __post_init__(self):
        ticks, images = len(self.times), len(self.colors)
        if ticks < 2:
            raise ValueError(f'{self.name}: expected at least 2 ticks, came {ticks}; leave the '
                             'episode out')
        for name in ('vectors', 'image_index', 'actions', 'targets'):
            if len(getattr(self, name)) != ticks:
                raise ValueError(f'{self.name}: expected {ticks} {name}, came '
                                 f'{len(getattr(self, name))}')
        if len(self.depths) != images or self.depths.shape != self.colors.shape[:3]:
            raise ValueError(f'{self.name}: expected depths of shape {self.colors.shape[:3]}, '
                             f'came {self.depths.shape}')
        for name in ('vectors', 'actions'):
            bad = ~np.isfinite(getattr(self, name)).all(1)
            if bad.any():
                raise ValueError(f'{self.name}: expected finite {name}, came NaN or infinity at '
                                 f'{int(bad.sum())} of {ticks} ticks, first at tick '
                                 f'{int(bad.argmax())}; record the episode again')
        if (np.diff(self.times) <= 0).any():
            raise ValueError(f'{self.name}: expected growing times, came a step back at tick '
                             f'{int((np.diff(self.times) <= 0).argmax()) + 1}')
        if self.image_index.min() < -1 or self.image_index.max() >= images:
            raise ValueError(f'{self.name}: expected image indices from -1 to {images - 1}, came '
                             f'{self.image_index.min()} to {self.image_index.max()}')


class StoredEpisodes(Sequence):
    """
    Episodes that are opened when they are asked for, so that any number of them fits.

    :param names: of the episodes.
    :param places: their folders, or episodes that are in memory anyway.
    :param demonstrations: the same for parts of one demonstration; each its own if left out.
    """

    def __init__(self, names: Sequence[str], places: Sequence[Path | StoredEpisode],
                 demonstrations: Sequence[str] = ()):
        self.names, self._places = list(names), list(places)
        self.demonstrations = list(demonstrations) or [str(i) for i in range(len(self.names))]

    @classmethod
    def of(cls, episodes: Sequence[StoredEpisode]) -> StoredEpisodes:
        """Return episodes given in any sequence."""
        if isinstance(episodes, cls):
            return episodes
        return cls([episode.name for episode in episodes], list(episodes))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number):
        if isinstance(number, slice):
            return self.chosen(range(len(self))[number])
        place = self._places[number]
        if isinstance(place, StoredEpisode):
            return place
        return StoredEpisode(self.names[number], **{name: _open(place, name) for name in _ARRAYS})

    def chosen(self, numbers: Iterable[int]) -> StoredEpisodes:
        """Return some of the episodes."""
        numbers = list(numbers)
        return StoredEpisodes([self.names[i] for i in numbers], [self._places[i] for i in numbers],
                              [self.demonstrations[i] for i in numbers])

    def images(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the colours and depths of an episode; see `StoredEpisode`."""
        place = self._places[number]
        if isinstance(place, StoredEpisode):
            return place.colors, place.depths
        return _open(place, 'colors'), _open(place, 'depths')


def _open(folder: Path, name: str) -> np.ndarray:
    return np.load(folder / f'{name}.npy', mmap_mode='r')


def store_depth(depths: np.ndarray) -> np.ndarray:
    """Return depths [m] as uint16 in `DEPTH_UNIT`; what is not finite or not positive is 0."""
    known = np.isfinite(depths) & (depths > 0)
    return np.where(known, np.clip(np.where(known, depths, 0) / DEPTH_UNIT + 0.5, 1, 65535),
                    0).astype(np.uint16)


def cached_episodes(paths: Iterable[str | Path], interface: Interface, folder: str | Path,
                    workers: int = 2, progress=None, namespace: str | None = None
                    ) -> StoredEpisodes:
    """
    Return every episode of the bags, decoded once and memory-mapped after.

    :param paths: bags, or folders of bags.
    :param interface: says how messages become numbers.
    :param folder: where decoded bags are kept, by a digest of bag and interface.
    :param workers: processes that decode; they share a long bag's parts.
    :param progress: called with (parts done, parts) of the bags.
    :param namespace: of the recorded robot, where bags hold several.
    :raises ValueError: if a path has no bag or an episode cannot be learned from.
    :raises OSError: if a decoding process was ended from outside.
    """
    from liquid_trainer.bags import BagReader, ReadSettings, find_bags
    bags, folder = find_bags(list(paths)), Path(folder)
    text = interface.to_yaml()
    digests = _Digests(folder / 'digests.jsonl',
                       text if namespace is None else f'{text}\nnamespace: {namespace}')
    keys = [digests.of(bag) for bag in bags]
    missing = {key: bag for bag, key in zip(bags, keys, strict=True)
               if not (folder / key / 'index.json').exists()}
    parts = [(folder / key, BagReader(bag, interface, ReadSettings(namespace=namespace), _warn))
             for key, bag in missing.items()]
    _decode_all(parts, workers, progress or (lambda *_: None))
    names: list[str] = []
    places: list[Path | StoredEpisode] = []
    demonstrations: list[str] = []
    for key in keys:
        index = _index(folder / key)
        names += index['names']
        places += [folder / key / place for place in index['places']]
        demonstrations += [f'{key}/{number}' for number in index['demonstrations']]
    return StoredEpisodes(names, places, demonstrations)


def write_stored(episodes: Iterable, folder: str | Path,
                 tally: Callable[[], dict] = dict) -> int:
    """
    Write aligned episodes beside and rename, so that half a cache is never read.

    :param episodes: what `liquid_trainer.bags.read_episodes` gives.
    :param folder: of one part of a bag; what another process has put there meanwhile stays.
    :param tally: what to keep beside them, asked for when they have been given.
    :return: how many were written.
    """
    folder = Path(folder)
    beside = folder.with_name(f'{folder.name}.{os.getpid()}.part')
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        try:
            count = _write(episodes, beside, tally)
        except OSError as error:
            raise _cannot_keep(folder.parent, error) from error
        try:
            os.rename(beside, folder)
        except OSError:     # somebody else was quicker, and may be reading
            if not (folder / 'index.json').exists():
                shutil.rmtree(folder, ignore_errors=True)
                os.rename(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return count


def _cannot_keep(folder: Path, error: OSError) -> OSError:
    return OSError(f'{folder}: cannot keep decoded bags there: {error}; free space or choose '
                   'another folder with --cache')


def _write(episodes: Iterable, beside: Path, tally: Callable[[], dict]) -> int:
    names: list[str] = []
    demonstrations: list[int] = []
    for episode in episodes:
        place = beside / f'{len(names):05d}'
        place.mkdir()
        for name in _ARRAYS:
            if name == 'image_times':
                value = (episode.image_stamps - episode.stamps[0]) * 1e-9
            else:
                value = np.asarray(getattr(episode, name))
            if name == 'depths' and not len(value):
                # A robot without a depth camera knows no depth: 0 is "not measured".
                value = np.zeros(np.shape(episode.colors)[:3], np.uint16)
            elif name == 'depths':
                value = store_depth(value)
            np.save(place / f'{name}.npy', value)
        names.append(str(episode.name))
        demonstrations.append(int(episode.demonstration))
    (beside / 'index.json').write_text(json.dumps(
        {'format': _FORMAT, 'names': names, 'demonstrations': demonstrations,
         'places': [f'{number:05d}' for number in range(len(names))], 'tally': tally()}))
    return len(names)


def load_stored(folder: str | Path) -> Iterator[StoredEpisode]:
    """Yield the episodes of one cached bag; images stay on disk until they are read."""
    folder = Path(folder)
    index = _index(folder)
    yield from StoredEpisodes(index['names'], [folder / place for place in index['places']])


def _index(folder: Path) -> dict[str, Any]:
    return json.loads((folder / 'index.json').read_text())


def bag_digest(bag: Path, interface: str) -> str:
    """Return a digest of a bag's content and the interface it is read with."""
    digest = hashlib.blake2b(f'{_FORMAT}\n{interface}'.encode(), digest_size=16)
    files = [bag] if bag.is_file() else sorted(f for f in bag.rglob('*') if f.is_file())
    for file in files:
        digest.update(file.name.encode())
        with open(file, 'rb') as opened:
            while block := opened.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


class _Digests:
    """
    Digests that are not computed again while a bag's files have the same sizes and times.

    :param path: JSON lines that are only ever added to, so that processes can share them.
    :param interface: that bags are read with.
    """

    def __init__(self, path: Path, interface: str):
        self._path, self._interface = path, interface
        self._short = hashlib.blake2b(interface.encode(), digest_size=8).hexdigest()
        self._known: dict[str, str] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    self._known.update(json.loads(line))
                except ValueError:      # the last line of a process that was killed
                    continue

    def of(self, bag: Path) -> str:
        """Return `bag_digest` of a bag."""
        files = [bag] if bag.is_file() else sorted(f for f in bag.rglob('*') if f.is_file())
        states = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        key = json.dumps([_FORMAT, self._short, str(bag.resolve()), states])
        if key not in self._known:
            self._known[key] = bag_digest(bag, self._interface)
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with open(self._path, 'a') as file:
                    file.write(json.dumps({key: self._known[key]}) + '\n')
            except OSError as error:
                raise _cannot_keep(self._path.parent, error) from error
        return self._known[key]


def _decode_all(bags: list[tuple[Path, BagReader]], workers: int,
                progress: Callable[[int, int], None]) -> None:
    """Decode what is not in the bags' folders yet, part by part, and complete the folders."""
    from liquid_trainer.bag_windows import Tally
    for folder, _ in bags:
        for beside in folder.glob('*.part'):
            # Of a process that was killed; one that still writes takes minutes, not hours.
            if time.time() - beside.stat().st_mtime > _FORGOTTEN:
                shutil.rmtree(beside, ignore_errors=True)
    parts = [[(reader, window, folder / f'{number:05d}')
              for number, window in enumerate(reader.windows())] for folder, reader in bags]
    missing = [job for jobs in parts for job in jobs if not (job[2] / 'index.json').exists()]
    total = sum(map(len, parts))
    count = total - len(missing)
    progress(count, total)
    waiting, decoded = {job[2] for job in missing}, _map(missing, workers)
    for (folder, reader), jobs in zip(bags, parts, strict=True):
        tally = Tally()
        whole: dict[str, Any] = {'format': _FORMAT, 'names': [], 'demonstrations': [],
                                 'places': []}
        for _, _, place in jobs:
            if place in waiting:
                next(decoded)
                count += 1
                progress(count, total)
            index = _index(place)
            tally.add(Tally.read(index['tally']))
            reader.check(tally)
            whole['names'] += index['names']
            whole['demonstrations'] += index['demonstrations']
            whole['places'] += [f'{place.name}/{name}' for name in index['places']]
        reader.finish(tally, _warn)
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f'index.{os.getpid()}.part'
        beside.write_text(json.dumps(whole))
        os.replace(beside, folder / 'index.json')


def _decode(job: tuple[BagReader, Window, Path]) -> int:
    from liquid_trainer.bag_windows import Tally
    reader, window, folder = job
    tally = Tally()
    # A single tick between two gaps has no step to learn from.
    episodes = [episode for episode in reader.read(window, tally) if len(episode) > 1]
    return write_stored(episodes, folder, tally.plain)


def _warn(text: str) -> None:
    from liquid_trainer.bags import BagWarning
    warnings.warn(text, BagWarning, stacklevel=2)


def _map(jobs: list, workers: int) -> Iterator[int]:
    if workers < 2 or len(jobs) < 2:
        yield from map(_decode, jobs)
        return
    with worker_processes(min(workers, len(jobs))) as pool:
        try:
            yield from pool.map(_decode, jobs)
        except BrokenProcessPool as error:
            raise OSError(f'decoding in {workers} processes: expected all of them to finish, came '
                          f'one that was ended from outside ({error}), for lack of memory '
                          'perhaps; start again with fewer --threads, what is decoded is kept'
                          ) from error
