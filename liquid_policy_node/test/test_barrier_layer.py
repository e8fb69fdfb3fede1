"""Gradients against finite differences, laws of the projection, barriers that hold."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from liquid_policy.barrier_layer import (  # noqa: E402
    BarrierLayer,
    HighOrderBarrier,
    InfeasibleError,
    project,
)


def problems(count=3, size=2, rows=4, seed=0):
    """Return feasible problems whose proposals are mostly unsafe, float64."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(count, rows, size))
    inner = rng.normal(size=(count, size))
    value = np.einsum('bmn,bn->bm', matrix, inner)
    low = value - rng.uniform(0.1, 1.0, (count, rows))
    high = value + rng.uniform(0.1, 1.0, (count, rows))
    weight = rng.uniform(0.5, 2.0, (count, size))
    proposal = inner + rng.normal(size=(count, size)) * 2.0
    return [torch.from_numpy(item).requires_grad_()
            for item in (proposal, matrix, low, high, weight)]


@pytest.mark.parametrize(('seed', 'method'), [(0, 'auto'), (1, 'auto'), (1, 'interior_point')])
def test_gradients_are_those_of_finite_differences(seed, method):
    given = problems(seed=seed)
    assert project(*given, method=method).changed.any()
    assert torch.autograd.gradcheck(lambda *x: project(*x, method=method).action, given,
                                    eps=1e-6, atol=1e-6)


def test_gradients_of_one_sided_and_equal_bounds():
    proposal, matrix, low, high, weight = (item.detach() for item in problems(2, 3, 6))
    high[:, :3] = torch.inf
    together = low[:, 5].clone().requires_grad_()

    def action(proposal, matrix, together):
        upper = torch.cat((high[:, :5], together[:, None]), 1)
        lower = torch.cat((low[:, :5], together[:, None]), 1)
        return project(proposal, matrix, lower, upper, weight).action

    assert torch.autograd.gradcheck(
        action, (proposal.requires_grad_(), matrix.requires_grad_(), together), atol=1e-6)


def test_gradients_of_soft_rows():
    given = problems(2, 2, 5, seed=4)
    price = torch.full((2, 5), torch.inf, dtype=torch.float64)
    price[:, :3] = 4.0
    assert torch.autograd.gradcheck(lambda *x: project(*x, price=price).action, given, atol=1e-6)


def test_a_safe_proposal_passes_bit_for_bit_with_its_gradient():
    proposal = torch.tensor([[0.1, 0.2], [0.3, 3.0]], requires_grad=True)
    box = torch.eye(2).repeat(2, 1, 1)
    found = project(proposal, box, torch.full((2, 2), -1.0), torch.ones(2, 2))
    assert found.changed.tolist() == [False, True]
    assert torch.equal(found.action[0], proposal[0])
    found.action.sum().backward()
    # Where a bound holds an entry back, moving the proposal moves nothing.
    assert proposal.grad[0].tolist() == [1.0, 1.0]
    assert proposal.grad[1].tolist() == pytest.approx([1.0, 0.0], abs=1e-12)


def test_every_constraint_holds_in_single_precision():
    proposal, matrix, low, high, weight = (item.detach().float()
                                           for item in problems(300, 4, 12, seed=5))
    found = project(proposal, matrix, low, high, weight)
    value = torch.einsum('bmn,bn->bm', matrix.double(), found.action.double())
    # Rounding the action to float32 moves it by 1e-7 of its size, at most 8 here.
    assert torch.maximum(low - value, value - high).max() < 1e-5
    assert found.action.dtype == torch.float32 and found.feasible.all()


def test_soft_rows_give_way_and_hard_ones_do_not():
    proposal = torch.zeros(1, 1, dtype=torch.float64)
    matrix = torch.ones(1, 2, 1, dtype=torch.float64)
    low = torch.tensor([[2.0, -torch.inf]], dtype=torch.float64)
    high = torch.tensor([[torch.inf, 1.0]], dtype=torch.float64)
    price = torch.tensor([[9.0, torch.inf]], dtype=torch.float64)
    found = project(proposal, matrix, low, high, price=price)
    # 1/2 u^2 + 9/2 (2 - u)^2 is least at 1.8, beyond the hard bound.
    assert found.action.item() == pytest.approx(1.0, abs=1e-9)
    assert found.slack[0].tolist() == pytest.approx([1.0, 0.0], abs=1e-9)
    assert found.feasible.all()
    free = project(proposal, matrix[:, :1], low[:, :1], high[:, :1], price=price[:, :1])
    assert free.action.item() == pytest.approx(1.8, abs=1e-9)


