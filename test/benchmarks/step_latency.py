"""
How long do one image and one policy step take, next to the cells that others use?

Everything runs in turn, block by block, on one thread of one process, so that all see the same
machine. The exported step holds normalisation, core, mixture head and estimate; the cells of
ncps are the bare cell, 140 numbers to 64 units, without a head. Cores have 64
units where a task names no other number. Run it as
`docker/in_environment.sh python3 test/benchmarks/step_latency.py`; `--checkpoint` measures a
trained policy in place of untrained ones of every core.
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

from liquid_policy.checkpoint import Checkpoint, load_checkpoint
from liquid_policy.core_settings import ALIASES
from liquid_policy.export import to_checkpoint
from liquid_policy.interface import load_interface
from liquid_policy.runtime import EncoderRuntime, ModeKeeper, PolicyRuntime
from liquid_policy.settings import CORES, PolicySettings
from liquid_trainer.train import build_policy

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / 'results' / 'step_latency.jsonl'
INPUTS, UNITS = 140, 64
# Beside every core as it is: other sizes and solvers, by core and its options.
VARIANTS = [('cfc', ['units=32']), ('cfc', ['units=128']), ('cfc', ['units=19', 'wiring=ncp']),
            ('ode', ['units=32']), ('ode', ['units=128']), ('ode', ['solver=euler'])]


def step_of(checkpoint: Checkpoint) -> Callable[[], None]:
    """Return a function that takes one step of the exported policy and chooses a plan."""
    runtime, keeper = PolicyRuntime(checkpoint), ModeKeeper.of(checkpoint)
    rng = np.random.default_rng(0)
    features = rng.normal(size=checkpoint.interface.features.size).astype(np.float32)
    vector = rng.normal(size=checkpoint.interface.vector_size).astype(np.float32)
    state = runtime.initial_state()

    def step() -> None:
        nonlocal state
        state, answer = runtime.step(features, vector, 0.01, state)
        keeper.choose(answer, 0.01)

    return step


def label(checkpoint: Checkpoint) -> str:
    """Return a policy's name, followed by its units where they are not the usual ones."""
    settings = PolicySettings.from_dict(checkpoint.settings)
    units = settings.core.units
    return settings.name if units == UNITS else f'{settings.name} {units}'


def encoder_of(checkpoint: Checkpoint) -> Callable[[], None]:
    """Return a function that encodes one image."""
    runtime = EncoderRuntime(checkpoint)
    rng = np.random.default_rng(0)
    image = next(iter(checkpoint.interface.images.values()))
    color = rng.integers(0, 256, (image.height, image.width, 3), dtype=np.uint8)
    depth = rng.uniform(0.5, 2.0, color.shape[:2]).astype(np.float32)

    def encode() -> None:
        runtime.encode(color, depth)

    return encode


def cells() -> dict[str, Callable[[], None]]:
    """Return one step of ncps's cells, where ncps is installed."""
    try:
        from ncps.torch import CfCCell, LTCCell
        from ncps.wirings import FullyConnected
    except ImportError:
        return {}
    torch.manual_seed(0)
    cfc = CfCCell(INPUTS, UNITS, backbone_units=128, backbone_layers=1)
    ltc = LTCCell(FullyConnected(UNITS), INPUTS)
    x, elapsed, state = torch.randn(1, INPUTS), torch.full((1, 1), 0.01), torch.zeros(1, UNITS)

    def run(cell: torch.nn.Module) -> Callable[[], None]:
        def step() -> None:
            with torch.inference_mode():
                cell(x, state, elapsed)
        return step

    return {'ncps-cfc': run(cfc), 'ncps-ltc': run(ltc)}


def measure(functions: dict[str, Callable[[], None]], count: int) -> dict[str, np.ndarray]:
    """Return each function's times [s], taken in turn in blocks of 50 calls."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        for _ in range(50):
            function()
    while len(next(iter(times.values()))) < count:
        for name, function in functions.items():
            for _ in range(50):
                begin = time.perf_counter()
                function()
                times[name].append(time.perf_counter() - begin)
    return {name: np.array(values) for name, values in times.items()}


def interval(statistic: Callable[[np.ndarray], float],
             blocks: np.ndarray) -> tuple[float, float, float]:
    """Return a statistic and its 95 % interval, by drawing blocks of 50 calls anew."""
    rng = np.random.default_rng(0)
    blocks = blocks[:len(blocks) // 50 * 50].reshape(-1, 50)
    drawn = [statistic(blocks[rng.integers(0, len(blocks), len(blocks))].ravel())
             for _ in range(200)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(statistic(blocks.ravel())), float(low), float(high)


def main() -> None:
    """Print a table; with --write keep it."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('--checkpoint', type=Path, help='a trained policy')
    parser.add_argument('--count', type=int, default=5000, help='steps of each kind')
    parser.add_argument('--write', action='store_true', help='write the result file')
    options = parser.parse_args()
    torch.set_num_threads(1)
    interface = load_interface(REPOSITORY / 'config' / 'manipulator.interface.yaml')
    torch.manual_seed(0)
    checkpoints = [load_checkpoint(options.checkpoint)] if options.checkpoint else [
        to_checkpoint(build_policy(interface, core, width, given).eval(), interface, core)
        for core, given, width in [*((core, [], 0.5) for core in (*CORES, *ALIASES)),
                                   *((core, given, 0.1) for core, given in VARIANTS)]]
    steps = {label(c): step_of(c) for c in checkpoints} | cells()
    times = measure(steps, options.count)
    times |= {'encoder': measure({'encoder': encoder_of(checkpoints[0])},
                                 options.count // 10)['encoder']}
    machine = f'{platform.machine()}, {os.cpu_count()} cores'
    print(f'{machine}, Python {platform.python_version()}, torch {torch.__version__}, '
          f'onnxruntime {onnxruntime.__version__}, one thread, seed 0')
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=REPOSITORY, text=True,
                            capture_output=True).stdout.strip()
    rows = []
    print(f'{"":>20} {"":>4} {"n":>6} {"median":>10} {"p95":>10} {"p99":>10}')
    for name, values in times.items():
        name, _, units = name.partition(' ')
        task = f'manipulator_{units}_units' if units else 'manipulator'
        shared = {'task': task, 'policy': name, 'n': len(values), 'seeds': 1,
                  'preset': 'one_thread', 'commit': commit, 'machine': machine,
                  'date': date.today().isoformat()}
        figure = 'encoder' if name == 'encoder' else 'step'
        print(f'{name:>20} {units or UNITS:>4} {len(values):>6}', *(
            f'{1e6 * np.percentile(values, share):>7.1f} us' for share in (50, 95, 99)))
        for share in (50, 99):
            value, low, high = interval(lambda v, share=share: np.percentile(v, share), values)
            rows.append({'figure': f'{figure}_p{share}', 'value': value, 'low': low, 'high': high,
                         'unit': 's', **shared})
        for other in ('ncps-cfc', 'ncps-ltc'):
            if name.endswith('+mixture') and other in times:
                ratio = np.median(times[other]) / np.median(values)
                rows.append({'figure': 'speedup', 'against': other, 'value': float(ratio),
                             'unit': '1', **shared})
    if options.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
        print(f'written to {RESULTS.relative_to(REPOSITORY)}')


if __name__ == '__main__':
    main()
