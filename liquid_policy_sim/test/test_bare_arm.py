"""The arm on its stand: servos follow, torques do what Newton says, bad commands are refused."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('mujoco')
pytest.importorskip('xacro')

from liquid_sim.bare_arm import BareArm, BareArmSettings

ARM = Path(__file__).parents[2] / 'liquid_policy_node' / 'urdf' / 'six_axis_arm.urdf.xacro'
JOINTS = tuple(f'joint_{index}' for index in range(1, 7))
BENT = np.array([0.3, -0.6, 1.1, 0.2, -0.5, 0.1])


def make(**settings):
    """The six-axis arm."""
    return BareArm(ARM, JOINTS, BareArmSettings(tool='link_6', **settings))


@pytest.mark.parametrize('payload', [0.0, 1.5])
def test_the_servos_follow_a_velocity_whatever_the_load(payload):
    """Half a second at a constant speed: all joints have it, and went about as far."""
    arm = make(payload=payload)
    arm.reset(BENT)
    speed = np.array([0.2, -0.1, 0.1, 0.2, -0.2, 0.1])
    for _ in range(50):
        arm.step(speed)
    position, velocity, effort = arm.joint_state()
    assert velocity == pytest.approx(speed, abs=0.01)
    assert position - BENT == pytest.approx(0.5 * speed, abs=0.02)   # two periods late at most
    assert np.abs(effort).max() > 5.0 and arm.time == pytest.approx(0.5)


def test_torques_hold_or_drop_the_arm():
    """Gravity's own torques hold it for a while; without them it falls at once."""
    arm = make(command='effort', period=0.005)
    arm.reset(BENT)
    for _ in range(20):
        arm.step(arm.holding())
    assert np.abs(arm.joint_state()[1]).max() < 1e-3
    for _ in range(20):
        arm.step(np.zeros(6))
    assert np.abs(arm.joint_state()[1]).max() > 0.5


def test_torques_are_cut_off_at_the_efforts_of_the_urdf():
    """120 N m at the shoulder, whatever is asked for."""
    arm = make(command='effort', command_delay=0)
    arm.step(np.full(6, 1e4))
    assert arm.joint_state()[2] == pytest.approx([120.0, 120.0, 80.0, 30.0, 30.0, 15.0])


@pytest.mark.parametrize('command', [np.zeros(5), np.full(6, np.nan)])
def test_bad_commands_are_refused(command):
    """One finite number per joint."""
    with pytest.raises(ValueError, match='6 finite numbers'):
        make().step(command)


@pytest.mark.parametrize(('settings', 'words'), [
    ({'command': 'position'}, "one of .*came 'position'"), ({'timestep': 0.02}, 'timestep'),
    ({'payload': 1.0, 'tool': None}, 'tool')])
def test_bad_settings_are_refused(settings, words):
    """With what was expected."""
    with pytest.raises(ValueError, match=words):
        BareArmSettings(**settings)


def test_a_joint_that_is_not_there_is_named():
    """With those that are."""
    with pytest.raises(ValueError, match='joint_9.*joint_1'):
        BareArm(ARM, (*JOINTS, 'joint_9'))
