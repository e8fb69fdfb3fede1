"""Windows of what a policy could do before: what no online learning may cost."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from liquid_policy.command import command
from liquid_policy.files import write_atomically
from liquid_trainer.online.window import Window


def read_skills(folder: Path) -> list[Window]:
    """
    Read the windows of a folder, in the order of their names.

    :raises ValueError: if there are none, one is damaged, or their sizes differ.
    """
    windows = []
    for path in sorted(folder.glob('*.npz')):
        try:
            windows.append(Window.from_bytes(path.read_bytes()))
        except ValueError as error:
            raise ValueError(f'{path}: {error}; make the folder again with online_skills') \
                from error
    if not windows:
        raise ValueError(f'{folder}: expected windows (*.npz), found none; make them with '
                         'online_skills')
    lengths = {len(window.ticks) for window in windows}
    if len(lengths) > 1:
        raise ValueError(f'{folder}: expected windows of one length, came {sorted(lengths)} ticks')
    return windows


def write_skills(folder: Path, windows: Sequence[Window]) -> None:
    """Write windows into a folder, one file each."""
    for number, window in enumerate(windows):
        write_atomically(folder / f'window_{number:05d}.npz', window.to_bytes())


def divide_skills(windows: Sequence[Window], most: int) -> tuple[list[Window], list[Window]]:
    """
    Divide windows into those that candidates are judged by and those that are replayed.

    Whole episodes: windows of one episode may overlap. Every third episode judges; a single one
    does so alone.

    :param most: windows that judge; evenly thinned out to as many, the rest is left out.
    """
    names = sorted({window.episode for window in windows})
    judging = set(names[::3])
    judges = [window for window in windows if window.episode in judging]
    if len(judges) > most:
        judges = [judges[index] for index in np.linspace(0, len(judges) - 1, most).astype(int)]
    return judges, [window for window in windows if window.episode not in judging]


def draw_skills(data, features: np.ndarray, rate: float, count: int, length: float,
                seed: int = 0) -> list[Window]:
    """
    Draw windows from demonstrations, evenly over their time.

    :param data: `liquid_trainer.windows.Demonstrations`.
    :param features: of all its images, `(images, size)`.
    :param rate: of the control clock [Hz].
    :param count: how many.
    :param length: of a window [s].
    """
    random = np.random.default_rng(seed)
    ticks = max(2, round(length * rate))
    sizes = np.maximum(np.diff(data.bounds) - ticks, 0)
    if not sizes.sum():
        raise ValueError(f'expected episodes longer than {length} s, came none')
    windows: list[Window] = []
    while len(windows) < count:
        episode = int(random.choice(len(sizes), p=sizes / sizes.sum()))
        begin = int(data.bounds[episode]) + int(random.integers(sizes[episode]))
        rows = slice(begin, begin + ticks)
        stamps = np.cumsum(np.round(data.elapsed[rows] * 1e9).astype(np.int64))
        windows.append(Window(
            stamps, features[data.images[rows]], data.vectors[rows], data.actions[rows],
            data.targets[rows], episode=data.names[episode]))
    return windows


@command('online_skills')
def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog='online_skills',
        description='Draw windows from bags that the online learner judges old skills by.')
    parser.add_argument('--bags', type=Path, nargs='+', required=True,
                        help='bags, or folders of bags')
    parser.add_argument('--checkpoint', type=Path, required=True,
                        help='its encoder makes the features')
    parser.add_argument('--output', type=Path, required=True, help='folder for the windows')
    parser.add_argument('--windows', type=int, default=240)
    parser.add_argument('--length', type=float, default=2.0, help='of a window [s]')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--cache', type=Path, default=Path('runs/cache'),
                        help='folder for decoded bags')
    arguments = parser.parse_args(argv)
    from liquid_policy.checkpoint import load_checkpoint
    from liquid_policy.export import to_policy
    from liquid_trainer.cache import cached_episodes
    from liquid_trainer.learner import encode_images
    from liquid_trainer.windows import Demonstrations
    checkpoint = load_checkpoint(arguments.checkpoint)
    interface = checkpoint.interface
    data = Demonstrations(cached_episodes(arguments.bags, interface, arguments.cache),
                          1.0 / interface.rate)
    features = encode_images(to_policy(checkpoint), data)
    windows = draw_skills(data, features, interface.rate, arguments.windows, arguments.length,
                          arguments.seed)
    write_skills(arguments.output, windows)
    print(f'{len(windows)} windows of {arguments.length} s from {len(data.names)} episodes in '
          f'{arguments.output}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
