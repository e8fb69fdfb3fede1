"""The trainer on a running graph: it collects, learns, promotes, watches, reports."""

import json
import math
from array import array
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

pytest.importorskip('rclpy')
pytest.importorskip('torch')

from bench_robot import ACTIONS, UNITS, BenchRobot, Graph, until
from geometry_msgs.msg import TwistStamped
from rclpy.parameter import Parameter
from std_msgs.msg import Float64MultiArray

from liquid_policy.checkpoint import encoder_identity, load_checkpoint
from liquid_policy.interface import load_interface
from liquid_policy_msgs.msg import (
    ActionDistribution,
    EpisodeMarker,
    Features,
    ModelUpdate,
    TrainerStatus,
)
from liquid_policy_node import qos
from liquid_trainer_node.trainer_node import TrainerNode

SHIPPED = Path(__file__).resolve().parents[2] / 'liquid_policy_node' / 'config' \
    / 'manipulator.interface.yaml'
PERIOD = 0.1    # of everything [s]: a tenth of the real rate, so that a busy machine keeps up


def slow_interface(folder):
    """Write the manipulator's interface for a robot that is slow and patient; return its path."""
    text = yaml.safe_load(SHIPPED.read_text())
    text['rate'] = 1 / PERIOD
    sources = [text['features'], *text['observations'].values(), *text['actions'].values(),
               *text['targets'].values()]
    for source in sources:
        source['rate'], source['max_age'] = 1 / PERIOD, 3.0
    for source in text['actions'].values():
        source['max_age'] = 1.0
    path = folder / 'manipulator.interface.yaml'
    path.write_text(yaml.safe_dump(text, sort_keys=False))
    return path


class Teacher(BenchRobot):
    """A robot that is also being shown what to do, and a policy that takes what is announced."""

    def __init__(self, identity, version):
        super().__init__(camera=False)
        self.identity, self.version = identity, version
        self.showing = self.proposing = False
        self.reports, self.updates = [], []
        self._arm = self.create_publisher(
            Float64MultiArray, 'demonstration/arm_velocity', qos.STATUS)
        self._gripper = self.create_publisher(
            Float64MultiArray, 'demonstration/gripper', qos.STATUS)
        self._base = self.create_publisher(TwistStamped, 'demonstration/base', qos.STATUS)
        self._seen = self.create_publisher(Features, 'features', qos.STREAM_OUT)
        self.markers = self.create_publisher(EpisodeMarker, 'episode', qos.EPISODE)
        self.create_subscription(TrainerStatus, 'trainer_status', self.reports.append, qos.STATUS)
        self.create_subscription(ModelUpdate, 'model_update', self._on_update, qos.MODEL_UPDATE)
        self.create_timer(PERIOD, self._show)
        self.create_timer(PERIOD, self._see)

    def create_timer(self, period, callback, **more):
        """Slow down what the bench robot does at 100 Hz."""
        return super().create_timer(max(period, PERIOD), callback, **more)

    def _on_update(self, message):
        self.updates.append(message)
        self.version = message.version

    def _show(self):
        if not self.showing:
            return
        self._arm.publish(Float64MultiArray(data=array('d', [0.1] * 6)))
        self._gripper.publish(Float64MultiArray(data=array('d', [1.0])))
        base = TwistStamped()
        base.header.stamp = self.stamp()
        self._base.publish(base)

    def send(self, topic, message):
        """Propose along with every joint state, with the same stamp."""
        super().send(topic, message)
        if topic == 'joint_states' and self.proposing:
            proposal = ActionDistribution(
                model_version=self.version, action_names=list(ACTIONS),
                action_units=list(UNITS), dt=0.02, horizon=1, components=1, weights=[1.0],
                chosen=[0.1] * 6 + [1.0, 0.0, 0.0])
            proposal.header = message.header
            self._outputs['action_distribution'].publish(proposal)

    def _see(self):
        message = Features(encoder_id=self.identity, values=array('f', [0.1] * 128))
        message.header.stamp = self.stamp()
        self._seen.publish(message)


