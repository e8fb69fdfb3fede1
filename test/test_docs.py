"""What the pages in docs/ tell people to type exists: files, programs and their options."""

import os
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / 'docs').glob('*.md'))
IN_ENVIRONMENT = 'docker/in_environment.sh'
# Programs of the system, and what stands before a program and says nothing about it.
FOREIGN = {'wget', 'unzip', 'ros2', 'make', 'pip', '.', 'flwr', 'flower-superlink',
           'flower-supernode', 'minari'}
LAUNCHERS = ('python3', 'taskset', '-c', '0')


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    return re.findall(rf'```{language}\n(.*?)```', page.read_text(encoding='utf-8'), re.DOTALL)


def commands() -> list[str]:
    """Return the pages' commands, continued lines joined."""
    found = []
    for page in PAGES:
        for block in blocks(page, 'bash'):
            lines = block.replace('\\\n', ' ').splitlines()
            found += [part.strip() for line in lines for part in line.split('&&') if part.strip()]
    return sorted(set(found))


def program(command: str) -> tuple[tuple[str, ...], list[str]]:
    """
    Take a command apart.

    :return: the words that start the program, and its options.
    """
    words = shlex.split(command)
    assert words[0] == IN_ENVIRONMENT, f'{command}: expected {IN_ENVIRONMENT} before it'
    words = words[1:]
    if '--' in words:               # what comes behind it is another program's
        words = words[:words.index('--')]
    if words[0] == 'torchrun':      # its own options end where it is told what to start
        words = ['python3', *words[words.index('-m'):]]
    start = []
    while words[0] in LAUNCHERS:
        start.append(words.pop(0))
    start.append(words.pop(0))
    if start[-1] == '-m':
        start.append(words.pop(0))
    return tuple(start), [word.split('=')[0] for word in words if word.startswith('--')]


@cache
def options(start: tuple[str, ...]) -> str:
    """Return what a program says of its options."""
    done = subprocess.run([IN_ENVIRONMENT, *start, '--help'], cwd=ROOT, text=True, timeout=90,
                          capture_output=True, check=False,
                          env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, f'{start}: {done.stderr[-2000:]}'
    return done.stdout


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    'command', [line for line in commands() if shlex.split(line)[0] not in FOREIGN])
def test_a_command_has_its_options(command):
    start, given = program(command)
    known = options(start)
    assert [name for name in given if not re.search(rf'{name}\b', known)] == []


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding='utf-8')
    names = re.findall(r'\]\(((?!http)[^)#]+)\)', text)
    assert [name for name in names if not (page.parent / name).exists()] == []
    files = re.findall(r'`((?:docker|config|launch|test|docs|liquid_\w+)/[\w./-]+\.\w+)`', text)
    known = [ROOT / name for name in files] + [
        ROOT / package / name for name in files
        for package in ('liquid_policy_node', 'liquid_trainer_node', 'liquid_policy_sim')]
    assert [name for name in files
            if not any(path.exists() for path in known if str(path).endswith(name))] == []


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_python_is_python(page):
    for block in blocks(page, 'python'):
        compile(block, page.name, 'exec')


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_no_table_was_left_empty(page):
    text = page.read_text(encoding='utf-8')
    assert not re.search(r'<!-- (?!end)\w+ -->\s*<!-- end -->', text)
    assert not re.search(r'^[A-Z]+_TABLE$', text, re.MULTILINE)
