"""After a promotion: whether the live error says that it was a mistake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class WatchSettings:
    """How a promoted policy is watched."""

    windows: int = field(default=12, metadata={
        'description': 'live windows after which a promotion is settled'})
    least_windows: int = field(default=6, metadata={
        'description': 'live windows needed before a roll-back, and before it is settled early '
                       'because it does better than the policy before'})
    paired: float = field(default=0.15, metadata={
        'description': 'roll back when the live error exceeds the error that the policy before '
                       'would have made on the same windows by this share'})
    rise: float = field(default=0.25, metadata={
        'description': 'or when it exceeds the error before the promotion by this share and '
                       'that of the policy before by a third of `paired`'})

    def __post_init__(self):
        if not 1 <= self.least_windows <= self.windows:
            raise ValueError(f'least_windows: expected 1 to {self.windows} (windows), came '
                             f'{self.least_windows}')
        for name in ('paired', 'rise'):
            if not getattr(self, name) > 0.0:
                raise ValueError(f'{name}: expected above 0, came {getattr(self, name)}')


def find_fault(before: Sequence[float], live: Sequence[float], shadow: Sequence[float],
               settings: WatchSettings) -> str:
    """
    Say why a promoted policy has to go; empty while it may stay.

    :param before: live errors of the last windows under the policy before [scales].
    :param live: live errors since, as published by the running graph.
    :param shadow: errors of the policy before on the same windows, which it did not drive.
    """
    if len(live) < settings.least_windows:
        return ''
    now, then = float(np.median(live)), float(np.median(shadow))
    if now > then * (1.0 + settings.paired):
        return (f'live error {now:.3f}, the policy before would have made {then:.3f} on the same '
                f'{len(live)} windows')
    if not before:
        return ''
    earlier = float(np.median(before))
    # Conditions may have changed: then both errors have risen, and what helps stays.
    if now > earlier * (1.0 + settings.rise) and now > then * (1.0 + settings.paired / 3.0):
        return (f'live error rose from {earlier:.3f} to {now:.3f}, and the policy before would '
                f'have made {then:.3f}')
    return ''


def is_settled(live: Sequence[float], shadow: Sequence[float], settings: WatchSettings) -> bool:
    """
    Return whether a promoted policy stays for good.

    :param live: as in `find_fault`, which found none.
    :param shadow: likewise.
    """
    if len(live) >= settings.windows:
        return True
    return len(live) >= settings.least_windows and bool(np.median(live) < np.median(shadow))
