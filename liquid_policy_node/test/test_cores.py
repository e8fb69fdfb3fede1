"""Cores: true to the elapsed time, one batch as its rows, a sequence as its steps."""

import pytest

torch = pytest.importorskip('torch')

from liquid_policy.core_settings import CoreSettings  # noqa: E402
from liquid_policy.cores import (  # noqa: E402
    GruCore,
    LstmCore,
    OdeCore,
    ScanCore,
    build_core,
    build_wiring,
    fused_lstm,
    linear_scan,
    ode,
)
from liquid_policy.settings import CORES  # noqa: E402

EVERY = {
    **{kind: {'kind': kind} for kind in CORES},
    'cfc-no_gate': {'kind': 'cfc', 'form': 'no_gate'},
    'cfc-pure': {'kind': 'cfc', 'form': 'pure'},
    'cfc-mixed': {'kind': 'cfc', 'mixed_memory': True},
    'cfc-pure-mixed': {'kind': 'cfc', 'form': 'pure', 'mixed_memory': True},
    'cfc-ncp': {'kind': 'cfc', 'wiring': 'ncp', 'units': 19},
    'cfc-mixed-ncp': {'kind': 'cfc', 'wiring': 'ncp', 'units': 19, 'mixed_memory': True},
    'cfc-pure-ncp': {'kind': 'cfc', 'wiring': 'ncp', 'units': 19, 'form': 'pure'},
    'ltc-ncp': {'kind': 'ltc', 'wiring': 'ncp', 'units': 19},
    'ode-ncp': {'kind': 'ode', 'wiring': 'ncp', 'units': 19},
    'ode-euler': {'kind': 'ode', 'solver': 'euler', 'substeps': 4},
    'ode-dopri5': {'kind': 'ode', 'solver': 'dopri5'},
}
# All that compute a sequence otherwise than step by step.
FAST = [name for name in EVERY if name not in ('gru', 'ode-dopri5', 'cfc-mixed-ncp')]


def make(name, inputs=5, **more):
    """Return an untrained core."""
    if name == 'ode-dopri5':
        pytest.importorskip('torchdiffeq')
    torch.manual_seed(0)
    return build_core(CoreSettings(**({'units': 8} | EVERY[name] | more)), inputs)


def data(batch=3, time=7, inputs=5, seed=0):
    """Return inputs and elapsed times from 2 to 32 ms."""
    generator = torch.Generator().manual_seed(seed)
    xs = torch.randn(batch, time, inputs, generator=generator)
    return xs, 0.002 + 0.03 * torch.rand(batch, time, 1, generator=generator)


@pytest.fixture(params=EVERY)
def core(request):
    return make(request.param)


def test_sequence_equals_steps(core):
    xs, elapsed = data()
    state = core.initial_state(3)
    outputs, last = core.sequence(xs, elapsed, state)
    for index in range(xs.shape[1]):
        state = core.step(xs[:, index], elapsed[:, index], state)
        assert torch.allclose(outputs[:, index], state[:, :core.units], atol=1e-5)
    assert torch.allclose(last, state, atol=1e-5)


def test_batch_of_mixed_times_equals_its_rows_run_singly(core):
    xs, elapsed = data()
    outputs, _ = core.sequence(xs, elapsed, core.initial_state(3))
    # Dormand-Prince takes common steps for the whole batch.
    tolerance = 1e-4 if getattr(core, 'solver', '') == 'dopri5' else 2e-6
    for row in range(3):
        single, _ = core.sequence(xs[row:row + 1], elapsed[row:row + 1], core.initial_state())
        assert torch.allclose(outputs[row:row + 1], single, atol=tolerance)


def test_elapsed_time_matters(core):
    xs, elapsed = data()
    short, _ = core.sequence(xs, elapsed, core.initial_state(3))
    long, _ = core.sequence(xs, elapsed * 3, core.initial_state(3))
    assert (short - long).abs().max() > 1e-3


@pytest.mark.parametrize('name', ['ltc', 'ode', 'ode-euler', 'ode-dopri5', 'scan', 'ltc-ncp'])
def test_no_time_leaves_the_state_alone(name):
    core = make(name)
    state = 0.3 * torch.ones(2, core.state_size)
    after = core.step(torch.randn(2, 5), torch.zeros(2, 1), state)
    assert torch.allclose(after, state, atol=1e-6)


