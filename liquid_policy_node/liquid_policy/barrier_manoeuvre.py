"""
Where a command leads if it is the last good one: held until the next call, then braked.

    q_i(t) = u_i (T + t') - sign(u_i) d_i t'^2 / 2,    t' = min(t, |u_i| / d_i)

for a time t after the hold T, entry by entry at its own braking deceleration d_i. A command whose
manoeuvre keeps every limit may be issued: whatever comes afterwards, carrying the manoeuvre out
keeps them too. This extends the braking distance of one joint to limits that couple joints.

The samples include every instant at which an entry comes to rest, so that on each piece between
two of them accelerations are constant (`liquid_policy.barrier_bounds` says what that is good for).

Source: backup control barrier functions, Gurriet, Mote, Singletary, Nilsson, Feron and Ames,
A scalable safety critical control framework for nonlinear systems, IEEE Access 8 (2020); for
manipulators: Pereira and Althoff, Overapproximative human arm occupancy prediction and fail-safe
trajectories, IEEE T-ASE 15 (2018).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Of the longest braking time, sampled besides the instants at which an entry comes to rest.
SHARES = np.array([0.0, 0.125, 0.25, 0.5, 0.75])


@dataclass(frozen=True, eq=False)
class Manoeuvre:
    """
    A command held and then braked, by S samples: the beginning, the end of the hold, the braking.

    :param offset: way from where the command takes effect, `(S, A)`.
    :param velocity: of each entry, `(S, A)`.
    :param gain: change of `offset` with the command, entry by entry, `(S, A)` [s].
    :param moving: whether the velocity still changes with the command, `(S, A)` bool.
    :param acceleration: on each piece between two samples, `(S - 1, A)`.
    :param duration: of the pieces, `(S - 1,)` [s].
    """

    offset: np.ndarray
    velocity: np.ndarray
    gain: np.ndarray
    moving: np.ndarray
    acceleration: np.ndarray
    duration: np.ndarray


def hold_and_brake(
    command: np.ndarray, deceleration: np.ndarray, period: float,
) -> Manoeuvre:
    """
    The manoeuvre of a command.

    :param command: speeds, 0 for entries that move nothing, `(A,)`.
    :param deceleration: of braking, above 0 and finite, `(A,)`.
    :param period: longest time T it is held [s].
    :return: its samples: beginning, end of hold, then `SHARES` of the braking time and the
        instants at which entries come to rest, in their order; `len(SHARES) + A + 1` of them.
    """
    stop = np.abs(command) / deceleration
    knots = np.concatenate([SHARES * stop.max(), stop])
    knots.sort()
    count, size = len(knots) + 1, len(command)
    signed = np.copysign(deceleration, command)
    time = np.minimum(knots[:, None], stop)
    lost = signed * time
    offset, velocity, gain = np.zeros((count, size)), np.empty((count, size)), np.zeros(
        (count, size))
    np.add(time, period, out=gain[1:])
    np.multiply(gain[1:], command, out=offset[1:])
    offset[1:] -= 0.5 * (lost * time)
    velocity[0] = command
    np.subtract(command, lost, out=velocity[1:])
    moving = np.empty((count, size), dtype=bool)
    np.less(knots[:, None], stop, out=moving[1:])
    acceleration = np.zeros((count - 1, size))
    np.multiply(moving[1:-1], -signed, out=acceleration[1:])
    moving[:2] = True
    duration = np.empty(count - 1)
    duration[0] = period
    np.subtract(knots[1:], knots[:-1], out=duration[1:])
    return Manoeuvre(offset, velocity, gain, moving, acceleration, duration)
