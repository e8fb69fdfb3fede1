"""
How long after an image was taken does the command that knows it leave, over DDS?

The robot's own nodes (perception, policy, safety) run as processes of their own, as the runner
starts them. This process is the robot: joint states and IMU at 100 Hz, RGB-D images at 30 Hz,
joints that follow their commands. A latency ends when the safety status that names the image has
arrived here, which is after its command was sent. With `--trainer`, demonstrations are published
too, and the trainer learns from them beside the nodes. Run it as

    docker/in_environment.sh python3 test/benchmarks/graph_latency.py --seconds 120

10,000 joint states take 100 s. A plain rclpy timer in a process of its own (timer_peer.py) runs
beside all: what is late there is the machine's. Memory, processor shares and the nodes' own
figures of their stages come from /proc and from /diagnostics.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from measuring import about, arguments, interval, keep, latency_rows, value_row

from liquid_policy.conversion import nanoseconds
from liquid_policy_node.bringup import NodeSpec

NODES = ('safety', 'perception', 'policy')
SECOND = 1_000_000_000
# What the nodes measure about themselves, in the order of the data's way.
STAGES = ('perception.encode', 'perception.image_to_features', 'policy.step',
          'policy.image_to_proposal', 'policy.stamp_to_proposal', 'safety.filter_cycle',
          'safety.image_to_command', 'safety.stamp_to_command')


class Robot:
    """A manipulator's topics: sends what it measures, notes when answers come."""

    def __init__(self, demonstrate: bool) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from geometry_msgs.msg import TwistStamped
        from nav_msgs.msg import Odometry
        from rclpy.signals import SignalHandlerOptions
        from sensor_msgs.msg import Image, Imu, JointState
        from std_msgs.msg import Float64MultiArray

        from liquid_policy_msgs.msg import SafetyStatus
        from liquid_policy_node import qos
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self._rclpy, self._node = rclpy, rclpy.create_node('robot')
        make = self._node.create_publisher
        self._joints = make(JointState, 'joint_states', qos.STREAM_OUT)
        self._imu = make(Imu, 'imu/data', qos.STREAM_OUT)
        self._odometry = make(Odometry, 'odom', qos.STREAM_OUT)
        self._color = make(Image, 'camera/color/image_raw', qos.IMAGE)
        self._depth = make(Image, 'camera/depth/image_raw', qos.IMAGE)
        self._kinds = (JointState, Imu, Image, Odometry, Float64MultiArray, TwistStamped)
        self._demonstrations = ()
        if demonstrate:
            self._demonstrations = (
                make(Float64MultiArray, 'demonstration/arm_velocity', qos.STATUS),
                make(Float64MultiArray, 'demonstration/gripper', qos.STATUS),
                make(TwistStamped, 'demonstration/base', qos.STATUS))
        listen = self._node.create_subscription
        listen(Float64MultiArray, 'arm_velocity_controller/commands', self._on_command,
               qos.COMMAND)
        listen(SafetyStatus, 'safety_status', self._on_status, qos.STREAM_IN)
        listen(DiagnosticArray, '/diagnostics', self._on_diagnostics, qos.STREAM_IN)
        self.position, self.velocity = np.array([0.0, -1.2, 1.6, -1.9, -1.5, 0.0]), np.zeros(6)
        self.sent_images: list[int] = []
        self.sent_joints: list[int] = []
        self.images: dict[int, int] = {}    # first answer to each image stamp [ns]
        self.ticks: dict[int, int] = {}     # to each joint state's
        self.statuses: list[tuple[int, int, int]] = []   # time [ns], state, missed deadlines
        self.diagnostics: dict[str, dict[str, str]] = {}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True)
                         for work in (self._listen, self._publish)]
        random.seed(0)
        rng = np.random.default_rng(0)
        self._pictures = [(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8).tobytes(),
                           rng.uniform(0.5, 2.0, (96, 96)).astype(np.float32).tobytes())
                          for _ in range(8)]

    def start(self) -> None:
        """Begin to publish and to listen."""
        for thread in self._threads:
            thread.start()
        hurry()

    def close(self) -> None:
        """End."""
        self._stop.set()
        for thread in self._threads:
            thread.join(5.0)
        self._node.destroy_node()
        self._rclpy.try_shutdown()

    def _listen(self) -> None:
        from liquid_policy_node.lean_executor import LeanExecutor
        executor = LeanExecutor()
        executor.add_node(self._node)
        while not self._stop.is_set():
            executor.spin_once(0.1)

    def _on_command(self, message: Any) -> None:
        self.velocity = np.array(message.data)

    def _on_status(self, message: Any) -> None:
        now = time.time_ns()
        image, joints = nanoseconds(message.image_stamp), nanoseconds(message.proposal_stamp)
        self.statuses.append((now, message.state, message.missed_deadlines))
        if image:
            self.images.setdefault(image, now)
        if joints:
            self.ticks.setdefault(joints, now)

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            self.diagnostics[status.name] = {pair.key: pair.value for pair in status.values}

    def _publish(self) -> None:
        """Joint states every 10 ms; images every 33.3 ms, with a phase that drifts."""
        joint_due = image_due = time.monotonic_ns()
        offset = time.time_ns() - time.monotonic_ns()
        while not self._stop.is_set():
            due = min(joint_due, image_due)
            left = due - time.monotonic_ns()
            if left > 0:
                time.sleep(1e-9 * left)
            if due == joint_due:
                self._send_joints(due + offset)
                joint_due += SECOND // 100
            else:
                self._send_images(due + offset)
                image_due += SECOND // 30

    def _send_joints(self, stamp: int) -> None:
        joint_state, imu, _, odometry, floats, twist = (kind() for kind in self._kinds)
        self.position = np.clip(self.position + 0.01 * self.velocity, -2.5, 2.5)
        for message in (joint_state, imu, odometry, twist):
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, SECOND)
        joint_state.name = ['shoulder_pan_joint', 'shoulder_lift_joint', 'elbow_joint',
                            'wrist_1_joint', 'wrist_2_joint', 'wrist_3_joint']
        joint_state.position = self.position.tolist()
        joint_state.velocity = self.velocity.tolist()
        imu.linear_acceleration.z = 9.81
        odometry.pose.pose.orientation.w = 1.0
        if self._demonstrations:
            floats.data = (0.2 * np.sin(1e-9 * stamp + np.arange(6))).tolist()
            self._demonstrations[0].publish(floats)
            self._demonstrations[1].publish(self._kinds[4](data=[0.0]))
            self._demonstrations[2].publish(twist)
        self._imu.publish(imu)
        self._odometry.publish(odometry)
        self._joints.publish(joint_state)
        self.sent_joints.append(stamp)

    def _send_images(self, stamp: int) -> None:
        for publisher, encoding, size, data in zip(
                (self._color, self._depth), ('rgb8', '32FC1'), (3, 4),
                random.choice(self._pictures), strict=True):
            image = self._kinds[2](height=96, width=96, encoding=encoding, step=96 * size)
            image.header.stamp.sec, image.header.stamp.nanosec = divmod(stamp, SECOND)
            image.header.frame_id = 'camera_optical_frame'
            image.data = data
            publisher.publish(image)
        self.sent_images.append(stamp)


