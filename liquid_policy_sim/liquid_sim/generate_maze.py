"""
Make demonstrations for PointMaze with a scripted hand that knows the map.

Example: `generate_maze --size umaze --episodes 300 --output runs/maze_umaze`. The result has the
layout of Farama's published data sets, and says in its metadata that it was scripted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from liquid_policy.command import command
from liquid_sim.evaluate import commit
from liquid_sim.tasks.maze_expert import MazeExpert
from liquid_sim.tasks.minari_writer import MinariEpisode, MinariWriter
from liquid_sim.tasks.point_maze import SIZES, PointMaze, make_world

_KEYS = {'observation': slice(0, 4), 'achieved_goal': slice(0, 2), 'desired_goal': slice(4, 6)}


def demonstrate(world: PointMaze, expert: MazeExpert, seed: int, steps: int) -> MinariEpisode:
    """
    Run one episode.

    :param seed: of start and goal.
    :param steps: longest allowed.
    """
    vector = world.reset(seed)
    expert.start(vector[:2], vector[4:6])
    vectors, done = [vector], False
    actions: list[np.ndarray] = []
    while not done and len(actions) < steps:
        actions.append(expert.push(vector[:2], vector[2:4]))
        outcome = world.step(actions[-1])
        vector, done = outcome.vector, outcome.success
        vectors.append(vector)
    seen = np.array(vectors)
    return MinariEpisode({name: seen[:, part] for name, part in _KEYS.items()},
                         np.array(actions), done, seed)


def demonstrations(size: str, seed: int) -> Iterator[MinariEpisode]:
    """
    Yield episodes without end, every one another.

    :param seed: episodes of two seeds are never the same.
    """
    world = PointMaze(size)
    try:
        for number in range(100_000):
            expert = MazeExpert(world.maze, np.random.default_rng((seed, number)))
            yield demonstrate(world, expert, 100_000 * seed + number, SIZES[size][1])
    finally:
        world.close()


def about(size: str, seed: int) -> dict[str, Any]:
    """Return what a data set's metadata say."""
    world = make_world(size)
    spec = world.spec.to_json()
    world.close()

    def box(numbers: int, most: float) -> dict[str, Any]:
        return {'type': 'Box', 'dtype': 'float64', 'shape': [numbers], 'low': [-most] * numbers,
                'high': [most] * numbers}

    endless = float('inf')
    return {
        'dataset_id': f'liquid/pointmaze/{size}-scripted-v0', 'algorithm_name': 'scripted',
        'minari_version': '0.5.0',
        'description': 'Made by a scripted planner that knows the map, not by people.',
        'author': ['liquid policy suite'], 'commit': commit(), 'seed': seed,
        'env_spec': spec,
        'observation_space': json.dumps({'type': 'Dict', 'subspaces': {
            'achieved_goal': box(2, endless), 'desired_goal': box(2, endless),
            'observation': box(4, endless)}}),
        'action_space': json.dumps(box(2, 1.0) | {'dtype': 'float32'})}


def generate(size: str, episodes: int, seed: int, output: Path, quiet: bool = False) -> str:
    """
    Write a data set of episodes that reached the goal, and return a line about it.

    :raises FileExistsError: if there is one already.
    """
    writer, failed = MinariWriter(output, about(size, seed)), 0
    lengths = []
    with tqdm(total=episodes, unit='episode', desc=size, disable=quiet or None) as bar:
        for episode in demonstrations(size, seed):
            if not episode.success:
                failed += 1
                continue
            writer.add(episode)
            lengths.append(len(episode.actions))
            bar.update()
            if writer.episodes == episodes:
                break
    folder = writer.close()
    return (f'{folder}: {episodes} episodes of {np.median(lengths):.0f} steps (median), '
            f'{failed} more that did not reach the goal were left out')


@command('generate_maze')
def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog='generate_maze', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', choices=SIZES, default='umaze')
    parser.add_argument('--episodes', type=int, default=300)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--output', type=Path, required=True, help='folder to write')
    parser.add_argument('--quiet', action='store_true', help='no bar')
    arguments = parser.parse_args(argv)
    if not 1 <= arguments.episodes <= 50_000:
        raise ValueError(f'--episodes: expected 1 to 50000, came {arguments.episodes}')
    print(generate(arguments.size, arguments.episodes, arguments.seed, arguments.output,
                   arguments.quiet))
    return 0


if __name__ == '__main__':
    sys.exit(main())
