"""What heads share that answer with samples."""

from __future__ import annotations

import torch
from torch import Tensor

from liquid_policy.head_settings import SamplerSettings
from liquid_policy.heads.head import Head, trunk
from liquid_policy.heads.mixture import Mixture, narrow_mixture
from liquid_policy.heads.networks import chunk_network


class SamplerHead(Head):
    """
    Turn noise into chunks, given a core's output.

    Its answer is the condition, `(batch, hidden)`. Its distribution is made of as many equally
    heavy, narrow components as there are samples.

    :param span: times that the network is told run from 0 to this.
    """

    settings: SamplerSettings

    def __init__(self, inputs: int, actions: int, settings: SamplerSettings, span: float = 1.0):
        super().__init__(actions, settings)
        self.trunk = trunk(inputs, settings)
        self.network = chunk_network(actions, settings.hidden, settings, span)
        self.chunk_shape = (settings.horizon, actions)
        self.noise_shape = (settings.samples, *self.chunk_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return the condition, `(batch, hidden)`."""
        return self.trunk(x)

    def chunks(self, condition: Tensor, noise: Tensor) -> Tensor:
        """
        Return one chunk for each piece of noise, `(rows, horizon, actions)`.

        :param condition: `(rows, hidden)`.
        :param noise: standard normal, `(rows, *noise_shape[1:])`.
        """
        raise NotImplementedError

    def distribution(self, answer: Tensor, noise: Tensor | None = None) -> Mixture:
        """
        Return one narrow component per sample.

        :raises ValueError: if there is no noise, or not as much as `noise_shape` says.
        """
        wanted = (answer.shape[0], *self.noise_shape)
        if noise is None or tuple(noise.shape) != wanted:
            raise ValueError(f'noise: expected standard normal numbers of shape {wanted}, came '
                             f'{None if noise is None else tuple(noise.shape)}')
        count = self.settings.samples
        condition = answer.unsqueeze(1).expand(-1, count, -1).flatten(0, 1)
        means = self.chunks(condition, noise.flatten(0, 1))
        return narrow_mixture(means.reshape(-1, count, *self.chunk_shape),
                              self.settings.least_scale)

    def sample(self, answer: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return one chunk per row, `(batch, horizon, actions)`."""
        noise = torch.randn((len(answer), *self.noise_shape[1:]), generator=generator,
                            dtype=answer.dtype)
        return self.chunks(answer, noise)
