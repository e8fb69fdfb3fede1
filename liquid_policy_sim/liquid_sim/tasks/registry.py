"""Tasks by name."""

from __future__ import annotations

from collections.abc import Callable

from liquid_sim.tasks import can, point_maze, push_t, push_t_image
from liquid_sim.tasks.task import Task

_TASKS: dict[str, Callable[[], Task]] = {
    **push_t.TASKS, **push_t_image.TASKS, **point_maze.TASKS, **can.TASKS}
NAMES = tuple(_TASKS)


def find_task(name: str) -> Task:
    """
    Return a task.

    :raises ValueError: if there is none of that name.
    """
    if name not in _TASKS:
        raise ValueError(f'task: expected one of {", ".join(NAMES)}, came {name!r}')
    return _TASKS[name]()
