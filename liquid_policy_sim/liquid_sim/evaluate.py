"""Count how many parts a policy picks, in many simulated episodes at once."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import as_completed
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from tqdm import tqdm

from liquid_policy.command import command
from liquid_policy.interface import load_interface
from liquid_sim import conveyor, drivers, scene
from liquid_sim.rollout import Outcome, run_episode
from liquid_trainer.processes import worker_processes

PARTS_PER_EPISODE = 10


@dataclass(frozen=True)
class Job:
    """
    One episode.

    :param policy: `expert` or the path of a checkpoint.
    :param conditions: one of `conveyor.CONDITIONS`.
    :param seed: of the episode.
    :param parts: how many.
    :param interface: path of the interface file.
    """

    policy: str
    conditions: str
    seed: int
    parts: int
    interface: Path


def load_driver(sim: conveyor.ConveyorSim, checkpoint: Path) -> drivers.PolicyDriver:
    """Return a driver for the exported policy of a checkpoint."""
    from liquid_policy.checkpoint import load_checkpoint
    return drivers.PolicyDriver(sim, load_checkpoint(checkpoint))


def make_driver(sim: conveyor.ConveyorSim, policy: str) -> drivers.Driver:
    """Return the driver that a command line names: `expert`, or a checkpoint's path."""
    return drivers.ExpertDriver(sim) if policy == 'expert' else load_driver(sim, Path(policy))


