"""
A scripted hand that steers a ball through a maze, never twice in the same way.

It knows the map, plans a way over the cells, and pushes the ball towards a point some way ahead
on it. Which way it takes where there are several, how fast it goes, how far ahead it looks (and
with that how it cuts corners), how far off the middle it keeps, how firmly it corrects and how
much it trembles are drawn anew for every episode. The way ahead is pure pursuit (Coulter,
Implementation of the pure pursuit path tracking algorithm, CMU-RI-TR-92-01).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from liquid_sim.tasks.maze import Maze

_DETOUR = 4             # cells that a way may be longer than the shortest
_TIMES_AS_RARE = 2.0    # every further pair of cells makes a way this much rarer
_TREMOR_TIME = 0.15     # s after which the hand's tremor has forgotten itself


@dataclass(frozen=True)
class Manner:
    """
    How the ball is steered in one episode.

    :param speed: [m/s].
    :param ahead: how far ahead the hand aims [m].
    :param aside: how far off the middle of the corridor it keeps, to the left [m].
    :param firmness: push for every m/s that the ball is too slow [s/m].
    :param tremor: standard deviation of what is added to the push.
    """

    speed: float
    ahead: float
    aside: float
    firmness: float
    tremor: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Manner:
        """Return a manner as people's differ."""
        return cls(speed=rng.uniform(2.4, 3.6), ahead=rng.uniform(0.35, 0.6),
                   aside=rng.uniform(-0.12, 0.12), firmness=rng.uniform(0.5, 1.2),
                   tremor=rng.uniform(0.05, 0.25))


class MazeExpert:
    """
    Steer from wherever the ball is to the goal.

    :param maze: the map.
    :param rng: of everything that differs from episode to episode.
    :param period: time between two pushes [s].
    """

    def __init__(self, maze: Maze, rng: np.random.Generator, period: float = 0.01):
        self._maze, self._rng, self._period = maze, rng, period

    def start(self, position: np.ndarray, goal: np.ndarray) -> list[tuple[int, int]]:
        """
        Choose a way and a manner, and return the way's cells.

        :param position: of the ball [m].
        :param goal: [m].
        """
        self.manner = Manner.drawn(self._rng)
        routes = self._maze.routes(self._maze.cell(position), self._maze.cell(goal), _DETOUR)
        longer = np.array([len(route) - len(routes[0]) for route in routes])
        chances = _TIMES_AS_RARE ** (-longer / 2)
        cells = routes[int(self._rng.choice(len(routes), p=chances / chances.sum()))]
        corners = [position, *(self._maze.centre(cell) for cell in cells[1:-1]), goal]
        self._line = _densely(np.array(corners))
        self._line[1:-1] += self.manner.aside * _left_of(self._line)[1:-1]
        self._reached, self._tremor = 0, np.zeros(2)
        return cells

    def push(self, position: np.ndarray, velocity: np.ndarray) -> np.ndarray:
        """
        Return what to push with, `(2,)`, each -1 to 1.

        :param position: of the ball [m].
        :param velocity: [m/s].
        """
        manner = self.manner
        # The nearest point not far ahead of the last one: the way may pass close to itself.
        near = self._line[self._reached:self._reached + 60]
        self._reached += int(np.argmin(np.linalg.norm(near - position, axis=1)))
        steps_ahead = round(manner.ahead / _SPACING)
        target = self._line[min(self._reached + steps_ahead, len(self._line) - 1)]
        offset = target - position
        distance = float(np.linalg.norm(offset))
        # Slower where the way bends: there the point ahead is nearer than it is along the way.
        speed = manner.speed * min(1.0, 0.35 + 0.65 * distance / manner.ahead)
        wanted = speed * offset / max(distance, 1e-9)
        keep = np.exp(-self._period / _TREMOR_TIME)
        self._tremor = keep * self._tremor + np.sqrt(1 - keep**2) * self._rng.normal(
            0.0, manner.tremor, 2)
        return np.clip(manner.firmness * (wanted - velocity) + self._tremor, -1.0, 1.0)


_SPACING = 0.02         # m between the points of a way


def _densely(corners: np.ndarray) -> np.ndarray:
    """Return points along a line through corners, `_SPACING` apart or less."""
    pieces = [np.linspace(a, b, max(2, int(np.ceil(np.linalg.norm(b - a) / _SPACING)) + 1))[:-1]
              for a, b in zip(corners[:-1], corners[1:], strict=True)]
    return np.concatenate((*pieces, corners[-1:]))


def _left_of(line: np.ndarray) -> np.ndarray:
    """Return at every point the unit vector to the left of the way."""
    along = np.gradient(line, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    return np.stack((-along[:, 1], along[:, 0]), 1)
