"""A robot for node tests: real topics at real rates, joints that follow their commands."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from geometry_msgs.msg import TwistStamped
from nav_msgs.msg import Odometry
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.time import Time
from sensor_msgs.msg import Image, Imu, JointState
from std_msgs.msg import Float64MultiArray

from liquid_policy.interface import load_interface
from liquid_policy_msgs.msg import ActionDistribution, Estimate, Features, SafetyStatus
from liquid_policy_node import qos

ARM = ('shoulder_pan_joint', 'shoulder_lift_joint', 'elbow_joint', 'wrist_1_joint',
       'wrist_2_joint', 'wrist_3_joint')
JOINTS = (*ARM, 'left_wheel_joint', 'right_wheel_joint')
ACTIONS = (*ARM, 'suction', 'base_v', 'base_w')
UNITS = ('rad/s',) * 6 + ('1', 'm/s', 'rad/s')
HOME = np.array([0.0, -1.2, 1.6, -1.9, -1.5, 0.0])
PACKAGE = Path(__file__).resolve().parent.parent


def bench_parameters(folder: Path, section: str = '') -> list[Parameter]:
    """
    Parameters that make the manipulator the robot, without its cell.

    :param folder: where the interface file is written.
    :param section: YAML of another `safety` section; none when left out.
    """
    interface = load_interface(PACKAGE / 'config' / 'manipulator.interface.yaml')
    path = folder / 'bench.interface.yaml'
    path.write_text(replace(interface, safety=None).to_yaml() + section, encoding='utf-8')
    description = PACKAGE / 'urdf' / 'manipulator.urdf.xacro'
    return [Parameter('robot', value=str(path)), Parameter('description', value=str(description))]


class BenchRobot(Node):
    """
    Publishes joint states, IMU, odometry and images; integrates the arm's velocity commands. It
    stands on a bench with its wheels in the air, so it does not drive.

    `alter[topic]` changes each message before it is sent; returning None keeps it back. What
    arrives is kept in `commands`, `statuses`, `proposals`, `features` and `estimates` as
    (steady time [s], message).
    """

    def __init__(self, camera: bool = True, **kwargs: Any) -> None:
        super().__init__('bench_robot', **kwargs)
        self.alter: dict[str, Callable[[Any], Any]] = {}
        self.position, self.velocity = HOME.copy(), np.zeros(6)
        self.suction, self.base = 0.0, np.zeros(2)
        self.action: np.ndarray | None = None  # proposed with every joint state, if not None
        self.commands: list = []
        self.statuses: list = []
        self.proposals: list = []
        self.features: list = []
        self.estimates: list = []
        self._stamp_before = self.get_clock().now().nanoseconds
        self._outputs = {
            topic: self.create_publisher(kind, topic, profile) for topic, kind, profile in (
                ('joint_states', JointState, qos.STREAM_OUT), ('imu/data', Imu, qos.STREAM_OUT),
                ('odom', Odometry, qos.STREAM_OUT),
                ('camera/color/image_raw', Image, qos.IMAGE),
                ('camera/depth/image_raw', Image, qos.IMAGE),
                ('action_distribution', ActionDistribution, qos.PROPOSAL_OUT))}
        self.create_subscription(
            Float64MultiArray, 'arm_velocity_controller/commands', self._on_arm, qos.COMMAND)
        self.create_subscription(
            Float64MultiArray, 'gripper_controller/commands', self._on_gripper, qos.COMMAND)
        self.create_subscription(
            TwistStamped, 'base_controller/cmd_vel', self._on_base, qos.COMMAND)
        for kind, topic, kept in (
                (SafetyStatus, 'safety_status', self.statuses),
                (ActionDistribution, 'action_distribution', self.proposals),
                (Features, 'features', self.features), (Estimate, 'estimate', self.estimates)):
            self.create_subscription(
                kind, topic,
                lambda message, kept=kept: kept.append((time.monotonic(), message)),
                qos.STREAM_IN)
        self.create_timer(0.01, self._tick)
        if camera:
            self.create_timer(1 / 30, self._look)

    def send(self, topic: str, message: Any) -> None:
        """Publish a message, altered if that is asked for."""
        message = self.alter.get(topic, lambda same: same)(message)
        if message is not None:
            self._outputs[topic].publish(message)

    def propose(self, action: np.ndarray, age: float = 0.0, **changes: Any) -> None:
        """Publish a proposal as a policy with one component and a horizon of two would."""
        message = ActionDistribution(
            model_version='bench', action_names=list(ACTIONS), action_units=list(UNITS), dt=0.02,
            horizon=2, components=1, weights=[1.0])
        message.header.stamp = self.stamp(-age)
        both = np.tile(np.asarray(action, np.float32), 2).tolist()
        message.means = message.chosen = both
        message.standard_deviations = [0.01] * len(both)
        for name, value in changes.items():
            setattr(message, name, value)
        self.send('action_distribution', message)

    def stamp(self, offset: float = 0.0) -> Any:
        """The present, or `offset` [s] later, as a message's stamp."""
        now = self.get_clock().now().nanoseconds + round(1e9 * offset)
        return Time(nanoseconds=now).to_msg()

    def _on_arm(self, message: Float64MultiArray) -> None:
        self.velocity = np.array(message.data)
        self.commands.append((time.monotonic(), self.velocity))

    def _on_gripper(self, message: Float64MultiArray) -> None:
        self.suction = message.data[0]

    def _on_base(self, message: TwistStamped) -> None:
        self.base = np.array([message.twist.linear.x, message.twist.angular.z])

    def _tick(self) -> None:
        now = self.get_clock().now().nanoseconds
        self.position = self.position + self.velocity * 1e-9 * max(0, now - self._stamp_before)
        self._stamp_before = now
        joints = JointState(name=list(JOINTS))
        joints.header.stamp = Time(nanoseconds=now).to_msg()
        joints.position = array('d', [*self.position, 0.0, 0.0])
        joints.velocity = array('d', [*self.velocity, 0.0, 0.0])
        joints.effort = array('d', [0.0] * 8)
        imu = Imu()
        imu.header.stamp = joints.header.stamp
        imu.linear_acceleration.z = 9.81
        self.send('imu/data', imu)
        odometry = Odometry()
        odometry.header.stamp = joints.header.stamp
        odometry.pose.pose.orientation.w = 1.0
        self.send('odom', odometry)
        self.send('joint_states', joints)
        if self.action is not None:
            self.propose(self.action)

    def _look(self) -> None:
        stamp = self.stamp()
        for topic, encoding, pixel in (
                ('camera/color/image_raw', 'rgb8', 3), ('camera/depth/image_raw', '32FC1', 4)):
            image = Image(height=96, width=96, encoding=encoding, step=96 * pixel)
            image.header.stamp, image.header.frame_id = stamp, 'camera_optical_frame'
            image.data = bytes(96 * 96 * pixel)
            self.send(topic, image)


