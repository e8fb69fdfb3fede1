"""Where the installed files are: interface files, robot descriptions, checkpoints."""

from __future__ import annotations

import importlib
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory


def share() -> Path:
    """
    The package's share folder, or its source folder in a checkout that is not installed.

    Both have the same folders inside: config, launch, urdf, checkpoints.
    """
    try:
        return Path(get_package_share_directory('liquid_policy_node'))
    except PackageNotFoundError:
        return Path(__file__).resolve().parent.parent


def _find(name: str, folder: str, ending: str, what: str) -> Path:
    """A file by path, or by the stem of one that is shipped."""
    given = Path(name).expanduser()
    shipped = share() / folder / f'{name}{ending}'
    for candidate in (shipped, given):
        if candidate.is_file():
            return candidate
    known = sorted(path.name[:-len(ending)] for path in (share() / folder).glob(f'*{ending}'))
    raise FileNotFoundError(
        f'{what} {name!r}: neither a file nor one of the shipped: {", ".join(known) or "none"} '
        f'(in {share() / folder})')


def find_interface(robot: str) -> Path:
    """
    The interface file of a robot.

    :param robot: name of a shipped one, or a path.
    :raises FileNotFoundError: naming those that are shipped.
    """
    return _find(robot, 'config', '.interface.yaml', 'robot')


def find_parameters(robot: str) -> Path:
    """
    The nodes' parameter file of a robot: beside its interface file, or the manipulator's.

    :param robot: name of a shipped one, or the path of its interface file.
    """
    interface = find_interface(robot)
    own = interface.with_name(interface.name.replace('.interface.yaml', '.yaml'))
    return own if own != interface and own.is_file() else share() / 'config' / 'manipulator.yaml'


def find_description(description: str, interface: Path) -> Path:
    """
    The URDF or xacro an interface file names.

    :param description: absolute, or relative to the interface file, or a shipped one, or relative
        to the working folder. That comes last: limits must not depend on where a shell stands.
    :param interface: path of the interface file.
    :raises FileNotFoundError: naming where it was looked for.
    """
    given = Path(description).expanduser()
    places = [interface.parent / given, interface.parent.parent / 'urdf' / given,
              share() / 'urdf' / given, given]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f'robot description {description!r}: in none of {", ".join(map(str, places))}')


def find_checkpoint(checkpoint: str, robot: str = 'manipulator') -> Path:
    """
    A checkpoint file.

    :param checkpoint: a path, the name of a shipped one, or empty for the robot's own.
    :param robot: the robot's name, used when `checkpoint` is empty.
    :raises FileNotFoundError: naming those that are shipped.
    """
    return _find(checkpoint or robot, 'checkpoints', '.safetensors', 'checkpoint')


def message_class(kind: str) -> type:
    """
    The class of a message type.

    :param kind: such as `sensor_msgs/msg/Imu`.
    :raises ValueError: if its package is not installed or has no such message.
    """
    package, _, name = kind.partition('/msg/')
    try:
        return getattr(importlib.import_module(f'{package}.msg'), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f'message type {kind!r} is not installed; install the package {package!r} or source '
            f'the workspace that has it ({error})') from error
