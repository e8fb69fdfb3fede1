"""
How much each demonstration teaches: repetition, standing about, and actions that make sense.

Everything is measured on windows: half a second of states and of the actions that were shown,
scaled by their spread in the whole data.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import digamma

WINDOW = 0.5        # s
# From window to window: so short that two takes of one motion, begun at any time, are alike.
STRIDE = 0.05       # s
# Of so many windows one is asked about; all can be the answer.
ASKED = 5
# Principal components kept of states and of actions: neighbours mean little in more dimensions.
COMPONENTS = 8
# From windows to episodes that are computed at a time, 8 bytes each.
MOST_DISTANCES = 20_000_000


@dataclass(frozen=True)
class Track:
    """
    What is compared of an episode.

    :param name: of the episode.
    :param times: ticks [s], `(T,)`.
    :param states: observations, `(T, S)`.
    :param actions: `(T, A)`.
    :param scene: what the camera shows, in few numbers, `(T, C)`; C may be 0.
    """

    name: str
    times: np.ndarray
    states: np.ndarray
    actions: np.ndarray
    scene: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.times)
        for key in ('states', 'actions', 'scene'):
            if getattr(self, key).ndim != 2 or len(getattr(self, key)) != count:
                raise ValueError(f'{self.name}: expected {key} of {count} rows, came shape '
                                 f'{getattr(self, key).shape}')


@dataclass(frozen=True)
class Windows:
    """
    Windows of all episodes, one after the other, `STRIDE` apart.

    :param episode: which one each is of, `(N,)`.
    :param states: start, mean and end of states and scene, scaled, in principal components,
        `(N, D)`.
    :param actions: mean of each half, likewise, `(N, E)`.
    """

    episode: np.ndarray
    states: np.ndarray
    actions: np.ndarray

    @property
    def both(self) -> np.ndarray:
        """States and actions side by side, `(N, D + E)`."""
        return np.concatenate((self.states, self.actions), axis=1)


def spread(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the standard deviation of every column over all parts; 1 where nothing varies."""
    joined = np.concatenate(parts)
    found = joined.std(0)
    return np.where(found > 1e-9, found, 1.0)


def _telling(parts: Sequence[np.ndarray]) -> np.ndarray:
    """
    Return scales by which only what tells something is of size 1.

    What jumps at random from one tick to the next is noise; columns that are little else would
    otherwise make every repetition look new.
    """
    scale = spread(parts)
    if not len(scale):
        return scale
    steps = np.concatenate([np.diff(part, axis=0) for part in parts])
    # The difference of two samples of white noise has twice its variance.
    noise = np.square(steps).mean(0) / 2 if len(steps) else 0.0
    share = np.clip(1.0 - noise / np.square(scale), 0.0, 1.0)
    return scale / np.maximum(np.sqrt(share), 1e-3)


