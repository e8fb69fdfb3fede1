"""Laws of the whole robot's limits, on random arms: they hold at every instant."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip('pinocchio')
pytest.importorskip('daqp')

from random_robot import World, arm_limits, random_urdf

from liquid_policy.barrier import FilterSettings, JointFeedback, SafetyFilter, State
from liquid_policy.barrier_guard import separation_speed
from liquid_policy.barrier_load import make_guard
from liquid_policy.barrier_rows import Moment, build_constraints
from liquid_policy.barrier_shapes import Shapes
from liquid_policy.limits import LimitsError
from liquid_policy.safety_spec import ObstacleSpec, PointSpec, SafetySpec, SeparationSpec

JOINTS = 4
RULES = FilterSettings(longest_period=0.025, delay=0.02, position_margin=0.0)
POINTS = {'tool': PointSpec('tool', 'tool', 0.03), 'elbow': PointSpec('elbow', 'link_2', 0.05)}
OBSTACLES = {
    'floor': ObstacleSpec('floor', 'plane', normal=(0.0, 0.0, 1.0), offset=-0.2),
    'ball': ObstacleSpec('ball', 'sphere', center=(0.5, 0.0, 0.4), radius=0.15),
    'rod': ObstacleSpec('rod', 'capsule', start=(-0.4, 0.3, 0.0), end=(-0.4, 0.3, 0.8),
                        radius=0.05),
    'crate': ObstacleSpec('crate', 'box', center=(0.0, -0.6, 0.5), half=(0.2, 0.1, 0.2)),
}


def make_filter(generator, **spec):
    """A filter of a random arm and its guard."""
    urdf = random_urdf(generator, JOINTS)
    limits = arm_limits(JOINTS, generator=generator)
    guard = make_guard(SafetySpec(tool='tool', **spec), limits, RULES, urdf)
    return SafetyFilter(limits, RULES, (guard,)), guard


def distances(guard, position, velocity):
    """Clearance of every point to every obstacle, and the tool's speed."""
    points, tool = guard.model.points(
        guard.model.configuration(position[None]), guard.model.velocity(velocity[None]))
    clearance = Shapes(list(guard.spec.obstacles.values())).distance(points[0])[0] - guard._radius
    return clearance, float(np.linalg.norm(tool[0]))


@given(seed=st.integers(0, 2**31), share=st.floats(0.05, 1.0))
@settings(max_examples=40, deadline=None)
def test_what_comes_first_is_refused_exactly_if_it_is_when_followed(seed, share):
    """A proposal that is too fast at once is not followed; other limits do not notice."""
    generator = np.random.default_rng(seed)
    safety, guard = make_filter(
        generator, tool_speed=0.5, torque=True, points=POINTS, obstacles=OBSTACLES)
    position = generator.uniform(-2.0, 2.0, JOINTS)
    command = share * generator.uniform(safety.limits.low, safety.limits.high)
    still = np.zeros(JOINTS)
    moment = Moment(JointFeedback(position, still, still), still, still[None], 0.01)
    guard.begin(moment)
    first = guard.excess(command)
    guard.begin(moment)
    guard.excess(np.full(JOINTS, 2.0))
    followed = guard.excess(command)
    np.testing.assert_array_equal(first > 0.0, followed > 0.0)


def proposal_of(kind, generator, guard, position, tick, held):
    """An action of one of several kinds that tries to break limits."""
    if kind == 'noise':
        return generator.normal(0.0, 2.0, JOINTS)
    if kind == 'flips':
        return np.full(JOINTS, 5.0 * (-1) ** (tick // 25))
    if kind == 'holds':
        return held
    # adversarial: steepest way of the nearest point into its obstacle
    q = guard.model.configuration(position[None])
    points, _ = guard.model.points(q, guard.model.velocity(np.zeros((1, JOINTS))))
    distance, normal = Shapes(list(guard.spec.obstacles.values())).distance(points[0])
    body, point = np.unravel_index(
        (distance - guard._radius).argmin(), distance.shape)
    slope = normal[body, point] @ guard.model.point_jacobian(q[0], int(point), JOINTS)
    return -5.0 * np.sign(slope)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2 ** 32 - 1),
       kind=st.sampled_from(['noise', 'flips', 'holds', 'adversarial']),
       delay=st.sampled_from([0.0, 0.02]), jitter=st.floats(0.0, 1.0))
