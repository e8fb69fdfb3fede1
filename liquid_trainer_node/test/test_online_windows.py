"""Live windows hold what the bag reader would find, and know what may be learned from them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from liquid_policy.interface import load_interface
from liquid_trainer.online import Window, WindowCollector
from liquid_trainer.online.hindsight import fill_targets
from liquid_trainer.online.split import TimeSplit, Use

SHARED = Path(__file__).resolve().parents[2] / 'liquid_policy_node'
INTERFACE = load_interface(SHARED / 'config' / 'manipulator.interface.yaml')
TICK = 10_000_000  # ns


def feed(collector, ticks, start=1_000_000_000, demonstrate=lambda tick: True, see=None,
         propose=None):
    """Give a collector a stream in which every number is its own tick's number."""
    windows = []
    for tick in range(ticks):
        stamp = start + tick * TICK
        if tick % 3 == 0:
            collector.observe('features', stamp, np.full(128, tick, np.float32))
        collector.observe('imu', stamp, np.full(6, tick))
        if see is not None and see(tick):
            collector.observe('part', stamp, np.full(4, tick))
        collector.observe('joint_positions', stamp, np.full(6, tick))
        if demonstrate(tick):
            for name, size in (('arm', 6), ('gripper', 1), ('base', 2)):
                collector.demonstrate(name, stamp + TICK // 5, np.full(size, tick))
        if propose is not None:
            collector.propose(stamp, propose(tick), np.full(9, tick + 1))
            collector.believe(stamp, np.full(4, tick + 2))
        window = collector.advance()
        if window is not None:
            windows.append(window)
    return windows


def test_a_window_holds_each_ticks_inputs_and_the_action_that_followed():
    """Joints without latency, IMU and features as late as the interface says."""
    imu = round(INTERFACE.observations['imu'].latency * 100)
    image = round(INTERFACE.features.latency * 100)
    windows = feed(WindowCollector(INTERFACE, 0.5, 0.5), 400)
    assert len(windows) >= 6
    for window in windows:
        assert window.vectors.shape == (50, 12) and window.actions.shape == (50, 9)
        tick = window.vectors[:, 6]
        np.testing.assert_array_equal(np.diff(tick), 1.0)
        np.testing.assert_array_equal(window.vectors[:, 0], tick - imu)
        np.testing.assert_array_equal(window.features[:, 0], (tick - image) // 3 * 3)
        np.testing.assert_array_equal(window.actions, np.repeat(tick[:, None], 9, axis=1))
        assert np.isnan(window.targets).all() and np.isnan(window.proposed).all()


def test_windows_slide_by_their_stride():
    """Two seconds long, half a second apart."""
    windows = feed(WindowCollector(INTERFACE), 500)
    begins = [window.vectors[0, 6] for window in windows]
    assert len(windows) >= 5 and set(np.diff(begins)) == {50.0}
    assert all(len(window.ticks) == 200 for window in windows)


def test_where_nobody_demonstrates_actions_are_unknown_and_empty_windows_are_left_out():
    """Between ticks 100 and 250 there is nothing to learn from."""
    windows = feed(WindowCollector(INTERFACE, 0.5, 0.5), 400,
                   demonstrate=lambda tick: not 100 <= tick < 250)
    ticks = [window.vectors[:, 6] for window in windows]
    assert not any((tick >= 100).all() and (tick < 245).all() for tick in ticks)
    for window, tick in zip(windows, ticks, strict=True):
        unknown = np.isnan(window.actions).any(1)
        np.testing.assert_array_equal(unknown, (tick >= 100) & (tick < 246))
    seen = feed(WindowCollector(INTERFACE, 0.5, 0.5), 300, demonstrate=lambda tick: False,
                see=lambda tick: True)
    assert len(seen) >= 4 and np.isfinite(seen[0].targets).all()


def test_time_that_goes_back_and_holes_begin_anew():
    """After a simulation reset the next window has only new ticks."""
    collector = WindowCollector(INTERFACE, 0.5, 0.5)
    assert feed(collector, 120, start=900_000_000_000)
    again = feed(collector, 120)
    assert again and again[0].vectors[0, 6] < 30
    feed(collector, 20, start=3_000_000_000)
    later = feed(collector, 120, start=9_000_000_000)
    assert (np.diff(later[0].ticks) == TICK).all()


def test_what_was_proposed_stands_beside_what_was_shown():
    """The version is named only when one policy proposed all through the window."""
    windows = feed(WindowCollector(INTERFACE, 0.5, 0.5), 400,
                   propose=lambda tick: 'old' if tick < 170 else 'new')
    versions = [window.version for window in windows]
    assert versions[0] == 'old' and versions[-1] == 'new' and '' in versions
    window = windows[0]
    np.testing.assert_array_equal(window.proposed, window.actions + 1)
    np.testing.assert_array_equal(window.estimated[:, 0], window.vectors[:, 6] + 2)
    assert window.corrected(np.ones(9), 0.5).all() and not window.corrected(np.ones(9), 1.5).any()


@pytest.mark.parametrize('name, size', [('imu', 6), ('joint_positions', 6)])
def test_numbers_that_are_not_finite_are_refused(name, size):
    """A burst of NaN costs the ticks it lasted, no more."""
    collector = WindowCollector(INTERFACE, 0.5, 0.5)
    with pytest.raises(ValueError, match='expected finite'):
        collector.observe(name, 1, np.full(size, np.nan))
    with pytest.raises(ValueError, match='expected finite'):
        collector.demonstrate('arm', 1, np.full(6, np.inf))
    assert feed(collector, 120)


def test_chunks_are_the_actions_ahead():
    """At 100 ticks a second and 20 ms steps, every second action; none beyond the end."""
    window = feed(WindowCollector(INTERFACE, 0.5, 0.5), 100)[0]
    chunk, known = window.chunks(horizon=4, dt=0.02)
    first = window.actions[:, 0]
    np.testing.assert_array_equal(chunk[10, :, 0], first[[10, 12, 14, 16]])
    assert known[10].all() and known[-1].tolist() == [True, False, False, False]
    assert window.elapsed() == pytest.approx(0.01)
    window.actions[14] = np.nan
    chunk, known = window.chunks(horizon=4, dt=0.02)
    assert known[10].tolist() == [True, True, False, True] and np.isfinite(chunk).all()


def test_a_stored_window_comes_back_equal_and_a_damaged_one_is_refused():
    """Every field, bit for bit; never a pickle."""
    window = replace(feed(WindowCollector(INTERFACE, 0.5, 0.5), 100)[0], episode='one')
    data = window.to_bytes()
    again = Window.from_bytes(data)
    for name in ('ticks', 'features', 'vectors', 'actions', 'targets', 'proposed'):
        np.testing.assert_array_equal(getattr(again, name), getattr(window, name))
    assert again.episode == 'one'
    for broken in (data[:len(data) // 2], b'', b'\x80\x04.'):
        with pytest.raises(ValueError, match='expected a stored window'):
            Window.from_bytes(broken)


def test_a_held_out_tick_is_in_no_window_to_learn_from():
    """Sliding windows overlap, and yet the two kinds share no tick."""
    split = TimeSplit(period=10.0, held_out=2.6)
    kinds = {use: set() for use in Use}
    for begin in range(0, 6000, 50):
        ticks = np.arange(begin, begin + 200) * TICK
        kinds[split.use(ticks)].update(ticks.tolist())
    assert kinds[Use.HELD_OUT] and not kinds[Use.HELD_OUT] & kinds[Use.TRAIN]
    assert len(kinds[Use.TRAIN]) > 2 * len(kinds[Use.HELD_OUT])
    with pytest.raises(ValueError, match='below the period'):
        TimeSplit(period=2.0, held_out=3.0)


def line_window(known, noise=0.0, speed=0.4):
    """A part that moves evenly and is measured at some ticks."""
    times = np.arange(200) * 0.01
    targets = np.full((200, 2), np.nan, np.float32)
    random = np.random.default_rng(0)
    targets[known, 0] = (speed * times + random.normal(0, 1, 200) * noise)[known]
    targets[known, 1] = speed
    return Window(np.arange(200) * TICK, np.zeros((200, 1), np.float32),
                  np.zeros((200, 1), np.float32), np.full((200, 1), np.nan, np.float32),
                  targets), speed * times


def test_what_is_seen_late_labels_what_came_before():
    """Measured over 0.3 s at the end, the line says where the part was for the second before."""
    window, truth = line_window(slice(170, 200))
    filled = fill_targets(window, np.array([0.1, 0.1]))
    np.testing.assert_allclose(filled.targets[70:, 0], truth[70:], atol=1e-5)
    assert np.isnan(filled.targets[:69]).all()
    assert np.isnan(window.targets[100]).all()     # the window itself is left alone
    noisy, _ = line_window(slice(170, 200), noise=0.05)
    assert np.isnan(fill_targets(noisy, np.array([0.1, 0.1])).targets[100, 0])
