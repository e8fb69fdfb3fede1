"""Can: what a policy is told, the scripted hand, the file; and robosuite where it is installed."""

import importlib.util
import json

import numpy as np
import pytest

h5py = pytest.importorskip('h5py', reason="robomimic's files need h5py")

from liquid_sim.tasks import can  # noqa: E402
from liquid_sim.tasks.can_expert import CLOSED, OPEN, CanExpert, Manner  # noqa: E402
from liquid_sim.tasks.registry import find_task  # noqa: E402
from liquid_sim.tasks.robomimic_writer import RobomimicWriter  # noqa: E402
from liquid_trainer.formats.dataset import FormatError  # noqa: E402

needs_robosuite = pytest.mark.skipif(importlib.util.find_spec('robosuite') is None,
                                     reason=f'Can needs robosuite: {can.INSTALL}')
TARGET = np.array([0.2, 0.4, 0.8])


def _seen(hand, quaternion, place, turned=(0.0, 0.0, 0.0, 1.0)):
    return np.concatenate((hand, quaternion, (0.02, -0.02), place, turned, np.zeros(7)))


def test_a_quaternion_and_its_negative_are_told_alike():
    rng = np.random.default_rng(0)
    quaternion = rng.normal(size=4)
    quaternion /= np.linalg.norm(quaternion)
    matrix = can.rotation_matrix(quaternion)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1.0)
    first, second = (can.state_vector(_seen((0, 0, 1), sign * quaternion, (0.1, -0.2, 0.86)))
                     for sign in (1, -1))
    np.testing.assert_allclose(first, second)
    # A quarter turn about z takes x to y.
    np.testing.assert_allclose(can.rotation_matrix([0, 0, np.sqrt(0.5), np.sqrt(0.5)])[:, 0],
                               (0, 1, 0), atol=1e-12)


def test_how_a_round_can_is_turned_does_not_matter():
    half = 0.6
    turned = (0.0, 0.0, np.sin(half), np.cos(half))
    told = [can.state_vector(_seen((0, 0, 1), (1, 0, 0, 0), (0.1, -0.2, 0.86), q))
            for q in ((0, 0, 0, 1), turned)]
    np.testing.assert_allclose(told[0], told[1], atol=1e-12)
    assert len(told[0]) == find_task('can_scripted').interface.vector_size
    np.testing.assert_allclose(told[0][14:17], (0.1, -0.2, -0.14))       # from hand to can


def _play(seed, steps=400):
    """Let the hand act in a world where it moves as told and what it grips comes along."""
    expert = CanExpert(TARGET, np.random.default_rng(seed))
    hand, place, down = np.array([-0.04, -0.09, 1.0]), np.array([0.1, -0.3, 0.86]), np.diag(
        [1.0, -1.0, -1.0])
    held, trail = False, []
    for _ in range(steps):
        action = expert.act(hand, down, place)
        assert action.shape == (7,) and np.abs(action).max() <= 1.0
        hand = hand + 0.25 * 0.05 * action[:3]      # as far as the arm's controller comes
        held = action[6] == CLOSED and (held or np.linalg.norm(hand - place) < 0.04)
        place = hand - (0, 0, 0.01) if held else np.array([*place[:2], 0.86])
        trail.append((hand, place, action[6]))
        if place[1] > 0.2 and not held:
            break
    return expert, trail


@pytest.mark.parametrize('seed', range(5))
def test_the_hand_brings_the_can_over_the_rim_to_its_place(seed):
    _, trail = _play(seed)
    places = np.array([place for _, place, _ in trail])
    assert np.abs(places[-1][:2] - TARGET[:2]).max() < 0.09
    crossing = np.abs(places[:, 1]) < 0.05
    assert crossing.any() and places[crossing, 2].min() > 0.96
    grips = [grip for _, _, grip in trail]
    assert grips[0] == OPEN and CLOSED in grips and grips[-1] == OPEN


def test_manners_differ_and_a_seed_says_all():
    manners = [Manner.drawn(np.random.default_rng(seed)) for seed in range(100)]
    for name in ('pace', 'firmness', 'tremor', 'above', 'hold', 'yaw', 'lift', 'drop', 'squeeze'):
        assert np.std([getattr(manner, name) for manner in manners]) > 1e-3
    first, second = _play(3)[1], _play(3)[1]
    np.testing.assert_array_equal([a for a, _, _ in first], [a for a, _, _ in second])
    assert len({len(_play(seed)[1]) for seed in range(6)}) > 2


