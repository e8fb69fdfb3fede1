"""Names that nobody asks for and that are nearly those somebody does: slips that must show."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

ALIKE = 0.85    # 'overshot' and 'overshoot' are alike by 0.94, 'robot_1' and 'robot' by 0.83


def misspelt(given: Iterable[str], known: Iterable[str]) -> str:
    """
    Say which names are unknown and likely meant otherwise; empty when none is.

    :param given: names that came.
    :param known: names that there are.
    """
    there = list(known)
    found = [(name, get_close_matches(name, there, 1, ALIKE))
             for name in given if name not in there]
    return ', '.join(f'unknown {name}, did you mean {close[0]}?' for name, close in found if close)
