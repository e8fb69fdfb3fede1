"""What every format becomes on the way to another: a layout, and episodes read one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from liquid_policy.interface import UNITS
from liquid_trainer.arrays import ArrayEpisodes

NANOSECONDS = 1_000_000_000
# Data sets tell time from an episode's start; ROS takes time 0 for "not set". Episode n begins
# n hours after this [s].
FIRST_START = 1_000_000_000
_SPEEDS = {'rad': 'rad/s', 'm': 'm/s', 'rad/s': 'rad/s2', 'm/s': 'm/s2'}


class FormatError(ValueError):
    """A data set that cannot be used; the text says where, what was expected and what came."""


@dataclass(frozen=True)
class Feature:
    """
    Numbers that were measured, or commanded, together.

    :param name: in the data set, such as `observation.state`.
    :param names: what each number is called, in the data set's order.
    :param units: unit of each number, `1` where the data set does not say.
    :param of: name of the feature whose rate of change this is, number by number.
    """

    name: str
    names: tuple[str, ...]
    units: tuple[str, ...] = ()
    of: str = ''

    def __post_init__(self) -> None:
        if not self.units:
            object.__setattr__(self, 'units', ('1',) * len(self.names))
        if not self.names or len(set(self.names)) != len(self.names):
            raise FormatError(f'{self.name}: expected a name of its own for each number, came '
                              f'{list(self.names)}')
        if len(self.units) != len(self.names) or not set(self.units) <= set(UNITS):
            raise FormatError(f'{self.name}: expected {len(self.names)} units of {UNITS}, came '
                              f'{list(self.units)}')

    @property
    def size(self) -> int:
        """How many numbers."""
        return len(self.names)


@dataclass(frozen=True)
class Picture:
    """
    One camera.

    :param name: in the data set.
    :param height: rows.
    :param width: columns.
    :param depth: float32 `(height, width)` [m]; otherwise colour, uint8 `(height, width, 3)`.
    """

    name: str
    height: int
    width: int
    depth: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return (self.height, self.width) if self.depth else (self.height, self.width, 3)


@dataclass(frozen=True)
class Layout:
    """
    What a data set holds at each step.

    :param robot: the robot's name.
    :param rate: steps per second; None where the data set does not say.
    :param observations: numbers measured.
    :param action: numbers commanded.
    :param pictures: cameras.
    """

    robot: str
    rate: float | None
    observations: tuple[Feature, ...]
    action: Feature
    pictures: tuple[Picture, ...] = ()

    def __post_init__(self) -> None:
        if self.rate is not None and not (math.isfinite(self.rate) and self.rate > 0):
            raise FormatError(f'expected a positive rate [Hz], came {self.rate}')
        if len(set(self.part_names)) != len(self.part_names):
            raise FormatError(f'expected each name once, came {list(self.part_names)}')

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of observations and cameras."""
        return (*(part.name for part in self.observations),
                *(part.name for part in self.pictures))


@dataclass(frozen=True, eq=False)
class Demonstration:
    """
    One episode.

    :param name: of the episode.
    :param stamps: time of each step, int64 `(steps,)` [ns], growing.
    :param vectors: by feature, `(steps, size)`.
    :param actions: done after the step's observation, `(steps, size)`.
    :param frames: by camera, gives one image per step, in order.
    :param task: what was to be done, in words.
    :param outcome: `success`, `failure` or, where nobody says, `unmarked`.
    """

    name: str
    stamps: np.ndarray
    vectors: Mapping[str, np.ndarray]
    actions: np.ndarray
    frames: Mapping[str, Callable[[], Iterator[np.ndarray]]] = field(default_factory=dict)
    task: str = ''
    outcome: str = 'unmarked'

    def __len__(self) -> int:
        return len(self.stamps)


@dataclass(frozen=True, eq=False)
class Dataset:
    """
    Episodes of one layout, read when asked for.

    :param source: where they come from, for errors.
    :param layout: what each step holds.
    :param names: of the episodes.
    :param load: reads the episode of a number.
    """

    source: str
    layout: Layout
    names: tuple[str, ...]
    load: Callable[[int], Demonstration]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> Demonstration:
        """
        Read one episode.

        :raises FormatError: if it is not as the layout says.
        """
        if not 0 <= number < len(self.names):
            raise IndexError(f'expected an episode from 0 to {len(self) - 1}, came {number}')
        episode = self.load(number)
        check(episode, self.layout, f'{self.source}, {episode.name}')
        return episode

    def __iter__(self) -> Iterator[Demonstration]:
        return (self[number] for number in range(len(self)))

    def chosen(self, numbers: Sequence[int]) -> Dataset:
        """
        Return some of the episodes.

        :raises FormatError: if there is no such episode.
        """
        for number in numbers:
            if not 0 <= number < len(self):
                raise FormatError(f'{self.source}: expected episodes from 0 to {len(self) - 1}, '
                                  f'came {number}')
        return Dataset(self.source, self.layout, tuple(self.names[n] for n in numbers),
                       lambda index: self.load(numbers[index]))

    def arrays(self, observations: Sequence[str] = ()) -> ArrayEpisodes:
        """
        Return all episodes without images, to learn a task from.

        :param observations: features that make the vector, in this order; all when left out.
        :raises FormatError: for a name the data set does not have.
        :raises ArrayError: for what cannot be learned from.
        """
        chosen = choose([part.name for part in self.layout.observations], observations,
                        self.source, 'observations')
        vectors, actions, lengths = [], [], []
        for episode in self:
            vectors.append(np.concatenate([episode.vectors[name] for name in chosen], axis=1))
            actions.append(episode.actions)
            lengths.append(len(episode))
        return ArrayEpisodes(np.concatenate(vectors).astype(np.float64),
                             np.concatenate(actions).astype(np.float64), np.cumsum(lengths))


