"""The page of a replayed bag: what was proposed, what was recorded, what the filter said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from liquid_policy.barrier import State
from liquid_policy.checkpoint import Checkpoint
from liquid_policy.conversion import NANOSECONDS
from liquid_trainer import plots
from liquid_trainer.page import Block, Page, number, tile, tone_of, write_page
from liquid_trainer.replay import Replayed

BANDS = {'limiting': ('rgba(240, 180, 41, 0.25)', '#f0b429', State.LIMITING),
         'braking': ('rgba(214, 69, 61, 0.20)', '#d6453d', State.BRAKING)}


def blocks(result: Replayed) -> list[Block]:
    """
    Return the figures as tables.

    :param result: of one bag.
    """
    figures = result.to_dict()
    rows = []
    for index, name in enumerate(result.action_names):
        mean, most = figures['mean_absolute_error'][name], figures['p95_absolute_error'][name]
        known = result.recorded[:, index]
        known = known[np.isfinite(known)]
        density = result.densities[:, index]
        rows.append((
            f'{name} [{result.units[index]}]', number(mean, 4), number(most, 4),
            number(figures['bias'][name], 4),
            number(float(known.std()) if known.size else None, 4),
            number(float(np.nanmean(density)) if np.isfinite(density).any() else None, 2)))
    found = [Block(
        'Proposed against recorded actions',
        ('action', 'mean |error|', 'p95 |error|', 'bias', 'recorded spread', 'NLL'), tuple(rows),
        'Error of the action for the tick itself. Spread: standard deviation of the recorded '
        'action, the error of a policy that always says its mean. NLL: -log density of the '
        "recorded action under the mixture's marginal [nats].")]
    if len(result.states):
        states = ', '.join(f'{count} {name}' for name, count in figures['states'].items())
        answers = [('answers of the safety filter', f'{len(result.states)}', states),
                   *((f'limited by {name}', f'{count}', f'most {result.amounts[name]:.3g}')
                     for name, count in result.constraints.most_common(12)),
                   *((f'braked: {reason}', f'{count}', '')
                     for reason, count in result.reasons.most_common(8))]
        found.append(Block('Safety filter', ('', 'count', ''), tuple(answers)))
    if result.left_out:
        found.append(Block('Not used', ('reason', 'messages or ticks'), tuple(
            (reason, f'{count}') for reason, count in result.left_out.most_common(12))))
    return found


def plot_groups(result: Replayed, seconds: np.ndarray, start: int) -> list[dict[str, Any]]:
    """Return the plots: actions over time, errors by horizon, errors as histograms."""
    safety = (result.times - start) / NANOSECONDS
    actions, spread, ahead = [], [], []
    horizon = np.arange(len(result.ahead)) * result.step_time
    for index, name in enumerate(result.action_names):
        low = result.means[:, index] - 2 * result.deviations[:, index]
        high = result.means[:, index] + 2 * result.deviations[:, index]
        values = result.recorded[:, index]
        both = np.concatenate((values[np.isfinite(values)], result.proposed[:, index]))
        room = 0.15 * (both.max() - both.min()) + 1e-3
        series = [plots.area('policy ± 2 σ', seconds, low, high, 'rgba(36, 100, 214, 0.15)'),
                  plots.line('recorded', seconds, values, plots.PURPLE, width=1.6)]
        if len(safety):
            series.append(plots.line('issued', safety, result.issued[:, index], plots.ORANGE,
                                     width=1))
        series.append(plots.line('proposed', seconds, result.proposed[:, index], plots.BLUE,
                                 width=1))
        actions.append({
            'kind': 'time', 'title': name, 'unit': result.units[index], 'series': series,
            'limits': [float(both.min() - room), float(both.max() + room)],
            'bands': list(BANDS)})
        spread.append(plots.histogram(name, result.units[index], result.errors[:, index]))
        ahead.append(plots.line(f'{name} [{result.units[index]}]', 1e3 * horizon,
                                result.ahead[:, index],
                                plots.PALETTE[index % len(plots.PALETTE)]))
    density = np.nanmean(np.where(np.isfinite(result.densities), result.densities, np.nan), 1) \
        if np.isfinite(result.densities).any() else np.full(len(seconds), np.nan)
    return [
        {'title': 'Actions', 'columns': 'three', 'plots': actions,
         'note': 'Shaded where the safety filter changed the proposal (limiting) or braked.'},
        {'title': 'How far ahead the plan holds', 'columns': 'two', 'note':
            'Mean absolute error of the chosen plan against what was recorded that much later; '
            'and how likely the recorded action was to the policy.',
         'plots': [plots.curve('mean |error| by horizon', 'unit of each', ' ms', ahead,
                               (0.0, max(1e3 * horizon[-1], 1.0)), floor=0, height=240),
                   {'kind': 'time', 'title': 'NLL per number', 'unit': 'nats', 'height': 240,
                    'series': [plots.line('', seconds, density, plots.RED)]}]},
        {'title': 'Errors', 'columns': 'three', 'plots': spread,
         'note': 'Proposed less recorded; share of ticks [%].'}]


def replay_page(result: Replayed, checkpoint: Checkpoint, output: Path) -> int:
    """
    Write the page of one bag.

    :param output: HTML file.
    :return: its size [bytes].
    """
    start = int(min(result.ticks[0], result.times[0] if len(result.times) else result.ticks[0]))
    seconds = (result.ticks - start) / NANOSECONDS
    figures = result.to_dict()
    duration = float(seconds[-1])
    share = result.interventions / len(result.states) if len(result.states) else float('nan')
    moved = [name for name, spread in zip(
        result.action_names, np.nan_to_num(np.nanstd(result.recorded, 0)), strict=True)
        if spread > 0]
    relative = [figures['mean_absolute_error'][name] / float(
        np.nanstd(result.recorded[:, result.action_names.index(name)])) for name in moved]
    tiles = [tile(number(float(np.median(relative)) if relative else None, 0, 100), '%',
                  'mean |error| as a share of the recorded spread, median action'),
             tile(number(result.nll, 2), 'nats', 'NLL of a recorded number'),
             tile(f'{figures["compared"]:,}', f'of {len(result.ticks):,}',
                  'proposals with a recorded action')]
    if len(result.states):
        tiles.append(tile(number(share, 1, 100), '%',
                          f'proposals the filter changed ({result.interventions})',
                          tone_of(share, 0.05, 0.25)))
        halted = int((result.states == State.BRAKING).sum())
        tiles.append(tile(f'{halted}', '', 'times it braked', tone_of(
            halted / len(result.states), 0.01, 0.1)))
    tiles.append(tile(number(duration, 1), 's', 'replayed'))
    states = (result.times - start) / NANOSECONDS
    data = {'duration': duration, 'groups': plot_groups(result, seconds, start), 'bands': {
        name: {'color': color, 'solid': solid,
               'spans': plots.spans(states, result.states == state)}
        for name, (color, solid, state) in BANDS.items()}}
    page = Page(f'Replay of {result.name}', [f'policy {checkpoint.version}, robot '
                                             f'{checkpoint.interface.robot}'],
                ''.join(tiles), data, blocks(result), 'The same numbers the command prints.')
    return write_page(page.html(), output)
