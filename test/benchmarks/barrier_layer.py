"""
Which differentiable solver for the safety layer: how exact, and how fast?

10,000 random problems of a 6-axis arm (6 commands with bounds, 24 coupled rows, units that differ
by 10,000) are answered by the layer and by the run-time solver, `barrier_qp`. Then batches of
them are timed, forward alone and with the gradient, against qpth and cvxpylayers where these are
installed (`docker/requirements-layers.txt`; they are not part of the environment). Times are of
the processor, one thread, so that a busy machine does not change them much. Run it as
`docker/in_environment.sh python3 test/benchmarks/barrier_layer.py`.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from liquid_policy.barrier_layer import project
from liquid_policy.barrier_qp import nearest_command
from liquid_policy.barrier_rows import LinearConstraints
from liquid_sim.evaluate import append_rows, commit

RESULTS = Path(__file__).parent / 'results' / 'barrier_layer.jsonl'
SIZE, COUPLED = 6, 24
FAR = 1e4           # stands for no bound where a solver knows none
Problems = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
Solver = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def problems(count: int, seed: int, unsafe: float = 1.0) -> Problems:
    """
    Return proposal, matrix, low, high and weight of feasible problems, float64.

    :param unsafe: share of proposals that are moved away from the feasible point.
    """
    rng = np.random.default_rng(seed)
    coupled = rng.normal(size=(count, COUPLED, SIZE)) * 10.0 ** rng.uniform(
        -2, 2, (count, COUPLED, 1))
    matrix = np.concatenate((np.broadcast_to(np.eye(SIZE), (count, SIZE, SIZE)), coupled), 1)
    inner = rng.uniform(-1, 1, (count, SIZE))
    value = np.einsum('bmn,bn->bm', matrix, inner)
    length = np.linalg.norm(matrix, axis=2)
    low = value - length * rng.uniform(0.05, 2, value.shape)
    high = value + length * rng.uniform(0.05, 2, value.shape)
    low[:, SIZE:][rng.random((count, COUPLED)) < 0.5] = -np.inf
    away = rng.normal(size=(count, SIZE)) * 2.0 * (rng.random((count, 1)) < unsafe)
    weight = 10.0 ** rng.uniform(-1, 1, (count, SIZE))
    proposal, matrix, low, high, weight = (
        torch.from_numpy(item) for item in (inner + away, matrix, low, high, weight))
    return proposal, matrix, low, high, weight


def own(method: str) -> Solver:
    """Return this project's layer with one way of finding the active rows."""
    def layer(*given: Tensor) -> Tensor:
        return project(*given, method=method).action

    return layer


def run_time(proposal: Tensor, matrix: Tensor, low: Tensor, high: Tensor,
             weight: Tensor) -> Tensor:
    """Answer with the run-time filter's solver, one problem after the other."""
    names = tuple(f'row {i}' for i in range(matrix.shape[1]))
    hard = np.zeros(len(names), int)
    answers = []
    for index in range(len(proposal)):
        rows = LinearConstraints(matrix[index].numpy(), low[index].numpy(), high[index].numpy(),
                                 names, hard)
        found = nearest_command(proposal[index].numpy(), rows, weight[index].numpy())
        answers.append(np.full(SIZE, np.nan) if found.command is None else found.command)
    return torch.from_numpy(np.array(answers))


