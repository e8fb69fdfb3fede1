"""The closed-form continuous-time cell: gated, without a gate, or pure; with memory or circuit."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from liquid_policy.cores.fused import Weights, run_fused
from liquid_policy.cores.fused_cfc import CfcCell
from liquid_policy.cores.fused_lstm import LstmCell, MemoryCell
from liquid_policy.cores.protocol import Core
from liquid_policy.cores.recurrent import lstm_advance, remember_by_default
from liquid_policy.cores.wirings import Wiring

# Sums per unit that a form is computed from: early, late, rate, offset; or the one of `pure`.
PARTS = {'gated': 4, 'no_gate': 4, 'pure': 1}


class Decay(nn.Module):
    """
    What the pure form learns beside its weights: `rate` and `asymptote`, `(units,)` each.

    Rates begin with time constants from 2 to 100 steps; at 0, where ncps begins, |rate| has no
    gradient and would stay there.
    """

    def __init__(self, units: int):
        super().__init__()
        self.rate = nn.Parameter(torch.logspace(-math.log10(2.0), -2.0, units))
        self.asymptote = nn.Parameter(torch.ones(units))


def cfc_state(form: str, sums: Tensor, elapsed: Tensor, decay: Decay | None) -> Tensor:
    """
    Return the next state of a closed-form cell.

    gated: early (1 - s) + late s; no_gate: early + late s; with s = sigmoid(rate t + offset).
    pure: A - A f exp(-t (|w| + |f|)), the approximate solution that the others were made from.

    :param sums: early, late, rate and offset, `(batch, 4 * units)`; f alone for `pure`.
    :param elapsed: t in units of `unit_time`, `(batch, 1)`.
    :param decay: w and A of `pure`.
    """
    if form == 'pure':
        assert decay is not None
        kept = torch.exp(-elapsed * (decay.rate.abs() + sums.abs()))
        return decay.asymptote - decay.asymptote * kept * sums
    early, late, rate, offset = sums.chunk(4, 1)
    gate = torch.sigmoid(rate * elapsed + offset)
    early, late = torch.tanh(early), torch.tanh(late)
    return early + gate * (late if form == 'no_gate' else late - early)


class CfcCore(Core):
    """
    Closed-form continuous-time cell.

    A backbone sees input and state; from it come a state for short gaps, one for long gaps, and
    the rate of the gate between them: h' = early (1 - s) + late s, s = sigmoid(rate t + offset).

    It begins as a bank of leaks: `early` passes the state on, and the gates let go of it with
    time constants from 2 to 100 steps, so that at first every unit remembers for a while of its
    own. The idea is that of chrono initialisation, Tallec and Ollivier, arXiv:1804.11188.

    :param form: `gated`, `no_gate` or `pure`, see `cfc_state`.

    Source: Hasani et al., Closed-form Continuous-time Neural Networks, arXiv:2106.13898. Equal
    to ncps's CfCCell (modes default, no_gate and pure, one backbone layer) with t in units of
    `unit_time`.
    """

    def __init__(self, inputs: int, units: int = 64, unit_time: float = 0.01,
                 backbone: int = 128, form: str = 'gated'):
        super().__init__(inputs, units, unit_time)
        self.form = form
        self.backbone = nn.Linear(inputs + units, backbone)
        self.heads = nn.Linear(backbone, PARTS[form] * units)   # early, late, rate, offset
        self.decay = Decay(units) if form == 'pure' else None
        nn.init.xavier_uniform_(self.backbone.weight)
        nn.init.xavier_uniform_(self.heads.weight)
        if backbone >= units and form != 'pure':
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
        if self.form == 'no_gate':      # early + s late: `late` takes away what is let go of
            weight[units:2 * units, :units] -= torch.eye(units)
        weight[2 * units:] *= 0.3
        self.heads.bias.zero_()
        steps = torch.logspace(math.log10(2.0), math.log10(100.0), units)
        # A small share let go of grows with the gap: twice the time, about twice the share.
        self.heads.bias[2 * units:3 * units] = math.log(2.0)
        self.heads.bias[3 * units:] = torch.logit(1.0 / steps) - math.log(2.0)

    def input_weights(self) -> tuple[Tensor, Tensor]:
        """Return the backbone's weights and bias of the inputs."""
        return self.backbone.weight[:, :self.inputs], self.backbone.bias

    def project(self, x: Tensor) -> Tensor:
        """Return the backbone's part from the input."""
        return functional.linear(x, *self.input_weights())

    def advance(self, projected: Tensor, elapsed: Tensor, state: Tensor) -> Tensor:
        """Return the next state."""
        recurrent = self.backbone.weight[:, self.inputs:]
        hidden = 1.7159 * torch.tanh(0.666 * torch.addmm(projected, state, recurrent.t()))
        return cfc_state(self.form, self.heads(hidden), elapsed, self.decay)

    def fused_weights(self) -> Weights:
        """Return what the fused loop needs."""
        weights = Weights(recurrent=self.backbone.weight[:, self.inputs:],
                          heads=self.heads.weight, bias=self.heads.bias)
        if self.decay is not None:
            weights.update(rate=self.decay.rate, asymptote=self.decay.asymptote)
        return weights

    def fast(self, projected: Tensor, elapsed: Tensor, state: Tensor,
             mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what `_loop` returns, with the backward pass written out."""
        if elapsed.requires_grad:
            return self._loop(projected, elapsed, state, mask)
        cell = CfcCell(self.form, self.fused_weights())
        return run_fused(cell, self.units, projected, elapsed, state, mask)


class _CircuitLayer(nn.Module):
    """One layer of neurons: masked weights from those before it and from itself."""

    def __init__(self, mask: Tensor, units: int, form: str):
        super().__init__()
        self.sources = mask.shape[0]
        parts = PARTS[form]
        self.weight = nn.Parameter(torch.empty(parts * units, self.sources + units))
        self.bias = nn.Parameter(torch.zeros(parts * units))
        self.decay = Decay(units) if form == 'pure' else None
        # Early and late (or pure's one sum) go through synapses; rate and offset hear everyone,
        # and so does a neuron its own layer, as in ncps.
        whole = torch.ones_like(self.weight)
        for part in range(min(parts, 2)):
            whole[part * units:(part + 1) * units, :self.sources] = mask.t()
        self.register_buffer('mask', whole)
        for part in self.weight.chunk(parts):
            nn.init.xavier_uniform_(part)

    def masked(self) -> tuple[Tensor, Tensor]:
        """Return the weights from before, and those from the layer itself."""
        weight = self.weight * self.mask
        return weight[:, :self.sources], weight[:, self.sources:]


class WiredCfcCore(Core):
    """
    Closed-form cells wired as a neural circuit: inter, command and motor neurons.

    Each layer is a closed-form cell without a backbone that sees the layer before and itself.
    The state is motor, command and inter neurons; the heads see the motor neurons.

    :param wiring: which neuron listens to which; its masks are saved with the weights.
    :param form: `gated`, `no_gate` or `pure`, see `cfc_state`.

    Source: Lechner et al., Neural circuit policies enabling auditable autonomy, 2020. Equal to
    ncps's WiredCfCCell, whose state has its layers the other way round.
    """

    def __init__(self, inputs: int, wiring: Wiring, unit_time: float = 0.01,
                 form: str = 'gated'):
        super().__init__(inputs, wiring.layers[-1], unit_time, sum(wiring.layers))
        self.form, self.sizes = form, wiring.layers
        before, layers = wiring.sensory, []
        for index, members in enumerate(wiring.members):
            if index:
                before = wiring.synapses[wiring.members[index - 1]]
            mask = torch.tensor(before[:, members] != 0, dtype=torch.get_default_dtype())
            layers.append(_CircuitLayer(mask, len(members), form))
        self.layers = nn.ModuleList(layers)

    def input_weights(self) -> tuple[Tensor, Tensor]:
        """Return the first layer's weights and bias of the inputs."""
        return self.layers[0].masked()[0], self.layers[0].bias

    def project(self, x: Tensor) -> Tensor:
        """Return the first layer's part from the input."""
        return functional.linear(x, *self.input_weights())

    def advance(self, projected: Tensor, elapsed: Tensor, state: Tensor) -> Tensor:
        """Return the next state, layer by layer."""
        neurons: list[Tensor] = []
        parts = state.split(self.sizes[::-1], 1)[::-1]
        for layer, own in zip(self.layers, parts, strict=True):
            before, again = layer.masked()
            if neurons:
                projected = functional.linear(neurons[-1], before, layer.bias)
            sums = projected + functional.linear(own, again)
            neurons.append(cfc_state(self.form, sums, elapsed, layer.decay))
        return torch.cat(neurons[::-1], 1)

    def fast(self, projected: Tensor, elapsed: Tensor, state: Tensor,
             mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what `_loop` returns: a layer needs only the one before, so each runs whole."""
        if elapsed.requires_grad:
            return self._loop(projected, elapsed, state, mask)
        outputs, last = torch.empty(0), []
        for index, (layer, own) in enumerate(zip(
                self.layers, state.split(self.sizes[::-1], 1)[::-1], strict=True)):
            before, again = layer.masked()
            if index:
                projected = functional.linear(outputs, before, layer.bias)
            weights = Weights(recurrent=again)
            if layer.decay is not None:
                weights.update(rate=layer.decay.rate, asymptote=layer.decay.asymptote)
            outputs, after = run_fused(CfcCell(self.form, weights), own.shape[1], projected,
                                       elapsed, own, mask)
            last.append(after)
        return outputs, torch.cat(last[::-1], 1)


class _Mixed(Core):
    """
    Mixed memory: a gated memory cell beside the liquid one.

    At every step a long short-term memory takes in the last output and hands the liquid cell the
    state it starts from. What happens between two steps stays the liquid cell's, with the time
    that truly passed; what is to be kept for seconds has a cell of its own, through which
    gradients reach far back. The state is the liquid cell's and the memory. Comes before a core
    with `input_weights` among the bases.

    Source: Lechner and Hasani, Learning Long-Term Dependencies in Irregularly-Sampled Time
    Series, arXiv:2006.04418; as ncps's `CfC(mixed_memory=True)`.
    """

    def input_weights(self) -> tuple[Tensor, Tensor]:
        """Return the liquid cell's weights and bias of the inputs."""
        return super().input_weights()      # type: ignore[misc]

    def _remember(self) -> None:
        self.neurons = self.state_size
        self.state_size = 2 * self.neurons
        self.memory = nn.LSTMCell(self.inputs, self.neurons)
        remember_by_default(self.memory.bias_ih, self.neurons)

    def project(self, x: Tensor) -> Tensor:
        """Return the parts of memory and liquid cell from the input."""
        # One product for both; joining two results would copy them.
        weight, bias = self.input_weights()
        return functional.linear(x, torch.cat((self.memory.weight_ih, weight)),
                                 torch.cat((self.memory.bias_ih + self.memory.bias_hh, bias)))

    def advance(self, projected: Tensor, elapsed: Tensor, state: Tensor) -> Tensor:
        """Return the next output and memory."""
        output, cell = state.chunk(2, 1)
        gates = projected[:, :4 * self.neurons] + functional.linear(output,
                                                                    self.memory.weight_hh)
        start, cell = lstm_advance(gates, cell)
        output = super().advance(projected[:, 4 * self.neurons:], elapsed, start)
        return torch.cat((output, cell), 1)


class MixedCfcCore(_Mixed, CfcCore):
    """Closed-form continuous-time cell with mixed memory; the state is output and memory."""

    def __init__(self, inputs: int, units: int = 64, unit_time: float = 0.01,
                 backbone: int = 128, form: str = 'gated'):
        super().__init__(inputs, units, unit_time, backbone, form)
        self._remember()

    def fast(self, projected: Tensor, elapsed: Tensor, state: Tensor,
             mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what `_loop` returns, with the backward pass written out."""
        if elapsed.requires_grad:
            return self._loop(projected, elapsed, state, mask)
        memory = LstmCell(Weights(recurrent=self.memory.weight_hh))
        cell = MemoryCell(memory, CfcCell(self.form, self.fused_weights()), self.units)
        return run_fused(cell, self.units, projected, elapsed, state, mask)


class MixedWiredCfcCore(_Mixed, WiredCfcCore):
    """Neural circuit with mixed memory; the state is the neurons and their memory."""

    def __init__(self, inputs: int, wiring: Wiring, unit_time: float = 0.01,
                 form: str = 'gated'):
        super().__init__(inputs, wiring, unit_time, form)
        self._remember()

    def fast(self, projected: Tensor, elapsed: Tensor, state: Tensor,
             mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what `_loop` returns: the memory couples the layers, so step by step."""
        return self._loop(projected, elapsed, state, mask)
