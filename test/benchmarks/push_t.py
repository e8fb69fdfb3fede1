"""
Which head pushes the T best, on one backbone, with the same data, inputs and budget?

Learns every head from the published human demonstrations and counts successes in fresh episodes:

    docker/in_environment.sh python3 test/benchmarks/push_t.py --data pusht_cchi_v7_replay.zarr

`--preset quick` takes minutes and says nothing but that everything runs; `--preset full` takes
hours. Both can be killed and started again: what is finished is not done twice.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

import torch

from liquid_policy.checkpoint import load_checkpoint
from liquid_sim import evaluate_task, train_task
from liquid_sim.evaluate import append_rows
from liquid_trainer.train import keep_memory

RESULTS = Path(__file__).parent / 'results' / 'push_t.jsonl'
# The trunk, the core and the learning are the same; so are the samplers' networks.
BACKBONE = ['head.hidden=256', 'head.layers=3']
HEADS = {
    'mixture': ['head.components=8'],
    'deterministic': [],
    'imle': ['head.samples=8'],
    'flow': ['head.steps=1', 'head.samples=8'],
    'diffusion': ['head.network=mlp', 'head.schedule=ddim', 'head.steps=10', 'head.samples=1'],
}


@dataclasses.dataclass(frozen=True)
class Preset:
    """
    How much is done.

    :param steps: of learning.
    :param seeds: of learning.
    :param episodes: fresh ones, for each seed.
    :param replans: steps followed of a plan; the first counts, the others are named after it.
    """

    steps: int
    seeds: tuple[int, ...]
    episodes: int
    replans: tuple[int, ...]


PRESETS = {'quick': Preset(30, (0,), 4, (8,)),
           'full': Preset(20000, (0, 1, 2), 500, (8, 1, 2, 4))}


def train(task: str, data: Path, head: str, preset: Preset, seed: int, folder: Path) -> Path:
    """Learn one policy, or go on with it, or find it finished; return its checkpoint."""
    output = folder / f'{task}_{head}_{preset.steps}_{seed}'
    arguments = train_task.parse_arguments([
        '--task', task, '--data', str(data), '--head', head, '--output', str(output),
        '--seed', str(seed), '--set', f'learning.steps={preset.steps}', *BACKBONE, *HEADS[head]])
    checkpoint = output / train_task.CHECKPOINT
    if not checkpoint.exists():
        train_task.prepare(arguments, resume=(output / train_task.RESUME).exists()).run()
    return checkpoint


def evaluate(checkpoints: list[Path], preset: Preset, replan: int, processes: int) -> list[dict]:
    """Return the figures of policies that differ in nothing but the seed."""
    episodes, last = [], load_checkpoint(checkpoints[-1])
    execution = evaluate_task.execution_of(last, replan)
    for seed, path in zip(preset.seeds, checkpoints, strict=True):
        episodes += evaluate_task.run_all(
            path, execution, evaluate_task.seeds_of(preset.episodes, [seed]), processes,
            f'{last.card["policy"]}, replan {replan}')
    rows = evaluate_task.rows_of(episodes, last, execution, list(preset.seeds))
    if replan == preset.replans[0]:
        return rows
    return [{**row, 'figure': f'{row["figure"]}_replan{replan}'} for row in rows]


def main() -> None:
    """Learn, evaluate, print, and with --write keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True, help='published demonstrations')
    parser.add_argument('--task', default='push_t_state')
    parser.add_argument('--preset', choices=PRESETS, default='quick')
    parser.add_argument('--heads', nargs='+', choices=HEADS, default=list(HEADS))
    parser.add_argument('--folder', type=Path, default=Path('runs/push_t_benchmark'))
    parser.add_argument('--processes', type=int, default=os.cpu_count() or 1)
    parser.add_argument('--write', action='store_true', help='keep the figures')
    options = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    preset = PRESETS[options.preset]
    for head in options.heads:
        checkpoints = [train(options.task, options.data, head, preset, seed, options.folder)
                       for seed in preset.seeds]
        for replan in preset.replans:
            rows = evaluate(checkpoints, preset, replan, options.processes)
            for row in rows:
                row['preset'] = options.preset
                print(f'{row["policy"]:>24} {row["figure"]:<18} {row["value"]:.3f} '
                      f'({row["low"]:.3f} to {row["high"]:.3f}), n {row["n"]}')
            if options.write:
                append_rows(RESULTS, rows)


if __name__ == '__main__':
    main()
