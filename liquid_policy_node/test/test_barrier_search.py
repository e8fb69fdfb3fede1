"""What the policy's distribution does: chance margins and other modes; jerk and metric."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('daqp')

from random_robot import arm_limits

from liquid_policy.barrier import FilterSettings, JointFeedback, Proposal, SafetyFilter, State
from liquid_policy.barrier_rows import GuardRows

JOINTS = 3
STILL = np.zeros(JOINTS)


def feedback(position=0.0):
    """All joints at one position, at rest."""
    return JointFeedback(np.full(JOINTS, position), STILL, np.full(JOINTS, np.nan))


class SumLimit:
    """A guard with one row: the sum of all speeds stays below a limit."""

    names = ('sum',)

    def __init__(self, limit, priority=0):
        self.limit, self.priority = limit, np.array([priority])

    def begin(self, moment):
        """Nothing depends on the moment."""

    def excess(self, command):
        return np.array([command.sum() - self.limit])

    def rows(self, reference):
        return GuardRows(np.ones((1, JOINTS)), np.array([-np.inf]), np.array([self.limit]),
                         self.excess(reference))


def test_the_nearest_command_under_a_coupled_limit():
    """0.1 each is asked for, the sum may be 0.15: 0.05 each; by weight where one is set."""
    limits = arm_limits(JOINTS)
    result = SafetyFilter(limits, guards=(SumLimit(0.15),)).filter(
        np.full(JOINTS, 0.1), feedback(), 0.01)
    assert result.command == pytest.approx(np.full(JOINTS, 0.05), abs=1e-12)
    assert result.state == State.LIMITING and result.active == ('sum',)
    assert result.amounts == pytest.approx((0.15,))
    heavy = replace(limits, weight=np.array([1.0, 1.0, 1e9]))
    result = SafetyFilter(heavy, guards=(SumLimit(0.15),)).filter(
        np.full(JOINTS, 0.1), feedback(), 0.01)
    assert result.command == pytest.approx([0.025, 0.025, 0.1], abs=1e-8)


def test_a_soft_limit_gives_way_and_a_hard_one_brakes():
    """At 1 rad/s each, a sum of at most 0 cannot be reached within one step."""
    for priority, state in ((1, State.LIMITING), (0, State.BRAKING)):
        guard = SumLimit(10.0, priority)
        safety = SafetyFilter(arm_limits(JOINTS), guards=(guard,))
        for _ in range(20):
            safety.filter(np.ones(JOINTS), feedback(), 0.01)
        guard.limit = 0.0
        result = safety.filter(np.ones(JOINTS), feedback(), 0.01)
        assert result.state == state
        assert result.command == pytest.approx(np.full(JOINTS, 0.9), abs=1e-3)
        assert 'sum' in result.active
        assert ('gave way: sum' in result.reasons) == bool(priority)


def test_the_spread_tightens_limits_by_its_quantile():
    """z(0.9772) = 2: two deviations of 0.2 rad/s are kept from the speed limit of 2."""
    rules = FilterSettings(chance=0.97724986805)
    safety = SafetyFilter(arm_limits(JOINTS), rules)
    action = np.full(JOINTS, 2.0)
    proposal = Proposal(action, np.ones(1), action[None], np.full((1, JOINTS), 0.2))
    for _ in range(40):
        result = safety.filter(proposal, feedback(), 0.01)
    assert result.command == pytest.approx(np.full(JOINTS, 1.6), abs=1e-6)
    certain = SafetyFilter(arm_limits(JOINTS))
    for _ in range(40):
        result = certain.filter(proposal, feedback(), 0.01)
    assert result.command == pytest.approx(action)


def test_the_spread_tightens_coupled_limits_too():
    """For the sum of three entries the deviations add up as the root of squares."""
    rules = FilterSettings(chance=0.97724986805)
    action = np.full(JOINTS, 0.1)
    proposal = Proposal(action, np.ones(1), action[None], np.full((1, JOINTS), 0.02))
    result = SafetyFilter(arm_limits(JOINTS), rules, (SumLimit(0.3),)).filter(
        proposal, feedback(), 0.01)
    assert result.command.sum() == pytest.approx(0.3 - 2.0 * 0.02 * np.sqrt(3.0), abs=1e-6)
    assert result.active == ('sum',)


def test_a_hopeless_spread_never_sets_a_robot_in_motion():
    """A deviation of 100 rad/s leaves standing still, not more."""
    action = np.full(JOINTS, 0.05)
    proposal = Proposal(action, np.ones(1), action[None], np.full((1, JOINTS), 100.0))
    result = SafetyFilter(arm_limits(JOINTS), FilterSettings(chance=0.99)).filter(
        proposal, feedback(), 0.01)
    assert (np.abs(result.command) <= 0.05).all() and (result.command >= 0.0).all()


@pytest.mark.parametrize(('allowed', 'taken'), [(True, -0.05), (False, 0.0)])
def test_a_safe_mode_is_taken_when_the_chosen_one_is_unsafe(allowed, taken):
    """At its upper limit a joint may not go up; the other component goes down."""
    safety = SafetyFilter(arm_limits(JOINTS), FilterSettings(other_modes=allowed))
    up, down = np.full(JOINTS, 0.05), np.full(JOINTS, -0.05)
    proposal = Proposal(up, np.array([0.7, 0.3]), np.stack([up, down]), np.full((2, JOINTS), 0.01))
    result = safety.filter(proposal, feedback(2.5), 0.01)
    assert result.command == pytest.approx(np.full(JOINTS, taken), abs=1e-12)
    assert result.state == State.LIMITING
    assert ('mode/1' in result.active) == allowed
    # where the chosen one is safe, it is kept
    free = SafetyFilter(arm_limits(JOINTS), FilterSettings(other_modes=allowed))
    assert free.filter(proposal, feedback(), 0.01).command == pytest.approx(up)


@pytest.mark.parametrize(('chance', 'taken'), [(0.5, 1), (0.97724986805, 2)])
def test_a_mode_is_taken_only_if_it_keeps_its_own_margin(chance, taken):
    """Sums of 0.27 and 0.255, two deviations of which are 0.07 and 0.017; the limit is 0.28."""
    means = np.full((3, JOINTS), [[0.2], [0.09], [0.085]])
    deviations = np.full((3, JOINTS), [[0.01], [0.02], [0.005]])
    safety = SafetyFilter(arm_limits(JOINTS), FilterSettings(chance=chance, other_modes=True),
                          (SumLimit(0.28),))
    result = safety.filter(
        Proposal(means[0], np.array([0.6, 0.3, 0.1]), means, deviations), feedback(), 0.01)
    assert result.active == (f'mode/{taken}',)
    assert result.command == pytest.approx(means[taken])


def test_a_mode_that_breaks_its_margin_only_makes_way_for_one_that_keeps_it():
    """A speed of 1.9 with deviations of 0.1 is within the limit of 2, not with its margin."""
    rules = FilterSettings(chance=0.97724986805, other_modes=True)
    safety = SafetyFilter(arm_limits(JOINTS), rules)
    means = np.stack([np.full(JOINTS, 1.9), np.full(JOINTS, 1.5)])
    proposal = Proposal(means[0], np.array([0.7, 0.3]), means, np.full((2, JOINTS), 0.1))
    for _ in range(40):
        result = safety.filter(proposal, feedback(), 0.01)
    assert result.command == pytest.approx(means[1]) and 'mode/1' in result.active


def test_jerk_is_limited_and_gives_way_to_the_position_limit():
    """100 rad/s3 from rest: the speed's change grows by 0.01 rad/s per step of 10 ms."""
    limits = replace(arm_limits(JOINTS), jerk=np.full(JOINTS, 100.0))
    safety, speeds = SafetyFilter(limits), [0.0]
    for _ in range(8):
        result = safety.filter(np.full(JOINTS, 2.0), feedback(), 0.01)
        speeds.append(result.command[0])
    assert np.diff(speeds) == pytest.approx(0.01 * np.arange(1, 9))
    assert 'jerk/joint_0' in result.active
    blocked = safety.filter(np.full(JOINTS, 2.0), feedback(2.495), 0.01)
    assert blocked.command[0] == pytest.approx(speeds[-1] - 0.1)   # full deceleration
    assert 'position/joint_0' in blocked.active or 'acceleration/joint_0' in blocked.active


