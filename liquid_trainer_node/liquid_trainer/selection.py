"""Which episodes, and which parts of them, are learned from: a list that `curate` writes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from liquid_policy.interface import Interface
from liquid_trainer.bag_file import find_bags
from liquid_trainer.cache import StoredEpisode, StoredEpisodes, cached_episodes

_FORMAT = 1


@dataclass(frozen=True)
class Choice:
    """
    What is to become of one episode.

    :param bag: its bag.
    :param number: of the episode within the bag.
    :param name: of the episode.
    :param parts: begin and end [s from the episode's start] of what is learned from; empty: none.
    :param rank: 1 for the most helpful; 0 for those left out.
    :param information: what it adds to the mutual information of states and actions [nats].
    :param novelty: share of its windows that no better ranked episode has.
    :param idle: share of its ticks at which nothing happens.
    :param reason: why it is left out, or empty.
    """

    bag: str
    number: int
    name: str
    parts: tuple[tuple[float, float], ...]
    rank: int = 0
    information: float = 0.0
    novelty: float = 1.0
    idle: float = 0.0
    reason: str = ''

    def __post_init__(self) -> None:
        for begin, end in self.parts:
            if not 0.0 <= begin < end:
                raise ValueError(f'{self.name}: expected parts from an earlier to a later time, '
                                 f'came {begin} to {end} s')

    @property
    def seconds(self) -> float:
        """How much of it is learned from [s]."""
        return sum(end - begin for begin, end in self.parts)


def write_choices(path: str | Path, choices: Iterable[Choice], about: dict[str, Any]) -> None:
    """
    Write a list, beside and then renamed: a line about it, then one per episode.

    :param about: how it was made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f'.{path.name}.{os.getpid()}')
    rows = [{'format': _FORMAT, **about}, *(asdict(choice) for choice in choices)]
    beside.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    beside.replace(path)


def read_choices(path: str | Path) -> list[Choice]:
    """
    Read a list.

    :raises ValueError: if it is none.
    """
    path = Path(path)
    try:
        about, *rows = (json.loads(line) for line in path.read_text().splitlines() if line)
        if about.get('format') != _FORMAT:
            raise ValueError(f'format {about.get("format")!r}')
        return [Choice(**{**row, 'parts': tuple(map(tuple, row['parts']))}) for row in rows]
    except (ValueError, TypeError, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f'{path}: expected a list of episodes of format {_FORMAT} as `curate` '
                         f'writes it, came: {error}') from None


class SelectedEpisodes(StoredEpisodes):
    """
    Parts of episodes, opened when they are asked for.

    :param episodes: whole ones.
    :param parts: number of the episode, first tick and tick after the last.
    """

    def __init__(self, episodes: StoredEpisodes, parts: Sequence[tuple[int, int, int]]):
        self._episodes, self._parts = episodes, list(parts)
        super().__init__([episodes.names[number] for number, _, _ in parts],
                         [Path()] * len(parts),
                         [episodes.demonstrations[number] for number, _, _ in parts])

    def __getitem__(self, number):
        if isinstance(number, slice):
            return self.chosen(range(len(self))[number])
        episode, begin, end = self._parts[number]
        return cut(self._episodes[episode], begin, end)

    def chosen(self, numbers: Iterable[int]) -> SelectedEpisodes:
        """Return some of the parts."""
        return SelectedEpisodes(self._episodes, [self._parts[number] for number in numbers])

    def images(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the colours and depths of a part."""
        part = self[number]
        return part.colors, part.depths


def cut(episode: StoredEpisode, begin: int, end: int) -> StoredEpisode:
    """
    Return a part of an episode, as if it had begun there; its images are those it uses.

    :param begin: first tick.
    :param end: tick after the last.
    """
    if begin == 0 and end == len(episode.times):
        return episode
    index = np.asarray(episode.image_index[begin:end])
    first, last = max(int(index.min()), 0), max(int(index.max()), 0) + 1
    start = episode.times[begin]
    return replace(
        episode, times=episode.times[begin:end] - start, vectors=episode.vectors[begin:end],
        image_index=np.where(index < 0, -1, index - first),
        image_times=episode.image_times[first:last] - start,
        colors=episode.colors[first:last], depths=episode.depths[first:last],
        actions=episode.actions[begin:end], targets=episode.targets[begin:end])


def ticks_of(times: np.ndarray, parts: Iterable[tuple[float, float]]) -> list[tuple[int, int]]:
    """
    Return first tick and tick after the last of every part that has at least two ticks.

    :param times: of the ticks [s], `(T,)`.
    :param parts: begin and end [s].
    """
    found = []
    for begin, end in parts:
        first = int(np.searchsorted(times, begin - 1e-9))
        last = int(np.searchsorted(times, end + 1e-9, side='right'))
        if last - first >= 2:
            found.append((first, last))
    return found


def episodes_by_bag(paths: Iterable[str | Path], interface: Interface, cache: str | Path,
                    workers: int = 1, progress=None, namespace: str | None = None
                    ) -> list[tuple[Path, int, StoredEpisodes]]:
    """
    Return bag, number within it, and the episode (as a sequence of one) of every episode.

    :raises ValueError: as `cached_episodes`.
    """
    bags = find_bags(list(paths))
    cached_episodes(bags, interface, cache, workers, progress, namespace)
    found = []
    for bag in bags:
        episodes = cached_episodes([bag], interface, cache, 1, None, namespace)
        found += [(bag, number, episodes.chosen([number])) for number in range(len(episodes))]
    return found


def chosen_episodes(choices: Sequence[Choice], paths: Iterable[str | Path], interface: Interface,
                    cache: str | Path, workers: int = 1, progress=None,
                    namespace: str | None = None) -> StoredEpisodes:
    """
    Return what a list has chosen, in the order of the bags.

    :param choices: from `read_choices`.
    :param paths: bags, or folders of bags; what the list does not name is left out.
    :param interface: says how messages become numbers.
    :param cache: folder of decoded bags.
    :raises ValueError: if nothing is chosen, or the list names an episode that the bags lack.
    """
    wanted = {(Path(choice.bag).resolve(), choice.number): choice for choice in choices
              if choice.parts}
    names: list[str] = []
    places: list[Any] = []
    demonstrations: list[str] = []
    parts: list[tuple[int, int, int]] = []
    for bag, number, episode in episodes_by_bag(
            paths, interface, cache, workers, progress, namespace):
        choice = wanted.pop((bag.resolve(), number), None)
        if choice is None:
            continue
        for begin, end in ticks_of(episode[0].times, choice.parts):
            parts.append((len(names), begin, end))
        names.append(episode.names[0])
        places += episode._places
        demonstrations += episode.demonstrations
    if wanted:
        missing = [f'{bag.name} episode {number}' for bag, number in sorted(wanted)]
        raise ValueError(f'expected all chosen episodes among the bags, {len(missing)} are '
                         f'missing, such as {missing[0]}; give the folders of their bags too, or '
                         'make the list anew with curate')
    if not parts:
        raise ValueError('expected episodes to learn from, the list has chosen none of these '
                         'bags; make it anew with curate')
    return SelectedEpisodes(StoredEpisodes(names, places, demonstrations), parts)
