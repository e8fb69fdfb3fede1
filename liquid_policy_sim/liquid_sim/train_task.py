"""
Learn a policy for a task of the literature from its published demonstrations.

Example: `train_task --task push_t_state --data pusht_cchi_v7_replay.zarr --core cfc --head
mixture --output runs/push_t`. Every setting of core, head and learning can be given by name:
`--set head.components=16 learning.steps=20000`.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from liquid_policy.command import command
from liquid_policy.core_settings import ALIASES, CORES, core_settings
from liquid_policy.export import to_checkpoint
from liquid_policy.head_settings import (
    HEADS,
    build,
    head_settings,
    option_values,
    require,
)
from liquid_policy.policy import Policy
from liquid_policy.settings import PolicySettings
from liquid_sim.evaluate import commit
from liquid_sim.tasks.registry import NAMES, find_task
from liquid_sim.tasks.task import Task
from liquid_sim.train_sight import with_features
from liquid_trainer.arrays import ArrayEpisodes
from liquid_trainer.parallel import Group
from liquid_trainer.sight import SightSettings
from liquid_trainer.task_learner import TaskLearner, TaskLearningSettings
from liquid_trainer.train import keep_earlier, keep_memory

CHECKPOINT, RESUME, HISTORY = 'checkpoint.safetensors', 'resume.safetensors', 'history.jsonl'
_PARTS = ('core', 'head', 'learning', 'sight')


def parse_settings(pairs: list[str]) -> dict[str, dict[str, Any]]:
    """
    Return settings given as `part.name=value`, by part.

    :raises SettingsError: if one is not of that form.
    """
    found: dict[str, dict[str, Any]] = {part: {} for part in _PARTS}
    for key, value in option_values(pairs, '--set').items():
        part, dot, name = key.partition('.')
        require(bool(dot and name) and part in found, '--set', f'{key}={value}',
                'core.NAME=VALUE, head.NAME=VALUE, learning.NAME=VALUE or sight.NAME=VALUE')
        found[part][name] = value
    return found


def policy_settings(task: Task, core: str, head: str,
                    given: dict[str, dict[str, Any]]) -> PolicySettings:
    """
    Return the settings of a task's policy.

    :param given: settings that differ from the defaults, by part; see `parse_settings`.
    """
    period = 1.0 / task.interface.rate
    return PolicySettings(
        vector_size=task.interface.vector_size, action_size=task.interface.action_size,
        target_size=0, encoder=task.encoder,
        core=core_settings(core, given['core'], unit_time=period),
        head=head_settings({'kind': head, 'dt': period, 'hidden': 384, 'layers': 4,
                            'least_scale': 0.02} | given['head']),
        relative=task.relative)


def learning_settings(given: dict[str, Any], seed: int) -> TaskLearningSettings:
    """Return the settings of learning, some of them given."""
    return build(TaskLearningSettings, {'seed': seed, **given}, 'learning')


def read_episodes(task: Task, data: Path, settings: TaskLearningSettings, share: float = 1.0,
                  mirror: bool = True) -> tuple[ArrayEpisodes, ArrayEpisodes | None]:
    """
    Return the episodes to learn from and those held out.

    :param data: the published file.
    :param share: of the episodes to learn from that is used.
    :param mirror: learn from their mirror images, too, where the task is symmetric.
    """
    episodes = task.read(data)
    learned, held = split(episodes, settings, share)
    chosen = episodes.chosen(learned)
    if mirror and task.read_mirrored is not None:
        chosen = chosen.joined(task.read_mirrored(data).chosen(learned))
    return chosen, episodes.chosen(held) if held else None


def split(episodes: ArrayEpisodes, settings: TaskLearningSettings,
          share: float = 1.0) -> tuple[list[int], list[int]]:
    """Return the numbers of the episodes to learn from, a share of them, and of those held out."""
    learned, held = episodes.split(settings.held_out, settings.seed)
    return learned[:max(1, round(share * len(learned)))], held


class TaskTraining:
    """
    One training run: steps, scores on held-out episodes, saved states, the checkpoint.

    :param task: what is learned.
    :param learner: what learns.
    :param held: held-out episodes.
    :param output: folder for everything that is written.
    :param resume: go on from the state saved there.
    :param quiet: no bar.
    :param save_every: steps between saved states.
    """

    def __init__(self, task: Task, learner: TaskLearner, held: ArrayEpisodes | None,
                 output: Path, resume: bool = False, quiet: bool = False,
                 save_every: int = 1000):
        self.task, self.learner, self.held = task, learner, held
        self.output, self.quiet, self.save_every = output, quiet, save_every
        self.spent = 0.0
        self.scores: dict[str, float] = {}
        output.mkdir(parents=True, exist_ok=True)
        self.leads = learner.group.leads
        if resume:
            learner.group.hand_out_file(output / RESUME)
            self.spent = learner.load(output / RESUME)['spent']
        elif self.leads:
            (output / HISTORY).unlink(missing_ok=True)

    def run(self, until: int | None = None) -> Path:
        """
        Learn to the end, or to a step, and return the checkpoint's path.

        :param until: stop after this step, as if killed.
        """
        learner, total = self.learner, self.learner.settings.steps
        began, before = time.monotonic(), self.spent
        with tqdm(total=total, initial=learner.step_count, unit='step',
                  disable=self.quiet or not self.leads,
                  desc=learner.policy.settings.name) as bar:
            while learner.step_count < min(total, until or total):
                values = learner.step()
                bar.update()
                count = learner.step_count
                self.spent = before + time.monotonic() - began
                if not self.leads:
                    continue
                if count % 100 == 0:
                    bar.set_postfix_str(f'loss {values["loss"]:.3f}')
                    self._record('train', values)
                if count % self.save_every == 0 or count == total:
                    if self.held is not None:
                        self.scores = learner.score(self.held)
                        self._record('held_out', self.scores)
                        if not self.quiet:
                            bar.write(f'{count}: ' + ' '.join(
                                f'{name} {value:.4g}' for name, value in self.scores.items()))
                    learner.save(self.output / RESUME, {'spent': self.spent})
        learner.finish()
        if self.leads:
            self.export()
        learner.group.wait()
        return self.output / CHECKPOINT

    def export(self) -> Path:
        """Write the checkpoint and its model card."""
        policy = self.learner.policy
        version = f'{self.task.name}-{policy.settings.name}-' \
            f'{datetime.now(timezone.utc):%Y%m%dT%H%M%S}'
        path, card = self.output / CHECKPOINT, self.card()
        to_checkpoint(policy, self.task.interface, version, card).save(path)
        (self.output / 'model_card.json').write_text(
            json.dumps({'version': version, **card}, indent=2) + '\n')
        return path

    def card(self) -> dict[str, Any]:
        """Return the model card: data, seed, commit, settings, scores."""
        learner = self.learner
        return {
            'task': self.task.name,
            'policy': learner.policy.settings.name,
            'parameters': sum(p.numel() for p in learner.policy.parameters()),
            'context': learner.settings.context,
            'episodes': len(learner.data),
            'steps_of_data': len(learner.data.vectors),
            'episodes_held_out': len(self.held) if self.held else 0,
            'seconds_of_training': round(self.spent, 1),
            'steps_of_training': learner.step_count,
            'learning': asdict(learner.settings),
            'held_out': self.scores,
            'commit': commit(),
            'torch': torch.__version__,
            'machine': platform.machine(),
            'date': f'{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}',
        }

    def _record(self, kind: str, values: dict[str, float]) -> None:
        row = {'step': self.learner.step_count, 'kind': kind,
               'seconds': round(self.spent, 1), **values}
        with open(self.output / HISTORY, 'a', encoding='utf-8') as file:
            file.write(json.dumps(row) + '\n')


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog='train_task', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--task', required=True, choices=NAMES)
    parser.add_argument('--data', required=True, type=Path, help='published demonstrations')
    parser.add_argument('--output', required=True, type=Path, help='folder to write')
    parser.add_argument('--core', default='cfc', choices=(*CORES, *ALIASES))
    parser.add_argument('--head', default='mixture', choices=HEADS)
    parser.add_argument('--set', nargs='+', default=[], metavar='PART.NAME=VALUE',
                        help='settings of core, head and learning')
    parser.add_argument('--share', type=float, default=1.0, help='of the episodes to learn from')
    parser.add_argument('--no-mirror', action='store_true',
                        help='leave out mirror images of the demonstrations')
    parser.add_argument('--encoder', type=Path, default=None, metavar='CHECKPOINT',
                        help='for a task with a camera: begin with the encoder of this one')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--threads', type=int, default=1, help='processor threads')
    parser.add_argument('--resume', action='store_true', help='go on from a saved state')
    parser.add_argument('--quiet', action='store_true', help='no bar')
    return parser.parse_args(argv)


def prepare(arguments: argparse.Namespace, resume: bool, save_every: int = 1000,
            group: Group | None = None) -> TaskTraining:
    """
    Return the training that a command line asks for.

    :param resume: go on from the state saved in the output folder.
    :param save_every: steps between saved states.
    :param group: the processes that learn together.
    :raises ValueError: if a setting or the data are not what they should be.
    """
    task = find_task(arguments.task)
    given = parse_settings(arguments.set)
    group = group or Group()
    settings = learning_settings({'shards': group.size, **given['learning']}, arguments.seed)
    if not 0.0 < arguments.share <= 1.0:
        raise ValueError(f'--share: expected above 0 to 1, came {arguments.share}')
    torch.manual_seed(arguments.seed)
    policy = Policy(policy_settings(task, arguments.core, arguments.head, given))
    if task.pictures is not None:
        learned, _ = split(task.read(arguments.data), settings, arguments.share)
        task = with_features(
            task, policy, arguments.data, learned,
            build(SightSettings, {'seed': arguments.seed, **given['sight']}, 'sight'),
            arguments.output, arguments.encoder, not arguments.no_mirror, arguments.quiet)
    data, held = read_episodes(task, arguments.data, settings, arguments.share,
                               not arguments.no_mirror)
    return TaskTraining(task, TaskLearner(policy, data, settings, group), held, arguments.output,
                        resume, arguments.quiet, save_every)


@command('train_task', 'stopped; with --resume it goes on from the last saved state')
def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when a checkpoint was written."""
    arguments = parse_arguments(argv)
    keep_memory()
    torch.set_num_threads(arguments.threads)
    group = Group()
    try:
        group = Group.join()
        training = prepare(arguments, arguments.resume, group=group)
        if group.leads and not arguments.resume:
            keep_earlier(arguments.output / CHECKPOINT)
        path = training.run()
    finally:
        group.leave()
    if group.leads:
        print(f'checkpoint: {path}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
