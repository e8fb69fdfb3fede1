"""The command identify on torques of a real arm, where the recordings are at hand."""

import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from recordings import recording  # noqa: E402

from liquid_trainer.identify import main  # noqa: E402


@pytest.mark.skipif(recording('schunk_6dof_torque') is None,
                    reason='needs schunk_6dof_torque in the folder LIQUID_DATA names, '
                           'see docs/identify.md')
def test_margins_of_a_real_arm_are_honest(tmp_path, capsys):
    folder = recording('schunk_6dof_torque')
    chosen = [str(folder / f'measurement_{number}') for number in (1, 2, 80, 81)]
    out = tmp_path / 'margin.yaml'
    assert main([*chosen, '--output', str(out)]) == 0
    found = yaml.safe_load(out.read_text())
    # Two pairs of repetitions: told apart, and not judged by each other.
    assert found['identified']['motions'] == 4 and found['identified']['different_motions'] == 2
    assert found['identified']['model'] == 'joints'
    assert 'Repetitions of motions' in capsys.readouterr().out
    for joint, margin in found['torque_margin'].items():
        assert found['identified']['rms'][joint] < margin <= found['identified']['largest'][joint]
    # Joint 3 moves fast in both: most of its torque is explained.
    assert found['identified']['rms']['joint_3'] < 0.35 * found['identified']['rms_torque'][
        'joint_3']
