"""Long short-term memory, forwards and backwards; alone, or as the memory of a liquid cell."""

from __future__ import annotations

import torch
from torch import Tensor

from liquid_policy.cores.fused import BLOCK, Cell, Weights, rows, squash_, squash_scale


class LstmCell:
    """
    Long short-term memory; the state is output and cell, `(b, 2 * units)`.

    :param weights: `recurrent` `(4 * units, units)`, in the order of torch.nn.LSTMCell; where the
        elapsed time less 1 is one of the inputs, its weights `timed` `(4 * units,)`.
    """

    def __init__(self, weights: Weights):
        self.weights = weights

    def begin(self, projected: Tensor, elapsed: Tensor, weights: Weights) -> None:
        """Allocate what all steps keep."""
        self._recurrent, self._timed = weights['recurrent'], weights.get('timed')
        batch, time, _ = projected.shape
        self._late = elapsed - 1.0
        self._late_at = self._late.unbind(1)
        self._units = units = self._recurrent.shape[1]
        self._scale = squash_scale(projected)
        self._projected = projected.unbind(1)
        self._gates = projected.new_empty(batch, time, 4, units)
        self._gates_at = self._gates.view(batch, time, 4 * units).unbind(1)
        self._keep, self._forget, self._new, self._show = (
            self._gates[:, :, part].unbind(1) for part in range(4))
        self._shown = projected.new_empty(batch, time, units)       # tanh of the cell
        self._shown_at = self._shown.unbind(1)

    def forward(self, index: int, before: Tensor, after: Tensor) -> None:
        """Take one step."""
        units, gates, new = self._units, self._gates_at[index], self._new[index]
        torch.addmm(self._projected[index], before[:, :units], self._recurrent.t(), out=gates)
        if self._timed is not None:
            gates += self._late_at[index] * self._timed
        if self._scale == 1.0:
            value = new.tanh()
            gates.sigmoid_()
            new.copy_(value)
        else:
            new.mul_(2.0)
            gates.sigmoid_()
            new.mul_(2.0).sub_(1.0)
        cell = after[:, units:]
        torch.mul(self._forget[index], before[:, units:], out=cell)
        cell.addcmul_(self._keep[index], new)
        shown = squash_(torch.mul(cell, self._scale, out=self._shown_at[index]))
        torch.mul(self._show[index], shown, out=after[:, :units])

    def derive(self, before: Tensor, projected: Tensor) -> None:
        """Compute the slopes of the gates' sums where their gradient is to be written."""
        batch, time, count = projected.shape
        slopes = projected.unflatten(2, (4, self._units))
        cells = torch.empty_like(self._shown)
        size = max(1, BLOCK // (time * count)) if projected.device.type == 'cpu' else batch
        for first in range(0, batch, size):
            some = slice(first, first + size)
            keep, forget, new, show = self._gates[some].unbind(2)
            shown = self._shown[some]
            torch.mul(new, keep - keep * keep, out=slopes[some, :, 0])
            torch.mul(before[some, :, self._units:], forget - forget * forget,
                      out=slopes[some, :, 1])
            torch.sub(keep, keep * new * new, out=slopes[some, :, 2])
            torch.mul(shown, show - show * show, out=slopes[some, :, 3])
            torch.sub(show, show * shown * shown, out=cells[some])
        self._cells = cells.unbind(1)
        self._out, self._out_at = projected, projected.unbind(1)
        self._inner = slopes[:, :, :3].unbind(1)
        self._outer = slopes[:, :, 3].unbind(1)

    def backward(self, index: int, after: Tensor) -> Tensor:
        """Return the gradient of output and cell before."""
        output, cell = after[:, :self._units], after[:, self._units:]
        cell = torch.addcmul(cell, output, self._cells[index])
        self._inner[index].mul_(cell.unsqueeze(1))
        self._outer[index].mul_(output)
        before = torch.empty_like(after)
        torch.mm(self._out_at[index], self._recurrent, out=before[:, :self._units])
        torch.mul(cell, self._forget[index], out=before[:, self._units:])
        return before

    def finish(self, before: Tensor) -> Weights:
        """Return the weights' gradients."""
        sums = rows(self._out).t()
        grads = Weights(recurrent=torch.mm(sums, rows(before[..., :self._units])))
        if self._timed is not None:
            grads['timed'] = torch.mv(sums, self._late.reshape(-1))
        del self._out, self._out_at, self._inner, self._outer, self._cells
        return grads


class MemoryCell:
    """
    A memory that hands a liquid cell the state it starts from; the state is output and memory.

    What the inputs contribute is the memory's part followed by the liquid cell's.
    """

    def __init__(self, memory: LstmCell, liquid: Cell, units: int):
        self._memory, self._liquid, self._units = memory, liquid, units
        self.weights = Weights(
            [(f'memory.{name}', value) for name, value in memory.weights.items()]
            + [(f'liquid.{name}', value) for name, value in liquid.weights.items()])

    def begin(self, projected: Tensor, elapsed: Tensor, weights: Weights) -> None:
        """Share the weights out."""
        shares: dict[str, Weights] = {'memory': Weights(), 'liquid': Weights()}
        for name, value in weights.items():
            part, _, rest = name.partition('.')
            shares[part][rest] = value
        split = 4 * self._units
        self._memory.begin(projected[..., :split], elapsed, shares['memory'])
        self._liquid.begin(projected[..., split:], elapsed, shares['liquid'])
        self._start = projected.new_empty(*projected.shape[:2], 2 * self._units)
        self._start_at = self._start.unbind(1)

    def forward(self, index: int, before: Tensor, after: Tensor) -> None:
        """Take one step."""
        start, units = self._start_at[index], self._units
        self._memory.forward(index, before, start)
        self._liquid.forward(index, start[:, :units], after[:, :units])
        after[:, units:] = start[:, units:]

    def derive(self, before: Tensor, projected: Tensor) -> None:
        """Compute the slopes of both."""
        split = 4 * self._units
        self._memory.derive(before, projected[..., :split])
        self._liquid.derive(self._start[..., :self._units], projected[..., split:])

    def backward(self, index: int, after: Tensor) -> Tensor:
        """Return the gradient of output and memory before."""
        after = after.clone()
        after[:, :self._units] = self._liquid.backward(index, after[:, :self._units])
        return self._memory.backward(index, after)

    def finish(self, before: Tensor) -> Weights:
        """Return the gradients of both."""
        memory = self._memory.finish(before)
        liquid = self._liquid.finish(self._start[..., :self._units])
        return Weights([(f'memory.{name}', value) for name, value in memory.items()]
                       + [(f'liquid.{name}', value) for name, value in liquid.items()])
