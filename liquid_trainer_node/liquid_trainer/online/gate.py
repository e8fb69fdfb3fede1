"""Whether a candidate may take over: better on what came since, and no worse on old skills."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

_LEAST = 1e-6     # errors below are equal [scales]


@dataclass(frozen=True, eq=False)
class Scores:
    """
    How a policy does on some windows; lower is better.

    :param loss: negative log-likelihood of demonstrations and targets together, per window,
        `(windows,)` [nat/number].
    :param action: error of the first action, in units of the actions' scales, the middle one
        of a window's ticks, likewise; NaN where nothing was demonstrated.
    :param target: errors of the estimated targets, in units of the targets' scales, likewise,
        `(windows, targets)`.
    """

    loss: np.ndarray
    action: np.ndarray
    target: np.ndarray

    def __len__(self) -> int:
        return len(self.loss)


@dataclass(frozen=True)
class GateSettings:
    """What a candidate has to show."""

    enabled: bool = field(default=True, metadata={
        'description': 'compare at all; without, every candidate is promoted'})
    least_windows: int = field(default=2, metadata={
        'description': 'held-out recent windows needed'})
    alarm: float = field(default=1.8, metadata={
        'description': 'how many times the error that 95 % of the windows of old skills stay '
                       'below an error of the policy that learning began with has to be before '
                       'there is anything to repair; 0: always'})
    gain: float = field(default=0.01, metadata={
        'description': 'smallest mean gain on recent windows', 'unit': 'nat/number'})
    majority: float = field(default=0.6, metadata={
        'description': 'share of recent windows on which it must be better'})
    target_gain: float = field(default=0.02, metadata={
        'description': "share by which the targets' errors on recent windows must fall, in the "
                       'mean and the median of the numbers, where they were measured'})
    target_growth: float = field(default=0.25, metadata={
        'description': "largest growth of a single target's error on recent windows, as a share"})
    action_tolerance: float = field(default=0.15, metadata={
        'description': 'largest growth of the error of actions on recent windows, as a share'})
    loss_tolerance: float = field(default=0.05, metadata={
        'description': 'largest loss on old skills', 'unit': 'nat/number'})
    error_tolerance: float = field(default=0.05, metadata={
        'description': 'largest growth of the error of actions on old skills, as a share of it'})
    target_tolerance: float = field(default=0.05, metadata={
        'description': "likewise of the targets' errors, in the mean or the median of the "
                       'numbers'})

    def __post_init__(self):
        if self.least_windows < 1:
            raise ValueError(f'least_windows: expected 1 or more, came {self.least_windows}')
        for name in ('alarm', 'gain', 'target_gain', 'target_growth', 'action_tolerance',
                     'loss_tolerance', 'error_tolerance', 'target_tolerance'):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f'{name}: expected 0 or more, came {getattr(self, name)}')
        if not 0.0 <= self.majority <= 1.0:
            raise ValueError(f'majority: expected 0 to 1, came {self.majority}')


@dataclass(frozen=True)
class Verdict:
    """
    What the gate decided.

    :param promote: whether the candidate takes over.
    :param reason: in words, with the numbers that decided.
    :param before: mean loss of the running policy on the recent windows [nat/number].
    :param after: the candidate's.
    :param old_before: mean loss of the reference on the old skills; NaN without any.
    :param old_after: the candidate's.
    :param forgetting: whether old skills were what it failed on.
    """

    promote: bool
    reason: str
    before: float = float('nan')
    after: float = float('nan')
    old_before: float = float('nan')
    old_after: float = float('nan')
    forgetting: bool = False


def judge(running: Scores, candidate: Scores, reference: Scores | None,
          kept: Scores | None, settings: GateSettings) -> Verdict:
    """
    Decide whether the candidate takes over.

    :param running: the running policy's scores on held-out recent windows.
    :param candidate: the candidate's on the same windows.
    :param reference: of the policy that learning began with, on the old-skill windows; None
        without such windows. Not the running policy's: many small losses would add up.
    :param kept: the candidate's on the same windows.
    """
    numbers: dict[str, Any] = {'before': _mean(running.loss), 'after': _mean(candidate.loss)}
    if reference is not None and kept is not None:
        numbers |= {'old_before': _mean(reference.loss), 'old_after': _mean(kept.loss)}
    if not settings.enabled:
        return Verdict(True, 'the gate is switched off', **numbers)
    if len(running) < settings.least_windows:
        return Verdict(False, f'{len(running)} of {settings.least_windows} held-out recent '
                       'windows', **numbers)
    if not np.isfinite(candidate.loss).all() or (
            kept is not None and not np.isfinite(kept.loss).all()):
        return Verdict(False, 'the candidate answers with numbers that are not finite', **numbers)
    gain = running.loss - candidate.loss
    better = float((gain > 0).mean())
    words = (f'recent {numbers["before"]:.3f} -> {numbers["after"]:.3f} nat, better on '
             f'{better:.0%} of {len(gain)} windows' + _errors(running, candidate))
    # A few windows with wrong demonstrations must not decide: mean and median both.
    if min(gain.mean(), np.median(gain)) < settings.gain or better < settings.majority:
        return Verdict(False, f'no better on recent windows: {words}', **numbers)
    # Likelihood alone would promote a policy that only tells its uncertainty better.
    wrong = _no_better(running, candidate, settings)
    if wrong:
        return Verdict(False, f'no better on recent windows: {wrong}; {words}', **numbers)
    if reference is not None and kept is not None:
        lost = _lost(reference, kept, settings)
        words += f'; old skills {numbers["old_before"]:.3f} -> {numbers["old_after"]:.3f} nat'
        if lost:
            return Verdict(False, f'forgets old skills: {lost}; {words}', forgetting=True,
                           **numbers)
    return Verdict(True, words, **numbers)


def _errors(running: Scores, candidate: Scores) -> str:
    words = f', action error x {_growth(running.action, candidate.action):.2f}'
    if np.isfinite(running.target).any():
        ratios = ' '.join(f'{ratio:.2f}' for ratio in _ratios(running.target, candidate.target))
        words += f', target errors x {ratios}'
    return words


def _no_better(running: Scores, candidate: Scores, settings: GateSettings) -> str:
    """What is not good enough about the errors on recent windows, in words; else empty."""
    for name, most in (('target', 1.0 - settings.target_gain),
                       ('action', 1.0 + settings.action_tolerance)):
        growth = _growth(getattr(running, name), getattr(candidate, name))
        if growth > most:
            return f'{name} error x {growth:.2f}, allowed x {most:.2f}'
    worst = max(_ratios(running.target, candidate.target), default=0.0)
    if worst > 1.0 + settings.target_growth:
        return f'the error of one target x {worst:.2f}, allowed x {1.0 + settings.target_growth}'
    return ''


def _lost(reference: Scores, kept: Scores, settings: GateSettings) -> str:
    """What got worse on the old skills, in words; empty when nothing did."""
    loss = _mean(kept.loss) - _mean(reference.loss)
    if loss > settings.loss_tolerance:
        return f'loss grew by {loss:.3f} nat, allowed {settings.loss_tolerance:.3f}'
    for name, tolerance in (('action', settings.error_tolerance),
                            ('target', settings.target_tolerance)):
        growth = _growth(getattr(reference, name), getattr(kept, name))
        if growth > 1.0 + tolerance:
            return f'{name} error grew by {growth - 1.0:.0%}, allowed {tolerance:.0%}'
    return ''


def _ratios(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How many times as large the mean error of each number is, where it is known."""
    pairs = zip(np.atleast_2d(before.T), np.atleast_2d(after.T), strict=True)
    means = np.array([(_mean(one), _mean(other)) for one, other in pairs]).reshape(-1, 2)
    means = np.maximum(means[np.isfinite(means).all(1)], _LEAST)
    return means[:, 1] / means[:, 0]


def _growth(before: np.ndarray, after: np.ndarray) -> float:
    """
    How many times as large errors have become; the worse of mean and median of the numbers.

    Of ratios, so that a number which errs by a lot does not drown the others.
    """
    ratios = np.log(_ratios(before, after))
    return float(np.exp(max(ratios.mean(), np.median(ratios)))) if len(ratios) else float('nan')


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float('nan')