def hurry() -> None:
    """
    Put all threads but this one before other programs, where that is allowed.

    A robot's driver runs in real time, too; what it is late would count as lateness of the nodes.
    This thread starts the nodes, which are to begin as ordinary programs.
    """
    with suppress(OSError):
        for thread in map(int, os.listdir('/proc/self/task')):
            if thread != threading.get_native_id():
                os.sched_setscheduler(thread, os.SCHED_RR, os.sched_param(45))


def usage(pid: int) -> dict[str, float]:
    """Processor time [s], resident and proportional memory [bytes] of a process."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
    rollup = dict(line.split(':') for line in
                  Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()[1:])
    sizes = {name: 1024.0 * int(rollup[name].split()[0]) for name in ('Rss', 'Pss')}
    private = sum(1024.0 * int(rollup[name].split()[0])
                  for name in ('Private_Clean', 'Private_Dirty'))
    return {'seconds': seconds, 'resident': sizes['Rss'], 'proportional': sizes['Pss'],
            'private': private}


class Group:
    """
    Gives processes a share of one core, by a control group of the kernel, version 1 or 2.

    :raises OSError: without the right to make one, or without the controller.
    """

    how = 'one core, control group with {share:.0%} of every {period:.0f} ms'

    def __init__(self, pids: list[int], share: float, period: float = 0.01) -> None:
        first = Path('/sys/fs/cgroup/cpu')
        self._root = first if first.is_dir() else Path('/sys/fs/cgroup')
        self._folder = self._root / f'liquid_policy_{os.getpid()}'
        self._folder.mkdir()
        quota, whole = round(1e6 * share * period), round(1e6 * period)
        try:
            if first.is_dir():
                (self._folder / 'cpu.cfs_period_us').write_text(str(whole))
                (self._folder / 'cpu.cfs_quota_us').write_text(str(quota))
                (self._folder / 'cpu.shares').write_text('65536')   # before other programs
            else:
                (self._root / 'cgroup.subtree_control').write_text('+cpu')
                (self._folder / 'cpu.max').write_text(f'{quota} {whole}')
                (self._folder / 'cpu.weight').write_text('5000')
            for pid in pids:
                (self._folder / 'cgroup.procs').write_text(str(pid))
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Let them run freely again."""
        for pid in (self._folder / 'cgroup.procs').read_text().split():
            with suppress(OSError):
                (self._root / 'cgroup.procs').write_text(pid)
        self._folder.rmdir()


