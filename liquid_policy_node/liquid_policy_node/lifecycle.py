"""What all nodes share: life cycle, autostart, guarded callbacks, diagnostics, main loop."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import rclpy
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.executors import MultiThreadedExecutor, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions

from liquid_policy_node.diagnostics import Diagnostics
from liquid_policy_node.lean_executor import LeanExecutor
from liquid_policy_node.parameters import SettingsError, check, declare, parameter


@dataclass(frozen=True)
class NodeSettings:
    """Parameters every node has."""

    autostart: bool = parameter(
        True, 'Configure and activate at start; otherwise wait for a lifecycle manager.')
    robot: str = parameter(
        'manipulator', 'Robot: name of a shipped interface file, or the path of one.')
    niceness: int = parameter(
        0, 'Niceness of all threads, set when activating; 0 leaves it. Below 0 needs the right to '
        '(CAP_SYS_NICE), without it the node runs as it is.', low=-20, high=19)
    priority: int = parameter(
        0, 'Real-time priority (SCHED_RR) of all threads, set when activating; 0: none. Needs the '
        'same right or a limit of rtprio, and executor lean or single; else niceness holds.',
        low=0, high=90)
    executor: str = parameter(
        'lean', "What runs the callbacks: our own executor, rclpy's single-threaded or "
        'multi-threaded one, or its experimental one made of events.',
        one_of=('lean', 'single', 'multi', 'events'))

    def __post_init__(self) -> None:
        check(self)


class Refusal(ValueError):
    """A transition is refused; the message says what is wrong and what would fix it."""


class ManagedNode(LifecycleNode):
    """
    A lifecycle node that no message and no failed transition can kill.

    Subclasses override `configure`, `activate`, `deactivate`, `cleanup` (each undone in its
    opposite; raise `Refusal`, `ValueError` or `OSError` to refuse a transition) and `apply`.
    """

    def __init__(self, name: str, settings_class: type, **kwargs: Any) -> None:
        """Declare the parameters and the diagnostics; everything else waits for `configure`."""
        super().__init__(name, **kwargs)
        self.settings = declare(self, settings_class, self._changed)
        self.robot = self.settings.robot
        self.active = False
        self.state_label = 'unconfigured'
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._logged: dict[str, int] = {}
        self.diagnostics = Diagnostics(self)
        self._tidying = self.create_timer(1.0, self._tidy, clock=self._steady)
        self._autostart = None
        if self.settings.autostart:
            self._autostart = self.create_timer(0.0, self._start, clock=self._steady)

    # What subclasses fill in.

    def configure(self) -> None:
        """Read files and create topics."""

    def activate(self) -> None:
        """Start working."""

    def deactivate(self) -> None:
        """Stop working, and leave the robot at rest."""

    def cleanup(self) -> None:
        """Destroy what `configure` created."""

    def apply(self, settings: Any) -> None:
        """Use changed settings; `self.settings` holds them already."""

    # Helpers.

    def steady_now(self) -> int:
        """Time that never jumps [ns]."""
        return self._steady.now().nanoseconds

    def ros_now(self) -> int:
        """Time of the stamps [ns]: the system's clock, or /clock when `use_sim_time` is set."""
        return self.get_clock().now().nanoseconds

    def subscribe(
        self, message_type: type, topic: str, callback: Callable[[Any], None], profile: Any,
    ) -> Any:
        """
        Subscribe with a guard: a message that cannot be used is reported, never fatal.

        :param callback: called while active; a `ValueError` it raises names what was expected and
            what came.
        """
        def guarded(message: Any) -> None:
            if self.active:
                self.guard(topic, callback, message)
        return self.create_subscription(message_type, topic, guarded, profile)

    def guard(self, name: str, work: Callable[..., Any], *arguments: Any) -> bool:
        """
        Run `work`; report instead of raising.

        :return: whether it succeeded.
        """
        try:
            work(*arguments)
        except ValueError as error:
            self.report(f'bad_{name}', f'{name}: {error}')
            return False
        except Exception as error:  # noqa: BLE001 - nothing may kill the node
            last = traceback.extract_tb(error.__traceback__)[-1]
            self.report(f'failed_{name}', (
                f'{name}: {type(error).__name__}: {error} ({last.filename}:{last.lineno})'))
            return False
        return True

    def later(self, work: Coroutine) -> None:
        """Let the executor run a coroutine; its callbacks go on meanwhile."""
        assert self.executor is not None
        self.executor.create_task(work)

    def report(self, name: str, text: str, period: float = 1.0) -> None:
        """Count, and log as an error at most once per `period` [s] and name."""
        count = self.diagnostics.count(name)
        if self.due(name, period):
            self.get_logger().error(f'{text} [{count} so far]' if count > 1 else text)

    def due(self, name: str, period: float = 1.0) -> bool:
        """Whether something of this name may be logged again, at most once per `period` [s]."""
        now = self.steady_now()
        if name in self._logged and now - self._logged[name] < 1e9 * period:
            return False
        self._logged[name] = now
        return True

    # Life cycle.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run `configure`."""
        return self._transition('configure', self.configure, super().on_configure, state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run `activate`, then take garbage collection into our own hands, see `_tidy`."""
        result = self._transition('activate', self.activate, super().on_activate, state)
        if result == TransitionCallbackReturn.SUCCESS:
            self.active = True
            self._set_niceness(self.settings.niceness)
            self._set_priority(self.settings.priority)
            gc.collect()
            gc.freeze()
            gc.disable()
            # What loading a checkpoint took goes back to the system; only glibc needs telling.
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run `deactivate`."""
        result = self._transition('deactivate', self.deactivate, super().on_deactivate, state)
        self.active = False
        gc.enable()
        return result

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run `cleanup`."""
        return self._transition('cleanup', self.cleanup, super().on_cleanup, state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Undo what was done, in order."""
        if self.active:
            self.guard('deactivate', self.deactivate)
            self.active = False
        if state.label in ('active', 'inactive'):
            self.guard('cleanup', self.cleanup)
        self.state_label = 'finalized'
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured."""
        self.active = False
        self.state_label = 'unconfigured'
        return TransitionCallbackReturn.SUCCESS

    def _transition(
        self, name: str, work: Callable[[], None], entities: Callable, state: LifecycleState,
    ) -> TransitionCallbackReturn:
        try:
            work()
        except (ValueError, OSError) as error:
            text = f'cannot {name}: {error}'
            self.get_logger().error(text)
            self.diagnostics.fault('lifecycle', text)
            return TransitionCallbackReturn.FAILURE
        except Exception as error:  # noqa: BLE001 - rclpy would swallow it without a word
            text = f'cannot {name}: {type(error).__name__}: {error}'
            self.get_logger().error(f'{text}\n{traceback.format_exc()}')
            self.diagnostics.fault('lifecycle', text)
            return TransitionCallbackReturn.ERROR
        self.diagnostics.fault('lifecycle', '')
        self.state_label = {
            'configure': 'inactive', 'activate': 'active', 'deactivate': 'inactive',
            'cleanup': 'unconfigured'}[name]
        return entities(state)

    def _tidy(self) -> None:
        """
        Collect garbage, once a second and between two callbacks.

        While active, nothing else does: a collection that begins by itself begins in the middle
        of an answer. What was there before is frozen, so there is little to look at.
        """
        if self.active:
            began = time.perf_counter()
            gc.collect()
            self.diagnostics.latency('garbage_collection', time.perf_counter() - began)

    def _set_niceness(self, niceness: int) -> None:
        """Apply to all threads of usual niceness; Linux keeps it by thread, DDS has its own."""
        usual = os.getpriority(os.PRIO_PROCESS, 0)
        if niceness in (0, usual):
            return
        try:
            for thread in map(int, os.listdir('/proc/self/task')):
                if os.getpriority(os.PRIO_PROCESS, thread) == usual:
                    os.setpriority(os.PRIO_PROCESS, thread, niceness)
        except OSError as error:
            self.get_logger().info(f'niceness {niceness} is not allowed here ({error.strerror})')

    def _set_priority(self, priority: int) -> None:
        """Run all threads before every one that is not of real time."""
        if not priority:
            return
        if self.settings.executor in ('multi', 'events'):
            # They can take a whole core: one polls for its own threads, which it would starve,
            # the other spins after some errors. In real time the machine would stand still.
            self.get_logger().warning(f'priority {priority} is not used with executor '
                                      f'{self.settings.executor!r}')
            return
        try:
            for thread in map(int, os.listdir('/proc/self/task')):
                os.sched_setscheduler(thread, os.SCHED_RR, os.sched_param(priority))
        except OSError as error:
            self.get_logger().info(f'priority {priority} is not allowed here ({error.strerror})')

    def _start(self) -> None:
        """Autostart, once, from inside the executor."""
        assert self._autostart is not None
        self.destroy_timer(self._autostart)
        self._autostart = None
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    def _changed(self, settings: Any) -> None:
        self.settings = settings
        self.apply(settings)


def _executor(kind: str, log: Callable[[str], object]) -> Any:
    """
    Return the executor of a name, see `NodeSettings.executor`.

    :param log: told if another has to do.
    """
    if kind == 'lean':
        try:
            return LeanExecutor()
        except NotImplementedError as error:
            log(f"executor 'lean': this rclpy has no {error}; 'single' runs instead")
            return SingleThreadedExecutor()
    if kind == 'events':
        from rclpy.experimental import EventsExecutor
        return EventsExecutor()
    return MultiThreadedExecutor() if kind == 'multi' else SingleThreadedExecutor()


def run(node_class: Callable[[], ManagedNode], argv: list[str] | None = None) -> int:
    """
    Spin one node until SIGINT or SIGTERM, then bring it to rest and leave.

    On one thread by default, as measured: rclpy's multi-threaded executor starts a callback 0.6 ms
    (p99 6 ms) after its message, its single-threaded one 0.3 ms after it.

    :param node_class: makes the node.
    :param argv: command line without the program's name; None takes the process's.
    :return: exit code: 0, or 2 when the parameters are wrong.
    """
    # Every message asks this package for its C half, and with it would come the generator of
    # messages and a parser: 25 ms and 5 MB. It expects that they may be missing.
    sys.modules.setdefault('rosidl_generator_py.generate_py_impl', None)  # type: ignore[arg-type]
    rclpy.init(
        args=None if argv is None else ['node', *argv],
        signal_handler_options=SignalHandlerOptions.NO)  # the robot is stopped before DDS goes
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, frame: stop.append(received))
    node, code = None, 0
    try:
        node = node_class()
        executor = _executor(node.settings.executor, node.get_logger().warning)
        executor.add_node(node)
        while not stop and rclpy.ok():
            node.guard('executor', executor.spin_once, 0.1)
    except SettingsError as error:
        print(f'error: {error}', file=sys.stderr)
        code = 2
    finally:
        if node is not None:
            if node.state_label != 'finalized':
                node.trigger_shutdown()
            node.destroy_node()
        rclpy.try_shutdown()
    return code
