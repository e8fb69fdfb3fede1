"""What the benchmarks share: turns, percentiles, rows; and a page made from what they measured."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / 'benchmarks'))

import bench  # noqa: E402
import measuring  # noqa: E402

SHARED = measuring.about()


def test_functions_take_turns_and_slow_ones_fewer():
    """A clock that counts calls: what takes longer is called less often, never in one block."""
    clock, order = [0.0], []

    def function(name, cost):
        def call():
            order.append(name)
            clock[0] += cost
        return call

    times = measuring.in_turn({'fast': function('fast', 0.001), 'slow': function('slow', 0.1)},
                              200, seconds=4.0, clock=lambda: clock[0])
    assert len(times['fast']) == 200 and len(times['slow']) == 40
    np.testing.assert_allclose(times['fast'], 0.001)
    np.testing.assert_allclose(times['slow'], 0.1)
    changes = sum(one != other for one, other in zip(order, order[1:], strict=False))
    assert changes >= 6


def test_the_interval_holds_the_percentile():
    values = np.random.default_rng(0).exponential(size=5000)
    value, low, high = measuring.interval(values, 50)
    assert low < value < high and value == pytest.approx(np.log(2), rel=0.1)
    assert high - low < 0.2


def test_rows_say_what_was_measured():
    values = np.linspace(1e-5, 3e-5, 1001)
    rows = measuring.latency_rows('step', 'manipulator', 'cfc+mixture', values, SHARED)
    assert [row['figure'] for row in rows] == ['step_p50', 'step_p99', 'step_max']
    assert rows[0]['value'] == pytest.approx(2e-5) and rows[2]['value'] == values.max()
    assert {'commit', 'machine', 'date', 'load', 'n', 'unit'} <= set(rows[0])
    row = measuring.speedup_row('manipulator', 'a', values, 'b', 5 * values, SHARED)
    assert row['value'] == pytest.approx(5.0)


def measured():
    """Rows of two parts, as their benchmarks write them."""
    times = {'cfc+mixture': np.full(100, 3e-5), 'ncps-cfc+mixture': np.full(100, 1.8e-4),
             'torchdiffeq-window': np.full(20, 0.02)}
    rows = []
    for name, values in times.items():
        rows += measuring.latency_rows('step', 'manipulator', name, values, SHARED)
        rows.append(measuring.speedup_row('manipulator', 'cfc+mixture', times['cfc+mixture'],
                                          name, values, SHARED))
    rows = [{**row, 'part': 'step_latency'} for row in rows]
    for size in (1, 2, 4):
        rows += [{**row, 'part': 'growth', 'size': size} for row in measuring.latency_rows(
            'step', 'growth_units', str(size), np.full(50, 1e-5 * size), SHARED)]
    return rows


def test_targets_are_judged_by_what_was_measured():
    figures = bench.Figures(measured())
    table = next(block for block in bench.blocks(figures) if block.title == 'Targets')
    judged = {row[0]: row[-1] for row in table.rows}
    assert judged == {'policy step, p99': 'met', 'step against the window recipe': 'met',
                      'step against ncps CfC with the same heads': 'met'}


def test_the_page_is_made_anew_from_what_was_written(tmp_path, monkeypatch, capsys):
    """Of a run that measured two parts, without measuring anything again."""
    import json
    (tmp_path / 'bench.jsonl').write_text(
        ''.join(json.dumps(row) + '\n' for row in measured()))
    monkeypatch.setattr(sys, 'argv', [
        'bench', '--page', '--only', 'step_latency', 'growth', '--output', str(tmp_path)])
    bench.main()
    assert '667 x torchdiffeq-window' in capsys.readouterr().out
    page = (tmp_path / 'bench.html').read_text()
    assert 'Cost by units' in page and '667 x torchdiffeq-window' in page
    assert '>nan' not in page


def test_memory_that_grows_is_not_flat():
    pytest.importorskip('rclpy')
    import soak
    flat = 2e8 + 1e5 * np.sin(np.arange(120))
    slope, step = soak.growth(flat, 1200.0)
    assert abs(slope) < 3e6 and abs(step) < 2e6
    slope, step = soak.growth(flat + np.linspace(0.0, 4e7, 120), 1200.0)
    assert slope > 3e6 and step > 2e6


def test_a_part_that_fails_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, 'FOLDER', tmp_path)
    (tmp_path / 'growth.py').write_text('raise SystemExit(3)\n')
    assert bench.run_part('growth', (), tmp_path) == []
    assert 'FAILED' in capsys.readouterr().out
