"""Every test process has its own DDS domain on this machine only, and the shipped transport."""

import os
import sys
from pathlib import Path

os.environ.setdefault('ROS_DOMAIN_ID', str(20 + os.getpid() % 80))
os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
os.environ.setdefault(
    'FASTRTPS_DEFAULT_PROFILES_FILE',
    str(Path(__file__).resolve().parents[2] / 'config' / 'fastdds.xml'))
# The helpers beside the tests; with --import-mode=importlib this folder is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))
