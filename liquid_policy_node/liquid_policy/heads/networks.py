"""Networks that turn a chunk of noise into a chunk of actions, told where they are on the way."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from liquid_policy.head_settings import SamplerSettings
from liquid_policy.heads.head import Residual


class TimeEmbedding(nn.Module):
    """
    Numbers that tell times apart: sines and cosines of many frequencies, then two layers.

    Source: Vaswani et al., Attention Is All You Need, arXiv:1706.03762, section 3.5.

    :param size: numbers, even.
    :param span: times run from 0 to this.
    """

    def __init__(self, size: int, span: float):
        super().__init__()
        # Periods from the whole span down to a thousandth of it.
        rates = torch.logspace(0.0, 3.0, size // 2) * (2.0 * math.pi / span)
        self.register_buffer('rates', rates, persistent=False)
        self.layers = nn.Sequential(nn.Linear(size, 2 * size), nn.SiLU(),
                                    nn.Linear(2 * size, size))

    def forward(self, time: Tensor) -> Tensor:
        """Return the embedding of times `(batch, 1)`, `(batch, size)`."""
        angles = time * self.rates
        return self.layers(torch.cat((angles.sin(), angles.cos()), dim=1))


class ChunkMlp(nn.Module):
    """
    Residual layers over the flattened chunk, the time and the condition.

    :param condition: size of what the chunk depends on.
    :param span: times run from 0 to this.
    """

    def __init__(self, actions: int, condition: int, settings: SamplerSettings,
                 span: float = 1.0):
        super().__init__()
        size = settings.horizon * actions
        self.time = TimeEmbedding(64, span)
        self.first = nn.Linear(size + condition + 64, settings.width)
        self.blocks = nn.Sequential(*(Residual(settings.width, settings.dropout)
                                      for _ in range(settings.depth)))
        self.last = nn.Linear(settings.width, size)

    def forward(self, chunk: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """
        Return what is asked for, shaped as the chunk.

        :param chunk: `(batch, horizon, actions)`.
        :param time: `(batch, 1)`.
        :param condition: `(batch, condition)`.
        """
        x = torch.cat((chunk.flatten(1), condition, self.time(time)), dim=1)
        return self.last(functional.silu(self.blocks(self.first(x)))).reshape(chunk.shape)


class _Convolution(nn.Sequential):
    """Convolution along the horizon, group norm, Mish."""

    def __init__(self, inputs: int, outputs: int, size: int):
        super().__init__(nn.Conv1d(inputs, outputs, size, padding=size // 2),
                         nn.GroupNorm(8, outputs), nn.Mish())


class _ConditionalBlock(nn.Module):
    """Two convolutions with a shortcut; the condition scales and shifts what is between them."""

    def __init__(self, inputs: int, outputs: int, condition: int, size: int):
        super().__init__()
        self.first = _Convolution(inputs, outputs, size)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(condition, 2 * outputs))
        self.second = _Convolution(outputs, outputs, size)
        self.shortcut = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return `(batch, outputs, steps)` for `x` of `(batch, inputs, steps)`."""
        scale, shift = self.film(condition).unsqueeze(-1).chunk(2, dim=1)
        return self.second((1.0 + scale) * self.first(x) + shift) + self.shortcut(x)


class ChunkUnet(nn.Module):
    """
    Convolutions along the horizon, down to half its length level by level and up again.

    The condition, and the time with it, modulates every block (FiLM, Perez et al.,
    arXiv:1709.07871).

    Source: Chi et al., Diffusion Policy, arXiv:2303.04137, section III.A, after Janner et al.,
    arXiv:2205.09991.

    :param condition: size of what the chunk depends on.
    :param span: times run from 0 to this.
    """

    def __init__(self, actions: int, condition: int, settings: SamplerSettings,
                 span: float = 1.0, size: int = 5):
        super().__init__()
        channels = settings.channels
        self.time = TimeEmbedding(128, span)
        condition += 128
        pairs = list(zip((actions, *channels), channels, strict=False))

        def block(inputs: int, outputs: int) -> _ConditionalBlock:
            return _ConditionalBlock(inputs, outputs, condition, size)

        def two(inputs: int, outputs: int) -> nn.ModuleList:
            return nn.ModuleList((block(inputs, outputs), block(outputs, outputs)))

        self.down = nn.ModuleList(two(*pair) for pair in pairs)
        self.shorter = nn.ModuleList(nn.Conv1d(c, c, 3, 2, 1) for c in channels[:-1])
        self.middle = two(channels[-1], channels[-1])
        self.longer = nn.ModuleList(nn.ConvTranspose1d(after, before, 4, 2, 1)
                                    for before, after in pairs[:0:-1])
        self.up = nn.ModuleList(two(2 * c, c) for c in channels[-2::-1])
        self.last = nn.Sequential(_Convolution(channels[0], channels[0], size),
                                  nn.Conv1d(channels[0], actions, 1))

    def forward(self, chunk: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """
        Return what is asked for, shaped as the chunk.

        :param chunk: `(batch, horizon, actions)`.
        :param time: `(batch, 1)`.
        :param condition: `(batch, condition)`.
        """
        condition = torch.cat((condition, self.time(time)), dim=1)
        x = chunk.transpose(1, 2)
        skips = []
        for level, blocks in enumerate(self.down):
            for block in blocks:
                x = block(x, condition)
            if level < len(self.shorter):
                skips.append(x)
                x = self.shorter[level](x)
        for block in self.middle:
            x = block(x, condition)
        for longer, blocks in zip(self.longer, self.up, strict=True):
            x = torch.cat((longer(x), skips.pop()), dim=1)
            for block in blocks:
                x = block(x, condition)
        return self.last(x).transpose(1, 2)


def chunk_network(actions: int, condition: int, settings: SamplerSettings,
                  span: float = 1.0) -> nn.Module:
    """Return the network that the settings name."""
    kinds = {'mlp': ChunkMlp, 'unet': ChunkUnet}
    return kinds[settings.network](actions, condition, settings, span)
