"""Samples on the control clock: the rule, its outcomes, and that robot and bag reader agree."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liquid_policy.alignment import Aligner, FramePairer, Outcome, align_next
from liquid_policy.interface import FeatureSpec, Interface, load_interface

MS = 1_000_000
SECOND = 1000 * MS
MANIPULATOR = load_interface(Path(__file__).parents[1] / 'config' / 'manipulator.interface.yaml')
# The answers below rest on these.
MANIPULATOR = replace(
    MANIPULATOR, features=replace(MANIPULATOR.features, latency=0.02, max_age=0.15),
    observations={name: replace(spec, latency=latency, max_age=max_age)
                  for (name, spec), (latency, max_age) in zip(
                      MANIPULATOR.observations.items(), ((0.01, 0.1), (0.0, 0.05)),
                      strict=True)})


def _interface(**changes) -> Interface:
    """Make a small robot: clock at 100 Hz, one scalar source `imu` with the given changes."""
    imu = replace(MANIPULATOR.observations['imu'], fields=('angular_velocity.x',),
                  units=('rad/s',), names=(), **changes)
    joints = replace(MANIPULATOR.observations['joint_positions'],
                     fields=('position.elbow_joint',), units=('rad',), names=())
    return replace(MANIPULATOR, observations={'imu': imu, 'joint_positions': joints}, targets={})


def _tick(aligner: Aligner, stamp: int, value: float = 0.0):
    assert aligner.push('joint_positions', stamp, [value]).kept
    (tick,) = aligner.ticks_ready()
    return aligner.at(tick)


def test_hold_takes_the_newest_sample_that_is_sure_to_have_come():
    aligner = Aligner(_interface(latency=0.01, max_age=0.1))
    for stamp, value in ((980, 1.0), (990, 2.0), (995, 3.0)):
        aligner.push('imu', stamp * MS, [value])
    known = _tick(aligner, 1000 * MS, 7.0)
    assert known.vector.tolist() == [2.0, 7.0]
    assert known.vector.dtype == np.float32
    assert known.ages['imu'] == pytest.approx(0.01) and known.ages['joint_positions'] == 0
    assert known.newest == 1000 * MS


def test_interpolation_is_linear_between_neighbours_that_have_come():
    aligner = Aligner(_interface(align='interpolate', latency=0.01, max_age=0.1, rate=100.0))
    for stamp in (970, 978, 988, 996):
        aligner.push('imu', stamp * MS, [stamp / 10])
    # Asked for at 1000 - 10 (latency) - 10 (one period) = 980, between 978 and 988.
    assert _tick(aligner, 1000 * MS).vector[0] == np.float32(98.0)


@pytest.mark.parametrize('align', ['hold', 'interpolate'])
def test_the_rule_agrees_with_its_definition(align):
    rng = np.random.default_rng(0)
    aligner = Aligner(_interface(align=align, latency=0.005, max_age=0.1, rate=100.0))
    stamps = np.unique(rng.integers(0, 2000 * MS, 300))
    values = rng.normal(size=len(stamps))
    sent = 0
    for tick in range(0, 2000 * MS, 10 * MS):
        while sent < len(stamps) and stamps[sent] <= tick:
            aligner.push('imu', int(stamps[sent]), [values[sent]])
            sent += 1
        known = _tick(aligner, tick)
        come = stamps[stamps <= tick - 4.5 * MS]   # 0.5 ms of jitter
        if not len(come):
            assert np.isnan(known.vector[0])
            continue
        when = tick - 15 * MS
        expected = values[len(come) - 1]
        if align == 'interpolate' and come[0] <= when < come[-1]:
            expected = np.interp(when, come, values[:len(come)])
        assert known.vector[0] == pytest.approx(expected, rel=1e-6)  # float32


def test_microseconds_of_jitter_do_not_cost_a_tick():
    """Sources of one schedule, whose stamps are a little off: the newest always counts."""
    rng = np.random.default_rng(0)
    aligner = Aligner(_interface(latency=0.01, max_age=0.1))
    for index in range(200):
        stamp = index * 10 * MS
        aligner.push('imu', stamp + int(rng.integers(-20_000, 20_000)), [index])
        if index > 1:
            known = _tick(aligner, stamp + int(rng.integers(-20_000, 20_000)))
            assert known.vector[0] == index - 1
    assert not aligner.counts[Outcome.LATE]


def test_what_comes_before_its_tick_can_be_asked_for_ahead():
    """Asking ahead gives what the tick will give, and leaves the tick to be answered."""
    aligner = Aligner(_interface(latency=0.01, max_age=0.1))
    _tick(aligner, 1000 * MS, 1.0)
    assert aligner.push('imu', 1000 * MS, [5.0]).outcome is Outcome.ACCEPTED
    ahead = aligner.ahead(1010 * MS)
    assert ahead.vector.tolist() == [5.0, 1.0] and ahead.newest == 1000 * MS
    # In time for the tick still to come, although that was asked for.
    assert aligner.push('imu', 1000 * MS + 1, [6.0]).outcome is Outcome.ACCEPTED
    assert _tick(aligner, 1010 * MS, 2.0).vector.tolist() == [6.0, 2.0]


def test_ahead_of_the_clock_its_samples_go_on_as_before():
    """What moves evenly is known in advance; never further than one period."""
    aligner = Aligner(_interface(latency=0.01, max_age=0.1))
    for index in range(3):
        _tick(aligner, 1000 * MS + index * 10 * MS, 0.5 * index)
        aligner.push('imu', 1000 * MS + index * 10 * MS, [index])
    for later, expected in ((0, 1.0), (4, 1.2), (10, 1.5), (30, 1.5)):
        assert aligner.ahead((1020 + later) * MS).vector[1] == pytest.approx(expected)
    assert aligner.ahead(1030 * MS).vector[0] == 2.0       # held: has come, no clock
    assert aligner.at(1030 * MS).vector[1] == 1.0          # a tick only knows what was measured
    _tick(aligner, 1050 * MS, 4.0)                         # after a gap nothing is known of speed
    assert aligner.ahead(1060 * MS).vector[1] == 4.0


def test_interpolation_holds_without_later_neighbour():
    aligner = Aligner(_interface(align='interpolate', latency=0.01, max_age=0.1, rate=100.0))
    aligner.push('imu', 960 * MS, [1.0])
    aligner.push('imu', 970 * MS, [2.0])
    assert _tick(aligner, 1000 * MS).vector[0] == 2.0


def test_old_samples_are_stale_and_missing_ones_nan():
    aligner = Aligner(MANIPULATOR)
    known = None
    aligner.push('imu', 900 * MS, np.arange(6))
    aligner.push('features', 950 * MS, 'image 0')
    for stamp in range(1000, 1110, 10):
        aligner.push('joint_positions', stamp * MS, np.ones(6))
        for tick in aligner.ticks_ready():
            known = aligner.at(tick)
            stale = tick - 900 * MS > 100 * MS
            assert ('imu' in known.stale) == stale
            assert ('features' in known.stale) == (tick - 950 * MS > 150 * MS)
            assert known.features == 'image 0' and known.image_stamp == 950 * MS
    assert known.vector[:6].tolist() == [0, 1, 2, 3, 4, 5]  # the last known, marked stale
    assert np.isnan(known.targets).all() and known.ages['part'] == float('inf')


def test_nothing_at_all_is_stale():
    aligner = Aligner(MANIPULATOR)
    aligner.push('joint_positions', SECOND, np.zeros(6))
    known = aligner.at(SECOND)
    assert known.stale == ('imu', 'features')
    assert np.isnan(known.vector[:6]).all() and known.features is None


def test_absent_targets_do_not_make_a_tick_stale():
    aligner = Aligner(MANIPULATOR)
    for stamp in range(0, 200, 10):
        aligner.push('imu', stamp * MS, np.zeros(6))
        aligner.push('features', stamp * MS, None)
        if stamp < 100:
            aligner.push('part', stamp * MS, np.full(4, 5.0))
        aligner.push('joint_positions', stamp * MS, np.zeros(6))
    assert aligner.at(90 * MS).targets.tolist() == [5.0] * 4
    late = aligner.at(190 * MS)
    assert np.isnan(late.targets).all() and late.stale == ()


@pytest.mark.parametrize('rate', [100.0, 125.0, 200.0, 500.0, 1000.0])
def test_a_fast_clock_is_thinned_to_the_control_rate(rate):
    source = replace(_interface().observations['joint_positions'], rate=rate)
    interface = _interface()
    interface = replace(interface,
                        observations={**interface.observations, 'joint_positions': source})
    aligner = Aligner(interface)
    ticks = []
    for number in range(round(10 * rate)):
        aligner.push('joint_positions', round(number * SECOND / rate), [0.0])
        ticks += aligner.ticks_ready()
    assert abs(len(ticks) - 1000) <= 1  # 10 s at 100 Hz
    assert np.diff(ticks).max() <= 10 * MS + SECOND / rate


def test_a_jittering_clock_loses_no_tick():
    rng = np.random.default_rng(0)
    aligner = Aligner(_interface())
    ticks = []
    for number in range(1000):
        aligner.push('joint_positions', number * 10 * MS + int(rng.integers(0, 4 * MS)), [0.0])
        ticks += aligner.ticks_ready()
    assert len(ticks) == 1000


def test_repeated_and_backward_stamps_are_ignored_by_name():
    aligner = Aligner(_interface())
    aligner.push('imu', 1000 * MS, [1.0])
    repeated = aligner.push('imu', 1000 * MS, [2.0])
    assert repeated.outcome is Outcome.REPEATED and not repeated.kept
    back = aligner.push('imu', 900 * MS, [3.0])
    assert back.outcome is Outcome.BACKWARDS and '0.100 s earlier' in back.reason
    assert _tick(aligner, 1010 * MS).vector[0] == 1.0
    assert aligner.counts[Outcome.BACKWARDS] == 1


def test_the_clock_going_back_restarts_time():
    aligner = Aligner(_interface())
    aligner.push('imu', 100 * SECOND, [1.0])
    _tick(aligner, 100 * SECOND + 10 * MS)
    verdict = aligner.push('joint_positions', 2 * SECOND, [5.0])
    assert verdict.outcome is Outcome.RESET and verdict.kept and 'went back' in verdict.reason
    (tick,) = aligner.ticks_ready()
    assert tick == 2 * SECOND
    known = aligner.at(tick)
    assert known.stale == ('imu', 'features') and known.vector[1] == 5.0
    assert aligner.push('imu', 2 * SECOND + 5 * MS, [2.0]).outcome is Outcome.ACCEPTED
    assert _tick(aligner, 2 * SECOND + 20 * MS).vector[0] == 2.0


def test_one_source_going_back_does_not_restart_time():
    aligner = Aligner(_interface(max_age=1.0))
    aligner.push('imu', 100 * SECOND, [1.0])
    _tick(aligner, 100 * SECOND + 10 * MS)
    verdict = aligner.push('imu', 0, [9.0])
    assert verdict.outcome is Outcome.BACKWARDS and 'did not' in verdict.reason
    assert _tick(aligner, 100 * SECOND + 20 * MS).vector[0] == 1.0


def test_stamps_from_the_future_are_ignored_and_block_nothing():
    aligner = Aligner(_interface())
    _tick(aligner, SECOND)
    future = aligner.push('imu', 5 * SECOND, [9.0])
    assert future.outcome is Outcome.FUTURE and not future.kept
    assert '4.000 s ahead' in future.reason and 'synchronise' in future.reason
    assert aligner.push('imu', SECOND + 1 * MS, [1.0]).kept
    assert _tick(aligner, SECOND + 20 * MS).vector[0] == 1.0


def test_future_before_the_clock_has_started_blocks_nothing():
    aligner = Aligner(_interface())
    assert aligner.push('imu', 500 * SECOND, [9.0]).kept
    _tick(aligner, SECOND)
    assert aligner.push('imu', SECOND, [1.0]).kept
    assert _tick(aligner, SECOND + 20 * MS).vector[0] == 1.0


def test_the_clock_is_judged_by_the_nodes_clock():
    aligner = Aligner(_interface())
    assert aligner.push('joint_positions', SECOND, [0.0], now=SECOND).kept
    verdict = aligner.push('joint_positions', 100 * SECOND, [0.0], now=SECOND + 10 * MS)
    assert verdict.outcome is Outcome.FUTURE and "node's clock" in verdict.reason
    assert aligner.push('joint_positions', SECOND + 10 * MS, [0.0], now=SECOND + 10 * MS).kept


def test_a_clock_that_jumps_ahead_is_reported_and_followed():
    aligner = Aligner(_interface())
    _tick(aligner, SECOND)
    verdict = aligner.push('joint_positions', 60 * SECOND, [0.0])
    assert verdict.outcome is Outcome.JUMPED and verdict.kept and '59.000 s' in verdict.reason
    assert aligner.push('imu', 60 * SECOND, [1.0]).kept
    assert aligner.at(60 * SECOND).stale == ('imu', 'features')  # within its latency


def test_a_sample_later_than_its_latency_allows_is_reported():
    aligner = Aligner(_interface(latency=0.01, max_age=0.1))
    aligner.push('imu', 980 * MS, [1.0])
    _tick(aligner, 1000 * MS)
    verdict = aligner.push('imu', 985 * MS, [2.0])
    assert verdict.outcome is Outcome.LATE and verdict.kept and '0.005 s later' in verdict.reason
    assert _tick(aligner, 1010 * MS).vector[0] == 2.0


def test_wrong_shapes_and_names_are_refused():
    aligner = Aligner(MANIPULATOR)
    with pytest.raises(ValueError, match=r'imu: expected shape \(6,\), came \(5,\)'):
        aligner.push('imu', 0, np.zeros(5))
    with pytest.raises(KeyError):
        aligner.push('tail', 0, np.zeros(5))
    with pytest.raises(ValueError, match='settle'):
        Aligner(MANIPULATOR, settle=-1.0)
    with pytest.raises(ValueError, match='reset_gap'):
        Aligner(MANIPULATOR, reset_gap=float('nan'))


def test_memory_is_bounded_even_if_nobody_asks():
    aligner = Aligner(MANIPULATOR)
    for number in range(20_000):
        aligner.push('imu', number * 10 * MS, np.zeros(6))
        aligner.push('joint_positions', number * 10 * MS, np.zeros(6))
    kept = [len(source._stamps) for source in aligner._sources.values()]
    assert max(kept) < 500
    assert aligner.dropped_ticks > 19_000
    assert len(aligner.ticks_ready()) < 500


def test_memory_is_bounded_while_the_clock_is_silent():
    aligner = Aligner(MANIPULATOR)
    aligner.push('joint_positions', 0, np.zeros(6))
    for number in range(50_000):
        aligner.push('imu', number * 10_000, np.zeros(6))  # 100 kHz, all within `future`
    assert len(aligner._sources['imu']._stamps) <= 20_000


@st.composite
def _streams(draw):
    """Jittered streams: for each source samples of (arrival, stamp, value)."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    alignment = draw(st.sampled_from(['hold', 'interpolate']))
    latency = draw(st.sampled_from([0.005, 0.01, 0.03]))
    interface = _interface(align=alignment, latency=latency, max_age=latency + 0.06)
    count = 150
    samples = []
    for name, period, delay in (('joint_positions', 10 * MS, 8 * MS),
                                ('imu', 10 * MS, round(latency * SECOND)),
                                ('features', 33 * MS, 20 * MS)):
        stamps = np.arange(count * 10 * MS // period) * period + SECOND
        stamps += rng.integers(0, period // 2, len(stamps))
        # Within the latency, less the twentieth of a period by which stamps may jitter.
        arrivals = stamps + rng.integers(0, delay - MS // 2, len(stamps))
        arrivals = np.maximum.accumulate(arrivals)  # one topic keeps its order
        lost = rng.random(len(stamps)) < draw(st.sampled_from([0.0, 0.1, 0.5]))
        if name == 'joint_positions':
            lost[:] = rng.random(len(stamps)) < 0.05
        # A duplicate now and then, and a stamp that goes back.
        for index in np.flatnonzero(~lost):
            value = rng.normal(size=1) if name != 'features' else int(index)
            samples.append((int(arrivals[index]), name, int(stamps[index]), value))
            if rng.random() < 0.05:
                samples.append((int(arrivals[index]), name, int(stamps[index]) - 2 * MS, value))
    return interface, samples, rng


def _same(first, second) -> bool:
    return (first.tick == second.tick and first.vector.tobytes() == second.vector.tobytes()
            and first.targets.tobytes() == second.targets.tobytes()
            and first.features == second.features and first.image_stamp == second.image_stamp
            and first.ages == second.ages and first.stale == second.stale
            and first.newest == second.newest)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(_streams())
def test_robot_and_bag_reader_see_the_same_bits(streams):
    interface, samples, rng = streams
    live, seen = Aligner(interface), []
    for _, name, stamp, value in sorted(samples, key=lambda sample: sample[0]):
        live.push(name, stamp, value)
        seen += [live.at(tick) for tick in live.ticks_ready()]
    assert live.counts[Outcome.LATE] == 0
    # The recorder heard the topics with other delays between them, each in its own order.
    offline, read = Aligner(interface, settle=0.5), []
    delays = {name: int(rng.integers(0, 200 * MS)) for name in ('imu', 'features')}
    for _, name, stamp, value in sorted(
            samples, key=lambda sample: sample[0] + delays.get(sample[1], 0)):
        offline.push(name, stamp, value)
        read += [offline.at(tick) for tick in offline.ticks_ready()]
    read += [offline.at(tick) for tick in offline.finish()]
    assert len(seen) == len(read) > 100
    assert all(_same(a, b) for a, b in zip(seen, read, strict=True))


def test_next_gives_each_tick_the_action_that_followed():
    ticks = np.array([0, 10, 20, 30, 40]) * MS
    stamps = np.array([1, 10, 28]) * MS
    found = align_next(ticks, stamps, np.array([[1.0], [2.0], [3.0]]), 0.01)
    assert found.dtype == np.float32
    assert np.array_equal(found[:, 0], [1, 2, 3, np.nan, np.nan], equal_nan=True)


def test_next_agrees_with_the_definition():
    rng = np.random.default_rng(0)
    stamps = np.sort(rng.integers(0, SECOND, 50))
    values = rng.normal(size=(50, 3))
    ticks = np.sort(rng.integers(0, SECOND, 200))
    found = align_next(ticks, stamps, values, 0.02)
    for row, tick in enumerate(ticks):
        later = np.flatnonzero(stamps >= tick)
        if len(later) and stamps[later[0]] - tick <= 20 * MS:
            assert np.array_equal(found[row], values[later[0]].astype(np.float32))
        else:
            assert np.isnan(found[row]).all()


def test_next_without_any_action_is_nan():
    empty = align_next(np.arange(3), np.empty(0, np.int64), np.empty((0, 2)), 1.0)
    assert empty.shape == (3, 2) and np.isnan(empty).all()


PAIRED = FeatureSpec('features', 128, 30.0, 0.15, images=('color', 'depth'), pairing=0.005)


def test_images_of_one_moment_are_paired_whichever_comes_first():
    pairer = FramePairer(PAIRED)
    assert pairer.push('color', 0, 'c0') is None
    assert pairer.push('depth', 0, 'd0') == (0, {'color': 'c0', 'depth': 'd0'})
    assert pairer.push('depth', 33 * MS, 'd1') is None
    assert pairer.push('color', 36 * MS, 'c1') == (36 * MS, {'color': 'c1', 'depth': 'd1'})
    assert pairer.push('thermal', 36 * MS, 't') is None


def test_images_too_far_apart_are_not_paired():
    pairer = FramePairer(PAIRED)
    pairer.push('color', 0, 'c0')
    assert pairer.push('depth', 6 * MS, 'd0') is None
    assert pairer.push('color', 10 * MS, 'c1') == (10 * MS, {'color': 'c1', 'depth': 'd0'})
    assert pairer.dropped == 1


def test_a_lost_partner_costs_one_moment_only():
    pairer = FramePairer(replace(PAIRED, pairing=0.0))
    made = []
    for number in range(100):
        for name in ('color', 'depth'):
            if not (number % 10 == 5 and name == 'depth'):
                made.append(pairer.push(name, number * 33 * MS, number))
    made = [moment for moment in made if moment is not None]
    assert len(made) == 90 and pairer.dropped == 10
    assert all(images['color'] == images['depth'] for _, images in made)


def test_a_partner_that_never_comes_does_not_fill_memory():
    pairer = FramePairer(PAIRED)
    for number in range(1000):
        assert pairer.push('color', number * 33 * MS, number) is None
    assert len(pairer._waiting['color']) == pairer.most
    assert pairer.dropped == 1000 - pairer.most


def test_pairing_starts_again_when_time_does():
    pairer = FramePairer(PAIRED)
    pairer.push('color', 100 * SECOND, 'old')
    pairer.push('depth', 100 * SECOND, 'old')
    assert pairer.push('color', SECOND, 'new') is None
    assert pairer.push('depth', SECOND, 'new') == (SECOND, {'color': 'new', 'depth': 'new'})


def test_a_single_image_passes_straight_through():
    pairer = FramePairer(replace(PAIRED, images=('wrist',)))
    assert pairer.push('wrist', 5, 'w') == (5, {'wrist': 'w'})
    assert pairer.push('wrist', 6, 'x') == (6, {'wrist': 'x'})