@pytest.mark.parametrize('jerk', [60.0, 100.0, 410.0])
def test_a_limited_jerk_does_not_overshoot_the_proposal(jerk):
    """Steps up and to a stop: never beyond, reached for good, within jerk all the way."""
    limits = replace(arm_limits(JOINTS), jerk=np.full(JOINTS, jerk))
    safety, commands = SafetyFilter(limits), [0.0]
    for wanted in np.repeat([0.7, 0.0, -0.3], 60):
        commands.append(safety.filter(np.full(JOINTS, wanted), feedback(), 0.01).command[0])
    commands = np.array(commands)
    assert commands[60] == 0.7 and commands[120] == 0.0 and commands[180] == -0.3
    assert commands.max() <= 0.7 + 1e-12 and commands[61:121].min() >= -1e-12
    rate = np.diff(commands, prepend=0.0) / 0.01
    assert (np.abs(np.diff(rate)) <= jerk * 0.01 * (1.0 + 1e-6)).all()


def test_proposals_that_keep_their_jerk_pass_bit_for_bit():
    """A sine, its rate changing by less than the jerk limit allows."""
    limits = replace(arm_limits(JOINTS), jerk=np.full(JOINTS, 100.0))
    safety = SafetyFilter(limits)
    for time in 0.01 * np.arange(1, 200):
        wanted = 0.5 * (1.0 - np.cos(4.0 * time)) * np.ones(JOINTS)
        result = safety.filter(wanted, feedback(), 0.01)
        assert result.state == State.PASSING
        assert result.command.tobytes() == wanted.tobytes()