def test_distance_and_tool_speed_hold_at_every_instant(seed, kind, delay, jitter):
    """Random arm, obstacles, jitter and delay: never nearer than the margin, never too fast."""
    generator = np.random.default_rng(seed)
    safety, guard = make_filter(
        generator, points=POINTS, obstacles=OBSTACLES, tool_speed=0.8, distance_margin=0.02)
    for _ in range(200):
        start = generator.uniform(-2.0, 2.0, JOINTS)
        if distances(guard, start, np.zeros(JOINTS))[0].min() > 0.05:
            break
    world, command = World(start, delay), np.zeros(JOINTS)
    held = generator.choice([-3.0, 3.0], JOINTS)
    nearest, fastest = np.inf, 0.0
    for tick in range(60):
        wanted = proposal_of(kind, generator, guard, world.position, tick, held)
        elapsed = 0.01 * (1.0 + jitter * generator.uniform(-0.8, 1.5))
        command = safety.filter(wanted, world.feedback(command), elapsed).command
        for position, velocity in world.run(command, elapsed):
            clearance, speed = distances(guard, position, velocity)
            nearest, fastest = min(nearest, clearance.min()), max(fastest, speed)
    # half the margin is left for what the unknown delay leaves out
    assert nearest > 0.01
    assert fastest <= 0.8


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2 ** 32 - 1), payload=st.floats(0.0, 1.5))
def test_torque_holds_for_every_payload_of_the_range(seed, payload):
    """Commands whose torque is computed with a payload the filter does not know."""
    generator = np.random.default_rng(seed)
    urdf = random_urdf(generator, JOINTS)
    limits = arm_limits(JOINTS, acceleration=20.0, effort=70.0)
    spec = SafetySpec(tool='tool', payload=(0.0, 1.5), torque=True, torque_margin=0.0)
    try:
        guard = make_guard(spec, limits, RULES, urdf)
    except LimitsError:
        return  # too weak to hold the payload in some posture: refused, and rightly
    truth = make_guard(
        SafetySpec(tool='tool', payload=(payload, payload), torque=True, torque_margin=0.0),
        limits, RULES, random_urdf(np.random.default_rng(seed), JOINTS))
    safety = SafetyFilter(limits, RULES, (guard,))
    world, before = World(generator.uniform(-1.5, 1.5, JOINTS), 0.0), np.zeros(JOINTS)
    for _ in range(50):
        result = safety.filter(
            generator.normal(0.0, 4.0, JOINTS), world.feedback(before), 0.01)
        if result.state == State.LIMITING:
            moment = guard._moment
            model = truth.model
            forces = model.efforts(
                model.configuration(guard._start[None]), model.velocity(moment.previous[None]),
                model.velocity(((result.command - moment.previous) / 0.01)[None]))
            assert (np.abs(forces[0, 0, model.dofs]) <= 70.0 * (1 + 1e-6)).all()
        before = result.command
        for _ in world.run(before, 0.01):
            pass


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2 ** 32 - 1))
def test_a_safe_proposal_passes_bit_for_bit_and_a_filtered_one_again(seed):
    """Slow and far from everything; then the filter's own answer, from the same state."""
    generator = np.random.default_rng(seed)
    safety, guard = make_filter(
        generator, points=POINTS, obstacles=OBSTACLES, tool_speed=0.8, power=1e4, torque=True)
    position = generator.uniform(-1.5, 1.5, JOINTS)
    feedback = JointFeedback(position, np.zeros(JOINTS), np.full(JOINTS, np.nan))
    still = np.zeros(JOINTS)
    assert safety.filter(still, feedback, 0.01).command.tobytes() == still.tobytes()
    if distances(guard, position, still)[0].min() > 0.1:
        action = generator.uniform(-0.02, 0.02, JOINTS)
        result = safety.filter(action, feedback, 0.01)
        assert result.state == State.PASSING
        assert result.command.tobytes() == action.tobytes()
    safety.reset()
    limited = safety.filter(generator.normal(0.0, 3.0, JOINTS), feedback, 0.01)
    if limited.state == State.LIMITING:
        safety.reset()
        again = safety.filter(limited.command, feedback, 0.01)
        assert again.command == pytest.approx(limited.command, abs=1e-9)


