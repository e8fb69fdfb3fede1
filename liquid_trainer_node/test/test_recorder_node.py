"""The recorder as a process of its own, over real DDS: what it writes, and what a crash leaves."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy')
pytest.importorskip('liquid_policy_msgs')

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from rclpy.context import Context  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.lifecycle import TransitionCallbackReturn  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402
from rclpy.time import Time  # noqa: E402
from rosbags.rosbag2 import Reader  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from sensor_msgs.msg import Image, JointState  # noqa: E402

from liquid_policy.alignment import Aligner, Outcome  # noqa: E402
from liquid_policy.conversion import fill_message, stamp_of, vector_from_message  # noqa: E402
from liquid_policy.interface import load_interface  # noqa: E402
from liquid_policy_msgs.msg import EpisodeMarker, SafetyStatus  # noqa: E402
from liquid_policy_node.resources import message_class  # noqa: E402
from liquid_trainer.bags import Bag, ReadSettings, read_episodes  # noqa: E402
from liquid_trainer_node.recorder_node import (  # noqa: E402
    RecorderNode,
    free_path,
    matching,
    stricter,
)

CONFIG = Path(__file__).parents[2] / 'config'
INTERFACE = load_interface(CONFIG / 'manipulator.interface.yaml')
BEST_EFFORT = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
# Limits the size of files first, as a full disk would.
LIMITED = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
sys.exit(runpy.run_module('liquid_trainer_node.recorder_node', run_name='__main__'))
"""


class Robot(Node):
    """Publishes every topic of the interface, each number being the number of the message."""

    def __init__(self, context, namespace=''):
        super().__init__('robot', context=context, namespace=namespace)
        self.sent = {}
        self.made = {}
        for topic, kind in INTERFACE.topics().items():
            profile = BEST_EFFORT if 'camera' in topic or topic == 'imu/data' else RELIABLE
            self.made[topic] = self.create_publisher(message_class(kind), topic, profile)
        self.markers = self.create_publisher(EpisodeMarker, 'episode', LATCHED)
        self.status = self.create_publisher(SafetyStatus, 'safety_status', RELIABLE)

    def mark(self, kind, name):
        message = EpisodeMarker(kind=kind, episode=name)
        message.header.stamp = self.get_clock().now().to_msg()
        self.markers.publish(message)

    def step(self, number, stamp=None):
        stamp = stamp or self.get_clock().now().to_msg()
        if number % 3 == 0:
            for spec in INTERFACE.images.values():
                size = 4 if spec.is_depth else 3
                message = Image(height=96, width=96, encoding=spec.encoding, step=96 * size)
                message.data = bytes([number % 100]) * (96 * 96 * size)
                self.send(spec.topic, message, stamp)
        for spec in (*INTERFACE.observations.values(), *INTERFACE.targets.values()):
            message = fill_message(spec, message_class(spec.type)(), np.full(spec.size, number))
            self.send(spec.topic, message, stamp)
        for spec in INTERFACE.actions.values():
            for topic in (spec.topic, spec.demonstration):
                message = fill_message(spec, message_class(spec.type)(),
                                       np.full(spec.size, number))
                self.send(topic, message, stamp)

    def send(self, topic, message, stamp):
        if hasattr(message, 'header'):
            message.header.stamp = stamp
        self.made[topic].publish(message)
        self.sent[topic] = self.sent.get(topic, 0) + 1

    def run(self, seconds, first=0):
        begun = time.monotonic()
        for number in range(first, first + round(seconds * 100)):
            self.step(number)
            time.sleep(max(0.0, begun + (number - first + 1) * 0.01 - time.monotonic()))
        return first + round(seconds * 100)

    def wait_for_recorder(self, process, publishers=None):
        """Wait until the recorder has subscribed to everything that is published."""
        for publisher in publishers or [*self.made.values(), self.markers]:
            until(lambda publisher=publisher: publisher.get_subscription_count() > 0, 30.0,
                  process)


