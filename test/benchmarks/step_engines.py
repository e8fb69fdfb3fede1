"""
Which form of the shipped policy's step runs fastest on one processor core, and in what memory?

Each form runs in a process of its own, as a node would: written out in numpy, ONNX Runtime, torch
eager, TorchScript frozen, AOTInductor, and ExecuTorch with XNNPACK where it is installed (the
workspace does not need it). All take the same inputs and their own state; they take turns, several
times. Memory is by how much the process has grown since before it loaded the form; most of that of
the torch forms is torch itself.
Run it as `docker/in_environment.sh python3 test/benchmarks/step_engines.py`.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measuring import (
    REPOSITORY,
    about,
    arguments,
    in_real_time,
    latency_rows,
    show,
    speedup_row,
    value_row,
)
from measuring import keep as keep_rows

from liquid_policy.checkpoint import load_checkpoint

SHIPPED = REPOSITORY / 'liquid_policy_node' / 'checkpoints' / 'manipulator.safetensors'
ENGINES = ('numpy', 'onnx', 'torch-eager', 'torchscript', 'aotinductor', 'executorch')
Step = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]   # to the next state


def write_forms(checkpoint: Path, folder: Path) -> list[str]:
    """Write what torch makes of the step; return the engines that can run."""
    import torch

    from liquid_policy.export import to_policy
    from liquid_trainer.export_forms import _Step
    policy = to_policy(load_checkpoint(checkpoint))
    step, settings = _Step(policy).eval(), policy.settings
    inputs = (torch.zeros(1, settings.input_size), torch.full((1, 1), 0.01),
              policy.initial_state())
    with torch.no_grad():
        torch.jit.freeze(torch.jit.trace(step, inputs)).save(str(folder / 'step.ts'))
        exported = torch.export.export(step, inputs, strict=False)
        torch._inductor.aoti_compile_and_package(
            exported, package_path=str(folder / 'step.pt2'))
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    except ImportError as error:
        print(f'executorch: left out ({error})')
        return [name for name in ENGINES if name != 'executorch']
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    (folder / 'step.pte').write_bytes(program.to_executorch().buffer)
    return list(ENGINES)


def at_run_time(engine: str, path: Path) -> Step:
    """Return the step as the nodes run it."""
    from liquid_policy.runtime import PolicyRuntime
    runtime = PolicyRuntime(load_checkpoint(path), engine=engine)
    split = len(runtime._parts[0])

    def step(observed: np.ndarray, elapsed: np.ndarray, state: np.ndarray) -> np.ndarray:
        return runtime.step(observed[0, :split], observed[0, split:], float(elapsed[0, 0]),
                            state[0])[0][None]

    return step


def in_torch(engine: str, path: Path, folder: Path) -> Step:
    """Return the step as torch runs it."""
    import torch
    torch.set_num_threads(1)
    if engine == 'torch-eager':
        from liquid_policy.export import to_policy
        from liquid_trainer.export_forms import _Step
        module = _Step(to_policy(load_checkpoint(path))).eval()
    elif engine == 'torchscript':
        module = torch.jit.load(str(folder / 'step.ts'))
    else:
        module = torch._inductor.aoti_load_package(str(folder / 'step.pt2'))

    def step(*inputs: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(*map(torch.from_numpy, inputs))[0].numpy()

    return step


def in_executorch(folder: Path) -> Step:
    """Return the step as ExecuTorch runs it."""
    import torch
    from executorch.runtime import Runtime
    torch.set_num_threads(1)
    method = Runtime.get().load_program(folder / 'step.pte').load_method('forward')
    return lambda *inputs: method.execute([torch.from_numpy(value) for value in inputs])[0].numpy()


def resident() -> int:
    """Return this process's memory [bytes]."""
    return 1024 * next(int(line.split()[1]) for line in Path(
        '/proc/self/status').read_text().splitlines() if line.startswith('VmRSS'))


def measure(engine: str, path: Path, folder: Path, count: int) -> None:
    """Print times [s], memory [bytes] and the last state of one form."""
    before = resident()
    if engine in ('numpy', 'onnx'):
        step = at_run_time(engine, path)
    elif engine == 'executorch':
        step = in_executorch(folder)
    else:
        step = in_torch(engine, path, folder)
    shapes = json.loads((folder / 'shapes.json').read_text())
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(100, 1, shapes['input'])).astype(np.float32)
    elapsed = np.full((1, 1), 0.01, np.float32)
    state, times = np.zeros((1, shapes['state']), np.float32), []
    gc.disable()
    in_real_time()
    for index in range(count + 100):
        if index % 2000 == 0:
            time.sleep(0.05)    # Linux would stop who takes all of a core in real time
        begin = time.perf_counter()
        state = step(seen[index % 100], elapsed, state)
        times.append(time.perf_counter() - begin)
    print(json.dumps({'times': times[100:], 'memory': resident() - before,
                      'state': state.tolist()}))


def main() -> None:
    """Print a table; with --write keep it."""
    parser = arguments(__doc__)
    parser.add_argument('--checkpoint', type=Path, default=SHIPPED)
    parser.add_argument('--count', type=int, default=5000, help='steps of each form and turn')
    parser.add_argument('--rounds', type=int, default=2, help='turns of each form')
    parser.add_argument('--engine', choices=ENGINES, help='only this one, in --folder')
    parser.add_argument('--folder', type=Path, help='of the forms')
    options = parser.parse_args()
    if options.engine:
        measure(options.engine, options.checkpoint, options.folder, options.count)
        return
    times: dict[str, list[float]] = {}
    memory, states = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        settings = load_checkpoint(options.checkpoint)
        from liquid_policy.runtime import PolicyRuntime
        runtime = PolicyRuntime(settings)
        (Path(folder) / 'shapes.json').write_text(json.dumps(
            {'input': len(runtime._observed), 'state': runtime.state_size}))
        engines = write_forms(options.checkpoint, Path(folder))
        for _ in range(options.rounds):
            for engine in engines:
                done = subprocess.run(
                    [sys.executable, __file__, '--engine', engine, '--folder', folder,
                     '--checkpoint', str(options.checkpoint), '--count', str(options.count)],
                    stdout=subprocess.PIPE, text=True, check=True,
                    env={**os.environ, 'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'})
                found = json.loads(done.stdout.splitlines()[-1])
                times.setdefault(engine, []).extend(found['times'])
                memory[engine], states[engine] = found['memory'], np.array(found['state'])
    arrays = {engine: np.array(values) for engine, values in times.items()}
    show(arrays)
    shared, rows = about(), []
    for engine, values in arrays.items():
        wrong = float(np.abs(states[engine] - states['torch-eager']).max())
        print(f'{engine}: {memory[engine] / 1e6:.0f} MB; state differs from torch by {wrong:.1e}')
        rows += latency_rows('step', 'engine', engine, values, shared)
        rows.append(value_row('resident', 'engine', engine, memory[engine], 'B', 1, shared))
        if engine != 'numpy':
            rows.append(speedup_row('engine', 'numpy', arrays['numpy'], engine, values, shared))
    keep_rows(rows, 'step_engines', options)


if __name__ == '__main__':
    main()
