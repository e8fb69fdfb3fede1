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
SHARES = np.array([0.0, 0.0625, 0.125, 0.25, 0.5])


@dataclass(eq=False, slots=True)
class Manoeuvre:
    """
    A command held and then braked, by S samples: the beginning, the end of the hold, the braking.

    :param offset: way from where the command takes effect, `(S, A)`.
    :param velocity: of each entry, `(S, A)`.
    :param gain: change of `offset` with the command, entry by entry, `(S, A)` [s].
    :param moving: whether an entry still moves, at the samples of the braking, `(S - 1, A)` bool.
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
    signed = np.copysign(deceleration, command)
    stop = command / signed
    knots = np.concatenate([SHARES * np.maximum.reduce(stop), stop])
    knots.sort()
    count, size = len(knots) + 1, len(command)
    time = np.minimum(knots[:, None], stop)
    lost = signed * time
    offset, velocity, gain = np.empty((3, count, size))
    gain[0] = offset[0] = 0.0
    np.add(time, period, out=gain[1:])
    np.multiply(gain[1:], command, out=offset[1:])
    time *= lost
    time *= 0.5
    offset[1:] -= time
    velocity[0] = command
    np.subtract(command, lost, out=velocity[1:])
    moving = knots[:, None] < stop
    acceleration = np.empty((count - 1, size))
    acceleration[0] = 0.0
    np.multiply(moving[:-1], -signed, out=acceleration[1:])
    duration = np.empty(count - 1)
    duration[0] = period
    np.subtract(knots[1:], knots[:-1], out=duration[1:])
    return Manoeuvre(offset, velocity, gain, moving, acceleration, duration)


def finer(manoeuvre: Manoeuvre, parts: int) -> Manoeuvre:
    """
    The same manoeuvre with every piece cut into equal parts.

    :param manoeuvre: as `hold_and_brake` gives it.
    :param parts: 1 or more.
    """
    share = np.arange(parts)[:, None] / parts
    time = share * manoeuvre.duration[:, None, None]          # (N, parts, 1)
    speed, slowing = manoeuvre.velocity[:-1, None], manoeuvre.acceleration[:, None]
    size = manoeuvre.offset.shape[1]

    def whole(parts_of_pieces: np.ndarray, last: np.ndarray) -> np.ndarray:
        return np.concatenate([parts_of_pieces.reshape(-1, size), last[None]])

    return Manoeuvre(
        whole(manoeuvre.offset[:-1, None] + (speed + 0.5 * slowing * time) * time,
              manoeuvre.offset[-1]),
        whole(speed + slowing * time, manoeuvre.velocity[-1]),
        np.repeat(manoeuvre.gain, parts, axis=0)[parts - 1:],
        np.repeat(manoeuvre.moving, parts, axis=0),
        np.repeat(manoeuvre.acceleration, parts, axis=0),
        np.repeat(manoeuvre.duration / parts, parts))
