"""The part of train_task that only tasks with a camera need: an encoder, and its features."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from liquid_policy.checkpoint import load_checkpoint
from liquid_policy.export import to_checkpoint, to_policy
from liquid_policy.features import Encoder
from liquid_policy.policy import Policy
from liquid_policy.runtime import EncoderRuntime
from liquid_sim.tasks.task import Task
from liquid_trainer.arrays import ArrayEpisodes
from liquid_trainer.sight import SightLearner, SightSettings

SIGHT = 'sight.safetensors'
_SAVE_EVERY = 500


def with_features(task: Task, policy: Policy, data: Path, learned: list[int],
                  settings: SightSettings, output: Path, begin: Path | None = None,
                  mirror: bool = True, quiet: bool = False) -> Task:
    """
    Teach the policy's encoder to see, and return the task with features before its numbers.

    What was taught is kept in the output folder and found there again by a training with the
    same settings. Afterwards the encoder rests.

    :param task: with pictures.
    :param data: the published file.
    :param learned: episodes to learn from; the others are never looked at in learning.
    :param begin: a checkpoint whose encoder is the beginning; one of random weights when None.
    :param mirror: whether features of mirror images are wanted, too.
    :raises ValueError: if that checkpoint's encoder has another width.
    """
    encoder, episodes, read_pictures = policy.encoder, task.read(data), task.pictures
    if encoder is None or read_pictures is None:
        raise ValueError(f'{task.name}: expected a task with pictures and a policy with an '
                         'encoder, came one without')
    pictures = read_pictures(data)
    spans = [np.arange(episodes.starts[e], episodes.ends[e]) for e in range(len(episodes))]
    chosen = np.concatenate([spans[e] for e in learned])
    held = [spans[e] for e in range(len(episodes)) if e not in set(learned)]
    about = {'settings': asdict(settings), 'learned': len(chosen),
             'begin': load_checkpoint(begin).version if begin else ''}
    output.mkdir(parents=True, exist_ok=True)
    if not _load(output / SIGHT, encoder, about):
        if begin is not None:
            _begin(encoder, begin)
        learner = SightLearner(encoder, pictures, chosen, settings)
        with tqdm(total=settings.steps, unit='step', desc='sight', disable=quiet) as bar:
            while learner.step_count < settings.steps:
                loss = learner.step()
                bar.update()
                if learner.step_count % _SAVE_EVERY == 0 or learner.step_count == settings.steps:
                    some = np.concatenate(held or spans)[::10]
                    bar.write(f'sight {learner.step_count}: loss {loss:.4f}, places of pictures '
                              f'held out within {learner.error(some):.2f} (median)')
        learner.finish()
        _save(output / SIGHT, encoder, about)
    encoder.eval().requires_grad_(False)
    # Learned from is what will run; the exported form is also several times faster than torch.
    eyes = EncoderRuntime(to_checkpoint(policy, task.interface, f'{task.name}-sight'))
    wanted = task.read_mirrored is not None and pictures.mirror is not None and mirror
    with tqdm(total=(1 + wanted) * len(pictures.color), unit='picture', desc='features',
              disable=quiet) as bar:
        seen = _features(eyes, pictures.color, bar.update)
        mirrored = _features(eyes, pictures.color, bar.update,
                             pictures.mirror) if wanted else None

    def before(read, features):
        def both(path: Path) -> ArrayEpisodes:
            told = read(path)
            return ArrayEpisodes(np.concatenate((features, told.vectors), 1), told.actions,
                                 told.ends, encoder.settings.size)
        return both

    both = None
    if task.read_mirrored is not None and mirrored is not None:
        both = before(task.read_mirrored, mirrored)
    return replace(task, read=before(task.read, seen), read_mirrored=both)


def _features(eyes: EncoderRuntime, color: np.ndarray, progress: Callable[[int], object],
              mirror: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
    """Return the features of all pictures, or of their mirror images, `(pictures, size)`."""
    found, nothing = [], np.zeros(color.shape[1:3], np.float32)
    for begin in range(0, len(color), 64):
        some = color[begin:begin + 64]
        found += [eyes.encode(one, nothing) for one in (mirror(some) if mirror else some)]
        progress(len(some))
    return np.array(found)


def _begin(encoder: Encoder, path: Path) -> None:
    """Take the other encoder's weights, but for layers that it has in another size."""
    other = to_policy(load_checkpoint(path)).encoder
    own = encoder.state_dict()
    given = {} if other is None else {
        name: value for name, value in other.state_dict().items()
        if name in own and value.shape == own[name].shape}
    lacking = [name for name in own if name.startswith('features.') and name not in given]
    if lacking:
        raise ValueError(f'{path}: expected a checkpoint with an encoder of width '
                         f'{encoder.settings.width}, came '
                         f'{None if other is None else other.settings}')
    encoder.load_state_dict(given, strict=False)


def _save(path: Path, encoder: Encoder, about: dict) -> None:
    beside = path.with_name(f'.{path.name}.{os.getpid()}.part')
    save_file({name: value.detach().clone().contiguous()
               for name, value in encoder.state_dict().items()}, beside,
              {'about': json.dumps(about, sort_keys=True)})
    os.replace(beside, path)


def _load(path: Path, encoder: Encoder, about: dict) -> bool:
    """Take what was taught before with the same settings; False where there is none."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, 'pt') as file:
            if file.metadata().get('about') != json.dumps(about, sort_keys=True):
                return False
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return False
    encoder.load_state_dict(weights)
    return True
