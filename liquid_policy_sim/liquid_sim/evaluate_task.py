"""
Count how often a policy does a task, in many fresh episodes, and film a few of them.

Example: `evaluate_task runs/push_t/checkpoint.safetensors --episodes 500 --replan 8`.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np
from tqdm import tqdm

from liquid_policy.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from liquid_policy.command import command
from liquid_policy.execution import ExecutionSettings, Executor
from liquid_policy.runtime import EncoderRuntime
from liquid_sim.evaluate import append_rows, commit, wilson
from liquid_sim.tasks.registry import find_task
from liquid_sim.tasks.task import Task
from liquid_trainer.processes import worker_processes

_FRESH = 1_000_000      # first seed of an evaluation: far from those of anything learned
_BLOCK = 10             # episodes that one process takes at a time


@dataclass(frozen=True)
class Episode:
    """
    How an episode went.

    :param seed: of its start.
    :param success: whether the task was done.
    :param score: the largest of all steps.
    :param steps: until it was done, or the longest allowed.
    """

    seed: int
    success: bool
    score: float
    steps: int


@dataclass(frozen=True)
class Delivery:
    """
    Which observations reach the policy.

    :param lost: share that never arrives; the first always does.
    :param elapsed_known: whether the policy is told the time since the last one; otherwise it is
        told one period, as if none were missing.
    """

    lost: float = 0.0
    elapsed_known: bool = True

    def __post_init__(self):
        if not 0.0 <= self.lost < 1.0:
            raise ValueError(f'lost: expected 0 to below 1, came {self.lost}')


@dataclass(frozen=True)
class Block:
    """
    Episodes for one process.

    :param checkpoint: path.
    :param execution: how plans are followed.
    :param seeds: of the episodes.
    :param delivery: what is lost.
    """

    checkpoint: Path
    execution: ExecutionSettings
    seeds: tuple[int, ...]
    delivery: Delivery = Delivery()


def execution_of(checkpoint: Checkpoint, replan: int, context: int | None = None,
                 blend: int = 0, threshold: float = 1.0) -> ExecutionSettings:
    """Return how to follow a checkpoint's plans; by default with the context it learned with."""
    if context is None:
        context = int(checkpoint.card.get('context', 0))
    return ExecutionSettings(replan, context, blend, threshold)


def eyes_of(checkpoint: Checkpoint, task: Task) -> EncoderRuntime | None:
    """Return what makes features of pictures; None for a task without a camera."""
    return EncoderRuntime(checkpoint) if task.pictures is not None else None


def features_of(environment, eyes: EncoderRuntime | None) -> np.ndarray:
    """Return the features of what the environment's camera sees now; none without one."""
    if eyes is None:
        return np.zeros(0, np.float32)
    color = environment.image()
    return eyes.encode(color, np.zeros(color.shape[:2], np.float32))


def run_episode(environment, executor: Executor, seed: int, steps: int, period: float,
                pictures: list | None = None, delivery: Delivery | None = None,
                eyes: EncoderRuntime | None = None) -> Episode:
    """
    Run one episode.

    :param steps: longest allowed.
    :param period: of the control clock [s].
    :param pictures: every step's picture is added to it.
    :param delivery: what is lost; nothing when left out.
    :param eyes: make features of what the camera sees.
    """
    delivery = delivery or Delivery()
    vector, best = environment.reset(seed), 0.0
    executor.reset(seed)
    arrives = np.random.default_rng((seed, 1)).random(steps) >= delivery.lost
    arrives[0], since = True, 0
    for step in range(1, steps + 1):
        since += 1
        if arrives[step - 1]:
            told = since * period if delivery.elapsed_known else period
            action, since = executor.act(features_of(environment, eyes), vector, told), 0
        else:
            action = executor.coast()
        outcome = environment.step(action)
        vector, best = outcome.vector, max(best, outcome.score)
        if pictures is not None:
            pictures.append(environment.picture())
        if outcome.success:
            return Episode(seed, True, best, step)
    return Episode(seed, False, best, steps)