def make_windows(tracks: Sequence[Track]) -> Windows:
    """
    Cut windows from episodes.

    :param tracks: at least one.
    """
    state_scale, action_scale, scene_scale = (
        _telling([getattr(track, key) for track in tracks])
        for key in ('states', 'actions', 'scene'))
    # The camera weighs as much as the joints, however many numbers it has.
    if tracks[0].scene.shape[1]:
        scene_scale = scene_scale * np.sqrt(
            tracks[0].scene.shape[1] / max(tracks[0].states.shape[1], 1))
    episode, states, actions = [], [], []
    for index, track in enumerate(tracks):
        seen = np.concatenate((track.states / state_scale, track.scene / scene_scale), 1)
        shown = track.actions / action_scale
        for begin, end in _cuts(track.times):
            middle = (begin + end) // 2
            quarter = max(1, (end - begin) // 4)
            # Means over a quarter: sensor noise must not make repetitions look different.
            states.append(np.concatenate((seen[begin:begin + quarter].mean(0),
                                          seen[end - quarter:end].mean(0))))
            actions.append(np.concatenate((shown[begin:middle].mean(0),
                                           shown[middle:end].mean(0))))
            episode.append(index)
    return Windows(np.array(episode), principal(np.array(states), COMPONENTS),
                   principal(np.array(actions), COMPONENTS))


def _cuts(times: np.ndarray) -> list[tuple[int, int]]:
    """Begin and end of every window of an episode; a shorter episode is one window."""
    begins = np.arange(times[0], max(times[-1] - WINDOW, times[0]) + 1e-9, STRIDE)
    found = []
    for begin in begins:
        first, last = np.searchsorted(times, [begin - 1e-9, begin + WINDOW - 1e-9])
        if last - first >= 4:
            found.append((int(first), int(last)))
    return found or [(0, len(times))]


def principal(samples: np.ndarray, most: int) -> np.ndarray:
    """Return samples in their first principal components, `(N, min(D, most))`."""
    centred = samples - samples.mean(0)
    if centred.shape[1] <= most:
        return centred
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return centred @ vectors[:, ::-1][:, :most]


def information(windows: Windows, neighbours: int = 5, batch: int = 1024, passes: int = 4,
                seed: int = 0) -> np.ndarray:
    """
    Return what each episode adds to the mutual information of states and actions [nats], `(E,)`.

    High where many different states were seen and the action follows from the state; low where
    like states were answered differently. Neighbours in state and action are counted in batches
    drawn at random, so that a longer data set is no denser.

    :param windows: of all episodes.
    :param neighbours: k of the estimate.
    :param batch: windows compared at a time.
    :param passes: how often each window is drawn.
    :param seed: of the batches.

    Source: Kraskov, Stoegbauer, Grassberger, Estimating mutual information, Phys. Rev. E 69,
    066138 (2004), first estimator; by episode as in Hejna et al., Robot Data Curation with
    Mutual Information Estimators, arXiv:2502.08623, with principal components for their
    variational autoencoder.
    """
    rng = np.random.default_rng(seed)
    episode = windows.episode[::ASKED]
    states, actions = (_jittered(values[::ASKED], rng)
                       for values in (windows.states, windows.actions))
    count, sums = len(episode), np.zeros(int(windows.episode.max()) + 1)
    drawn = np.zeros_like(sums)
    for _ in range(passes):
        order = rng.permutation(count)
        for rows in np.array_split(order, max(1, round(count / batch))):
            if len(rows) <= neighbours + 1:
                continue
            s, a = states[rows], actions[rows]
            joint = np.maximum(*(_distances(values) for values in (s, a)))
            np.fill_diagonal(joint, np.inf)
            reach = np.partition(joint, neighbours - 1, axis=1)[:, neighbours - 1]
            terms = digamma(neighbours) + digamma(len(rows))
            for values in (s, a):
                near = (_distances(values) < reach[:, None]).sum(1) - 1
                terms = terms - digamma(np.maximum(near, 0) + 1)
            np.add.at(sums, episode[rows], terms)
            np.add.at(drawn, episode[rows], 1)
    return sums / np.maximum(drawn, 1)


def _jittered(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Break ties, as Kraskov et al. ask for: equal samples have no neighbour distance."""
    return values + 1e-8 * max(float(values.std()), 1e-12) * rng.standard_normal(values.shape)


def _distances(values: np.ndarray) -> np.ndarray:
    """Return Euclidean distances between all rows, `(N, N)`."""
    squares = np.square(values).sum(1)
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * values @ values.T, 0.0))


def resolution(windows: Windows) -> float:
    """
    Return how far states and actions usually move within `ASKED` windows, 0.25 s.

    What is nearer than a good part of this to something seen before is a repetition.
    """
    episode, both = windows.episode, windows.both
    same = episode[ASKED:] == episode[:-ASKED]
    steps = np.linalg.norm((both[ASKED:] - both[:-ASKED])[same], axis=1)
    return float(np.median(steps)) if len(steps) else 0.0


@dataclass(frozen=True)
class Order:
    """
    Episodes in the order in which they should be taken.

    :param chosen: numbers of the episodes that teach something new, best first.
    :param repeated: for each repeated episode, the one that is kept instead.
    :param novelty: share of an episode's windows that no episode taken before has, `(E,)`.
    """

    chosen: list[int]
    repeated: dict[int, int]
    novelty: np.ndarray


def take_in_order(windows: Windows, scores: np.ndarray, near: float, least_new: float = 0.1
                  ) -> Order:
    """
    Take one episode after the other: what is new and makes sense first.

    Each time the one is taken whose windows, weighted by how the episode scores, reduce the
    distance from every window to the nearest one taken most (facility location, whose greedy
    solution is at least 63 % of the best: Nemhauser, Wolsey, Fisher, Math. Program. 14, 265
    (1978)). Episodes with too little that is new when their turn comes are repetitions.

    :param windows: of all episodes.
    :param scores: of the episodes, higher is better, `(E,)`.
    :param near: distance below which a window is not new; see `resolution`.
    :param least_new: share of its windows that must be new.
    """
    count = len(scores)
    # Every n-th window stands for its neighbours; of very many, fewer.
    every = max(ASKED, round(len(windows.episode) * count / MOST_DISTANCES))
    both, episode = windows.both[::every], windows.episode[::every]
    groups = [np.flatnonzero(windows.episode == index) for index in range(count)]
    # Distance from every window to each episode: one column per episode.
    reach = np.stack([cKDTree(windows.both[rows]).query(both)[0] for rows in groups], axis=1)
    groups = [np.flatnonzero(episode == index) for index in range(count)]
    order = np.argsort(np.argsort(scores))
    weight = 0.5 + order / max(count - 1, 1)        # 0.5 for the worst, 1.5 for the best
    nearest = np.full(len(both), float(reach.max()) or 1.0)

    def gain(index: int) -> float:
        return float(weight[index] * np.maximum(nearest - reach[:, index], 0.0).sum())

    novelty = np.ones(count)
    chosen: list[int] = []
    repeated: dict[int, int] = {}
    # What an episode adds only falls as others are taken: an old gain is a bound.
    waiting = [(-gain(index), index) for index in range(count)]
    heapq.heapify(waiting)
    while waiting:
        _, best = heapq.heappop(waiting)
        now = gain(best)
        if waiting and now < -waiting[0][0]:
            heapq.heappush(waiting, (-now, best))
            continue
        rows = groups[best]
        if chosen and len(rows):
            to_taken = reach[np.ix_(rows, np.array(chosen))]
            novelty[best] = float((to_taken.min(1) >= near).mean())
            if novelty[best] < least_new:
                repeated[best] = chosen[int(np.bincount(
                    to_taken.argmin(1), minlength=len(chosen)).argmax())]
                continue
        chosen.append(best)
        nearest = np.minimum(nearest, reach[:, best])
    return Order(chosen, repeated, novelty)


def idle(track: Track, scales: tuple[np.ndarray, np.ndarray, np.ndarray],
         still: float = 0.02, smooth: float = 0.2) -> np.ndarray:
    """
    Say at which ticks nothing happens: no motion, no change of the action, nothing on camera.

    :param track: an episode.
    :param scales: spread of states, actions and scene in the whole data.
    :param still: how far each may move within `smooth`, as a share of its spread.
    :param smooth: time over which motion is measured [s].
    :return: bool `(T,)`.
    """
    tick = float(np.median(np.diff(track.times))) if len(track.times) > 1 else 1.0
    reach = max(1, round(smooth / tick))
    quiet = np.ones(len(track.times), bool)
    for values, scale in zip((track.states, track.actions, track.scene), scales, strict=True):
        if not values.shape[1]:
            continue
        scaled = values / scale
        # Means of neighbouring stretches, so that noise of sensors is no motion.
        sums = np.cumsum(np.vstack((np.zeros(scaled.shape[1]), scaled)), axis=0)
        rows = np.arange(len(scaled))
        early, late = np.maximum(rows - reach, 0), np.minimum(rows + reach, len(scaled))
        before = (sums[rows + 1] - sums[early]) / (rows + 1 - early)[:, None]
        after = (sums[late] - sums[rows]) / (late - rows)[:, None]
        noise = scaled[1:] - scaled[:-1]
        # What means of `reach` noisy samples differ by at most: five of their standard deviations,
        # and the median step of white noise is 0.95 of its own.
        floor = 5.0 * np.sqrt(2 / reach) * np.median(np.abs(noise), axis=0) / 0.95 \
            if len(noise) else 0.0
        quiet &= (np.abs(after - before) <= np.maximum(still, floor)).all(1)
    return quiet


def kept_stretches(times: np.ndarray, quiet: np.ndarray, longest: float) -> list[tuple[float,
                                                                                      float]]:
    """
    Return the parts of an episode that remain when long idle stretches are cut.

    Of each, `longest` is kept, half where it begins and half where it ends.

    :param times: ticks [s], `(T,)`.
    :param quiet: from `idle`, `(T,)`.
    :param longest: idle time that is let be [s].
    :return: begin and end [s] of each part.
    """
    changes = np.flatnonzero(np.diff(np.concatenate(([0], quiet.astype(int), [0]))))
    parts, since = [], float(times[0])
    for begin, end in zip(changes[::2], changes[1::2], strict=True):
        first, last = float(times[begin]), float(times[end - 1])
        if last - first <= longest:
            continue
        cut_from = first if begin == 0 else first + longest / 2
        cut_to = last if end == len(times) else last - longest / 2
        if begin == 0:
            cut_to = max(cut_to - longest / 2, first)
        if end == len(times):
            cut_from = min(cut_from + longest / 2, last)
        if cut_from > since:
            parts.append((since, cut_from))
        since = cut_to
    if float(times[-1]) > since:
        parts.append((since, float(times[-1])))
    return parts
