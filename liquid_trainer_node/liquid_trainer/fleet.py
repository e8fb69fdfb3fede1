"""
A robot of a fleet: it learns what it is sent on its own demonstrations, and sends that back.

Images, joints and actions stay on the robot; what travels are the weights of core and heads. The
encoder and the scales come from the checkpoint that all robots have and rest, so that a number
means the same on every robot. Who brings the weights together is of no concern here; see
`fleet_app` for Flower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from liquid_policy.policy import Policy
from liquid_trainer.learner import Learner
from liquid_trainer.scores import held_out_scores
from liquid_trainer.settings import LearningSettings
from liquid_trainer.windows import Demonstrations

_PARTS = ('core.', 'head.', 'estimate.')


class FleetError(ValueError):
    """Weights that cannot be learned from."""


@dataclass(frozen=True)
class FleetSettings:
    """How a robot learns between two exchanges."""

    rounds: int = field(default=30, metadata={'description': 'exchanges in all'})
    steps: int = field(default=20, metadata={'description': 'of the optimiser per round'})
    batch: int = field(default=16, metadata={'description': 'streams'})
    window: float = field(default=1.0, metadata={'description': 'of a stream', 'unit': 's'})
    rate: float = field(default=2e-3, metadata={'description': 'learning rate, first rounds'})
    seed: int = field(default=0, metadata={'description': 'of everything random'})

    def __post_init__(self):
        for name in ('rounds', 'steps', 'batch'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name}: expected at least 1, came {getattr(self, name)}')
        for name in ('window', 'rate'):
            if not getattr(self, name) > 0:
                raise ValueError(f'{name}: expected above 0, came {getattr(self, name)}')

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> FleetSettings:
        """Return the settings that are among some values."""
        return cls(**{name: values[name] for name in asdict(cls()) if name in values})


def travelling_weights(policy: Policy) -> dict[str, np.ndarray]:
    """Return copies of the weights that robots exchange, by name."""
    return {name: value.detach().cpu().numpy().copy()
            for name, value in policy.state_dict().items() if name.startswith(_PARTS)}


def take_weights(policy: Policy, weights: Mapping[str, np.ndarray]) -> None:
    """
    Put weights that came into a policy.

    :raises FleetError: if they are of another policy or not finite; the policy stays as it was.
    """
    known = travelling_weights(policy)
    check_weights(weights, {name: value.shape for name, value in known.items()})
    policy.load_state_dict({name: torch.from_numpy(np.array(value, known[name].dtype))
                            for name, value in weights.items()}, strict=False)


def check_weights(weights: Mapping[str, np.ndarray],
                  shapes: Mapping[str, tuple[int, ...]]) -> None:
    """
    Make sure that weights can be used.

    :param shapes: of those expected, by name.
    :raises FleetError: if names or shapes differ, or a number is not finite.
    """
    if weights.keys() != shapes.keys():
        odd = sorted(weights.keys() ^ shapes.keys())
        raise FleetError(f"weights: expected those of the fleet's policy, came others: "
                         f'{", ".join(odd[:3])}; start from the same checkpoint')
    for name, value in weights.items():
        if tuple(value.shape) != tuple(shapes[name]):
            raise FleetError(f'{name}: expected the shape {tuple(shapes[name])}, came '
                             f'{tuple(value.shape)}')
        if not np.isfinite(value).all():
            raise FleetError(f'{name}: expected finite numbers, came '
                             f'{int((~np.isfinite(value)).sum())} others')


class FleetMember:
    """
    One robot's share in the learning.

    :param policy: of the checkpoint that all robots start from; its encoder and scales rest.
    :param data: the robot's own demonstrations.
    :param features: of all their images, `(images, size)`.
    :param held: the robot's own demonstrations that it does not learn from; None: no scores.
    :param held_features: likewise.
    :param target_units: of the interface.
    :param settings: how it learns.
    """

    def __init__(self, policy: Policy, data: Demonstrations, features: np.ndarray,
                 held: Demonstrations | None, held_features: np.ndarray | None,
                 target_units: tuple[str, ...], settings: FleetSettings):
        self.policy, self.data, self.settings = policy, data, settings
        self._features, self._units = features, target_units
        self._held, self._held_features = held, held_features

    @property
    def seconds(self) -> int:
        """Seconds of demonstration, what a robot's weights count by; at least 1."""
        return max(1, round(self.data.ticks * self.data.tick))

    def learn(self, weights: Mapping[str, np.ndarray], round_number: int
              ) -> tuple[dict[str, np.ndarray], float]:
        """
        Learn on the robot's demonstrations, starting from weights that came.

        Nothing is kept from one round to the next, so a robot may be switched off in between.

        :param round_number: 1 for the first; sets the learning rate and what is drawn.
        :return: the weights to send back, and the mean loss.
        :raises FleetError: if the weights that came cannot be used.
        """
        made = self.settings
        take_weights(self.policy, weights)
        learner = Learner(self.policy, self.data, LearningSettings(
            steps=(0, made.rounds * made.steps, 0), core_batch=made.batch,
            core_window=made.window, core_rate=made.rate,
            seed=made.seed + 1000 * round_number))
        learner.features = self._features
        learner.begin('core')
        begun = (round_number - 1) / made.rounds
        losses = [learner.step(begun + step / (made.steps * made.rounds))['loss']
                  for step in range(made.steps)]
        return travelling_weights(self.policy), float(np.mean(losses))

    def score(self, weights: Mapping[str, np.ndarray]) -> dict[str, float]:
        """
        Return the scores of weights on the robot's held-out demonstrations.

        :return: see `held_out_scores`.
        :raises FleetError: if there are none, or the weights cannot be used.
        """
        if self._held is None or self._held_features is None:
            raise FleetError('score: expected held-out demonstrations, came none')
        take_weights(self.policy, weights)
        self.policy.eval()
        return held_out_scores(self.policy, self._held, self._held_features, self._units)
