"""Action proposals: steps the liquid policy at the control rate, with the time that elapsed."""

from __future__ import annotations

import time
from array import array
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.time import Time
from std_srvs.srv import Trigger

from liquid_policy.alignment import FEATURES, Aligned, Aligner, Outcome
from liquid_policy.conversion import stamp_of, vector_from_message
from liquid_policy.interface import load_interface
from liquid_policy.stamps import header_stamp
from liquid_policy.stepping import Inputs, Model, Step
from liquid_policy_msgs.msg import ActionDistribution, Estimate, Features, ModelUpdate
from liquid_policy_msgs.srv import LoadModel
from liquid_policy_node import qos
from liquid_policy_node.lifecycle import ManagedNode, NodeSettings, run
from liquid_policy_node.models import in_thread, load_for
from liquid_policy_node.parameters import parameter
from liquid_policy_node.resources import find_checkpoint, find_interface, message_class


@dataclass(frozen=True)
class PolicySettings(NodeSettings):
    """Parameters of the policy node."""

    checkpoint: str = parameter(
        '', "Checkpoint to run, read when configuring; empty: the robot's shipped one.",
        live=True)
    threads: int = parameter(1, 'Threads of one step.', low=1, high=16)
    accept_updates: bool = parameter(
        False, 'Load what the trainer announces on model_update.', live=True)
    gap: float = parameter(
        1.0, 'After a longer silence of the inputs the recurrent state starts anew.', 's',
        low=0.05, high=60.0)
    window: float = parameter(
        2.0, "Inputs kept to warm up a new model's state.", 's', low=0.0, high=60.0)
    mode_threshold: float = parameter(
        1.0, 'Leave the chosen component when its weight falls below this share of the '
        "heaviest one's; 1: always take the heaviest.", low=0.0, high=1.0)
    future_tolerance: float = parameter(
        0.1, 'How far a stamp may lie ahead of the clock.', 's', low=0.01, high=1.0)
    answer_images: bool = parameter(
        False, 'Answer a new image when its features come, too, not only at the tick that counts '
        'them; sooner, and not what the policy was trained with.', live=True)


