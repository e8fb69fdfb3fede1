"""Push-T: what a policy is told equals the world's own, and the mirror is a true symmetry."""

import json

import numpy as np
import pytest

from liquid_sim.tasks import push_t
from liquid_sim.tasks.registry import NAMES, find_task
from liquid_trainer.arrays import ArrayError
from liquid_trainer.formats.zarr_arrays import ZarrError, read_array


def _world():
    pytest.importorskip('gym_pusht')
    return push_t.PushT(lambda state: np.asarray(state))


def test_keypoints_are_the_corners_of_the_world():
    world = _world()
    for seed in range(5):
        state = world.reset(seed)
        corners = push_t.keypoint_vector(state)[2:].reshape(8, 2)
        known = world._env.get_keypoints(world._env._block_shapes)
        assert np.allclose(np.sort(corners, 0), np.sort(known, 0), atol=1e-6)
    world.close()


def test_corners_are_linear_in_the_state_vector():
    rng = np.random.default_rng(0)
    states = np.column_stack((rng.uniform(0, 512, (40, 4)), rng.uniform(0, 2 * np.pi, 40)))
    vectors = np.column_stack((push_t.state_vector(states)[:, :6], np.ones(40)))
    corners = push_t.keypoint_vector(states)[:, 2:]
    fitted, *_ = np.linalg.lstsq(vectors, corners, rcond=None)
    np.testing.assert_allclose(vectors @ fitted, corners, atol=1e-6)


def test_tool_in_the_blocks_frame_does_not_change_when_all_is_turned():
    state = np.array([300.0, 200.0, 250.0, 260.0, 0.4])
    turned = state.copy()
    turn, angle = 0.7, 0.4 + 0.7
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    turned[:2] = turned[2:4] + rotation @ (state[:2] - state[2:4])
    turned[4] = angle
    in_block = [6, 7, 16, 17]       # the tool's place, and the gap at both scales
    np.testing.assert_allclose(push_t.state_vector(state)[in_block],
                               push_t.state_vector(turned)[in_block])


def test_what_is_left_to_do_is_nothing_on_the_outline_and_magnified_near_it():
    names = dict(zip(push_t._STATE, range(18), strict=True))
    done = push_t.state_vector(np.array([100.0, 100.0, 256.0, 256.0, np.pi / 4]))
    left = [value for name, value in zip(push_t._STATE, done, strict=True)
            if 'off' in name or 'turn' in name]
    np.testing.assert_allclose(left, 0.0, atol=1e-12)
    near = push_t.state_vector(np.array([100.0, 100.0, 259.0, 256.0, np.pi / 4 - 0.05]))
    assert near[names['off_x_near']] == pytest.approx(np.tanh(3 / 12))
    assert near[names['turn_near']] == pytest.approx(np.tanh(-0.5))
    # Once round is not turned at all.
    again = push_t.state_vector(np.array([100.0, 100.0, 256.0, 256.0, np.pi / 4 - 2 * np.pi]))
    assert again[names['turn_far']] == pytest.approx(0.0, abs=1e-12)


def test_demonstrations_are_moved_as_a_whole_to_end_on_the_outline():
    rng = np.random.default_rng(3)
    states = np.column_stack((rng.uniform(100, 400, (12, 4)), rng.uniform(-3, 9, 12)))
    actions, ends = rng.uniform(100, 400, (12, 2)), np.array([5, 12])
    moved, sent = push_t.finish_on_outline(states, actions, ends)
    for end in ends:
        np.testing.assert_allclose(moved[end - 1, 2:4], 256.0)
        assert np.mod(moved[end - 1, 4], 2 * np.pi) == pytest.approx(np.pi / 4)
    # Seen from the block nothing has changed, neither the tool nor where it is sent.
    told, before = push_t.state_vector(moved), push_t.state_vector(states)
    np.testing.assert_allclose(told[:, 6:8], before[:, 6:8])
    for own, others in ((sent, actions), (moved[:, :2], states[:, :2])):
        np.testing.assert_allclose(np.linalg.norm(own - moved[:, 2:4], axis=1),
                                   np.linalg.norm(others - states[:, 2:4], axis=1))
    for first, end in ((0, 5), (5, 12)):
        np.testing.assert_allclose(np.ptp(moved[first:end, 4] - states[first:end, 4]), 0.0,
                                   atol=1e-12)
    again = push_t.finish_on_outline(moved, sent, ends)
    np.testing.assert_allclose(again[0], moved)
    assert states[4, 2] != 256.0            # what was given is left alone


@pytest.mark.parametrize('tool, gap', [
    ((0.0, 15.0), 0.0), ((60.0, 15.0), 0.0), ((80.0, 15.0), 20.0), ((0.0, 140.0), 20.0),
    ((45.0, 70.0), 30.0), ((63.0, -4.0), 5.0)])
def test_gap_is_the_distance_between_the_tool_and_the_t(tool, gap):
    turn, block = 0.7, np.array([200.0, 300.0])
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    state = np.concatenate((block + rotation @ tool, block, [turn]))
    told = push_t.state_vector(state)[push_t._STATE.index('gap_far')]
    assert told == pytest.approx(np.tanh((gap - push_t._TOOL) / 30.0))