def _write(path, episodes=3, steps=9, object_size=14):
    rng = np.random.default_rng(0)
    writer = RobomimicWriter(path, {'env_name': 'PickPlaceCan', 'type': 1, 'env_kwargs': {
        'robots': ['Panda'], 'control_freq': 20}}, {'scripted': True})
    made = []
    for _ in range(episodes):
        quaternions = rng.normal(size=(2, steps + 1, 4))
        quaternions /= np.linalg.norm(quaternions, axis=-1, keepdims=True)
        seen = {'robot0_eef_pos': rng.normal(size=(steps + 1, 3)),
                'robot0_eef_quat': quaternions[0],
                'robot0_gripper_qpos': rng.normal(size=(steps + 1, 2)),
                'object': np.concatenate((rng.normal(size=(steps + 1, 3)), quaternions[1],
                                          rng.normal(size=(steps + 1, object_size - 7))), 1)}
        made.append((seen, rng.uniform(-1, 1, (steps, 7))))
        writer.add(*made[-1], rng.normal(size=(steps, 5)))
    writer.close()
    return made


def test_a_file_of_robomimics_layout_is_read(tmp_path):
    made = _write(tmp_path / 'a.hdf5')
    episodes = find_task('can_scripted').read(tmp_path / 'a.hdf5')
    assert list(episodes.ends) == [9, 18, 27]
    seen, actions = made[1]
    np.testing.assert_allclose(episodes.actions[9:18], actions, rtol=1e-6)
    np.testing.assert_allclose(episodes.vectors[9:18, :3], seen['robot0_eef_pos'][:-1],
                               rtol=1e-6)
    with h5py.File(tmp_path / 'a.hdf5') as file:
        data = file['data']
        assert data.attrs['scripted'] and data.attrs['total'] == 27
        assert json.loads(data.attrs['env_args'])['env_name'] == 'PickPlaceCan'
        np.testing.assert_array_equal(data['demo_0/obs/object'][1:],
                                      data['demo_0/next_obs/object'][:-1])
        assert list(data['demo_0/dones']) == [0] * 8 + [1]


def test_other_files_are_refused_and_none_is_written_over(tmp_path):
    _write(tmp_path / 'all_objects.hdf5', object_size=56)
    with pytest.raises(FormatError, match="'object': 14"):
        can.read(tmp_path / 'all_objects.hdf5')
    with pytest.raises(FormatError, match='expected'):
        can.read(tmp_path / 'missing.hdf5')
    with pytest.raises(FileExistsError, match='--output'):
        _write(tmp_path / 'all_objects.hdf5')


def test_without_robosuite_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'robosuite', None)
    with pytest.raises(ImportError, match='pip install --no-deps -r docker/requirements-can'):
        can.make_world()


@needs_robosuite
def test_the_world_starts_alike_and_a_scripted_episode_succeeds():
    from liquid_sim.generate_can import demonstrate
    world = can.Can()
    first = world.reset(7)
    assert (world.reset(8) != first).any()
    np.testing.assert_allclose(world.reset(7), first, atol=1e-6)
    expert = CanExpert(world.target, np.random.default_rng(0))
    episode = demonstrate(world, expert, 3)
    assert episode.success and len(episode.seen) == len(episode.actions) + 1
    # At the end the can stands in its quarter of the bin, and the hand has let go.
    assert np.abs(episode.seen[-1][9:11] - world.target[:2]).max() < 0.12
    assert episode.actions[-1][6] == OPEN
    picture = world.picture()
    assert picture.shape == (256, 256, 3) and picture.std() > 20
    world.close()


@needs_robosuite
def test_the_command_writes_what_the_task_reads(tmp_path):
    from liquid_sim import generate_can
    path = tmp_path / 'can.hdf5'
    arguments = ['--episodes', '2', '--output', str(path), '--quiet']
    assert generate_can.main(arguments) == 0
    episodes = can.read(path)
    assert len(episodes) == 2
    assert generate_can.main(arguments) == 1                # it is there already
    with h5py.File(path) as file:
        assert file['data'].attrs['scripted']
        demo = file['data/demo_1']
        assert demo['states'].shape == (len(demo['actions']), 71)
        # The can's place in `states` is where `object` says it is.
        np.testing.assert_allclose(demo['states'][:, 1 + 9 + 21:1 + 9 + 24],
                                   demo['obs/object'][:, :3], atol=2e-3)
