"""Deterministic head: one chunk by least squares, which averages over what people do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from liquid_policy.head_settings import DeterministicSettings
from liquid_policy.heads.head import Head, mean_over, trunk
from liquid_policy.heads.mixture import Mixture, narrow_mixture


class DeterministicHead(Head):
    """Turn a core's output into one action chunk."""

    settings: DeterministicSettings

    def __init__(self, inputs: int, actions: int, settings: DeterministicSettings | None = None):
        super().__init__(actions, settings or DeterministicSettings())
        self.trunk = trunk(inputs, self.settings)
        self.output = nn.Linear(self.settings.hidden, self.settings.horizon * actions)

    def forward(self, x: Tensor) -> Tensor:
        """Return the chunk, `(batch, horizon, actions)`."""
        return self.output(self.trunk(x)).reshape(-1, self.settings.horizon, self.actions)

    def loss(self, answer: Tensor, chunk: Tensor, mask: Tensor | None = None,
             generator: torch.Generator | None = None) -> Tensor:
        """Return the mean squared error; see `Head.loss`."""
        return mean_over((answer - chunk).square(), mask)

    def distribution(self, answer: Tensor, noise: Tensor | None = None) -> Mixture:
        """Return one narrow component."""
        return narrow_mixture(answer.unsqueeze(1), self.settings.least_scale)

    def sample(self, answer: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the chunk."""
        return answer
