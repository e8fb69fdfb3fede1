"""The page of inspected bags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from liquid_policy.conversion import NANOSECONDS
from liquid_policy.interface import Interface
from liquid_trainer import plots
from liquid_trainer.bag_statistics import TopicData
from liquid_trainer.demonstration_quality import make_windows
from liquid_trainer.inspect_bags import Inspection
from liquid_trainer.page import Block, Page, findings, number, tile, write_page

# What a page shows at most; tables name how much is left out.
MOST_TOPICS, MOST_FIELDS, MOST_ROWS = 40, 12, 60
POINTS = 2500


def blocks(result: Inspection) -> list[Block]:
    """
    Return the figures as tables.

    :param result: what was found.
    """
    rows = []
    for name, parts in result.topics.items():
        count = sum(len(part.received) for part in parts)
        delays = np.concatenate([part.delays for part in parts])
        gaps = [part.gaps for part in parts if len(part.gaps)]
        rows.append((
            name, parts[0].type, f'{count:,}', number(_median(part.rate for part in parts), 1),
            number(_median(part.jitter for part in parts), 1, 1e3),
            f'{sum(len(gap) for gap in gaps)}' if gaps else '',
            number(max((float(gap[:, 1].max()) for gap in gaps), default=None), 2) if gaps
            else '',
            number(float(np.median(delays)) if len(delays) else None, 1, 1e3)))
    found = [Block('Topics', ('topic', 'type', 'messages', 'rate [Hz]', 'p99 interval [ms]',
                              'gaps', 'longest [s]', 'receipt - stamp [ms]'),
                   tuple(rows[:MOST_TOPICS]), _left_out(rows, MOST_TOPICS) or
                   'Rate: of the median interval, by header stamps where there are any. '
                   'A gap is more than three usual intervals.', wide=True)]
    listed = [(bag.path.name, number(bag.duration, 1), f'{bag.messages:,}',
               number(bag.size, 1, 1e-6), f'{len(bag.topics)}',
               f'{len(bag.episodes)}' if bag.marked else 'no markers') for bag in result.bags]
    found.append(Block('Bags', ('bag', 'seconds', 'messages', 'MB', 'topics', 'episodes'),
                       tuple(listed[:MOST_ROWS]), _left_out(listed, MOST_ROWS)))
    if result.tracks:
        episodes = [(track.name, number(float(track.times[-1]), 1), f'{len(track.times):,}',
                     number(result.idle[index], 0, 100),
                     result.tracks[result.repeated[index]].name if index in result.repeated
                     else '')
                    for index, track in enumerate(result.tracks)]
        found.append(Block('Episodes', ('episode', 'seconds', 'ticks', 'idle [%]', 'repeats'),
                           tuple(episodes[:MOST_ROWS]), _left_out(episodes, MOST_ROWS)))
    return found


def _left_out(rows: Sequence, most: int) -> str:
    return f'{len(rows) - most} more are not shown.' if len(rows) > most else ''


def _median(values: Any) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(np.median(known)) if known else None


def _starts(result: Inspection) -> list[float]:
    """Where each bag begins when all lie end to end [s]."""
    durations = [bag.duration for bag in result.bags]
    gap = 0.02 * sum(durations) / max(len(durations), 1)
    return [sum(durations[:index]) + index * gap for index in range(len(durations))]


def _seconds(result: Inspection, bag: int, times: np.ndarray, offset: float) -> np.ndarray:
    """Times on the page's axis [s]; what is stamped by another clock begins with the bag."""
    since = (times - result.bags[bag].start) / NANOSECONDS
    if len(since) and not -1.0 <= since[0] <= result.bags[bag].duration + 1.0:
        since = (times - times[0]) / NANOSECONDS
    return since + offset