def until(condition, seconds=15.0, process=None):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        assert process is None or process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


@pytest.fixture
def context():
    context = Context()
    context.init()
    yield context
    context.try_shutdown()


@pytest.fixture
def robot(context):
    robot = Robot(context)
    yield robot
    robot.destroy_node()


@pytest.fixture
def recorder():
    """Start recorder processes; end those that still run."""
    started = []

    def start(folder, *parameters, command=('-m', 'liquid_trainer_node.recorder_node'), remap=''):
        arguments = ['--ros-args', '-p', f'folder:={folder}']
        if remap:
            arguments += ['-r', remap]
        for parameter in parameters:
            arguments += ['-p', parameter]
        process = subprocess.Popen(
            [sys.executable, *command, *arguments], text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(path for path in sys.path if path)})
        started.append(process)
        return process
    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _stop(process) -> str:
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    return errors


def _numbers(bag: Bag, topic: str) -> list[int]:
    specs = {spec.topic: spec for spec in (*INTERFACE.observations.values(),
                                           *INTERFACE.targets.values(),
                                           *INTERFACE.actions.values())}
    specs |= {spec.demonstration: spec for spec in INTERFACE.actions.values()}
    return [int(vector_from_message(specs[topic], record.message)[0])
            for record in bag.messages([f'/{topic}'])]


def test_everything_of_the_interface_is_recorded_and_learned_from(tmp_path, robot, recorder):
    robot.mark(EpisodeMarker.START, 'one')  # before the recorder is there
    process = recorder(tmp_path / 'bag')
    robot.wait_for_recorder(process)
    robot.status.publish(SafetyStatus(state=1))
    until(lambda: robot.status.get_subscription_count() > 0, process=process)
    robot.status.publish(SafetyStatus(state=2))
    count = robot.run(2.0)
    robot.mark(EpisodeMarker.END_SUCCESS, 'one')
    time.sleep(0.5)
    errors = _stop(process)
    assert 'recorded' in errors and 'lost 0' in errors
    bag = Bag(tmp_path / 'bag')
    assert not bag.cut_off
    for topic, publisher in robot.made.items():
        if publisher.topic_name in bag.topics and 'camera' not in topic:
            numbers = _numbers(bag, topic)
            # Best effort may lose one on a busy machine; the rest must all be there.
            assert len(numbers) >= (0.9 if topic == 'imu/data' else 1.0) * count
            assert numbers == sorted(set(numbers))
    assert set(bag.topics) >= {f'/{topic}' for topic in INTERFACE.topics()}
    assert bag.counts['/episode'] == 2 and bag.counts['/safety_status'] >= 1
    assert bag.counts['/diagnostics'] >= 1
    with Reader(tmp_path / 'bag') as reader:
        assert reader.message_count == sum(bag.counts.values())
    episodes = list(read_episodes(tmp_path / 'bag', INTERFACE))
    assert {(episode.name, episode.outcome) for episode in episodes} == {('one', 'success')}
    assert sum(len(episode) for episode in episodes) > 0.5 * count
    for episode in episodes:  # the demonstration of each tick carries the tick's number
        assert np.array_equal(episode.actions[:, 0], episode.vectors[:, 6])


def test_log_times_are_the_times_of_sending(tmp_path, robot, recorder):
    process = recorder(tmp_path / 'bag')
    robot.wait_for_recorder(process)
    robot.run(1.0)
    time.sleep(0.2)
    _stop(process)
    late = [record.time - stamp_of(record.message)
            for record in Bag(tmp_path / 'bag').messages(['/joint_states'])]
    assert min(late) >= 0 and np.median(late) < 5e6


