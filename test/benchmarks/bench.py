"""
All figures of the run time in one go: a table, JSON lines and a page with plots, in ten minutes.

`make bench` writes to runs/bench; `--quick` takes two minutes and proves only that all parts run.
Every part is a benchmark of its own in this folder, run one after the other in a process of its
own, so that none disturbs another; the last line of the table says how busy the machine was
before. Figures to be believed come from a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measuring import REPOSITORY, RESULTS, about

from liquid_trainer.page import Block, Page, tile, tone_of, write_page
from liquid_trainer.plots import PALETTE, curve, line

FOLDER = Path(__file__).resolve().parent
SHIPPED = REPOSITORY / 'liquid_policy_node' / 'checkpoints' / 'manipulator.safetensors'
# Part, its arguments, and those of --quick.
PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    'step_latency': (('--seconds', '1.5', '--checkpoint', str(SHIPPED)),
                     ('--count', '500', '--seconds', '0.2')),
    'growth': (('--seconds', '0.7'), ('--count', '200', '--seconds', '0.05')),
    'chunk_latency': (('--seconds', '1.5'),
                      ('--count', '200', '--seconds', '0.1', '--channels', '16', '32')),
    'filter_latency': (('--ticks', '10000'), ('--ticks', '200')),
    'sequence_training': (('--repetitions', '3'), ('--repetitions', '1')),
    'graph_latency': (('--seconds', '101'), ('--seconds', '4', '--settle', '1')),
    'executors': (('--trainer', 'none', '--seconds', '6', '--executors', 'single', 'multi',
                   'events'),
                  ('--trainer', 'none', '--seconds', '2', '--settle', '1', '--executors',
                   'events')),
    'quota': (('--trainer', 'off', '--seconds', '12', '--quota', '0.5'),
              ('--trainer', 'off', '--seconds', '2', '--settle', '1', '--quota', '0.5')),
}
SCRIPTS = {'executors': 'graph_latency', 'quota': 'graph_latency'}


def run_part(name: str, arguments: tuple[str, ...], folder: Path) -> list[dict]:
    """Run one benchmark; return its rows, none when it failed, which is said."""
    output = folder / f'{name}.jsonl'
    output.unlink(missing_ok=True)
    script = FOLDER / f'{SCRIPTS.get(name, name)}.py'
    began = time.monotonic()
    with open(folder / f'{name}.log', 'w', encoding='utf-8') as log:
        done = subprocess.run(
            [sys.executable, str(script), *arguments, '--output', str(output)], cwd=REPOSITORY,
            stdout=log, stderr=subprocess.STDOUT, check=False,
            env={**os.environ, 'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'})
    print(f'{name}: {time.monotonic() - began:.0f} s'
          + ('' if done.returncode == 0 else f', FAILED, see {folder / f"{name}.log"}'),
          flush=True)
    if done.returncode or not output.is_file():
        return []
    return [{**json.loads(row), 'part': name} for row in output.read_text().splitlines()]


class Figures:
    """Rows, looked up by what they say."""

    def __init__(self, rows: list[dict]) -> None:
        self.rows = rows

    def all(self, **wanted: Any) -> list[dict]:
        """Return the rows with these values."""
        return [row for row in self.rows
                if all(row.get(key) == value for key, value in wanted.items())]

    def value(self, **wanted: Any) -> float:
        """Return the one row's value, NaN without one."""
        found = self.all(**wanted)
        return found[0]['value'] if found else float('nan')


def text(seconds: float) -> str:
    """Return a duration with a fitting unit."""
    if not np.isfinite(seconds):
        return '–'
    for factor, unit in ((1.0, 's'), (1e3, 'ms')):
        if seconds * factor >= 1.0:
            return f'{seconds * factor:.3g} {unit}'
    return f'{seconds * 1e6:.1f} us'


