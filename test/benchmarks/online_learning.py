"""
What does learning on the robot give when conditions change, and what does it cost in old ones?

A policy drives the conveyor under conditions it was trained for; then the belt runs about twice
as fast as it ever did in training, with heavier parts than any it saw. The expert demonstrates
all the time and takes over where the policy is far off; the learner listens, and what it promotes
drives. Beside it the policy as shipped is asked the same on the same inputs. Learners without one
of their parts, and learners that are told nonsense, listen to the same recorded readings.

Cell and learner go in lock-step on simulated time, so it runs faster than real time and the load
of the machine changes nothing. A step is taken every 0.5 s of simulated time; how much of a core
that takes is measured as processor time and written beside the errors (`processor_share`).

`docker/in_environment.sh python3 test/benchmarks/online_learning.py --preset seeds --processes 2`:
five seeds, two minutes of change. `--preset ablation` and `--preset robust`: three of them again,
from their recorded readings. `--preset long`: two seeds, ten minutes of change, success before and
after. What was found is kept, so each goes on where it was broken off.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import torch

from liquid_policy.checkpoint import file_digest, load_checkpoint
from liquid_policy.files import write_atomically
from liquid_policy.interface import load_interface
from liquid_sim import drivers, scene
from liquid_sim.conveyor import ConveyorSettings, ConveyorSim
from liquid_sim.evaluate import commit, wilson
from liquid_sim.online_cell import Keeper, LearningCell, Log, Phase, Tape, on_belt, play
from liquid_sim.rollout import run_episode
from liquid_trainer.online.batch import answer_rows
from liquid_trainer.online.gate import GateSettings
from liquid_trainer.online.learner import resting_policy
from liquid_trainer.online.session import OnlineSession, SessionSettings, standing_of
from liquid_trainer.online.settings import LearnerSettings
from liquid_trainer.online.skills import read_skills, write_skills
from liquid_trainer.online.window import Window

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / 'results' / 'online_learning.jsonl'
SHIPPED = ROOT / 'liquid_policy_node' / 'checkpoints' / 'manipulator.safetensors'
OLD = ConveyorSettings()
# Twice the fastest belt and heavier than the heaviest part in training. On the speeds between
# (`unseen`) the shipped policy is as good as on those it saw, so they would show nothing.
NEW = ConveyorSettings(speeds=((0.42, 0.50),), masses=((1.5, 2.2),))
LEARNER = LearnerSettings()
TESTED = 6          # old cells that only `old_pose_error` is measured in
CELLS = range(5_000, 5_026)     # seeds of cells under old conditions
CELL_SECONDS = 20.0
VARIANTS = {
    'online': (LEARNER, GateSettings()),
    'online-replay': (replace(LEARNER, replay=0.0), GateSettings()),
    'online-consolidation': (replace(LEARNER, consolidation=0.0), GateSettings()),
    'online-gate': (LEARNER, GateSettings(enabled=False)),
    'online-refinement': (replace(LEARNER, refinement=0), GateSettings()),
    'online, noise': (LEARNER, GateSettings()),
    'online, NaN': (LEARNER, GateSettings()),
    'online, mislabelled': (LEARNER, GateSettings()),
}
PRESETS = {'quick': ((0, 1), 30.0, 60.0, 0, ('online',)),
           'seeds': ((10, 11, 12, 13, 14), 30.0, 120.0, 0, ('online',)),
           'ablation': ((10, 11, 12), 30.0, 120.0, 0, tuple(VARIANTS)[:5]),
           'robust': ((10, 11, 12), 30.0, 120.0, 0, ('online', *tuple(VARIANTS)[5:])),
           'long': ((5, 6), 30.0, 600.0, 100, ('online',))}
# After the change: what "after 30 s" and later means [s]. Half a minute is about a dozen parts.
# `calm`: before it.
SPANS = {'calm': (-30.0, 0.0), '30s': (30.0, 60.0), '60s': (60.0, 120.0), '300s': (300.0, 600.0)}


@dataclass(frozen=True)
class Job:
    """
    One seed.

    :param before: how long conditions are old [s].
    :param after: how long they are new [s].
    :param parts: to judge success by, per policy and task.
    :param keep: folder for what was found.
    """

    seed: int
    before: float
    after: float
    parts: int
    variants: tuple[str, ...]
    keep: Path


@dataclass
class Found:
    """
    What came of a seed, by variant.

    :param old: mean position error in old cells, of `frozen` and of what was in charge last [m].
    """

    seed: int
    logs: dict[str, Log]
    counts: dict[str, tuple[int, int, int]]
    steps: list[float]
    success: dict[str, tuple[int, int]]
    old: dict[str, float]
    share: dict[str, float]

    def save(self, path: Path) -> None:
        """Write it as JSON, so that a run that was broken off goes on."""
        write_atomically(path, json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, path: Path) -> Found:
        """Return what `save` wrote."""
        values = json.loads(path.read_text())
        values['logs'] = {name: Log(**log) for name, log in values['logs'].items()}
        return cls(**values)


def run_old_cell(seed: int) -> list[Window]:
    """Return every third window of a cell under old conditions, with the expert's help."""
    shipped, keeper = load_checkpoint(SHIPPED), Keeper()
    LearningCell(shipped, keeper, drivers.Safety(shipped.interface)).run(
        [Phase(OLD, CELL_SECONDS)], seed)
    # The first seconds are an empty belt.
    return [replace(window, episode=f'cell_{seed}') for window in keeper.windows[4::3]]


