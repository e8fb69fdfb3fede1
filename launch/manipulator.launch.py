"""Run a policy on the manipulator, simulated or real; the nodes are those of bringup.py."""

from launch import LaunchDescription
from liquid_policy_node.launching import declare_arguments, start_nodes


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments, then start the nodes they ask for."""
    return LaunchDescription([*declare_arguments('manipulator'), start_nodes('manipulator')])