def _driven(jerk, delay, seed, held, average=1):
    """
    Joints that follow the filter's commands, averaged over some periods, without a delay.

    Proposals are noise that is held for some periods, at times there is none.

    :return: commands and the averages that were followed `(ticks, A)`, positions between too,
        states.
    """
    generator, step = np.random.default_rng(seed), 0.01
    limits = replace(arm_limits(JOINTS, generator=generator), jerk=np.full(JOINTS, jerk))
    safety = SafetyFilter(limits, FilterSettings(delay=delay, position_margin=0.0))
    position, commands, followed, states, places = STILL + 2.0, [STILL] * average, [], [], []
    for tick in range(400):
        if tick % held == 0:
            wanted = None if generator.random() < 0.2 else generator.choice(
                [0.3, 3.0, 3.0]) * generator.choice([-1.0, 1.0], JOINTS)
        result = safety.filter(wanted, JointFeedback(
            position, followed[-1] if followed else STILL, np.full(JOINTS, np.nan)), step)
        commands.append(result.command)
        states.append(result.state)
        followed.append(np.mean(commands[-average:], axis=0))
        position = position + followed[-1] * step
        places.append(position)
    return limits, np.array(commands[average:]), np.array(followed), np.array(places), states


@pytest.mark.parametrize('seed', range(4))
def test_jerk_gives_way_by_no_more_than_both_accelerations(seed):
    """What passes keeps it; whatever comes, the acceleration changes by a + d a period at most."""
    limits, commands, _, _, states = _driven(700.0, 0.0, seed, 25)
    rate = np.diff(commands, axis=0, prepend=STILL[None]) / 0.01
    change = np.abs(np.diff(rate, axis=0, prepend=STILL[None]))
    passing = np.array(states) == State.PASSING
    assert passing.any() and (change[passing] <= 7.0 * (1.0 + 1e-9)).all()
    assert (change > 7.0 * (1.0 + 1e-9)).any()   # braking does not wait for its jerk
    assert (change <= (limits.acceleration + limits.deceleration) * (1.0 + 1e-9)).all()


@pytest.mark.parametrize('seed', range(4))
def test_averaged_commands_keep_jerk_and_position_while_braking_too(seed):
    """Over (a + d) / jerk, which counts as delay: braking is as smooth, no limit is passed."""
    jerk, step = 200.0, 0.01
    count = int(np.ceil(20.0 / (jerk * step)))
    limits, _, followed, places, states = _driven(jerk, count * step, seed, 130, count)
    rate = np.diff(followed, axis=0, prepend=STILL[None]) / step
    change = np.abs(np.diff(rate, axis=0, prepend=STILL[None]))
    assert State.BRAKING in states and (np.abs(followed) > 0.1).any()
    assert (change <= jerk * step * (1.0 + 1e-9)).all()
    assert (places >= limits.lower).all() and (places <= limits.upper).all()
    assert (np.abs(places) > 2.3).any()   # near enough to the limits to say something