def test_killing_the_recorder_loses_at_most_the_last_second(tmp_path, robot, recorder):
    process = recorder(tmp_path / 'bag')
    robot.wait_for_recorder(process)
    count = robot.run(2.5)
    process.kill()
    killed = robot.get_clock().now().nanoseconds
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    bag = Bag(tmp_path / 'bag')
    assert bag.cut_off and not (tmp_path / 'bag' / 'metadata.yaml').exists()
    for topic in ('joint_states', 'demonstration/arm_velocity', 'ground_truth/part'):
        numbers = _numbers(bag, topic)
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > count - 110
    newest = max(record.time for record in bag.messages())
    assert killed - newest < 1e9
    episodes = list(read_episodes(tmp_path / 'bag', INTERFACE, report=lambda text: None))
    assert sum(len(episode) for episode in episodes) > 50


def test_a_listening_node_and_the_bag_give_the_same_bits(tmp_path, context, robot, recorder):
    """The same messages through DDS: converted live, and read from the bag afterwards."""
    imu = replace(INTERFACE.observations['imu'], latency=0.2, max_age=0.5)  # of a busy machine
    interface = replace(INTERFACE, observations={**INTERFACE.observations, 'imu': imu})
    aligner, seen, outcomes = Aligner(interface), {}, set()
    listener = Node('listener', context=context)

    def listen(spec):
        def receive(message):
            outcomes.add(aligner.push(
                spec.name, stamp_of(message), vector_from_message(spec, message)).outcome)
            for tick in aligner.ticks_ready():
                known = aligner.at(tick)
                if known.stale == ('features',):
                    seen[tick] = known.vector.tobytes()
        listener.create_subscription(message_class(spec.type), spec.topic, receive, 50)

    robot.made['imu/data'] = robot.create_publisher(
        message_class(imu.type), imu.topic, RELIABLE)  # none may be lost on the way to one side
    for spec in interface.observations.values():
        listen(spec)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(listener)
    spinning = threading.Thread(target=executor.spin, daemon=True)
    spinning.start()
    process = recorder(tmp_path / 'bag')
    robot.wait_for_recorder(process)
    until(lambda: all(robot.made[spec.topic].get_subscription_count() == 2
                      for spec in interface.observations.values()), process=process)
    time.sleep(0.5)
    robot.run(3.0)
    time.sleep(0.5)
    executor.shutdown()
    spinning.join()
    listener.destroy_node()
    _stop(process)
    assert outcomes <= {Outcome.ACCEPTED, Outcome.JUMPED}
    read = {tick: vector.tobytes()
            for episode in read_episodes(tmp_path / 'bag', interface, ReadSettings(images=False))
            for tick, vector in zip(episode.stamps.tolist(), episode.vectors, strict=True)}
    assert len(read) > 150
    assert {tick: seen.get(tick) for tick in read} == read


def test_a_robot_in_a_namespace_is_recorded_in_it(tmp_path, context, recorder):
    robot = Robot(context, namespace='left')
    process = recorder(tmp_path / 'bag', remap='__ns:=/left')
    robot.wait_for_recorder(process)
    robot.run(1.5)
    time.sleep(0.3)
    _stop(process)
    robot.destroy_node()
    bag = Bag(tmp_path / 'bag')
    assert {f'/left/{topic}' for topic in INTERFACE.topics()} <= set(bag.topics)
    assert sum(len(episode) for episode in read_episodes(bag.path, INTERFACE)) > 75


