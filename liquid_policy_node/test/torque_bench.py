"""An arm that is told torques, over real topics: MuJoCo in step with the commands it gets."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.time import Time
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from liquid_policy.limits import Limits
from liquid_policy_msgs.msg import ActionDistribution, SafetyStatus
from liquid_policy_node import qos
from liquid_sim.bare_arm import BareArm

START = 1_000_000_000   # stamp of simulated time zero [ns]
PATIENCE = 0.25         # of the wall's clock [s]: then the arm goes on without a command


class TorqueBench(Node):
    """
    Publishes /clock, joint states and proposals, waits for a command, goes one period on.

    Time is simulated, so a machine that stalls changes nothing. Without a command the last one
    holds for `timeout` [s], as a robot's controller should have it; then the joints' brakes hold
    the arm, for this simulation by their posture.
    """

    def __init__(self, arm: BareArm, limits: Limits, timeout: float = 0.05, **kwargs: Any) -> None:
        super().__init__('torque_bench', **kwargs)
        self.arm, self.limits = arm, limits
        self.action: np.ndarray | None = None   # proposed with every joint state, if not None
        self.silent = False                     # whether joint states are kept back
        self.statuses: list[SafetyStatus] = []
        self.commands: list[np.ndarray] = []
        self.gap, self.fastest, self.torque = np.inf, 0.0, 0.0
        self.running = True
        self.braked = False
        self.on_braking: Callable[[np.ndarray], None] = lambda velocity: None
        self._timeout, self._since = timeout, 0.0
        self._command: np.ndarray | None = None
        self._told = 0
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        arm.watch = self._watch
        self._clock_output = self.create_publisher(ClockMessage, '/clock', qos.STREAM_OUT)
        self._joint_output = self.create_publisher(JointState, 'joint_states', qos.STREAM_OUT)
        self._proposal_output = self.create_publisher(
            ActionDistribution, 'action_distribution', qos.PROPOSAL_OUT)
        self.create_subscription(
            Float64MultiArray, 'forward_effort_controller/commands', self._on_command,
            qos.COMMAND)
        self.create_subscription(
            SafetyStatus, 'safety_status', self.statuses.append, qos.STREAM_IN)
        self._last = time.monotonic()
        self.create_timer(0.02, self._go_on, clock=self._steady)

    def _watch(self) -> None:
        """Peaks, after every step of the physics."""
        position, velocity, effort = self.arm.joint_state()
        self.gap = min(self.gap, float(np.minimum(
            position - self.limits.lower, self.limits.upper - position).min()))
        self.fastest = max(self.fastest, float((np.abs(velocity) / self.limits.speed).max()))
        self.torque = max(self.torque, float((np.abs(effort) / self.limits.effort).max()))

    @property
    def velocity(self) -> np.ndarray:
        """Joint velocities as MuJoCo has them [rad/s]."""
        return self.arm.joint_state()[1]

    def _on_command(self, message: Float64MultiArray) -> None:
        self.commands.append(np.array(message.data))
        self._command, self._since = self.commands[-1], 0.0
        if self.running:
            self._step()

    def _go_on(self) -> None:
        """Nobody answered for a while: time passes all the same."""
        if self.running and time.monotonic() - self._last > PATIENCE:
            self._since += self.arm.settings.period
            self._step()

    def _step(self) -> None:
        self._last = time.monotonic()
        silent = self._command is None or self._since > self._timeout
        if silent and not self.braked:
            self.on_braking(self.velocity)
        self.braked = silent
        self._told += 1
        if self.braked:
            self.arm.reset(self.arm.joint_state()[0])
        else:
            self.arm.step(self._command)
        self._publish()

    def _publish(self) -> None:
        passed = round(1e9 * self._told * self.arm.settings.period)
        stamp = Time(nanoseconds=START + passed).to_msg()
        self._clock_output.publish(ClockMessage(clock=stamp))
        position, velocity, effort = self.arm.joint_state()
        joints = JointState(name=list(self.arm.joints))
        joints.header.stamp = stamp
        joints.position, joints.velocity, joints.effort = (
            array('d', values) for values in (position, velocity, effort))
        if not self.silent:
            self._joint_output.publish(joints)
        if self.action is not None:
            size = len(self.action)
            message = ActionDistribution(
                model_version='bench', action_names=list(self.arm.joints),
                action_units=['N m'] * size, dt=0.01, horizon=1, components=1, weights=[1.0])
            message.header.stamp = stamp
            message.means = message.chosen = np.asarray(self.action, np.float32).tolist()
            message.standard_deviations = [0.01] * size
            self._proposal_output.publish(message)
