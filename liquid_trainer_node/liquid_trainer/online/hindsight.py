"""Labels from what is seen later: where a part must have been, once it has been measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from liquid_policy.conversion import NANOSECONDS
from liquid_trainer.online.window import Window


def fill_targets(window: Window, scale: np.ndarray, reach: float = 1.0, least: int = 5,
                 tolerance: float = 0.05) -> Window:
    """
    Return the window with targets known at more ticks than they were measured at.

    Things on a belt move evenly. Where a target was measured at some ticks of the window (a
    scanner sees the part late, or only now and then), a straight line through the measurements
    says where it was before: what the policy should have predicted then. That needs no
    teacher. A line that does not fit its own measurements labels nothing.

    :param window: left as it is.
    :param scale: size of each target, `(targets,)`.
    :param reach: how far before the first and after the last measurement the line is trusted [s].
    :param least: fewest measurements of a line.
    :param tolerance: largest root mean square distance of measurements from the line, in units
        of `scale`.

    Source: hindsight, the later label for the earlier input, as in self-supervised tracking.
    """
    times = (window.ticks - window.ticks[0]) / NANOSECONDS
    filled = window.targets.copy()
    for column in range(filled.shape[1]):
        known = np.isfinite(filled[:, column])
        if known.sum() < least or known.all():
            continue
        at, value = times[known], filled[known, column]
        middle = at.mean()
        spread = np.square(at - middle).sum()
        slope = ((at - middle) * (value - value.mean())).sum() / max(spread, 1e-12)
        line = value.mean() + slope * (times - middle)
        error = np.sqrt(np.square(line[known] - value).mean())
        if error > tolerance * scale[column]:
            continue
        near = ~known & (times >= at[0] - reach) & (times <= at[-1] + reach)
        filled[near, column] = line[near]
    return replace(window, targets=filled)
