"""Synapses and the liquid time-constant cell, forwards and backwards, where synapses exist."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from liquid_policy.cores.fused import Weights

# Conductances computed at a time, so that they stay in the cache; the GPU wants more of them.
_BLOCK = {'cpu': 1 << 17, 'cuda': 1 << 26}


@dataclass(frozen=True)
class Packed:
    """
    Synapses by neuron: of neuron `targets[i]`, synapse k comes from `source[i, k]`.

    :param steepness: `(targets, most)`; a conductance is sigmoid(steepness * source + offset).
    :param offset: likewise.
    :param pair: weight times reversal, and weight, `(targets, 2, most)`.
    :param source: `(targets, most)`.
    :param targets: neurons that have synapses.
    :param units: number of neurons.
    """

    steepness: Tensor
    offset: Tensor
    pair: Tensor
    source: Tensor
    targets: Tensor
    units: int

    def weights(self) -> Weights:
        """Return what is learned."""
        return Weights(steepness=self.steepness, offset=self.offset, pair=self.pair)


class _Synapses:
    """The conductances of a few rows of sources, and what their gradients are."""

    def __init__(self, packed: Packed, weights: Weights, sources: int):
        self._packed, self._pair = packed, weights['pair']
        self._steepness = weights['steepness'].unsqueeze(2)
        self._offset = weights['offset'].unsqueeze(2)
        self._all = len(packed.targets) == packed.units
        # Rows of all sources stand in their order and need no gathering.
        self._dense = packed.source.shape[1] == sources
        self._pull, self._weight = (part.unsqueeze(2) for part in self._pair.unbind(1))
        self.grads = Weights((name, torch.zeros_like(value)) for name, value in (
            ('steepness', self._steepness), ('offset', self._offset), ('pair', self._pair)))

    def _gathered(self, values: Tensor) -> Tensor:
        if self._dense:
            return values.unsqueeze(0)
        source = self._packed.source
        return values.index_select(0, source.reshape(-1)).view(*source.shape, -1)

    def conductances(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return open shares `(targets, most, rows)` for `values` `(sources, rows)`."""
        gathered = self._gathered(values)
        # Not addcmul: with two factors that repeat along rows it takes five times as long.
        return (gathered * self._steepness).add_(self._offset).sigmoid_(), gathered

    def sums(self, values: Tensor) -> Tensor:
        """Return pulls and conductances `(units, 2, rows)`."""
        found = torch.bmm(self._pair, self.conductances(values)[0])
        if self._all:
            return found
        whole = found.new_zeros(self._packed.units, *found.shape[1:])
        return whole.index_copy_(0, self._packed.targets, found)

    def backward(self, values: Tensor, grad: Tensor) -> Tensor:
        """Return the gradient of `values` from that of `sums`, and add up the weights'."""
        if not self._all:
            grad = grad.index_select(0, self._packed.targets)
        opened, gathered = self.conductances(values)
        self.grads['pair'].baddbmm_(grad, opened.transpose(1, 2))
        slopes = (self._pull * grad[:, :1]).add_(self._weight * grad[:, 1:])
        torch.ops.aten.sigmoid_backward.grad_input(slopes, opened, grad_input=slopes)
        self.grads['offset'] += slopes.sum(2, keepdim=True)
        self.grads['steepness'] += torch.mul(slopes, gathered, out=opened).sum(2, keepdim=True)
        slopes *= self._steepness
        if self._dense:
            return slopes.sum(0)
        return torch.zeros_like(values).index_add_(0, self._packed.source.reshape(-1),
                                                   slopes.flatten(0, 1))

    def finish(self) -> Weights:
        """Return the weights' gradients."""
        steepness, offset = (self.grads[name].squeeze(2) for name in ('steepness', 'offset'))
        return Weights(steepness=steepness, offset=offset, pair=self.grads['pair'])


