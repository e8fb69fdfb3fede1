"""Which of the live windows are held out."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import numpy as np

from liquid_policy.conversion import NANOSECONDS


class Use(enum.Enum):
    """What a window is for."""

    TRAIN = 'train'
    HELD_OUT = 'held out'
    NEITHER = 'neither'     # it overlaps both


@dataclass(frozen=True)
class TimeSplit:
    """
    Every `period` seconds of stamps, the first `held_out` seconds are never learned from.

    Sliding windows overlap, so single ones cannot be held out: their neighbours would give them
    away. Whole stretches of time can.
    """

    period: float = field(default=8.0, metadata={
        'description': 'from one held-out stretch to the next', 'unit': 's'})
    held_out: float = field(default=2.6, metadata={
        'description': 'length of a held-out stretch; longer than a window', 'unit': 's'})

    def __post_init__(self):
        if not 0.0 < self.held_out < self.period:
            raise ValueError(f'held_out: expected above 0 and below the period of {self.period} '
                             f's, came {self.held_out}')

    def use(self, ticks: np.ndarray) -> Use:
        """
        Say what a window is for.

        :param ticks: its stamps [ns].
        """
        inside = np.mod(ticks, round(self.period * NANOSECONDS)) \
            < round(self.held_out * NANOSECONDS)
        if not inside.any():
            return Use.TRAIN
        return Use.HELD_OUT if inside.all() else Use.NEITHER
