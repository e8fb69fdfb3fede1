"""
Learn and count policies against each other: one backbone, the same data, inputs and budget.

Example: `benchmark --task push_t_state --data pusht_cchi_v7_replay.zarr --preset quick`. It can be
killed and started again at any moment: what is finished is not done twice, and a training goes on
where it stopped. `--preset full` asks every question with three seeds and takes many hours;
`--questions`, `--seeds`, `--steps` and `--episodes` choose from it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
import time
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from liquid_policy.checkpoint import load_checkpoint
from liquid_policy.command import command
from liquid_policy.execution import Executor
from liquid_policy.export import to_policy
from liquid_policy.files import write_atomically
from liquid_policy.runtime import PolicyRuntime
from liquid_sim import evaluate_task, train_task
from liquid_sim.benchmark.offline import offline_scores
from liquid_sim.benchmark.page import write_report
from liquid_sim.benchmark.rows import Measured, rows_of
from liquid_sim.benchmark.trials import PRESETS, QUESTIONS, Preset, Trial, trials
from liquid_sim.evaluate import append_rows
from liquid_sim.tasks.registry import NAMES, find_task
from liquid_trainer.page import text
from liquid_trainer.processes import worker_processes
from liquid_trainer.train import keep_memory

RESULT = 'result.json'
_CHUNKS = 400               # plans timed per policy
_DIE_WITH_PARENT = 1        # PR_SET_PDEATHSIG, linux/prctl.h


@dataclass(frozen=True)
class Job:
    """
    One policy: a trial with one seed.

    :param task: name.
    :param data: published demonstrations.
    :param trial: what is learned.
    :param seed: of learning.
    :param preset: how much is done.
    :param folder: of this job alone.
    """

    task: str
    data: Path
    trial: Trial
    seed: int
    preset: Preset
    folder: Path

    @property
    def steps(self) -> int:
        """Steps of learning."""
        return self.preset.steps * self.trial.longer

    def arguments(self) -> argparse.Namespace:
        """Return the command line of its training."""
        trial = self.trial
        return train_task.parse_arguments([
            '--task', self.task, '--data', str(self.data), '--core', trial.core, '--head',
            trial.head, '--share', str(trial.share), '--seed', str(self.seed), '--output',
            str(self.folder), '--quiet', '--set', f'learning.steps={self.steps}',
            *trial.all_settings])


def learn(job: Job) -> Path:
    """Learn a policy, or go on with it, or find it finished; return its checkpoint."""
    checkpoint = job.folder / train_task.CHECKPOINT
    if not checkpoint.exists():
        train_task.prepare(job.arguments(), (job.folder / train_task.RESUME).exists()).run()
    return checkpoint


def count(job: Job, path: Path) -> list[dict[str, Any]]:
    """Return how each way of following the policy went: counts, and every episode's score."""
    checkpoint, task = load_checkpoint(path), find_task(job.task)
    environment, found = task.environment(), []
    try:
        for way in job.trial.ways:
            executor = Executor.of(checkpoint, evaluate_task.execution_of(checkpoint, way.replan))
            delivery = evaluate_task.Delivery(way.lost, way.elapsed_known)
            episodes = [evaluate_task.run_episode(
                environment, executor, seed, task.steps, 1.0 / task.interface.rate,
                delivery=delivery)
                for seed in evaluate_task.seeds_of(job.preset.episodes, [job.seed])]
            found.append({'way': asdict(way), 'episodes': len(episodes),
                          'successes': sum(e.success for e in episodes),
                          'scores': [round(e.score, 4) for e in episodes]})
    finally:
        environment.close()
    return found


def held_out_scores(job: Job, path: Path) -> dict[str, float]:
    """Return the offline scores on the episodes that no share of the data contains."""
    arguments = job.arguments()
    settings = train_task.learning_settings(
        train_task.parse_settings(arguments.set)['learning'], job.seed)
    _, held = train_task.read_episodes(find_task(job.task), job.data, settings)
    if held is None:
        return {}
    return offline_scores(to_policy(load_checkpoint(path)), held, settings.context)


def measure(job: Job) -> dict[str, Any]:
    """Learn and measure one policy; a finished one is read from its folder."""
    wanted = {'trial': asdict(job.trial), 'seed': job.seed, 'task': job.task,
              'steps': job.steps, 'episodes': job.preset.episodes}
    wanted = json.loads(json.dumps(wanted))
    path = job.folder / RESULT
    if path.exists():
        known = json.loads(path.read_text())
        if known['wanted'] == wanted:
            return known
    torch.set_num_threads(1)
    keep_memory()
    checkpoint = learn(job)
    card = load_checkpoint(checkpoint).card
    result = {'wanted': wanted, 'checkpoint': str(checkpoint), 'policy': card['policy'],
              'parameters': card['parameters'], 'seconds': card['seconds_of_training'],
              'learned_from': card['episodes'], 'offline': held_out_scores(job, checkpoint),
              'ways': count(job, checkpoint)}
    write_atomically(path, json.dumps(result).encode())
    return result


