"""
How long does one action chunk take, head by head?

All heads sit on the same core, see the same numbers, answer with the same chunk (16 steps of the
manipulator's 9 actions) and run as on the robot: normalisation, core, head and the whole sampling
loop, on one thread; the mixture written out in numpy, the others as one ONNX graph. The samplers
share one U-Net. They are timed in turn, block by block, so that all see the same machine, and by
the processor time of that thread, so that a call that other programs interrupt does not count for
longer. Untrained weights: time does not depend on them. Run it as
`docker/in_environment.sh python3 test/benchmarks/chunk_latency.py`.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

import numpy as np
import onnxruntime
import torch
from measuring import REPOSITORY, about, arguments, in_turn, keep, latency_rows, show, speedup_row

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


def main() -> None:
    """Print a table; with --write keep it."""
    parser = arguments(__doc__)
    parser.add_argument('--count', type=int, default=10_000, help='chunks of each, at most')
    parser.add_argument('--seconds', type=float, default=10.0, help='for each head, about')
    parser.add_argument('--channels', type=int, nargs='+', default=(128, 256, 512),
                        help='of the U-Net, level by level')
    options = parser.parse_args()
    torch.set_num_threads(1)
    functions, sizes = {}, {}
    for settings in heads(tuple(options.channels)):
        name = f'cfc+{settings.name}'
        functions[name], sizes[name] = chunk_of(settings)
        print(f'exported {name}', flush=True)
    shared = about('one_thread_processor_time')
    print(f'{shared["machine"]}, Python {platform.python_version()}, torch {torch.__version__}, '
          f'onnxruntime {onnxruntime.__version__}, one thread, seed 0, load {shared["load"]}')
    times = in_turn(functions, options.count, options.seconds, clock=time.thread_time)
    show(times)
    rows = []
    for name, values in times.items():
        more = {**shared, 'parameters': sizes[name]}
        rows += latency_rows('chunk', 'chunk', name, values, more)
        if name != 'cfc+mixture':
            rows.append(speedup_row('chunk', 'cfc+mixture', times['cfc+mixture'],
                                    name.removeprefix('cfc+'), values,
                                    {**shared, 'parameters': sizes['cfc+mixture']}))
    keep(rows, 'chunk_latency', options)


if __name__ == '__main__':
    main()