def latency_block(title: str, rows: list[dict], figure: str, note: str = '',
                  ratio: Callable[[dict], str] = lambda row: '') -> Block:
    """Return a table of durations: p50, p99, max, number, ratio."""
    lines = []
    for row in rows:
        if row['figure'] != f'{figure}_p50':
            continue
        same = {other['figure']: other['value'] for other in rows
                if (other['task'], other['policy']) == (row['task'], row['policy'])}
        lines.append((row['policy'], row['task'], text(row['value']),
                      text(same.get(f'{figure}_p99', np.nan)),
                      text(same.get(f'{figure}_max', np.nan)), f'{row["n"]:,}', ratio(row)))
    return Block(title, ('', 'task', 'p50', 'p99', 'max', 'n', 'ratio'), tuple(lines), note,
                 wide=True)


def targets(figures: Figures) -> list[tuple[str, str, float, float, str]]:
    """Return what is aimed at: name, unit, value, target, and whether less or more is better."""
    step = {'part': 'step_latency', 'task': 'manipulator', 'policy': 'cfc+mixture'}
    graph = {'part': 'graph_latency', 'policy': 'shipped'}
    speedup = {**step, 'figure': 'speedup'}
    return [
        ('policy step, p99', 'us', 1e6 * figures.value(**step, figure='step_p99'), 50, 'less'),
        ('step against the window recipe', 'x',
         figures.value(**speedup, against='torchdiffeq-window'), 400, 'more'),
        ('step against ncps CfC with the same heads', 'x',
         figures.value(**speedup, against='ncps-cfc+mixture'), 5, 'more'),
        ("step against ncps's bare CfC cell", 'x', figures.value(**speedup, against='ncps-cfc'),
         5, 'more'),
        ('encoder 96 x 96, p99', 'ms', 1e3 * figures.value(
            figure='encoder_p99', task='image_96', policy='encoder'), 2, 'less'),
        ('image stamp to command, p99', 'ms', 1e3 * figures.value(
            **graph, task='trainer_off', figure='stamp_to_command_p99'), 10, 'less'),
        ('the same with the trainer on', 'ms', 1e3 * figures.value(
            **graph, task='trainer_on', figure='stamp_to_command_p99'), 10, 'less'),
        ('missed deadlines with the trainer on', 'of 10,000', 1e4 * figures.value(
            **graph, task='trainer_on', figure='missed_deadlines'), 1, 'less'),
        ('memory of three nodes, resident', 'MB', 1e-6 * figures.value(
            **graph, task='trainer_off', figure='resident_three_nodes'), 350, 'less'),
        ('start to first command', 's', figures.value(
            **graph, task='trainer_off', figure='start_to_command'), 2, 'less'),
        ('commands at half a core', 'Hz', figures.value(
            part='quota', figure='command_rate', policy='shipped'), 98, 'more'),
        ('memory gained in the last quarter of 20 minutes', 'MB', 1e-6 * figures.value(
            part='soak', figure='memory_step', policy='shipped'), 2, 'less'),
    ]


def ratio_text(figures: Figures, part: str, peers: tuple[str, ...] = ()) -> Callable[[dict], str]:
    """Return a function from a row to its ratios."""
    def ratios(row: dict) -> str:
        found = figures.all(part=part, figure='speedup', task=row['task'], policy=row['policy'])
        return ', '.join(f'{other["value"]:.3g} x {other["against"]}' for other in found
                         if not peers or other['against'] in peers)
    return ratios


