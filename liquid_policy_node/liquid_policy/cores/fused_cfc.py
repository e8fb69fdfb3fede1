"""The closed-form cell, forwards and backwards; its equations are those of `cfc_state`."""

from __future__ import annotations

import torch
from torch import Tensor

from liquid_policy.cores.fused import BLOCK, Weights, rows

# LeCun's tanh of the backbone: 1.7159 tanh(0.666 x).
_HEIGHT, _SLOPE = 1.7159, 0.666


class CfcCell:
    """
    A closed-form cell with a backbone (`heads` and `bias` among the weights) or without.

    :param form: `gated`, `no_gate` or `pure`.
    :param weights: `recurrent` `(backbone or sums, units)`; `heads` `(sums, backbone)` and
        `bias` `(sums,)`; for `pure` also `rate` and `asymptote`, `(units,)`.
    """

    def __init__(self, form: str, weights: Weights):
        self.form, self.weights = form, weights

    def begin(self, projected: Tensor, elapsed: Tensor, weights: Weights) -> None:
        """Allocate what all steps keep; time comes first: a step's numbers lie together."""
        self._raw = weights
        batch, time, _ = projected.shape
        self._recurrent = weights['recurrent'].t()
        self._elapsed = elapsed.transpose(0, 1)
        self._times = self._elapsed.unbind(0)
        self._units = units = self._recurrent.shape[0]
        self._projected = projected.unbind(1)
        count = units * (1 if self.form == 'pure' else 4)
        self._heads = None
        if 'heads' in weights:
            fold = projected.new_ones(count)
            if self.form != 'pure':
                fold[:2 * units] = 2.0
            self._heads = (weights['heads'] * (2.0 * _HEIGHT * fold)[:, None]).t().contiguous()
            self._bias = weights['bias'] * fold
            # The sigmoid that makes the backbone's tanh, and the same less a half.
            self._hidden = projected.new_empty(time, batch, self._heads.shape[0])
            self._hidden_at = self._hidden.unbind(0)
            self._centred = torch.empty_like(self._hidden_at[0])
        self._sums = projected.new_empty(time, batch, count)
        self._sums_at = self._sums.unbind(0)
        if self.form != 'pure':
            blocks = self._sums.view(time, batch, 4, units)
            self._tanhs = self._sums[..., :2 * units].unbind(0)
            self._sigmoids = self._sums[..., :3 * units].unbind(0)
            self._early, self._late, self._gate, self._offset = (
                blocks[:, :, part].unbind(0) for part in range(4))
            self._between = projected.new_empty(batch, units)
            self._minus_one = projected.new_full((), -1.0)

    def forward(self, index: int, before: Tensor, after: Tensor) -> None:
        """Take one step."""
        sums = self._sums_at[index]
        if self._heads is not None:
            hidden, slope = self._hidden_at[index], 2.0 * _SLOPE
            torch.addmm(self._projected[index], before, self._recurrent, beta=slope, alpha=slope,
                        out=hidden)
            torch.sub(hidden.sigmoid_(), 0.5, out=self._centred)
            torch.addmm(self._bias, self._centred, self._heads, out=sums)
        else:
            torch.addmm(self._projected[index], before, self._recurrent, out=sums)
            if self.form != 'pure':
                self._tanhs[index].mul_(2.0)
        if self.form == 'pure':
            asymptote = self._raw['asymptote']
            torch.addcmul(asymptote, self._kept(sums, self._times[index]) * asymptote, sums,
                          value=-1.0, out=after)
            return
        early, late, gate = self._early[index], self._late[index], self._gate[index]
        gate.mul_(self._times[index]).add_(self._offset[index])     # it was the rate
        self._sigmoids[index].sigmoid_()
        # tanh is 2 sigmoid - 1, of early, late and what lies between them.
        if self.form == 'gated':
            torch.lerp(early, late, gate, out=self._between)
        else:
            torch.addcmul(early, gate, late, out=self._between)
        torch.add(self._minus_one, self._between, alpha=2.0, out=after)
        if self.form == 'no_gate':
            after -= gate

    def _kept(self, sums: Tensor, elapsed: Tensor) -> Tensor:
        return (sums.abs() + self._raw['rate'].abs()).mul_(elapsed).neg_().exp_()

    def derive(self, before: Tensor, projected: Tensor) -> None:
        """Compute the slopes of the gates' sums, by blocks of time."""
        self._out_at = projected.unbind(1)
        self._out = projected
        self._slopes = torch.empty_like(self._sums)
        time, batch, count = self._sums.shape
        size = max(1, BLOCK // (batch * count)) if self._sums.device.type == 'cpu' else time
        for first in range(0, time, size):
            some = slice(first, first + size)
            if self.form == 'pure':
                self._derive_pure(some)
            else:
                self._derive_gates(some)
        self._slopes_at = self._slopes.unbind(0)
        if self.form == 'pure':
            self._after = torch.empty_like(self._sums)
        if self._heads is not None:
            # A backbone's tanh(0.666 x) = 2 s - 1 with s = sigmoid(1.332 x) has the slope
            # 2.664 s (1 - s).
            self._backward_heads = self._raw['heads'] * (4.0 * _HEIGHT * _SLOPE)
        self._split = self._slopes.view(time, batch, count // self._units, self._units).unbind(0)

    def _derive_gates(self, some: slice) -> None:
        shape = (-1, self._sums.shape[1], 4, self._units)
        blocks, slopes = self._sums[some].view(shape), self._slopes[some].view(shape)
        early, late, gate = blocks[:, :, 0], blocks[:, :, 1], blocks[:, :, 2]
        # With sigmoids for tanh: tanh' = 4 s (1 - s).
        towards_late = gate - gate * gate
        towards_late *= late - early if self.form == 'gated' else late - 0.5
        torch.mul(towards_late, 2.0, out=slopes[:, :, 3])
        torch.mul(slopes[:, :, 3], self._elapsed[some], out=slopes[:, :, 2])
        gate = 4.0 * gate
        torch.mul(late - late * late, gate, out=slopes[:, :, 1])
        early = early - early * early
        torch.mul(early, 4.0 - gate if self.form == 'gated' else 4.0, out=slopes[:, :, 0])

    def _derive_pure(self, some: slice) -> None:
        sums, elapsed = self._sums[some], self._elapsed[some]
        kept = self._kept(sums, elapsed)
        self._slopes[some] = -self._raw['asymptote'] * kept * (1.0 - elapsed * sums.abs())

    def backward(self, index: int, after: Tensor) -> Tensor:
        """Return the gradient of the state before."""
        if self.form == 'pure':
            self._after[index] = after
        self._split[index].mul_(after.unsqueeze(1))
        sums, out = self._slopes_at[index], self._out_at[index]
        if self._heads is None:
            out.copy_(sums)
            return torch.mm(sums, self._raw['recurrent'])
        torch.mm(sums, self._backward_heads, out=self._centred)
        torch.ops.aten.sigmoid_backward.grad_input(self._centred, self._hidden_at[index],
                                                   grad_input=out)
        return torch.mm(out, self._raw['recurrent'])

    def finish(self, before: Tensor) -> Weights:
        """Return the weights' gradients."""
        grads = Weights(recurrent=torch.mm(rows(self._out).t(), rows(before)))
        if self._heads is not None:
            sums = rows(self._slopes)
            grads['bias'] = sums.sum(0)
            # Against sigmoid less a half, times 2.
            grads['heads'] = torch.addmm(grads['bias'][:, None], sums.t(), rows(self._hidden),
                                         beta=-_HEIGHT, alpha=2.0 * _HEIGHT)
        if self.form == 'pure':
            kept = self._kept(self._sums, self._elapsed)
            grads['rate'] = self._raw['rate'].sign() * self._raw['asymptote'] * (
                self._after * kept * self._sums * self._elapsed).sum((0, 1))
            grads['asymptote'] = torch.addcmul(self._after, self._after * kept, self._sums,
                                               value=-1.0).sum((0, 1))
        del self._slopes, self._slopes_at, self._split, self._out, self._out_at
        return Weights((name, grads[name]) for name in self.weights)
