"""The benchmark of violations, in small: nothing gets past, and it would see what does."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('pinocchio')
pytest.importorskip('daqp')
FILE = Path(__file__).resolve().parent / 'benchmarks' / 'filter_violations.py'


@pytest.fixture(scope='module')
def violations():
    """Return the benchmark as a module."""
    spec = importlib.util.spec_from_file_location('filter_violations', FILE)
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


def test_nothing_gets_past_the_filter(violations):
    """Forty random states; distance, speed, torque and power by Pinocchio between the ticks."""
    found = violations.random_batch((1, 0, 40))
    assert found['states'] == 40 and found['broken'] == [] and found['changed'] > 20


def test_a_batch_is_the_same_every_time(violations):
    """So that batches kept from an interrupted run belong to the rest."""
    assert violations.random_batch((2, 3, 5)) == violations.random_batch((2, 3, 5))


def test_what_breaks_limits_is_seen(violations):
    """Full speed of every joint, unfiltered: too fast for the tool, and too much power."""
    generator = np.random.default_rng(0)
    safety = violations.make_arm(generator)
    left = violations.follow(safety, np.full(violations.JOINTS, 0.3), safety.limits.high)
    assert left['tool_speed'] < 0.0
