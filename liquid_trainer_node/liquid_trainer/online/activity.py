"""Whether the robot is idle, so that the processor is the learner's."""

from __future__ import annotations

import numpy as np

from liquid_policy.interface import Interface


class Activity:
    """
    Notes when the robot was last moved or shown something.

    :param interface: its limits say what a small action is.
    :param share: of the velocity limit, below which an action counts as rest.
    :param after: how long it has to rest to count as idle [s].
    """

    def __init__(self, interface: Interface, share: float = 0.02, after: float = 1.0):
        limits = interface.limits
        self._small = np.array([
            share * (getattr(limits.get(name), 'velocity', None) or 1.0)
            for name in interface.action_names])
        self._after = after
        self._moved = -np.inf

    def note(self, now: float, action: np.ndarray | None = None) -> None:
        """
        Note an action; without one, note that somebody demonstrates.

        :param now: time on a clock that never jumps [s].
        """
        if action is None or not (np.abs(action) <= self._small).all():
            self._moved = now

    def idle(self, now: float) -> bool:
        """Return whether nothing has moved for a while."""
        return now - self._moved > self._after
