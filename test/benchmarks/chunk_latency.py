"""
How long does one action chunk take, head by head?

All heads sit on the same core, see the same numbers, answer with the same chunk (16 steps of the
manipulator's 9 actions) and are exported the same way: normalisation, core, head and the whole
sampling loop in one ONNX graph, run on one thread. The samplers share one U-Net. They are timed in
turn, block by block, so that all see the same machine, and by the processor time of that thread,
so that a call that other programs interrupt does not count for longer. Untrained weights: time
does not depend on them. Run it as
`docker/in_environment.sh python3 test/benchmarks/chunk_latency.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from liquid_policy.export import to_checkpoint
from liquid_policy.head_settings import (
    DiffusionSettings,
    FlowSettings,
    HeadSettings,
    ImleSettings,
    MixtureSettings,
)
from liquid_policy.interface import load_interface
from liquid_policy.policy import Policy
from liquid_policy.runtime import ModeKeeper, PolicyRuntime
from liquid_policy.settings import PolicySettings

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / 'results' / 'chunk_latency.jsonl'
INPUTS, ACTIONS = 140, 9


def heads(channels: tuple[int, ...]) -> list[HeadSettings]:
    """Return the heads to compare; samplers draw one sample."""
    shared = {'network': 'unet', 'channels': channels, 'samples': 1}
    return [MixtureSettings(), ImleSettings(**shared), FlowSettings(**shared),
            DiffusionSettings(schedule='ddim', steps=10, **shared),
            DiffusionSettings(steps=50, **shared), DiffusionSettings(steps=100, **shared)]


def chunk_of(settings: HeadSettings) -> tuple[Callable[[], None], int]:
    """Return a function that makes one chunk, and the policy's number of parameters."""
    torch.manual_seed(0)
    interface = load_interface(REPOSITORY / 'config' / 'manipulator.interface.yaml')
    policy = Policy(PolicySettings(encoder=None, vector_size=INPUTS, action_size=ACTIONS,
                                   target_size=0, head=settings)).eval()
    checkpoint = to_checkpoint(policy, interface, settings.name)
    runtime, keeper = PolicyRuntime(checkpoint), ModeKeeper.of(checkpoint)
    vector = np.random.default_rng(0).normal(size=INPUTS).astype(np.float32)
    nothing, state = np.zeros(0, np.float32), runtime.initial_state()

    def chunk() -> None:
        nonlocal state
        state, answer = runtime.step(nothing, vector, 0.01, state)
        keeper.choose(answer, 0.01)

    return chunk, sum(parameter.numel() for parameter in policy.parameters())


def measure(functions: dict[str, Callable[[], None]], seconds: float) -> dict[str, np.ndarray]:
    """
    Return each function's processor times [s], taken in turn in blocks.

    :param seconds: for each function; a slow one is called fewer times, and never fewer than 20.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    sizes = {}
    for name, function in functions.items():
        function()
        begin = time.thread_time()
        function()
        each = time.thread_time() - begin
        sizes[name] = int(np.clip(seconds / 10 / each, 2, 500))
    for _ in range(10):
        for name, function in functions.items():
            function()      # the caches are another's by now
            for _ in range(sizes[name]):
                begin = time.thread_time()
                function()
                times[name].append(time.thread_time() - begin)
    return {name: np.array(values) for name, values in times.items()}


def interval(statistic: Callable[[np.ndarray], float],
             values: np.ndarray) -> tuple[float, float, float]:
    """Return a statistic and its 95 % interval, by drawing the ten blocks anew."""
    rng = np.random.default_rng(0)
    blocks = values.reshape(10, -1)
    drawn = [statistic(blocks[rng.integers(0, 10, 10)].ravel()) for _ in range(500)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(statistic(values)), float(low), float(high)


def main() -> None:
    """Print a table; with --write keep it."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('--seconds', type=float, default=10.0, help='for each head')
    parser.add_argument('--channels', type=int, nargs='+', default=(128, 256, 512),
                        help='of the U-Net, level by level')
    parser.add_argument('--write', action='store_true', help='write the result file')
    options = parser.parse_args()
    torch.set_num_threads(1)
    functions, sizes = {}, {}
    for settings in heads(tuple(options.channels)):
        name = f'cfc+{settings.name}'
        functions[name], sizes[name] = chunk_of(settings)
        print(f'exported {name}', flush=True)
    times = measure(functions, options.seconds)
    machine = f'{platform.machine()}, {os.cpu_count()} cores'
    print(f'{machine}, Python {platform.python_version()}, torch {torch.__version__}, '
          f'onnxruntime {onnxruntime.__version__}, one thread, seed 0')
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=REPOSITORY, text=True,
                            capture_output=True).stdout.strip()
    rows = []
    ours = np.median(times['cfc+mixture'])
    print(f'{"":>24} {"parameters":>11} {"n":>6} {"median":>10} {"p95":>10} {"p99":>10}')
    for name, values in times.items():
        shared = {'task': 'chunk', 'policy': name, 'n': len(values), 'seeds': 1,
                  'preset': 'one_thread_processor_time', 'commit': commit, 'machine': machine,
                  'date': date.today().isoformat(), 'parameters': sizes[name]}
        print(f'{name:>24} {sizes[name]:>11} {len(values):>6}', *(
            f'{1e3 * np.percentile(values, share):>7.3f} ms' for share in (50, 95, 99)))
        for share in (50, 99):
            value, low, high = interval(
                lambda v, share=share: float(np.percentile(v, share)), values)
            rows.append({'figure': f'chunk_p{share}', 'value': value, 'low': low, 'high': high,
                         'unit': 's', **shared})
        if name != 'cfc+mixture':
            rows.append({'figure': 'speedup', 'value': float(np.median(values) / ours),
                         'unit': '1', **shared, 'policy': 'cfc+mixture',
                         'against': name.removeprefix('cfc+'),
                         'parameters': sizes['cfc+mixture']})
    if options.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
        print(f'written to {RESULTS.relative_to(REPOSITORY)}')


if __name__ == '__main__':
    main()
