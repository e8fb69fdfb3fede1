"""
What a node measures about itself: rates, latencies, ages, counts; published at 1 Hz.

Keys of the published values: `<name>.rate_hz`, `<name>.p50_ms`, `<name>.p99_ms`, `<name>.max_ms`,
`<name>.age_ms`, `count.<name>`, `fault.<name>` and, free of form, `info.<name>`.
"""

from __future__ import annotations

import resource
from collections import deque
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock
from rclpy.clock_type import ClockType

from liquid_policy_node import qos


class Latencies:
    """The last `size` durations, without allocation while running."""

    def __init__(self, size: int = 2000) -> None:
        self._values = np.zeros(size)
        self._count = 0

    def add(self, seconds: float) -> None:
        """Keep one duration [s]."""
        self._values[self._count % len(self._values)] = seconds
        self._count += 1

    def summary(self) -> dict[str, float]:
        """
        Median, 99th percentile and maximum of the kept durations.

        :return: `p50_ms`, `p99_ms`, `max_ms` [ms]; empty before the first duration.
        """
        if not self._count:
            return {}
        kept = self._values[:min(self._count, len(self._values))]
        p50, p99 = np.percentile(kept, (50, 99))
        return {'p50_ms': 1e3 * p50, 'p99_ms': 1e3 * p99, 'max_ms': 1e3 * float(kept.max())}


class Rate:
    """How often something happens, from the times it happened at."""

    def __init__(self, size: int = 200) -> None:
        self._times: deque[int] = deque(maxlen=size)

    def tick(self, now: int) -> None:
        """Note one event at `now` [ns, steady clock]."""
        self._times.append(now)

    def hertz(self, now: int) -> float:
        """
        Events per second; falls towards zero when they stop.

        :param now: [ns], the clock of `tick`.
        :return: rate over the kept events [1/s].
        """
        if len(self._times) < 2:
            return 0.0
        return (len(self._times) - 1) / max(1e-9 * (now - self._times[0]), 1e-9)

    def age(self, now: int) -> float | None:
        """Time since the last event [s], None before the first."""
        return 1e-9 * (now - self._times[-1]) if self._times else None


class Diagnostics:
    """
    Collects a node's measurements and publishes them as `DiagnosticArray` at 1 Hz.

    Measurements may come from any thread.
    """

    def __init__(self, node: Any, period: float = 1.0) -> None:
        """
        Create the publisher and its timer; measurements may come before and after.

        :param node: rclpy node.
        :param period: time between two messages [s].
        """
        self._node = node
        self._clock = Clock(clock_type=ClockType.STEADY_TIME)  # also when simulated time stands
        self._rates: dict[str, Rate] = {}
        self._latencies: dict[str, Latencies] = {}
        self._counts: dict[str, int] = {}
        self._faults: dict[str, tuple[bytes, str]] = {}
        self._info: dict[str, str] = {}
        self._usage = (self._clock.now().nanoseconds, 0.0)
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', qos.DIAGNOSTICS)
        self._timer = node.create_timer(period, self.publish, clock=self._clock)

    def tick(self, name: str) -> None:
        """Count one event of a stream; its rate and age are published."""
        if name not in self._rates:
            self._rates[name] = Rate()
        self._rates[name].tick(self._clock.now().nanoseconds)

    def latency(self, name: str, seconds: float) -> None:
        """Keep one duration [s] of a stage."""
        if name not in self._latencies:
            self._latencies[name] = Latencies()
        self._latencies[name].add(seconds)

    def count(self, name: str, number: int = 1) -> int:
        """Add to a counter and return its new value."""
        self._counts[name] = self._counts.get(name, 0) + number
        return self._counts[name]

    def total(self, name: str) -> int:
        """Value of a counter, 0 if it never counted."""
        return self._counts.get(name, 0)

    def fault(self, name: str, message: str, warning: bool = False) -> None:
        """Show a problem until it is cleared; an empty message clears it."""
        if message:
            level = DiagnosticStatus.WARN if warning else DiagnosticStatus.ERROR
            self._faults[name] = (level, message)
        else:
            self._faults.pop(name, None)

    def info(self, name: str, value: Any) -> None:
        """Show a value such as the model's version."""
        self._info[name] = str(value)

    def values(self) -> dict[str, str]:
        """All measurements as they are published."""
        now = self._clock.now().nanoseconds
        result = {f'info.{name}': value for name, value in list(self._info.items())}
        for name, rate in list(self._rates.items()):
            result[f'{name}.rate_hz'] = f'{rate.hertz(now):.2f}'
            age = rate.age(now)
            if age is not None:
                result[f'{name}.age_ms'] = f'{1e3 * age:.1f}'
        for name, latencies in list(self._latencies.items()):
            for key, value in latencies.summary().items():
                result[f'{name}.{key}'] = f'{value:.3f}'
        counts = sorted(list(self._counts.items()))
        result |= {f'count.{name}': str(value) for name, value in counts}
        result |= {f'fault.{name}': text for name, (_, text) in list(self._faults.items())}
        return result | self._process(now)

    def _process(self, now: int) -> dict[str, str]:
        """Memory and processor share of this process."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        used = usage.ru_utime + usage.ru_stime
        (before, used_before), self._usage = self._usage, (now, used)
        share = (used - used_before) / max(1e-9 * (now - before), 1e-9)
        with open('/proc/self/statm', encoding='ascii') as statm:
            resident = int(statm.read().split()[1]) * resource.getpagesize()
        return {'process.resident_mb': f'{resident / 1e6:.1f}', 'process.cpu': f'{share:.3f}'}

    def publish(self) -> None:
        """Send one `DiagnosticArray` with one status named after the node."""
        status = DiagnosticStatus(
            name=self._node.get_fully_qualified_name().lstrip('/'), level=DiagnosticStatus.OK,
            message=getattr(self._node, 'state_label', ''),
            hardware_id=getattr(self._node, 'robot', ''))
        faults = list(self._faults.values())
        if faults:
            status.level = max(level for level, _ in faults)
            status.message = '; '.join(text for _, text in faults)
        status.values = [KeyValue(key=key, value=value) for key, value in self.values().items()]
        message = DiagnosticArray(status=[status])
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)
