"""
A recorded run as one HTML page that needs nothing else: figures, plots and an animation.

`python -m liquid_sim.report <bag> -o report.html`
"""

from __future__ import annotations

import argparse
import base64
import datetime
import functools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from liquid_policy.command import command
from liquid_sim import report_plots, run_statistics, run_table, stamp_statistics
from liquid_sim.pictures import Picture, smaller_jpeg
from liquid_sim.report_plots import DrawnLimits, packed
from liquid_sim.run_record import Run, read_run
from liquid_trainer.page import Page, page_file, tile, tone_of, write_page

# Pictures may fill this much of the page before base64 makes them a third larger [bytes].
PICTURE_BUDGET = 8_500_000
# Time from image stamp to command on the wire that is aimed at [s].
LATENCY_BUDGET = 0.010


def fitted(pictures: dict[str, tuple[Picture, ...]], budget: int) -> dict[str, list[Picture]]:
    """
    Return the pictures made to fit a size: first lower quality of the scene, then fewer of all.

    :param pictures: by kind, in order of time.
    :param budget: largest sum of their sizes [bytes].
    """
    kept = {kind: list(some) for kind, some in pictures.items()}

    def size() -> int:
        return sum(len(picture.data) for some in kept.values() for picture in some)

    if size() > budget and 'scene' in kept:
        kept['scene'] = [Picture(picture.stamp, smaller_jpeg(picture.data, 60))
                         for picture in kept['scene']]
    excess = size() / budget
    if excess > 1:
        # Evenly fewer: every kind keeps the same share, so the views stay in step.
        for kind, some in kept.items():
            count = max(1, int(len(some) / excess))
            chosen = np.unique(np.linspace(0, len(some) - 1, count).astype(int))
            kept[kind] = [some[index] for index in chosen]
    return kept


def tiles(run: Run) -> str:
    """
    Return the summary at the top of the page.

    :param run: what was recorded.
    """
    parts = run_statistics.parts(run)
    error = stamp_statistics.spread(run_statistics.pose_error(run).errors)
    safety = run_statistics.safety_figures(run)
    last = next((stage for stage in run_statistics.stages(run)
                 if stage.name == run_statistics.LAST_STAGE), None)
    latency = last.spread if last else stamp_statistics.spread(np.zeros(0))
    topics = run_statistics.topic_figures(run)
    lost = sum(topic.lost or 0 for topic in topics)
    total = sum(topic.messages for topic in topics)
    share = safety.interventions / safety.commands if safety.commands else float('nan')
    number = run_table.number
    found = []
    if len(run.conveyor):
        found.append(tile(f'{parts.picked} / {parts.picked + parts.missed}',
                          f'{parts.success:.0%}' if math.isfinite(parts.success) else '',
                          'parts picked, of those decided',
                          tone_of(1 - parts.success, 0.201, 0.5)))
    if error.count:
        found.append(tile(number(error.p50, 1, 1e3), 'mm', 'part position error, median',
                          tone_of(error.p50, 0.015, 0.04)))
    if latency.count:
        found.append(tile(f'{number(latency.p50, 1, 1e3)} / {number(latency.p99, 1, 1e3)}',
                          'ms', 'image stamp to command, p50 / p99',
                          tone_of(latency.p99, LATENCY_BUDGET, 0.03)))
    if safety.commands:
        found.append(tile(number(share, 1, 100), '%',
                          f'commands changed by safety ({safety.interventions})',
                          tone_of(share, 0.05, 0.25)))
    found.append(tile(f'{lost}', f'of {total:,}', 'messages lost',
                      tone_of(lost / max(total, 1), 0.0005, 0.01)))
    found.append(tile(number(run.duration, 1), 's', 'recorded'))
    return ''.join(found)


def events(run: Run) -> list[dict[str, Any]]:
    """
    Return picks and misses for the player's timeline.

    :param run: what was recorded.
    """
    found = []
    for name, color, sign in (('picked', '#14885a', '✓'), ('missed', '#c4322b', '×')):
        for stamp in run_statistics.count_stamps(run, name):
            found.append({'time': round((int(stamp) - run.start) / 1e9, 3), 'color': color,
                          'sign': sign})
    return found


def readout(run: Run) -> list[dict[str, Any]]:
    """
    Return what is shown in words below the animation.

    :param run: what was recorded.
    """
    entries = []

    def add(name: str, unit: str, stamps: np.ndarray, values: np.ndarray,
            words: Sequence[str] | None = None) -> None:
        if len(stamps):
            order = np.argsort(stamps, kind='stable')
            entries.append({'name': name, 'unit': unit, 'x': packed(run.seconds(stamps[order])),
                            'y': packed(np.asarray(values)[order]), 'words': words})

    conveyor = run.conveyor
    for name in ('seen', 'picked', 'missed'):
        add(name, '', conveyor.stamps, conveyor.column(name))
    add('holding', '', conveyor.stamps, conveyor.column('holding'), ('no', 'yes'))
    add('belt', 'm/s', conveyor.stamps, conveyor.column('belt_speed'))
    add('part', 'kg', conveyor.stamps, conveyor.column('part_mass'))
    error = run_statistics.pose_error(run)
    add('position error', 'mm', error.stamps, 1e3 * error.errors)
    add('safety', '', run.safety.stamps, run.safety.states, run_statistics.SAFETY_STATES)
    return entries


