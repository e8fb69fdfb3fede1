"""Demonstrations as arrays: checked, split by episode, and cut into windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from liquid_trainer.windows import split_episodes


class ArrayError(ValueError):
    """Demonstrations that cannot be learned from; the text says what was expected and came."""


@dataclass(frozen=True, eq=False)
class ArrayEpisodes:
    """
    Episodes of equal time steps, laid end to end.

    :param vectors: what was observed before each step, `(steps, numbers)`, floats.
    :param actions: what was done, `(steps, actions)`, floats.
    :param ends: where each episode ends (the first step of the next), ascending.
    :param features: how many of the first numbers an encoder made; those may stay as they are,
        such as the depth of key points in pictures without depth.
    :raises ArrayError: for a wrong type or shape, a number that is not finite, an episode of
        fewer than two steps, or a dimension that never changes.
    """

    vectors: np.ndarray
    actions: np.ndarray
    ends: np.ndarray
    features: int = 0

    def __post_init__(self):
        for name in ('vectors', 'actions'):
            values = np.asarray(getattr(self, name))
            _check_numbers(name, values, self.features if name == 'vectors' else 0)
            object.__setattr__(self, name, np.ascontiguousarray(values, np.float32))
        ends = np.asarray(self.ends)
        object.__setattr__(self, 'ends', ends)
        if len(self.vectors) != len(self.actions):
            raise ArrayError(f'expected as many actions as vectors, came {len(self.actions)} '
                             f'actions and {len(self.vectors)} vectors')
        if ends.ndim != 1 or not np.issubdtype(ends.dtype, np.integer) or not len(ends):
            raise ArrayError(f'ends: expected whole numbers (episodes,), came {ends.dtype} '
                             f'{ends.shape}')
        lengths = np.diff(ends, prepend=0)
        if (lengths < 2).any():
            episode = int(np.argmax(lengths < 2))
            raise ArrayError(f'episode {episode}: expected two steps or more, came '
                             f'{lengths[episode]}; leave it out')
        if ends[-1] != len(self.vectors):
            raise ArrayError(f'ends: expected the last to be {len(self.vectors)}, the number of '
                             f'steps, came {ends[-1]}')

    @property
    def starts(self) -> np.ndarray:
        """First step of each episode, `(episodes,)`."""
        return np.concatenate(([0], self.ends[:-1]))

    def __len__(self) -> int:
        return len(self.ends)

    def chosen(self, episodes: Sequence[int]) -> ArrayEpisodes:
        """Return some of the episodes."""
        spans = [(self.starts[e], self.ends[e]) for e in episodes]
        return ArrayEpisodes(
            np.concatenate([self.vectors[a:b] for a, b in spans]),
            np.concatenate([self.actions[a:b] for a, b in spans]),
            np.cumsum([b - a for a, b in spans]), self.features)

    def joined(self, others: ArrayEpisodes) -> ArrayEpisodes:
        """Return these episodes and the others'."""
        return ArrayEpisodes(np.concatenate((self.vectors, others.vectors)),
                             np.concatenate((self.actions, others.actions)),
                             np.concatenate((self.ends, others.ends + len(self.vectors))),
                             self.features)

    def split(self, held_out: float, seed: int) -> tuple[list[int], list[int]]:
        """Return the numbers of the episodes to learn from and of those held out."""
        return split_episodes([str(index) for index in range(len(self))], held_out, seed)

    def windows(self, steps: np.ndarray, context: int, horizon: int,
                gaps: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray,
                                                         np.ndarray]:
        """
        Return what led to steps, and what was done from there on.

        :param steps: `(batch,)`.
        :param context: observations up to and with the step's own.
        :param horizon: actions from the step on.
        :param gaps: steps from each observation to the next, `(batch, context - 1)`; one where
            left out.
        :return: vectors `(batch, context, numbers)` and which of them lie within the episode
            `(batch, context)`; actions `(batch, horizon, actions)` and which of them do
            `(batch, horizon)`. Outside, the episode's first vector and last action are repeated.
        """
        episode = np.searchsorted(self.ends, steps, side='right')
        first, end = self.starts[episode][:, None], self.ends[episode][:, None]
        if gaps is None:
            gaps = np.ones((len(steps), context - 1), np.int64)
        back = np.cumsum(gaps[:, ::-1], axis=1)[:, ::-1]
        before = steps[:, None] - np.pad(back, ((0, 0), (0, 1)))
        ahead = steps[:, None] + np.arange(horizon)
        return (self.vectors[np.maximum(before, first)], before >= first,
                self.actions[np.minimum(ahead, end - 1)], ahead < end)


def _check_numbers(name: str, values: np.ndarray, features: int = 0) -> None:
    if values.ndim != 2 or not len(values) or not values.shape[1]:
        raise ArrayError(f'{name}: expected shape (steps, numbers), came {values.shape}')
    if not np.issubdtype(values.dtype, np.floating):
        raise ArrayError(f'{name}: expected floating-point numbers, came {values.dtype}')
    good = np.isfinite(values)
    if not good.all():
        step, column = np.argwhere(~good)[0]
        raise ArrayError(f'{name}: expected finite numbers, came {values[step, column]} at step '
                         f'{step}, column {column}; {int((~good).sum())} are not finite')
    constant = np.ptp(values, axis=0) == 0
    constant[:features] = False
    if constant.any():
        column = int(np.argmax(constant))
        raise ArrayError(f'{name}: expected every column to change, came {values[0, column]:g} '
                         f'throughout column {column}; leave the column out')
