"""
Cores written out in numpy, one step at a time, into memory of their own.

A step of 64 units is so little work that most of its time goes into starting things. Hence: one
matrix product per layer, with the bias as a last column against a constant 1; constants around a
tanh are folded into the weights next to it; a sigmoid is a tanh (`sigmoid(a) = tanh(a / 2) / 2 +
1 / 2`), so that all gates of a cell take one call. Numbers that arrays are multiplied by are
arrays of no dimension: numpy spends 0.25 us less on them than on Python's floats. Matrices, their
columns, and what products are written to begin at cache lines: else a product takes up to half as
long again.

All cores share `seen`: the core's output, the input, and 1. What is not written out here runs
through ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from liquid_policy.core_settings import CoreSettings

Weights = Mapping[str, np.ndarray]
_HALF = np.array(0.5, np.float32)
LINE = 16       # float32 numbers in a cache line
# What of a core is multiplied by the input, which its first columns belong to.
_FED = 'backbone.weight', 'memory.weight_ih', 'cell.weight_ih', 'drive.weight'


class NumpyCore(Protocol):
    """One core; `state_size` numbers are carried."""

    state_size: int

    def advance(self, state: np.ndarray, steps: float, after: np.ndarray) -> None:
        """
        Write the next state, and its output into `seen`.

        :param state: `(state_size,)`.
        :param steps: elapsed time in units of `unit_time`.
        :param after: next state, `(state_size,)`; written.
        """


def numpy_core(settings: CoreSettings, weights: Weights, seen: np.ndarray, scale: np.ndarray,
               ) -> NumpyCore | None:
    """
    Return a core, or None for one that is not written out here.

    :param settings: the core's.
    :param weights: the torch policy's, by name (`core.backbone.weight`, ...).
    :param seen: `(units + inputs + 1,)` float32 from `memory`, the last number 1; the core reads
        the input from it and leaves its output there.
    :param scale: of the input, `(inputs,)`: what torch's core is given is the input divided by it.
    """
    if settings.wiring != 'dense':
        return None
    own = {name.removeprefix('core.'): np.array(value, np.float64)
           for name, value in weights.items() if name.startswith('core.')}
    for name in _FED:
        if name in own:
            own[name][:, :len(scale)] /= scale
    if settings.kind == 'cfc':
        return CfcStep(settings, own, seen)
    if settings.kind == 'lstm':
        return LstmStep(settings, own, seen)
    if settings.kind == 'gru':
        return GruStep(settings, own, seen)
    if settings.kind == 'ode' and settings.solver in ('euler', 'rk4'):
        return OdeStep(settings, own, seen)
    return None


def memory(count: int) -> np.ndarray:
    """Return zeros, `(count,)` float32, that begin at a cache line."""
    whole = np.zeros(count + LINE, np.float32)
    first = -whole.ctypes.data % (4 * LINE) // 4
    return whole[first:first + count]


def placed(values: np.ndarray) -> np.ndarray:
    """Return numbers of one row, float32, in such memory."""
    found = memory(len(values))
    found[:] = values
    return found


def joined(*columns: np.ndarray) -> np.ndarray:
    """
    Return blocks side by side, float32, column by column: the faster order for a product.

    Every column fills whole cache lines; the rows that it takes are zeros, below the others.
    """
    whole = np.hstack(columns)
    rows = -(-len(whole) // LINE) * LINE
    found = memory(rows * whole.shape[1]).reshape((rows, whole.shape[1]), order='F')
    found[:len(whole)] = whole
    return found


class _Memory:
    """A gated memory cell: takes in the last output, hands on what the next step starts from."""

    def __init__(self, fed: np.ndarray, recurrent: np.ndarray, bias: np.ndarray,
                 seen: np.ndarray, timed: np.ndarray | None = None):
        units = recurrent.shape[1]
        # torch's order is keep, forget, new, show; the three sigmoids go first, halved.
        order = np.concatenate([np.arange(units) + part * units for part in (0, 1, 3, 2)])
        half = np.where(np.arange(4 * units) < 3 * units, 0.5, 1.0)
        self._weight = joined(*(half[:, None] * block[order]
                                for block in (recurrent, fed, bias[:, None])))
        self._timed = None if timed is None else (half * timed[order]).astype(np.float32)
        self._late = memory(4 * units)
        self._seen, self._output = seen, seen[:units]
        self._sums = memory(len(self._weight))
        self._gates = gates = self._sums[:4 * units]
        self._sigmoids = gates[:3 * units]
        self._keep, self._forget, self._show, self._new = np.split(gates, 4)
        self._units = units

    def advance(self, state: np.ndarray, steps: float, after: np.ndarray) -> None:
        """Write the output into `seen`, and output and cell into `after`."""
        units, gates, sigmoids = self._units, self._gates, self._sigmoids
        output, cell = self._output, after[units:]
        output[:] = state[:units]
        self._weight.dot(self._seen, self._sums)
        if self._timed is not None:
            np.multiply(self._timed, np.float32(steps - 1.0), self._late)
            np.add(gates, self._late, gates)
        np.tanh(gates, gates)
        np.multiply(sigmoids, _HALF, sigmoids)
        np.add(sigmoids, _HALF, sigmoids)
        np.multiply(self._forget, state[units:], cell)
        np.multiply(self._keep, self._new, self._new)
        np.add(cell, self._new, cell)
        np.tanh(cell, output)
        np.multiply(output, self._show, output)
        after[:units] = output


class CfcStep:
    """Closed-form continuous-time cell, dense, in every form, with or without mixed memory."""

    def __init__(self, settings: CoreSettings, weights: Weights, seen: np.ndarray):
        units, inputs = settings.units, len(seen) - 1 - settings.units
        self._form, self._units, self._steps = settings.form, units, np.empty((), np.float32)
        self._memory = None
        if settings.mixed_memory:
            self._memory = _Memory(
                weights['memory.weight_ih'], weights['memory.weight_hh'],
                weights['memory.bias_ih'] + weights['memory.bias_hh'], seen)
        self.state_size = units * (2 if settings.mixed_memory else 1)
        self._seen, self._output = seen, seen[:units]
        backbone, bias = weights['backbone.weight'], weights['backbone.bias'][:, None]
        self._backbone = joined(0.666 * backbone[:, inputs:], 0.666 * backbone[:, :inputs],
                                0.666 * bias)
        rows = len(self._backbone)
        self._hidden = memory(rows + 1)
        self._inner, self._hidden[-1] = self._hidden[:-1], 1.0
        heads, bias = weights['heads.weight'], weights['heads.bias'][:, None]
        heads = np.hstack((1.7159 * heads, np.zeros((len(heads), rows - len(backbone)))))
        if settings.form == 'pure':
            self._speed = np.abs(weights['decay.rate']).astype(np.float32)
            self._asymptote = weights['decay.asymptote'].astype(np.float32)
            self._heads = joined(heads, bias)
        else:
            early, late, rate, offset = np.split(np.hstack((heads, bias)), 4)
            self._heads = joined(np.vstack((early, late, 0.5 * offset, 0.5 * rate)))
        self._sums = sums = memory(len(self._heads))
        self._squashed, self._asked = sums[:3 * units], sums[:units]
        self._early, self._late, self._gate, self._rate = (
            sums[part * units:(part + 1) * units] for part in range(4))

    def advance(self, state: np.ndarray, steps: float, after: np.ndarray) -> None:
        """Write the next state, see `NumpyCore`."""
        if self._memory is not None:
            self._memory.advance(state, steps, after)
        else:
            self._output[:] = state
        self._backbone.dot(self._seen, self._inner)
        np.tanh(self._inner, self._inner)
        self._heads.dot(self._hidden, self._sums)
        output = self._output
        if self._form == 'pure':
            self._decay(steps, output)
        else:
            gate = self._gate
            self._steps[...] = steps
            np.multiply(self._rate, self._steps, self._rate)
            np.add(gate, self._rate, gate)
            np.tanh(self._squashed, self._squashed)
            np.multiply(gate, _HALF, gate)
            np.add(gate, _HALF, gate)
            if self._form == 'gated':
                np.subtract(self._late, self._early, self._late)
            np.multiply(gate, self._late, output)
            np.add(output, self._early, output)
        after[:self._units] = output

    def _decay(self, steps: float, output: np.ndarray) -> None:
        """A - A f exp(-t (|w| + |f|)), of `pure`."""
        asked = self._asked
        np.abs(asked, output)
        np.add(output, self._speed, output)
        np.multiply(output, -steps, output)
        np.exp(output, output)
        np.multiply(output, asked, output)
        np.multiply(output, self._asymptote, output)
        np.subtract(self._asymptote, output, output)


class LstmStep:
    """Long short-term memory, told the elapsed time."""

    def __init__(self, settings: CoreSettings, weights: Weights, seen: np.ndarray):
        fed = weights['cell.weight_ih']
        self.state_size = 2 * settings.units
        self._memory = _Memory(fed[:, :-1], weights['cell.weight_hh'],
                               weights['cell.bias_ih'] + weights['cell.bias_hh'], seen,
                               fed[:, -1])

    def advance(self, state: np.ndarray, steps: float, after: np.ndarray) -> None:
        """Write the next state, see `NumpyCore`."""
        self._memory.advance(state, steps, after)


class GruStep:
    """Gated recurrent unit, told the elapsed time."""

    def __init__(self, settings: CoreSettings, weights: Weights, seen: np.ndarray):
        units = self.state_size = settings.units
        fed, timed = weights['cell.weight_ih'][:, :-1], weights['cell.weight_ih'][:, -1]
        again, two = weights['cell.weight_hh'], 2 * units
        bias, more = weights['cell.bias_ih'][:, None], weights['cell.bias_hh'][:, None]
        # Reset and update (halved, for they are sigmoids), new from the input, new from the state.
        self._weight = joined(
            np.vstack((0.5 * again[:two], 0.0 * again[two:], again[two:])),
            np.vstack((0.5 * fed[:two], fed[two:], 0.0 * fed[two:])),
            np.vstack((0.5 * (bias + more)[:two], bias[two:], more[two:])))
        self._timed = np.concatenate((0.5 * timed[:two], timed[two:])).astype(np.float32)
        self._late = memory(3 * units)
        self._seen, self._output = seen, seen[:units]
        self._sums = sums = memory(len(self._weight))
        self._told, self._sigmoids = sums[:3 * units], sums[:two]
        self._reset, self._update, self._new, self._more = np.split(sums[:4 * units], 4)

    def advance(self, state: np.ndarray, steps: float, after: np.ndarray) -> None:
        """Write the next state, see `NumpyCore`."""
        output, sigmoids, new, more = self._output, self._sigmoids, self._new, self._more
        output[:] = state
        self._weight.dot(self._seen, self._sums)
        np.multiply(self._timed, np.float32(steps - 1.0), self._late)
        np.add(self._told, self._late, self._told)
        np.tanh(sigmoids, sigmoids)
        np.multiply(sigmoids, _HALF, sigmoids)
        np.add(sigmoids, _HALF, sigmoids)
        np.multiply(more, self._reset, more)
        np.add(new, more, new)
        np.tanh(new, new)
        np.subtract(output, new, output)
        np.multiply(output, self._update, output)
        np.add(output, new, output)
        after[:] = output


class OdeStep:
    """Leaky integrator with a learned drive, by Euler's or the classic fourth-order method."""

    # As in cores/ode.py: stages, their shares, the longest stable substep [s], bounds of tau [s].
    _STAGES = {'euler': (0.0,), 'rk4': (0.0, 0.5, 0.5, 1.0)}
    _SHARES = {'euler': (1.0,), 'rk4': (1 / 6, 1 / 3, 1 / 3, 1 / 6)}
    _STABLE = {'euler': 0.01, 'rk4': 0.025}
    _TAU = (0.01, 1.0)

    def __init__(self, settings: CoreSettings, weights: Weights, seen: np.ndarray):
        units, inputs = settings.units, len(seen) - 1 - settings.units
        self.state_size = units
        self._substeps, self._unit_time = settings.substep_count, settings.unit_time
        self._stages = tuple(
            (np.array(reach, np.float32) if reach else None, np.array(share, np.float32))
            for reach, share in zip(self._STAGES[settings.solver],
                                    self._SHARES[settings.solver], strict=True))
        self._longest = self._STABLE[settings.solver] * self._substeps
        drive, bias = weights['drive.weight'], weights['drive.bias'][:, None]
        self._fed = joined(drive[:, :inputs], bias)
        self._again = joined(drive[:, inputs:])
        self._rate = np.reciprocal(np.clip(np.exp(weights['log_tau']), *self._TAU)).astype(
            np.float32)
        self._input, self._output = seen[units:], seen[:units]
        self._driven, self._held = memory(len(self._again)), memory(len(self._fed))
        self._slope, self._projected = self._driven[:units], self._held[:units]
        self._scaled, self._at, self._total = (memory(units) for _ in range(3))

    def advance(self, state: np.ndarray, steps: float, after: np.ndarray) -> None:
        """Write the next state, see `NumpyCore`."""
        elapsed = steps * self._unit_time
        step = min(elapsed, self._longest) / self._substeps
        scaled, slope, at, total = self._scaled, self._slope, self._at, self._total
        self._fed.dot(self._input, self._held)
        np.multiply(self._rate, step, scaled)
        after[:] = state
        for _ in range(self._substeps):
            total[:] = 0.0
            for reach, share in self._stages:
                if reach is not None:
                    np.multiply(slope, reach, at)
                    np.add(at, after, at)
                else:
                    at[:] = after
                self._drive(at)
                np.subtract(slope, at, slope)
                np.multiply(slope, scaled, slope)
                np.multiply(slope, share, at)
                np.add(total, at, total)
            np.add(after, total, after)
        if elapsed > self._longest:     # the drive is held, for which the decay is exact
            self._drive(after)
            np.multiply(self._rate, self._longest - elapsed, at)
            np.expm1(at, at)
            np.subtract(after, slope, total)
            np.multiply(total, at, total)
            np.add(after, total, after)
        self._output[:] = after

    def _drive(self, state: np.ndarray) -> None:
        slope = self._slope
        self._again.dot(state, self._driven)
        np.add(slope, self._projected, slope)
        np.tanh(slope, slope)
