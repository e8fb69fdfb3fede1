"""The interface file's safety section, and limits in ros2_control's format."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from liquid_policy.barrier import JointFeedback, State
from liquid_policy.barrier_load import load_filter, spread
from liquid_policy.interface import InterfaceError, differences, load_interface, parse_interface
from liquid_policy.limits import LimitsError, load_limits, read_joint_limits
from liquid_policy.safety_spec import ObstacleSpec, SafetySpec

PACKAGE = Path(__file__).parent.parent
FILE = PACKAGE / 'config' / 'manipulator.interface.yaml'
SECTION = """
safety:
  tool: tool_tip
  payload: [0.0, 1.5]
  torque: true
  tool_speed: 1.0
  points:
    tool: {frame: tool_tip, radius: 0.02}
    elbow: {frame: forearm_link}
  obstacles:
    floor: {shape: plane, frame: world, normal: [0.0, 0.0, 2.0], offset: 0.1}
    mast: {shape: capsule, start: [0.2, -0.2, 0.3], end: [0.2, -0.2, 0.9], radius: 0.03,
           points: [elbow]}
  separation: {reaction: 0.2}
  power: 200.0
  soft: [power]
"""


@pytest.fixture(scope='module')
def text():
    """The manipulator's file with another safety section."""
    return replace(load_interface(FILE), safety=None).to_yaml() + SECTION


def test_the_section_is_read_and_written(text):
    """Back and forth to an equal interface; a plane's normal has length 1."""
    interface = parse_interface(text)
    safety = interface.safety
    assert safety.obstacles['floor'].normal == (0.0, 0.0, 1.0)
    assert safety.obstacles['mast'].points == ('elbow',) and safety.points['tool'].radius == 0.02
    assert safety.separation.reaction == 0.2 and safety.separation.human_speed == 1.6
    assert safety.needs_odometry
    assert parse_interface(interface.to_yaml()) == interface


def test_a_running_policy_does_not_care_about_it(text):
    """A checkpoint made without the section still runs on a robot that has it."""
    plain, guarded = load_interface(FILE), parse_interface(text)
    assert differences(plain, guarded) and not differences(plain, guarded, running=True)


def test_without_odometry_a_driving_robot_is_braked(text):
    """Obstacles fixed in the world cannot be kept off from an unknown place."""
    safety = load_filter(parse_interface(text), PACKAGE / 'urdf' / 'manipulator.urdf.xacro')
    joints = safety.limits.joint
    home = np.where(joints, np.resize([0.0, -1.2, 1.6, -1.9, -1.5, 0.0], len(joints)), np.nan)
    unknown = JointFeedback(home, np.where(joints, 0.0, np.nan), np.full(len(joints), np.nan))
    result = safety.filter(np.full(len(joints), 0.05), unknown, 0.01)
    assert result.state is State.BRAKING and not result.command[safety.limits.moving].any()
    assert 'no odometry' in '; '.join(result.reasons)
    known = replace(unknown, base=np.zeros(3))
    assert 'no odometry' not in '; '.join(
        safety.filter(np.full(len(joints), 0.05), known, 0.01).reasons)


@pytest.mark.parametrize(('old', 'new', 'message'), [
    ('torque: true', 'torque: 1', 'safety.torque: expected true or false'),
    ('torque: true', 'torqe: true', "safety.torqe: expected one of the fields .*'torqe'"),
    ('[0.0, 1.5]', '[1.5, 0.0]', 'safety.payload: expected .*lightest, heaviest'),
    ('radius: 0.02}', 'radius: -0.02}', 'safety.points.tool.radius: expected a number of 0'),
    ('shape: plane', 'shape: cone', "safety.obstacles.floor.shape: expected one of .*'cone'"),
    ('offset: 0.1}', 'offset: 0.1, radius: 1.0}',
     'safety.obstacles.floor.radius: expected nothing for a plane'),
    ('points: [elbow]', 'points: [knee]', "safety.obstacles.mast.points: .*'knee'"),
    ('{reaction: 0.2}', '{reaction: soon}', 'safety.separation.reaction: expected a number'),
    ('  tool: tool_tip\n', '', 'safety.tool: expected a frame of the URDF, because of'),
    ('soft: [power]', 'soft: [torque]', "safety.soft: expected 'power' or 'tool_speed'"),
    ('soft: [power]', 'soft: [tool_speed]', "safety.soft: expected no 'tool_speed' beside"),
])
def test_what_cannot_be_meant_is_refused_with_its_place(text, old, new, message):
    """Unknown and impossible fields."""
    assert old in text
    with pytest.raises(InterfaceError, match=message):
        parse_interface(text.replace(old, new))


def test_obstacles_need_points():
    """Nothing would be kept away."""
    with pytest.raises(ValueError, match='points: expected at least one point'):
        SafetySpec(obstacles={'ball': ObstacleSpec('ball', 'sphere', center=(0, 0, 0), radius=1)})


JOINT_LIMITS = """
controller_manager:
  ros__parameters:
    joint_limits:
      elbow_joint:
        has_position_limits: true
        min_position: -2.0
        max_position: 2.5
        has_velocity_limits: true
        max_velocity: 1.5
        has_acceleration_limits: true
        max_acceleration: 8.0
        has_deceleration_limits: true
        max_deceleration: 6.0
        has_jerk_limits: true
        max_jerk: 400.0
        has_effort_limits: true
        max_effort: 90.0
        has_soft_limits: true
        soft_lower_limit: -1.8
        soft_upper_limit: 2.6
      wrist_1_joint:
        has_velocity_limits: false
        max_velocity: 0.1
"""


