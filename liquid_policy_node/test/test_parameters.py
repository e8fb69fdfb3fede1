"""Parameters come from one dataclass, are described, checked, and applied only when valid."""

from dataclasses import dataclass

import pytest

pytest.importorskip('rclpy')

from rclpy.node import Node
from rclpy.parameter import Parameter

from liquid_policy_node.parameters import SettingsError, check, declare, parameter


@dataclass(frozen=True)
class Example:
    """Two bounds that depend on each other, and one of each kind."""

    low: float = parameter(0.1, 'Lower bound.', 'm/s', low=0.0, high=1.0, live=True)
    high: float = parameter(0.5, 'Upper bound.', 'm/s', low=0.0, high=1.0, live=True)
    speeds: tuple[float, ...] = parameter((1.0, 2.0), 'Speeds.', 'rad/s', low=0.0, high=3.0)
    mode: str = parameter('calm', 'Mood.', one_of=('calm', 'keen'), live=True)
    count: int = parameter(3, 'Count.', low=1)
    on: bool = parameter(True, 'Switch.')

    def __post_init__(self):
        check(self)
        if self.low >= self.high:
            raise SettingsError(f'low: must be below high, got {self.low} and {self.high}')


@pytest.fixture
def make_node(ros):
    """Makes nodes with overrides and destroys them."""
    made = []

    def make(**overrides):
        node = Node('example', parameter_overrides=[
            Parameter(name, value=value) for name, value in overrides.items()])
        made.append(node)
        return node
    yield make
    for node in made:
        node.destroy_node()


def test_defaults_and_overrides_reach_the_dataclass(make_node):
    """Lists become tuples; all kinds arrive."""
    assert declare(make_node(), Example) == Example()
    given = declare(make_node(low=0.2, speeds=[3.0], mode='keen', on=False), Example)
    assert given == Example(low=0.2, speeds=(3.0,), mode='keen', on=False)


def test_a_slip_in_a_name_is_refused(make_node):
    """ROS would pass over it, and the limit somebody meant to set would not hold."""
    with pytest.raises(SettingsError, match='unknown speed, did you mean speeds'):
        declare(make_node(speed=[3.0]), Example)
    assert declare(make_node(robot_ip='10.0.0.1'), Example) == Example()    # for other nodes


def test_a_parameter_is_described_with_unit_range_and_when_it_counts(make_node):
    """What `ros2 param describe` shows."""
    node = make_node()
    declare(node, Example)
    descriptor = node.describe_parameter('low')
    assert descriptor.description == 'Lower bound. [m/s]'
    assert descriptor.floating_point_range[0].to_value == 1.0
    assert 'Read once' in node.describe_parameter('count').description
    assert 'calm, keen' in node.describe_parameter('mode').description


@pytest.mark.parametrize(('overrides', 'message'), [
    ({'low': 2.0}, 'low'), ({'low': 1}, 'decimal point'), ({'mode': 'sad'}, "'calm', 'keen'"),
    ({'count': 0}, 'count: must be at least 1, got 0'), ({'on': 'yes'}, 'on of node example'),
    ({'speeds': [1.0, 9.0]}, 'speeds'), ({'low': float('nan')}, 'low'),
    ({'low': 0.6}, 'low: must be below high, got 0.6 and 0.5')])
def test_wrong_values_at_start_are_refused_by_name(make_node, overrides, message):
    """The error names parameter, what is allowed and what came."""
    with pytest.raises(SettingsError, match=message):
        declare(make_node(**overrides), Example)


def test_a_change_is_validated_as_a_whole_then_applied(make_node):
    """Together both bounds may move; alone one would cross the other."""
    node, applied = make_node(), []
    declare(node, Example, applied.append)
    results = node.set_parameters([Parameter('low', value=0.7)])
    assert not results[0].successful and 'below high' in results[0].reason
    assert node.get_parameter('low').value == 0.1 and not applied
    result = node.set_parameters_atomically(
        [Parameter('low', value=0.7), Parameter('high', value=0.9)])
    assert result.successful and applied == [Example(low=0.7, high=0.9)]
    results = node.set_parameters([Parameter('count', value=4)])
    assert not results[0].successful and 'read once' in results[0].reason
    assert node.set_parameters([Parameter('count', value=3)])[0].successful
    assert applied == [Example(low=0.7, high=0.9)]
