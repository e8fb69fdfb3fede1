"""Every test process has its own DDS domain on this machine only, and the shipped transport."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault('ROS_DOMAIN_ID', str(20 + os.getpid() % 80))
os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
os.environ.setdefault(
    'FASTRTPS_DEFAULT_PROFILES_FILE',
    str(Path(__file__).resolve().parents[2] / 'config' / 'fastdds.xml'))
# The helpers beside the tests; with --import-mode=importlib this folder is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(scope='session')
def make_checkpoint(tmp_path_factory):
    """Makes untrained checkpoints of the manipulator: `make_checkpoint(version, seed)` -> path."""
    torch = pytest.importorskip('torch')
    from liquid_policy.export import to_checkpoint
    from liquid_policy.interface import load_interface
    from liquid_policy.policy import Policy
    from liquid_policy.settings import EncoderSettings, PolicySettings
    folder = tmp_path_factory.mktemp('checkpoints')
    shipped = Path(__file__).resolve().parents[1] / 'config' / 'manipulator.interface.yaml'

    def make(version: str, seed: int = 0, interface=None) -> str:
        path = folder / f'{version}.safetensors'
        if not path.exists():
            torch.manual_seed(seed)
            # The narrowest encoder: loads fast, and says as little about images as any untrained.
            policy = Policy(PolicySettings(encoder=EncoderSettings(width=0.1))).eval()
            checkpoint = to_checkpoint(
                policy, interface or load_interface(shipped), version, {'trained': False})
            checkpoint.save(path)
        return str(path)
    return make


@pytest.fixture(scope='session')
def checkpoint(make_checkpoint):
    """Path of an untrained checkpoint of the manipulator."""
    return make_checkpoint('untrained_1')


@pytest.fixture
def ros():
    """An initialised rclpy."""
    rclpy = pytest.importorskip('rclpy')
    rclpy.init()
    yield rclpy
    rclpy.try_shutdown()
