"""Stamps of messages: read, and checked to move forward."""

from __future__ import annotations

from typing import Any

from liquid_policy.conversion import NANOSECONDS, MessageError, stamp_of


def header_stamp(message: Any) -> int:
    """
    The stamp of a message whose type has a header [ns].

    :raises MessageError: if it has none.
    """
    stamp = stamp_of(message)
    if stamp is None:
        raise MessageError(f'expected a message with a header, came {type(message).__name__}')
    return stamp


class StampGuard:
    """Accepts stamps that move forward and do not lie ahead of the clock."""

    def __init__(self, name: str, tolerance: float = 0.02) -> None:
        """
        Accept anything first.

        :param name: the stream's name, for messages.
        :param tolerance: how far ahead of the node's clock a stamp may be [s]; a simulated clock
            is behind the stamps by up to its own period.
        """
        self._name = name
        self._tolerance = round(tolerance * NANOSECONDS)
        self._last: int | None = None
        self._detail = 0

    def accept(self, stamp: int, now: int, detail: int = 0) -> bool:
        """
        Whether a message with this stamp is to be used.

        :param stamp: header stamp [ns].
        :param now: the node's clock [ns].
        :param detail: tells messages of one stamp apart, such as the stamp of the image that a
            proposal knows; the greater one is newer.
        :return: False for a repeated stamp without more detail.
        :raises MessageError: for a stamp that lies in the future, or goes back while the clock
            did not.
        """
        if stamp > now + self._tolerance:
            raise MessageError(
                f'{self._name}: stamp {1e-9 * (stamp - now):.3f} s in the future, ignored; '
                'synchronise the clocks, or set use_sim_time on every node alike')
        clock_went_back = self._last is not None and self._last > now + self._tolerance
        if self._last is not None and stamp < self._last and not clock_went_back:
            raise MessageError(
                f'{self._name}: stamp went back by {1e-9 * (self._last - stamp):.3f} s, ignored')
        if stamp == self._last and detail <= self._detail:
            return False
        self._last, self._detail = stamp, detail
        return True

    def forget(self) -> None:
        """Accept any stamp next, after the clock itself has jumped."""
        self._last = None
