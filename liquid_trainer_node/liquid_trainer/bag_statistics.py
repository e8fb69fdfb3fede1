"""What is in a bag of any robot: rates, gaps, stamps, values, duplicates, outliers."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from liquid_policy.conversion import NANOSECONDS, stamp_of
from liquid_trainer.bag_file import Bag
from liquid_trainer.bag_windows import EPISODE_TYPE, START
from liquid_trainer.message_numbers import digest, large_data, number_paths, shape_of

# Numbers told apart in one topic, and kinds of messages it may have (lists of other lengths).
MOST_PATHS, MOST_SHAPES = 512, 100
# Rows of numbers kept of a topic; beyond, every second one is left out, again and again.
MOST_ROWS = 100_000
# An interval of more than this many usual ones is a gap.
GAP = 3.0
# A sample this many times farther from its neighbours' middle than 90 % of the others sticks out.
SPIKE = 30.0


@dataclass
class TopicData:
    """
    One topic of one bag.

    :param name: absolute topic name.
    :param type: message type.
    :param received: times of receipt [ns], int64 `(N,)`.
    :param stamps: header stamps [ns], int64 `(N,)`; empty for types without header.
    :param paths: names of the F numbers that are kept.
    :param rows: indices of the messages whose numbers are kept, `(R,)`.
    :param values: `(R, F)`; NaN where a message has no such number.
    :param not_finite: messages with NaN or infinity, by path.
    :param repeats: messages whose numbers, and picture if they have one, are those before.
    :param longest_repeat: longest time for which they stayed the same [s].
    :param other_shapes: messages with other lengths or names than the first.
    :param undecoded: messages that could not be decoded.
    :param bytes_each: size of the picture or the like inside a message, 0 without one.
    """

    name: str
    type: str
    received: np.ndarray
    stamps: np.ndarray
    paths: tuple[str, ...]
    rows: np.ndarray
    values: np.ndarray
    not_finite: dict[str, int] = field(default_factory=dict)
    repeats: int = 0
    longest_repeat: float = 0.0
    other_shapes: int = 0
    undecoded: int = 0
    bytes_each: int = 0

    @property
    def times(self) -> np.ndarray:
        """Header stamps where there are any, else times of receipt [ns]."""
        return self.stamps if len(self.stamps) and (self.stamps > 0).all() else self.received

    @property
    def interval(self) -> float:
        """Usual time between two messages [s], the median; NaN for fewer than three."""
        steps = np.diff(np.sort(self.times))
        return float(np.median(steps)) / NANOSECONDS if len(steps) > 1 else float('nan')

    @property
    def rate(self) -> float:
        """Usual rate [Hz]; NaN for fewer than three messages."""
        interval = self.interval
        return 1.0 / interval if interval > 0 else float('nan')

    @property
    def gaps(self) -> np.ndarray:
        """Begin and length of every gap [s after the first message, s], `(G, 2)`."""
        times = np.sort(self.times)
        steps = np.diff(times) / NANOSECONDS
        if not len(steps) or not self.interval > 0:
            return np.zeros((0, 2))
        where = np.flatnonzero(steps > GAP * self.interval)
        return np.column_stack(((times[where] - times[0]) / NANOSECONDS, steps[where]))

    @property
    def lost(self) -> int:
        """Messages missing in the gaps, at the usual rate."""
        lengths = self.gaps[:, 1]
        return int(np.round(lengths / self.interval - 1).sum()) if len(lengths) else 0

    @property
    def jitter(self) -> float:
        """99th percentile of the time between two messages [s]."""
        steps = np.diff(np.sort(self.times))
        return float(np.percentile(steps, 99)) / NANOSECONDS if len(steps) else float('nan')

    @property
    def delays(self) -> np.ndarray:
        """Receipt less header stamp [s], `(N,)`; empty without stamps."""
        if not len(self.stamps):
            return np.zeros(0)
        return (self.received - self.stamps) / NANOSECONDS

    @property
    def backwards(self) -> int:
        """Stamps earlier than the one before."""
        return int((np.diff(self.stamps) < 0).sum()) if len(self.stamps) else 0

    @property
    def repeated_stamps(self) -> int:
        """Stamps equal to the one before."""
        return int((np.diff(self.stamps) == 0).sum()) if len(self.stamps) else 0

    @property
    def unstamped(self) -> int:
        """Messages whose header stamp is zero."""
        return int((self.stamps == 0).sum())

    def spikes(self) -> dict[str, int]:
        """
        Return how many samples stick out from their neighbours, by path.

        What is sampled ever more coarsely (see `MOST_ROWS`) is judged as it is kept.
        """
        found: dict[str, int] = {}
        if len(self.rows) < 20:
            return found
        steps = np.diff(self.times[self.rows])
        # Across a gap a value may have gone anywhere.
        whole = np.maximum(steps[:-1], steps[1:]) <= GAP * np.median(steps)
        for index, path in enumerate(self.paths):
            values = self.values[:, index]
            near = whole & np.isfinite(values[:-2] + values[1:-1] + values[2:])
            if near.sum() < 20:
                continue
            away = np.where(near, np.abs(values[1:-1] - 0.5 * (values[:-2] + values[2:])), 0.0)
            usual = np.percentile(away[near], 90)
            # A switch stays where it is nearly always: its changes are no outliers.
            if not usual > 1e-12 * max(1.0, float(np.nanmax(np.abs(values)))):
                continue
            where = away > SPIKE * usual
            # A sample that sticks out pulls its neighbours' differences along by half.
            count = int((where & (away >= 0.9 * _neighbours(away))).sum())
            # What happens all the time is how the signal is.
            if 0 < count <= 0.01 * near.sum() + 1:
                found[path] = count
        return found

    def constant(self) -> tuple[str, ...]:
        """Return the paths whose number never changes."""
        if len(self.values) < 2:
            return ()
        same = np.array([not known.any() or np.ptp(values[known]) == 0 for values, known in zip(
            self.values.T, np.isfinite(self.values.T), strict=True)], bool)
        return tuple(path for path, fixed in zip(self.paths, same, strict=True) if fixed)


@dataclass
class BagData:
    """
    One bag.

    :param path: of the bag.
    :param size: of its files [bytes].
    :param digest: of its files' content.
    :param topics: by name.
    :param episodes: begin and end [ns of receipt] and name, by markers; one of all without.
    :param marked: whether the bag has episode markers.
    :param damage: what of its files cannot be read.
    """

    path: Path
    size: int
    digest: str
    topics: dict[str, TopicData]
    episodes: list[tuple[int, int, str]]
    marked: bool
    damage: list[str]

    @property
    def start(self) -> int:
        """First time of receipt [ns]."""
        return min((int(topic.received[0]) for topic in self.topics.values()
                    if len(topic.received)), default=0)

    @property
    def duration(self) -> float:
        """From the first to the last message [s]."""
        last = max((int(topic.received[-1]) for topic in self.topics.values()
                    if len(topic.received)), default=0)
        return (last - self.start) / NANOSECONDS

    @property
    def messages(self) -> int:
        """Messages of all topics."""
        return sum(len(topic.received) for topic in self.topics.values())


def read_statistics(path: str | Path, large: bool = True) -> BagData:
    """
    Read a whole bag once.

    :param path: of the bag.
    :param large: read topics with pictures, point clouds and the like too.
    :raises BagError: if it is no bag.
    """
    bag = Bag(path)
    collectors = {name: _Collector(name, kind) for name, kind in bag.topics.items()}
    wanted = [name for name, kind in bag.topics.items()
              if large or kind.rsplit('/', 1)[-1] not in ('Image', 'CompressedImage',
                                                          'PointCloud2', 'OccupancyGrid')]
    markers: list[tuple[int, int, str]] = []

    def undecoded(topic: str, reason: str) -> None:
        collectors[topic].undecoded += 1

    for record in bag.messages(wanted, rejected=undecoded):
        collectors[record.topic].add(record.time, record.message)
        if record.type == EPISODE_TYPE:
            markers.append((record.time, int(record.message.kind), record.message.episode))
    topics = {name: collector.done() for name, collector in sorted(collectors.items())
              if name in wanted}
    damage = [f'{file.name} ends without an index; {size} bytes of it are whole'
              for file, size in bag.cut_off.items()]
    damage += [f'{file.name}: {len(places)} damaged chunks' for file, places
               in bag.damaged.items()]
    found = BagData(Path(path), bag.size, content_digest(bag), topics, [], bool(markers), damage)
    end = found.start + round(found.duration * NANOSECONDS)
    found.episodes = _episodes(markers, found.start, end, Path(path).name)
    return found


def content_digest(bag: Bag) -> str:
    """Return a digest of a bag's storage files, whatever they are called."""
    made = hashlib.blake2b(digest_size=12)
    for file in bag.files:
        with open(file, 'rb') as opened:
            while block := opened.read(1 << 22):
                made.update(block)
    return made.hexdigest()


