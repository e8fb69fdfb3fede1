"""A real arm's recording as a bag: what is known of it is what is found."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from recordings import recording  # noqa: E402

from liquid_trainer.inspect_bags import inspect  # noqa: E402
from liquid_trainer.message_types import message_types, new_message  # noqa: E402
from liquid_trainer.recording import BagWriter  # noqa: E402

STATE = 'sensor_msgs/msg/JointState'
NAMES = [f'joint_{index}' for index in range(1, 7)]


def _as_bag(path, folder):
    """Write one measurement of the Schunk arm as the bag its driver would have recorded."""
    states = np.loadtxt(folder / 'trajectory.csv', delimiter=',')
    efforts = np.loadtxt(folder / 'input.csv', delimiter=',')
    times = np.loadtxt(folder / 'time.csv', delimiter=',').ravel()
    types = message_types()
    with BagWriter(path, {'joint_states': STATE}, durable=False) as writer:
        for time, state, effort in zip(times, states, efforts, strict=False):
            message = new_message(types, STATE, name=NAMES, position=state[:6],
                                  velocity=state[6:], effort=effort)
            stamp = 10**18 + round(time * 1e9)
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 10**9)
            writer.write('joint_states', stamp + 500_000, message)
    return len(efforts)


@pytest.mark.skipif(recording('schunk_6dof_torque') is None, reason=(
    'set LIQUID_DATA to a folder with schunk_6dof_torque; docs/identify.md says where it is from'))
def test_a_real_arm_is_described_as_it_was_measured(tmp_path):
    data = recording('schunk_6dof_torque')
    counts = [_as_bag(tmp_path / f'measurement_{number}', data / f'measurement_{number}')
              for number in (85, 82)]
    result = inspect([tmp_path])
    assert sorted(len(bag.topics['/joint_states'].received) for bag in result.bags) == sorted(
        counts)
    for bag in result.bags:
        topic = bag.topics['/joint_states']
        assert topic.rate == pytest.approx(250.0, rel=1e-3)
        assert len(topic.gaps) == 0 and topic.backwards == 0 and not topic.not_finite
        assert topic.paths == tuple(f'{kind}.{name}' for kind in (
            'position', 'velocity', 'effort') for name in NAMES)
        assert np.median(topic.delays) == pytest.approx(0.0005, abs=1e-6)
    assert [finding.text for finding in result.findings if finding.tone == 'bad'] == []
