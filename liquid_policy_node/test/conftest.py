"""Every test process has its own DDS domain on this machine only, and the shipped transport."""

import os
import sys
from dataclasses import replace
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
def untrained():
    """An untrained policy of the manipulator as a checkpoint."""
    pytest.importorskip('torch')
    from untrained_policy import untrained_checkpoint
    return untrained_checkpoint()


@pytest.fixture(scope='session')
def make_checkpoint(tmp_path_factory, untrained):
    """
    Writes checkpoints: `make_checkpoint(version, interface=None, encoder='')` -> path.

    Checkpoints that are given another `encoder` differ in their encoder's identity.
    """
    onnx = pytest.importorskip('onnx')
    folder = tmp_path_factory.mktemp('checkpoints')

    def make(version: str, interface=None, encoder: str = '') -> str:
        exports = dict(untrained.exports)
        if encoder:
            graph = onnx.load_from_string(exports['encoder.onnx'])
            graph.doc_string = encoder
            exports['encoder.onnx'] = graph.SerializeToString()
        path = folder / f'{version}.safetensors'
        replace(untrained, version=version, exports=exports,
                interface=interface or untrained.interface).save(path)
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
