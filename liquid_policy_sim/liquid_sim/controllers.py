"""What the robot's controllers do with commands: check them, hold them, brake when they stop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class _Input:
    """
    One command topic.

    :param place: where its values stand in the whole command.
    :param moving: whether silence brakes it; a gripper keeps what it holds instead.
    """

    place: slice
    moving: bool
    values: np.ndarray
    received: float = -np.inf
    fresh: bool = False
    late: bool = False


class Controllers:
    """
    The controllers of arm, gripper and base, as `ros2_control` has them.

    A command holds until the next one, but no longer than the timeout: then arm and base are
    braked to a standstill by their velocity servos. The gripper keeps its suction, since letting
    go is no safe state. A command of the wrong size or with a value that is not finite is refused
    and counts as none. Before the first command everything stands still and suction is off.

    :param sizes: number of values by name, in the order of the whole command.
    :param timeout: how long a command holds [s].
    :param holding: names that silence does not brake.
    """

    def __init__(self, sizes: dict[str, int], timeout: float,
                 holding: tuple[str, ...] = ('gripper',)) -> None:
        if not timeout > 0:
            raise ValueError(f'timeout: expected more than 0 s, got {timeout}')
        self._timeout = timeout
        self._inputs: dict[str, _Input] = {}
        start = 0
        for name, size in sizes.items():
            self._inputs[name] = _Input(slice(start, start + size), name not in holding,
                                        np.zeros(size))
            start += size
        self._size = start

    def accept(self, name: str, values, now: float) -> None:
        """
        Take a command.

        :param name: whose.
        :param values: velocities [rad/s, m/s] or suction level.
        :param now: when it came [s].
        :raises ValueError: for another number of values or one that is not finite.
        """
        target = self._inputs[name]
        values = np.array(values, float)
        if values.shape != target.values.shape:
            raise ValueError(f'{name} command: expected {target.values.size} values, got '
                             f'{values.size}; command ignored')
        if not np.isfinite(values).all():
            raise ValueError(f'{name} command: expected finite values, got {values.tolist()}; '
                             'command ignored')
        target.values, target.received, target.fresh = values, now, True

    def command(self, now: float) -> np.ndarray:
        """
        Return what the servos are told.

        :param now: [s], the clock of `accept`.
        :return: whole command, `(sum of sizes,)`.
        """
        whole = np.zeros(self._size)
        for target in self._inputs.values():
            # The time of a command is a tick's; rounding must not make it a tick older.
            target.late = now - target.received > self._timeout + 1e-9
            if not (target.late and target.moving):
                whole[target.place] = target.values
            target.fresh = False
        return whole

    @property
    def answered(self) -> bool:
        """Return whether every controller got a command since the last `command`."""
        return all(target.fresh for target in self._inputs.values())

    def driven(self, name: str) -> bool:
        """
        Return whether a controller ever got a command.

        :param name: which.
        """
        return bool(np.isfinite(self._inputs[name].received))

    @property
    def braked(self) -> tuple[str, ...]:
        """Return the names that were braked at the last `command` after having been driven."""
        return tuple(name for name, target in self._inputs.items()
                     if target.late and target.moving and np.isfinite(target.received))
