"""
The whole robot at work, and what came of it: table, recording and report.

The nodes are started as processes of their own, as on a robot; this program only watches them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from liquid_policy.checkpoint import CheckpointError
from liquid_policy.interface import load_interface
from liquid_policy_node import bringup
from liquid_policy_node.bringup import NodeSpec
from liquid_policy_node.models import load_for
from liquid_policy_node.resources import find_checkpoint, find_description, find_interface
from liquid_policy_node.runner import Runner
from liquid_policy_sim.monitor import Monitor, Seen
from liquid_policy_sim.settings import CONDITIONS
from liquid_sim import report, run_statistics, run_table
from liquid_sim.run_record import RecordError, Run, read_run

# No part takes longer: the slowest belt brings it within reach in 7 s, and on in another 11 s.
SECONDS_PER_PART = 20.0
# Nodes that are not up by then will not come up.
SECONDS_TO_START = 60.0
# Recorded besides the interface's topics: what the report is made from.
RECORDED = ('features', 'action_distribution', 'estimate', 'safety_status', 'conveyor_status',
            'odom', 'scene/image/compressed', 'model_update', 'trainer_status', '/diagnostics')
ANSI = re.compile(r'\x1b\[[0-9;]*m')


class DemoError(Exception):
    """The demo cannot go on; the text says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """
    What the demo shall do.

    :param parts: parts whose fate is waited for; None for no such end.
    :param seconds: longest time the cell runs [s]; None for as long as the parts may take.
    :param expert: whether the scripted expert drives instead of a policy.
    :param checkpoint: path or name; empty for the shipped one.
    :param trainer: whether the trainer runs beside.
    :param seed: of the cell.
    :param conditions: which belt speeds and masses come.
    :param output: folder for recording, report and logs; it must not exist.
    """

    parts: int | None
    seconds: float | None
    expert: bool
    checkpoint: str
    trainer: bool
    seed: int
    conditions: str
    output: Path

    @property
    def longest(self) -> float:
        """Return how long the cell may run [s]."""
        if self.seconds is not None:
            return self.seconds
        return SECONDS_PER_PART * (self.parts or 0)


def parse(argv: Sequence[str] | None = None) -> Plan:
    """
    Read the command line.

    :param argv: arguments; those of the process when left out.
    """
    parser = argparse.ArgumentParser(
        prog='demo', description='Run the conveyor scenario with nodes as separate processes; '
        'print what came of it, and leave a recording (rosbag2, mcap) and a report (HTML).')
    end = parser.add_mutually_exclusive_group()
    end.add_argument('--parts', type=int, default=10,
                     help='end when so many parts were picked or missed (default %(default)s)')
    end.add_argument('--seconds', type=float, help='end after this time instead')
    parser.add_argument('--expert', action='store_true',
                        help='let the scripted expert drive, without perception and policy')
    parser.add_argument('--checkpoint', default='',
                        help='checkpoint file (default: the shipped one)')
    parser.add_argument('--trainer', action='store_true', help='run the trainer beside')
    parser.add_argument('--seed', type=int, default=1, help='of the cell (default %(default)s)')
    parser.add_argument('--conditions', choices=CONDITIONS, default='everything',
                        help='which belt speeds and masses come (default %(default)s)')
    parser.add_argument('--output', type=Path,
                        help='folder for recording, report and logs (default runs/demo/<date>)')
    given = parser.parse_args(argv)
    if given.seconds is not None and not given.seconds > 0:
        parser.error(f'--seconds: expected more than 0, got {given.seconds}')
    if given.parts < 1:
        parser.error(f'--parts: expected 1 or more, got {given.parts}')
    output = given.output or Path('runs', 'demo', datetime.now().strftime('%Y-%m-%d_%H-%M-%S'))
    if output.exists() and any(output.iterdir()):
        parser.error(f'--output: {output} exists and is not empty')
    return Plan(None if given.seconds is not None else given.parts, given.seconds, given.expert,
                given.checkpoint, given.trainer, given.seed, given.conditions, output.absolute())


def node_list(plan: Plan) -> list[NodeSpec]:
    """
    Return the nodes to start.

    :param plan: what the demo shall do.
    :raises DemoError: if there is no checkpoint that fits this robot.
    """
    arguments = {'sim': 'true', 'record': str(plan.output / 'recording')}
    if not plan.expert:
        interface = load_interface(find_interface('manipulator'))
        try:
            checkpoint = find_checkpoint(plan.checkpoint, interface.robot)
            load_for(interface, str(checkpoint))
        except (FileNotFoundError, CheckpointError) as error:
            raise DemoError(
                f'{error}\nTo learn a policy from demonstrations: make train (hours), then '
                "`make demo ARGS='--checkpoint <file>'`.\nTo see the scripted expert work now: "
                'make demo ARGS=--expert') from error
        arguments.update(checkpoint=str(checkpoint), trainer=str(plan.trainer).lower())
    specs = bringup.nodes(arguments, 'record' if plan.expert else 'manipulator')
    # The belt waits for the robot, not the robot's nodes for each other.
    changes = {
        'simulator': {'seed': plan.seed, 'conditions': plan.conditions, 'wait_for_driver': True},
        'recorder': {'extra_topics': list(RECORDED)}}
    return [replace(spec, parameters={**spec.parameters, **changes.get(spec.name, {})})
            for spec in specs]


