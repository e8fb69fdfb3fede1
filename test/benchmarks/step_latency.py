"""
How long do one image and one policy step take, next to what others use?

Everything runs in turn, block by block, on one thread of one process, so that all see the same
machine. A step of ours is what a node does for a tick: normalisation, core, mixture head,
estimate, checks and the choice of a plan. Its peers, in torch as published:

* `ncps-cfc`, `ncps-ltc`: the bare cell of ncps, 140 numbers to 64 units, nothing else.
* `ncps-cfc+mixture`, `ncps-ltc+mixture`: the cell with our normalisation and heads around it.
* `torch-eager`: our own policy in torch.
* `numpy-products`: nothing but products, 12 times that of 256 x 205 numbers, which take about as
  long as a step. What their p99 is above their p50 is the machine's.
* `torchdiffeq-window-...`: the published recipe of a continuous-time policy: at every decision
  the last 100 inputs are integrated anew by torchdiffeq, here with our head behind it.

Cores have 64 units where a task names no other number. Run it as
`docker/in_environment.sh python3 test/benchmarks/step_latency.py`; `--checkpoint` measures a
trained policy beside the untrained ones.
"""

from __future__ import annotations

import gc
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from measuring import (
    REPOSITORY,
    about,
    arguments,
    in_real_time,
    in_turn,
    keep,
    latency_rows,
    show,
    speedup_row,
)
from torch import Tensor, nn

from liquid_policy.checkpoint import Checkpoint, load_checkpoint
from liquid_policy.core_settings import ALIASES
from liquid_policy.export import to_checkpoint, to_policy
from liquid_policy.interface import load_interface
from liquid_policy.policy import Policy
from liquid_policy.runtime import EncoderRuntime, ModeKeeper, PolicyRuntime
from liquid_policy.settings import CORES, CoreSettings, EncoderSettings, PolicySettings

INPUTS, UNITS, WINDOW = 140, 64, 100
SOLVERS, SIZES = ('euler', 'rk4', 'dopri5'), (32, 64, 128)
INTERFACE = load_interface(REPOSITORY / 'config' / 'manipulator.interface.yaml')
Step = Callable[[], None]


def make_policy(core: CoreSettings) -> Policy:
    """Return an untrained policy of the manipulator; the encoder is not asked here."""
    torch.manual_seed(0)
    return Policy(PolicySettings(encoder=EncoderSettings(width=0.1), core=core)).eval()


def packed(policy: Policy, exported: bool) -> Checkpoint:
    """Return a checkpoint; exported graphs only where they are needed."""
    if exported:
        return to_checkpoint(policy, INTERFACE, policy.settings.name)
    weights = {name: value.numpy() for name, value in policy.state_dict().items()}
    return Checkpoint(policy.settings.name, policy.settings.to_dict(), INTERFACE, weights=weights)


def step_of(checkpoint: Checkpoint, engine: str = 'auto') -> Step:
    """Return a function that takes one step at run time and chooses a plan."""
    runtime, keeper = PolicyRuntime(checkpoint, engine=engine), ModeKeeper.of(checkpoint)
    rng = np.random.default_rng(0)
    features = rng.normal(size=INPUTS - 12).astype(np.float32)
    vector = rng.normal(size=12).astype(np.float32)
    state = runtime.initial_state()

    def step() -> None:
        nonlocal state
        state, answer = runtime.step(features, vector, 0.01, state)
        keeper.choose(answer, 0.01)

    return step


def eager(policy: nn.Module, state: Tensor) -> Step:
    """Return a step of a policy in torch."""
    seen, elapsed = torch.randn(1, INPUTS), torch.full((1, 1), 0.01)

    def step() -> None:
        with torch.inference_mode():
            policy.step(seen, elapsed, state)

    return step


class Headed(nn.Module):
    """Our normalisation and heads around another core, as a policy is."""

    def __init__(self, core: Callable[[Tensor, Tensor, Tensor], Tensor]):
        super().__init__()
        self.policy = make_policy(CoreSettings(units=UNITS))
        self.core = core

    def step(self, seen: Tensor, elapsed: Tensor, state: Tensor) -> tuple:
        """Return the next state and the answer."""
        policy = self.policy
        x = policy.normalise(seen)
        state = self.core(x, elapsed, state)
        answer, mean, scale = policy.heads(state[:, :UNITS], x)
        return state, policy.physical(policy.head.distribution(answer), mean, scale)


