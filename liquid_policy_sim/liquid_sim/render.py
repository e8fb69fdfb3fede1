"""Render the cell at work to a picture (.png), an animation (.gif, .webp) or a video (.mp4)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from liquid_policy.command import command
from liquid_policy.interface import load_interface
from liquid_sim import conveyor, drivers, scene
from liquid_sim.evaluate import make_driver

ENDINGS = ('.png', '.gif', '.webp', '.mp4')


def compose(sim: conveyor.ConveyorSim, height: int = 360) -> np.ndarray:
    """Return the scene beside what the camera sees (colour above depth), (height, width, 3)."""
    wide = sim.render_scene(height * 4 // 3, height)
    color, depth = sim.render_camera()
    shade = 255 - (np.clip(depth / 1.5, 0, 1) * 255).astype(np.uint8)
    heat = cv2.cvtColor(cv2.applyColorMap(shade, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    half = height // 2
    right = [cv2.resize(view, (half, half), interpolation=cv2.INTER_NEAREST)
             for view in (color, heat)]
    return np.hstack([wide, np.vstack(right)])


def frames(policy: str, conditions: str, seed: int, seconds: float, rate: float,
           interface: Path, height: int = 360):
    """Yield pictures of the cell at work, `rate` per simulated second."""
    sim = conveyor.ConveyorSim(getattr(conveyor, conditions)(), seed)
    driver = make_driver(sim, policy)
    safety = drivers.Safety(load_interface(interface))
    driver.reset(seed)
    shown = 0.0
    while sim.time < seconds:
        proposal, _ = driver.act()
        sim.step(safety.command(sim, proposal))
        if sim.time >= shown:
            shown += 1.0 / rate
            yield compose(sim, height)
    sim.close()


def save(pictures, path: Path, rate: float) -> int:
    """
    Write pictures to a file by its ending and return how many there were.

    :raises ValueError: for an ending that is not one of `ENDINGS`.
    """
    if path.suffix not in ENDINGS:
        raise ValueError(f'{path}: expected one of {", ".join(ENDINGS)}')
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    if path.suffix == '.mp4':
        writer = None
        for picture in pictures:
            if writer is None:
                height, width = picture.shape[:2]
                writer = cv2.VideoWriter(
                    str(path), cv2.VideoWriter.fourcc(*'mp4v'), rate, (width, height))
            writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            count += 1
        if writer is not None:
            writer.release()
        return count
    images = [Image.fromarray(picture) for picture in pictures]
    if path.suffix == '.png':
        images[-1].save(path)
    else:
        images[0].save(path, save_all=True, append_images=images[1:],
                       duration=round(1000 / rate), loop=0)
    return len(images)


@command('render')
def main(argv=None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog='render', description=__doc__)
    parser.add_argument('output', type=Path, help=f'file ending in {", ".join(ENDINGS)}')
    parser.add_argument('--policy', default='expert', help='`expert` or a checkpoint')
    parser.add_argument('--conditions', choices=conveyor.CONDITIONS,
                        default='everything')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--seconds', type=float, default=12.0)
    parser.add_argument('--rate', type=float, default=15.0, help='pictures per second')
    parser.add_argument('--height', type=int, default=360)
    parser.add_argument('--interface', type=Path, default=scene.find_interface())
    arguments = parser.parse_args(argv)
    if arguments.output.suffix not in ENDINGS:
        parser.error(f'{arguments.output}: expected a file ending in {", ".join(ENDINGS)}')
    pictures = tqdm(
        frames(arguments.policy, arguments.conditions, arguments.seed, arguments.seconds,
               arguments.rate, arguments.interface, arguments.height),
        total=int(arguments.seconds * arguments.rate), unit='picture', disable=None)
    count = save(pictures, arguments.output, arguments.rate)
    print(f'wrote {count} pictures to {arguments.output}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
