"""Launch files and runner start the same nodes, and the whole robot comes up and goes down."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip('rclpy')

from bench_robot import until
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_msgs.msg import Float64MultiArray

from liquid_policy_msgs.msg import ActionDistribution, Features, SafetyStatus
from liquid_policy_node import bringup, qos, runner

REPOSITORY = Path(__file__).resolve().parents[1]
LAUNCH_FILES = sorted((REPOSITORY / 'launch').glob('*.launch.py'))


def calls(path):
    """Names of all functions a file calls."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    return {node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            for node in ast.walk(tree) if isinstance(node, ast.Call)
            and isinstance(node.func, (ast.Attribute, ast.Name))}


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=lambda path: path.name)
def test_launch_files_name_no_nodes_of_their_own(path):
    """They only ask for a scenario; launching.py and runner.py ask bringup for its nodes."""
    assert calls(path) <= {'LaunchDescription', 'declare_arguments', 'start_nodes'}
    package = REPOSITORY / 'liquid_policy_node' / 'liquid_policy_node'
    assert 'nodes' in calls(package / 'launching.py')
    assert 'nodes' in calls(package / 'runner.py')
    assert path.name.removesuffix('.launch.py') in bringup.ARGUMENTS


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=lambda path: path.name)
def test_the_launch_file_makes_the_runners_processes(path, checkpoint):
    """Executable, name, namespace, parameters and environment of each, side by side."""
    pytest.importorskip('launch_ros', reason='launch_ros is not installed; it comes with ROS 2')
    import yaml
    from launch.launch_description_sources import (
        get_launch_description_from_python_launch_file,
    )
    from launch_ros.actions import Node as LaunchNode

    from launch import LaunchContext
    scenario = path.name.removesuffix('.launch.py')
    given = {'namespace': 'left', 'log_level': 'warn', 'record': '/tmp/bags/none'}
    if scenario == 'manipulator':
        given['checkpoint'] = checkpoint
    context = LaunchContext(argv=[])
    context.launch_configurations.update(given)
    description = get_launch_description_from_python_launch_file(str(path))
    started = []
    for entity in description.entities:
        started += [action for action in entity.visit(context) or []
                    if isinstance(action, LaunchNode)]
    specs = bringup.nodes(given, scenario)
    assert len(started) == len(specs) > 0
    for action, spec in zip(started, specs, strict=True):
        action._perform_substitutions(context)
        assert action.node_name == f'/left/{spec.name}'
        assert (action.node_package, action.node_executable) == (spec.package, spec.executable)
        files = [item for item, _ in action._Node__expanded_parameter_arguments]
        sent = {}
        for file in files:
            for content in yaml.safe_load(Path(file).read_text()).values():
                sent |= content['ros__parameters']
        assert sent == {key: list(value) if isinstance(value, tuple) else value
                        for key, value in spec.parameters.items()}
        path = ''.join(part.perform(context) for part in action.cmd[0])
        assert path == runner.executable(spec)[0]
        assert set(spec.environment.items()) == {
            tuple(''.join(part.perform(context) for part in side) for side in pair)
            for pair in action.additional_env or ()}


class Listener:
    """Counts what comes on the topics of one namespace."""

    def __init__(self, namespace):
        self.node = Node('listener', namespace=namespace)
        self.counts = {}
        self.newest = {}
        self.diagnostics = {}
        for kind, topic in ((Features, 'features'), (ActionDistribution, 'action_distribution'),
                            (SafetyStatus, 'safety_status'),
                            (Float64MultiArray, 'arm_velocity_controller/commands')):
            self.node.create_subscription(
                kind, topic, lambda message, topic=topic: self._count(topic, message),
                qos.STREAM_IN)
        self.node.create_subscription(
            DiagnosticArray, '/diagnostics', self._diagnose, qos.DIAGNOSTICS)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)

    def _count(self, topic, message):
        self.counts[topic] = self.counts.get(topic, 0) + 1
        self.newest[topic] = message

    def _diagnose(self, message):
        for status in message.status:
            self.diagnostics[status.name] = {item.key: item.value for item in status.values}

    def until(self, condition, timeout):
        """Spin until a condition holds."""
        deadline = time.monotonic() + timeout
        while not condition() and time.monotonic() < deadline:
            self._executor.spin_once(0.05)
        return condition()


