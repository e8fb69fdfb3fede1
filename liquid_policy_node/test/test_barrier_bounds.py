"""Between samples: bounds hold at every instant of random manoeuvres, sliding joints included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip('pinocchio')

from random_robot import arm_limits, random_urdf

from liquid_policy.barrier_bounds import Links, fastest_between, sagitta
from liquid_policy.barrier_forces import ForceBounds, greatest_power
from liquid_policy.barrier_manoeuvre import Plan, hold_and_brake
from liquid_policy.limits import LimitsError
from liquid_policy.robot_model import RobotModel
from liquid_policy.safety_spec import PointSpec

JOINTS, PERIOD, FINE = 5, 0.025, 40
POINTS = {'tool': PointSpec('tool', 'tool', 0.0),
          'elbow': PointSpec('elbow', 'link_2', 0.0, (0.1, 0.0, 0.05))}
seeds = st.integers(0, 2 ** 32 - 1)
few = settings(max_examples=25, deadline=None, derandomize=True)


def make_model(generator, sliding, payload=(0.0, 1.0)):
    """A random arm, its joint_1 sliding if asked, and its limits."""
    urdf, limits = random_urdf(generator, JOINTS), arm_limits(JOINTS, generator=generator)
    if sliding:
        urdf = urdf.replace('name="joint_1" type="revolute"', 'name="joint_1" type="prismatic"')
    return RobotModel(urdf, limits.names, limits.joint, POINTS, 'tool', payload), limits


def fine(plan, start, piece):
    """Positions and velocities at many instants of one piece, `(FINE, A)` each."""
    time = np.linspace(0.0, plan.duration[piece], FINE)[:, None]
    speed, slowing = plan.velocity[piece], plan.acceleration[piece]
    return (start + plan.offset[piece] + speed * time + 0.5 * slowing * time ** 2,
            speed + slowing * time)


@given(seed=seeds, sliding=st.booleans())
@few
def test_kinematics_are_those_of_pinocchio(seed, sliding):
    """Points and the tool's velocity, to rounding."""
    generator = np.random.default_rng(seed)
    model, _ = make_model(generator, sliding)
    position, speed = generator.uniform(-2.5, 2.5, (2, 6, JOINTS))
    points, tool = model.points(model.configuration(position), model.velocity(speed))
    poses = model.chain.poses(position)
    found = model.chain.places(poses)
    assert found[:2].transpose(1, 0, 2) == pytest.approx(points, abs=1e-12)
    assert model.tool_velocity(position, speed) == pytest.approx(tool, abs=1e-12)
    by_speed, by_position = model.tool_slopes(position[0], speed[0], JOINTS)
    assert by_speed @ speed[0] == pytest.approx(tool[0], abs=1e-12)
    for entry, step in enumerate(1e-6 * np.eye(JOINTS)):
        ends = model.tool_velocity(position[0] + np.array([step, -step]), speed[:1].repeat(2, 0))
        assert by_position[:, entry] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-7)


@given(seed=seeds, sliding=st.booleans(), share=st.floats(0.01, 1.0))
@few
def test_speed_and_way_stay_within_their_bounds(seed, sliding, share):
    """The tool's speed, points off their chords, and how far they travel; Pinocchio's numbers."""
    generator = np.random.default_rng(seed)
    model, limits = make_model(generator, sliding)
    links = Links(model.chain, model.chain.points, JOINTS)
    start = generator.uniform(-2.5, 2.5, JOINTS)
    plan = hold_and_brake(
        share * generator.uniform(limits.low, limits.high), limits.deceleration, PERIOD)
    _, tool = model.points(
        model.configuration(start + plan.offset), model.velocity(plan.velocity))
    rate, change = plan.sizes @ links.rates
    bounds = fastest_between(
        np.linalg.norm(tool, axis=1), rate, change, plan.duration, links.lengths[-1])
    bound = bounds.max()
    bend = sagitta(rate, change, plan.duration, links.lengths[:2])
    travel = links.travel(np.abs(plan.offset[-1]))[:2]
    begin, _ = model.points(model.configuration(start[None]), model.velocity(start[None]))
    x = np.linspace(0.0, 1.0, FINE)[:, None, None]
    fastest = 0.0
    for piece in range(len(plan.duration)):
        position, speed = fine(plan, start, piece)
        points, velocity = model.points(model.configuration(position), model.velocity(speed))
        here = np.linalg.norm(velocity, axis=1).max()
        assert here <= bounds[piece] + 1e-12
        fastest = max(fastest, here)
        away = np.linalg.norm(points - (1 - x) * points[0] - x * points[-1], axis=-1)
        assert (away <= 4.0 * (bend[piece] * x * (1 - x))[..., 0, :] + 1e-9).all()
        assert (np.linalg.norm(points - begin, axis=-1) <= travel + 1e-9).all()
    if share < 0.3 and not sliding:
        assert bound <= 1.05 * fastest + 0.02   # not merely true, but of use