def keep_old_windows(folder: Path, processes: int) -> None:
    """Have windows of old conditions in two folders: `skills` to learn with, `tested`."""
    if (folder / 'tested').is_dir():
        return
    with ProcessPoolExecutor(processes) as pool:
        cells = list(pool.map(run_old_cell, CELLS))
    for name, some in (('skills', cells[TESTED:]), ('tested', cells[:TESTED])):
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_skills(folder / name, [window for cell in some for window in cell])


@torch.no_grad()
def old_error(path: Path, windows: list[Window]) -> float:
    """Return the mean position error of a policy on the later halves of windows [m]."""
    policy = resting_policy(load_checkpoint(path))
    half = len(windows[0].ticks) // 2
    ticks = np.stack([np.arange(half, 2 * half, 4)] * len(windows))
    told = policy.target_scaling.inverse(answer_rows(policy, windows, ticks).mean)[:, :3].numpy()
    part = np.concatenate([window.targets[half:2 * half:4, :3] for window in windows])
    belt = on_belt(part.T)
    return float(np.linalg.norm(told - part, axis=1)[belt].mean())


def spoil(tape: Tape, variant: str, seed: int) -> Tape:
    """
    Return readings as they come from worse sensors, or from a careless operator.

    `noise`: all inputs noisy, by a tenth of their scales. `NaN`: of every 10 s half a second in
    which sensors and tracker say NaN. `mislabelled`: a fifth of the demonstrated actions are
    drawn at random.
    """
    kind = variant.partition(', ')[2]
    if not kind:
        return tape
    random, shipped = np.random.default_rng(seed), load_checkpoint(SHIPPED)
    scales = {name: shipped.weights[f'{name}_scaling.scale'] for name in ('input', 'action')}
    center = shipped.weights['action_scaling.center']
    size = len(scales['input']) - 12
    spoiled = Tape()
    for reading in tape.readings:
        if kind == 'noise':
            more = 0.1 * scales['input'] * random.normal(size=len(scales['input']))
            reading = replace(
                reading, imu=reading.imu + more[size:size + 6],
                joints=reading.joints + more[size + 6:],
                features=None if reading.features is None
                else (reading.features + more[:size]).astype(np.float32))
        elif kind == 'NaN' and reading.time % 10.0 < 0.5:
            reading = replace(
                reading, imu=np.full(6, np.nan), part=np.full(4, np.nan),
                features=None if reading.features is None else reading.features * np.nan)
        elif kind == 'mislabelled' and random.random() < 0.2:
            reading = replace(reading, demonstration=center
                              + 2.0 * scales['action'] * random.normal(size=9))
        spoiled.readings.append(reading)
    return spoiled


