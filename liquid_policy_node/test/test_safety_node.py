"""The safety node on a running graph: whatever comes, the robot stops in time and recovers."""

import time

import numpy as np
import pytest

pytest.importorskip('rclpy')

from bench_robot import HOME, BenchRobot, Graph, bench_parameters, until
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from liquid_policy.barrier import State
from liquid_policy_msgs.msg import SafetyStatus
from liquid_policy_node.safety_node import SafetyNode

SLOW = np.array([0.3, 0.2, -0.3, 0.1, 0.1, 0.1, 0.8, 0.1, 0.1])
TIMEOUT = 0.05  # s, the node's default
BRAKING = 0.15  # s, from the slow action's 0.3 rad/s at 10 rad/s2 and 0.1 m/s at 1 m/s2
SLACK = 0.35  # s, a shared test machine may stall for that long; if longer, see `punctual`


@pytest.fixture(scope='module')
def running(tmp_path_factory):
    """One robot and one safety node for the whole file; limits of single joints only."""
    import rclpy
    rclpy.init()
    robot, node = BenchRobot(camera=False), SafetyNode(
        parameter_overrides=bench_parameters(tmp_path_factory.mktemp('bench')))
    graph = Graph(robot, node)
    assert until(lambda: node.active)
    yield robot, node, graph
    graph.close()
    rclpy.try_shutdown()


@pytest.fixture
def moving(running):
    """The robot at home, following slow proposals."""
    robot, node, graph = running
    robot.alter.clear()
    robot.position = HOME.copy()
    robot.action = SLOW
    if not node.active:
        change(graph, Transition.TRANSITION_ACTIVATE)
    assert until(lambda: state(robot) == SafetyStatus.PASSING), robot.statuses[-1:]
    assert until(lambda: np.allclose(robot.velocity, SLOW[:6], atol=1e-6))
    yield robot, node, graph
    robot.alter.clear()


def state(robot):
    """The newest state the node has reported."""
    return robot.statuses[-1][1].state if robot.statuses else None


def reasons(robot):
    """The newest reasons, as one text."""
    return '; '.join(robot.statuses[-1][1].reasons)


def punctual(node, missed):
    """Whether the machine let the node run on time since it had missed so many deadlines."""
    return node._missed <= missed + 2


def change(graph, transition):
    """A transition as a lifecycle manager asks for it."""
    request = ChangeState.Request()
    request.transition.id = transition
    return graph.call(ChangeState, 'safety/change_state', request).success


def stops(robot, began):
    """Wait until the arm and the base stand; the time that took [s]."""
    assert until(lambda: not robot.velocity.any() and not robot.base.any()), reasons(robot)
    return time.monotonic() - began


def test_proposals_reach_the_robot_in_its_own_command_types(moving):
    """Arm, gripper and base get their parts, unchanged; the status says so."""
    robot, node, _ = moving
    assert until(lambda: np.allclose(robot.base, SLOW[7:], atol=1e-6))
    assert robot.suction == pytest.approx(0.8)
    assert until(lambda: state(robot) == SafetyStatus.PASSING)
    status = next(status for _, status in reversed(robot.statuses)
                  if status.state == SafetyStatus.PASSING)
    assert not status.reasons
    assert status.issued == status.proposed and status.model_version == 'bench'
    assert list(status.action_names)[6:] == ['suction', 'base_v', 'base_w']


def test_commands_come_without_proposals_too(moving):
    """The timer is the node's own: silence is answered 100 times a second."""
    robot, node, _ = moving
    robot.action = None
    stops(robot, time.monotonic())
    before, missed = len(robot.commands), node._missed
    time.sleep(1.0)
    # 100 on a machine that is not shared
    assert len(robot.commands) - before > 60 or not punctual(node, missed)


def silence_proposals(robot):
    robot.action = None


def silence_joints(robot):
    robot.alter['joint_states'] = lambda message: None


def joints(**changes):
    def alter(message):
        for name, value in changes.items():
            setattr(message, name, value)
        return message
    return lambda robot: robot.alter.__setitem__('joint_states', alter)


def missing_joint(robot):
    def alter(message):
        keep = [index for index, name in enumerate(message.name) if name != 'elbow_joint']
        for key in ('position', 'velocity', 'effort'):
            setattr(message, key, [getattr(message, key)[index] for index in keep])
        message.name = [message.name[index] for index in keep]
        return message
    robot.alter['joint_states'] = alter


def nan_joint(robot):
    def alter(message):
        message.position[2] = float('nan')
        return message
    robot.alter['joint_states'] = alter


