"""Torque-commanded arms: MuJoCo integrates what the filter lets through, with its own load."""

import numpy as np
import pytest

pytest.importorskip('pinocchio')
pytest.importorskip('mujoco')

from dataclasses import replace

import mujoco
from random_robot import arm_limits, random_urdf

from liquid_policy.barrier import FilterSettings, JointFeedback, ReleaseRefused, State
from liquid_policy.barrier_effort import EffortFilter
from liquid_policy.barrier_guard import separation_speed
from liquid_policy.barrier_shapes import Shapes
from liquid_policy.limits import LimitsError
from liquid_policy.robot_model import RobotModel
from liquid_policy.safety_spec import ObstacleSpec, PointSpec, SafetySpec, SeparationSpec

JOINTS, TICK, PAYLOAD, ARMATURE = 3, 0.005, 0.2, 0.2
RULES = FilterSettings(longest_period=0.01, delay=0.0, position_margin=0.02)


POINTS = {'tool': PointSpec('tool', 'tool', 0.03), 'elbow': PointSpec('elbow', 'link_1', 0.05)}
CELL = SafetySpec(
    tool='tool', tool_speed=0.6, distance_margin=0.02, points=POINTS, obstacles={
        'floor': ObstacleSpec('floor', 'plane', normal=(0.0, 0.0, 1.0), offset=0.0),
        'post': ObstacleSpec('post', 'capsule', start=(0.4, 0.0, 0.0), end=(0.4, 0.0, 1.0),
                             radius=0.05)})


def make_filter(seed, payload=(0.0, PAYLOAD), spec=None):
    """A filter for a random arm whose motors are strong enough."""
    urdf = random_urdf(np.random.default_rng(seed), JOINTS)
    limits = arm_limits(JOINTS, acceleration=30.0)
    model = RobotModel(urdf, limits.names, limits.joint, {} if spec is None else spec.points,
                       tool='tool', payload=payload, floating=False)
    return EffortFilter(limits, model, RULES, np.full(JOINTS, ARMATURE), spec), urdf


def plant(urdf, payload):
    """The same arm in MuJoCo, a motor per joint, a ball at the tool, steps of 1 ms."""
    spec = mujoco.MjSpec.from_string(urdf.replace(
        '<robot name="random">', '<robot name="random"><mujoco><compiler fusestatic="false" '
        'balanceinertia="false"/></mujoco>'))
    for index in range(JOINTS):
        spec.add_actuator(
            name=f'joint_{index}', target=f'joint_{index}', trntype=mujoco.mjtTrn.mjTRN_JOINT)
    if payload:
        tool = spec.body('tool')
        tool.mass, tool.explicitinertial = payload, True
        tool.inertia = [0.4 * payload * 0.05 ** 2] * 3
    for joint in spec.joints:
        joint.armature = ARMATURE
    spec.option.timestep = 0.001
    spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT
    model = spec.compile()
    model.jnt_limited[:] = 0   # only the filter keeps the joints in their range
    return model, mujoco.MjData(model)


@pytest.mark.parametrize('payload', [0.0, PAYLOAD])
@pytest.mark.parametrize('kind', ['full', 'noise', 'silence'])
def test_positions_and_speeds_hold_under_any_torque(kind, payload):
    """Full torque, noise, nothing at all: MuJoCo's own joints stay within the limits."""
    generator = np.random.default_rng(4)
    safety, urdf = make_filter(7)
    model, data = plant(urdf, payload)
    limits, wanted = safety.limits, np.zeros(JOINTS)
    peak, fastest = 0.0, 0.0
    for tick in range(300):
        if kind == 'full' and tick % 60 == 0:
            wanted = 500.0 * generator.choice([-1.0, 1.0], JOINTS)
        elif kind == 'noise':
            wanted = generator.normal(0.0, 100.0, JOINTS)
        proposal = None if kind == 'silence' and tick > 60 else wanted + 0.0
        if kind == 'silence' and tick <= 60:
            proposal = np.full(JOINTS, 500.0)
        feedback = JointFeedback(
            data.qpos.copy(), data.qvel.copy(), np.full(JOINTS, np.nan), 0.0)
        result = safety.filter(proposal, feedback, TICK)
        assert (np.abs(result.command) <= limits.effort).all()
        data.ctrl[:] = result.command
        for _ in range(5):
            mujoco.mj_step(model, data)
            peak = max(peak, np.abs(data.qpos).max())
            fastest = max(fastest, np.abs(data.qvel).max())
    assert peak < 2.5
    # a step's worth of the payload's error
    assert fastest < 2.0 + TICK * safety.payload_error.max() + 0.02
    assert fastest > 0.5
    if kind == 'silence':
        # braked; what remains is the payload pulling at a robot that holds the middle one
        assert result.state == State.BRAKING and np.abs(data.qvel).max() < 0.5


def measured(safety, data):
    """Clearance of the nearest watched ball [m], its slope, and the tool's speed [m/s]."""
    points, tool = safety.model.points(data.qpos[None], data.qvel[None])
    distance, normal = Shapes(list(CELL.obstacles.values())).distance(points[0])
    distance = distance - np.array([point.radius for point in POINTS.values()])
    body, point = np.unravel_index(distance.argmin(), distance.shape)
    slope = normal[body, point] @ safety.model.point_jacobian(data.qpos, int(point), JOINTS)
    return distance.min(), slope, float(np.linalg.norm(tool[0]))


