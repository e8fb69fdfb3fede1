"""One window of what was seen, demonstrated, and proposed."""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from liquid_policy.conversion import NANOSECONDS


@dataclass(frozen=True, eq=False)
class Window:
    """
    What was seen and demonstrated at consecutive ticks.

    :param ticks: stamps, int64 `(T,)` [ns].
    :param features: float32 `(T, features)`.
    :param vectors: observations, float32 `(T, vector)`.
    :param actions: demonstrated from each tick on, float32 `(T, actions)`; NaN where nobody
        demonstrated.
    :param targets: float32 `(T, targets)`, NaN where unknown.
    :param proposed: what the running policy proposed at each tick, `(T, actions)`; NaN where it
        said nothing.
    :param estimated: what it believed of the targets, `(T, targets)`, NaN likewise.
    :param version: of the policy that proposed; empty when none did, or two did.
    :param episode: name of the episode the last tick belongs to; empty outside of one.
    """

    ticks: np.ndarray
    features: np.ndarray
    vectors: np.ndarray
    actions: np.ndarray
    targets: np.ndarray
    proposed: np.ndarray | None = None
    estimated: np.ndarray | None = None
    version: str = ''
    episode: str = ''

    def __post_init__(self) -> None:
        for name, like in (('proposed', self.actions), ('estimated', self.targets)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, np.full_like(like, np.nan))
        count = len(self.ticks)
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray) and len(value) != count:
                raise ValueError(f'{item.name}: expected {count} rows, one per tick, came '
                                 f'{len(value)}')
        if count < 2 or (np.diff(self.ticks) <= 0).any():
            raise ValueError(f'ticks: expected at least two, each after the one before, came '
                             f'{count}')
        if not (np.isfinite(self.features).all() and np.isfinite(self.vectors).all()):
            raise ValueError('features and vectors: expected finite numbers, came NaN or infinity')

    def elapsed(self) -> np.ndarray:
        """Time since the tick before [s], `(T,)`; the first counts as the median."""
        steps = np.diff(self.ticks) / NANOSECONDS
        return np.concatenate(([np.median(steps)], steps)).astype(np.float32)

    def chunks(self, horizon: int, dt: float) -> tuple[np.ndarray, np.ndarray]:
        """
        Actions demonstrated from each tick on.

        :param horizon: steps H.
        :param dt: time between the steps [s].
        :return: `(T, H, actions)`, 0 where there is none, and `(T, H)`: which of them lie within
            the window and were demonstrated.
        """
        times = (self.ticks - self.ticks[0]) / NANOSECONDS
        half = np.median(np.diff(times)) / 2
        wanted = times[:, None] + np.arange(horizon) * dt
        index = np.searchsorted(times, wanted - half)
        chunk = self.actions[np.minimum(index, len(times) - 1)]
        known = np.isfinite(chunk).all(-1) & (index < len(times))
        return np.where(known[..., None], chunk, np.float32(0.0)), known

    def corrected(self, scale: np.ndarray, tolerance: float) -> np.ndarray:
        """
        Return the ticks at which somebody showed the running policy another action, bool `(T,)`.

        :param scale: size of each action, `(actions,)`.
        :param tolerance: smallest difference that counts, in units of `scale`.

        Source: what an operator changes tells more than what he lets pass; Kelly et al.,
        HG-DAgger, arXiv:1810.02890.
        """
        apart = np.abs(self.actions - self.proposed) / scale
        return np.where(np.isfinite(apart), apart, 0.0).max(1) > tolerance

    def to_bytes(self) -> bytes:
        """Return the window as an npz file's contents."""
        buffer = io.BytesIO()
        np.savez(buffer, **{item.name: getattr(self, item.name) for item in fields(self)})
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Window:
        """
        Return the window that `to_bytes` wrote; nothing in it is executed.

        :raises ValueError: if it is damaged.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as stored:
                values: dict[str, Any] = {item.name: stored[item.name] for item in fields(cls)}
        except Exception as error:  # zipfile, numpy and zlib each have their own
            raise ValueError(f'expected a stored window, came: {error}') from error
        texts: dict[str, Any] = {name: str(values.pop(name)) for name in ('version', 'episode')}
        return cls(**values, **texts)
