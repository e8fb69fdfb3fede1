"""The simulator over real DDS: rates, stamps, command timeout, bad commands, determinism."""

import json
import threading
import time

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy')
pytest.importorskip('liquid_policy_msgs.msg')

from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402

from liquid_policy_node.resources import message_class  # noqa: E402
from liquid_policy_sim import sim_node  # noqa: E402

TYPES = {
    'camera/color/image_raw': 'sensor_msgs/msg/Image',
    'camera/depth/image_raw': 'sensor_msgs/msg/Image',
    'imu/data': 'sensor_msgs/msg/Imu',
    'joint_states': 'sensor_msgs/msg/JointState',
    'odom': 'nav_msgs/msg/Odometry',
    'ground_truth/part': 'nav_msgs/msg/Odometry',
    'conveyor_status': 'liquid_policy_msgs/msg/ConveyorStatus',
    'scene/image/compressed': 'sensor_msgs/msg/CompressedImage',
    'action_distribution': 'liquid_policy_msgs/msg/ActionDistribution',
    'demonstration/arm_velocity': 'std_msgs/msg/Float64MultiArray',
    'demonstration/gripper': 'std_msgs/msg/Float64MultiArray',
    'demonstration/base': 'geometry_msgs/msg/TwistStamped',
    'episode': 'liquid_policy_msgs/msg/EpisodeMarker',
    '/clock': 'rosgraph_msgs/msg/Clock',
    '/diagnostics': 'diagnostic_msgs/msg/DiagnosticArray',
}
ARM = 'arm_velocity_controller/commands'
GRIPPER = 'gripper_controller/commands'
BASE = 'base_controller/cmd_vel'
WRIST = 5


@pytest.fixture(scope='module', autouse=True)
def ros():
    rclpy.init()
    yield
    rclpy.try_shutdown()


def stamp(message):
    time_of = message.clock if hasattr(message, 'clock') else message.header.stamp
    return time_of.sec * 10**9 + time_of.nanosec


