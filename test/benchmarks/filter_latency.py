"""
How long does the safety filter take, and how long would it with other solvers?

A six-joint arm under 30 constraints (6 box rows, torque for two payloads, distances of three balls
to two obstacles, tool speed, power) is driven by noise that makes the filter solve in most calls.
Every solver answers the same programmes in turn; then the whole filter runs with each. Times are
processor time of the calling thread, so that other programs on the machine do not count. Run it
as `docker/in_environment.sh python3 test/benchmarks/filter_latency.py`; solvers that are not
installed are left out (quadprog, osqp, proxsuite and qpth, of docker/requirements-layers.txt, are
no part of the environment).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
import time
from collections.abc import Callable

import numpy as np
from measuring import REPOSITORY, about, arguments, keep

sys.path.insert(0, str(REPOSITORY / 'liquid_policy_node' / 'test'))

from random_robot import arm_limits, random_urdf  # noqa: E402

from liquid_policy import barrier_qp  # noqa: E402
from liquid_policy.barrier import FilterSettings, JointFeedback, SafetyFilter, State  # noqa: E402
from liquid_policy.barrier_load import make_guard  # noqa: E402
from liquid_policy.safety_spec import ObstacleSpec, PointSpec, SafetySpec  # noqa: E402

JOINTS, TICK = 6, 0.01
SPEC = SafetySpec(
    tool='tool', payload=(0.0, 1.5), torque=True, power=300.0, tool_speed=0.8,
    points={'tool': PointSpec('tool', 'tool', 0.03), 'wrist': PointSpec('wrist', 'link_4', 0.05),
            'elbow': PointSpec('elbow', 'link_2', 0.05)},
    obstacles={'floor': ObstacleSpec('floor', 'plane', normal=(0.0, 0.0, 1.0), offset=-0.3),
               'post': ObstacleSpec('post', 'capsule', start=(0.5, 0.3, 0.0), end=(0.5, 0.3, 1.0),
                                    radius=0.05)})
Solve = Callable[..., tuple[np.ndarray, int]]


def solvers() -> dict[str, Solve]:
    """Every solver that is installed, with the signature of `barrier_qp._solve`."""
    found: dict[str, Solve] = {'daqp': barrier_qp._solve}

    def split(matrix, high, low):
        """Two-sided rows, box included, as `G x <= h`, without what is infinite."""
        rows = np.concatenate([np.eye(matrix.shape[1]), matrix])
        upper, lower = high < 1e29, low > -1e29
        return (np.concatenate([rows[upper], -rows[lower]]),
                np.concatenate([high[upper], -low[lower]]))

    try:
        import quadprog

        def by_quadprog(metric, linear, matrix, high, low, sense):
            rows, bound = split(matrix, high, low)
            try:
                return quadprog.solve_qp(metric, -linear, -rows.T, -bound)[0], 1
            except ValueError:
                return np.zeros(len(linear)), -1
        found['quadprog'] = by_quadprog
    except ImportError:
        pass
    try:
        import osqp
        import scipy.sparse as sparse

        def by_osqp(metric, linear, matrix, high, low, sense):
            problem = osqp.OSQP()
            problem.setup(
                sparse.csc_matrix(metric), linear,
                sparse.csc_matrix(np.concatenate([np.eye(len(linear)), matrix])), low, high,
                verbose=False, eps_abs=1e-6, eps_rel=1e-6, polishing=False, max_iter=4000)
            answer = problem.solve(raise_error=False)
            return np.asarray(answer.x), 1 if answer.info.status_val == 1 else -1
        found['osqp'] = by_osqp
    except ImportError:
        pass
    try:
        import proxsuite

        def by_proxqp(metric, linear, matrix, high, low, sense):
            rows = np.concatenate([np.eye(len(linear)), matrix])
            answer = proxsuite.proxqp.dense.solve(
                metric, linear, None, None, rows, low, high, eps_abs=1e-8)
            good = answer.info.status == proxsuite.proxqp.PROXQP_SOLVED
            return np.asarray(answer.x), 1 if good else -1
        found['proxqp'] = by_proxqp
    except ImportError:
        pass
    if importlib.util.find_spec('qpth'):
        def by_qpth(metric, linear, matrix, high, low, sense):
            # only now: beside torch the filter computes its inverse dynamics one by one
            import torch
            from qpth.qp import QPFunction
            rows, bound = split(matrix, high, low)
            none = torch.zeros(0, dtype=torch.float64)
            answer = QPFunction(verbose=-1, maxIter=30)(
                *map(torch.from_numpy, (metric, linear, rows, bound)), none, none)
            return answer[0].numpy(), 1
        found['qpth'] = by_qpth
    return found


def drive(ticks: int, seed: int, times: list[float] | None = None) -> dict[State, int]:
    """
    Drive the arm by noise through the filter.

    :param ticks: how many calls.
    :param seed: of arm and noise.
    :param times: gets the processor time of each call [s].
    :return: how often the filter was in each state.
    """
    generator = np.random.default_rng(seed)
    limits, rules = arm_limits(JOINTS), FilterSettings()
    safety = SafetyFilter(limits, rules, (
        make_guard(SPEC, limits, rules, random_urdf(generator, JOINTS)),))
    position, command, states = np.full(JOINTS, 0.3), np.zeros(JOINTS), dict.fromkeys(State, 0)
    for tick in range(ticks):
        if tick % 20 == 0:
            wanted = generator.normal(0.0, 1.5, JOINTS)
        feedback = JointFeedback(position, command, np.full(JOINTS, np.nan), 0.002)
        begin = time.thread_time_ns()
        result = safety.filter(wanted, feedback, TICK)
        if times is not None:
            times.append(1e-9 * (time.thread_time_ns() - begin))
        command = result.command
        position = position + command * TICK
        states[result.state] += 1
    return states


def programmes(ticks: int) -> list[tuple]:
    """The programmes that come up when the arm is driven."""
    kept: list[tuple] = []
    original = barrier_qp._solve

    def keep(*problem):
        kept.append(tuple(part.copy() for part in problem))
        return original(*problem)

    barrier_qp._solve = keep
    try:
        drive(ticks, 0)
    finally:
        barrier_qp._solve = original
    return kept


def row_of(figure: str, policy: str, values: np.ndarray, share: float, shared: dict) -> dict:
    """A result row: a percentile and its 95 % interval by drawing anew."""
    generator = np.random.default_rng(0)
    drawn = [np.percentile(generator.choice(values, len(values)), share) for _ in range(200)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return {'figure': figure, 'policy': policy, 'task': 'six_joints',
            'value': float(np.percentile(values, share)), 'low': float(low), 'high': float(high),
            'unit': 's', 'n': len(values), **shared}


def main() -> None:
    """Print a table; with --write keep it."""
    parser = arguments(__doc__)
    parser.add_argument('--ticks', type=int, default=2000, help='filter calls per solver')
    options = parser.parse_args()
    shared = about('processor_time')
    print(f'{shared["machine"]}, Python {platform.python_version()}, numpy {np.__version__}, daqp '
          f'{importlib.metadata.version("daqp")}, one thread, seed 0, processor time')
    problems = programmes(min(options.ticks, 500))
    exact = [barrier_qp._solve(*problem) for problem in problems]
    rows, original = [], barrier_qp._solve
    print(f'{len(problems)} programmes of {problems[0][2].shape[1]} variables and up to '
          f'{max(len(problem[3]) for problem in problems)} two-sided rows')
    for name, solve in solvers().items():
        times, wrong = [], 0
        for problem, (answer, flag) in zip(problems, exact, strict=True):
            begin = time.thread_time_ns()
            found, solved = solve(*problem)
            times.append(1e-9 * (time.thread_time_ns() - begin))
            wrong += (solved > 0) != (flag > 0) or (
                flag > 0 and np.abs(found - answer).max() > 1e-4)
        calls: list[float] = []
        barrier_qp._solve = solve
        try:
            states = drive(options.ticks, 0, calls)
        finally:
            barrier_qp._solve = original
        for figure, values in (('solve', times), ('call', calls)):
            rows += [row_of(f'{figure}_p{share}', name, np.array(values), share, shared)
                     for share in (50, 99)]
        solve_us, call_us = (1e6 * np.percentile(values, (50, 99)) for values in (times, calls))
        print(f'{name:>9}: solve {solve_us[0]:.0f}/{solve_us[1]:.0f} us, {wrong} of '
              f'{len(problems)} unlike daqp; call {call_us[0]:.0f}/{call_us[1]:.0f} us (p50/p99), '
              + ', '.join(f'{state.name} {count}' for state, count in states.items() if count))
    keep(rows, 'filter_latency', options)


if __name__ == '__main__':
    main()