def test_joint_limits_yaml_joins_the_others_and_the_strictest_wins(tmp_path):
    """All of it is stricter here, but for the soft upper limit and what is switched off."""
    pytest.importorskip('xacro')
    path = tmp_path / 'joint_limits.yaml'
    path.write_text(JOINT_LIMITS)
    interface = load_interface(FILE)
    description = PACKAGE / 'urdf' / 'manipulator.urdf.xacro'
    limits, plain = load_limits(interface, description, path), load_limits(interface, description)
    elbow, wrist = limits.names.index('elbow_joint'), limits.names.index('wrist_1_joint')
    assert (limits.lower[elbow], limits.upper[elbow]) == (-1.8, 2.5)
    assert (limits.low[elbow], limits.high[elbow]) == (-1.5, 1.5)
    assert limits.acceleration[elbow] == 8.0 and limits.deceleration[elbow] == 6.0
    assert limits.jerk[elbow] == 400.0 and limits.effort[elbow] == 90.0
    assert limits.high[wrist] == plain.high[wrist]
    assert np.isinf(plain.jerk).all() and (plain.deceleration == plain.acceleration).all()


@pytest.mark.parametrize(('old', 'new', 'message'), [
    ('max_velocity: 1.5', 'max_speed: 1.5', 'joint_limits.elbow_joint: unknown max_speed'),
    ('        max_velocity: 1.5\n', '', 'has_velocity_limits is true, so expected max_velocity'),
    ('max_velocity: 1.5', 'max_velocity: fast', "max_velocity: expected a number, came 'fast'"),
    ('elbow_joint:', 'knee_joint:', 'joint knee_joint is not in the URDF'),
    ('max_position: 2.5', 'max_position: -2.4', 'elbow_joint: position limits contradict'),
    ('joint_limits:', 'limits:', 'expected a mapping joint_limits'),
    ('max_deceleration: 6.0', 'max_deceleration: 0.0', 'elbow_joint: braking at 0'),
])
def test_a_bad_joint_limits_yaml_is_refused_with_its_place(tmp_path, old, new, message):
    """Named joint, key and number."""
    pytest.importorskip('xacro')
    path = tmp_path / 'joint_limits.yaml'
    assert old in JOINT_LIMITS
    path.write_text(JOINT_LIMITS.replace(old, new))
    with pytest.raises(LimitsError, match=message):
        load_limits(load_interface(FILE), PACKAGE / 'urdf' / 'manipulator.urdf.xacro', path)


def test_an_unreadable_file_is_named():
    """A wrong path is in the message."""
    with pytest.raises(LimitsError, match='nowhere.yaml: expected a readable YAML file'):
        read_joint_limits('nowhere.yaml')


def test_interface_limits_of_deceleration_effort_and_weight_count():
    """The interface file may say them too."""
    pytest.importorskip('xacro')
    interface = load_interface(FILE)
    limit = replace(
        interface.limits['elbow_joint'], deceleration=7.0, effort=50.0, jerk=300.0, weight=4.0)
    changed = replace(interface, limits={**interface.limits, 'elbow_joint': limit})
    limits = load_limits(changed, PACKAGE / 'urdf' / 'manipulator.urdf.xacro')
    elbow = limits.names.index('elbow_joint')
    assert (limits.deceleration[elbow], limits.effort[elbow]) == (7.0, 50.0)
    assert (limits.jerk[elbow], limits.weight[elbow]) == (300.0, 4.0)


def test_the_example_robot_is_kept_off_its_table():
    """Bent towards the table at full speed, from its files alone: stopped before it."""
    for name in ('xacro', 'pinocchio', 'daqp'):
        pytest.importorskip(name)
    interface = load_interface(PACKAGE / 'config' / 'six_axis_arm.interface.yaml')
    safety = load_filter(interface, PACKAGE / 'urdf' / 'six_axis_arm.urdf.xacro')
    guard, position, seen = safety.guards[0], np.array([0.0, 0.6, 1.2, 0.0, 0.6, 0.0]), set()
    command = np.zeros(6)
    for _ in range(150):
        result = safety.filter(
            np.array([0.0, 2.0, 0.0, 0.0, 0.0, 0.0]),
            JointFeedback(position, command, np.full(6, np.nan)), 0.01)
        command = result.command
        position = position + 0.01 * command
        seen.update(result.active)
    points, _ = guard.model.points(
        guard.model.configuration(position[None]), np.zeros((1, guard.model.nv)))
    height = points[0, 0, 2] - 0.04
    assert 0.015 < height < 0.15 and 'distance/table/tool' in seen


def test_points_are_spread_over_the_whole_cube():
    points = spread(200, 7)
    assert points.shape == (200, 7)
    for coordinate in points.T:
        counts = np.histogram(coordinate, bins=10, range=(0.0, 1.0))[0]
        assert counts.sum() == 200 and counts.min() >= 15 and counts.max() <= 25
    assert np.abs(np.corrcoef(points.T) - np.eye(7)).max() < 0.15
