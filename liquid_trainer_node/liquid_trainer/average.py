"""Weights averaged over the steps of a training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def update_average(average: dict[str, Tensor], module: nn.Module, step: int,
                   decay: float) -> None:
    """
    Draw the average a little towards the present weights, in place.

    :param average: by name, as the module's `state_dict`; whole numbers are copied.
    :param module: in training.
    :param step: steps taken, 1 for the first.
    :param decay: share of the average that is kept per step in the long run.
    """
    # Early on, a long memory would mostly hold the first, random weights.
    decay = min(decay, (1 + step) / (10 + step))
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1.0 - decay)
        else:
            average[name].copy_(value)
