"""
Learn to see: an image encoder from single pictures, before anything is learned from sequences.

A picture is asked where the things in it are, which the demonstrations know. That takes a
hundredth of the time of learning it through actions alone. Afterwards the encoder rests, every
picture is encoded once, and sequences are learned from the features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from liquid_policy.features import Encoder
from liquid_policy.policy import Scaling
from liquid_trainer.pictures import Pictures

# Share of the steps after which batch norm's statistics are fixed, as they will be in use.
_NORM_FIXED = 0.6


@dataclass(frozen=True)
class SightSettings:
    """How an encoder learns to see."""

    steps: int = field(default=3000, metadata={'description': 'of the optimiser'})
    batch: int = field(default=32, metadata={'description': 'pictures per step'})
    rate: float = field(default=2e-3, metadata={'description': 'largest learning rate'})
    weight_decay: float = field(default=1e-3, metadata={'description': 'AdamW'})
    seed: int = field(default=0, metadata={'description': 'of everything random'})

    def __post_init__(self):
        for name in ('steps', 'batch'):
            if getattr(self, name) < 1:
                raise ValueError(f'sight.{name}: expected at least 1, came '
                                 f'{getattr(self, name)}')
        if not (self.rate > 0.0 and self.weight_decay >= 0.0):
            raise ValueError('sight: expected a rate above 0 and a weight decay of 0 or more, '
                             f'came {self.rate} and {self.weight_decay}')


class SightLearner:
    """
    Teach an encoder where things are.

    :param encoder: taught in place.
    :param pictures: of the demonstrations.
    :param chosen: numbers of the pictures to learn from.
    :param settings: how.
    :raises ValueError: if the encoder has not as many magnifying features as the pictures want.
    """

    def __init__(self, encoder: Encoder, pictures: Pictures, chosen: np.ndarray,
                 settings: SightSettings):
        self.encoder, self.pictures, self.settings = encoder, pictures, settings
        self._chosen = np.asarray(chosen)
        size, near = pictures.places.shape[1], encoder.settings.near
        wanted = 0 if pictures.near is None else len(pictures.near[1])
        if near != wanted:
            raise ValueError(f'encoder.near: expected {wanted} for these pictures, came {near}')
        self._others = encoder.settings.size - near
        torch.manual_seed(settings.seed)
        self.places = nn.Linear(self._others, size)
        self.scaling = Scaling(size)
        self.scaling.fit(pictures.places[self._chosen])
        self.step_count = 0
        self._trained = [*encoder.parameters(), *self.places.parameters()]
        self._optimizer = torch.optim.AdamW(self._trained, lr=settings.rate, betas=(0.9, 0.99),
                                            weight_decay=settings.weight_decay)

    def step(self) -> float:
        """Take one step and return the loss."""
        settings = self.settings
        rng = np.random.default_rng((settings.seed, self.step_count))
        done = self.step_count / settings.steps
        self.step_count += 1
        for group in self._optimizer.param_groups:
            group['lr'] = settings.rate * min(1.0, 0.05 + done / 0.05) * (
                0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * done)))
        self.encoder.train(done < _NORM_FIXED)
        numbers = rng.choice(self._chosen, settings.batch)
        half = len(numbers) // 2 if self.pictures.mirror else len(numbers)
        color, places = self._batch(numbers[:half], numbers[half:])
        told = self.places(look(self.encoder, color)[:, :self._others])
        loss = functional.smooth_l1_loss(told, self.scaling(places), beta=0.05)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        return float(loss.detach())

    def finish(self) -> None:
        """Give the magnifying features their weights: what is told of places, and the tanh's."""
        if self.pictures.near is None or self.encoder.near is None:
            return
        matrix, offset = (torch.from_numpy(np.asarray(v, np.float32)) for v in self.pictures.near)
        with torch.no_grad():
            nothing = torch.zeros(1, self._others)
            bias = self.scaling.inverse(self.places(nothing))
            slope = self.scaling.inverse(self.places(torch.eye(self._others))) - bias
            self.encoder.near.weight.copy_(matrix @ slope.T)
            self.encoder.near.bias.copy_(matrix @ bias[0] + offset)

    def error(self, numbers: np.ndarray) -> float:
        """Return the median distance between where things are and were said to be, per number."""
        self.encoder.eval()
        features = encode(self.encoder, self.pictures.color[numbers])
        with torch.inference_mode():
            told = self.scaling.inverse(
                self.places(torch.from_numpy(features[:, :self._others]))).numpy()
        return float(np.median(np.abs(told - self.pictures.places[numbers])))

    def _batch(self, plain: np.ndarray, mirrored: np.ndarray) -> tuple[Tensor, Tensor]:
        made = self.pictures
        color, places = [made.color[plain]], [made.places[plain]]
        if made.mirror is not None and made.mirrored_places is not None and len(mirrored):
            color.append(made.mirror(made.color[mirrored]))
            places.append(made.mirrored_places[mirrored])
        return (torch.from_numpy(np.concatenate(color)),
                torch.from_numpy(np.concatenate(places).astype(np.float32)))


def look(encoder: Encoder, color: Tensor) -> Tensor:
    """
    Return the features of pictures of a camera without depth, `(batch, size)`.

    :param color: uint8 `(batch, height, width, 3)`.
    """
    return encoder(color, torch.zeros(color.shape[:3]))


def encode(encoder: Encoder, color: np.ndarray, batch: int = 64,
           progress: Callable[[int], None] | None = None) -> np.ndarray:
    """
    Return the features of many pictures, `(pictures, size)` float32; the encoder rests.

    :param color: uint8 `(pictures, height, width, 3)`.
    :param progress: called with the number of pictures after each batch.
    """
    encoder.eval()
    found = np.empty((len(color), encoder.settings.size), np.float32)
    with torch.inference_mode():
        for begin in range(0, len(color), batch):
            some = torch.from_numpy(np.ascontiguousarray(color[begin:begin + batch]))
            found[begin:begin + batch] = look(encoder, some).numpy()
            if progress:
                progress(len(some))
    return found