def test_in_simulated_time_log_times_are_simulated(tmp_path, robot, recorder):
    clock = robot.create_publisher(
        Clock, '/clock', QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT))
    imu = INTERFACE.observations['imu']
    robot.made['imu/data'] = robot.create_publisher(message_class(imu.type), imu.topic, RELIABLE)
    robot.mark(EpisodeMarker.START, 'simulated')
    process = recorder(tmp_path / 'bag', 'use_sim_time:=true')
    robot.wait_for_recorder(process, [*robot.made.values(), robot.markers, clock])
    time.sleep(0.3)  # the latched marker comes before time begins
    for number in range(150):
        now = Time(seconds=5, nanoseconds=number * 10_000_000).to_msg()
        clock.publish(Clock(clock=now))
        time.sleep(0.005)
        robot.step(number, now)
        time.sleep(0.005)
        if number == 60:   # a stalled disk must not shift what has no header
            process.send_signal(signal.SIGSTOP)
        elif number == 90:
            process.send_signal(signal.SIGCONT)
    time.sleep(0.3)
    _stop(process)
    bag = Bag(tmp_path / 'bag')
    times = [record.time for record in bag.messages()]
    assert min(times) >= 5_000_000_000 and max(times) < 6_600_000_000
    assert [record.message.episode for record in bag.messages(['/episode'])] == ['simulated']
    # images are sent best effort and may be lost in the stall
    episodes = list(read_episodes(bag.path, INTERFACE, ReadSettings(images=False)))
    assert {episode.name for episode in episodes} == {'simulated'}
    assert sum(len(episode) for episode in episodes) > 75
    for episode in episodes:
        late = episode.actions[:, 0] - episode.vectors[:, 6]
        # A tick of the best-effort clock may be lost on a busy machine.
        assert np.mean(late == 0) > 0.9 and np.abs(late).max() <= 5


def test_a_full_disk_is_reported_and_the_bag_readable(tmp_path, context, robot, recorder):
    reports = []
    robot.create_subscription(DiagnosticArray, '/diagnostics', reports.append, 10)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(robot)
    process = recorder(tmp_path / 'bag', command=('-c', LIMITED))
    robot.wait_for_recorder(process)
    number = 0
    end = time.monotonic() + 20.0

    def faults():
        return [status.message for report in reports for status in report.status
                if status.name == 'recorder' and status.level == DiagnosticStatus.ERROR]
    while not faults():
        assert time.monotonic() < end and process.poll() is None
        robot.step(number)
        number += 1
        executor.spin_once(timeout_sec=0.005)
    assert 'recording stopped: File too large; the bag is readable' in faults()[-1]
    assert 'free space or choose another output folder' in faults()[-1]
    errors = _stop(process)
    assert 'recording stopped' in errors
    numbers = _numbers(Bag(tmp_path / 'bag'), 'joint_states')
    assert numbers == list(range(len(numbers))) and len(numbers) > 10


def test_a_publisher_that_offers_less_is_recorded_too(tmp_path, context, robot, recorder):
    process = recorder(tmp_path / 'bag')
    robot.wait_for_recorder(process)
    robot.made['joint_states'].publish(JointState(name=['reliable']))
    other = robot.create_publisher(JointState, 'joint_states', BEST_EFFORT)
    until(lambda: other.get_subscription_count() > 0, process=process)
    time.sleep(0.3)
    for _ in range(20):
        other.publish(JointState(name=['best_effort']))
        robot.made['joint_states'].publish(JointState(name=['reliable']))
        time.sleep(0.01)
    time.sleep(0.3)
    _stop(process)
    names = [record.message.name[0] for record in Bag(tmp_path / 'bag').messages(
        ['/joint_states'])]
    assert names.count('best_effort') == 20 and names.count('reliable') >= 20


def test_messages_that_did_not_arrive_are_counted(tmp_path, robot, recorder):
    process = recorder(tmp_path / 'bag')
    robot.wait_for_recorder(process)
    robot.run(0.3)
    time.sleep(0.2)
    process.send_signal(signal.SIGSTOP)  # a stall longer than the queues
    for number in range(2000):
        robot.made['imu/data'].publish(fill_message(
            INTERFACE.observations['imu'], message_class('sensor_msgs/msg/Imu')(),
            np.full(6, number)))
        if number % 100 == 0:
            time.sleep(0.01)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.3)
    robot.run(0.3)
    time.sleep(0.3)
    errors = _stop(process)
    assert '/imu/data:' in errors and 'did not arrive' in errors
    lost = int(errors.split(' lost ')[1].split()[0])
    bag = Bag(tmp_path / 'bag')
    assert lost == 2000 + robot.sent['imu/data'] - bag.counts['/imu/data'] > 1000