def synapse_sums(values: Tensor, packed: Packed) -> Tensor:
    """
    Return pulls and conductances of many rows, in blocks that fit the cache.

    :param values: the sources, `(..., sources)`.
    :param packed: the synapses.
    :return: `(..., 2 * units)`.
    """
    with torch.autocast(values.device.type, enabled=False):
        return _Sums.apply(packed, values, *packed.weights().values())


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, packed: Packed, values: Tensor, *weights: Tensor) -> Tensor:
        ctx.packed = packed
        ctx.save_for_backward(values, *weights)
        sources = values.shape[-1]
        synapses = _Synapses(packed, Weights(zip(packed.weights(), weights, strict=True)), sources)
        flat = values.reshape(-1, sources)
        sums = flat.new_empty(len(flat), 2, packed.units)
        for some in _blocks(packed, flat):
            sums[some] = synapses.sums(flat[some].t().contiguous()).permute(2, 1, 0)
        return sums.view(*values.shape[:-1], 2 * packed.units)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        values, *weights = ctx.saved_tensors
        packed, sources = ctx.packed, values.shape[-1]
        synapses = _Synapses(packed, Weights(zip(packed.weights(), weights, strict=True)), sources)
        flat = values.reshape(-1, sources)
        grad = grad.reshape(-1, 2, packed.units)
        before = torch.empty_like(flat)
        for some in _blocks(packed, flat):
            before[some] = synapses.backward(flat[some].t().contiguous(),
                                             grad[some].permute(2, 1, 0).contiguous()).t()
        return None, before.view_as(values), *synapses.finish().values()


def _blocks(packed: Packed, flat: Tensor) -> list[slice]:
    most = _BLOCK.get(flat.device.type, 1 << 22)
    size = max(1, most // max(1, packed.source.numel()))
    return [slice(first, first + size) for first in range(0, len(flat), size)]


class LtcCell:
    """
    The liquid time-constant cell; conductances are computed again on the way back.

    :param substeps: solver steps per step.
    :param packed: the synapses between neurons.
    :param weights: `capacity`, `leak` and `flow` (leak times rest), `(neurons,)` each.
    """

    def __init__(self, substeps: int, packed: Packed, **weights: Tensor):
        self._substeps, self._packed = substeps, packed
        self.weights = Weights(**weights, **packed.weights())

    def begin(self, projected: Tensor, elapsed: Tensor, weights: Weights) -> None:
        """Allocate what all steps keep; neurons come first, then rows."""
        self._raw = weights
        batch, time, double = projected.shape
        self._neurons = neurons = double // 2
        self._synapses = _Synapses(self._packed, weights, neurons)
        self._capacity, leak, flow = (weights[name].unsqueeze(1)
                                      for name in ('capacity', 'leak', 'flow'))
        self._steps = (elapsed.squeeze(2).t() / self._substeps).unbind(0)
        # What holds for a whole step: pull and conductance of inputs and leak.
        self._held = projected.view(batch, time, 2, neurons).permute(1, 3, 2, 0) \
            + torch.stack((flow, leak), 1)
        self._states = projected.new_empty(time, self._substeps + 1, neurons, batch)
        self._below = projected.new_empty(time, self._substeps, neurons, batch)

    def forward(self, index: int, before: Tensor, after: Tensor) -> None:
        """Take one step."""
        step, held, states = self._steps[index], self._held[index], self._states[index]
        states[0] = before.t()
        for number in range(self._substeps):
            state, below = states[number], self._below[index, number]
            pull, conductance = (self._synapses.sums(state) + held).mul_(step).unbind(1)
            torch.add(self._capacity, conductance, out=below)
            torch.addcmul(pull, self._capacity, state, out=states[number + 1]).div_(below)
        after.copy_(states[-1].t())

    def derive(self, before: Tensor, projected: Tensor) -> None:
        """Make ready to add up."""
        self._out = projected.view(*projected.shape[:2], 2, self._neurons)
        self._synapses = _Synapses(self._packed, self._raw, self._neurons)
        self._capacities = torch.zeros_like(self._capacity)

    def backward(self, index: int, after: Tensor) -> Tensor:
        """Return the gradient of the state before."""
        grad, step, states = after.t(), self._steps[index], self._states[index]
        total = torch.zeros_like(self._held[index])
        for number in reversed(range(self._substeps)):
            above = grad / self._below[index, number]
            below = -above * states[number + 1]
            self._capacities += (above * states[number] + below).sum(1, keepdim=True)
            sums = torch.stack((above, below), 1).mul_(step)
            total += sums
            grad = torch.addcmul(self._synapses.backward(states[number], sums), above,
                                 self._capacity)
        self._out[:, index] = total.permute(2, 1, 0)
        return grad.t()

    def finish(self, before: Tensor) -> Weights:
        """Return the weights' gradients."""
        flow, leak = self._out.sum((0, 1))
        return Weights(capacity=self._capacities.squeeze(1), leak=leak, flow=flow,
                       **self._synapses.finish())
