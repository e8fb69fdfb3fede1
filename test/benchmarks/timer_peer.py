"""
How late does this machine wake a program that does nothing else? A peer for graph_latency.py.

A plain rclpy node with one timer of 10 ms, in real time where that is allowed, as the safety node
is. Until SIGTERM; then it prints the times of its callbacks [ns], one per line.
"""

from __future__ import annotations

import signal
import time

import rclpy
from measuring import in_real_time
from rclpy.signals import SignalHandlerOptions


def main() -> None:
    """Note when the timer is called."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    node, times = rclpy.create_node('timer_peer'), []
    node.create_timer(0.01, lambda: times.append(time.time_ns()))
    in_real_time(40)
    while not ended:
        rclpy.spin_once(node, timeout_sec=0.1)
    print(*times, sep='\n')


if __name__ == '__main__':
    main()
