"""
How well do the cores learn to track and to remember, when samples come at irregular times?

Sequences of 64 samples, 2 to 40 ms apart, of two sines with random frequencies, phases and noise,
and of a cue that is shown for one sample only. Asked at every sample: both sines' rates of
change, and the last cue. To find a rate of change one has to know how much time has passed; to
know the cue one has to keep it. Each core has 32 units and a linear readout and takes the same
optimiser steps on the same sequences; the error is that on sequences never trained on, in
standard deviations of what is asked. Beside each core stands `NAME-time-ignored`: the same core
told that every gap is the mean one.

    docker/in_environment.sh taskset -c 0 python3 test/benchmarks/core_accuracy.py --write
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from liquid_policy.core_settings import CoreSettings
from liquid_policy.cores import build_core
from liquid_trainer.train import keep_memory

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / 'results' / 'core_accuracy.jsonl'
UNITS, BATCH, LENGTH, MEAN_GAP = 32, 32, 64, 0.021
CORES = {
    'cfc': {}, 'cfc-mixed': {'mixed_memory': True}, 'cfc-ncp': {'wiring': 'ncp', 'outputs': 10},
    'ltc': {'kind': 'ltc'}, 'ode': {'kind': 'ode'}, 'scan': {'kind': 'scan'},
    'lstm': {'kind': 'lstm'}, 'gru': {'kind': 'gru'},
}
IGNORING = ('cfc', 'scan', 'lstm')


def sequences(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs `(count, LENGTH, 4)`, gaps [s] `(count, LENGTH, 1)`, targets of 3 numbers."""
    rng = np.random.default_rng(seed)
    gaps = rng.uniform(0.002, 0.040, (count, LENGTH, 1))
    times = gaps.cumsum(1)
    speed = 2 * np.pi * rng.uniform(0.5, 3.0, (count, 1, 2))            # rad/s
    angle = speed * times + rng.uniform(0, 2 * np.pi, (count, 1, 2))
    shown = rng.random((count, LENGTH, 1)) < 0.05
    cues = np.where(shown, rng.normal(size=shown.shape), 0.0)
    last = np.zeros((count, 1))
    kept = np.empty_like(cues)
    for index in range(LENGTH):
        last = np.where(shown[:, index], cues[:, index], last)
        kept[:, index] = last
    noisy = np.sin(angle) + 0.02 * rng.normal(size=angle.shape)
    inputs = np.concatenate((noisy, cues, shown), 2)
    # A rate of 2 pi 1.9 rad/s / sqrt(2) is a usual one; the cue has a deviation of 1.
    targets = np.concatenate((speed * np.cos(angle) / 8.4, kept), 2)
    return tuple(torch.tensor(value, dtype=torch.float32) for value in (inputs, gaps, targets))


def learn(options: dict, steps: int, seed: int, ignore: bool) -> tuple[float, float, float, float]:
    """Return the errors of rates and cue, the parameters and the processor time [s]."""
    torch.manual_seed(seed)
    core = build_core(CoreSettings(units=UNITS, unit_time=MEAN_GAP, **options), 4)
    readout = nn.Linear(core.units, 3)
    parameters = [*core.parameters(), *readout.parameters()]
    optimizer = torch.optim.Adam(parameters, 4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, steps)

    def answer(inputs: Tensor, gaps: Tensor) -> Tensor:
        gaps = torch.full_like(gaps, MEAN_GAP) if ignore else gaps
        return readout(core.sequence(inputs, gaps, core.initial_state(len(inputs)))[0])

    begin = time.thread_time()
    for step in range(steps):
        inputs, gaps, targets = sequences(BATCH, 1_000_000 * (seed + 1) + step)
        loss = (answer(inputs, gaps) - targets).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    spent = time.thread_time() - begin
    inputs, gaps, targets = sequences(256, 99)
    with torch.no_grad():
        # The first samples say nothing about a rate yet.
        error = (answer(inputs, gaps) - targets)[:, 16:].square().mean((0, 1)).sqrt()
    deviation = targets[:, 16:].std((0, 1))
    rates, cue = (error[:2] / deviation[:2]).mean(), error[2] / deviation[2]
    return float(rates), float(cue), float(sum(p.numel() for p in core.parameters())), spent


def main() -> None:
    """Print a table; with --write keep it."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('--steps', type=int, default=200, help='optimiser steps')
    parser.add_argument('--seeds', type=int, default=3, help='runs of each')
    parser.add_argument('--write', action='store_true', help='write the result file')
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    machine = f'{platform.machine()}, {os.cpu_count()} cores'
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=REPOSITORY, text=True,
                            capture_output=True).stdout.strip()
    print(f'{machine}, Python {platform.python_version()}, torch {torch.__version__}, one '
          f'thread, {options.seeds} seeds, {options.steps} steps')
    rows = []
    for name, ignore in [*((name, False) for name in CORES), *((name, True) for name in IGNORING)]:
        found = np.array([learn(CORES[name], options.steps, seed, ignore)
                          for seed in range(options.seeds)])
        label = f'{name}-time-ignored' if ignore else name
        print(f'{label:>24}  rates {found[:, 0].mean():.3f}  cue {found[:, 1].mean():.3f}  '
              f'{found[0, 2]:.0f} parameters  {found[:, 3].mean():.1f} s', flush=True)
        for column, task in enumerate(('rates', 'cue')):
            values = found[:, column]
            # The range of the runs: of so few, an interval would say no more.
            rows.append({'figure': 'error', 'task': task, 'policy': label,
                         'value': values.mean(), 'low': values.min(), 'high': values.max(),
                         'unit': '1', 'n': 256, 'seeds': options.seeds,
                         'preset': f'{options.steps}_steps', 'commit': commit,
                         'machine': machine, 'date': date.today().isoformat()})
    if options.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
        print(f'written to {RESULTS.relative_to(REPOSITORY)}')


if __name__ == '__main__':
    main()
