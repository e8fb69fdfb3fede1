"""
Where a command leads if it is the last good one: held until the next call, then braked.

    q_i(t) = u_i (T + t') - sign(u_i) d_i t'^2 / 2,    t' = min(t, |u_i| / d_i)

for a time t after the hold T, entry by entry at its own braking deceleration d_i. A command whose
manoeuvre keeps every limit may be issued: whatever comes afterwards, carrying the manoeuvre out
keeps them too. This extends the braking distance of one joint to limits that couple joints.

Source: backup control barrier functions, Gurriet, Mote, Singletary, Nilsson, Feron and Ames,
A scalable safety critical control framework for nonlinear systems, IEEE Access 8 (2020); for
manipulators: Pereira and Althoff, Overapproximative human arm occupancy prediction and fail-safe
trajectories, IEEE T-ASE 15 (2018).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHARES = np.array([0.0, 0.25, 0.5, 0.75, 1.0])   # of the braking time, sampled


@dataclass(frozen=True, eq=False)
class Manoeuvre:
    """
    Samples of a command held and then braked: the beginning, the end of the hold, the braking.

    :param offset: way from where the command takes effect, `(S, A)`.
    :param velocity: of each entry, `(S, A)`.
    :param gain: change of `offset` with the command, entry by entry, `(S, A)` [s].
    :param moving: 1 where the velocity still changes with the command, else 0, `(S, A)`.
    """

    offset: np.ndarray
    velocity: np.ndarray
    gain: np.ndarray
    moving: np.ndarray


def hold_and_brake(
    command: np.ndarray, deceleration: np.ndarray, period: float,
) -> Manoeuvre:
    """
    The manoeuvre of a command.

    :param command: speeds, 0 for entries that move nothing, `(A,)`.
    :param deceleration: of braking, above 0 and finite, `(A,)`.
    :param period: longest time T it is held [s].
    :return: its samples: beginning, end of hold, then `SHARES` of the braking time.
    """
    speed, sign = np.abs(command), np.sign(command)
    stop = speed / deceleration
    time = np.minimum(SHARES[:, None] * stop.max(), stop)
    count, size = len(SHARES) + 1, len(command)
    gain = np.zeros((count, size))
    gain[1:] = period + time
    offset = np.zeros((count, size))
    offset[1:] = sign * (speed * gain[1:] - 0.5 * deceleration * time * time)
    velocity = np.empty((count, size))
    velocity[0] = command
    velocity[1:] = sign * (speed - deceleration * time)
    moving = np.ones((count, size))
    moving[1:] = time < stop
    moving[1] = 1.0
    return Manoeuvre(offset, velocity, gain, moving)
