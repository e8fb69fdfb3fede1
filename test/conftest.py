"""Every test process has its own DDS domain on this machine only; helpers come from the nodes."""

import os
import sys
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parents[1]
os.environ.setdefault('ROS_DOMAIN_ID', str(20 + os.getpid() % 80))
os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
os.environ.setdefault(
    'FASTRTPS_DEFAULT_PROFILES_FILE', str(_REPOSITORY / 'config' / 'fastdds.xml'))
sys.path.insert(0, str(_REPOSITORY / 'liquid_policy_node' / 'test'))


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory):
    """Path of an untrained checkpoint of the manipulator."""
    pytest.importorskip('torch')
    from untrained_policy import untrained_checkpoint
    path = tmp_path_factory.mktemp('checkpoint') / 'untrained.safetensors'
    untrained_checkpoint().save(path)
    return str(path)


@pytest.fixture
def ros():
    """An initialised rclpy."""
    rclpy = pytest.importorskip('rclpy')
    rclpy.init()
    yield rclpy
    rclpy.try_shutdown()
