"""Learn a policy without images from windows of array demonstrations."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from liquid_policy.policy import Policy
from liquid_trainer.arrays import ArrayEpisodes
from liquid_trainer.average import update_average
from liquid_trainer.parallel import Group, average_gradient
from liquid_trainer.resume import ResumeError


@dataclass(frozen=True)
class TaskLearningSettings:
    """How a task's policy is learned."""

    steps: int = field(default=20000, metadata={'description': 'of the optimiser'})
    batch: int = field(default=256, metadata={'description': 'windows per step'})
    context: int = field(default=2, metadata={'description': 'observations of a window'})
    rate: float = field(default=1e-3, metadata={'description': 'learning rate'})
    weight_decay: float = field(default=1e-3, metadata={'description': 'AdamW'})
    warm_up: float = field(default=0.02, metadata={'description': 'share of the steps'})
    clip: float = field(default=1.0, metadata={'description': 'largest norm of the gradient'})
    average: float = field(default=0.999, metadata={'description': 'decay of the mean weights'})
    noise: float = field(default=0.02, metadata={
        'description': 'standard deviation added to observations, normalised'})
    lost: float = field(default=0.0, metadata={
        'description': 'share of observations left out, as if they had not arrived'})
    elapsed_known: bool = field(default=True, metadata={
        'description': 'the core is told the time between observations; false: one period'})
    balance: float = field(default=0.01, metadata={'description': 'of the usage loss'})
    shards: int = field(default=1, metadata={
        'description': 'parts of every batch, which processes share out among them'})
    held_out: float = field(default=0.05, metadata={'description': 'share of episodes'})
    seed: int = field(default=0, metadata={'description': 'of everything random'})

    def __post_init__(self):
        for name in ('steps', 'batch', 'context', 'shards'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name}: expected at least 1, came {getattr(self, name)}')
        if self.batch % self.shards:
            raise ValueError(f'batch: expected a multiple of the {self.shards} shards, came '
                             f'{self.batch}')
        for name in ('rate', 'clip'):
            if not getattr(self, name) > 0.0:
                raise ValueError(f'{name}: expected above 0, came {getattr(self, name)}')
        for name in ('weight_decay', 'noise', 'balance'):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f'{name}: expected 0 or more, came {getattr(self, name)}')
        for name in ('warm_up', 'average', 'held_out', 'lost'):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f'{name}: expected 0 to below 1, came {getattr(self, name)}')
        if not isinstance(self.elapsed_known, bool):
            raise ValueError(f'elapsed_known: expected true or false, came {self.elapsed_known}')


