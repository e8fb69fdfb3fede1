"""A robot of a fleet is made of its bags; what the fleet learned is a checkpoint that runs."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch')
sys.path.insert(0, str(Path(__file__).parent))

from synthetic import follow_episode  # noqa: E402

from liquid_policy.checkpoint import load_checkpoint  # noqa: E402
from liquid_policy.runtime import PolicyRuntime  # noqa: E402
from liquid_trainer import fleet_robot  # noqa: E402
from liquid_trainer.cache import StoredEpisodes  # noqa: E402
from liquid_trainer.fleet import FleetError, FleetSettings, travelling_weights  # noqa: E402

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / 'liquid_policy_node' / 'checkpoints' / 'manipulator.safetensors'
SETTINGS = FleetSettings(rounds=1, steps=1, batch=2, window=0.05)


@pytest.fixture
def values(monkeypatch, tmp_path):
    robot = load_checkpoint(CHECKPOINT).interface

    def decoded(paths, interface, folder, workers):
        assert paths == ['recordings/a', 'recordings/b']
        return StoredEpisodes.of([dataclasses.replace(
            episode, vectors=np.resize(episode.vectors, (len(episode.times), robot.vector_size)),
            actions=np.resize(episode.actions, (len(episode.times), robot.action_size)))
            for episode in (follow_episode(number, seconds=0.4) for number in range(3))])

    monkeypatch.setattr(fleet_robot, 'cached_episodes', decoded)
    return {'checkpoint': str(CHECKPOINT), 'bags': 'recordings/a recordings/b',
            'cache': str(tmp_path / 'cache'), 'held_out': 0.3}


def test_a_robot_learns_from_its_bags_and_encodes_them_once(values, tmp_path, monkeypatch):
    (tmp_path / 'cache').mkdir()
    member = fleet_robot.load_member(values, SETTINGS)
    start = travelling_weights(member.policy)
    assert np.isfinite(member.score(start)['nll'])
    weights, loss = member.learn(start, 1)
    assert np.isfinite(loss) and any((weights[name] != start[name]).any() for name in start)

    def never(*arguments):
        raise AssertionError('encoded again')

    monkeypatch.setattr(fleet_robot, 'encode_images', never)
    again, _ = fleet_robot.load_member(values, SETTINGS).learn(start, 1)
    for name, value in weights.items():
        np.testing.assert_array_equal(again[name], value)

    policy, loaded = fleet_robot.load_start(values)
    path = fleet_robot.write_checkpoint(policy, loaded, weights, tmp_path / 'fleet',
                                        {'rounds': 1})
    written = load_checkpoint(path)
    assert written.card['started_from'] == loaded.version and written.card['fleet']['rounds'] == 1
    np.testing.assert_array_equal(written.weights[next(iter(weights))],
                                  next(iter(weights.values())))
    runtime = PolicyRuntime(written)
    _, answer = runtime.step(np.zeros(128), np.zeros(loaded.interface.vector_size), 0.01,
                             runtime.initial_state())
    assert np.isfinite(answer.means).all()


def test_fresh_robots_begin_alike_and_keep_the_encoder():
    values = {'checkpoint': CHECKPOINT, 'fresh': True, 'seed': 3}
    (one, loaded), (two, _) = (fleet_robot.load_start(values) for _ in range(2))
    trained, _ = fleet_robot.load_start({'checkpoint': CHECKPOINT})
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, two.state_dict()[name], rtol=0, atol=0)
        same = bool((value == trained.state_dict()[name]).all())
        if name.startswith(('encoder.', 'input_scaling.', 'action_scaling.')):
            assert same, name
    core = next(name for name in travelling_weights(one) if name.startswith('core.'))
    assert (one.state_dict()[core] != trained.state_dict()[core]).any()
    assert loaded.interface.robot == 'manipulator'


def test_a_robot_without_bags_is_told_how_to_name_them(values):
    with pytest.raises(FleetError, match='give --node-config'):
        fleet_robot.load_member({**values, 'bags': ''}, SETTINGS)