def run(block: Block) -> list[Episode]:
    """Run a block of episodes in this process."""
    checkpoint = load_checkpoint(block.checkpoint)
    task = find_task(checkpoint.card['task'])
    environment, executor = task.environment(), Executor.of(checkpoint, block.execution)
    eyes = eyes_of(checkpoint, task)
    try:
        return [run_episode(environment, executor, seed, task.steps, 1.0 / task.interface.rate,
                            delivery=block.delivery, eyes=eyes) for seed in block.seeds]
    finally:
        environment.close()


def run_all(checkpoint: Path, execution: ExecutionSettings, seeds: list[int], processes: int,
            label: str, delivery: Delivery | None = None) -> list[Episode]:
    """Run episodes in parallel processes with a progress bar; in the order of the seeds."""
    blocks = [Block(checkpoint, execution, tuple(seeds[i:i + _BLOCK]), delivery or Delivery())
              for i in range(0, len(seeds), _BLOCK)]
    found: dict[int, Episode] = {}
    with worker_processes(processes) as pool, tqdm(
            total=len(seeds), unit='episode', desc=label, disable=None) as bar:
        for future in as_completed([pool.submit(run, block) for block in blocks]):
            episodes = future.result()
            found |= {episode.seed: episode for episode in episodes}
            bar.update(len(episodes))
            done = list(found.values())
            bar.set_postfix_str(f'success {np.mean([e.success for e in done]):.1%}, '
                                f'score {np.mean([e.score for e in done]):.3f}')
    return [found[seed] for seed in seeds]


def seeds_of(episodes: int, seeds: list[int]) -> list[int]:
    """Return the starts' seeds: `episodes` for each seed, never the same for two."""
    if not 0 < episodes <= 10_000:
        raise ValueError(f'episodes: expected 1 to 10000, came {episodes}')
    return [_FRESH + 10_000 * seed + index for seed in seeds for index in range(episodes)]


def rows_of(episodes: list[Episode], checkpoint: Checkpoint, execution: ExecutionSettings,
            seeds: list[int], delivery: Delivery | None = None) -> list[dict]:
    """Return the figures of an evaluation, as JSON lines are written."""
    card = checkpoint.card
    task = find_task(card['task'])
    count, won = len(episodes), sum(e.success for e in episodes)
    scores = np.array([e.score for e in episodes])
    half = 1.96 * scores.std(ddof=1) / np.sqrt(count) if count > 1 else float('nan')
    low, high = wilson(won, count)
    about = {
        'task': card['task'], 'policy': card['policy'], 'n': count, 'seeds': seeds,
        'preset': 'full' if count >= 500 else 'quick', 'commit': commit(),
        'machine': f'{platform.machine()}, {os.cpu_count()} cores',
        'date': date.today().isoformat(),
        'execution': asdict(execution) | asdict(delivery or Delivery()),
        'parameters': card['parameters'], 'training_steps': card['steps_of_training'],
        'training_seed': card['learning']['seed'], 'checkpoint': checkpoint.version}
    return [
        {'figure': 'success', 'value': won / count, 'low': low, 'high': high, 'unit': '1',
         **about},
        {'figure': task.score, 'value': float(scores.mean()), 'low': float(scores.mean() - half),
         'high': float(scores.mean() + half), 'unit': '1', **about}]


