"""Processes that share out jobs, and end when one fails or somebody presses Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


@contextmanager
def worker_processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """
    Give an executor whose queue is dropped when something is raised.

    By itself it would work off all that is queued before it lets the error, or Ctrl-C, through.

    :param count: processes.
    """
    with ProcessPoolExecutor(count) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
