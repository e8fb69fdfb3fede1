"""A thread that draws, so that joint states never wait for an image."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from liquid_sim.conveyor import ConveyorSim
from liquid_sim.twin import RenderTwin, Snapshot

# What is done with the cell once it looks like the snapshot.
Job = Callable[[ConveyorSim], None]


class Renderer:
    """
    Runs drawing jobs in order, in one thread, as OpenGL wants it.

    :param twin: what is drawn.
    """

    def __init__(self, twin: RenderTwin) -> None:
        self._twin = twin
        self._jobs: queue.Queue[tuple[Snapshot, list[Job]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name='renderer', daemon=True)
        self._ready = threading.Event()
        self.failure: Exception | None = None

    def start(self) -> None:
        """
        Return when the first picture has been drawn; that one is slow.

        :raises RuntimeError: if nothing can be drawn.
        """
        self._thread.start()
        self._ready.wait(60.0)
        if self.failure is not None:
            raise RuntimeError(
                f'nothing can be drawn: {self.failure}; MUJOCO_GL=osmesa needs libosmesa6, egl '
                'needs libegl1') from self.failure

    def submit(self, cell: ConveyorSim, jobs: list[Job]) -> None:
        """
        Draw what a cell looks like now.

        :param cell: the cell.
        :param jobs: what to do with it.
        """
        self._jobs.put((self._twin.snapshot(cell), jobs))

    @property
    def behind(self) -> bool:
        """Return whether there is more to draw than what is being drawn."""
        return self._jobs.qsize() > 0

    def finish(self) -> None:
        """Wait until all is drawn."""
        self._jobs.join()

    def stop(self) -> None:
        """End the thread, after what was submitted."""
        self._jobs.put(None)
        self._thread.join(10.0)

    def _work(self) -> None:
        try:
            self._twin.sim.render_camera()
            self._twin.sim.render_scene()
        except Exception as error:  # noqa: BLE001 - OpenGL fails in many ways; `start` tells
            self.failure = error
        self._ready.set()
        for snapshot, jobs in iter(self._jobs.get, None):
            try:
                cell = self._twin.show(snapshot)
                for job in jobs:
                    job(cell)
            except Exception as error:  # noqa: BLE001 - whoever submits looks at it
                self.failure = error
            finally:
                self._jobs.task_done()
        self._twin.sim.close()
