"""The exported policy equals torch; modes are kept; bad input is refused."""

from pathlib import Path

import numpy as np
import pytest

from liquid_policy.runtime import Distribution, EncoderRuntime, ModeKeeper, PolicyRuntime

torch = pytest.importorskip('torch')

from liquid_policy.checkpoint import CheckpointError, load_checkpoint  # noqa: E402
from liquid_policy.export import to_checkpoint, to_policy  # noqa: E402
from liquid_policy.interface import load_interface  # noqa: E402
from liquid_policy.policy import Policy  # noqa: E402
from liquid_policy.settings import CORES, CoreSettings, PolicySettings  # noqa: E402

INTERFACE = Path(__file__).parents[2] / 'config' / 'manipulator.interface.yaml'


def _policy(kind='cfc'):
    torch.manual_seed(0)
    policy = Policy(PolicySettings(core=CoreSettings(kind=kind))).eval()
    generator = torch.Generator().manual_seed(1)
    # Scales and batch norm statistics of a trained policy differ from 0 and 1.
    for name, value in policy.named_buffers():
        if name.endswith(('center', 'running_mean')):
            value.copy_(0.2 * torch.randn(value.shape, generator=generator))
        elif name.endswith(('scale', 'running_var')):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return policy


@pytest.fixture(scope='module', params=CORES)
def pair(request, tmp_path_factory):
    policy = _policy(request.param)
    path = tmp_path_factory.mktemp('checkpoint') / 'a.safetensors'
    to_checkpoint(policy, load_interface(INTERFACE), 'test').save(path)
    assert path.stat().st_size <= 10e6
    return policy, load_checkpoint(path)


def test_exported_form_equals_torch_on_a_run(pair):
    policy, checkpoint = pair
    encoder, runtime = EncoderRuntime(checkpoint), PolicyRuntime(checkpoint)
    rng = np.random.default_rng(0)
    state, other = runtime.initial_state(), policy.initial_state()
    for tick in range(60):
        if tick % 6 == 0:
            color = rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
            depth = rng.uniform(0.3, 2.0, (96, 96)).astype(np.float32)
            depth[rng.random((96, 96)) < 0.05] = rng.choice([0.0, np.nan, np.inf])
            features = encoder.encode(color, depth)
            with torch.no_grad():
                known = policy.encoder(torch.from_numpy(color)[None],
                                       torch.from_numpy(depth)[None])[0].numpy()
            np.testing.assert_allclose(features, known, atol=1e-5)
        vector = rng.normal(size=12).astype(np.float32)
        elapsed = float(rng.uniform(0.005, 0.05))
        state, answer = runtime.step(features, vector, elapsed, state)
        with torch.no_grad():
            other, right = policy.step(
                torch.from_numpy(np.concatenate((features, vector)))[None],
                torch.tensor([[elapsed]], dtype=torch.float32), other)
        for came, expected in ((state, other), (answer.weights, right.mixture.weights),
                               (answer.means, right.mixture.means),
                               (answer.scales, right.mixture.scales),
                               (answer.estimate_mean, right.estimate_mean),
                               (answer.estimate_scale, right.estimate_scale)):
            np.testing.assert_allclose(came, expected[0].numpy(), atol=1e-5)


def test_weights_of_a_checkpoint_make_the_same_policy(pair):
    policy, checkpoint = pair
    again = to_policy(checkpoint)
    assert all(torch.equal(value, again.state_dict()[name])
               for name, value in policy.state_dict().items())


def test_export_leaves_the_training_mode_alone():
    policy = Policy().train()
    to_checkpoint(policy, load_interface(INTERFACE), 'test')
    assert all(module.training for module in policy.modules())


def test_answers_do_not_share_memory(pair):
    runtime = PolicyRuntime(pair[1])
    features, vector = np.zeros(128, np.float32), np.zeros(12, np.float32)
    state, first = runtime.step(features, vector, 0.01, runtime.initial_state())
    kept = first.means.copy()
    runtime.step(features + 3, vector, 0.01, state)
    assert np.array_equal(first.means, kept)