def ncps_cells() -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Return ncps's cells as functions of input, elapsed time and state; none without ncps."""
    try:
        from ncps.torch import CfCCell, LTCCell
        from ncps.wirings import FullyConnected
    except ImportError:
        return {}
    torch.manual_seed(0)
    cfc = CfCCell(INPUTS, UNITS, backbone_units=128, backbone_layers=1)
    ltc = LTCCell(FullyConnected(UNITS), INPUTS)
    return {'ncps-cfc': lambda x, elapsed, state: cfc(x, state, elapsed)[1],
            'ncps-ltc': lambda x, elapsed, state: ltc(x, state, elapsed)[1]}


class Field(nn.Module):
    """dh/dt = -h / tau + tanh(W [x, h] + b) of one sequence whose inputs are held."""

    def __init__(self, units: int):
        super().__init__()
        self.drive = nn.Linear(INPUTS + units, units)
        self.rate = 1.0 / torch.linspace(0.02, 0.5, units)
        self.inputs = torch.randn(WINDOW, INPUTS)

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        """Return the derivative [1/s]."""
        index = min(int(time / 0.01), WINDOW - 1)
        both = torch.cat((self.inputs[index:index + 1], state), 1)
        return torch.tanh(self.drive(both)) - state * self.rate


def window_step(solver: str, units: int) -> Step | None:
    """Return one decision by the published recipe; None without torchdiffeq."""
    try:
        from torchdiffeq import odeint
    except ImportError:
        return None
    torch.manual_seed(0)
    field, head = Field(units), make_policy(CoreSettings(units=units))
    times, x = torch.arange(WINDOW + 1) * 0.01, torch.randn(1, INPUTS)
    more = {'rtol': 1e-3, 'atol': 1e-3} if solver == 'dopri5' else {}

    def step() -> None:
        with torch.inference_mode():
            state = odeint(field, torch.zeros(1, units), times, method=solver, **more)[-1]
            answer, mean, scale = head.heads(state, head.normalise(x))
            head.physical(head.head.distribution(answer), mean, scale)

    return step


def encoders(size: int) -> dict[str, Step]:
    """Return an image's encoding at run time and in torch, by name."""
    torch.manual_seed(0)
    settings = PolicySettings(encoder=EncoderSettings(height=size, width_pixels=size))
    policy = Policy(settings).eval()
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    depth = rng.uniform(0.5, 2.0, (size, size)).astype(np.float32)
    runtime = EncoderRuntime(to_checkpoint(policy, INTERFACE, 'encoder'))
    given = torch.from_numpy(color)[None], torch.from_numpy(depth)[None]

    def in_torch() -> None:
        with torch.inference_mode():
            policy.encoder(*given)

    return {'encoder': lambda: runtime.encode(color, depth), 'torch-eager': in_torch}