def make_session(variant: str, folder: Path, skills: list[Window]) -> OnlineSession:
    """Return a learner that begins with the shipped policy and forgets what it wrote."""
    learner, gate = VARIANTS[variant]
    start = load_checkpoint(SHIPPED)
    return OnlineSession(standing_of(start, SHIPPED, file_digest(SHIPPED)), folder, learner, gate,
                         settings=SessionSettings(), skills=skills)


def time_steps(session: OnlineSession) -> list[float]:
    """Have the processor time of every optimisation step noted [s]."""
    times: list[float] = []
    step = session.learner.step

    def timed():
        spent = 0.0
        pieces = step()
        while True:
            began = time.thread_time()
            more = next(pieces, 'end')
            spent += time.thread_time() - began
            if more == 'end':
                break
            yield
        times.append(spent)
    session.learner.step = timed        # type: ignore[method-assign]
    return times


def run(job: Job) -> Found:
    """Run one seed, or return what was kept of it."""
    path = job.keep / f'seed_{job.seed}_{job.after:.0f}.json'
    recorded = path.with_suffix('.npz')
    found = Found.load(path) if path.exists() else Found(job.seed, {}, {}, [], {}, {}, {})
    interface = load_interface(scene.find_interface())
    shipped = load_checkpoint(SHIPPED)
    skills = read_skills(job.keep / 'skills')
    tested = read_skills(job.keep / 'tested')
    found.old['frozen'] = old_error(SHIPPED, tested)
    with tempfile.TemporaryDirectory() as folder:
        for variant in job.variants:
            if variant in found.logs:
                continue
            session = make_session(variant, Path(folder) / variant, skills)
            times = time_steps(session)
            began = time.process_time()
            if variant == 'online':
                cell = LearningCell(shipped, session, drivers.Safety(interface))
                log = cell.run([Phase(OLD, job.before), Phase(NEW, job.after)], job.seed)
                cell.tape.save(recorded)
            else:
                tape = spoil(Tape.load(recorded), variant, job.seed)
                log = play(tape, shipped, session)
                # All of a tape's processor time: learning, judging, exporting, and both policies.
                found.share[variant] = (time.process_time() - began) / (job.before + job.after)
            found.steps += times
            found.logs[variant] = log
            found.old[variant] = old_error(Path(session.running.path), tested)
            counts = session.counts
            found.counts[variant] = (counts.promotions, counts.refusals, counts.roll_backs)
            print(f'seed {job.seed} {variant}: {counts}', flush=True)
            for line in session.journal.recent:
                print(f'  {line["event"]}: {line["text"]}', flush=True)
            kept = path.with_name(f'{path.stem}_{variant}.safetensors')
            shutil.copyfile(session.running.path, kept)
            found.save(path)
    for name in ('frozen', *job.variants) if job.parts else ():
        model = SHIPPED if name == 'frozen' else path.with_name(f'{path.stem}_{name}.safetensors')
        for task, settings in (('seen', OLD), ('shifted', NEW)):
            if f'{name} {task}' not in found.success:
                found.success[f'{name} {task}'] = pick(model, settings, job)
                found.save(path)
    return found


def pick(path: Path, settings: ConveyorSettings, job: Job) -> tuple[int, int]:
    """Return how many parts a policy picks without any help, and of how many."""
    sim = ConveyorSim(settings, 3_000_000 + job.seed)
    try:
        outcome = run_episode(
            sim, drivers.PolicyDriver(sim, load_checkpoint(path)),
            drivers.Safety(load_interface(scene.find_interface())), 3_000_000 + job.seed,
            job.parts)
        return outcome.picked, outcome.seen
    finally:
        sim.close()


