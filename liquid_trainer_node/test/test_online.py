"""Live windows hold what the bag reader would find; steps on them lower the loss."""

from pathlib import Path

import numpy as np
import pytest

from liquid_policy.interface import load_interface
from liquid_trainer.online import OnlineFitter, Window, WindowCollector

SHARED = Path(__file__).resolve().parents[2] / 'liquid_policy_node'
INTERFACE = load_interface(SHARED / 'config' / 'manipulator.interface.yaml')
TICK = 10_000_000  # ns


def feed(collector, ticks, start=1_000_000_000, demonstrate=lambda tick: True):
    """Give a collector a stream in which every number is its own tick's number."""
    windows = []
    for tick in range(ticks):
        stamp = start + tick * TICK
        if tick % 3 == 0:
            collector.observe('features', stamp, np.full(128, tick, np.float32))
        collector.observe('imu', stamp, np.full(6, tick))
        collector.observe('joint_positions', stamp, np.full(6, tick))
        if demonstrate(tick):
            for name, size in (('arm', 6), ('gripper', 1), ('base', 2)):
                collector.demonstrate(name, stamp + TICK // 5, np.full(size, tick))
        window = collector.advance()
        if window is not None:
            windows.append(window)
    return windows


def test_a_window_holds_each_ticks_inputs_and_the_action_that_followed():
    """Joints without latency, IMU and features as late as the interface says."""
    imu = round(INTERFACE.observations['imu'].latency * 100)
    image = round(INTERFACE.features.latency * 100)
    windows = feed(WindowCollector(INTERFACE, length=0.5), 400)
    assert len(windows) >= 6
    for window in windows:
        assert window.vectors.shape == (50, 12) and window.actions.shape == (50, 9)
        tick = window.vectors[:, 6]
        np.testing.assert_array_equal(np.diff(tick), 1.0)
        np.testing.assert_array_equal(window.vectors[:, 0], tick - imu)
        np.testing.assert_array_equal(window.features[:, 0], (tick - image) // 3 * 3)
        np.testing.assert_array_equal(window.actions, np.repeat(tick[:, None], 9, axis=1))
        assert np.isnan(window.targets).all()


def test_windows_without_demonstration_or_with_a_hole_are_left_out():
    """Nobody demonstrates between ticks 100 and 200; time goes back once."""
    collector = WindowCollector(INTERFACE, length=0.5)
    windows = feed(collector, 400, demonstrate=lambda tick: not 100 <= tick < 200)
    for window in windows:
        ticks = window.vectors[:, 6]
        assert not ((ticks >= 100) & (ticks < 190)).any()
    assert windows
    again = feed(collector, 120, start=1_000)
    assert again and again[0].vectors[0, 6] < 30


def test_chunks_are_the_actions_ahead():
    """At 100 ticks a second and 20 ms steps, every second action; none beyond the end."""
    window = feed(WindowCollector(INTERFACE, length=0.5), 100)[0]
    chunk, inside = window.chunks(horizon=4, dt=0.02)
    first = window.actions[:, 0]
    np.testing.assert_array_equal(chunk[10, :, 0], first[[10, 12, 14, 16]])
    assert inside[10].all() and inside[-1].tolist() == [True, False, False, False]
    assert window.elapsed() == pytest.approx(0.01)


@pytest.fixture(scope='module')
def checkpoint():
    """An untrained policy."""
    pytest.importorskip('torch')
    from untrained_policy import untrained_checkpoint
    return untrained_checkpoint()


def make_window(seed=0):
    """A window in which the action depends on the joints."""
    generator = np.random.default_rng(seed)
    vectors = generator.normal(0.0, 1.0, (60, 12)).astype(np.float32)
    actions = 0.1 * np.tile(vectors[:, 6:7], (1, 9))
    return Window(
        np.arange(60) * TICK, generator.normal(0.0, 1.0, (60, 128)).astype(np.float32), vectors,
        actions, np.full((60, 4), np.nan, np.float32))


def test_steps_lower_the_loss_and_leave_encoder_and_checkpoint_alone(checkpoint):
    """The copy learns; what it was copied from does not change."""
    before = {name: value.copy() for name, value in checkpoint.weights.items()}
    fitter = OnlineFitter(checkpoint, rate=3e-3)
    fitter.add(make_window())
    for _ in range(40):
        fitter.step()
    assert fitter.steps == 40 and fitter.loss < fitter.loss_start - 0.05
    for name, value in before.items():
        np.testing.assert_array_equal(value, checkpoint.weights[name])
    for name, value in fitter._policy.encoder.state_dict().items():
        if f'encoder.{name}' in before:
            np.testing.assert_array_equal(value.numpy(), before[f'encoder.{name}'])


def test_a_window_that_would_break_the_weights_is_refused(checkpoint):
    """Infinite numbers: an error, and the weights as before."""
    fitter = OnlineFitter(checkpoint)
    window = make_window()
    window.actions[0] = np.inf
    fitter.add(window)
    before = [p.detach().clone() for p in fitter._trained]
    with pytest.raises(FloatingPointError):
        fitter.step()
    assert all((a == b).all() for a, b in zip(before, fitter._trained, strict=True))
