"""PointMaze: the world's own rules, and demonstrations from the hand to the policy and back."""

import json

import numpy as np
import pytest

pytest.importorskip('gymnasium_robotics', reason='PointMaze needs gymnasium-robotics')
h5py = pytest.importorskip('h5py', reason="Minari's files need h5py")

from liquid_sim import evaluate_task, generate_maze, train_task  # noqa: E402
from liquid_sim.tasks import point_maze  # noqa: E402
from liquid_sim.tasks.registry import find_task  # noqa: E402
from liquid_trainer.formats.dataset import FormatError  # noqa: E402


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('maze') / 'umaze'
    assert generate_maze.main(['--episodes', '6', '--output', str(folder), '--quiet']) == 0
    return folder


@pytest.mark.parametrize('size, shape', [('umaze', (5, 5)), ('medium', (8, 8)),
                                         ('large', (9, 12))])
def test_the_map_is_the_worlds_own(size, shape):
    world = point_maze.PointMaze(size)
    assert world.maze.walls.shape == shape
    vector = world.reset(3)
    task = find_task(f'point_maze_{size}')
    assert len(vector) == task.interface.vector_size == 32
    assert not world.maze.walls[world.maze.cell(vector[:2])]
    assert not world.maze.walls[world.maze.cell(vector[4:6])]
    np.testing.assert_allclose(vector[6:8], vector[4:6] - vector[:2])
    again = point_maze.PointMaze(size)
    np.testing.assert_array_equal(again.reset(3), vector)
    assert (again.reset(4) != vector).any()
    for made in (world, again):
        made.close()


def test_places_are_told_as_waves_of_two_four_and_eight_cells():
    quarter = point_maze.state_vector(np.array([0.5, 2.0, 0.0, 0.0]), np.array([-0.5, 4.0]))
    names = point_maze._FIELDS
    told = dict(zip(names, quarter, strict=True))
    # x is a quarter of the shortest wave, y half of the middle one, goal_y half of the longest.
    np.testing.assert_allclose((told['sin_2_x'], told['cos_2_x']), (1.0, 0.0), atol=1e-12)
    np.testing.assert_allclose((told['sin_4_y'], told['cos_4_y']), (0.0, -1.0), atol=1e-12)
    np.testing.assert_allclose((told['sin_2_goal_x'], told['cos_8_goal_y']), (-1.0, -1.0))
    assert len(names) == len(set(names)) == 32


def test_an_episode_succeeds_where_the_world_says_so():
    world = point_maze.PointMaze('umaze')
    vector = world.reset(0)
    assert np.linalg.norm(vector[6:8]) > point_maze.NEAR
    scores, outcome = [], None
    for _ in range(300):
        # Straight at the goal: seed 0 starts beside it.
        outcome = world.step(np.clip(2.0 * vector[6:8] - 0.5 * vector[2:4], -1, 1))
        vector = outcome.vector
        scores.append(outcome.score)
        near = np.linalg.norm(vector[6:8]) <= point_maze.NEAR
        assert outcome.success == near
        if near:
            break
    assert outcome.success and scores[-1] == 1.0 and scores[0] < 0.5
    assert all(0.0 <= score <= 1.0 for score in scores)
    world.close()


def test_walls_are_walls_and_pictures_show_them():
    world = point_maze.PointMaze('umaze')
    world.reset(1)
    for _ in range(150):
        vector = world.step(np.array([1.0, 1.0])).vector
    assert not world.maze.walls[world.maze.cell(vector[:2])]
    # In the corner at the top right, a ball's radius from the walls.
    np.testing.assert_allclose(vector[:2], (1.4, 1.4), atol=0.03)
    picture = world.picture()
    assert picture.shape == (240, 240, 3) and picture.dtype == np.uint8
    wall, free = picture[10, 10], picture[72, 100]
    assert wall.max() < 128 < free.min()
    world.close()


def test_demonstrations_have_minaris_layout(data):
    meta = json.loads((data / 'data' / 'metadata.json').read_text())
    assert meta['total_episodes'] == 6 and meta['algorithm_name'] == 'scripted'
    with h5py.File(data / 'data' / 'main_data.hdf5') as file:
        assert sorted(file) == [f'episode_{i}' for i in range(6)]
        steps = 0
        for group in file.values():
            count = len(group['actions'])
            steps += count
            assert group.attrs['total_steps'] == count
            assert group['observations/observation'].shape == (count + 1, 4)
            goal = np.asarray(group['observations/desired_goal'])
            seen = np.asarray(group['observations/achieved_goal'])
            near = np.linalg.norm(seen - goal, axis=1) <= point_maze.NEAR
            assert near[-1] and not near[:-1].any()
            assert not np.asarray(group['truncations'])[:-1].any() and group['truncations'][-1]
        assert meta['total_steps'] == steps


def test_a_demonstration_played_again_ends_where_it_ended(data):
    with h5py.File(data / 'data' / 'main_data.hdf5') as file:
        group = file['episode_2']
        actions = np.asarray(group['actions'])
        seen = np.asarray(group['observations/observation'])
        seed = int(group.attrs['seed'])
    world = point_maze.PointMaze('umaze')
    vectors = [world.reset(seed)] + [world.step(action).vector for action in actions]
    np.testing.assert_allclose(np.array(vectors)[:, :4], seen, atol=1e-9)
    world.close()


def test_what_a_policy_learns_from_is_what_it_is_told(data):
    episodes = find_task('point_maze_umaze').read(data)
    assert len(episodes) == 6 and np.abs(episodes.actions).max() <= 1.0
    world = point_maze.PointMaze('umaze')
    np.testing.assert_allclose(episodes.vectors[0], world.reset(0), rtol=1e-6)
    world.close()


def test_other_data_sets_are_refused(tmp_path, data):
    with pytest.raises(FormatError, match='nothing of this name'):
        point_maze.read(tmp_path / 'missing.hdf5')
    with h5py.File(tmp_path / 'other.hdf5', 'w') as file:
        file['episode_0/observations/observation'] = np.zeros((4, 7))
        file['episode_0/observations/desired_goal'] = np.zeros((4, 2))
        file['episode_0/actions'] = np.random.default_rng(0).normal(size=(3, 2))
    with pytest.raises(ValueError, match='expected'):
        point_maze.read(tmp_path / 'other.hdf5')
    assert generate_maze.main(['--output', str(data), '--quiet']) == 1      # there is one already
    assert generate_maze.main(['--episodes', '0', '--output', str(tmp_path)]) == 1


def test_the_commands_learn_and_count(data, tmp_path, capsys, monkeypatch):
    assert train_task.main([
        '--task', 'point_maze_umaze', '--data', str(data), '--output', str(tmp_path), '--quiet',
        '--set', 'core.units=8', 'core.backbone=16', 'head.horizon=4', 'head.hidden=16',
        'head.layers=1', 'learning.steps=4', 'learning.batch=8', 'learning.held_out=0.4']) == 0
    monkeypatch.setitem(point_maze.SIZES, 'umaze', ('UMaze', 6))
    results = tmp_path / 'results.jsonl'
    assert evaluate_task.main([str(tmp_path / 'checkpoint.safetensors'), '--episodes', '2',
                               '--replan', '2', '--processes', '1', '--append',
                               str(results), '--videos', str(tmp_path / 'films')]) == 0
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert {row['figure'] for row in rows} >= {'success', 'progress'}
    assert all(row['task'] == 'point_maze_umaze' for row in rows)
    assert (tmp_path / 'films' / 'worst.mp4').stat().st_size > 0
    assert 'point_maze_umaze cfc+mixture success' in capsys.readouterr().out
