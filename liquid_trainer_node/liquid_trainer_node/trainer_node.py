"""The online learner as a node: windows in, status and promoted models out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from liquid_policy.alignment import FEATURES
from liquid_policy.checkpoint import encoder_identity, file_digest
from liquid_policy.conversion import stamp_of, vector_from_message
from liquid_policy.interface import SourceSpec, load_interface
from liquid_policy.stamps import header_stamp
from liquid_policy_msgs.msg import (
    ActionDistribution,
    EpisodeMarker,
    Estimate,
    Features,
    ModelUpdate,
    TrainerStatus,
)
from liquid_policy_node import qos
from liquid_policy_node.lifecycle import ManagedNode, NodeSettings, run
from liquid_policy_node.models import load_for
from liquid_policy_node.parameters import parameter
from liquid_policy_node.resources import find_checkpoint, find_interface, message_class
from liquid_trainer.online import WindowCollector
from liquid_trainer.online.activity import Activity
from liquid_trainer.online.promotion import Standing
from liquid_trainer.online.skills import read_skills
from liquid_trainer_node.worker import METRIC, Worker, WorkerSettings


@dataclass(frozen=True)
class TrainerSettings(NodeSettings):
    """Parameters of the trainer node."""

    checkpoint: str = parameter(
        '', "Policy to start from, read when configuring; empty: the robot's shipped one.",
        live=True)
    folder: str = parameter(
        '', 'Where replayed windows, promoted models, ledger and journal are kept; a trainer that '
        'starts again goes on from there. Empty: nothing is kept and nothing promoted.')
    skills: str = parameter(
        '', 'Folder of windows of old skills, made by online_skills: of a third of the episodes '
        'they judge, the others are replayed; empty: the first held-out windows of this run '
        'judge.')
    promote: bool = parameter(
        True, 'Announce candidates that pass the gate; the policy node takes them if its '
        'accept_updates is set.')
    window: float = parameter(2.0, 'Length of a window.', 's', low=0.1, high=20.0)
    stride: float = parameter(
        0.5, "From one window's start to the next one's.", 's', low=0.01, high=20.0)
    least_windows: int = parameter(2, 'Windows needed before the first step.', low=1, high=1000)
    period: float = parameter(
        0.5, 'From one optimisation step to the next, as far as the processor share allows.', 's',
        low=0.01, high=60.0)
    learning_rate: float = parameter(1e-4, 'Learning rate of AdamW.', '1', low=1e-7, high=0.1)
    replay: float = parameter(
        0.5, 'Share of old windows in every step; 0 switches replay off.', '1', low=0.0, high=1.0)
    consolidation: float = parameter(
        2.0, 'Strength of elastic weight consolidation; 0 switches it off.', '1', low=0.0,
        high=1e6)
    correction: float = parameter(
        4.0, 'Weight of a tick at which somebody showed the running policy another action.', '1',
        low=1.0, high=100.0)
    cpu_share: float = parameter(
        0.5, 'Largest share of one core that this process uses while the robot works, listening '
        'included; 0: learn in idle moments only.', '1', low=0.0, high=64.0, live=True)
    idle_share: float = parameter(
        0.8, 'Largest share of one core while nothing moves and nobody demonstrates.', '1',
        low=0.0, high=64.0, live=True)
    training_niceness: int = parameter(
        10, 'Niceness of the training thread: it yields to everything that moves the robot.',
        low=0, high=19)
    pause_after: float = parameter(
        10.0, 'Without a window for so long the trainer reports PAUSED.', 's', low=0.1)


class TrainerNode(ManagedNode):
    """
    Turns what is seen and demonstrated into windows, and says what the learner makes of them.

    Learning runs in a thread of its own, see `Worker`; what it decides and why is
    `liquid_trainer.online`'s.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__('trainer', TrainerSettings, **kwargs)
        self._worker: Worker | None = None

    def configure(self) -> None:
        """Read interface, checkpoint and old skills, create the topics."""
        settings = self.settings
        self._interface = interface = load_interface(find_interface(settings.robot))
        self.robot = interface.robot
        path = str(find_checkpoint(settings.checkpoint, interface.robot))
        checkpoint = load_for(interface, path)
        self._start_with = Standing(
            checkpoint.version, str(Path(path).absolute()), file_digest(path))
        self._encoder = encoder_identity(checkpoint) if interface.images else ''
        self._skills = read_skills(Path(settings.skills).expanduser()) if settings.skills else []
        self.diagnostics.info('model', checkpoint.version)
        self._collector = WindowCollector(interface, settings.window, settings.stride)
        self._activity = Activity(interface)
        self._status = self.create_publisher(TrainerStatus, 'trainer_status', qos.STATUS)
        self._updates = self.create_publisher(ModelUpdate, 'model_update', qos.MODEL_UPDATE)
        by_topic: dict[tuple[str, str], list] = {}
        for source in (*interface.observations.values(), *interface.targets.values()):
            by_topic.setdefault((source.topic, source.type), []).append(source)
        self._subscriptions_made = [
            self.subscribe(message_class(kind), topic, self._reader(sources), qos.STREAM_IN)
            for (topic, kind), sources in by_topic.items()]
        self._subscriptions_made += [
            self.subscribe(message_class(spec.type), spec.demonstration, self._listener(spec),
                           qos.STREAM_IN)
            for spec in interface.actions.values()]
        for kind, topic, callback, profile in (
                (ActionDistribution, 'action_distribution', self.on_proposal, qos.STREAM_IN),
                (Estimate, 'estimate', self.on_estimate, qos.STREAM_IN),
                (EpisodeMarker, 'episode', self.on_episode, qos.EPISODE)):
            self._subscriptions_made.append(self.subscribe(kind, topic, callback, profile))
        if interface.features is not None:
            self._subscriptions_made.append(self.subscribe(
                Features, interface.features.topic, self.on_features, qos.STREAM_IN))

    def activate(self) -> None:
        """Start the learning thread."""
        self._collector.clear()
        self._windows, self._heard, self._complaint = 0, False, ''
        self._newest = self.steady_now()
        self._worker = Worker(self._start_with, self._worker_settings(), self._skills)
        self._timers_made = [
            self.create_timer(1.0, self._report, clock=self._steady),
            self.create_timer(0.1, self._announce, clock=self._steady)]

    def deactivate(self) -> None:
        """End the learning thread; what is in the folder stays."""
        if self._worker is not None:
            for timer in self._timers_made:
                self.destroy_timer(timer)
            self._worker.stop()
            self._worker = None

    def cleanup(self) -> None:
        """Destroy the topics."""
        for subscription in self._subscriptions_made:
            self.destroy_subscription(subscription)
        self.destroy_publisher(self._status)
        self.destroy_publisher(self._updates)

    def apply(self, settings: TrainerSettings) -> None:
        """Use changed shares."""
        self._set_share()

    def _worker_settings(self) -> WorkerSettings:
        settings = self.settings
        return WorkerSettings(
            folder=Path(settings.folder).expanduser() if settings.folder else None,
            rate=settings.learning_rate, replay=settings.replay,
            consolidation=settings.consolidation, correction=settings.correction,
            period=settings.period, least_windows=settings.least_windows,
            promote=settings.promote, niceness=settings.training_niceness,
            share=settings.cpu_share)

    # What comes in.

    def _reader(self, sources: list[SourceSpec]) -> Any:
        clock = self._interface.clock_source

        def on_message(message: Any) -> None:
            stamp = stamp_of(message)
            for source in sources:
                verdict = self._collector.observe(
                    source.name, self.ros_now() if stamp is None else stamp,
                    vector_from_message(source, message))
                if not verdict.kept:
                    self._complaint = verdict.reason
                    self.diagnostics.count(f'{verdict.outcome.value}_{source.name}')
            if clock in sources:
                self._take()
        return on_message

    def _listener(self, spec: Any) -> Any:
        def on_demonstration(message: Any) -> None:
            stamp = stamp_of(message)
            self._heard = True
            self.diagnostics.tick(spec.demonstration)
            self._activity.note(1e-9 * self.steady_now())
            self._collector.demonstrate(
                spec.name, self.ros_now() if stamp is None else stamp,
                vector_from_message(spec, message))
        return on_demonstration

    def on_features(self, message: Features) -> None:
        """Take features of the encoder the policy was trained with."""
        if message.encoder_id != self._encoder:
            raise ValueError(
                f'expected features of encoder {self._encoder}, came {message.encoder_id}; give '
                'trainer and perception the same checkpoint')
        values = np.array(message.values, np.float32)
        self._collector.observe(FEATURES, header_stamp(message), values)

    def on_proposal(self, message: ActionDistribution) -> None:
        """Take what the running policy proposes."""
        size = len(self._interface.action_names)
        values = np.array(message.chosen[:size], np.float32)
        if values.shape != (size,):
            raise ValueError(f'expected {size} actions, came {len(values)}')
        self._activity.note(1e-9 * self.steady_now(), values)
        self._collector.propose(header_stamp(message), message.model_version, values)

    def on_estimate(self, message: Estimate) -> None:
        """Take what the running policy believes."""
        mean = np.array(message.mean, np.float32)
        if mean.shape != (len(self._interface.target_names),):
            raise ValueError(f'expected {len(self._interface.target_names)} targets, came '
                             f'{len(mean)}')
        self._collector.believe(header_stamp(message), mean)

    def on_episode(self, message: EpisodeMarker) -> None:
        """Name the windows that come, or forget those of an episode that was discarded."""
        self._collector.episode = (
            message.episode if message.kind == EpisodeMarker.START else '')
        if message.kind == EpisodeMarker.DISCARD and self._worker is not None:
            self._worker.discard(message.episode)

    def _take(self) -> None:
        window = self._collector.advance()
        if window is not None and self._worker is not None:
            self._windows += 1
            self._newest = self.steady_now()
            self._complaint = ''
            self._worker.put(window)

    # What goes out.

    def _set_share(self) -> None:
        if self._worker is not None:
            idle = self._activity.idle(1e-9 * self.steady_now())
            settings = self.settings
            self._worker.share = max(settings.cpu_share, settings.idle_share) if idle \
                else settings.cpu_share

    def _announce(self) -> None:
        """Tell perception and policy what to run."""
        self._set_share()
        assert self._worker is not None
        for found in self._worker.announcements():
            message = ModelUpdate(
                version=found.standing.version, path=found.standing.path,
                sha256=found.standing.sha256, metric=METRIC, score_before=found.before,
                score_after=found.after)
            message.header.stamp = self.get_clock().now().to_msg()
            self._updates.publish(message)
            self.get_logger().info(f'announced {found.standing.version}')

    def _report(self) -> None:
        """Publish the status."""
        worker = self._worker
        assert worker is not None
        report = worker.report
        status = TrainerStatus(
            windows=self._windows, steps=report.steps, loss=report.loss,
            loss_start=report.loss_start, learning_rate=report.rate,
            cpu_share=worker.cpu_share(), running_version=report.running,
            decision=report.decision, trouble=report.trouble, promotions=report.promotions,
            refusals=report.refusals, roll_backs=report.roll_backs,
            held_out_windows=report.held_out, skill_windows=report.skills,
            score_running=report.before, score_candidate=report.after,
            score_old_start=report.old_before, score_old_candidate=report.old_after)
        status.state, status.detail = self._state(worker)
        status.header.stamp = self.get_clock().now().to_msg()
        self._status.publish(status)
        self.diagnostics.info('state', status.detail)
        self.diagnostics.info('decision', report.decision)
        self.diagnostics.fault('training', worker.fault)
        self.diagnostics.fault('disk', report.trouble)

    def _state(self, worker: Worker) -> tuple[int, str]:
        report, settings = worker.report, self.settings
        silent = 1e-9 * (self.steady_now() - self._newest)
        if worker.fault:
            return TrainerStatus.FAULT, worker.fault
        if self._windows and silent > settings.pause_after:
            return TrainerStatus.PAUSED, f'no whole window for {silent:.0f} s{self._why()}'
        if not self._heard and not self._windows:
            return TrainerStatus.WAITING, f'no demonstration has come{self._why()}'
        if self._windows < settings.least_windows:
            return TrainerStatus.COLLECTING, (
                f'{self._windows} of {settings.least_windows} windows{self._why()}')
        if report.foreign:
            return TrainerStatus.PAUSED, report.foreign
        if report.phase != 'settled':
            return TrainerStatus.WATCHING, f'{report.running} is {report.phase}'
        return TrainerStatus.FITTING, f'{report.steps} steps on {self._windows} windows'

    def _why(self) -> str:
        """What keeps windows from being made, in words."""
        if self._complaint:
            return f': {self._complaint}'
        if self._collector.stale:
            return f': too old or missing: {", ".join(self._collector.stale)}'
        return ''


def main(argv: list[str] | None = None) -> int:
    """Run the trainer node."""
    return run(TrainerNode, argv)


if __name__ == '__main__':
    raise SystemExit(main())
