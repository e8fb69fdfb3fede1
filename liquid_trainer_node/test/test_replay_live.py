"""What is replayed offline is what the nodes answer to the same bag over ROS, bit for bit."""

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('liquid_policy_msgs.msg')
pytest.importorskip('torch')

from bench_robot import Graph, until
from builtin_interfaces.msg import Time
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from recorded_run import TYPES, record
from rosgraph_msgs.msg import Clock
from untrained_policy import untrained_checkpoint

from liquid_policy_msgs.msg import ActionDistribution, Features, SafetyStatus
from liquid_policy_node.perception_node import PerceptionNode
from liquid_policy_node.policy_node import PolicyNode
from liquid_policy_node.resources import message_class
from liquid_policy_node.safety_node import SafetyNode, SafetySettings
from liquid_trainer.offline_nodes import Judged, NodeParameters, Proposed
from liquid_trainer.playback import Playback

ROOT = Path(__file__).parents[2]
DESCRIPTION = ROOT / 'liquid_policy_node' / 'urdf' / 'manipulator.urdf.xacro'
ALL = QoSProfile(depth=1000)        # reliable
SECOND = 1_000_000_000


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """An untrained policy and its file."""
    made = untrained_checkpoint()
    path = tmp_path_factory.mktemp('checkpoint') / 'untrained.safetensors'
    made.save(path)
    return made, str(path)


@pytest.fixture
def ros():
    """An initialised rclpy."""
    import rclpy
    rclpy.init()
    yield rclpy
    rclpy.try_shutdown()