def run(job: Job) -> Outcome:
    """Run one episode in this process."""
    sim = conveyor.ConveyorSim(getattr(conveyor, job.conditions)(), job.seed)
    try:
        driver = make_driver(sim, job.policy)
        safety = drivers.Safety(load_interface(job.interface))
        return run_episode(sim, driver, safety, job.seed, job.parts)
    finally:
        sim.close()


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """
    Return the 95 % confidence interval of a success rate.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, 1927.

    :raises ValueError: without a trial.
    """
    if trials < 1:
        raise ValueError(f'trials: expected 1 or more, got {trials}')
    rate = successes / trials
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * np.sqrt(
        rate * (1 - rate) / trials + z * z / (4 * trials**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def jobs_of(policy, conditions, parts, seeds, interface) -> list[Job]:
    """Return the episodes that make up `parts` parts for each seed."""
    sizes = [PARTS_PER_EPISODE] * (parts // PARTS_PER_EPISODE)
    if parts % PARTS_PER_EPISODE:
        sizes.append(parts % PARTS_PER_EPISODE)
    # far from the seeds of demonstrations, and never the same for two seeds
    return [Job(str(policy), conditions, 1_000_000 + 10_000 * seed + index, size, interface)
            for seed in seeds for index, size in enumerate(sizes)]


def run_all(jobs, processes: int, label: str) -> list[Outcome]:
    """Run episodes in parallel processes with a progress bar; in the order of the jobs."""
    outcomes: dict[int, Outcome] = {}
    with worker_processes(processes) as pool:
        futures = {pool.submit(run, job): job.seed for job in jobs}
        with tqdm(total=sum(job.parts for job in jobs), unit='part', desc=label,
                  disable=None) as progress:
            for future in as_completed(futures):
                outcome = future.result()
                outcomes[futures[future]] = outcome
                progress.update(outcome.seen)
                seen = sum(o.seen for o in outcomes.values())
                picked = sum(o.picked for o in outcomes.values())
                progress.set_postfix_str(f'picked {picked / max(seen, 1):.1%}')
    return [outcomes[job.seed] for job in jobs]


def commit() -> str:
    """Return the checkout's commit, or `unknown`."""
    result = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], capture_output=True,
                            text=True, cwd=Path(__file__).parent, check=False)
    return result.stdout.strip() or 'unknown'


def rows_of(outcomes: list[Outcome], name: str, conditions: str, seeds) -> list[dict]:
    """Return the figures of an evaluation, as JSON lines are written."""
    seen = sum(o.seen for o in outcomes)
    picked = sum(o.picked for o in outcomes)
    low, high = wilson(picked, seen)
    about = {
        'task': conditions, 'policy': name, 'seeds': list(seeds),
        'preset': 'full' if seen >= 200 * len(seeds) else 'quick',
        'commit': commit(), 'machine': f'{platform.machine()}, {os.cpu_count()} cores',
        'date': date.today().isoformat(),
    }
    rows = [{'figure': 'success', 'value': picked / seen, 'low': low, 'high': high,
             'unit': '1', 'n': seen, **about}]
    errors = np.array([e for o in outcomes for e in o.errors])
    if len(errors):
        # episodes, not ticks, are independent
        means = np.array([np.mean(o.errors) for o in outcomes if o.errors])
        half = 1.96 * means.std(ddof=1) / np.sqrt(len(means)) if len(means) > 1 else np.nan
        rows.append({'figure': 'pose_error', 'value': float(errors.mean()),
                     'low': float(means.mean() - half), 'high': float(means.mean() + half),
                     'unit': 'm', 'n': len(errors), **about})
    ticks = sum(o.ticks for o in outcomes)
    interventions = sum(o.interventions for o in outcomes)
    low, high = wilson(interventions, ticks)
    rows.append({'figure': 'interventions', 'value': interventions / ticks, 'low': low,
                 'high': high, 'unit': '1', 'n': ticks, **about})
    return rows


def table(outcomes: list[Outcome], seeds, parts: int) -> str:
    """Return the figures as text: per seed, by speed, by mass, and all together."""
    lines = []
    per_seed = len(outcomes) // len(seeds)
    for index, seed in enumerate(seeds):
        chosen = outcomes[index * per_seed:(index + 1) * per_seed]
        lines.append(_line(f'seed {seed}', [d for o in chosen for d in o.details]))
    details = [d for o in outcomes for d in o.details]
    for key, unit, edges in (('speed', 'm/s', (0, 0.08, 0.12, 0.16, 0.20, 0.26)),
                             ('mass', 'kg', (0, 0.15, 0.5, 1.0, 1.6))):
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            group = [d for d in details if low <= d[key] < high]
            if group:
                lines.append(_line(f'{key} {low:.2f} to {high:.2f} {unit}', group))
    lines.append(_line('all', details))
    errors = [e for o in outcomes for e in o.errors]
    if errors:
        lines.append(f'part position error   median {1e3 * np.median(errors):.1f} mm, '
                     f'p95 {1e3 * np.percentile(errors, 95):.1f} mm')
    seconds = sum(o.seconds for o in outcomes)
    lines.append(f'{seconds:.0f} s simulated, {seconds / max(len(details), 1):.1f} s per part, '
                 f'safety changed {sum(o.interventions for o in outcomes)} of '
                 f'{sum(o.ticks for o in outcomes)} proposals')
    return '\n'.join(lines)


def _line(name, details) -> str:
    picked = sum(d['picked'] for d in details)
    low, high = wilson(picked, len(details))
    return (f'{name:<22}{picked:>4} of {len(details):<4} picked  '
            f'{picked / len(details):6.1%}  (95 %: {low:.1%} to {high:.1%})')


def policy_name(policy: str) -> str:
    """Return `expert` or the checkpoint's `core+head`."""
    if policy == 'expert':
        return 'expert'
    from liquid_policy.checkpoint import load_checkpoint
    from liquid_policy.settings import PolicySettings
    return PolicySettings.from_dict(load_checkpoint(Path(policy)).settings).name


@command('evaluate')
def main(argv=None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog='evaluate', description=__doc__)
    parser.add_argument('policy', help='`expert` or a checkpoint (.safetensors)')
    parser.add_argument('--conditions', choices=conveyor.CONDITIONS,
                        default='unseen')
    parser.add_argument('--parts', type=int, default=200, help='per seed')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--interface', type=Path, default=scene.find_interface())
    parser.add_argument('--processes', type=int, default=os.cpu_count() or 1)
    parser.add_argument('--append', type=Path, default=None,
                        help='JSON lines file the figures are put into')
    parser.add_argument('--card', action='store_true',
                        help="write the figures into the checkpoint's model card too")
    arguments = parser.parse_args(argv)
    name = policy_name(arguments.policy)
    jobs = jobs_of(arguments.policy, arguments.conditions, arguments.parts, arguments.seeds,
                   arguments.interface)
    outcomes = run_all(jobs, arguments.processes, name)
    print(f'{name}, {arguments.conditions} belt speeds and masses')
    print(table(outcomes, arguments.seeds, arguments.parts))
    rows = rows_of(outcomes, name, arguments.conditions, arguments.seeds)
    if arguments.append is not None:
        append_rows(arguments.append, rows)
    if arguments.card and arguments.policy != 'expert':
        note_in_card(Path(arguments.policy), rows)
    return 0


def append_rows(path: Path, rows: list[dict]) -> None:
    """Add figures to a JSON lines file; all earlier ones of the same policy and task go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    known = [json.loads(line) for line in lines]
    new = {(row['task'], row['policy']) for row in rows}
    kept = [row for row in known if (row['task'], row['policy']) not in new]
    path.write_text(''.join(json.dumps(row) + '\n' for row in kept + rows))


def note_in_card(checkpoint: Path, rows: list[dict]) -> None:
    """Write figures into a checkpoint's model card; weights and version stay."""
    from liquid_policy.checkpoint import load_checkpoint
    loaded = load_checkpoint(checkpoint)
    loaded.card['evaluation'] = rows
    loaded.save(checkpoint)


if __name__ == '__main__':
    sys.exit(main())
