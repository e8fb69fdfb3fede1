"""Flow-matching head: noise carried to a chunk along straight lines."""

from __future__ import annotations

import torch
from torch import Tensor

from liquid_policy.head_settings import FlowSettings
from liquid_policy.heads.head import mean_over
from liquid_policy.heads.sampler import SamplerHead


class FlowHead(SamplerHead):
    """
    Learn the velocity from noise to demonstrations; answer by Euler steps along it.

    Between noise z and a chunk c lies x(t) = (1 - t) z + t c, whose velocity is c - z. The
    network learns its expectation given x, t and what was observed.

    Source: Lipman et al., Flow Matching for Generative Modeling, arXiv:2210.02747.
    """

    settings: FlowSettings

    def __init__(self, inputs: int, actions: int, settings: FlowSettings | None = None):
        super().__init__(inputs, actions, settings or FlowSettings())

    def chunks(self, condition: Tensor, noise: Tensor) -> Tensor:
        """Return one chunk for each piece of noise, in `steps` evaluations."""
        steps = self.settings.steps
        chunk = noise
        for index in range(steps):
            time = torch.full_like(condition[:, :1], index / steps)
            chunk = chunk + self.network(chunk, time, condition) / steps
        return chunk

    def loss(self, answer: Tensor, chunk: Tensor, mask: Tensor | None = None,
             generator: torch.Generator | None = None) -> Tensor:
        """Return the mean squared error of the velocity; see `Head.loss`."""
        noise = torch.randn(chunk.shape, generator=generator, dtype=chunk.dtype)
        time = torch.rand((len(chunk), 1), generator=generator, dtype=chunk.dtype)
        between = torch.lerp(noise, chunk, time.unsqueeze(-1))
        velocity = self.network(between, time, answer)
        return mean_over((velocity - (chunk - noise)).square(), mask)
