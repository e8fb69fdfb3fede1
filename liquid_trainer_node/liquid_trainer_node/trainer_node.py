"""The online learner as a node: windows in, status out, training beside the executor."""

from __future__ import annotations

import os
import queue
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from liquid_policy.alignment import FEATURES
from liquid_policy.checkpoint import encoder_identity
from liquid_policy.conversion import stamp_of, vector_from_message
from liquid_policy.inputs import header_stamp
from liquid_policy.interface import SourceSpec, load_interface
from liquid_policy_msgs.msg import Features, TrainerStatus
from liquid_policy_node import qos
from liquid_policy_node.lifecycle import ManagedNode, NodeSettings, run
from liquid_policy_node.models import load_for
from liquid_policy_node.parameters import parameter
from liquid_policy_node.resources import find_checkpoint, find_interface, message_class
from liquid_trainer.online import OnlineFitter, Window, WindowCollector


@dataclass(frozen=True)
class TrainerSettings(NodeSettings):
    """Parameters of the trainer node."""

    checkpoint: str = parameter(
        '', "Policy to start from, read when configuring; empty: the robot's shipped one.",
        live=True)
    window: float = parameter(2.0, 'Length of a window.', 's', low=0.1, high=20.0)
    least_windows: int = parameter(2, 'Windows needed before the first step.', low=1, high=1000)
    learning_rate: float = parameter(1e-4, 'Learning rate of AdamW.', '1', low=0.0, high=0.1)
    cpu_share: float = parameter(
        0.25, 'Largest share of one core that training uses.', '1', low=0.01, high=1.0, live=True)
    training_niceness: int = parameter(
        10, 'Niceness of the training thread: it yields to everything that moves the robot.',
        low=0, high=19)
    steps_per_window: int = parameter(
        20, 'Steps for each window that comes; then it waits for the next.', low=1, high=10000)
    pause_after: float = parameter(
        10.0, 'Without a window for so long the trainer reports PAUSED.', 's', low=0.1)


