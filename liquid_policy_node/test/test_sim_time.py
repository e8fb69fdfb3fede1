"""With use_sim_time the safety node lives by /clock, which may slow, stand still or restart."""

import time

import numpy as np
import pytest

pytest.importorskip('rclpy')

from bench_robot import BenchRobot, Graph, until
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock as ClockMessage

from liquid_policy_msgs.msg import SafetyStatus
from liquid_policy_node.safety_node import SafetyNode

SLOW = np.array([0.3, 0.2, -0.3, 0.1, 0.1, 0.1, 0.8, 0.1, 0.1])


class World(Node):
    """Publishes /clock, `factor` times as fast as real time."""

    def __init__(self):
        super().__init__('world')
        self.now, self.factor, self._before = 100_000_000_000, 1.0, time.monotonic_ns()
        self._publisher = self.create_publisher(ClockMessage, '/clock', 10)
        self.create_timer(0.005, self._tick, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _tick(self):
        real = time.monotonic_ns()
        self.now += int(self.factor * (real - self._before))
        self._before = real
        message = ClockMessage()
        message.clock.sec, message.clock.nanosec = divmod(self.now, 1_000_000_000)
        self._publisher.publish(message)


def test_slow_standing_and_restarted_time(ros):
    """Half speed passes; a standing clock ends commands; a restart at zero is followed."""
    simulated = [Parameter('use_sim_time', value=True)]
    world = World()
    robot = BenchRobot(camera=False, parameter_overrides=simulated)
    node = SafetyNode(parameter_overrides=simulated)
    graph = Graph(robot, world, node)
    try:
        robot.action = SLOW

        def passing():
            return robot.statuses and robot.statuses[-1][1].state == SafetyStatus.PASSING
        assert until(passing)
        world.factor = 0.5
        time.sleep(0.2)
        seen = len(robot.statuses)
        time.sleep(0.5)
        states = [status.state for _, status in robot.statuses[seen:]]
        assert states.count(SafetyStatus.PASSING) > 0.7 * len(states) or node._missed > 2
        world.factor = 0.0
        time.sleep(0.2)
        count = len(robot.commands)
        time.sleep(0.3)
        # Time stands, so does the simulated robot; a command or two may have been on their way.
        assert len(robot.commands) - count <= 2
        world.factor, world.now = 1.0, 1_000_000_000
        assert until(lambda: node.diagnostics.total('time_jumped_back') == 1)
        robot.statuses.clear()
        assert until(passing), robot.statuses[-1:]
    finally:
        graph.close()
