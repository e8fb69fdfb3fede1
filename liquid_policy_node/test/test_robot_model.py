"""The manipulator's model: support polygon, forces on the floor, tipping."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('pinocchio')
pytest.importorskip('xacro')

from liquid_policy.barrier import FilterSettings, JointFeedback, SafetyFilter, State
from liquid_policy.barrier_force_guard import support_edges
from liquid_policy.barrier_load import make_guard
from liquid_policy.interface import load_interface
from liquid_policy.limits import LimitsError, load_limits, load_urdf
from liquid_policy.robot_model import RobotModel, base_entries, support_polygon
from liquid_policy.safety_spec import PointSpec, SafetySpec

PACKAGE = Path(__file__).parent.parent
DESCRIPTION = PACKAGE / 'urdf' / 'manipulator.urdf.xacro'
FOLDED = np.array([np.pi / 2, -1.6, 2.4, -0.8, 0.0, 0.0, np.nan, np.nan, np.nan])


@pytest.fixture(scope='module')
def interface():
    """The manipulator's interface."""
    return load_interface(PACKAGE / 'config' / 'manipulator.interface.yaml')


@pytest.fixture(scope='module')
def urdf():
    """Its description."""
    return load_urdf(DESCRIPTION)


def test_the_support_polygon_is_the_hull_of_wheels_and_casters(urdf):
    """Wheels at y = +-0.25, casters at x = +-0.24, on the floor at height 0."""
    corners, floor = support_polygon(urdf)
    assert sorted(map(tuple, corners.round(6))) == [
        (-0.24, 0.0), (0.0, -0.25), (0.0, 0.25), (0.24, 0.0)]
    assert floor == pytest.approx(0.0, abs=1e-9)
    area = 0.5 * np.sum(corners[:, 0] * np.roll(corners[:, 1], -1)
                        - np.roll(corners[:, 0], -1) * corners[:, 1])
    assert area == pytest.approx(0.12)   # positive: counter-clockwise


def test_edges_move_inwards_by_the_margin():
    """A square of side 2: 0.9 from the centre to each side; a margin of 1.1 leaves nothing."""
    square = np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    assert support_edges(square, 0.1)[:, 2] == pytest.approx(np.full(4, 0.9))
    with pytest.raises(LimitsError, match='leaves nothing'):
        support_edges(square, 1.1)


def test_the_floor_carries_the_robot_and_its_payload(interface, urdf):
    """At rest the force is weight; its moment puts the pressure below the centre of mass."""
    limits = load_limits(interface, DESCRIPTION)
    model = RobotModel(urdf, limits.names, limits.joint, tool='tool_tip', payload=(0.0, 3.0),
                       base=base_entries(interface))
    position = np.nan_to_num(FOLDED)
    q, still = model.configuration(position[None]), np.zeros((1, model.nv))
    forces = model.efforts(q, still, still)[:, 0]
    assert (forces[1, 2] - forces[0, 2]) / 9.81 == pytest.approx(3.0, abs=1e-9)
    for force, center in zip(forces, model.balance(q[0]), strict=True):
        assert [-force[4] / force[2], force[3] / force[2]] == pytest.approx(center[:2], abs=1e-9)


def test_braking_the_base_moves_the_pressure_forwards(interface, urdf):
    """At 1 m/s2 by the height of the centre of mass times a / g."""
    limits = load_limits(interface, DESCRIPTION)
    model = RobotModel(urdf, limits.names, limits.joint, base=base_entries(interface))
    q = model.configuration(np.nan_to_num(FOLDED)[None])
    still, braking = np.zeros((1, model.nv)), np.zeros(9)
    braking[7] = -1.0
    force = model.efforts(q, still, model.velocity(braking[None]))[0, 0]
    center = model.balance(q[0])[0]
    assert -force[4] / force[2] == pytest.approx(center[0] + center[2] / 9.81, abs=1e-9)


def test_a_heavy_load_is_never_carried_out_to_where_the_robot_tips(interface, urdf):
    """40 kg lowered sideways: stopped while the centre of mass is inside the polygon."""
    limits, rules = load_limits(interface, DESCRIPTION), FilterSettings()
    spec = SafetySpec(tool='tool_tip', payload=(0.0, 40.0), tip_margin=0.03)
    guard = make_guard(spec, limits, rules, urdf, base_entries(interface))
    safety, seen = SafetyFilter(limits, rules, (guard,)), set()
    position, command = FOLDED, np.zeros(9)
    free = position.copy()
    wanted = np.array([0.0, 1.0, -1.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    corners, _ = support_polygon(urdf)
    edges, tipped = support_edges(corners, 0.0), False
    for _ in range(200):
        result = safety.filter(wanted, JointFeedback(
            position, command, np.full(9, np.nan)), 0.01)
        command = result.command
        position, free = position + 0.01 * command, np.minimum(free + 0.01 * wanted, 0.5)
        seen.update(name.partition('/')[0] for name in result.active)
        for center in guard.model.balance(guard.model.configuration(np.nan_to_num(position))):
            assert (edges[:, :2] @ center[:2] <= edges[:, 2] - 0.02).all()
        center = guard.model.balance(guard.model.configuration(np.nan_to_num(free)))[1]
        tipped |= bool((edges[:, :2] @ center[:2] > edges[:, 2]).any())
    assert tipped   # unfiltered it would have
    assert seen & {'stand', 'tip'} and result.state != State.PASSING


def test_frames_and_joints_the_urdf_does_not_have_are_named(interface, urdf):
    """A misspelt frame of a point, a joint of another robot."""
    limits = load_limits(interface, DESCRIPTION)
    with pytest.raises(LimitsError, match="no frame 'tool_tipp'"):
        RobotModel(urdf, limits.names, limits.joint, {'tool': PointSpec('tool', 'tool_tipp')})
    with pytest.raises(LimitsError, match='no joint knee'):
        RobotModel(urdf, ('knee',), np.array([True]))