def others() -> dict[str, Solver]:
    """Return the published layers that are installed."""
    found: dict[str, Solver] = {}
    try:
        from qpth.qp import QPFunction
    except ImportError:
        print('qpth is not installed')
    else:
        def qpth(proposal, matrix, low, high, weight):
            bound = torch.cat((high.clamp_max(FAR), -low.clamp_min(-FAR)), 1)
            none = torch.zeros(0, dtype=proposal.dtype)
            return QPFunction(verbose=-1, maxIter=30)(
                torch.diag_embed(weight), -weight * proposal, torch.cat((matrix, -matrix), 1),
                bound, none, none)

        found['qpth'] = qpth
    try:
        import cvxpy
        from cvxpylayers.torch import CvxpyLayer
    except ImportError:
        print('cvxpylayers is not installed')
    else:
        rows = SIZE + COUPLED
        u, root, wish = (cvxpy.Variable(SIZE), cvxpy.Parameter(SIZE, nonneg=True),
                         cvxpy.Parameter(SIZE))
        matrix = cvxpy.Parameter((rows, SIZE))
        low, high = cvxpy.Parameter(rows), cvxpy.Parameter(rows)
        layer = CvxpyLayer(cvxpy.Problem(
            cvxpy.Minimize(0.5 * cvxpy.sum_squares(cvxpy.multiply(root, u) - wish)),
            [matrix @ u <= high, matrix @ u >= low]), [root, wish, matrix, low, high], [u])

        def cvxpylayers(proposal, matrix, low, high, weight):
            scale = weight.sqrt()
            return layer(scale, scale * proposal, matrix, low.clamp_min(-FAR),
                         high.clamp_max(FAR))[0]

        found['cvxpylayers'] = cvxpylayers
    return found


def timed(solver: Solver, given: Problems, gradient: bool, repeats: int) -> np.ndarray:
    """Return processor seconds of every repetition."""
    seconds = []
    for _ in range(repeats + 1):
        inputs = tuple(item.clone().requires_grad_(gradient and index < 2)
                       for index, item in enumerate(given))
        before = time.process_time()
        answer = solver(*inputs)
        if gradient:
            answer.square().sum().backward()
        seconds.append(time.process_time() - before)
    return np.array(seconds[1:])    # the first one loads and compiles


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--problems', type=int, default=10_000)
    parser.add_argument('--compared', type=int, default=500, help='problems for other layers')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--dry', action='store_true', help='write nothing')
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    common = {'seeds': [0], 'preset': f'{arguments.problems} problems', 'commit': commit(),
              'machine': f'{platform.machine()}, 1 thread', 'date': date.today().isoformat()}
    rows = []

    def note(figure: str, task: str, policy: str, values: np.ndarray, unit: str,
             statistic: Callable = np.max, **extra) -> None:
        low, high = np.percentile(values, (2.5, 97.5))
        rows.append({'figure': figure, 'task': task, 'policy': policy,
                     'value': float(statistic(values)), 'low': float(low), 'high': float(high),
                     'unit': unit, 'n': len(values), **extra, **common})
        print(f'{figure:<16}{task:<22}{policy:<22}{statistic(values):.3g} {unit}', flush=True)

    given = problems(arguments.problems, 0)
    exact = run_time(*given)
    answered = torch.isfinite(exact).all(1)
    print(f'run-time solver: {int((~answered).sum())} of {len(exact)} without an answer')
    solvers = {'layer-daqp': own('daqp'), 'layer-interior-point': own('interior_point'),
               **others()}
    for name, solver in solvers.items():
        count = arguments.problems if name.startswith('layer') else arguments.compared
        part = tuple(item[:count] for item in given)
        error = (solver(*part) - exact[:count]).abs().amax(1)[answered[:count]]
        note('error_max', 'random', name, error.numpy(), 'rad/s', against='daqp')
    for batch, unsafe in ((1, 1.0), (256, 1.0), (256, 0.1)):
        task = f'batch_{batch}' + ('' if unsafe == 1.0 else f'_{unsafe:g}_unsafe')
        given = problems(batch, 1, unsafe)
        for name, solver in solvers.items():
            for gradient in (False, True):
                note('gradient_p50' if gradient else 'forward_p50', task, name,
                     timed(solver, given, gradient, arguments.repeats), 's', np.median)
    if not arguments.dry:
        append_rows(RESULTS, rows)
        print(RESULTS)


if __name__ == '__main__':
    main()
