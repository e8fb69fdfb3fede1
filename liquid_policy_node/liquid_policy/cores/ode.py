"""A leaky integrator with a learned drive, integrated numerically."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from liquid_policy.cores.fused import Weights, rows, run_fused, squash_, squash_scale
from liquid_policy.cores.protocol import Core
from liquid_policy.cores.wirings import Wiring

# Shares of the slopes so far that lead to each stage, and of all that make the step.
_STAGES = {'euler': (0.0,), 'rk4': (0.0, 0.5, 0.5, 1.0)}
_SHARES = {'euler': (1.0,), 'rk4': (1 / 6, 1 / 3, 1 / 3, 1 / 6)}
# Longest stable substep, times tau's smallest value: 2 for Euler, 2.785 for RK4, less a margin.
_STABLE = {'euler': 0.01, 'rk4': 0.025}
_TAU = (0.01, 1.0)      # [s]
# What stands for Dormand-Prince in an exported step, which cannot choose its own steps.
_EXPORTED_SUBSTEPS = 8


class OdeCore(Core):
    """
    Leaky integrator with a learned drive: dh/dt = -h / tau + f(h, x).

    tau is learned per unit and clamped to [0.01, 1.0] s; f = tanh(W [x, h] + b) / tau, so that
    |h| stays below 1; x is held over the step. `substeps` equal steps of Euler's or the
    classic fourth-order method cover the elapsed time. `dopri5` chooses its own steps
    (torchdiffeq, with the adjoint equation for gradients where asked for): a reference and a way
    to train; what is exported then is the classic method with eight substeps.

    The fixed-step methods are unstable beyond a substep of 0.01 s (Euler) and 0.025 s at the
    smallest tau. Of a longer gap they integrate the first part; over the rest the drive is
    held at its last value, for which the decay is exact: h' = d + (h - d) exp(-rest / tau).

    :param units: neurons; all of them are seen by the heads unless they are wired.
    :param solver: `euler`, `rk4` or `dopri5`.
    :param substeps: fixed steps per step.
    :param adjoint: gradients of `dopri5` by the adjoint equation: less memory, less exact.
    :param tolerance: of `dopri5`, relative and absolute.
    :param wiring: which neuron listens to which; its mask is saved with the weights. The heads
        see its motor neurons. Everyone listens to everyone when left out.
    :raises ImportError: if `dopri5` is asked for and torchdiffeq is not installed.
    """

    def __init__(self, inputs: int, units: int = 64, unit_time: float = 0.01, substeps: int = 2,
                 solver: str = 'rk4', adjoint: bool = False, tolerance: float = 1e-5,
                 wiring: Wiring | None = None):
        super().__init__(inputs, wiring.layers[-1] if wiring else units, unit_time, units)
        self.drive = nn.Linear(inputs + units, units)
        self.log_tau = nn.Parameter(torch.linspace(-3.9, -0.7, units))     # 0.02 to 0.5 s
        self.substeps, self.solver = substeps, solver
        self.adjoint, self.tolerance = adjoint, tolerance
        if solver == 'dopri5':
            _torchdiffeq()
        self.wired = wiring is not None
        if wiring:
            heard = np.concatenate((wiring.sensory, wiring.synapses)) != 0
            self.register_buffer('mask', torch.tensor(heard.T, dtype=self.drive.weight.dtype))

    def _weights(self) -> tuple[Tensor, Tensor]:
        """Return the drive's weights from the inputs and from the state."""
        weight = self.drive.weight * self.mask if self.wired else self.drive.weight
        return weight[:, :self.inputs], weight[:, self.inputs:]

    @property
    def tau(self) -> Tensor:
        """Return the time constants [s], `(units,)`."""
        return self.log_tau.exp().clamp(*_TAU)

    def project(self, x: Tensor) -> Tensor:
        """Return the drive's part from the input."""
        return functional.linear(x, self._weights()[0], self.drive.bias)

    def _driven(self, projected: Tensor, state: Tensor) -> Tensor:
        return torch.tanh(projected + functional.linear(state, self._weights()[1]))

    def derivative(self, projected: Tensor, state: Tensor) -> Tensor:
        """Return dh/dt [1/s]; the drive is scaled by 1 / tau so that |h| stays below 1."""
        return (self._driven(projected, state) - state) / self.tau

    def advance(self, projected: Tensor, elapsed: Tensor, state: Tensor) -> Tensor:
        """Return the state `elapsed` units of time later."""
        elapsed = elapsed * self.unit_time
        solver, substeps = self.solver, self.substeps
        if solver == 'dopri5':
            if not torch.jit.is_tracing() and not torch.compiler.is_exporting():
                return self._integrate(projected, elapsed, state)
            solver, substeps = 'rk4', max(substeps, _EXPORTED_SUBSTEPS)
        longest = _STABLE[solver] * substeps
        step = elapsed.clamp(max=longest) / substeps
        for _ in range(substeps):
            slopes: list[Tensor] = []
            for share in _STAGES[solver]:
                at = state + share * step * slopes[-1] if slopes else state
                slopes.append(self.derivative(projected, at))
            total = sum(share * slope for share, slope in zip(_SHARES[solver], slopes,
                                                              strict=True))
            state = state + step * total
        rest = (elapsed - longest).clamp(min=0.0)
        driven = self._driven(projected, state)
        return state + (driven - state) * (1.0 - torch.exp(-rest / self.tau))

    def _integrate(self, projected: Tensor, elapsed: Tensor, state: Tensor) -> Tensor:
        # Every row has a time of its own, so all run from 0 to 1 at a speed of their own.
        library, field = _torchdiffeq(), _Field(self)
        # What is held is part of what is integrated: the adjoint equation then finds its
        # gradient without following it into the graph that it came from.
        parts = (state, projected, elapsed)
        given = {'method': 'dopri5', 'rtol': self.tolerance, 'atol': self.tolerance,
                 'options': {'norm': lambda parts: parts[0].square().mean().sqrt()}}
        times = elapsed.new_tensor([0.0, 1.0])
        if self.adjoint:
            found = library.odeint_adjoint(field, parts, times,
                                           adjoint_params=tuple(self.parameters()), **given)
        else:
            found = library.odeint(field, parts, times, **given)
        return found[0][-1]

    def fast(self, projected: Tensor, elapsed: Tensor, state: Tensor,
             mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what `_loop` returns, with the backward pass written out."""
        if self.solver == 'dopri5' or elapsed.requires_grad:
            return self._loop(projected, elapsed, state, mask)
        cell = _OdeCell(self.solver, self.substeps, self.unit_time, Weights(
            recurrent=self._weights()[1], tau=self.tau))
        return run_fused(cell, self.units, projected, elapsed, state, mask)


class _Field(nn.Module):
    """The derivative over a step that lasts from 0 to 1; inputs and elapsed times are held."""

    def __init__(self, core: OdeCore):
        super().__init__()
        self.core = core

    def forward(self, time: Tensor, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        state, projected, elapsed = parts
        return (elapsed * self.core.derivative(projected, state), torch.zeros_like(projected),
                torch.zeros_like(elapsed))


class _OdeCell:
    """The fixed-step methods, and what is left of a gap after them, forwards and backwards."""

    def __init__(self, solver: str, substeps: int, unit_time: float, weights: Weights):
        self.weights = weights
        self._stages, self._shares = _STAGES[solver], _SHARES[solver]
        self._longest = _STABLE[solver] * substeps
        self._substeps, self._unit_time = substeps, unit_time

    def begin(self, projected: Tensor, elapsed: Tensor, weights: Weights) -> None:
        """Allocate what all steps keep."""
        self._raw = weights
        batch, time, units = projected.shape
        self._rate = 1.0 / weights['tau']
        self._scale = squash_scale(projected)
        self._projected = projected.unbind(1)
        elapsed = elapsed * self._unit_time
        self._steps = (elapsed.clamp(max=self._longest) / self._substeps).unbind(1)
        rests = (elapsed - self._longest).clamp(min=0.0)
        self._rests = {index: rests[:, index] for index in
                       rests.amax((0, 2)).nonzero()[:, 0].tolist()}
        self._crossed: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        count = self._substeps * len(self._stages)
        # Where the drive was evaluated, and what it was.
        self._at = projected.new_empty(time, count, batch, units)
        self._driven = torch.empty_like(self._at)

    def forward(self, index: int, before: Tensor, after: Tensor) -> None:
        """Take one step."""
        state, step, number = before, self._steps[index], 0
        recurrent, scale = self._raw['recurrent'].t(), self._scale
        ats, drivens = self._at[index].unbind(0), self._driven[index].unbind(0)
        for _ in range(self._substeps):
            slope, total = state, None
            for stage, share in zip(self._stages, self._shares, strict=True):
                at, driven = ats[number], drivens[number]
                if total is None:
                    at.copy_(state)
                else:
                    torch.addcmul(state, slope, step, value=stage, out=at)
                torch.addmm(self._projected[index], at, recurrent, beta=scale, alpha=scale,
                            out=driven)
                slope = (squash_(driven) - at).mul_(self._rate)
                total = slope * share if total is None else total.add_(slope, alpha=share)
                number += 1
            state = torch.addcmul(state, total, step)
        if index in self._rests:
            driven = squash_(torch.addmm(self._projected[index], state, recurrent, beta=scale,
                                         alpha=scale))
            kept = torch.exp(-self._rests[index] * self._rate)
            self._crossed[index] = state, driven, kept
            state = torch.lerp(driven, state, kept)
        after.copy_(state)

    def derive(self, before: Tensor, projected: Tensor) -> None:
        """Compute the slopes of the drive."""
        self._out = projected
        self._sums = torch.addcmul(self._rate, self._driven * self._driven, self._rate,
                                   value=-1.0)
        self._rates = torch.zeros_like(self._rate)
        self._recurrent = torch.zeros_like(self._raw['recurrent'])

    def _uncross(self, index: int, after: Tensor, total: Tensor) -> Tensor:
        """Return the gradient of the state before the rest of a gap."""
        state, driven, kept = self._crossed[index]
        self._rates += (after * (driven - state) * kept * self._rests[index]).sum(0)
        sums = after * (1.0 - kept) * (1.0 - driven * driven)
        total += sums
        self._recurrent.addmm_(sums.t(), state)
        return torch.addmm(after * kept, sums, self._raw['recurrent'])

    def backward(self, index: int, after: Tensor) -> Tensor:
        """Return the gradient of the state before."""
        step, number = self._steps[index], self._at.shape[1]
        total = torch.zeros_like(after)
        if index in self._rests:
            after = self._uncross(index, after, total)
        for _ in range(self._substeps):
            slopes = after * step
            before, later = after.clone(), None     # gradient of the stage after this one
            for place in reversed(range(len(self._stages))):
                number -= 1
                slope = slopes * self._shares[place]
                if later is not None:
                    slope.addcmul_(later, step, value=self._stages[place + 1])
                self._rates += (slope * (self._driven[index, number]
                                         - self._at[index, number])).sum(0)
                sums = self._sums[index, number].mul_(slope)
                total += sums
                later = torch.addmm(slope * self._rate, sums, self._raw['recurrent'], beta=-1.0)
                before += later
            after = before
        self._out[:, index] = total
        return after

    def finish(self, before: Tensor) -> Weights:
        """Return the weights' gradients."""
        recurrent = self._recurrent.addmm_(rows(self._sums.flatten(0, 1)).t(),
                                           rows(self._at.flatten(0, 1)))
        tau = -self._rates * self._rate * self._rate
        del self._sums, self._out
        return Weights(recurrent=recurrent, tau=tau)


def _torchdiffeq():
    try:
        import torchdiffeq
    except ImportError as error:
        raise ImportError('core.solver: expected torchdiffeq to be installed for dopri5, it is '
                          'not; pip install torchdiffeq, or take solver rk4') from error
    return torchdiffeq
