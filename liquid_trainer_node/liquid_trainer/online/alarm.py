"""Whether conditions are so unusual that there is something to repair."""

from __future__ import annotations

from collections import deque

import numpy as np

# Errors on old skills stay below the threshold's base in this share of windows.
_USUAL = 0.95
# Windows whose middle one counts: a few bad ones in a row (nothing in sight) raise no alarm.
_WINDOWS = 10


class Alarm:
    """
    Raised while the policy that learning began with errs far more than it does on old skills.

    Each number is judged by itself: a wrong speed and a wrong place do not make up for one
    another. The alarm ends at half of what raises it, so that it does not come and go. It looks
    at conditions, not at what was learned, so learning goes on until conditions are old again.

    :param usual: errors on old skills, `(windows, numbers)`; NaN where nothing was known.
    :param factor: how many times the error that 95 % of these windows stay below raises it.
    """

    def __init__(self, usual: np.ndarray, factor: float):
        if not len(usual):
            raise ValueError('usual: expected errors of at least one window, came none')
        self._most = factor * np.array([
            np.quantile(column[np.isfinite(column)], _USUAL) if np.isfinite(column).any()
            else np.inf for column in usual.T])
        self._errors: deque[np.ndarray] = deque(maxlen=_WINDOWS)
        self._begins: deque[int] = deque(maxlen=_WINDOWS // 2)
        self.raised, self.times = False, 0.0

    def add(self, errors: np.ndarray, begin: int) -> bool:
        """
        Take a window's errors.

        :param errors: `(numbers,)`, NaN where nothing is known.
        :param begin: the window's first stamp [ns].
        :return: whether the alarm was raised or has ended.
        """
        self._errors.append(errors)
        self._begins.append(begin)
        self.times = 0.0
        if len(self._errors) < _WINDOWS:
            return False
        for column, most in zip(np.stack(self._errors).T, self._most, strict=True):
            known = column[np.isfinite(column)]
            if 2 * len(known) >= _WINDOWS:
                self.times = max(self.times, float(np.median(known) / most))
        was, self.raised = self.raised, self.times > (0.5 if self.raised else 1.0)
        return was is not self.raised

    @property
    def since(self) -> int:
        """Stamp from which on conditions were certainly unusual, when it has just been raised."""
        return self._begins[0]