@pytest.mark.parametrize(('seed', 'payload'), [(1, 0.0), (8, PAYLOAD)])
def test_tool_speed_and_distance_hold_under_any_torque(seed, payload):
    """Full torque, into the obstacle or at random, noise, silence: MuJoCo stays within limits."""
    generator = np.random.default_rng(seed)
    safety, urdf = make_filter(seed, spec=CELL)
    model, data = plant(urdf, payload)
    for _ in range(500):
        data.qpos[:] = generator.uniform(-1.5, 1.5, JOINTS)
        if measured(safety, data)[0] > 0.1:
            break
    wanted, nearest, fastest, limited = np.zeros(JOINTS), np.inf, 0.0, set()
    for tick in range(300):
        kind = max(0, tick - 120) // 45 % 4
        if kind == 0:
            wanted = -500.0 * np.sign(measured(safety, data)[1])
        elif kind == 1 and tick % 20 == 0:
            wanted = 500.0 * generator.choice([-1.0, 1.0], JOINTS)
        elif kind == 2:
            wanted = generator.normal(0.0, 100.0, JOINTS)
        feedback = JointFeedback(
            data.qpos.copy(), data.qvel.copy(), np.full(JOINTS, np.nan), 0.0)
        result = safety.filter(None if kind == 3 else wanted, feedback, TICK)
        limited |= {name.partition('/')[0] for name in result.active}
        data.ctrl[:] = result.command
        for _ in range(5):
            mujoco.mj_step(model, data)
            clearance, _, speed = measured(safety, data)
            nearest, fastest = min(nearest, clearance), max(fastest, speed)
    assert nearest > 0.0 and fastest < 0.6
    assert fastest > 0.1 and {'speed', 'distance'} <= limited


def test_a_near_human_slows_a_robot_told_torques():
    """The same torque with and without a human at 0.4 m."""
    spec = replace(CELL, tool_speed=None, obstacles={}, points={}, separation=SeparationSpec())
    speeds = []
    for human in (np.inf, 0.4):
        safety, urdf = make_filter(1, spec=spec)
        model, data = plant(urdf, 0.0)
        for _ in range(60):
            feedback = JointFeedback(data.qpos.copy(), data.qvel.copy(), np.full(JOINTS, np.nan))
            result = safety.filter(
                np.full(JOINTS, 300.0), feedback, TICK, human_distance=human)
            data.ctrl[:] = result.command
            mujoco.mj_step(model, data, 5)
        speeds.append(np.linalg.norm(safety.model.points(data.qpos[None], data.qvel[None])[1]))
    assert speeds[1] <= separation_speed(SeparationSpec(), 0.4) < 0.5 * speeds[0]


@pytest.mark.parametrize('spec', [None, CELL])
def test_a_safe_torque_passes_bit_for_bit(spec):
    """Holding the middle payload against gravity, with limits of the whole robot too."""
    safety, _ = make_filter(7, spec=spec)
    position, still = np.full(JOINTS, 0.4), np.zeros(JOINTS)
    torque = safety._torque(safety._dynamics(position, still), still)
    result = safety.filter(
        torque, JointFeedback(position, still, np.full(JOINTS, np.nan)), TICK)
    assert result.state == State.PASSING and result.command.tobytes() == torque.tobytes()


def test_without_joint_states_the_posture_is_held():
    """The torque of the last known posture at rest, whatever is proposed."""
    safety, _ = make_filter(7)
    position, still = np.full(JOINTS, 0.4), np.zeros(JOINTS)
    hold = safety._torque(safety._dynamics(position, still), still)
    safety.filter(hold, JointFeedback(position, still, np.full(JOINTS, np.nan)), TICK)
    result = safety.filter(np.full(JOINTS, 100.0), None, TICK)
    assert result.state == State.BRAKING and result.command == pytest.approx(hold)


@pytest.mark.parametrize('bad', [np.full(JOINTS, np.nan), np.zeros(JOINTS + 1), None])
def test_unusable_torques_brake(bad):
    """Downwards in speed, within the effort limits."""
    safety, urdf = make_filter(7)
    velocity = np.full(JOINTS, 1.0)
    result = safety.filter(
        bad, JointFeedback(np.zeros(JOINTS), velocity, np.full(JOINTS, np.nan)), TICK)
    assert result.state == State.BRAKING
    inertia, bias = safety._dynamics(np.zeros(JOINTS), velocity)[0]
    assert (np.linalg.solve(inertia, result.command - bias) < 0.0).all()


def test_a_stop_is_latched_and_released_at_rest():
    """As for velocities."""
    safety, _ = make_filter(7)
    still, unknown = np.zeros(JOINTS), np.full(JOINTS, np.nan)
    safety.stop('operator')
    moving = JointFeedback(still, np.full(JOINTS, 0.5), unknown)
    assert safety.filter(still, moving, TICK).state == State.STOPPED
    with pytest.raises(ReleaseRefused):
        safety.release(moving)
    safety.release(JointFeedback(still, still, unknown))
    assert not safety.stopped


def test_a_payload_range_that_leaves_nothing_to_brake_with_is_refused():
    """100 kg or nothing."""
    with pytest.raises(LimitsError, match='payload of 0 to 100 kg leaves'):
        make_filter(7, (0.0, 100.0))
