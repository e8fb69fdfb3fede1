"""The evaluation's statistics have known answers."""

import json

import pytest

from liquid_sim import evaluate, scene
from liquid_sim.rollout import Outcome

INTERFACE = scene.find_interface()


def test_wilson_interval_known_answers():
    # Newcombe, Two-sided confidence intervals for the single proportion, 1998, table I
    assert evaluate.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert evaluate.wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert evaluate.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_wilson_refuses_no_trials():
    with pytest.raises(ValueError, match='trials'):
        evaluate.wilson(0, 0)


def test_jobs_cover_the_parts_with_distinct_seeds(tmp_path):
    jobs = evaluate.jobs_of('expert', 'unseen', 25, [0, 1], tmp_path)
    assert sum(job.parts for job in jobs) == 50
    assert len({job.seed for job in jobs}) == len(jobs) == 6


def test_rows_carry_counts_and_intervals():
    outcomes = [
        Outcome(1, seen=10, picked=9, ticks=100, interventions=5, errors=[0.01, 0.03]),
        Outcome(2, seen=10, picked=7, ticks=100, interventions=0, errors=[0.02])]
    rows = {row['figure']: row for row in evaluate.rows_of(outcomes, 'cfc+mixture', 'unseen', [0])}
    assert rows['success']['value'] == 0.8 and rows['success']['n'] == 20
    assert rows['success']['low'] < 0.8 < rows['success']['high']
    assert rows['pose_error']['value'] == pytest.approx(0.02)
    assert rows['interventions']['value'] == 5 / 200
    json.dumps(list(rows.values()))


def test_expert_alone_picks_everything_in_two_processes(tmp_path, capsys):
    path = tmp_path / 'figures.jsonl'
    code = evaluate.main(['expert', '--parts', '4', '--seeds', '0', '1', '--processes', '2',
                          '--interface', str(INTERFACE), '--append', str(path)])
    assert code == 0
    assert '8 of 8' in capsys.readouterr().out
    assert json.loads(path.read_text().splitlines()[0])['value'] == 1.0


def test_newer_figures_replace_older_ones_of_the_same_policy(tmp_path):
    path = tmp_path / 'figures.jsonl'
    row = {'figure': 'success', 'task': 'unseen', 'policy': 'expert', 'value': 0.5}
    evaluate.append_rows(path, [row, row | {'policy': 'lstm+mixture'}])
    evaluate.append_rows(path, [row | {'value': 0.9}])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r['policy'], r['value']) for r in rows] == [('lstm+mixture', 0.5), ('expert', 0.9)]