class Limiter:
    """
    Lets processes run for a share of every period only, by stopping and continuing them.

    For machines where no control group can be made; the harsher of the two: whoever used little
    is stopped as long as who used all.
    """

    how = 'one core, running {share:.0%} of every {period:.0f} ms'

    def __init__(self, pids: list[int], share: float, period: float = 0.01) -> None:
        self._pids, self._share, self._period = pids, share, period
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._stop.is_set():
            for number, share in ((signal.SIGSTOP, 1.0 - self._share),
                                  (signal.SIGCONT, self._share)):
                for pid in self._pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
                time.sleep(share * self._period)

    def close(self) -> None:
        """Let them run freely again."""
        self._stop.set()
        self._thread.join()
        for pid in self._pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def keep_on(pid: int, core: int) -> None:
    """Keep all threads of a process on one core."""
    with suppress(OSError):
        for thread in os.listdir(f'/proc/{pid}/task'):
            os.sched_setaffinity(int(thread), {core})


def limit(pids: list[int], share: float) -> tuple[Group | Limiter, str]:
    """
    Keep processes on the last core, and in a share of it; this one stays on the first.

    :return: what lets go again, and how it is done, in words.
    """
    os.sched_setaffinity(0, {0})
    for pid in pids:
        keep_on(pid, (os.cpu_count() or 1) - 1)
    period = 0.01
    try:
        limiter: Group | Limiter = Group(pids, share, period)
    except OSError:
        limiter = Limiter(pids, share, period)
    return limiter, limiter.how.format(share=share, period=1e3 * period)


@dataclass(frozen=True)
class Choice:
    """
    How the three nodes run, where it is not as shipped.

    :param name: of the choice; empty as shipped.
    :param parameters: of the three nodes.
    :param environment: variables of the three nodes.
    :param cores: that a node is kept on, by its name.
    """

    name: str = ''
    parameters: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    cores: Mapping[str, int] = field(default_factory=dict)


AS_SHIPPED = Choice()


def specs(trainer: bool, checkpoint: str, folder: str, choice: Choice) -> list[NodeSpec]:
    """The nodes to start; what is chosen is not for the trainer."""
    from liquid_policy_node import bringup
    found = bringup.nodes({'sim': 'false', 'trainer': 'true' if trainer else 'false',
                           'checkpoint': checkpoint})
    return [replace(spec, parameters={**spec.parameters, 'folder': folder})
            if spec.name == 'trainer' else
            replace(spec, parameters={**spec.parameters, **choice.parameters},
                    environment={**spec.environment, **choice.environment})
            for spec in found if spec.name in (*NODES, 'trainer')]


