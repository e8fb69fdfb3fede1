"""Learn a policy from bags: the command `train`."""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from liquid_policy.checkpoint import load_checkpoint
from liquid_policy.core_settings import ALIASES, CORES, core_settings
from liquid_policy.export import to_checkpoint, to_policy
from liquid_policy.features import load_published
from liquid_policy.head_settings import HEADS, HeadSettings, head_settings, option_values
from liquid_policy.interface import Interface, load_interface
from liquid_policy.policy import Policy
from liquid_policy.settings import EncoderSettings, PolicySettings
from liquid_trainer.cache import StoredEpisode, StoredEpisodes, cached_episodes
from liquid_trainer.learner import (
    Learner,
    encode_images,
    fit_feature_scaling,
    fit_scaling,
)
from liquid_trainer.parallel import Group
from liquid_trainer.progress import Progress, Silence
from liquid_trainer.resume import best_weights, load_learner, read_extra, save_learner
from liquid_trainer.safe_actions import PROJECTED_HEADS, SafeActions, find_description
from liquid_trainer.scores import frame_scores, held_out_scores
from liquid_trainer.selection import chosen_episodes, read_choices
from liquid_trainer.settings import SAFE, STAGES, LearningSettings
from liquid_trainer.windows import Demonstrations, split_episodes


class Training:
    """
    One training run: stages, held-out scores, saved states, the checkpoint at the end.

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
        stored = StoredEpisodes.of(episodes)
        names = stored.names
        learned, held = split_episodes(
            stored.demonstrations, settings.held_out, settings.seed)
        tick = 1.0 / interface.rate
        self.data = Demonstrations(stored.chosen(learned), tick, output)
        self.held = Demonstrations(stored.chosen(held), tick, output) if held else None
        self.group.check_same('demonstrations', f'{names} {self.data.bounds.tolist()}')
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
            share, save, stop = self.group.agree(
                self._share(stage), float(self._spent - saved >= 60.0 * settings.save_every),
                float(0 < settings.patience <= self._stale))
            if save:
                self._save()
                saved, last = self._spent, time.monotonic()
            if stop:
                self.progress.say(f'{stage}: ended after {learner.step_count} steps, '
                                  f'{self._stale} scores without a better one')
            if share >= 1.0 or stop:
                break
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
            'stale': self._stale}, weights)
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


def keep_memory() -> None:
    """
    Let the C library keep freed memory instead of giving it back to the system.

    A training step frees and asks again for some hundred blocks of megabytes; mapping fresh
    pages each time costs up to a third of the step. Without glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL('libc.so.6').mallopt
        mallopt(-4, 0)      # M_MMAP_MAX: no block gets a mapping of its own
        mallopt(-1, -1)     # M_TRIM_THRESHOLD: never give back
    except (OSError, AttributeError):
        pass


def build_policy(interface: Interface, core: str, width: float = 0.5,
                 core_options: Sequence[str] = (), head: str = 'mixture',
                 head_options: Sequence[str] = ()) -> Policy:
    """
    Return an untrained policy that fits the interface.

    :param core: a core's name, or an older name of one.
    :param width: the encoder's.
    :param core_options: such as `units=32`; the fields of `CoreSettings`.
    :param head: a head's name.
    :param head_options: such as `components=8`; the fields of its settings.
    :raises ValueError: if an option is bad.
    """
    encoder = None
    if interface.features is not None:
        image = interface.images[interface.features.images[0]]
        encoder = EncoderSettings(width=width, size=interface.features.size, height=image.height,
                                  width_pixels=image.width)
    # A chunk's steps are no shorter than the control clock's.
    period = 1.0 / interface.rate
    options = {'dt': max(HeadSettings.dt, period)} | option_values(head_options, 'head')
    return Policy(PolicySettings(vector_size=interface.vector_size,
                                 action_size=interface.action_size,
                                 target_size=interface.target_size, encoder=encoder,
                                 core=core_settings(core, core_options, unit_time=period),
                                 head=head_settings({**options, 'kind': head}),
                                 relative=positions_of_actions(interface)))


