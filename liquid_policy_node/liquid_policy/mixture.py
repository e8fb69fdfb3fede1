"""Mixture-density head: Gaussians over whole action chunks, so that a sample is one plan."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from liquid_policy.settings import MixtureSettings

_LOG_TWO_PI = math.log(2.0 * math.pi)


@dataclass(frozen=True)
class Mixture:
    """
    Gaussian mixture over action chunks, one per row of a batch.

    :param log_weights: logarithms of the components' weights, `(batch, components)`.
    :param means: `(batch, components, horizon, actions)`.
    :param scales: standard deviations, as `means`.
    """

    log_weights: Tensor
    means: Tensor
    scales: Tensor

    @property
    def weights(self) -> Tensor:
        """Components' weights, `(batch, components)`, each row summing to 1."""
        return self.log_weights.exp()

    def log_density(self, chunk: Tensor, mask: Tensor | None = None) -> Tensor:
        """
        Return the logarithm of the density at a chunk.

        :param chunk: `(batch, horizon, actions)`.
        :param mask: true for the steps that count, `(batch, horizon)`.
        :return: `(batch,)`.
        """
        error = (chunk.unsqueeze(1) - self.means) / self.scales
        terms = -0.5 * error.square() - self.scales.log() - 0.5 * _LOG_TWO_PI
        if mask is not None:
            terms = torch.where(mask[:, None, :, None], terms, torch.zeros_like(terms))
        return torch.logsumexp(self.log_weights + terms.sum((2, 3)), dim=1)

    def best_error(self, chunk: Tensor) -> Tensor:
        """Return the mean absolute error of the heaviest component's mean, per action."""
        heaviest = self.log_weights.argmax(1)
        chosen = self.means[torch.arange(len(chunk), device=chunk.device), heaviest]
        return (chosen - chunk).abs().mean((0, 1))

    def effective_components(self) -> Tensor:
        """Return exp(entropy of the average weights): how many components are in use."""
        usage = self.weights.mean(0)
        return torch.exp(-(usage * usage.clamp_min(1e-12).log()).sum())

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Return one chunk per row, `(batch, horizon, actions)`: a component, then its noise."""
        index = torch.multinomial(self.weights, 1, generator=generator)[:, 0]
        rows = torch.arange(len(index), device=index.device)
        noise = torch.randn(self.means[rows, index].shape, generator=generator,
                            dtype=self.means.dtype, device=self.means.device)
        return self.means[rows, index] + self.scales[rows, index] * noise


class MixtureHead(nn.Module):
    """Turn a core's output into a mixture over normalised action chunks."""

    def __init__(self, inputs: int, actions: int, settings: MixtureSettings | None = None):
        super().__init__()
        self.settings = settings = settings or MixtureSettings()
        self.actions = actions
        self._size = settings.components * settings.horizon * actions
        self.trunk = nn.Sequential(nn.Linear(inputs, settings.hidden), nn.SiLU())
        self.output = nn.Linear(settings.hidden, settings.components + 2 * self._size)
        with torch.no_grad():
            # Components begin apart, each as a constant plan, so that each finds a mode of its
            # own; equal ones would receive equal gradients and never part.
            self.output.weight.mul_(0.3)
            bias = self.output.bias
            bias.zero_()
            means = torch.randn(settings.components, 1, actions) * 0.5
            bias[settings.components:settings.components + self._size] = means.expand(
                -1, settings.horizon, -1).reshape(-1)

    def forward(self, x: Tensor) -> Mixture:
        """
        Return the mixture.

        :param x: `(batch, inputs)`.
        """
        settings = self.settings
        shape = (-1, settings.components, settings.horizon, self.actions)
        logits, means, raw = self.output(self.trunk(x)).split(
            (settings.components, self._size, self._size), dim=1)
        scales = settings.least_scale + nn.functional.softplus(raw)
        return Mixture(torch.log_softmax(logits, dim=1), means.reshape(shape),
                       scales.reshape(shape))

    def loss(self, mixture: Mixture, chunk: Tensor, mask: Tensor | None = None) -> Tensor:
        """
        Return the exact negative log-likelihood per number of the chunk, averaged over rows.

        :param chunk: demonstrated actions, normalised, `(batch, horizon, actions)`.
        :param mask: true for the steps that count, `(batch, horizon)`.
        """
        size = self.settings.horizon * self.actions
        return -mixture.log_density(chunk, mask).mean() / size

    def balance(self, mixture: Mixture) -> Tensor:
        """Return log(components) - entropy of the average weights: 0 when all are in use."""
        usage = mixture.weights.mean(0)
        entropy = -(usage * usage.clamp_min(1e-12).log()).sum()
        return math.log(self.settings.components) - entropy


class EstimateHead(nn.Module):
    """Gaussian over the interface's targets (part position, speed), normalised."""

    def __init__(self, inputs: int, targets: int, hidden: int = 64, least_scale: float = 0.02):
        super().__init__()
        self.targets, self.least_scale = targets, least_scale
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(),
                                    nn.Linear(hidden, 2 * targets))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, each `(batch, targets)`."""
        mean, raw = self.layers(x).chunk(2, dim=-1)
        return mean, self.least_scale + nn.functional.softplus(raw)

    @staticmethod
    def loss(mean: Tensor, scale: Tensor, targets: Tensor) -> Tensor:
        """
        Return the negative log-likelihood per known target; 0 when none is known.

        :param targets: NaN where there is nothing to estimate, `(batch, targets)`.
        """
        known = torch.isfinite(targets)
        error = (torch.where(known, targets, mean.detach()) - mean) / scale
        terms = 0.5 * error.square() + scale.log() + 0.5 * _LOG_TWO_PI
        return (terms * known).sum() / known.sum().clamp_min(1)
