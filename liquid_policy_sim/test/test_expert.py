"""The expert's kinematics are exact, and it picks what comes."""

import numpy as np
import pytest

from liquid_policy.interface import load_interface
from liquid_sim import conveyor, drivers, scene
from liquid_sim.expert import WAIT, ArmKinematics
from liquid_sim.rollout import run_episode

INTERFACE = scene.find_interface()


@pytest.fixture(scope='module')
def arm():
    return ArmKinematics(scene.read_urdf(scene.find_description()))


def test_inverse_kinematics_inverts_forward_kinematics(arm):
    rng = np.random.default_rng(0)
    home = conveyor.home_position()
    for _ in range(20):
        target = rng.uniform([0.45, -0.35, 0.45], [0.72, 0.35, 0.7])
        joints = arm.solve(target, scene.tool_down(), home)
        position, rotation = arm.tool_pose(joints)
        np.testing.assert_allclose(position, target, atol=1e-6)
        np.testing.assert_allclose(rotation, scene.tool_down(), atol=1e-6)


def test_home_is_the_waiting_pose(arm):
    position, rotation = arm.tool_pose(conveyor.home_position())
    np.testing.assert_allclose(position, WAIT, atol=1e-3)
    np.testing.assert_allclose(rotation, scene.tool_down(), atol=1e-3)


def test_joint_velocity_moves_the_tool_as_asked(arm):
    home, step = conveyor.home_position(), 1e-5
    wanted = np.array([0.1, -0.2, 0.15])
    before, rotation = arm.tool_pose(home)
    after, _ = arm.tool_pose(home + step * arm.joint_velocity(home, wanted, rotation))
    np.testing.assert_allclose((after - before) / step, wanted, atol=1e-3)


def test_unreachable_targets_are_refused(arm):
    with pytest.raises(ValueError, match='no joint positions found'):
        arm.solve(np.array([3.0, 0.0, 0.5]), scene.tool_down(), conveyor.home_position())


def test_expert_picks_at_every_speed_and_mass():
    # 97 % is asked of it; these are the corners of the range
    safety = drivers.Safety(load_interface(INTERFACE))
    for speed in (0.05, 0.25):
        for mass in (0.1, 1.5):
            sim = conveyor.ConveyorSim(conveyor.ConveyorSettings(
                speeds=((speed, speed + 1e-3),), masses=((mass, mass + 1e-3),)))
            outcome = run_episode(sim, drivers.ExpertDriver(sim), safety, 11, 3)
            assert outcome.picked == 3, f'{speed} m/s, {mass} kg: {outcome}'
            sim.close()
