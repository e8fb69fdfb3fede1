"""A bag replayed offline: what is compared, and what comes out."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('torch')
pytest.importorskip('onnxruntime')

from recorded_run import START, record
from scipy import stats
from untrained_policy import untrained_checkpoint

from liquid_trainer.bags import ReadSettings, read_episodes
from liquid_trainer.offline_nodes import NodeParameters, Proposed
from liquid_trainer.playback import Playback
from liquid_trainer.replay import main, mixture_density, replay_bag

ROOT = Path(__file__).parents[2]
INTERFACE = ROOT / 'config' / 'manipulator.interface.yaml'
DESCRIPTION = ROOT / 'liquid_policy_node' / 'urdf' / 'manipulator.urdf.xacro'


@pytest.fixture(scope='module')
def checkpoint():
    return untrained_checkpoint()


@pytest.fixture(scope='module')
def bag(checkpoint, tmp_path_factory):
    return record(tmp_path_factory.mktemp('bags') / 'bag', checkpoint.interface, seconds=0.6)


def test_density_is_that_of_the_mixture():
    weights, means = np.array([0.3, 0.7]), np.array([[0.0, 1.0], [2.0, -1.0]])
    scales, value = np.array([[0.5, 1.0], [0.1, 2.0]]), np.array([1.9, np.nan])
    expected = -np.log(0.3 * stats.norm.pdf(1.9, 0.0, 0.5) + 0.7 * stats.norm.pdf(1.9, 2.0, 0.1))
    found = mixture_density(value, weights, means, scales)
    assert found[0] == pytest.approx(expected) and np.isnan(found[1])


def test_policy_sees_what_it_was_trained_on(checkpoint, bag):
    """Observations of every tick are those the trainer reads from the same bag, bit for bit."""
    playback = Playback(bag, checkpoint)
    answers = [answer for answer in playback if isinstance(answer, Proposed)]
    found = {answer.aligned.tick: answer for answer in answers}
    episodes = list(read_episodes(bag, checkpoint.interface, ReadSettings(),
                                  report=lambda note: None))
    ticks = np.concatenate([episode.stamps for episode in episodes])
    vectors = np.concatenate([episode.vectors for episode in episodes])
    actions = np.concatenate([episode.actions for episode in episodes])
    assert len(ticks) > 30
    for tick, vector in zip(ticks, vectors, strict=True):
        assert np.array_equal(found[tick].aligned.vector, vector)
    assert np.array_equal(playback.recorded_actions(ticks), actions)


def test_error_is_proposed_less_recorded(checkpoint, bag):
    result = replay_bag(bag, checkpoint)
    figures = result.to_dict()
    assert figures['proposals'] == len(result.ticks) > 40
    arm = result.recorded[:, 0]
    time = (result.ticks - START) / 1e9
    phase = np.random.default_rng(0).uniform(0, 2 * np.pi, 6)[0]
    assert arm == pytest.approx(0.5 * np.cos(3 * time + phase), abs=1e-6)
    name = result.action_names[0]
    assert figures['mean_absolute_error'][name] == pytest.approx(
        float(np.abs(result.proposed[:, 0] - arm).mean()), abs=1e-6)
    # One step ahead of a tick, the plan is held against the action of the next tick.
    ahead = round(result.step_time * 100)
    assert result.ahead[0, 0] == pytest.approx(figures['mean_absolute_error'][name], abs=1e-6)
    assert ahead >= 1 and np.isfinite(result.ahead[1]).all()
    assert figures['safety_answers'] == 0


def test_filter_judges_from_measured_joints_in_dry_run(checkpoint, bag):
    """In a dry run the first command after rest starts from the measured speed."""
    results = {dry: replay_bag(bag, checkpoint, DESCRIPTION, NodeParameters(dry_run=dry))
               for dry in (False, True)}
    assert results[False].interventions > 0
    assert not np.array_equal(results[False].issued, results[True].issued)
    assert np.array_equal(results[False].proposed, results[True].proposed)


def test_command_writes_pages_and_figures(checkpoint, bag, tmp_path, capsys):
    policy = tmp_path / 'policy.safetensors'
    checkpoint.save(policy)
    assert main([str(bag), '--checkpoint', str(policy), '--interface', str(INTERFACE),
                 '--output', str(tmp_path / 'out')]) == 0
    assert '1 bags replayed' in capsys.readouterr().out
    row = json.loads((tmp_path / 'out' / 'replay.jsonl').read_text())
    assert row['compared'] > 40 and row['safety_answers'] > 40 and row['nll'] is not None
    page = (tmp_path / 'out' / 'bag.html').read_text()
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', page, re.S).group(1))
    assert [group['title'] for group in data['groups']] == [
        'Actions', 'How far ahead the plan holds', 'Errors']
    assert len(data['groups'][0]['plots']) == 9
    assert not re.search(r'(src|href)=["\']?http', page)


def test_wrong_files_are_named(checkpoint, bag, tmp_path, capsys):
    assert main([str(tmp_path / 'nothing'), '--checkpoint', str(tmp_path / 'none')]) == 1
    assert 'none' in capsys.readouterr().err
    bad = tmp_path / 'parameters.yaml'
    bad.write_text('- a list')
    with pytest.raises(ValueError, match='parameters by node'):
        NodeParameters.read(bad)
    for text, message in (('rate: fast', 'parameters by node'),
                          ('safety: {ros__parameters: {period: fast}}',
                           "safety.period: expected a float, came 'fast'")):
        bad.write_text(text)
        with pytest.raises(ValueError, match=message):
            NodeParameters.read(bad)
    good = tmp_path / 'good.yaml'
    good.write_text('safety: {ros__parameters: {period: 0.02, niceness: 3}}')
    assert NodeParameters.read(good).period == 0.02


def test_the_nodes_joint_limits_hold_in_replay(checkpoint, bag, tmp_path):
    """The parameter file names a joint_limits.yaml beside the interface: it is read."""
    config = tmp_path / 'config'
    config.mkdir()
    (config / 'mine.interface.yaml').write_text(INTERFACE.read_text())
    (config / 'mine.yaml').write_text('safety: {ros__parameters: {joint_limits: slow.yaml}}')
    (config / 'slow.yaml').write_text(
        'joint_limits: {elbow_joint: {has_velocity_limits: true, max_velocity: 0.001}}')
    policy = tmp_path / 'policy.safetensors'
    checkpoint.save(policy)
    assert main([str(bag), '--checkpoint', str(policy), '--description', str(DESCRIPTION),
                 '--interface', str(config / 'mine.interface.yaml'),
                 '--output', str(tmp_path / 'out')]) == 0
    row = json.loads((tmp_path / 'out' / 'replay.jsonl').read_text())
    assert row['constraints']['velocity/elbow_joint'] > 0
