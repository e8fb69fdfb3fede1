"""
How does the cost of an image and of a policy step grow with the robot and with the policy?

One thing grows at a time, everything else stays as the manipulator has it: cameras (each image is
encoded by itself, and the step sees that many more features), joints (each is a number to see and
one to command), hidden units, steps of a chunk, components of the mixture. Untrained weights: time
does not depend on them. `slope` is the growth of the median in a double logarithmic plot: 1 is
linear, 0 is none; a step has fixed costs, so it stays below 1 as long as these matter. Run it as
`docker/in_environment.sh python3 test/benchmarks/growth.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from measuring import REPOSITORY, about, arguments, in_turn, keep, latency_rows, show, value_row
from step_latency import encoders

from liquid_policy.checkpoint import Checkpoint
from liquid_policy.interface import load_interface
from liquid_policy.policy import Policy
from liquid_policy.runtime import PolicyRuntime
from liquid_policy.settings import CoreSettings, MixtureSettings, PolicySettings

FEATURES, IMU = 128, 6
GROWING: dict[str, tuple[int, ...]] = {
    'cameras': (1, 2, 3, 4), 'joints': (6, 10, 14, 20, 26), 'units': (16, 32, 64, 128, 256),
    'horizon': (4, 8, 16, 32, 64), 'components': (1, 2, 5, 10, 20)}
INTERFACE = load_interface(REPOSITORY / 'config' / 'manipulator.interface.yaml')


def step_of(cameras: int = 1, joints: int = 6, units: int = 64, horizon: int = 16,
            components: int = 5) -> Callable[[], Any]:
    """Return one step of a policy of these sizes."""
    torch.manual_seed(0)
    size = cameras * FEATURES + IMU + joints
    policy = Policy(PolicySettings(
        encoder=None, vector_size=size, action_size=joints + 3,
        core=CoreSettings('cfc-mixed', units=units),
        head=MixtureSettings(horizon=horizon, components=components))).eval()
    weights = {name: value.numpy() for name, value in policy.state_dict().items()}
    runtime = PolicyRuntime(Checkpoint('growth', policy.settings.to_dict(), INTERFACE,
                                       weights=weights))
    vector = np.random.default_rng(0).normal(size=size).astype(np.float32)
    nothing, state = np.zeros(0, np.float32), runtime.initial_state()
    return lambda: runtime.step(nothing, vector, 0.01, state)


def slope(sizes: np.ndarray, costs: np.ndarray) -> float:
    """Return the exponent of a power law through sizes and costs, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def main() -> None:
    """Print tables; with --write keep them."""
    parser = arguments(__doc__)
    parser.add_argument('--count', type=int, default=10_000, help='steps of each size, at most')
    parser.add_argument('--seconds', type=float, default=2.0, help='for each size, about')
    options = parser.parse_args()
    torch.set_num_threads(1)
    shared, rows = about(), []
    encode = encoders(96)['encoder']
    for what, sizes in GROWING.items():
        steps = {str(size): step_of(**{what: size}) for size in sizes}
        figures = {'step': in_turn(steps, options.count, options.seconds)}
        if what == 'cameras':
            looks = {str(size): lambda size=size: [encode() for _ in range(size)]
                     for size in sizes}
            figures['encoder'] = in_turn(looks, options.count, options.seconds, block=10)
        for figure, times in figures.items():
            print(f'{figure} by {what}')
            show(times)
            for size, values in times.items():
                rows += [{**row, 'size': int(size)} for row in latency_rows(
                    figure, f'growth_{what}', size, values, shared)]
            exponent = slope(np.array(sizes), np.array([np.median(times[str(size)])
                                                        for size in sizes]))
            print(f'slope {exponent:.2f}')
            rows.append(value_row(f'{figure}_slope', f'growth_{what}', 'cfc-mixed+mixture',
                                  exponent, '1', len(sizes), shared))
    keep(rows, 'growth', options)


if __name__ == '__main__':
    main()
