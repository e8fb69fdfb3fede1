"""Laws of the safety filter: limits hold for any proposal, safe proposals pass unchanged."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liquid_policy.barrier import (
    FilterSettings,
    JointFeedback,
    Proposal,
    ReleaseRefused,
    SafetyFilter,
    State,
    brake,
    greatest_speed,
)
from liquid_policy.limits import Limits

JOINTS = 6
NAMES = tuple(f'joint_{index}' for index in range(JOINTS)) + ('suction', 'base_v', 'base_w')
SIZE = len(NAMES)
INFINITE = np.full(SIZE, np.inf)


def make_limits(generator: np.random.Generator | None = None) -> Limits:
    """Limits of six joints, a gripper and a base; random ones if a generator is given."""
    joint = np.arange(SIZE) < JOINTS
    moving = np.array([name != 'suction' for name in NAMES])
    speed = np.full(SIZE, 2.0)
    acceleration = np.full(SIZE, 10.0)
    half = np.full(SIZE, 2.0)
    if generator is not None:
        speed = generator.uniform(0.1, 4.0, SIZE)
        acceleration = generator.uniform(0.5, 40.0, SIZE)
        half = 0.51 * speed ** 2 / acceleration + generator.uniform(0.1, 3.0, SIZE)
    return Limits(
        names=NAMES, units=('rad/s',) * JOINTS + ('1', 'm/s', 'rad/s'), moving=moving, joint=joint,
        lower=np.where(joint, -half, -np.inf), upper=np.where(joint, half, np.inf),
        low=np.where(moving, -speed, 0.0), high=np.where(moving, speed, 1.0),
        range_bound=~moving, acceleration=np.where(moving, acceleration, np.inf), effort=INFINITE)


def feedback_at(position=0.0, velocity=0.0, age=0.0) -> JointFeedback:
    """Feedback with the same position and velocity for every joint."""
    joint = np.arange(SIZE) < JOINTS
    return JointFeedback(
        np.where(joint, position, np.nan), np.where(joint, velocity, np.nan),
        np.full(SIZE, np.nan), age)


class Joints:
    """First-order velocity loops behind a pure delay, integrated exactly."""

    def __init__(self, position: np.ndarray, delay: float, lag: float) -> None:
        self.delay, self.lag, self.time = delay, lag, 0.0
        self.position, self.velocity = position.copy(), np.zeros_like(position)
        self.commands = [(-1.0, np.zeros_like(position))]
        self.trace = [(0.0, position.copy(), self.velocity.copy())]

    def run(self, command: np.ndarray, duration: float, pieces: int = 4) -> None:
        self.commands.append((self.time, command.copy()))
        cuts = {self.time + duration * (index + 1) / pieces for index in range(pieces)}
        cuts |= {time + self.delay for time, _ in self.commands
                 if self.time < time + self.delay < self.time + duration}
        for cut in sorted(cuts):
            self._advance(cut - self.time)
        if len(self.commands) > 100:
            del self.commands[:-60], self.trace[:-200]

    def _advance(self, step: float) -> None:
        active = [value for time, value in self.commands if time + self.delay <= self.time + 1e-12]
        target = active[-1]
        if self.lag == 0.0:
            self.position = self.position + target * step
            self.velocity = target.copy()
        else:
            fade = np.exp(-step / self.lag)
            self.position = (
                self.position + target * step + (self.velocity - target) * self.lag * (1 - fade))
            self.velocity = target + (self.velocity - target) * fade
        self.time += step
        self.trace.append((self.time, self.position.copy(), self.velocity.copy()))

    def measured(self, age: float) -> tuple[np.ndarray, np.ndarray, float]:
        """The newest state at least `age` old, and its true age."""
        for time, position, velocity in reversed(self.trace):
            if time <= self.time - age:
                return position, velocity, self.time - time
        time, position, velocity = self.trace[0]
        return position, velocity, self.time - time


def proposals(kind: str, generator: np.random.Generator, joints: Joints, tick: int) -> np.ndarray:
    """An action that tries to break limits, of one of several kinds."""
    if kind == 'outwards':
        action = np.full(SIZE, 1e3 if generator.random() < 0.999 else -1e3)
    elif kind == 'flips':
        action = np.full(SIZE, 1e300 * (-1) ** (tick // 30))
    elif kind == 'noise':
        action = generator.normal(0.0, 3.0, SIZE)
    elif kind == 'holds':
        action = np.where(joints.position.mean() > 0, 3.0, -3.0) * np.ones(SIZE)
    else:
        action = generator.choice([np.nan, np.inf, -np.inf, 5.0, -5.0], SIZE)
    return action


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2 ** 32 - 1),
    kind=st.sampled_from(['outwards', 'flips', 'noise', 'holds', 'broken']),
    delay_share=st.floats(0.0, 1.0), lag_share=st.sampled_from([0.0, 0.3, 1.0]),
    age=st.floats(0.0, 0.03), jitter=st.floats(0.0, 1.0))
def test_limits_hold_for_any_proposal(seed, kind, delay_share, lag_share, age, jitter):
    """Position, speed and acceleration, at every instant, with jitter, delay, lag and old data."""
    generator = np.random.default_rng(seed)
    limits = make_limits(generator)
    rules = FilterSettings(
        longest_period=0.025, delay=generator.uniform(0.0, 0.05), position_margin=0.0)
    lag = rules.delay * delay_share * lag_share
    delay = rules.delay * delay_share - lag
    joint = limits.joint
    start = generator.uniform(0.9 * limits.lower[joint], 0.9 * limits.upper[joint])
    joints = Joints(start, delay, lag)
    safety = SafetyFilter(limits, rules)
    previous, elapsed = safety.command, 0.01
    peak_low, peak_high = start.copy(), start.copy()
    for tick in range(150):
        position, velocity, true_age = joints.measured(age)
        fill = np.full(SIZE, np.nan)
        feedback = JointFeedback(
            np.concatenate([position, fill[JOINTS:]]), np.concatenate([velocity, fill[JOINTS:]]),
            fill, true_age)
        result = safety.filter(proposals(kind, generator, joints, tick), feedback, elapsed)
        command = result.command
        assert np.isfinite(command).all()
        assert (command >= limits.low).all() and (command <= limits.high).all()
        change = np.abs(command - previous)[limits.moving]
        assert (change <= limits.acceleration[limits.moving] * elapsed * (1 + 1e-9)).all()
        seen = len(joints.trace)
        elapsed = rules.longest_period * (1.0 - jitter * generator.random())
        joints.run(command[:JOINTS], elapsed)
        for _, position, velocity in joints.trace[min(seen, len(joints.trace) - 1):]:
            peak_low, peak_high = np.minimum(peak_low, position), np.maximum(peak_high, position)
            assert (np.abs(velocity) <= limits.high[joint] * (1 + 1e-9)).all()
        previous = command
    assert (peak_high <= limits.upper[joint] + 1e-9).all()  # 1e-9: rounding of the integration
    assert (peak_low >= limits.lower[joint] - 1e-9).all()


def test_the_range_of_a_joint_is_used_and_not_given_away():
    """A filter that stopped everything would be safe too: pushed outwards, it gets close."""
    limits, rules = make_limits(), FilterSettings(delay=0.0, position_margin=0.0)
    joints, safety = Joints(np.zeros(JOINTS), 0.0, 0.0), SafetyFilter(make_limits(), rules)
    for _ in range(400):
        position, velocity, _ = joints.measured(0.0)
        fill = np.full(SIZE - JOINTS, np.nan)
        feedback = JointFeedback(
            np.concatenate([position, fill]), np.concatenate([velocity, fill]),
            np.full(SIZE, np.nan))
        result = safety.filter(np.full(SIZE, 100.0), feedback, 0.01)
        joints.run(result.command[:JOINTS], 0.01)
    gap = limits.upper[:JOINTS] - joints.position
    assert (gap >= -1e-12).all()
    assert (gap < 0.01).all()  # 0.25 % of the range of 4 rad


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2 ** 32 - 1), elapsed=st.floats(1e-4, 0.025))
def test_a_safe_proposal_passes_bit_for_bit(seed, elapsed):
    """Near the middle, slow, reachable: nothing may change, not the last bit."""
    generator = np.random.default_rng(seed)
    limits = make_limits(generator)
    safety = SafetyFilter(limits, FilterSettings(position_margin=0.0))
    action = generator.uniform(-0.5, 0.5, SIZE) * np.minimum(
        limits.acceleration * elapsed, 0.01)
    action[JOINTS] = generator.random()
    result = safety.filter(action, feedback_at(0.0), elapsed)
    assert result.state == State.PASSING and not result.reasons and not result.active
    assert result.command.tobytes() == action.tobytes()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2 ** 32 - 1))
def test_the_filter_is_idempotent_and_nearest(seed):
    """Its answer is safe, so it passes; no sampled safe command is nearer to the proposal."""
    generator = np.random.default_rng(seed)
    limits = make_limits(generator)
    position = generator.uniform(limits.lower[:JOINTS], limits.upper[:JOINTS])
    feedback = JointFeedback(
        np.concatenate([position, np.full(3, np.nan)]), np.full(SIZE, np.nan),
        np.full(SIZE, np.nan))
    action = generator.normal(0.0, 2.0, SIZE)
    command = SafetyFilter(limits).filter(action, feedback, 0.01).command
    again = SafetyFilter(limits).filter(command, feedback, 0.01)
    assert again.state == State.PASSING
    assert again.command.tobytes() == command.tobytes()
    for candidate in generator.normal(0.0, 2.0, (50, SIZE)):
        safe = SafetyFilter(limits).filter(candidate, feedback, 0.01).command
        assert (np.abs(safe - action) >= np.abs(command - action) - 1e-12).all()


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('elapsed', [0.0, -1.0, 1e9, float('nan'), float('inf')])
def test_any_elapsed_time_gives_a_command_within_limits(elapsed):
    """A clock that stands, goes back or jumps opens no limit, the gripper's range included."""
    limits, safety = make_limits(), SafetyFilter(make_limits())
    for action in (np.full(SIZE, 50.0), np.full(SIZE, -50.0), np.full(SIZE, np.nan)):
        before = safety.command
        command = safety.filter(action, feedback_at(), elapsed).command
        assert (command >= limits.low).all() and (command <= limits.high).all()
        step = 10.0 * (0.025 if elapsed > 1.0 else 0.0)
        assert (np.abs(command - before)[limits.moving] <= step * (1 + 1e-9)).all()


