"""Cores: equal to the published cells, true to the elapsed time, one batch as its rows."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from liquid_policy.cores import (  # noqa: E402
    CfcCore,
    LstmCore,
    MixedCfcCore,
    OdeCore,
    build_core,
)
from liquid_policy.settings import CORES, CoreSettings, SettingsError  # noqa: E402


def _data(batch=3, time=7, inputs=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    xs = torch.randn(batch, time, inputs, generator=generator)
    return xs, 0.002 + 0.03 * torch.rand(batch, time, 1, generator=generator)


@pytest.fixture(params=CORES)
def core(request):
    torch.manual_seed(0)
    return build_core(CoreSettings(kind=request.param, units=8), 5)


def test_cfc_equals_ncps_with_copied_weights():
    cells = pytest.importorskip('ncps.torch')
    torch.manual_seed(1)
    cell = cells.CfCCell(5, 8, mode='default', backbone_activation='lecun_tanh',
                         backbone_units=128, backbone_layers=1, backbone_dropout=0.0)
    core = CfcCore(5, 8, unit_time=1.0)
    with torch.no_grad():
        core.backbone.weight.copy_(cell.backbone[0].weight)
        core.backbone.bias.copy_(cell.backbone[0].bias)
        parts = (cell.ff1, cell.ff2, cell.time_a, cell.time_b)
        core.heads.weight.copy_(torch.cat([part.weight for part in parts]))
        core.heads.bias.copy_(torch.cat([part.bias for part in parts]))
    xs, elapsed = _data()
    state, other = core.initial_state(3), torch.zeros(3, 8)
    for x, time in zip(xs.unbind(1), elapsed.unbind(1), strict=True):
        state = core.step(x, time * 50, state)
        _, other = cell(x, other, time * 50)
        assert torch.allclose(state, other, atol=1e-5)


def test_mixed_memory_equals_ncps_with_copied_weights():
    cells = pytest.importorskip('ncps.torch')
    torch.manual_seed(1)
    other = cells.CfC(5, 8, mixed_memory=True, mode='default', activation='lecun_tanh',
                      backbone_units=128, backbone_layers=1, backbone_dropout=0.0)
    core = MixedCfcCore(5, 8, unit_time=1.0)
    cell = other.rnn_cell
    with torch.no_grad():
        core.backbone.weight.copy_(cell.backbone[0].weight)
        core.backbone.bias.copy_(cell.backbone[0].bias)
        parts = (cell.ff1, cell.ff2, cell.time_a, cell.time_b)
        core.heads.weight.copy_(torch.cat([part.weight for part in parts]))
        core.heads.bias.copy_(torch.cat([part.bias for part in parts]))
        # ncps orders its gates new, keep, forget, show and adds 1 to the forget gate
        order = torch.cat([torch.arange(8) + 8 * gate for gate in (1, 2, 0, 3)])
        core.memory.weight_ih.copy_(other.lstm.input_map.weight[order])
        core.memory.weight_hh.copy_(other.lstm.recurrent_map.weight[order])
        core.memory.bias_ih.copy_(other.lstm.input_map.bias[order])
        core.memory.bias_ih[8:16] += 1.0
        core.memory.bias_hh.zero_()
    xs, elapsed = _data()
    state = core.initial_state(3)
    pair = (torch.zeros(3, 8), torch.zeros(3, 8))
    for x, time in zip(xs.unbind(1), elapsed.unbind(1), strict=True):
        state = core.step(x, time * 50, state)
        start, memory = other.lstm(x, pair)
        output, _ = cell(x, start, time * 50)
        pair = (output, memory)
        assert torch.allclose(state, torch.cat(pair, 1), atol=1e-5)


def test_lstm_equals_torch():
    core = LstmCore(5, 8)
    xs, elapsed = _data()
    state = core.initial_state(3)
    pair = (torch.zeros(3, 8), torch.zeros(3, 8))
    for x, time in zip(xs.unbind(1), elapsed.unbind(1), strict=True):
        state = core.step(x, time, state)
        pair = core.cell(torch.cat((x, time / 0.01 - 1.0), 1), pair)
        assert torch.allclose(state, torch.cat(pair, 1), atol=1e-5)


def test_ode_relaxes_as_the_exact_solution():
    # Without a drive dh/dt = -h / tau: h(t) = h(0) exp(-t / tau).
    core = OdeCore(1, 3, substeps=2).double()
    with torch.no_grad():
        core.drive.weight.zero_()
        core.drive.bias.zero_()
        core.log_tau.copy_(torch.tensor([0.05, 0.1, 0.5]).log())
    start = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    after = core.step(torch.zeros(1, 1).double(), torch.full((1, 1), 0.02).double(), start)
    exact = start * torch.exp(-0.02 / core.log_tau.exp())
    assert torch.allclose(after, exact, atol=1e-6)


def test_ode_is_of_fourth_order():
    torch.manual_seed(0)
    x, start = torch.randn(1, 5).double(), torch.rand(1, 8).double()
    elapsed = torch.full((1, 1), 0.02).double()
    reference = None
    errors = []
    for substeps in (64, 2, 4, 8):
        torch.manual_seed(3)
        core = OdeCore(5, 8, substeps=substeps).double()
        with torch.no_grad():
            core.drive.weight.mul_(4.0)
        after = core.step(x, elapsed, start)
        if reference is None:
            reference = after
        else:
            errors.append((after - reference).abs().max().item())
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert np.all(orders > 3.6), orders


def test_sequence_equals_steps(core):
    xs, elapsed = _data()
    outputs, last = core.sequence(xs, elapsed, core.initial_state(3))
    state = core.initial_state(3)
    for index in range(xs.shape[1]):
        state = core.step(xs[:, index], elapsed[:, index], state)
        assert torch.allclose(outputs[:, index], state[:, :8], atol=1e-6)
    assert torch.allclose(last, state, atol=1e-6)


def test_batch_of_mixed_elapsed_times_equals_its_rows(core):
    xs, elapsed = _data()
    outputs, _ = core.sequence(xs, elapsed, core.initial_state(3))
    for row in range(3):
        single, _ = core.sequence(xs[row:row + 1], elapsed[row:row + 1], core.initial_state())
        assert torch.allclose(outputs[row:row + 1], single, atol=1e-6)


def test_elapsed_time_matters(core):
    xs, elapsed = _data()
    short, _ = core.sequence(xs, elapsed, core.initial_state(3))
    long, _ = core.sequence(xs, elapsed * 3, core.initial_state(3))
    assert (short - long).abs().max() > 1e-3


def test_masked_step_leaves_the_state_alone(core):
    xs, elapsed = _data()
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1, 4:] = False
    outputs, last = core.sequence(xs, elapsed, core.initial_state(3), mask)
    shorter, before = core.sequence(xs[1:2, :4], elapsed[1:2, :4], core.initial_state())
    assert torch.allclose(outputs[1, 4:], shorter[0, -1].expand(3, -1), atol=1e-6)
    assert torch.allclose(last[1:2], before, atol=1e-6)


def test_long_run_stays_finite_and_bounded(core):
    generator = torch.Generator().manual_seed(0)
    xs = 5.0 * torch.randn(2, 400, 5, generator=generator)
    elapsed = torch.full((2, 400, 1), 0.01)
    elapsed[:, ::50] = 30.0     # half a minute of silence
    with torch.no_grad():
        outputs, _ = core.sequence(xs, elapsed, core.initial_state(2))
    assert torch.isfinite(outputs).all()
    assert outputs.abs().max() <= 1.01      # tanh, or a leak towards tanh


def test_gradient_equals_finite_differences(core):
    core = core.double()
    xs, elapsed = (value[:1, :3].double() for value in _data())
    start = 0.1 * torch.ones(1, core.state_size, dtype=torch.float64)
    for value in (xs, elapsed, start):
        value.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *values: core.sequence(*values)[0], (xs, elapsed, start), atol=1e-6)


@pytest.mark.parametrize('elapsed, text', [
    (torch.full((3,), 0.01), r'expected shape \(3, 1\)'),
    (torch.full((1, 3), 0.01), r'expected shape \(3, 1\)'),
    (torch.full((3, 1), -0.01), 'at least 0 s'),
    (torch.full((3, 1), float('nan')), 'finite'),
])
def test_bad_elapsed_time_is_refused(core, elapsed, text):
    with pytest.raises(ValueError, match=text):
        core.step(torch.zeros(3, 5), elapsed, core.initial_state(3))


def test_wrong_shapes_are_refused(core):
    elapsed = torch.full((3, 1), 0.01)
    with pytest.raises(ValueError, match='expected 5 numbers, came 4'):
        core.step(torch.zeros(3, 4), elapsed, core.initial_state(3))
    with pytest.raises(ValueError, match='state: expected shape'):
        core.step(torch.zeros(3, 5), elapsed, core.initial_state(2))
    with pytest.raises(ValueError, match='elapsed: expected shape'):
        core.sequence(torch.zeros(3, 7, 5), torch.full((3, 7), 0.01), core.initial_state(3))


def test_unknown_core_is_refused():
    with pytest.raises(SettingsError, match="one of cfc, cfc-mixed, lstm, ode.*'gru'"):
        CoreSettings(kind='gru')
