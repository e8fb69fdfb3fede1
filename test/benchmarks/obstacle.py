"""
What does training with the barrier give, next to a filter afterwards and to nothing at all?

Robots of `liquid_sim.obstacle_task` learn from the same demonstrations; every arm begins with the
same random weights and sees the same batches; `mlp-long` goes on for five times as many. They
drive the same new episodes, with the disc they learned beside (radius 6 m) and with a larger one
(8 m) that only the barrier is told of. Run it as
`docker/in_environment.sh python3 test/benchmarks/obstacle.py`: minutes on one core.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch

from liquid_sim.evaluate import append_rows, commit, wilson
from liquid_sim.obstacle_task import (
    Driver,
    Episodes,
    ObstacleSettings,
    barrier_layer,
    demonstrate,
    drive,
    train_driver,
)

RESULTS = Path(__file__).parent / 'results' / 'obstacle.jsonl'
PICTURE = Path(__file__).resolve().parents[2] / 'docs' / 'obstacle.png'
TASKS = {'obstacle_seen': 6.0, 'obstacle_larger': 8.0}
DRAWN = ('expert', 'mlp+barrier', 'mlp+filter', 'mlp')
TEST_SEED = 5_000_000
LONG = 5
Outcomes = dict[tuple[str, str], list[Episodes]]


def run(seeds: list[int], demonstrations: int, steps: int, episodes: int) -> Outcomes:
    """Return the episodes of every task and policy, one item per seed."""
    world = ObstacleSettings()
    found: Outcomes = {}
    for seed in seeds:
        shown = demonstrate(demonstrations, 1000 * seed, world)
        drivers = {}
        for name, times in (('mlp+barrier', 1), ('mlp', 1), ('mlp-long', LONG)):
            torch.manual_seed(seed)
            drivers[name] = Driver(barrier_layer(world) if name == 'mlp+barrier' else None)
            losses = train_driver(drivers[name], shown, times * steps, seed)
            print(f'seed {seed} {name}: loss {np.mean(losses[-50:]):.5f}', flush=True)
        for task, radius in TASKS.items():
            there = dataclasses.replace(world, radius=radius)
            first = TEST_SEED + 1000 * seed
            results = {
                'expert': demonstrate(episodes, first, there),
                'mlp+barrier': drive(drivers['mlp+barrier'], episodes, first, there),
                'mlp+filter': drive(drivers['mlp'], episodes, first, there, filtered=True),
                'mlp': drive(drivers['mlp'], episodes, first, there),
                'mlp-long+filter': drive(drivers['mlp-long'], episodes, first, there,
                                         filtered=True),
                'mlp-long': drive(drivers['mlp-long'], episodes, first, there)}
            for policy, result in results.items():
                found.setdefault((task, policy), []).append(result)
                print(f'  {task:<16}{policy:<16} success {result.success.mean():5.1%}  touched '
                      f'{result.touched.mean():5.1%}  changed {result.interventions.mean():5.1%}  '
                      f'nearest {result.nearest.min():6.3f} m  {result.seconds.mean():.1f} s',
                      flush=True)
    return found


def interval(groups: list[np.ndarray], statistic: Callable[[np.ndarray], float] = np.mean,
             draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % interval over seeds and, within them, episodes: both are drawn anew."""
    rng = np.random.default_rng(0)
    values = []
    for _ in range(draws):
        chosen = rng.integers(0, len(groups), len(groups))
        values.append(statistic(np.concatenate(
            [groups[i][rng.integers(0, len(groups[i]), len(groups[i]))] for i in chosen])))
    return float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5))


def rows(found: Outcomes, seeds: list[int], preset: str) -> list[dict]:
    """Return the figures as rows."""
    common = {'seeds': seeds, 'preset': preset, 'commit': commit(),
              'machine': f'{platform.machine()}, 1 core', 'date': date.today().isoformat()}
    made = []
    for (task, policy), results in found.items():
        for figure, name, unit in (('success', 'success', '1'), ('violations', 'touched', '1'),
                                   ('interventions', 'interventions', '1'),
                                   ('distance', 'nearest', 'm'), ('duration', 'seconds', 's')):
            groups = [np.asarray(getattr(result, name), float) for result in results]
            every = np.concatenate(groups)
            low, high = interval(groups)
            if figure in ('success', 'violations'):
                # Where all episodes agree the bootstrap knows no doubt; Wilson does.
                least, most = wilson(int(every.sum()), len(every))
                low, high = min(low, least), max(high, most)
            made.append({'figure': figure, 'task': task, 'policy': policy,
                         'value': float(every.mean()), 'low': low, 'high': high, 'unit': unit,
                         'n': len(every), **common})
        worst = min(float(result.nearest.min()) for result in results)
        made.append({'figure': 'smallest_distance', 'task': task, 'policy': policy,
                     'value': worst, 'low': worst, 'high': worst, 'unit': 'm',
                     'n': sum(len(result.nearest) for result in results), **common})
    return made


def plot(found: Outcomes, path: Path, most: int = 40) -> None:
    """Draw the paths of the first seed, a picture per task and policy."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(TASKS), len(DRAWN), figsize=(13, 4.0), sharex=True,
                                   sharey=True)
    for (task, policy), results in found.items():
        if policy not in DRAWN:
            continue
        axis = axes[list(TASKS).index(task), DRAWN.index(policy)]
        axis.add_patch(pyplot.Circle(ObstacleSettings().center, TASKS[task], color='0.8'))
        first = results[0]
        for index in range(min(most, first.path.shape[1])):
            axis.plot(*first.path[:, index].T, linewidth=0.7,
                      color='tab:red' if first.touched[index] else 'tab:blue')
        every = np.concatenate([result.success for result in results])
        axis.set_title(f'{policy}: {every.mean():.0%} of {len(every)}', fontsize='medium')
        axis.set_aspect('equal')
        axis.set_xlim(0, 70)
        axis.set_ylim(0, 30)
    for axis, radius in zip(axes[:, 0], TASKS.values(), strict=True):
        axis.set_ylabel(f'radius {radius:g} m\ny [m]')
    for axis in axes[-1]:
        axis.set_xlabel('x [m]')
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    """Run every arm and write figures and picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2, 3, 4])
    parser.add_argument('--demonstrations', type=int, default=60)
    parser.add_argument('--steps', type=int, default=600)
    parser.add_argument('--episodes', type=int, default=100)
    parser.add_argument('--dry', action='store_true', help='write nothing')
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = run(arguments.seeds, arguments.demonstrations, arguments.steps, arguments.episodes)
    if arguments.dry:
        return
    preset = f'{arguments.demonstrations} demonstrations, {arguments.steps} steps'
    append_rows(RESULTS, rows(found, arguments.seeds, preset))
    plot(found, PICTURE)
    print(f'{RESULTS}, {PICTURE}')


if __name__ == '__main__':
    main()
