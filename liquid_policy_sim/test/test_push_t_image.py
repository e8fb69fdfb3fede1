"""Push-T from pictures: what is drawn, the mirror, and the commands from end to end."""

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('gym_pusht')
torch = pytest.importorskip('torch')

from liquid_policy.checkpoint import load_checkpoint  # noqa: E402
from liquid_policy.runtime import EncoderRuntime  # noqa: E402
from liquid_sim import evaluate_task, train_task  # noqa: E402
from liquid_sim.tasks import push_t, push_t_image  # noqa: E402
from liquid_sim.tasks.registry import find_task  # noqa: E402
from liquid_trainer.sight import encode  # noqa: E402


def _write(folder, values):
    folder.mkdir(parents=True)
    (folder / '.zarray').write_text(json.dumps({
        'zarr_format': 2, 'shape': list(values.shape), 'dtype': values.dtype.str,
        'chunks': list(values.shape), 'compressor': None, 'filters': None, 'order': 'C',
        'fill_value': 0}))
    (folder / '.'.join('0' * values.ndim)).write_bytes(np.ascontiguousarray(values).tobytes())


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Write a tool that walks about."""
    path = tmp_path_factory.mktemp('images') / 'a.zarr'
    rng = np.random.default_rng(0)
    world, states = push_t_image.PushTPictures(), []
    for seed in range(4):
        world.reset(seed)
        for _ in range(6):
            world.step(rng.uniform(100, 400, 2))
            states.append(world._env.get_obs())
    world.close()
    states = np.array(states, np.float32)
    _write(path / 'data' / 'state', states)
    _write(path / 'data' / 'action', states[:, :2] + 5.0 * rng.normal(size=(24, 2)).astype('f4'))
    _write(path / 'meta' / 'episode_ends', np.arange(6, 25, 6))
    (path / '.zgroup').write_text('{"zarr_format": 2}')
    return path


def test_pictures_show_demonstrations_that_end_on_the_outline(data):
    pictures = push_t_image.read_pictures(data)
    assert pictures.color.shape == (24, 96, 96, 3) and pictures.color.dtype == np.uint8
    states = push_t.finish_on_outline(*push_t.read_states(data))[0]
    np.testing.assert_allclose(pictures.places, push_t.keypoint_vector(states))
    # The tool is where the picture is blue.
    for picture, state in zip(pictures.color[::5], states[::5], strict=True):
        red, green, blue = picture.astype(int).transpose(2, 0, 1)
        rows, columns = np.nonzero((blue > 200) & (red < 120) & (green < 160))
        if not (state[:2] > 16).all() or not (state[:2] < 496).all():
            continue                    # moved over the table's edge
        seen = (np.array([columns.mean(), rows.mean()]) + 0.5) * 512 / 96
        np.testing.assert_allclose(seen, state[:2], atol=6.0)
    # The last picture of an episode shows nothing of the green outline: the block is on it.
    green = ((pictures.color == np.array([144, 238, 144])).all(-1)).sum((1, 2))
    assert (green[5::6] == 0).all() and green.max() > 100


def test_drawn_is_what_the_world_shows(data):
    world = push_t_image.PushTPictures()
    world.reset(3)
    for _ in range(5):
        world.step(np.array([300.0, 200.0]))
    shown, state = world.image(), world._env.get_obs()
    world.reset(4)
    np.testing.assert_array_equal(world.draw(state), shown)
    world.close()


def test_near_is_zero_on_the_outline_and_steep_there():
    matrix, offset = push_t_image.near()
    here = push_t.keypoint_vector(np.array([100.0, 120.0, *push_t.GOAL]))
    there = push_t.keypoint_vector(np.array([100.0, 120.0, *push_t.GOAL]) + [0, 0, 6.0, 0, 0])
    np.testing.assert_allclose((matrix @ here + offset)[:32], 0.0, atol=1e-9)
    told = matrix @ there + offset
    np.testing.assert_allclose(told[:32], np.r_[np.tile([0.5, 0.0], 8), np.tile([0.15, 0.0], 8)],
                               atol=1e-9)
    # And how far the tool is from each corner, in thirties of pixels.
    np.testing.assert_allclose(told[32:], (np.tile([100.0, 120.0], 8) - there[2:]) / 30.0)


def test_the_mirror_image_of_a_picture_is_the_picture_of_the_mirror_image(data):
    state = push_t.read_states(data)[0][3].astype(float)
    world = push_t_image.PushTPictures()
    world.reset(0)
    pictures = [world.draw(made).astype(float) for made in (state, push_t.mirror_states(state))]
    mirrored = push_t_image.mirror_pictures(pictures[0][None])[0]
    # Edges fall on other fractions of a pixel, which makes 0.3; a pixel off makes 2.
    assert np.abs(mirrored - pictures[1]).mean() < 0.8
    assert np.abs(np.roll(mirrored, 1, axis=0) - pictures[1]).mean() > 1.2
    np.testing.assert_array_equal(push_t_image.mirror_pictures(mirrored[None])[0], pictures[0])
    world.close()


@pytest.mark.timeout(240)
def test_a_policy_with_eyes_is_taught_goes_on_and_acts(data, tmp_path, monkeypatch, capsys):
    arguments = ['--task', 'push_t_image', '--data', str(data), '--output', str(tmp_path),
                 '--quiet', '--set', 'core.units=8', 'core.backbone=16', 'head.horizon=4',
                 'head.hidden=16', 'head.layers=1', 'learning.steps=4', 'learning.batch=8',
                 'learning.held_out=0.25', 'sight.steps=2', 'sight.batch=4']
    # As many features by a tenth of the channels: the same path in a tenth of the time.
    small = replace(push_t_image.ENCODER, width=0.1, merged=8)
    task = replace(find_task('push_t_image'), encoder=small)
    monkeypatch.setattr(train_task, 'find_task', lambda name: task)
    assert train_task.main(arguments) == 0
    assert 'sight 2' in capsys.readouterr().out
    path = tmp_path / 'checkpoint.safetensors'
    checkpoint = load_checkpoint(path)
    assert checkpoint.card['task'] == 'push_t_image'
    # What runs sees as what was learned from.
    color = push_t_image.read_pictures(data).color[:3]
    from liquid_policy.export import to_policy
    runtime = EncoderRuntime(checkpoint)
    np.testing.assert_allclose(
        [runtime.encode(one, np.zeros((96, 96), np.float32)) for one in color],
        encode(to_policy(checkpoint).encoder, color), atol=1e-4)
    # Taught once: a second training with the same settings finds the encoder.
    assert train_task.main(arguments) == 0
    assert 'sight 2' not in capsys.readouterr().out
    again = load_checkpoint(path)
    np.testing.assert_array_equal(checkpoint.weights['encoder.pooled.weight'],
                                  again.weights['encoder.pooled.weight'])
    monkeypatch.setattr('liquid_sim.tasks.push_t.STEPS', 3)
    assert evaluate_task.main([str(path), '--episodes', '2', '--replan', '2',
                               '--processes', '1']) == 0
    assert 'push_t_image cfc+mixture success' in capsys.readouterr().out


def test_what_the_policy_is_told_is_the_tool_and_features():
    task = find_task('push_t_image')
    assert task.interface.vector_size == 2 and task.interface.features.size == 176
    assert list(task.interface.images) == ['color']
