"""README's worked example, a six-axis arm with ros2_control, is complete and fits together."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from liquid_policy.interface import load_interface
from liquid_policy.limits import load_limits, load_urdf

ROOT = Path(__file__).resolve().parent.parent
JOINTS = [f'joint_{number}' for number in range(1, 7)]


@pytest.fixture(scope='module')
def interface():
    """Give the example's interface."""
    return load_interface(ROOT / 'config' / 'six_axis_arm.interface.yaml')


@pytest.fixture(scope='module')
def description(interface) -> Path:
    """Give the path of the description that the interface names."""
    return ROOT / 'liquid_policy_node' / 'urdf' / interface.description


def test_controllers_listen_where_the_interface_sends(interface):
    controllers = yaml.safe_load((ROOT / 'config' / 'six_axis_arm.controllers.yaml').read_text())
    name = interface.actions['arm'].topic.partition('/')[0]
    assert name in controllers['controller_manager']['ros__parameters']
    assert controllers[name]['ros__parameters']['joints'] == list(interface.actions['arm'].names)
    period = 1.0 / controllers['controller_manager']['ros__parameters']['update_rate']
    assert period < interface.observations['joint_positions'].max_age


def test_ros2_control_offers_the_commands_and_states_that_are_used(description):
    control = ElementTree.fromstring(load_urdf(description)).find('ros2_control')
    for name, joint in zip(JOINTS, control.findall('joint'), strict=True):
        assert joint.get('name') == name
        assert [item.get('name') for item in joint.findall('command_interface')] == ['velocity']
        states = {item.get('name') for item in joint.findall('state_interface')}
        assert {'position', 'velocity'} <= states


def test_strictest_of_description_and_interface_holds(interface, description):
    limits = load_limits(interface, description)
    assert list(limits.names) == JOINTS
    # 2 and 3 rad/s in the description, 1.5 and 2.5 in the interface file.
    np.testing.assert_allclose(limits.high, [1.5, 1.5, 1.5, 2.5, 2.5, 2.5])
    # Only the description knows positions.
    np.testing.assert_allclose(limits.upper, [3.05, 2.1, 2.6, 3.05, 2.1, 6.1])


def test_arm_reaches_the_sum_of_its_links_when_stretched(description):
    pinocchio = pytest.importorskip('pinocchio')
    model = pinocchio.buildModelFromXML(load_urdf(description))
    assert list(model.names)[1:] == JOINTS
    data = model.createData()
    pinocchio.framesForwardKinematics(model, data, np.zeros(6))
    flange = data.oMf[model.getFrameId('link_6')].translation
    np.testing.assert_allclose(flange, [0.0, 0.0, 0.12 + 0.10 + 0.35 + 0.30 + 0.09 + 0.09])
    # Solid tubes: all masses with the base, and the inertia of one about its own axis.
    assert sum(inertia.mass for inertia in model.inertias) == pytest.approx(17.3)
    np.testing.assert_allclose(model.inertias[2].inertia[2, 2], 5.0 / 2 * 0.05**2)
