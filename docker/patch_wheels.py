"""
Point the CMake files of the ROS 2 wheels at this machine's Python and NumPy headers.

The wheels name the include folders of the machine that built them. Run with the environment's
own Python, once after pip; running it again changes nothing.
"""

import re
import sys
import sysconfig
from pathlib import Path

import numpy

NUMPY = re.compile(r'/opt/python/cp\w+-cp\w+/lib/python3\.\d+/site-packages/numpy/_?core/include')
PYTHON = re.compile(r'/opt/python/cp\w+-cp\w+/include/python3\.\d+')


def patch(text: str) -> str:
    """
    Replace the include folders of the building machine.

    :param text: content of a CMake file.
    :return: the same with the folders of this machine.
    """
    text = NUMPY.sub(numpy.get_include(), text)
    return PYTHON.sub(sysconfig.get_paths()['include'], text)


def main() -> None:
    """Patch every CMake file below `<environment>/share`."""
    for path in Path(sys.prefix, 'share').rglob('*.cmake'):
        text = path.read_text(errors='surrogateescape')
        patched = patch(text)
        if patched != text:
            path.write_text(patched, errors='surrogateescape')


if __name__ == '__main__':
    main()
