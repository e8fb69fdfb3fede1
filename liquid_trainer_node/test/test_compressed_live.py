"""Compressed images: the perception node sees what is read from a bag; broken ones are dropped."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('liquid_policy_msgs.msg')
pytest.importorskip('torch')
pytest.importorskip('cv2')

from bench_robot import Graph, until
from compressed_pictures import compressed_interface, fields_of
from rclpy.node import Node
from rclpy.parameter import Parameter
from recorded_run import MILLISECOND, TYPES, stamped
from sensor_msgs.msg import CompressedImage
from untrained_policy import untrained_checkpoint

from liquid_policy.conversion import stamp_of
from liquid_policy_msgs.msg import Features
from liquid_policy_node import qos
from liquid_policy_node.perception_node import PerceptionNode
from liquid_trainer.bags import Bag
from liquid_trainer.message_types import new_message
from liquid_trainer.offline_nodes import OfflinePerception
from liquid_trainer.recording import BagWriter

FRAMES, BROKEN = 12, (3, 4, 8)


class Camera(Node):
    """Sends serialized images and keeps the features that come back, by stamp."""

    def __init__(self, topics):
        super().__init__('camera')
        self.features = {}
        self.outputs = {topic: self.create_publisher(CompressedImage, topic, qos.IMAGE)
                        for topic in topics}
        self.create_subscription(Features, 'features', self._keep, qos.STREAM_IN)

    def send(self, topic, data, taken):
        """Send until the node has taken it: a stamp that it has seen before changes nothing."""
        before = taken[topic]
        assert until(lambda: self.outputs[topic].publish(data) or until(
            lambda: taken[topic] > before, 0.5))

    def _keep(self, message):
        self.features[stamp_of(message)] = np.array(message.values, np.float32)


def record_camera(path, specs, start):
    """Write a bag of a camera that sees noise and sends some pictures broken."""
    rng = np.random.default_rng(0)
    broken = {3: lambda data: data[:len(data) // 2], 4: lambda data: data[:0],
              8: lambda data: np.full_like(data, 7)}
    with BagWriter(path, {spec.topic: spec.type for spec in specs}, durable=False) as writer:
        for number in range(FRAMES):
            stamp = start + number * 33 * MILLISECOND
            for spec in specs:
                shape = (spec.height, spec.width)
                pixels = rng.uniform(0.5, 1.5, shape).astype(np.float32) if spec.is_depth \
                    else rng.integers(0, 255, (*shape, 3), dtype=np.uint8)
                fields = fields_of(spec, pixels)
                # Half of a colour image, and no depth image at all, and so on.
                if number in broken and spec.is_depth == (number == 4):
                    fields['data'] = broken[number](fields['data'])
                writer.write(spec.topic, stamp, stamped(
                    new_message(TYPES, spec.type, **fields), stamp))
    return Bag(path)


@pytest.fixture
def seen(tmp_path):
    """The checkpoint, and where it is, of a robot with compressed images."""
    made = untrained_checkpoint()
    made = replace(made, interface=compressed_interface(made.interface))
    made.save(tmp_path / 'compressed.safetensors')
    (tmp_path / 'compressed.interface.yaml').write_text(made.interface.to_yaml())
    import rclpy
    rclpy.init()
    yield made, tmp_path
    rclpy.try_shutdown()


def test_features_of_the_node_are_those_of_the_replay_and_broken_images_are_counted(seen):
    """Bit for bit; the broken ones bring no features and an error each, the next one is seen."""
    checkpoint, folder = seen
    node = PerceptionNode(parameter_overrides=[
        Parameter('robot', value=str(folder / 'compressed.interface.yaml')),
        Parameter('checkpoint', value=str(folder / 'compressed.safetensors'))])
    taken, guard = Counter(), node.guard

    def counted(topic, *arguments):
        result = guard(topic, *arguments)
        taken[topic] += 1
        return result
    node.guard = counted
    specs = checkpoint.interface.images
    camera = Camera([spec.topic for spec in specs.values()])
    graph = Graph(camera, node)
    try:
        assert until(lambda: node.active)
        start = node.ros_now() - 2_000 * MILLISECOND
        bag = record_camera(folder / 'bag', list(specs.values()), start)
        offline = OfflinePerception(checkpoint)
        expected, refused = {}, 0
        for record in bag.messages():
            spec = next(s for s in specs.values() if f'/{s.topic}' == record.topic)
            data = bytes(TYPES.serialize_cdr(record.message, record.type))
            camera.send(spec.topic, data, taken)
            try:
                found = offline.look(spec, record.message, start + 1_000 * MILLISECOND)
            except ValueError:
                refused += 1
                found = None
            if found is not None:
                expected[found[0]] = found[1]
                assert until(lambda: len(camera.features) == len(expected))
        assert refused == len(BROKEN) and len(expected) == FRAMES - len(BROKEN)
        assert camera.features.keys() == expected.keys()
        for stamp, values in expected.items():
            assert np.array_equal(camera.features[stamp], values)
        bad = sum(node.diagnostics.total(f'bad_{spec.topic}') for spec in specs.values())
        assert bad >= refused and node.active
    finally:
        graph.close()