@pytest.mark.parametrize('seed', range(6))
def test_rows_agree_with_finite_differences(seed):
    """Away from kinks, a row's gradient is the slope of the exact excess."""
    generator = np.random.default_rng(seed)
    _, guard = make_filter(
        generator, points=POINTS, obstacles=OBSTACLES, tool_speed=0.5, power=5.0, torque=True,
        payload=(0.0, 1.0))
    position = generator.uniform(-1.0, 1.0, JOINTS)
    previous = generator.uniform(-0.3, 0.3, JOINTS)
    guard.begin(Moment(
        JointFeedback(position, previous, np.full(JOINTS, np.nan)), previous, previous[None],
        0.01))
    command = previous + generator.uniform(-0.05, 0.05, JOINTS)
    rows = guard.rows(command)
    speed = guard.names.index('speed/tool')
    power = [index for index, name in enumerate(guard.names) if name.startswith('power')]
    slopes = np.array([
        (guard.excess(command + step) - guard.excess(command - step)) / 2e-5
        for step in 1e-5 * np.eye(JOINTS)]).T
    for place, index in enumerate(power):  # of the command's own power, exactly
        if guard._forces._held_counts[place] or not np.isfinite(rows.high[index]):
            continue   # holding the speed needs more than changing it; or little is needed

        def power_of(command, place=place, loads=guard._forces._loads):
            return np.maximum(
                (loads.torque[place] @ command + loads.rest[place]) * command, 0.0).sum()
        slope = [(power_of(command + step) - power_of(command - step)) / 2e-5
                 for step in 1e-5 * np.eye(JOINTS)]
        assert rows.matrix[index] == pytest.approx(slope, rel=1e-4, abs=1e-3)
    # of the tool the worst sample's speed, samples at shares of the longest braking left out
    path, first = guard._follow(command), guard._start

    def speed_at(command, held=guard.settings.longest_period):
        if path.slopes is not None:   # refused at once: then reckoned to the end of the hold
            now, later = (guard.model.tool_velocity(
                (first + time * command)[None], command[None])[0] for time in (0.0, 1e-6))
            velocity = now + held * 1e6 * (later - now) \
                if np.linalg.norm(path.tool) > np.linalg.norm(guard.model.tool_velocity(
                    first[None], reference[None])) else now
        else:
            way = guard._plan(command).manoeuvre
            velocity = guard.model.tool_velocity(first + way.offset, way.velocity)[path.worst]
        return 1.03 * np.linalg.norm(velocity)

    if path.tool is not None:
        reference = command
        assert speed_at(command) == pytest.approx(1.03 * np.linalg.norm(path.tool), abs=1e-4)
        slope = [(speed_at(command + step) - speed_at(command - step)) / 2e-4
                 for step in 1e-4 * np.eye(JOINTS)]
        assert rows.matrix[speed] == pytest.approx(slope, abs=1e-3)
    # of two samples the lower one is taken and the braking time is kept
    for index, name in enumerate(guard.names):
        if name.startswith('distance') and rows.excess[index] > -0.25 \
                and np.isfinite(rows.high[index]):
            assert rows.matrix[index] == pytest.approx(slopes[index], abs=0.08), name