def run(options: Any, trainer: bool, choice: Choice = AS_SHIPPED) -> tuple[list[dict], dict]:
    """
    Measure one graph.

    :return: rows and, for the table, what they say.
    """
    import tempfile

    from liquid_policy_node.runner import Runner
    task = choice.name or f'trainer_{"on" if trainer else "off"}'
    if options.quota:
        task = f'quota_{options.quota:.2f}'
    with tempfile.TemporaryDirectory() as folder:
        printed: list[str] = []
        if options.quota:       # which holds for ordinary threads only
            choice = replace(choice, parameters={**choice.parameters, 'priority': 0})
        runner = Runner(specs(trainer, options.checkpoint, folder, choice),
                        lambda name, line: printed.append(f'[{name}] {line}'))
        robot = Robot(trainer)
        robot.start()
        peer = subprocess.Popen([sys.executable, str(Path(__file__).with_name('timer_peer.py'))],
                                stdout=subprocess.PIPE, text=True)
        began = time.time_ns()
        runner.start()
        limiter = None
        try:
            started = wait_for(lambda: any(state in (1, 2) for _, state, _ in robot.statuses), 60)
            if not started:
                raise SystemExit('the nodes do not command:\n' + '\n'.join(printed[-20:]))
            first = next(now for now, state, _ in robot.statuses if state in (1, 2))
            pids = {name: process.pid for name, process in runner.processes.items()}
            how = 'none'
            if options.quota:
                limiter, how = limit(list(pids.values()), options.quota)
            for name, core in choice.cores.items():
                keep_on(pids[name], core)
            time.sleep(options.settle)
            before = {name: usage(pid) for name, pid in pids.items()}
            begin, missed = time.time_ns(), robot.statuses[-1][2]
            memory = [sum(value['proportional'] for name, value in before.items()
                          if name in NODES)]
            while time.time_ns() - begin < options.seconds * SECOND:
                time.sleep(min(10.0, options.seconds / 10))
                memory.append(sum(usage(pids[name])['proportional'] for name in NODES))
            end = time.time_ns()
            after = {name: usage(pid) for name, pid in pids.items()}
            missed = robot.statuses[-1][2] - missed
        finally:
            if limiter is not None:
                limiter.close()
            runner.stop()
            robot.close()
            peer.terminate()
            called, _ = peer.communicate()
    rows, found = summarise(robot, task, begin, end, missed, before, after, memory, first - began,
                            options, how)
    gaps = 1e-9 * np.diff([int(line) for line in called.split() if begin <= int(line) < end])
    more = latency_rows('timer_gap', task, 'rclpy-timer', gaps, about('separate_processes'))
    more.append(value_row('missed_deadlines', task, 'rclpy-timer', np.mean(gaps > 0.015), '1',
                          len(gaps), about('separate_processes')))
    rows += [{**row, 'quota': how} for row in more]
    return rows, found