@pytest.mark.parametrize('name, most', [
    ('ode', 1e-4), ('ode-dopri5', 1e-4), ('scan', 1e-12)])
def test_two_short_steps_equal_a_long_one_while_the_input_is_held(name, most):
    # RK4 errs by (t / tau)^5 / 120 per substep; here that is 8e-5 at the worst.
    # Of the scan, one layer alone: the next one's input is held only as long as a step.
    core = make(name, **({'layers': 1} if name == 'scan' else {})).double()
    x, state = torch.randn(4, 5).double(), 0.5 * torch.ones(4, core.state_size).double()
    elapsed = torch.tensor([[0.001], [0.002], [0.004], [0.008]]).double()
    once = core.step(x, 2 * elapsed, state)
    twice = core.step(x, elapsed, core.step(x, elapsed, state))
    assert (once - twice).abs().max() < most
    assert (once - state).abs().max() > 1e-2


def test_masked_step_leaves_the_state_alone(core):
    xs, elapsed = data()
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1, 4:] = False
    outputs, last = core.sequence(xs, elapsed, core.initial_state(3), mask)
    shorter, before = core.sequence(xs[1:2, :4], elapsed[1:2, :4], core.initial_state())
    assert torch.allclose(outputs[1, 4:], shorter[0, -1].expand(3, -1), atol=1e-4)
    assert torch.allclose(last[1:2], before, atol=1e-4)


def test_masked_input_does_not_matter(core):
    xs, elapsed = data()
    mask = torch.rand(3, 7, generator=torch.Generator().manual_seed(2)) > 0.4
    outputs, _ = core.sequence(xs, elapsed, core.initial_state(3), mask)
    other = torch.where(mask[..., None], xs, 100.0 * torch.ones_like(xs))
    again, _ = core.sequence(other, elapsed, core.initial_state(3), mask)
    # Dormand-Prince takes the steps that the most difficult row asks for.
    tolerance = 1e-4 if getattr(core, 'solver', '') == 'dopri5' else 1e-6
    assert torch.allclose(outputs, again, atol=tolerance)


def test_state_carried_over_a_cut_gives_the_same_outputs(core):
    xs, elapsed = data(time=8)
    whole, _ = core.sequence(xs, elapsed, core.initial_state(3))
    first, state = core.sequence(xs[:, :5], elapsed[:, :5], core.initial_state(3))
    second, _ = core.sequence(xs[:, 5:], elapsed[:, 5:], state.detach())
    assert torch.allclose(torch.cat((first, second), 1), whole, atol=1e-5)
    second.sum().backward()         # truncated: the first part's graph is not needed
    assert any(p.grad is not None and bool(p.grad.any()) for p in core.parameters())


def test_long_run_stays_finite_and_bounded(core):
    if getattr(core, 'solver', '') == 'dopri5':
        pytest.skip('half a minute at a step of its own choice takes it seconds')
    generator = torch.Generator().manual_seed(0)
    xs = 5.0 * torch.randn(2, 100, 5, generator=generator)
    elapsed = torch.full((2, 100, 1), 0.01)
    elapsed[:, ::25] = 30.0     # half a minute of silence
    with torch.no_grad():
        outputs, _ = core.sequence(xs, elapsed, core.initial_state(2))
    assert torch.isfinite(outputs).all()
    # A tanh, a leak towards one, early and late of the form without a gate, reversal potentials;
    # the pure form is bounded by its sums, whose share kept falls as they grow.
    assert outputs.abs().max() <= 2.0


def test_gradient_equals_finite_differences(core):
    if getattr(core, 'solver', '') == 'dopri5':
        pytest.skip('its error control is not smooth in its inputs')
    core = core.double()
    xs, elapsed = (value[:1, :3].double() for value in data())
    start = 0.1 * torch.ones(1, core.state_size, dtype=torch.float64)
    for value in (xs, elapsed, start):
        value.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *values: core.sequence(*values)[0], (xs, elapsed, start), atol=1e-6,
        fast_mode=True)


