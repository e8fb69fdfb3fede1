"""Recurrent cores: continuous-time cells that integrate over the time that truly passed."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from liquid_policy.settings import CoreSettings


def check_elapsed(elapsed: Tensor, batch: int, name: str = 'elapsed') -> None:
    """
    Refuse elapsed times that would broadcast wrongly or make no sense.

    :param elapsed: time since the last step [s], `(batch, 1)`.
    :raises ValueError: if the shape is not `(batch, 1)`, or a value is negative or not finite.
    """
    if tuple(elapsed.shape) != (batch, 1):
        raise ValueError(f'{name}: expected shape ({batch}, 1), came {tuple(elapsed.shape)}')
    if not bool(torch.isfinite(elapsed).all()) or bool((elapsed < 0).any()):
        raise ValueError(f'{name}: expected finite times of at least 0 s, came values from '
                         f'{float(elapsed.min())} to {float(elapsed.max())}')


class Core(nn.Module):
    """
    What every core offers; the state is one tensor `(batch, state_size)`.

    A step's output is the state's first `units` numbers. Subclasses give `project`, the part of
    the work that does not depend on the state (one matrix product for a whole sequence), and
    `advance`, the rest.
    """

    def __init__(self, inputs: int, units: int, unit_time: float, state_size: int | None = None):
        super().__init__()
        self.inputs, self.units, self.unit_time = inputs, units, unit_time
        self.state_size = state_size or units

    def initial_state(self, batch: int = 1) -> Tensor:
        """Return the state before anything was seen, `(batch, state_size)`."""
        parameter = next(self.parameters())
        return parameter.new_zeros(batch, self.state_size)

    def project(self, x: Tensor) -> Tensor:
        """Return what the input contributes, `(..., inputs)` to `(..., any)`."""
        raise NotImplementedError

    def advance(self, projected: Tensor, elapsed: Tensor, state: Tensor) -> Tensor:
        """Return the next state; `elapsed` is in units of `unit_time`, `(batch, 1)`."""
        raise NotImplementedError

    def step(self, x: Tensor, elapsed: Tensor, state: Tensor) -> Tensor:
        """
        Return the state after one more observation.

        :param x: input, `(batch, inputs)`.
        :param elapsed: time since the last step [s], `(batch, 1)`.
        :param state: `(batch, state_size)`.
        :return: next state, `(batch, state_size)`.
        :raises ValueError: if a shape or an elapsed time is wrong.
        """
        if not torch.compiler.is_exporting() and not torch.jit.is_tracing():
            check_elapsed(elapsed, x.shape[0])
            self._check(x, state)
        return self.advance(self.project(x), elapsed / self.unit_time, state)

    def sequence(self, xs: Tensor, elapsed: Tensor, state: Tensor,
                 mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        Return every step's output and the last state.

        :param xs: inputs, `(batch, time, inputs)`.
        :param elapsed: time since the step before [s], `(batch, time, 1)`.
        :param state: `(batch, state_size)`.
        :param mask: true where a step took place, `(batch, time)`; elsewhere the state rests.
        :return: `(batch, time, units)` and `(batch, state_size)`.
        :raises ValueError: if a shape or an elapsed time is wrong.
        """
        if xs.ndim != 3 or tuple(elapsed.shape) != (*xs.shape[:2], 1):
            raise ValueError(f'elapsed: expected shape {(*xs.shape[:2], 1)}, came '
                             f'{tuple(elapsed.shape)}')
        check_elapsed(elapsed.reshape(-1, 1), xs.shape[0] * xs.shape[1])
        self._check(xs[:, 0], state)
        return self._loop(self.project(xs), elapsed / self.unit_time, state, mask)

    def _loop(self, projected: Tensor, elapsed: Tensor, state: Tensor, mask: Tensor | None):
        outputs = []
        for index, (part, time) in enumerate(zip(projected.unbind(1), elapsed.unbind(1),
                                                 strict=True)):
            after = self.advance(part, time, state)
            state = after if mask is None else torch.where(mask[:, index, None], after, state)
            outputs.append(state)
        return torch.stack(outputs, 1)[..., :self.units], state

    def _check(self, x: Tensor, state: Tensor) -> None:
        if x.shape[-1] != self.inputs:
            raise ValueError(f'input: expected {self.inputs} numbers, came {x.shape[-1]}')
        if tuple(state.shape) != (x.shape[0], self.state_size):
            raise ValueError(f'state: expected shape ({x.shape[0]}, {self.state_size}), came '
                             f'{tuple(state.shape)}')


