"""
A sequence as one operation, its backward pass through time written out.

Autograd records every small operation of every step; for a cell of 64 units that bookkeeping,
and one product per step and weight for the weights' gradients, cost more than the arithmetic.
Here a cell's steps run on memory that is allocated once, everything of the backward pass that
does not depend on the gradient (the local slopes) is computed for the whole sequence at once,
and so are the weights' gradients. It is plain PyTorch: no compiler is needed, on any device.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Slopes are computed for this many numbers at a time, so that they stay in a processor's cache.
BLOCK = 1 << 16


class Weights(dict[str, Tensor]):
    """A cell's weights by name; their gradients come back under the same names."""


class Cell(Protocol):
    """
    One recurrence, forwards and backwards; made anew for every sequence.

    `b` stands for batch, `t` for time. A cell may keep what it likes between the calls, but
    `derive` must leave what `forward` kept as it is, for a second backward pass.
    """

    weights: Weights

    def begin(self, projected: Tensor, elapsed: Tensor, weights: Weights) -> None:
        """Make ready: `projected` `(b, t, any)`, `elapsed` `(b, t, 1)` in units of time."""

    def forward(self, index: int, before: Tensor, after: Tensor) -> None:
        """Write into `after` the state that step `index` makes of `before`, `(b, state)`."""

    def derive(self, before: Tensor, projected: Tensor) -> None:
        """
        Compute the slopes; `before` are the states that were stepped from, `(b, t, state)`.

        :param projected: where the gradient of `begin`'s `projected` is to be written.
        """

    def backward(self, index: int, after: Tensor) -> Tensor:
        """Return the gradient of the state before from that of the state after."""

    def finish(self, before: Tensor) -> Weights:
        """Return the weights' gradients, after the last `backward`."""


def run_fused(cell: Cell, units: int, projected: Tensor, elapsed: Tensor, state: Tensor,
              mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """
    Return every step's output and the last state; gradients reach all but the elapsed times.

    :param cell: the recurrence.
    :param units: how many of the state's numbers are the output.
    :param projected: what the inputs contribute, `(batch, time, any)`.
    :param elapsed: in units of the core's time, `(batch, time, 1)`.
    :param state: `(batch, state)`.
    :param mask: true where a step took place, `(batch, time)`; elsewhere the state rests.
    """
    # Sums over hundreds of steps want full precision; so mixed precision stops here.
    with torch.autocast(state.device.type, enabled=False):
        weights = [value.to(state.dtype) for value in cell.weights.values()]
        return _Loop.apply(cell, units, projected.to(state.dtype), elapsed.to(state.dtype),
                           state, mask, *weights)


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cell: Cell, units: int, projected: Tensor, elapsed: Tensor, state: Tensor,
                mask: Tensor | None, *weights: Tensor):
        batch, time = projected.shape[:2]
        cell.begin(projected, elapsed, Weights(zip(cell.weights, weights, strict=True)))
        states = state.new_empty(batch, time + 1, state.shape[1])
        states[:, 0] = state
        steps = states.unbind(1)
        masks = None if mask is None else mask.unsqueeze(2).unbind(1)
        for index in range(time):
            cell.forward(index, steps[index], steps[index + 1])
            if masks is not None:
                steps[index + 1].copy_(torch.where(masks[index], steps[index + 1], steps[index]))
        ctx.cell, ctx.units, ctx.mask = cell, units, mask
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(states, projected, *weights)
        return states[:, 1:, :units], states[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, outputs: Tensor | None, last: Tensor | None):
        states, projected = ctx.saved_tensors[:2]
        cell, units, mask = ctx.cell, ctx.units, ctx.mask
        before, projected = states[:, :-1], torch.empty_like(projected)
        cell.derive(before, projected)
        grad = torch.zeros_like(states[:, 0]) if last is None else last.clone()
        parts = None if outputs is None else outputs.unbind(1)
        masks = None if mask is None else mask.unsqueeze(2).to(states.dtype).unbind(1)
        for index in reversed(range(before.shape[1])):
            if parts is not None:
                grad[:, :units].add_(parts[index])
            if masks is None:
                grad = cell.backward(index, grad)
            else:
                moved = grad * masks[index]
                grad = cell.backward(index, moved).add_(grad.sub_(moved))
        return (None, None, projected, None, grad, None, *cell.finish(before).values())


def squash_scale(like: Tensor) -> float:
    """
    Return the factor by which sums go into `squash_`.

    On a processor torch's sigmoid is ten times as fast as its tanh (0.2 and 2.1 ns per number on
    a Zen 4 core), and tanh(x) = 2 sigmoid(2 x) - 1; the 2 costs nothing inside a product.
    """
    return 2.0 if like.device.type == 'cpu' else 1.0


def squash_(sums: Tensor) -> Tensor:
    """Turn `squash_scale` times x into tanh(x), in place."""
    if sums.device.type == 'cpu':
        return sums.sigmoid_().mul_(2.0).sub_(1.0)
    return sums.tanh_()


def rows(values: Tensor) -> Tensor:
    """Return `(b, t, any)` as `(b * t, any)`."""
    return values.reshape(-1, values.shape[-1])