def film(checkpoint: Checkpoint, execution: ExecutionSettings, episodes: list[Episode],
         folder: Path) -> dict[Path, Episode]:
    """
    Run the best, the median and the worst episode again, filmed.

    Best are those done in the fewest steps, worst those with the smallest score. The start is
    the same; what follows may not be: a physics engine that numbers its shapes through the life
    of a process can solve the same contacts in another order.

    :param folder: `best.mp4`, `median.mp4` and `worst.mp4` are written here.
    :return: how the filmed episodes went, by file.
    """
    order = sorted(episodes, key=lambda e: (e.success, e.score if not e.success else -e.steps))
    chosen = {'worst': order[0], 'median': order[len(order) // 2], 'best': order[-1]}
    task = find_task(checkpoint.card['task'])
    environment, executor = task.environment(), Executor.of(checkpoint, execution)
    eyes = eyes_of(checkpoint, task)
    folder.mkdir(parents=True, exist_ok=True)
    filmed = {}
    try:
        for name, episode in chosen.items():
            pictures: list[np.ndarray] = []
            again = run_episode(environment, executor, episode.seed, task.steps,
                                1.0 / task.interface.rate, pictures, eyes=eyes)
            path = write_video(folder / f'{name}.mp4', pictures, task.interface.rate)
            filmed[path] = again
    finally:
        environment.close()
    return filmed


def write_video(path: Path, pictures: list[np.ndarray], rate: float) -> Path:
    """
    Write pictures as a video.

    :param pictures: uint8 `(height, width, 3)`, red first.
    :param rate: pictures per second.
    :raises OSError: if it cannot be written.
    """
    import cv2
    height, width = pictures[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'mp4v'), rate, (width, height))
    if not writer.isOpened():
        raise OSError(f'{path}: expected a place to write an mp4 to, and OpenCV with mp4v')
    for picture in pictures:
        writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


@command('evaluate_task')
def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog='evaluate_task', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', type=Path, help='made by train_task')
    parser.add_argument('--episodes', type=int, default=100, help='per seed')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--replan', type=int, default=8, help='steps followed of one plan')
    parser.add_argument('--context', type=int, default=None,
                        help='observations of a plan; as learned when left out, 0: all')
    parser.add_argument('--blend', type=int, default=0,
                        help='steps over which a new plan takes over')
    parser.add_argument('--threshold', type=float, default=1.0,
                        help='0 to 1: how soon the mode of the last plan is left')
    parser.add_argument('--lost', type=float, default=0.0,
                        help='share of the observations that never arrive')
    parser.add_argument('--elapsed-ignored', action='store_true',
                        help='do not tell the policy the time since the last observation')
    parser.add_argument('--processes', type=int, default=os.cpu_count() or 1)
    parser.add_argument('--append', type=Path, default=None,
                        help='JSON lines file the figures are put into')
    parser.add_argument('--videos', type=Path, default=None,
                        help='folder for films of the best, median and worst episode')
    arguments = parser.parse_args(argv)
    checkpoint = load_checkpoint(arguments.checkpoint)
    if 'task' not in checkpoint.card:
        raise CheckpointError(f'{arguments.checkpoint}: expected a checkpoint of train_task, '
                              'came one of another training')
    execution = execution_of(checkpoint, arguments.replan, arguments.context,
                             arguments.blend, arguments.threshold)
    delivery = Delivery(arguments.lost, not arguments.elapsed_ignored)
    Executor.of(checkpoint, execution)
    episodes = run_all(arguments.checkpoint, execution,
                       seeds_of(arguments.episodes, arguments.seeds), arguments.processes,
                       checkpoint.card['policy'], delivery)
    rows = rows_of(episodes, checkpoint, execution, arguments.seeds, delivery)
    for row in rows:
        print(f'{row["task"]} {row["policy"]} {row["figure"]:<9} {row["value"]:.3f} '
              f'(95 %: {row["low"]:.3f} to {row["high"]:.3f}, n {row["n"]})')
    steps = [e.steps for e in episodes if e.success]
    if steps:
        print(f'done after {np.median(steps):.0f} steps (median of those done)')
    if arguments.append is not None:
        append_rows(arguments.append, rows)
    if arguments.videos is not None:
        for path, episode in film(checkpoint, execution, episodes,
                                  arguments.videos).items():
            print(f'video: {path}: {"done" if episode.success else "not done"} after '
                  f'{episode.steps} steps, score {episode.score:.3f}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
