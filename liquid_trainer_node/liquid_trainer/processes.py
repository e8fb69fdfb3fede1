"""Processes that share out jobs, and end when one fails or somebody presses Ctrl-C."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

_DIE_WITH_PARENT = 1        # PR_SET_PDEATHSIG of prctl(2)


def end_with_parent() -> None:
    """
    End this process when its parent is killed.

    By itself it would work off its job, and then wait for another one for ever.
    """
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


@contextmanager
def worker_processes(count: int, **options: Any) -> Iterator[ProcessPoolExecutor]:
    """
    Give an executor whose queue is dropped when something is raised.

    By itself it would work off all that is queued before it lets the error, or Ctrl-C, through.

    :param count: processes.
    :param options: of ProcessPoolExecutor.
    """
    with ProcessPoolExecutor(count, **{'initializer': end_with_parent, **options}) as pool:
        try:
            yield pool
        except BaseException as error:
            workers = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, KeyboardInterrupt):
                # Interrupted they go on with the next job, for some are on their way to them; and
                # a handler of ours that they have inherited may keep SIGTERM from them.
                for worker in workers:
                    worker.kill()
            raise