class TrainerNode(ManagedNode):
    """
    Fits windows of demonstration and says how that goes.

    It learns on a private copy of the policy and publishes no `ModelUpdate`: a model may only be
    promoted when it beats the running one on held-out data, recent and old, and that comparison
    is not made here. So it cannot make a running policy worse.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__('trainer', TrainerSettings, **kwargs)
        self._worker: Worker | None = None

    def configure(self) -> None:
        """Read interface and checkpoint, create the topics."""
        settings = self.settings
        self._interface = interface = load_interface(find_interface(settings.robot))
        self.robot = interface.robot
        self._checkpoint = load_for(
            interface, str(find_checkpoint(settings.checkpoint, interface.robot)))
        self._encoder = encoder_identity(self._checkpoint) if interface.images else ''
        self.diagnostics.info('model', self._checkpoint.version)
        self._collector = WindowCollector(interface, settings.window)
        self._status = self.create_publisher(TrainerStatus, 'trainer_status', qos.STATUS)
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
        if interface.features is not None:
            self._subscriptions_made.append(self.subscribe(
                Features, interface.features.topic, self.on_features, qos.STREAM_IN))

    def activate(self) -> None:
        """Start the learning thread."""
        self._collector.clear()
        self._windows, self._heard = 0, False
        self._newest = self.steady_now()
        self._worker = Worker(self._checkpoint, self.settings)
        self._timer = self.create_timer(1.0, self._report, clock=self._steady)

    def deactivate(self) -> None:
        """End the learning thread; the copy of the policy is forgotten."""
        if self._worker is not None:
            self.destroy_timer(self._timer)
            self._worker.stop()
            self._worker = None

    def cleanup(self) -> None:
        """Destroy the topics."""
        for subscription in self._subscriptions_made:
            self.destroy_subscription(subscription)
        self.destroy_publisher(self._status)

    def apply(self, settings: TrainerSettings) -> None:
        """Hand changed settings to the thread."""
        if self._worker is not None:
            self._worker.settings = settings

    def _reader(self, sources: list[SourceSpec]) -> Any:
        clock = self._interface.clock_source

        def on_message(message: Any) -> None:
            stamp = stamp_of(message)
            for source in sources:
                verdict = self._collector.observe(
                    source.name, self.ros_now() if stamp is None else stamp,
                    vector_from_message(source, message))
                if not verdict.kept:
                    self.diagnostics.count(f'{verdict.outcome.value}_{source.name}')
            if clock in sources:
                self._take(self._collector.advance())
        return on_message

    def _listener(self, spec: Any) -> Any:
        def on_demonstration(message: Any) -> None:
            stamp = stamp_of(message)
            self._heard = True
            self.diagnostics.tick(spec.demonstration)
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

    def _take(self, window: Window | None) -> None:
        if window is not None and self._worker is not None:
            self._windows += 1
            self._newest = self.steady_now()
            self._worker.put(window)

    def _report(self) -> None:
        """Publish the status."""
        worker = self._worker
        assert worker is not None
        status = TrainerStatus(
            windows=self._windows, steps=worker.steps, loss=worker.loss,
            loss_start=worker.loss_start, learning_rate=worker.rate,
            cpu_share=worker.cpu_share())
        silent = 1e-9 * (self.steady_now() - self._newest)
        if worker.fault:
            status.state, status.detail = TrainerStatus.FAULT, worker.fault
        elif not self._heard:
            status.state, status.detail = TrainerStatus.WAITING, 'no demonstration has come'
        elif self._windows < self.settings.least_windows:
            status.state = TrainerStatus.COLLECTING
            status.detail = f'{self._windows} of {self.settings.least_windows} windows'
        elif silent > self.settings.pause_after:
            status.state = TrainerStatus.PAUSED
            status.detail = f'no whole window of demonstration for {silent:.0f} s'
        else:
            status.state = TrainerStatus.FITTING
            status.detail = f'{worker.steps} steps on {self._windows} windows'
        status.header.stamp = self.get_clock().now().to_msg()
        self._status.publish(status)
        self.diagnostics.info('state', status.detail)
        self.diagnostics.fault('training', worker.fault)


class Worker:
    """Trains in a thread of its own, within its share of one core."""

    def __init__(self, checkpoint: Any, settings: TrainerSettings) -> None:
        """
        Start the thread.

        :param checkpoint: the policy to start from.
        :param settings: may be replaced while it runs.
        """
        self.settings = settings
        self.fault = ''
        self.steps, self.rate = 0, 0.0
        self.loss = self.loss_start = float('nan')
        self._checkpoint = checkpoint
        self._queue: queue.Queue[Window | None] = queue.Queue(maxsize=8)
        self._ended = threading.Event()
        self._used = 0.0
        self._before = (time.monotonic(), 0.0)
        self._thread = threading.Thread(target=self._run, name='trainer', daemon=True)
        self._thread.start()

    def put(self, window: Window) -> None:
        """Hand over a window; the oldest waiting one gives way."""
        while True:
            try:
                self._queue.put_nowait(window)
                return
            except queue.Full:
                try:
                    self._queue.get_nowait()
                except queue.Empty:
                    continue

    def cpu_share(self) -> float:
        """Share of one core used since the last call [1]."""
        now, (then, used) = time.monotonic(), self._before
        self._before = (now, self._used)
        return (self._used - used) / max(now - then, 1e-9)

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join(10.0)

    def _run(self) -> None:
        try:
            # Linux keeps niceness by thread.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(),
                           self.settings.training_niceness)
            fitter: OnlineFitter | None = None
            todo = 0
            while not self._ended.is_set():
                window = self._next(wait=todo == 0)
                if window is not None:
                    if fitter is None:  # imports torch, which takes seconds
                        fitter = OnlineFitter(self._checkpoint, self.settings.learning_rate)
                    fitter.add(window)
                    if fitter.windows >= self.settings.least_windows:
                        todo = self.settings.steps_per_window
                if fitter is not None and todo > 0:
                    self._step(fitter)
                    todo -= 1
        except Exception as error:  # noqa: BLE001 - shown in the status, the node lives on
            self.fault = f'{type(error).__name__}: {error}; deactivate and activate to try again'

    def _next(self, wait: bool) -> Window | None:
        """The next window, None if there is none (yet)."""
        try:
            return self._queue.get(timeout=0.1) if wait else self._queue.get_nowait()
        except queue.Empty:
            return None

    def _step(self, fitter: OnlineFitter) -> None:
        """One step, then a rest that keeps the share."""
        began, used = time.monotonic(), time.thread_time()
        fitter.step()
        spent = time.thread_time() - used
        self._used += spent
        self.steps, self.rate = fitter.steps, fitter.rate
        self.loss, self.loss_start = fitter.loss, fitter.loss_start
        rest = spent / self.settings.cpu_share - (time.monotonic() - began)
        if rest > 0.0:
            self._ended.wait(rest)


def main(argv: list[str] | None = None) -> int:
    """Run the trainer node."""
    return run(TrainerNode, argv)


if __name__ == '__main__':
    raise SystemExit(main())