class Player(Node):
    """
    Plays a bag to the nodes in step with their answers, so that the machine's speed is no matter.

    A node that has not taken a message is sent it again: repeated stamps change nothing. Features
    and proposals pass through here, so that they too can be sent again.
    """

    def __init__(self, nodes, topics):
        super().__init__('player')
        self.taken = Counter()
        self.nodes = {node.get_name(): node for node in nodes}
        self.features, self.proposals, self.statuses = [], [], []
        for kind, topic, kept in ((Features, 'made/features', self.features),
                                  (ActionDistribution, 'made/action_distribution',
                                   self.proposals),
                                  (SafetyStatus, 'safety_status', self.statuses)):
            self.create_subscription(kind, topic, kept.append, ALL)
        self._outputs = {topic: self.create_publisher(message_class(kind), topic, ALL)
                         for topic, kind in topics.items()}
        for name, kind in (('features', Features), ('action_distribution', ActionDistribution),
                           ('/clock', Clock)):
            self._outputs[name] = self.create_publisher(kind, name, ALL)
        for node in nodes:
            self._watch(node)

    def _watch(self, node):
        """Count what a node has taken."""
        guard, name = node.guard, node.get_name()

        def counted(topic, *arguments):
            result = guard(topic, *arguments)
            self.taken[name, topic] += 1
            return result
        node.guard = counted

    def set_clock(self, now):
        """Bring every node's clock to a time [ns]."""
        message = Clock(clock=Time(sec=now // SECOND, nanosec=now % SECOND))
        self._until(lambda: self._outputs['/clock'].publish(message),
                    lambda: all(node.ros_now() == now for node in self.nodes.values()))

    def send(self, topic, message, node, as_topic=None):
        """Send a message until a node has taken it."""
        key = (node, as_topic or topic)
        before = self.taken[key]
        self._until(lambda: self._outputs[topic].publish(message),
                    lambda: self.taken[key] > before)

    @staticmethod
    def wait(kept, count):
        """Wait until as many answers have come."""
        assert until(lambda: len(kept) >= count), f'{len(kept)} of {count} answers came'

    @staticmethod
    def _until(work, condition):
        deadline = time.monotonic() + 30.0
        while time.monotonic() < deadline:
            work()
            again = time.monotonic() + 0.5
            while time.monotonic() < again:
                if condition():
                    return
                time.sleep(0.0003)
        raise AssertionError('a node does not answer')


def remapped(node_class, remaps, **parameters):
    """Make a node that lives in simulated time and waits to be activated."""
    arguments = [part for pair in remaps.items() for part in ('-r', ':='.join(pair))]
    given = {'use_sim_time': True, 'autostart': False, **parameters}
    return node_class(
        cli_args=['--ros-args', *arguments] if arguments else None,
        parameter_overrides=[Parameter(name, value=value) for name, value in given.items()])


def play_live(playback, path):
    """Play the bag to the three nodes; what offline replay answers says what to wait for."""
    nodes = (
        remapped(PerceptionNode, {'features': 'made/features'}, checkpoint=path),
        remapped(PolicyNode, {'action_distribution': 'made/action_distribution'},
                 checkpoint=path, answer_images=playback.parameters.answer_images),
        # Joint states of its own: they are to come before the proposal they cause.
        remapped(SafetyNode, {'joint_states': 'safety/joint_states'}))
    bag_topics = {topic.lstrip('/'): kind for topic, kind in playback.bag.topics.items()}
    player = Player(nodes, {**bag_topics, 'safety/joint_states': 'sensor_msgs/msg/JointState'})
    graph = Graph(player, *nodes)
    answers = []
    try:
        player.set_clock(playback.start)
        for node in nodes:
            graph.run(node.trigger_configure)
            graph.run(node.trigger_activate)
        assert all(node.active for node in nodes)
        player.statuses.clear()
        pictures = 0
        for delivery in playback.deliveries():
            found = playback.deliver(delivery)
            begun = [type(answer) for answer in answers]
            proposals, statuses = begun.count(Proposed), begun.count(Judged)
            answers += found
            player.set_clock(delivery.now)
            while found and isinstance(found[0], Judged):       # the timer's
                statuses += 1
                player.wait(player.statuses, statuses)
                found = found[1:]
            topic = delivery.record.topic.lstrip('/')
            if 'demonstration' in topic:
                continue
            data = bytes(TYPES.serialize_cdr(delivery.record.message, delivery.record.type))
            if topic.startswith('camera'):
                player.send(topic, data, 'perception')
                pictures += 1
                if pictures % 2 == 0:           # colour and depth together
                    player.wait(player.features, pictures // 2)
                    player.send('features', player.features[-1], 'policy')
            elif topic in playback.safety.topics():
                player.send(topic, data, 'safety')
            else:
                if topic == 'joint_states':
                    player.send('safety/joint_states', data, 'safety', as_topic='joint_states')
                player.send(topic, data, 'policy')
            for answer in found:
                if isinstance(answer, Proposed):
                    proposals += 1
                    player.wait(player.proposals, proposals)
                    player.send('action_distribution', player.proposals[-1], 'safety')
                else:
                    statuses += 1
                    player.wait(player.statuses, statuses)
        return answers, player.proposals, list(player.statuses)
    finally:
        graph.close()


def nanoseconds(stamp):
    return stamp.sec * SECOND + stamp.nanosec


@pytest.mark.timeout(300)       # seconds where the machine is free, minutes where it is not
def test_offline_replay_equals_the_nodes_message_for_message(ros, checkpoint, tmp_path):
    """Every proposal and every safety status, with gaps, repeated stamps and a NaN in the bag."""
    made, path = checkpoint
    bag = record(tmp_path / 'bag', made.interface)
    playback = Playback(bag, made, DESCRIPTION, NodeParameters(answer_images=True))
    answers, messages, statuses = play_live(playback, path)
    proposals = [answer for answer in answers if isinstance(answer, Proposed)]
    judged = [answer for answer in answers if isinstance(answer, Judged)]
    assert len(proposals) > 60 and len(judged) > 80
    assert {'LIMITING', 'BRAKING'} <= {answer.result.state.name for answer in judged}

    assert [nanoseconds(message.header.stamp) for message in messages] == [
        answer.stamp for answer in proposals]
    for message, answer in zip(messages, proposals, strict=True):
        step = answer.step
        assert nanoseconds(message.image_stamp) == answer.aligned.image_stamp
        assert message.chosen_component == step.component
        for name, values in (('weights', step.distribution.weights),
                             ('means', step.distribution.means),
                             ('standard_deviations', step.distribution.scales),
                             ('chosen', step.chosen)):
            assert np.array_equal(np.array(getattr(message, name), np.float32), values.ravel())

    assert [nanoseconds(status.header.stamp) for status in statuses] == [
        answer.time for answer in judged]
    for status, answer in zip(statuses, judged, strict=True):
        assert status.state == answer.result.state
        assert tuple(status.reasons) == answer.result.reasons
        assert tuple(status.active_constraints) == answer.result.active
        assert np.array_equal(status.issued, answer.result.command)
        assert np.array_equal(status.proposed, [] if answer.wanted is None else answer.wanted)


def test_replay_has_the_nodes_defaults():
    """A parameter added to or changed in a node is to be changed in the replay as well."""
    mine, theirs = NodeParameters(), SafetySettings()
    for name, field in NodeParameters.__dataclass_fields__.items():
        if field.metadata['node'] == 'safety':
            assert getattr(mine, name) == getattr(theirs, name), name
    decided_elsewhere = {
        'autostart', 'robot', 'niceness', 'priority', 'executor', 'description'}
    assert set(SafetySettings.__dataclass_fields__) - decided_elsewhere <= set(
        NodeParameters.__dataclass_fields__)