numbers = st.one_of(
    st.floats(), st.floats(-10.0, 10.0), st.sampled_from([0.0, -0.0, 1e308, -1e308, 5e-324]))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_garbage_in_every_input_still_gives_commands_within_limits(data):
    """Any floats as proposal, positions, velocities, age and elapsed time, several in a row."""
    limits, safety = make_limits(), SafetyFilter(make_limits())

    def array():
        return np.array(data.draw(st.lists(numbers, min_size=SIZE, max_size=SIZE)))
    for _ in range(3):
        feedback = JointFeedback(array(), array(), array(), data.draw(st.floats(0.0, 1e6)))
        before = safety.command
        with np.errstate(all='ignore'):
            result = safety.filter(array(), feedback, data.draw(numbers))
        assert np.isfinite(result.command).all()
        assert (result.command >= limits.low).all() and (result.command <= limits.high).all()
        change = np.abs(result.command - before)[limits.moving]
        assert (change <= 10.0 * 0.025 * (1 + 1e-9)).all()


@pytest.mark.parametrize(('room', 'acceleration'), [(1.0, 10.0), (1e-9, 10.0), (3.0, 0.1)])
def test_greatest_speed_solves_its_equation(room, acceleration):
    """u T + u^2 / (2 a) = room."""
    speed = greatest_speed(np.array([room]), np.array([acceleration]), 0.02)
    assert speed * 0.02 + speed ** 2 / (2 * acceleration) == pytest.approx(room, rel=1e-12)
    assert greatest_speed(np.array([-room]), np.array([acceleration]), 0.02) == 0.0


