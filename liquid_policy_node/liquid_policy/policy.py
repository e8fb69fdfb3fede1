"""The policy: images and numbers in, a distribution over action chunks and an estimate out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from liquid_policy.cores import build_core
from liquid_policy.features import Encoder
from liquid_policy.heads.build import build_head
from liquid_policy.heads.mixture import EstimateHead, Mixture
from liquid_policy.settings import PolicySettings

# A normalised number beyond this says no more than "far out"; a broken sensor then cannot
# throw the core's state away.
_INPUT_LIMIT = 8.0


@dataclass(frozen=True)
class Distribution:
    """
    What the policy answers with, in physical units.

    :param mixture: over action chunks, `(batch, components, horizon, actions)`.
    :param estimate_mean: targets, `(batch, targets)`.
    :param estimate_scale: their standard deviation, `(batch, targets)`.
    """

    mixture: Mixture
    estimate_mean: Tensor
    estimate_scale: Tensor


class Scaling(nn.Module):
    """Per-dimension shift and scale, robust against outliers, stored with the weights."""

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer('center', torch.zeros(size))
        self.register_buffer('scale', torch.ones(size))

    def fit(self, samples: np.ndarray, least: np.ndarray | float = 1e-3) -> None:
        """
        Set center and scale from samples.

        The center is the middle of the 2nd and 98th percentile and the scale half the distance
        between them divided by 2, so that nearly all samples land within [-2, 2] even when most
        of them are equal (an action that is mostly zero has no interquartile range).

        :param samples: `(count, size)`; NaN is left out.
        :param least: smallest scale, per dimension or for all, in the samples' unit: a
            dimension that never moves must not be blown up to noise.
        :raises ValueError: if a dimension has no finite sample.
        """
        samples = np.asarray(samples, dtype=np.float64)
        if samples.ndim != 2 or samples.shape[1] != len(self.center):
            raise ValueError(f'expected samples of shape (count, {len(self.center)}), came '
                             f'{samples.shape}')
        known = np.isfinite(samples)
        if not known.any(0).all():
            raise ValueError(f'dimension {int(np.argmin(known.any(0)))} has no finite sample '
                             'to scale it by')
        low, high = np.nanpercentile(np.where(known, samples, np.nan), (2.0, 98.0), axis=0)
        self.center.copy_(torch.as_tensor((low + high) / 2.0))
        self.scale.copy_(torch.as_tensor(np.maximum((high - low) / 4.0, least)))

    def forward(self, x: Tensor) -> Tensor:
        """Return normalised values."""
        return (x - self.center) / self.scale

    def inverse(self, x: Tensor) -> Tensor:
        """Return values in physical units."""
        return x * self.scale + self.center


class Policy(nn.Module):
    """
    Encoder (where there are images), liquid core, action head and estimate head.

    The heads see the core's output and, past it, the normalised input: what needs no memory
    (where the joints are, where the part is seen) does not have to squeeze through 64 units.
    """

    def __init__(self, settings: PolicySettings | None = None):
        super().__init__()
        self.settings = settings = settings or PolicySettings()
        # Whoever asks for features has images, and then it is an encoder.
        self.encoder: Any = Encoder(settings.encoder) if settings.encoder else None
        self.input_scaling = Scaling(settings.input_size)
        self.action_scaling = Scaling(settings.action_size)
        self.target_scaling = Scaling(settings.target_size)
        self.core = build_core(settings.core, settings.input_size)
        width = self.core.units + settings.input_size
        self.head = build_head(width, settings.action_size, settings.head)
        self.estimate = EstimateHead(width, settings.target_size)

    def initial_state(self, batch: int = 1) -> Tensor:
        """Return the state before anything was seen, `(batch, state_size)`."""
        return self.core.initial_state(batch)

    def normalise(self, observation: Tensor) -> Tensor:
        """Return the core's input from features and vector in physical units."""
        return self.input_scaling(observation).clamp(-_INPUT_LIMIT, _INPUT_LIMIT)

    def origin(self, observation: Tensor) -> Tensor:
        """
        Return what actions are told relative to, `(batch, 1, actions)`; 0 by default.

        :param observation: features and vector in physical units, `(batch, inputs)`.
        """
        relative = self.settings.relative
        if not relative:
            return observation.new_zeros(1, 1, self.settings.action_size)
        first = self.settings.feature_size
        return observation[:, [first + index for index in relative]].unsqueeze(1)

    def heads(self, output: Tensor, x: Tensor) -> tuple[Any, Tensor, Tensor]:
        """
        Return the action head's answer and the estimate, all normalised.

        :param output: the core's, `(batch, units)`.
        :param x: the core's input, `(batch, inputs)`.
        :return: what `head.loss` and `head.distribution` take (a `Mixture` for the mixture
            head), and the estimate's mean and standard deviation.
        """
        both = torch.cat((output, x), dim=-1)
        return self.head(both), *self.estimate(both)

    def physical(self, mixture: Mixture, mean: Tensor, scale: Tensor,
                 origin: Tensor | None = None) -> Distribution:
        """Return a distribution and an estimate in physical units; see `origin`."""
        actions, targets = self.action_scaling, self.target_scaling
        factors = mixture.factors
        means = actions.inverse(mixture.means)
        if origin is not None:
            means = means + origin.unsqueeze(1)
        return Distribution(
            Mixture(mixture.log_weights, means,
                    mixture.scales * actions.scale,
                    None if factors is None else factors * actions.scale.unsqueeze(-1)),
            targets.inverse(mean), scale * targets.scale)

    def observe(self, observation: Tensor, elapsed: Tensor, state: Tensor) -> Tensor:
        """Return the next state only; as `step`."""
        return self.core.step(self.normalise(observation), elapsed, state)

    def step(self, observation: Tensor, elapsed: Tensor, state: Tensor,
             noise: Tensor | None = None) -> tuple[Tensor, Distribution]:
        """
        Return the next state and what to do.

        :param observation: features and vector in physical units, `(batch, inputs)`.
        :param elapsed: time since the last step [s], `(batch, 1)`.
        :param state: `(batch, state_size)`.
        :param noise: standard normal, `(batch, *head.noise_shape)`; None for heads that need
            none (`head.draw_noise` draws it).
        :raises ValueError: if a shape or an elapsed time is wrong.
        """
        x = self.normalise(observation)
        state = self.core.step(x, elapsed, state)
        answer, mean, scale = self.heads(state[:, :self.core.units], x)
        return state, self.physical(
            self.head.distribution(answer, noise), mean, scale,
            self.origin(observation) if self.settings.relative else None)