def test_the_mirror_image_of_a_push_is_the_push_of_the_mirror_image():
    world, other = _world(), _world()
    rng = np.random.default_rng(0)
    for seed in range(3):
        world.reset(seed)
        other.reset(seed)
        # Near the middle: the walls lie half a pixel off the mirror.
        state = np.array([*rng.uniform(150, 350, 4), rng.uniform(0, 2 * np.pi)])
        mirrored = push_t.mirror_states(state)
        for made, start in ((world, state), (other, mirrored)):
            # The angle first: setting it turns the block about its centre of mass.
            made._env.block.angle = start[4]
            made._env.block.position = tuple(start[2:4])
            made._env.agent.position = tuple(start[:2])
        for _ in range(8):
            action = rng.uniform(200, 300, 2)
            first, second = world.step(action), other.step(push_t.mirror_points(action))
            expected = push_t.mirror_states(first.vector)
            difference = second.vector - expected
            difference[4] = (difference[4] + np.pi) % (2 * np.pi) - np.pi
            # The solver takes contacts in another order; the rest is the same.
            assert np.abs(difference[:4]).max() < 3.0 and abs(difference[4]) < 0.05
            assert first.score == pytest.approx(second.score, abs=0.05)
    world.close()
    other.close()


def test_mirroring_twice_changes_nothing_and_the_outline_is_its_own_image():
    rng = np.random.default_rng(0)
    states = np.column_stack((rng.uniform(0, 512, (10, 4)), rng.uniform(0, 2 * np.pi, 10)))
    np.testing.assert_allclose(push_t.mirror_states(push_t.mirror_states(states)), states)
    goal = np.array([256.0, 256.0, 256.0, 256.0, np.pi / 4])
    np.testing.assert_allclose(push_t.mirror_states(goal), goal)


def _write(folder, values, chunk):
    folder.mkdir(parents=True)
    meta = {'zarr_format': 2, 'shape': list(values.shape), 'dtype': values.dtype.str,
            'chunks': [chunk, *values.shape[1:]], 'compressor': None, 'filters': None,
            'order': 'C', 'fill_value': 0}
    (folder / '.zarray').write_text(json.dumps(meta))
    for number in range(-(-len(values) // chunk)):
        part = np.zeros((chunk, *values.shape[1:]), values.dtype)
        piece = values[number * chunk:(number + 1) * chunk]
        part[:len(piece)] = piece
        name = '.'.join([str(number), *['0'] * (values.ndim - 1)])
        (folder / name).write_bytes(part.tobytes())


def demonstrations(path, episodes=6, steps=20, seed=0):
    """Write demonstrations of the published layout: a tool that walks about."""
    rng = np.random.default_rng(seed)
    states = rng.uniform(100, 400, (episodes * steps, 5)).astype(np.float32)
    states[:, 4] = rng.uniform(0, 2 * np.pi, len(states))
    actions = np.clip(states[:, :2] + rng.normal(0, 20, (len(states), 2)), 0, 512)
    _write(path / 'data' / 'state', states, 32)
    _write(path / 'data' / 'action', actions.astype(np.float32), 32)
    _write(path / 'meta' / 'episode_ends', np.arange(1, episodes + 1) * steps, 4)
    return states, actions


def test_published_layout_is_read(tmp_path):
    states, actions = demonstrations(tmp_path / 'a.zarr')
    episodes = find_task('push_t_state').read(tmp_path / 'a.zarr')
    assert len(episodes) == 6 and list(episodes.ends[:2]) == [20, 40]
    moved, sent = push_t.finish_on_outline(states, actions.astype(np.float32), episodes.ends)
    np.testing.assert_allclose(episodes.vectors[:, :4], moved[:, :4], rtol=1e-5)
    np.testing.assert_allclose(episodes.actions, sent, rtol=1e-5, atol=1e-3)
    np.savez(tmp_path / 'b.npz', state=states, action=actions.astype(np.float32),
             episode_ends=episodes.ends)
    again = find_task('push_t_state').read(tmp_path / 'b.npz')
    np.testing.assert_allclose(again.vectors, episodes.vectors)
    mirrored = find_task('push_t_keypoints').read_mirrored(tmp_path / 'b.npz')
    np.testing.assert_allclose(mirrored.vectors[:, 0], 512.0 - moved[:, 1], rtol=1e-5,
                               atol=1e-3)


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(ArrayError, match='get them with'):
        push_t.read_states(tmp_path / 'missing.npz')
    np.savez(tmp_path / 'other.npz', state=np.zeros((3, 5)))
    with pytest.raises(ArrayError, match='action'):
        push_t.read_states(tmp_path / 'other.npz')
    demonstrations(tmp_path / 'a.zarr')
    (tmp_path / 'a.zarr' / 'data' / 'state' / '1.0').write_bytes(b'short')
    with pytest.raises(ValueError):
        read_array(tmp_path / 'a.zarr' / 'data' / 'state')
    with pytest.raises(ZarrError, match='expected a zarr array'):
        read_array(tmp_path / 'nothing')


def test_names_of_the_tasks():
    names = ('push_t_state', 'push_t_keypoints')
    assert set(names) <= set(NAMES)
    with pytest.raises(ValueError, match="expected one of push_t_state.*came 'push_u'"):
        find_task('push_u')
    vectors = {'push_t_state': push_t.state_vector, 'push_t_keypoints': push_t.keypoint_vector}
    for name in names:
        task = find_task(name)
        assert task.interface.vector_size == 18 and task.interface.action_size == 2
        made = vectors[name](np.array([1.0, 2.0, 3.0, 4.0, 0.5]))
        assert len(made) == 18 and list(made[list(task.relative)]) == [1.0, 2.0]
