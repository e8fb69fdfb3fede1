"""Elastic weight consolidation: weights that old skills depend on are held where they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn


class Consolidation:
    """
    Pulls weights back to where they were, each as strongly as old skills depend on it.

    Adds `strength * F * (weight - anchor)` to the gradient: that of a quadratic penalty whose
    curvature F is the diagonal of the empirical Fisher information, scaled to a mean of 1.

    Source: Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks,
    arXiv:1612.00796.

    :param parameters: that are trained; the present values are the anchor.
    :param strength: 0 switches it off.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], strength: float):
        if not strength >= 0.0:
            raise ValueError(f'strength: expected 0 or more, came {strength}')
        self._parameters, self.strength = list(parameters), strength
        self._anchor = [parameter.detach().clone() for parameter in self._parameters]
        self.fisher: list[Tensor] | None = None

    def measure(self, losses: Sequence[Callable[[], Tensor]]) -> Iterator[None]:
        """
        Measure the Fisher information; yields after each sample's pass.

        :param losses: give the negative log-likelihood of one sample each, with its graph.
        """
        if not losses:
            return
        total = [torch.zeros_like(parameter) for parameter in self._parameters]
        for loss in losses:
            gradients = torch.autograd.grad(loss(), self._parameters, allow_unused=True)
            for whole, gradient in zip(total, gradients, strict=True):
                if gradient is not None and bool(torch.isfinite(gradient).all()):
                    whole += gradient.square()
            yield
        count = sum(whole.numel() for whole in total)
        mean = float(sum(whole.sum() for whole in total)) / count
        if mean > 0.0:
            self.fisher = [whole / mean for whole in total]

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add the penalty's gradient to the parameters' gradients."""
        if self.fisher is None or not self.strength:
            return
        for parameter, anchor, fisher in zip(self._parameters, self._anchor, self.fisher,
                                             strict=True):
            if parameter.grad is not None:
                parameter.grad.addcmul_(fisher, parameter - anchor, value=self.strength)

    @torch.no_grad()
    def penalty(self) -> float:
        """Return the penalty as it stands."""
        if self.fisher is None:
            return 0.0
        return 0.5 * self.strength * float(sum(
            (fisher * (parameter - anchor).square()).sum()
            for parameter, anchor, fisher in zip(self._parameters, self._anchor, self.fisher,
                                                 strict=True)))
