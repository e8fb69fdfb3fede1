"""
How long does a training step over whole sequences take, next to ncps and to our own plain loops?

A step is forward, backward and AdamW on one thread, the same for everyone: 64 sequences of 100
steps, 140 inputs, 64 units; one such sequence, as online learning has it; and, for the core that
is linear in its state, one of 4096 steps. All take turns, one step each, so that they see the same
machine. What is counted is the thread's processor time: on an idle machine that is the time on
the clock, and on a busy one it leaves out what others used. Run it pinned to a core:

    docker/in_environment.sh taskset -c 0 python3 test/benchmarks/sequence_training.py --write
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

import numpy as np
import torch
from measuring import about, arguments, keep
from torch import Tensor, nn

from liquid_policy.core_settings import CoreSettings
from liquid_policy.cores import build_core
from liquid_trainer.train import keep_memory

INPUTS, UNITS = 140, 64
SHORT, SINGLE, LONG = '64x100', '1x100', '1x4096'
CORES = {
    'cfc': {}, 'cfc-mixed': {'mixed_memory': True}, 'cfc-ncp': {'wiring': 'ncp'},
    'ltc': {'kind': 'ltc'}, 'ltc-ncp': {'kind': 'ltc', 'wiring': 'ncp'}, 'ode': {'kind': 'ode'},
    'scan': {'kind': 'scan'}, 'lstm': {'kind': 'lstm'}, 'gru': {'kind': 'gru'},
}
# (task, policy, against)
RATIOS = [
    (SHORT, 'cfc', 'ncps-cfc'), (SHORT, 'cfc', 'ncps-ltc'), (SHORT, 'cfc', 'sequential'),
    (SHORT, 'cfc-mixed', 'ncps-cfc-mixed'),
    (SHORT, 'ltc', 'ncps-ltc'), (SHORT, 'ltc-ncp', 'ncps-ltc-ncp'),
    (SINGLE, 'cfc', 'ncps-cfc'), (LONG, 'scan', 'sequential'),
]

Step = Callable[[], float]


def step_of(module: nn.Module, outputs: Callable[[], Tensor]) -> Step:
    """Return a function that takes one training step and returns its processor time [s]."""
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3)

    def step() -> float:
        begin = time.thread_time()
        optimizer.zero_grad(set_to_none=True)
        outputs().square().mean().backward()
        optimizer.step()
        return time.thread_time() - begin

    return step


def data(task: str) -> tuple[Tensor, Tensor]:
    """Return inputs and elapsed times [s]: 5 to 15 ms, none alike."""
    batch, length = (int(number) for number in task.split('x'))
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(batch, length, INPUTS, generator=generator),
            0.005 + 0.01 * torch.rand(batch, length, 1, generator=generator))


def own(task: str, name: str, sequential: bool = False) -> Step:
    """Return a training step of one of our cores."""
    torch.manual_seed(0)
    core = build_core(CoreSettings(units=UNITS, **CORES[name]), INPUTS)
    xs, elapsed = data(task)
    run = core.sequential if sequential else core.sequence
    return step_of(core, lambda: run(xs, elapsed, core.initial_state(len(xs)))[0])


def peers() -> dict[tuple[str, str], Step]:
    """
    Return training steps of ncps's networks; units and circuits as ours.

    ncps 1.0.1 lays a batch's times along the units, so it runs only where there are as many of
    the one as of the other, as here, or one row, and not at all with a circuit of closed-form
    cells. The work is the same.
    """
    from ncps.torch import LTC, CfC
    from ncps.wirings import AutoNCP

    torch.manual_seed(0)

    def step(network: nn.Module, task: str = SHORT) -> Step:
        xs, elapsed = data(task)
        return step_of(network, lambda: network(xs, timespans=elapsed / 0.01)[0])

    return {
        (SHORT, 'ncps-cfc'): step(CfC(INPUTS, UNITS)),
        (SHORT, 'ncps-cfc-mixed'): step(CfC(INPUTS, UNITS, mixed_memory=True)),
        (SHORT, 'ncps-ltc'): step(LTC(INPUTS, UNITS)),
        (SHORT, 'ncps-ltc-ncp'): step(LTC(INPUTS, AutoNCP(UNITS, round(0.3 * UNITS)))),
        (SINGLE, 'ncps-cfc'): step(CfC(INPUTS, UNITS), SINGLE),
    }


def measure(steps: dict[tuple[str, str], Step], repetitions: int) -> dict[tuple[str, str],
                                                                           np.ndarray]:
    """Return every step's times [s]; all take turns, the first turn does not count."""
    times: dict[tuple[str, str], list[float]] = {name: [] for name in steps}
    for turn in range(repetitions + 1):
        for name, step in steps.items():
            taken = step()
            if turn:
                times[name].append(taken)
        print(f'turn {turn} of {repetitions}', flush=True)
    return {name: np.array(values) for name, values in times.items()}


def interval(statistic: Callable[[np.ndarray], float], count: int) -> tuple[float, float, float]:
    """Return a statistic of turns and its 95 % interval, by drawing turns anew."""
    rng = np.random.default_rng(0)
    drawn = [statistic(rng.integers(0, count, count)) for _ in range(1000)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(statistic(np.arange(count))), float(low), float(high)


def main() -> None:
    """Print a table; with --write keep it."""
    parser = arguments(__doc__)
    parser.add_argument('--repetitions', type=int, default=15, help='turns that count')
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()       # as the train command does; for all alike
    steps = {(SHORT, name): own(SHORT, name) for name in CORES}
    steps[SHORT, 'sequential'] = own(SHORT, 'cfc', sequential=True)
    steps[SINGLE, 'cfc'] = own(SINGLE, 'cfc')
    steps |= peers()
    steps[LONG, 'scan'] = own(LONG, 'scan')
    steps[LONG, 'sequential'] = own(LONG, 'scan', sequential=True)
    times = measure(steps, options.repetitions)
    shared = {**about(), 'n': options.repetitions}
    print(f'{shared["machine"]}, Python {platform.python_version()}, torch '
          f'{torch.__version__}, one '
          f'thread, seed 0, {options.repetitions} turns')
    rows = []
    for (task, name), values in times.items():
        value, low, high = interval(lambda turns, v=values: np.median(v[turns]), len(values))
        print(f'{task:>8} {name:>16} {1e3 * value:>9.1f} ms   {1e3 * low:.1f} to {1e3 * high:.1f}')
        rows.append({'figure': 'training_step_p50', 'task': task, 'policy': name, 'value': value,
                     'low': low, 'high': high, 'unit': 's', **shared})
    for task, name, against in RATIOS:
        ours, theirs = times[task, name], times[task, against]
        value, low, high = interval(
            lambda turns, a=ours, b=theirs: np.median(b[turns]) / np.median(a[turns]), len(ours))
        print(f'{task:>8} {name:>16} {value:>6.1f} x {against}   {low:.1f} to {high:.1f}')
        rows.append({'figure': 'speedup', 'task': task, 'policy': name, 'against': against,
                     'value': value, 'low': low, 'high': high, 'unit': '1', **shared})
    keep(rows, 'sequence_training', options)


if __name__ == '__main__':
    main()
