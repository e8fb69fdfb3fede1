"""A causal low-pass filter against noise that a derivative would amplify."""

from __future__ import annotations

import math

import numpy as np

from liquid_policy.checkpoint import Checkpoint

_ROOT_TWO = math.sqrt(2.0)
# Where a model card says with which cutoff [Hz] a policy's vector inputs are filtered.
CARD = 'low_pass'


class LowPass:
    """
    Second-order Butterworth filter, one sample after the other.

    Causal, so it delays: slow signals by `delay` = sqrt(2) / (2 pi cutoff) seconds, 11 ms at
    20 Hz. What was trained with it must run with it, and the other way round.

    :param cutoff: frequency at which power is halved [Hz].
    :param rate: of the samples [Hz].
    :param size: numbers per sample.

    Source: Butterworth, On the theory of filter amplifiers, 1930; bilinear transform with the
    cutoff prewarped.
    """

    def __init__(self, cutoff: float, rate: float, size: int):
        if not 0.0 < cutoff < 0.5 * rate:
            raise ValueError(f'cutoff: expected above 0 and below half of the rate of {rate} Hz, '
                             f'came {cutoff}')
        warped = math.tan(math.pi * cutoff / rate)
        square = warped * warped
        scale = 1.0 / (1.0 + _ROOT_TWO * warped + square)
        self._forward = square * scale
        self._back = (2.0 * (square - 1.0) * scale, (1.0 - _ROOT_TWO * warped + square) * scale)
        self.delay = _ROOT_TWO / (2.0 * math.pi * cutoff)
        self._size = size
        self.reset()

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> LowPass | None:
        """
        Return the filter a checkpoint was trained with, None without one.

        It runs at the control rate; ticks that come late are taken to have come in time.
        """
        cutoff = float(checkpoint.card.get(CARD) or 0.0)
        interface = checkpoint.interface
        return cls(cutoff, interface.rate, interface.vector_size) if cutoff else None

    def reset(self) -> None:
        """Forget everything; the next sample is taken to have stood for ever."""
        self._memory: tuple[np.ndarray, np.ndarray] | None = None

    def step(self, sample: np.ndarray) -> np.ndarray:
        """
        Return the filtered sample, `(size,)`.

        :param sample: `(size,)`; one that is not finite is refused and changes nothing.
        :raises ValueError: for a wrong shape or numbers that are not finite.
        """
        sample = np.asarray(sample, np.float64)
        if sample.shape != (self._size,) or not np.isfinite(sample).all():
            raise ValueError(f'expected {self._size} finite numbers, came {sample}')
        forward, (first, second) = self._forward, self._back
        if self._memory is None:    # at rest: output equals input
            self._memory = (sample * (1.0 - forward), sample * (forward - second))
        early, late = self._memory
        filtered = forward * sample + early
        self._memory = (2.0 * forward * sample - first * filtered + late,
                        forward * sample - second * filtered)
        return filtered

    def run(self, samples: np.ndarray) -> np.ndarray:
        """
        Return a sequence filtered from a fresh start, shaped as it.

        :param samples: `(T, size)`.
        """
        self.reset()
        return np.stack([self.step(sample) for sample in samples])
