"""The report of a benchmark: what came out of each question, as tables, bars and curves."""

from __future__ import annotations

import html
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from liquid_sim.benchmark.trials import QUESTIONS
from liquid_trainer import plots
from liquid_trainer.page import Block, Page, number, tile, write_page

TITLES = {'heads': 'Heads: one backbone, five kinds of answer',
          'fractions': 'Data: success by share of the demonstrations',
          'cores': 'Cores under the mixture head',
          'elapsed': 'Three in ten observations lost: the time between them told or not',
          'sizes': 'Hidden units', 'solvers': 'Solvers of the ODE core',
          'components': 'Components of the mixture'}
_STYLE = """
.columns.tables{column-count:1}
.bars{display:grid;grid-template-columns:max-content 1fr max-content;gap:4px 12px;
 align-items:center;font-variant-numeric:tabular-nums}
.bars .track{position:relative;height:14px;background:rgba(128,128,128,.12);border-radius:3px}
.bars .span{position:absolute;top:5px;height:4px;background:#2464d6;opacity:.45}
.bars .dot{position:absolute;top:2px;width:10px;height:10px;margin-left:-5px;border-radius:5px;
 background:#2464d6}
"""
COLORS = {'mixture': plots.BLUE, 'diffusion': plots.PURPLE}


def interval_bars(title: str, rows: list[dict[str, Any]]) -> str:
    """
    Return shares with their intervals, as HTML.

    :param rows: with `policy`, `value`, `low` and `high`, 0 to 1.
    """
    pieces = []
    for row in rows:
        low, high, value = (100 * min(1.0, max(0.0, row[k])) for k in ('low', 'high', 'value'))
        pieces.append(
            f'<span>{html.escape(row["policy"])}</span><span class="track">'
            f'<span class="span" style="left:{low:.2f}%;width:{high - low:.2f}%"></span>'
            f'<span class="dot" style="left:{value:.2f}%"></span></span>'
            f'<span>{value:.1f} % ({low:.1f} to {high:.1f})</span>')
    return (f'<div class="card wide"><h3>{html.escape(title)}</h3>'
            f'<div class="bars">{"".join(pieces)}</div></div>')


def _value(rows: list[dict[str, Any]], policy: str, figure: str) -> float:
    return next((row['value'] for row in rows
                 if row['policy'] == policy and row['figure'] == figure), math.nan)


def _cell(rows: list[dict[str, Any]], policy: str, figure: str, digits: int,
          factor: float = 1.0) -> str:
    return number(_value(rows, policy, figure), digits, factor)


def block_of(title: str, rows: list[dict[str, Any]]) -> Block:
    """Return a question's table: a line per policy and way of following it."""
    score = next((row['figure'] for row in rows if row['figure'] not in (
        'success', 'error', 'best_of_8', 'diversity', 'jerk', 'nll', 'plan_p50', 'plan_p99')), '')
    lines = []
    for row in rows:
        if row['figure'] != 'success':
            continue
        cell = partial(_cell, rows, row['policy'])
        lines.append((
            row['policy'], f'{100 * row["value"]:.1f} ({100 * row["low"]:.1f} to '
            f'{100 * row["high"]:.1f})', ' '.join(f'{100 * each:.0f}' for each in row['each']),
            str(row['n']), cell(score, 3), cell('error', 2), cell('best_of_8', 2),
            cell('diversity', 2), cell('jerk', 0), cell('nll', 3), f'{row["parameters"]:,}',
            f'{cell("plan_p50", 3, 1000)} / {cell("plan_p99", 3, 1000)}'))
    return Block(title, ('policy', 'success %', 'by seed', 'episodes', score, 'error',
                         'best of 8', 'diversity', 'jerk', 'NLL', 'parameters',
                         'plan ms p50 / p99'), tuple(lines))


def fraction_plots(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return success over the share of the data, a line and its interval per head."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        whole = row['question'] == 'heads' and row['policy'] in ('cfc+mixture', 'cfc+diffusion')
        if row['figure'] == 'success' and (row['question'] == 'fractions' or whole):
            found.setdefault(row['head'], []).append(row)
    series = []
    for head, some in found.items():
        some = sorted(some, key=lambda row: row['share'])
        x = np.log10([100 * row['share'] for row in some])
        color = COLORS.get(head, plots.BLUE)
        low, high, value = (np.array([100 * row[k] for row in some])
                            for k in ('low', 'high', 'value'))
        series += [plots.line(f'{head}, 95 %', x, low, color, dash=[4, 4], width=1),
                   plots.line('', x, high, color, dash=[4, 4], width=1),
                   plots.line(head, x, value, color, width=2)]
    if not series:
        return []
    return [plots.curve('Success by share of the demonstrations', '%', ' log10 of the share in %',
                        series, (0.0, 2.0), floor=0)]


def write_report(rows: list[dict[str, Any]], output: Path) -> list[Block]:
    """
    Write the page, and return its tables for the terminal.

    :param rows: figures of one or several tasks, see `rows_of`.
    :param output: HTML file.
    """
    blocks, lead, groups, tiles = [], [], [], []
    for task in dict.fromkeys(row['task'] for row in rows):
        own = [row for row in rows if row['task'] == task]
        best = max((row for row in own if row['figure'] == 'success'), key=lambda r: r['value'])
        tiles.append(tile(number(best['value'], 1, 100), '%', f'{task}: {best["policy"]}'))
        for question in QUESTIONS:
            some = [row for row in own if row['question'] == question]
            if not some:
                continue
            title = f'{task} · {TITLES[question]}'
            blocks.append(block_of(title, some))
            lead.append(interval_bars(f'{title}: success',
                                      [r for r in some if r['figure'] == 'success']))
        curves = fraction_plots(own)
        if curves:
            groups.append({'title': task, 'plots': curves})
    about = rows[-1]
    page = Page('Policies against each other', [
        f'{about["machine"]}, commit {about["commit"]}, {about["date"]}',
        'Success: share of fresh episodes, Wilson 95 % over all episodes; policies of other seeds '
        'differ by more than that, see the column by seed.'],
        ''.join(tiles), {'duration': 1.0, 'groups': groups}, blocks,
        'Errors in the unit of the actions, on held-out episodes. NLL in nats per number, in '
        'that unit; only a mixture has one. Plan: one action chunk on one thread, all policies '
        'in turns.',
        ''.join(lead), '', _STYLE)
    write_page(page.html(), output)
    return blocks
