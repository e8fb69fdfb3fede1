"""
Can a proposal be found that gets past the safety filter, if one searches for it?

The random states of `filter_violations`, but for each limit the proposal is sought that leaves
least of it: by the cross-entropy method, which draws proposals, keeps those that came closest and
draws anew around them. What the filter answers to each is judged as there, by following it with
Pinocchio. A violation is a state in which any limit was broken. `gain` is by how much less is left
than after the random proposals the search begins with.

Run it as `docker/in_environment.sh python3 test/benchmarks/filter_attack.py` (2 min on a quiet
core).

Source: Rubinstein, The cross-entropy method for combinatorial and continuous optimization,
Methodology and Computing in Applied Probability 1 (1999).
"""

from __future__ import annotations

import time

import numpy as np
from filter_violations import (
    EFFORT,
    JOINTS,
    MARGIN,
    PERIOD,
    POWER,
    RULES,
    SPEED,
    UNITS,
    follow,
    forces_of,
    issue,
    make_arm,
    near_an_obstacle,
    safe_command,
)
from measuring import about, arguments, keep

from liquid_policy.barrier import JointFeedback, SafetyFilter, State

GENERATIONS, DRAWN, KEPT = 6, 16, 4
LEAST = {'distance': -MARGIN, 'tool_speed': -1e-6 * SPEED, 'position': -1e-9, 'torque': -1e-6,
         'power': -1e-6 * POWER}   # as in filter_violations
SOUGHT = ('distance', 'tool_speed', 'torque', 'power')


def answer(
    safety: SafetyFilter, position: np.ndarray, previous: np.ndarray, proposal: np.ndarray,
    elapsed: float,
) -> dict[str, float]:
    """How much of each limit the filter's answer to a proposal leaves."""
    issue(safety, previous)
    feedback = JointFeedback(position, previous, np.full(JOINTS, np.nan), 0.0)
    command = safety.filter(proposal, feedback, elapsed).command
    start = position + previous * RULES.delay
    left = follow(safety, start, command)
    now = forces_of(safety, start[None], previous[None], (command - previous)[None] / elapsed)
    left['torque'] = min(left['torque'], 1.0 - np.abs(now).max() / EFFORT)
    left['power'] = min(left['power'], POWER - np.maximum(
        now[:, 0] * command, 0.0).sum(axis=1).max())
    return left


def seek(
    safety: SafetyFilter, position: np.ndarray, previous: np.ndarray, limit: str, elapsed: float,
    generator: np.random.Generator,
) -> tuple[float, float, set[str], int]:
    """
    Search for the proposal that leaves least of a limit.

    :return: least left by random proposals and in all, limits broken, proposals tried.
    """
    mean, deviation, broken, first, least = previous, np.full(JOINTS, 2.0), set(), np.inf, np.inf
    for generation in range(GENERATIONS):
        proposals = generator.normal(mean, deviation, (DRAWN, JOINTS))
        found = []
        for proposal in proposals:
            left = answer(safety, position, previous, proposal, elapsed)
            broken |= {name for name, value in left.items() if not value >= LEAST[name]}
            found.append(left[limit])
        order = np.argsort(found)[:KEPT]
        mean, deviation = proposals[order].mean(axis=0), proposals[order].std(axis=0) + 0.02
        least = min(least, found[order[0]])
        first = least if generation == 0 else first
    return first, least, broken, GENERATIONS * DRAWN


def main() -> None:
    """Print what was found; with --write keep it."""
    parser = arguments(__doc__)
    parser.add_argument('--states', type=int, default=200)
    parser.add_argument('--seed', type=int, default=0)
    options = parser.parse_args()
    generator, begin = np.random.default_rng([options.seed, 1]), time.perf_counter()
    violations = tried = states = 0
    least: dict[str, list[tuple[float, float]]] = {limit: [] for limit in SOUGHT}
    while states < options.states:
        safety = make_arm(generator)
        for _ in range(20):
            position = near_an_obstacle(safety, generator)
            previous = safe_command(safety, position, generator)
            if previous is None or states == options.states:
                continue
            issue(safety, previous)
            feedback = JointFeedback(position, previous, np.full(JOINTS, np.nan), 0.0)
            if safety.filter(previous, feedback, PERIOD).state != State.PASSING:
                continue   # no filter would have issued it
            states += 1
            elapsed, all_broken = generator.uniform(0.002, PERIOD), set()
            for limit in SOUGHT:
                first, last, broken, count = seek(
                    safety, position, previous, limit, elapsed, generator)
                least[limit].append((first, last))
                all_broken |= broken
                tried += count
            violations += bool(all_broken)
            if all_broken:
                print(f'  state {states}: {", ".join(sorted(all_broken))}', flush=True)
    shared = {**about('simulation'), 'policy': 'daqp', 'seeds': [options.seed]}
    rows = [{'figure': 'violations', 'task': 'sought', 'value': violations, 'low': 0.0,
             'high': 3.0 if not violations else violations + 2.0 * violations ** 0.5, 'unit': '1',
             'n': states, **shared},
            {'figure': 'proposals', 'task': 'sought', 'value': tried, 'unit': '1', 'n': states,
             **shared}]
    print(f'{states} states, {tried} proposals in {time.perf_counter() - begin:.0f} s: '
          f'{violations} violations')
    for limit, pairs in least.items():
        first, last = np.array(pairs).T
        rows += [{'figure': figure, 'task': f'sought_{limit}', 'value': float(value),
                  'unit': UNITS[limit], 'n': states, **shared}
                 for figure, value in (('gain', np.median(first - last)),
                                       ('least_gap', last.min()))]
        print(f'  {limit}: {last.min():.3g} {UNITS[limit]} left at least, {np.median(last):.3g} '
              f'in the middle, {np.median(first - last):.2g} less than random proposals leave')
    keep(rows, 'filter_attack', options)


if __name__ == '__main__':
    main()