class PolicyNode(ManagedNode):
    """
    Proposes an action for every tick of the control clock.

    Ticks are the stamps of the interface's clock observation. When an input is stale nothing is
    proposed, and the safety node brakes. When time goes back or stands still for longer than the
    gap, the recurrent state starts anew. A new image is answered as soon as its features come,
    by a step to the tick that will count it; the state does not keep that step.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__('policy', PolicySettings, **kwargs)

    def configure(self) -> None:
        """Load the checkpoint, compare it with the robot, create the topics."""
        settings = self.settings
        self._interface = load_interface(find_interface(settings.robot))
        self.robot = self._interface.robot
        self._aligner = Aligner(self._interface)
        self._window: deque[Inputs] = deque(maxlen=int(settings.window * self._interface.rate))
        self._encoder_seen, self._image_used, self._stamp_used = '', 0, 0
        self._previous: Model | None = None
        self._pending: Model | None = None
        self._loading = False
        self._use(self._load(str(find_checkpoint(settings.checkpoint, self._interface.robot))))

        self._proposals = self.create_publisher(
            ActionDistribution, 'action_distribution', qos.PROPOSAL_OUT)
        self._estimates = self.create_publisher(Estimate, 'estimate', qos.STREAM_OUT)
        by_topic: dict[tuple[str, str], list] = {}
        for source in self._interface.observations.values():
            by_topic.setdefault((source.topic, source.type), []).append(source)
        self._subscriptions_made = [
            self.subscribe(message_class(kind), topic, self._reader(topic, sources), qos.STREAM_IN)
            for (topic, kind), sources in by_topic.items()]
        if self._interface.features is not None:
            self._subscriptions_made.append(self.subscribe(
                Features, self._interface.features.topic, self.on_features, qos.STREAM_IN))
        self._subscriptions_made.append(self.subscribe(
            ModelUpdate, 'model_update', self.on_update, qos.MODEL_UPDATE))
        self._services_made = [
            self.create_service(LoadModel, '~/load_model', self.on_load),
            self.create_service(Trigger, '~/roll_back', self.on_roll_back),
            self.create_service(Trigger, '~/reset_state', self.on_reset)]

    def activate(self) -> None:
        """Forget what was seen before, then start proposing."""
        self._aligner.clear()
        self._window.clear()
        self._model.reset()

    def cleanup(self) -> None:
        """Destroy the topics, forget the models."""
        for subscription in self._subscriptions_made:
            self.destroy_subscription(subscription)
        for service in self._services_made:
            self.destroy_service(service)
        self.destroy_publisher(self._proposals)
        self.destroy_publisher(self._estimates)
        del self._model
        self._previous = self._pending = None

    # Inputs.

    def _reader(self, topic: str, sources: list) -> Any:
        """The callback of one observation topic, which may feed several observations."""
        def on_message(message: Any) -> None:
            now = self.ros_now()
            stamp = stamp_of(message)
            self.diagnostics.tick(topic)
            for source in sources:
                self._push(
                    source.name, now if stamp is None else stamp,
                    vector_from_message(source, message), now)
            ready = self._aligner.ticks_ready()
            for tick in ready:
                self._tick(tick, last=tick == ready[-1])
        return on_message

    def on_features(self, message: Features) -> None:
        """Take features of the encoder this model was trained with, no others."""
        self.diagnostics.tick('features')
        self._encoder_seen = message.encoder_id
        if self._pending is not None and self._pending.encoder_identity == message.encoder_id:
            self._swap(self._pending)
        if message.encoder_id != self._model.encoder_identity:
            raise ValueError(
                f'expected features of encoder {self._model.encoder_identity}, came '
                f'{message.encoder_id}; load the same checkpoint into perception '
                '(~/load_model) and policy')
        values = np.frombuffer(message.values, np.float32)
        assert self._interface.features is not None
        size = self._interface.features.size
        if values.shape != (size,) or not np.isfinite(values).all():
            raise ValueError(f'expected {size} finite features, came {values.shape[0]}'
                             f'{"" if np.isfinite(values).all() else ", not all finite"}')
        stamp = header_stamp(message)
        if self._push(FEATURES, stamp, values, self.ros_now()) and self.settings.answer_images:
            self._preview(stamp + round(1e9 * self._interface.features.latency))

    def _push(self, name: str, stamp: int, value: np.ndarray, now: int) -> bool:
        """Hand a sample to the aligner and say what became of it; return whether it is used."""
        ahead = 1e-9 * (stamp - now)
        if ahead > self.settings.future_tolerance:
            self.report(f'future_{name}', (
                f'{name}: stamp {ahead:.3f} s in the future, ignored; synchronise the clocks, or '
                'set use_sim_time on every node alike'))
            return False
        verdict = self._aligner.push(name, stamp, value)
        if verdict.outcome is Outcome.ACCEPTED:
            return True
        kind = verdict.outcome.value
        if verdict.outcome in (Outcome.REPEATED, Outcome.LATE):
            self.diagnostics.count(f'{kind}_{name}')
            return verdict.kept
        self.report(f'{kind}_{name}', verdict.reason)
        if verdict.outcome is Outcome.RESET:
            self._forget('time went back')
        return verdict.kept

    # Steps.

    def _tick(self, tick: int, last: bool) -> None:
        """One step; of several that have become due, only the last is published."""
        began = time.perf_counter()
        aligned = self._aligner.at(tick)
        if aligned.stale:
            worst = ', '.join(f'{name} ({aligned.ages[name]:.3f} s)' for name in aligned.stale)
            self.diagnostics.fault('stale', f'no proposal: too old or missing: {worst}')
            self.report('stale', f'no proposal: too old or missing: {worst}')
            return
        self.diagnostics.fault('stale', '')
        features = aligned.features
        if features is None:
            features = np.zeros(0, np.float32)
        inputs = Inputs(tick, features, aligned.vector)
        if self._model.last is not None and self._model.elapsed(tick) is None:
            self._forget(f'no inputs for {1e-9 * (tick - self._model.last):.2f} s')
        step = self._model.step(inputs)
        self._window.append(inputs)
        self.diagnostics.latency('step', time.perf_counter() - began)
        if last:
            self._publish(aligned, step)

    def _preview(self, counts: int) -> None:
        """Answer features that have just come and count from a time [ns] on."""
        tick = self._model.upcoming(counts)
        if tick is None:
            return
        began = time.perf_counter()
        aligned = self._aligner.ahead(tick)
        if aligned.stale or aligned.features is None:
            return
        step = self._model.preview(Inputs(tick, aligned.features, aligned.vector))
        self.diagnostics.latency('step', time.perf_counter() - began)
        if step is not None:
            self._publish(aligned, step)

    def _publish(self, aligned: Aligned, step: Step) -> None:
        message, distribution = self._message, step.distribution
        stamp = Time(nanoseconds=aligned.newest).to_msg()
        message.header.stamp = stamp
        message.image_stamp = Time(nanoseconds=aligned.image_stamp or 0).to_msg()
        message.components, message.horizon = distribution.means.shape[:2]
        message.weights = _floats(distribution.weights)
        message.means = _floats(distribution.means)
        message.standard_deviations = _floats(distribution.scales)
        message.chosen_component = step.component
        message.chosen = _floats(step.chosen)
        self._proposals.publish(message)
        if self._interface.targets:
            estimate = self._estimate
            estimate.header.stamp = stamp
            estimate.mean = array('d', distribution.estimate_mean.tolist())
            estimate.standard_deviation = array('d', distribution.estimate_scale.tolist())
            self._estimates.publish(estimate)
        now = self.ros_now()
        self.diagnostics.tick('proposals')
        if aligned.newest != self._stamp_used:
            self._stamp_used = aligned.newest
            self.diagnostics.latency('stamp_to_proposal', 1e-9 * (now - aligned.newest))
        if aligned.image_stamp and aligned.image_stamp > self._image_used:
            self._image_used = aligned.image_stamp  # the first proposal it has a part in
            self.diagnostics.latency('image_to_proposal', 1e-9 * (now - aligned.image_stamp))

    def _forget(self, why: str) -> None:
        """Start the recurrent state anew."""
        self.get_logger().warning(f'recurrent state starts anew: {why}')
        self.diagnostics.count('state_resets')
        self._model.reset()
        self._window.clear()
        self._image_used = self._stamp_used = 0

    # Models.

    def _load(self, path: str, sha256: str = '') -> Model:
        settings = self.settings
        checkpoint = load_for(self._interface, path, sha256)
        return Model(checkpoint, path, settings.gap, settings.mode_threshold, settings.threads)

    def _use(self, model: Model) -> None:
        """Propose with this model from the next tick on."""
        self._model = model
        self._message = ActionDistribution(
            model_version=model.version, action_names=list(self._interface.action_names),
            action_units=list(self._interface.action_units), dt=model.dt)
        self._estimate = Estimate(
            names=list(self._interface.target_names), units=list(self._interface.target_units))
        self._estimate.header.frame_id = 'base_link'
        self.diagnostics.info('model', model.version)
        self.get_logger().info(f'model {model.version} from {model.path}')

    def _swap(self, model: Model) -> None:
        """Change models between two steps, the new one's state warmed by what was seen."""
        if model.encoder_identity == self._model.encoder_identity:
            model.warm(list(self._window))
        else:
            self._window.clear()  # features of another encoder
        self._previous, self._pending = self._model, None
        self._use(model)

    def _prepare(self, path: str, sha256: str, window: list[Inputs]) -> Model:
        """In a thread of its own: load a model and warm it as far as the inputs reach."""
        model = self._load(path, sha256)
        if model.encoder_identity == self._model.encoder_identity:
            model.warm(window)
        return model

    async def on_load(
        self, request: LoadModel.Request, response: LoadModel.Response, wait: bool = False,
    ) -> LoadModel.Response:
        """
        Load a model beside the running one and swap between two steps.

        :param wait: with another encoder, wait until perception uses it; otherwise refuse.
        """
        try:
            if self._loading:
                raise ValueError('another checkpoint is being loaded; try again when it is done')
            self._loading = True
            try:
                window = list(self._window)
                model = await in_thread(
                    lambda: self._prepare(request.path, request.sha256, window))
            finally:
                self._loading = False
            matches = self._encoder_seen in ('', model.encoder_identity)
            if not matches and not wait:
                raise ValueError(
                    f'perception uses encoder {self._encoder_seen}, this checkpoint needs '
                    f'{model.encoder_identity}; load it into perception first')
            if matches:
                self._swap(model)
                response.message = f'running {model.version}'
            else:
                self._pending = model
                response.message = f'{model.version} waits for perception to use its encoder'
            response.success = True
        except Exception as error:  # noqa: BLE001 - the running model stays, whatever it was
            response.message = f'not loaded, {self._model.version} stays: {error}'
            self.get_logger().error(response.message)
            self.diagnostics.count('refused_models')
        response.version = self._model.version
        return response

    def on_roll_back(
        self, request: Trigger.Request, response: Trigger.Response,
    ) -> Trigger.Response:
        """Return to the model before."""
        if self._previous is None:
            response.message = f'there is no model before {self._model.version}'
        else:
            self._swap(self._previous)
            response.success, response.message = True, f'running {self._model.version}'
        return response

    def on_reset(
        self, request: Trigger.Request, response: Trigger.Response,
    ) -> Trigger.Response:
        """Start the recurrent state anew."""
        self._forget('~/reset_state')
        response.success, response.message = True, 'the recurrent state starts anew'
        return response

    def on_update(self, message: ModelUpdate) -> None:
        """Take over a promoted model if that is allowed."""
        if self.settings.accept_updates and message.version != self._model.version:
            request = LoadModel.Request(path=message.path, sha256=message.sha256)
            self.later(self.on_load(request, LoadModel.Response(), wait=True))


def _floats(values: np.ndarray) -> array:
    """A float32 array as messages take it fastest."""
    result = array('f')
    result.frombytes(np.ascontiguousarray(values, np.float32).tobytes())
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the policy node."""
    return run(PolicyNode, argv)


if __name__ == '__main__':
    raise SystemExit(main())
