"""
Does it help to leave out repetitions and standing about, and to choose by information?

Conveyor demonstrations, decoded; images as features of the shipped encoder, so that only core and
head are trained. Every arm is trained by the same number of steps from the same start and scored
free-running on episodes it has not seen, as they were recorded.

- `conveyor_injected`: half of the episodes, to which as many are added that repeat 6 of them
  (sensor noise is new), and every second one gets a pause of 3 to 6 s in which nothing moves.
  `all`: those; `curated`: what `curate` leaves of them; `random`: as many of them as it leaves,
  pauses and all; `clean`: the half as recorded, which no method knows.
- `conveyor_as_recorded`: half of the episodes, `curated` (`keep`) or at `random`, and `all`.

    python3 test/benchmarks/curation.py --bags runs/demos_b --write
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch

from liquid_policy.checkpoint import Checkpoint, load_checkpoint
from liquid_policy.export import to_policy
from liquid_policy.policy import Policy
from liquid_policy.runtime import EncoderRuntime
from liquid_trainer.bag_file import find_bags
from liquid_trainer.cache import DEPTH_UNIT, StoredEpisode, cached_episodes
from liquid_trainer.curate import CurationSettings, curate, track_of
from liquid_trainer.learner import Learner, fit_feature_scaling, fit_scaling
from liquid_trainer.scores import held_out_scores
from liquid_trainer.selection import cut, ticks_of
from liquid_trainer.settings import LearningSettings
from liquid_trainer.windows import Demonstrations

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / 'results' / 'curation.jsonl'
SHIPPED = ROOT / 'liquid_policy_node' / 'checkpoints' / 'manipulator.safetensors'
# Of a copy: joints [rad], gyroscope [rad/s] and accelerometer [m/s2] as these sensors have it, and
# features as a share of their spread.
JOINT_NOISE, GYRO_NOISE, FORCE_NOISE, FEATURE_NOISE = 1e-3, 0.002, 0.02, 0.02


@dataclass
class Demo:
    """An episode, the features of its images, and what it repeats."""

    episode: StoredEpisode
    features: np.ndarray


def features_of(episode: StoredEpisode, encoder: EncoderRuntime) -> np.ndarray:
    """Return the features of every image of an episode."""
    return np.array([encoder.encode(np.asarray(color), np.asarray(depth, np.float32) * DEPTH_UNIT)
                     for color, depth in zip(episode.colors, episode.depths, strict=True)])


def load_demos(bags: list[Path], checkpoint: Checkpoint, cache: Path) -> list[Demo]:
    """Return the bags' episodes; features are computed once and kept beside the cache."""
    kept = cache / 'curation'
    kept.mkdir(parents=True, exist_ok=True)
    encoder, found = EncoderRuntime(checkpoint), []
    for bag in bags:
        for episode in cached_episodes([bag], checkpoint.interface, cache, 1):
            path = kept / f'{checkpoint.version}_{episode.name}.npy'
            if not path.exists():
                np.save(path, features_of(episode, encoder))
            # In memory: a pause and a copy need their own arrays.
            whole = {name: np.asarray(getattr(episode, name)) for name in (
                'times', 'vectors', 'image_index', 'image_times', 'actions', 'targets')}
            found.append(Demo(dataclasses.replace(episode, **whole), np.load(path)))
    return found


def copy_of(demo: Demo, rng: np.random.Generator, number: int) -> Demo:
    """Return the demonstration as if it had been given again: same motion, other noise."""
    vectors = demo.episode.vectors.copy()
    vectors[:, :3] += GYRO_NOISE * rng.standard_normal(vectors[:, :3].shape)
    vectors[:, 3:6] += FORCE_NOISE * rng.standard_normal(vectors[:, 3:6].shape)
    vectors[:, 6:] += JOINT_NOISE * rng.standard_normal(vectors[:, 6:].shape)
    features = demo.features + FEATURE_NOISE * demo.features.std(0) * rng.standard_normal(
        demo.features.shape)
    return Demo(dataclasses.replace(demo.episode, name=f'{demo.episode.name}_again{number}',
                                    vectors=vectors), features.astype(np.float32))


