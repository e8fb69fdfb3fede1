"""People near the robot: whoever should see them and is silent leaves the arm standing."""

import math
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip('rclpy')

from bench_robot import HOME, BenchRobot, Graph, until
from rclpy.parameter import Parameter
from sensor_msgs.msg import Range

from liquid_policy_node import qos
from liquid_policy_node.safety_node import SafetyNode

ROOT = Path(__file__).parents[2]
SLOW = np.array([0.3, 0.2, -0.3, 0.1, 0.1, 0.1, 0.8, 0.0, 0.0])


@pytest.fixture
def guarded(tmp_path):
    """A robot that follows slow proposals, and a safety node that must know of people."""
    import rclpy
    rclpy.init()
    interface = yaml.safe_load((ROOT / 'config' / 'manipulator.interface.yaml').read_text())
    interface['safety'] = {'tool': 'tool_tip', 'separation': {}}
    path = tmp_path / 'guarded.interface.yaml'
    path.write_text(yaml.safe_dump(interface, sort_keys=False))
    node = SafetyNode(parameter_overrides=[
        Parameter('robot', value=str(path)),
        Parameter('description', value=str(
            ROOT / 'liquid_policy_node' / 'urdf' / 'manipulator.urdf.xacro'))])
    robot = BenchRobot(camera=False)
    robot.position, robot.action = HOME.copy(), SLOW
    robot.seen = None     # distance that the detector tells [m]; None: it is silent
    publisher = robot.create_publisher(Range, 'human_distance', qos.STREAM_IN)

    def tell():
        if robot.seen is not None:
            message = Range(range=robot.seen)
            message.header.stamp = robot.get_clock().now().to_msg()
            publisher.publish(message)
    robot.create_timer(0.02, tell)
    graph = Graph(robot, node)
    assert until(lambda: node.active)
    yield robot
    graph.close()
    rclpy.try_shutdown()


def follows(robot):
    """Whether the arm does what is proposed."""
    return np.allclose(robot.velocity, SLOW[:6], atol=1e-6)


def stands(robot):
    """Whether the arm stands, though something else is proposed."""
    return bool(robot.commands) and bool(robot.statuses) and np.abs(robot.velocity).max() < 1e-3


def test_the_arm_moves_only_while_people_are_known_to_be_far(guarded):
    """Silence from the start, far, silence again, far, somebody within reach."""
    assert until(lambda: len(guarded.commands) > 50) and stands(guarded)
    guarded.seen = math.inf
    assert until(lambda: follows(guarded))
    guarded.seen = None
    assert until(lambda: stands(guarded))
    guarded.seen = math.inf
    assert until(lambda: follows(guarded))
    guarded.seen = 0.1
    assert until(lambda: stands(guarded))
