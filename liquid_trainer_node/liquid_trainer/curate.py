"""
Choose what to learn from: no repetitions, no standing about, the most helpful first.

`python3 -m liquid_trainer.curate --bags <bags> --interface <file> --output curated.jsonl`
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from liquid_policy.command import command
from liquid_policy.interface import load_interface
from liquid_trainer.cache import StoredEpisode, StoredEpisodes
from liquid_trainer.demonstration_quality import (
    Track,
    Windows,
    idle,
    information,
    kept_stretches,
    make_windows,
    resolution,
    spread,
    take_in_order,
)
from liquid_trainer.page import Block, number, text
from liquid_trainer.selection import Choice, episodes_by_bag, ticks_of, write_choices

# Pictures are compared by the mean brightness of this many rows and columns of patches.
PATCHES = 6


@dataclass(frozen=True)
class CurationSettings:
    """What is left out."""

    longest_idle: float = field(default=1.0, metadata={
        'description': 'idle time that is let be; of longer ones this much is kept', 'unit': 's'})
    near: float = field(default=0.25, metadata={
        'description': 'windows nearer than this share of the way from window to window are the '
                       'same'})
    least_new: float = field(default=0.1, metadata={
        'description': 'an episode with a smaller share of new windows is a repetition'})
    worst: float = field(default=0.0, metadata={
        'description': 'share of the remaining episodes that is left out, those of least '
                       'information'})
    keep: int = field(default=0, metadata={
        'description': 'episodes to keep at most, the most helpful; 0: all'})
    seed: int = field(default=0, metadata={'description': 'of the estimate'})

    def __post_init__(self) -> None:
        if not self.longest_idle > 0 or self.near < 0 or self.keep < 0:
            raise ValueError('longest_idle, near, keep: expected above 0, at least 0 and at least '
                             f'0, came {self.longest_idle}, {self.near} and {self.keep}')
        for name in ('least_new', 'worst'):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f'{name}: expected 0 to below 1, came {getattr(self, name)}')


def track_of(episode: StoredEpisode, name: str) -> Track:
    """
    Return what is compared of an episode.

    :param episode: as cached.
    :param name: to call it.
    """
    return Track(name, np.asarray(episode.times), np.asarray(episode.vectors, float),
                 np.asarray(episode.actions, float), _scene(episode))


def _scene(episode: StoredEpisode) -> np.ndarray:
    """Mean brightness of patches of the picture known at each tick, 0 to 1, `(T, patches)`."""
    colors = episode.colors
    ticks = len(episode.times)
    if not len(colors):
        return np.zeros((ticks, 0))
    height, width = (size // PATCHES * PATCHES for size in colors.shape[1:3])
    seen = np.empty((len(colors), PATCHES * PATCHES))
    for begin in range(0, len(colors), 64):
        some = np.asarray(colors[begin:begin + 64, :height, :width]).mean(-1)
        patches = some.reshape(len(some), PATCHES, height // PATCHES, PATCHES, width // PATCHES)
        seen[begin:begin + 64] = patches.mean((2, 4)).reshape(len(some), -1) / 255.0
    return seen[np.maximum(np.asarray(episode.image_index), 0)]


def curate(tracks: Sequence[Track], settings: CurationSettings | None = None,
           places: Sequence[tuple[str, int]] | None = None) -> list[Choice]:
    """
    Rank episodes and choose.

    :param tracks: all episodes.
    :param settings: what is left out.
    :param places: bag and number within it of each; names and 0 where left out.
    :return: a choice for each, in the order given.
    """
    settings = settings or CurationSettings()
    places = places or [(track.name, 0) for track in tracks]
    scales = (spread([track.states for track in tracks]),
              spread([track.actions for track in tracks]),
              spread([track.scene for track in tracks]))
    quiet = [idle(track, scales) for track in tracks]
    parts = [kept_stretches(track.times, still, settings.longest_idle)
             for track, still in zip(tracks, quiet, strict=True)]
    windows = _windows_of_parts(tracks, parts)
    scores = information(windows, seed=settings.seed)
    order = take_in_order(windows, scores, settings.near * resolution(windows),
                          settings.least_new)
    reasons = {one: f'repeats {tracks[other].name}' for one, other in order.repeated.items()}
    for index, kept in enumerate(parts):
        if not kept:
            reasons[index] = 'nothing happens in it'
    left = [index for index in order.chosen if index not in reasons]
    for index in sorted(left, key=lambda index: scores[index])[:int(settings.worst * len(left))]:
        reasons[index] = 'its actions follow least from what is seen'
    left = [index for index in left if index not in reasons]
    if settings.keep:
        reasons |= {index: 'less helpful than those kept' for index in left[settings.keep:]}
        left = left[:settings.keep]
    rank = {index: place for place, index in enumerate(left, 1)}
    return [Choice(
        *places[index], track.name,
        () if index in reasons else tuple((round(begin - float(track.times[0]), 6),
                                           round(end - float(track.times[0]), 6))
                                          for begin, end in parts[index]),
        rank.get(index, 0), round(float(scores[index]), 4), round(float(order.novelty[index]), 4),
        round(float(quiet[index].mean()), 4), reasons.get(index, ''))
        for index, track in enumerate(tracks)]


def _windows_of_parts(tracks: Sequence[Track], parts: Sequence[Sequence[tuple[float, float]]]
                      ) -> Windows:
    """Return windows of what is left of every episode; of one without anything left, all."""
    pieces, owners = [], []
    for index, (track, kept) in enumerate(zip(tracks, parts, strict=True)):
        for first, last in ticks_of(track.times, kept) or [(0, len(track.times))]:
            pieces.append(Track(track.name, track.times[first:last], track.states[first:last],
                                track.actions[first:last], track.scene[first:last]))
            owners.append(index)
    windows = make_windows(pieces)
    return replace(windows, episode=np.array(owners)[windows.episode])


def blocks(tracks: Sequence[Track], choices: Sequence[Choice], most: int = 40) -> list[Block]:
    """Return the choice as tables."""
    ranked = sorted((choice for choice in choices if choice.rank), key=lambda choice: choice.rank)
    rows = [(f'{choice.rank}', choice.name, number(choice.information, 2),
             number(choice.novelty, 0, 100), number(choice.idle, 0, 100),
             number(choice.seconds, 1)) for choice in ranked]
    found = [Block('Kept, the most helpful first', (
        'rank', 'episode', 'information [nats]', 'new [%]', 'idle [%]', 'kept [s]'),
        tuple(rows[:most]), f'{len(rows) - most} more are kept.' if len(rows) > most else '')]
    out = [(choice.name, choice.reason) for choice in choices if choice.reason]
    if out:
        found.append(Block('Left out', ('episode', 'because'), tuple(out[:most]),
                           f'{len(out) - most} more are left out.' if len(out) > most else ''))
    before = sum(float(track.times[-1] - track.times[0]) for track in tracks)
    after = sum(choice.seconds for choice in choices)
    idle_cut = sum(float(track.times[-1] - track.times[0]) - choice.seconds
                   for track, choice in zip(tracks, choices, strict=True) if choice.parts)
    found.append(Block('In all', ('', ''), (
        ('episodes kept', f'{len(ranked)} of {len(choices)}'),
        ('seconds kept', f'{after:.1f} of {before:.1f}'),
        ('idle seconds cut from those kept', f'{idle_cut:.1f}'))))
    return found


@command('curate')
def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when a list was written."""
    default = CurationSettings()
    parser = argparse.ArgumentParser(
        prog='curate', description='Choose what to learn from; `train --curated` takes the list.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--bags', nargs='+', type=Path, required=True,
                        help='bags, or folders of bags')
    parser.add_argument('--interface', type=Path, required=True, help="the robot's interface file")
    parser.add_argument('--output', type=Path, required=True, help='list to write')
    parser.add_argument('--cache', type=Path, default=Path('runs/cache'),
                        help='folder for decoded bags, the same as for train')
    parser.add_argument('--namespace', default=None,
                        help='of the robot, where bags hold several')
    parser.add_argument('--workers', type=int, default=2, help='processes that decode')
    for name, entry in CurationSettings.__dataclass_fields__.items():
        value = getattr(default, name)
        parser.add_argument(f'--{name.replace("_", "-")}', type=type(value), default=value,
                            help=entry.metadata['description'])
    options = parser.parse_args(argv)
    settings = CurationSettings(**{name: getattr(options, name)
                                   for name in CurationSettings.__dataclass_fields__})
    found = episodes_by_bag(options.bags, load_interface(options.interface), options.cache,
                            options.workers, None, options.namespace)
    tracks = [track_of(episode[0], _label(bag, number, episode))
              for bag, number, episode in found]
    choices = curate(tracks, settings, [(str(bag.resolve()), number)
                                        for bag, number, _ in found])
    write_choices(options.output, choices, {'settings': asdict(settings)})
    print(text(blocks(tracks, choices)))
    then = shlex.join(map(str, ('--bags', *options.bags, '--curated', options.output)))
    print(f'list: {options.output}; train {then}')
    return 0


def _label(bag: Path, number_within: int, episode: StoredEpisodes) -> str:
    name = episode.names[0]
    return name if name == bag.name else f'{bag.name} {name or number_within}'


if __name__ == '__main__':
    sys.exit(main())