@pytest.mark.parametrize('bad', [
    None, np.zeros(SIZE - 1), np.full(SIZE, np.nan), np.full(SIZE, np.inf), np.zeros((1, SIZE))])
def test_unusable_proposals_brake_to_rest_within_the_acceleration_limit(bad):
    """2 rad/s at 10 rad/s2 takes 0.2 s; the gripper keeps what it had."""
    limits = make_limits()
    safety = SafetyFilter(limits)
    moving = np.full(SIZE, 2.0)
    moving[JOINTS] = 0.7
    for _ in range(20):
        safety.filter(moving, feedback_at(), 0.01)
    assert safety.command == pytest.approx(moving)
    for tick in range(20):
        result = safety.filter(bad, feedback_at(), 0.01)
        assert result.state == State.BRAKING and result.reasons
        expected = np.where(limits.moving, 2.0 - 0.1 * (tick + 1), 0.7)
        assert result.command == pytest.approx(expected, abs=1e-12)
    assert (result.command[limits.moving] == 0.0).all()
    assert result.command[JOINTS] == 0.7


def test_missing_joint_states_brake_and_recover():
    """The reasons say what is missing; with good data proposals pass again."""
    safety = SafetyFilter(make_limits())
    result = safety.filter(np.zeros(SIZE), None, 0.01, ('joint_states are 0.08 s old',))
    assert result.state == State.BRAKING
    assert result.reasons == ('joint_states are 0.08 s old',)
    assert safety.filter(np.zeros(SIZE), None, 0.01).reasons == ('no joint states',)
    assert safety.filter(np.zeros(SIZE), feedback_at(), 0.01).state == State.PASSING
    assert safety.filter(np.zeros(SIZE), feedback_at(np.nan), 0.01).state == State.BRAKING