def _cfc_advance(projected: Tensor, elapsed: Tensor, state: Tensor, recurrent: Tensor,
                 heads: Tensor, bias: Tensor) -> Tensor:
    hidden = 1.7159 * torch.tanh(0.666 * torch.addmm(projected, state, recurrent))
    early, late, rate, offset = torch.addmm(bias, hidden, heads).chunk(4, 1)
    gate = torch.sigmoid(rate * elapsed + offset)
    early = torch.tanh(early)
    return early + gate * (torch.tanh(late) - early)


class CfcCore(Core):
    """
    Closed-form continuous-time cell, gated form.

    A backbone sees input and state; from it come a state for short gaps, one for long gaps, and
    the rate of the gate between them: h' = early (1 - s) + late s, s = sigmoid(rate t + offset).

    It begins as a bank of leaks: `early` passes the state on, and the gates let go of it with
    time constants from 2 to 100 steps, so that at first every unit remembers for a while of its
    own. The idea is that of chrono initialisation, Tallec and Ollivier, arXiv:1804.11188.

    Source: Hasani et al., Closed-form Continuous-time Neural Networks, arXiv:2106.13898. Equal
    to ncps's CfCCell (mode 'default', one backbone layer) with t in units of `unit_time`.
    """

    def __init__(self, inputs: int, units: int = 64, unit_time: float = 0.01,
                 backbone: int = 128):
        super().__init__(inputs, units, unit_time)
        self.backbone = nn.Linear(inputs + units, backbone)
        self.heads = nn.Linear(backbone, 4 * units)     # early, late, rate, offset
        nn.init.xavier_uniform_(self.backbone.weight)
        nn.init.xavier_uniform_(self.heads.weight)
        if backbone >= units:
            self._begin_as_leaks(units, inputs)

    @torch.no_grad()
    def _begin_as_leaks(self, units: int, inputs: int) -> None:
        weight = self.backbone.weight
        weight[:units] *= 0.1
        weight[:units, inputs:] += torch.eye(units) / (1.7159 * 0.666)      # slope at 0 of 1
        self.backbone.bias.zero_()
        weight = self.heads.weight
        weight[:units] *= 0.1
        weight[:units, :units] += torch.eye(units)
        weight[2 * units:] *= 0.3
        self.heads.bias.zero_()
        steps = torch.logspace(math.log10(2.0), math.log10(100.0), units)
        # A small share let go of grows with the gap: twice the time, about twice the share.
        self.heads.bias[2 * units:3 * units] = math.log(2.0)
        self.heads.bias[3 * units:] = torch.logit(1.0 / steps) - math.log(2.0)

    def project(self, x: Tensor) -> Tensor:
        """Return the backbone's part from the input."""
        return nn.functional.linear(x, self.backbone.weight[:, :self.inputs], self.backbone.bias)

    def advance(self, projected: Tensor, elapsed: Tensor, state: Tensor) -> Tensor:
        """Return the next state."""
        return _cfc_advance(projected, elapsed, state, self.backbone.weight[:, self.inputs:].t(),
                            self.heads.weight.t(), self.heads.bias)