def _episodes(markers: list[tuple[int, int, str]], start: int, end: int,
              name: str) -> list[tuple[int, int, str]]:
    if not markers:
        return [(start, end, name)]
    found: list[tuple[int, int, str]] = []
    open_since: tuple[int, str] | None = None
    for time, kind, episode in markers:
        if open_since is not None:
            found.append((open_since[0], time, open_since[1]))
        open_since = (time, episode) if kind == START else None
    if open_since is not None:
        found.append((open_since[0], end, open_since[1]))
    return found


def _neighbours(values: np.ndarray) -> np.ndarray:
    """Return the larger of the two neighbours of each value."""
    padded = np.pad(values, 1)
    return np.maximum(padded[:-2], padded[2:])


class _Collector:
    """Collects one topic; memory is bounded but for 16 bytes a message."""

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.type = name, kind
        self.undecoded = 0
        self._received: list[int] = []
        self._stamps: list[int] = []
        self._shape: tuple | None = None
        self._plans: dict[tuple, list[tuple[int, Any]]] = {}
        self._paths: dict[str, int] = {}
        self._rows: list[int] = []
        self._values: list[list[float]] = []
        self._stride = 1
        self._not_finite: dict[int, int] = {}
        self._repeats, self._longest = 0, 0
        self._before: tuple[Any, int] | None = None
        self._since = 0
        self._other = 0
        self._bytes = 0

    def add(self, time: int, message: Any) -> None:
        index = len(self._received)
        self._received.append(time)
        stamp = stamp_of(message)
        if stamp is not None:
            self._stamps.append(stamp)
        shape = shape_of(message)
        if self._shape is None:
            self._shape = shape
        self._other += shape != self._shape
        row = [float('nan')] * len(self._paths)
        for place, get in self._plan(shape, message):
            value = float(get(message))
            if place >= len(row):
                row += [float('nan')] * (place + 1 - len(row))
            row[place] = value
            if not math.isfinite(value):
                self._not_finite[place] = self._not_finite.get(place, 0) + 1
        large = large_data(message)
        self._bytes = max(self._bytes, 0 if large is None else large.nbytes)
        if row or large is not None:
            seen = None if large is None else digest(large)
            self._compare((np.array(row).tobytes(), seen), time)
        if index % self._stride == 0:
            self._rows.append(index)
            self._values.append(row)
            if len(self._rows) > MOST_ROWS:
                del self._rows[1::2], self._values[1::2]
                self._stride *= 2

    def _plan(self, shape: tuple, message: Any) -> list[tuple[int, Any]]:
        """Say which number of a message of this shape goes where."""
        if shape not in self._plans:
            found = []
            if len(self._plans) < MOST_SHAPES:
                for path, get in number_paths(message).items():
                    if path in self._paths or len(self._paths) < MOST_PATHS:
                        found.append((self._paths.setdefault(path, len(self._paths)), get))
            self._plans[shape] = found
        return self._plans[shape]

    def _compare(self, content: tuple, time: int) -> None:
        if self._before is not None and content == self._before[0]:
            self._repeats += 1
            self._longest = max(self._longest, time - self._since)
        else:
            self._since = time
        self._before = (content, time)

    def done(self) -> TopicData:
        stamped = len(self._stamps) == len(self._received)
        paths = tuple(self._paths)
        values = np.full((len(self._values), len(paths)), np.nan)
        for row, some in zip(values, self._values, strict=True):
            row[:len(some)] = some
        not_finite = {paths[place]: count for place, count in self._not_finite.items()}
        return TopicData(
            self.name, self.type, np.array(self._received, np.int64),
            np.array(self._stamps if stamped else [], np.int64), paths,
            np.array(self._rows, np.int64), values, not_finite, self._repeats,
            self._longest / NANOSECONDS, self._other, self.undecoded, self._bytes)
