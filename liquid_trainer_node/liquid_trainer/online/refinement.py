"""The estimate's head, fitted to what the core said lately; cheap, so it begins anew each time."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from liquid_policy.policy import Policy
from liquid_trainer.online.batch import Rows, estimate_losses


class Refinement:
    """
    Fits the estimate's head to the core's outputs of the last optimisation steps.

    Nothing passes back through time, so two hundred of its steps take as long as two or three
    that train the core. New conditions mostly ask for another reading of what the core sees
    already. Each fit begins with the same head and ends after few steps, so it stays near it, and
    what one fit got wrong the next does not inherit. On rows of old conditions it is held to what
    that head says: labels would trade what it does well for what it does badly.

    Sources: last layers suffice under many shifts; Kirichenko et al., Last layer re-training is
    sufficient for robustness to spurious correlations, arXiv:2204.02937. Old inputs, the old
    answers; Li and Hoiem, Learning without forgetting, arXiv:1606.09282.

    :param policy: its estimate's head is fitted in place; as it is now, a fit begins.
    :param hold: weight of the divergence from the old answers on rows of old conditions.
    :param steps: of a fit; 0 switches it off.
    :param rate: learning rate at first; it falls to 0 evenly.
    :param clip: largest norm of the gradient.
    :param seed: of the rows drawn.
    :param batch: rows of one step.
    :param kept: optimisation steps whose rows are kept.
    """

    def __init__(self, policy: Policy, steps: int, rate: float, hold: float, clip: float,
                 seed: int, batch: int = 256, kept: int = 32):
        self._head, self._steps, self._rate, self._clip = policy.estimate, steps, rate, clip
        self._hold, self._batch = hold, batch
        self._start = copy.deepcopy(policy.estimate)
        self._random = np.random.default_rng(seed)
        self._rows: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=kept)

    def begin_with(self, head: nn.Module) -> None:
        """Begin fits with another head than the first."""
        self._start.load_state_dict(head.state_dict())

    def clear(self) -> None:
        """Forget all rows."""
        self._rows.clear()

    def keep(self, rows: Rows, old: Tensor) -> None:
        """
        Keep the rows of one optimisation step.

        :param old: which of them come from old conditions, bool `(rows,)`.
        """
        known = torch.isfinite(rows.targets).any(1)
        if self._steps and bool(known.any()):
            self._rows.append((rows.inputs[known].detach(), rows.targets[known], old[known]))

    def fit(self, throttle: float) -> Iterator[None]:
        """
        Fit the head; yields once in a while. Where there are no rows it stays as it is.

        :param throttle: share of the learning rate.
        """
        if not self._rows:
            return
        inputs, targets, old = (torch.cat(column) for column in zip(*self._rows, strict=True))
        self._head.load_state_dict(self._start.state_dict())
        with torch.no_grad():
            said, said_scale = self._start(inputs)
        trained = list(self._head.parameters())
        optimizer = torch.optim.Adam(trained, lr=self._rate)
        for number in range(self._steps):
            for group in optimizer.param_groups:
                group['lr'] = self._rate * throttle * (1.0 - number / self._steps)
            chosen = torch.from_numpy(self._random.integers(len(inputs), size=self._batch))
            chosen = chosen.to(inputs.device)
            optimizer.zero_grad(set_to_none=True)
            mean, scale = self._head(inputs[chosen])
            apart = _divergence(said[chosen], said_scale[chosen], mean, scale)
            loss = torch.where(old[chosen], self._hold * apart,
                               estimate_losses(mean, scale, targets[chosen]))
            loss.mean().backward()
            if not math.isfinite(float(nn.utils.clip_grad_norm_(trained, self._clip))):
                self.clear()
                self._head.load_state_dict(self._start.state_dict())
                return
            optimizer.step()
            if number % 8 == 7:
                yield


def _divergence(mean: Tensor, scale: Tensor, other: Tensor, other_scale: Tensor) -> Tensor:
    """Kullback-Leibler divergence of normal distributions from others, per number, `(rows,)`."""
    wide = (scale.square() + (other - mean).square()) / other_scale.square()
    return (0.5 * (wide - 1.0) + (other_scale / scale).log()).mean(1)
