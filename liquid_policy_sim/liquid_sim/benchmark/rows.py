"""Figures of measured policies, as the result files and the report have them."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np

from liquid_policy.execution import ExecutionSettings
from liquid_sim.benchmark.trials import Trial, Way
from liquid_sim.evaluate import commit, wilson
from liquid_sim.tasks.registry import find_task

UNITS = {'error': 'action', 'best_of_8': 'action', 'diversity': 'action',
         'jerk': 'action/s^3', 'nll': 'nat'}


@dataclass(frozen=True)
class Measured:
    """
    A trial with one seed, and what came out.

    :param result: see `liquid_sim.benchmark.run.measure`.
    """

    trial: Trial
    seed: int
    result: dict[str, Any]


def way_name(way: Way) -> str:
    """Return what a way changes, in words; empty for the usual one."""
    return '' if way.replan == Way().replan else f', replan {way.replan}'


def rows_of(task: str, measured: Iterable[Measured], times: dict[str, np.ndarray],
            preset: str) -> list[dict[str, Any]]:
    """
    Return figures as JSON lines are written: one row per figure, trial and way.

    Successes of all seeds are counted together, with Wilson's interval; `each` has every seed's
    own, for policies differ from seed to seed by more than the interval of one says.

    :param times: of a plan [s], by label.
    """
    groups: dict[str, list[Measured]] = {}
    for item in measured:
        groups.setdefault(item.trial.label, []).append(item)
    rows = []
    score = find_task(task).score
    for label, items in groups.items():
        trial, first = items[0].trial, items[0].result
        about = {'task': task, 'question': trial.question, 'seeds': [m.seed for m in items],
                 'preset': preset, 'steps': first['wanted']['steps'], 'core': trial.core,
                 'head': trial.head, 'share': trial.share, 'made': first['policy'],
                 'parameters': first['parameters'], 'learned_from': first['learned_from'],
                 'settings': list(trial.all_settings), 'commit': commit(),
                 'machine': f'{platform.machine()}, {os.cpu_count()} cores',
                 'date': date.today().isoformat()}
        for index, way in enumerate(trial.ways):
            found = [item.result['ways'][index] for item in items]
            count, won = (sum(f[name] for f in found) for name in ('episodes', 'successes'))
            low, high = wilson(won, count)
            name = label + way_name(way)
            execution = {'replan': way.replan, 'lost': way.lost,
                         'elapsed_known': way.elapsed_known,
                         'blend': ExecutionSettings().blend}
            rows.append({'figure': 'success', 'value': won / count, 'low': low, 'high': high,
                         'unit': '1', 'policy': name, 'n': count, 'execution': execution,
                         'each': [f['successes'] / f['episodes'] for f in found], **about})
            scores = np.concatenate([f['scores'] for f in found])
            half = 1.96 * scores.std(ddof=1) / np.sqrt(len(scores))
            rows.append({'figure': score, 'value': float(scores.mean()),
                         'low': float(scores.mean() - half), 'high': float(scores.mean() + half),
                         'unit': '1', 'policy': name, 'n': count, 'execution': execution,
                         **about})
        for figure in first['offline']:
            values = [item.result['offline'][figure] for item in items]
            rows.append({'figure': figure, 'value': float(np.mean(values)), 'each': values,
                         'unit': UNITS[figure], 'policy': label, 'n': len(values), **about})
        if label in times:
            for figure, value in (('plan_p50', np.median(times[label])),
                                  ('plan_p99', np.quantile(times[label], 0.99))):
                rows.append({'figure': figure, 'value': float(value), 'unit': 's',
                             'policy': label, 'n': len(times[label]), **about})
    return rows
