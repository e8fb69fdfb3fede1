"""
Do two processes learn what one does, and how much sooner?

The core stage on cached bags, the same shards, in one process and in several that torchrun
started: losses step by step, and steps per second, each process with one thread.

`python test/benchmarks/parallel_training.py runs/demonstrations --append
test/benchmarks/results/parallel_training.jsonl`: a minute on two quiet cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np


def learn(arguments: argparse.Namespace) -> None:
    """Learn in this process, one of those that torchrun started, and write losses and times."""
    import torch

    from liquid_policy.interface import load_interface
    from liquid_trainer.building import build_policy
    from liquid_trainer.cache import cached_episodes
    from liquid_trainer.learner import Learner, fit_feature_scaling, fit_scaling
    from liquid_trainer.parallel import Group
    from liquid_trainer.settings import LearningSettings
    from liquid_trainer.train import keep_memory
    from liquid_trainer.windows import Demonstrations
    keep_memory()
    torch.set_num_threads(1)
    group = Group.join()
    robot = load_interface(arguments.interface)
    if group.leads:
        cached_episodes(arguments.bags, robot, arguments.cache)
    group.wait()
    data = Demonstrations(cached_episodes(arguments.bags, robot, arguments.cache),
                          1.0 / robot.rate)
    torch.manual_seed(0)
    policy = build_policy(robot, 'cfc', 0.25)
    fit_scaling(policy, data, robot.action_units, robot.target_units)
    features = np.random.default_rng(0).normal(
        size=(data.image_count, policy.settings.feature_size)).astype(np.float32)
    fit_feature_scaling(policy, features)
    learner = Learner(policy, data, LearningSettings(shards=arguments.shards, threads=1), (),
                      group)
    learner.features = features
    learner.begin('core')
    losses, times = [], []
    for step in range(arguments.steps):
        began = time.perf_counter()
        losses.append(learner.step(step / arguments.steps)['loss'])
        times.append(time.perf_counter() - began)
    if group.leads:
        arguments.write.write_text(json.dumps({'losses': losses, 'times': times}))
    group.leave()


def run(processes: int, arguments: argparse.Namespace, folder: Path) -> dict:
    """Return the losses and times of a training in so many processes."""
    path = folder / f'{processes}.json'
    start = [sys.executable] if processes == 1 else [
        sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node',
        str(processes)]
    subprocess.run([*start, __file__, *map(str, arguments.bags), '--interface',
                    str(arguments.interface), '--cache', str(arguments.cache), '--steps',
                    str(arguments.steps), '--shards', str(arguments.shards), '--write', str(path)],
                   check=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    return json.loads(path.read_text())


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    from liquid_sim.evaluate import append_rows, commit
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('bags', nargs='+', type=Path)
    parser.add_argument('--interface', type=Path, default=Path(__file__).parents[2] / 'config'
                        / 'manipulator.interface.yaml')
    parser.add_argument('--cache', type=Path, default=Path('runs/cache'))
    parser.add_argument('--steps', type=int, default=60)
    parser.add_argument('--shards', type=int, default=4)
    parser.add_argument('--processes', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--write', type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument('--append', type=Path, default=None)
    arguments = parser.parse_args(argv)
    if arguments.write is not None:
        learn(arguments)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        found = {n: run(n, arguments, Path(folder)) for n in arguments.processes}
    first = arguments.processes[0]
    about = {'unit': '1', 'n': arguments.steps, 'seeds': [0],
             'preset': 'full' if arguments.steps >= 60 else 'quick',
             'shards': arguments.shards, 'commit': commit(),
             'machine': f'{platform.machine()}, {os.cpu_count()} cores',
             'load': round(os.getloadavg()[0], 1), 'date': date.today().isoformat()}
    rows = []
    for count, values in found.items():
        took = np.array(values['times'][5:])
        rows.append({'figure': 'steps_per_second', 'task': 'core_stage',
                     'policy': f'{count} processes', 'value': float(1 / took.mean()), **about,
                     'unit': '1/s'})
        if count != first:
            known = np.array(found[first]['losses'])
            apart = np.abs(np.array(values['losses']) - known) / np.abs(known)
            rows += [{'figure': 'loss_difference', 'task': 'core_stage', 'against':
                      f'{first} processes', 'policy': f'{count} processes',
                      'value': float(apart.max()), **about},
                     {'figure': 'speedup', 'task': 'core_stage', 'against': f'{first} processes',
                      'policy': f'{count} processes',
                      'value': float(np.mean(found[first]['times'][5:]) / took.mean()), **about}]
    for row in rows:
        print(f'{row["policy"]:<14}{row["figure"]:<20}{row["value"]:.3g} {row["unit"]}')
    if arguments.append is not None:
        arguments.append.unlink(missing_ok=True)
        append_rows(arguments.append, rows)
    return 0


if __name__ == '__main__':
    sys.exit(main())
