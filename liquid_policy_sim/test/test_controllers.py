"""Commands are held, refused or braked as the robot's controllers do it."""

import numpy as np
import pytest

from liquid_sim.controllers import Controllers

SIZES = {'arm': 6, 'gripper': 1, 'base': 2}


@pytest.fixture
def controllers():
    return Controllers(SIZES, timeout=0.1)


def test_everything_stands_still_before_the_first_command(controllers):
    assert controllers.command(0.0).tolist() == [0.0] * 9
    assert controllers.braked == ()


def test_command_holds_until_the_timeout_and_not_longer(controllers):
    controllers.accept('arm', [1, 2, 3, 4, 5, 6], 1.0)
    controllers.accept('base', [0.3, 0.1], 1.05)
    assert controllers.command(1.10).tolist() == [1, 2, 3, 4, 5, 6, 0, 0.3, 0.1]
    assert controllers.command(1.11).tolist() == [0] * 7 + [0.3, 0.1]
    assert controllers.braked == ('arm',)
    assert controllers.command(1.16).tolist() == [0] * 9
    assert controllers.braked == ('arm', 'base')


def test_gripper_keeps_its_suction_in_silence(controllers):
    controllers.accept('gripper', [1.0], 0.0)
    assert controllers.command(100.0)[6] == 1.0


@pytest.mark.parametrize(('values', 'text'), [
    ([1, 2, 3], 'arm command: expected 6 values, got 3; command ignored'),
    ([], 'expected 6 values, got 0'),
    ([0, 0, np.nan, 0, 0, 0], 'expected finite values, got .*nan'),
    ([0, 0, 0, 0, 0, np.inf], 'expected finite values, got .*inf')])
def test_unusable_command_is_refused_and_the_last_one_stays(controllers, values, text):
    controllers.accept('arm', np.ones(6), 0.0)
    with pytest.raises(ValueError, match=text):
        controllers.accept('arm', values, 0.05)
    assert controllers.command(0.06)[:6].tolist() == [1.0] * 6
    # It does not count as a sign of life either.
    assert controllers.command(0.12)[:6].tolist() == [0.0] * 6


def test_answered_when_all_commands_came_since_the_last_step(controllers):
    for name, size in SIZES.items():
        assert not controllers.answered
        controllers.accept(name, np.zeros(size), 0.0)
    assert controllers.answered
    controllers.command(0.0)
    assert not controllers.answered


def test_driven_from_the_first_command_on(controllers):
    assert not controllers.driven('gripper')
    controllers.accept('gripper', [0.0], 0.0)
    assert controllers.driven('gripper') and not controllers.driven('arm')


def test_command_is_not_changed_through_the_callers_array(controllers):
    values = np.ones(6)
    controllers.accept('arm', values, 0.0)
    values[:] = 9
    assert controllers.command(0.0)[0] == 1.0


def test_timeout_must_be_positive():
    with pytest.raises(ValueError, match='expected more than 0 s'):
        Controllers(SIZES, timeout=0.0)
