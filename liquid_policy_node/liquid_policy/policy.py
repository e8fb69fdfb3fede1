"""The policy: images and numbers in, a distribution over action chunks and an estimate out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from liquid_policy.cores import build_core
from liquid_policy.features import Encoder
from liquid_policy.mixture import EstimateHead, Mixture, MixtureHead
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
    Encoder, liquid core, mixture head and estimate head.

    The heads see the core's output and, past it, the normalised input: what needs no memory
    (where the joints are, where the part is seen) does not have to squeeze through 64 units.
    """

    def __init__(self, settings: PolicySettings | None = None):
        super().__init__()
        self.settings = settings = settings or PolicySettings()
        self.encoder = Encoder(settings.encoder)
        self.input_scaling = Scaling(settings.input_size)
        self.action_scaling = Scaling(settings.action_size)
        self.target_scaling = Scaling(settings.target_size)
        self.core = build_core(settings.core, settings.input_size)
        width = self.core.units + settings.input_size
        self.head = MixtureHead(width, settings.action_size, settings.mixture)
        self.estimate = EstimateHead(width, settings.target_size)

    def initial_state(self, batch: int = 1) -> Tensor:
        """Return the state before anything was seen, `(batch, state_size)`."""
        return self.core.initial_state(batch)

    def normalise(self, observation: Tensor) -> Tensor:
        """Return the core's input from features and vector in physical units."""
        return self.input_scaling(observation).clamp(-_INPUT_LIMIT, _INPUT_LIMIT)

    def heads(self, output: Tensor, x: Tensor) -> tuple[Mixture, Tensor, Tensor]:
        """
        Return mixture and estimate, all normalised.

        :param output: the core's, `(batch, units)`.
        :param x: the core's input, `(batch, inputs)`.
        """
        both = torch.cat((output, x), dim=-1)
        return self.head(both), *self.estimate(both)

    def physical(self, mixture: Mixture, mean: Tensor, scale: Tensor) -> Distribution:
        """Return the heads' answer in physical units."""
        actions, targets = self.action_scaling, self.target_scaling
        return Distribution(
            Mixture(mixture.log_weights, actions.inverse(mixture.means),
                    mixture.scales * actions.scale),
            targets.inverse(mean), scale * targets.scale)

    def step(self, observation: Tensor, elapsed: Tensor,
             state: Tensor) -> tuple[Tensor, Distribution]:
        """
        Return the next state and what to do.

        :param observation: features and vector in physical units, `(batch, inputs)`.
        :param elapsed: time since the last step [s], `(batch, 1)`.
        :param state: `(batch, state_size)`.
        :raises ValueError: if a shape or an elapsed time is wrong.
        """
        x = self.normalise(observation)
        state = self.core.step(x, elapsed, state)
        return state, self.physical(*self.heads(state[:, :self.core.units], x))
