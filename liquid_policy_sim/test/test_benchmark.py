"""The benchmark: its trials, its scores against known answers, its report and its going on."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('gym_pusht')
torch = pytest.importorskip('torch')

from liquid_policy.policy import Policy  # noqa: E402
from liquid_policy.settings import (  # noqa: E402
    CoreSettings,
    DeterministicSettings,
    MixtureSettings,
    PolicySettings,
)
from liquid_sim import train_task  # noqa: E402
from liquid_sim.benchmark import page, run  # noqa: E402
from liquid_sim.benchmark.offline import offline_scores  # noqa: E402
from liquid_sim.benchmark.trials import PRESETS, QUESTIONS, trials  # noqa: E402
from liquid_sim.tasks.registry import find_task  # noqa: E402
from liquid_trainer.arrays import ArrayEpisodes  # noqa: E402

SMALL = ('core.units=8', 'head.horizon=8', 'head.hidden=16', 'head.layers=1', 'learning.batch=8',
         'learning.held_out=0.2', 'learning.rate=1e-3', 'head.dropout=0.0')


def test_every_trial_has_its_own_name_and_settings_a_policy_can_be_made_of():
    assert page.TITLES.keys() == QUESTIONS.keys()        # the report has a heading for each
    every = trials(tuple(QUESTIONS))
    assert len({trial.label for trial in every}) == len(every)
    assert len({run.slug(trial.label) for trial in every}) == len(every)
    task = find_task('push_t_state')
    for trial in every:
        given = train_task.parse_settings(list(trial.all_settings))
        made = train_task.policy_settings(task, trial.core, trial.head, given)
        train_task.learning_settings(given['learning'], 0)
        assert made.head.hidden == 256
    with pytest.raises(ValueError, match='expected one of heads.*came .nothing'):
        trials(('nothing',))


def test_preset_is_scaled_but_never_to_nothing():
    full = PRESETS['full']
    assert full.scaled(0.1).steps == full.steps // 10
    assert full.scaled(1e-9).episodes == 2
    with pytest.raises(ValueError, match='above 0'):
        full.scaled(0.0)


def _line_data(slope):
    """A number rises by `slope` per step, and the action is the number itself."""
    x = np.arange(30.0)[:, None] * slope
    return ArrayEpisodes(x, x + 7.0, np.array([30]))


def _policy(head):
    torch.manual_seed(0)
    policy = Policy(PolicySettings(vector_size=1, action_size=1, target_size=0, encoder=None,
                                   core=CoreSettings(units=4, unit_time=0.1), head=head))
    for parameter in policy.head.parameters():
        parameter.data.zero_()
    return policy


def test_scores_of_a_policy_that_always_says_the_same():
    policy = _policy(DeterministicSettings(horizon=4, dt=0.1, hidden=8))
    policy.action_scaling.center.fill_(7.0)
    policy.action_scaling.scale.fill_(3.0)
    data = _line_data(2.0)
    scores = offline_scores(policy, data, 2, stride=1)
    # The plan is 7 throughout; the last action is not repeated past the episode's end.
    ahead = [np.abs(data.actions[i:i + 4] - 7.0).mean() for i in range(30)]
    assert scores['error'] == pytest.approx(np.mean(ahead), rel=1e-5)
    assert scores['best_of_8'] == scores['error'] and scores['diversity'] == 0.0
    assert scores['jerk'] == 0.0 and 'nll' not in scores


def test_likelihood_and_diversity_of_a_known_gaussian():
    policy = _policy(MixtureSettings(horizon=4, dt=0.1, hidden=8, components=1,
                                     least_scale=0.5))
    policy.action_scaling.center.fill_(7.0)
    policy.action_scaling.scale.fill_(3.0)
    data = _line_data(0.2)
    scores = offline_scores(policy, data, 2, stride=1)
    sigma = 3.0 * (0.5 + math.log(2.0))         # softplus(0) = log 2
    expected = []
    for i in range(30):
        error = data.actions[i:i + 4, 0] - 7.0
        expected.append(np.mean(0.5 * (error / sigma) ** 2 + math.log(sigma)
                                + 0.5 * math.log(2 * math.pi)))
    assert scores['nll'] == pytest.approx(np.mean(expected), rel=1e-4)
    # Two draws of one Gaussian lie 2 sigma / sqrt(pi) apart on average.
    assert scores['diversity'] == pytest.approx(2 * sigma / math.sqrt(math.pi), rel=0.1)
    assert scores['best_of_8'] < scores['error'] + sigma


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp('data') / 'push_t.npz'
    rng = np.random.default_rng(0)
    states = rng.uniform(100, 400, (200, 5)).astype(np.float32)
    actions = (states[:, :2] + rng.normal(0, 20, (200, 2))).astype(np.float32)
    np.savez(path, state=states, action=actions, episode_ends=np.arange(20, 201, 20))
    return path


def test_one_command_learns_counts_and_reports_and_does_nothing_twice(data, tmp_path, capsys,
                                                                     monkeypatch):
    monkeypatch.setattr('liquid_sim.benchmark.trials.BACKBONE', SMALL)
    monkeypatch.setattr('liquid_sim.tasks.push_t.STEPS', 6)
    # In this process: a child would not know of the patches above.
    monkeypatch.setattr(run, 'run', lambda jobs, processes: [run.measure(job) for job in jobs])
    arguments = ['--task', 'push_t_state', '--data', str(data), '--folder', str(tmp_path),
                 '--questions', 'heads', 'fractions', '--labels', 'cfc+mixture', 'cfc+imle',
                 'mixture 46.42%', '--steps', '3', '--episodes', '2', '--seeds', '0', '1']
    assert run.main(arguments) == 0
    rows = [json.loads(line) for line in (tmp_path / 'figures.jsonl').read_text().splitlines()]
    won = [row for row in rows if row['figure'] == 'success']
    assert [row['policy'] for row in won] == [
        'cfc+mixture', 'cfc+mixture, replan 1', 'cfc+mixture, replan 2', 'cfc+mixture, replan 4',
        'cfc+imle', 'mixture 46.42%']
    assert all(row['n'] == 4 and len(row['each']) == 2 for row in won)
    half = {row['policy']: row['learned_from'] for row in won}
    # Eight learned from and their mirror images; 46 % of eight are four.
    assert half['cfc+mixture'] == 16 and half['mixture 46.42%'] == 8
    assert sum(row['figure'] == 'nll' for row in rows) == 2
    assert 'cfc+imle' in (tmp_path / 'report.html').read_text()
    assert 'by seed' in capsys.readouterr().out

    def never(job):
        raise AssertionError(f'{job.trial.label} was learned twice')
    monkeypatch.setattr(run, 'learn', never)
    assert run.main(arguments) == 0
    again = [json.loads(line) for line in (tmp_path / 'figures.jsonl').read_text().splitlines()]
    assert [row['value'] for row in again if 'plan' not in row['figure']] \
        == [row['value'] for row in rows if 'plan' not in row['figure']]


_PARENT = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from liquid_sim.benchmark.run import end_with_parent
if __name__ == '__main__':
    with ProcessPoolExecutor(1, get_context('spawn'), end_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 100)
        time.sleep(100)
"""


def test_workers_end_when_the_command_is_killed(tmp_path):
    (tmp_path / 'parent.py').write_text(_PARENT)
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen([sys.executable, str(tmp_path / 'parent.py')], env=environment,
                          stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)              # it is there
        parent.send_signal(signal.SIGKILL)
    for _ in range(300):
        try:
            state = Path(f'/proc/{worker}/stat').read_text().rpartition(')')[2].split()[0]
        except OSError:
            break
        if state == 'Z':                # ended, and nobody has asked how
            break
        time.sleep(0.1)
    else:
        os.kill(worker, signal.SIGKILL)
        pytest.fail('the worker outlived the command')


def test_unknown_label_is_refused_by_name(data, tmp_path, capsys):
    assert run.main(['--task', 'push_t_state', '--data', str(data), '--folder', str(tmp_path),
                     '--labels', 'cfc+magic']) == 1
    assert "'cfc+mixture'" in capsys.readouterr().err


def test_bars_show_value_and_interval():
    text = page.interval_bars('a', [{'policy': '<b>', 'value': 0.5, 'low': 0.25, 'high': 0.75}])
    assert 'left:25.00%;width:50.00%' in text and '&lt;b&gt;' in text and '50.0 %' in text