@pytest.fixture
def listener(ros):
    """Listens in the namespace the tests start robots in."""
    made = Listener('left')
    yield made
    made.node.destroy_node()


def start(command):
    """Start a program with the environment the starters themselves must complete."""
    environment = {key: value for key, value in os.environ.items()
                   if key not in ('FASTRTPS_DEFAULT_PROFILES_FILE',
                                  'FASTDDS_DEFAULT_PROFILES_FILE')}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, start_new_session=True)


def comes_up_and_goes_down(process, listener):
    """Every node answers, commands flow; SIGINT ends all within ten seconds."""
    try:
        topics = ('features', 'action_distribution', 'safety_status',
                  'arm_velocity_controller/commands')
        assert listener.until(
            lambda: all(listener.counts.get(topic, 0) > 20 for topic in topics), 90.0), \
            listener.counts
        nodes = ('left/perception', 'left/policy', 'left/safety', 'left/simulator')
        assert listener.until(lambda: set(nodes) <= set(listener.diagnostics), 20.0)
        assert listener.newest['safety_status'].model_version == 'untrained'
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=40.0)
    finally:
        if process.poll() is None:
            process.kill()
            output, _ = process.communicate()
    listener.until(lambda: False, 0.3)  # what was on its way
    listener.counts.clear()
    assert not listener.until(lambda: listener.counts, 0.5), 'something still publishes'
    assert 'Traceback' not in output, output
    return output


@pytest.mark.timeout(180)
def test_the_runner_brings_the_robot_up_and_down(listener, checkpoint):
    """Four processes, one namespace, output with the node's name."""
    pytest.importorskip('mujoco')
    process = start([sys.executable, '-m', 'liquid_policy_node.runner',
                     f'checkpoint:={checkpoint}', 'namespace:=left'])
    output = comes_up_and_goes_down(process, listener)
    assert process.returncode == 0
    assert '[policy] ' in output and '[safety] ' in output


@pytest.mark.timeout(180)
def test_ros2_launch_brings_the_robot_up_and_down(listener, checkpoint):
    """The same through `launch`."""
    pytest.importorskip('launch_ros', reason='launch_ros is not installed; it comes with ROS 2')
    pytest.importorskip('mujoco')
    program = (
        'import sys\n'
        'from launch import LaunchService, LaunchDescription\n'
        'from launch.actions import IncludeLaunchDescription\n'
        'from launch.launch_description_sources import PythonLaunchDescriptionSource\n'
        'service = LaunchService()\n'
        'service.include_launch_description(LaunchDescription([IncludeLaunchDescription(\n'
        '    PythonLaunchDescriptionSource(sys.argv[1]), launch_arguments=[\n'
        '        ("checkpoint", sys.argv[2]), ("namespace", "left")])]))\n'
        'raise SystemExit(service.run())\n')
    process = start([sys.executable, '-c', program,
                     str(REPOSITORY / 'launch' / 'manipulator.launch.py'), checkpoint])
    comes_up_and_goes_down(process, listener)


@pytest.mark.timeout(180)
def test_when_a_node_dies_all_end(listener, checkpoint):
    """The robot is not left with half of its nodes; the safety node ends last."""
    pytest.importorskip('mujoco')
    lines = []
    started = runner.Runner(
        bringup.nodes({'checkpoint': checkpoint, 'namespace': 'left'}),
        lambda name, line: lines.append((name, line)))
    started.start()
    try:
        assert listener.until(lambda: listener.counts.get('action_distribution', 0) > 5, 90.0)
        started.processes['policy'].kill()
        assert until(started.ended) == {'policy': -signal.SIGKILL}
        listener.newest.pop('safety_status', None)
        assert listener.until(
            lambda: getattr(listener.newest.get('safety_status'), 'state', None)
            == SafetyStatus.BRAKING, 20.0)
    finally:
        codes = started.stop()
    assert {name: code for name, code in codes.items() if name != 'policy'} == {
        'simulator': 0, 'safety': 0, 'perception': 0}