def shift(topic, seconds):
    def cause(robot):
        def alter(message):
            message.header.stamp = robot.stamp(seconds)
            return message
        robot.alter[topic] = alter
    return cause


def proposal(**changes):
    def cause(robot):
        def alter(message):
            for name, value in changes.items():
                setattr(message, name, value)
            return message
        robot.alter['action_distribution'] = alter
    return cause


@pytest.mark.parametrize(('cause', 'words'), [
    (silence_proposals, 'the proposal is'),
    (silence_joints, 'joint_states are'),
    (missing_joint, 'joint_states are'),
    (nan_joint, 'joint_states are'),
    (joints(position=[0.0]), 'joint_states are'),
    (shift('joint_states', -1.0), 'joint_states are'),
    (shift('joint_states', 5.0), 'joint_states are'),
    (shift('action_distribution', -0.2), 'the proposal is'),
    (shift('action_distribution', 60.0), 'the proposal is'),
    (proposal(chosen=[float('nan')] * 18), 'the chosen sequence is not finite'),
    (proposal(chosen=[1.0] * 5), 'chosen: expected 18 numbers'),
    (proposal(action_names=['one', 'two']), 'expected actions shoulder_pan_joint'),
    (proposal(horizon=0), 'expected horizon'),
], ids=['no proposals', 'no joint states', 'missing joint', 'NaN joint', 'too few positions',
        'joint stamps back', 'joint stamps ahead', 'proposal stamps back',
        'proposal stamps ahead', 'NaN proposal', 'short proposal', 'other actions', 'no horizon'])
def test_bad_input_stops_the_robot_in_time_and_good_input_moves_it_again(moving, cause, words):
    """Braked within limits to rest, gripper kept; then as before."""
    robot, node, _ = moving
    seen, missed = len(robot.commands), node._missed
    began = time.monotonic()
    cause(robot)
    # a stall of the machine is another reason to brake, and may come first
    assert until(lambda: state(robot) == SafetyStatus.BRAKING and words in reasons(robot)), \
        reasons(robot)
    assert stops(robot, began) < TIMEOUT + BRAKING + SLACK or not punctual(node, missed)
    steps = np.diff([command for _, command in robot.commands[seen:]], axis=0)
    # Acceleration times the longest period, if no command was lost on a machine that stalls.
    assert np.abs(steps).max() <= 10.0 * 0.025 + 1e-9 or not punctual(node, missed)
    assert robot.suction == pytest.approx(0.8)
    robot.alter.clear()
    robot.action = SLOW
    assert until(lambda: state(robot) == SafetyStatus.PASSING), reasons(robot)
    assert until(lambda: np.allclose(robot.velocity, SLOW[:6], atol=1e-6))


def test_reordered_and_further_joints_do_not_matter(moving):
    """Joints are found by name."""
    robot, _, _ = moving
    count = len(robot.statuses)

    def alter(message):
        order = [7, 2, 0, 1, 5, 4, 3, 6]
        message.name = [message.name[index] for index in order] + ['lift_joint']
        for key in ('position', 'velocity', 'effort'):
            values = getattr(message, key)
            setattr(message, key, [values[index] for index in order] + [7.0])
        return message
    robot.alter['joint_states'] = alter
    robot.position = HOME.copy()
    time.sleep(0.3)
    states = {status.state for _, status in robot.statuses[count:]}
    assert SafetyStatus.PASSING in states
    assert not any('position/' in name for _, status in robot.statuses[count:]
                   for name in status.active_constraints)


def test_other_joints_on_the_same_topic_do_not_hide_the_arm(moving):
    """Some robots publish wheels and arm in messages of their own, with the same stamp."""
    robot, node, _ = moving

    def wheels_first(message):
        wheels = JointState(header=message.header, name=['left_wheel_joint'], position=[0.0])
        robot._outputs['joint_states'].publish(wheels)
        return message
    robot.alter['joint_states'] = wheels_first
    time.sleep(0.1)
    count, missed = len(robot.statuses), node._missed
    time.sleep(0.4)
    states = [status.state for _, status in robot.statuses[count:]]
    assert states.count(SafetyStatus.PASSING) > 0.7 * len(states) or not punctual(node, missed)


