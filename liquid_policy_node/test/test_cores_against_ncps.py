"""Cores equal ncps's cells, with copied weights."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')
ncps = pytest.importorskip('ncps.torch')
wirings = pytest.importorskip('ncps.wirings')

from liquid_policy.cores import (  # noqa: E402
    CfcCore,
    LtcCore,
    MixedCfcCore,
    MixedWiredCfcCore,
    WiredCfcCore,
    Wiring,
    circuit_wiring,
    dense_wiring,
)

# ncps's names of the forms.
MODES = {'gated': 'default', 'no_gate': 'no_gate', 'pure': 'pure'}


def data(batch=3, time=7, inputs=5):
    """Return inputs and elapsed times from 0.1 to 1.6, as ncps's cells like them."""
    generator = torch.Generator().manual_seed(0)
    xs = torch.randn(batch, time, inputs, generator=generator)
    return xs, 0.1 + 1.5 * torch.rand(batch, time, 1, generator=generator)


def copy_gates(cell, weight, bias, decay):
    """Copy the sums of ncps's CfCCell."""
    names = ('ff1',) if decay is not None else ('ff1', 'ff2', 'time_a', 'time_b')
    weight.copy_(torch.cat([getattr(cell, name).weight for name in names]))
    bias.copy_(torch.cat([getattr(cell, name).bias for name in names]))
    if decay is not None:
        decay.rate.copy_(cell.w_tau[0])
        decay.asymptote.copy_(cell.A[0])


def copy_dense(core, cell):
    """Copy ncps's CfCCell with one backbone layer."""
    with torch.no_grad():
        core.backbone.weight.copy_(cell.backbone[0].weight)
        core.backbone.bias.copy_(cell.backbone[0].bias)
        if core.decay is not None:      # it begins at 0, where the rate would not be seen
            cell.w_tau.uniform_(-1.0, 1.0)
            cell.A.uniform_(0.5, 1.5)
        copy_gates(cell, core.heads.weight, core.heads.bias, core.decay)


def copy_circuit(core, cell):
    """Copy ncps's WiredCfCCell."""
    with torch.no_grad():
        for layer, part in zip(core.layers, cell._layers, strict=True):
            copy_gates(part, layer.weight, layer.bias, layer.decay)


def copy_memory(core, lstm):
    """Copy ncps's LSTMCell, whose gates are new, keep, forget + 1, show."""
    units = core.neurons
    order = torch.cat([torch.arange(units) + units * gate for gate in (1, 2, 0, 3)])
    with torch.no_grad():
        core.memory.weight_ih.copy_(lstm.input_map.weight[order])
        core.memory.weight_hh.copy_(lstm.recurrent_map.weight[order])
        core.memory.bias_ih.copy_(lstm.input_map.bias[order])
        core.memory.bias_ih[units:2 * units] += 1.0
        core.memory.bias_hh.zero_()


@pytest.mark.parametrize('form', MODES)
def test_cfc_equals_ncps(form):
    torch.manual_seed(1)
    cell = ncps.CfCCell(5, 8, mode=MODES[form], backbone_activation='lecun_tanh')
    core = CfcCore(5, 8, unit_time=1.0, form=form)
    copy_dense(core, cell)
    xs, elapsed = data()
    state, other = core.initial_state(3), torch.zeros(3, 8)
    outputs, _ = core.sequence(xs, elapsed, state)
    for index in range(xs.shape[1]):
        state = core.step(xs[:, index], elapsed[:, index], state)
        _, other = cell(xs[:, index], other, elapsed[:, index])
        assert torch.allclose(state, other, atol=1e-5)
        assert torch.allclose(outputs[:, index], other, atol=1e-5)


@pytest.mark.parametrize('form', MODES)
def test_mixed_memory_equals_ncps(form):
    torch.manual_seed(1)
    other = ncps.CfC(5, 8, mixed_memory=True, mode=MODES[form])
    core = MixedCfcCore(5, 8, unit_time=1.0, form=form)
    copy_dense(core, other.rnn_cell)
    copy_memory(core, other.lstm)
    xs, elapsed = data()
    outputs, last = core.sequence(xs, elapsed, core.initial_state(3))
    pair = (torch.zeros(3, 8), torch.zeros(3, 8))
    for index in range(xs.shape[1]):
        start, memory = other.lstm(xs[:, index], pair)
        output, _ = other.rnn_cell(xs[:, index], start, elapsed[:, index])
        pair = (output, memory)
        assert torch.allclose(outputs[:, index], output, atol=1e-5)
    assert torch.allclose(last, torch.cat(pair, 1), atol=1e-5)


def circuit():
    """Return ncps's circuit of 19 neurons; its cells build it, and build it further if built."""
    return wirings.AutoNCP(19, 5, sparsity_level=0.5, seed=3)


def as_ours(theirs):
    """Return a wiring that one of ncps's cells has built."""
    layers = tuple(len(theirs.get_neurons_of_layer(layer)) for layer in range(theirs.num_layers))
    return Wiring(np.array(theirs.sensory_adjacency_matrix), np.array(theirs.adjacency_matrix),
                  layers)


