"""train_task and evaluate_task from end to end, on demonstrations made here."""

import json

import numpy as np
import pytest

pytest.importorskip('gym_pusht')
torch = pytest.importorskip('torch')

from liquid_policy.checkpoint import load_checkpoint  # noqa: E402
from liquid_policy.execution import ExecutionSettings  # noqa: E402
from liquid_policy.settings import SettingsError  # noqa: E402
from liquid_sim import evaluate_task, train_task  # noqa: E402
from liquid_sim.evaluate_task import Episode  # noqa: E402

SMALL = ['core.units=8', 'core.backbone=16', 'head.horizon=4', 'head.hidden=16', 'head.layers=1',
         'learning.steps=6', 'learning.batch=8', 'learning.held_out=0.2', 'learning.rate=1e-3']


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp('data') / 'push_t.npz'
    rng = np.random.default_rng(0)
    states = rng.uniform(100, 400, (120, 5)).astype(np.float32)
    actions = (states[:, :2] + rng.normal(0, 20, (120, 2))).astype(np.float32)
    np.savez(path, state=states, action=actions, episode_ends=np.arange(20, 121, 20))
    return path


def _train(data, output, *more, head='mixture', settings=()):
    code = train_task.main(['--task', 'push_t_state', '--data', str(data), '--output',
                            str(output), '--head', head, '--quiet', *more,
                            '--set', *SMALL, *settings])
    assert code == 0
    return output / 'checkpoint.safetensors'


@pytest.mark.parametrize('head, settings, name', [
    ('mixture', ('head.rank=1',), 'cfc+mixture'),
    ('flow', ('head.width=16', 'head.depth=1', 'head.samples=2'), 'cfc+flow-1'),
    ('diffusion', ('head.network=mlp', 'head.width=16', 'head.depth=1', 'head.schedule=ddim',
                   'head.steps=2'), 'cfc+diffusion-ddim2')])
def test_any_head_is_trained_and_evaluated_by_name(data, tmp_path, capsys, monkeypatch, head,
                                                   settings, name):
    checkpoint = _train(data, tmp_path, head=head, settings=settings)
    card = load_checkpoint(checkpoint).card
    assert card['policy'] == name and card['task'] == 'push_t_state'
    assert card['episodes'] == 10 and card['episodes_held_out'] == 1     # five and their mirrors
    monkeypatch.setattr('liquid_sim.tasks.push_t.STEPS', 5)
    results = tmp_path / 'results.jsonl'
    assert evaluate_task.main([str(checkpoint), '--episodes', '2', '--replan', '2',
                               '--processes', '1', '--append', str(results)]) == 0
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [row['figure'] for row in rows] == ['success', 'coverage']
    for row in rows:
        assert row['policy'] == name and row['n'] == 2 and row['preset'] == 'quick'
        assert row['low'] <= row['value'] <= row['high']
    assert 'push_t_state' in capsys.readouterr().out


def test_episodes_run_alike_twice_and_are_filmed(data, tmp_path, monkeypatch):
    monkeypatch.setattr('liquid_sim.tasks.push_t.STEPS', 4)
    path = _train(data, tmp_path, head='imle', settings=(
        'head.width=16', 'head.depth=1', 'head.samples=3', 'head.candidates=3'))
    checkpoint, execution = load_checkpoint(path), ExecutionSettings(replan=2, context=2)
    block = evaluate_task.Block(path, execution, (1, 2, 3))
    episodes = evaluate_task.run(block)
    again = evaluate_task.run(block)
    # The engine may solve contacts in another order; the difference of four steps is small.
    np.testing.assert_allclose([e.score for e in again], [e.score for e in episodes], atol=0.05)
    filmed = evaluate_task.film(checkpoint, execution, episodes, tmp_path / 'videos')
    assert all(episode.steps == 4 for episode in filmed.values())
    videos = list(filmed)
    assert [video.name for video in videos] == ['worst.mp4', 'median.mp4', 'best.mp4']
    import cv2
    film = cv2.VideoCapture(str(videos[0]))
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == 4
    film.release()


def test_training_goes_on_where_it_was_killed(data, tmp_path):
    straight = load_checkpoint(_train(data, tmp_path / 'straight'))

    def start(resume):
        arguments = train_task.parse_arguments(
            ['--task', 'push_t_state', '--data', str(data), '--output', str(tmp_path / 'b'),
             '--set', *SMALL])
        return train_task.prepare(arguments, resume=resume, save_every=2)

    start(False).run(until=4)
    resumed = load_checkpoint(start(True).run())
    for name, value in straight.weights.items():
        np.testing.assert_array_equal(value, resumed.weights[name], err_msg=name)
    steps = [json.loads(line)['step']
             for line in (tmp_path / 'b' / 'history.jsonl').read_text().splitlines()]
    assert steps == [2, 4, 6]


def test_what_was_learned_before_is_kept(data, tmp_path):
    before = _train(data, tmp_path).read_bytes()
    again = _train(data, tmp_path, settings=('learning.seed=1',))
    assert (again.with_stem('checkpoint_1')).read_bytes() == before != again.read_bytes()


def test_figures_are_what_the_episodes_say(data, tmp_path):
    checkpoint = load_checkpoint(_train(data, tmp_path))
    episodes = [Episode(i, i < 3, 0.5 + 0.1 * i, 300) for i in range(4)]
    rows = {row['figure']: row for row in evaluate_task.rows_of(
        episodes, checkpoint, ExecutionSettings(replan=4, context=2), [0])}
    assert rows['success']['value'] == 0.75 and rows['success']['n'] == 4
    # Wilson, 3 of 4.
    assert rows['success']['low'] == pytest.approx(0.3006, abs=1e-3)
    assert rows['coverage']['value'] == pytest.approx(0.65)
    assert rows['coverage']['execution']['replan'] == 4


def test_starts_are_never_the_same_for_two_seeds():
    seeds = evaluate_task.seeds_of(500, [0, 1, 2])
    assert len(set(seeds)) == 1500
    with pytest.raises(ValueError, match='episodes'):
        evaluate_task.seeds_of(0, [0])


@pytest.mark.parametrize('pairs, text', [
    (['units=3'], "came 'units=3'"), (['model.units=3'], "came 'model.units=3'"),
    (['core.units'], "came 'core.units'")])
def test_settings_that_are_not_understood_are_refused(pairs, text):
    with pytest.raises(SettingsError, match=text):
        train_task.parse_settings(pairs)


@pytest.mark.parametrize('settings, text', [
    (['core.speed=3'], "core: unknown option 'speed'"),
    (['head.speed=3'], "mixture: unknown setting 'speed'"),
    (['learning.speed=3'], "learning: unknown setting 'speed'")])
def test_unknown_settings_are_refused(data, tmp_path, capsys, settings, text):
    assert train_task.main(['--task', 'push_t_state', '--data', str(data), '--output',
                            str(tmp_path), '--set', *settings]) == 1
    assert text in capsys.readouterr().err
