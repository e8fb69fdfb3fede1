"""The trainer on a running graph: it collects, fits, reports, and hands nothing out."""

import math
from array import array

import pytest

pytest.importorskip('rclpy')
pytest.importorskip('torch')

from bench_robot import BenchRobot, Graph, until
from geometry_msgs.msg import TwistStamped
from rclpy.parameter import Parameter
from std_msgs.msg import Float64MultiArray

from liquid_policy.checkpoint import encoder_identity
from liquid_policy_msgs.msg import Features, ModelUpdate, TrainerStatus
from liquid_policy_node import qos
from liquid_trainer_node.trainer_node import TrainerNode


class Teacher(BenchRobot):
    """A robot that is also being shown what to do."""

    def __init__(self, identity):
        super().__init__(camera=False)
        self.identity, self.showing = identity, False
        self.reports, self.updates = [], []
        self._arm = self.create_publisher(
            Float64MultiArray, 'demonstration/arm_velocity', qos.STATUS)
        self._gripper = self.create_publisher(
            Float64MultiArray, 'demonstration/gripper', qos.STATUS)
        self._base = self.create_publisher(TwistStamped, 'demonstration/base', qos.STATUS)
        self._seen = self.create_publisher(Features, 'features', qos.STREAM_OUT)
        self.create_subscription(TrainerStatus, 'trainer_status', self.reports.append, qos.STATUS)
        self.create_subscription(
            ModelUpdate, 'model_update', self.updates.append, qos.MODEL_UPDATE)
        self.create_timer(0.01, self._show)
        self.create_timer(1 / 30, self._see)

    def _show(self):
        if not self.showing:
            return
        self._arm.publish(Float64MultiArray(data=array('d', [0.1] * 6)))
        self._gripper.publish(Float64MultiArray(data=array('d', [1.0])))
        base = TwistStamped()
        base.header.stamp = self.stamp()
        self._base.publish(base)

    def _see(self):
        message = Features(encoder_id=self.identity, values=array('f', [0.1] * 128))
        message.header.stamp = self.stamp()
        self._seen.publish(message)


@pytest.fixture(scope='module')
def running(tmp_path_factory):
    """A teacher and a trainer."""
    import rclpy
    from untrained_policy import untrained_checkpoint
    checkpoint = untrained_checkpoint()
    path = tmp_path_factory.mktemp('trainer') / 'untrained.safetensors'
    checkpoint.save(path)
    rclpy.init()
    teacher = Teacher(encoder_identity(checkpoint))
    node = TrainerNode(parameter_overrides=[
        Parameter('checkpoint', value=str(path)), Parameter('window', value=0.3),
        Parameter('learning_rate', value=3e-3), Parameter('cpu_share', value=0.5),
        Parameter('training_niceness', value=0)])
    graph = Graph(teacher, node)
    assert until(lambda: node.active)
    yield teacher, node, graph
    graph.close()
    rclpy.try_shutdown()


def test_it_waits_collects_fits_and_promotes_nothing(running):
    """The states in order; the loss falls; no ModelUpdate ever."""
    teacher, node, graph = running
    assert until(lambda: teacher.reports)
    first = teacher.reports[0]
    assert first.state == TrainerStatus.WAITING and math.isnan(first.loss) and not first.steps
    teacher.showing = True
    assert until(lambda: teacher.reports[-1].steps >= 20, 90.0), teacher.reports[-1].detail
    report = teacher.reports[-1]
    assert report.state == TrainerStatus.FITTING and report.windows >= 2
    assert report.learning_rate == pytest.approx(3e-3) and 0.0 < report.cpu_share < 0.9
    assert until(lambda: teacher.reports[-1].loss < teacher.reports[-1].loss_start, 60.0)
    assert not teacher.updates


def test_bad_demonstrations_are_reported_and_do_not_end_it(running):
    """Too few numbers and NaN: an error each, and windows go on."""
    teacher, node, graph = running
    teacher.showing = False
    for data in ([0.1] * 3, [float('nan')] * 6):
        graph.run(lambda data=data: teacher._arm.publish(
            Float64MultiArray(data=array('d', data))))
    assert until(lambda: node.diagnostics.total('bad_demonstration/arm_velocity') >= 2)
    windows = node._windows
    teacher.showing = True
    assert until(lambda: node._windows > windows + 1, 20.0)
