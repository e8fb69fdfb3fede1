"""Starts the nodes of `bringup` as processes, for machines without `ros2 launch`."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import yaml
from ament_index_python.packages import PackageNotFoundError, get_package_prefix

from liquid_policy_node import bringup
from liquid_policy_node.bringup import NodeSpec

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG, linux/prctl.h


def executable(spec: NodeSpec) -> list[str]:
    """
    The command of a node, found as `ros2 run` finds it.

    :raises FileNotFoundError: if it is not installed, saying what to build.
    """
    try:
        path = Path(get_package_prefix(spec.package)) / 'lib' / spec.package / spec.executable
        if path.is_file():
            return [str(path)]
    except PackageNotFoundError:
        path = Path(spec.package) / spec.executable
    # A checkout that is importable but not built: its module says the same.
    import importlib.util
    if importlib.util.find_spec(spec.package) \
            and importlib.util.find_spec(f'{spec.package}.{spec.executable}'):
        return [sys.executable, '-m', f'{spec.package}.{spec.executable}']
    raise FileNotFoundError(
        f'{path} is not there; build it (colcon build --packages-select {spec.package}) and '
        'source install/setup.bash')


def command(spec: NodeSpec, parameter_file: str) -> list[str]:
    """
    The whole command line of a node.

    :param spec: the node.
    :param parameter_file: path of its parameters.
    """
    arguments = ['--ros-args', '-r', f'__node:={spec.name}', '--log-level', spec.log_level,
                 '--params-file', parameter_file]
    if spec.namespace:
        arguments += ['-r', f'__ns:=/{spec.namespace.strip("/")}']
    return executable(spec) + arguments


def _die_with_parent() -> None:
    """In the child: a runner that is killed outright takes its nodes with it."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)


class Runner:
    """
    The processes of one robot.

    Call `start` from a thread that lives as long as the nodes; they end with it.
    """

    def __init__(
        self, specs: Iterable[NodeSpec], output: Callable[[str, str], None] | None = None,
    ) -> None:
        """
        Prepare; nothing is started yet.

        :param specs: what to start, in order.
        :param output: takes (node name, line) of everything the nodes print; None prints it with
            the name before it.
        """
        self.specs = list(specs)
        self._output = output or (lambda name, line: print(f'[{name}] {line}', flush=True))
        self.processes: dict[str, subprocess.Popen] = {}
        self._threads: list[threading.Thread] = []
        self._folder: tempfile.TemporaryDirectory | None = None

    def start(self) -> None:
        """
        Start all nodes.

        :raises FileNotFoundError: if one is not installed; those already started are ended.
        """
        self._folder = tempfile.TemporaryDirectory(prefix='liquid_policy_')
        try:
            commands = []
            for spec in self.specs:
                path = Path(self._folder.name) / f'{spec.name}.yaml'
                path.write_text(yaml.safe_dump(
                    {'/**': {'ros__parameters': dict(spec.parameters)}}), encoding='utf-8')
                commands.append(command(spec, str(path)))
            for spec, line in zip(self.specs, commands, strict=True):
                process = subprocess.Popen(
                    line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                    errors='replace', stdin=subprocess.DEVNULL, start_new_session=True,
                    preexec_fn=_die_with_parent,
                    env={**os.environ, **spec.environment, 'PYTHONUNBUFFERED': '1'})
                self.processes[spec.name] = process
                thread = threading.Thread(
                    target=self._forward, args=(spec.name, process), daemon=True)
                thread.start()
                self._threads.append(thread)
        except BaseException:
            self.stop()
            raise

    def poll(self) -> dict[str, int | None]:
        """Exit code of each node, None while it runs."""
        return {name: process.poll() for name, process in self.processes.items()}

    def ended(self) -> dict[str, int]:
        """The nodes that have ended, with their exit codes."""
        return {name: code for name, code in self.poll().items() if code is not None}

    def stop(self, patience: float = 8.0) -> dict[str, int]:
        """
        End all nodes: those that propose first, then the safety node, then robot and recorder.

        :param patience: time each group has for SIGINT, and again for SIGTERM, before it is
            killed [s].
        :return: exit code of each node.
        """
        for stage in sorted({spec.stage for spec in self.specs}):
            group = [self.processes[spec.name] for spec in self.specs
                     if spec.stage == stage and spec.name in self.processes]
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
                alive = [process for process in group if process.poll() is None]
                for process in alive:
                    process.send_signal(number)
                deadline = time.monotonic() + patience
                for process in alive:
                    try:
                        process.wait(max(0.0, deadline - time.monotonic()))
                    except subprocess.TimeoutExpired:
                        continue
        for thread in self._threads:
            thread.join(timeout=1.0)
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
        return self.ended()

    def _forward(self, name: str, process: subprocess.Popen) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._output(name, line.rstrip('\n'))


def parse(argv: Sequence[str]) -> tuple[str, dict[str, str]]:
    """
    Scenario and arguments of a command line.

    :param argv: `name:=value` as with `ros2 launch`, or `--name value`; a flag alone is true.
    :raises bringup.ArgumentError: for unknown arguments or values.
    """
    parser = argparse.ArgumentParser(
        prog='run', description='Start the nodes of a robot without ros2 launch.',
        epilog='name:=value works as well, as with ros2 launch.')
    parser.add_argument('--scenario', choices=tuple(bringup.ARGUMENTS), default='manipulator',
                        help='manipulator runs a policy, record records demonstrations')
    known = {argument.name: argument
             for scenario in bringup.ARGUMENTS.values() for argument in scenario}
    for name, argument in known.items():
        parser.add_argument(
            f'--{name.replace("_", "-")}', f'--{name}', dest=name, nargs='?', const='true',
            help=f'{argument.description} (default: {argument.default or "empty"})')
    parser.add_argument('pairs', nargs='*', metavar='name:=value')
    options = vars(parser.parse_args(argv))
    scenario, pairs = options.pop('scenario'), options.pop('pairs')
    given = {name: value for name, value in options.items() if value is not None}
    for pair in pairs:
        name, found, value = pair.partition(':=')
        if not found:
            raise bringup.ArgumentError(f'expected name:=value, came {pair!r}')
        given[name] = value
    return scenario, bringup.complete(given, scenario)


def main(argv: list[str] | None = None) -> int:
    """
    Start the nodes and stay until SIGINT, SIGTERM or the end of a node.

    :return: 0 when asked to end, 1 when a node ended by itself, 2 for wrong arguments.
    """
    try:
        scenario, arguments = parse(sys.argv[1:] if argv is None else argv)
        runner = Runner(bringup.nodes(arguments, scenario))
    except (ValueError, FileNotFoundError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, frame: asked.append(received))
    code = 0
    try:
        runner.start()
        while not asked and not runner.ended():
            time.sleep(0.1)
        for name, status in runner.ended().items():
            print(f'[{name}] ended by itself with exit code {status}; ending the others',
                  file=sys.stderr)
            code = 1
    except FileNotFoundError as error:
        print(f'error: {error}', file=sys.stderr)
        code = 2
    finally:
        runner.stop()
    return code


if __name__ == '__main__':
    raise SystemExit(main())