@pytest.mark.parametrize('mixed', [False, True])
@pytest.mark.parametrize('form', MODES)
def test_circuit_of_19_neurons_equals_ncps(form, mixed):
    torch.manual_seed(1)
    theirs = circuit()
    other = ncps.CfC(6, theirs, mixed_memory=mixed, mode=MODES[form])
    ours = as_ours(theirs)
    core = (MixedWiredCfcCore if mixed else WiredCfcCore)(6, ours, unit_time=1.0, form=form)
    copy_circuit(core, other.rnn_cell)
    if mixed:
        copy_memory(core, other.lstm)
        # Our state begins with the motor neurons, theirs ends with them.
        ends = np.cumsum((0, *ours.layers))
        order = np.concatenate([np.arange(ends[layer], ends[layer + 1]) for layer in (2, 1, 0)])
        with torch.no_grad():
            four = np.concatenate([order + 19 * gate for gate in range(4)])
            core.memory.weight_hh.copy_(core.memory.weight_hh[four][:, order])
            core.memory.weight_ih.copy_(core.memory.weight_ih[four])
            core.memory.bias_ih.copy_(core.memory.bias_ih[four])
    xs, elapsed = data(inputs=6)
    outputs, last = core.sequence(xs, elapsed, core.initial_state(3))
    hidden, cell = torch.zeros(3, 19), torch.zeros(3, 19)
    for index in range(xs.shape[1]):
        if mixed:
            hidden, cell = other.lstm(xs[:, index], (hidden, cell))
        output, hidden = other.rnn_cell(xs[:, index], hidden, elapsed[:, index])
        assert torch.allclose(outputs[:, index], output, atol=1e-5)
    inter, command, motor = hidden.split(ours.layers, 1)
    assert torch.allclose(last[:, :19], torch.cat((motor, command, inter), 1), atol=1e-5)


def copy_ltc(core, cell):
    """Copy ncps's LTCCell with implicit constraints, ours without its output map."""
    with torch.no_grad():
        for ours, theirs in (
                (core.leak, 'gleak'), (core.rest, 'vleak'), (core.capacity, 'cm'),
                (core.scale, 'input_w'), (core.shift, 'input_b'),
                (core.synapses.weight, 'w'), (core.synapses.mean, 'mu'),
                (core.synapses.steepness, 'sigma'), (core.synapses.reversal, 'erev'),
                (core.sensory.weight, 'sensory_w'), (core.sensory.mean, 'sensory_mu'),
                (core.sensory.steepness, 'sensory_sigma'),
                (core.sensory.reversal, 'sensory_erev')):
            ours.copy_(getattr(cell, theirs))


@pytest.mark.parametrize('wired', [False, True])
def test_ltc_equals_ncps(wired):
    torch.manual_seed(1)
    theirs = circuit() if wired else wirings.FullyConnected(8)
    cell = ncps.LTCCell(theirs, 6, implicit_param_constraints=True)
    core = LtcCore(6, as_ours(theirs), unit_time=1.0)
    copy_ltc(core, cell)
    xs, elapsed = data(inputs=6)
    state = other = torch.zeros(3, cell.state_size)
    outputs, _ = core.sequence(xs, elapsed, core.initial_state(3))
    for index in range(xs.shape[1]):
        state = core.step(xs[:, index], elapsed[:, index], state)
        _, other = cell(xs[:, index], other, elapsed[:, index])
        assert torch.allclose(state, other, atol=1e-5)
        assert torch.allclose(outputs[:, index], other[:, :core.units], atol=1e-5)


def test_own_circuit_has_the_layers_of_ncps():
    theirs = wirings.AutoNCP(19, 5, sparsity_level=0.5)
    ours = circuit_wiring(6, 19, 5, 0.5)
    assert ours.layers == tuple(len(theirs.get_neurons_of_layer(layer)) for layer in range(3))


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('inputs, units, outputs, sparsity', [
    (6, 19, 5, 0.5), (140, 64, 19, 0.5), (1, 5, 2, 0.9), (12, 40, 3, 0.0)])
def test_circuit_lets_every_input_reach_a_motor_neuron(inputs, units, outputs, sparsity, seed):
    wiring = circuit_wiring(inputs, units, outputs, sparsity, seed)
    inter, command, motor = wiring.members
    linked, sensory = wiring.synapses != 0, wiring.sensory != 0
    # Nobody is left out, and no synapse skips a layer or runs backwards.
    assert sensory[:, inter].any(0).all() and sensory[:, inter].any(1).all()
    assert not sensory[:, command].any() and not sensory[:, motor].any()
    assert linked[inter][:, command].any(0).all() and linked[command][:, motor].any(0).all()
    assert linked[inter][:, command].any(1).all() and linked[command][:, motor].any(1).all()
    assert not linked[motor].any() and not linked[:, inter].any()
    assert not linked[inter][:, motor].any()
    assert set(np.unique(wiring.synapses)) <= {-1, 0, 1}


def test_circuit_is_repeatable_and_sparser_when_told():
    first, again = (circuit_wiring(20, 30, 6, 0.5, 7) for _ in range(2))
    assert np.array_equal(first.synapses, again.synapses)
    other = circuit_wiring(20, 30, 6, 0.5, 8)
    assert not np.array_equal(first.synapses, other.synapses)
    sparse, full = (circuit_wiring(20, 30, 6, share, 7) for share in (0.8, 0.1))
    assert (sparse.synapses != 0).sum() < (full.synapses != 0).sum()


def test_bad_wirings_are_refused():
    with pytest.raises(ValueError, match='expected 1 to 16 motor neurons of 19, came 17'):
        circuit_wiring(6, 19, 17)
    with pytest.raises(ValueError, match='expected synapses of 4 neurons'):
        Wiring(np.zeros((2, 5)), np.zeros((5, 5)), (4,))
    assert dense_wiring(3, 4).layers == (4,)