@pytest.mark.parametrize('seed', range(4))
def test_quick_bounds_decide_as_following_does(seed):
    """Far, slow, little power: what is not looked at closely would not have been refused."""
    kinds = dict(points=POINTS, obstacles=OBSTACLES, tool_speed=0.5, power=60.0, torque=True,
                 payload=(0.0, 1.0))
    quick, thorough = (make_filter(np.random.default_rng(seed), **kinds)[1] for _ in range(2))
    thorough._forces._slowly = lambda plan: None
    thorough._far = lambda plan: np.full((len(OBSTACLES), len(POINTS)), -1e9)
    generator, position, shortcuts = np.random.default_rng(seed), np.full(JOINTS, 0.3), 0
    follow = quick._forces._braking
    for _ in range(150):
        previous = generator.uniform(-1.0, 1.0, JOINTS) * generator.choice([0.05, 0.3, 1.0])
        command = previous + generator.uniform(-0.02, 0.02, JOINTS)
        position = np.clip(position + 0.05 * generator.normal(size=JOINTS), -2.0, 2.0)
        followed = []
        quick._forces._braking = lambda plan, seen=followed: seen.append(plan) or follow(plan)
        moment = Moment(JointFeedback(position, previous, np.full(JOINTS, np.nan)), previous,
                        previous[None], 0.01)
        quick.begin(moment)
        thorough.begin(moment)
        found, exact = quick.excess(command), thorough.excess(command)
        shortcuts += not followed and bool((found <= 0.0).all())
        assert (found + 1e-9 >= exact).all()
        assert ((found > 0.0) == (exact > 0.0)).all()
        low, high = quick.rows(command), thorough.rows(command)
        near = np.isfinite(low.high)   # what is far has no row
        assert low.matrix[near] == pytest.approx(high.matrix[near], abs=1e-9)
        assert low.high[near] == pytest.approx(high.high[near], abs=1e-9)
        assert low.low[near] == pytest.approx(high.low[near], abs=1e-9)
    assert shortcuts > 20


def test_torque_rows_are_exact():
    """Row times command plus rest is what inverse dynamics says, for both payloads."""
    generator = np.random.default_rng(3)
    _, guard = make_filter(generator, torque=True, payload=(0.2, 1.2), torque_margin=0.1)
    position, previous = generator.uniform(-1, 1, JOINTS), generator.uniform(-1, 1, JOINTS)
    guard.begin(Moment(
        JointFeedback(position, previous, np.full(JOINTS, np.nan)), previous, previous[None],
        0.01))
    command = previous + generator.uniform(-0.1, 0.1, JOINTS)
    rows, model = guard.rows(command), guard.model
    forces = model.efforts(
        model.configuration(guard._start[None]), model.velocity(previous[None]),
        model.velocity(((command - previous) / 0.01)[None]))[:, 0, model.dofs]
    middle = 0.5 * (rows.high + rows.low)  # minus the rest: limits are symmetric
    assert rows.matrix @ command - middle == pytest.approx(forces.ravel(), abs=1e-6)
    assert 0.5 * (rows.high - rows.low) == pytest.approx(450.0)


def test_a_payload_between_lies_between_the_ends():
    """Inverse dynamics is affine in the payload's mass, which the robust range rests on."""
    generator = np.random.default_rng(5)
    urdf, limits = random_urdf(generator, JOINTS), arm_limits(JOINTS)
    q, v, a = generator.normal(size=(3, 1, JOINTS))
    forces = []
    for mass in (0.0, 0.6, 1.5):
        model = make_guard(SafetySpec(tool='tool', payload=(mass, mass), torque=True),
                           limits, RULES, urdf).model
        forces.append(model.efforts(
            model.configuration(q), model.velocity(v), model.velocity(a))[0, 0])
    light, middle, heavy = forces
    assert middle == pytest.approx(light + 0.4 * (heavy - light), abs=1e-9)


