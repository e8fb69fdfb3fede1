"""Plots as plain data that the script of `liquid_trainer.page` draws."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BLUE, ORANGE, GREEN, GREY = '#2464d6', '#e07a1f', '#14885a', '#9aa7b4'
RED, PURPLE = '#c4322b', '#8a4fbf'
# Paul Tol's bright scheme and neighbours: told apart by colour-blind readers too.
PALETTE = ('#4477aa', '#ee6677', '#228833', '#ccbb44', '#66ccee', '#aa3377', '#bbbbbb', '#222222')
# A screen shows about 1300 pixels across; twice that keeps peaks when zoomed a little.
MOST_POINTS = 6000


def packed(values: np.ndarray) -> str:
    """
    Return numbers as base64 of little-endian float32, the form the page reads.

    :param values: `(N,)`.
    """
    return base64.b64encode(np.ascontiguousarray(values, '<f4').tobytes()).decode('ascii')


def thinned(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray,
                                                                            np.ndarray]:
    """
    Return fewer points that draw the same line: lowest and highest of each bucket.

    :param x: `(N,)` in order.
    :param y: `(N,)`.
    :param most: N from which on points are left out.
    :return: x and y, at most `most` points; NaN is kept where a whole bucket is NaN.
    """
    if len(x) <= most:
        return x, y
    buckets = np.array_split(np.arange(len(x)), most // 2)
    kept = []
    for bucket in buckets:
        values = y[bucket]
        if np.isnan(values).all():
            kept.append(bucket[:1])
            continue
        kept.append(np.unique([bucket[np.nanargmin(values)], bucket[np.nanargmax(values)]]))
    index = np.concatenate(kept)
    return x[index], y[index]


def line(name: str, x: np.ndarray, y: np.ndarray, color: str, **more: Any) -> dict[str, Any]:
    """
    Return one line of a plot.

    :param name: shown in the legend; empty for none.
    :param x: `(N,)`, [s] in plots over time.
    :param y: `(N,)`.
    :param color: CSS colour.
    :param more: `width`, `dash`, `step` (values hold until the next), `dots`.
    """
    order = np.argsort(x, kind='stable')
    x, y = thinned(np.asarray(x, float)[order], np.asarray(y, float)[order])
    return {'name': name, 'color': color, 'x': packed(x), 'y': packed(y), **more}


def area(name: str, x: np.ndarray, low: np.ndarray, high: np.ndarray, color: str) -> dict:
    """
    Return a filled area between two lines.

    :param name: shown in the legend.
    :param x: `(N,)`.
    :param low: lower edge, `(N,)`.
    :param high: upper edge, `(N,)`.
    :param color: CSS colour.
    """
    skip = max(1, len(x) // MOST_POINTS)
    return {'name': name, 'color': color, 'x': packed(x[::skip]), 'y': packed(low[::skip]),
            'high': packed(high[::skip])}


def spans(stamps: np.ndarray, inside: np.ndarray, longest: float = 0.1) -> list[list[float]]:
    """
    Return the times during which something held.

    :param stamps: [s], `(N,)` in order.
    :param inside: whether it held, `(N,)` bool; each sample holds until the next.
    :param longest: a sample holds for at most this long [s].
    :return: pairs of begin and end [s].
    """
    found: list[list[float]] = []
    for index in np.flatnonzero(inside):
        begin = float(stamps[index])
        end = begin + longest
        if index + 1 < len(stamps):
            end = min(end, float(stamps[index + 1]))
        if found and begin - found[-1][1] < 1e-6:
            found[-1][1] = round(end, 4)
        else:
            found.append([round(begin, 4), round(end, 4)])
    return found


def lanes(title: str, rows: Mapping[str, Sequence[Sequence[float]]], colors: Sequence[str] = (),
          left: int = 220) -> dict[str, Any]:
    """
    Return a plot over time with a row per name, filled when something was there.

    :param rows: pairs of begin and end [s] by name.
    :param colors: CSS colour of each row; blue where left out.
    :param left: room for the names [pixels].
    """
    chosen = [*colors, *[BLUE] * (len(rows) - len(colors))]
    return {'kind': 'lanes', 'title': title, 'unit': '', 'left': left, 'limits': [0, 1],
            'height': 26 + 17 * len(rows), 'series': [
                {'name': name, 'color': color, 'spans': [[float(a), float(b)] for a, b in some]}
                for (name, some), color in zip(rows.items(), chosen, strict=True)]}


def histogram(title: str, unit: str, values: np.ndarray, bins: int = 40,
              color: str = BLUE) -> dict[str, Any]:
    """
    Return how often values fall into equal steps, as a share.

    :param values: finite ones are counted, `(N,)`.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if not high > low:
        room = max(1e-3, 0.05 * abs(low))
        low, high = low - room, high + room
    counts, edges = np.histogram(values, bins, (low, high))
    share = np.append(counts / max(values.size, 1) * 100, 0.0)
    return {'kind': 'bars', 'title': title, 'unit': unit, 'axis': '', 'floor': 0,
            'range': [low, high], 'series': [
                {'name': '', 'color': color, 'x': packed(edges), 'y': packed(share)}]}


def scatter(title: str, unit: str, groups: Mapping[str, tuple[np.ndarray, np.ndarray]],
            colors: Sequence[str] = PALETTE, size: int = 3, height: int = 260) -> dict[str, Any]:
    """
    Return points in a plane.

    :param groups: x and y, each `(N,)`, by name of the group; empty names stay out of the legend.
    :param colors: CSS colour of each group, from the first again when there are more groups.
    :param size: of a point [pixels].
    """
    every = np.concatenate([np.asarray(x, float) for x, _ in groups.values()] or [np.zeros(1)])
    every = every[np.isfinite(every)]
    low, high = (float(every.min()), float(every.max())) if every.size else (0.0, 1.0)
    room = 0.04 * (high - low) or 1.0
    return {'kind': 'scatter', 'title': title, 'unit': unit, 'axis': '', 'height': height,
            'range': [low - room, high + room], 'series': [
                {'name': name, 'color': colors[index % len(colors)], 'dots': True, 'size': size,
                 'x': packed(x), 'y': packed(y)}
                for index, (name, (x, y)) in enumerate(groups.items())]}


def curve(title: str, unit: str, axis: str, series: Sequence[dict[str, Any]],
          limits: tuple[float, float], **more: Any) -> dict[str, Any]:
    """
    Return lines over something other than time.

    :param axis: unit behind the numbers of the horizontal axis.
    :param series: from `line`.
    :param limits: of the horizontal axis.
    """
    return {'kind': 'curve', 'title': title, 'unit': unit, 'axis': axis,
            'range': [float(limits[0]), float(limits[1])], 'series': list(series), **more}
