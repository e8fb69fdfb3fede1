"""
Safety as a layer: the nearest safe action to what a network proposes, with gradients.

`project` takes the constraints `low <= A u <= high` that the run-time filter is built from;
`BarrierLayer` makes them itself, from barrier functions b(x) >= 0 of a control-affine system
`dx/dt = f(x) + g(x) u`. For relative degree r

    psi_0 = b,    psi_i = d/dt psi_(i-1) + p_i psi_(i-1),    i = 1 ... r

and the last, `psi_r(x, u) >= 0`, is a linear constraint of u. As long as it holds, and all psi
were 0 or more at first, b stays so. The gains p_i > 0 (linear class-K functions) say how fast the
boundary may be approached; they are learned, one per barrier and order, or come from the network
for each state. A gain's own rate of change is left out, as in the source: between two calls it
is a constant.

Source: Xiao, Hasani, Li and Rus, BarrierNet, arXiv:2111.11277; Xiao and Belta, High order control
barrier functions, arXiv:1903.04706.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from liquid_policy.batched_qp import Status, solve
from liquid_policy.nearest_point import solve_saddle

# Price of violating one unit of a row, against 1 for changing the action by one unit.
_LAST_RESORT = 1e6


class InfeasibleError(ValueError):
    """No action satisfies the constraints of some rows of a batch."""


@dataclass(frozen=True)
class Projected:
    """
    Safe actions, and what had to be done for them.

    :param action: differentiable, of the proposal's dtype, `(batch, n)`.
    :param changed: whether the proposal was not safe; elsewhere it came back bit for bit,
        bool `(batch,)`.
    :param feasible: whether every hard row holds; elsewhere the action violates them least,
        bool `(batch,)`.
    :param slack: how far soft rows (and, where infeasible, all) lie beyond their bounds, without
        gradient, `(batch, m)`.
    """

    action: Tensor
    changed: Tensor
    feasible: Tensor
    slack: Tensor


def project(
    proposal: Tensor, matrix: Tensor, low: Tensor, high: Tensor, weight: Tensor | None = None,
    price: Tensor | None = None, relax: bool = True, method: str = 'auto',
) -> Projected:
    """
    The actions nearest to proposals that satisfy `low <= A u <= high`.

    Differentiable with respect to every tensor but `price`, exactly: by the implicit function
    theorem at the solution's active rows. Computed in float64 whatever comes in.

    :param proposal: `(batch, n)`.
    :param matrix: A, `(batch, m, n)`.
    :param low: lower bounds, -inf where there is none, `(batch, m)`.
    :param high: upper bounds, inf where there is none, `(batch, m)`.
    :param weight: metric: price of changing each entry, above 0; 1 when left out, `(batch, n)`.
    :param price: makes rows soft: price of the square of their violation, inf for a hard row;
        all are hard when left out, `(batch, m)`.
    :param relax: what to do where no action satisfies the hard rows: violate them least and say
        so in `feasible`, or raise.
    :param method: how the active rows are found, see `batched_qp.solve`.
    :raises InfeasibleError: if not `relax`, naming the rows of the batch.
    :raises ValueError: if a shape does not fit, or a number is not finite.
    """
    weight = torch.ones_like(proposal) if weight is None else weight
    _check(proposal, matrix, low, high, weight, price)
    exact = _Exact(*(item.double() for item in (proposal, matrix, low, high, weight)))
    point, status = _nearest(exact, price, method)
    feasible = status <= Status.PROJECTED
    if not bool(feasible.all()):
        bad = torch.nonzero(~feasible)[:, 0]
        if not relax:
            raise InfeasibleError(
                f'expected constraints that some action satisfies, came {len(bad)} of '
                f'{len(feasible)} rows without (first: row {int(bad[0])}); make constraints soft '
                'with `price`, or give the state more distance to its limits')
        part = _Exact(*(item[bad] for item in exact))
        soft = _LAST_RESORT * part.weight.amax(1, keepdim=True).expand_as(part.low)
        soft = soft if price is None else torch.minimum(soft, price.double()[bad])
        point = point.index_copy(0, bad, _nearest(part, soft.detach(), method)[0])
    changed = status != Status.INSIDE
    action = torch.where(changed[:, None], point.to(proposal.dtype), proposal)
    with torch.no_grad():
        value = torch.einsum('bmn,bn->bm', exact.matrix, point)
        slack = torch.maximum(exact.low - value, value - exact.high).clamp_min(0.0)
    return Projected(action, changed, feasible, slack.to(proposal.dtype))


class _Exact(NamedTuple):
    """A batch of problems in float64."""

    proposal: Tensor
    matrix: Tensor
    low: Tensor
    high: Tensor
    weight: Tensor


def _nearest(problem: _Exact, price: Tensor | None, method: str) -> tuple[Tensor, Tensor]:
    """Return point and status; every soft row gets a slack: `low <= A u + s <= high`."""
    if price is None:
        return _Nearest.apply(*problem, method)
    soft = torch.isfinite(price)
    columns = torch.nonzero(soft.any(0))[:, 0]
    widened = torch.diag_embed(soft.double())[:, :, columns]
    costs = torch.where(soft, price.double(), 1.0)[:, columns]
    point, status = _Nearest.apply(
        torch.cat((problem.proposal, torch.zeros_like(costs)), 1),
        torch.cat((problem.matrix, widened), 2), problem.low, problem.high,
        torch.cat((problem.weight, costs), 1), method)
    return point[:, :problem.proposal.shape[1]], status


class _Nearest(torch.autograd.Function):
    """
    `batched_qp.solve` with its derivative.

    At the solution `W (u - p) + A' y = 0` and, for the active rows, `A u = bound`. Differentiating
    both gives one linear system; its transpose, solved once for the incoming gradient, gives the
    gradients of all inputs. A row that could not be solved teaches nothing.
    """

    @staticmethod
    def forward(ctx: Any, proposal: Tensor, matrix: Tensor, low: Tensor, high: Tensor,
                weight: Tensor, method: str) -> tuple[Tensor, Tensor]:
        solution = solve(proposal, matrix, low, high, weight, method)
        ctx.save_for_backward(proposal, matrix, weight, low, high, solution.point,
                              solution.multiplier, solution.active, solution.status)
        ctx.mark_non_differentiable(solution.status)
        return solution.point, solution.status

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, _status: Tensor):
        proposal, matrix, weight, low, high, point, y, active, status = ctx.saved_tensors
        by_proposal = torch.where((status == Status.INSIDE)[:, None], gradient, 0.0)
        by_matrix, by_weight = torch.zeros_like(matrix), torch.zeros_like(weight)
        by_low, by_high = torch.zeros_like(low), torch.zeros_like(low)
        at = torch.nonzero(status == Status.PROJECTED)[:, 0]
        if len(at):
            proposal, matrix, weight, low, high, point, y, active, gradient = (
                item[at] for item in (proposal, matrix, weight, low, high, point, y, active,
                                      gradient))
            root = weight.rsqrt()
            rows = matrix * root[:, None]
            length = rows.square().sum(2).sqrt().clamp_min(torch.finfo(rows.dtype).tiny)
            right = gradient * root
            d, e = solve_saddle(rows / length[..., None] * active[..., None], right,
                                torch.zeros_like(length), right, torch.zeros_like(length))
            d, e = d * root, e / length
            by_proposal[at] = weight * d
            by_weight[at] = -d * (point - proposal)
            by_matrix[at] = -(y[..., None] * d[:, None] + e[..., None] * point[:, None])
            # Two equal bounds move together: each has half of the effect.
            share = torch.where(low == high, 0.5, (y > 0.0).to(e.dtype))
            by_high[at], by_low[at] = e * share, e * (1.0 - share)
        return by_proposal, by_matrix, by_low, by_high, by_weight, None


StateFunction = Callable[[Tensor], Tensor]


class HighOrderBarrier(nn.Module):
    """
    The linear constraint on u that keeps barrier functions at 0 or above.

    :param barrier: b, from `(batch, states)` to `(batch, barriers)`; made of torch functions.
    :param drift: f, from `(batch, states)` to `(batch, states)`.
    :param actuation: g, from `(batch, states)` to `(batch, states, n)`.
    :param order: relative degree r: the first time derivative of b that contains u.
    :param gains: gains p to begin with [1/s], one row per barrier, `(barriers, order)`.
    """

    def __init__(self, barrier: StateFunction, drift: StateFunction, actuation: StateFunction,
                 order: int, gains: Sequence[Sequence[float]]):
        super().__init__()
        first = torch.as_tensor(gains, dtype=torch.float64)
        if order < 1 or first.ndim != 2 or first.shape[1] != order:
            raise ValueError(f'gains: expected (barriers, {order}) numbers for order {order}, at '
                             f'least 1, came {tuple(first.shape)}')
        if not bool((first > 0.0).all()):
            raise ValueError(f'gains: expected numbers above 0, came {gains}')
        self.barrier, self.drift, self.actuation, self.order = barrier, drift, actuation, order
        # The inverse of softplus, so that the gains are these at first and above 0 ever after.
        self.raw = nn.Parameter((first + torch.log(-torch.expm1(-first)))
                                .to(torch.get_default_dtype()))

    @property
    def gains(self) -> Tensor:
        """The learned gains [1/s], all above 0, `(barriers, order)`."""
        return functional.softplus(self.raw)

    def forward(self, state: Tensor, gains: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        Return A and the lower bound of A u.

        :param state: x, `(batch, states)`.
        :param gains: gains for each state, above 0, `(batch, barriers, order)`; the learned ones
            when left out.
        :return: `(batch, barriers, n)` and `(batch, barriers)`.
        """
        given = self.gains.expand(len(state), *self.raw.shape) if gains is None else gains
        if given.shape != (len(state), *self.raw.shape):
            raise ValueError(f'gains: expected {(len(state), *self.raw.shape)}, came '
                             f'{tuple(given.shape)}')
        wanted = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            x, given, chain = self._follow(state, given)
            slope = _gradient(chain[-1], x)
            matrix = torch.einsum('bks,bsn->bkn', slope, self.actuation(x))
            drifting = torch.einsum('bks,bs->bk', slope, self.drift(x))
            low = -(drifting + given[..., -1] * chain[-1])
        return (matrix, low) if wanted else (matrix.detach(), low.detach())

    def chain(self, state: Tensor, gains: Tensor | None = None) -> Tensor:
        """
        Return psi_0 to psi_(r-1), which must all be 0 or more at first, `(batch, barriers, r)`.

        :param state: x, `(batch, states)`.
        :param gains: as in `forward`.
        """
        given = self.gains.expand(len(state), *self.raw.shape) if gains is None else gains
        with torch.inference_mode(False), torch.enable_grad():
            return torch.stack(self._follow(state, given)[2], 2).detach()

    def check(self, state: Tensor) -> None:
        """
        Refuse a wrong relative degree, which would leave the barrier without effect.

        :param state: some states away from special places, `(batch, states)`.
        :raises ValueError: if u enters earlier than `order` says, or not at all.
        """
        with torch.inference_mode(False), torch.enable_grad():
            x, _, chain = self._follow(state, self.gains.expand(len(state), *self.raw.shape))
            actuated = [torch.einsum('bks,bsn->bkn', _gradient(psi, x), self.actuation(x))
                        for psi in chain]
        for index, row in enumerate(actuated):
            enters = (row != 0.0).any(2).any(0)
            last = index == self.order - 1
            if bool((enters != last).any()):
                raise ValueError(
                    f'order: expected the relative degree of every barrier, came {self.order}; u '
                    + (f'does not enter at order {index + 1} of all' if last
                       else f'enters at order {index + 1} already'))

    def _follow(self, state: Tensor, gains: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the state as something to differentiate by, gains, and psi_0 to psi_(r-1)."""
        if state.is_inference() or gains.is_inference():    # these cannot be differentiated by
            state, gains = state.clone(), gains.clone()
        x = state if state.requires_grad else state.detach().requires_grad_()
        chain = [self.barrier(x)]
        for index in range(self.order - 1):
            rate = torch.einsum('bks,bs->bk', _gradient(chain[-1], x), self.drift(x))
            chain.append(rate + gains[..., index] * chain[-1])
        return x, gains, chain


def _gradient(psi: Tensor, state: Tensor) -> Tensor:
    """Return the gradient of every barrier, itself differentiable, `(batch, barriers, states)`."""
    slopes = []
    for column in psi.unbind(1):
        slope = None
        if column.requires_grad:
            slope, = torch.autograd.grad(column.sum(), state, create_graph=True,
                                         allow_unused=True)
        slopes.append(torch.zeros_like(state) if slope is None else slope)
    return torch.stack(slopes, 1)


class BarrierLayer(nn.Module):
    """
    Last layer of a policy: any proposal in, an action that keeps barriers and bounds out.

    :param barrier: what must stay at 0 or above.
    :param low: lowest action, `(n,)`.
    :param high: highest action, `(n,)`.
    :param weight: price of changing each entry; 1 when left out, `(n,)`.
    :param price: price of the square of a barrier's violation; None: barriers are hard.
    """

    def __init__(self, barrier: HighOrderBarrier, low: Tensor, high: Tensor,
                 weight: Tensor | None = None, price: float | None = None):
        super().__init__()
        if low.ndim != 1 or low.shape != high.shape or not bool((low <= high).all()):
            raise ValueError(f'low, high: expected (n,) with low <= high, came {low} and {high}')
        self.barrier, self.price = barrier, price
        self.register_buffer('low', low.clone())
        self.register_buffer('high', high.clone())
        self.register_buffer('weight', torch.ones_like(low) if weight is None else weight.clone())

    def forward(self, proposal: Tensor, state: Tensor,
                raw_gains: Tensor | None = None) -> Projected:
        """
        Return the nearest safe actions; the bounds of the action are always hard.

        :param proposal: `(batch, n)`.
        :param state: x, `(batch, states)`.
        :param raw_gains: a network's output, made positive by softplus here,
            `(batch, barriers, order)`; the learned gains when left out.
        """
        gains = None if raw_gains is None else functional.softplus(raw_gains)
        matrix, low = self.barrier(state, gains)
        batch, count, size = matrix.shape
        box = torch.eye(size, dtype=matrix.dtype, device=matrix.device).expand(batch, -1, -1)
        price = None
        if self.price is not None:
            price = torch.cat((low.new_full((batch, count), self.price),
                               low.new_full((batch, size), torch.inf)), 1)
        return project(
            proposal, torch.cat((matrix, box), 1),
            torch.cat((low, self.low.expand(batch, -1)), 1),
            torch.cat((torch.full_like(low, torch.inf), self.high.expand(batch, -1)), 1),
            self.weight.expand(batch, -1), price)


def _check(proposal: Tensor, matrix: Tensor, low: Tensor, high: Tensor, weight: Tensor,
           price: Tensor | None) -> None:
    if proposal.ndim != 2 or matrix.ndim != 3:
        raise ValueError(f'expected a proposal (batch, n) and a matrix (batch, m, n), came '
                         f'{tuple(proposal.shape)} and {tuple(matrix.shape)}')
    batch, m, n = len(proposal), matrix.shape[1], proposal.shape[1]
    wanted = {'matrix': (matrix, (batch, m, n)), 'low': (low, (batch, m)),
              'high': (high, (batch, m)), 'weight': (weight, (batch, n))}
    if price is not None:
        wanted['price'] = (price, (batch, m))
    for name, (value, shape) in wanted.items():
        if value.shape != shape:
            raise ValueError(f'{name}: expected {shape}, came {tuple(value.shape)}')
    for name, value in (('proposal', proposal), ('matrix', matrix), ('weight', weight)):
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f'{name}: expected finite numbers, came some that are not')
    if bool(torch.isnan(low).any() | torch.isnan(high).any()):
        raise ValueError('low, high: expected numbers or infinity, came NaN')
    if not bool((weight > 0.0).all()):
        raise ValueError(f'weight: expected numbers above 0, came {float(weight.min())}')
    if price is not None and not bool((price > 0.0).all()):
        raise ValueError(f'price: expected numbers above 0, came {float(price.min())}')