@pytest.mark.parametrize('change, text', [
    ({'features': np.zeros(127)}, r'features: expected shape \(128,\), came \(127,\)'),
    ({'vector': np.zeros((1, 12))}, r'vector: expected shape \(12,\)'),
    ({'vector': np.full(12, np.nan)}, 'vector: expected finite'),
    ({'features': np.full(128, np.inf)}, 'features: expected finite'),
    ({'state': np.full(64, np.nan)}, 'state: expected finite'),
    ({'elapsed': -0.01}, 'elapsed: expected a finite time of at least 0 s, came -0.01'),
    ({'elapsed': float('nan')}, 'elapsed'),
])
def test_bad_step_input_is_refused(change, text):
    runtime = _runtime()
    values = {'features': np.zeros(128), 'vector': np.zeros(12), 'elapsed': 0.01,
              'state': runtime.initial_state()} | change
    with pytest.raises(ValueError, match=text):
        runtime.step(**values)


_CACHE = {}


def _runtime():
    if not _CACHE:
        _CACHE['checkpoint'] = to_checkpoint(_policy(), load_interface(INTERFACE), 'test')
    return PolicyRuntime(_CACHE['checkpoint'])


@pytest.mark.parametrize('color, depth, text', [
    (np.zeros((96, 95, 3), np.uint8), np.zeros((96, 96), np.float32), 'color: expected shape'),
    (np.zeros((96, 96, 3), np.float32), np.zeros((96, 96), np.float32), 'color: expected uint8'),
    (np.zeros((96, 96, 3), np.uint8), np.zeros((96, 96), np.uint16), 'depth: expected floats'),
    (np.zeros((96, 96, 3), np.uint8), np.zeros((48, 96), np.float32), 'depth: expected shape'),
])
def test_bad_image_is_refused(color, depth, text):
    _runtime()
    with pytest.raises(ValueError, match=text):
        EncoderRuntime(_CACHE['checkpoint']).encode(color, depth)


def test_broken_graph_is_refused():
    _runtime()
    broken = _CACHE['checkpoint']
    exports = {**broken.exports, 'step.onnx': b'not a graph'}
    with pytest.raises(CheckpointError, match='export the checkpoint again'):
        PolicyRuntime(type(broken)(**{**broken.__dict__, 'exports': exports}))


def _two_plans(first_weight):
    """Component 0 goes to +1, component 1 to -1."""
    means = np.stack((np.full((4, 2), 1.0), np.full((4, 2), -1.0)))
    return Distribution(np.array([first_weight, 1 - first_weight]), means,
                        np.full_like(means, 0.1), np.zeros(1), np.ones(1))


def test_keeper_stays_within_the_ranges_of_actions():
    means = np.array([[[-0.1, 3.0], [1.2, -3.0]]], np.float32)
    distribution = Distribution(np.ones(1, np.float32), means, np.ones_like(means),
                                np.zeros(0), np.zeros(0))
    keeper = ModeKeeper(0.02, low=np.array([0.0, -np.inf]), high=np.array([1.0, np.inf]))
    _, chosen = keeper.choose(distribution, 0.01)
    np.testing.assert_array_equal(chosen, np.array([[0.0, 3.0], [1.0, -3.0]], np.float32))


def test_mode_is_kept_while_it_is_plausible_and_left_when_not():
    keeper = ModeKeeper(dt=0.02, threshold=0.2)
    assert keeper.choose(_two_plans(0.6), 0.01)[0] == 0
    assert keeper.choose(_two_plans(0.45), 0.01)[0] == 0     # heaviest is 1: stay
    assert keeper.choose(_two_plans(0.30), 0.01)[0] == 0
    index, plan = keeper.choose(_two_plans(0.05), 0.01)      # 0.05 < 0.2 * 0.95: leave
    assert index == 1 and np.all(plan == -1.0)
    keeper.reset()
    assert keeper.choose(_two_plans(0.6), 0.01)[0] == 0


def test_mode_is_followed_when_components_change_places():
    keeper = ModeKeeper(dt=0.02, threshold=0.2)
    keeper.choose(_two_plans(0.6), 0.01)
    swapped = _two_plans(0.6)
    swapped = Distribution(swapped.weights, swapped.means[::-1].copy(), swapped.scales,
                           swapped.estimate_mean, swapped.estimate_scale)
    assert keeper.choose(swapped, 0.01)[0] == 1


def test_plan_that_is_over_binds_no_more():
    keeper = ModeKeeper(dt=0.02, threshold=0.2)
    keeper.choose(_two_plans(0.6), 0.01)
    assert keeper.choose(_two_plans(0.4), 10.0)[0] == 1


def test_keeper_settings_are_checked():
    with pytest.raises(ValueError, match='dt'):
        ModeKeeper(dt=0.0)
    with pytest.raises(ValueError, match='threshold'):
        ModeKeeper(dt=0.02, threshold=1.5)