def test_a_proposal_beyond_the_limits_is_limited_and_counted(moving):
    """Twice the speed limit is asked for; the limit is what the robot gets."""
    robot, node, _ = moving
    before = node.diagnostics.total('velocity/wrist_2_joint')
    robot.action = np.where(np.arange(9) == 4, 6.0, SLOW)
    assert until(lambda: robot.velocity[4] == 3.0)
    assert until(lambda: node.diagnostics.total('velocity/wrist_2_joint') > before)
    status = next(status for _, status in reversed(robot.statuses)
                  if 'velocity/wrist_2_joint' in status.active_constraints)
    assert status.state == SafetyStatus.LIMITING
    assert list(status.amounts)[list(status.active_constraints).index('velocity/wrist_2_joint')] \
        == pytest.approx(3.0)


def test_a_position_limit_is_never_passed(moving):
    """Driven at the shoulder's upper limit of 0.6 rad, the arm stops before it."""
    robot, node, _ = moving
    missed = node._missed
    robot.action = np.where(np.arange(9) == 1, 2.0, 0.0)
    assert until(lambda: robot.position[1] > 0.4)
    peak = until(lambda: not robot.velocity[1] and robot.position[1])
    # A stall longer than the longest period voids the guarantee; this robot has no timeout.
    assert 0.5 < peak < 0.6 or node._missed > missed


def test_stop_is_latched_and_release_is_refused_while_moving(moving):
    """Stop wins over every proposal; release needs a robot at rest and fresh joint states."""
    robot, node, graph = moving
    began, missed = time.monotonic(), node._missed
    assert graph.call(Trigger, 'safety/stop').success
    assert stops(robot, began) < BRAKING + SLACK + 0.2 or not punctual(node, missed)
    assert until(lambda: state(robot) == SafetyStatus.STOPPED)
    assert 'release' in reasons(robot)
    time.sleep(0.2)
    assert not robot.velocity.any()
    silence_joints(robot)
    time.sleep(0.15)
    refused = graph.call(Trigger, 'safety/release')
    assert not refused.success and 'stale' in refused.message

    def turning(message):
        message.velocity[0] = 0.5
        return message
    robot.alter['joint_states'] = turning
    time.sleep(0.1)
    refused = graph.call(Trigger, 'safety/release')
    assert not refused.success and 'still moving' in refused.message
    assert 'shoulder_pan_joint' in refused.message
    robot.alter.clear()
    assert until(lambda: graph.call(Trigger, 'safety/release').success)
    assert until(lambda: state(robot) == SafetyStatus.PASSING)


def test_a_deactivated_node_leaves_the_robot_at_rest_and_falls_silent(moving):
    """The last commands are a braking ramp down to zero."""
    robot, node, graph = moving
    assert change(graph, Transition.TRANSITION_DEACTIVATE)
    assert until(lambda: state(robot) == SafetyStatus.INACTIVE)
    assert until(lambda: not robot.velocity.any() and not robot.base.any())
    count = len(robot.commands)
    time.sleep(0.2)
    assert len(robot.commands) == count
    assert change(graph, Transition.TRANSITION_ACTIVATE)
    assert until(lambda: state(robot) == SafetyStatus.PASSING)


def test_the_next_cycle_is_due_from_where_the_last_began(running):
    """What an answer takes does not push the next one back."""
    node = SafetyNode(namespace='alone', parameter_overrides=[
        Parameter('autostart', value=False)])
    try:
        node.trigger_configure()
        node.trigger_activate()
        node._cycle.start(-10 ** 10)        # no joint states are waited for
        issue = node._issue

        def slowly(*arguments):
            issue(*arguments)
            time.sleep(0.006)

        node._issue = slowly
        node.on_timer()
        assert node._timer.timer_period_ns <= 4_000_000
        time.sleep(0.012)
        node._wait(0.01)
        assert node._timer.timer_period_ns == 100_000
        # Simulated time that went back does not put the next cycle off.
        node._began = node._tick_now() + 10 ** 12
        node._wait(0.01)
        assert node._timer.timer_period_ns == 10_000_000
    finally:
        node.destroy_node()


def test_a_cycle_that_fails_at_once_brakes_once_in_a_period(running):
    """However long ago the last one began, the commands do not come as fast as they can."""
    node = SafetyNode(namespace='alone', parameter_overrides=[
        Parameter('autostart', value=False)])
    try:
        node.trigger_configure()
        node.trigger_activate()
        issued = []
        node._issue = issued.append

        def fail(now):
            raise RuntimeError('the clock')

        node._check_clock = fail
        node._began = 0
        for number in range(1, 4):
            node.on_timer()
            assert len(issued) == number and issued[-1].state == State.BRAKING
            assert node._began > 0      # that is what the next cycle is due from
    finally:
        node.destroy_node()
