"""The filter against dynamics that are not its own: MuJoCo's arm driven at its limits."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('mujoco')
pytest.importorskip('xacro')

from liquid_policy.barrier import FilterSettings, JointFeedback, SafetyFilter
from liquid_policy.interface import load_interface
from liquid_policy.limits import load_limits
from liquid_sim.conveyor import ConveyorSim
from liquid_sim.safety_plot import History, draw
from liquid_sim.safety_trial import KINDS, TrialSettings, main, run_trial
from liquid_sim.trial_robots import ROBOTS

PACKAGE = Path(__file__).resolve().parents[1] / 'liquid_policy_node'
AGE = 0.005  # s, of the joint states when they are used


@pytest.mark.parametrize(('joint', 'direction'), [
    ('shoulder_pan_joint', 1), ('shoulder_pan_joint', -1), ('wrist_3_joint', 1)])
def test_a_joint_driven_outwards_stops_at_its_margin(joint, direction):
    """Full speed towards the limit: never past it, and most of the range is used."""
    interface = load_interface(PACKAGE / 'config' / 'manipulator.interface.yaml')
    limits = load_limits(interface, PACKAGE / 'urdf' / 'manipulator.urdf.xacro')
    settings = FilterSettings()
    safety, entry = SafetyFilter(limits, settings), limits.names.index(joint)
    limit = (limits.upper if direction > 0 else -limits.lower)[entry]
    arm = np.flatnonzero(limits.joint)
    proposal = np.zeros(len(limits.names))
    proposal[entry] = 1e6 * direction
    sim = ConveyorSim(seed=1)
    try:
        sim.reset(1)
        gaps = []
        for _ in range(900):
            _, position, velocity, _ = sim.joint_state()
            known = np.full((2, len(limits.names)), np.nan)
            known[0, arm], known[1, arm] = position[:len(arm)], velocity[:len(arm)]
            feedback = JointFeedback(known[0], known[1], np.full(len(limits.names), np.nan), AGE)
            sim.step(safety.filter(proposal, feedback, 0.01).command)
            gaps.append(limit - direction * known[0, entry])
    finally:
        sim.close()
    # The margin is 10 mrad; noise of the encoders is 0.1 mrad, so 1 mrad is ten times that.
    assert min(gaps) > settings.position_margin - 1e-3
    assert gaps[-1] < settings.position_margin + 5e-3


@pytest.mark.parametrize('robot', ROBOTS)
@pytest.mark.parametrize('kind', KINDS)
def test_no_policy_gets_past_the_filter(kind, robot):
    """The heaviest load, unknown to the filter; every limit of the files, every physics step."""
    pytest.importorskip('pinocchio')
    pytest.importorskip('daqp')
    trial = run_trial(TrialSettings(
        kind, ROBOTS[robot].payloads[1], seconds=1.0, seed=3, robot=robot))
    assert trial.broken == ()
    peaks = trial.peaks
    assert peaks.position > 0.0 and peaks.velocity < 1.0 and peaks.distance > 0.0
    assert peaks.velocity > 0.3  # a filter that stopped everything would be safe too


@pytest.mark.parametrize('robot', ROBOTS)
def test_without_the_filter_the_same_policy_breaks_everything(robot):
    """What the filter prevented."""
    trial = run_trial(TrialSettings(
        'full', ROBOTS[robot].payloads[1], filtered=False, seconds=1.0, seed=3, robot=robot))
    assert trial.peaks.velocity > 1.5 and trial.peaks.torque >= 0.999
    assert {'position', 'velocity'} <= {*trial.broken}


def test_trials_write_a_table_and_rows(tmp_path, capsys):
    """A row per figure, and how many trials broke a limit; the exit status says so too."""
    rows = tmp_path / 'trials.jsonl'
    assert main(['--robots', 'six_axis_arm', '--kinds', 'noise', '--seconds', '0.3', '--payloads',
                 '0.7', '--write', str(rows)]) == 0
    assert capsys.readouterr().out.count('| noise | 0.7 kg |') == 2
    found = {(row['figure'], row['policy']): row for row in map(
        json.loads, rows.read_text().splitlines())}
    assert found['violations', 'filter']['value'] == 0
    assert found['violations', 'filter']['task'] == 'six_axis_arm/noise'
    assert found['worst_velocity', 'none']['value'] > found['worst_velocity', 'filter']['value']


def test_the_picture_shows_what_the_filter_did(tmp_path):
    """Every entry has its axes; a stretch of limiting is found from begin to end."""
    pytest.importorskip('matplotlib')
    times = np.arange(5) * 0.01
    history = History(
        ('one', 'two'), times, np.full((5, 2), np.nan), np.zeros((5, 2)), np.full((5, 2), -1.0),
        np.ones((5, 2)), np.array([1, 2, 2, 1, 3]))
    assert history.spans(2) == [(0.01, 0.03)] and history.spans(3) == [(0.04, 0.04)]
    figure = draw(history, 'a run')
    assert [axis.get_ylabel() for axis in figure.axes] == ['one', 'two']
    figure.savefig(tmp_path / 'run.png')
    assert (tmp_path / 'run.png').stat().st_size > 1000
