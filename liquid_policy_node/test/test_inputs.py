"""What the safety node reads is checked before anything uses it."""

from types import SimpleNamespace

import numpy as np
import pytest

from liquid_policy.conversion import MessageError
from liquid_policy.inputs import JointReader, planar_motion, read_proposal
from liquid_policy.limits import Limits
from liquid_policy.stamps import StampGuard

NAMES = ('a', 'b', 'suction')
MILLISECOND = 1_000_000


@pytest.fixture
def reader():
    """Reads joints a and b."""
    infinite = np.full(3, np.inf)
    joint = np.array([True, True, False])
    return JointReader(Limits(
        NAMES, ('rad/s', 'rad/s', '1'), joint, joint, np.array([-1.0, -1.0, -np.inf]),
        np.array([1.0, 1.0, np.inf]), np.array([-1.0, -1.0, 0.0]), np.ones(3), ~joint,
        np.full(3, 4.0), infinite))


def joint_state(names, position, velocity=(), effort=()):
    """A JointState as both rclpy and rosbags have it."""
    return SimpleNamespace(name=names, position=position, velocity=velocity, effort=effort)


def test_joints_are_found_by_name_in_any_order(reader):
    """Reordered and further joints change nothing; missing velocities are NaN."""
    first = reader.read(joint_state(['a', 'b'], [0.1, 0.2], [1.0, 2.0], [3.0, 4.0]))
    other = reader.read(joint_state(
        ['wheel', 'b', 'a'], [9.0, 0.2, 0.1], [9.0, 2.0, 1.0], [9.0, 4.0, 3.0]))
    for key in ('position', 'velocity', 'effort'):
        np.testing.assert_array_equal(getattr(first, key), getattr(other, key))
    np.testing.assert_array_equal(first.position, [0.1, 0.2, np.nan])
    assert np.isnan(reader.read(joint_state(['a', 'b'], [0.1, 0.2])).velocity).all()


@pytest.mark.parametrize(('message', 'expected'), [
    (joint_state(['a'], [0.1]), 'expected joints a, b; missing are b, came a'),
    (joint_state([], []), 'missing are a, b, came none'),
    (joint_state(['a', 'b'], [0.1]), 'expected 2 positions, one per joint, came 1'),
    (joint_state(['a', 'b'], [0.1, np.nan]), 'expected finite positions, came b = nan'),
    (joint_state(['a', 'b'], [np.inf, 0.1]), 'came a = inf')])
def test_unusable_joint_states_are_refused_by_name(reader, message, expected):
    """The error names what was expected and what came."""
    with pytest.raises(MessageError, match=expected):
        reader.read(message)
    reader.read(joint_state(['a', 'b'], [0.1, 0.2]))


def test_stamps_only_move_forward_and_not_ahead_of_the_clock():
    """A stamp from the future does not lock out the present."""
    guard, now = StampGuard('joint_states', 0.02), 10_000 * MILLISECOND
    assert guard.accept(now, now)
    assert not guard.accept(now, now)
    assert guard.accept(now, now, detail=7) and not guard.accept(now, now, detail=7)
    assert not guard.accept(now, now, detail=3)
    with pytest.raises(MessageError, match='went back by 0.005 s'):
        guard.accept(now - 5 * MILLISECOND, now)
    with pytest.raises(MessageError, match='3600.000 s in the future'):
        guard.accept(now + 3_600_000 * MILLISECOND, now)
    assert guard.accept(now + 10 * MILLISECOND, now + 10 * MILLISECOND)
    # The clock itself went back, as when a simulation starts again: stamps may follow it.
    assert guard.accept(50 * MILLISECOND, 50 * MILLISECOND)
    guard.forget()
    assert guard.accept(1, 50 * MILLISECOND)


