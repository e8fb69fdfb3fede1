"""
Make demonstrations for Can with a scripted hand.

Example: `generate_can --episodes 200 --output runs/can.hdf5`. The file has robomimic's layout, and
says of itself that it was scripted: what people do differs more than this.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from liquid_policy.command import command
from liquid_sim.evaluate import commit
from liquid_sim.tasks.can import KEYS, RATE, STEPS, Can, rotation_matrix
from liquid_sim.tasks.can_expert import CanExpert
from liquid_sim.tasks.robomimic_writer import RobomimicWriter
from liquid_trainer.processes import worker_processes

_PARTS = dict(zip(KEYS, (slice(0, 3), slice(3, 7), slice(7, 9), slice(9, 23)), strict=True))
_BLOCK = 5              # episodes that one process takes at a time


@dataclass(frozen=True, eq=False)
class CanEpisode:
    """
    One episode.

    :param seen: `KEYS` side by side, before each action and after the last, `(steps + 1, 23)`.
    :param actions: `(steps, 7)`.
    :param states: the simulator's before each action, `(steps, numbers)`.
    :param success: whether the can ended in its place.
    """

    seen: np.ndarray
    actions: np.ndarray
    states: np.ndarray
    success: bool


def demonstrate(world: Can, expert: CanExpert, seed: int, steps: int = STEPS) -> CanEpisode:
    """
    Run one episode.

    :param seed: of where the can stands.
    :param steps: longest allowed.
    """
    world.reset(seed)
    seen, done = [world.observed], False
    actions: list[np.ndarray] = []
    states: list[np.ndarray] = []
    while not done and len(actions) < steps:
        states.append(world.state())
        hand = seen[-1]
        actions.append(expert.act(hand[:3], rotation_matrix(hand[3:7]), hand[9:12]))
        done = world.step(actions[-1]).success
        seen.append(world.observed)
    return CanEpisode(np.array(seen), np.array(actions), np.array(states), done)


def run(seed: int, numbers: range) -> list[CanEpisode]:
    """Run some episodes in this process."""
    world = Can()
    try:
        return [demonstrate(world, CanExpert(world.target, np.random.default_rng((seed, number))),
                            100_000 * seed + number) for number in numbers]
    finally:
        world.close()


def demonstrations(seed: int, processes: int) -> Iterator[CanEpisode]:
    """Yield episodes without end, in the order of their numbers, made in parallel."""
    first = 0
    with worker_processes(processes) as pool:
        while True:
            blocks = [range(first + _BLOCK * i, first + _BLOCK * (i + 1))
                      for i in range(processes)]
            for episodes in pool.map(partial(run, seed), blocks):
                yield from episodes
            first += _BLOCK * processes


def generate(episodes: int, seed: int, output: Path, processes: int, quiet: bool = False) -> str:
    """
    Write a file of episodes that brought the can to its place, and return a line about it.

    :raises FileExistsError: if it is there already.
    """
    import robosuite
    writer = RobomimicWriter(output, {
        'env_name': 'PickPlaceCan', 'env_version': robosuite.__version__, 'type': 1,
        'env_kwargs': {'robots': ['Panda'], 'control_freq': int(RATE)}},
        {'scripted': True, 'commit': commit(), 'seed': seed,
         'description': 'Made by a scripted hand, not by people.'})
    failed, lengths = 0, []
    try:
        with tqdm(total=episodes, unit='episode', desc='can', disable=quiet or None) as bar:
            for episode in demonstrations(seed, processes):
                if not episode.success:
                    failed += 1
                    continue
                writer.add({name: episode.seen[:, part] for name, part in _PARTS.items()},
                           episode.actions, episode.states)
                lengths.append(len(episode.actions))
                bar.update()
                if writer.episodes == episodes:
                    break
    except BaseException:
        writer.drop()
        raise
    return (f'{writer.close()}: {episodes} episodes of {np.median(lengths):.0f} steps (median), '
            f'{failed} more that failed were left out')


@command('generate_can')
def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog='generate_can', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--episodes', type=int, default=200)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--output', type=Path, required=True, help='hdf5 file to write')
    parser.add_argument('--processes', type=int, default=1)
    parser.add_argument('--quiet', action='store_true', help='no bar')
    arguments = parser.parse_args(argv)
    for name, most in (('episodes', 10_000), ('processes', 256)):
        if not 1 <= getattr(arguments, name) <= most:
            raise ValueError(f'--{name}: expected 1 to {most}, came {getattr(arguments, name)}')
    print(generate(arguments.episodes, arguments.seed, arguments.output, arguments.processes,
                   arguments.quiet))
    return 0


if __name__ == '__main__':
    sys.exit(main())
