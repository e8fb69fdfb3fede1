"""Implicit maximum likelihood head: noise to chunk in one step, no mode left out."""

from __future__ import annotations

import torch
from torch import Tensor

from liquid_policy.head_settings import ImleSettings
from liquid_policy.heads.sampler import SamplerHead


class ImleHead(SamplerHead):
    """
    Learn so that every demonstration has a sample near it.

    For each demonstration, candidates are drawn; those already nearer than `epsilon` are left
    out, and the nearest of the rest is pulled towards it. Because it is the data that choose
    their samples and never the other way round, no demonstration is left without one; leaving
    out the near ones makes the noise in training like the noise that is drawn later.

    Source: Rana et al., IMLE Policy, arXiv:2502.12371; Vashist et al., Rejection Sampling IMLE,
    arXiv:2412.09100; Li and Malik, Implicit Maximum Likelihood Estimation, arXiv:1809.09087.
    """

    settings: ImleSettings

    def __init__(self, inputs: int, actions: int, settings: ImleSettings | None = None):
        super().__init__(inputs, actions, settings or ImleSettings())

    def chunks(self, condition: Tensor, noise: Tensor) -> Tensor:
        """Return one chunk for each piece of noise, in one evaluation."""
        return self.network(noise, torch.zeros_like(condition[:, :1]), condition)

    def loss(self, answer: Tensor, chunk: Tensor, mask: Tensor | None = None,
             generator: torch.Generator | None = None) -> Tensor:
        """
        Return the mean distance of demonstrations to their chosen candidates; see `Head.loss`.

        A distance is the root mean square over the numbers that count. Demonstrations whose
        candidates are all nearer than `epsilon` add nothing.
        """
        rows, count = len(chunk), self.settings.candidates
        noise = torch.randn((rows, count, *self.chunk_shape), generator=generator,
                            dtype=chunk.dtype)
        counts = torch.ones_like(chunk[..., 0]) if mask is None else mask.to(chunk.dtype)
        share = counts / (counts.sum(1, keepdim=True) * chunk.shape[-1]).clamp_min(1.0)
        # Which candidate is nearest needs no gradient; the chosen one is made once more.
        with torch.no_grad():
            condition = answer.unsqueeze(1).expand(-1, count, -1).flatten(0, 1)
            made = self.chunks(condition, noise.flatten(0, 1)).reshape(noise.shape)
            error = (made - chunk.unsqueeze(1)).square().sum(-1)
            distance = (error * share.unsqueeze(1)).sum(-1).sqrt()
            distance = distance.masked_fill(distance < self.settings.epsilon, torch.inf)
            nearest, index = distance.min(1)
            counted = torch.isfinite(nearest) & (counts.sum(1) > 0)
        chosen = self.chunks(answer, noise[torch.arange(rows), index])
        error = ((chosen - chunk).square().sum(-1) * share).sum(1)
        # A distance of exactly 0 has no direction; it is never the distance of a chosen one.
        distance = (error + 1e-12).sqrt()
        return (distance * counted).sum() / counted.sum().clamp_min(1)
