"""Least, largest, mean and deviation of columns, as LeRobot keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

_EVERY = 8      # one of so many pixels each way counts, and of images one of so many


@dataclass(frozen=True, eq=False)
class Statistics:
    """
    Statistics of one feature.

    :param count: rows (of images: images) that were looked at.
    :param low: least, `(size,)`, of images `(3, 1, 1)` in 0 to 1, as the others.
    :param high: largest.
    :param mean: mean.
    :param deviation: standard deviation.
    """

    count: int
    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Statistics:
        """Return those of rows, `(rows, size)`."""
        wide = values.astype(np.float64)
        return cls(len(values), values.min(0), values.max(0), wide.mean(0), wide.std(0))

    @classmethod
    def of_images(cls, images: Iterable[np.ndarray]) -> Statistics:
        """Return those of a sample of images, uint8 `(height, width, 3)`; all are gone through."""
        looked = [image[::_EVERY, ::_EVERY].reshape(-1, 3) for number, image in enumerate(images)
                  if number % _EVERY == 0]
        made = cls.of(np.concatenate(looked) / 255.0)
        return cls(len(looked), *(part.reshape(3, 1, 1) for part in
                                  (made.low, made.high, made.mean, made.deviation)))

    def to_lists(self) -> dict[str, list]:
        """Return them as LeRobot names them."""
        return {'min': self.low.tolist(), 'max': self.high.tolist(), 'mean': self.mean.tolist(),
                'std': self.deviation.tolist(), 'count': [self.count]}


def merged(parts: Sequence[Statistics]) -> Statistics:
    """
    Return the statistics of all rows together.

    Source: Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample
    variances, 1979.
    """
    counts = np.array([part.count for part in parts], np.float64)
    weights = counts / counts.sum()
    means = np.stack([part.mean for part in parts])
    weights = weights.reshape(-1, *(1,) * (means.ndim - 1))
    mean = (weights * means).sum(0)
    square = (weights * (np.stack([part.deviation for part in parts])**2
                         + (means - mean)**2)).sum(0)
    return Statistics(int(counts.sum()), np.min([part.low for part in parts], axis=0),
                      np.max([part.high for part in parts], axis=0), mean, np.sqrt(square))
