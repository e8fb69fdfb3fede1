"""Push-T from pictures: the mirror, the published layout, and the commands from end to end."""

import json

import numpy as np
import pytest

pytest.importorskip('gym_pusht')
torch = pytest.importorskip('torch')

from liquid_policy.checkpoint import load_checkpoint  # noqa: E402
from liquid_policy.runtime import EncoderRuntime  # noqa: E402
from liquid_policy.settings import EncoderSettings  # noqa: E402
from liquid_sim import evaluate_task, train_task  # noqa: E402
from liquid_sim.tasks import push_t, push_t_image  # noqa: E402
from liquid_sim.tasks.registry import find_task  # noqa: E402
from liquid_trainer.formats.dataset import FormatError  # noqa: E402
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
    """Write a tool that walks about, seen by the world's own camera."""
    path = tmp_path_factory.mktemp('images') / 'a.zarr'
    rng = np.random.default_rng(0)
    world, states, pictures = push_t_image.PushTPictures(), [], []
    for seed in range(4):
        world.reset(seed)
        for _ in range(6):
            world.step(rng.uniform(100, 400, 2))
            pictures.append(world.image())
            states.append(world._env.get_obs())
    world.close()
    states = np.array(states, np.float32)
    _write(path / 'data' / 'state', states)
    _write(path / 'data' / 'action', states[:, :2] + 5.0 * rng.normal(size=(24, 2)).astype('f4'))
    _write(path / 'data' / 'img', np.array(pictures, np.float32))
    _write(path / 'meta' / 'episode_ends', np.arange(6, 25, 6))
    (path / '.zgroup').write_text('{"zarr_format": 2}')
    return path


def test_pictures_are_read_as_they_were_taken(data):
    pictures = push_t_image.read_pictures(data)
    assert pictures.color.shape == (24, 96, 96, 3) and pictures.color.dtype == np.uint8
    states = push_t.read_states(data)[0]
    np.testing.assert_allclose(pictures.places, push_t.keypoint_vector(states))
    # The tool is where the picture is blue.
    for picture, state in zip(pictures.color[::5], states[::5], strict=True):
        red, green, blue = picture.astype(int).transpose(2, 0, 1)
        rows, columns = np.nonzero((blue > 200) & (red < 120) & (green < 160))
        seen = (np.array([columns.mean(), rows.mean()]) + 0.5) * 512 / 96
        np.testing.assert_allclose(seen, state[:2], atol=6.0)


def test_the_mirror_image_of_a_picture_is_the_picture_of_the_mirror_image(data):
    state = push_t.read_states(data)[0][3].astype(float)
    world = push_t_image.PushTPictures()
    world.reset(0)
    pictures = []
    for made in (state, push_t.mirror_states(state)):
        world._env.block.angle = made[4]
        world._env.block.position = tuple(made[2:4])
        world._env.agent.position = tuple(made[:2])
        for body in (world._env.block, world._env.agent):
            world._env.space.reindex_shapes_for_body(body)
        pictures.append(world.image().astype(float))
    mirrored = push_t_image.mirror_pictures(pictures[0][None])[0]
    # Edges fall on other fractions of a pixel, which makes 0.3; a pixel off makes 2.
    assert np.abs(mirrored - pictures[1]).mean() < 0.8
    assert np.abs(np.roll(mirrored, 1, axis=0) - pictures[1]).mean() > 1.2
    np.testing.assert_array_equal(push_t_image.mirror_pictures(mirrored[None])[0], pictures[0])
    world.close()


def test_pictures_of_another_size_or_none_are_refused(data, tmp_path):
    with pytest.raises(FormatError, match='expected'):
        push_t_image.read_pictures(tmp_path / 'missing.zarr')
    _write(tmp_path / 'b.zarr' / 'data' / 'img', np.zeros((4, 32, 32, 3), np.uint8))
    _write(tmp_path / 'b.zarr' / 'data' / 'state', np.zeros((4, 5), np.float32))
    _write(tmp_path / 'b.zarr' / 'data' / 'action', np.zeros((4, 2), np.float32))
    _write(tmp_path / 'b.zarr' / 'meta' / 'episode_ends', np.array([4]))
    with pytest.raises(FormatError, match='96 x 96, came 32 x 32'):
        push_t_image.read_pictures(tmp_path / 'b.zarr')


@pytest.mark.timeout(240)
def test_a_policy_with_eyes_is_taught_goes_on_and_acts(data, tmp_path, monkeypatch, capsys):
    arguments = ['--task', 'push_t_image', '--data', str(data), '--output', str(tmp_path),
                 '--quiet', '--set', 'core.units=8', 'core.backbone=16', 'head.horizon=4',
                 'head.hidden=16', 'head.layers=1', 'learning.steps=4', 'learning.batch=8',
                 'learning.held_out=0.25', 'sight.steps=2', 'sight.batch=4']
    # As many features by a tenth of the channels: the same path in a tenth of the time.
    small = EncoderSettings(width=0.1, merged=8)
    monkeypatch.setattr(train_task, 'EncoderSettings', lambda: small)
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
    assert task.interface.vector_size == 2 and task.interface.features.size == 128
    assert list(task.interface.images) == ['color']
