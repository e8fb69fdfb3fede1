"""How a fleet's weights become one: Flower's strategies, kept from what cannot be used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from liquid_trainer.fleet import FleetError, check_weights
from liquid_trainer.flower import (
    ArrayRecord,
    ConfigRecord,
    Grid,
    Message,
    MetricRecord,
    strategies,
)

# How much more than the median robot one may claim to have seen [times].
_CLAIM = 10.0
WEIGHT = 'num-examples'


def make_strategy(name: str, robots: int, malicious: int = 1, noise: float = 0.0,
                  clip: float = 1.0, score: bool = True) -> FiniteOnly:
    """
    Return how the robots' weights become one.

    :param name: `average` (of nobody but honest robots), or one that withstands broken ones:
        `median`, `trimmed`, `krum`, `multikrum`.
    :param robots: how many there are; a round waits for all that are connected.
    :param malicious: how many of them may be broken.
    :param noise: of differential privacy, times the clipped update; 0: none.
    :param clip: largest norm of a robot's update, with noise.
    :param score: let robots score what came of a round.
    :raises FleetError: if the strategy is unknown or cannot withstand so many.
    """
    common = {'min_train_nodes': robots, 'min_available_nodes': robots,
              'fraction_evaluate': 1.0 if score else 0.0,
              'min_evaluate_nodes': robots if score else 0}
    if name == 'average':
        made = strategies.FedAvg(**common)
    elif name == 'median':
        made = strategies.FedMedian(**common)
    elif name == 'trimmed':
        made = strategies.FedTrimmedAvg(beta=(malicious + 0.5) / robots, **common)
    elif name == 'krum':
        made = strategies.Krum(num_malicious_nodes=malicious, **common)
    elif name == 'multikrum':
        made = strategies.MultiKrum(num_malicious_nodes=malicious,
                                    num_nodes_to_select=robots - malicious, **common)
    else:
        raise FleetError('strategy: expected average, median, trimmed, krum or multikrum, came '
                         f'{name!r}')
    if name != 'average' and robots <= 2 * malicious + 2:
        raise FleetError(f'strategy {name}: expected more than {2 * malicious + 2} robots to '
                         f'withstand {malicious}, came {robots}')
    if noise > 0:
        made = strategies.DifferentialPrivacyClientSideFixedClipping(made, noise, clip, robots)
    return FiniteOnly(made)


class FiniteOnly(strategies.Strategy):
    """
    A strategy that never sees weights which are not finite, not the policy's, or overrated.

    :param inner: brings together what is left.
    """

    def __init__(self, inner: Any):
        self.inner = inner
        self.refused: list[tuple[int, int, str]] = []   # round, robot, why
        self._shapes: dict[str, tuple[int, ...]] = {}

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord,
                        grid: Grid) -> Iterable[Message]:
        """Ask the robots to learn."""
        self._shapes = {name: tuple(array.shape) for name, array in arrays.items()}
        return self.inner.configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]
                        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Bring together the weights that can be used; None if there are none."""
        replies = list(replies)
        claims = [_claim(reply) for reply in replies if not reply.has_error()]
        usual = float(np.median([claim for claim in claims if np.isfinite(claim)] or [0.0]))
        good = []
        for reply in replies:
            try:
                if reply.has_error():
                    raise FleetError(str(reply.error.reason))
                claim = _claim(reply)
                if not 0 < claim <= _CLAIM * usual:
                    raise FleetError(f'expected up to {_CLAIM * usual:.0f} s of demonstration, '
                                     f'came {claim}')
                record = next(iter(reply.content.array_records.values()))
                check_weights({name: array.numpy() for name, array in record.items()},
                              self._shapes)
                good.append(reply)
            except (FleetError, StopIteration, KeyError) as error:
                self.refused.append((server_round, reply.metadata.src_node_id, str(error)))
        return self.inner.aggregate_train(server_round, good) if good else (None, None)

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord,
                           grid: Grid) -> Iterable[Message]:
        """Ask the robots to score."""
        return self.inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]
                           ) -> MetricRecord | None:
        """Return the mean of the robots' scores."""
        return self.inner.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Say what is done, in the server's log."""
        self.inner.summary()


def _claim(reply: Message) -> float:
    records = list(reply.content.metric_records.values())
    claim = records[0].get(WEIGHT, 0.0) if records else 0.0
    return float(claim) if isinstance(claim, (int, float)) else 0.0
