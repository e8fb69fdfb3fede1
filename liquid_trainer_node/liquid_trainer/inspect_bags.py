"""
Say what is in bags of any robot: topics, rates, gaps, stamps, episodes, coverage, faults.

`python3 -m liquid_trainer.inspect_bags <bags> --output <page.html>`
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from liquid_policy.command import command
from liquid_policy.interface import Interface, load_interface
from liquid_trainer.bag_file import BagError, find_bags
from liquid_trainer.bag_statistics import BagData, TopicData, read_statistics
from liquid_trainer.bags import ReadSettings, read_episodes
from liquid_trainer.demonstration_quality import (
    Track,
    idle,
    make_windows,
    resolution,
    spread,
    take_in_order,
)
from liquid_trainer.processes import worker_processes

# Stamps and times of receipt further apart than this are of two clocks [s].
OTHER_CLOCK = 1.0
# Longer delays from stamp to receipt are worth a remark [s].
SLOW = 0.1
# Values that stay the same for longer than this, while they usually change, are worth one [s].
STUCK = 1.0
# Distance below which windows are the same, as a share of the way from window to window.
NEAR = 0.25


@dataclass(frozen=True)
class Finding:
    """
    A remark.

    :param tone: `bad` (spoils learning), `warn` (look at it) or `good`.
    :param text: what, where, how often, and what to do.
    """

    tone: str
    text: str


@dataclass
class Inspection:
    """
    What was found in some bags.

    :param bags: in the order they were read.
    :param findings: worst first.
    :param tracks: episodes on the control clock, if an interface was given.
    :param idle: share of each track's ticks at which nothing happens.
    :param repeated: tracks that repeat another one: number of both.
    :param unreadable: bags that could not be read.
    """

    bags: list[BagData]
    findings: list[Finding] = field(default_factory=list)
    tracks: list[Track] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)
    repeated: dict[int, int] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    @property
    def topics(self) -> dict[str, list[TopicData]]:
        """Every topic with its data in each bag that has it."""
        found: dict[str, list[TopicData]] = {}
        for bag in self.bags:
            for name, topic in bag.topics.items():
                found.setdefault(name, []).append(topic)
        return dict(sorted(found.items()))


def inspect(paths: Iterable[str | Path], interface: Interface | None = None, large: bool = True,
            workers: int = 1) -> Inspection:
    """
    Read bags and say what is in them.

    :param paths: bags, or folders with bags.
    :param interface: of the robot, for what is asked of episodes; any bag can do without.
    :param large: read pictures and point clouds too.
    :param workers: processes that read.
    :raises BagError: if none of the bags can be read.
    """
    bags = find_bags(list(paths))
    result = Inspection([])
    work = partial(_read, large=large)
    with worker_processes(workers) if workers > 1 and len(bags) > 1 else _Here() as pool, \
            tqdm(total=len(bags), unit='bag', disable=None, leave=False) as bar:
        for found in pool.map(work, bags):
            bar.update()
            if isinstance(found, str):
                result.unreadable.append(found)
            else:
                result.bags.append(found)
    if not result.bags:
        raise BagError('; '.join(result.unreadable) or 'expected bags, came none')
    if interface is not None:
        _read_tracks(result, interface)
    result.findings = sorted(_findings(result), key=lambda finding: (
        'bad', 'warn', 'good').index(finding.tone))
    return result


class _Here:
    """Maps in this process."""

    map = staticmethod(map)

    def __enter__(self) -> _Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _read(path: Path, large: bool) -> BagData | str:
    try:
        return read_statistics(path, large)
    except BagError as error:
        return str(error)


def _read_tracks(result: Inspection, interface: Interface) -> None:
    for bag in result.bags:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                for episode in read_episodes(bag.path, interface, ReadSettings(images=False)):
                    if len(episode) > 1:
                        result.tracks.append(Track(
                            f'{bag.path.name} {episode.name}' if episode.name != bag.path.name
                            else episode.name, episode.times, episode.vectors, episode.actions,
                            np.zeros((len(episode), 0))))
        except BagError as error:
            result.unreadable.append(str(error))
    if not result.tracks:
        return
    scales = (spread([track.states for track in result.tracks]),
              spread([track.actions for track in result.tracks]), np.ones(0))
    result.idle = [float(idle(track, scales).mean()) for track in result.tracks]
    if len(result.tracks) > 1:
        windows = make_windows(result.tracks)
        result.repeated = take_in_order(windows, np.zeros(len(result.tracks)),
                                        NEAR * resolution(windows)).repeated


def _findings(result: Inspection) -> Iterable[Finding]:
    for text in result.unreadable:
        yield Finding('bad', text)
    for bag in result.bags:
        for text in bag.damage:
            yield Finding('bad', f'{bag.path.name}: {text}; what is whole is used')
    by_digest: dict[str, list[str]] = {}
    for bag in result.bags:
        by_digest.setdefault(bag.digest, []).append(bag.path.name)
    for names in by_digest.values():
        if len(names) > 1:
            yield Finding('bad', f'the same bag {len(names)} times: {", ".join(names)}; keep one')
    types: dict[str, set[str]] = {}
    for name, parts in result.topics.items():
        types.setdefault(name, set()).update(part.type for part in parts)
        yield from _topic_findings(name, parts)
    for name, found in types.items():
        if len(found) > 1:
            yield Finding('bad', f'{name}: of types {", ".join(sorted(found))}')
    for name, parts in result.topics.items():
        if len(parts) < len(result.bags):
            yield Finding('warn', f'{name}: missing in {len(result.bags) - len(parts)} of '
                          f'{len(result.bags)} bags')
    for one, other in result.repeated.items():
        yield Finding('warn', f'{result.tracks[one].name}: moves and acts as '
                      f'{result.tracks[other].name} does; it teaches little besides (`curate`)')
    for track, share in zip(result.tracks, result.idle, strict=True):
        if share > 0.3:
            yield Finding('warn', f'{track.name}: nothing happens for {share:.0%} of the time '
                          '(`curate` cuts that)')
    for track in result.tracks:
        bad = int((~np.isfinite(track.states)).sum() + (~np.isfinite(track.actions)).sum())
        if bad:
            yield Finding('bad', f'{track.name}: {bad} numbers are not finite')


def _topic_findings(name: str, parts: Sequence[TopicData]) -> Iterable[Finding]:
    """Say what is wrong with one topic, once for all bags."""
    where = '' if len(parts) == 1 else f' in {len(parts)} bags'

    def total(key: str) -> int:
        return sum(getattr(part, key) for part in parts)

    if count := total('undecoded'):
        yield Finding('bad', f'{name}: {count} messages cannot be decoded')
    if count := total('backwards'):
        yield Finding('bad', f'{name}: {count} stamps go back{where}; check the driver, and that '
                      'one node publishes this topic')
    if count := total('repeated_stamps'):
        yield Finding('warn', f'{name}: {count} stamps repeat the one before{where}')
    if count := total('unstamped'):
        yield Finding('bad', f'{name}: {count} stamps are zero; set header.stamp in the driver')
    # Where it is so all the time, it is how the topic is.
    count, every = total('other_shapes'), sum(len(part.received) for part in parts)
    if 0 < count < 0.1 * every:
        yield Finding('warn', f'{name}: {count} messages have other lengths or names than the '
                      'first')
    delays = np.concatenate([part.delays for part in parts])
    stamped = np.concatenate([part.stamps for part in parts]) > 0
    delays = delays[stamped] if len(stamped) == len(delays) else delays
    if len(delays):
        middle, late = float(np.median(delays)), float(np.percentile(delays, 99))
        if abs(middle) > OTHER_CLOCK:
            yield Finding('warn', f'{name}: received {middle:.3g} s after its stamps: two clocks '
                          '(simulated time, or machines that are not synchronised)')
        elif late > SLOW:
            yield Finding('warn', f'{name}: 1 % of messages come more than {late:.2g} s after '
                          'their stamp')
        elif float(delays.min()) < -0.005:
            yield Finding('warn', f'{name}: stamps up to {-float(delays.min()):.3g} s ahead of '
                          'receipt: clocks of two machines')
    lost, gaps = total('lost'), sum(len(part.gaps) for part in parts)
    if gaps:
        longest = max(float(part.gaps[:, 1].max()) for part in parts if len(part.gaps))
        count = sum(len(part.received) for part in parts)
        yield Finding('warn', f'{name}: {gaps} gaps{where}, the longest {longest:.3g} s; about '
                      f'{lost} messages ({lost / (lost + count):.1%}) at its usual rate')
    not_finite: Counter[str] = Counter()
    spikes: Counter[str] = Counter()
    for part in parts:
        not_finite.update(part.not_finite)
        spikes.update(part.spikes())
    for path, count in not_finite.most_common(8):
        yield Finding('bad', f'{name} {path}: {count} times NaN or infinite')
    if spikes:
        yield Finding('warn', f'{name}: samples far from both neighbours: ' + ', '.join(
            f'{path} ({count})' for path, count in spikes.most_common(6)))
    for part in parts:
        if part.longest_repeat > STUCK and part.repeats < 0.5 * len(part.received):
            yield Finding('warn', f'{name}: the same values for {part.longest_repeat:.3g} s '
                          'while they usually change: frozen sensor or standing robot')
            break


@command('inspect_bags')
def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when the bags could be read."""
    parser = argparse.ArgumentParser(prog='inspect_bags', description=(
        'Say what is in bags of any robot, in the terminal and as one HTML page.'))
    parser.add_argument('bags', nargs='+', type=Path, help='bags, or folders with bags')
    parser.add_argument('--output', type=Path, default=Path('runs/bags.html'),
                        help='HTML page (default %(default)s)')
    parser.add_argument('--interface', type=Path, default=None, help=(
        "the robot's interface file, for coverage, repetitions and idle time of its episodes"))
    parser.add_argument('--no-images', action='store_true',
                        help='leave pictures and point clouds out; faster')
    parser.add_argument('--workers', type=int, default=1, help='processes that read')
    options = parser.parse_args(argv)
    from liquid_trainer.inspect_page import blocks, write_inspection
    from liquid_trainer.page import text
    interface = load_interface(options.interface) if options.interface else None
    result = inspect(options.bags, interface, not options.no_images, options.workers)
    size = write_inspection(result, interface, options.output)
    print(text(blocks(result)))
    for finding in result.findings:
        print(f'{finding.tone}: {finding.text}')
    if not result.findings:
        print('good: nothing to complain about')
    print(f'page: {options.output} ({size / 1e6:.1f} MB)')
    return 0


if __name__ == '__main__':
    sys.exit(main())
