"""How well a policy does on windows it has not learned from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from liquid_policy.policy import Policy
from liquid_trainer.online.batch import Rows, action_losses, answer_rows, target_losses
from liquid_trainer.online.gate import Scores
from liquid_trainer.online.window import Window

# Largest loss of one tick [nat/number].
_MOST = 10.0
# Smallest error that is told from none [scales].
_LEAST = 1e-3


def counted_ticks(window: Window, burn_in: float, stride: int) -> np.ndarray:
    """
    Return which ticks of a window are judged.

    :param burn_in: how long the state has to find itself, as a share of the window.
    :param stride: every so many ticks.
    """
    return np.arange(int(burn_in * len(window.ticks)), len(window.ticks), stride)


def judged_from(window: Window, burn_in: float = 0.25) -> int:
    """Return the stamp of the first tick of a window that is judged [ns]."""
    return int(window.ticks[counted_ticks(window, burn_in, 1)[0]])


@torch.no_grad()
def score(policy: Policy, windows: Sequence[Window], burn_in: float = 0.25, stride: int = 4,
          target_weight: float = 1.0) -> Scores:
    """
    Return the scores of a policy, one per window.

    :param windows: of equal length.
    :param burn_in: see `counted_ticks`.
    :param stride: likewise.
    :param target_weight: of the targets' part in the loss.
    """
    if not windows:
        return Scores(np.zeros(0), np.zeros(0), np.zeros((0, policy.settings.target_size)))
    ticks = np.stack([counted_ticks(window, burn_in, stride) for window in windows])
    rows = answer_rows(policy, windows, ticks)
    # The same random numbers for every policy that is compared.
    generator = torch.Generator(rows.mean.device).manual_seed(0)
    count = len(windows)
    shape = (count, ticks.shape[1])
    some = rows.known.any(1)
    # A tick that is far out says no more than that: a few must not decide.
    action = _mean_over(action_losses(policy, rows, generator).clamp(max=_MOST).reshape(shape),
                        some.reshape(shape), 0.0)
    target = _mean_over(target_losses(rows).clamp(max=_MOST).reshape(shape),
                        torch.isfinite(rows.targets).any(1).reshape(shape), 0.0)
    return Scores((action + target_weight * target).double().cpu().numpy(),
                  *_errors(policy, rows, shape, generator))


def _errors(policy: Policy, rows: Rows, shape: tuple[int, int],
            generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """
    Errors of the first action, and of each target, per window.

    Of the actions' the middle tick's counts: where a demonstration is wrong the error is large for
    everybody, and in a mean it would drown the others. Of the targets' it is the mean, since what
    is hard to see is what there is to learn.
    """
    noise = policy.head.draw_noise(len(rows.mean), generator)
    plan = policy.head.distribution(rows.answer, noise).heaviest()
    wrong = (plan[:, 0] - rows.chunk[:, 0]).abs().mean(1).reshape(shape)
    wrong = torch.where(rows.known[:, 0].reshape(shape), wrong, torch.nan)
    missed = (rows.mean - rows.targets).abs().reshape(*shape, -1)
    return (wrong.nanmedian(1).values.double().cpu().numpy(),
            missed.nanmean(1).double().cpu().numpy())


def _mean_over(values: torch.Tensor, there: torch.Tensor, otherwise: float) -> torch.Tensor:
    count = there.sum(1)
    mean = torch.where(there, values, 0.0).sum(1) / count.clamp_min(1)
    return torch.where(count > 0, mean, torch.full_like(mean, otherwise))


def published_scores(window: Window, action_scale: np.ndarray, target_scale: np.ndarray,
                     burn_in: float = 0.25) -> Scores:
    """
    Return how wrong the running graph was in a window, from what it published.

    :return: of the one window; errors are NaN where nothing was published or nothing is known,
        and the loss is.
    """
    first = int(burn_in * len(window.ticks))
    assert window.proposed is not None and window.estimated is not None
    wrong = (np.abs(window.proposed - window.actions) / action_scale)[first:].mean(1)
    missed = (np.abs(window.estimated - window.targets) / target_scale)[first:]
    known = wrong[np.isfinite(wrong)]
    return Scores(np.array([np.nan]), np.array([np.median(known) if len(known) else np.nan]),
                  _known_mean(missed.T)[None])


def combined_error(scores: Scores) -> np.ndarray:
    """
    Return one error per window, `(windows,)`; NaN where nothing is known.

    The geometric mean of the actions' and the targets', of which each number counts alike:
    a speed that errs by much does not hide a place that errs by little.
    """
    return np.exp(_known_mean(np.column_stack((
        np.log(np.maximum(scores.action, _LEAST)),
        _known_mean(np.log(np.maximum(scores.target, _LEAST)))))))


def _known_mean(values: np.ndarray) -> np.ndarray:
    """Mean of each row's numbers that are not NaN, `(rows,)`."""
    known = np.isfinite(values)
    count = known.sum(1)
    return np.where(count > 0, np.where(known, values, 0.0).sum(1) / np.maximum(count, 1), np.nan)
