"""Whether a candidate may take over: better on what came since, and no worse on old skills."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Scores:
    """
    How a policy does on some windows; lower is better.

    :param loss: negative log-likelihood of demonstrations and targets together, per window,
        `(windows,)` [nat/number].
    :param action: error of the first action, in units of the actions' scales, the middle one
        of a window's ticks, likewise; NaN where nothing was demonstrated.
    :param target: error of the estimated targets, in units of the targets' scales, likewise.
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
    alarm: float = field(default=2.0, metadata={
        'description': 'how many times its error on old skills one of the errors of the running '
                       'policy has to be before there is anything to repair; 0: always'})
    gain: float = field(default=0.01, metadata={
        'description': 'smallest mean gain on recent windows', 'unit': 'nat/number'})
    majority: float = field(default=0.6, metadata={
        'description': 'share of recent windows on which it must be better'})
    target_gain: float = field(default=0.02, metadata={
        'description': "share by which the targets' error on recent windows must fall, where "
                       'they were measured'})
    action_tolerance: float = field(default=0.05, metadata={
        'description': 'largest growth of the error of actions on recent windows, as a share'})
    loss_tolerance: float = field(default=0.05, metadata={
        'description': 'largest loss on old skills', 'unit': 'nat/number'})
    error_tolerance: float = field(default=0.1, metadata={
        'description': 'largest growth of the error of actions on old skills, as a share of it'})
    target_tolerance: float = field(default=0.25, metadata={
        'description': "likewise of the targets' error"})

    def __post_init__(self):
        if self.least_windows < 1:
            raise ValueError(f'least_windows: expected 1 or more, came {self.least_windows}')
        for name in ('alarm', 'gain', 'target_gain', 'action_tolerance', 'loss_tolerance',
                     'error_tolerance', 'target_tolerance'):
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
    :param calm: whether there is nothing to repair.
    """

    promote: bool
    reason: str
    before: float = float('nan')
    after: float = float('nan')
    old_before: float = float('nan')
    old_after: float = float('nan')
    forgetting: bool = False
    calm: bool = False


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
    # Among a few windows something is always better by chance.
    if reference is not None and _calm(running, reference, settings):
        return Verdict(False, f'nothing to repair: no error is {settings.alarm} times what it is '
                       f'on old skills; {words}', calm=True, **numbers)
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


def _calm(running: Scores, reference: Scores, settings: GateSettings) -> bool:
    for name in ('target', 'action'):
        now, usual = _mean(getattr(running, name)), _mean(getattr(reference, name))
        if now > settings.alarm * usual:
            return False
    return settings.alarm > 0.0 and len(reference) > 0


def _errors(running: Scores, candidate: Scores) -> str:
    return ''.join(
        f', {name} error {_mean(getattr(running, name)):.3f} -> '
        f'{_mean(getattr(candidate, name)):.3f}'
        for name in ('target', 'action') if np.isfinite(getattr(running, name)).any())


def _no_better(running: Scores, candidate: Scores, settings: GateSettings) -> str:
    """What is not good enough about the errors on recent windows, in words; else empty."""
    for name, most in (('target', 1.0 - settings.target_gain),
                       ('action', 1.0 + settings.action_tolerance)):
        before, after = _mean(getattr(running, name)), _mean(getattr(candidate, name))
        if after > before * most:
            return f'{name} error above {before * most:.3f}'
    return ''


def _lost(reference: Scores, kept: Scores, settings: GateSettings) -> str:
    """What got worse on the old skills, in words; empty when nothing did."""
    loss = _mean(kept.loss) - _mean(reference.loss)
    if loss > settings.loss_tolerance:
        return f'loss grew by {loss:.3f} nat, allowed {settings.loss_tolerance:.3f}'
    for name, tolerance in (('action', settings.error_tolerance),
                            ('target', settings.target_tolerance)):
        before, after = _mean(getattr(reference, name)), _mean(getattr(kept, name))
        if after > before * (1.0 + tolerance):
            return f'{name} error grew from {before:.3f} to {after:.3f}, allowed {tolerance:.0%}'
    return ''


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float('nan')
