"""
Make a data set of another project's format from bags: the command `export_dataset`.

Episodes are read on the control clock, as for training, with the demonstrated action of every
tick. Steps of these formats are evenly spaced: an episode with more than one missed tick is
divided there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from liquid_policy.command import command
from liquid_policy.interface import load_interface
from liquid_trainer.formats.bag_episodes import bag_layout, read_bags
from liquid_trainer.formats.diffusion_policy_writer import write_diffusion_policy
from liquid_trainer.formats.lerobot_writer import LeRobotSettings, write_lerobot
from liquid_trainer.formats.robomimic_writer import write_robomimic
from liquid_trainer.formats.video import CODECS, QUALITY

FORMATS = ('lerobot', 'lerobot_v2.1', 'robomimic', 'diffusion_policy')


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog='export_dataset', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('bags', nargs='+', type=Path, help='bags, or folders of bags')
    parser.add_argument('--interface', type=Path, required=True, help="the robot's interface file")
    parser.add_argument('--format', choices=FORMATS, required=True,
                        help='lerobot is version 3.0')
    parser.add_argument('--output', type=Path, required=True,
                        help='folder; for robomimic a file; for diffusion_policy either, a file '
                        'if it ends in .zip')
    parser.add_argument('--every', type=int, default=1, metavar='N',
                        help='take one of N ticks (default %(default)s)')
    parser.add_argument('--images', choices=('video', 'png'), default='video',
                        help='of LeRobot: small, or without loss (default %(default)s)')
    parser.add_argument('--codec', choices=tuple(CODECS), default='av1', help='of videos')
    parser.add_argument('--quality', type=int, default=QUALITY,
                        help='of videos, 0 to 51; lower is better (default %(default)s)')
    parser.add_argument('--quiet', action='store_true', help='no bar')
    return parser.parse_args(argv)


def export(arguments: argparse.Namespace) -> int:
    """
    Write what a command line asks for, and return the episodes.

    :raises FormatError: if it cannot be written.
    :raises BagError: if the bags cannot be read.
    """
    interface = load_interface(arguments.interface)
    layout = bag_layout(interface, arguments.every)
    with tqdm(unit='B', unit_scale=True, disable=arguments.quiet, leave=False) as bar:
        def forward(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        episodes = read_bags(arguments.bags, interface, arguments.every, forward,
                             lambda note: tqdm.write(f'note: {note}'))
        if arguments.format == 'robomimic':
            return write_robomimic(arguments.output, layout, episodes)
        if arguments.format == 'diffusion_policy':
            return write_diffusion_policy(arguments.output, layout, episodes)
        version = 'v2.1' if arguments.format.endswith('v2.1') else 'v3.0'
        depth = [picture.name for picture in layout.pictures if picture.depth]
        if depth:
            tqdm.write(f'note: LeRobot gets no depth images; {depth} are left out')
        return write_lerobot(arguments.output, layout, episodes, LeRobotSettings(
            version, arguments.images, arguments.codec, arguments.quality))


@command('export_dataset')
def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when the data set is written."""
    arguments = parse_arguments(argv)
    count = export(arguments)
    print(f'{count} episodes in {arguments.output}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