class Logs:
    """
    Keeps what the nodes print in files, and shows what is grave.

    :param folder: one file per node is written here.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lock = threading.Lock()
        self._files: dict[str, object] = {}
        self.tails: dict[str, list[str]] = {}
        self.grave: list[str] = []

    def __call__(self, name: str, line: str) -> None:
        """Take one line of a node."""
        line = ANSI.sub('', line)
        with self._lock:
            if name not in self._files:
                self._files[name] = open(  # noqa: SIM115 - closed in `close`
                    self._folder / f'{name}.log', 'w', encoding='utf-8', buffering=1)
            self._files[name].write(line + '\n')  # type: ignore[attr-defined]
            self.tails[name] = [*self.tails.get(name, []), line][-12:]
            if '[ERROR]' in line or '[FATAL]' in line:
                self.grave.append(f'{name}: {line}')

    def take_grave(self) -> list[str]:
        """Return errors that have not been shown."""
        with self._lock:
            grave, self.grave = self.grave, []
        return grave

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            for file in self._files.values():
                file.close()  # type: ignore[attr-defined]


class Screen:
    """One line that changes on a terminal; elsewhere a line every few seconds."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._width = 0
        self._last = 0.0
        self._shown = 0

    def progress(self, text: str) -> None:
        """Show how far it is."""
        if self._live:
            columns = max(os.get_terminal_size().columns - 1, 20)
            text = text[:columns]
            print('\r' + text.ljust(self._width), end='', flush=True)
            self._width = len(text)
        elif time.monotonic() - self._last >= 5.0:
            self._last = time.monotonic()
            print(text, flush=True)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self._live and self._width:
            print('\r' + ' ' * self._width + '\r', end='')
            self._width = 0
        print(text, flush=True)

    def errors(self, lines: Sequence[str]) -> None:
        """Print errors of nodes, the first few of them."""
        for line in lines:
            self._shown += 1
            if self._shown <= 8:
                self.say(f'  {line}')
            elif self._shown == 9:
                self.say('  (more errors are in the logs)')


@dataclass
class Result:
    """
    How the demo ended.

    :param interrupted: whether somebody pressed Ctrl-C.
    :param died: what ended by itself, in words; empty if nothing did.
    :param first_pick: from the command to the first part in the bin [s]; None without one.
    :param trouble: anything else that went wrong.
    """

    interrupted: bool = False
    died: str = ''
    first_pick: float | None = None
    trouble: str = ''


def command_time() -> float:
    """
    Return when the user gave the command [s since 1970]: `make`, if that started this program.

    Read from /proc, without which the start of this process is as good as it gets.
    """
    try:
        ticks = os.sysconf('SC_CLK_TCK')
        with open('/proc/stat', encoding='ascii') as file:
            booted = next(int(line.split()[1]) for line in file if line.startswith('btime'))
        pid, found = os.getpid(), 0.0
        while pid > 1:
            with open(f'/proc/{pid}/stat', encoding='ascii', errors='replace') as file:
                name, _, rest = file.read().partition('(')[2].rpartition(')')
            fields = rest.split()
            if not found or name == 'make':
                found = booted + int(fields[19]) / ticks
            pid = int(fields[1])
        return found
    except (OSError, ValueError, StopIteration, IndexError):
        return time.time()


def finished(plan: Plan, seen: Seen, running: float) -> bool:
    """
    Return whether the demo has seen enough.

    :param plan: what it shall do.
    :param seen: what it saw.
    :param running: how long the cell has been running [s].
    """
    if plan.parts is not None and seen.picked + seen.missed >= plan.parts:
        return True
    return running > plan.longest


def alone(seen: Seen, allowed: int) -> None:
    """
    Check that no other robot is near: its topics and ours would be the same.

    :param seen: what was seen.
    :param allowed: robots that may be there.
    :raises DemoError: if there are more.
    """
    if seen.robots > allowed:
        raise DemoError(
            'another robot or demo publishes joint_states with ROS_DOMAIN_ID '
            f'{os.environ.get("ROS_DOMAIN_ID", "0")}; end it, or export another ROS_DOMAIN_ID')


