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
from functools import cached_property

import numpy as np

# Of the longest braking time, sampled besides the instants at which an entry comes to rest.
SHARES = np.array([0.0, 0.0625, 0.125, 0.25, 0.5])


@dataclass(eq=False, slots=True)
class Manoeuvre:
    """
    A command held and then braked, by S samples: the beginning, the end of the hold, the braking.

    :param offset: way from where the command takes effect, `(S, A)`.
    :param velocity: of each entry, `(S, A)`.
    :param acceleration: on each piece, from each sample to the next; 0 from the last one on,
        `(S, A)`.
    :param duration: of the pieces, `(S - 1,)` [s].
    :param braked: for how long an entry has been braked, from the end of the hold on,
        `(S - 1, A)` [s].
    :param sizes: of speeds at the beginning of each piece and of its accelerations,
        `(2, S - 1, A)`.
    """

    offset: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    duration: np.ndarray
    braked: np.ndarray
    sizes: np.ndarray

    def gain(self, sample: int) -> np.ndarray:
        """
        Change of `offset` with the command at a sample, entry by entry.

        :param sample: any but the first, where it is 0.
        :return: `(A,)` [s].
        """
        return self.duration[0] + self.braked[sample - 1]


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
    size, shares = len(command), len(SHARES)
    count = shares + size + 1
    knots = np.empty(count - 1)
    np.multiply(SHARES, np.maximum.reduce(stop), out=knots[:shares])
    knots[shares:] = stop
    knots.sort()
    column = knots[:, None]
    braked = np.minimum(column, stop)
    samples = np.empty((3, count, size))
    offset, velocity, acceleration = samples
    velocity[0] = command
    slowed = velocity[1:]
    np.multiply(braked, signed, out=slowed)
    np.subtract(command, slowed, out=slowed)
    # the mean of both speeds for that long, after the hold
    way = offset[1:]
    np.add(slowed, command, out=way)
    way *= braked
    way *= 0.5
    way += command * period
    offset[0] = acceleration[0] = 0.0
    np.multiply(column < stop, -signed, out=acceleration[1:])
    duration = np.empty(count - 1)
    duration[0] = period
    np.subtract(knots[1:], knots[:-1], out=duration[1:])
    return Manoeuvre(
        offset, velocity, acceleration, duration, braked, np.abs(samples[1:, :-1]))


class Plan:
    """Where a command leads: how far in all, and by samples if it is asked."""

    def __init__(self, moving: np.ndarray, deceleration: np.ndarray, period: float) -> None:
        """
        Reckon the way.

        :param moving: speeds, 0 for entries that move nothing, `(A,)`.
        :param deceleration: of braking, above 0 and finite, `(A,)`.
        :param period: longest time the speeds are held [s].
        """
        self.moving, self.deceleration, self.period = moving, deceleration, period
        self.speed = np.abs(moving)
        self.end = moving * (period + 0.5 / deceleration * self.speed)
        self.way = np.abs(self.end)   # in all, `(A,)`

    @cached_property
    def manoeuvre(self) -> Manoeuvre:
        """Its samples."""
        return hold_and_brake(self.moving, self.deceleration, self.period)


def finer(manoeuvre: Manoeuvre, parts: int) -> Manoeuvre:
    """
    The same manoeuvre with every piece cut into equal parts.

    :param manoeuvre: as `hold_and_brake` gives it.
    :param parts: 1 or more.
    :return: without `braked`, which is that of the samples of `hold_and_brake`.
    """
    share = np.arange(parts)[:, None] / parts
    time = share * manoeuvre.duration[:, None, None]          # (N, parts, 1)
    speed, slowing = manoeuvre.velocity[:-1, None], manoeuvre.acceleration[:-1, None]
    size = manoeuvre.offset.shape[1]

    def whole(parts_of_pieces: np.ndarray, last: np.ndarray) -> np.ndarray:
        return np.concatenate([parts_of_pieces.reshape(-1, size), last[None]])

    velocity = whole(speed + slowing * time, manoeuvre.velocity[-1])
    acceleration = np.repeat(manoeuvre.acceleration, parts, axis=0)[:len(velocity)]
    return Manoeuvre(
        whole(manoeuvre.offset[:-1, None] + (speed + 0.5 * slowing * time) * time,
              manoeuvre.offset[-1]), velocity, acceleration,
        np.repeat(manoeuvre.duration / parts, parts), np.zeros((0, size)),
        np.abs([velocity[:-1], acceleration[:-1]]))
