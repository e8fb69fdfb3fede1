"""Exported forms equal torch or say how much they do not; the int8 encoder runs in the nodes."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from liquid_policy.checkpoint import load_checkpoint  # noqa: E402
from liquid_policy.export import to_checkpoint  # noqa: E402
from liquid_policy.interface import load_interface  # noqa: E402
from liquid_policy.policy import Policy  # noqa: E402
from liquid_policy.runtime import EncoderRuntime  # noqa: E402
from liquid_policy.settings import EncoderSettings, PolicySettings  # noqa: E402
from liquid_trainer.bags import Episode  # noqa: E402
from liquid_trainer.export_forms import (  # noqa: E402
    export,
    lines_of,
    main,
    tensorrt_lines,
    to_int8,
)

INTERFACE = load_interface(
    Path(__file__).resolve().parents[2] / 'config' / 'manipulator.interface.yaml')


def recorded(images=8, ticks=24):
    """An episode with pictures of bright boxes before a wall."""
    rng = np.random.default_rng(0)
    color = rng.integers(90, 110, (images, 96, 96, 3), dtype=np.uint8)
    depth = np.full((images, 96, 96), 1.5, np.float32)
    for index in range(images):
        row, column = rng.integers(8, 72, 2)
        color[index, row:row + 16, column:column + 16] = 220
        depth[index, row:row + 16, column:column + 16] = 0.8
    stamps = np.arange(ticks) * 10_000_000
    return Episode(
        'made', 'success', 'nowhere', stamps, rng.normal(size=(ticks, 12)).astype(np.float32),
        np.arange(ticks) * images // ticks, {'color': color, 'depth': depth},
        np.arange(images) * 30_000_000, np.zeros((ticks, 9), np.float32),
        np.zeros((ticks, 4), np.float32))


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """A small policy in all forms."""
    torch.manual_seed(0)
    policy = Policy(PolicySettings(encoder=EncoderSettings(width=0.1))).eval()
    checkpoint = to_checkpoint(policy, INTERFACE, 'small')
    folder = tmp_path_factory.mktemp('exported')
    return checkpoint, folder, export(checkpoint, [recorded()], folder, calibration=4)


def test_float32_equals_torch_and_the_others_say_what_they_lose(exported):
    _, folder, report = exported
    losses = {name: report['files'][f'encoder.{name}.onnx'] for name in ('fp32', 'fp16', 'int8')}
    assert losses['fp32']['largest'] < 1e-5 < losses['fp16']['largest']
    assert 0.0 < losses['fp16']['share'] < 0.1 and 0.0 < losses['int8']['share'] < 0.5
    assert losses['int8']['bytes'] < losses['fp32']['bytes']
    assert set(report['step']) == {'onnx', 'numpy'}
    assert all(loss['step'] < 1e-5 for loss in report['step'].values())
    assert json.loads((folder / 'report.json').read_text()) == report
    assert any('of their spread' in line for line in lines_of(report))


def test_the_int8_checkpoint_runs_and_is_told_apart(exported):
    checkpoint, folder, _ = exported
    loaded = load_checkpoint(folder / 'int8.safetensors')
    assert loaded.version == 'small-int8'
    one, other = EncoderRuntime(checkpoint), EncoderRuntime(loaded)
    episode = recorded()
    first, second = (runtime.encode(episode.colors[0], episode.depths[0])
                     for runtime in (one, other))
    assert first.shape == second.shape and not np.array_equal(first, second)


def test_torch_forms_answer_as_torch(exported):
    checkpoint, folder, report = exported
    assert report['torch']['step.ts'] == report['torch']['encoder.ts'] == 'written'
    step = torch.jit.load(str(folder / 'step.ts'))
    after = step(torch.zeros(1, 140), torch.full((1, 1), 0.01), torch.zeros(1, 64))[0]
    assert after.shape == (1, 64) and torch.isfinite(after).all()


def test_engines_are_built_by_lines_a_shell_takes(exported):
    _, folder, report = exported
    lines = report['tensorrt']
    assert lines == tensorrt_lines([name for name in report['files'] if name.endswith('onnx')])
    assert any('--int8' in line and 'encoder.int8.onnx' in line for line in lines)
    done = subprocess.run(['sh', '-n', str(folder / 'tensorrt.sh')], check=False)
    assert done.returncode == 0


def test_int8_needs_recorded_images(exported, tmp_path, capsys):
    checkpoint, _, _ = exported
    with pytest.raises(ValueError, match='int8: expected recorded images .* --bags'):
        to_int8(checkpoint.exports['encoder.onnx'], [])
    assert main([str(tmp_path / 'none.safetensors')]) == 1
    assert 'expected a readable checkpoint' in capsys.readouterr().err
