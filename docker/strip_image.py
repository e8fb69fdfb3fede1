"""
Take build tools and checkers out of the image's environment.

Run in the image's build stage with the environment's own Python, after the workspace is built.
"""

import importlib.metadata
import re
import subprocess
import sys

BUILD_ONLY = re.compile(
    r'(colcon-.*|cmake|catkin-pkg|wheel|empy|ruff|mypy|mypy-extensions|librt|hypothesis|'
    r'pytest.*|coverage|types-.*|ros-ament-cmake.*|ros-rosidl-generator-(c|cpp|type-description)|'
    r'ros-rosidl-(cmake|adapter|cli|default-generators|core-generators)|ncps|torchdiffeq)$'
)


def build_packages() -> list[str]:
    """
    Installed packages that only building and checking need.

    :return: names as pip knows them; only packages of this environment itself.
    """
    names = {
        re.sub(r'[-_.]+', '-', found.metadata['Name']).lower()
        for found in importlib.metadata.distributions()
        if str(found.locate_file('')).startswith(sys.prefix)
    }
    return sorted(name for name in names if BUILD_ONLY.match(name))


if __name__ == '__main__':
    subprocess.run(
        [sys.executable, '-m', 'pip', 'uninstall', '-q', '-y', *build_packages()], check=True
    )