class Graph:
    """Nodes spinning in a thread, and a way to wait for what they do."""

    def __init__(self, *nodes: Node) -> None:
        self.nodes = nodes
        self._executor = SingleThreadedExecutor()
        for node in nodes:
            self._executor.add_node(node)
        self._running = True
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while self._running:
            self._executor.spin_once(0.05)

    def run(self, work: Callable[[], Any]) -> Any:
        """Do something between two callbacks, as a callback would."""
        done, result = threading.Event(), []
        self._executor.create_task(lambda: (result.append(work()), done.set()))
        assert done.wait(10.0), 'the executor does not answer'
        return result[0]

    def call(self, kind: type, service: str, request: Any = None, timeout: float = 20.0) -> Any:
        """Call a service over DDS."""
        client = self.nodes[0].create_client(kind, service)
        try:
            assert client.wait_for_service(timeout), f'no service {service}'
            future = client.call_async(request or kind.Request())
            assert until(future.done, timeout), f'{service} does not answer'
            return future.result()
        finally:
            self.nodes[0].destroy_client(client)

    def close(self) -> None:
        """Stop spinning, end the nodes."""
        self._running = False
        self._thread.join(5.0)
        for node in self.nodes:
            if getattr(node, 'state_label', 'finalized') != 'finalized':
                node.trigger_shutdown()
            node.destroy_node()
        self._executor.shutdown()


def until(condition: Callable[[], Any], timeout: float = 20.0) -> Any:
    """Wait until a condition holds; its value, or its last one after `timeout` [s]."""
    deadline = time.monotonic() + timeout
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return value
