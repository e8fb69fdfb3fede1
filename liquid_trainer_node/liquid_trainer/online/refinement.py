"""More steps of the estimate's head on what the core said lately; cheap, so there can be many."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from liquid_policy.policy import Policy
from liquid_trainer.online.batch import Rows, estimate_losses


class Refinement:
    """
    Fits the estimate's head to the core's outputs of the last optimisation steps.

    Nothing passes back through time, so twenty of its steps take as long as a quarter of one that
    trains the core. New conditions mostly ask for another reading of what the core sees already.

    Source: last layers suffice under many shifts; Kirichenko et al., Last layer re-training is
    sufficient for robustness to spurious correlations, arXiv:2204.02937.

    :param policy: its estimate's head is trained in place.
    :param steps: after each optimisation step; 0 switches it off.
    :param rate: learning rate.
    :param clip: largest norm of the gradient.
    :param seed: of the rows drawn.
    :param batch: rows of one step.
    :param kept: optimisation steps whose rows are kept.
    """

    def __init__(self, policy: Policy, steps: int, rate: float, clip: float, seed: int,
                 batch: int = 256, kept: int = 16):
        self._head, self._steps, self._rate, self._clip = policy.estimate, steps, rate, clip
        self._batch = batch
        self._trained = list(self._head.parameters())
        self._random = np.random.default_rng(seed)
        self._rows: deque[tuple[Tensor, Tensor]] = deque(maxlen=kept)
        self.restart()

    def restart(self) -> None:
        """Start anew from the present weights."""
        self._optimizer = torch.optim.Adam(self._trained, lr=self._rate)
        self._rows.clear()

    def keep(self, rows: Rows) -> None:
        """Keep the rows of one optimisation step."""
        known = torch.isfinite(rows.targets).any(1)
        if self._steps and bool(known.any()):
            self._rows.append((rows.inputs[known].detach(), rows.targets[known]))

    def run(self, throttle: float, hold: Callable[[], None]) -> Iterator[None]:
        """
        Take the steps; yields once in a while.

        :param throttle: share of the learning rate.
        :param hold: adds the gradient of what old skills depend on.
        """
        if not self._rows:
            return
        inputs, targets = (torch.cat(column) for column in zip(*self._rows, strict=True))
        for group in self._optimizer.param_groups:
            group['lr'] = self._rate * throttle
        for number in range(self._steps):
            chosen = torch.from_numpy(self._random.integers(len(inputs), size=self._batch))
            chosen = chosen.to(inputs.device)
            self._optimizer.zero_grad(set_to_none=True)
            mean, scale = self._head(inputs[chosen])
            loss = estimate_losses(mean, scale, targets[chosen]).mean()
            loss.backward()
            hold()
            gradient = float(nn.utils.clip_grad_norm_(self._trained, self._clip))
            if not math.isfinite(gradient):
                self._rows.clear()
                return
            self._optimizer.step()
            if number % 8 == 7:
                yield
