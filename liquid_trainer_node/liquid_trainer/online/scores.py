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
        return Scores(*(np.zeros(0) for _ in range(3)))
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
    Errors of the first action and of the targets, per window: the middle one of its ticks.

    Where nothing can be known (a part that has not come into sight), and where a demonstration is
    wrong, errors are large for everybody; in a mean they would drown the others.
    """
    noise = policy.head.draw_noise(len(rows.mean), generator)
    plan = policy.head.distribution(rows.answer, noise).heaviest()
    wrong = (plan[:, 0] - rows.chunk[:, 0]).abs().mean(1).reshape(shape)
    known = torch.isfinite(rows.targets)
    missed = torch.where(known, (rows.mean - rows.targets).abs(), 0.0).sum(1)
    missed = (missed / known.sum(1).clamp_min(1)).reshape(shape)
    return (_median_over(wrong, rows.known[:, 0].reshape(shape)),
            _median_over(missed, known.any(1).reshape(shape)))


def _median_over(values: torch.Tensor, there: torch.Tensor) -> np.ndarray:
    return torch.where(there, values, torch.nan).nanmedian(1).values.double().cpu().numpy()


def _mean_over(values: torch.Tensor, there: torch.Tensor, otherwise: float) -> torch.Tensor:
    count = there.sum(1)
    mean = torch.where(there, values, 0.0).sum(1) / count.clamp_min(1)
    return torch.where(count > 0, mean, torch.full_like(mean, otherwise))


def published_error(window: Window, action_scale: np.ndarray, target_scale: np.ndarray,
                    burn_in: float = 0.25) -> float:
    """
    Return how wrong the running graph was in a window, from what it published [scales].

    The mean of the first action's error and of the targets' error, each the middle one of the
    ticks at which it is known.

    :return: NaN where nothing was published or nothing is known.
    """
    first = int(burn_in * len(window.ticks))
    assert window.proposed is not None and window.estimated is not None
    parts = []
    for said, shown, scale in ((window.proposed, window.actions, action_scale),
                               (window.estimated, window.targets, target_scale)):
        apart = (np.abs(said - shown) / scale)[first:]
        known = np.isfinite(apart)
        ticks = known.any(1)
        if ticks.any():
            each = np.where(known, apart, 0.0).sum(1)[ticks] / known.sum(1)[ticks]
            parts.append(float(np.median(each)))
    return float(np.mean(parts)) if parts else float('nan')


def combined_error(scores: Scores) -> np.ndarray:
    """Return what `published_error` does from scores, `(windows,)`; NaN where nothing is known."""
    both = np.stack((scores.action, scores.target))
    known = np.isfinite(both)
    total = np.where(known, both, 0.0).sum(0)
    count = known.sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