class Bench:
    """A simulator, and somebody who listens to it and commands it, each with its executor."""

    def __init__(self, *topics, **parameters):
        self.node = sim_node.SimNode(parameter_overrides=[
            Parameter(name, value=value) for name, value in parameters.items()])
        self.client = rclpy.create_node('client')
        self.messages = {topic: [] for topic in topics}
        self.answer = {}    # by topic: called with each of its messages
        # Reliable and deep where that is offered: what is counted here must not get lost here.
        for topic in topics:
            image = 'image_raw' in topic
            profile = QoSProfile(
                depth=1000, durability=DurabilityPolicy.TRANSIENT_LOCAL if topic == 'episode'
                else DurabilityPolicy.VOLATILE, reliability=ReliabilityPolicy.BEST_EFFORT
                if image else ReliabilityPolicy.RELIABLE)
            self.client.create_subscription(
                message_class(TYPES[topic]), topic,
                lambda message, topic=topic: self._take(topic, message), profile)
        self.publishers = {topic: self.client.create_publisher(message_class(kind), topic, 10)
                           for topic, kind in ((ARM, 'std_msgs/msg/Float64MultiArray'),
                                               (GRIPPER, 'std_msgs/msg/Float64MultiArray'),
                                               (BASE, 'geometry_msgs/msg/TwistStamped'))}
        self._stop = threading.Event()
        self._threads = []
        for node in (self.client, self.node):
            thread = threading.Thread(target=self._spin, args=(node,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.node.trigger_shutdown()
        self._stop.set()
        for thread in self._threads:
            thread.join(5.0)
        self.node.destroy_node()
        self.client.destroy_node()

    def _spin(self, node):
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not self._stop.is_set():
            executor.spin_once(0.05)
        executor.shutdown(0.0)

    def _take(self, topic, message):
        self.messages[topic].append(message)
        self.answer.get(topic, lambda message: None)(message)

    def command(self, arm, gripper=0.0, base=(0.0, 0.0)):
        self.publishers[ARM].publish(message_class('std_msgs/msg/Float64MultiArray')(
            data=[float(value) for value in arm]))
        self.publishers[GRIPPER].publish(message_class('std_msgs/msg/Float64MultiArray')(
            data=[float(gripper)]))
        twist = message_class('geometry_msgs/msg/TwistStamped')()
        twist.twist.linear.x, twist.twist.angular.z = map(float, base)
        self.publishers[BASE].publish(twist)

    def until(self, condition, what, timeout=30.0):
        deadline = time.monotonic() + timeout
        while not condition():
            assert not self.node.failure, self.node.failure
            assert time.monotonic() < deadline, f'waited {timeout} s for {what}'
            time.sleep(0.01)

    def count(self, topic):
        return len(self.messages[topic])

    def velocity(self, joint=WRIST):
        return self.messages['joint_states'][-1].velocity[joint]


def drive(velocity):
    return [velocity if joint == WRIST else 0.0 for joint in range(6)]


def test_topics_have_their_rates_frames_and_strictly_rising_stamps():
    topics = ('joint_states', 'imu/data', 'odom', 'conveyor_status', 'ground_truth/part',
              'scene/image/compressed', 'camera/color/image_raw', 'camera/depth/image_raw',
              '/clock', '/diagnostics')
    with Bench(*topics, publish_clock=True, seed=2) as bench:
        bench.until(lambda: bench.count('joint_states') > 250, 'joint states')
        messages = {topic: list(some) for topic, some in bench.messages.items()}
    distances = {topic: np.diff([stamp(message) for message in messages[topic]]) / 1e6
                 for topic in topics[:-1]}
    # Simulated time: exact, however busy this machine is.
    assert set(distances['joint_states']) == set(distances['imu/data']) == {10.0}
    assert set(distances['/clock']) == {10.0}
    assert set(distances['odom']) == {20.0}
    assert set(distances['conveyor_status']) == {100.0}
    assert set(distances['ground_truth/part']) <= {10.0}
    for topic in ('camera/color/image_raw', 'camera/depth/image_raw', 'scene/image/compressed'):
        # A renderer that is behind may leave a picture out; none comes twice or out of order.
        assert distances[topic].min() >= 30.0
    assert np.median(distances['camera/color/image_raw']) <= 40.0
    color, depth = (messages[topic][-1] for topic in topics[6:8])
    assert (color.encoding, color.height, color.width, color.step) == ('rgb8', 96, 96, 288)
    assert (depth.encoding, depth.step, len(depth.data)) == ('32FC1', 384, 96 * 96 * 4)
    assert color.header.frame_id == depth.header.frame_id == 'camera_optical_frame'
    assert messages['imu/data'][0].header.frame_id == 'imu_link'
    assert messages['ground_truth/part'][0].header.frame_id == 'base_link'
    assert (messages['odom'][0].header.frame_id, messages['odom'][0].child_frame_id) == (
        'odom', 'base_link')
    names = messages['joint_states'][0].name
    assert names[0] == 'shoulder_pan_joint' and names[6:] == ['left_wheel_joint',
                                                              'right_wheel_joint']
    assert bytes(messages['scene/image/compressed'][0].data[:2]) == b'\xff\xd8'
    published = [json.loads(value.value) for message in messages['/diagnostics']
                 for status in message.status for value in status.values
                 if value.key == 'info.published']
    assert published[-1]['joint_states'] == (published[-1]['until'] - 10**9) // 10**7 + 1


def test_stamps_on_the_systems_clock_are_the_time_of_measurement():
    with Bench('joint_states') as bench:
        bench.until(lambda: bench.count('joint_states') > 30, 'joint states')
        now = time.time_ns()
        stamps = np.array([stamp(message) for message in bench.messages['joint_states']])
    assert (np.diff(stamps) > 0).all()
    assert (stamps <= now + 50_000_000).all()    # nothing from the future but what came since
    assert now - stamps[0] < 30e9
    assert np.median(np.diff(stamps)) == pytest.approx(1e7, rel=0.02)


def test_silence_brakes_the_arm_and_bad_commands_are_ignored():
    with Bench('joint_states', '/diagnostics', publish_clock=True, sensor_noise=0.0,
               command_timeout=0.1) as bench:
        bench.until(lambda: bench.count('joint_states'), 'joint states')
        driving = threading.Event()
        bench.answer['joint_states'] = lambda message: (
            driving.is_set() and bench.command(drive(0.5)))
        driving.set()
        bench.until(lambda: abs(bench.velocity() - 0.5) < 0.02, 'the wrist to move')
        # A broken command beside good ones changes nothing.
        for data in ([float('nan')] * 6, [0.1] * 5, []):
            bench.publishers[ARM].publish(
                message_class('std_msgs/msg/Float64MultiArray')(data=data))
        start = bench.count('joint_states')
        bench.until(lambda: bench.count('joint_states') > start + 20, 'more joint states')
        assert abs(bench.velocity() - 0.5) < 0.02
        # Broken commands alone are no sign of life: the arm is braked by the timeout.
        driving.clear()
        bench.answer['joint_states'] = lambda message: bench.publishers[ARM].publish(
            message_class('std_msgs/msg/Float64MultiArray')(data=[float('inf')] * 6))
        last = bench.count('joint_states')
        bench.until(lambda: bench.count('joint_states') > last + 40, 'the timeout')
        speeds = [abs(message.velocity[WRIST]) for message in bench.messages['joint_states']]
        # Commands in flight when driving ended may still come for a few ticks.
        moving = [index for index in range(last, len(speeds)) if speeds[index] > 0.45]
        assert moving and moving[-1] - last < 10 + 10
        assert max(speeds[last + 30:]) < 0.01
        bench.until(lambda: any(
            value.key == 'fault.commands' and 'braked: arm' in value.value
            for message in bench.messages['/diagnostics'][-2:] for status in message.status
            for value in status.values), 'the fault in /diagnostics')
        # And good ones are followed again.
        bench.answer['joint_states'] = lambda message: bench.command(drive(-0.5))
        bench.until(lambda: abs(bench.velocity() + 0.5) < 0.02, 'the wrist to move again')


def test_cell_stands_still_until_somebody_drives_but_its_sensors_speak():
    with Bench('joint_states', 'conveyor_status', publish_clock=True, wait_for_driver=True,
               real_time_factor=4.0) as bench:
        bench.answer['joint_states'] = lambda message: bench.publishers[ARM].publish(
            message_class('std_msgs/msg/Float64MultiArray')(data=[0.0] * 6))
        bench.until(lambda: bench.count('joint_states') > 150, 'joint states')
        assert {message.seen for message in bench.messages['conveyor_status']} == {0}
        bench.answer['joint_states'] = lambda message: bench.command([0.0] * 6)
        bench.until(lambda: bench.messages['conveyor_status'][-1].seen == 1, 'the first part')
        stamps = [stamp(message) for message in bench.messages['joint_states']]
    assert set(np.diff(stamps)) == {10**7}


def run_in_lock_step(seed, ticks=60):
    """Return joint positions and images of a run whose commands depend on what was measured."""
    with Bench('joint_states', 'camera/color/image_raw', publish_clock=True, lock_step=True,
               real_time_factor=0.0, seed=seed, scene_rate=0.0) as bench:
        def answer(message):
            bench.command(0.5 * np.sin(np.array(message.position[:6]) * 7), base=(0.05, 0.1))
        bench.answer['joint_states'] = answer
        bench.until(lambda: bench.count('joint_states') > ticks, 'the run', 60.0)
        joints = {stamp(message): tuple(message.position)
                  for message in bench.messages['joint_states'][:ticks]}
        images = {stamp(message): bytes(message.data)
                  for message in bench.messages['camera/color/image_raw']
                  if stamp(message) in joints}
    return joints, images


def test_lock_step_is_deterministic():
    (joints, images), (again, images_again) = run_in_lock_step(5), run_in_lock_step(5)
    assert len(joints) == 60 and joints == again
    common = set(images) & set(images_again)
    assert len(common) >= 10 and all(images[key] == images_again[key] for key in common)
    other, _ = run_in_lock_step(6)
    assert other != joints


def test_expert_proposes_demonstrates_and_marks_what_became_of_each_part():
    topics = ('joint_states', 'action_distribution', 'demonstration/arm_velocity',
              'demonstration/gripper', 'demonstration/base', 'episode', 'conveyor_status')
    with Bench(*topics, publish_clock=True, lock_step=True, real_time_factor=0.0, scene_rate=0.0,
               expert=True, expert_noise=0.1, seed=1) as bench:
        # Proposals go to the robot as they are; here nothing can be hurt.
        bench.answer['action_distribution'] = lambda message: bench.command(
            message.chosen[:6], message.chosen[6], message.chosen[7:9])
        bench.until(lambda: bench.count('episode') >= 3
                    and bench.messages['conveyor_status'][-1].picked, 'the first part', 60.0)
        messages = {topic: list(some) for topic, some in bench.messages.items()}
    kinds = [message.kind for message in messages['episode'][:3]]
    assert kinds == [0, 1, 0]    # start, success, start of the next
    first, end, second = messages['episode'][:3]
    assert first.episode == end.episode != second.episode
    assert messages['conveyor_status'][-1].picked == 1
    proposal = messages['action_distribution'][50]
    assert (proposal.components, proposal.horizon, proposal.model_version) == (1, 1, 'expert')
    assert list(proposal.weights) == [1.0] and len(proposal.means) == 9
    assert list(proposal.means) == list(proposal.chosen)
    # The demonstration is clean, the proposal is disturbed; the rest of it is the same.
    pairs = list(zip(messages['action_distribution'], messages['demonstration/arm_velocity'],
                     strict=False))[:200]
    difference = np.array([np.array(a.chosen[:6]) - np.array(b.data) for a, b in pairs])
    assert 0.02 < difference.std() < 0.2


def test_parameters_that_contradict_each_other_are_refused():
    assert sim_node.SimSettings(publish_clock=True, real_time_factor=0.5)
    with pytest.raises(ValueError, match='0.5 needs publish_clock'):
        sim_node.SimSettings(real_time_factor=0.5)
    with pytest.raises(ValueError, match='conditions: must be one of'):
        sim_node.SimSettings(conditions='strange')
