"""One training run: its stages, held-out scores, saved states, and the checkpoint at the end."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

from liquid_policy.export import to_checkpoint
from liquid_policy.interface import Interface
from liquid_policy.policy import Policy
from liquid_trainer.cache import StoredEpisode, StoredEpisodes
from liquid_trainer.learner import (
    Learner,
    encode_images,
    fit_feature_scaling,
    fit_scaling,
)
from liquid_trainer.parallel import Group
from liquid_trainer.progress import Progress, Silence
from liquid_trainer.resume import ResumeError, best_weights, load_learner, save_learner
from liquid_trainer.safe_actions import PROJECTED_HEADS, SafeActions
from liquid_trainer.scores import frame_scores, held_out_scores
from liquid_trainer.settings import STAGES, LearningSettings
from liquid_trainer.windows import Demonstrations, split_episodes


class Training:
    """
    One training run.

    :param episodes: demonstrations; some are held out.
    :param interface: of the robot that made them.
    :param policy: to be learned.
    :param settings: how.
    :param output: folder for everything that is written.
    :param resume: go on from the state saved there.
    :param quiet: print nothing.
    :param scaled: the policy has been trained before: leave its scales as they are.
    :param description: the robot's URDF or xacro, for learning with the barrier.
    :param group: the processes that learn together; the leading one scores and writes.
    """

    def __init__(self, episodes: Sequence[StoredEpisode], interface: Interface, policy: Policy,
                 settings: LearningSettings, output: Path, resume: bool = False,
                 quiet: bool = False, scaled: bool = False, description: Path | None = None,
                 group: Group | None = None):
        self.group = group or Group()
        self.interface, self.policy, self.settings = interface, policy, settings
        self.output = output
        self.asked = False          # to save and end after the step
        self.stepping = False       # whether steps are made, and somebody may ask
        stored = StoredEpisodes.of(episodes)
        names = stored.names
        learned, held = split_episodes(
            stored.demonstrations, settings.held_out, settings.seed)
        tick = 1.0 / interface.rate
        self.data = Demonstrations(stored.chosen(learned), tick, output)
        self.held = Demonstrations(stored.chosen(held), tick, output) if held else None
        known = f'{names} {self.data.bounds.tolist()}'
        self._digest = hashlib.blake2b(known.encode(), digest_size=16).hexdigest()
        self.group.check_same('demonstrations', known)
        self.group.check_same('settings', f'{settings} {policy.settings}')
        self.scores: dict[str, float] = {}
        self._spent = 0.0           # of the stage [s]
        self._before = 0.0          # of the stages before it [s]
        self._first: str | None = STAGES[0] if policy.encoder is not None else 'core'
        self._scaled = scaled
        self._held_features: np.ndarray | None = None
        self._best: tuple[float, dict[str, torch.Tensor]] | None = None
        self._lowest = float('inf')         # score of the stage so far, less is better
        self._scored, self._stale = 0, 0    # step of the last score; scores since a better one
        if not (resume or scaled):
            fit_scaling(policy, self.data, interface.action_units, interface.target_units)
        self.group.hand_out(policy.state_dict().values())
        self.learner = Learner(policy, self.data, settings, [
            index for index, unit in enumerate(interface.target_units) if unit == 'm'],
            self.group)
        if settings.safe == 'barrier':
            if policy.settings.relative:
                raise ValueError('safe: barrier: expected actions told as they are, came ones '
                                 'told relative to the present position')
            if description is None or policy.settings.head.kind not in PROJECTED_HEADS:
                raise ValueError('safe: barrier: expected a robot description and a head among '
                                 f'{", ".join(PROJECTED_HEADS)}, came {description} and '
                                 f'{policy.settings.head.kind}')
            self.learner.safe = SafeActions.load(interface, description, self.data)
        if resume:
            self.group.hand_out_file(self._resume_path)
            extra = load_learner(self._resume_path, self.learner)
            if extra.get('demonstrations', self._digest) != self._digest:
                raise ResumeError(
                    f'{self._resume_path}: expected the demonstrations that it was begun with, '
                    f'came others ({len(names)} episodes, {self.data.ticks} ticks to learn from); '
                    'give the same bags, or begin anew with --init and its checkpoint')
            self._first, self._spent = extra['next'], extra['spent']
            self._before, self.scores = extra['before'], extra['scores']
            self._lowest = extra.get('lowest', float('inf'))
            self._scored, self._stale = extra.get('scored', 0), extra.get('stale', 0)
            weights = best_weights(self._resume_path)
            if weights is not None:
                self._best = (extra['best'], weights)
        since = (self.learner.stage, self.learner.step_count) if resume else None
        self.progress = (Progress(output, append=resume, quiet=quiet, since=since)
                         if self.group.leads else Silence())

    @property
    def _resume_path(self) -> Path:
        return self.output / 'resume.safetensors'

    def run(self) -> Path:
        """Run what is left of every stage and return the checkpoint's path."""
        say = self.progress.say
        say(f'{len(self.data.names)} episodes, {self.data.ticks} ticks, {self.data.image_count} '
            f'images to learn from; {len(self.held.names) if self.held else 0} episodes held out')
        path = self.output / 'checkpoint.safetensors'
        for stage in STAGES[STAGES.index(self._first):] if self._first else ():
            if self._limit(stage) <= 0:
                continue
            self._run_stage(stage)
            if stage != 'frames':
                self._export(path)
            say(f'{stage}: {_text(self.scores)}')
        if not path.exists():
            self._export(path)
        self.progress.close()
        self.group.wait()
        return path

    def _limit(self, stage: str) -> float:
        """Return the stage's steps, or its time [s]."""
        index, steps = STAGES.index(stage), self.settings.steps
        limits = [*steps] if steps is not None else [60.0 * part for part in self.settings.minutes]
        if self.policy.encoder is None:     # without images there is one stage, and it has it all
            return sum(limits) if stage == 'core' else 0.0
        return limits[index]

    def _share(self, stage: str) -> float:
        """Return how much of the stage is done, 0 to 1 and above."""
        done = self.learner.step_count if self.settings.steps is not None else self._spent
        return done / self._limit(stage)

    def _run_stage(self, stage: str) -> None:
        learner, settings = self.learner, self.settings
        # A resumed learner is in its stage already, with optimiser and averages as saved.
        going_on = learner.stage == stage and learner.step_count > 0
        if stage != 'frames':
            self._prepare_features(stage, refit=not going_on)
        if not going_on:
            learner.begin(stage)
            self._spent = 0.0
            self._lowest, self._scored, self._stale = float('inf'), 0, 0
            if stage != 'joint':
                self._best = None       # what follows `core` must beat it
        saved = shown = scored = self._spent
        sums: dict[str, float] = {}
        count = 0
        # Encoding and scoring do not count: the schedule is of learning.
        last = time.monotonic()
        every = {'frames': 120.0, 'core': 90.0, 'joint': 150.0}[stage]
        while True:
            if self._due(stage, self._spent - scored >= every):
                self._score(stage)
                scored, last = self._spent, time.monotonic()
            share, save, stop, asked = self.group.agree(
                self._share(stage), float(self._spent - saved >= 60.0 * settings.save_every),
                float(0 < settings.patience <= self._stale), float(self.asked))
            if save or asked:
                self._save()
                saved, last = self._spent, time.monotonic()
            if asked:
                raise KeyboardInterrupt
            if stop:
                self.progress.say(f'{stage}: ended after {learner.step_count} steps, '
                                  f'{self._stale} scores without a better one')
            if share >= 1.0 or stop:
                break
            self.stepping = True
            values = learner.step(share)
            count += 1
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
            now = time.monotonic()
            self._spent, last = self._spent + now - last, now
            if self._spent - shown >= 5.0:
                means = {name: value / count for name, value in sums.items()}
                means['steps_per_second'] = count / (self._spent - shown)
                self.progress.record(stage, learner.step_count, 'train', means,
                                     self._before + self._spent)
                self.progress.show(stage, share, _text(means, 4))
                sums, count, shown = {}, 0, self._spent
        if count:
            self.progress.record(stage, learner.step_count, 'train',
                                 {name: value / count for name, value in sums.items()},
                                 self._before + self._spent)
        self.stepping = False
        if self._scored != learner.step_count:
            self._score(stage)
        learner.finish()
        if self._best is not None:
            self.policy.load_state_dict(self._best[1])
        self.group.hand_out(self.policy.state_dict().values())
        self._before += self._spent
        self._spent = 0.0
        self._save(finished=True)

    def _save(self, finished: bool = False) -> None:
        stage = self.learner.stage
        after = (*STAGES[1:], None)[STAGES.index(stage)] if finished else stage
        self.learner.gather()
        if not self.group.leads:
            return
        score, weights = self._best or (None, None)
        save_learner(self._resume_path, self.learner, {
            'next': after, 'spent': self._spent, 'before': self._before, 'scores': self.scores,
            'best': score, 'lowest': self._lowest, 'scored': self._scored,
            'stale': self._stale, 'demonstrations': self._digest}, weights)
        self.progress.draw()

    def _prepare_features(self, stage: str, refit: bool) -> None:
        """Encode all images once; in `joint` only the held-out ones are needed, at scoring."""
        if stage == 'joint' and not refit:
            return
        if stage == 'joint' and self._limit('core') > 0:
            return
        done = 0

        def show(count: int) -> None:
            nonlocal done
            done += count
            if done % 1024 < count:
                self.progress.show(stage, 0.0, f'encoding images {done}/{self.data.image_count}')

        features = self._encode_shards(show)
        size = self.policy.settings.feature_size
        never = bool((self.policy.input_scaling.scale[:size] == 1.0).all())
        if size and refit and (never or not self._scaled):
            fit_feature_scaling(self.policy, features)
        self.learner.features = features
        if self.group.leads and self.held:
            self._held_features = features if self.policy.encoder is None else encode_images(
                self.policy, self.held)

    def _encode_shards(self, progress: Callable[[int], None]) -> np.ndarray:
        """Return the features of all images, every process having encoded its shards."""
        shards, count = self.settings.shards, self.data.image_count
        if self.policy.encoder is None:
            return np.zeros((1, 0), np.float32)     # one row that every tick may point to
        features = self.data.zeros((count, self.policy.settings.feature_size))
        bounds = np.linspace(0, count, shards + 1).astype(int)
        for shard in self.group.own(shards):
            numbers = np.arange(bounds[shard], bounds[shard + 1])
            encode_images(self.policy, self.data, numbers, self.settings.seed + 1 + shard,
                          progress=progress, out=features[bounds[shard]:bounds[shard + 1]])
        # Zeros where others have encoded.
        self.group.add(torch.from_numpy(features))
        return features

    def _due(self, stage: str, time_has_come: bool) -> bool:
        """Whether to score now: by steps where the stage is given in steps, else by time."""
        step, limit = self.learner.step_count, self._limit(stage)
        if self.settings.steps is None:
            return time_has_come

        def done(steps: int) -> int:
            return int(steps * self.settings.validations / limit)

        return done(step) > done(self._scored)

    def _score(self, stage: str) -> None:
        """Score the averaged weights on the held-out episodes; in `core`, remember the best."""
        self._scored = self.learner.step_count
        if self.held is None or not self.group.leads:
            return
        training = {name: value.clone() for name, value in self.policy.state_dict().items()}
        self.learner.finish()
        self.policy.eval()
        features = self._held_features
        if self.policy.encoder is not None and (stage != 'core' or features is None):
            features = encode_images(self.policy, self.held)
        assert features is not None         # `_prepare_features` comes before `core`
        units = self.interface.target_units
        if stage == 'frames':
            scores = frame_scores(self.policy, self.learner.frame_head, self.held, features,
                                  units)
        else:
            scores = held_out_scores(self.policy, self.held, features, units)
            if self._best is None or scores['nll'] < self._best[0]:
                self._best = (scores['nll'], {name: value.clone() for name, value in
                                              self.policy.state_dict().items()})
                self.scores = self.scores | scores
        if stage == 'frames':
            self.scores = self.scores | scores
        value = scores.get('nll', scores.get('frame_position_error', float('-inf')))
        self._stale = 0 if value < self._lowest or value == float('-inf') else self._stale + 1
        self._lowest = min(value, self._lowest)
        self.policy.load_state_dict(training)
        self.progress.record(stage, self.learner.step_count, 'held_out', scores,
                             self._before + self._spent)
        self.progress.say(f'{stage} {self._spent / 60:.1f} min: {_text(scores)}')

    def _export(self, path: Path) -> None:
        if not self.group.leads:
            return
        card = self.card()
        version = f'{self.interface.robot}-{self.policy.settings.core.name}-' \
            f'{datetime.now(timezone.utc):%Y%m%dT%H%M%S}'
        to_checkpoint(self.policy, self.interface, version, card).save(path)
        (self.output / 'model_card.json').write_text(
            json.dumps({'version': version, **card}, indent=2) + '\n')

    def card(self) -> dict:
        """Return the model card: data, seed, commit, settings, figures."""
        return {
            'policy': self.policy.settings.name,
            'robot': self.interface.robot,
            'parameters': sum(p.numel() for p in self.policy.parameters()),
            'episodes': len(self.data.names),
            'episodes_held_out': len(self.held.names) if self.held else 0,
            'ticks': self.data.ticks,
            'images': self.data.image_count,
            'seconds_of_data': round(self.data.ticks * self.data.tick, 1),
            'seconds_of_training': round(self._before + self._spent, 1),
            'seed': self.settings.seed,
            'commit': _commit(),
            'torch': torch.__version__,
            'date': f'{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}',
            'held_out': self.scores,
            'learning': self.settings.to_dict(),
            'processes': self.group.size,
        }


def _text(values: dict[str, float], most: int = 12) -> str:
    return ' '.join(f'{name} {value:.4g}' for name, value in list(values.items())[:most])


def _commit() -> str:
    try:
        return subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], capture_output=True,
                              text=True, check=True, timeout=10,
                              cwd=Path(__file__).parent).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return 'unknown'
