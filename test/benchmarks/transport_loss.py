"""
How many camera images get through, and how fast, with and without the shipped transport profile?

One process sends best-effort images, another counts what arrives. Run it as
`docker/in_environment.sh python3 test/benchmarks/transport_loss.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
PROFILE = REPOSITORY / 'config' / 'fastdds.xml'  # of the sender
SMALL = REPOSITORY / 'config' / 'fastdds_small.xml'  # of the receiver
RESULTS = Path(__file__).parent / 'results' / 'transport_loss.jsonl'


def send(width: int, height: int, rate: float, count: int) -> None:
    """Publish `count` images once somebody listens."""
    import rclpy
    from sensor_msgs.msg import Image

    from liquid_policy_node import qos
    rclpy.init()
    node = rclpy.create_node('sender')
    publisher = node.create_publisher(Image, 'image', qos.IMAGE)
    while not publisher.get_subscription_count():
        time.sleep(0.05)
    time.sleep(1.0)
    message = Image(width=width, height=height, step=3 * width, encoding='rgb8')
    message.data = bytes(3 * width * height)
    for index in range(count):
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(
            time.monotonic_ns(), 1_000_000_000)
        message.header.frame_id = str(index)
        publisher.publish(message)
        time.sleep(1.0 / rate)
    time.sleep(1.0)
    rclpy.try_shutdown()


def receive(count: int) -> None:
    """Print how many came, and the latencies [s]."""
    import rclpy
    from rclpy.signals import SignalHandlerOptions
    from sensor_msgs.msg import Image

    from liquid_policy_node import qos
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node('receiver')
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    latencies: list[float] = []

    def on_image(message: Image) -> None:
        sent = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
        latencies.append(1e-9 * (time.monotonic_ns() - sent))
    node.create_subscription(Image, 'image', on_image, qos.IMAGE)
    deadline = time.monotonic() + 10.0 + count / 10.0
    while len(latencies) < count and time.monotonic() < deadline and not stop:
        rclpy.spin_once(node, timeout_sec=0.1)
    print(json.dumps(latencies))
    rclpy.try_shutdown()


def measure(width: int, height: int, rate: float, count: int, profile: bool) -> list[float]:
    """Latencies of the images that came [s]."""
    environment = {key: value for key, value in os.environ.items()
                   if key not in ('FASTRTPS_DEFAULT_PROFILES_FILE',
                                  'FASTDDS_DEFAULT_PROFILES_FILE')}
    environment |= {'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
                    'ROS_DOMAIN_ID': str(20 + os.getpid() % 80)}
    profiles = [{'FASTRTPS_DEFAULT_PROFILES_FILE': str(path)} if profile else {}
                for path in (SMALL, PROFILE)]
    shared = [sys.executable, __file__, '--width', str(width), '--height', str(height),
              '--rate', str(rate), '--count', str(count)]
    receiver = subprocess.Popen([*shared, '--role', 'receive'], env=environment | profiles[0],
                                stdout=subprocess.PIPE, text=True)
    sender = subprocess.Popen([*shared, '--role', 'send'], env=environment | profiles[1])
    sender.wait(timeout=120.0 + 2 * count / rate)
    receiver.terminate()  # it prints what it has
    output, _ = receiver.communicate(timeout=30.0)
    return json.loads(output.strip().splitlines()[-1])


def main() -> None:
    """Print a table; with --write keep it."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('--role', choices=('main', 'send', 'receive'), default='main')
    parser.add_argument('--width', type=int, default=0, help='only this width')
    parser.add_argument('--height', type=int, default=0)
    parser.add_argument('--rate', type=float, default=30.0)
    parser.add_argument('--count', type=int, default=300)
    parser.add_argument('--write', action='store_true', help='write the result file')
    options = parser.parse_args()
    if options.role == 'send':
        return send(options.width, options.height, options.rate, options.count)
    if options.role == 'receive':
        return receive(options.count)
    machine = f'{platform.machine()}, {os.cpu_count()} cores'
    print(f'{machine}, Python {platform.python_version()}, '
          f'{options.count} images at {options.rate:g} Hz, best effort, two processes')
    print(f'{"image":>10}  {"transport":<10} {"lost":>7} {"median":>9} {"p95":>9}')
    rows = []
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=REPOSITORY, text=True,
                            capture_output=True).stdout.strip()
    sizes = [(options.width, options.height)] if options.width else [(96, 96), (640, 480)]
    for width, height in sizes:
        for policy, profile in (('defaults', False), ('profile', True)):
            latencies = measure(width, height, options.rate, options.count, profile)
            lost = 1.0 - len(latencies) / options.count
            median, p95 = (np.percentile(latencies, (50, 95)) if latencies
                           else (float('nan'), float('nan')))
            print(f'{width:>6}x{height:<4} {policy:<10} {lost:>7.1%} {1e3 * median:>6.2f} ms '
                  f'{1e3 * p95:>6.2f} ms', flush=True)
            shared = {'task': f'image_{width}x{height}', 'policy': policy, 'n': options.count,
                      'seeds': 0, 'preset': f'{options.rate:g}Hz_best_effort', 'commit': commit,
                      'machine': machine, 'date': date.today().isoformat()}
            rows.append({'figure': 'loss', 'value': lost, 'unit': '1', **shared})
            if latencies:
                rows.append({'figure': 'latency_p50', 'value': float(median), 'unit': 's',
                             **shared})
                rows.append({'figure': 'latency_p95', 'value': float(p95), 'unit': 's', **shared})
    if options.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
        print(f'written to {RESULTS.relative_to(REPOSITORY)}')
    return None


if __name__ == '__main__':
    main()
