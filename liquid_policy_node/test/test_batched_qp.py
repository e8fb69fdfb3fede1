"""Nearest points within bounds: known answers, DAQP's answers, and batches that stay finite."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from liquid_policy.batched_qp import Status  # noqa: E402
from liquid_policy.batched_qp import solve as solve_by  # noqa: E402
from liquid_policy.nearest_point import solve_saddle  # noqa: E402


@pytest.fixture(params=['daqp', 'interior_point'])
def solve(request):
    """Return the solver with either way of finding the active rows."""
    if request.param == 'daqp':
        pytest.importorskip('daqp')
    return lambda *given: solve_by(*given, method=request.param)


def random_problems(count, size, rows, seed, equal=0):
    """
    Return feasible problems in mixed units: rows differ by a factor of 10,000.

    :param equal: how many rows have one bound instead of two.
    """
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(count, rows, size)) * 10.0 ** rng.uniform(-2, 2, (count, rows, 1))
    inner = rng.normal(size=(count, size))
    value = np.einsum('bmn,bn->bm', matrix, inner)
    length = np.linalg.norm(matrix, axis=2)
    low = value - length * rng.uniform(0, 2, (count, rows))
    high = value + length * rng.uniform(0, 2, (count, rows))
    side = rng.random((count, rows))
    low[side < 0.25], high[side > 0.75] = -np.inf, np.inf
    low[:, :equal] = high[:, :equal] = value[:, :equal]
    proposal = inner + rng.normal(size=(count, size)) * 3.0
    weight = 10.0 ** rng.uniform(-1, 1, (count, size))
    return [torch.from_numpy(item) for item in (proposal, matrix, low, high, weight)]


def reference(proposal, matrix, low, high, weight):
    """Return DAQP's answers, NaN where it finds none."""
    daqp = pytest.importorskip('daqp')
    answers = []
    for p, a, least, most, w in zip(proposal, matrix, low, high, weight, strict=True):
        lower, upper = np.maximum(least.numpy(), -1e30), np.minimum(most.numpy(), 1e30)
        sense = np.where(lower == upper, 5, 0).astype(np.int32)
        x, _, flag, _ = daqp.solve(np.diag(w.numpy()), -(w * p).numpy(), a.numpy().copy(), upper,
                                   lower, sense, primal_tol=1e-10)
        answers.append(x if flag > 0 else np.full(len(p), np.nan))
    return torch.from_numpy(np.array(answers))


@pytest.mark.parametrize(
    ('size', 'rows', 'equal'), [(2, 5, 0), (6, 30, 0), (6, 24, 2), (9, 40, 1)])
def test_answers_are_those_of_the_run_time_solver(solve, size, rows, equal):
    problems = random_problems(100, size, rows, seed=size * rows, equal=equal)
    solution = solve(*problems)
    assert (solution.status <= Status.PROJECTED).all()
    assert (solution.point - reference(*problems)).abs().max() < 1e-6


def test_box_is_clipping(solve):
    proposal = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 4)) * 2)
    ones = torch.ones(200, 4, dtype=torch.float64)
    solution = solve(proposal, torch.eye(4, dtype=torch.float64).repeat(200, 1, 1), -ones, ones,
                     3 * ones)
    torch.testing.assert_close(solution.point, proposal.clamp(-1, 1), rtol=0, atol=1e-14)
    assert (solution.active == (proposal.abs() > 1)).all()


def test_points_inside_come_back_bit_for_bit(solve):
    proposal, matrix, low, high, weight = random_problems(50, 3, 8, seed=3)
    value = torch.einsum('bmn,bn->bm', matrix, proposal)
    solution = solve(proposal, matrix, value - 1e-12, value, weight)
    assert (solution.status == Status.INSIDE).all()
    assert torch.equal(solution.point, proposal)