def blocks(figures: Figures) -> list[Block]:
    """Return the tables of the page, which are also printed."""
    def rows(part: str, task: str = '') -> list[dict]:
        return [row for row in figures.rows if row['part'] == part
                and (not task or str(row['task']).startswith(task))]

    found = [Block('Targets', ('', 'value', 'target', ''), tuple(
        (name, f'{value:.3g} {unit}', f'{"below" if better == "less" else "at least"} '
         f'{target:g} {unit}', 'met' if (value < target if better == 'less' else value >= target)
         else 'missed') for name, unit, value, target, better in targets(figures)
        if np.isfinite(value)), wide=True)]
    found += [
        latency_block('One policy step', rows('step_latency', 'manipulator'), 'step',
                      'Normalisation, core, mixture of 5 over 16 steps, estimate, checks, choice '
                      'of a plan; peers in torch, see step_latency.py.',
                      ratio_text(figures, 'step_latency', (
                          'ncps-cfc', 'ncps-cfc+mixture', 'torch-eager', 'torchdiffeq-window'))),
        latency_block('Solvers and hidden units', rows('step_latency', 'solver_'), 'step',
                      'torchdiffeq integrates the last 100 inputs at every decision.',
                      ratio_text(figures, 'step_latency')),
        latency_block('One image', rows('step_latency', 'image_'), 'encoder', '',
                      ratio_text(figures, 'step_latency')),
        latency_block('One action chunk', rows('chunk_latency'), 'chunk',
                      'Processor time; the ratio is in favour of cfc+mixture.',
                      lambda row: ', '.join(
                          f'{other["value"]:.3g} x' for other in figures.all(
                              part='chunk_latency', figure='speedup',
                              against=row['policy'].removeprefix('cfc+')))),
        latency_block('One call of the safety filter', rows('filter_latency'), 'call',
                      'Processor time; every name is a solver under the same filter.'),
        latency_block('Its quadratic programme alone', rows('filter_latency'), 'solve'),
    ]
    training = rows('sequence_training')
    lines = []
    for row in training:
        if row['figure'] == 'training_step_p50':
            batch = int(row['task'].split('x')[0])
            lines.append((row['policy'], row['task'], text(row['value']),
                          f'{batch / row["value"]:.1f}', f'{row["n"]}',
                          ratio_text(figures, 'sequence_training')(row)))
    found.append(Block(
        'One training step', ('', 'batch x steps', 'p50', 'windows/s', 'n', 'ratio'),
        tuple(lines), wide=True))
    for part in ('graph_latency', 'executors', 'quota'):
        found += graph_blocks(rows(part), part)
    found += [Block('Growth', ('what', 'figure', 'slope of cost over size, logarithms'), tuple(
        (row['task'].removeprefix('growth_'), row['figure'].removesuffix('_slope'),
         f'{row["value"]:.2f}') for row in rows('growth') if row['figure'].endswith('_slope')),
        '1 is linear.')]
    return found


def graph_blocks(rows: list[dict], part: str) -> list[Block]:
    """Return the tables of the graphs that a part measured."""
    found = []
    for task in dict.fromkeys(row['task'] for row in rows):
        own = Figures([row for row in rows if row['task'] == task])
        lines = [(name, *(text(own.value(figure=f'{figure}_{share}', policy='shipped'))
                          for share in ('p50', 'p99', 'max')),
                  f'{own.all(figure=f"{figure}_p50")[0]["n"]:,}')
                 for name, figure in (('image stamp to command', 'stamp_to_command'),
                                      ('joint stamp to command', 'joints_to_command'))]
        lines += [(row['policy'], text(row['value']),
                   *(text(own.value(figure=f'stage_{share}', policy=row['policy']))
                     for share in ('p99', 'max')), f'{row["n"]:,}')
                  for row in own.all(figure='stage_p50')]
        shares = '; '.join(
            f'{row["policy"]} {row["value"]:.1%} of a core, '
            f'{own.value(figure="resident", policy=row["policy"]) / 1e6:.0f} MB resident, '
            f'{own.value(figure="proportional", policy=row["policy"]) / 1e6:.0f} MB proportional'
            for row in own.all(figure='cpu_share'))
        more = {name: own.value(figure=name, policy='shipped') for name in (
            'missed_deadlines', 'command_rate', 'images_answered', 'start_to_command')}
        found.append(Block(
            f'Graph over DDS: {task.replace("_", " ")}', ('', 'p50', 'p99', 'max', 'n'),
            tuple(lines), f'Missed deadlines: {1e4 * more["missed_deadlines"]:.2f} of 10,000 '
            f'commands; {more["command_rate"]:.1f} commands/s; images answered: '
            f'{more["images_answered"]:.2%}; start to first command: '
            f'{more["start_to_command"]:.2f} s. {shares}. Quota: {own.rows[0]["quota"]}.'))
    return found