class MixedCfcCore(CfcCore):
    """
    Closed-form continuous-time cell with mixed memory: a gated memory cell beside the liquid one.

    At every step a long short-term memory takes in the last output and hands the liquid cell the
    state it starts from. What happens between two steps stays the liquid cell's, with the time
    that truly passed; what is to be kept for seconds has a cell of its own, through which
    gradients reach far back. The state is output and memory, `(batch, 2 * units)`.

    Source: Lechner and Hasani, Learning Long-Term Dependencies in Irregularly-Sampled Time
    Series, arXiv:2006.04418; as ncps's `CfC(mixed_memory=True)`.
    """

    def __init__(self, inputs: int, units: int = 64, unit_time: float = 0.01,
                 backbone: int = 128):
        super().__init__(inputs, units, unit_time, backbone)
        self.state_size = 2 * units
        self.memory = nn.LSTMCell(inputs, units)
        with torch.no_grad():       # remember by default (Jozefowicz et al., 2015)
            self.memory.bias_ih[units:2 * units].fill_(1.0)

    def project(self, x: Tensor) -> Tensor:
        """Return the parts of memory and backbone from the input."""
        memory = nn.functional.linear(x, self.memory.weight_ih,
                                      self.memory.bias_ih + self.memory.bias_hh)
        return torch.cat((memory, super().project(x)), -1)

    def advance(self, projected: Tensor, elapsed: Tensor, state: Tensor) -> Tensor:
        """Return the next output and memory."""
        output, cell = state.chunk(2, 1)
        gates = projected[:, :4 * self.units] + nn.functional.linear(output,
                                                                     self.memory.weight_hh)
        keep, forget, new, show = gates.chunk(4, 1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(keep) * torch.tanh(new)
        start = torch.sigmoid(show) * torch.tanh(cell)
        output = super().advance(projected[:, 4 * self.units:], elapsed, start)
        return torch.cat((output, cell), 1)


class LstmCore(Core):
    """
    Long short-term memory, the control: the elapsed time is appended to its input.

    The state is output and cell, `(batch, 2 * units)`. Equal to torch.nn.LSTMCell fed
    `[x, elapsed / unit_time - 1]`.
    """

    def __init__(self, inputs: int, units: int = 64, unit_time: float = 0.01):
        super().__init__(inputs, units, unit_time, 2 * units)
        self.cell = nn.LSTMCell(inputs + 1, units)
        with torch.no_grad():       # remember by default (Jozefowicz et al., 2015)
            self.cell.bias_ih[units:2 * units].fill_(1.0)

    def project(self, x: Tensor) -> Tensor:
        """Return the gates' part from the input."""
        return nn.functional.linear(x, self.cell.weight_ih[:, :-1],
                                    self.cell.bias_ih + self.cell.bias_hh)

    def advance(self, projected: Tensor, elapsed: Tensor, state: Tensor) -> Tensor:
        """Return the next output and cell."""
        output, cell = state.chunk(2, 1)
        gates = projected + (elapsed - 1.0) * self.cell.weight_ih[:, -1] \
            + nn.functional.linear(output, self.cell.weight_hh)
        keep, forget, new, show = gates.chunk(4, 1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(keep) * torch.tanh(new)
        return torch.cat((torch.sigmoid(show) * torch.tanh(cell), cell), 1)


class OdeCore(Core):
    """
    Leaky integrator with a learned drive: dh/dt = -h / tau + f(h, x), integrated by RK4.

    tau is learned per unit and clamped to [0.01, 1.0] s; x is held over the step. `substeps`
    equal steps cover the elapsed time, which keeps RK4 stable for gaps up to about
    2.7 * 0.01 s * substeps at the smallest tau.
    """

    def __init__(self, inputs: int, units: int = 64, unit_time: float = 0.01, substeps: int = 2):
        super().__init__(inputs, units, unit_time)
        self.drive = nn.Linear(inputs + units, units)
        self.log_tau = nn.Parameter(torch.linspace(-3.9, -0.7, units))     # 0.02 to 0.5 s
        self.substeps = substeps

    def project(self, x: Tensor) -> Tensor:
        """Return the drive's part from the input."""
        return nn.functional.linear(x, self.drive.weight[:, :self.inputs], self.drive.bias)

    def derivative(self, projected: Tensor, state: Tensor) -> Tensor:
        """Return dh/dt [1/s]; the drive is scaled by 1 / tau so that |h| stays below 1."""
        recurrent = self.drive.weight[:, self.inputs:]
        drive = torch.tanh(projected + nn.functional.linear(state, recurrent))
        return (drive - state) / self.log_tau.exp().clamp(0.01, 1.0)

    def advance(self, projected: Tensor, elapsed: Tensor, state: Tensor) -> Tensor:
        """Return the state `elapsed` units of time later."""
        # A gap beyond the stable range would blow up; the state has settled by then anyway.
        longest = 0.025 * self.substeps
        h = (elapsed * self.unit_time).clamp(max=longest) / self.substeps
        for _ in range(self.substeps):
            first = self.derivative(projected, state)
            second = self.derivative(projected, state + 0.5 * h * first)
            third = self.derivative(projected, state + 0.5 * h * second)
            fourth = self.derivative(projected, state + h * third)
            state = state + h / 6.0 * (first + 2.0 * second + 2.0 * third + fourth)
        return state


_KINDS: dict[str, type[Core]] = {
    'cfc': CfcCore, 'cfc-mixed': MixedCfcCore, 'lstm': LstmCore, 'ode': OdeCore}


def build_core(settings: CoreSettings, inputs: int) -> Core:
    """Return the core that the settings name, for `inputs` numbers per step."""
    return _KINDS[settings.kind](inputs, settings.units, settings.unit_time)
