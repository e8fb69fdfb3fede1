"""Image features: the newest colour and depth image in, `Features` out."""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np

from liquid_policy.alignment import FramePairer
from liquid_policy.conversion import image_from_message
from liquid_policy.interface import load_interface
from liquid_policy.stamps import StampGuard, header_stamp
from liquid_policy_msgs.msg import Features, ModelUpdate
from liquid_policy_msgs.srv import LoadModel
from liquid_policy_node import qos
from liquid_policy_node.lifecycle import ManagedNode, NodeSettings, Refusal, run
from liquid_policy_node.models import Encoder, in_thread, load_encoder
from liquid_policy_node.parameters import parameter
from liquid_policy_node.resources import find_checkpoint, find_interface, message_class


@dataclass(frozen=True)
class PerceptionSettings(NodeSettings):
    """Parameters of the perception node."""

    checkpoint: str = parameter(
        '', "Checkpoint whose encoder is used, read when configuring; empty: the robot's "
        'shipped one.', live=True)
    threads: int = parameter(1, 'Threads of one encoding.', low=1, high=16)
    provider: str = parameter(
        'cpu', 'What computes it. tensorrt builds an engine at the first start, which takes '
        'minutes, and keeps it in ~/.cache/liquid_policy.', one_of=('cpu', 'cuda', 'tensorrt'))
    accept_updates: bool = parameter(
        False, 'Load what the trainer announces on model_update.', live=True)
    future_tolerance: float = parameter(
        0.1, "How far an image's stamp may lie ahead of the clock.", 's', low=0.0, high=1.0)


class PerceptionNode(ManagedNode):
    """
    Encodes images, the newest one only.

    Colour and depth belong together when their stamps do; an older pair is dropped as soon as a
    newer one is complete. Features carry the image's stamp.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__('perception', PerceptionSettings, **kwargs)

    def configure(self) -> None:
        """Load the encoder, create the topics."""
        settings = self.settings
        self._interface = load_interface(find_interface(settings.robot))
        self.robot = self._interface.robot
        features = self._interface.features
        if features is None:
            raise Refusal(f'{self.robot} has no images; do not start the perception node')
        chosen = [self._interface.images[name] for name in features.images]
        if len([spec for spec in chosen if not spec.is_depth]) != 1 or len(chosen) > 2:
            raise Refusal(
                'the encoder takes one colour image and at most one depth image, features.images '
                f'has {", ".join(features.images)}')
        self._encoder = self._load(
            str(find_checkpoint(settings.checkpoint, self._interface.robot)))
        self._features = self.create_publisher(Features, features.topic, qos.STREAM_OUT)
        self._stamp_guards = {
            spec.name: StampGuard(spec.topic, settings.future_tolerance) for spec in chosen}
        self._stack = features
        self._pairer = FramePairer(features)
        self._subscriptions_made = [
            self.subscribe(message_class(spec.type), spec.topic, self._reader(spec), qos.IMAGE)
            for spec in chosen]
        self._subscriptions_made.append(self.subscribe(
            ModelUpdate, 'model_update', self.on_update, qos.MODEL_UPDATE))
        self._service = self.create_service(LoadModel, '~/load_model', self.on_load)
        self._loading = False

    def activate(self) -> None:
        """Start with the next pair."""
        self._pairer = FramePairer(self._stack)

    def cleanup(self) -> None:
        """Destroy the topics, forget the encoder."""
        for subscription in self._subscriptions_made:
            self.destroy_subscription(subscription)
        self.destroy_service(self._service)
        self.destroy_publisher(self._features)
        del self._encoder

    def _reader(self, spec: Any) -> Any:
        def on_image(message: Any) -> None:
            now, stamp = self.ros_now(), header_stamp(message)
            self.diagnostics.tick(spec.name)
            if not self._stamp_guards[spec.name].accept(stamp, now):
                self.diagnostics.count(f'repeated_{spec.name}')
                return
            image = image_from_message(spec, message)
            pair = self._pairer.push(spec.name, stamp, (image, message.header.frame_id))
            if pair is not None:
                self._encode(*pair)
        return on_image

    def _encode(self, stamp: int, images: dict[str, Any]) -> None:
        """Features of one complete pair."""
        began = time.perf_counter()
        depth, color, frame = None, None, ''
        for name, (image, image_frame) in images.items():
            if self._interface.images[name].is_depth:
                depth = image
            else:
                color, frame = image, image_frame
        assert color is not None
        if depth is None:
            depth = np.zeros(color.shape[:2], np.float32)  # nothing known
        values = self._encoder.runtime.encode(color, depth)
        message = Features(encoder_id=self._encoder.identity)
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 1_000_000_000)
        message.header.frame_id = frame
        message.values = array('f', values.tobytes())
        self._features.publish(message)
        self.diagnostics.tick('features')
        self.diagnostics.latency('encode', time.perf_counter() - began)
        self.diagnostics.latency('image_to_features', 1e-9 * (self.ros_now() - stamp))
        self.diagnostics.info('unpaired_images', self._pairer.dropped)

    # Models.

    def _load(self, path: str, sha256: str = '') -> Encoder:
        encoder = load_encoder(self._interface, path, sha256, self.settings.threads,
                               self.settings.provider)
        self.diagnostics.info('model', encoder.version)
        self.diagnostics.info('encoder', encoder.identity)
        self.get_logger().info(f'encoder of {encoder.version} from {path}')
        return encoder

    async def on_load(
        self, request: LoadModel.Request, response: LoadModel.Response,
    ) -> LoadModel.Response:
        """Load an encoder beside the running one and swap between two images."""
        if self._loading:
            response.message = 'another checkpoint is being loaded; try again when it is done'
            response.version = self._encoder.version
            return response
        self._loading = True
        try:
            self._encoder = await in_thread(lambda: self._load(request.path, request.sha256))
            response.success, response.message = True, f'encoder of {self._encoder.version}'
        except Exception as error:  # noqa: BLE001 - the running encoder stays, whatever it was
            response.message = f'not loaded, {self._encoder.version} stays: {error}'
            self.get_logger().error(response.message)
        finally:
            self._loading = False
        response.version = self._encoder.version
        return response

    def on_update(self, message: ModelUpdate) -> None:
        """Take over a promoted model if that is allowed."""
        if self.settings.accept_updates and message.version != self._encoder.version:
            request = LoadModel.Request(path=message.path, sha256=message.sha256)
            self.later(self.on_load(request, LoadModel.Response()))


def main(argv: list[str] | None = None) -> int:
    """Run the perception node."""
    return run(PerceptionNode, argv)


if __name__ == '__main__':
    raise SystemExit(main())
