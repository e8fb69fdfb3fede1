"""
Says what can be learned from recorded bags, before hours are spent on learning.

`python3 -m liquid_trainer.check_bags <bags> --interface <file>`
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from liquid_policy.command import command
from liquid_policy.interface import Interface, load_interface

from .bags import Episode, ReadSettings, read_episodes


def describe(episode: Episode, interface: Interface) -> list[str]:
    """
    Say what is in an episode, and what looks wrong.

    :return: one line on the episode, then one per remark.
    """
    lines = [f'{Path(episode.source).name} {episode.name}: {episode.outcome}, '
             f'{episode.times[-1]:.2f} s, {len(episode)} ticks, {len(episode.image_stamps)} '
             'images']
    for number, name in enumerate(interface.action_names):
        values, limit = episode.actions[:, number], interface.limits[name]
        speed = np.inf if limit.velocity is None else limit.velocity
        low, high = limit.range or (-speed, speed)
        outside = np.mean((values < low) | (values > high))
        if outside > 0:
            lines.append(f'  {name}: {outside:.1%} of the demonstrated actions are outside its '
                         f'limits of {low:g} to {high:g} and cannot be imitated')
        if len(values) > 1 and (values == values[0]).all():
            lines.append(f'  {name}: always {values[0]:g}')
    for reason, count in {**episode.dropped, **episode.rejected}.items():
        lines.append(f'  left out: {count} {reason}')
    return lines


def check(paths: list[Path], interface: Interface, images: bool = True,
          namespace: str | None = None) -> Iterator[str]:
    """
    Read bags and say what is in them.

    :param paths: bags or folders of bags.
    :param interface: the robot's interface.
    :param images: read images too.
    :param namespace: of the robot, where bags hold several.
    :raises BagError: for a bag that cannot be used.
    """
    notes: list[str] = []
    seconds, ticks = 0.0, 0
    outcomes: dict[str, int] = {}
    with tqdm(unit='B', unit_scale=True, disable=None, leave=False) as bar:
        def forward(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        settings = ReadSettings(images=images, namespace=namespace)
        for episode in read_episodes(paths, interface, settings, forward, notes.append):
            yield from (f'note: {note}' for note in notes)
            notes.clear()
            yield from describe(episode, interface)
            seconds += episode.times[-1]
            ticks += len(episode)
            outcomes[episode.outcome] = outcomes.get(episode.outcome, 0) + 1
    yield from (f'note: {note}' for note in notes)
    listed = ', '.join(f'{count} {outcome}' for outcome, count in outcomes.items())
    yield f'{sum(outcomes.values())} episodes ({listed or "none"}), {seconds:.1f} s, {ticks} ticks'


@command('check_bags')
def main(argv: list[str] | None = None) -> int:
    """Check bags."""
    parser = argparse.ArgumentParser(description='Say what can be learned from recorded bags.')
    parser.add_argument('bags', nargs='+', type=Path, help='bags, or folders with bags')
    parser.add_argument('--interface', type=Path, required=True, help="the robot's interface file")
    parser.add_argument('--no-images', action='store_true', help='leave images out; faster')
    parser.add_argument('--namespace', default=None,
                        help='of the robot, where bags hold several')
    options = parser.parse_args(argv)
    for line in check(options.bags, load_interface(options.interface), not options.no_images,
                      options.namespace):
        tqdm.write(line)
    return 0


if __name__ == '__main__':
    sys.exit(main())
