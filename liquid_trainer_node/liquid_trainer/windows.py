"""What the learner draws from episodes: single images with labels, and streams of windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from liquid_trainer.cache import DEPTH_UNIT, StoredEpisode


class Demonstrations:
    """
    Episodes laid end to end; every tick and every image has one number.

    :param episodes: at least one.
    :param tick: nominal time between ticks [s]; the elapsed time of an episode's first tick.
    """

    def __init__(self, episodes: Sequence[StoredEpisode], tick: float = 0.01):
        if not episodes:
            raise ValueError('expected at least one episode, came none; record demonstrations')
        self.names = [episode.name for episode in episodes]
        self._colors = [episode.colors for episode in episodes]
        self._depths = [episode.depths for episode in episodes]
        counts = [len(episode.times) for episode in episodes]
        images = [len(episode.colors) for episode in episodes]
        self.bounds = np.concatenate(([0], np.cumsum(counts)))          # of ticks
        self.image_bounds = np.concatenate(([0], np.cumsum(images)))
        self.vectors = np.concatenate([e.vectors for e in episodes]).astype(np.float32)
        self.actions = np.concatenate([e.actions for e in episodes]).astype(np.float32)
        self.targets = np.concatenate([e.targets for e in episodes]).astype(np.float32)
        self.elapsed = np.concatenate([np.diff(e.times, prepend=e.times[0] - tick)
                                       for e in episodes]).astype(np.float32)
        # Before the first image there is none to use: the first one stands in.
        self.images = np.concatenate([np.maximum(e.image_index, 0) + start for e, start in
                                      zip(episodes, self.image_bounds[:-1], strict=True)])
        self.tick = tick
        # Episodes follow one another in one time, a minute apart, so that one search finds all.
        starts = np.cumsum([0.0] + [e.times[-1] + 60.0 for e in episodes[:-1]])
        self._times = np.concatenate([e.times + start for e, start in
                                      zip(episodes, starts, strict=True)])
        self._label_images(episodes)

    def _label_images(self, episodes: Sequence[StoredEpisode]) -> None:
        """Find, for every image that is used, the tick of first use and the tick of its stamp."""
        numbers, used, stamps = [], [], []
        for index, episode in enumerate(episodes):
            begin = self.bounds[index]
            values, first = np.unique(self.images[begin:self.bounds[index + 1]],
                                      return_index=True)
            taken = episode.image_times[values - self.image_bounds[index]]
            stamped = np.searchsorted(episode.times, taken - self.tick / 2)
            stamped = np.minimum(stamped, len(episode.times) - 1)
            # An image from before the first tick has no label of its own time.
            keep = np.abs(episode.times[stamped] - taken) < self.tick
            numbers.append(values[keep])
            used.append(first[keep] + begin)
            stamps.append(stamped[keep] + begin)
        self.frame_images = np.concatenate(numbers)
        self.frame_used = np.concatenate(used)
        self.frame_stamped = np.concatenate(stamps)

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
        shape = self._colors[0].shape[1:]
        colors = np.empty((len(numbers), *shape), np.uint8)
        depths = np.empty((len(numbers), *shape[:2]), np.uint16)
        for row, (episode, number) in enumerate(zip(episodes, numbers, strict=True)):
            local = number - self.image_bounds[episode]
            colors[row] = self._colors[episode][local]
            depths[row] = self._depths[episode][local]
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

    :param names: of the episodes.
    :param held_out: share to hold out; at least one episode when there are two.
    :param seed: of the choice.
    """
    order = np.random.default_rng(seed).permutation(len(names))
    count = min(max(1, round(held_out * len(names))), len(names) - 1) if held_out > 0 else 0
    return sorted(order[count:].tolist()), sorted(order[:count].tolist())
