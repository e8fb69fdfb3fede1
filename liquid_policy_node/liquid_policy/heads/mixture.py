"""Mixture-density head: Gaussians over whole action chunks, so that a sample is one plan."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from liquid_policy.head_settings import MixtureSettings
from liquid_policy.heads.head import Head, trunk

_LOG_TWO_PI = math.log(2.0 * math.pi)


@dataclass(frozen=True)
class Mixture:
    """
    Gaussian mixture over action chunks, one per row of a batch.

    A component's covariance is diagonal, or diagonal plus low rank: the chunk's numbers, step by
    step, are `means + scales * noise + factors @ noise`.

    :param log_weights: logarithms of the components' weights, `(batch, components)`.
    :param means: `(batch, components, horizon, actions)`.
    :param scales: standard deviations of the diagonal part, as `means`.
    :param factors: directions of common variation, `(batch, components, horizon, actions, rank)`;
        None for a diagonal covariance.
    """

    log_weights: Tensor
    means: Tensor
    scales: Tensor
    factors: Tensor | None = None

    @property
    def weights(self) -> Tensor:
        """Components' weights, `(batch, components)`, each row summing to 1."""
        return self.log_weights.exp()

    @property
    def deviations(self) -> Tensor:
        """Standard deviation of every number by itself, as `means`."""
        if self.factors is None:
            return self.scales
        return (self.scales.square() + self.factors.square().sum(-1)).sqrt()

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
        density = terms.sum((2, 3))
        if self.factors is not None:
            density = density + self._common_variation(error, mask)
        return torch.logsumexp(self.log_weights + density, dim=1)

    def _common_variation(self, error: Tensor, mask: Tensor | None) -> Tensor:
        """
        Return what the low-rank part adds to a diagonal log density, `(batch, components)`.

        With the factors in units of the scales, G, and the capacitance C = I + G'G, the quadratic
        form loses |C^-1/2 G' error|^2 (Woodbury) and the log determinant gains log |C|.

        :param error: in units of the scales, as `means`.
        """
        assert self.factors is not None
        relative = self.factors / self.scales.unsqueeze(-1)
        if mask is not None:    # dropping numbers of a Gaussian is dropping their rows
            relative = relative * mask[:, None, :, None, None]
        relative = relative.flatten(2, 3)                           # (batch, components, n, rank)
        seen = torch.matmul(relative.transpose(2, 3), error.flatten(2).unsqueeze(-1))
        identity = torch.eye(relative.shape[-1], dtype=relative.dtype, device=relative.device)
        root = torch.linalg.cholesky(identity + torch.matmul(relative.transpose(2, 3), relative))
        whitened = torch.linalg.solve_triangular(root, seen, upper=False)
        return (0.5 * whitened.square().sum((2, 3))
                - root.diagonal(dim1=2, dim2=3).log().sum(-1))

    def best_error(self, chunk: Tensor) -> Tensor:
        """Return the mean absolute error of the heaviest component's mean, per action."""
        return (self.heaviest() - chunk).abs().mean((0, 1))

    def heaviest(self) -> Tensor:
        """Return the mean of each row's heaviest component, `(batch, horizon, actions)`."""
        rows = torch.arange(len(self.means), device=self.means.device)
        return self.means[rows, self.log_weights.argmax(1)]

    def effective_components(self) -> Tensor:
        """Return exp(entropy of the average weights): how many components are in use."""
        usage = self.weights.mean(0)
        return torch.exp(-(usage * usage.clamp_min(1e-12).log()).sum())

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Return one chunk per row, `(batch, horizon, actions)`: a component, then its noise."""
        index = torch.multinomial(self.weights, 1, generator=generator)[:, 0]
        rows = torch.arange(len(index), device=index.device)
        means = self.means[rows, index]
        noise = torch.randn(means.shape, generator=generator, dtype=means.dtype,
                            device=means.device)
        chunk = means + self.scales[rows, index] * noise
        if self.factors is not None:
            factors = self.factors[rows, index]
            common = torch.randn((len(index), 1, factors.shape[-1], 1), generator=generator,
                                 dtype=means.dtype, device=means.device)
            chunk = chunk + torch.matmul(factors, common).squeeze(-1)
        return chunk


def narrow_mixture(means: Tensor, scale: float) -> Mixture:
    """
    Return equally heavy components that are all as narrow.

    :param means: `(batch, components, horizon, actions)`.
    :param scale: standard deviation of every number.
    """
    weights = means.new_full(means.shape[:2], 1.0 / means.shape[1])
    # Computed from the means, because an exported graph loses outputs that are constant.
    return Mixture(weights.log() + 0.0 * means[:, :, 0, 0], means, 0.0 * means + scale)


class MixtureHead(Head):
    """Turn a core's output into a mixture over normalised action chunks."""

    settings: MixtureSettings

    def __init__(self, inputs: int, actions: int, settings: MixtureSettings | None = None):
        super().__init__(actions, settings or MixtureSettings())
        settings = self.settings
        size = settings.components * settings.horizon * actions
        self._sizes = (settings.components, size, size, size * settings.rank)
        self.trunk = trunk(inputs, settings)
        self.output = nn.Linear(settings.hidden, sum(self._sizes))
        with torch.no_grad():
            # Components begin apart, each as a constant plan, so that each finds a mode of its
            # own; equal ones would receive equal gradients and never part.
            self.output.weight.mul_(0.3)
            bias = self.output.bias
            bias.zero_()
            means = torch.randn(settings.components, 1, actions) * 0.5
            bias[settings.components:settings.components + size] = means.expand(
                -1, settings.horizon, -1).reshape(-1)

    def forward(self, x: Tensor) -> Mixture:
        """
        Return the mixture.

        :param x: `(batch, inputs)`.
        """
        settings = self.settings
        shape = (-1, settings.components, settings.horizon, self.actions)
        logits, means, raw, factors = self.output(self.trunk(x)).split(self._sizes, dim=1)
        scales = settings.least_scale + nn.functional.softplus(raw)
        return Mixture(
            torch.log_softmax(logits, dim=1), means.reshape(shape), scales.reshape(shape),
            factors.reshape(*shape, settings.rank) if settings.rank else None)

    def loss(self, answer: Mixture, chunk: Tensor, mask: Tensor | None = None,
             generator: torch.Generator | None = None) -> Tensor:
        """Return the exact negative log-likelihood per number of the chunk; see `Head.loss`."""
        size = self.settings.horizon * self.actions
        return -answer.log_density(chunk, mask).mean() / size

    def balance(self, answer: Mixture) -> Tensor:
        """Return log(components) - entropy of the average weights: 0 when all are in use."""
        usage = answer.weights.mean(0)
        entropy = -(usage * usage.clamp_min(1e-12).log()).sum()
        return math.log(self.settings.components) - entropy

    def distribution(self, answer: Mixture, noise: Tensor | None = None) -> Mixture:
        """Return the mixture itself; it needs no noise."""
        return answer

    def sample(self, answer: Mixture, generator: torch.Generator | None = None) -> Tensor:
        """Return one chunk per row, `(batch, horizon, actions)`."""
        return answer.sample(generator)


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