def positions_of_actions(interface: Interface) -> tuple[int, ...]:
    """
    Return where in the vector each action's own present value is, if every action has one.

    A robot that is told positions mostly does something near where it is: actions told relative
    to that are small, and holding still is the easiest thing to learn.

    :return: columns of the observed numbers of the actions' names and units; empty if one lacks.
    """
    there = {pair: column for column, pair in enumerate(
        zip(interface.vector_names, interface.vector_units, strict=True))}
    wanted = list(zip(interface.action_names, interface.action_units, strict=True))
    return tuple(there[pair] for pair in wanted) if all(p in there for p in wanted) else ()


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line as settings and paths."""
    default = LearningSettings()
    parser = argparse.ArgumentParser(
        prog='train', description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--bags', nargs='+', required=True, type=Path,
                        help='bags, or folders of bags')
    parser.add_argument('--curated', type=Path, default=None,
                        help='list of what to learn from of these bags, from `curate`')
    parser.add_argument('--interface', required=True, type=Path, help='interface file')
    parser.add_argument('--output', required=True, type=Path, help='folder to write')
    parser.add_argument('--core', default='cfc', choices=(*CORES, *ALIASES),
                        help='recurrent core')
    parser.add_argument('--core-options', nargs='+', default=[], metavar='NAME=VALUE',
                        help='of the core, such as units=19 wiring=ncp')
    parser.add_argument('--head', default='mixture', choices=HEADS, help='action head')
    parser.add_argument('--head-options', nargs='+', default=[], metavar='NAME=VALUE',
                        help='of the head, such as components=8 rank=2')
    parser.add_argument('--minutes', type=float, default=sum(default.minutes),
                        help='time for all stages')
    parser.add_argument('--stage-minutes', default=None,
                        help='time for each stage instead, as frames,core,joint; 0 leaves out')
    parser.add_argument('--stage-steps', default=None,
                        help='steps for each stage instead of time: repeatable exactly')
    parser.add_argument('--threads', type=int, default=default.threads, help='processor threads')
    parser.add_argument('--shards', type=int, default=None,
                        help='parts of every batch that processes share out; as many as '
                        'processes when left out')
    parser.add_argument('--seed', type=int, default=default.seed, help='of everything random')
    parser.add_argument('--held-out', type=float, default=default.held_out,
                        help='share of episodes to score on')
    parser.add_argument('--patience', type=int, default=default.patience,
                        help='end a stage after so many held-out scores in a row without a better '
                        'one; 0: never')
    parser.add_argument('--safe', default=default.safe, choices=SAFE,
                        help="barrier: actions pass the safety filter's constraints first")
    parser.add_argument('--description', type=Path, default=None,
                        help='URDF or xacro for --safe barrier, if not where the package has it')
    parser.add_argument('--width', type=float, default=0.5, help="the encoder's width")
    parser.add_argument('--init-encoder', type=Path, default=None,
                        help='checkpoint whose encoder to start from, or published MobileNetV2 '
                        'weights as safetensors')
    parser.add_argument('--init', type=Path, default=None,
                        help='checkpoint whose whole policy to start from')
    parser.add_argument('--resume', action='store_true', help='go on with a killed training')
    parser.add_argument('--cache', type=Path, default=Path('runs/cache'),
                        help='folder for decoded bags')
    parser.add_argument('--quiet', action='store_true', help='print nothing')
    arguments = parser.parse_args(argv)
    try:
        arguments.settings = _settings(arguments, default)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def _settings(arguments: argparse.Namespace, default: LearningSettings) -> LearningSettings:
    def numbers(text: str, kind: type) -> tuple:
        parts = tuple(kind(part) for part in text.split(','))
        if len(parts) != len(STAGES):
            raise ValueError(f'expected {len(STAGES)} numbers for {", ".join(STAGES)}, came '
                             f'{text!r}')
        return parts

    scale = arguments.minutes / sum(default.minutes)
    minutes = tuple(scale * part for part in default.minutes)
    if arguments.stage_minutes:
        minutes = numbers(arguments.stage_minutes, float)
    steps = numbers(arguments.stage_steps, int) if arguments.stage_steps else None
    return dataclasses.replace(default, minutes=minutes, steps=steps, seed=arguments.seed,
                               threads=arguments.threads, held_out=arguments.held_out,
                               safe=arguments.safe, patience=arguments.patience,
                               shards=arguments.shards or int(os.environ.get('WORLD_SIZE', 1)))


def _start_from(policy: Policy, arguments: argparse.Namespace) -> Policy:
    if arguments.init:
        return to_policy(load_checkpoint(arguments.init))
    if arguments.init_encoder:
        from safetensors import safe_open
        with safe_open(arguments.init_encoder, 'np') as file:
            published = 'features.0.0.weight' in file.keys()  # noqa: SIM118
        if published:
            from safetensors.torch import load_file
            load_published(policy.encoder, load_file(arguments.init_encoder))
        else:
            other = to_policy(load_checkpoint(arguments.init_encoder))
            policy.encoder.load_state_dict(other.encoder.state_dict())
    return policy


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when a checkpoint was written."""
    arguments = parse_arguments(argv)
    keep_memory()
    torch.set_num_threads(arguments.settings.threads)
    torch.manual_seed(arguments.settings.seed)
    np.random.seed(arguments.settings.seed)
    group = Group()
    try:
        group = Group.join()
        path = _train(arguments, group)
    except (ValueError, OSError) as error:
        print(f'train: {error}', file=sys.stderr)
        return 1
    finally:
        group.leave()
    if group.leads:
        print(f'checkpoint: {path}')
    return 0


def _train(arguments: argparse.Namespace, group: Group) -> Path:
    interface = load_interface(arguments.interface)
    quiet = arguments.quiet or not group.leads

    def episodes_of() -> StoredEpisodes:
        given = (arguments.bags, interface, arguments.cache,
                 arguments.settings.threads * group.local_size,
                 None if quiet else lambda done, of: print(
                     f'\rbags decoded: {done}/{of}', end='\n' if done == of else '', flush=True))
        if arguments.curated is not None:
            return chosen_episodes(read_choices(arguments.curated), *given)
        return cached_episodes(*given)

    # One process of each machine decodes; what the others wait for is then in the cache.
    if group.local_rank == 0:
        episodes = episodes_of()
    group.wait()
    if group.local_rank != 0:
        episodes = episodes_of()
    policy = _start_from(build_policy(interface, arguments.core, arguments.width,
                                      arguments.core_options, arguments.head,
                                      arguments.head_options), arguments)
    settings = arguments.settings
    if arguments.resume:
        state = arguments.output / 'resume.safetensors'
        group.hand_out_file(state)
        kept = read_extra(state)['settings']
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in kept.items()}
        settings = LearningSettings(**values)
        if arguments.stage_minutes:     # more time than it was given at first
            settings = dataclasses.replace(settings, minutes=arguments.settings.minutes)
    description = arguments.description
    if settings.safe == 'barrier' and description is None:
        description = find_description(arguments.interface, interface.description)
    return Training(episodes, interface, policy, settings, arguments.output, arguments.resume,
                    quiet, arguments.init is not None, description, group).run()


if __name__ == '__main__':
    sys.exit(main())
