"""A share of a processor core that is measured and kept."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """
    Says how long to rest so that this process uses no more than its share.

    The processor time is the whole process's, as the kernel counts it: training, evaluating,
    exporting, and the node's own messages. A token bucket: unused time is saved up, but for no
    longer than `burst` seconds of work.

    :param share: of one core.
    :param burst: processor time that may be used at once [s].
    :param clock: time [s].
    :param used: processor time used so far [s].
    """

    def __init__(self, share: float, burst: float = 0.1,
                 clock: Callable[[], float] = time.monotonic,
                 used: Callable[[], float] = time.process_time):
        self.share = share
        self._burst, self._clock, self._used = burst, clock, used
        self._credit = burst
        self._last = self._measured = (clock(), used())

    @property
    def share(self) -> float:
        """Share of one core; may be changed at any time."""
        return self._share

    @share.setter
    def share(self, share: float) -> None:
        if not 0.0 <= share <= 64.0:
            raise ValueError(f'share: expected 0 to 64 cores, came {share}')
        self._share = share

    def rest(self) -> float:
        """Return how long to rest before working on [s]; infinite for a share of 0."""
        now, used = self._clock(), self._used()
        then, before = self._last
        self._last = (now, used)
        earned = self._share * (now - then)
        self._credit = min(self._credit + earned, self._burst) - (used - before)
        if self._credit >= 0.0:
            return 0.0
        return -self._credit / self._share if self._share > 0.0 else float('inf')

    def measured(self) -> float:
        """Return the share of one core used since the last call."""
        now, used = self._clock(), self._used()
        then, before = self._measured
        self._measured = (now, used)
        return (used - before) / max(now - then, 1e-9)
