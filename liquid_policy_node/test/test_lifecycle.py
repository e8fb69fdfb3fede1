"""Nodes start by themselves or wait, refuse with a reason, and survive their own mistakes."""

import os
import sys
from dataclasses import dataclass

import pytest

pytest.importorskip('rclpy')

import subprocess

from bench_robot import Graph, until
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.parameter import Parameter
from std_msgs.msg import Float64

from liquid_policy_node import qos
from liquid_policy_node.lifecycle import ManagedNode, NodeSettings, Refusal
from liquid_policy_node.parameters import parameter


@dataclass(frozen=True)
class HalvingSettings(NodeSettings):
    """May refuse."""

    refuse: bool = parameter(False, 'Refuse to configure.', live=True)


class HalvingNode(ManagedNode):
    """Keeps the reciprocals of what it hears, and what happened to it."""

    def __init__(self, **kwargs):
        super().__init__('halving', HalvingSettings, **kwargs)
        self.history, self.values = [], []

    def configure(self):
        if self.settings.refuse:
            raise Refusal('no file x; give one')
        self.history.append('configure')
        self.kept = self.subscribe(Float64, 'number', self.on_number, qos.STREAM_IN)

    def activate(self):
        self.history.append('activate')

    def deactivate(self):
        self.history.append('deactivate')

    def cleanup(self):
        self.history.append('cleanup')
        self.destroy_subscription(self.kept)

    def on_number(self, message):
        if message.data < 0:
            raise ValueError(f'expected a positive number, came {message.data}')
        self.values.append(1.0 / message.data)


@pytest.fixture
def graph_of(ros):
    """Spins a halving node with overrides."""
    graphs = []

    def make(**overrides):
        node = HalvingNode(parameter_overrides=[
            Parameter(name, value=value) for name, value in overrides.items()])
        graphs.append(Graph(node))
        return node, graphs[-1]
    yield make
    for graph in graphs:
        graph.close()


def change(graph, transition):
    """Ask for a transition over DDS, as a lifecycle manager does."""
    request = ChangeState.Request(transition=Transition(id=transition))
    return graph.call(ChangeState, 'halving/change_state', request).success


def test_it_configures_and_activates_by_itself(graph_of):
    """Nothing happens in the constructor; the executor starts it."""
    node, graph = graph_of()
    assert until(lambda: node.active) and node.history == ['configure', 'activate']
    assert change(graph, Transition.TRANSITION_DEACTIVATE)
    assert change(graph, Transition.TRANSITION_CLEANUP)
    assert change(graph, Transition.TRANSITION_CONFIGURE)
    assert change(graph, Transition.TRANSITION_ACTIVATE)
    assert node.history == ['configure', 'activate', 'deactivate', 'cleanup'] + [
        'configure', 'activate']


def test_without_autostart_it_waits(graph_of):
    """A lifecycle manager decides."""
    node, graph = graph_of(autostart=False)
    assert not until(lambda: node.history, timeout=0.3)
    assert change(graph, Transition.TRANSITION_CONFIGURE) and node.state_label == 'inactive'


def test_a_refused_transition_says_why_and_can_be_tried_again(graph_of):
    """It stays unconfigured and alive; once mended it configures."""
    node, graph = graph_of(refuse=True)
    assert until(lambda: 'no file x' in node.diagnostics.values().get('fault.lifecycle', ''))
    assert node.state_label == 'unconfigured' and not node.active
    graph.run(lambda: node.set_parameters([Parameter('refuse', value=False)]))
    assert change(graph, Transition.TRANSITION_CONFIGURE)
    assert 'fault.lifecycle' not in node.diagnostics.values()


def test_no_message_kills_it(graph_of):
    """Neither a refused message nor a mistake of the callback."""
    node, graph = graph_of()
    publisher = node.create_publisher(Float64, 'number', qos.STREAM_OUT)
    assert until(lambda: node.active and publisher.get_subscription_count())
    for value in (-1.0, 0.0, 4.0):
        publisher.publish(Float64(data=value))
    assert until(lambda: node.values) and node.values == [0.25]
    assert node.diagnostics.total('bad_number') == 1
    assert node.diagnostics.total('failed_number') == 1  # division by zero


@pytest.mark.parametrize(('setting', 'message'), [
    ('period:=0.5', 'period'), ('period:=1', 'decimal point'),
    ('longest_period:=0.005', 'longest_period')])
def test_a_wrong_parameter_ends_the_program_with_one_line(setting, message):
    """Exit code 2 and the parameter's name, not a traceback."""
    ended = subprocess.run(
        [sys.executable, '-m', 'liquid_policy_node.safety_node', '--ros-args', '-p', setting],
        capture_output=True, text=True, timeout=30)
    assert ended.returncode == 2
    assert message in ended.stderr and 'Traceback' not in ended.stderr


@pytest.mark.parametrize('name', ['policy', 'perception'])
def test_a_node_loads_nothing_that_only_others_use(name):
    # Memory and the time to start; torch is seen to by test_style.py.
    code = (f'import os, signal, sys\nfrom liquid_policy_node import {name}_node, lifecycle\n'
            'class Node(lifecycle.ManagedNode):\n'
            '    def __init__(self):\n'
            "        super().__init__('bare', lifecycle.NodeSettings)\n"
            '        os.kill(os.getpid(), signal.SIGTERM)\n'
            'lifecycle.run(Node, [])\n'
            "print([name for name in ('liquid_policy.barrier', 'liquid_policy.limits', 'xacro', "
            "'pinocchio', 'daqp', 'onnxruntime', 'lark', 'numpy.random') if name in sys.modules])")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == '[]'


@pytest.mark.parametrize('executor', ['lean', 'multi'])
def test_priority_is_of_real_time_where_that_is_allowed(executor):
    code = ('import os, signal\nfrom liquid_policy_node import lifecycle\n'
            'class Node(lifecycle.ManagedNode):\n'
            '    def __init__(self):\n'
            "        super().__init__('hasty', lifecycle.NodeSettings)\n"
            '    def on_activate(self, state):\n'
            '        result = super().on_activate(state)\n'
            '        print(os.sched_getscheduler(0), os.sched_getparam(0).sched_priority)\n'
            '        os.kill(os.getpid(), signal.SIGTERM)\n'
            '        return result\n'
            "lifecycle.run(Node, ['--ros-args', '-p', 'priority:=7', '-p', "
            f"'executor:={executor}'])")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(7))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        expected = f'{os.SCHED_RR} 7'
    except OSError:
        expected = f'{os.SCHED_OTHER} 0'
    if executor == 'multi':         # polls: it would starve what it waits for
        expected = f'{os.SCHED_OTHER} 0'
        assert 'priority 7 is not used' in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == expected, done.stderr