def plan_times(checkpoints: dict[str, Path], rounds: int = _CHUNKS) -> dict[str, np.ndarray]:
    """
    Return how long a plan takes, side by side: every policy once per round [s], `(rounds,)`.

    :param checkpoints: by name.
    """
    loaded = {name: load_checkpoint(path) for name, path in checkpoints.items()}
    runtimes = {name: PolicyRuntime(checkpoint) for name, checkpoint in loaded.items()}
    sizes = {name: checkpoint.interface.vector_size for name, checkpoint in loaded.items()}
    rng = np.random.default_rng(0)
    states = {name: runtime.initial_state() for name, runtime in runtimes.items()}
    times: dict[str, list[float]] = {name: [] for name in runtimes}
    for index in range(-20, rounds):
        for name, runtime in runtimes.items():
            vector = rng.normal(size=sizes[name]).astype(np.float32)
            began = time.perf_counter()
            states[name], _ = runtime.step(np.zeros(0, np.float32), vector, 0.1, states[name])
            if index >= 0:
                times[name].append(time.perf_counter() - began)
    return {name: np.array(found) for name, found in times.items()}


def end_with_parent() -> None:
    """End this process when its parent is killed: it would go on and write where others do."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)


def run(jobs: list[Job], processes: int) -> list[dict[str, Any]]:
    """Do jobs in parallel, one processor thread each, with a bar; in the order given."""
    found: dict[int, dict[str, Any]] = {}
    # spawn: a forked process would inherit torch's threads, which do not survive a fork.
    with worker_processes(processes, mp_context=get_context('spawn'),
                          initializer=end_with_parent) as pool, tqdm(
            total=len(jobs), unit='policy', disable=None) as bar:
        futures = {pool.submit(measure, job): index for index, job in enumerate(jobs)}
        for future in as_completed(futures):
            index = futures[future]
            result = found[index] = future.result()
            first = result['ways'][0]
            bar.write(f'{jobs[index].trial.label}, seed {jobs[index].seed}: '
                      f'{first["successes"]} of {first["episodes"]}')
            bar.update()
    return [found[index] for index in range(len(jobs))]


def slug(label: str) -> str:
    """Return a label as the name of a folder."""
    return ''.join(c if c.isalnum() or c in '.-+' else '_' for c in label)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog='benchmark', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--task', required=True, choices=NAMES)
    parser.add_argument('--data', required=True, type=Path, help='published demonstrations')
    parser.add_argument('--preset', choices=PRESETS, default='quick')
    parser.add_argument('--scale', type=float, default=1.0,
                        help="share of the preset's steps and episodes")
    parser.add_argument('--questions', nargs='+', choices=QUESTIONS, help='only these')
    parser.add_argument('--labels', nargs='+', help='only trials of these names')
    parser.add_argument('--seeds', nargs='+', type=int, help='only these')
    parser.add_argument('--steps', type=int, help='of learning')
    parser.add_argument('--episodes', type=int, help='per seed')
    parser.add_argument('--folder', type=Path, default=Path('runs/benchmark'),
                        help='for trainings, figures.jsonl and report.html')
    parser.add_argument('--processes', type=int, default=os.cpu_count() or 1)
    parser.add_argument('--append', type=Path, help='JSON lines file the figures are put into')
    return parser.parse_args(argv)


def preset_of(arguments: argparse.Namespace) -> Preset:
    """Return the preset, with what the command line changes."""
    preset = PRESETS[arguments.preset].scaled(arguments.scale)
    given = {'steps': arguments.steps, 'episodes': arguments.episodes,
             'seeds': arguments.seeds and tuple(arguments.seeds),
             'questions': arguments.questions and tuple(arguments.questions)}
    return replace(preset, **{name: value for name, value in given.items() if value})


def jobs_of(arguments: argparse.Namespace, preset: Preset) -> list[Job]:
    """
    Return what is to be done.

    :raises ValueError: if a label is unknown.
    """
    chosen = trials(preset.questions)
    if arguments.labels:
        unknown = set(arguments.labels) - {trial.label for trial in chosen}
        if unknown:
            raise ValueError(f'--labels: expected some of '
                             f'{", ".join(repr(t.label) for t in chosen)}, came {unknown.pop()!r}')
        chosen = [trial for trial in chosen if trial.label in arguments.labels]
    return [Job(arguments.task, arguments.data, trial, seed, preset,
                arguments.folder / arguments.task / f'{slug(trial.label)}-{seed}')
            for seed in preset.seeds for trial in chosen]


@command('benchmark', 'stopped; the same command goes on')
def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when the report was written."""
    arguments = parse_arguments(argv)
    preset = preset_of(arguments)
    jobs = jobs_of(arguments, preset)
    results = run(jobs, arguments.processes)
    measured = [Measured(job.trial, job.seed, result)
                for job, result in zip(jobs, results, strict=True)]
    first = {m.trial.label: Path(m.result['checkpoint']) for m in reversed(measured)}
    rows = rows_of(arguments.task, measured, plan_times(first), arguments.preset)
    figures = arguments.folder / 'figures.jsonl'
    append_rows(figures, rows)
    if arguments.append is not None:
        append_rows(arguments.append, rows)
    known = [json.loads(line) for line in figures.read_text().splitlines()]
    blocks = write_report(known, arguments.folder / 'report.html')
    print(text(blocks))
    print(f'report: {arguments.folder / "report.html"}\nfigures: {figures}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
