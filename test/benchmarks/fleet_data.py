"""
Ten robots' demonstrations for fleet.py: parts of recorded bags, sorted by belt and payload.

One bag shows several parts on belts of different speed. Cut apart and sorted by speed and mass,
they are what ten cells would have recorded that each have their own belt and their own parts.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from liquid_policy.checkpoint import load_checkpoint
from liquid_policy.runtime import EncoderRuntime
from liquid_trainer.bag_file import Bag, find_bags
from liquid_trainer.bags import read_episodes
from liquid_trainer.cache import DEPTH_UNIT, StoredEpisode, store_depth

STATUS = 'conveyor_status'
ARRAYS = ('times', 'vectors', 'image_index', 'image_times', 'actions', 'targets', 'features')
# Belt speeds [m/s] and masses [kg] that divide the cells: five belts, two kinds of parts.
SPEEDS, MASSES = 5, 2
_SHORTEST = 1.0     # of what is shown of a part [s]


@dataclass(frozen=True)
class Part:
    """
    What a robot saw and did while one part came, was picked and put away.

    :param speed: of the belt, mean [m/s].
    :param mass: of the part [kg].
    :param episode: without pictures: 1x1 pixels stand for them.
    :param features: of its images, `(images, size)`.
    """

    speed: float
    mass: float
    episode: StoredEpisode
    features: np.ndarray


def prepare(bag: Path, checkpoint: Path, folder: Path) -> int:
    """Cut a bag into parts, encode their images, and write one file for each; return how many."""
    loaded = load_checkpoint(checkpoint)
    interface = loaded.interface
    encoder = EncoderRuntime(loaded)
    status = [(record.message.header.stamp.sec * 10**9 + record.message.header.stamp.nanosec,
               record.message.belt_speed, record.message.part_mass)
              for record in Bag(bag).messages([f'/{STATUS}'])]
    stamps, speeds, masses = (np.array(column) for column in zip(*status, strict=True))
    count = 0
    for episode in read_episodes([bag], interface):
        row = np.clip(np.searchsorted(stamps, episode.stamps), 0, len(stamps) - 1)
        mass = np.round(masses[row], 6)
        changes = np.flatnonzero(np.diff(mass)) + 1
        for ticks in np.split(np.arange(len(mass)), changes):
            if mass[ticks[0]] <= 0 or len(ticks) < _SHORTEST * interface.rate:
                continue
            index = episode.image_index[ticks]
            images = np.arange(max(index.min(), 0), index.max() + 1)
            depths = store_depth(episode.depths[images]).astype(np.float32) * DEPTH_UNIT
            features = np.stack([encoder.encode(color, depth) for color, depth in
                                 zip(episode.colors[images], depths, strict=True)])
            np.savez(folder / f'{bag.name}_{count}.npz', speed=speeds[row[ticks]].mean(),
                     mass=mass[ticks[0]], times=episode.times[ticks] - episode.times[ticks[0]],
                     vectors=episode.vectors[ticks], actions=episode.actions[ticks],
                     targets=episode.targets[ticks], image_index=index - images[0],
                     image_times=(episode.image_stamps[images] - episode.stamps[ticks[0]]) * 1e-9,
                     features=features.astype(np.float32))
            count += 1
    (folder / f'{bag.name}.done').touch()
    return count


def prepare_all(bags: list[Path], checkpoint: Path, folder: Path, processes: int) -> None:
    """Prepare the bags that are not yet, in several processes."""
    folder.mkdir(parents=True, exist_ok=True)
    left = [bag for bag in find_bags(bags) if not (folder / f'{bag.name}.done').exists()]
    with ProcessPoolExecutor(processes) as pool:
        jobs = [pool.submit(prepare, bag, checkpoint, folder) for bag in left]
        for job in tqdm(as_completed(jobs), total=len(jobs), unit='bag', desc='encoding',
                        disable=None):
            job.result()


def load_parts(folder: Path) -> Iterator[Part]:
    """Yield the parts of all prepared bags, in the order of their names."""
    for path in sorted(folder.glob('*.npz')):
        with np.load(path) as file:
            values = {name: file[name] for name in ARRAYS}
            features = values.pop('features')
            blank = np.zeros((len(features), 1, 1), np.uint16)
            yield Part(float(file['speed']), float(file['mass']), StoredEpisode(
                name=path.stem, colors=np.zeros((*blank.shape, 3), np.uint8), depths=blank,
                **values), features)


def robots_of(parts: list[Part]) -> list[list[Part]]:
    """
    Return the parts of each robot: equally many for each belt, and for light and heavy parts.

    :return: `SPEEDS * MASSES` lists, the slowest belt first, light parts first.
    """
    robots = []
    by_speed = sorted(parts, key=lambda part: part.speed)
    for belt in np.array_split(np.arange(len(by_speed)), SPEEDS):
        by_mass = sorted((by_speed[i] for i in belt), key=lambda part: part.mass)
        robots += [[by_mass[i] for i in kind]
                   for kind in np.array_split(np.arange(len(by_mass)), MASSES)]
    return robots


def main(argv: list[str] | None = None) -> int:
    """Prepare bags and say what the robots have."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('bags', nargs='+', type=Path)
    parser.add_argument('--checkpoint', required=True, type=Path, help='its encoder is used')
    parser.add_argument('--output', type=Path, default=Path('runs/fleet'))
    parser.add_argument('--processes', type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args(argv)
    prepare_all(arguments.bags, arguments.checkpoint, arguments.output, arguments.processes)
    for number, robot in enumerate(robots_of(list(load_parts(arguments.output)))):
        print(f'robot {number}: {len(robot)} parts, belt '
              f'{min(p.speed for p in robot):.3f} to {max(p.speed for p in robot):.3f} m/s, mass '
              f'{min(p.mass for p in robot):.2f} to {max(p.mass for p in robot):.2f} kg')
    return 0


if __name__ == '__main__':
    sys.exit(main())
