"""
How much of a core does the safety node take at 500 Hz?

The node runs as a process, as on a robot; joint states and proposals come to it over DDS at the
rate asked for, and what it sends back is counted. What it used of the processor is read from the
system and divided by its commands, so that a busy machine changes little. `relay` does nothing but
take the same messages and send as many of the same kinds: what rclpy itself costs. Run it as
`docker/in_environment.sh python3 test/benchmarks/safety_rate.py` (2 min).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from array import array
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / 'liquid_policy_node'
RESULTS = Path(__file__).parent / 'results' / 'safety_rate.jsonl'
os.environ.setdefault('ROS_DOMAIN_ID', str(100 + os.getpid() % 100))
os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')

import numpy as np  # noqa: E402
import rclpy  # noqa: E402
from nav_msgs.msg import Odometry  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402

from liquid_policy.effort_load import load_safety  # noqa: E402
from liquid_policy.interface import Interface, load_interface  # noqa: E402
from liquid_policy_msgs.msg import ActionDistribution, SafetyStatus  # noqa: E402
from liquid_policy_node import qos  # noqa: E402
from liquid_policy_node.resources import message_class  # noqa: E402
from liquid_sim.evaluate import commit  # noqa: E402

START = {6: [0.3, -0.6, 1.1, 0.2, -0.5, 0.1], 9: [-0.58, -1.47, 1.58, -1.69, -1.57, -0.58]}


class Case(NamedTuple):
    """
    One thing to measure.

    :param name: in the table.
    :param robot: interface file.
    :param description: URDF.
    :param whole: whether limits of the whole robot are kept.
    :param busy: whether the proposal breaks limits, so that the filter has to solve.
    """

    name: str
    robot: str
    description: str
    whole: bool
    busy: bool = False


CASES = (
    Case('relay', 'six_axis_arm', 'six_axis_arm.urdf.xacro', False),
    Case('six_axis_arm, joints only', 'six_axis_arm', 'six_axis_arm.urdf.xacro', False),
    Case('six_axis_arm', 'six_axis_arm', 'six_axis_arm.urdf.xacro', True),
    Case('six_axis_arm, solving', 'six_axis_arm', 'six_axis_arm.urdf.xacro', True, True),
    Case('six_axis_torque', 'six_axis_torque', 'six_axis_arm.urdf.xacro', True),
    Case('manipulator', 'manipulator', 'manipulator.urdf.xacro', True),
)


class Feed(Node):
    """Publishes what the node needs, at a rate, and counts what it answers."""

    def __init__(self, interface: Interface, proposal: np.ndarray, rate: float) -> None:
        super().__init__('feed')
        self.answers = 0
        self.states = [0] * 5
        self._interface, self._proposal = interface, proposal
        source = next(iter(
            item for item in interface.observations.values() if item.type.endswith('JointState')))
        self._names = [path.partition('.')[2] for path in source.fields]
        self._joints = self.create_publisher(JointState, source.topic, qos.STREAM_OUT)
        self._odometry = self.create_publisher(Odometry, 'odom', qos.STREAM_OUT)
        self._proposals = self.create_publisher(
            ActionDistribution, 'action_distribution', qos.PROPOSAL_OUT)
        self.create_subscription(SafetyStatus, 'safety_status', self._on_status, qos.STREAM_IN)
        self.create_timer(1.0 / rate, self._tick)

    def _on_status(self, message: SafetyStatus) -> None:
        self.answers += 1
        self.states[message.state] += 1

    def _tick(self) -> None:
        stamp = self.get_clock().now().to_msg()
        joints = JointState(name=self._names)
        joints.header.stamp = stamp
        size = len(self._names)
        joints.position = array('d', START[len(self._proposal)][:size])
        joints.velocity, joints.effort = array('d', [0.0] * size), array('d', [0.0] * size)
        odometry = Odometry()
        odometry.header.stamp = stamp
        odometry.pose.pose.orientation.w = 1.0
        message = ActionDistribution(
            model_version='feed', action_names=list(self._interface.action_names),
            action_units=list(self._interface.action_units), dt=0.01, horizon=1, components=1,
            weights=[1.0], standard_deviations=[0.01] * len(self._proposal))
        message.header.stamp = stamp
        message.means = message.chosen = self._proposal.astype(np.float32).tolist()
        if self._interface.safety is not None and self._interface.safety.needs_odometry:
            self._odometry.publish(odometry)
        self._joints.publish(joints)
        self._proposals.publish(message)


class Relay(Node):
    """Takes what the safety node takes and sends what it sends, without looking."""

    def __init__(self, interface: Interface) -> None:
        super().__init__('relay')
        action = next(iter(interface.actions.values()))
        self._status = self.create_publisher(SafetyStatus, 'safety_status', qos.STATUS)
        kind = message_class(action.type)
        self._command = self.create_publisher(kind, action.topic, qos.COMMAND)
        self._message, self._names = kind(data=[0.0] * action.size), list(action.names)
        self.create_subscription(JointState, 'joint_states', lambda message: None, qos.STREAM_IN)
        self.create_subscription(
            ActionDistribution, 'action_distribution', self._on_proposal, qos.PROPOSAL_IN)

    def _on_proposal(self, message: ActionDistribution) -> None:
        self._command.publish(self._message)
        self._status.publish(SafetyStatus(
            state=1, action_names=self._names, issued=self._message.data,
            proposed=message.chosen))


def relay(path: str) -> None:
    """Run the relay until it is ended."""
    rclpy.init()
    executor = SingleThreadedExecutor()
    executor.add_node(Relay(load_interface(path)))
    while rclpy.ok():
        executor.spin_once(0.1)


def used(process: subprocess.Popen) -> float:
    """Processor time of a process so far, all threads [s]."""
    fields = Path(f'/proc/{process.pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def measure(case: Case, rate: float, seconds: float, folder: Path) -> dict[str, float]:
    """
    Run one case.

    :param case: which.
    :param rate: of joint states and proposals [Hz].
    :param seconds: how long is measured [s].
    :param folder: for the interface file.
    :return: processor time per command [s], commands per second, share that was limited.
    """
    interface = load_interface(PACKAGE / 'config' / f'{case.robot}.interface.yaml')
    if not case.whole and interface.safety is not None:
        interface = replace(interface, safety=None)
    path = folder / 'robot.interface.yaml'
    path.write_text(interface.to_yaml(), encoding='utf-8')
    description = PACKAGE / 'urdf' / case.description
    limits = load_safety(interface, description).limits
    proposal = np.zeros(len(limits.names))
    if case.busy:
        proposal = 3.0 * limits.high
    command = [sys.executable, __file__, '--relay', str(path)] if case.name == 'relay' else [
        sys.executable, '-m', 'liquid_policy_node.safety_node', '--ros-args', '--log-level',
        'error', '-p', f'robot:={path}', '-p', f'description:={description}', '-p',
        f'period:={1.0 / rate}', '-p', 'longest_period:=0.1', '-p', 'joint_timeout:=0.5', '-p',
        'proposal_timeout:=0.5']
    process = subprocess.Popen(command)
    feed = Feed(interface, proposal, rate)
    executor = SingleThreadedExecutor()
    executor.add_node(feed)
    try:
        deadline = time.monotonic() + 60.0
        while feed.answers < rate and time.monotonic() < deadline:
            executor.spin_once(0.1)
        begin, before, answers = time.monotonic(), used(process), feed.answers
        states = list(feed.states)
        while time.monotonic() < begin + seconds:
            executor.spin_once(0.1)
        spent, count = used(process) - before, feed.answers - answers
        passed = time.monotonic() - begin
        changed = count - (feed.states[1] - states[1])
        return {'per_command': spent / max(count, 1), 'rate': count / passed,
                'changed': changed / max(count, 1)}
    finally:
        process.send_signal(signal.SIGINT if case.name != 'relay' else signal.SIGKILL)
        process.wait(20.0)
        executor.shutdown()
        feed.destroy_node()


def main() -> None:
    """Print a table; with --write keep it."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('--rate', type=float, default=500.0, help='Hz')
    parser.add_argument('--seconds', type=float, default=10.0, help='of each case')
    parser.add_argument('--cases', nargs='+', type=int, default=range(len(CASES)))
    parser.add_argument('--write', action='store_true', help='write the result file')
    parser.add_argument('--relay', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.relay:
        relay(options.relay)
        return
    rclpy.init()
    rows, floor = [], None
    print(f'{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, '
          f'{options.rate:g} Hz asked for')
    about = {'n': 0, 'seeds': [], 'preset': f'{options.rate:g} Hz', 'commit': commit(),
             'machine': f'{platform.machine()}, {os.cpu_count()} cores, load '
             f'{os.getloadavg()[0]:.1f}', 'date': date.today().isoformat()}
    with tempfile.TemporaryDirectory() as folder:
        for case in (CASES[index] for index in options.cases):
            found = measure(case, options.rate, options.seconds, Path(folder))
            share = found['per_command'] * options.rate
            floor = floor or found['per_command']
            print(f'{case.name:>26}: {1e6 * found["per_command"]:.0f} us per command, '
                  f'{share:.1%} of a core at {options.rate:g} Hz, {found["rate"]:.0f} Hz reached, '
                  f'{found["per_command"] / floor:.2f} of the relay, changed '
                  f'{found["changed"]:.0%}', flush=True)
            rows += [
                {'figure': 'core_share', 'task': case.name, 'policy': 'safety_node',
                 'value': share, 'unit': '1', **about},
                {'figure': 'cost_ratio', 'task': case.name, 'policy': 'safety_node',
                 'against': 'relay', 'value': found['per_command'] / floor, 'unit': '1', **about},
                {'figure': 'rate', 'task': case.name, 'policy': 'safety_node',
                 'value': found['rate'], 'unit': 'Hz', **about}]
    rclpy.try_shutdown()
    if options.write:
        RESULTS.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
        print(f'written to {RESULTS.relative_to(REPOSITORY)}')


if __name__ == '__main__':
    main()
