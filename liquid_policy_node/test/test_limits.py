"""Limits come from URDF and interface file, the strictest wins, contradictions are refused."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from liquid_policy.barrier_box import FilterSettings, JointFeedback, safe_box
from liquid_policy.filter_parameters import filter_settings, read_filter_settings
from liquid_policy.interface import load_interface
from liquid_policy.limits import LimitsError, combine, joint_limits, load_limits, load_urdf

PACKAGE = Path(__file__).parent.parent
INTERFACE = PACKAGE / 'config' / 'manipulator.interface.yaml'
DESCRIPTION = PACKAGE / 'urdf' / 'manipulator.urdf.xacro'


@pytest.fixture(scope='module')
def interface():
    """The manipulator's interface."""
    return load_interface(INTERFACE)


@pytest.fixture(scope='module')
def joints():
    """The manipulator's joint limits."""
    pytest.importorskip('xacro')
    return joint_limits(load_urdf(DESCRIPTION))


def with_limit(interface, name, **changes):
    """The interface with one limit changed."""
    limits = dict(interface.limits)
    limits[name] = replace(limits[name], **changes)
    return replace(interface, limits=limits)


def test_the_strictest_limit_wins(interface, joints):
    """Speed from whichever file is stricter, positions from the URDF, gripper from its range."""
    limits = combine(interface, joints)
    elbow = limits.names.index('elbow_joint')
    assert limits.high[elbow] == min(
        joints['elbow_joint'].velocity, interface.limits['elbow_joint'].velocity)
    assert (limits.lower[elbow], limits.upper[elbow]) == (
        joints['elbow_joint'].lower, joints['elbow_joint'].upper)
    slower = combine(with_limit(interface, 'elbow_joint', velocity=0.5), joints)
    assert slower.high[elbow] == 0.5 and slower.low[elbow] == -0.5
    faster = combine(with_limit(interface, 'elbow_joint', velocity=50.0), joints)
    assert faster.high[elbow] == joints['elbow_joint'].velocity
    suction = limits.names.index('suction')
    assert (limits.low[suction], limits.high[suction]) == (0.0, 1.0)
    assert not limits.moving[suction] and limits.moving.sum() == 8 and limits.joint.sum() == 6


def test_the_joint_may_be_as_fast_as_the_urdf_says_overshoot_included(interface, joints):
    """What it is told is bounded by the file; both count when its control overshoots."""
    limits = combine(interface, joints)
    elbow = limits.names.index('elbow_joint')
    assert (limits.high[elbow], limits.speed[elbow]) == (2.0, 2.5)
    unknown = np.full(len(limits.names), np.nan)
    still = JointFeedback(np.where(limits.joint, -0.5, np.nan), unknown, unknown)
    for overshoot, highest in ((0.2, 2.0), (0.5, 2.5 / 1.5)):
        box = safe_box(
            limits, FilterSettings(overshoot=overshoot), still, limits.high,
            np.zeros((1, len(limits.names))), 0.01)
        assert box.high[elbow] == pytest.approx(max(highest, 2.0 - 0.01 * 10.0))


def test_the_node_and_the_simulation_without_nodes_have_the_same_settings(tmp_path):
    """A parameter file gives what the safety node makes of the same parameters."""
    settings = read_filter_settings(PACKAGE / 'config' / 'manipulator.yaml')
    assert (settings.delay, settings.overshoot, settings.chance) == (0.03, 0.2, 0.5)
    assert settings == filter_settings({'actuation_delay': 0.03, 'overshoot': 0.2, 'niceness': 3})
    wrong = tmp_path / 'wrong.yaml'
    wrong.write_text('safety: {ros__parameters: {chance: 2.0}}')
    with pytest.raises(LimitsError, match='wrong.yaml.*chance'):
        read_filter_settings(wrong)
    with pytest.raises(LimitsError, match='nowhere.yaml'):
        read_filter_settings(tmp_path / 'nowhere.yaml')


def test_soft_limits_and_ros2_control_commands_count():
    """All three places of a URDF are read."""
    urdf = """<robot name="r"><joint name="j" type="revolute">
      <limit lower="-2" upper="2" velocity="3" effort="10"/>
      <safety_controller soft_lower_limit="-1.5" soft_upper_limit="1.8" k_velocity="1"/></joint>
      <joint name="w" type="continuous"/><joint name="f" type="fixed"/>
      <ros2_control name="r" type="system"><joint name="j"><command_interface name="velocity">
      <param name="min">-1.0</param><param name="max">2.5</param></command_interface></joint>
      </ros2_control></robot>"""
    limits = joint_limits(urdf)
    assert set(limits) == {'j', 'w'}
    joint = limits['j']
    assert (joint.lower, joint.upper, joint.velocity) == (-1.5, 1.8, 3.0)
    assert (joint.command_low, joint.command_high, joint.effort) == (-1.0, 2.5, 10.0)
    assert limits['w'].upper == math.inf


@pytest.mark.parametrize(('urdf', 'message'), [
    ('<robot', 'not XML'), ('<model/>', 'expected <robot>, came <model>'),
    ('<robot><joint name="j" type="revolute"/></robot>', 'j: a revolute joint needs <limit>'),
    ('<robot><joint name="j" type="revolute"><limit lower="x" upper="1" velocity="1"/></joint>'
     '</robot>', "j: lower: expected a number, came 'x'")])
def test_a_bad_urdf_is_refused_with_its_place(urdf, message):
    """The message names the joint and the text."""
    with pytest.raises(LimitsError, match=message):
        joint_limits(urdf)


def test_contradictions_are_refused_with_names_and_numbers(interface, joints):
    """Whatever leaves no command, no way to stand still or no room to stop."""
    cases = [
        (with_limit(interface, 'base_v', range=(0.1, 0.5)), joints,
         'base_v: commands from 0.1 to 0.5 m/s do not allow standing still'),
        (with_limit(interface, 'elbow_joint', acceleration=0.001), joints,
         'elbow_joint: at 2 rad/s and 0.001 rad/s2 it needs 4e.03'),
        (with_limit(interface, 'base_v', range=(0.7, 0.9)), joints,
         'base_v: no command satisfies all limits: lowest 0.7, highest 0.6 m/s'),
        (interface, {**joints, 'elbow_joint': replace(joints['elbow_joint'], lower=3.0)},
         'elbow_joint: position limits contradict each other: lower 3, upper 2.8'),
        (interface, {name: joints[name] for name in joints if name != 'elbow_joint'},
         'elbow_joint: the interface measures and commands this joint, but the URDF has only'),
    ]
    for one, other, message in cases:
        with pytest.raises(LimitsError, match=message):
            combine(one, other)


@pytest.mark.parametrize('key', ['velocity', 'acceleration'])
def test_a_missing_limit_is_refused(interface, key):
    """The interface file itself refuses it."""
    with pytest.raises(ValueError, match=f'limits.base_w.{key}'):
        with_limit(interface, 'base_w', **{key: None})


def test_files_are_read_and_missing_ones_named(interface):
    """From path to limits; a wrong path is in the message."""
    pytest.importorskip('xacro')
    limits = load_limits(interface, DESCRIPTION)
    assert limits.names == interface.action_names
    assert np.isfinite(limits.effort[:6]).all()
    with pytest.raises(LimitsError, match='no file nowhere.urdf'):
        load_limits(interface, 'nowhere.urdf')