def test_a_payload_the_arm_cannot_hold_is_refused_with_numbers():
    """200 kg."""
    with pytest.raises(LimitsError, match=r'holding 200 kg at rest needs .* allowed are 450'):
        make_filter(np.random.default_rng(0), torque=True, payload=(0.0, 200.0))


@pytest.mark.parametrize('distance', [0.3, 1.0, 4.0])
def test_separation_speed_solves_its_equation(distance):
    """Reaction, braking and the human's walk meanwhile use up the distance; too near is zero."""
    spec = SeparationSpec(human_speed=1.6, reaction=0.05, deceleration=3.0, margin=0.1)
    speed = separation_speed(spec, distance)
    used = ((1.6 + speed) * 0.05 + 1.6 * speed / 3.0 + speed ** 2 / 6.0 + 0.1)
    assert used == pytest.approx(distance, rel=1e-12)
    assert separation_speed(spec, 0.05) == 0.0 and separation_speed(spec, np.nan) == 0.0
    assert separation_speed(spec, np.inf) == np.inf


def test_a_near_human_slows_the_tool_and_is_named():
    """A fast proposal, with and without a human half a metre away."""
    safety, guard = make_filter(np.random.default_rng(1), separation=SeparationSpec())
    command, fast = np.zeros(JOINTS), np.full(JOINTS, 1.0)
    position = np.full(JOINTS, 0.3)
    speeds = {}
    for human in (np.inf, 0.5):
        safety.reset()
        for _ in range(30):
            result = safety.filter(fast, JointFeedback(
                position, command, np.full(JOINTS, np.nan)), 0.01, human_distance=human)
            command = result.command
        speeds[human] = distances(guard, position, command)[1]
    assert result.state == State.LIMITING and 'speed/tool' in result.active
    assert speeds[0.5] <= separation_speed(SeparationSpec(), 0.5) * 1.01 < speeds[np.inf]


def test_the_builder_gives_the_box_first_and_every_guard_row_named():
    """Fixed convention: identity rows, then the guards'."""
    safety, guard = make_filter(
        np.random.default_rng(2), points=POINTS, obstacles=OBSTACLES, tool_speed=1.0,
        soft=('tool_speed',))
    still = np.zeros(JOINTS)
    rows = build_constraints(
        safety.limits, RULES,
        Moment(JointFeedback(still, still, still), still, still[None], 0.01), (guard,))
    assert (rows.matrix[:JOINTS] == np.eye(JOINTS)).all()
    assert rows.names[:JOINTS] == tuple(f'box/joint_{index}' for index in range(JOINTS))
    assert rows.names[JOINTS:] == guard.names
    assert rows.priority[rows.names.index('speed/tool')] == 1 and rows.hard[:-1].all()
    assert rows.excess(still).max() == 0.0


def test_a_failing_guard_brakes():
    """Whatever a guard raises, the robot is braked and the reason says so."""
    class Broken:
        names, priority = ('broken',), np.zeros(1, dtype=int)

        def begin(self, moment):
            raise RuntimeError('no luck')

    safety = SafetyFilter(arm_limits(JOINTS), RULES, (Broken(),))
    still = np.zeros(JOINTS)
    result = safety.filter(still, JointFeedback(still, still, still), 0.01)
    assert result.state == State.BRAKING and 'no luck' in result.reasons[0]


def test_an_overloaded_joint_and_a_late_call_brake():
    """Measured effort beyond its limit, a gap the braking distance does not cover."""
    safety, still = SafetyFilter(arm_limits(JOINTS, effort=50.0), RULES), np.zeros(JOINTS)
    overloaded = JointFeedback(still, still, np.array([0.0, -60.0, 0.0, np.nan]))
    result = safety.filter(still, overloaded, 0.01)
    assert result.state == State.BRAKING and 'effort/joint_1' in result.reasons[0]
    late = safety.filter(still, JointFeedback(still, still, still), 0.03)
    assert late.state == State.BRAKING and 'after 0.030 s' in late.reasons[0]
    assert safety.filter(
        still, JointFeedback(still, still, still), 0.01).state == State.PASSING
