"""
The one list of nodes, their parameters and conditions.

The launch files and the runner, which needs no `ros2 launch`, both start what `nodes` returns.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from ament_index_python.packages import PackageNotFoundError, get_package_prefix

from liquid_policy.interface import load_interface
from liquid_policy.limits import load_urdf
from liquid_policy_node.resources import (
    find_checkpoint,
    find_description,
    find_interface,
    find_parameters,
    share,
)
from liquid_policy_node.spelling import misspelt


@dataclass(frozen=True)
class Argument:
    """
    A launch argument.

    :param name: its name, as in `name:=value`.
    :param default: default value, as text.
    :param description: what `--show-args` says.
    :param choices: the values allowed, empty for any.
    """

    name: str
    default: str
    description: str
    choices: tuple[str, ...] = ()


_BOOLEAN = ('true', 'false')
_SHARED = (
    Argument('robot', 'manipulator', 'Robot: name of a shipped interface file, or a path'),
    Argument('use_sim_time', 'false', 'Take the time from /clock, published by the simulator',
             _BOOLEAN),
    Argument('namespace', '', 'Namespace of all nodes and topics, for several robots'),
    Argument('log_level', 'info', 'Log level of every node',
             ('debug', 'info', 'warn', 'error', 'fatal')),
)
ARGUMENTS = {
    'manipulator': (
        Argument('sim', 'true', 'Start the simulator; false on a robot', _BOOLEAN),
        Argument('checkpoint', '', "Checkpoint: a path, or empty for the robot's shipped one"),
        Argument('trainer', 'false', 'Start the trainer beside the policy', _BOOLEAN),
        Argument('record', 'false', 'Record a bag: true (into recordings/<date>), or a folder'),
        *_SHARED,
    ),
    'record': (
        Argument('sim', 'true', 'Record the scripted expert in the simulator; false: record the '
                 'robot while somebody demonstrates', _BOOLEAN),
        Argument('record', 'true', 'Folder of the bag; true: recordings/<date>'),
        *_SHARED,
    ),
}


SIMULATED = 'manipulator'   # the robot of the simulator's cell
NODES = ('simulator', 'safety', 'perception', 'policy', 'trainer', 'recorder')


class ArgumentError(ValueError):
    """A launch argument is unknown or has a value that is not allowed."""


@dataclass(frozen=True)
class NodeSpec:
    """
    One process to start.

    :param package: its package.
    :param executable: its executable in that package.
    :param name: the node's name.
    :param namespace: its namespace, empty for none.
    :param parameters: every parameter that is not at its default.
    :param log_level: log level.
    :param environment: variables to set.
    :param stage: order of stopping, low first: whoever proposes, then the safety node, then the
        robot and the recorder.
    """

    package: str
    executable: str
    name: str
    namespace: str = ''
    parameters: Mapping[str, Any] = field(default_factory=dict)
    log_level: str = 'info'
    environment: Mapping[str, str] = field(default_factory=dict)
    stage: int = 0


def complete(given: Mapping[str, str], scenario: str = 'manipulator') -> dict[str, str]:
    """
    Arguments with defaults filled in.

    :param given: values by name.
    :param scenario: a key of `ARGUMENTS`.
    :raises ArgumentError: naming an unknown argument or a value that is not allowed.
    """
    known = {argument.name: argument for argument in ARGUMENTS[scenario]}
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ArgumentError(
            f'unknown argument {", ".join(unknown)}; there are {", ".join(known)}')
    values = {name: str(given.get(name, argument.default)) for name, argument in known.items()}
    for name, argument in known.items():
        if argument.choices and values[name] not in argument.choices:
            raise ArgumentError(
                f'{name}: expected {", ".join(argument.choices)}, came {values[name]!r}')
    return values


def environment(sends_images: bool = True) -> dict[str, str]:
    """
    Variables a node needs.

    Fast DDS's defaults lose most images; the shipped profile gives a node that sends them a
    shared-memory segment that holds them. A profile of the user's own stays.

    :param sends_images: False for the profile with a small segment.
    """
    keys = ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE')
    config = share() / 'config'
    shipped = config / 'fastdds.xml'
    if any(not _same(path, shipped) for path in map(os.environ.get, keys) if path):
        return {}
    return dict.fromkeys(keys, str(shipped if sends_images else config / 'fastdds_small.xml'))


def nodes(
    arguments: Mapping[str, str] | None = None, scenario: str = 'manipulator',
) -> list[NodeSpec]:
    """
    The nodes to start, in order.

    :param arguments: values of `ARGUMENTS[scenario]` by name, as text; missing ones are default.
    :param scenario: `manipulator` runs a policy, `record` records demonstrations.
    :raises ArgumentError: see `complete`.
    :raises FileNotFoundError: if a robot, description or checkpoint is not there.
    """
    values = complete(arguments or {}, scenario)
    interface_path = find_interface(values['robot'])
    interface = load_interface(interface_path)
    sim, running = values['sim'] == 'true', scenario == 'manipulator'
    if sim and interface.robot != SIMULATED:
        raise ArgumentError(
            f'sim: the simulator has the robot {SIMULATED} only, came {interface.robot} '
            f'({interface_path}); give sim:=false')
    configured = _parameters(find_parameters(values['robot']))
    simulated = values['use_sim_time'] == 'true'

    def spec(package: str, executable: str, name: str, stage: int = 0, **parameters: Any):
        own = configured.get(name, {})
        return NodeSpec(
            package, executable, name, values['namespace'],
            {**own, 'use_sim_time': simulated, **parameters}, values['log_level'],
            environment(executable == 'sim_node'), stage)

    robot = str(interface_path)
    description = find_description(interface.description, interface_path)
    found = []
    if sim:
        found.append(spec('liquid_policy_sim', 'sim_node', 'simulator', 2,
                          robot=robot, use_sim_time=False, publish_clock=simulated,
                          expert=not running, wait_for_driver=running))
    if _installed('robot_state_publisher'):
        found.append(spec('robot_state_publisher', 'robot_state_publisher',
                          'robot_state_publisher', 2, robot_description=load_urdf(description)))
    if running or sim:
        found.append(spec('liquid_policy_node', 'safety_node', 'safety', 1, robot=robot,
                          description=str(description)))
    if running:
        checkpoint = str(find_checkpoint(values['checkpoint'], interface.robot))
        found.append(spec('liquid_policy_node', 'perception_node', 'perception', robot=robot,
                          checkpoint=checkpoint))
        found.append(spec('liquid_policy_node', 'policy_node', 'policy', robot=robot,
                          checkpoint=checkpoint))
        if values['trainer'] == 'true':
            found.append(spec('liquid_trainer_node', 'trainer_node', 'trainer', robot=robot,
                              checkpoint=checkpoint))
    if values['record'] != 'false':
        found.append(spec('liquid_trainer_node', 'recorder_node', 'recorder', 2, robot=robot,
                          folder=_folder(values['record'])))
    return found


def _parameters(path: Path) -> dict[str, dict[str, Any]]:
    """
    Parameters by node.

    :raises ArgumentError: for a file that is no parameter file, or a node's name misspelt.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8')) or {}
        found = {name: dict((section or {}).get('ros__parameters') or {})
                 for name, section in content.items()}
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise ArgumentError(
            f'{path}: expected parameters by node and ros__parameters, came {error}') from None
    slips = misspelt(found, NODES)
    if slips:
        raise ArgumentError(f'{path}: {slips}')
    return found


def _folder(record: str) -> str:
    """Where the bag goes."""
    folder = Path.cwd() / 'recordings' / datetime.now().strftime('%Y-%m-%d_%H-%M-%S')
    if record != 'true':
        folder = Path(record).expanduser().absolute()
    there = next(parent for parent in folder.parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        # Known before anybody demonstrates; a recorder alone would only say so.
        raise ArgumentError(f'record: expected a folder that can be made, came {folder}; '
                            f'{there} cannot be written')
    return str(folder)


def _same(path: str, shipped: Path) -> bool:
    """Whether a file is the shipped one, or a copy of it."""
    try:
        return Path(path).read_bytes() == shipped.read_bytes()
    except OSError:
        return False


def _installed(package: str) -> bool:
    try:
        get_package_prefix(package)
    except PackageNotFoundError:
        return False
    return True
