"""
Signed distances to convex bodies, with their gradients, for many points at once.

The signed distance to a convex body is a convex function, so it lies above each of its tangents;
between two samples of a path it lies above the higher of both tangents, which `lowest_between`
uses to speak of every instant and not of the samples only.

Source: Boyd and Vandenberghe, Convex Optimization, sections 3.1.3 and 3.2.5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from liquid_policy.safety_spec import ObstacleSpec


class Shapes:
    """Obstacles grouped by shape, so that each shape costs one computation."""

    def __init__(self, obstacles: Sequence[ObstacleSpec]) -> None:
        """
        Group them.

        :param obstacles: in the order of the results.
        """
        def of(kind: str) -> list[int]:
            return [i for i, item in enumerate(obstacles) if item.shape == kind]

        def column(places: list[int], key: str) -> np.ndarray:
            return np.array([getattr(obstacles[i], key) for i in places], dtype=float)

        self.count = len(obstacles)
        self._planes, self._boxes = of('plane'), of('box')
        self._normal = column(self._planes, 'normal').reshape(-1, 3)
        self._offset = column(self._planes, 'offset').reshape(-1, 1)
        self._center = column(self._boxes, 'center').reshape(-1, 1, 3)
        self._half = column(self._boxes, 'half').reshape(-1, 1, 3)
        # a sphere is a capsule without length
        round_ones = [i for i, item in enumerate(obstacles) if item.shape in ('sphere', 'capsule')]
        self._round = round_ones
        self._start = np.array([
            obstacles[i].start or obstacles[i].center for i in round_ones], dtype=float,
        ).reshape(-1, 1, 3)
        end = np.array([
            obstacles[i].end or obstacles[i].center for i in round_ones], dtype=float,
        ).reshape(-1, 1, 3)
        self._radius = column(round_ones, 'radius').reshape(-1, 1)
        self._axis = end - self._start
        self._axis_over_square = self._axis / np.maximum(
            (self._axis ** 2).sum(axis=-1, keepdims=True), 1e-300)

    def distance(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Signed distance of each point to each body, negative inside, and its gradient.

        :param points: `(N, 3)` [m].
        :return: distances `(O, N)` [m] and unit gradients `(O, N, 3)`.
        """
        distance = np.empty((self.count, len(points)))
        normal = np.empty((self.count, len(points), 3))
        if self._planes:
            distance[self._planes] = self._normal @ points.T - self._offset
            normal[self._planes] = self._normal[:, None, :]
        if self._round:
            away = points - self._start
            along = (away * self._axis_over_square).sum(axis=-1)
            away = away - np.minimum(np.maximum(along, 0.0), 1.0)[..., None] * self._axis
            length = np.sqrt((away * away).sum(axis=-1))
            distance[self._round] = length - self._radius
            normal[self._round] = _unit(away, length)
        if self._boxes:
            away = points - self._center
            beyond = np.abs(away) - self._half
            outside = np.maximum(beyond, 0.0)
            length = np.sqrt((outside * outside).sum(axis=-1))
            deepest = beyond.max(axis=-1)
            distance[self._boxes] = length + np.minimum(deepest, 0.0)
            inward = (beyond == deepest[..., None]).astype(float)
            direction = np.where((length > 0.0)[..., None], outside, inward)
            direction *= np.sign(away) + (away == 0.0)
            normal[self._boxes] = _unit(direction, np.sqrt((direction ** 2).sum(axis=-1)))
        return distance, normal


def _unit(vector: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Return unit vectors; upwards where there is no length."""
    good = length > 0.0
    up = np.array([0.0, 0.0, 1.0])
    return np.where(good[..., None], vector / np.where(good, length, 1.0)[..., None], up)


def lowest_between(
    distance: np.ndarray, normal: np.ndarray, points: np.ndarray, bend: np.ndarray | None = None,
) -> np.ndarray:
    """
    A lower bound of the signed distances anywhere on each piece of a path.

    Straight pieces: the higher of the tangents at both ends, exact for planes. A curved piece
    leaves its chord at the share x by at most 4 s x (1 - x), s its sagitta
    (`liquid_policy.barrier_bounds`). With the tangent's slope m >= 0 along the chord, first + m x
    - 4 s x (1 - x) is nowhere lower than first - (4 s - m)^2 / (16 s), and than first where
    m >= 4 s.

    :param distance: at S samples of P points, `(O, S, P)` [m].
    :param normal: its gradients, `(O, S, P, 3)`.
    :param points: the samples, `(S, P, 3)` [m].
    :param bend: greatest sagitta of each piece, `(S - 1, P)` [m]; None: straight.
    :return: for each piece, `(O, S - 1, P)` [m].
    """
    step = points[1:] - points[:-1]
    first, second = distance[:, :-1], distance[:, 1:]
    out = (normal[:, :-1] * step).sum(axis=-1)
    back = (normal[:, 1:] * step).sum(axis=-1)
    turn = np.where(back > out, back - out, 1.0)
    middle = first + out * (first - second + back) / turn
    lowest = np.where(out >= 0.0, first, np.where(back <= 0.0, second, middle))
    if bend is not None:
        fall = 4.0 * bend
        scale = 4.0 * np.maximum(fall, 1e-300)
        lowest = np.where(
            out >= 0.0, first - np.maximum(fall - out, 0.0) ** 2 / scale, np.where(
                back <= 0.0, second - np.maximum(fall + back, 0.0) ** 2 / scale,
                middle - bend))
    return lowest