def between(log: Log, begin: float, end: float,
            middle: Callable[[np.ndarray], float] = np.mean) -> tuple[float, float]:
    """Return the mean or median error of the policy in charge and of the frozen one [m]."""
    times = np.array(log.times)
    inside = (times >= begin) & (times < end)
    if not inside.any():
        return float('nan'), float('nan')
    return (float(middle(np.array(log.errors)[inside])),
            float(middle(np.array(log.frozen)[inside])))


def interval(values: list[float]) -> dict:
    """Return mean and 95 % interval over seeds (Student's t; none for one seed)."""
    known = np.array([value for value in values if np.isfinite(value)])
    if len(known) < 2:
        return {'value': float(known.mean()) if len(known) else float('nan')}
    wide = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}.get(len(known), 2.0)
    half = wide * known.std(ddof=1) / np.sqrt(len(known))
    return {'value': float(known.mean()), 'low': float(known.mean() - half),
            'high': float(known.mean() + half)}


def rows_of(results: list[Found], jobs: list[Job], preset: str) -> list[dict]:
    """Return the figures as JSON lines are written."""
    about = {'seeds': [job.seed for job in jobs], 'preset': preset, 'commit': commit(),
             'machine': f'{platform.machine()}, {os.cpu_count()} cores',
             'date': date.today().isoformat()}
    job, rows = jobs[0], []
    for variant in job.variants:
        name = f'cfc-mixed+mixture {variant}'
        for span, (begin, end) in SPANS.items():
            for prefix, middle in (('', np.mean), ('median_', np.median)):
                pairs = [between(found.logs[variant], job.before + begin, job.before + end, middle)
                         for found in results if end <= job.after]
                if not pairs:
                    continue
                cut = interval([1.0 - now / frozen for now, frozen in pairs])
                rows.append({'figure': f'{prefix}pose_error_reduction_{span}', 'task': 'shifted',
                             'policy': name, 'against': 'cfc-mixed+mixture', **cut, 'unit': '1',
                             'n': len(pairs), **about})
        rows.append({'figure': 'old_pose_error', 'task': 'seen', 'policy': name,
                     **interval([found.old[variant] for found in results]), 'unit': 'm',
                     'n': len(results), 'against': 'cfc-mixed+mixture',
                     'frozen': results[0].old['frozen'], **about})
        if variant in results[0].share:
            rows.append({'figure': 'processor_share', 'task': 'training', 'policy': name,
                         **interval([found.share[variant] for found in results]), 'unit': '1',
                         'n': len(results), **about})
        for column, who in ((0, name), (1, f'cfc-mixed+mixture frozen beside {variant}')):
            for begin in np.arange(0.0, job.before + job.after, 15.0):
                errors = [between(found.logs[variant], begin, begin + 15.0)[column]
                          for found in results]
                rows.append({'figure': 'pose_error', 'task': 'shifted', 'policy': who,
                             **interval(errors), 'unit': 'm', 'n': len(errors),
                             'time': begin - job.before, **about})
        for index, figure in enumerate(('promotions', 'refusals', 'roll_backs')):
            rows.append({'figure': figure, 'task': 'shifted', 'policy': name,
                         **interval([float(found.counts[variant][index]) for found in results]),
                         'unit': '1', 'n': len(results), **about})
    steps = np.concatenate([found.steps for found in results])
    for figure, share in (('step_p50', 50), ('step_p99', 99)):
        rows.append({'figure': figure, 'task': 'training', 'policy': 'cfc-mixed+mixture online',
                     'value': float(np.percentile(steps, share)), 'unit': 's', 'n': len(steps),
                     **about})
    return rows + success_rows(results, about)


