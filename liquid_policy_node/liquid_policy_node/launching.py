"""What the launch files are made of; needs `launch` and `launch_ros`."""

from __future__ import annotations

from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch_ros.actions import Node

from launch import LaunchContext
from liquid_policy_node import bringup
from liquid_policy_node.spelling import misspelt


def declare_arguments(scenario: str) -> list[DeclareLaunchArgument]:
    """
    The arguments of a scenario, for `--show-args`.

    :param scenario: a key of `bringup.ARGUMENTS`.
    """
    return [
        DeclareLaunchArgument(
            argument.name, default_value=argument.default, description=argument.description,
            **({'choices': list(argument.choices)} if argument.choices else {}))
        for argument in bringup.ARGUMENTS[scenario]]


def make_node(spec: bringup.NodeSpec) -> Node:
    """
    The launch action of one node.

    :param spec: an entry of `bringup.nodes`.
    """
    return Node(
        package=spec.package, executable=spec.executable, name=spec.name,
        namespace=spec.namespace, parameters=[dict(spec.parameters)], output='screen',
        ros_arguments=['--log-level', spec.log_level], additional_env=dict(spec.environment),
        sigterm_timeout='8', sigkill_timeout='8')


def start_nodes(scenario: str) -> OpaqueFunction:
    """
    The action that starts the nodes; when one ends, all end, as with the runner.

    :param scenario: a key of `bringup.ARGUMENTS`.
    """
    def start(context: LaunchContext) -> list:
        given = {argument.name: context.launch_configurations[argument.name]
                 for argument in bringup.ARGUMENTS[scenario]}
        # launch passes over what nobody declares; it may be another launch file's, too.
        slips = misspelt([word.partition(':=')[0] for word in context.argv], given)
        actions: list = [LogInfo(msg=f'WARNING: {slips}')] if slips else []
        for spec in bringup.nodes(given, scenario):
            node = make_node(spec)
            ended = EmitEvent(event=Shutdown(reason=f'{spec.name} ended'))
            actions += [node, RegisterEventHandler(OnProcessExit(
                target_action=node, on_exit=[ended]))]
        return actions
    return OpaqueFunction(function=start)