def test_a_stop_is_latched_until_released_at_rest():
    """Stopped: brakes whatever is proposed; release only when standing and known."""
    safety = SafetyFilter(make_limits())
    fast = np.full(SIZE, 1.0)
    for _ in range(10):
        safety.filter(fast, feedback_at(), 0.01)
    safety.stop('operator')
    assert safety.filter(fast, feedback_at(), 0.01).state == State.STOPPED
    with pytest.raises(ReleaseRefused, match='still braking'):
        safety.release(feedback_at(velocity=0.9))
    for _ in range(20):
        result = safety.filter(fast, feedback_at(), 0.01)
    assert result.reasons[0] == 'operator'
    assert (result.command[make_limits().moving] == 0.0).all()
    with pytest.raises(ReleaseRefused, match='stale'):
        safety.release(None)
    with pytest.raises(ReleaseRefused, match='still moving'):
        safety.release(feedback_at(velocity=0.5))
    with pytest.raises(ReleaseRefused, match='outwards'):
        safety.release(feedback_at(position=2.1, velocity=0.01))
    safety.release(feedback_at())
    assert safety.filter(fast, feedback_at(), 0.01).state == State.LIMITING


def test_a_joint_outside_its_limits_may_only_come_back():
    """Outwards nothing, inwards whatever else allows."""
    safety = SafetyFilter(make_limits())
    outwards = safety.filter(np.full(SIZE, 0.05), feedback_at(2.5), 0.01)
    assert (outwards.command[:JOINTS] == 0.0).all()
    assert 'position/joint_0' in outwards.active
    inwards = np.full(SIZE, -0.05)
    inwards[JOINTS] = 0.0
    assert safety.filter(inwards, feedback_at(2.5), 0.01).state == State.PASSING


def test_each_limit_is_named_with_its_amount():
    """The first command from rest is bounded by acceleration, later ones by speed."""
    safety = SafetyFilter(make_limits())
    first = safety.filter(np.full(SIZE, 3.0), feedback_at(), 0.01)
    assert first.active[0] == 'acceleration/joint_0'
    assert first.amounts[0] == pytest.approx(2.9)
    assert 'range/suction' in first.active
    for _ in range(30):
        later = safety.filter(np.full(SIZE, 3.0), feedback_at(), 0.01)
    assert later.active[0] == 'velocity/joint_0' and later.amounts[0] == pytest.approx(1.0)


def test_a_robot_taken_over_while_moving_is_braked_from_its_speed():
    """No jump from the measured 1.5 rad/s to zero."""
    safety = SafetyFilter(make_limits())
    safety.reset(feedback_at(velocity=1.5))
    result = safety.filter(np.zeros(SIZE), feedback_at(velocity=1.5), 0.01)
    assert result.command[:JOINTS] == pytest.approx(1.4)


def test_braking_never_turns_round():
    """The step that reaches zero does not pass it."""
    limits = make_limits()
    previous = np.full(SIZE, -0.03)
    assert (brake(previous, limits, 0.01)[limits.moving] == 0.0).all()


def test_a_proposal_may_carry_its_distribution():
    """The chosen action is what is filtered."""
    action = np.full(SIZE, 0.01)
    proposal = Proposal(action, np.ones(1), action[None], np.ones((1, SIZE)))
    assert SafetyFilter(make_limits()).filter(proposal, feedback_at(), 0.01).command == \
        pytest.approx(action)