@given(seed=seeds, sliding=st.booleans(), share=st.floats(0.01, 1.0))
@few
def test_forces_and_power_stay_within_their_bounds(seed, sliding, share):
    """At every instant of a manoeuvre, for the lightest and the heaviest payload."""
    generator = np.random.default_rng(seed)
    model, limits = make_model(generator, sliding)
    bounds = ForceBounds(model, JOINTS)
    start = generator.uniform(-2.5, 2.5, JOINTS)
    way = Plan(share * generator.uniform(limits.low, limits.high), limits.deceleration, PERIOD)
    plan = way.manoeuvre
    np.testing.assert_allclose(way.end, plan.offset[-1], rtol=1e-12)
    ends, off = bounds.along(start, plan)
    assert ends[:, -1] == pytest.approx(model.gravity(start + plan.offset[-1]), abs=1e-9)
    ends = ends[:, :-1].reshape(len(ends), -1, 2, model.nv)
    power = greatest_power(
        ends[..., model.dofs], off[:, model.dofs], plan.velocity[:, model.entries])
    rest, inertia = model.gravity(start), np.abs(model.dynamics(start, np.zeros(JOINTS))[0])
    away = bounds.around(way, inertia)[:, None]
    x, worst = np.linspace(0.0, 1.0, FINE)[:, None], np.zeros(len(model.payloads))
    for piece in range(len(plan.duration)):
        position, speed = fine(plan, start, piece)
        forces = model.efforts(
            model.configuration(position), model.velocity(speed),
            model.velocity(np.tile(plan.acceleration[piece], (FINE, 1))))
        chord = (1 - x) * ends[:, None, piece, 0] + x * ends[:, None, piece, 1]
        assert (np.abs(forces - chord) <= off[piece] + 1e-7).all()
        assert (np.abs(forces - rest[:, None]) <= away + 1e-7).all()
        work = np.maximum(forces[..., model.dofs] * speed[:, model.entries], 0.0).sum(axis=2)
        worst = np.maximum(worst, work.max(axis=1))
    assert (worst <= power + 1e-7).all()
    if share < 0.3 and not sliding:
        assert off.max() < 0.2 * np.abs(ends).max()


def test_a_driving_base_is_followed_with_its_arc():
    """Points of a robot that drives and turns, and its tool's speed, against fine integration."""
    generator = np.random.default_rng(2)
    urdf, limits = random_urdf(generator, JOINTS), arm_limits(JOINTS)
    joint = np.array([False, False, True, True, True, True, True])
    names = ('v', 'w', *limits.names)
    model = RobotModel(urdf, names, joint, POINTS, 'tool', base={0: 0, 1: 5})
    links = Links(model.chain, model.chain.points, 7, model.base)
    deceleration = np.array([0.5, 1.0, *limits.deceleration])
    for _ in range(10):
        command = generator.uniform(-0.6, 0.6, 7)
        start = np.concatenate([np.zeros(2), generator.uniform(-2.0, 2.0, JOINTS)])
        plan = hold_and_brake(command, deceleration, PERIOD)
        rate, change = plan.sizes @ links.rates
        bend = sagitta(rate, change, plan.duration, links.lengths[:2])
        ends = model.tool_velocity(start + plan.offset, plan.velocity)
        bounds = fastest_between(
            np.linalg.norm(ends, axis=1), rate, change, plan.duration, links.lengths[-1])
        by_speed, by_position = model.tool_slopes(start, command, 7)
        assert by_speed @ command == pytest.approx(ends[0], abs=1e-12)
        for entry in range(2, 7):
            step = 1e-6 * np.eye(7)[entry]
            two = model.tool_velocity(start + np.array([step, -step]), command[None].repeat(2, 0))
            assert by_position[:, entry] == pytest.approx((two[0] - two[1]) / 2e-6, abs=1e-7)
        x, y, yaw = 0.0, 0.0, 0.0
        for piece in range(len(plan.duration)):
            position, speed = fine(plan, start, piece)
            points, tool = model.points(model.configuration(position), model.velocity(speed))
            assert model.tool_velocity(position, speed) == pytest.approx(tool, abs=1e-12)
            assert np.linalg.norm(tool, axis=1).max() <= bounds[piece] + 1e-12
            step = plan.duration[piece] / (FINE - 1)
            turn = position[:, 1] - position[0, 1]
            forward = 0.5 * (speed[1:, 0] + speed[:-1, 0]) * step
            middle = yaw + 0.5 * (turn[1:] + turn[:-1])
            way = np.concatenate([np.zeros((1, 2)), np.stack([
                forward * np.cos(middle), forward * np.sin(middle)], axis=1).cumsum(axis=0)])
            heading = yaw + turn
            cosine, sine = np.cos(heading)[:, None], np.sin(heading)[:, None]
            world = points.copy()
            world[..., 0] = x + way[:, :1] + cosine * points[..., 0] - sine * points[..., 1]
            world[..., 1] = y + way[:, 1:] + sine * points[..., 0] + cosine * points[..., 1]
            share = np.linspace(0.0, 1.0, FINE)[:, None, None]
            away = np.linalg.norm(
                world - (1 - share) * world[0] - share * world[-1], axis=-1).max(axis=0)
            assert (away <= bend[piece] + 1e-5).all()
            x, y, yaw = x + way[-1, 0], y + way[-1, 1], heading[-1]


def test_a_sliding_joint_without_end_is_refused():
    """Nothing can be said about how far it reaches."""
    limits = arm_limits(JOINTS)
    urdf = random_urdf(np.random.default_rng(0), JOINTS).replace(
        'name="joint_1" type="revolute"', 'name="joint_1" type="prismatic"').replace(
        'lower="-2.5" upper="2.5" ', '')
    model = RobotModel(urdf, limits.names, limits.joint, POINTS, 'tool')
    with pytest.raises(LimitsError, match='without position limits'):
        Links(model.chain, model.chain.points, JOINTS)
