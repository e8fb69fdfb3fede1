"""Windows as tensors, and how a policy answers them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from liquid_policy.heads.mixture import Mixture
from liquid_policy.low_pass import LowPass
from liquid_policy.policy import Policy
from liquid_trainer.online.window import Window

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
# Standard deviations beyond which an error of an estimate counts linearly.
_SURE = 3.0


@dataclass(frozen=True, eq=False)
class Rows:
    """
    The ticks of some windows that count, one after the other, normalised.

    :param window: number of the window each row comes from, `(rows,)`.
    :param inputs: of the heads, `(rows, units + inputs)`.
    :param answer: of the action head.
    :param mean: estimate, `(rows, targets)`.
    :param scale: its standard deviation, likewise.
    :param chunk: demonstrated actions, `(rows, H, actions)`.
    :param known: which of them there are, `(rows, H)`.
    :param targets: `(rows, targets)`, NaN where unknown.
    """

    window: Tensor
    inputs: Tensor
    answer: object
    mean: Tensor
    scale: Tensor
    chunk: Tensor
    known: Tensor
    targets: Tensor


def filtered(window: Window, low_pass: LowPass | None) -> np.ndarray:
    """Return a window's vectors as the policy is fed them, `(T, vector)`."""
    if low_pass is None:
        return window.vectors
    return low_pass.run(window.vectors).astype(np.float32)


def answer_rows(policy: Policy, windows: Sequence[Window], ticks: np.ndarray) -> Rows:
    """
    Run a policy over windows from an empty state and ask its heads at some ticks.

    :param policy: in evaluation mode; its encoder is not used. An attribute `low_pass` filters
        its vectors.
    :param windows: of equal length T.
    :param ticks: which ticks of each window count, `(windows, n)`.
    """
    device = policy.input_scaling.center.device
    low_pass = getattr(policy, 'low_pass', None)
    observed = np.stack([np.concatenate((w.features, filtered(w, low_pass)), axis=1)
                         for w in windows])
    x = policy.normalise(torch.from_numpy(observed).to(device))
    elapsed = torch.from_numpy(np.stack([w.elapsed() for w in windows]))[..., None].to(device)
    outputs, _ = policy.core.sequence(x, elapsed, policy.initial_state(len(windows)))
    rows = torch.arange(len(windows))[:, None].to(device)
    at = torch.from_numpy(ticks).to(device)
    inputs = torch.cat((outputs[rows, at], x[rows, at]), dim=-1).flatten(0, 1)
    answer = policy.head(inputs)
    mean, scale = policy.estimate(inputs)
    made = policy.settings.head
    chunks, known, targets = [], [], []
    for window, chosen in zip(windows, ticks, strict=True):
        chunk, inside = window.chunks(made.horizon, made.dt)
        chunks.append(chunk[chosen])
        known.append(inside[chosen])
        targets.append(window.targets[chosen])
    return Rows(
        rows.expand(-1, ticks.shape[1]).flatten(), inputs, answer, mean, scale,
        policy.action_scaling(torch.from_numpy(np.concatenate(chunks)).to(device)),
        torch.from_numpy(np.concatenate(known)).to(device),
        policy.target_scaling(torch.from_numpy(np.concatenate(targets)).to(device)))


def action_losses(policy: Policy, rows: Rows, generator: torch.Generator) -> Tensor:
    """
    Return the action head's loss of every row, `(rows,)` [nat/number]; 0 where nothing is known.

    Heads whose loss cannot be told row by row answer with their mean for each.

    :param generator: of the random numbers that some heads learn with.
    """
    some = rows.known.any(1)
    if isinstance(rows.answer, Mixture):
        size = rows.known.sum(1).clamp_min(1) * policy.settings.action_size
        return -rows.answer.log_density(rows.chunk, rows.known) / size * some
    mean = policy.head.loss(rows.answer, rows.chunk, rows.known, generator)
    return mean.expand(len(some)) * some


def target_losses(rows: Rows) -> Tensor:
    """Return the estimate's loss of every row, `(rows,)`; see `estimate_losses`."""
    return estimate_losses(rows.mean, rows.scale, rows.targets)


def estimate_losses(mean: Tensor, scale: Tensor, targets: Tensor) -> Tensor:
    """
    Return an estimate's negative log-likelihood per known target, `(rows,)`; 0 without any.

    Beyond a few standard deviations it grows with the error, not with its square: under new
    conditions a policy that was too sure of itself is 50 of them off, and such a number would
    drown all others.

    :param mean: normalised, `(rows, targets)`.
    :param scale: standard deviation, likewise.
    :param targets: likewise, NaN where unknown.

    Source: Huber, Robust estimation of a location parameter, 1964.
    """
    known = torch.isfinite(targets)
    error = (torch.where(known, targets, mean.detach()) - mean) / scale
    wrong = nn.functional.huber_loss(error, torch.zeros_like(error), reduction='none',
                                     delta=_SURE)
    terms = wrong + scale.log() + _HALF_LOG_TWO_PI
    return (terms * known).sum(1) / known.sum(1).clamp_min(1)