def test_multipliers_pull_the_point_back(solve):
    proposal, matrix, low, high, weight = random_problems(100, 5, 20, seed=1)
    solution = solve(proposal, matrix, low, high, weight)
    pull = weight * (solution.point - proposal)
    pull += torch.einsum('bmn,bm->bn', matrix, solution.multiplier)
    # Prices differ by 100 and distances by 10: 1e-9 is seven digits below the smallest force.
    assert pull.abs().max() < 1e-9
    value = torch.einsum('bmn,bn->bm', matrix, solution.point)
    above, below = solution.multiplier > 0, solution.multiplier < 0
    length = matrix.square().sum(2).sqrt()
    assert ((value - high) / length)[above].abs().max() < 1e-9
    assert ((value - low) / length)[below].abs().max() < 1e-9


def test_a_problem_is_answered_alike_alone_and_in_company(solve):
    problems = random_problems(64, 6, 24, seed=2)
    together = solve(*problems).point
    alone = torch.cat([solve(*(item[i:i + 1] for item in problems)).point for i in range(8)])
    torch.testing.assert_close(alone, together[:8], rtol=0, atol=1e-11)


def test_rows_that_repeat_each_other_do_no_harm(solve):
    proposal, matrix, low, high, weight = random_problems(100, 4, 10, seed=4)
    once = solve(proposal, matrix, low, high, weight)
    twice = solve(proposal, torch.cat((matrix, 2 * matrix), 1), torch.cat((low, 2 * low), 1),
                  torch.cat((high, 2 * high), 1), weight)
    assert (twice.status <= Status.PROJECTED).all()
    torch.testing.assert_close(twice.point, once.point, rtol=0, atol=1e-10)


def test_what_has_no_answer_is_told_from_what_has_one(solve):
    proposal, matrix, low, high, weight = random_problems(40, 4, 12, seed=5)
    matrix[::2, 1] = matrix[::2, 0]
    low[::2, 0], high[::2, 0] = 1.0, torch.inf
    low[::2, 1], high[::2, 1] = -torch.inf, 0.5
    solution = solve(proposal, matrix, low, high, weight)
    assert (solution.status[::2] >= Status.INFEASIBLE).all()
    assert (solution.status[1::2] <= Status.PROJECTED).all()
    assert torch.isfinite(solution.point).all() and torch.isfinite(solution.multiplier).all()
    assert torch.equal(solution.point[::2], proposal[::2])


def test_a_row_of_zeros_holds_for_all_or_for_none(solve):
    proposal = torch.full((2, 2), 3.0, dtype=torch.float64)
    matrix = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64).repeat(2, 1, 1)
    low = torch.tensor([[-1.0, -1.0], [-1.0, 0.5]], dtype=torch.float64)
    solution = solve(proposal, matrix, low, torch.ones(2, 2, dtype=torch.float64),
                     torch.ones(2, 2, dtype=torch.float64))
    assert solution.status.tolist() == [Status.PROJECTED, Status.INFEASIBLE]
    torch.testing.assert_close(solution.point[0], torch.tensor([1.0, 3.0], dtype=torch.float64))


def test_units_do_not_matter(solve):
    proposal, matrix, low, high, weight = random_problems(50, 5, 15, seed=6)
    here = solve(proposal, matrix, low, high, weight).point
    there = solve(proposal * 1e-6, matrix * 1e3, low * 1e-3, high * 1e-3, weight).point
    torch.testing.assert_close(there * 1e6, here, rtol=1e-9, atol=1e-9)


def test_saddle_points_of_dependent_rows_are_exact():
    rng = np.random.default_rng(7)
    rows = torch.from_numpy(rng.normal(size=(5, 3, 4)))
    rows[:, 2] = rows[:, 0] - rows[:, 1]
    first = torch.from_numpy(rng.normal(size=(5, 4)))
    second = torch.bmm(rows, torch.from_numpy(rng.normal(size=(5, 4, 1))))[..., 0]
    x, y = solve_saddle(rows, first, second, torch.zeros_like(first), torch.zeros_like(second))
    torch.testing.assert_close(torch.bmm(rows, x[..., None])[..., 0], second, atol=1e-12, rtol=0)
    torch.testing.assert_close(x + torch.bmm(y[:, None], rows)[:, 0], first, atol=1e-8, rtol=0)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match='expected one of auto, daqp, interior_point'):
        solve_by(*random_problems(2, 2, 3, seed=0), method='guess')
