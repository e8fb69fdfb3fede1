"""What the benchmarks share: functions timed in turn, percentiles with intervals, result rows."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from liquid_sim.evaluate import commit

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / 'results'
BLOCK = 50      # calls of one function before the next one's turn
# Linux stops for 50 ms whoever takes more than 95 % of a core in real time, so we rest ourselves.
REST, REST_AFTER = 0.1, 0.05    # as a share of the time taken, and after how long [s]


def in_turn(functions: Mapping[str, Callable[[], Any]], count: int, seconds: float = 1e9,
            block: int = BLOCK, clock: Callable[[], float] = time.perf_counter,
            ) -> dict[str, np.ndarray]:
    """
    Return each function's times [s], taken in turn in blocks, so that all see the same machine.

    :param count: calls of each; a slow one gets fewer, but never fewer than 20.
    :param seconds: for each function, about.
    :param block: calls of one function in a row. Before each block and after each rest it is
        called once more, for the caches are another's by then.
    :param clock: `time.thread_time` counts this thread's processor time only.
    """
    counts = {}
    for name, function in functions.items():
        function()
        taken = []
        for _ in range(3):      # the shortest, for another program may have interrupted
            begin = clock()
            function()
            taken.append(clock() - begin)
        counts[name] = int(np.clip(seconds / max(min(taken), 1e-7), 20, count))
    times: dict[str, list[float]] = {name: [] for name in functions}
    rounds, taken_since = -(-max(counts.values()) // block), 0.0
    resting = os.sched_getscheduler(0) != os.SCHED_OTHER
    for turn in range(rounds):
        for name, function in functions.items():
            due = counts[name] * (turn + 1) // rounds - len(times[name])
            if due:
                function()
            for _ in range(due):
                begin = clock()
                function()
                times[name].append(clock() - begin)
                taken_since += times[name][-1]
                if resting and taken_since > REST_AFTER:
                    time.sleep(REST * taken_since)
                    taken_since = 0.0
                    if times[name][-1] < REST_AFTER:
                        function()
    return {name: np.array(values) for name, values in times.items()}


def in_real_time(priority: int = 35) -> None:
    """Run this program as the nodes run, before ordinary ones, where that is allowed."""
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(priority))


def interval(values: np.ndarray, share: float) -> tuple[float, float, float]:
    """
    Return a percentile and its 95 % interval.

    :param values: in the order they were taken, `(N,)`; blocks of neighbours are drawn anew,
        because what disturbs one call disturbs the next.
    :param share: of the values that lie below, in per cent.
    """
    rng = np.random.default_rng(0)
    size = max(1, min(BLOCK, len(values) // 10))
    blocks = values[:len(values) // size * size].reshape(-1, size)
    drawn = [np.percentile(blocks[rng.integers(0, len(blocks), len(blocks))], share)
             for _ in range(100)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(np.percentile(values, share)), float(low), float(high)


def about(preset: str = 'one_thread') -> dict[str, Any]:
    """Return what every row says about its run; `load` is what else kept the machine busy."""
    return {'seeds': 1, 'preset': preset, 'commit': commit(),
            'machine': f'{platform.machine()}, {os.cpu_count()} cores',
            'date': date.today().isoformat(), 'load': round(os.getloadavg()[0], 2)}


def latency_rows(figure: str, task: str, policy: str, values: np.ndarray, shared: dict,
                 ) -> list[dict]:
    """Return rows of a duration: median, 99th percentile with intervals, and maximum."""
    given = {'task': task, 'policy': policy, 'unit': 's', 'n': len(values), **shared}
    rows = []
    for share in (50, 99):
        value, low, high = interval(values, share)
        rows.append({'figure': f'{figure}_p{share}', 'value': value, 'low': low, 'high': high,
                     **given})
    rows.append({'figure': f'{figure}_max', 'value': float(values.max()), **given})
    return rows


def speedup_row(task: str, policy: str, ours: np.ndarray, against: str, theirs: np.ndarray,
                shared: dict) -> dict:
    """Return how many times as fast the median of `ours` is as that of `theirs`."""
    return {'figure': 'speedup', 'task': task, 'policy': policy, 'against': against,
            'value': float(np.median(theirs) / np.median(ours)), 'unit': '1',
            'n': min(len(ours), len(theirs)), **shared}


def value_row(figure: str, task: str, policy: str, value: float, unit: str, count: int,
              shared: dict) -> dict:
    """Return one number as a row."""
    return {'figure': figure, 'task': task, 'policy': policy, 'value': float(value), 'unit': unit,
            'n': count, **shared}


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser that knows where results go: `--write` (committed) or `--output`."""
    parser = argparse.ArgumentParser(description=description.strip().splitlines()[0])
    parser.add_argument('--write', action='store_true', help='write the result file')
    parser.add_argument('--output', type=Path, help='write the rows there instead')
    return parser


def keep(rows: list[dict], name: str, options: argparse.Namespace) -> None:
    """Write the rows where the arguments say."""
    path = options.output or (RESULTS / f'{name}.jsonl' if options.write else None)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
        print(f'written to {path}')


def show(times: Mapping[str, np.ndarray], unit: str = 'us') -> None:
    """Print a table of durations."""
    factor = {'us': 1e6, 'ms': 1e3}[unit]
    print(f'{"":>28} {"n":>7} {"p50":>10} {"p99":>10} {"max":>10}  [{unit}]')
    for name, values in times.items():
        p50, p99 = np.percentile(values, (50, 99))
        print(f'{name:>28} {len(values):>7} {p50 * factor:>10.1f} {p99 * factor:>10.1f} '
              f'{values.max() * factor:>10.1f}', flush=True)
