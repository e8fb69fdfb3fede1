"""A robot that is told torques, over real topics: MuJoCo integrates what the node lets through."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('mujoco')
pytest.importorskip('pinocchio')
pytest.importorskip('xacro')

from bench_robot import Graph, until
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.parameter import Parameter
from torque_bench import TorqueBench

from liquid_policy.effort_load import load_safety
from liquid_policy.interface import load_interface
from liquid_policy_msgs.msg import SafetyStatus
from liquid_policy_node.safety_node import SafetyNode
from liquid_sim.bare_arm import BareArm, BareArmSettings

PACKAGE = Path(__file__).resolve().parent.parent
INTERFACE = PACKAGE / 'config' / 'six_axis_torque.interface.yaml'
ARM = PACKAGE / 'urdf' / 'six_axis_arm.urdf.xacro'
BENT = np.array([0.3, -0.6, 1.1, 0.2, -0.5, 0.1])
PERIOD = 0.005


@pytest.fixture
def running():
    """The arm with a load nobody knows, and a safety node that finds out from the interface."""
    import rclpy
    rclpy.init()
    limits = load_safety(load_interface(INTERFACE), ARM).limits
    arm = BareArm(ARM, limits.names, BareArmSettings(
        'effort', PERIOD, payload=0.3, tool='link_6', armature=tuple(limits.armature)))
    arm.reset(BENT)
    robot = TorqueBench(arm, limits)
    node = SafetyNode(parameter_overrides=[
        Parameter('robot', value=str(INTERFACE)), Parameter('description', value=str(ARM)),
        Parameter('use_sim_time', value=True),
        Parameter('period', value=PERIOD), Parameter('longest_period', value=0.01),
        Parameter('actuation_delay', value=PERIOD)])
    graphs = Graph(node), Graph(robot)   # the arm goes on while the node is in a transition
    assert until(lambda: node.active)
    yield robot, node, graphs[0]
    robot.running = False
    for graph in graphs:
        graph.close()
    rclpy.try_shutdown()


def states(robot, since=0):
    """States reported since so many statuses."""
    return [status.state for status in robot.statuses[since:]]


def test_any_torque_is_made_safe_and_silence_brakes(running):
    """Full torques, changing at random; then none: limits hold in MuJoCo, then the arm stands."""
    robot, _, _ = running
    generator = np.random.default_rng(1)
    for _ in range(6):
        seen = len(robot.commands)
        robot.action = 5.0 * robot.limits.effort * generator.choice([-1.0, 1.0], 6)
        assert until(lambda seen=seen: len(robot.commands) > seen + 50)
    assert SafetyStatus.LIMITING in states(robot)
    assert robot.fastest > 0.3                 # it did move
    seen = len(robot.statuses)
    robot.action = None
    assert until(lambda: np.abs(robot.velocity).max() < 0.05)
    assert SafetyStatus.BRAKING in states(robot, seen)
    assert robot.gap > 0.0 and robot.fastest < 1.0 and robot.torque <= 1.0


def test_a_safe_torque_reaches_the_controller_unchanged(running):
    """What holds the arm in its posture, to the last bit of a float32."""
    robot, _, _ = running
    robot.action = robot.arm.holding()
    assert until(lambda: SafetyStatus.PASSING in states(robot))
    status = next(item for item in robot.statuses if item.state == SafetyStatus.PASSING)
    assert list(status.issued) == list(status.proposed)
    assert np.array(status.issued) == pytest.approx(robot.action, rel=1e-6)
    assert any(command.tolist() == list(status.issued) for command in robot.commands)


def test_nothing_is_sent_before_the_posture_is_known(running):
    """Zero torque would drop the arm; whoever held it before goes on holding it."""
    robot, node, graph = running
    request = ChangeState.Request(
        transition=Transition(id=Transition.TRANSITION_DEACTIVATE))
    robot.silent = True
    robot.action = robot.arm.holding()
    assert graph.call(ChangeState, 'safety/change_state', request).success
    request.transition.id = Transition.TRANSITION_ACTIVATE
    assert graph.call(ChangeState, 'safety/change_state', request).success
    told = robot._told
    before = len(robot.commands)
    assert until(lambda: robot._told > told + 3)
    assert len(robot.commands) == before and robot.braked
    robot.silent = False
    assert until(lambda: len(robot.commands) > before)


def test_a_deactivated_node_brakes_the_arm_before_it_falls_silent(running):
    """With joint states taken in between; then the robot's own brakes hold it."""
    robot, node, graph = running
    robot.action = 5.0 * robot.limits.effort * np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    assert until(lambda: np.abs(robot.velocity).max() > 0.8)
    stood = []
    robot.on_braking = lambda velocity: stood.append(np.abs(velocity).max())
    request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_DEACTIVATE))
    assert graph.call(ChangeState, 'safety/change_state', request).success
    assert until(lambda: stood)
    # standing is 0.02 rad/s; what follows is the posture held with a load that is not known
    assert stood[0] < 0.2
    assert robot.gap > 0.0 and robot.fastest < 1.0