def wait_for(condition: Any, seconds: float) -> bool:
    """Wait until something holds; return whether it did."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


def summarise(robot: Robot, task: str, begin: int, end: int, missed: int, before: dict,
              after: dict, memory: list[float], start: int, options: Any, how: str,
              ) -> tuple[list[dict], dict]:
    """Rows of one run."""
    def latencies(sent: list[int], answered: dict[int, int]) -> tuple[np.ndarray, int]:
        chosen = [stamp for stamp in sent if begin <= stamp < end - SECOND // 5]
        known = np.array([answered[stamp] - stamp for stamp in chosen if stamp in answered])
        return known * 1e-9, len(chosen)

    shared = about('separate_processes')
    images, sent_images = latencies(robot.sent_images, robot.images)
    ticks, sent_ticks = latencies(robot.sent_joints, robot.ticks)
    statuses = [entry for entry in robot.statuses if begin <= entry[0] < end]
    seconds = 1e-9 * (end - begin)
    rows = latency_rows('stamp_to_command', task, 'shipped', images, shared)
    rows += latency_rows('joints_to_command', task, 'shipped', ticks, shared)
    rows += [
        value_row('missed_deadlines', task, 'shipped', missed / max(len(statuses), 1), '1',
                  len(statuses), shared),
        value_row('images_answered', task, 'shipped', len(images) / sent_images, '1',
                  sent_images, shared),
        value_row('ticks_answered', task, 'shipped', len(ticks) / sent_ticks, '1', sent_ticks,
                  shared),
        value_row('command_rate', task, 'shipped', len(statuses) / seconds, 'Hz', len(statuses),
                  shared),
        value_row('start_to_command', task, 'shipped', 1e-9 * start, 's', 1, shared)]
    for name in after:
        share = (after[name]['seconds'] - before[name]['seconds']) / seconds
        rows.append(value_row('cpu_share', task, name, share, '1', 1, shared))
        for kind in ('resident', 'proportional', 'private'):
            rows.append(value_row(kind, task, name, after[name][kind], 'B', 1, shared))
    for kind in ('resident', 'proportional'):
        total = sum(after[name][kind] for name in NODES)
        rows.append(value_row(f'{kind}_three_nodes', task, 'shipped', total, 'B', 1, shared))
    rows.append(value_row('memory_growth', task, 'shipped', memory[-1] - memory[len(memory) // 3],
                          'B', len(memory), shared))
    for stage in STAGES:
        node, _, name = stage.partition('.')
        for share in ('p50', 'p99', 'max'):
            text = robot.diagnostics.get(node, {}).get(f'{name}.{share}_ms')
            if text is not None:
                rows.append(value_row(f'stage_{share}', task, stage, 1e-3 * float(text), 's', 2000,
                                      shared))
    for row in rows:
        row['quota'] = how
    return rows, {'task': task, 'images': images, 'ticks': ticks, 'rows': rows, 'memory': memory}


def report(found: dict) -> None:
    """Print one run."""
    value = {(row['figure'], row['policy']): row['value'] for row in found['rows']}
    images, ticks = found['images'], found['ticks']
    print(f'{found["task"]}:')
    for name, values in (('image stamp to command', images), ('joint stamp to command', ticks)):
        p50, low, high = interval(values, 50)
        print(f'  {name}: {1e3 * p50:.2f} / {1e3 * np.percentile(values, 99):.2f} / '
              f'{1e3 * values.max():.2f} ms (p50/p99/max), n {len(values)}')
    print(f'  missed deadlines {value["missed_deadlines", "shipped"]:.2e} of the commands, '
          f'{value["command_rate", "shipped"]:.1f} commands/s, images answered '
          f'{value["images_answered", "shipped"]:.4f}, joint states '
          f'{value["ticks_answered", "shipped"]:.4f}; start to first command '
          f'{value["start_to_command", "shipped"]:.2f} s')
    print('  a timer that does nothing else: gap '
          f'{1e3 * value["timer_gap_p50", "rclpy-timer"]:.2f} / '
          f'{1e3 * value["timer_gap_p99", "rclpy-timer"]:.2f} / '
          f'{1e3 * value["timer_gap_max", "rclpy-timer"]:.2f} ms, more than 15 ms '
          f'{value["missed_deadlines", "rclpy-timer"]:.2e} of the times')
    shares: dict[str, str] = defaultdict(str)
    for (figure, policy), number in value.items():
        if figure == 'cpu_share':
            shares[policy] += f'{number:.1%} of a core, '
        elif figure in ('resident', 'proportional'):
            shares[policy] += f'{number / 1e6:.0f} MB {figure}, '
    for name, text in shares.items():
        print(f'  {name}: {text.rstrip(", ")}')
    print(f'  three nodes: {value["resident_three_nodes", "shipped"] / 1e6:.0f} MB resident, '
          f'{value["proportional_three_nodes", "shipped"] / 1e6:.0f} MB proportional')
    for stage in STAGES:
        if ('stage_p50', stage) in value:
            print(f'  {stage}: ' + ' / '.join(
                f'{1e3 * value[f"stage_{share}", stage]:.2f}' for share in ('p50', 'p99', 'max'))
                + ' ms')


def graph_arguments(description: str) -> argparse.ArgumentParser:
    """Return what every run of the graph can be told."""
    parser = arguments(description)
    parser.add_argument('--seconds', type=float, default=110.0, help='measured, for each graph')
    parser.add_argument('--settle', type=float, default=3.0, help='left out at the start [s]')
    parser.add_argument('--trainer', choices=('off', 'on', 'both', 'none'),
                        default='both')
    parser.add_argument('--executors', nargs='*', default=[], help='measure these too, '
                        'without trainer: single, events, multi')
    parser.add_argument('--checkpoint', default='', help="a policy; empty: the robot's own")
    parser.add_argument('--quota', type=float, default=0.0,
                        help='share of one core for all nodes together; 0: no limit')
    return parser


def main() -> None:
    """Print a table; with --write keep it."""
    options = graph_arguments(__doc__).parse_args()
    os.environ['ROS_DOMAIN_ID'] = str(20 + os.getpid() % 80)
    graphs = [(trainer, AS_SHIPPED) for trainer in (False, True)
              if options.trainer in ('both', 'on' if trainer else 'off')]
    graphs += [(False, Choice(f'executor_{kind}', {'executor': kind}))
               for kind in options.executors]
    rows = []
    for trainer, choice in graphs:
        some, found = run(options, trainer, choice)
        rows += some
        report(found)
    keep(rows, 'graph_latency', options)


if __name__ == '__main__':
    main()
