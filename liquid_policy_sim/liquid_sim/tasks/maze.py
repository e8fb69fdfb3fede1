"""Mazes of square cells: where one can go, and which ways lead somewhere."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

Cell = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Maze:
    """
    A maze with walls and free cells of 1 m, its middle at the origin, x to the right, y up.

    :param walls: true where a wall stands, `(rows, columns)`, the topmost row first.
    """

    walls: np.ndarray
    _distances: dict[Cell, dict[Cell, int]] = field(init=False, repr=False)

    def __post_init__(self):
        walls = np.asarray(self.walls, bool)
        if walls.ndim != 2 or walls.all():
            raise ValueError(f'walls: expected rows and columns with a free cell, came {walls}')
        object.__setattr__(self, 'walls', walls)
        object.__setattr__(self, '_distances', {})

    @classmethod
    def of(cls, rows: Sequence[Sequence[int | str]]) -> Maze:
        """Return the maze of a map in which 1 is a wall and all else is free."""
        return cls(np.array([[cell == 1 for cell in row] for row in rows]))

    def cell(self, point: np.ndarray) -> Cell:
        """Return row and column of a point [m]."""
        rows, columns = self.walls.shape
        return math.floor(rows / 2 - point[1]), math.floor(point[0] + columns / 2)

    def centre(self, cell: Cell) -> np.ndarray:
        """Return a cell's middle [m]."""
        rows, columns = self.walls.shape
        return np.array([cell[1] + 0.5 - columns / 2, rows / 2 - cell[0] - 0.5])

    def neighbours(self, cell: Cell) -> list[Cell]:
        """Return the free cells beside a cell."""
        rows, columns = self.walls.shape
        beside = [(cell[0] + down, cell[1] + right)
                  for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0))]
        return [(i, j) for i, j in beside
                if 0 <= i < rows and 0 <= j < columns and not self.walls[i, j]]

    def distances(self, goal: Cell) -> dict[Cell, int]:
        """Return how many cells away from a goal every cell is from which it can be reached."""
        if goal not in self._distances:
            found, waiting = {goal: 0}, deque([goal])
            while waiting:
                cell = waiting.popleft()
                for beside in self.neighbours(cell):
                    if beside not in found:
                        found[beside] = found[cell] + 1
                        waiting.append(beside)
            self._distances[goal] = found
        return self._distances[goal]

    def routes(self, start: Cell, goal: Cell, detour: int = 0) -> list[list[Cell]]:
        """
        Return all ways that visit no cell twice, from start to goal.

        :param detour: how many cells longer than the shortest way they may be.
        :raises ValueError: if there is none.
        """
        remaining = self._remaining(start, goal)
        longest, found, unfinished = remaining[start] + detour, [], [[start]]
        while unfinished:
            way = unfinished.pop()
            if way[-1] == goal:
                found.append(way)
                continue
            unfinished += [[*way, beside] for beside in self.neighbours(way[-1])
                           if beside not in way and len(way) + remaining[beside] <= longest]
        return sorted(found, key=len)

    def way_to_go(self, point: np.ndarray, goal: np.ndarray) -> float:
        """
        Return the length of a shortest way between two points, along middles of cells [m].

        :raises ValueError: if there is none.
        """
        remaining = self._remaining(self.cell(point), self.cell(goal))
        way = [self.cell(point)]
        while remaining[way[-1]]:
            way.append(min(self.neighbours(way[-1]), key=lambda cell: remaining[cell]))
        corners = np.array([point, *(self.centre(cell) for cell in way[1:-1]), goal])
        return float(np.linalg.norm(np.diff(corners, axis=0), axis=1).sum())

    def _remaining(self, start: Cell, goal: Cell) -> dict[Cell, int]:
        remaining = self.distances(goal)
        if start not in remaining:
            raise ValueError(f'start: expected a cell from which {goal} can be reached, came '
                             f'{start}')
        return remaining