def plots(figures: Figures) -> dict[str, Any]:
    """Return the plots of the page."""
    drawn = []
    for what in ('cameras', 'joints', 'units', 'horizon', 'components'):
        series, sizes = [], [1.0]
        for index, (figure, share) in enumerate(
                (figure, share) for figure in ('step', 'encoder') for share in ('p50', 'p99')):
            rows = figures.all(part='growth', task=f'growth_{what}', figure=f'{figure}_{share}')
            if rows:
                sizes = [row['size'] for row in rows]
                series.append(line(f'{figure} {share}', np.array(sizes, float),
                                   np.array([1e6 * row['value'] for row in rows]),
                                   PALETTE[index]))
        if series:
            drawn.append(curve(f'Cost by {what}', 'us', f' {what}', series,
                               (min(sizes), max(sizes)), floor=0))
    for share in ('p50', 'p99'):
        series = []
        for index, solver in enumerate(('euler', 'rk4', 'dopri5')):
            rows = [row for units in (32, 64, 128) for row in figures.all(
                part='step_latency', task=f'solver_{units}_units',
                policy=f'ode-{solver}+mixture', figure=f'step_{share}')]
            if rows:
                series.append(line(solver, np.array([32.0, 64.0, 128.0])[:len(rows)],
                                   np.array([1e6 * row['value'] for row in rows]),
                                   PALETTE[index]))
        if series:
            drawn.append(curve(f'Solvers by hidden units, {share}', 'us', ' units', series,
                               (32, 128), floor=0))
    return {'duration': 1.0, 'groups': [{'title': 'Growth', 'plots': drawn}]}


def printed(block: Block) -> str:
    """Return a table as text."""
    cells = [block.head, *block.rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(block.head))]
    lines = [block.title.upper(), *('  '.join(
        cell.ljust(width) if column == 0 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))) for row in cells)]
    return '\n'.join([*lines, *([block.note] if block.note else [])])


def main() -> None:
    """Run all parts, print the tables, write results."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('--output', type=Path, default=Path('runs/bench'))
    parser.add_argument('--only', nargs='+', choices=PARTS, default=list(PARTS))
    parser.add_argument('--quick', action='store_true', help='two minutes; figures mean little')
    parser.add_argument('--page', action='store_true',
                        help='make the page anew from what the last run wrote')
    parser.add_argument('--write', action='store_true', help="keep the rows as the repository's")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    summary = options.output / 'bench.jsonl'
    began, shared = time.monotonic(), about()
    if options.page:
        rows = [json.loads(row) for row in summary.read_text().splitlines()]
    else:
        rows = []
        for name in options.only:
            rows += run_part(name, PARTS[name][options.quick], options.output)
        summary.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    figures = Figures(rows)
    tables = blocks(figures)
    for block in tables:
        if block.rows:
            print(f'\n{printed(block)}')
    busy = max((row.get('load', 0.0) for row in rows), default=0.0)
    found = f'{shared["machine"]}, commit {shared["commit"]}, load before {shared["load"]}, ' \
        f'highest load at the start of a part {busy}, {time.monotonic() - began:.0f} s'
    page = Page(
        'Run-time benchmark', [found], ''.join(
            tile(f'{value:.3g}', unit, name, tone_of(value, target, 2 * target)
                 if better == 'less' else tone_of(-value, -target, -target / 2))
            for name, unit, value, target, better in targets(figures) if np.isfinite(value)),
        plots(figures), [block for block in tables if block.rows],
        footer='Every figure with the peer it is compared to was measured in the same run.')
    size = write_page(page.html(), options.output / 'bench.html')
    print(f'\n{found}\n{summary}, {options.output / "bench.html"} ({size / 1e3:.0f} kB)')
    if options.write:
        for name in dict.fromkeys(row['part'] for row in rows):
            own = [{key: value for key, value in row.items() if key != 'part'}
                   for row in rows if row['part'] == name]
            path = RESULTS / f'{name}.jsonl'
            path.write_text(''.join(json.dumps(row) + '\n' for row in own), encoding='utf-8')
            print(f'written to {path.relative_to(REPOSITORY)}')
    if missing := [name for name in options.only
                   if not any(row['part'] == name for row in rows)]:
        raise SystemExit(f'no figures of {", ".join(missing)}')


if __name__ == '__main__':
    main()
