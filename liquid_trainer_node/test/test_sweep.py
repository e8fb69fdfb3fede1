"""A sweep runs what it should, goes on where it was stopped, and names the best."""

import json
import os
import sys
from pathlib import Path

import pytest

from liquid_trainer.sweep import main, rank, table
from liquid_trainer.trials import (
    SweepError,
    Trial,
    combinations,
    make_trials,
    parse_choices,
)

# A command that writes what trainings write: a parabola whose lowest value is at rate 3.
COMMAND = """
import argparse, json, pathlib, sys
parser = argparse.ArgumentParser()
parser.add_argument('--output', type=pathlib.Path)
parser.add_argument('--rate', type=float)
parser.add_argument('--resume', action='store_true')
parser.add_argument('--set', nargs='+', default=[])
given = parser.parse_args()
with open(given.output / 'runs.txt', 'a') as file:
    file.write('resumed' if given.resume else 'begun')
if given.rate == 7 and not given.resume:
    (given.output / 'resume.safetensors').write_text('half')
    sys.exit('out of memory')
(given.output / 'model_card.json').write_text(json.dumps(
    {'held_out': {'nll': (given.rate - 3) ** 2, 'set': len(given.set)}}))
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    (tmp_path / 'pretend').mkdir()
    (tmp_path / 'pretend' / '__init__.py').write_text('')
    (tmp_path / 'pretend' / 'learning.py').write_text(COMMAND)
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(
        [str(tmp_path), os.environ.get('PYTHONPATH', '')]))
    return 'pretend.learning'


def _results(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / 'results.jsonl').read_text().splitlines()]


@pytest.mark.timeout(600)       # Ray takes its time to start
@pytest.mark.parametrize('address', [None, 'local'])
def test_best_comes_first_and_what_failed_is_tried_again(command, tmp_path, capsys, address):
    if address:
        pytest.importorskip('ray', reason='pip install -r docker/requirements-scale.txt')
    output = tmp_path / 'sweep'
    line = ['--output', str(output), '--vary', 'rate=1,4,7', '--vary', 'learning.steps=5',
            '--processes', '2', *(['--address', address] if address else []),
            '--', command, '--set', 'head.components=2']
    assert main(line) == 1
    said = capsys.readouterr()
    assert '1 of 3 trials failed' in said.err and 'out of memory' in said.out
    assert f'best: nll 1: {output / "trials" / "rate=4,learning.steps=5"}' in said.out
    rows = _results(output)
    assert [row['values']['rate'] for row in rows] == ['4', '1', '7']
    assert [row['figures'] for row in rows] == [{'nll': 1.0, 'set': 2}, {'nll': 4.0, 'set': 2}, {}]
    # Once more: only the failed one runs, and goes on from its saved state.
    assert main(line) == 0
    assert '2 of 3 trials are finished and kept' in capsys.readouterr().out
    runs = {path.parent.name.split(',')[0]: path.read_text()
            for path in output.glob('trials/*/runs.txt')}
    assert runs == {'rate=1': 'begun', 'rate=4': 'begun', 'rate=7': 'begunresumed'}
    assert [row['values']['rate'] for row in _results(output)] == ['4', '1', '7']


def test_ray_that_is_missing_is_named_with_what_brings_it(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    assert main(['--output', str(tmp_path), '--vary', 'rate=1', '--address', 'auto', '--',
                 command]) == 1
    error = capsys.readouterr().err
    assert 'pip install -r docker/requirements-scale.txt' in error
    assert 'leave out --address' in error
    assert (Path(__file__).parents[2] / 'docker' / 'requirements-scale.txt').exists()


def test_choices_make_a_grid_or_are_drawn():
    choices = parse_choices(['core=cfc,lstm', 'seed=0,1'])
    assert combinations(choices) == [{'core': core, 'seed': seed} for core in ('cfc', 'lstm')
                                     for seed in '01']
    drawn = combinations(parse_choices(['rate=1e-4..1e-2', 'core=cfc,lstm']), 40, seed=1)
    rates = [float(values['rate']) for values in drawn]
    assert len(drawn) == 40 and min(rates) >= 1e-4 and max(rates) <= 1e-2
    # On a logarithmic scale half of them lie below the geometric middle.
    assert 8 <= sum(rate < 1e-3 for rate in rates) <= 32
    assert combinations(parse_choices(['rate=1e-4..1e-2', 'core=cfc,lstm']), 10,
                        seed=1) == drawn[:10]
    assert len(combinations(parse_choices(['seed=0,1']), 5)) == 2       # no more than there are
    for bad in (['core'], ['core='], ['a=1', 'a=2'], ['a=1..x']):
        with pytest.raises(SweepError, match='--vary: expected'):
            parse_choices(bad)
    with pytest.raises(SweepError, match='expected --samples'):
        combinations(parse_choices(['rate=0..1']))


def test_values_find_their_place_in_the_command(tmp_path):
    trial, = make_trials(['evaluate', '{policy}', '--parts', '20'],
                         [{'policy': 'runs/a/checkpoint.safetensors', 'conditions': 'seen'}],
                         tmp_path)
    assert trial.command == ('evaluate', 'runs/a/checkpoint.safetensors', '--parts', '20',
                             '--conditions', 'seen')
    assert trial.name == 'policy=a,conditions=seen'
    first, second = make_trials(['evaluate', '{policy}'],
                                [{'policy': 'a/last.st'}, {'policy': 'b/last.st'}], tmp_path)
    assert first.folder != second.folder
    for command in ([], ['drive']):
        with pytest.raises(SweepError, match='expected a command after --'):
            make_trials(command, [{}], tmp_path)


def test_more_success_and_less_loss_is_better(tmp_path):
    def results(**figures):
        return [(Trial({'seed': str(i)}, ('x',), tmp_path / str(i)),
                 {'status': 'done', 'seconds': 1.0, 'figures': {name: values[i]}})
                for name, values in figures.items() for i in range(len(values))]

    def order(ranked):
        return [trial.name for trial, _ in ranked]

    metric, ranked = rank(results(success=[0.1, 0.9, 0.5]))
    assert metric == 'success' and order(ranked) == ['1', '2', '0']
    metric, ranked = rank(results(loss=[0.2, float('nan'), -1.0]))
    assert metric == 'loss' and order(ranked) == ['2', '0', '1']
    assert table(ranked, metric).splitlines()[1].split() == ['2', '-1', '1']
    with pytest.raises(SweepError, match="expected one of loss, came 'speed'"):
        rank(results(loss=[1.0]), 'speed')
