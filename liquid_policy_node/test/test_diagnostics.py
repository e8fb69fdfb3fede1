"""Rates, latencies and counts are what they say, and are published."""

import numpy as np
import pytest

pytest.importorskip('rclpy')

from bench_robot import Graph, until
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node

from liquid_policy_node import qos
from liquid_policy_node.diagnostics import Diagnostics, Latencies, Rate


def test_percentiles_of_known_durations():
    """0 to 100 ms: median 50, 99th percentile 99; only the newest are kept."""
    latencies = Latencies(size=101)
    assert latencies.summary() == {}
    for value in [5.0] * 50 + list(np.linspace(0.0, 0.1, 101)):
        latencies.add(value)
    assert latencies.summary() == pytest.approx({'p50_ms': 50.0, 'p99_ms': 99.0, 'max_ms': 100.0})


def test_the_rate_of_a_steady_stream_and_of_silence():
    """100 Hz while it comes, half of that after as long again."""
    rate = Rate()
    for tick in range(101):
        rate.tick(tick * 10_000_000)
    assert rate.hertz(1_000_000_000) == pytest.approx(100.0)
    assert rate.hertz(2_000_000_000) == pytest.approx(50.0)
    assert rate.age(2_000_000_000) == pytest.approx(1.0)


def test_values_and_faults_are_published(ros):
    """One status per node, its level that of the worst fault."""
    node, received = Node('example', namespace='robot_1'), []
    diagnostics = Diagnostics(node, period=0.05)
    diagnostics.count('bad_image', 3)
    diagnostics.latency('encode', 0.002)
    diagnostics.info('model', 'v7')
    diagnostics.fault('stale', 'imu is stale', warning=True)
    node.create_subscription(DiagnosticArray, '/diagnostics', received.append, qos.DIAGNOSTICS)
    graph = Graph(node)
    try:
        assert until(lambda: received)
        status = received[-1].status[0]
        values = {item.key: item.value for item in status.values}
        assert (status.name, status.level) == ('robot_1/example', DiagnosticStatus.WARN)
        assert status.message == 'imu is stale'
        assert values['count.bad_image'] == '3' and values['encode.p50_ms'] == '2.000'
        assert values['info.model'] == 'v7' and float(values['process.resident_mb']) > 10
        graph.run(lambda: diagnostics.fault('broken', 'no encoder'))
        received.clear()
        assert until(lambda: received and received[-1].status[0].level == DiagnosticStatus.ERROR)
        graph.run(lambda: (diagnostics.fault('broken', ''), diagnostics.fault('stale', '')))
        assert until(lambda: received[-1].status[0].level == DiagnosticStatus.OK)
    finally:
        graph.close()
