"""Watch the cell at work in MuJoCo's window; needs a display."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from liquid_sim import scene


def main(argv=None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog='watch', description=__doc__)
    parser.add_argument('--policy', default='expert', help='`expert` or a checkpoint')
    parser.add_argument('--conditions', choices=('seen', 'unseen', 'everything', 'jumping'),
                        default='everything')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--interface', type=Path, default=scene.find_interface())
    arguments = parser.parse_args(argv)
    if not (os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')):
        print('watch: no display here; write a video instead: python -m liquid_sim.render run.mp4',
              file=sys.stderr)
        return 1
    os.environ['MUJOCO_GL'] = 'glfw'   # before anything imports MuJoCo
    import mujoco.viewer

    from liquid_policy.interface import load_interface
    from liquid_sim import conveyor, drivers
    from liquid_sim.evaluate import make_driver
    sim = conveyor.ConveyorSim(getattr(conveyor, arguments.conditions)(), arguments.seed)
    driver = make_driver(sim, arguments.policy)
    safety = drivers.Safety(load_interface(arguments.interface))
    driver.reset(arguments.seed)
    with mujoco.viewer.launch_passive(sim.model, sim.data) as viewer:
        viewer.opt.geomgroup[3] = 0   # collision shapes
        began = time.monotonic()
        while viewer.is_running():
            proposal, _ = driver.act()
            sim.step(safety.command(sim, proposal))
            viewer.sync()
            time.sleep(max(0.0, sim.time - (time.monotonic() - began)))
    sim.close()
    return 0


if __name__ == '__main__':
    sys.exit(main())
