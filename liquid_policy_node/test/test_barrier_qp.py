"""The nearest command: against a dense search, and the order in which soft rows give way."""

import numpy as np
import pytest

from liquid_policy.barrier_qp import nearest_command
from liquid_policy.barrier_rows import LinearConstraints

pytest.importorskip('daqp')


def constraints(rows, high, priority=None, size=2, bound=1.0):
    """A box of +-bound and one-sided rows."""
    rows = np.array(rows, dtype=float).reshape(-1, size)
    count = len(rows)
    return LinearConstraints(
        np.concatenate([np.eye(size), rows]),
        np.concatenate([np.full(size, -bound), np.full(count, -np.inf)]),
        np.concatenate([np.full(size, bound), np.array(high, dtype=float)]),
        tuple(f'row_{index}' for index in range(size + count)),
        np.concatenate([np.zeros(size, dtype=int),
                        np.array(priority or [0] * count, dtype=int)]))


def test_a_known_projection():
    """Onto x + y <= 1 from (1, 1): (0.5, 0.5); with weights 1 and 3: (0.25, 0.75)."""
    rows = constraints([[1, 1]], [1.0])
    assert nearest_command(np.ones(2), rows).command == pytest.approx([0.5, 0.5], abs=1e-12)
    weighted = nearest_command(np.ones(2), rows, np.array([1.0, 3.0]))
    assert weighted.command == pytest.approx([0.25, 0.75], abs=1e-12)


def test_no_sampled_safe_command_is_nearer():
    """50 random programmes of 6 variables and 24 rows, 2,000 candidates each."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        rows = constraints(
            generator.normal(size=(24, 6)), generator.uniform(0.1, 1.0, 24), size=6)
        proposal = generator.normal(0.0, 2.0, 6)
        answer = nearest_command(proposal, rows).command
        assert rows.excess(answer).max() < 1e-9
        candidates = answer + generator.normal(0.0, 0.1, (2000, 6))
        safe = rows.excess(candidates).max(axis=1) <= 0.0
        distance = np.linalg.norm(candidates[safe] - proposal, axis=1)
        assert (distance >= np.linalg.norm(answer - proposal) - 1e-9).all()


def test_contradicting_hard_rows_have_no_command():
    """x >= 2 within +-1."""
    found = nearest_command(np.zeros(2), constraints([[-1, 0]], [-2.0]))
    assert found.command is None and 'hard row' in found.fault


def test_soft_rows_give_way_the_greatest_number_first_and_hard_ones_never():
    """x <= -0.5 (hard) against x >= 0.2 (second) and y >= 2 in the box (last)."""
    rows = constraints([[1, 0], [-1, 0], [0, -1]], [-0.5, -0.2, -2.0], [0, 1, 2])
    found = nearest_command(np.zeros(2), rows)
    assert found.relaxed == (2, 1)
    assert found.command[0] == pytest.approx(-0.5, abs=1e-6)
    only_last = nearest_command(
        np.zeros(2), constraints([[-1, 0], [0, -1]], [-0.2, -2.0], [1, 2]))
    assert only_last.relaxed == (2,)
    assert only_last.command[0] == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize('bad', [np.nan, -np.inf])
def test_broken_numbers_give_no_command(bad):
    """Not finite in a row: a fault, never a command."""
    rows = constraints([[1, bad]], [1.0])
    found = nearest_command(np.zeros(2), rows)
    assert found.command is None and found.fault


def test_shapes_are_checked():
    """One bound too few."""
    with pytest.raises(ValueError, match='low: expected shape'):
        LinearConstraints(np.eye(2), np.zeros(1), np.ones(2), ('a', 'b'), np.zeros(2, dtype=int))