def _gradients(function, core, xs, elapsed, state, mask):
    xs, state = xs.clone().requires_grad_(), state.clone().requires_grad_()
    core.zero_grad()
    outputs, last = function(xs, elapsed, state, mask)
    weights = torch.Generator().manual_seed(3)
    loss = sum((value * torch.randn(value.shape, generator=weights)).sum()
               for value in (outputs, last))
    loss.backward()
    return [outputs, last, xs.grad, state.grad, *(p.grad for p in core.parameters())]


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('name', FAST)
def test_fast_sequence_equals_the_loop_with_gradients(name, masked):
    core = make(name).double()
    xs, elapsed = (value.double() for value in data(time=11))
    elapsed[1, 4] = 0.3         # messages were lost: longer than ode's solver is stable
    state = 0.3 * torch.rand(3, core.state_size, dtype=torch.float64)
    mask = torch.rand(3, 11, generator=torch.Generator().manual_seed(1)) > 0.3
    given = (core, xs, elapsed, state, mask if masked else None)
    for fast, slow in zip(_gradients(core.sequence, *given),
                          _gradients(core.sequential, *given), strict=True):
        # float64 sums in another order; both sides are of order 1.
        assert torch.allclose(fast, slow, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize('name', FAST)
def test_fast_sequence_takes_part_of_a_graph(name):
    """Only the last state, frozen weights, two backward passes: as the loop."""
    core = make(name).double()
    xs, elapsed = (value.double() for value in data())
    frozen = next(core.parameters()).requires_grad_(False)
    _, last = core.sequence(xs, elapsed, core.initial_state(3))
    last.sum().backward(retain_graph=True)
    once = [p.grad.clone() for p in core.parameters() if p is not frozen]
    last.sum().backward()
    core.zero_grad()
    _, other = core.sequential(xs, elapsed, core.initial_state(3))
    other.sum().backward()
    for first, expected in zip(once, (p.grad for p in core.parameters() if p is not frozen),
                               strict=True):
        assert torch.allclose(first, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize('name', ['cfc', 'cfc-mixed', 'lstm'])
def test_mixed_precision_keeps_the_recurrence_whole(name):
    core = make(name)
    xs, elapsed = data()
    known, _ = core.sequence(xs, elapsed, core.initial_state(3))
    with torch.autocast('cpu', torch.bfloat16):
        outputs, _ = core.sequence(xs, elapsed, core.initial_state(3))
    assert outputs.dtype == torch.float32
    # What the inputs contribute is a product in bfloat16, with 3 significant digits.
    assert torch.allclose(outputs, known, atol=0.05)


@pytest.mark.parametrize('name', ['lstm', 'cfc-mixed', 'ode'])
def test_arithmetic_of_other_devices_equals_the_loop(name, monkeypatch):
    """Off the processor a tanh is a tanh, not made of a sigmoid."""
    for module in (fused_lstm, ode):
        monkeypatch.setattr(module, 'squash_scale', lambda like: 1.0)
        monkeypatch.setattr(module, 'squash_', torch.Tensor.tanh_)
    test_fast_sequence_equals_the_loop_with_gradients(name, masked=True)


@pytest.mark.parametrize('name', ['cfc-ncp', 'ltc-ncp', 'ode-ncp'])
def test_missing_synapses_carry_nothing(name):
    """An input moves those inter neurons that listen to it, and no other."""
    core = make(name)
    if name == 'cfc-ncp':
        with torch.no_grad():       # its gates hear the whole layer before, as ncps's do
            for layer in core.layers:
                layer.weight[2 * (len(layer.weight) // 4):, :layer.sources] = 0.0
    state = 0.1 * torch.ones(1, core.state_size)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: core.step(x, torch.full((1, 1), 0.01), state), torch.randn(1, 5))[0, :, 0]
    wiring = build_wiring(CoreSettings(**EVERY[name]), 5)
    inter = wiring.members[0]
    heard = torch.tensor(wiring.sensory[:, inter] != 0).t()
    assert not heard.all() and heard.any()
    reached = jacobian[inter] != 0
    assert torch.equal(reached, heard)


def test_lstm_equals_torch():
    core = LstmCore(5, 8)
    xs, elapsed = data()
    state = core.initial_state(3)
    pair = (torch.zeros(3, 8), torch.zeros(3, 8))
    for x, time in zip(xs.unbind(1), elapsed.unbind(1), strict=True):
        state = core.step(x, time, state)
        pair = core.cell(torch.cat((x, time / 0.01 - 1.0), 1), pair)
        assert torch.allclose(state, torch.cat(pair, 1), atol=1e-5)


def test_gru_equals_torch():
    core = GruCore(5, 8)
    xs, elapsed = data()
    state = other = core.initial_state(3)
    for x, time in zip(xs.unbind(1), elapsed.unbind(1), strict=True):
        state = core.step(x, time, state)
        other = core.cell(torch.cat((x, time / 0.01 - 1.0), 1), other)
        assert torch.allclose(state, other, atol=1e-5)


@pytest.mark.parametrize('time', [1, 2, 3, 8, 17, 30])
def test_scan_equals_its_recurrence(time):
    generator = torch.Generator().manual_seed(time)
    keep, add = (torch.rand(2, time, 3, generator=generator).double() for _ in range(2))
    keep[:, ::5] = 0.0          # forgets everything: nothing may be divided by it
    start = torch.ones(2, 3).double()
    for value in (keep, add, start):
        value.requires_grad_()
    state, states = start, []
    for index in range(time):
        state = keep[:, index] * state + add[:, index]
        states.append(state)
    assert torch.allclose(linear_scan(keep, add, start), torch.stack(states, 1), atol=1e-14)
    assert torch.autograd.gradcheck(linear_scan, (keep, add, start), fast_mode=True)


def test_weights_keep_the_names_that_checkpoints_know():
    backbone = {'backbone.weight', 'backbone.bias', 'heads.weight', 'heads.bias'}
    cell = {f'{name}_{part}' for name in ('weight', 'bias') for part in ('ih', 'hh')}
    for name, expected in {
            'cfc': backbone,
            'cfc-mixed': backbone | {f'memory.{part}' for part in cell},
            'lstm': {f'cell.{part}' for part in cell},
            'ode': {'drive.weight', 'drive.bias', 'log_tau'}}.items():
        assert set(make(name).state_dict()) == expected


def test_scan_relaxes_as_the_exact_solution():
    core = ScanCore(1, 3, layers=1).double()
    with torch.no_grad():
        core.seen.weight.zero_()
        core.seen.bias[3:] = torch.tensor([0.05, 0.1, 0.5]).log().neg() + torch.tensor(0.01).log()
    start = torch.tensor([[1.0, -0.9, 0.5]], dtype=torch.float64)
    after = core.step(torch.zeros(1, 1).double(), torch.full((1, 1), 0.02).double(), start)
    exact = start * torch.exp(-0.02 / torch.tensor([0.05, 0.1, 0.5]).double())
    assert torch.allclose(after, exact, atol=1e-6)


@pytest.mark.parametrize('solver', ['euler', 'rk4', 'dopri5'])
def test_ode_relaxes_as_the_exact_solution(solver):
    if solver == 'dopri5':
        pytest.importorskip('torchdiffeq')
    # Without a drive dh/dt = -h / tau: h(t) = h(0) exp(-t / tau).
    core = OdeCore(1, 3, substeps=64 if solver == 'euler' else 2, solver=solver).double()
    with torch.no_grad():
        core.drive.weight.zero_()
        core.drive.bias.zero_()
        core.log_tau.copy_(torch.tensor([0.05, 0.1, 0.5]).log())
    start = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    after = core.step(torch.zeros(1, 1).double(), torch.full((1, 1), 0.02).double(), start)
    exact = start * torch.exp(-0.02 / core.log_tau.exp())
    # Euler's error is t^2 / (2 tau^2 n) of the value at most, 0.0025 for t = 20 ms, n = 64.
    assert torch.allclose(after, exact, atol={'euler': 3e-3, 'rk4': 1e-6, 'dopri5': 1e-4}[solver])


@pytest.mark.parametrize('solver, order', [('euler', 1), ('rk4', 4)])
def test_ode_is_of_the_order_of_its_method(solver, order):
    torch.manual_seed(0)
    x, start = torch.randn(1, 5).double(), torch.rand(1, 8).double()
    elapsed = torch.full((1, 1), 0.02).double()
    errors, weights = [], OdeCore(5, 8).double().state_dict()

    def solve(method, substeps):
        core = OdeCore(5, 8, substeps=substeps, solver=method).double()
        core.load_state_dict(weights)
        return core.step(x, elapsed, start)

    exact = solve('rk4', 512)
    for substeps in (4, 8, 16, 32):
        errors.append((solve(solver, substeps) - exact).abs().max())
    rates = torch.log2(torch.stack(errors[:-1]) / torch.stack(errors[1:]))
    assert rates[-1].item() == pytest.approx(order, abs=0.15)


def _same_weights(**options):
    """Return an integrator of the same weights with other options, in float64."""
    torch.manual_seed(0)
    return OdeCore(5, 8, **options).double()


def test_classic_method_equals_torchdiffeq():
    pytest.importorskip('torchdiffeq')
    xs, elapsed = (value[:, 0].double() for value in data())
    state = 0.3 * torch.ones(3, 8).double()
    reference = _same_weights(solver='dopri5', tolerance=1e-9).step(xs, elapsed, state)
    # Its error with 16 substeps is below (0.002 / 0.02)^5 / 120 each, 1e-6 in all.
    assert torch.allclose(_same_weights(substeps=16).step(xs, elapsed, state), reference,
                          atol=1e-6)


def test_adjoint_gradient_equals_that_through_the_solver():
    pytest.importorskip('torchdiffeq')
    xs, elapsed = (value[:, :2].double() for value in data())
    found = []
    for adjoint in (False, True):
        core = _same_weights(solver='dopri5', adjoint=adjoint, tolerance=1e-7)
        given = xs.clone().requires_grad_()
        core.sequence(given, elapsed, core.initial_state(3))[0].square().sum().backward()
        found.append([given.grad, *(p.grad for p in core.parameters())])
    for through, adjoint in zip(*found, strict=True):
        assert through.abs().max() > 1e-4
        assert torch.allclose(through, adjoint, rtol=1e-3, atol=1e-6)


def test_ode_over_a_long_gap_comes_to_rest():
    core = OdeCore(5, 8).double()
    x, state = torch.randn(1, 5).double(), torch.zeros(1, 8).double()
    with torch.no_grad():
        far = core.step(x, torch.full((1, 1), 10.0).double(), state)
        for _ in range(100):        # 5 s in steps of 50 ms, the longest that are integrated
            state = core.step(x, torch.full((1, 1), 0.05).double(), state)
        for _ in range(10):
            far = core.step(x, torch.full((1, 1), 10.0).double(), far)
    # Contracting for these weights, so there is one state of rest; the slowest unit is 0.5 s.
    assert torch.allclose(far, state, atol=1e-3)


def test_time_constants_stay_within_their_limits():
    core = OdeCore(5, 4)
    with torch.no_grad():
        core.log_tau.copy_(torch.tensor([-20.0, -4.0, -1.0, 20.0]))
    assert core.tau.min().item() == pytest.approx(0.01)
    assert core.tau.max().item() == pytest.approx(1.0)


@pytest.mark.parametrize('elapsed, text', [
    (torch.full((3,), 0.01), r'expected shape \(3, 1\)'),
    (torch.full((1, 3), 0.01), r'expected shape \(3, 1\)'),
    (torch.full((3, 1), -0.01), 'at least 0 s'),
    (torch.full((3, 1), float('nan')), 'finite'),
])
def test_bad_elapsed_time_is_refused(elapsed, text):
    for name in CORES:
        core = make(name)
        with pytest.raises(ValueError, match=text):
            core.step(torch.zeros(3, 5), elapsed, core.initial_state(3))


def test_wrong_shapes_are_refused():
    elapsed = torch.full((3, 1), 0.01)
    for name in CORES:
        core = make(name)
        with pytest.raises(ValueError, match='expected 5 numbers, came 4'):
            core.step(torch.zeros(3, 4), elapsed, core.initial_state(3))
        with pytest.raises(ValueError, match='state: expected shape'):
            core.step(torch.zeros(3, 5), elapsed, core.initial_state(2))
        with pytest.raises(ValueError, match='elapsed: expected shape'):
            core.sequence(torch.zeros(3, 7, 5), torch.full((3, 7), 0.01), core.initial_state(3))
        with pytest.raises(ValueError, match='elapsed: expected shape.*at least one step'):
            core.sequence(torch.zeros(3, 0, 5), torch.zeros(3, 0, 1), core.initial_state(3))
        with pytest.raises(ValueError, match='mask: expected truth values'):
            core.sequence(torch.zeros(3, 7, 5), torch.full((3, 7, 1), 0.01),
                          core.initial_state(3), torch.ones(3, 7))
