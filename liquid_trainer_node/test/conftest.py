"""Every test process has its own DDS domain on this machine only, and the shipped transport."""

import os
import sys
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[2]
os.environ.setdefault('ROS_DOMAIN_ID', str(20 + os.getpid() % 80))
os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
os.environ.setdefault(
    'FASTRTPS_DEFAULT_PROFILES_FILE', str(_REPOSITORY / 'config' / 'fastdds.xml'))
# Helpers of these tests, and the bench robot and the untrained policy of the policy node's tests.
sys.path.insert(0, str(_REPOSITORY / 'liquid_policy_node' / 'test'))
sys.path.insert(0, str(Path(__file__).resolve().parent))