class TaskLearner:
    """
    One step after the other on random windows; the averaged weights are the result.

    Every random number comes from `(seed, step)`, and the shard where there are several, so a
    learner that is stopped, saved and loaded goes on as if nothing had happened.

    :param policy: to be learned; its scales are set here from the data.
    :param data: episodes to learn from.
    :param settings: how.
    :param group: the processes that learn together; each takes its shards of every batch.
    """

    def __init__(self, policy: Policy, data: ArrayEpisodes, settings: TaskLearningSettings,
                 group: Group | None = None):
        self.policy, self.data, self.settings = policy, data, settings
        self.group = group or Group()
        self.group.own(settings.shards)
        self.group.check_same('learning', f'{settings} {policy.settings} {data.vectors.shape}')
        self.group.hand_out(policy.state_dict().values())
        made = policy.settings
        wanted = (made.input_size, made.action_size)
        if (data.vectors.shape[1], data.actions.shape[1]) != wanted:
            raise ValueError(
                f'data: expected {wanted[0]} numbers observed and {wanted[1]} done per step, as '
                f'the policy has, came {data.vectors.shape[1]} and {data.actions.shape[1]}')
        self.step_count = 0
        self._fit_scaling()
        parameters = [p for p in policy.parameters() if p.numel() and p.requires_grad]
        # Biases, norms and time constants are not pulled to zero.
        self.optimizer = torch.optim.AdamW(
            [{'params': [p for p in parameters if p.ndim > 1],
              'weight_decay': settings.weight_decay},
             {'params': [p for p in parameters if p.ndim <= 1], 'weight_decay': 0.0}],
            lr=settings.rate, betas=(0.9, 0.99))
        self._trained = parameters
        self.average = {name: value.detach().clone()
                        for name, value in policy.state_dict().items()}

    def _fit_scaling(self) -> None:
        policy, made = self.policy, self.policy.settings
        rng = np.random.default_rng((self.settings.seed, 0))
        steps = rng.permutation(len(self.data.vectors))[:20000]
        vectors, _, chunk, inside = self.data.windows(steps, 1, made.head.horizon)
        policy.input_scaling.fit(self.data.vectors)
        moved = torch.from_numpy(chunk) - policy.origin(torch.from_numpy(vectors[:, 0]))
        policy.action_scaling.fit(moved.numpy()[inside])

    def step(self) -> dict[str, float]:
        """Take one step and return loss, rate and the gradient's norm."""
        settings, policy = self.settings, self.policy
        self.step_count += 1
        rate = self._rate()
        for group in self.optimizer.param_groups:
            group['lr'] = settings.rate * rate
        policy.train()
        loss, parts = average_gradient(self.group, settings.shards, self._trained,
                                       list(policy.buffers()), self._shard_loss, ('balance',))
        norm = float(nn.utils.clip_grad_norm_(self._trained, settings.clip))
        # One bad batch must not end the night's work: leave it out.
        if math.isfinite(norm):
            self.optimizer.step()
            update_average(self.average, self.policy, self.step_count,
                           self.settings.average)
        return {'loss': loss, **parts, 'rate': rate, 'gradient': norm}

    def _shard_loss(self, shard: int) -> tuple[Tensor, dict[str, Tensor]]:
        settings = self.settings
        several = (shard,) if settings.shards > 1 else ()
        rng = np.random.default_rng((settings.seed, 1, self.step_count, *several))
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        # Dropout draws from the one generator that torch has for it.
        torch.manual_seed(int(rng.integers(1 << 62)))
        steps = rng.integers(0, len(self.data.vectors), settings.batch // settings.shards)
        return self._loss(self.data, steps, generator, settings.noise)

    def score(self, data: ArrayEpisodes, stride: int = 3) -> dict[str, float]:
        """
        Return the averaged weights' scores on episodes that were held out.

        :return: `loss` (for a mixture: negative log-likelihood per number), `best_error` (mean
            absolute error of the heaviest component, normalised) and `effective_components`.
        """
        policy = self.policy
        training = {name: value.clone() for name, value in policy.state_dict().items()}
        policy.load_state_dict(self.average)
        policy.eval()
        generator = torch.Generator().manual_seed(0)
        steps = np.arange(0, len(data.vectors), stride)
        with torch.no_grad():
            answer, chunk, mask = self._answer(data, steps, generator, 0.0)
            loss = policy.head.loss(answer, chunk, mask, generator)
            mixture = policy.head.distribution(
                answer, policy.head.draw_noise(len(steps), generator))
            error = (mixture.heaviest() - chunk).abs()[mask].mean()
            scores = {'loss': float(loss), 'best_error': float(error),
                      'effective_components': float(mixture.effective_components())}
        policy.load_state_dict(training)
        return scores

    def finish(self) -> None:
        """Take the averaged weights as the policy's."""
        self.policy.load_state_dict(self.average)
        self.policy.eval()

    def _rate(self) -> float:
        done, warm = (self.step_count - 1) / self.settings.steps, self.settings.warm_up
        if done < warm:
            return 0.05 + 0.95 * done / warm
        return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, (done - warm)
                                                                 / (1.0 - warm))))

    def _answer(self, data: ArrayEpisodes, steps: np.ndarray, generator: torch.Generator,
                noise: float) -> tuple[Any, Tensor, Tensor]:
        """Return the head's answer at steps, and what was done there, normalised."""
        policy, made = self.policy, self.policy.settings
        gaps = self._gaps(len(steps), generator)
        vectors, seen, chunk, inside = map(torch.from_numpy, data.windows(
            steps, self.settings.context, made.head.horizon, gaps.numpy()))
        x = policy.normalise(vectors)
        x = x + noise * torch.randn(x.shape, generator=generator)
        elapsed = x.new_full((*x.shape[:2], 1), made.head.dt)
        if self.settings.elapsed_known:
            elapsed[:, 1:, 0] *= gaps
        outputs, _ = policy.core.sequence(x, elapsed, policy.initial_state(len(steps)), seen)
        answer, _, _ = policy.heads(outputs[:, -1], x[:, -1])
        return answer, policy.action_scaling(chunk - policy.origin(vectors[:, -1])), inside

    def _gaps(self, batch: int, generator: torch.Generator) -> Tensor:
        """Return steps between observations, `(batch, context - 1)`: more than 1 where lost."""
        gaps = torch.ones((batch, self.settings.context - 1), dtype=torch.int64)
        if self.settings.lost:
            gaps.geometric_(1.0 - self.settings.lost, generator=generator)
        return gaps

    def _loss(self, data: ArrayEpisodes, steps: np.ndarray, generator: torch.Generator,
              noise: float) -> tuple[Tensor, dict[str, Tensor]]:
        answer, chunk, mask = self._answer(data, steps, generator, noise)
        loss = self.policy.head.loss(answer, chunk, mask, generator)
        balance = self.policy.head.balance(answer)
        return loss + self.settings.balance * balance, {'balance': balance}

    def save(self, path: str | Path, extra: dict[str, Any]) -> None:
        """
        Write weights, averages and optimiser; beside, then renamed.

        :param extra: plain numbers and texts of the caller, given back by `load`.
        """
        tensors = {f'policy/{k}': v for k, v in self.policy.state_dict().items()}
        tensors |= {f'average/{k}': v for k, v in self.average.items()}
        for index, slots in self.optimizer.state_dict()['state'].items():
            tensors |= {f'optimizer/{index}/{k}': torch.as_tensor(v) for k, v in slots.items()}
        meta = {'step': self.step_count, 'settings': asdict(self.settings),
                'policy': self.policy.settings.to_dict(), 'extra': extra}
        path = Path(path)
        beside = path.with_name(f'.{path.name}.{os.getpid()}.part')
        # Copies: safetensors refuses tensors that share memory or are not contiguous.
        save_file({k: v.detach().clone(memory_format=torch.contiguous_format)
                   for k, v in tensors.items()}, beside, {'state': json.dumps(meta)})
        os.replace(beside, path)

    def load(self, path: str | Path) -> dict[str, Any]:
        """
        Go on from a saved state and return the caller's `extra`.

        :raises ResumeError: if the file is damaged, or of another policy or other settings.
        """
        try:
            with safe_open(path, 'pt') as file:
                meta = json.loads(file.metadata()['state'])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ResumeError(f'{path}: expected the saved state of a training, came: {error}; '
                              'start without --resume') from error
        for name, own in (('policy', self.policy.settings.to_dict()),
                          ('settings', asdict(self.settings))):
            # States that were saved before there were shards do not name them.
            if {'shards': 1, **meta[name]} != {'shards': 1, **json.loads(json.dumps(own))}:
                raise ResumeError(f'{path}: expected {name} {own}, came {meta[name]}; use the '
                                  'same arguments')

        def named(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items()
                    if k.startswith(prefix)}

        self.step_count = meta['step']
        self.policy.load_state_dict(named('policy/'))
        self.average = named('average/')
        state = self.optimizer.state_dict()
        for name, value in named('optimizer/').items():
            index, slot = name.split('/')
            state['state'].setdefault(int(index), {})[slot] = value
        self.optimizer.load_state_dict(state)
        return meta['extra']