@pytest.fixture(scope='module')
def running(tmp_path_factory):
    """A teacher and a trainer."""
    import rclpy
    from untrained_policy import untrained_checkpoint
    folder = tmp_path_factory.mktemp('trainer')
    interface = slow_interface(folder)
    checkpoint = replace(untrained_checkpoint(), interface=load_interface(interface))
    path = folder / 'untrained.safetensors'
    checkpoint.save(path)
    rclpy.init()
    teacher = Teacher(encoder_identity(checkpoint), checkpoint.version)
    node = TrainerNode(parameter_overrides=[
        Parameter('robot', value=str(interface)),
        Parameter('checkpoint', value=str(path)), Parameter('window', value=0.4),
        Parameter('stride', value=0.2), Parameter('folder', value=str(folder / 'online')),
        Parameter('learning_rate', value=3e-3), Parameter('cpu_share', value=0.5),
        Parameter('period', value=0.2), Parameter('training_niceness', value=0)])
    graph = Graph(teacher, node)
    assert until(lambda: node.active)
    yield teacher, node, graph, folder / 'online'
    graph.close()
    rclpy.try_shutdown()


@pytest.mark.timeout(600)
def test_it_waits_collects_learns_and_promotes_what_is_better(running):
    """States in order; the loss falls; an announced file is whole and named in the journal."""
    teacher, node, graph, folder = running
    assert until(lambda: teacher.reports)
    first = teacher.reports[0]
    assert first.state == TrainerStatus.WAITING and math.isnan(first.loss) and not first.steps
    teacher.showing = teacher.proposing = True
    assert until(lambda: teacher.reports[-1].steps >= 5, 240.0), \
        (teacher.reports[-1].detail, node.diagnostics._counts)
    report = teacher.reports[-1]
    assert report.windows >= 2 and 0.0 < report.learning_rate <= 3e-3
    assert report.cpu_share > 0.0 and not report.trouble
    assert until(lambda: teacher.updates, 240.0), teacher.reports[-1].decision
    update = teacher.updates[0]
    assert load_checkpoint(update.path, update.sha256).version == update.version
    assert update.score_after < update.score_before
    events = [json.loads(line)['event'] for line in (folder / 'journal.jsonl').open()]
    assert 'promoted' in events
    assert until(lambda: teacher.reports[-1].promotions >= 1, 120.0)
    assert teacher.reports[-1].score_candidate < teacher.reports[-1].score_running


@pytest.mark.timeout(600)
def test_bad_numbers_are_reported_and_do_not_end_it(running):
    """Too few numbers and NaN: an error each, and windows go on."""
    teacher, node, graph, _ = running
    teacher.showing = False
    for data in ([0.1] * 3, [float('nan')] * 6):
        graph.run(lambda data=data: teacher._arm.publish(
            Float64MultiArray(data=array('d', data))))
    assert until(lambda: node.diagnostics.total('bad_demonstration/arm_velocity') >= 2)
    windows = node._windows
    teacher.showing = True
    assert until(lambda: node._windows > windows + 1, 120.0)


@pytest.mark.timeout(600)
def test_a_discarded_episode_is_forgotten(running):
    """Windows of an episode carry its name until the marker says that they are worth nothing."""
    teacher, node, graph, folder = running
    teacher.showing = True
    start = EpisodeMarker(kind=EpisodeMarker.START, episode='spoiled')
    graph.run(lambda: teacher.markers.publish(start))
    assert until(lambda: node._collector.episode == 'spoiled')
    windows = node._windows
    assert until(lambda: node._windows > windows + 12, 240.0)
    graph.run(lambda: teacher.markers.publish(
        EpisodeMarker(kind=EpisodeMarker.DISCARD, episode='spoiled')))

    def discarded():
        lines = [json.loads(line) for line in (folder / 'journal.jsonl').open()]
        return [line for line in lines if line['event'] == 'discarded']
    assert until(discarded, 240.0)
    assert discarded()[0]['windows'] >= 1


@pytest.mark.timeout(600)
def test_stamps_that_stand_still_are_named(running):
    """Messages whose stamp never moves are of no use; the status says which."""
    teacher, node, graph, _ = running
    teacher.showing = True
    frozen = teacher.stamp()

    def stand(message):
        message.header.stamp = frozen
        return message
    teacher.alter.update({'joint_states': stand})
    graph.run(lambda: setattr(node, '_newest', node._newest - 60_000_000_000))
    assert until(lambda: 'joint_positions: stamp repeated' in teacher.reports[-1].detail, 120.0), \
        teacher.reports[-1].detail
    assert teacher.reports[-1].state == TrainerStatus.PAUSED
    teacher.alter.clear()
    windows = node._windows
    assert until(lambda: node._windows > windows, 120.0)
