"""rclpy's single-threaded executor with a short way for messages and timers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rclpy.exceptions import InvalidHandle
from rclpy.executors import SingleThreadedExecutor, TimeoutException
from rclpy.impl.implementation_singleton import rclpy_implementation

REST_PERIOD = 0.1       # between two looks at what hardly ever happens [s]
TASK_PERIOD = 0.005     # while a coroutine waits for something [s]
MOST_AT_ONCE = 16       # of that, before messages are looked at again
NANOSECONDS = 1_000_000_000
# What of rclpy this is built on without being promised it.
BUILT_ON = ('_take_timer', '_take_subscription', '_guard', '_sigint_gc', '_context')


class LeanExecutor(SingleThreadedExecutor):
    """
    Runs callbacks as rclpy's executor does, in a quarter of its time.

    For every message rclpy's executor puts together anew what to wait for, out of all that a node
    has; most are events of the middleware, one or two for each topic, that hardly ever come. And
    every callback wakes it once more for nothing. Here messages and timers are waited for with
    little around them, and their callbacks are called at once. Services, guard conditions and
    coroutines wake it too, and are left to rclpy's own way, as are the middleware's events, ten
    times a second. A coroutine that waits, as one that loads a model, keeps no message waiting.

    :raises NotImplementedError: with an rclpy that is built otherwise.
    """

    def __init__(self, **kwargs: Any) -> None:
        self._stale = True      # something was created or destroyed; other threads say so, too
        self._kinds: tuple[list[Any], ...] = ()             # what is waited for
        self._handles: tuple[list[Any], ...] = ()
        self._wait_set: Any = None
        self._rest_due = 0.0
        super().__init__(**kwargs)
        missing = [name for name in BUILT_ON if not hasattr(self, name)]
        if missing or not hasattr(rclpy_implementation, 'WaitSet'):
            raise NotImplementedError(', '.join(missing) or 'WaitSet')

    def add_node(self, node: Any) -> bool:
        """Run a node's callbacks, too."""
        self._stale = True
        return super().add_node(node)

    def remove_node(self, node: Any) -> None:
        """Run a node's callbacks no more."""
        self._stale = True
        super().remove_node(node)

    def wake(self) -> None:
        """Look anew at what there is; nodes call it when they create or destroy something."""
        self._stale = True
        super().wake()

    def spin_once(self, timeout_sec: float | None = None) -> None:
        """
        Wait, then run what is ready: each timer and each topic once.

        :param timeout_sec: time to wait at most [s]; None or below 0: until something is ready.
        """
        now = time.monotonic()
        if now >= self._rest_due:
            self._run_rest()
            now = time.monotonic()
        timers, subscriptions, rest = self._wait(self._left(now, timeout_sec))
        for timer in timers:
            if _is_ready(timer):
                self._run(self._take_timer(timer))
        for subscription in subscriptions:
            self._run(self._take_subscription(subscription))
        if rest:
            self._run_rest()

    def _left(self, now: float, timeout: float | None) -> int:
        """Return how long to wait [ns]."""
        left = max(self._rest_due - now, 0.0)
        if timeout is not None and timeout >= 0.0:
            left = min(left, timeout)
        return int(NANOSECONDS * left)

    def _wait(self, timeout: int) -> tuple[list, list, bool]:
        """Return timers and subscriptions that are ready, and whether anything else is."""
        held: list[Any] = []
        try:
            if self._stale:
                self._gather()
            for handles in self._handles:
                for handle in handles:
                    handle.__enter__()      # nobody destroys it meanwhile
                    held.append(handle)
            wait_set = self._wait_set
            wait_set.clear_entities()
            for add, handles in zip(self._adds, self._handles, strict=False):
                for handle in handles:
                    add(handle)
            wait_set.wait(timeout)
            return (self._ready('timer', 1), self._ready('subscription', 0),
                    any(map(wait_set.get_ready_entities, (
                        'guard_condition', 'service', 'client'))))
        except InvalidHandle:
            self._stale = True              # destroyed by another thread
            return [], [], False
        finally:
            for handle in held:
                handle.__exit__(None, None, None)

    def _gather(self) -> None:
        """Note what there is to wait for, and make room for it."""
        self._stale = False     # first: what comes meanwhile is looked at the next time
        nodes = self.get_nodes()
        subscriptions, timers, guards, clients, services = self._kinds = tuple(
            [entity for node in nodes for entity in getattr(node, kind)]
            for kind in ('subscriptions', 'timers', 'guards', 'clients', 'services'))
        guards += [self._guard, self._sigint_gc]
        self._handles = (*([entity.handle for entity in kind] for kind in self._kinds),
                         [self._context.handle])
        self._wait_set = wait_set = rclpy_implementation.WaitSet(
            len(subscriptions), len(guards), len(timers), len(clients), len(services), 0,
            self._context.handle)
        self._adds = (wait_set.add_subscription, wait_set.add_timer, wait_set.add_guard_condition,
                      wait_set.add_client, wait_set.add_service)

    def _ready(self, kind: str, place: int) -> list[Any]:
        """Return the entities of a kind that are ready, in the order they were created."""
        pointers = self._wait_set.get_ready_entities(kind)
        return [entity for entity, handle in zip(
            self._kinds[place], self._handles[place], strict=True)
            if handle.pointer in pointers] if pointers else []

    def _run(self, work: Callable[[], Any] | None) -> None:
        """Call what one of rclpy's `_take_...` made: a coroutine that most often never waits."""
        if work is None:
            return
        coroutine = work()
        try:
            coroutine.send(None)
        except StopIteration:
            return
        self.create_task(coroutine)

    def _run_rest(self) -> None:
        """Run what is ready in rclpy's way."""
        self._rest_due = time.monotonic() + TASK_PERIOD
        try:
            for _ in range(MOST_AT_ONCE):
                handler, _, _ = self.wait_for_ready_callbacks(timeout_sec=0)
                handler()
                if handler.done():
                    handler.result()    # raises what it raised
        except TimeoutException:
            self._rest_due += REST_PERIOD - TASK_PERIOD


def _is_ready(timer: Any) -> bool:
    """Whether a timer is still due: a callback before it may have reset or destroyed it."""
    try:
        with timer.handle:
            return timer.handle.is_timer_ready()
    except InvalidHandle:
        return False