def success_rows(results: list[Found], about: dict) -> list[dict]:
    """Return success per policy and task, and what it lost on the old conditions."""
    rows, rates = [], {}
    for key in results[0].success:
        name, task = key.rsplit(' ', 1)
        picked, seen = (sum(found.success[key][part] for found in results) for part in (0, 1))
        low, high = wilson(picked, seen)
        rates[name, task] = picked / seen
        rows.append({'figure': 'success', 'task': task, 'policy': f'cfc-mixed+mixture {name}',
                     'value': picked / seen, 'low': low, 'high': high, 'unit': '1', 'n': seen,
                     **about})
    rows += [{'figure': 'old_skill_loss', 'task': 'seen', 'policy': f'cfc-mixed+mixture {name}',
              'against': 'cfc-mixed+mixture', 'value': rates['frozen', 'seen'] - rate,
              'unit': '1', 'n': len(results), **about}
             for (name, task), rate in rates.items() if task == 'seen' and name != 'frozen']
    return rows


def replace_rows(path: Path, rows: list[dict], preset: str) -> None:
    """Add figures to a JSON lines file; all earlier ones of the same preset go."""
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if json.loads(line)['preset'] != preset]
    path.write_text('\n'.join(kept + [json.dumps(row) for row in rows]) + '\n')


def draw(results: list[Found], job: Job, path: Path) -> None:
    """Plot the error over time, running and frozen, a thin line per seed."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(figsize=(8, 4.2))
    begins = np.arange(0.0, job.before + job.after, 10.0)
    middles = begins - job.before + 5.0
    for column, label, color in ((1, 'as shipped', '#999999'), (0, 'learning', '#1764ab')):
        curves = 1e3 * np.array([
            [between(found.logs['online'], begin, begin + 10.0)[column] for begin in begins]
            for found in results])
        axes.plot(middles, curves.T, color=color, alpha=0.3, linewidth=0.8)
        axes.plot(middles, np.nanmean(curves, 0), color=color, linewidth=2.0, label=label)
    axes.axvline(0.0, color='black', linewidth=0.8, linestyle=':')
    axes.set(xlabel='time since belt and parts changed [s]',
             ylabel='mean error of the part position [mm]', ylim=(0.0, None))
    axes.legend(frameon=False)
    axes.set_title(f'Belt twice as fast, parts heavier than in training; {len(results)} seeds',
                   fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--preset', choices=PRESETS, default='quick')
    parser.add_argument('--seeds', type=int, nargs='+', default=None)
    parser.add_argument('--after', type=float, default=None, help='seconds of change')
    parser.add_argument('--parts', type=int, default=None, help='to judge success by, per seed')
    parser.add_argument('--variants', nargs='+', choices=VARIANTS, default=None)
    parser.add_argument('--processes', type=int, default=1)
    parser.add_argument('--keep', type=Path, default=ROOT / 'runs' / 'online_learning',
                        help='folder for what was found; what is there is not run again')
    parser.add_argument('--append', type=Path, default=RESULTS)
    parser.add_argument('--picture', type=Path, default=None, help='to draw')
    arguments = parser.parse_args()
    seeds, before, after, parts, variants = PRESETS[arguments.preset]
    seeds = seeds if arguments.seeds is None else tuple(arguments.seeds)
    after = after if arguments.after is None else arguments.after
    parts = parts if arguments.parts is None else arguments.parts
    variants = variants if arguments.variants is None else ('online', *(
        name for name in arguments.variants if name != 'online'))
    keep_old_windows(arguments.keep, arguments.processes)
    jobs = [Job(seed, before, after, parts, variants, arguments.keep) for seed in seeds]
    began = time.monotonic()
    with ProcessPoolExecutor(arguments.processes) as pool:
        results = list(pool.map(run, jobs))
    rows = rows_of(results, jobs, arguments.preset)
    replace_rows(arguments.append, rows, arguments.preset)
    if arguments.picture is not None:
        draw(results, jobs[0], arguments.picture)
    for row in rows:
        if row['figure'] != 'pose_error':
            print(f'{row["policy"]:42s} {row["task"]:9s} {row["figure"]:26s} {row["value"]:.4g} '
                  f'{row["unit"]}')
    print(f'{time.monotonic() - began:.0f} s')


if __name__ == '__main__':
    main()