def _timeline(result: Inspection, starts: list[float]) -> dict[str, Any]:
    rows: dict[str, list[list[float]]] = {}
    for index, bag in enumerate(result.bags):
        for begin, end, _ in bag.episodes if bag.marked else ():
            rows.setdefault('episodes', []).append(
                [(time - bag.start) / NANOSECONDS + starts[index] for time in (begin, end)])
    for name in list(result.topics)[:MOST_TOPICS]:
        spans = rows.setdefault(name, [])
        for index, bag in enumerate(result.bags):
            topic = bag.topics.get(name)
            if topic is None or not len(topic.received):
                continue
            seconds = _seconds(result, index, np.sort(topic.times), starts[index])
            cut = np.flatnonzero(np.diff(seconds) > max(3 * topic.interval, 1e-9)) \
                if len(seconds) > 2 else np.zeros(0, int)
            begins = np.concatenate(([0], cut + 1))
            ends = np.concatenate((cut, [len(seconds) - 1]))
            spans += [[float(seconds[a]), float(seconds[b])] for a, b in
                      zip(begins, ends, strict=True)][:500]
    colors = [plots.ORANGE if name == 'episodes' else plots.BLUE for name in rows]
    return plots.lanes('when there were messages', rows, colors)


def _joined(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Lines of several bags as one, broken between them."""
    x = np.concatenate([np.append(part[0], part[0][-1:]) for part in parts if len(part[0])]
                       or [np.zeros(0)])
    y = np.concatenate([np.append(part[1], np.nan) for part in parts if len(part[0])]
                       or [np.zeros(0)])
    return plots.thinned(x, y, POINTS)


def _timing(result: Inspection, starts: list[float]) -> list[dict[str, Any]]:
    """Time between messages, and from stamp to receipt."""
    between, delays = [], []
    for name in list(result.topics)[:MOST_TOPICS]:
        steps, late = [], []
        for index, bag in enumerate(result.bags):
            topic = bag.topics.get(name)
            if topic is None or len(topic.received) < 3:
                continue
            times = np.sort(topic.times)
            seconds = _seconds(result, index, times, starts[index])
            steps.append((seconds[1:], np.diff(times) * 1e-6))
            if len(topic.stamps):
                received = _seconds(result, index, topic.received, starts[index])
                late.append((received, 1e3 * topic.delays))
        if steps:
            x, y = _joined(steps)
            between.append({'kind': 'time', 'title': name, 'unit': 'ms', 'floor': 0, 'series': [
                plots.line('', x, y, plots.BLUE, dots=True)]})
        if late and any(np.ptp(values) > 0 for _, values in late):
            x, y = _joined(late)
            delays.append({'kind': 'time', 'title': name, 'unit': 'ms', 'series': [
                plots.line('', x, y, plots.ORANGE, dots=True)]})
    found = []
    if between:
        found.append({'title': 'Time between messages', 'columns': 'three', 'plots': between,
                      'note': 'By header stamp where there is one, else by time of receipt.'})
    if delays:
        found.append({'title': 'From stamp to receipt', 'columns': 'three', 'plots': delays,
                      'note': 'Topics whose delay is always the same are left out.'})
    return found


def _values(result: Inspection, starts: list[float]) -> list[dict[str, Any]]:
    """The numbers of each topic over time; those that never change are left out."""
    found = []
    for name, parts in list(result.topics.items())[:MOST_TOPICS]:
        paths = _varying(parts)
        shown = []
        for path in paths[:MOST_FIELDS]:
            lines = []
            for index, bag in enumerate(result.bags):
                topic = bag.topics.get(name)
                if topic is None or path not in topic.paths:
                    continue
                seconds = _seconds(result, index, topic.times[topic.rows], starts[index])
                lines.append((seconds, topic.values[:, topic.paths.index(path)]))
            x, y = _joined(lines)
            shown.append({'kind': 'time', 'title': path, 'unit': '', 'height': 110, 'series': [
                plots.line('', x, np.where(np.isfinite(y), y, np.nan), plots.GREEN, width=1)]})
        if shown:
            more = f' {len(paths) - MOST_FIELDS} more change and are not shown.' \
                if len(paths) > MOST_FIELDS else ''
            found.append({'title': name, 'columns': 'three', 'plots': shown,
                          'note': f'{parts[0].type}.{more}'})
    return found


def _varying(parts: Sequence[TopicData]) -> list[str]:
    """Paths whose number changes in any bag; covariances last."""
    paths = dict.fromkeys(path for part in parts for path in part.paths
                          if path not in part.constant())
    return sorted(paths, key=lambda path: 'covariance' in path)


def _coverage(result: Inspection, interface: Interface) -> list[dict[str, Any]]:
    """Where states and actions have been: histograms, and episodes in two dimensions."""
    tracks = result.tracks
    windows = make_windows(tracks)
    groups = {}
    for index in range(len(tracks)):
        rows = windows.episode == index
        groups[tracks[index].name if len(tracks) <= 8 else f'{index}'] = (
            windows.states[rows, 0], windows.states[rows, min(1, windows.states.shape[1] - 1)])
    if len(tracks) > 8:
        # Names of many episodes would fill the page.
        shown = plots.scatter('states', '', groups)
        for series in shown['series']:
            series['name'] = ''
    else:
        shown = plots.scatter('states', '', groups)
    found = [{'title': 'Coverage', 'columns': 'two', 'plots': [
        shown, plots.histogram('length of an episode', 's', np.array([
            track.times[-1] for track in tracks]), bins=20)],
        'note': 'Windows of half a second in the first two principal components of the '
                'states; a colour per episode. Share of episodes by length [%].'}]
    states = np.concatenate([track.states for track in tracks])
    actions = np.concatenate([track.actions for track in tracks])
    names = [(field, unit) for spec in interface.observations.values()
             for field, unit in zip(spec.fields, spec.units, strict=True)]
    for title, values, labels in (
            ('Observations', states, names),
            ('Actions', actions, list(zip(interface.action_names, interface.action_units,
                                          strict=True)))):
        found.append({'title': title, 'columns': 'four', 'note': 'Share of ticks [%].', 'plots': [
            {**plots.histogram(name, unit, values[:, column],
                               color=plots.BLUE if title == 'Observations' else plots.PURPLE),
             'height': 100} for column, (name, unit) in enumerate(labels[:24])]})
    return found


def write_inspection(result: Inspection, interface: Interface | None, output: Path) -> int:
    """
    Write the page.

    :param output: HTML file.
    :return: its size [bytes].
    """
    starts = _starts(result)
    duration = sum(bag.duration for bag in result.bags)
    tones = [finding.tone for finding in result.findings]
    tiles = [
        tile(f'{len(result.bags)}', '', 'bags'),
        tile(number(duration, 1), 's', 'recorded in all'),
        tile(f'{sum(bag.messages for bag in result.bags):,}', '', 'messages'),
        tile(number(sum(bag.size for bag in result.bags), 1, 1e-6), 'MB', 'on disk'),
        tile(f'{len(result.topics)}', '', 'topics'),
        tile(f'{sum(len(bag.episodes) for bag in result.bags)}', '',
             'episodes' if any(bag.marked for bag in result.bags) else
             'episodes: one per bag, no markers'),
        tile(f'{tones.count("bad")}', '', 'faults', 'bad' if 'bad' in tones else 'good'),
        tile(f'{tones.count("warn")}', '', 'things to look at',
             'warn' if 'warn' in tones else 'good')]
    groups = [{'title': 'Timeline', 'columns': 'one', 'plots': [_timeline(result, starts)],
               'note': 'Bags one after the other. Gaps of more than three usual intervals are '
                       'left white.'},
              *(_coverage(result, interface) if result.tracks and interface else []),
              *_timing(result, starts), *_values(result, starts)]
    listed = [(finding.tone, finding.text) for finding in result.findings] or [
        ('good', 'Nothing to complain about.')]
    names = [bag.path.name for bag in result.bags]
    page = Page('What is in these bags',
                [', '.join(names[:6]) + (f' and {len(names) - 6} more' if len(names) > 6 else '')],
                ''.join(tiles), {'duration': starts[-1] + result.bags[-1].duration,
                                 'groups': groups}, blocks(result), '', findings(listed))
    return write_page(page.html(), output)