def watch(plan: Plan, runner: Runner, seen: Seen, logs: Logs, screen: Screen,
          started: float) -> Result:
    """
    Watch the nodes until the demo has seen enough, a node ends, or Ctrl-C.

    :param seen: what the monitor sees.
    :param started: when the command was given [s since 1970].
    """
    result, begun, waiting = Result(), None, time.monotonic()
    try:
        while True:
            time.sleep(0.2)
            screen.errors(logs.take_grave())
            ended = runner.ended()
            if ended:
                result.died = '; '.join(f'{name} ended with exit code {code}'
                                        for name, code in ended.items())
                break
            alone(seen, 1)
            if begun is None:
                screen.progress(f'starting {len(runner.specs)} nodes ... '
                                f'{time.monotonic() - waiting:.0f} s')
                if seen.seen:
                    begun = time.monotonic()
                elif time.monotonic() - waiting > SECONDS_TO_START:
                    raise DemoError(f'the robot did not start to move within '
                                    f'{SECONDS_TO_START:.0f} s; see the logs')
                continue
            running = time.monotonic() - begun
            screen.progress(f'{running:5.1f} s  {seen.line()}')
            if finished(plan, seen, running):
                break
    except DemoError as error:
        result.trouble = str(error)
    except KeyboardInterrupt:
        result.interrupted = True
    if seen.first_pick is not None:
        result.first_pick = seen.first_pick - started
    return result


@contextlib.contextmanager
def uninterrupted(screen: Screen) -> Iterator[None]:
    """Let nodes end and the report be written in spite of a second Ctrl-C."""
    import signal

    before = signal.signal(signal.SIGINT, lambda *_: screen.say('one moment, writing the report'))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def report_on(plan: Plan, result: Result, screen: Screen) -> Run | None:
    """
    Print the table and write the report.

    :return: the recorded run; None if nothing was recorded.
    """
    # The recorder puts a number behind the name of a folder that exists.
    recordings = sorted(plan.output.glob('recording*'))
    if not recordings:
        screen.say('nothing was recorded')
        return None
    try:
        run = read_run(recordings[-1])
    except RecordError as error:
        screen.say(f'nothing to report: {error}')
        return None
    interface = find_interface('manipulator')
    limits = report.drawn_limits(
        interface, find_description(load_interface(interface).description, interface))
    notes = []
    if result.first_pick is not None:
        notes.append(f'First part in the bin {result.first_pick:.1f} s after the command.')
    notes += [text for text in (result.died, result.trouble) if text]
    page = plan.output / 'report.html'
    size = report.write_report(run, page, limits=limits, notes=notes)
    screen.say('')
    screen.say(run_table.text(run_table.blocks(run)))
    screen.say('')
    if result.first_pick is not None:
        screen.say(f'first part in the bin {result.first_pick:.1f} s after the command')
    screen.say(f'recording  {shown(recordings[-1])}')
    screen.say(f'logs       {shown(plan.output / "logs")}')
    screen.say(f'report     {shown(page)} ({size / 1e6:.1f} MB, open it in a browser)')
    return run


def shown(path: Path) -> str:
    """
    Return a path as short as it can be.

    :param path: absolute.
    """
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def verdict(plan: Plan, result: Result, run: Run | None) -> str:
    """
    Return what failed, in words; empty if nothing did.

    :param plan: what the demo should do.
    :param result: how it ended.
    :param run: what was recorded.
    """
    if result.died:
        return result.died
    if result.trouble:
        return result.trouble
    if run is None:
        return 'nothing was recorded'
    if not result.interrupted and run_statistics.parts(run).picked == 0:
        return 'no part was picked'
    return ''


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the demo.

    :param argv: arguments; those of the process when left out.
    :return: 0 if parts were picked and every node lived, 1 if not, 2 if it could not start.
    """
    started, plan, screen = command_time(), parse(argv), Screen()
    with contextlib.ExitStack() as stack:
        try:
            monitor = stack.enter_context(Monitor())
            specs = node_list(plan)
            monitor.look_around()
            alone(monitor.seen, 0)
        except (DemoError, ValueError, FileNotFoundError) as error:
            print(f'error: {error}', file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130
        who = 'the scripted expert' if plan.expert else 'the learned policy'
        what = f'{plan.parts} parts' if plan.parts else f'{plan.seconds:g} s'
        screen.say(f'{what} with {who}: {", ".join(spec.name for spec in specs)}')
        logs = Logs(plan.output / 'logs')
        runner = Runner(specs, logs)
        try:
            runner.start()
            result = watch(plan, runner, monitor.seen, logs, screen, started)
        except FileNotFoundError as error:
            print(f'error: {error}', file=sys.stderr)
            return 2
        finally:
            with uninterrupted(screen):
                runner.stop()
    with uninterrupted(screen):
        screen.errors(logs.take_grave())
        for name in runner.ended() if result.died else ():
            if f'{name} ended' in result.died:
                screen.say(f'last lines of {name}:')
                for line in logs.tails.get(name, []):
                    screen.say(f'    {line}')
        logs.close()
        run = report_on(plan, result, screen)
    failed = verdict(plan, result, run)
    if failed:
        print(f'error: {failed}', file=sys.stderr)
    return int(bool(failed))


if __name__ == '__main__':
    sys.exit(main())