def with_velocities(dataset: Dataset, features: Sequence[str]) -> Dataset:
    """
    Return a data set that also tells how fast numbers change, from one step to the next.

    Data sets often keep positions only, where a robot's joint states have velocities too. The
    first step of an episode has none before it and counts as standing.

    :param features: whose velocities are added, as `<name>_velocity`.
    :raises FormatError: for a name the data set does not have.
    """
    layout = dataset.layout
    chosen = choose([part.name for part in layout.observations], features, dataset.source,
                    'observations')
    speeds = tuple(Feature(f'{part.name}_velocity', tuple(f'{name}_velocity' for name in
                                                          part.names),
                           tuple(_SPEEDS.get(unit, '1') for unit in part.units), part.name)
                   for part in layout.observations if part.name in chosen)

    def load(number: int) -> Demonstration:
        episode = dataset[number]
        elapsed = np.diff(episode.stamps)[:, None] / NANOSECONDS
        vectors = dict(episode.vectors)
        for part in speeds:
            values = np.asarray(vectors[part.of], np.float64)
            speed = np.concatenate((np.zeros((1, part.size)), np.diff(values, axis=0) / elapsed))
            vectors[part.name] = speed.astype(np.float32)
        return replace(episode, vectors=vectors)

    return replace(dataset, layout=replace(
        layout, observations=(*layout.observations, *speeds)), load=load)


def check(episode: Demonstration, layout: Layout, where: str) -> None:
    """
    Refuse an episode that is not as its layout says.

    :raises FormatError: for unequal lengths, another width than the layout's, a number that is
        not finite, or times that do not grow.
    """
    steps = len(episode)
    if not steps:
        raise FormatError(f'{where}: expected steps, came an empty episode; leave it out')
    parts = [(layout.action, episode.actions)]
    parts += [(feature, episode.vectors[feature.name]) for feature in layout.observations]
    for feature, values in parts:
        if values.shape != (steps, feature.size):
            raise FormatError(f'{where}: {feature.name}: expected shape {(steps, feature.size)} '
                              f'(steps, numbers), came {values.shape}')
        if not (np.issubdtype(values.dtype, np.floating)
                or np.issubdtype(values.dtype, np.integer)
                or values.dtype == bool):
            raise FormatError(f'{where}: {feature.name}: expected numbers, came {values.dtype}')
        bad = ~np.isfinite(values)
        if bad.any():
            step, column = np.argwhere(bad)[0]
            raise FormatError(f'{where}: {feature.name}: expected finite numbers, came '
                              f'{values[step, column]} of {feature.names[column]} at step {step} '
                              f'({int(bad.sum())} in all); leave the episode out')
    if (np.diff(episode.stamps) <= 0).any():
        step = int(np.argmax(np.diff(episode.stamps) <= 0)) + 1
        raise FormatError(f'{where}: expected growing times, came a step back at step {step}')
    missing = [picture.name for picture in layout.pictures if picture.name not in episode.frames]
    if missing:
        raise FormatError(f'{where}: expected images of {missing}, came none')


def choose(there: Sequence[str], wanted: Sequence[str], source: str, kind: str) -> list[str]:
    """
    Return the wanted names, all that are there when none is wanted.

    :raises FormatError: for a name that is not there, or none at all.
    """
    unknown = [name for name in wanted if name not in there]
    if unknown or not there:
        raise FormatError(f'{source}: expected {kind} of {list(there)}, came '
                          f'{unknown or "nothing to choose from"}')
    return list(wanted) or list(there)


def even_stamps(steps: int, rate: float | None, number: int = 0) -> np.ndarray:
    """
    Return times of steps that follow one another evenly, int64 `(steps,)` [ns].

    :param rate: [Hz]; 1 is taken where it is unknown, which arrays never see.
    :param number: of the episode; each begins an hour after the one before.
    """
    return start_of(number) + np.round(np.arange(steps) * (NANOSECONDS / (rate or 1.0))
                                       ).astype(np.int64)


def start_of(number: int) -> int:
    """Return when an episode begins whose data set does not say [ns]."""
    return (FIRST_START + 3600 * number) * NANOSECONDS


def column_names(name: str, size: int) -> tuple[str, ...]:
    """Return names for numbers that have none: `name_0`, `name_1`."""
    return tuple(f'{name}_{index}' for index in range(size))


def natural_order(names: Iterable[str]) -> list[str]:
    """Return names so that `demo_10` comes after `demo_9`."""
    def key(name: str) -> tuple[str, int]:
        head = name.rstrip('0123456789')
        return head, int(name[len(head):] or -1)
    return sorted(names, key=key)
