"""When each step of a simulation is due, and what to do when one comes late."""

from __future__ import annotations

NANOSECONDS = 1_000_000_000


class Pacer:
    """
    A schedule of ticks on a clock, at a multiple of real time.

    A late tick is caught up by making the next ones without waiting. Who is further behind than
    `most_behind` does not catch up: the schedule moves, and the time skipped is counted.

    :param period: simulated time between two ticks [s].
    :param factor: simulated seconds per second; 0 for as fast as possible.
    :param most_behind: how much is caught up at most [s of the clock].
    """

    def __init__(self, period: float, factor: float = 1.0, most_behind: float = 0.05) -> None:
        if factor < 0:
            raise ValueError(f'factor: expected 0 or more, got {factor}')
        self._step = round(period * NANOSECONDS / factor) if factor else 0
        self._most_behind = round(most_behind * NANOSECONDS)
        self._due = 0
        self.overruns = 0
        self.skipped = 0.0

    def begin(self, now: int) -> None:
        """
        Make the first tick due now.

        :param now: [ns].
        """
        self._due = now

    def next(self, now: int) -> int:
        """
        Return when the next tick is due [ns]; now, when as fast as possible.

        :param now: [ns].
        """
        if not self._step:
            return now
        self._due += self._step
        behind = now - self._due
        if behind > self._most_behind:
            self.skipped += behind / NANOSECONDS
            self._due = now
        return self._due

    def done(self, now: int) -> bool:
        """
        Note that the tick was made.

        :param now: [ns].
        :return: whether it came more than half a step late.
        """
        late = bool(self._step) and now - self._due > self._step // 2
        self.overruns += late
        return late