def test_joint_states_without_velocity_are_readable(tmp_path, robot, recorder):
    """rclpy's own serialization would pad these; what came over the wire is not padded."""
    process = recorder(tmp_path / 'bag')
    robot.wait_for_recorder(process)
    for number in range(20):
        robot.made['joint_states'].publish(JointState(
            name=['a'] * (number % 5), position=[1.0] * (number % 5)))
        time.sleep(0.005)
    time.sleep(0.3)
    _stop(process)
    lengths = [len(record.message.position)
               for record in Bag(tmp_path / 'bag').messages(['/joint_states'])]
    assert lengths == [number % 5 for number in range(20)]


@pytest.fixture
def ros():
    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.fixture
def node(ros, tmp_path):
    made = []

    def make(**parameters):
        values = {'folder': str(tmp_path / 'bag'), 'autostart': False, **parameters}
        node = RecorderNode(parameter_overrides=[
            Parameter(name, value=value) for name, value in values.items()])
        made.append(node)
        return node
    yield make
    for node in made:
        if node.state_label != 'finalized':
            node.trigger_shutdown()
        node.destroy_node()


def test_each_activation_writes_a_bag_of_its_own(node, tmp_path):
    recorder = node()
    assert recorder.trigger_configure() == TransitionCallbackReturn.SUCCESS
    for _ in range(3):
        assert recorder.trigger_activate() == TransitionCallbackReturn.SUCCESS
        assert recorder.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    assert recorder.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
    assert sorted(path.name for path in tmp_path.iterdir()) == ['bag', 'bag_1', 'bag_2']
    for path in tmp_path.iterdir():
        assert (path / 'metadata.yaml').is_file()


def test_shutting_down_while_active_completes_the_bag(node, tmp_path):
    recorder = node()
    recorder.trigger_configure()
    recorder.trigger_activate()
    recorder.trigger_shutdown()
    with Reader(tmp_path / 'bag') as reader:
        assert len(reader.connections) == len(INTERFACE.topics()) + 1


@pytest.mark.parametrize('parameters', [
    {'robot': 'unknown_robot'}, {'folder': '/proc/no/bag'}, {'folder': '/dev/null/bag'}])
def test_what_cannot_work_refuses_to_configure(node, parameters):
    recorder = node(**parameters)
    assert recorder.trigger_configure() == TransitionCallbackReturn.FAILURE


@pytest.mark.parametrize('parameters, text', [
    ({'interval': 5.0}, 'interval'), ({'compression': 'zip'}, 'compression'),
    ({'max_size': -1}, 'max_size'), ({'folder': ''}, 'folder')])
def test_wrong_parameters_are_refused_by_name(ros, parameters, text):
    with pytest.raises(ValueError, match=text):
        RecorderNode(parameter_overrides=[
            Parameter(name, value=value) for name, value in parameters.items()])


def test_the_strictest_profile_that_matches_is_chosen():
    mixed = matching([RELIABLE, BEST_EFFORT], 7)
    assert mixed.reliability == ReliabilityPolicy.BEST_EFFORT and mixed.depth == 7
    both = matching([LATCHED, LATCHED], 1)
    assert both.durability == DurabilityPolicy.TRANSIENT_LOCAL
    assert both.reliability == ReliabilityPolicy.RELIABLE
    one = matching([LATCHED, RELIABLE], 1)
    assert one.durability == DurabilityPolicy.VOLATILE
    assert stricter(both, one) and not stricter(one, both)
    assert stricter(one, mixed) and not stricter(mixed, one) and not stricter(one, one)


def test_a_bag_never_overwrites_another(tmp_path):
    assert free_path(tmp_path / 'bag') == tmp_path / 'bag'
    (tmp_path / 'bag').mkdir()
    (tmp_path / 'bag_1').mkdir()
    assert free_path(tmp_path / 'bag') == tmp_path / 'bag_2'
