"""When, in simulated time, a message was sent."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque


class SimulatedTime:
    """
    The simulator's clock, kept together with the system time at which each tick of it was sent.

    Whoever receives late (a stalled disk, a busy machine) gets clock and data late in an order
    of its own, so the clock's value at receipt says little about when data was sent. The
    middleware's times of sending order the two again.

    :param size: ticks that are remembered.
    """

    def __init__(self, size: int = 2000):
        self._ticks: deque[tuple[int, int]] = deque(maxlen=size)

    def add(self, sent: int, time: int) -> None:
        """
        Note a tick of the clock.

        :param sent: system time at which it was sent [ns].
        :param time: simulated time it tells [ns].
        """
        if not self._ticks or sent > self._ticks[-1][0]:
            self._ticks.append((sent, time))

    @property
    def newest(self) -> int | None:
        """Return the simulated time of the newest tick [ns]; None before the first."""
        return self._ticks[-1][1] if self._ticks else None

    def at(self, sent: int) -> int | None:
        """
        Return the simulated time [ns] at a system time [ns].

        None while no later tick is known: one that was sent in between may be on its way.
        What was sent before the first known tick gets that tick's time.
        """
        if not self._ticks or sent >= self._ticks[-1][0]:
            return None
        later = bisect_right(self._ticks, sent, key=lambda tick: tick[0])
        return self._ticks[max(0, later - 1)][1]
