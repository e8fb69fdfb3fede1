"""
A scripted hand that brings the can to its place, never twice in the same way.

It goes through the same stages as a person at a space mouse: over the can, down, grip, up, across,
down, let go. How fast, how high, from which side, where on the can, where in the bin, how firmly
and how shakily, and where it hesitates are drawn anew for every episode.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

OPEN, CLOSED = -1.0, 1.0
_STEP = 0.05                # m that an action of 1 asks for
_TURN = 0.5                 # rad, likewise
_TREMOR_TIME = 0.4          # s after which the hand's tremor has forgotten itself
_PERIOD = 0.05              # s
_STILL = 0.003              # m in a step below which the hand as good as rests
_BEGINNING = 15             # steps of a stage in which it may do so
_PATIENCE = 4               # steps of rest after which the next stage begins in any case


@dataclass(frozen=True)
class Manner:
    """
    How the can is brought over in one episode.

    :param pace: largest action, 0 to 1.
    :param firmness: share of the way to the next goal that one action asks for.
    :param tremor: standard deviation of what is added to movements.
    :param above: how far above the can the hand arrives [m].
    :param off: where it arrives beside the can's middle [m], `(2,)`.
    :param hold: where it grips, above the can's middle [m].
    :param yaw: how far the hand is turned about the vertical [rad].
    :param lift: height to which the can is carried [m].
    :param place: where it is let go, beside the middle of its place [m], `(2,)`.
    :param drop: height above the floor of the bin where it is let go [m].
    :param squeeze: steps that gripping takes.
    :param pauses: steps of hesitation at the start, over the can and over its place.
    """

    pace: float
    firmness: float
    tremor: float
    above: float
    off: np.ndarray
    hold: float
    yaw: float
    lift: float
    place: np.ndarray
    drop: float
    squeeze: int
    pauses: tuple[int, ...]

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Manner:
        """Return a manner as people's differ."""
        return cls(
            pace=rng.uniform(0.55, 1.0), firmness=rng.uniform(0.6, 1.0),
            tremor=rng.uniform(0.02, 0.10), above=rng.uniform(0.06, 0.14),
            off=rng.normal(0.0, 0.012, 2), hold=rng.uniform(0.004, 0.025),
            yaw=rng.normal(0.0, 0.15), lift=rng.uniform(1.01, 1.06),
            place=rng.uniform(-0.06, 0.02, 2), drop=rng.uniform(0.10, 0.16),
            squeeze=int(rng.integers(6, 11)),
            pauses=tuple(int(n) for n in rng.geometric(0.5, 3) - 1))


class CanExpert:
    """
    Bring the can to its place.

    :param target: the middle of its place, `(3,)` [m].
    :param rng: of everything that differs from episode to episode.
    """

    def __init__(self, target: np.ndarray, rng: np.random.Generator):
        self._target, self._rng, self.manner = target, rng, Manner.drawn(rng)
        self._stage, self._waited, self._spent = 0, 0, 0
        self._still, self._hand, self._tremor = 0, np.zeros(3), np.zeros(6)

    def act(self, hand: np.ndarray, turned: np.ndarray, can: np.ndarray) -> np.ndarray:
        """
        Return movement, turn and grip, `(7,)`, each -1 to 1.

        :param hand: position between the fingers [m], `(3,)`.
        :param turned: the hand's rotation, `(3, 3)`.
        :param can: middle of the can [m], `(3,)`.
        """
        manner = self.manner
        goal, grip, near, wait = self._stages(can)[self._stage]
        offset = goal - hand
        self._spent += 1
        self._waited += int(np.linalg.norm(offset) < near)
        # The arm's controller stops a little short where it is stretched. Who waits there teaches
        # waiting: nothing in what is seen then says when to go on.
        moved = np.linalg.norm(hand - self._hand)
        self._still = self._still + 1 if moved < _STILL and self._spent > _BEGINNING else 0
        self._hand = hand
        arrived = self._waited > wait or self._still >= _PATIENCE
        if arrived and self._stage < 6:
            self._stage, self._waited, self._spent, self._still = self._stage + 1, 0, 0, 0
        move = manner.firmness * offset / _STEP
        move *= min(1.0, manner.pace / max(float(np.abs(move).max()), 1e-9))
        turn = 0.5 * manner.firmness * self._turn(turned) / _TURN
        keep = np.exp(-_PERIOD / _TREMOR_TIME)
        self._tremor = keep * self._tremor + np.sqrt(1 - keep**2) * self._rng.normal(
            0.0, manner.tremor, 6)
        asked = np.concatenate((move, np.clip(turn, -0.3, 0.3))) + self._tremor * (
            1.0, 1.0, 1.0, 0.3, 0.3, 0.3)
        return np.append(np.clip(asked, -1.0, 1.0), grip)

    def _stages(self, can: np.ndarray) -> list[tuple[np.ndarray, float, float, int]]:
        """Return for every stage where to go, the grip, how near is there, and steps to wait."""
        manner = self.manner
        if self._stage < 3:
            self._gripped = can[:2].copy()
        held = can + (0.0, 0.0, manner.hold)
        over = can + (*manner.off, manner.above)
        place = self._target + (*manner.place, 0.0)
        up = np.array([*self._gripped, manner.lift])
        return [(over, OPEN, 0.03, manner.pauses[0]),
                (held, OPEN, 0.015, manner.pauses[1]),
                (held, CLOSED, 0.03, manner.squeeze),
                (up, CLOSED, 0.05, 0),
                (np.array([*place[:2], manner.lift]), CLOSED, 0.07, manner.pauses[2]),
                (place + (0.0, 0.0, manner.drop), CLOSED, 0.04, 0),
                (place + (0.0, 0.0, manner.lift - self._target[2]), OPEN, 0.0, 0)]

    def _turn(self, turned: np.ndarray) -> np.ndarray:
        """Return the rotation vector to the hand pointing down, turned by the manner's yaw."""
        sine, cosine = np.sin(self.manner.yaw), np.cos(self.manner.yaw)
        wanted = np.array([[cosine, sine, 0.0], [sine, -cosine, 0.0], [0.0, 0.0, -1.0]])
        # For small angles: half the sum of cross products of the axes.
        return 0.5 * np.cross(turned.T, wanted.T).sum(0)
