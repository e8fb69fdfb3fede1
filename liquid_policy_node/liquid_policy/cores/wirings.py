"""Which neuron listens to which: a layered neural circuit, or everyone to everyone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Wiring:
    """
    Synapses of a network: +1 excites, -1 inhibits, 0 is no synapse.

    Neurons are numbered motor first, then command, then inter, so that a state's first numbers
    are the motor neurons, which the heads see.

    :param sensory: from inputs to neurons, `(inputs, units)`.
    :param synapses: from neurons to neurons, `(units, units)`.
    :param layers: numbers of inter, command and motor neurons; one number for a single layer.
    """

    sensory: np.ndarray
    synapses: np.ndarray
    layers: tuple[int, ...]

    def __post_init__(self):
        units = sum(self.layers)
        if self.synapses.shape != (units, units) or self.sensory.shape[1:] != (units,):
            raise ValueError(f'wiring: expected synapses of {units} neurons, came shapes '
                             f'{self.synapses.shape} and {self.sensory.shape}')

    @property
    def members(self) -> list[np.ndarray]:
        """Return the numbers of each layer's neurons, first layer first."""
        ends = np.cumsum(self.layers[::-1])
        ranges = [np.arange(end - size, end)
                  for size, end in zip(self.layers[::-1], ends, strict=True)]
        return ranges[::-1]


def dense_wiring(inputs: int, units: int, seed: int = 0) -> Wiring:
    """Return a wiring of everyone to everyone, two of three synapses excitatory."""
    rng = np.random.default_rng(seed)
    return Wiring(rng.choice([-1, 1, 1], (inputs, units)), rng.choice([-1, 1, 1], (units, units)),
                  (units,))


def circuit_wiring(inputs: int, units: int, outputs: int, sparsity: float = 0.5,
                   seed: int = 0) -> Wiring:
    """
    Return a neural circuit: inputs to inter, inter to command, command to motor neurons.

    Every neuron gets a fixed number of random synapses, command neurons also listen to each
    other, and neurons that nobody would have listened to are connected afterwards.

    :param outputs: motor neurons, fewer than `units - 2`.
    :param sparsity: share of possible synapses left out, 0 to 1.
    :raises ValueError: if the numbers leave no inter or command neurons.

    Source: Lechner et al., Neural circuit policies enabling auditable autonomy, Nature Machine
    Intelligence 2, 2020; sizes of the layers as in ncps's `AutoNCP`.
    """
    if not 0 < outputs < units - 2:
        raise ValueError(f'outputs: expected 1 to {units - 3} motor neurons of {units}, came '
                         f'{outputs}')
    rng = np.random.default_rng(seed)
    command = max(int(0.4 * (units - outputs)), 1)
    inter = units - outputs - command
    layers = (inter, command, outputs)
    wiring = Wiring(np.zeros((inputs, units), int), np.zeros((units, units), int), layers)
    inters, commands, motors = wiring.members
    density = 1.0 - sparsity

    def count(of: int, share: float = density) -> int:
        return max(int(of * share), 1)

    _fan_out(rng, wiring.sensory, np.arange(inputs), inters, count(inter))
    _fan_out(rng, wiring.synapses, inters, commands, count(command))
    for _ in range(count(command, 2 * density)):
        source, target = rng.choice(commands, 2)
        wiring.synapses[source, target] = rng.choice([-1, 1])
    # Motor neurons choose whom to listen to; the transpose turns fan-in into fan-out.
    _fan_out(rng, wiring.synapses.T, motors, commands, count(command))
    return wiring


def _fan_out(rng: np.random.Generator, matrix: np.ndarray, sources: np.ndarray,
             targets: np.ndarray, count: int) -> None:
    """Draw `count` targets per source, then sources for targets that were left out."""
    for source in sources:
        matrix[source, rng.choice(targets, count, replace=False)] = rng.choice([-1, 1], count)
    mean = int(np.clip(len(sources) * count // len(targets), 1, len(sources)))
    for target in targets:
        if not matrix[sources, target].any():
            matrix[rng.choice(sources, mean, replace=False), target] = rng.choice([-1, 1], mean)
