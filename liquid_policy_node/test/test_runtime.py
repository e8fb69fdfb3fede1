"""The exported policy equals torch; modes are kept; bad input is refused."""

from pathlib import Path

import numpy as np
import pytest

from liquid_policy.runtime import Distribution, EncoderRuntime, ModeKeeper, PolicyRuntime

torch = pytest.importorskip('torch')

from liquid_policy.checkpoint import CheckpointError, load_checkpoint  # noqa: E402
from liquid_policy.export import to_checkpoint, to_policy  # noqa: E402
from liquid_policy.head_settings import (  # noqa: E402
    DeterministicSettings,
    DiffusionSettings,
    FlowSettings,
    ImleSettings,
    MixtureSettings,
)
from liquid_policy.interface import load_interface  # noqa: E402
from liquid_policy.onnx_graph import PROVIDERS, providers  # noqa: E402
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
    encoder, runtime = EncoderRuntime(checkpoint), PolicyRuntime(checkpoint, engine='onnx')
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


_SMALL = {'horizon': 4, 'hidden': 16, 'dt': 0.1}
_HEADS = [MixtureSettings(components=3, rank=2, layers=3, **_SMALL),
          DeterministicSettings(**_SMALL),
          ImleSettings(samples=3, width=16, depth=2, **_SMALL),
          FlowSettings(samples=2, steps=3, width=16, depth=1, **_SMALL),
          DiffusionSettings(steps=4, noise_levels=8, channels=(8, 16), **_SMALL),
          DiffusionSettings(schedule='ddim', steps=5, noise_levels=20, network='mlp', width=16,
                            depth=1, samples=2, **_SMALL)]


@pytest.fixture(scope='module', params=_HEADS, ids=lambda head: head.name)
def headed(request):
    """A policy without images for each head, its actions told relative to the vector."""
    torch.manual_seed(0)
    policy = Policy(PolicySettings(encoder=None, vector_size=5, action_size=2, target_size=0,
                                   head=request.param, relative=(3, 1))).eval()
    generator = torch.Generator().manual_seed(1)
    for _, value in policy.named_parameters():       # residual blocks begin at zero
        value.data += 0.05 * torch.randn(value.shape, generator=generator)
    policy.action_scaling.scale.fill_(0.5)
    return policy, to_checkpoint(policy, load_interface(INTERFACE), 'test')


def test_every_head_is_exported_with_its_whole_sampling_loop(headed):
    policy, checkpoint = headed
    assert set(checkpoint.exports) == {'step.onnx', 'observe.onnx'}
    runtime = PolicyRuntime(checkpoint, seed=3, engine='onnx')
    random = np.random.Generator(np.random.SFC64(3))        # the noise that the runtime draws
    rng = np.random.default_rng(0)
    nothing, state, other = np.zeros(0, np.float32), runtime.initial_state(), \
        policy.initial_state()
    for _ in range(5):
        vector, elapsed = rng.normal(size=5).astype(np.float32), float(rng.uniform(0.05, 0.2))
        observed = torch.from_numpy(vector)[None], torch.tensor([[elapsed]])
        shape = policy.head.noise_shape
        noise = torch.from_numpy(random.standard_normal((1, *shape), np.float32)) \
            if shape else None
        with torch.no_grad():
            seen = policy.observe(*observed, other)
            other, right = policy.step(*observed, other, noise)
        np.testing.assert_allclose(runtime.observe(nothing, vector, elapsed, state),
                                   seen[0].numpy(), atol=1e-5)
        state, answer = runtime.step(nothing, vector, elapsed, state)
        for came, expected in ((state, other), (answer.weights, right.mixture.weights),
                               (answer.means, right.mixture.means),
                               (answer.scales, right.mixture.deviations)):
            # The first steps of a diffusion divide by what is nearly 0, rounding errors too.
            np.testing.assert_allclose(came, expected[0].numpy(), rtol=1e-5, atol=3e-5)


def test_same_seed_gives_the_same_answers(headed):
    vector, nothing = np.ones(5, np.float32), np.zeros(0, np.float32)
    runtime = PolicyRuntime(headed[1], seed=3)

    def answers():
        return np.stack([runtime.step(nothing, vector, 0.1, runtime.initial_state())[1].means
                         for _ in range(2)])

    runtime.seed(4)
    first = answers()
    runtime.seed(4)
    np.testing.assert_array_equal(answers(), first)
    if headed[0].head.noise_shape:
        assert not np.allclose(first[0], first[1])


def test_weights_of_every_head_make_the_same_policy(headed):
    again = to_policy(headed[1])
    assert again.settings == headed[0].settings
    assert all(torch.equal(value, again.state_dict()[name])
               for name, value in headed[0].state_dict().items())


def test_a_policy_without_images_refuses_features(headed):
    runtime = PolicyRuntime(headed[1])
    with pytest.raises(ValueError, match='features: expected none, .* came 3'):
        runtime.step(np.zeros(3), np.zeros(5), 0.1, runtime.initial_state())


def test_nearest_sample_is_followed():
    """Of equally heavy samples, the one that goes on with the last plan."""
    keeper = ModeKeeper(dt=0.1)
    plans = np.stack([np.full((4, 1), value) for value in (3.0, -1.0, 0.9)])
    alike = Distribution(np.full(3, 1 / 3), plans, np.full_like(plans, 0.05), np.zeros(0),
                         np.zeros(0))
    assert keeper.choose(alike, 0.1)[0] == 0
    shifted = Distribution(alike.weights, plans[::-1].copy(), alike.scales, np.zeros(0),
                           np.zeros(0))
    assert keeper.choose(shifted, 0.1)[0] == 2


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


def test_a_provider_that_is_not_there_is_refused_and_named():
    _runtime()
    with pytest.raises(CheckpointError,
                       match="provider 'tensorrt': expected .* has .*CPU.* 'cpu'"):
        EncoderRuntime(_CACHE['checkpoint'], provider='tensorrt')
    chosen = providers('tensorrt', [*PROVIDERS['tensorrt']])
    assert chosen[0][0] == 'TensorrtExecutionProvider'
    assert chosen[0][1]['trt_engine_cache_enable'] == '1'
    assert chosen[1:] == ['CUDAExecutionProvider', 'CPUExecutionProvider']
    assert providers('cpu', ['CPUExecutionProvider']) == ['CPUExecutionProvider']


def test_broken_graph_is_refused():
    _runtime()
    broken = _CACHE['checkpoint']
    exports = {**broken.exports, 'step.onnx': b'not a graph'}
    with pytest.raises(CheckpointError, match='export the checkpoint again'):
        PolicyRuntime(type(broken)(**{**broken.__dict__, 'exports': exports}), engine='onnx')


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
