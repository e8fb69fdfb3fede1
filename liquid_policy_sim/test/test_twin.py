"""The twin draws exactly what the cell would."""

import numpy as np
import pytest

from liquid_sim import conveyor
from liquid_sim.twin import RenderTwin


@pytest.fixture
def settings():
    return conveyor.everything(sensor_noise=0.0)


def test_twin_draws_what_the_cell_would_draw_even_if_that_has_moved_on(settings):
    cell = conveyor.ConveyorSim(settings, seed=4)
    twin = RenderTwin(settings, seed=4)
    command = np.array([0.4, -0.3, 0.2, 0, 0, 0, 0, 0, 0])
    for _ in range(150):   # long enough for a part to come, with its own shape and colour
        cell.step(command)
    assert cell.part() is not None
    color, depth = cell.render_camera()
    scene = cell.render_scene(160, 120)
    snapshot = twin.snapshot(cell)
    for _ in range(30):
        cell.step(command)
    shown = twin.show(snapshot)
    seen = shown.render_camera()
    assert (seen[0] == color).all() and (seen[1] == depth).all()
    assert (shown.render_scene(160, 120) == scene).all()
    moved = cell.render_camera()
    assert not (moved[0] == color).all()
    cell.close()
    twin.sim.close()


def test_snapshots_can_wait_while_others_are_taken(settings):
    cell, twin = conveyor.ConveyorSim(settings, seed=1), RenderTwin(settings, seed=1)
    snapshots, positions = [], []
    for _ in range(3):
        cell.step(np.full(9, 0.3))
        snapshots.append(twin.snapshot(cell))
        positions.append(cell.data.qpos.copy())
    for snapshot, position in zip(snapshots, positions, strict=True):
        assert (twin.show(snapshot).data.qpos == position).all()
