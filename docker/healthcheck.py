"""
Exit with 0 if a topic is alive, for a container's health check.

Usage: healthcheck.py [TOPIC] [SECONDS]; default safety_status within 5 s. A safety node that
is not active does not count as alive.
"""

import importlib
import sys
import time

import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy


def message_class(name: str) -> type:
    """
    Class of a message type.

    :param name: such as `sensor_msgs/msg/Imu`.
    :return: the class.
    """
    package, kind, message = name.split('/')
    return getattr(importlib.import_module(f'{package}.{kind}'), message)


def find_type(node, topic: str) -> str | None:
    """
    Type of a topic that somebody publishes.

    :param node: node that looks.
    :param topic: absolute name.
    :return: such as `sensor_msgs/msg/Imu`; None while nobody publishes it.
    """
    types = dict(node.get_topic_names_and_types()).get(topic, [])
    return types[0] if types and node.count_publishers(topic) else None


def active(message) -> bool:
    """
    Whether a message does not say that the safety node is inactive.

    :param message: of any type.
    """
    return type(message).__name__ != 'SafetyStatus' or message.state != 0


def main() -> int:
    """
    Wait for one message.

    :return: exit status.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else 'safety_status'
    deadline = time.monotonic() + (float(sys.argv[2]) if len(sys.argv) > 2 else 5.0)
    rclpy.init(args=[])
    node = rclpy.create_node('healthcheck')
    topic = node.resolve_topic_name(name)
    received = []
    subscription = None
    # One that is about to be active says first that it is not.
    while time.monotonic() < deadline and not (received and active(received[-1])):
        if subscription is None and (kind := find_type(node, topic)):
            # Best effort hears reliable publishers as well.
            quality = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
            subscription = node.create_subscription(
                message_class(kind), topic, received.append, quality
            )
        rclpy.spin_once(node, timeout_sec=0.1)
    node.destroy_node()
    rclpy.try_shutdown()
    if not received:
        print(f'nothing came on {topic}')
        return 1
    if not active(received[-1]):
        print('the safety node is not active')
        return 1
    print(f'{topic} is alive')
    return 0


if __name__ == '__main__':
    sys.exit(main())