def with_pause(demo: Demo, rng: np.random.Generator) -> Demo:
    """Return the demonstration with 3 to 6 s in it during which nothing moves."""
    episode = demo.episode
    at = int(rng.integers(len(episode.times) // 5, 4 * len(episode.times) // 5))
    ticks = round(rng.uniform(3.0, 6.0) * 100)
    tick = float(np.median(np.diff(episode.times)))

    def paused(values: np.ndarray, fill: np.ndarray) -> np.ndarray:
        return np.concatenate((values[:at], fill, values[at:])).astype(values.dtype)

    still = np.repeat(episode.vectors[at][None], ticks, 0)
    still[:, :3] += GYRO_NOISE * rng.standard_normal((ticks, 3))
    still[:, 3:6] += FORCE_NOISE * rng.standard_normal((ticks, 3))
    action = np.zeros((ticks, episode.actions.shape[1]))
    action[:, 6] = episode.actions[at, 6]       # the gripper holds what it holds
    times = np.concatenate((episode.times[:at], episode.times[at] + tick * np.arange(ticks),
                            episode.times[at:] + tick * ticks))
    images = episode.image_times.copy()
    images[images > episode.times[at]] += tick * ticks
    return Demo(dataclasses.replace(
        episode, times=times, vectors=paused(episode.vectors, still),
        image_index=paused(episode.image_index, np.full(ticks, episode.image_index[at])),
        image_times=images, actions=paused(episode.actions, action),
        targets=paused(episode.targets, np.repeat(episode.targets[at][None], ticks, 0))),
        demo.features)


def cut_demo(demo: Demo, begin: int, end: int) -> Demo:
    """Return a part of a demonstration."""
    index = demo.episode.image_index[begin:end]
    first, last = max(int(index.min()), 0), max(int(index.max()), 0) + 1
    if begin == 0 and end == len(demo.episode.times):
        first, last = 0, len(demo.features)
    return Demo(cut(demo.episode, begin, end), demo.features[first:last])


def chosen(demos: list[Demo], settings: CurationSettings) -> tuple[list[Demo], int]:
    """Return what `curate` leaves of demonstrations, and of how many episodes."""
    choices = curate([track_of(demo.episode, demo.episode.name) for demo in demos], settings)
    return [cut_demo(demo, begin, end) for demo, choice in zip(demos, choices, strict=True)
            for begin, end in ticks_of(demo.episode.times, choice.parts)], sum(
                bool(choice.parts) for choice in choices)


def fresh_policy(checkpoint: Checkpoint, seed: int) -> Policy:
    """Return the shipped encoder with a core and a head that have learned nothing."""
    trained = to_policy(checkpoint)
    torch.manual_seed(seed)
    policy = Policy(trained.settings)
    policy.encoder.load_state_dict(trained.encoder.state_dict())
    return policy


def train(demos: list[Demo], held: list[Demo], checkpoint: Checkpoint, seed: int,
          steps: int) -> dict[str, float]:
    """Train core and head by some steps and return the scores on the held-out episodes."""
    interface = checkpoint.interface
    data, unseen = (Demonstrations([demo.episode for demo in some], 1.0 / interface.rate)
                    for some in (demos, held))
    features, others = (np.concatenate([demo.features for demo in some])
                        for some in (demos, held))
    policy = fresh_policy(checkpoint, seed)
    fit_scaling(policy, data, interface.action_units, interface.target_units)
    fit_feature_scaling(policy, features)
    settings = LearningSettings(steps=(0, steps, 0), seed=seed, threads=1, core_batch=24,
                                core_window=0.8, average=0.98)
    learner = Learner(policy, data, settings)
    learner.features = features
    learner.begin('core')
    for step in range(steps):
        learner.step(step / steps)
    learner.finish()
    policy.eval()
    return held_out_scores(policy, unseen, others, interface.target_units)


def arms(demos: list[Demo], task: str, seed: int) -> dict[str, list[Demo]]:
    """Return what each arm learns from, in one draw."""
    rng = np.random.default_rng(seed)
    if task == 'conveyor_as_recorded':
        half = len(demos) // 2
        best, _ = chosen(demos, CurationSettings(keep=half, least_new=0.0))
        order = rng.permutation(len(demos))
        return {'all': demos, 'curated': best, 'random': [demos[i] for i in order[:half]]}
    clean = [demos[i] for i in rng.permutation(len(demos))[:len(demos) // 2]]
    repeats = [copy_of(clean[number % 6], rng, number) for number in range(len(clean))]
    every = clean + repeats
    paused = set(rng.permutation(len(every))[:len(every) // 2].tolist())
    every = [with_pause(demo, rng) if index in paused else demo
             for index, demo in enumerate(every)]
    best, count = chosen(every, CurationSettings())
    order = rng.permutation(len(every))
    return {'all': every, 'curated': best, 'random': [every[i] for i in order[:count]],
            'clean': clean}


def main() -> None:
    """Train, print, and write the figures if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--bags', type=Path, default=Path('runs/demos_b'),
                        help='conveyor demonstrations, made by `generate`')
    parser.add_argument('--cache', type=Path, default=Path('runs/cache'))
    parser.add_argument('--episodes', type=int, default=32)
    parser.add_argument('--held-out', type=int, default=6)
    parser.add_argument('--steps', type=int, default=150)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--tasks', nargs='+',
                        default=['conveyor_injected', 'conveyor_as_recorded'])
    parser.add_argument('--write', action='store_true', help=f'write {RESULTS.name}')
    options = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(SHIPPED)
    bags = find_bags([options.bags])[:options.episodes + options.held_out]
    demos = load_demos(bags, checkpoint, options.cache)
    learned, held = demos[:options.episodes], demos[options.episodes:]
    print(f'{len(learned)} episodes to learn from, {len(held)} held out', flush=True)
    finished: list[dict] = []
    for task in options.tasks:
        scores: dict[str, dict[str, list[float]]] = {}
        rows: list[dict] = []
        for seed in range(options.seeds):
            for name, some in arms(learned, task, seed).items():
                found = train(some, held, checkpoint, seed, options.steps)
                seconds = sum(float(demo.episode.times[-1]) for demo in some)
                found['seconds_of_data'] = seconds
                found['episodes'] = len({demo.episode.name for demo in some})
                for key, value in found.items():
                    scores.setdefault(name, {}).setdefault(key, []).append(value)
                print(f'{task} seed {seed} {name}: {found["episodes"]} episodes, '
                      f'{seconds:.0f} s, nll {found["nll"]:.4f}, action error '
                      f'{found["action_error"]:.4f}', flush=True)
            rows = [row(task, name, key, scores[name][key], options)
                    for name in scores for key in UNITS]
            if options.write:   # after every seed: what is measured is not lost
                RESULTS.write_text(''.join(json.dumps(entry) + '\n'
                                           for entry in finished + rows))
        finished += rows


UNITS = {'nll': 'nat', 'action_error': '1', 'position_error': 'm', 'seconds_of_data': 's',
         'episodes': '1'}


def row(task: str, name: str, key: str, values: list[float], options) -> dict:
    """Return one figure: mean over seeds, and the range of the seeds."""
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], capture_output=True,
                            text=True, cwd=ROOT, check=False).stdout.strip()
    return {'figure': f'held_out_{key}' if key not in ('seconds_of_data', 'episodes') else key,
            'task': task, 'policy': name, 'against': '', 'value': float(np.mean(values)),
            'low': float(np.min(values)), 'high': float(np.max(values)), 'unit': UNITS[key],
            'n': len(values), 'seeds': list(range(len(values))),
            'preset': f"{options.steps} steps, low and high are the seeds' extremes",
            'commit': commit,
            'machine': f'{platform.machine()}, {os.cpu_count()} cores, CPU, torch '
                       f'{torch.__version__}', 'date': f'{date.today()}'}


if __name__ == '__main__':
    main()
