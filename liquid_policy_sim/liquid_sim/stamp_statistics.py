"""
Arithmetic on time stamps: rates, gaps, losses, who answered whom, values at other times.

Every function has a known answer to test against. Stamps are in nanoseconds on one clock.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from liquid_sim.run_record import NANOSECONDS, Series


@dataclass(frozen=True)
class Spread:
    """
    How a quantity is spread.

    :param count: number of values that were finite.
    :param p50: median; NaN without values.
    :param p99: 99th percentile; NaN without values.
    :param highest: largest; NaN without values.
    """

    count: int
    p50: float
    p99: float
    highest: float


def spread(values: np.ndarray) -> Spread:
    """
    Return median, 99th percentile and maximum of the finite values.

    Percentiles interpolate linearly between the neighbouring values.

    :param values: any unit, `(N,)`.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not values.size:
        return Spread(0, np.nan, np.nan, np.nan)
    p50, p99 = np.percentile(values, [50, 99])
    return Spread(values.size, float(p50), float(p99), float(values.max()))


def rate(stamps: np.ndarray) -> float:
    """
    Return the mean rate [1/s] over the time between the first and last message.

    :param stamps: [ns], `(N,)`.
    :return: NaN with fewer than two messages or no time between them.
    """
    stamps = np.asarray(stamps, np.int64)
    if stamps.size < 2 or stamps.max() == stamps.min():
        return float('nan')
    return (stamps.size - 1) * NANOSECONDS / float(stamps.max() - stamps.min())


def longest_gap(stamps: np.ndarray) -> float:
    """
    Return the longest time between two neighbouring messages [s].

    :param stamps: [ns], `(N,)`, any order.
    :return: NaN with fewer than two messages.
    """
    if len(stamps) < 2:
        return float('nan')
    return float(np.diff(np.sort(stamps)).max()) / NANOSECONDS


def lost_by_stamps(stamps: np.ndarray) -> int | None:
    """
    Count messages of a periodic topic that are missing between those that came.

    The period is the median distance of the stamps; a distance of n periods (rounded) is n - 1
    missing messages; stamps may jitter by a quarter of the period. Losses before the first and
    after the last message cannot be seen.

    :param stamps: [ns], `(N,)`, any order.
    :return: None if the topic is not periodic: with fewer than three messages, or when more than
        one in five distances is no multiple of the period.
    """
    if len(stamps) < 3:
        return None
    distances = np.diff(np.sort(np.asarray(stamps, np.int64)))
    period = float(np.median(distances))
    if period <= 0:
        return None
    off = np.abs(distances / period - np.maximum(np.rint(distances / period), 1))
    # A 30 Hz camera on a 100 Hz clock comes after 30, 30 and 40 ms: a third off is still periodic.
    if np.mean(off > 0.4) > 0.2:
        return None
    return int(np.maximum(np.rint(distances / period) - 1, 0).sum())


def lost_by_count(stamps: np.ndarray, counts: list[tuple[int, int]]) -> int | None:
    """
    Count messages that were published but not recorded.

    :param stamps: stamps of the recorded messages [ns], `(N,)`.
    :param counts: (stamp [ns], messages published with stamps up to there) from the publisher.
    :return: messages lost between the first and last count; None with fewer than two counts.
    """
    if len(counts) < 2:
        return None
    (first, before), (last, after) = counts[0], counts[-1]
    recorded = int(np.count_nonzero((stamps > first) & (stamps <= last)))
    return max(after - before - recorded, 0)


def first_response(causes: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Return for each cause the first answer that names it.

    :param causes: stamp of the cause behind each answer [ns], 0 for none, `(N,)`.
    :param answers: time of each answer [ns], `(N,)`.
    :return: distinct causes in order, and the earliest answer to each, both `(M,)` [ns].
    """
    causes, answers = np.asarray(causes, np.int64), np.asarray(answers, np.int64)
    known = causes > 0
    causes, answers = causes[known], answers[known]
    order = np.lexsort((answers, causes))
    causes, answers = causes[order], answers[order]
    first = np.ones(causes.size, bool)
    first[1:] = causes[1:] != causes[:-1]
    return causes[first], answers[first]


def matched(stamps: np.ndarray, wanted: np.ndarray, values: np.ndarray) -> np.ndarray:
    """
    Return the value that carries each wanted stamp.

    :param stamps: stamp of each value, `(N,)` int64; the first of equal stamps counts.
    :param wanted: stamps to look for, `(M,)` int64.
    :param values: `(N,)`.
    :return: `(M,)` float64, NaN where no value carries the stamp.
    """
    result = np.full(len(wanted), np.nan)
    if not len(stamps):
        return result
    order = np.argsort(stamps, kind='stable')
    ordered = np.asarray(stamps)[order]
    place = np.minimum(np.searchsorted(ordered, wanted), ordered.size - 1)
    found = ordered[place] == wanted
    result[found] = np.asarray(values, float)[order][place[found]]
    return result


def interpolated(series: Series, stamps: np.ndarray, furthest: float) -> np.ndarray:
    """
    Return a series at other times, linearly between its samples.

    :param series: `(N, D)`.
    :param stamps: wanted times [ns], `(M,)`.
    :param furthest: two samples further apart than this [s] do not belong together.
    :return: `(M, D)`, NaN outside the series and in its gaps.
    """
    result = np.full((len(stamps), len(series.names)), np.nan)
    if not len(series) or not len(stamps):
        return result
    order = np.argsort(series.stamps, kind='stable')
    times, values = series.stamps[order], series.values[order]
    later = np.searchsorted(times, stamps)
    inside = later < times.size
    later = np.minimum(later, times.size - 1)
    exact = inside & (times[later] == stamps)
    result[exact] = values[later[exact]]
    between = inside & ~exact & (later > 0)
    before = later[between] - 1
    span = (times[later[between]] - times[before]).astype(float)
    share = (stamps[between] - times[before]) / span
    mixed = values[before] + share[:, None] * (values[before + 1] - values[before])
    mixed[span > furthest * NANOSECONDS] = np.nan
    result[between] = mixed
    return result