def test_what_cannot_be_kept_is_violated_least_and_said():
    proposal = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    matrix = torch.ones(2, 2, 1, dtype=torch.float64)
    low = torch.tensor([[3.0, -torch.inf], [0.5, -torch.inf]], dtype=torch.float64)
    high = torch.tensor([[torch.inf, 1.0], [torch.inf, 1.0]], dtype=torch.float64)
    found = project(proposal, matrix, low, high)
    assert found.feasible.tolist() == [False, True]
    # Midway between "at least 3" and "at most 1".
    assert found.action[:, 0].tolist() == pytest.approx([2.0, 0.5], abs=1e-5)
    found.action.sum().backward()
    assert torch.isfinite(proposal.grad).all()
    with pytest.raises(InfeasibleError, match='1 of 2 rows'):
        project(proposal, matrix, low, high, relax=False)


@pytest.mark.parametrize(('change', 'message'), [
    ({'low': torch.zeros(2, 3)}, r'low: expected \(2, 2\)'),
    ({'proposal': torch.full((2, 2), torch.nan)}, 'proposal: expected finite'),
    ({'weight': torch.zeros(2, 2)}, 'weight: expected numbers above 0'),
    ({'high': torch.full((2, 2), torch.nan)}, 'came NaN'),
])
def test_bad_input_is_refused(change, message):
    given = {'proposal': torch.zeros(2, 2), 'matrix': torch.eye(2).repeat(2, 1, 1),
             'low': -torch.ones(2, 2), 'high': torch.ones(2, 2), 'weight': torch.ones(2, 2)}
    with pytest.raises(ValueError, match=message):
        project(**{**given, **change})


def unicycle(order=2, gains=((1.0, 2.0),)):
    """Return the barrier of a disc at (2, 0.1) for a robot (x, y, heading, speed)."""
    def barrier(x):
        return ((x[:, 0] - 2.0).square() + (x[:, 1] - 0.1).square() - 0.25)[:, None]

    def drift(x):
        return torch.stack((x[:, 3] * x[:, 2].cos(), x[:, 3] * x[:, 2].sin(),
                            torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])), 1)

    def actuation(x):
        g = torch.zeros(4, 2, dtype=x.dtype)
        g[2, 0] = g[3, 1] = 1.0
        return g.expand(len(x), 4, 2)

    return HighOrderBarrier(barrier, drift, actuation, order, gains)


def test_rows_are_those_derived_by_hand():
    rng = np.random.default_rng(0)
    state = torch.from_numpy(rng.uniform(-1, 1, (20, 4)))
    px, py, heading, speed = state.unbind(1)
    px, py = px - 2.0, py - 0.1
    along = px * heading.cos() + py * heading.sin()
    across = -px * heading.sin() + py * heading.cos()
    barrier = unicycle().double()
    matrix, low = barrier(state)
    # b'' = 2 v^2 + 2 v across * turning + 2 along * acceleration
    torch.testing.assert_close(matrix[:, 0], torch.stack((2 * speed * across, 2 * along), 1))
    p1, p2 = barrier.gains[0]
    b = px.square() + py.square() - 0.25
    wanted = -(2 * speed.square() + (p1 + p2) * 2 * speed * along + p1 * p2 * b)
    torch.testing.assert_close(low[:, 0], wanted)


def test_gains_begin_as_given_stay_positive_and_learn():
    barrier = unicycle().double()
    torch.testing.assert_close(barrier.gains, torch.tensor([[1.0, 2.0]], dtype=torch.float64))
    layer = BarrierLayer(barrier, torch.full((2,), -2.0, dtype=torch.float64),
                         torch.full((2,), 2.0, dtype=torch.float64))
    state = torch.tensor([[1.0, 0.0, 0.0, 0.8]], dtype=torch.float64)
    proposal = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    optimiser = torch.optim.SGD(layer.parameters(), lr=1.0)
    before = layer(proposal, state).action[0, 1].item()
    for _ in range(3):
        found = layer(proposal, state)
        optimiser.zero_grad()
        (found.action - torch.tensor([[0.0, -1.8]], dtype=torch.float64)).square().sum().backward()
        assert layer.barrier.raw.grad.abs().max() > 0.0
        optimiser.step()
    after = layer(proposal, state).action[0, 1].item()
    assert (after < before - 0.05) and (layer.barrier.gains > 0.0).all()


def test_gradients_reach_gains_state_and_proposal():
    layer = BarrierLayer(unicycle().double(), torch.full((2,), -9.0, dtype=torch.float64),
                         torch.full((2,), 9.0, dtype=torch.float64))
    state = torch.tensor([[1.0, 0.0, 0.1, 0.8], [1.2, 0.3, -0.4, 0.6]], dtype=torch.float64,
                         requires_grad=True)
    proposal = torch.tensor([[0.0, 1.0], [0.3, 2.0]], dtype=torch.float64, requires_grad=True)
    raw = torch.tensor([[[0.1, 0.5]], [[-0.3, 0.2]]], dtype=torch.float64, requires_grad=True)
    assert layer(proposal, state, raw).changed.all()
    assert torch.autograd.gradcheck(lambda *x: layer(*x).action, (proposal, state, raw),
                                    atol=1e-6)


