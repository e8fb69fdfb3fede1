"""A private copy of a policy that learns from windows, a little at a time."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from liquid_policy.checkpoint import Checkpoint
from liquid_policy.conversion import NANOSECONDS
from liquid_policy.export import to_policy
from liquid_policy.low_pass import CARD, LowPass
from liquid_policy.policy import Policy
from liquid_trainer.average import update_average
from liquid_trainer.online.batch import action_losses, answer_rows, target_losses
from liquid_trainer.online.consolidation import Consolidation
from liquid_trainer.online.hindsight import fill_targets
from liquid_trainer.online.refinement import Refinement
from liquid_trainer.online.reservoir import Reservoir
from liquid_trainer.online.scores import counted_ticks
from liquid_trainer.online.settings import LearnerSettings
from liquid_trainer.online.time_constants import clamp_time_constants
from liquid_trainer.online.window import Window


def resting_policy(checkpoint: Checkpoint, device: str = 'cpu') -> Policy:
    """
    Return a checkpoint's policy without its encoder, which rests: features are the inputs.

    Its attribute `low_pass` is the filter of its vectors, or None.
    """
    policy = to_policy(checkpoint)
    policy.encoder = None
    policy.low_pass = LowPass.of(checkpoint)
    return policy.to(device)


def with_filter(checkpoint: Checkpoint, settings: LearnerSettings) -> Checkpoint:
    """Return the checkpoint with the input filter that the settings ask for, if they ask."""
    if not settings.low_pass:
        return checkpoint
    return replace(checkpoint, card={**checkpoint.card, CARD: settings.low_pass})


class OnlineLearner:
    """
    Core and heads of a policy, stepped on recent and on old windows; encoder and scales rest.

    A step is cut into passes, between which whoever calls it can rest. What may be promoted is
    not the weights themselves but their running average.
    """

    def __init__(self, checkpoint: Checkpoint, settings: LearnerSettings | None = None,
                 folder: Path | None = None):
        """
        Copy the policy.

        :param checkpoint: where learning begins.
        :param settings: how.
        :param folder: of the reservoir; None keeps it in memory.
        """
        self.settings = settings = settings or LearnerSettings()
        self.policy = resting_policy(with_filter(checkpoint, settings), settings.device)
        self._trained = list(self.policy.parameters())
        self.reservoir = Reservoir(folder, settings.reservoir, settings.seed)
        self.recent: deque[Window] = deque()
        self.consolidation = Consolidation(self._trained, settings.consolidation)
        self._measured = False
        self._attended: int | None = None
        self._refinement = Refinement(self.policy, settings.refinement, settings.refinement_rate,
                                      settings.hold, settings.clip, settings.seed)
        self._random = np.random.default_rng(settings.seed)
        self._generator = torch.Generator(settings.device).manual_seed(settings.seed)
        self._scales = {
            name: getattr(self.policy, f'{name}_scaling').scale.cpu().numpy()
            for name in ('action', 'target')}
        self.throttle = 1.0
        self.steps = self.refused = 0
        self.rate = 0.0
        self.gradient = self.loss = self.loss_start = float('nan')
        self._first: list[float] = []
        self._begin()

    def _begin(self) -> None:
        """Start optimiser and average anew from the present weights."""
        settings = self.settings
        matrices = [p for p in self._trained if p.ndim > 1]
        rest = [p for p in self._trained if p.ndim <= 1]
        self._optimizer = torch.optim.AdamW(
            [{'params': matrices, 'weight_decay': settings.weight_decay},
             {'params': rest, 'weight_decay': 0.0}], lr=settings.rate)
        self.average = {name: value.detach().clone()
                        for name, value in self.policy.state_dict().items()}
        self._since = 0
        self._refinement.clear()

    def restart(self, weights: Mapping[str, Tensor]) -> None:
        """Go on from other weights: what was learned since was a mistake."""
        self.policy.load_state_dict(dict(weights))
        self._begin()

    def add(self, window: Window) -> None:
        """Keep a window to learn from; what is no longer recent goes."""
        if self.settings.hindsight:
            window = fill_targets(window, self._scales['target'])
        newest = int(window.ticks[-1])
        if self.recent and newest <= self.recent[-1].ticks[-1]:
            self.recent.clear()     # time went back
        self.recent.append(window)
        while newest - self.recent[0].ticks[-1] > self.settings.recent * NANOSECONDS:
            # Only what is no longer recent: else what comes now would crowd out what was before.
            self.reservoir.offer(self.recent.popleft())

    def rehearse(self, window: Window) -> None:
        """Keep a window of what the policy could do before, to learn it again."""
        self.reservoir.offer(fill_targets(window, self._scales['target'])
                             if self.settings.hindsight else window)

    def forget(self, episode: str) -> int:
        """
        Forget the windows of an episode that is not to be learned from.

        :return: how many there were.
        """
        before = len(self.recent)
        self.recent = deque(window for window in self.recent if window.episode != episode)
        return before - len(self.recent) + self.reservoir.forget(episode)

    def step(self) -> Iterator[None]:
        """
        Take one optimisation step; yields between its passes.

        A step whose loss or gradient is not finite is left out, and the rate is halved.
        """
        settings = self.settings
        if not self.recent:
            return
        if settings.consolidation and not self._measured:
            yield from self._measure()
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for _ in range(settings.micro_batches):
            loss = self._loss(self._draw(settings.windows)) / settings.micro_batches
            loss.backward()
            total += float(loss.detach())
            yield
        self.consolidation.add_gradient()
        self.gradient = float(nn.utils.clip_grad_norm_(self._trained, settings.clip))
        if not (math.isfinite(total) and math.isfinite(self.gradient)):
            self.refused += 1
            self.slow_down()
            return
        self._since += 1
        warm = min(1.0, self._since / max(settings.warm_up, 1))
        self.rate = settings.rate * warm * self.throttle
        for group in self._optimizer.param_groups:
            group['lr'] = self.rate
        self._optimizer.step()
        clamp_time_constants(self.policy.core)
        update_average(self.average, self.policy, self._since, settings.average)
        self._note(total)

    def refine(self) -> Iterator[None]:
        """Fit the estimate's head anew, for a candidate; yields once in a while."""
        yield from self._refinement.fit(self.throttle)
        if self.settings.refinement:
            self.average |= {f'estimate.{name}': value.detach().clone()
                             for name, value in self.policy.estimate.state_dict().items()}

    def attend(self, since: int | None, running: Policy | None = None) -> None:
        """
        Learn of the recent windows only from those that begin at a stamp or later.

        :param since: [ns]; None: from all.
        :param running: its estimate's head is what fits begin with from now on.
        """
        self._attended = since
        self._refinement.clear()
        if running is not None:
            self._refinement.begin_with(running.estimate)

    def slow_down(self) -> None:
        """Halve the learning rate, down to an eighth."""
        self.throttle = max(self.throttle / 2.0, 0.125)

    def speed_up(self) -> None:
        """Raise the learning rate again, up to the full one."""
        self.throttle = min(self.throttle * 1.5, 1.0)

    def _note(self, loss: float) -> None:
        self.steps += 1
        if len(self._first) < 10:
            self._first.append(loss)
            self.loss_start = float(np.mean(self._first))
        self.loss = loss if self.steps == 1 else self.loss + 0.1 * (loss - self.loss)

    def _draw(self, count: int) -> list[Window]:
        """Windows of one pass: recent ones, the newest more often, and old ones."""
        drawn: list[Window] = []
        since = self._attended
        recent = self.recent if since is None else [
            window for window in self.recent if window.ticks[0] >= since] or [self.recent[-1]]
        for _ in range(count):
            if self._random.random() < self.settings.replay and len(self.reservoir):
                drawn += self.reservoir.draw(1)
            else:
                # Skewed to the newest: the mean age is a third of the oldest's.
                place = 1.0 - self._random.random() ** 2
                drawn.append(recent[int(place * len(recent) * 0.999999)])
        length = len(self.recent[-1].ticks)
        return [window for window in drawn if len(window.ticks) == length] or [self.recent[-1]]

    def _loss(self, windows: list[Window]) -> Tensor:
        settings = self.settings
        ticks = np.stack([self._ticks(window) for window in windows])
        with self._precision():
            rows = answer_rows(self.policy, windows, ticks)
        action = action_losses(self.policy, rows, self._generator)
        there = rows.known.any(1)
        keep = there & (action <= self._most(action, there))
        old = torch.tensor([self._attended is not None and int(window.ticks[0]) < self._attended
                            for window in windows])
        self._refinement.keep(rows, old.to(rows.window.device)[rows.window])
        target = target_losses(rows)
        seen = torch.isfinite(rows.targets).any(1)
        return ((action * keep).sum() / keep.sum().clamp_min(1)
                + settings.target_weight * (target * seen).sum() / seen.sum().clamp_min(1))

    def _most(self, action: Tensor, there: Tensor) -> Tensor:
        """
        Return the largest loss of a row that still counts.

        Source: trimmed losses, Shen and Sanghavi, Learning with bad training data via iterative
        trimmed loss minimization, arXiv:1810.11874.
        """
        if not self.settings.trim or not bool(there.any()):
            return action.new_tensor(math.inf)
        return torch.quantile(action.detach()[there].float(), 1.0 - self.settings.trim)

    def _ticks(self, window: Window) -> np.ndarray:
        """Ticks whose losses count, drawn so that corrections come up more often."""
        settings = self.settings
        every = counted_ticks(window, settings.burn_in, 1)
        weight = np.where(window.corrected(self._scales['action'], settings.tolerance)[every],
                          settings.correction, 1.0)
        count = len(counted_ticks(window, settings.burn_in, settings.stride))
        # Systematic sampling: evenly spaced where weights are equal.
        edges = np.cumsum(weight) / weight.sum()
        points = (np.arange(count) + self._random.random()) / count
        return every[np.minimum(np.searchsorted(edges, points), len(every) - 1)]

    def _precision(self) -> Any:
        settings = self.settings
        wanted = settings.precision
        if wanted == 'auto':
            gpu = settings.device.startswith('cuda') and torch.cuda.is_bf16_supported()
            wanted = 'bfloat16' if gpu else 'float32'
        if wanted == 'float32':
            return contextlib.nullcontext()
        return torch.autocast(settings.device.split(':')[0], torch.bfloat16)

    def _measure(self) -> Iterator[None]:
        """Measure what old skills depend on, once there are enough windows."""
        count = self.settings.fisher_windows
        if len(self.reservoir) < count:
            return
        self._measured = True
        yield from self.consolidation.measure(
            [partial(self._loss, [window]) for window in self.reservoir.draw(count)])
