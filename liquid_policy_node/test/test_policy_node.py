"""The policy on a running graph: steps by the stamps, refuses what it cannot trust."""

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('onnxruntime')

from bench_robot import ACTIONS, BenchRobot, Graph, until
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from liquid_policy.checkpoint import encoder_identity, file_digest, load_checkpoint
from liquid_policy.interface import load_interface
from liquid_policy_msgs.msg import Features, ModelUpdate
from liquid_policy_msgs.srv import LoadModel
from liquid_policy_node import qos
from liquid_policy_node.policy_node import PolicyNode

INTERFACE = Path(__file__).parents[1] / 'config' / 'manipulator.interface.yaml'


class Seer:
    """Publishes features 30 times a second in place of a perception node."""

    def __init__(self, robot, checkpoint):
        self.robot = robot
        self.identity = encoder_identity(load_checkpoint(checkpoint))
        self.publisher = robot.create_publisher(Features, 'features', qos.STREAM_OUT)
        self.alter = None
        robot.create_timer(1 / 30, self.see)

    def see(self):
        message = Features(encoder_id=self.identity, values=[0.1] * 128)
        message.header.stamp = self.robot.stamp()
        message = message if self.alter is None else self.alter(message)
        if message is not None:
            self.publisher.publish(message)


@pytest.fixture(scope='module')
def running(checkpoint):
    """One robot, one source of features and one policy node for the whole file."""
    import rclpy
    rclpy.init()
    robot = BenchRobot(camera=False)
    seer = Seer(robot, checkpoint)
    node = PolicyNode(parameter_overrides=[Parameter('checkpoint', value=checkpoint)])
    graph = Graph(robot, node)
    assert until(lambda: node.active)
    yield robot, node, graph, seer
    graph.close()
    rclpy.try_shutdown()


@pytest.fixture
def proposing(running):
    """Proposals are coming."""
    robot, node, graph, seer = running
    robot.alter.clear()
    seer.alter = None
    comes(robot)
    yield running
    robot.alter.clear()
    seer.alter = None


def comes(robot):
    """Proposals keep coming."""
    count = len(robot.proposals)
    assert until(lambda: len(robot.proposals) > count + 5), 'no proposals'


def silent(robot):
    """No proposals come for half a second."""
    until(lambda: False, 0.2)
    count = len(robot.proposals)
    return not until(lambda: len(robot.proposals) > count, 0.5)


def stamp(message):
    """Nanoseconds of a message's stamp."""
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def test_each_tick_of_the_control_clock_is_answered_with_a_whole_distribution(proposing):
    """Shapes, names, weights and the belief fit together; stamps are those of joint_states."""
    robot, _, _, _ = proposing
    message = robot.proposals[-1][1]
    size = message.components * message.horizon * len(ACTIONS)
    assert tuple(message.action_names) == ACTIONS and message.model_version == 'untrained_1'
    assert len(message.means) == len(message.standard_deviations) == size
    assert sum(message.weights) == pytest.approx(1.0, abs=1e-5)
    assert (np.array(message.standard_deviations) > 0).all()
    means = np.array(message.means).reshape(message.components, message.horizon, -1)
    followed = means[message.chosen_component]
    followed[:, ACTIONS.index('suction')] = followed[:, ACTIONS.index('suction')].clip(0.0, 1.0)
    np.testing.assert_array_equal(followed.ravel(), message.chosen)
    assert stamp(message) > 0 and message.image_stamp.sec > 0
    estimate = robot.estimates[-1][1]
    assert list(estimate.names) == ['part_x', 'part_y', 'part_z', 'part_speed']
    assert len(estimate.mean) == len(estimate.standard_deviation) == 4


