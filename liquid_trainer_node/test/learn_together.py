"""What every process of test_parallel runs: a few steps of both learners."""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from synthetic import follow_episode

from liquid_policy.core_settings import core_settings
from liquid_policy.head_settings import head_settings
from liquid_policy.interface import load_interface
from liquid_policy.policy import Policy
from liquid_policy.settings import PolicySettings
from liquid_trainer.arrays import ArrayEpisodes
from liquid_trainer.building import build_policy
from liquid_trainer.parallel import Group, LostProcessError
from liquid_trainer.settings import LearningSettings
from liquid_trainer.task_learner import TaskLearner, TaskLearningSettings
from liquid_trainer.training import Training

INTERFACE = Path(__file__).parents[2] / 'config' / 'manipulator.interface.yaml'
SETTINGS = LearningSettings(steps=(2, 3, 2), frame_batch=4, core_batch=4, joint_batch=2,
                            core_window=0.2, joint_window=0.05, held_out=0.3, threads=1, shards=2)


def training(output: Path, group: Group, resume: bool = False) -> Training:
    """Return a tiny training whose every step appends its losses to `steps.jsonl`."""
    robot = load_interface(INTERFACE)
    episodes = [dataclasses.replace(
        episode, vectors=np.resize(episode.vectors, (len(episode.times), robot.vector_size)),
        actions=np.resize(episode.actions, (len(episode.times), robot.action_size)))
        for episode in (follow_episode(number, seconds=0.5) for number in range(3))]
    # Another start in every process: the leading one's must win.
    torch.manual_seed(group.rank)
    made = Training(episodes, robot, build_policy(robot, 'cfc', 0.1, ['units=8']), SETTINGS,
                    output, resume, True, group=group)
    # Curves take longer than all the rest here, and test_train looks at them.
    made.progress.draw = lambda: None
    step = made.learner.step

    def noted(share: float) -> dict[str, float]:
        values = step(share)
        if group.leads:
            with open(output / 'steps.jsonl', 'a') as file:
                file.write(json.dumps(values) + '\n')
        return values

    made.learner.step = noted
    return made


def task_losses(group: Group, steps: int = 4) -> list[float]:
    """Return the losses of a few steps without images."""
    rng = np.random.default_rng(0)
    data = ArrayEpisodes(rng.normal(size=(40, 3)).astype(np.float32),
                         rng.normal(size=(40, 2)).astype(np.float32), np.array([20, 40]))
    torch.manual_seed(group.rank)
    policy = Policy(PolicySettings(
        vector_size=3, action_size=2, target_size=0, encoder=None,
        core=core_settings('cfc', ['units=8']),
        head=head_settings({'kind': 'mixture', 'horizon': 2, 'components': 2})))
    learner = TaskLearner(policy, data, TaskLearningSettings(steps=steps, batch=8, shards=2),
                          group)
    return [learner.step()['loss'] for _ in range(steps)]


def learn(output: Path) -> None:
    """Learn together, and notice a process that was given something else."""
    torch.set_num_threads(1)
    group = Group.join()
    training(output, group).run()
    losses = task_losses(group)
    if group.leads:
        (output / 'task.json').write_text(json.dumps(losses))
    try:
        group.check_same('bags', f'those of {group.rank}')
    except ValueError as error:
        (output / f'refused_{group.rank}.txt').write_text(str(error))
    group.leave()


def die(meeting_point: str) -> None:
    """Lose a process in the middle of an exchange."""
    group = Group.join(meeting_point=meeting_point)
    group.add(torch.ones(1))
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        group.add(torch.ones(1))
    except LostProcessError as error:
        print(f'train: {error}', file=sys.stderr)
        sys.exit(1)


if __name__ == '__main__':
    {'learn': lambda: learn(Path(sys.argv[2])), 'die': lambda: die(sys.argv[2])}[sys.argv[1]]()
