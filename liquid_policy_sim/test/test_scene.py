"""One robot, two readers: MuJoCo and Pinocchio must find the same machine in the URDF."""

import mujoco
import numpy as np
import pinocchio
import pytest

from liquid_sim import scene


@pytest.fixture(scope='module')
def urdf():
    return scene.read_urdf(scene.find_description())


@pytest.fixture(scope='module')
def model():
    return scene.build_model()


@pytest.fixture(scope='module')
def pin(urdf):
    model = pinocchio.buildModelFromXML(urdf)
    return model, model.createData()


def subtree_inertia(model, data, bodies):
    """Return mass [kg], centre [m] and inertia about it [kg m2] of some bodies, in the world."""
    mass = model.body_mass[bodies]
    centre = (mass[:, None] * data.xipos[bodies]).sum(0) / mass.sum()
    total = np.zeros((3, 3))
    for body in bodies:
        rotation = data.ximat[body].reshape(3, 3)
        offset = data.xipos[body] - centre
        total += rotation @ np.diag(model.body_inertia[body]) @ rotation.T
        total += model.body_mass[body] * (offset @ offset * np.eye(3) - np.outer(offset, offset))
    return mass.sum(), centre, total


def moving_with(model, name):
    """Return the bodies that move rigidly with a named one."""
    root = model.body(name).id
    bodies = [root]
    for body in range(root + 1, model.nbody):
        if model.body_parentid[body] in bodies and model.body_jntnum[body] == 0:
            bodies.append(body)
    return bodies


@pytest.mark.parametrize('link', [
    'shoulder_link', 'upper_arm_link', 'forearm_link', 'wrist_1_link', 'wrist_2_link',
    'wrist_3_link', 'left_wheel_link'])
def test_masses_centres_and_inertias_agree(link, model, pin):
    pin_model, pin_data = pin
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    mass, centre, inertia = subtree_inertia(model, data, moving_with(model, link))
    joint = pin_model.frames[pin_model.getFrameId(link)].parentJoint
    pinocchio.forwardKinematics(pin_model, pin_data, pinocchio.neutral(pin_model))
    expected = pin_data.oMi[joint].act(pin_model.inertias[joint])
    assert mass == pytest.approx(expected.mass, rel=1e-9)
    np.testing.assert_allclose(centre, expected.lever, atol=1e-6)
    np.testing.assert_allclose(inertia, expected.inertia, atol=1e-6)


def test_total_mass_is_that_of_the_urdf(model, urdf, pin):
    # Pinocchio leaves the mass of the fixed base out of its joints' inertias
    root = pinocchio.buildModelFromXML(urdf, pinocchio.JointModelFreeFlyer())
    robot = [b for b in range(model.nbody) if model.body_rootid[b] == model.body('base_link').id]
    assert model.body_mass[robot].sum() == pytest.approx(pinocchio.computeTotalMass(root))


def test_inertias_are_those_of_solid_bodies(model):
    # the triangle inequality: no mass distribution has a moment larger than the other two's sum
    for body in range(1, model.nbody):
        if model.body_mass[body] > 0:
            moments = np.sort(model.body_inertia[body])
            assert moments[0] > 0 and moments[2] <= moments[0] + moments[1] + 1e-12


def test_forward_kinematics_agree(model, pin):
    pin_model, pin_data = pin
    rng = np.random.default_rng(0)
    data = mujoco.MjData(model)
    tip = pin_model.getFrameId('tool_tip')
    camera = pin_model.getFrameId('camera_optical_frame')
    for _ in range(50):
        joints = rng.uniform(-2, 2, 6)
        data.qpos[:] = model.qpos0
        q = pinocchio.neutral(pin_model)
        for name, value in zip(scene.ARM_JOINTS, joints, strict=True):
            data.qpos[model.joint(name).qposadr[0]] = value
            q[pin_model.joints[pin_model.getJointId(name)].idx_q] = value
        mujoco.mj_kinematics(model, data)
        pinocchio.framesForwardKinematics(pin_model, pin_data, q)
        for name, frame in (('tool_tip', tip), ('camera_optical_frame', camera)):
            body = model.body(name).id
            np.testing.assert_allclose(
                data.xpos[body], pin_data.oMf[frame].translation, atol=1e-6)
            np.testing.assert_allclose(
                data.xmat[body].reshape(3, 3), pin_data.oMf[frame].rotation, atol=1e-6)


def test_limits_agree(model, pin):
    pin_model, _ = pin
    for name in scene.ARM_JOINTS:
        joint = model.joint(name)
        index = pin_model.getJointId(name)
        q, v = pin_model.joints[index].idx_q, pin_model.joints[index].idx_v
        assert joint.range[0] == pytest.approx(pin_model.lowerPositionLimit[q])
        assert joint.range[1] == pytest.approx(pin_model.upperPositionLimit[q])
        effort = model.actuator(name).forcerange[1]
        assert effort == pytest.approx(pin_model.upperEffortLimit[v])


def test_gravity_torques_agree(model, pin):
    pin_model, pin_data = pin
    rng = np.random.default_rng(1)
    data = mujoco.MjData(model)
    for _ in range(20):
        joints = rng.uniform(-2, 2, 6)
        data.qpos[:] = model.qpos0
        data.qvel[:] = 0
        q = pinocchio.neutral(pin_model)
        for name, value in zip(scene.ARM_JOINTS, joints, strict=True):
            data.qpos[model.joint(name).qposadr[0]] = value
            q[pin_model.joints[pin_model.getJointId(name)].idx_q] = value
        mujoco.mj_forward(model, data)
        expected = pinocchio.computeGeneralizedGravity(pin_model, pin_data, q)
        for name in scene.ARM_JOINTS:
            v = pin_model.joints[pin_model.getJointId(name)].idx_v
            assert data.qfrc_bias[model.joint(name).dofadr[0]] == pytest.approx(
                expected[v], abs=1e-5)


def test_tool_down_points_down_and_is_a_rotation():
    rotation = scene.tool_down()
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3))
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    np.testing.assert_array_equal(rotation[:, 2], [0, 0, -1])


def test_unknown_timestep_is_refused():
    with pytest.raises(ValueError, match='timestep.*got 0.1'):
        scene.SceneSettings(timestep=0.1)
