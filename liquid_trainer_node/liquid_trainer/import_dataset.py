"""
Make rosbag2 bags of demonstrations in another project's format: the command `import_dataset`.

Beside the bags, `interface.yaml` says what is in them, so that `train --bags FOLDER --interface
FOLDER/interface.yaml` works at once. An interface file of your own can be given instead; numbers
are then found by the names it gives them.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from liquid_policy.command import command
from liquid_policy.interface import Interface, load_interface
from liquid_trainer.formats.bag_episodes import Plan, write_bag
from liquid_trainer.formats.dataset import (
    Dataset,
    Demonstration,
    FormatError,
    Picture,
    with_velocities,
)
from liquid_trainer.formats.diffusion_policy import read_diffusion_policy
from liquid_trainer.formats.interfaces import (
    derive_interface,
    extent_of,
    interface_text,
    plain_name,
    with_units,
)
from liquid_trainer.formats.lerobot import read_lerobot
from liquid_trainer.formats.minari import read_d4rl, read_minari
from liquid_trainer.formats.robomimic import read_robomimic
from liquid_trainer.formats.video import MissingFileError

INTERFACE = 'interface.yaml'
FORMATS = ('lerobot', 'robomimic', 'diffusion_policy', 'minari', 'd4rl')
_SIDE, _SHORT = 32, 96      # the encoder takes multiples of 32 pixels; short side when imported


def find_format(path: Path) -> str:
    """
    Say which of `FORMATS` a data set has.

    :raises FormatError: if it is none of them.
    """
    if (path / 'meta' / 'info.json').is_file():
        return 'lerobot'
    if path.suffix == '.zip' or (path / '.zgroup').is_file():
        return 'diffusion_policy'
    if (path / 'data' / 'main_data.hdf5').is_file() or path.name == 'main_data.hdf5':
        return 'minari'
    if path.is_file() and path.suffix in ('.hdf5', '.h5'):
        from liquid_trainer.formats.hdf5_file import opened
        with opened(path) as file:
            return 'robomimic' if 'data' in file else 'd4rl'
    raise FormatError(f'{path}: expected a LeRobot folder (meta/info.json), a .zarr folder or zip '
                      'file, a Minari folder (data/main_data.hdf5) or an .hdf5 file, came '
                      f'{"another folder" if path.is_dir() else "none of them"}; check the path')


def open_dataset(path: Path, kind: str = '', observations: Sequence[str] = (),
                 images: Sequence[str] | None = None, rate: float | None = None) -> Dataset:
    """
    Open a data set of any format.

    :param kind: one of `FORMATS`; found by itself when left out.
    :param observations: to read, by name; all when left out.
    :param images: to read, by name; all when None.
    :param rate: steps per second, for formats that do not say.
    :raises FormatError: if it cannot be read, or lacks what is asked for.
    """
    kind = kind or find_format(path)
    if kind == 'lerobot':
        dataset = read_lerobot(path, observations, images)
    elif kind == 'diffusion_policy':
        dataset = read_diffusion_policy(path, observations, images, rate)
    elif kind == 'robomimic':
        dataset = read_robomimic(path, [*observations, *(images or [])], rate=rate)
        if images == []:
            dataset = replace(dataset, layout=replace(dataset.layout, pictures=()))
    elif kind in ('minari', 'd4rl'):
        read: Callable[..., Dataset] = read_minari if kind == 'minari' else read_d4rl
        dataset = read(path, observations, rate)
    else:
        raise FormatError(f'expected a format of {FORMATS}, came {kind!r}')
    return dataset


def training_size(picture: Picture) -> tuple[int, int]:
    """Return height and width of about 96 pixels at the short side, as the encoder takes them."""
    scale = min(1.0, _SHORT / min(picture.height, picture.width))

    def fit(side: int) -> int:
        return max(_SIDE, round(side * scale / _SIDE) * _SIDE)

    return fit(picture.height), fit(picture.width)


class Import:
    """
    One import.

    :param dataset: what is imported.
    :param output: folder for bags and interface.
    :param interface: of the robot; made from the data set when None.
    :param sizes: height and width of images by camera.
    :param camera: which one perception looks through.
    :param skip_missing: leave out episodes of which a file is missing.
    :param outcome: of demonstrations that do not say.
    :param compression: of the bags.
    """

    def __init__(self, dataset: Dataset, output: Path, interface: Interface | None = None,
                 sizes: dict[str, tuple[int, int]] | None = None, camera: str = '',
                 skip_missing: bool = False, outcome: str = 'success', compression: str = '',
                 report: Callable[[str], None] = print) -> None:
        self.output, self.outcome, self.compression = output, outcome, compression
        self.report, self.skip_missing = report, skip_missing
        self.dataset, self.left_out = dataset, 0
        self.given = interface
        self.interface = interface or derive_interface(
            dataset.layout, extent_of(self._episodes(), dataset.layout.rate or 1.0), sizes or {},
            camera)
        self.plan = Plan(dataset, self.interface)

    def run(self, progress: bool = True) -> int:
        """
        Write bags and interface, and return how many bags.

        :raises FormatError: if an episode cannot be read, or a bag exists already.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        self.left_out, count = 0, 0
        with tqdm(total=len(self.dataset), unit='episode', disable=not progress) as bar:
            for episode in self._episodes(lambda: bar.update()):
                if episode.outcome == 'unmarked':
                    episode = replace(episode, outcome=self.outcome)
                try:
                    write_bag(self.output / plain_name(episode.name), episode, self.plan,
                              self.compression)
                except MissingFileError as error:
                    self._missing(error)
                    continue
                count += 1
        if not count:
            raise FormatError(f'{self.dataset.source}: expected an episode with all its files, '
                              'came none; leave the images out (--no-images)')
        if self.given is None:
            text = interface_text(self.interface, self.dataset.layout, self.dataset.source)
            (self.output / INTERFACE).write_text(text, encoding='utf-8')
        if self.left_out:
            self.report(f'{self.left_out} of {len(self.dataset)} episodes left out, because files '
                        'are missing')
        return count

    def _episodes(self, done: Callable[[], Any] = lambda: None):
        for number in range(len(self.dataset)):
            try:
                episode: Demonstration = self.dataset[number]
            except MissingFileError as error:
                self._missing(error)
            else:
                yield episode
            done()

    def _missing(self, error: MissingFileError) -> None:
        if not self.skip_missing:
            raise MissingFileError(f'{error}; get the file, choose episodes (--episodes), leave '
                                   'out those that are not whole (--skip-missing), or leave the '
                                   'images out (--no-images)')
        self.left_out += 1


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog='import_dataset', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('dataset', type=Path, help='folder or file')
    parser.add_argument('--output', type=Path, help='folder for the bags and interface.yaml; '
                        'without it, only say what the data set holds')
    parser.add_argument('--format', choices=FORMATS, default='',
                        help='found by itself if left out')
    parser.add_argument('--interface', type=Path, help="your robot's interface file")
    parser.add_argument('--episodes', nargs='+', type=int, help='numbers of episodes, from 0')
    parser.add_argument('--observations', nargs='+', default=[], help='names; default: all')
    parser.add_argument('--images', nargs='+', help='names of cameras; default: all')
    parser.add_argument('--no-images', action='store_true', help='leave the images out')
    parser.add_argument('--camera', default='', help='the one a policy sees; default: the first')
    parser.add_argument('--size', nargs=2, type=int, metavar=('HEIGHT', 'WIDTH'),
                        help='of the images [px]; default: about 96 at the short side')
    parser.add_argument('--keep-size', action='store_true', help='leave images as they are')
    parser.add_argument('--rate', type=float, help='steps per second, where the data do not say')
    parser.add_argument('--unit', nargs='+', default=[], metavar='PATTERN=UNIT',
                        help="such as action/*Shoulder*=rad 'observation.state=rad'")
    parser.add_argument('--velocities', nargs='+', metavar='OBSERVATION',
                        help='observations whose rate of change is added, as a robot would '
                        'measure it, such as observation.state')
    parser.add_argument('--outcome', default='success', choices=('success', 'failure', 'unmarked'),
                        help='of demonstrations that do not say (default %(default)s)')
    parser.add_argument('--skip-missing', action='store_true',
                        help='leave out episodes of which a file is missing')
    parser.add_argument('--compression', default='', choices=('', 'zstd', 'lz4'))
    parser.add_argument('--quiet', action='store_true', help='no bar')
    arguments = parser.parse_args(argv)
    if arguments.no_images:
        arguments.images = []
    for pair in arguments.unit:
        if '=' not in pair:
            parser.error(f'--unit: expected PATTERN=UNIT, came {pair!r}')
    return arguments


