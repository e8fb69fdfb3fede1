"""What a running robot says about itself, for people who watch a demo."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor

from liquid_policy_msgs.msg import ConveyorStatus
from liquid_policy_node import qos


@dataclass
class Seen:
    """
    The newest of everything.

    :param seen: parts that came.
    :param picked: parts picked.
    :param missed: parts missed.
    :param first_pick: when the first part was picked, None before [s, time.time()].
    :param running: whether the cell has begun.
    :param nodes: diagnostic values by node name.
    :param robots: simulators or robots that publish joint states.
    """

    seen: int = 0
    picked: int = 0
    missed: int = 0
    first_pick: float | None = None
    running: bool = False
    nodes: dict[str, dict[str, str]] = field(default_factory=dict)
    robots: int = 0

    def line(self) -> str:
        """Return it as one line."""
        text = f'parts: seen {self.seen}, picked {self.picked}, missed {self.missed}'
        rates = [('images', 'perception', 'features.rate_hz'),
                 ('policy', 'policy', 'proposals.rate_hz'),
                 ('commands', 'safety', 'commands.rate_hz')]
        shown = [f'{name} {float(self.nodes[node][key]):.0f}' for name, node, key in rates
                 if key in self.nodes.get(node, {})]
        if shown:
            text += f' | {", ".join(shown)} Hz'
        safety = self.nodes.get('safety', {})
        if 'image_to_command.p50_ms' in safety:
            text += (f' | image to command {float(safety["image_to_command.p50_ms"]):.1f} / '
                     f'{float(safety["image_to_command.p99_ms"]):.1f} ms')
        if 'info.state' in safety:
            text += f' | safety {safety["info.state"].lower()}'
        return text


class Monitor:
    """Listens in a thread; two slow topics, so that watching costs the robot nothing."""

    def __init__(self) -> None:
        self.seen = Seen()
        self._stop = threading.Event()
        self._listening = threading.Event()
        self._since = 0.0
        self._thread = threading.Thread(target=self._listen, name='monitor', daemon=True)

    def __enter__(self) -> Monitor:
        """Start listening."""
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        """End listening."""
        self._stop.set()
        self._thread.join(5.0)

    def look_around(self, seconds: float = 0.7) -> None:
        """
        Return when whoever was there before has been discovered.

        :param seconds: time discovery takes, at most; 0.2 s is typical.
        """
        self._listening.wait(10.0)
        left = self._since + seconds - time.monotonic()
        if left > 0:
            time.sleep(left)

    def _listen(self) -> None:
        # A context of its own: Ctrl-C must reach the demo, not end its ears.
        context = Context()
        rclpy.init(context=context)
        node = rclpy.create_node('demo', context=context)
        node.create_subscription(ConveyorStatus, 'conveyor_status', self._on_status,
                                 qos.STREAM_IN)
        node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics,
                                 qos.DIAGNOSTICS)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        self._since = time.monotonic()
        self._listening.set()
        with contextlib.suppress(ExternalShutdownException):
            while not self._stop.is_set():
                executor.spin_once(0.1)
                self.seen.robots = node.count_publishers('joint_states')
        executor.shutdown(0.0)
        node.destroy_node()
        rclpy.try_shutdown(context=context)

    def _on_status(self, message: ConveyorStatus) -> None:
        seen = self.seen
        seen.running = True
        seen.seen, seen.picked, seen.missed = message.seen, message.picked, message.missed
        if seen.picked and seen.first_pick is None:
            seen.first_pick = time.time()

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.seen.nodes[status.name.rpartition('/')[2]] = {
                pair.key: pair.value for pair in status.values}
