"""
Make docker/requirements.lock: every package, direct or not, with its version.

Usage, once per Python version and then once for all:
    pip install --dry-run --ignore-installed --report a.json -r docker/requirements.txt
    python3 docker/lock.py 3.10=a.json 3.11=b.json 3.12=c.json > docker/requirements.lock

A package that differs between Python versions gets one line per version with a marker; the
newest version's line also holds for later ones.
"""

import json
import re
import sys
from pathlib import Path

# What the CUDA build of torch brings; setup.sh installs the CPU build.
CUDA = re.compile(r'nvidia-|cuda-|triton$')


def read_versions(path: str) -> dict[str, str]:
    """
    Versions of every package that pip chose.

    :param path: file written by `pip install --report`.
    :return: version by normalised package name, without local parts such as `+cpu`.
    """
    chosen = {}
    for item in json.loads(Path(path).read_text())['install']:
        name = re.sub(r'[-_.]+', '-', item['metadata']['name']).lower()
        if not CUDA.match(name):
            chosen[name] = item['metadata']['version'].split('+')[0]
    return chosen


def write_lines(versions: dict[str, dict[str, str]]) -> list[str]:
    """
    Lines of the lock file.

    :param versions: for each Python version (`'3.10'`), ascending, its package versions.
    :return: requirement lines, sorted by package.
    """
    lines = []
    newest = list(versions)[-1]
    for name in sorted(set().union(*versions.values())):
        found = {python: chosen.get(name) for python, chosen in versions.items()}
        if len(set(found.values())) == 1:
            lines.append(f'{name}=={found[newest]}')
            continue
        for python, version in found.items():
            if version is not None:
                relation = '>=' if python == newest else '=='
                lines.append(f"{name}=={version}; python_version {relation} '{python}'")
    return lines


def main() -> None:
    """Print the lock file made from the reports named on the command line."""
    versions = {}
    for argument in sys.argv[1:]:
        python, _, path = argument.partition('=')
        versions[python] = read_versions(path)
    if not versions:
        raise SystemExit(__doc__)
    print('# Made by docker/lock.py from docker/requirements.txt; do not edit.')
    print('\n'.join(write_lines(versions)))


if __name__ == '__main__':
    main()
