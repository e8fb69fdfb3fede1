"""What a camera saw in demonstrations, and where the things in its pictures are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from liquid_trainer.arrays import ArrayError


@dataclass(frozen=True, eq=False)
class Pictures:
    """
    One picture for every step of demonstrations, and where the things in it are.

    :param color: uint8 `(steps, height, width, 3)`, red first.
    :param places: `(steps, numbers)`; only learning is told.
    :param mirror: gives the mirror images of some pictures; None where there is no symmetry.
    :param mirrored_places: where the things are in those, `(steps, numbers)`.
    :param near: what is wanted magnified, as a matrix `(rows, numbers)` and an offset `(rows,)`:
        features tell tanh(matrix @ places + offset); see `EncoderSettings.near`.
    :raises ArrayError: for a wrong type or shape, or numbers that are not finite.
    """

    color: np.ndarray
    places: np.ndarray
    mirror: Callable[[np.ndarray], np.ndarray] | None = None
    mirrored_places: np.ndarray | None = None
    near: tuple[np.ndarray, np.ndarray] | None = None

    def __post_init__(self):
        if self.color.dtype != np.uint8 or self.color.ndim != 4 or self.color.shape[3] != 3:
            raise ArrayError('color: expected uint8 (steps, height, width, 3), came '
                             f'{self.color.dtype} {self.color.shape}')
        wanted = (len(self.color), self.places.shape[-1])
        given = [self.places] if self.mirror is None else [self.places, self.mirrored_places]
        for places in given:
            if places is None or places.shape != wanted:
                raise ArrayError(f'places: expected {wanted}, came '
                                 f'{None if places is None else places.shape}')
            if not np.isfinite(places).all():
                raise ArrayError('places: expected finite numbers, came NaN or infinity')
        if self.near is not None:
            matrix, offset = self.near
            if matrix.shape != (len(offset), wanted[1]):
                raise ArrayError(f'near: expected a matrix {(len(offset), wanted[1])}, came '
                                 f'{matrix.shape}')
