"""The controls: long short-term memory and gated recurrent unit, told the elapsed time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from liquid_policy.cores.fused import Weights, run_fused
from liquid_policy.cores.fused_lstm import LstmCell
from liquid_policy.cores.protocol import Core


def lstm_advance(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next output and cell from the four gates' sums, `(batch, 4 * units)`."""
    keep, forget, new, show = gates.chunk(4, 1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(keep) * torch.tanh(new)
    return torch.sigmoid(show) * torch.tanh(cell), cell


def remember_by_default(bias: Tensor, units: int) -> None:
    """Open the forget gates at first (Jozefowicz et al., 2015)."""
    with torch.no_grad():
        bias[units:2 * units].fill_(1.0)


class LstmCore(Core):
    """
    Long short-term memory, the control: the elapsed time is appended to its input.

    The state is output and cell, `(batch, 2 * units)`. Equal to torch.nn.LSTMCell fed
    `[x, elapsed / unit_time - 1]`.
    """

    def __init__(self, inputs: int, units: int = 64, unit_time: float = 0.01):
        super().__init__(inputs, units, unit_time, 2 * units)
        self.cell = nn.LSTMCell(inputs + 1, units)
        remember_by_default(self.cell.bias_ih, units)

    def project(self, x: Tensor) -> Tensor:
        """Return the gates' part from the input."""
        return nn.functional.linear(x, self.cell.weight_ih[:, :-1],
                                    self.cell.bias_ih + self.cell.bias_hh)

    def advance(self, projected: Tensor, elapsed: Tensor, state: Tensor) -> Tensor:
        """Return the next output and cell."""
        output, cell = state.chunk(2, 1)
        gates = projected + (elapsed - 1.0) * self.cell.weight_ih[:, -1] \
            + nn.functional.linear(output, self.cell.weight_hh)
        return torch.cat(lstm_advance(gates, cell), 1)

    def fast(self, projected: Tensor, elapsed: Tensor, state: Tensor,
             mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what `_loop` returns, with the backward pass written out."""
        if elapsed.requires_grad:
            return self._loop(projected, elapsed, state, mask)
        cell = LstmCell(Weights(recurrent=self.cell.weight_hh,
                                timed=self.cell.weight_ih[:, -1]))
        return run_fused(cell, self.units, projected, elapsed, state, mask)


class GruCore(Core):
    """
    Gated recurrent unit, the smaller control: the elapsed time is appended to its input.

    Equal to torch.nn.GRUCell fed `[x, elapsed / unit_time - 1]`.
    """

    def __init__(self, inputs: int, units: int = 64, unit_time: float = 0.01):
        super().__init__(inputs, units, unit_time)
        self.cell = nn.GRUCell(inputs + 1, units)

    def project(self, x: Tensor) -> Tensor:
        """Return the gates' part from the input."""
        return nn.functional.linear(x, self.cell.weight_ih[:, :-1], self.cell.bias_ih)

    def advance(self, projected: Tensor, elapsed: Tensor, state: Tensor) -> Tensor:
        """Return the next output."""
        reset, update, new = (projected
                              + (elapsed - 1.0) * self.cell.weight_ih[:, -1]).chunk(3, 1)
        again = nn.functional.linear(state, self.cell.weight_hh, self.cell.bias_hh)
        more_reset, more_update, more_new = again.chunk(3, 1)
        new = torch.tanh(new + torch.sigmoid(reset + more_reset) * more_new)
        return new + torch.sigmoid(update + more_update) * (state - new)