def describe(dataset: Dataset) -> str:
    """Say in a few lines what a data set holds."""
    layout = dataset.layout
    rate = 'an unknown rate' if layout.rate is None else f'{layout.rate:g} Hz'
    lines = [f'{dataset.source}: {len(dataset)} episodes of {layout.robot} at {rate}']
    for kind, parts in (('observation', layout.observations), ('action', (layout.action,))):
        for part in parts:
            named = ', '.join(f'{name} [{unit}]' for name, unit in
                              zip(part.names, part.units, strict=True))
            lines.append(f'  {kind} {part.name}: {named}')
    lines += [f'  image {picture.name}: {picture.width}x{picture.height}'
              f'{", depth" if picture.depth else ""}' for picture in layout.pictures]
    return '\n'.join(lines)


@command('import_dataset')
def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when all that was asked for is written."""
    arguments = parse_arguments(argv)
    dataset = open_dataset(arguments.dataset, arguments.format, arguments.observations,
                           arguments.images, arguments.rate)
    if arguments.unit:
        units = dict(pair.rpartition('=')[::2] for pair in arguments.unit)
        dataset = replace(dataset, layout=with_units(dataset.layout, units))
    if arguments.velocities:
        dataset = with_velocities(dataset, arguments.velocities)
    if arguments.episodes:
        dataset = dataset.chosen(arguments.episodes)
    print(describe(dataset))
    if arguments.output is None:
        return 0
    pictures = dataset.layout.pictures
    sizes = {} if arguments.keep_size else {
        picture.name: tuple(arguments.size) if arguments.size else training_size(picture)
        for picture in pictures}
    interface = load_interface(arguments.interface) if arguments.interface else None
    count = Import(dataset, arguments.output, interface, sizes, arguments.camera,
                   arguments.skip_missing, arguments.outcome, arguments.compression
                   ).run(not arguments.quiet)
    where = arguments.interface or arguments.output / INTERFACE
    then = shlex.join(map(str, ('--bags', arguments.output, '--interface', where)))
    print(f'{count} bags in {arguments.output}; now: train {then} --output runs/policy')
    return 0


if __name__ == '__main__':
    sys.exit(main())