def test_a_new_image_is_answered_before_the_tick_that_counts_it(proposing):
    """An image comes first in an answer to it alone; the ticks after it know it, too."""
    robot, node, _, _ = proposing
    latency = round(1e9 * node._interface.features.latency)

    def image(message):
        return message.image_stamp.sec * 1_000_000_000 + message.image_stamp.nanosec

    def early():
        """Images first answered before a tick could count them, and those a tick answered."""
        seen, first = set(), {}
        for _, message in list(robot.proposals):
            if image(message) not in seen:
                first[image(message)] = stamp(message)
            seen.add(image(message))
        return [known for known, answered in first.items() if answered < known + latency // 2]

    robot.proposals.clear()
    assert until(lambda: len(robot.proposals) > 50)
    assert not early()              # unless asked for, answers come at ticks only
    node.set_parameters([Parameter('answer_images', value=True)])
    try:
        assert until(lambda: len(early()) > 5), 'no image was answered at once'
    finally:
        node.set_parameters([Parameter('answer_images', value=False)])


def test_the_time_between_steps_is_the_time_between_stamps(proposing, monkeypatch):
    """With every second joint state lost, a step spans two periods."""
    robot, node, _, _ = proposing
    spans, step, count = [], node._model.step, [0]

    def watched(inputs):
        result = step(inputs)
        spans.append(result.elapsed)
        return result
    monkeypatch.setattr(node._model, 'step', watched)
    monkeypatch.setattr(node._model, 'preview', lambda inputs: None)    # ticks only

    def halve(message):
        count[0] += 1
        return message if count[0] % 2 else None
    robot.alter['joint_states'] = halve
    robot.proposals.clear()
    assert until(lambda: len(spans) > 30 and len(robot.proposals) > 20)
    sent = np.diff([stamp(message) for _, message in robot.proposals[-20:]]) * 1e-9
    assert np.median(spans[5:]) == pytest.approx(np.median(sent), rel=0.2)
    assert np.median(spans[5:]) > 0.015


def lose(*topics):
    return lambda robot, seer: robot.alter.update({topic: lambda message: None
                                                   for topic in topics})


def lose_features(robot, seer):
    seer.alter = lambda message: None


def foreign_features(robot, seer):
    seer.alter = lambda message: Features(
        header=message.header, encoder_id='another', values=message.values)


def short_features(robot, seer):
    seer.alter = lambda message: Features(
        header=message.header, encoder_id=message.encoder_id, values=[0.0] * 5)


def nan_features(robot, seer):
    seer.alter = lambda message: Features(
        header=message.header, encoder_id=message.encoder_id, values=[float('nan')] * 128)


def nan_imu(robot, seer):
    def alter(message):
        message.angular_velocity.x = float('nan')
        return message
    robot.alter['imu/data'] = alter


def ahead(robot, seer):
    def alter(message):
        message.header.stamp = robot.stamp(30.0)
        return message
    robot.alter['joint_states'] = alter


def missing_joint(robot, seer):
    def alter(message):
        message.name[2] = 'another_joint'
        return message
    robot.alter['joint_states'] = alter


@pytest.mark.parametrize('cause', [
    lose('imu/data'), lose('joint_states'), lose_features, foreign_features, short_features,
    nan_features, nan_imu, ahead, missing_joint,
], ids=['no imu', 'no joint states', 'no features', 'foreign features', 'short features',
        'NaN features', 'NaN imu', 'stamps ahead', 'missing joint'])
def test_without_fresh_and_good_input_nothing_is_proposed(proposing, cause):
    """Silence, so that the safety node brakes; then as before."""
    robot, _, _, seer = proposing
    cause(robot, seer)
    assert silent(robot)
    robot.alter.clear()
    seer.alter = None
    comes(robot)


def test_a_gap_and_a_jump_back_start_the_state_anew(proposing, monkeypatch):
    """Both are counted; proposals go on."""
    robot, node, _, seer = proposing
    before = node.diagnostics.total('state_resets')
    robot.alter['joint_states'] = lambda message: None
    until(lambda: False, 1.3)  # the gap is 1 s
    robot.alter.clear()
    comes(robot)
    assert node.diagnostics.total('state_resets') == before + 1

    def shifted(message):
        message.header.stamp = robot.stamp(-100.0)
        return message
    robot.alter.update({'joint_states': shifted, 'imu/data': shifted})
    seer.alter = shifted
    assert until(lambda: node.diagnostics.total('state_resets') > before + 1)
    comes(robot)


def test_the_state_can_be_reset_by_hand(proposing):
    """The service answers and counts."""
    robot, node, graph, _ = proposing
    before = node.diagnostics.total('state_resets')
    assert graph.call(Trigger, 'policy/reset_state').success
    assert node.diagnostics.total('state_resets') == before + 1
    comes(robot)


@pytest.fixture(scope='module')
def sibling(make_checkpoint):
    """Another model with the same encoder, as the trainer would make it."""
    return make_checkpoint('sibling')


def load(graph, path, sha256=''):
    """Ask the node to load a model."""
    return graph.call(
        LoadModel, 'policy/load_model', LoadModel.Request(path=str(path), sha256=sha256))


def test_models_are_swapped_between_two_steps_and_rolled_back(proposing, sibling, checkpoint):
    """No proposal is missed for longer than the safety node waits; the old one can come back."""
    robot, node, graph, _ = proposing
    answer = load(graph, sibling, file_digest(sibling))
    assert answer.success and answer.version == 'sibling', answer.message
    assert until(lambda: robot.proposals[-1][1].model_version == 'sibling')
    # The new model's state is that of one that has run along, not an empty one.
    assert np.abs(node._model._state).max() > 0 and node._model.last is not None
    assert graph.call(Trigger, 'policy/roll_back').success
    assert until(lambda: robot.proposals[-1][1].model_version == 'untrained_1')
    comes(robot)


def test_what_cannot_be_loaded_changes_nothing(proposing, checkpoint, make_checkpoint, tmp_path):
    """Truncated, pickled, another robot's, another encoder's, another digest, none at all."""
    robot, node, graph, _ = proposing
    truncated, pickled = tmp_path / 'truncated', tmp_path / 'pickled'
    truncated.write_bytes(Path(checkpoint).read_bytes()[:-1000])
    pickled.write_bytes(pickle.dumps({'weights': [1, 2]}))
    interface = load_interface(INTERFACE)
    renamed = replace(interface.observations['imu'], topic='imu/raw')
    other = replace(interface, observations={**interface.observations, 'imu': renamed})
    foreign = make_checkpoint('foreign', interface=other)
    cases = [
        (truncated, '', 'truncated'), (pickled, '', 'pickle'), (foreign, '', 'imu'),
        (make_checkpoint('blind', encoder='blind'), '', 'perception'),
        (checkpoint, '0' * 64, 'SHA-256'), (tmp_path / 'nothing', '', 'nothing')]
    for path, digest, words in cases:
        answer = load(graph, path, digest)
        assert not answer.success and words in answer.message, answer.message
        assert answer.version == node._model.version
        comes(robot)


def test_updates_are_taken_only_if_allowed(proposing, sibling):
    """`accept_updates` is false by default."""
    robot, node, graph, _ = proposing
    publisher = robot.create_publisher(ModelUpdate, 'model_update', qos.MODEL_UPDATE)
    update = ModelUpdate(version='sibling', path=sibling, sha256=file_digest(sibling))
    publisher.publish(update)
    until(lambda: False, 0.5)
    assert node._model.version == 'untrained_1'
    graph.run(lambda: node.set_parameters([Parameter('accept_updates', value=True)]))
    publisher.publish(update)
    assert until(lambda: robot.proposals[-1][1].model_version == 'sibling')
    graph.run(lambda: node.set_parameters([Parameter('accept_updates', value=False)]))
    assert graph.call(Trigger, 'policy/roll_back').success


def test_a_checkpoint_of_another_robot_does_not_configure(ros_node_refuses, make_checkpoint):
    """The differing field is named."""
    interface = load_interface(INTERFACE)
    other = replace(interface, rate=50.0)
    fault = ros_node_refuses(make_checkpoint('slow', interface=other))
    assert 'another robot' in fault and 'rate' in fault


def test_a_missing_checkpoint_does_not_configure(ros_node_refuses):
    """The name is in the message."""
    assert 'nowhere.safetensors' in ros_node_refuses('/nowhere.safetensors')


@pytest.fixture
def ros_node_refuses(running):
    """Starts a second policy node with a checkpoint; returns why it did not configure."""
    graphs = []

    def start(path):
        node = PolicyNode(
            namespace='second', parameter_overrides=[Parameter('checkpoint', value=path)])
        graphs.append(Graph(node))
        fault = until(lambda: node.diagnostics.values().get('fault.lifecycle'))
        assert node.state_label == 'unconfigured'
        return fault
    yield start
    for graph in graphs:
        graph.close()


def test_the_shipped_folder_is_searched_by_name(tmp_path):
    """A name that is not there lists those that are."""
    from liquid_policy_node.resources import find_checkpoint
    path = tmp_path / 'own.safetensors'
    shutil.copy(INTERFACE, path)
    assert find_checkpoint(str(path)) == path
    with pytest.raises(FileNotFoundError, match='no_such_model'):
        find_checkpoint('no_such_model')
