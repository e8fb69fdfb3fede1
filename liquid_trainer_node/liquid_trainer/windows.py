"""What the learner draws from episodes: single images with labels, and streams of windows."""

from __future__ import annotations

import errno
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from liquid_trainer.cache import DEPTH_UNIT, StoredEpisode, StoredEpisodes

# Episodes whose image files stay open, two each: less than the 1,024 a process usually may have.
_OPEN_EPISODES = 400


class Demonstrations:
    """
    Episodes laid end to end; every tick and every image has one number.

    :param episodes: at least one.
    :param tick: nominal time between ticks [s]; the elapsed time of an episode's first tick.
    :param scratch: folder for files without a name that hold the numbers; without, they are in
        memory, 120 bytes per tick.
    """

    def __init__(self, episodes: Sequence[StoredEpisode], tick: float = 0.01,
                 scratch: Path | None = None):
        if not episodes:
            raise ValueError('expected at least one episode, came none; record demonstrations')
        episodes = StoredEpisodes.of(episodes)
        self.names, self.tick, self._scratch = episodes.names, tick, scratch
        self._open = lru_cache(_OPEN_EPISODES)(episodes.images)
        counts, images, lasts = [], [], []
        for episode in episodes:
            counts.append(len(episode.times))
            images.append(len(episode.colors))
            lasts.append(episode.times[-1])
        self.bounds = np.concatenate(([0], np.cumsum(counts)))          # of ticks
        self.image_bounds = np.concatenate(([0], np.cumsum(images)))
        first = episodes[0]
        self.vectors = self.zeros((self.ticks, first.vectors.shape[1]))
        self.actions = self.zeros((self.ticks, first.actions.shape[1]))
        self.targets = self.zeros((self.ticks, first.targets.shape[1]))
        self.elapsed = self.zeros((self.ticks,))
        # Before the first image there is none to use: the first one stands in.
        self.images = self.zeros((self.ticks,), np.int64)
        # Episodes follow one another in one time, a minute apart, so that one search finds all.
        self._times = self.zeros((self.ticks,), np.float64)
        starts = np.cumsum([0.0] + [last + 60.0 for last in lasts[:-1]])
        labels: list[tuple[np.ndarray, ...]] = []
        for index, (e, start) in enumerate(zip(episodes, starts, strict=True)):
            rows = slice(*self.bounds[index:index + 2])
            self.vectors[rows], self.actions[rows] = e.vectors, e.actions
            self.targets[rows] = e.targets
            self.elapsed[rows] = np.diff(e.times, prepend=e.times[0] - tick)
            self.images[rows] = np.maximum(e.image_index, 0) + self.image_bounds[index]
            self._times[rows] = e.times + start
            labels.append(self._label_images(index, e))
        self.frame_images, self.frame_used, self.frame_stamped = (
            np.concatenate(parts) for parts in zip(*labels, strict=True))

    def zeros(self, shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
        """Return zeros, in a file where there is a folder for such."""
        if self._scratch is None or not all(shape):
            return np.zeros(shape, dtype)
        self._scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._scratch) as file:
            try:        # a disk that is full would otherwise end the process at the first access
                os.posix_fallocate(file.fileno(), 0, math.prod(shape) * np.dtype(dtype).itemsize)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                raise OSError(error.errno, f'{error.strerror}; free space or choose another '
                              'output folder', str(self._scratch)) from None
            return np.asarray(np.memmap(file, dtype, 'w+', shape=shape))

    def _label_images(self, index: int, episode: StoredEpisode) -> tuple[np.ndarray, ...]:
        """
        Find, for every image that is used, the tick of first use and the tick of its stamp.

        :return: numbers of images, of ticks of first use, and of ticks of the stamps.
        """
        begin = self.bounds[index]
        if not len(episode.image_times):        # a robot without cameras
            return (np.empty(0, np.int64),) * 3
        values, first = np.unique(self.images[begin:self.bounds[index + 1]], return_index=True)
        taken = episode.image_times[values - self.image_bounds[index]]
        stamped = np.searchsorted(episode.times, taken - self.tick / 2)
        stamped = np.minimum(stamped, len(episode.times) - 1)
        # An image from before the first tick has no label of its own time.
        keep = np.abs(episode.times[stamped] - taken) < self.tick
        return values[keep], first[keep] + begin, stamped[keep] + begin

    @property
    def ticks(self) -> int:
        """Number of ticks."""
        return int(self.bounds[-1])

    @property
    def image_count(self) -> int:
        """Number of images."""
        return int(self.image_bounds[-1])

    def read_images(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Return colours uint8 `(n, height, width, 3)` and depths float32 [m] `(n, height, width)`.

        :param numbers: of the images, `(n,)`.
        """
        episodes = np.searchsorted(self.image_bounds, numbers, side='right') - 1
        shape = self._open(0)[0].shape[1:]
        colors = np.empty((len(numbers), *shape), np.uint8)
        depths = np.empty((len(numbers), *shape[:2]), np.uint16)
        for row, (episode, number) in enumerate(zip(episodes, numbers, strict=True)):
            local = number - self.image_bounds[episode]
            stored = self._open(int(episode))
            colors[row], depths[row] = stored[0][local], stored[1][local]
        return colors, depths.astype(np.float32) * np.float32(DEPTH_UNIT)

    def chunks(self, ticks: np.ndarray, horizon: int, dt: float) -> tuple[np.ndarray, np.ndarray]:
        """
        Return the actions demonstrated from each tick on, and which lie within the episode.

        :param ticks: any shape.
        :param horizon: steps.
        :param dt: time between steps [s].
        :return: `(*ticks.shape, horizon, actions)` and bool `(*ticks.shape, horizon)`; beyond
            the episode's end the last action is repeated.
        """
        ends = self.bounds[np.searchsorted(self.bounds, ticks, side='right')][..., None]
        wanted = self._times[ticks][..., None] + np.arange(horizon) * dt
        ahead = np.searchsorted(self._times, wanted - self.tick / 2)
        inside = ahead < ends
        ahead = np.where(inside, ahead, ends - 1)
        # Ticks that were left out leave a gap with nothing to learn from.
        return self.actions[ahead], inside & (np.abs(self._times[ahead] - wanted) < self.tick)


@dataclass
class Streams:
    """
    Read many episodes at once, window after window, so that a state can be carried on.

    A stream that reaches its episode's end goes on with the start of another one. This is
    truncated back-propagation through time: the state a window starts from is the one a robot
    would have, however long it has run.

    :param demonstrations: what to read.
    :param batch: streams.
    :param length: ticks of a window.
    :param seed: of the episodes' order.
    """

    demonstrations: Demonstrations
    batch: int
    length: int
    seed: int = 0

    def __post_init__(self):
        self._count = 0
        bounds = self.demonstrations.bounds
        rng = self._rng()
        self._episode = rng.integers(0, len(bounds) - 1, self.batch)
        # Begin anywhere, so that streams do not all see episodes' starts at the same time.
        sizes = np.diff(bounds)[self._episode]
        self._position = (rng.random(self.batch) * np.maximum(sizes - self.length, 1)).astype(int)
        self._fresh = np.ones(self.batch, bool)

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng((self.seed, self._count))

    def state(self) -> dict:
        """Return where the streams are, to go on from later."""
        return {'count': self._count, 'episode': self._episode.copy(),
                'position': self._position.copy(), 'fresh': self._fresh.copy()}

    def restore(self, state: dict) -> None:
        """Go on from where `state` was taken."""
        self._count = int(state['count'])
        self._episode, self._position, self._fresh = (
            np.array(state[name]) for name in ('episode', 'position', 'fresh'))

    def draw(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Return the next windows.

        :return: ticks `(batch, length)`, bool `(batch, length)` true where the tick is one of
            the episode (behind its end the last tick is repeated), and bool `(batch,)` true
            where the carried state must be forgotten first.
        """
        self._count += 1
        rng = self._rng()
        bounds = self.demonstrations.bounds
        begin, end = bounds[self._episode], bounds[self._episode + 1]
        ticks = (begin + self._position)[:, None] + np.arange(self.length)
        valid = ticks < end[:, None]
        fresh = self._fresh.copy()
        self._position = self._position + self.length
        over = begin + self._position >= end
        self._episode = np.where(over, rng.integers(0, len(bounds) - 1, self.batch),
                                 self._episode)
        self._position = np.where(over, 0, self._position)
        self._fresh = over
        return np.minimum(ticks, end[:, None] - 1), valid, fresh


def split_episodes(names: Sequence[str], held_out: float, seed: int) -> tuple[list[int],
                                                                              list[int]]:
    """
    Return the numbers of the episodes to learn from, and of those held out.

    :param names: of the episodes; parts of one demonstration have one name and stay together.
    :param held_out: share to hold out; at least one demonstration when there are two.
    :param seed: of the choice.
    """
    members: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        members.setdefault(name, []).append(number)
    groups = list(members.values())
    order = np.random.default_rng(seed).permutation(len(groups))
    count = min(max(1, round(held_out * len(groups))), len(groups) - 1) if held_out > 0 else 0

    def numbers(chosen: np.ndarray) -> list[int]:
        return sorted(number for group in chosen for number in groups[group])

    return numbers(order[count:]), numbers(order[:count])
