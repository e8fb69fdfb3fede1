"""Cores outside torch: traced, as ONNX, and 19 neurons from training to the robot's runtime."""

import io
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('onnx')

from liquid_policy.checkpoint import load_checkpoint  # noqa: E402
from liquid_policy.cores import build_core  # noqa: E402
from liquid_policy.export import to_checkpoint, to_policy  # noqa: E402
from liquid_policy.interface import load_interface  # noqa: E402
from liquid_policy.policy import Policy  # noqa: E402
from liquid_policy.runtime import PolicyRuntime  # noqa: E402
from liquid_policy.settings import (  # noqa: E402
    CORES,
    CoreSettings,
    EncoderSettings,
    PolicySettings,
)

INTERFACE = Path(__file__).resolve().parents[2] / 'config' / 'manipulator.interface.yaml'
EVERY = {
    **{kind: {'kind': kind} for kind in CORES},
    'cfc-no_gate': {'form': 'no_gate'},
    'cfc-pure': {'form': 'pure'},
    'cfc-mixed': {'mixed_memory': True},
    'cfc-ncp': {'wiring': 'ncp', 'units': 19},
    'cfc-mixed-ncp': {'wiring': 'ncp', 'units': 19, 'mixed_memory': True},
    'ltc-ncp': {'kind': 'ltc', 'wiring': 'ncp', 'units': 19},
    'ode-ncp': {'kind': 'ode', 'wiring': 'ncp', 'units': 19},
    'ode-euler': {'kind': 'ode', 'solver': 'euler', 'substeps': 4},
    'ode-dopri5': {'kind': 'ode', 'solver': 'dopri5'},
}


class Step(torch.nn.Module):
    """A core's step as a module of its own."""

    def __init__(self, core):
        super().__init__()
        self.core = core

    def forward(self, x, elapsed, state):
        return self.core.step(x, elapsed, state)


@pytest.fixture(params=EVERY)
def step(request):
    if request.param == 'ode-dopri5':
        pytest.importorskip('torchdiffeq')
    torch.manual_seed(0)
    return Step(build_core(CoreSettings(**({'units': 8} | EVERY[request.param])), 5)).eval()


def _run(step, other, tolerance):
    """Compare 20 steps with carried states and elapsed times of 1 to 60 ms."""
    generator = torch.Generator().manual_seed(1)
    state, again = step.core.initial_state(), step.core.initial_state().numpy()
    with torch.no_grad():
        for _ in range(20):
            x = torch.randn(1, 5, generator=generator)
            elapsed = 0.001 + 0.059 * torch.rand(1, 1, generator=generator)
            state = step(x, elapsed, state)
            again = other(x.numpy(), elapsed.numpy(), again)
            np.testing.assert_allclose(again, state.numpy(), atol=tolerance)


def _example(step):
    return torch.zeros(1, 5), torch.full((1, 1), 0.01), step.core.initial_state()


def test_step_as_onnx_equals_torch(step):
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.onnx.export(step, _example(step), buffer, input_names=['x', 'elapsed', 'state'],
                          opset_version=17, dynamo=False)
    session = onnxruntime.InferenceSession(buffer.getvalue(),
                                           providers=['CPUExecutionProvider'])
    # The exported step of Dormand-Prince is the classic method with eight substeps.
    _run(step, lambda x, elapsed, state: session.run(
        None, {'x': x, 'elapsed': elapsed, 'state': state})[0],
        1e-3 if getattr(step.core, 'solver', '') == 'dopri5' else 1e-5)


def test_traced_step_equals_torch(step):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        traced = torch.jit.trace(step, _example(step))
    _run(step, lambda *values: traced(*map(torch.from_numpy, values)).numpy(),
         1e-3 if getattr(step.core, 'solver', '') == 'dopri5' else 1e-5)


@pytest.mark.parametrize('kind', ['cfc', 'ltc', 'ode'])
def test_circuit_of_19_neurons_from_training_to_the_runtime(kind, tmp_path):
    torch.manual_seed(0)
    policy = Policy(PolicySettings(encoder=EncoderSettings(width=0.1),
                                   core=CoreSettings(kind=kind, wiring='ncp', units=19)))
    assert policy.core.units == 6 and policy.core.state_size == 19
    masks = {name: value.clone() for name, value in policy.core.named_buffers()}
    assert masks and all(bool((mask == 0).any()) for mask in masks.values())
    optimizer = torch.optim.Adam([*policy.core.parameters(), *policy.head.parameters()], 3e-3)
    xs, elapsed = torch.randn(8, 20, 140), torch.full((8, 20, 1), 0.01)
    # What to do follows the mean of the first input so far: it has to be remembered.
    goal = xs[..., :1].cumsum(1) / torch.arange(1.0, 21.0)[:, None]
    losses = []
    for _ in range(25):
        outputs, _ = policy.core.sequence(xs, elapsed, policy.core.initial_state(8))
        mixture, _, _ = policy.heads(outputs.flatten(0, 1), xs.flatten(0, 1))
        chunk = goal.flatten(0, 1)[:, None].expand(-1, 16, 9)
        loss = policy.head.loss(mixture, chunk)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    path = tmp_path / 'circuit.safetensors'
    checkpoint = to_checkpoint(policy.eval(), load_interface(INTERFACE), 'circuit')
    checkpoint.save(path)
    again = to_policy(checkpoint)
    for name, mask in again.core.named_buffers():
        assert torch.equal(mask, masks[name])
    runtime, rng = PolicyRuntime(checkpoint), np.random.default_rng(0)
    state, other = runtime.initial_state(), policy.initial_state()
    for _ in range(20):
        features = rng.normal(size=128).astype(np.float32)
        vector = rng.normal(size=12).astype(np.float32)
        tick = float(rng.uniform(0.005, 0.05))
        state, answer = runtime.step(features, vector, tick, state)
        with torch.no_grad():
            other, right = again.step(torch.from_numpy(np.concatenate((features, vector)))[None],
                                      torch.tensor([[tick]]), other)
        np.testing.assert_allclose(state, other[0].numpy(), atol=1e-5)
        np.testing.assert_allclose(answer.means, right.mixture.means[0].numpy(), atol=1e-5)


def test_shipped_checkpoint_is_the_same_in_torch_as_in_its_own_export():
    """Its weights and its export were written by an older version of the cores."""
    path = Path(__file__).resolve().parents[1] / 'checkpoints' / 'manipulator.safetensors'
    checkpoint = load_checkpoint(path)
    policy, runtime = to_policy(checkpoint), PolicyRuntime(checkpoint)
    rng = np.random.default_rng(0)
    state, other = runtime.initial_state(), policy.initial_state()
    for _ in range(20):
        features = rng.normal(size=128).astype(np.float32)
        vector = rng.normal(size=12).astype(np.float32)
        tick = float(rng.uniform(0.005, 0.05))
        state, answer = runtime.step(features, vector, tick, state)
        with torch.no_grad():
            other, right = policy.step(torch.from_numpy(np.concatenate((features, vector)))[None],
                                       torch.tensor([[tick]]), other)
        # Inputs far from what it was trained on drive trained weights hard, and 20 steps carry
        # float32's rounding along.
        np.testing.assert_allclose(state, other[0].numpy(), atol=1e-4)
        np.testing.assert_allclose(answer.weights, right.mixture.weights[0].numpy(), atol=1e-3)
