"""The figures of a run as one table, for the terminal and for the report."""

from __future__ import annotations

import math

from liquid_sim import run_statistics, stamp_statistics
from liquid_sim.run_record import Run
from liquid_trainer.page import Block, number, text

__all__ = ['Block', 'blocks', 'number', 'text']


def parts_block(run: Run) -> Block:
    """
    Return what became of the parts and how well the policy knew where they were.

    :param run: what was recorded.
    """
    parts = run_statistics.parts(run)
    error = run_statistics.pose_error(run)
    place = stamp_statistics.spread(error.errors)
    speed = stamp_statistics.spread(error.speed_errors)
    rows = [
        ('parts seen', f'{parts.seen}'),
        ('parts picked', f'{parts.picked}' + (f' ({parts.success:.0%} of those decided)'
                                              if math.isfinite(parts.success) else '')),
        ('parts missed', f'{parts.missed}'),
        ('part position error p50 / p99 [mm]',
         f'{number(place.p50, 1, 1e3)} / {number(place.p99, 1, 1e3)}'),
        ('part speed error p50 / p99 [mm/s]',
         f'{number(speed.p50, 1, 1e3)} / {number(speed.p99, 1, 1e3)}'),
    ]
    return Block('Parts', ('', ''), tuple(rows),
                 f'{place.count} estimates compared with the simulator’s ground truth, while a '
                 'part is in view.'
                 if place.count else '')


def stage_block(run: Run) -> Block:
    """
    Return rate and latency of each stage.

    :param run: what was recorded.
    """
    rows = []
    for stage in run_statistics.stages(run):
        spread = stage.spread
        rows.append((stage.name, number(stage.rate), number(spread.p50, 2, 1e3),
                     number(spread.p99, 2, 1e3), number(spread.highest, 1, 1e3)))
    note = ('Recorded under simulated time: latencies are in simulated time.'
            if run.simulated_time else
            'Stages between nodes contain one transport each. The last row ends when the first '
            'command that knows the image has been sent.')
    return Block('Stages', ('stage', 'rate [Hz]', 'p50 [ms]', 'p99 [ms]', 'max [ms]'),
                 tuple(rows), note)


def safety_block(run: Run) -> Block:
    """
    Return what the safety filter did.

    :param run: what was recorded.
    """
    figures = run_statistics.safety_figures(run)
    if not run.safety.stamps.size:
        return Block('Safety', (), ())
    share = figures.interventions / figures.commands if figures.commands else float('nan')
    rows = [('commands issued', f'{figures.commands}'),
            ('interventions', f'{figures.interventions} ({number(share, 1, 100)} %)'),
            ('time braking [%]', number(figures.shares['braking'], 1, 100)),
            ('time stopped [%]', number(figures.shares['stopped'], 1, 100)),
            ('missed deadlines', f'{figures.missed_deadlines}')]
    rows += [(f'active: {name}', f'{count}') for name, count in figures.constraints[:6]]
    return Block('Safety', ('', ''), tuple(rows),
                 'An intervention is a command that is not the proposal.')


def topic_block(run: Run) -> Block:
    """
    Return messages, rate, gaps and losses of each topic.

    :param run: what was recorded.
    """
    rows = []
    for figures in run_statistics.topic_figures(run):
        lost = '–' if figures.lost is None else f'{figures.lost}{"" if figures.counted else " *"}'
        rows.append((figures.name, f'{figures.messages}', number(figures.rate),
                     number(figures.longest_gap, 0, 1e3), lost))
    return Block('Topics', ('topic', 'messages', 'rate [Hz]', 'longest gap [ms]', 'lost'),
                 tuple(rows), 'Lost is counted against what the publisher says it sent; '
                              'with * it is the number of gaps in the stamps.')


# Work inside the nodes that has a budget, by key of their diagnostics.
INSIDE = {'encode': 'encode one image', 'step': 'one step', 'filter_cycle': 'filter one proposal'}


def inside_block(run: Run) -> Block:
    """
    Return how long the nodes' own work takes, without transport.

    :param run: what was recorded.
    """
    rows = []
    for figures in run_statistics.node_figures(run):
        for stage, (p50, p99) in figures.latencies.items():
            if stage in INSIDE:
                rows.append((f'{figures.name}: {INSIDE[stage]}', number(p50, 3, 1e3),
                             number(p99, 3, 1e3)))
    return Block('Inside the nodes', ('work', 'p50 [ms]', 'p99 [ms]'), tuple(rows),
                 'As the nodes measured it themselves, over their last 2000 calls.')


def node_block(run: Run) -> Block:
    """
    Return memory and processor share of each node.

    :param run: what was recorded.
    """
    nodes = run_statistics.node_figures(run)
    rows = [(figures.name, number(figures.resident, 0, 1e-6), number(figures.share, 0, 100))
            for figures in nodes]
    by_name = {figures.name.rpartition('/')[2]: figures for figures in nodes}
    robot = [by_name[name] for name in ('perception', 'policy', 'safety') if name in by_name]
    if len(robot) == 3:
        rows.append(('perception + policy + safety',
                     number(sum(figures.resident for figures in robot), 0, 1e-6),
                     number(sum(figures.share for figures in robot), 0, 100)))
    return Block('Nodes', ('node', 'resident [MB]', 'processor [%]'), tuple(rows),
                 'Most memory held, and mean share of one core.')


# What the simulator says about its own pace, by key of its diagnostics.
PACE = {'info.real_time_factor': 'real-time factor', 'count.overruns': 'late steps',
        'info.skipped_s': 'time skipped [s]', 'count.late_images': 'images drawn too late',
        'count.pictures_left_out': 'pictures left out'}


def pace_block(run: Run) -> Block:
    """
    Return how well the simulator kept real time.

    :param run: what was recorded.
    """
    samples = next((samples for name, samples in run.diagnostics.items()
                    if name.rpartition('/')[2] == 'simulator'), ())
    values = samples[-1].values if samples else {}
    if 'info.real_time_factor' not in values:
        return Block('Simulator', (), ())
    rows = [(text, values.get(key, '0')) for key, text in PACE.items()]
    return Block('Simulator', ('', ''), tuple(rows),
                 'A simulator short of processor time makes every latency longer.')


def blocks(run: Run) -> list[Block]:
    """
    Return the whole table; blocks without rows are left out.

    :param run: what was recorded.
    """
    table = [parts_block(run), stage_block(run), inside_block(run), safety_block(run),
             topic_block(run), node_block(run), pace_block(run)]
    return [block for block in table if block.rows]
