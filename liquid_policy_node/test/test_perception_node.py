"""Perception on a running graph: newest pair in, features out, bad images reported."""

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('onnxruntime')

from bench_robot import BenchRobot, Graph, until
from rclpy.parameter import Parameter

from liquid_policy.checkpoint import load_checkpoint
from liquid_policy.runtime import EncoderRuntime
from liquid_policy_msgs.srv import LoadModel
from liquid_policy_node.perception_node import PerceptionNode

COLOR, DEPTH = 'camera/color/image_raw', 'camera/depth/image_raw'


@pytest.fixture(scope='module')
def running(checkpoint):
    """One camera and one perception node for the whole file."""
    import rclpy
    rclpy.init()
    robot = BenchRobot()
    node = PerceptionNode(parameter_overrides=[Parameter('checkpoint', value=checkpoint)])
    graph = Graph(robot, node)
    assert until(lambda: node.active)
    yield robot, node, graph
    graph.close()
    rclpy.try_shutdown()


@pytest.fixture
def seeing(running):
    """Features are coming."""
    robot, node, graph = running
    robot.alter.clear()
    comes(robot)
    yield robot, node, graph
    robot.alter.clear()


def comes(robot):
    """Features keep coming."""
    count = len(robot.features)
    assert until(lambda: len(robot.features) > count + 2)


def test_features_are_those_of_the_encoder_and_carry_the_images_stamp(seeing, checkpoint):
    """A random image; the message equals the encoder run by hand."""
    robot, _, _ = seeing
    generator, sent = np.random.default_rng(3), {}

    def fill(message):
        if message.encoding == 'rgb8':
            pixels = generator.integers(0, 255, (96, 96, 3), dtype=np.uint8)
        else:
            pixels = generator.uniform(0.2, 2.0, (96, 96)).astype(np.float32)
        message.data = pixels.tobytes()
        stamp = (message.header.stamp.sec, message.header.stamp.nanosec)
        sent.setdefault(stamp, {})[message.encoding] = pixels
        return message
    robot.alter[COLOR] = robot.alter[DEPTH] = fill
    assert until(lambda: len(sent) > 4)
    message = until(lambda: next((
        message for _, message in reversed(robot.features)
        if (message.header.stamp.sec, message.header.stamp.nanosec) in sent), None))
    pixels = sent[(message.header.stamp.sec, message.header.stamp.nanosec)]
    expected = EncoderRuntime(load_checkpoint(checkpoint)).encode(pixels['rgb8'], pixels['32FC1'])
    np.testing.assert_array_equal(np.array(message.values), expected)
    assert message.header.frame_id == 'camera_optical_frame' and message.encoder_id


def altered(**changes):
    def alter(message):
        for name, value in changes.items():
            setattr(message, name, value)
        return message
    return alter


@pytest.mark.parametrize(('topic', 'alter', 'words'), [
    (COLOR, altered(width=64), 'expected 96x96 pixels, came 64x96'),
    (COLOR, altered(encoding='yuv422'), "expected encoding rgb8, came 'yuv422'"),
    (COLOR, altered(step=10), 'expected rows of at least 288 bytes, came step 10'),
    (COLOR, altered(data=bytes(100)), 'expected 27648 bytes, came 100'),
    (DEPTH, altered(encoding='16UC1'), "expected encoding 32FC1, came '16UC1'"),
    (DEPTH, altered(data=b''), 'expected 36864 bytes, came 0'),
    (DEPTH, lambda message: None, None),
], ids=['size', 'encoding', 'step', 'cut off', 'depth encoding', 'no data', 'silent'])
def test_a_bad_image_is_reported_and_good_ones_bring_features_back(
        seeing, topic, alter, words, capfd):
    """No features from it, an error that says what came, a count; then as before."""
    robot, node, _ = seeing
    before = node.diagnostics.total(f'bad_{topic}')
    node._logged.clear()
    capfd.readouterr()
    robot.alter[topic] = alter
    if words is not None:
        assert until(lambda: node.diagnostics.total(f'bad_{topic}') > before + 3)
        log = capfd.readouterr()
        assert words in log.out + log.err
    count = len(robot.features)
    assert not until(lambda: len(robot.features) > count + 1, 0.3)
    robot.alter.clear()
    comes(robot)


@pytest.mark.parametrize('offset', [-10.0, 3600.0], ids=['back', 'ahead'])
def test_wrong_stamps_are_ignored(seeing, offset):
    """Images from the past or the future make no features."""
    robot, node, _ = seeing

    def alter(message):
        message.header.stamp = robot.stamp(offset)
        return message
    robot.alter[COLOR] = robot.alter[DEPTH] = alter
    assert until(lambda: node.diagnostics.total(f'bad_{COLOR}') > 0)
    count = len(robot.features)
    assert not until(lambda: len(robot.features) > count + 1, 0.3)
    robot.alter.clear()
    comes(robot)


def test_another_encoder_is_loaded_between_two_images(seeing, make_checkpoint, tmp_path):
    """The identity changes; a broken file changes nothing."""
    robot, _, graph = seeing
    before = robot.features[-1][1].encoder_id
    broken = tmp_path / 'broken.safetensors'
    broken.write_bytes(b'\x80\x04K\x01.')
    answer = graph.call(LoadModel, 'perception/load_model', LoadModel.Request(path=str(broken)))
    assert not answer.success and 'pickle' in answer.message and answer.version == 'untrained_1'
    other = make_checkpoint('untrained_2', encoder='two')
    answer = graph.call(LoadModel, 'perception/load_model', LoadModel.Request(path=other))
    assert answer.success and answer.version == 'untrained_2'
    assert until(lambda: robot.features[-1][1].encoder_id != before)