def proposal(**changes):
    """A proposal for three actions, two steps of 20 ms, one component."""
    stamp = SimpleNamespace(sec=1, nanosec=0)
    values = dict(
        header=SimpleNamespace(stamp=stamp), image_stamp=SimpleNamespace(sec=0, nanosec=5),
        model_version='m', action_names=list(NAMES), dt=0.02, horizon=2, components=1,
        weights=[1.0], means=[1, 2, 3, 4, 5, 6], standard_deviations=[1] * 6,
        chosen=[1, 2, 3, 4, 5, 6])
    return SimpleNamespace(**(values | changes))


def test_the_step_of_a_proposal_is_chosen_by_time():
    """Step h holds from stamp + h dt; before the first and after the last the ends hold."""
    timed = read_proposal(proposal(), NAMES)
    second = 1_000 * MILLISECOND
    for age, first in ((-3, 1.0), (0, 1.0), (19, 1.0), (21, 4.0), (500, 4.0)):
        at = timed.at(second + age * MILLISECOND)
        assert at.action[0] == first
        assert at.means.shape == (1, 3) and at.means[0, 0] == first
    assert (timed.stamp, timed.image_stamp) == (second, 5)


@pytest.mark.parametrize(('changes', 'expected'), [
    ({'action_names': ['b', 'a', 'suction']}, 'expected actions a, b, suction, came b, a'),
    ({'chosen': [1, 2, 3]}, r'chosen: expected 6 numbers \(2, 3\), came 3'),
    ({'means': []}, 'means: expected 6'), ({'horizon': 0}, 'came 0, 1 and 0.02'),
    ({'dt': float('nan')}, 'dt above 0'), ({'dt': 0.0}, 'dt above 0'),
    ({'chosen': [1, 2, 3, 4, np.nan, 6]}, 'not finite: b')])
def test_a_malformed_proposal_is_refused(changes, expected):
    """The error names the field."""
    with pytest.raises(MessageError, match=expected):
        read_proposal(proposal(**changes), NAMES)


def odometry(x, y, yaw, speed, turn, stamp=1_000_000_000):
    """An Odometry as both rclpy and rosbags have it."""
    seconds, nanoseconds = divmod(stamp, 1_000_000_000)
    return SimpleNamespace(
        header=SimpleNamespace(stamp=SimpleNamespace(sec=seconds, nanosec=nanoseconds)),
        pose=SimpleNamespace(pose=SimpleNamespace(
            position=SimpleNamespace(x=x, y=y, z=0.0), orientation=SimpleNamespace(
                x=0.0, y=0.0, z=np.sin(yaw / 2), w=np.cos(yaw / 2)))),
        twist=SimpleNamespace(twist=SimpleNamespace(
            linear=SimpleNamespace(x=speed, y=0.0, z=0.0),
            angular=SimpleNamespace(x=0.0, y=0.0, z=turn))))


def test_a_base_is_carried_along_its_arc_to_another_time():
    """A quarter of a second would be too far: cut off at 0.1 s; backwards too."""
    motion = planar_motion(odometry(1.0, 2.0, 0.5, 0.6, 1.2))
    np.testing.assert_allclose(motion.pose, [1.0, 2.0, 0.5], atol=1e-12)
    radius, turned = 0.6 / 1.2, 0.5 + 1.2 * 0.05
    exact = [1.0 + radius * (np.sin(turned) - np.sin(0.5)),
             2.0 - radius * (np.cos(turned) - np.cos(0.5)), turned]
    # the chord is longer than the arc's by 1 / 24 of the angle's square: 5 um here
    np.testing.assert_allclose(motion.at(1_050 * MILLISECOND), exact, atol=1e-5)
    np.testing.assert_array_equal(motion.at(1_250 * MILLISECOND), motion.at(1_100 * MILLISECOND))
    assert motion.at(950 * MILLISECOND)[0] < 1.0


def test_odometry_that_is_not_finite_is_refused():
    """Its numbers are named."""
    with pytest.raises(MessageError, match='finite pose and twist.*nan'):
        planar_motion(odometry(0.0, 0.0, 0.0, np.nan, 0.0))
