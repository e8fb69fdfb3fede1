"""What a task offers to the training and the evaluation command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from liquid_policy.interface import Interface
from liquid_policy.settings import EncoderSettings
from liquid_trainer.arrays import ArrayEpisodes
from liquid_trainer.pictures import Pictures


@dataclass(frozen=True)
class Outcome:
    """
    What a step led to.

    :param vector: the next observation, `(numbers,)`.
    :param score: how well the task is done now, 0 to 1; of an episode the largest counts.
    :param success: whether it is done; the episode then ends.
    """

    vector: np.ndarray
    score: float
    success: bool


class Environment(Protocol):
    """One episode after the other."""

    def reset(self, seed: int) -> np.ndarray:
        """Start an episode and return the first observation, `(numbers,)`."""
        ...

    def step(self, action: np.ndarray) -> Outcome:
        """Act for one control period."""
        ...

    def picture(self) -> np.ndarray:
        """Return what it looks like now, uint8 `(height, width, 3)`, red first."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


@dataclass(frozen=True)
class Task:
    """
    A task: who acts, in what world, and how people did it.

    :param name: as figures and command lines call it.
    :param score: what the score is called in figures.
    :param steps: longest episode.
    :param interface: what is observed and what can be told.
    :param relative: numbers of the observation that actions are told relative to.
    :param environment: makes an environment.
    :param read: reads demonstrations from a file.
    :param read_mirrored: reads their mirror images, which are as good as the episodes
        themselves; None where the task has no symmetry.
    :param source: where the demonstrations are published, and how to get them.
    :param pictures: reads what a camera saw at every step; None for a task without one. The
        environment of a task with a camera has a method `image`.
    :param encoder: that looks at them.
    """

    name: str
    score: str
    steps: int
    interface: Interface
    relative: tuple[int, ...]
    environment: Callable[[], Environment]
    read: Callable[[Path], ArrayEpisodes]
    read_mirrored: Callable[[Path], ArrayEpisodes] | None
    source: str
    pictures: Callable[[Path], Pictures] | None = None
    encoder: EncoderSettings | None = None
