"""What the safety node counts as fresh, and when it answers, without ROS."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from liquid_policy.barrier import State
from liquid_policy.effort_load import load_safety
from liquid_policy.inputs import TimedProposal
from liquid_policy.interface import load_interface
from liquid_policy.safety_cycle import SafetyCycle

ROOT = Path(__file__).parents[2]
INTERFACE = load_interface(ROOT / 'config' / 'six_axis_arm.interface.yaml')
DESCRIPTION = ROOT / 'liquid_policy_node' / 'urdf' / 'six_axis_arm.urdf.xacro'
MILLISECOND = 1_000_000
START = 10 ** 12


@dataclass(frozen=True)
class Settings:
    """The node's defaults."""

    period: float = 0.01
    proposal_timeout: float = 0.05
    joint_timeout: float = 0.05
    human_timeout: float = 0.2
    takeover_time: float = 0.3
    dry_run: bool = False


@pytest.fixture
def cycle():
    made = SafetyCycle(load_safety(INTERFACE, DESCRIPTION), INTERFACE, future_tolerance=0.02)
    made.start(START)
    return made


def stamped(stamp, **fields):
    """A message with a header."""
    header = SimpleNamespace(stamp=SimpleNamespace(
        sec=stamp // 10 ** 9, nanosec=stamp % 10 ** 9), frame_id='')
    return SimpleNamespace(header=header, **fields)


def joint_states(stamp, speed=0.0):
    names = INTERFACE.action_names
    return stamped(stamp, name=list(names), position=[0.0] * len(names),
                   velocity=[speed] * len(names), effort=[])


def proposal(stamp, value=0.01, image=0):
    size = len(INTERFACE.action_names)
    plan = np.full((1, size), value)
    return TimedProposal(stamp, image, 'v', 0.02, plan, np.ones(1), plan[None],
                         np.full((1, 1, size), 0.01))


def propose(cycle, given, now):
    return cycle.propose(given.stamp, given.image_stamp, lambda: given, now, now)


def test_a_fresh_proposal_passes_and_an_old_one_brakes(cycle):
    """Old by its stamp, though it has just come; then old by its receipt."""
    cycle.joints(joint_states(START), START, START)
    propose(cycle, proposal(START), START)
    answer = cycle.answer(START, START, Settings())
    assert answer.result.state == State.PASSING and answer.new_stamp and not answer.late
    later = START + 60 * MILLISECOND
    cycle.joints(joint_states(later), later, later)
    answer = cycle.answer(later, later, Settings())
    assert answer.result.state == State.BRAKING and answer.late
    assert any('the proposal is 0.060 s old' in why for why in answer.result.reasons)
    propose(cycle, proposal(later - 55 * MILLISECOND), later)
    answer = cycle.answer(later, later, Settings())
    assert any('the proposal is 0.055 s old' in why for why in answer.result.reasons)


def test_a_stamping_clock_that_stands_still_makes_nothing_young(cycle):
    """The steady clock tells how long nothing has come."""
    cycle.joints(joint_states(START), START, START)
    propose(cycle, proposal(START), START)
    cycle.answer(START, START, Settings())
    answer = cycle.answer(START, START + 51 * MILLISECOND, Settings())
    assert answer.result.state == State.BRAKING
    assert len(answer.result.reasons) == 2      # proposal and joint states


def test_a_broken_proposal_ends_the_last_one(cycle):
    """What was proposed before it no longer holds."""
    cycle.joints(joint_states(START), START, START)
    propose(cycle, proposal(START), START)

    def broken():
        raise ValueError('chosen: expected 6 numbers, came 5')
    stamp = START + 5 * MILLISECOND
    with pytest.raises(ValueError, match='came 5'):
        cycle.propose(stamp, 0, broken, stamp, stamp)
    assert cycle.proposal is None
    answer = cycle.answer(stamp, stamp, Settings())
    assert answer.result.reasons == ('chosen: expected 6 numbers, came 5',)


def test_a_burst_is_answered_once_and_a_new_image_always(cycle):
    cycle.joints(joint_states(START), START, START)
    propose(cycle, proposal(START), START)
    assert cycle.due(START, 0.01)
    assert cycle.answer(START, START, Settings()).new_stamp
    soon = START + MILLISECOND
    assert propose(cycle, proposal(soon), soon) and not cycle.due(soon, 0.01)
    assert propose(cycle, proposal(soon, image=START), soon) and cycle.due(soon, 0.01)
    assert cycle.answer(soon, soon, Settings()).new_image
    assert not propose(cycle, proposal(soon, image=START), soon)    # the same again


def test_a_robot_is_taken_over_at_its_speed(cycle):
    """Until joint states come nothing is sent; then braking starts from what they say."""
    assert cycle.answer(START, START, Settings()) is None
    now = START + 10 * MILLISECOND
    cycle.joints(joint_states(now, speed=0.3), now, now)
    answer = cycle.answer(now, now, Settings())
    assert answer.result.state == State.BRAKING
    assert (answer.result.command > 0.0).all() and (answer.result.command < 0.3).all()


def test_without_joint_states_it_commands_rest_after_the_takeover_time(cycle):
    late = START + 301 * MILLISECOND
    answer = cycle.answer(late, late, Settings())
    assert answer.result.state == State.BRAKING and not answer.result.command.any()


def test_after_forgetting_an_older_stamp_counts_again(cycle):
    """A clock that was set back: without forgetting, everything from it would be refused."""
    cycle.joints(joint_states(START), START, START)
    cycle.forget()
    past = START - 10 ** 10
    assert cycle.feedback(past, START, 0.05) == (None, 'joint_states have not come')
    assert cycle.joints(joint_states(past), past, START)
    assert cycle.feedback(past, START, 0.05)[0] is not None
