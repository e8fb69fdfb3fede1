"""Diffusion head: noise removed from a chunk step by step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liquid_policy.head_settings import DiffusionSettings
from liquid_policy.heads.head import mean_over
from liquid_policy.heads.sampler import SamplerHead


def scheduler(settings: DiffusionSettings) -> Any:
    """
    Return the scheduler of the diffusers library, ready for `settings.steps` steps.

    Its module is imported by itself: the library's front door loads much more.
    """
    shared: dict[str, Any] = {
        'num_train_timesteps': settings.noise_levels, 'beta_schedule': 'squaredcos_cap_v2',
        'clip_sample': True, 'clip_sample_range': settings.clip, 'prediction_type': 'epsilon'}
    made: Any
    if settings.schedule == 'ddim':
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        made = DDIMScheduler(set_alpha_to_one=True, steps_offset=0, **shared)
    else:
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
        made = DDPMScheduler(variance_type='fixed_small', **shared)
    made.set_timesteps(settings.steps)
    return made


def step_table(settings: DiffusionSettings) -> tuple[Tensor, Tensor]:
    """
    Return the steps from noise to chunk as numbers, so that a graph can hold them.

    With the predicted noise e, a step believes in the chunk c = (x - b e) / a, clipped, and goes
    to p c + q x + r e + s z, z fresh noise. For DDPM r is 0 and s the spread of the posterior
    (Ho et al., arXiv:2006.11239, equations 6 and 7); for DDIM q and s are 0 (Song et al.,
    arXiv:2010.02502, equation 12 with sigma 0).

    :return: times `(steps,)`, and a, b, p, q, r, s in float64, `(steps, 6)`.
    """
    schedule = scheduler(settings)
    kept = schedule.alphas_cumprod.to(torch.float64)
    rows = []
    stride = settings.noise_levels // settings.steps
    for time in schedule.timesteps.tolist():
        now = kept[time]
        before = kept[time - stride] if time >= stride else torch.ones_like(now)
        a, b = now.sqrt(), (1.0 - now).sqrt()
        zero = torch.zeros_like(now)
        if settings.schedule == 'ddim':
            p, q, r, s = before.sqrt(), zero, (1.0 - before).sqrt(), zero
        else:
            alpha = now / before
            p = before.sqrt() * (1.0 - alpha) / (1.0 - now)
            q = alpha.sqrt() * (1.0 - before) / (1.0 - now)
            r, s = zero, ((1.0 - before) / (1.0 - now) * (1.0 - alpha)).sqrt()
        rows.append(torch.stack((a, b, p, q, r, s)))
    return schedule.timesteps, torch.stack(rows)


class DiffusionHead(SamplerHead):
    """
    Learn the noise in noisy demonstrations; answer by removing it from noise step by step.

    The noise of an answer is the chunk to begin with and, for DDPM, one more for each step but
    the last.

    Source: Chi et al., Diffusion Policy, arXiv:2303.04137.
    """

    settings: DiffusionSettings

    def __init__(self, inputs: int, actions: int, settings: DiffusionSettings | None = None):
        settings = settings or DiffusionSettings()
        super().__init__(inputs, actions, settings, float(settings.noise_levels))
        times, table = step_table(settings)
        self._times: list[int] = times.tolist()
        self._table: list[list[float]] = table.tolist()
        kept = scheduler(settings).alphas_cumprod
        self.register_buffer('signal', kept.sqrt(), persistent=False)
        self.register_buffer('spread', (1.0 - kept).sqrt(), persistent=False)
        draws = settings.steps if settings.schedule == 'ddpm' else 1
        self.noise_shape = (settings.samples, draws, *self.chunk_shape)

    def chunks(self, condition: Tensor, noise: Tensor) -> Tensor:
        """
        Return one chunk for each piece of noise, in `steps` evaluations.

        :param noise: `(rows, draws, horizon, actions)`.
        """
        x, limit = noise[:, 0], self.settings.clip
        for index, (level, row) in enumerate(zip(self._times, self._table, strict=True)):
            a, b, p, q, r, s = row
            time = torch.full_like(condition[:, :1], float(level))
            error = self.network(x, time, condition)
            believed = ((x - b * error) / a).clamp(-limit, limit)
            x = p * believed + q * x + r * error
            if s > 0.0 and index + 1 < len(self._times):
                x = x + s * noise[:, index + 1]
        return x

    def loss(self, answer: Tensor, chunk: Tensor, mask: Tensor | None = None,
             generator: torch.Generator | None = None) -> Tensor:
        """Return the mean squared error of the predicted noise; see `Head.loss`."""
        noise = torch.randn(chunk.shape, generator=generator, dtype=chunk.dtype)
        level = torch.randint(0, self.settings.noise_levels, (len(chunk),), generator=generator)
        noisy = (self.signal[level, None, None] * chunk
                 + self.spread[level, None, None] * noise)
        error = self.network(noisy, level.to(chunk.dtype).unsqueeze(1), answer)
        return mean_over((error - noise).square(), mask)
