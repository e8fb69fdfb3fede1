"""Learn a policy from bags: the command `train`."""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from liquid_policy.checkpoint import load_checkpoint
from liquid_policy.command import command
from liquid_policy.core_settings import ALIASES, CORES
from liquid_policy.export import to_policy
from liquid_policy.head_settings import HEADS
from liquid_policy.interface import Interface, load_interface
from liquid_trainer.building import build_policy, take_encoder
from liquid_trainer.cache import StoredEpisodes, cached_episodes
from liquid_trainer.parallel import Group
from liquid_trainer.resume import read_extra
from liquid_trainer.safe_actions import find_description
from liquid_trainer.selection import chosen_episodes, read_choices
from liquid_trainer.settings import SAFE, STAGES, LearningSettings
from liquid_trainer.training import Training


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
    parser.add_argument('--namespace', default=None,
                        help='of the robot, where bags hold several')
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
        try:
            parts = tuple(kind(part) for part in text.split(','))
        except ValueError:
            parts = ()
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


@command('train', 'stopped; the same command with --resume goes on')
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
    finally:
        group.leave()
    if group.leads:
        print(f'checkpoint: {path}')
    return 0


def _train(arguments: argparse.Namespace, group: Group) -> Path:
    interface = load_interface(arguments.interface)
    quiet = arguments.quiet or not group.leads
    output, settings = arguments.output, arguments.settings
    # Mistakes first: decoding may take an hour.
    if output.exists() and not output.is_dir():
        raise ValueError(f'{output}: expected a folder to write, came a file; choose another')
    policy = build_policy(interface, arguments.core, arguments.width, arguments.core_options,
                          arguments.head, arguments.head_options)
    if arguments.init:
        policy = to_policy(load_checkpoint(arguments.init))
    elif arguments.init_encoder:
        take_encoder(policy, arguments.init_encoder)
    if arguments.resume:
        group.hand_out_file(output / 'resume.safetensors')
        kept = read_extra(output / 'resume.safetensors')['settings']
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in kept.items()}
        settings = LearningSettings(**values)
        if arguments.stage_minutes:     # more time than it was given at first
            settings = dataclasses.replace(settings, minutes=arguments.settings.minutes)
    elif group.leads:
        keep_earlier(output / 'checkpoint.safetensors')
    description = arguments.description
    if settings.safe == 'barrier' and description is None:
        description = find_description(arguments.interface, interface.description)
    # One process of each machine decodes; what the others wait for is then in the cache.
    if group.local_rank == 0:
        episodes = _episodes(arguments, interface, group, quiet)
    group.wait()
    if group.local_rank != 0:
        episodes = _episodes(arguments, interface, group, quiet)
    training = Training(episodes, interface, policy, settings, output, arguments.resume, quiet,
                        arguments.init is not None, description, group)
    if group.size > 1:      # torchrun ends them all
        return training.run()
    with _asked_to_stop(training):
        return training.run()


def _episodes(arguments: argparse.Namespace, interface: Interface, group: Group, quiet: bool
              ) -> StoredEpisodes:
    with tqdm(desc='decoded', unit=' parts', disable=quiet, leave=False) as bar:
        def show(done: int, of: int) -> None:
            bar.total = of
            bar.update(done - bar.n)

        given = (arguments.bags, interface, arguments.cache,
                 arguments.settings.threads * group.local_size, show, arguments.namespace)
        if arguments.curated is not None:
            return chosen_episodes(read_choices(arguments.curated), *given)
        return cached_episodes(*given)


def keep_earlier(checkpoint: Path) -> None:
    """Put what an earlier training has learned out of the way of this one."""
    if not checkpoint.exists():
        return
    number = 1
    while (kept := checkpoint.with_stem(f'{checkpoint.stem}_{number}')).exists():
        number += 1
    checkpoint.rename(kept)
    print(f'the earlier {checkpoint} is kept as {kept.name}', file=sys.stderr)


@contextmanager
def _asked_to_stop(training: Training) -> Iterator[None]:
    """On Ctrl-C or SIGTERM have a training end after its step; at once if it makes none."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def stop(number: int, frame: Any) -> None:
        if training.asked or not training.stepping:
            raise KeyboardInterrupt
        training.asked = True

    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])


if __name__ == '__main__':
    sys.exit(main())
