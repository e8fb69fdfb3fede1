"""
Demonstrations from bags: episodes on the control clock, as the robot would have seen them.

Messages become numbers by `liquid_policy.conversion` and find their tick by
`liquid_policy.alignment`, the code the nodes run.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from liquid_policy.alignment import FEATURES, Aligner, FramePairer, Outcome, align_next
from liquid_policy.conversion import (
    NANOSECONDS,
    MessageError,
    image_from_message,
    stamp_of,
    vector_from_message,
)
from liquid_policy.interface import ActionSpec, ImageSpec, Interface

from .bag_file import Bag, BagError, Record, find_bags
from .bag_routes import Spec, find_namespace, find_routes
from .bag_windows import EPISODE_TOPIC, Tally, Window, cut, find_demonstrations

__all__ = ['Bag', 'BagError', 'BagReader', 'BagWarning', 'Episode', 'ReadSettings', 'find_bags',
           'read_episodes']


class BagWarning(UserWarning):
    """Part of a bag is not used."""


@dataclass(frozen=True)
class ReadSettings:
    """
    How episodes are cut.

    :param actions: `demonstration` or `command` topics, or `auto`: demonstrations where the bag
        has any, commands else; `none` gives NaN actions.
    :param images: read images; without, episodes have none and `image_index` is -1.
    :param namespace: of the recorded robot; found by itself unless a bag holds several.
    :param settle: how long a tick waits for messages that came late [s].
    :param max_gap: ticks further apart than this start another episode [s].
    :param longest: longer episodes are cut into parts of about this length [s], or less for large
        images: to bound memory, and so that several processes may share them.
    """

    actions: str = 'auto'
    images: bool = True
    namespace: str | None = None
    settle: float = 0.5
    max_gap: float = 0.5
    longest: float = 120.0

    def __post_init__(self) -> None:
        choices = ('auto', 'demonstration', 'command', 'none')
        if self.actions not in choices:
            raise ValueError(f'expected actions from {choices}, came {self.actions!r}')
        for key in ('settle', 'max_gap', 'longest'):
            if not getattr(self, key) > 0:
                raise ValueError(f'expected a positive {key}, came {getattr(self, key)}')


@dataclass(frozen=True)
class Episode:
    """
    One demonstration on the control clock.

    :param name: name from its marker; parts of one episode share it.
    :param outcome: `success`, `failure`, `unfinished` (no end marker) or `unmarked`.
    :param source: the bag.
    :param stamps: ticks, int64 `(T,)` [ns].
    :param vectors: observations, float32 `(T, vector_size)`.
    :param image_index: which image was known at each tick, int64 `(T,)`.
    :param images: images by name, as `image_from_message` gives them, each `(N, ...)`.
    :param image_stamps: stamps of the images, int64 `(N,)` [ns].
    :param actions: the action that followed each tick, float32 `(T, action_size)`.
    :param targets: float32 `(T, target_size)`, NaN where absent or stale.
    :param dropped: ticks of this part of the episode that were left out, by reason.
    :param rejected: messages of this part that were left out, by reason.
    :param task: note of its marker: what was to be done, in words.
    :param demonstration: its number within the bag; parts of one episode share it.
    """

    name: str
    outcome: str
    source: str
    stamps: np.ndarray
    vectors: np.ndarray
    image_index: np.ndarray
    images: dict[str, np.ndarray]
    image_stamps: np.ndarray
    actions: np.ndarray
    targets: np.ndarray
    dropped: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    task: str = ''
    demonstration: int = 0

    def __len__(self) -> int:
        return len(self.stamps)

    @property
    def times(self) -> np.ndarray:
        """Seconds since the first tick, float64 `(T,)`."""
        return (self.stamps - self.stamps[0]) / NANOSECONDS

    @property
    def colors(self) -> np.ndarray:
        """The first colour image, uint8 `(N, height, width, 3)`; empty when there is none."""
        return next((images for images in self.images.values() if images.ndim == 4),
                    np.empty((0, 0, 0, 3), np.uint8))

    @property
    def depths(self) -> np.ndarray:
        """The first depth image, float32 `(N, height, width)` [m]; empty when there is none."""
        return next((images for images in self.images.values() if images.ndim == 3),
                    np.empty((0, 0, 0), np.float32))


def read_episodes(paths: str | Path | Collection[str | Path], interface: Interface,
                  settings: ReadSettings | None = None,
                  progress: Callable[[int, int], None] | None = None,
                  report: Callable[[str], None] | None = None) -> Iterator[Episode]:
    """
    Read the episodes of bags, one at a time.

    Episodes are cut by `EpisodeMarker` messages on the topic `episode`; a bag without any is one
    episode. Discarded ones are left out. Ticks with a stale observation or without an action are
    left out and counted; a longer gap cuts the episode.

    :param paths: bags, storage files, or folders with bags below them.
    :param interface: what to read.
    :param settings: how to cut.
    :param progress: called with bytes read and bytes in all.
    :param report: called with what is worth knowing (a bag that was cut off, messages left out);
        a `BagWarning` otherwise.
    :raises BagError: for a bag that cannot be used, naming what was expected, what came and what
        to do.
    """
    settings = settings or ReadSettings()
    bags = find_bags(paths)
    sizes = [_size_of(bag) for bag in bags]
    for number, path in enumerate(bags):
        before = sum(sizes[:number])

        def forward(done: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, sum(sizes))

        reader = BagReader(path, interface, settings, report or _warn)
        tally = Tally()
        for window in reader.windows():
            found = Tally()
            yield from reader.read(window, found, forward)
            tally.add(found)
            reader.check(tally)
        forward(sizes[number])
        reader.finish(tally, report or _warn)


class BagReader:
    """
    The episodes of one bag, part by part; a process that reads some of the parts gets a copy.

    :param path: of the bag.
    :param interface: what to read.
    :param settings: how to cut.
    :param report: see `read_episodes`.
    :raises BagError: for a bag that cannot be used.
    """

    def __init__(self, path: Path, interface: Interface, settings: ReadSettings,
                 report: Callable[[str], None]) -> None:
        self._bag = Bag(path)
        self._interface = interface
        self._settings = settings
        for file, size in self._bag.cut_off.items():
            report(f'{file}: expected an index at its end, came the end of the file after '
                   f'{size} whole bytes; what is before it is used. `python3 -m '
                   f'liquid_trainer.recording {file.parent}` completes an mcap bag')
        namespace = find_namespace(self._bag, interface, settings.namespace)
        self._marker = f'{namespace}/{EPISODE_TOPIC}'
        self._routes = find_routes(self._bag, interface, namespace, settings.images,
                                   settings.actions)
        self._discarded = 0

    def windows(self) -> list[Window]:
        """Give the parts of all demonstrations that are not discarded."""
        demonstrations = find_demonstrations(self._bag, self._marker)
        self._discarded = sum(one.discarded for one in demonstrations)
        return list(cut(self._bag, demonstrations, self._interface, self._settings.longest,
                        self._settings.settle, self._settings.images))

    def read(self, window: Window, tally: Tally,
             progress: Callable[[int], None] | None = None) -> list[Episode]:
        """
        Give the episodes of one part.

        :param tally: filled in.
        :param progress: see `Bag.messages`.
        """
        builder = _Builder(self._interface, self._settings, window, str(self._bag.path))
        self._bag.damaged.clear()
        for record in self._bag.messages(set(self._routes), progress, tally.reject, window.span):
            owned = window.span.owns(record.place)
            tally.unstamped += owned and stamp_of(record.message) == 0
            try:
                builder.add(self._routes[record.topic], record, owned)
                tally.used[record.topic] += owned
            except MessageError as error:
                if owned:
                    builder.rejected[str(error)] += 1
                    tally.reject(record.topic, str(error))
        episodes = builder.take()
        tally.dropped.update(builder.dropped)
        tally.ticks = sum(map(len, episodes))
        tally.damaged = {str(file): sorted(places)
                         for file, places in self._bag.damaged.items()}
        return episodes

    def check(self, tally: Tally) -> None:
        """
        Refuse a bag of which too much is unusable to go on.

        :param tally: of the parts read so far.
        """
        for topic, count in tally.early.items():
            if count >= 100:
                self._refuse(topic, tally)

    def finish(self, tally: Tally, report: Callable[[str], None]) -> None:
        """
        Say what was left out of the whole bag.

        :param tally: of all its parts.
        :param report: see `read_episodes`.
        :raises BagError: if nothing usable was found, or of one topic nothing.
        """
        for topic in tally.rejected:
            if not tally.used[topic]:
                self._refuse(topic, tally)
        for file, places in tally.damaged.items():
            report(f'{file}: expected intact chunks, came {len(places)} damaged ones; their '
                   'messages are left out, check the disk')
        for topic, count in tally.rejected.items():
            report(f'{self._bag.path}: {count} messages left out, the first because: '
                   f'{tally.errors[topic]}')
        if not tally.ticks and not self._discarded:
            reasons = ', '.join(f'{count} ticks {reason}'
                                for reason, count in tally.dropped.items())
            if tally.unstamped > 1:
                raise BagError(f'{self._bag.path}: expected header stamps, came '
                               f'{tally.unstamped} messages stamped zero; set header.stamp in the '
                               'drivers: the nodes of the robot could not use such messages '
                               'either')
            raise BagError(f'{self._bag.path}: expected at least one tick with fresh observations '
                           f'and an action, came none ({reasons or "no ticks"}); check that '
                           'recording ran while the robot was driven, and max_age and latency in '
                           'the interface file')

    def _refuse(self, topic: str, tally: Tally) -> None:
        raise BagError(f'{self._bag.path}: all {tally.early[topic]} messages of {topic} are '
                       f'unusable, the first because: {tally.errors[topic]}')


class _Builder:
    """Collects one part of a demonstration."""

    def __init__(self, interface: Interface, settings: ReadSettings, window: Window,
                 source: str) -> None:
        self.dropped: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self._interface, self._settings = interface, settings
        self._one, self._source = window.demonstration, source
        self._aligner = Aligner(interface, settings.settle)
        features = interface.features if settings.images else None
        self._pairer = None if features is None else FramePairer(features)
        self._ignored = () if features is not None else (FEATURES,)
        # How far log time is ahead of the robot's clock, if by more than transport explains
        # (recorded in simulated time, say): what has no header is moved by that.
        self._offset: int | None = None
        self._done: list[Episode] = []
        self._clear()

    def add(self, specs: list[Spec], record: Record, owned: bool = True) -> None:
        """
        Take one message.

        :param owned: whether it is this part's; others only help to understand it.
        :raises MessageError: if it is not as declared; it is then left out.
        """
        stamp = stamp_of(record.message)
        clock = self._interface.clock_source
        is_clock = any(spec is clock for spec in specs)
        if is_clock:
            offset = record.time - (record.time if stamp is None else stamp)
            self._offset = offset if abs(offset) > NANOSECONDS else 0
        if stamp is None:
            if self._offset is None:
                return  # before the clock: no tick can need it
            stamp = record.time - self._offset
        error: MessageError | None = None
        for spec in specs:
            try:
                if isinstance(spec, ImageSpec):
                    self._add_image(spec, stamp, record.message, owned)
                elif isinstance(spec, ActionSpec):
                    values = vector_from_message(spec, record.message)
                    self._actions.setdefault(spec.name, ([], []))[0].append(stamp)
                    self._actions[spec.name][1].append(values)
                else:
                    self._push(spec.name, stamp, vector_from_message(spec, record.message), owned)
            except MessageError as caught:
                error = caught
        if is_clock and owned:
            self._own.add(stamp)
        self._collect(self._aligner.ticks_ready())
        if error is not None:
            raise error

    def take(self) -> list[Episode]:
        """Give what was collected, when no more is to come."""
        self._collect(self._aligner.finish())
        return self._done + self._cut()

    def _push(self, name: str, stamp: int, value: Any, owned: bool) -> None:
        verdict = self._aligner.push(name, stamp, value)
        if not verdict.kept and owned:
            self.rejected[f'{name}: {verdict.outcome.value} stamp'] += 1
        if verdict.outcome is Outcome.RESET:
            self.rejected[verdict.reason] += owned
            self._done += self._cut()
            self._clear()

    def _add_image(self, spec: ImageSpec, stamp: int, message: Any, owned: bool) -> None:
        assert self._pairer is not None
        # A copy, because the view would hold the whole chunk of the bag.
        frame = self._pairer.push(spec.name, stamp, np.array(image_from_message(spec, message)))
        if frame is None:
            return
        when, images = frame
        self._frames.append((when, tuple(images.values())))
        self._push(FEATURES, when, self._first + len(self._frames) - 1, owned)
        if not self._ticks:  # nothing fresh enough so far: keep memory bounded
            self._forget(when - round(self._settings.longest * NANOSECONDS))

    def _collect(self, ticks: list[int]) -> None:
        for tick in ticks:
            known = self._aligner.at(tick)
            if tick not in self._own:
                continue
            stale = [name for name in known.stale if name not in self._ignored]
            if stale:
                self.dropped[f'without fresh {", ".join(stale)}'] += 1
                continue
            self._ticks.append(tick)
            self._vectors.append(known.vector)
            self._targets.append(known.targets)
            self._index.append(-1 if known.features is None else known.features)

    def _cut(self) -> list[Episode]:
        """Make episodes of the ticks so far."""
        count = len(self._ticks)
        if not count:
            return []
        ticks = np.array(self._ticks, dtype=np.int64)
        actions = self._aligned_actions(ticks)
        keep = np.ones(count, bool)
        if self._settings.actions != 'none':
            keep = np.isfinite(actions).all(axis=1)
            if not keep.all():
                self.dropped['without an action'] += int((~keep).sum())
        index = np.array(self._index, dtype=np.int64)
        kept = np.flatnonzero(keep)
        breaks = np.flatnonzero(np.diff(ticks[kept]) > self._settings.max_gap * NANOSECONDS) + 1
        episodes = []
        for rows in np.split(kept, breaks):
            if not len(rows):
                continue
            images, stamps, first = self._images(index[rows])
            episodes.append(Episode(
                self._one.name, self._one.outcome, self._source, ticks[rows],
                np.stack([self._vectors[row] for row in rows]), index[rows] - first,
                images, stamps, actions[rows],
                np.stack([self._targets[row] for row in rows]),
                dict(self.dropped), dict(self.rejected), self._one.task, self._one.number))
        return episodes

    def _images(self, index: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, int]:
        """Give the frames some ticks need, their stamps, and the number of the first."""
        features = self._interface.features
        if self._pairer is None or features is None:
            return {}, np.empty(0, np.int64), 0
        low, high = int(index.min()), int(index.max()) + 1
        frames = self._frames[low - self._first:high - self._first]
        images = {name: np.stack([content[place] for _, content in frames])
                  for place, name in enumerate(features.images)}
        return images, np.array([when for when, _ in frames], dtype=np.int64), low

    def _aligned_actions(self, ticks: np.ndarray) -> np.ndarray:
        parts = []
        for name, spec in self._interface.actions.items():
            stamps, values = self._actions.get(name, ([], []))
            order = np.argsort(np.array(stamps, dtype=np.int64), kind='stable')
            parts.append(align_next(
                ticks, np.array(stamps, dtype=np.int64)[order],
                np.array(values, dtype=np.float64).reshape(-1, spec.size)[order], spec.max_age))
        return np.concatenate(parts, axis=1)

    def _forget(self, tick: int) -> None:
        """Drop actions and frames that no tick after this one needs."""
        for stamps, values in self._actions.values():
            count = sum(stamp <= tick for stamp in stamps)
            del stamps[:count], values[:count]
        # Ticks that still settle may need the newest frames.
        features = self._interface.features
        if features is not None:
            reach = features.max_age + features.latency + self._settings.settle
            oldest = min(self._index, default=self._first + len(self._frames))
            count = 0
            while (count < len(self._frames) and self._first + count < oldest
                   and self._frames[count][0] < tick - round(reach * NANOSECONDS)):
                count += 1
            del self._frames[:count]
            self._first += count

    def _clear(self) -> None:
        self._own: set[int] = set()     # stamps of this part's clock messages
        self._ticks: list[int] = []
        self._vectors: list[np.ndarray] = []
        self._targets: list[np.ndarray] = []
        self._index: list[int] = []
        self._frames: list[tuple[int, tuple[np.ndarray, ...]]] = []
        self._first = 0
        self._actions: dict[str, tuple[list[int], list[np.ndarray]]] = {}


def _size_of(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return path.stat().st_size if path.exists() else 0


def _warn(text: str) -> None:
    warnings.warn(text, BagWarning, stacklevel=2)
