"""The train command: a checkpoint comes out, a kill costs nothing, mistakes are named."""

import dataclasses
import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip('torch')
sys.path.insert(0, str(Path(__file__).parent))

from synthetic import follow_episode  # noqa: E402

from liquid_policy.checkpoint import load_checkpoint  # noqa: E402
from liquid_policy.interface import load_interface  # noqa: E402
from liquid_policy.runtime import EncoderRuntime, PolicyRuntime  # noqa: E402
from liquid_trainer.building import build_policy  # noqa: E402
from liquid_trainer.resume import ResumeError, read_extra  # noqa: E402
from liquid_trainer.settings import LearningSettings  # noqa: E402
from liquid_trainer.train import (  # noqa: E402
    _asked_to_stop,
    keep_earlier,
    main,
    parse_arguments,
)
from liquid_trainer.training import Training  # noqa: E402

INTERFACE = Path(__file__).parents[2] / 'config' / 'manipulator.interface.yaml'
SETTINGS = LearningSettings(steps=(3, 4, 2), frame_batch=4, core_batch=3, joint_batch=2,
                            core_window=0.3, joint_window=0.1, held_out=0.2, threads=1,
                            validations=2)


def _fit(value, size):
    """Repeat columns up to the robot's number of them."""
    return np.tile(value, (1, -(-size // value.shape[1])))[:, :size]


@pytest.fixture(scope='module')
def episodes():
    robot = load_interface(INTERFACE)
    small = [follow_episode(number, seconds=0.8) for number in range(5)]
    return [dataclasses.replace(episode, vectors=_fit(episode.vectors, robot.vector_size),
                                actions=_fit(episode.actions, robot.action_size))
            for episode in small]


def _training(episodes, output, resume=False, settings=SETTINGS):
    robot = load_interface(INTERFACE)
    torch.manual_seed(0)
    return Training(episodes, robot, build_policy(robot, 'cfc', 0.25), settings, output,
                    resume, quiet=True)


@pytest.fixture(scope='module')
def finished(episodes, tmp_path_factory):
    output = tmp_path_factory.mktemp('run')
    return output, _training(episodes, output).run()


def test_checkpoint_card_and_curves_are_written(finished):
    output, path = finished
    checkpoint = load_checkpoint(path)
    assert path.stat().st_size <= 10e6
    features = EncoderRuntime(checkpoint).encode(
        np.zeros((96, 96, 3), np.uint8), np.ones((96, 96), np.float32))
    runtime = PolicyRuntime(checkpoint)
    _, answer = runtime.step(features, np.zeros(12), 0.01, runtime.initial_state())
    assert answer.means.shape == (5, 16, 9)
    card = json.loads((output / 'model_card.json').read_text())
    assert card['policy'] == 'cfc+mixture' and card['episodes'] == 4
    assert card['episodes_held_out'] == 1 and card['seed'] == 0
    assert {'nll', 'position_error', 'speed_error', 'frame_position_error'} <= set(
        card['held_out'])
    rows = [json.loads(line) for line in (output / 'history.jsonl').read_text().splitlines()]
    assert {row['stage'] for row in rows} == {'frames', 'core', 'joint'}
    assert {row['kind'] for row in rows} == {'train', 'held_out'}
    assert (output / 'curves.png').stat().st_size > 10_000


@pytest.mark.parametrize('stage, step', [('frames', 2), ('core', 2), ('joint', 1)])
def test_killed_training_goes_on_to_the_same_result(episodes, finished, tmp_path, stage, step):
    class Killed(Exception):
        pass

    training = _training(episodes, tmp_path)
    plain = training.learner.step

    def step_until_killed(progress):
        values = plain(progress)
        if (training.learner.stage, training.learner.step_count) == (stage, step):
            training._save()
            raise Killed
        return values

    training.learner.step = step_until_killed
    with pytest.raises(Killed):
        training.run()
    path = _training(episodes, tmp_path, resume=True).run()
    # What is recorded is recorded once, however often it was done.
    rows = [json.loads(line) for line in (tmp_path / 'history.jsonl').read_text().splitlines()]
    keys = [(row['stage'], row['step'], row['kind']) for row in rows if row['kind'] == 'held_out']
    assert len(keys) == len(set(keys))
    whole = [json.loads(line)
             for line in (finished[0] / 'history.jsonl').read_text().splitlines()]
    assert keys == [(row['stage'], row['step'], row['kind']) for row in whole
                    if row['kind'] == 'held_out']
    known, came = load_checkpoint(finished[1]).weights, load_checkpoint(path).weights
    assert known.keys() == came.keys()
    for name, value in known.items():
        np.testing.assert_array_equal(came[name], value, err_msg=name)


def test_training_that_is_asked_to_stop_saves_and_goes_on(episodes, finished, tmp_path):
    """Ctrl-C loses nothing: the state is saved between two steps."""
    training = _training(episodes, tmp_path)
    plain = training.learner.step

    def step(share):
        training.asked = (training.learner.stage, training.learner.step_count) == ('core', 2)
        return plain(share)

    training.learner.step = step
    with pytest.raises(KeyboardInterrupt):
        training.run()
    with open(tmp_path / 'history.jsonl', 'a') as file:
        file.write('{"stage": "core", "st')     # and a line that was not finished
    known = load_checkpoint(finished[1]).weights
    came = load_checkpoint(_training(episodes, tmp_path, resume=True).run()).weights
    for name, value in known.items():
        np.testing.assert_array_equal(came[name], value, err_msg=name)


def test_a_training_does_not_go_on_with_other_demonstrations(episodes, tmp_path):
    """It would not be the same training, and its streams point into the first ones."""
    training = _training(episodes, tmp_path)
    training.learner.begin('core')
    training._save()
    with pytest.raises(ResumeError, match='demonstrations that it was begun with.*--init'):
        _training(episodes[:-1], tmp_path, resume=True)


def test_ctrl_c_asks_once_and_ends_the_second_time():
    before = signal.getsignal(signal.SIGINT)
    training = SimpleNamespace(asked=False, stepping=False)
    with _asked_to_stop(training):
        with pytest.raises(KeyboardInterrupt):      # nothing to save yet
            signal.raise_signal(signal.SIGINT)
        training.stepping = True
        signal.raise_signal(signal.SIGTERM)
        assert training.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_was_learned_before_is_kept(tmp_path):
    for number in range(2):
        (tmp_path / 'checkpoint.safetensors').write_text(str(number))
        keep_earlier(tmp_path / 'checkpoint.safetensors')
    keep_earlier(tmp_path / 'checkpoint.safetensors')
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        'checkpoint_1.safetensors': '0', 'checkpoint_2.safetensors': '1'}


def test_best_weights_and_patience_survive_a_kill(episodes, finished, tmp_path):
    """A state saved after the best score gives back the weights that had it."""
    training = _training(episodes, tmp_path)
    training.learner.begin('core')
    training._best = (-7.0, {name: value + 1 if value.is_floating_point() else value
                             for name, value in training.policy.state_dict().items()})
    training._lowest, training._scored, training._stale = -7.0, 3, 1
    training._save()
    again = _training(episodes, tmp_path, resume=True)
    assert (again._lowest, again._scored, again._stale) == (-7.0, 3, 1)
    assert again._best[0] == -7.0
    for name, value in training._best[1].items():
        assert torch.equal(again._best[1][name], value)


def test_stage_ends_early_when_held_out_scores_get_no_better(episodes, tmp_path):
    settings = dataclasses.replace(SETTINGS, steps=(0, 30, 0), validations=30, patience=3,
                                   core_rate=3.0, average=0.0)
    training = _training(episodes, tmp_path, settings=settings)
    path = training.run()
    rows = [json.loads(line) for line in (tmp_path / 'history.jsonl').read_text().splitlines()]
    scores = [row['nll'] for row in rows if row['kind'] == 'held_out']
    assert len(scores) < 30, 'a learning rate of 3 cannot go on getting better'
    best = int(np.argmin(scores))
    assert len(scores) == best + 1 + 3
    # The checkpoint has the best weights, not the last.
    assert load_checkpoint(path).card['held_out']['nll'] == scores[best]


def test_tensorboard_has_every_stage_on_one_axis(finished):
    accumulator = pytest.importorskip(
        'tensorboard.backend.event_processing.event_accumulator').EventAccumulator
    events = accumulator(str(finished[0] / 'tensorboard'))
    events.Reload()
    tags = events.Tags()['scalars']
    assert {'frames/train/loss', 'core/train/loss', 'joint/train/loss', 'core/held_out/nll',
            'joint/held_out/nll'} <= set(tags)
    last = {stage: [event.step for event in events.Scalars(f'{stage}/train/loss')][-1]
            for stage in ('frames', 'core', 'joint')}
    assert last == {'frames': 3, 'core': 7, 'joint': 9}


def test_any_head_learns_from_bags(episodes, tmp_path):
    robot = load_interface(INTERFACE)
    policy = build_policy(robot, 'cfc', 0.1, head='imle', head_options=[
        'samples=2', 'candidates=3', 'width=16', 'depth=1', 'horizon=4'])
    settings = dataclasses.replace(SETTINGS, steps=(0, 2, 0))
    checkpoint = load_checkpoint(Training(episodes, robot, policy, settings, tmp_path,
                                          quiet=True).run())
    assert checkpoint.card['policy'] == 'cfc+imle'
    assert np.isfinite(checkpoint.card['held_out']['nll'])
    runtime = PolicyRuntime(checkpoint)
    _, answer = runtime.step(np.zeros(128), np.zeros(robot.vector_size), 0.01,
                             runtime.initial_state())
    assert answer.means.shape == (2, 4, 9)
    with pytest.raises(ValueError, match="imle: unknown setting 'speed'"):
        build_policy(robot, 'cfc', 0.1, head='imle', head_options=['speed=1'])


def test_finished_training_resumes_to_nothing_but_its_checkpoint(episodes, finished):
    output, path = finished
    before = load_checkpoint(path).weights
    again = load_checkpoint(_training(episodes, output, resume=True).run()).weights
    assert all(np.array_equal(before[name], again[name]) for name in before)


def test_saved_state_of_another_policy_is_refused(episodes, finished):
    robot = load_interface(INTERFACE)
    with pytest.raises(ResumeError, match='core.kind cfc instead of lstm.*use the same --core'):
        Training(episodes, robot, build_policy(robot, 'lstm', 0.25), SETTINGS, finished[0],
                 resume=True, quiet=True)


def test_damaged_state_is_refused(tmp_path):
    with pytest.raises(ResumeError, match='start without --resume'):
        read_extra(tmp_path / 'resume.safetensors')
    (tmp_path / 'resume.safetensors').write_bytes(b'nothing')
    with pytest.raises(ResumeError, match='expected the saved state'):
        read_extra(tmp_path / 'resume.safetensors')


def test_time_is_shared_out_among_the_stages():
    common = ['--bags', 'x', '--interface', 'y', '--output', 'z']
    settings = parse_arguments([*common, '--minutes', '5']).settings
    assert sum(settings.minutes) == pytest.approx(5.0)
    settings = parse_arguments([*common, '--stage-minutes', '1,0,2.5']).settings
    assert settings.minutes == (1.0, 0.0, 2.5)


def test_mistakes_are_named(capsys, tmp_path):
    common = ['--interface', str(INTERFACE), '--output', str(tmp_path), '--quiet',
              '--cache', str(tmp_path / 'cache')]
    with pytest.raises(SystemExit):
        parse_arguments(['--bags', 'x', *common, '--stage-minutes', '1,2'])
    assert 'expected 3 numbers' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_arguments(['--bags', 'x', *common, '--core', 'transformer'])
    (tmp_path / 'torn.safetensors').write_bytes(b'nothing')
    assert main(['--bags', 'x', *common, '--init-encoder', str(tmp_path / 'torn.safetensors')]) \
        == 1
    assert 'torn.safetensors: expected safetensors' in capsys.readouterr().err
    assert main(['--bags', str(tmp_path / 'nowhere'), *common]) == 1
    assert 'nowhere' in capsys.readouterr().err