def step_rows(options, shared: dict) -> list[dict]:
    """Steps of every core next to peers."""
    steps: dict[str, Step] = {}
    for kind in (*CORES, *ALIASES):
        steps[f'{kind}+mixture'] = step_of(packed(make_policy(CoreSettings(kind)), True))
    mixed = packed(make_policy(CoreSettings('cfc-mixed')), True)
    steps['cfc-mixed+mixture onnx'] = step_of(mixed, 'onnx')
    steps['cfc-ncp+mixture 19'] = step_of(packed(make_policy(
        CoreSettings(units=19, wiring='ncp')), True))
    if options.checkpoint:
        loaded = load_checkpoint(options.checkpoint)
        steps['shipped'] = step_of(loaded)
        steps['shipped torch-eager'] = eager(to_policy(loaded), torch.zeros(1, 128))
    ours = make_policy(CoreSettings('cfc'))
    steps['torch-eager'] = eager(ours, ours.initial_state())
    for name, cell in ncps_cells().items():
        headed = Headed(cell)
        x, elapsed = torch.randn(1, INPUTS), torch.full((1, 1), 0.01)
        steps[f'{name}+mixture'] = eager(headed, torch.zeros(1, UNITS))

        def bare(cell=cell, x=x, elapsed=elapsed) -> None:
            with torch.inference_mode():
                cell(x, elapsed, torch.zeros(1, UNITS))

        steps[name] = bare
    weight, seen = np.zeros((256, 205), np.float32, 'F'), np.zeros(205, np.float32)
    out = np.zeros(256, np.float32)

    def products() -> None:
        for _ in range(12):
            weight.dot(seen, out)

    steps['numpy-products'] = products
    window = window_step('rk4', UNITS)
    if window is not None:
        steps['torchdiffeq-window'] = window
    times = in_turn(steps, options.count, options.seconds)
    show(times)
    rows = []
    peers = [name for name in times if name.startswith(('ncps', 'torch'))]
    for name, values in times.items():
        policy, _, more = name.partition(' ')
        task = f'manipulator{"_" + more if more else ""}'
        rows += latency_rows('step', task, policy, values, shared)
        if '+mixture' in name and not name.startswith('ncps') or name == 'shipped':
            rows += [speedup_row(task, policy, values, peer, times[peer], shared)
                     for peer in peers]
    for name in ('cfc+mixture', 'numpy-products'):
        p50, p99 = np.percentile(times[name], (50, 99))
        print(f'{name}: p99 is {p99 / p50:.2f} times p50')
    for peer in peers:
        values = times['cfc+mixture']
        print(f'cfc+mixture: {np.median(times[peer]) / np.median(values):.1f} x {peer}')
    return rows


def solver_rows(options, shared: dict) -> list[dict]:
    """Solvers and sizes, next to the window integrated anew."""
    steps: dict[str, Step] = {}
    for solver in SOLVERS:
        for units in SIZES:
            core = CoreSettings('ode', units=units, solver=solver)
            steps[f'{solver} {units}'] = step_of(packed(make_policy(core), solver == 'dopri5'))
            window = window_step(solver, units)
            if window is not None:
                steps[f'window-{solver} {units}'] = window
    times = in_turn(steps, options.count, options.seconds)
    show(times)
    rows = []
    for name, values in times.items():
        solver, units = name.split()
        task, window = f'solver_{units}_units', solver.startswith('window')
        policy = f'torchdiffeq-{solver}' if window else f'ode-{solver}+mixture'
        rows += latency_rows('step', task, policy, values, shared)
        if not window and f'window-{name}' in times:
            rows.append(speedup_row(task, policy, values, f'torchdiffeq-window-{solver}',
                                    times[f'window-{name}'], shared))
    for units in SIZES:
        core = CoreSettings('cfc', units=units)
        steps = {'cfc+mixture': step_of(packed(make_policy(core), False))}
        for policy, values in in_turn(steps, options.count, options.seconds).items():
            rows += latency_rows('step', f'solver_{units}_units', policy, values, shared)
    return rows


def encoder_rows(options, shared: dict) -> list[dict]:
    """Images of two sizes, next to torch."""
    rows = []
    for size in (96, 224):
        times = in_turn(encoders(size), options.count, 4 * options.seconds, block=10)
        print(f'images of {size} x {size} pixels')
        show(times, 'ms')
        for name, values in times.items():
            rows += latency_rows('encoder', f'image_{size}', name, values, shared)
        rows.append(speedup_row(f'image_{size}', 'encoder', times['encoder'], 'torch-eager',
                                times['torch-eager'], shared))
    return rows


def main() -> None:
    """Print tables; with --write keep them."""
    parser = arguments(__doc__)
    parser.add_argument('--checkpoint', type=Path, help='a trained policy, measured too')
    parser.add_argument('--count', type=int, default=10_000, help='steps of each kind, at most')
    parser.add_argument('--seconds', type=float, default=6.0, help='for each, about')
    options = parser.parse_args()
    torch.set_num_threads(1)
    shared = about()
    print(f'{shared["machine"]}, Python {platform.python_version()}, torch {torch.__version__}, '
          f'onnxruntime {onnxruntime.__version__}, one thread, seed 0, load {shared["load"]}')
    gc.collect()
    gc.freeze()
    gc.disable()    # as in the nodes, and for all alike
    in_real_time()
    rows = []
    for part in (step_rows, solver_rows, encoder_rows):
        rows += part(options, shared)
        gc.collect()
    keep(rows, 'step_latency', options)


if __name__ == '__main__':
    main()