def test_answers_are_the_same_without_gradients_and_in_inference():
    layer = BarrierLayer(unicycle(), torch.full((2,), -9.0), torch.full((2,), 9.0))
    network = torch.nn.Linear(4, 4)
    state = torch.tensor([[1.0, 0.0, 0.1, 0.8], [1.2, 0.3, -0.4, 0.6]])

    def act():
        proposal, raw = network(state.clone()).split(2, 1)
        return layer(proposal + 2.0, state.clone(), raw[:, None]).action

    with torch.no_grad():
        quiet = act()
    with torch.inference_mode():
        fast = act()
    assert torch.equal(act().detach(), quiet) and torch.equal(fast, quiet)
    assert not quiet.requires_grad


def test_an_empty_batch_is_answered_with_one():
    found = project(torch.zeros(0, 2), torch.zeros(0, 3, 2), torch.zeros(0, 3), torch.ones(0, 3))
    assert found.action.shape == (0, 2) and found.feasible.shape == (0,)


def test_the_robot_stops_or_turns_before_the_disc():
    layer = BarrierLayer(unicycle(gains=((2.0, 2.0),)), torch.full((2,), -4.0),
                         torch.full((2,), 4.0))
    state = torch.tensor([[0.0, 0.0, 0.0, 0.5], [0.0, 0.5, 0.3, 1.0], [2.0, -2.0, 1.2, 0.8]])
    nearest = torch.full((3,), torch.inf)
    with torch.no_grad():
        for _ in range(150):
            found = layer(torch.tensor([[0.0, 1.0]]).expand(3, 2), state)
            assert found.feasible.all()
            rate = layer.barrier.drift(state)
            rate[:, 2:] += found.action
            state = state + 0.02 * rate
            nearest = torch.minimum(nearest, layer.barrier.barrier(state)[:, 0])
    # b in m^2; holding u for 0.02 s costs less than 0.02.
    assert nearest.min() > -0.02
    assert nearest[0] < 0.2     # it was put to the test


def test_wrong_relative_degree_is_refused():
    state = torch.rand(5, 4, dtype=torch.float64)
    unicycle().double().check(state)
    with pytest.raises(ValueError, match='does not enter at order 1'):
        unicycle(1, ((1.0,),)).double().check(state)
    with pytest.raises(ValueError, match='enters at order 2 already'):
        unicycle(3, ((1.0, 1.0, 1.0),)).double().check(state)


def test_gains_of_a_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r'gains: expected \(barriers, 2\)'):
        unicycle(2, ((1.0,),))
    with pytest.raises(ValueError, match='above 0'):
        unicycle(2, ((1.0, 0.0),))
    with pytest.raises(ValueError, match=r'gains: expected \(5, 1, 2\)'):
        unicycle()(torch.rand(5, 4), torch.ones(5, 2))


def test_the_layer_and_the_filter_agree_on_a_thousand_programmes():
    pytest.importorskip('daqp')
    from liquid_policy.barrier_qp import nearest_command
    from liquid_policy.barrier_rows import LinearConstraints

    rng = np.random.default_rng(7029)
    count, size, coupled = 1000, 6, 24
    matrix = rng.normal(size=(count, coupled, size)) * 10.0 ** rng.uniform(-2, 2, (count, coupled,
                                                                                  1))
    matrix = np.concatenate((np.broadcast_to(np.eye(size), (count, size, size)), matrix), 1)
    inner = rng.uniform(-1, 1, (count, size))
    value, length = np.einsum('bmn,bn->bm', matrix, inner), np.linalg.norm(matrix, axis=2)
    low = value - length * rng.uniform(0.05, 2, value.shape)
    high = value + length * rng.uniform(0.05, 2, value.shape)
    proposal = inner + rng.normal(size=inner.shape) * 2.0
    weight = 10.0 ** rng.uniform(-1, 1, (count, size))
    found = project(*(torch.from_numpy(item) for item in (proposal, matrix, low, high, weight)))
    names, hard = tuple(f'row {i}' for i in range(size + coupled)), np.zeros(size + coupled, int)
    for index in range(count):
        rows = LinearConstraints(matrix[index], low[index], high[index], names, hard)
        command = nearest_command(proposal[index], rows, weight[index]).command
        assert command is not None
        assert found.action[index].numpy() == pytest.approx(command, abs=1e-6)
