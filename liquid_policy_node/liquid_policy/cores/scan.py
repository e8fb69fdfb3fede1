"""A liquid core that is linear in its state, so that a whole sequence is computed at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from liquid_policy.cores.protocol import Core


def linear_scan(keep: Tensor, add: Tensor, start: Tensor) -> Tensor:
    """
    Return h of h[t] = keep[t] h[t - 1] + add[t] for all t, in about 2 sqrt(time) operations.

    The recurrence is associative: two steps in a row are one step of the same kind. Time is cut
    into about sqrt(time) blocks; all blocks advance together as if each began at 0, the blocks'
    ends are chained, and what a block really began with is added at last. Nothing is divided or
    exponentiated, so it is as exact as the loop for any `keep`, zeros included.

    :param keep: share of the state that stays, `(batch, time, units)`.
    :param add: what comes to it, likewise.
    :param start: h before the first step, `(batch, units)`.
    :return: `(batch, time, units)`.

    Source: Blelloch, Prefix sums and their applications, 1990; with two levels.
    """
    return _Scan.apply(keep, add, start)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, keep: Tensor, add: Tensor, start: Tensor) -> Tensor:
        states = _scan(keep, add, start)
        ctx.save_for_backward(keep, states, start)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        keep, states, start = ctx.saved_tensors
        # The gradient obeys the same recurrence, from the last step to the first.
        later = torch.cat((keep[:, 1:], keep.new_zeros(keep[:, :1].shape)), 1)
        grad = _scan(later, grad, torch.zeros_like(start), backwards=True)
        kept = torch.empty_like(keep)
        torch.mul(grad[:, 1:], states[:, :-1], out=kept[:, 1:])
        torch.mul(grad[:, 0], start, out=kept[:, 0])
        return kept, grad, grad[:, 0] * keep[:, 0]


def _scan(keep: Tensor, add: Tensor, start: Tensor, backwards: bool = False) -> Tensor:
    batch, time, units = add.shape
    size = max(1, math.isqrt(time))
    blocks = -(-time // size)
    rest = blocks * size - time
    if rest:
        # Steps that change nothing, after the last one in the direction of the scan.
        ends = (0, 0, rest, 0) if backwards else (0, 0, 0, rest)
        keep, add = functional.pad(keep, ends, value=1.0), functional.pad(add, ends)
    keep, add = (value.reshape(batch, blocks, size, units) for value in (keep, add))
    states, product = torch.empty_like(add), torch.empty_like(keep)
    inner = range(size)[::-1] if backwards else range(size)
    outer = range(blocks)[::-1] if backwards else range(blocks)
    before = None
    for index in inner:
        if before is None:
            states[:, :, index], product[:, :, index] = add[:, :, index], keep[:, :, index]
        else:
            torch.addcmul(add[:, :, index], keep[:, :, index], states[:, :, before],
                          out=states[:, :, index])
            torch.mul(keep[:, :, index], product[:, :, before], out=product[:, :, index])
        before = index
    begins = add.new_empty(batch, blocks, 1, units)
    carried = start
    for block in outer:
        begins[:, block, 0] = carried
        carried = torch.addcmul(states[:, block, before], product[:, block, before], carried)
    states = states.addcmul_(product, begins).view(batch, blocks * size, units)
    return states[:, rest:] if backwards else states[:, :time]


class ScanCore(Core):
    """
    Liquid units whose time constant and rest depend on the input, but not on the state.

    dh/dt = rate(z) (u(z) - h) with z held over a step has the exact solution
    h' = keep h + (1 - keep) u(z), keep = exp(-elapsed rate(z)), which is linear in h. So a
    sequence needs no loop over time. What a state would have contributed to its own rate
    comes from depth instead: z of the first layer is the input, z of the next ones is the input
    and the states of the layer before. The state is the layers', last layer first.

    Time constants begin between 2 and 100 steps and stay between 1 ms and 1000 s; u is a tanh,
    so states stay within [-1, 1].

    Source: the solution of a leaky integrator; made input-dependent as in Hasani et al., Liquid
    Time-constant Networks, arXiv:2006.04439, and without the state in the gates as in Feng et
    al., Were RNNs All We Needed?, arXiv:2410.01201.
    """

    def __init__(self, inputs: int, units: int = 64, unit_time: float = 0.01, layers: int = 2):
        super().__init__(inputs, units, unit_time, layers * units)
        self.seen = nn.Linear(inputs, layers * 2 * units)
        self.below = nn.ModuleList(nn.Linear(units, 2 * units, bias=False)
                                   for _ in range(layers - 1))
        with torch.no_grad():
            steps = torch.logspace(math.log10(2.0), math.log10(100.0), units)
            for weight, bias in zip(self.seen.weight.chunk(layers), self.seen.bias.chunk(layers),
                                    strict=True):
                nn.init.xavier_uniform_(weight[:units])
                weight[units:] *= 0.3
                bias[:units].zero_()
                bias[units:] = -steps.log()         # log of the rate [1 / unit_time]
            for layer in self.below:
                nn.init.orthogonal_(layer.weight[:units])
                layer.weight[units:] *= 0.3

    def project(self, x: Tensor) -> Tensor:
        """Return all layers' parts from the input."""
        return self.seen(x)

    def _coefficients(self, sums: Tensor, elapsed: Tensor) -> tuple[Tensor, Tensor]:
        rest, rate = sums.chunk(2, -1)
        least, most = math.log(self.unit_time / 1e3), math.log(self.unit_time / 1e-3)
        keep = torch.exp(-elapsed * rate.clamp(least, most).exp())
        return keep, (1.0 - keep) * torch.tanh(rest)

    def advance(self, projected: Tensor, elapsed: Tensor, state: Tensor) -> Tensor:
        """Return the next state, layer by layer."""
        after: list[Tensor] = []
        parts = projected.chunk(len(self.below) + 1, 1)
        for index, before in enumerate(state.split(self.units, 1)[::-1]):
            sums = parts[index]
            if after:
                sums = sums + self.below[index - 1](after[-1])
            keep, add = self._coefficients(sums, elapsed)
            after.append(keep * before + add)
        return torch.cat(after[::-1], 1)

    def fast(self, projected: Tensor, elapsed: Tensor, state: Tensor,
             mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what `_loop` returns, each layer in one scan over time."""
        states: list[Tensor] = []
        parts = projected.chunk(len(self.below) + 1, 2)
        for index, before in enumerate(state.split(self.units, 1)[::-1]):
            sums = parts[index]
            if states:
                sums = sums + self.below[index - 1](states[-1])
            keep, add = self._coefficients(sums, elapsed)
            if mask is not None:
                rests = ~mask.unsqueeze(2)
                keep, add = keep.masked_fill(rests, 1.0), add.masked_fill(rests, 0.0)
            states.append(linear_scan(keep, add, before))
        return states[-1], torch.cat([value[:, -1] for value in states[::-1]], 1)
