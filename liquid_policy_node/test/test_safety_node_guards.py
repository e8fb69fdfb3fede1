"""The safety node with limits of the whole robot, and dry: one robot each, in a namespace."""

import time

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('pinocchio')
pytest.importorskip('daqp')

from bench_robot import BenchRobot, Graph, bench_parameters, until
from rclpy.parameter import Parameter
from sensor_msgs.msg import Range

from liquid_policy_msgs.msg import SafetyStatus
from liquid_policy_node.safety_node import SafetyNode

FAST = np.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0])
GRAPHS: list[Graph] = []
SECTION = """
safety:
  tool: tool_tip
  tool_speed: 0.3
  separation: {human_speed: 0.0, reaction: 0.05, margin: 0.1}
"""


@pytest.fixture(scope='module')
def ros_context():
    """An rclpy context for the whole file."""
    import rclpy
    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.fixture
def start(ros_context):
    """Start a robot and a safety node with parameters; both are closed afterwards."""
    graphs = GRAPHS

    def begin(namespace, **parameters):
        robot = BenchRobot(camera=False, namespace=namespace)
        node = SafetyNode(namespace=namespace, parameter_overrides=[
            Parameter(name, value=value) for name, value in parameters.items()])
        graphs.append(Graph(robot, node))
        assert until(lambda: node.active)
        robot.action = FAST
        return robot, node
    yield begin
    while graphs:
        graphs.pop().close()


def graph_of(node):
    """The graph that spins a node."""
    return next(graph for graph in GRAPHS if node in graph.nodes)


def test_an_unknown_human_counts_as_standing_at_the_robot(start, tmp_path):
    """Nothing heard of him, or nothing for too long; else the distance he is at."""
    given = {parameter.name: parameter.value for parameter in bench_parameters(tmp_path, SECTION)}
    robot, node = start('guarded', **given)
    assert until(lambda: any(
        'speed/tool' in status.active_constraints for _, status in robot.statuses))
    assert until(lambda: node.diagnostics.total('speed/tool') > 0)
    assert abs(robot.velocity[0]) < 0.15   # a step or two of acceleration, taken back at once

    def told(distance, later=0.0):
        """What the filter is told, some time after a message."""
        message = Range(range=distance)
        message.header.stamp = node.get_clock().now().to_msg()
        node.on_human(message)
        distance, _ = node._cycle.nearest_human(
            node._tick_now() + int(1e9 * later), node.settings.human_timeout)
        return distance
    graph = graph_of(node)
    assert graph.run(lambda: told(2.5)) == 2.5
    assert graph.run(lambda: told(float('inf'))) == np.inf
    assert graph.run(lambda: told(2.5, later=0.25)) == 0.0


def test_a_dry_run_reports_and_sends_nothing(start):
    """What would be issued is in the status, the robot hears nothing."""
    robot, _ = start('dry', dry_run=True)
    assert until(lambda: any(
        status.state == SafetyStatus.LIMITING for _, status in robot.statuses))
    status = next(status for _, status in robot.statuses
                  if status.state == SafetyStatus.LIMITING)
    assert status.reasons[0] == 'dry run: nothing is sent'
    assert len(status.issued) == 9 and len(status.proposed) == 9
    time.sleep(0.3)
    assert not robot.commands and not robot.velocity.any()


def test_bad_files_are_refused_when_configuring(start, ros_context, tmp_path):
    """A joint_limits.yaml that is not there: the node stays unconfigured and says why."""
    node = SafetyNode(namespace='refused', parameter_overrides=[
        Parameter('joint_limits', value=str(tmp_path / 'nowhere.yaml'))])
    robot = BenchRobot(camera=False, namespace='refused')
    graph = Graph(robot, node)
    try:
        time.sleep(1.0)
        assert not node.active
    finally:
        graph.close()
