"""Drawing beside the simulation: a second copy of the cell that only draws."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import mujoco
import numpy as np

from liquid_sim.conveyor import ConveyorSettings, ConveyorSim

# What changes in the model while the cell runs, when a body takes the shape of another part.
CHANGING = ('geom_size', 'geom_rbound', 'geom_rgba')


@dataclass(frozen=True)
class Snapshot:
    """
    What a cell looks like at one moment.

    :param data: positions.
    :param shapes: the arrays of `CHANGING`.
    """

    data: mujoco.MjData
    shapes: tuple[np.ndarray, ...]


class RenderTwin:
    """
    A cell that shows what another one looked like at one moment.

    Drawing takes 5 to 15 ms without a GPU, longer than a control period; with a twin it happens
    in another thread while the cell itself goes on.

    :param settings: as of the cell that is mirrored.
    :param seed: as of that cell: light, colours and camera are drawn from it.
    """

    def __init__(self, settings: ConveyorSettings, seed: int) -> None:
        self.sim = ConveyorSim(settings, seed)
        self._free: deque[mujoco.MjData] = deque()

    def snapshot(self, cell: ConveyorSim) -> Snapshot:
        """
        Take down what a cell looks like; in the thread that steps the cell.

        :param cell: made with the same settings and seed.
        """
        try:
            data = self._free.pop()
        except IndexError:
            data = mujoco.MjData(cell.model)
        mujoco.mj_copyData(data, cell.model, cell.data)
        return Snapshot(data, tuple(getattr(cell.model, name).copy() for name in CHANGING))

    def show(self, snapshot: Snapshot) -> ConveyorSim:
        """
        Return the twin as it looks in a snapshot; in the thread that draws, once per snapshot.

        :param snapshot: from `snapshot`.
        """
        mujoco.mj_copyData(self.sim.data, self.sim.model, snapshot.data)
        for name, value in zip(CHANGING, snapshot.shapes, strict=True):
            getattr(self.sim.model, name)[:] = value
        self._free.append(snapshot.data)
        return self.sim
