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


def record_reaching(folder: Path, interface, seed: int) -> None:
    """
    Record an arm that follows a joint-space target it sees as a grey level.

    :param folder: bag to create.
    :param interface: the example's interface.
    :param seed: decides target and start.
    """
    from liquid_trainer.message_types import new_message
    from liquid_trainer.recording import BagWriter

    random = np.random.default_rng(seed)
    target, position = random.uniform(-1.0, 1.0), random.uniform(-1.0, 1.0, 6)
    wrist, arm = interface.images['wrist'], interface.actions['arm']
    topics = {**interface.topics(), 'episode': 'liquid_policy_msgs/msg/EpisodeMarker'}
    with BagWriter(folder, topics) as bag:
        def write(topic: str, of_type: str, tick: int, **fields) -> None:
            message = new_message(bag.types, of_type, **fields)
            if hasattr(message, 'header'):
                message.header.stamp.sec, message.header.stamp.nanosec = divmod(
                    tick * 10_000_000, 1_000_000_000)
            bag.write(topic, tick * 10_000_000, message)

        marker = 'liquid_policy_msgs/msg/EpisodeMarker'
        write('episode', marker, 100, kind=0, episode=f'reach {seed}')
        for tick in range(100, 300):
            velocity = np.clip(2.0 * (target - position), -1.5, 1.5)
            if tick % 3 == 0:
                grey = np.full(96 * 96 * 3, int(127 + 100 * target), np.uint8)
                write(wrist.topic, wrist.type, tick, height=96, width=96, encoding='bgr8',
                      step=96 * 3, data=grey)
            write('joint_states', 'sensor_msgs/msg/JointState', tick, name=JOINTS,
                  position=position.copy(), velocity=velocity)
            write(arm.demonstration, arm.type, tick, data=velocity)
            position += 0.01 * velocity
        write('episode', marker, 300, kind=1, episode=f'reach {seed}')


@pytest.mark.timeout(120)
def test_example_is_recorded_learned_and_run_like_any_robot(interface, tmp_path):
    from liquid_policy.checkpoint import load_checkpoint
    from liquid_policy.runtime import EncoderRuntime, PolicyRuntime
    from liquid_trainer import train

    for seed in range(4):
        record_reaching(tmp_path / 'bags' / f'reach_{seed}', interface, seed)
    status = train.main(['--bags', str(tmp_path / 'bags'), '--output', str(tmp_path / 'policy'),
                         '--interface', str(ROOT / 'config' / 'six_axis_arm.interface.yaml'),
                         '--cache', str(tmp_path / 'cache'), '--stage-steps', '2,2,2',
                         '--held-out', '0.25', '--threads', '1', '--quiet'])
    assert status == 0
    checkpoint = load_checkpoint(tmp_path / 'policy' / 'checkpoint.safetensors')
    assert checkpoint.interface.robot == 'six_axis_arm'
    image = np.full((96, 96, 3), 127, np.uint8)
    features = EncoderRuntime(checkpoint).encode(image, np.zeros((96, 96), np.float32))
    policy = PolicyRuntime(checkpoint)
    state = policy.initial_state()
    state, distribution = policy.step(features, np.zeros(12), 0.01, state)
    assert distribution.means.shape[2] == 6
    assert np.isfinite(distribution.means).all()
    np.testing.assert_allclose(np.sum(distribution.weights), 1.0, atol=1e-5)
