"""What every head offers, and the trunk they share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from liquid_policy.head_settings import HeadSettings

if TYPE_CHECKING:
    from liquid_policy.heads.mixture import Mixture


class Residual(nn.Module):
    """x + what a hidden layer adds to it; begins as the identity."""

    def __init__(self, width: int, dropout: float = 0.0):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, shaped as `x`."""
        return x + self.outer(self.dropout(nn.functional.silu(self.inner(self.norm(x)))))


def trunk(inputs: int, settings: HeadSettings) -> nn.Sequential:
    """Return layers from a head's input to `settings.hidden` numbers."""
    return nn.Sequential(
        nn.Linear(inputs, settings.hidden), nn.SiLU(),
        *(Residual(settings.hidden, settings.dropout) for _ in range(settings.layers - 1)))


class Head(nn.Module):
    """
    Turn a core's output into a distribution over normalised action chunks.

    `forward` gives the answer, which is all that depends on what was observed; what it is differs
    from head to head, and only the head itself looks inside. Everything random comes from noise
    that the caller draws: `noise_shape` says how much, `()` says none.
    """

    noise_shape: tuple[int, ...] = ()

    def __init__(self, actions: int, settings: HeadSettings):
        super().__init__()
        self.actions = actions
        self.settings: Any = settings

    def forward(self, x: Tensor) -> Any:
        """
        Return the answer to a core's output.

        :param x: `(batch, inputs)`.
        """
        raise NotImplementedError

    def loss(self, answer: Any, chunk: Tensor, mask: Tensor | None = None,
             generator: torch.Generator | None = None) -> Tensor:
        """
        Return what training makes small, averaged over rows.

        :param chunk: demonstrated actions, normalised, `(batch, horizon, actions)`.
        :param mask: true for the steps that count, `(batch, horizon)`.
        :param generator: of the random numbers that some heads learn with.
        """
        raise NotImplementedError

    def balance(self, answer: Any) -> Tensor:
        """Return how unevenly parts of the head are used; 0 where there are none."""
        return torch.zeros(())

    def distribution(self, answer: Any, noise: Tensor | None = None) -> Mixture:
        """
        Return a mixture over normalised chunks.

        :param noise: standard normal, `(batch, *noise_shape)`; None for heads that need none.
        """
        raise NotImplementedError

    def sample(self, answer: Any, generator: torch.Generator | None = None) -> Tensor:
        """Return one chunk per row, `(batch, horizon, actions)`."""
        raise NotImplementedError

    def draw_noise(self, batch: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Return noise for `distribution`; None where it needs none."""
        if not self.noise_shape:
            return None
        parameter = next(self.parameters())
        return torch.randn((batch, *self.noise_shape), generator=generator,
                           dtype=parameter.dtype)


def mean_over(terms: Tensor, mask: Tensor | None) -> Tensor:
    """
    Return the mean over numbers of the steps that count.

    :param terms: `(batch, horizon, actions)`.
    :param mask: true for the steps that count, `(batch, horizon)`; all when left out.
    """
    if mask is None:
        return terms.mean()
    return (terms * mask.unsqueeze(-1)).sum() / (mask.sum() * terms.shape[-1]).clamp_min(1)
