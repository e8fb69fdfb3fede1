"""The step written out in numpy equals torch, for every core and head it knows."""

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from liquid_policy.checkpoint import Checkpoint, CheckpointError  # noqa: E402
from liquid_policy.interface import load_interface  # noqa: E402
from liquid_policy.numpy_step import NumpyStep  # noqa: E402
from liquid_policy.policy import Policy  # noqa: E402
from liquid_policy.runtime import PolicyRuntime  # noqa: E402
from liquid_policy.settings import (  # noqa: E402
    CoreSettings,
    DeterministicSettings,
    ImleSettings,
    MixtureSettings,
    PolicySettings,
)

INTERFACE = load_interface(
    Path(__file__).resolve().parents[2] / 'config' / 'manipulator.interface.yaml')
CORES = {
    'cfc': {}, 'cfc-no_gate': {'form': 'no_gate'}, 'cfc-pure': {'form': 'pure'},
    'cfc-mixed': {'mixed_memory': True}, 'cfc-pure-mixed': {'form': 'pure', 'mixed_memory': True},
    'lstm': {'kind': 'lstm'}, 'gru': {'kind': 'gru'}, 'ode': {'kind': 'ode'},
    'ode-euler': {'kind': 'ode', 'solver': 'euler', 'substeps': 4},
}
HEADS = {'mixture': MixtureSettings(components=3, horizon=5, hidden=24),
         'deterministic': DeterministicSettings(horizon=4, hidden=16)}


def trained(core, head, **more):
    """A policy whose every weight and scale is its own, as after training."""
    torch.manual_seed(0)
    settings = PolicySettings(encoder=None, vector_size=7, action_size=3, core=core, head=head,
                              **{'target_size': 2, **more})
    policy = Policy(settings).eval()
    with torch.no_grad():
        for value in policy.parameters():
            value += 0.1 * torch.randn(value.shape)
        for scaling in (policy.input_scaling, policy.action_scaling, policy.target_scaling):
            scaling.center.copy_(0.3 * torch.randn(scaling.center.shape))
            scaling.scale.copy_(0.2 + torch.rand(scaling.scale.shape))
    return policy


def packed(policy):
    """The weights as a checkpoint, without exported graphs: what runs is what is written out."""
    weights = {name: value.numpy() for name, value in policy.state_dict().items()}
    return Checkpoint('test', policy.settings.to_dict(), INTERFACE, weights=weights)


def compare(policy, runtime, elapsed_times, scale=1.0):
    """Step both and compare every part of every answer."""
    rng = np.random.default_rng(1)
    state, other = runtime.initial_state(), policy.initial_state()
    for elapsed in elapsed_times:
        vector = (scale * rng.normal(size=7)).astype(np.float32)
        observed = torch.from_numpy(vector)[None], torch.tensor([[elapsed]])
        seen = runtime.observe(np.zeros(0), vector, elapsed, state)
        state, came = runtime.step(np.zeros(0), vector, elapsed, state)
        with torch.no_grad():
            other, right = policy.step(*observed, other)
        np.testing.assert_array_equal(seen, state)
        for mine, theirs in ((state, other), (came.weights, right.mixture.weights),
                             (came.means, right.mixture.means),
                             (came.scales, right.mixture.deviations),
                             (came.estimate_mean, right.estimate_mean),
                             (came.estimate_scale, right.estimate_scale)):
            assert mine.dtype == np.float32
            np.testing.assert_allclose(mine, theirs[0].numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', CORES)
def test_every_core_equals_torch(name):
    policy = trained(CoreSettings(**{'units': 12, **CORES[name]}), HEADS['mixture'])
    runtime = PolicyRuntime(packed(policy), engine='numpy')
    # Jitter, a step of no time, and gaps beyond what a solver steps through.
    compare(policy, runtime, [0.01, 0.013, 0.0, 0.008, 0.2, 0.01, 0.9] * 3)


@pytest.mark.parametrize('more', [{}, {'relative': (6, 0, 3)}, {'target_size': 0}])
@pytest.mark.parametrize('name', HEADS)
def test_every_head_equals_torch(name, more):
    policy = trained(CoreSettings(units=8), HEADS[name], **more)
    compare(policy, PolicyRuntime(packed(policy), engine='numpy'), [0.01, 0.02] * 4)


def test_inputs_far_out_are_limited_as_in_torch():
    policy = trained(CoreSettings(units=8), HEADS['mixture'])
    compare(policy, PolicyRuntime(packed(policy), engine='numpy'), [0.01] * 5, scale=1e3)


@pytest.mark.parametrize('shift', [-300.0, 300.0])
def test_weights_without_a_common_exponent_still_sum_to_one(shift):
    policy = trained(CoreSettings(units=8), HEADS['mixture'])
    with torch.no_grad():
        policy.head.output.bias[:3] += shift        # a softmax does not see it
    compare(policy, PolicyRuntime(packed(policy), engine='numpy'), [0.01] * 3)


@pytest.mark.parametrize('core, head', [
    (CoreSettings(kind='ltc', units=8), HEADS['mixture']),
    (CoreSettings(kind='scan', units=8), HEADS['mixture']),
    (CoreSettings(units=19, wiring='ncp'), HEADS['mixture']),
    (CoreSettings(units=8), MixtureSettings(components=2, rank=1)),
    (CoreSettings(units=8), MixtureSettings(components=2, layers=2)),
    (CoreSettings(units=8), ImleSettings(samples=2)),
])
def test_what_is_not_written_out_is_left_to_the_exported_graph(core, head):
    checkpoint = packed(trained(core, head))
    assert NumpyStep.of(checkpoint) is None
    with pytest.raises(ValueError, match='engine: expected .onnx. or .auto.'):
        PolicyRuntime(checkpoint, engine='numpy')


def test_weights_that_do_not_fit_the_settings_are_refused():
    policy = trained(CoreSettings(units=8), HEADS['mixture'])
    other = trained(CoreSettings(units=8), HEADS['deterministic'])
    checkpoint = replace(packed(policy), weights=packed(other).weights)
    with pytest.raises(CheckpointError, match=r'head.output: expected .* \(93, 25\), .* came'):
        PolicyRuntime(checkpoint)


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValueError, match='engine: expected one of auto, numpy, onnx'):
        PolicyRuntime(packed(trained(CoreSettings(units=8), HEADS['mixture'])), engine='jax')


def test_answers_do_not_share_memory():
    runtime = PolicyRuntime(packed(trained(CoreSettings(units=8), HEADS['mixture'])))
    state, first = runtime.step(np.zeros(0), np.zeros(7), 0.01, runtime.initial_state())
    kept = [value.copy() for value in first] + [state.copy()]
    runtime.step(np.zeros(0), np.ones(7), 0.01, state)
    for value, before in zip([*first, state], kept, strict=True):
        np.testing.assert_array_equal(value, before)


def test_steps_leave_nothing_for_the_garbage_collector():
    runtime = PolicyRuntime(packed(trained(CoreSettings(units=8), HEADS['mixture'])))
    state, nothing, vector = runtime.initial_state(), np.zeros(0), np.zeros(7)

    def tracked():
        for _ in range(300):
            runtime.step(nothing, vector, 0.01, state)
        return len(gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        tracked()
        assert tracked() == tracked()
    finally:
        gc.enable()