def _views(run: Run) -> dict[str, Any]:
    return {kind: {'times': [round((picture.stamp - run.start) / 1e9, 3) for picture in some],
                   'frames': [base64.b64encode(picture.data).decode('ascii')
                              for picture in some]}
            for kind, some in fitted(run.pictures, PICTURE_BUDGET).items()}


def page(run: Run, limits: DrawnLimits | None = None, notes: Sequence[str] = ()) -> str:
    """
    Return the report.

    :param run: what was recorded.
    :param limits: limits to draw; none when left out.
    :param notes: sentences below the title.
    :return: HTML without any reference to another file.
    """
    near, far = run.depth_range
    first_parts = run_statistics.count_stamps(run, 'seen')
    content = {
        'duration': run.duration,
        # The animation opens with the first part on the belt, not with an idle robot.
        'begin': (int(first_parts[0]) - run.start) / 1e9 + 0.5 if first_parts.size else 0.0,
        'depth_caption': f'({near:g} m red to {far:g} m blue)',
        'pictures': _views(run),
        'bands': report_plots.bands(run),
        'events': events(run),
        'readout': readout(run),
        'groups': report_plots.groups(run, limits or DrawnLimits(), LATENCY_BUDGET),
    }
    recorded = datetime.datetime.fromtimestamp(run.start / 1e9, datetime.timezone.utc)
    subtitle = [f'{run.path.name}, {run.duration:.1f} s']
    if run.policy.versions:
        subtitle[0] += f', policy {", ".join(run.policy.versions)}'
    if not run.simulated_time:
        subtitle[0] += f', recorded {recorded:%Y-%m-%d %H:%M} UTC'
    asset = functools.partial(page_file, package='liquid_sim', folder='report_page')
    return Page(
        'Run of the robot', [*subtitle, *run.notes, *notes], tiles(run), content,
        run_table.blocks(run), 'The same numbers the demo prints.',
        '<section id="player"></section>',
        'Space plays and pauses, arrow keys step, moving over a plot moves the animation; drag '
        'in a plot to zoom, double-click to zoom out.',
        asset('report.css'), asset('player.js')).html()


def drawn_limits(interface_file: str | Path | None,
                 description: str | Path | None = None) -> DrawnLimits:
    """
    Return the limits of a robot for drawing.

    :param interface_file: the robot's interface file; None for no limits.
    :param description: URDF or xacro; without it only the interface file's limits are drawn.
    :raises ValueError: if a file is not what it should be.
    """
    if interface_file is None:
        return DrawnLimits()
    from liquid_policy.interface import load_interface
    from liquid_policy.limits import load_limits

    interface = load_interface(interface_file)
    if description is None:
        return DrawnLimits(rate={name: limit.velocity for name, limit in interface.limits.items()
                                 if limit.velocity is not None})
    limits = load_limits(interface, description)
    rows = list(zip(limits.names, limits.lower, limits.upper, limits.high, limits.moving,
                    strict=True))
    return DrawnLimits(
        position={name: (float(low), float(high)) for name, low, high, _, _ in rows
                  if math.isfinite(low) and math.isfinite(high)},
        rate={name: float(most) for name, _, _, most, moving in rows if moving})


def write_report(run: Run, output: str | Path, **details: Any) -> int:
    """
    Write the report beside its final place, then move it there.

    :param run: what was recorded.
    :param output: HTML file.
    :param details: passed to `page`.
    :return: size of the file [bytes].
    """
    return write_page(page(run, **details), output)


@command('report')
def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command line.

    :param argv: arguments; those of the process when left out.
    :return: exit code.
    """
    parser = argparse.ArgumentParser(
        prog='report', description='Make one self-contained HTML report of a recorded run.')
    parser.add_argument('bag', type=Path, help='rosbag2 folder, or one .mcap or .db3 file')
    parser.add_argument('-o', '--output', type=Path, help='HTML file (default: beside the bag)')
    parser.add_argument('--interface', type=Path, help='interface file, for limits in the plots')
    parser.add_argument('--description', type=Path, help='URDF or xacro, for position limits')
    parser.add_argument('--depth-range', type=float, nargs=2, default=(0.0, 1.5),
                        metavar=('NEAR', 'FAR'), help='colours of the depth image [m]')
    parser.add_argument('--quiet', action='store_true', help='do not print the table')
    arguments = parser.parse_args(argv)
    output = arguments.output or arguments.bag.with_suffix('.html')
    run = read_run(arguments.bag, tuple(arguments.depth_range))
    size = write_report(run, output, limits=drawn_limits(
        arguments.interface, arguments.description))
    if not arguments.quiet:
        print(run_table.text(run_table.blocks(run)))
    print(f'report: {output} ({size / 1e6:.1f} MB)')
    return 0


if __name__ == '__main__':
    sys.exit(main())