def test_a_slower_deceleration_lengthens_the_braking_distance_and_brakes_gently():
    """Half the deceleration: half as much per step, and a lower speed near the limit."""
    gentle = replace(arm_limits(JOINTS), deceleration=np.full(JOINTS, 5.0))
    speeds = []
    for limits in (arm_limits(JOINTS), gentle):
        safety = SafetyFilter(limits)
        for _ in range(40):
            result = safety.filter(np.full(JOINTS, 2.0), feedback(2.3), 0.01)
        speeds.append(result.command[0])
        after = safety.filter(None, feedback(2.3), 0.01).command[0]
        assert result.command[0] - after == pytest.approx(limits.deceleration[0] * 0.01)
    assert speeds[1] < speeds[0]


class RoundLimit:
    """A guard with one limit that bends: the length of the command; counts its linearisations."""

    names, priority = ('round',), np.array([0])

    def __init__(self, limit):
        self.limit, self.linearised = limit, 0

    def begin(self, moment):
        """Nothing depends on the moment."""

    def excess(self, command):
        return np.array([np.linalg.norm(command) - self.limit])

    def rows(self, reference):
        self.linearised += 1
        gradient = reference[None] / np.linalg.norm(reference)
        return GuardRows(gradient, np.array([-np.inf]), np.array([self.limit]),
                         self.excess(reference))


def test_what_linearising_leaves_out_is_made_up_by_slowing_down():
    """Near the limit, inside it, along the programme's answer, and without linearising anew."""
    guard, limits = RoundLimit(0.12), arm_limits(JOINTS)
    wanted = np.array([0.1, 0.1, -0.1])
    uneven = replace(limits, weight=np.array([1.0, 1.0, 4.0]))
    result = SafetyFilter(uneven, guards=(guard,)).filter(wanted, feedback(), 0.01)
    assert result.state == State.LIMITING and guard.linearised == 1
    assert 0.99 * guard.limit < np.linalg.norm(result.command) <= guard.limit
    assert (np.abs(result.command) <= np.abs(wanted)).all()


class OnlyNear:
    """A guard that lets pass what is near some commands, and whose rows say nothing of it."""

    names, priority = ('near',), np.array([0])

    def __init__(self, *commands):
        self.commands = [np.asarray(command, dtype=float) for command in commands]

    def begin(self, moment):
        """Nothing depends on the moment."""

    def excess(self, command):
        return np.array([min(np.abs(command - one).max() for one in self.commands) - 1e-9])

    def rows(self, reference):
        return GuardRows(np.zeros((1, JOINTS)), np.array([-np.inf]), np.array([np.inf]),
                         self.excess(reference))


def _moving(guard):
    """A filter that has issued 0.5 rad/s for long, and its answer to a proposal of 1."""
    safety = SafetyFilter(arm_limits(JOINTS), FilterSettings(), (guard,))
    speed = np.full(JOINTS, 0.5)
    safety.reset(JointFeedback(STILL, speed, np.full(JOINTS, np.nan)))
    return speed, safety.filter(
        np.ones(JOINTS), JointFeedback(STILL, speed, np.full(JOINTS, np.nan)), 0.01)


def test_last_command_is_kept_where_braking_at_once_would_break_a_limit():
    speed, result = _moving(OnlyNear(np.full(JOINTS, 0.5)))
    assert result.state == State.LIMITING
    np.testing.assert_array_equal(result.command, speed)
    assert 'kept the last command' in ' '.join(result.reasons)


def test_it_brakes_where_braking_breaks_nothing_or_all_does():
    slower = np.full(JOINTS, 0.5 - 10.0 * 0.01)
    for guard in (OnlyNear(np.full(JOINTS, 0.5), slower), OnlyNear(np.full(JOINTS, -9.0))):
        _, result = _moving(guard)
        assert result.state == State.BRAKING
        np.testing.assert_allclose(result.command, slower)
