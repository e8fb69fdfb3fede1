"""The liquid time-constant cell: synapses whose conductance bends the neurons' time constants."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from liquid_policy.cores.fused import run_fused
from liquid_policy.cores.fused_ltc import LtcCell, Packed, synapse_sums
from liquid_policy.cores.protocol import Core
from liquid_policy.cores.wirings import Wiring

_EPSILON = 1e-8


def positive(raw: Tensor) -> Tensor:
    """Return a number above 0 for any parameter."""
    return functional.softplus(raw)


def _uniform(shape: tuple[int, ...], low: float, high: float) -> Tensor:
    return torch.rand(shape) * (high - low) + low


def _raw(value: Tensor) -> Tensor:
    return value + torch.log(-torch.expm1(-value))      # the inverse of softplus


class Synapses(nn.Module):
    """
    Synapses from sources to neurons: weight * sigmoid(steepness * (source - mean)).

    :param polarity: +1, -1 or 0 for no synapse, `(sources, units)`.
    """

    def __init__(self, polarity: Tensor):
        super().__init__()
        shape = tuple(polarity.shape)
        self.weight = nn.Parameter(_raw(_uniform(shape, 0.001, 1.0)))
        self.mean = nn.Parameter(_uniform(shape, 0.3, 0.8))
        self.steepness = nn.Parameter(_uniform(shape, 3.0, 8.0))
        self.reversal = nn.Parameter(polarity.clone())
        self.register_buffer('mask', polarity.abs())

    def forward(self, values: Tensor) -> Tensor:
        """Return pulls and conductances, `(..., sources)` to `(..., 2 * units)`."""
        conductance = torch.sigmoid(self.steepness * (values.unsqueeze(-1) - self.mean)) \
            * (positive(self.weight) * self.mask)
        return torch.cat(((conductance * self.reversal).sum(-2), conductance.sum(-2)), -1)

    def packed(self) -> Packed:
        """Return the synapses that exist, those of one neuron side by side."""
        counts = self.mask.sum(0)
        targets = counts.nonzero()[:, 0]
        most = int(counts.max()) if len(targets) else 0
        # A neuron's sources first, then, with weight 0, whoever fills up the row. Where somebody
        # listens to everyone, all sources stay in their order.
        source = self.mask.t()[targets].argsort(dim=1, descending=True, stable=True)[:, :most]
        if most == len(self.mask):
            source = torch.arange(most, device=source.device).expand_as(source)

        def take(values: Tensor) -> Tensor:
            return values.t()[targets].gather(1, source)

        steepness, weight = take(self.steepness), take(positive(self.weight) * self.mask)
        return Packed(steepness=steepness, offset=-steepness * take(self.mean),
                      pair=torch.stack((weight * take(self.reversal), weight), 1),
                      source=source, targets=targets, units=self.mask.shape[1])


class LtcCore(Core):
    """
    Liquid time-constant cell.

    C dv/dt = leak (rest - v) + sum of weight sigmoid(steepness (source - mean)) (reversal - v)
    over the synapses from inputs and neurons. Each step's time is cut into `substeps`, and in
    each the synapses are held and v is solved for implicitly (fused Euler), so that no gap can
    make it unstable. The state is the neurons, motor neurons first.

    :param wiring: which neuron listens to which; its masks are saved with the weights.
    :param substeps: solver steps per step.

    Source: Hasani et al., Liquid Time-constant Networks, arXiv:2006.04439. States equal those of
    ncps's LTCCell with `implicit_param_constraints` and t in units of `unit_time`; its affine
    output map is left to the heads, which begin with one.
    """

    def __init__(self, inputs: int, wiring: Wiring, unit_time: float = 0.01, substeps: int = 6):
        neurons = sum(wiring.layers)
        super().__init__(inputs, wiring.layers[-1], unit_time, neurons)
        self.substeps = substeps
        dtype = torch.get_default_dtype()
        self.scale = nn.Parameter(torch.ones(inputs))
        self.shift = nn.Parameter(torch.zeros(inputs))
        self.leak = nn.Parameter(_raw(_uniform((neurons,), 0.001, 1.0)))
        self.rest = nn.Parameter(_uniform((neurons,), -0.2, 0.2))
        self.capacity = nn.Parameter(_raw(_uniform((neurons,), 0.4, 0.6)))
        self.sensory = Synapses(torch.tensor(wiring.sensory, dtype=dtype))
        self.synapses = Synapses(torch.tensor(wiring.synapses, dtype=dtype))

    def project(self, x: Tensor) -> Tensor:
        """Return the inputs' pulls and conductances, `(..., 2 * neurons)`."""
        values = x * self.scale + self.shift
        if x.ndim == 2:
            return self.sensory(values)
        return synapse_sums(values, self.sensory.packed())

    def advance(self, projected: Tensor, elapsed: Tensor, state: Tensor) -> Tensor:
        """Return the next state."""
        step = elapsed / self.substeps
        capacity, leak = positive(self.capacity), positive(self.leak)
        for _ in range(self.substeps):
            pull, conductance = (projected + self.synapses(state)).chunk(2, -1)
            # Times the step on both sides, so that a gap of 0 s leaves the state alone.
            above = capacity * state + step * (leak * self.rest + pull)
            state = above / (capacity + step * (leak + conductance + _EPSILON))
        return state

    def fast(self, projected: Tensor, elapsed: Tensor, state: Tensor,
             mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what `_loop` returns, with the backward pass written out."""
        if elapsed.requires_grad:
            return self._loop(projected, elapsed, state, mask)
        leak = positive(self.leak)
        cell = LtcCell(self.substeps, self.synapses.packed(), capacity=positive(self.capacity),
                       leak=leak + _EPSILON, flow=leak * self.rest)
        return run_fused(cell, self.units, projected, elapsed, state, mask)
