"""How well a policy tells what people did, on episodes held out: no world, no luck."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from liquid_policy.heads.mixture import Mixture
from liquid_policy.policy import Policy
from liquid_trainer.arrays import ArrayEpisodes

SAMPLES = 8                 # of best-of-K
_BATCH = 256


def offline_scores(policy: Policy, data: ArrayEpisodes, context: int, stride: int = 3,
                   seed: int = 0) -> dict[str, float]:
    """
    Return a policy's errors on windows of held-out episodes, in the actions' own unit.

    - `error`: mean absolute error of the plan that would be followed (a mixture's heaviest
      component, a sampler's first sample).
    - `best_of_8`: the same of the nearest of eight samples of the whole distribution.
    - `diversity`: mean distance between two of those samples, per number.
    - `jerk`: mean absolute third difference of the plan over the time step cubed [unit/s^3].
    - `nll`: exact negative log-likelihood per number, in nats, of the actions in their own unit;
      only a mixture has one, for others it is left out.

    :param policy: with its scales.
    :param data: held-out episodes.
    :param context: observations that a plan is made from.
    :param stride: steps from one window to the next.
    :param seed: of the samples.
    """
    made, generator = policy.settings.head, torch.Generator().manual_seed(seed)
    sums: dict[str, float] = {}
    counted = 0
    policy.eval()
    for steps in np.array_split(np.arange(0, len(data.vectors), stride),
                                max(1, len(data.vectors) // (stride * _BATCH))):
        vectors, seen, chunk, inside = map(
            torch.from_numpy, data.windows(steps, context, made.horizon))
        with torch.no_grad():
            x = policy.normalise(vectors)
            elapsed = x.new_full((*x.shape[:2], 1), made.dt)
            outputs, _ = policy.core.sequence(x, elapsed, policy.initial_state(len(steps)), seen)
            answer, _, _ = policy.heads(outputs[:, -1], x[:, -1])
            truth = policy.action_scaling(chunk - policy.origin(vectors[:, -1]))
            samples = torch.stack([_plans(policy, answer, len(steps), generator, True)
                                   for _ in range(SAMPLES)], 1)
            plan = _plans(policy, answer, len(steps), generator, False)
        scale = policy.action_scaling.scale
        errors = {'error': _error(plan, truth, inside, scale),
                  'best_of_8': torch.stack([_error(samples[:, k], truth, inside, scale)
                                            for k in range(SAMPLES)]).amin(0),
                  'diversity': (samples[:, 0::2] - samples[:, 1::2]).abs().mul(scale)
                  .mean((1, 2, 3)),
                  'jerk': torch.diff(plan * scale, n=3, dim=1).abs().mean((1, 2)) / made.dt ** 3}
        if made.kind == 'mixture':
            numbers = inside.sum(1) * chunk.shape[-1]
            # The density of the scaled actions, brought back to the actions' own unit.
            errors['nll'] = (-answer.log_density(truth, inside) / numbers
                             + scale.log().mean())
        for name, value in errors.items():
            sums[name] = sums.get(name, 0.0) + float(value.sum())
        counted += len(steps)
    return {name: value / counted for name, value in sums.items()}


def _plans(policy: Policy, answer, count: int, generator: torch.Generator,
           sampled: bool) -> Tensor:
    head = policy.head
    if isinstance(answer, Mixture):
        return head.sample(answer, generator) if sampled else answer.heaviest()
    mixture = head.distribution(answer, head.draw_noise(count, generator))
    return mixture.means[:, 0]


def _error(plan: Tensor, truth: Tensor, inside: Tensor, scale: Tensor) -> Tensor:
    """Return the mean absolute error over the steps that count, `(batch,)`."""
    error = (plan - truth).abs().mul(scale).mean(-1) * inside
    return error.sum(1) / inside.sum(1)
