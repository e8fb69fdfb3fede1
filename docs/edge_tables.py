"""Tables of edge.md: what was to be reached, and what was measured."""

import math
import sys

from placing import ROOT, rows_of

PARTS = ('step_latency', 'graph_latency', 'quota', 'soak')


def target_table() -> str:
    """
    Table of the benchmark's targets.

    :return: Markdown.
    """
    sys.path.insert(0, str(ROOT / 'test' / 'benchmarks'))
    from bench import Figures, targets

    rows = [{'part': part, **row} for part in PARTS for row in rows_of(part)]
    lines = ['| what | measured | wanted |', '|---|---|---|']
    for name, unit, value, target, better in targets(Figures(rows)):
        word = 'below' if better == 'less' else 'at least'
        found = f'{value:.3g} {unit}' if math.isfinite(value) else 'not measured'
        lines.append(f'| {name} | {found} | {word} {target:g} {unit} |')
    return '\n'.join(lines)


def form_table() -> str:
    """
    Table of the encoder's forms: parts picked by the same policy.

    :return: Markdown.
    """
    lines = ['| encoder | picked | 95 % | distance of the part estimated |', '|---|---|---|---|']
    rows = rows_of('exported')
    for row in rows:
        if row['figure'] == 'success':
            error = next(other['value'] for other in rows if other['figure'] == 'pose_error'
                         and other['policy'] == row['policy'])
            lines.append(
                f'| {row["policy"].split()[-1]} | {row["value"] * row["n"]:.0f} of {row["n"]} | '
                f'{row["low"]:.1%} to {row["high"]:.1%} | {1e3 * error:.1f} mm |')
    return '\n'.join(lines)


def choice_table() -> str:
    """
    Table of how the nodes run: each choice undone, one at a time.

    :return: Markdown.
    """
    lines = ['| nodes | image to command, p50 | p99 | max | missed deadlines | of a core |',
             '|---|---|---|---|---|---|']
    rows = rows_of('run_time_choices')
    for task in dict.fromkeys(row['task'] for row in rows):
        own = {row['figure']: row for row in rows if row['task'] == task}
        times = ' | '.join(f'{1e3 * own[f"stamp_to_command_{share}"]["value"]:.1f} ms'
                           for share in ('p50', 'p99', 'max'))
        missed = own['missed_deadlines']
        lines.append(f'| {task} | {times} | {missed["value"] * missed["n"]:.0f} of '
                     f'{missed["n"]:,} | {own["cpu_share"]["value"]:.0%} |')
    return '\n'.join(lines)


def growth_table() -> str:
    """
    Table of costs by size.

    :return: Markdown.
    """
    lines = ['| what grows | sizes | median of a step or an image | slope |', '|---|---|---|---|']
    rows = rows_of('growth')
    for row in rows:
        if row['figure'].endswith('_slope'):
            figure, what = row['figure'].removesuffix('_slope'), row['task'].split('_')[1]
            own = [other for other in rows if other['task'] == row['task']
                   and other['figure'] == f'{figure}_p50']
            sizes = ', '.join(str(one['size']) for one in own)
            costs = ', '.join(f'{1e6 * one["value"]:.0f}' for one in own)
            lines.append(f'| {what} ({figure}) | {sizes} | {costs} us | {row["value"]:.2f} |')
    return '\n'.join(lines)


def engine_table() -> str:
    """
    Table of the forms a step can run in.

    :return: Markdown.
    """
    lines = ['| form of the step | p50 | p99 | memory it takes |', '|---|---|---|---|']
    rows = rows_of('step_engines')
    for engine in dict.fromkeys(row['policy'] for row in rows):
        own = {row['figure']: row['value'] for row in rows if row['policy'] == engine
               and row['figure'] != 'speedup'}
        p50, p99 = (f'{1e6 * own[f"step_p{share}"]:.0f} us' for share in (50, 99))
        lines.append(f'| {engine} | {p50} | {p99} | {1e-6 * own["resident"]:.0f} MB |')
    return '\n'.join(lines)


PAGES = {'edge.md': {'targets': target_table, 'forms': form_table, 'choices': choice_table,
                     'growth': growth_table, 'engines': engine_table}}
