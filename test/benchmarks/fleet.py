"""
Is a robot of a fleet better than it is alone, and does a broken one spoil it for the others?

Ten robots have five belts and two kinds of parts (fleet_data.py). Alone, each learns from its own
demonstrations; in the fleet, each takes as many steps on the same demonstrations, and Flower
brings the weights together after every round. Both start from the same untrained core and heads
over the same encoder. Scored on demonstrations of the robot's own kind that nobody learned from,
and on those of all kinds.

Run it in an environment with docker/requirements-fleet.txt:
`python test/benchmarks/fleet.py runs/demonstrations --checkpoint
liquid_policy_node/checkpoints/manipulator.safetensors --append
test/benchmarks/results/fleet.jsonl`. The bags must be from the simulator.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from pathlib import Path

import numpy as np
import torch
from fleet_data import MASSES, SPEEDS, Part, load_parts, prepare_all, robots_of
from tqdm import tqdm

from liquid_policy.policy import Policy
from liquid_sim.evaluate import append_rows, commit, wilson
from liquid_trainer.fleet import FleetMember, FleetSettings, travelling_weights
from liquid_trainer.fleet_robot import load_start
from liquid_trainer.windows import Demonstrations

SCORES = {'nll': '1', 'action_error': '1', 'position_error_mean': 'm'}
OF_EACH = 2                 # held-out parts of each robot that all are scored on
HELD = 4                    # of every HELD parts one is held out
CASES = {                   # name: strategy, what the last robot does, further settings
    'average': ('average', None, {}),
    'median': ('median', None, {}),
    'secure': ('secure', None, {}),
    'private': ('average', None, {'noise': 0.02, 'clip': 1.0}),
    'average,reversed': ('average', 'reversed', {}),
    'median,reversed': ('median', 'reversed', {}),
    'trimmed,reversed': ('trimmed', 'reversed', {}),
    'multikrum,reversed': ('multikrum', 'reversed', {}),
    'average,nan': ('average', 'nan', {}),
}


class Spoiled(FleetMember):
    """A robot that sends back what makes the others worse."""

    def __init__(self, member: FleetMember, how: str):
        self.__dict__.update(member.__dict__)
        self._how = how

    def learn(self, weights, round_number):
        """Return what was learned the wrong way round, five times as strong, or no numbers."""
        learned, loss = super().learn(weights, round_number)
        if self._how == 'nan':
            return {name: np.full_like(value, np.nan) for name, value in learned.items()}, loss
        return {name: value - 5.0 * (learned[name] - value)
                for name, value in weights.items()}, loss


def demonstrations(parts: list[Part], tick: float) -> tuple[Demonstrations, np.ndarray]:
    """Return parts as the learner wants them, and the features of their images."""
    return (Demonstrations([part.episode for part in parts], tick),
            np.concatenate([part.features for part in parts]))


def make_members(robots: list[list[Part]], policy: Policy, units: tuple[str, ...],
                 settings: FleetSettings, most: int) -> tuple[list[FleetMember], FleetMember]:
    """
    Return the robots, and one that scores on parts of all kinds.

    :param most: parts that a robot learns from.
    """
    members, mixed = [], []
    for number, parts in enumerate(robots):
        order = np.random.default_rng((settings.seed, number)).permutation(len(parts))
        count = max(1, len(parts) // HELD)
        held = [parts[i] for i in order[:count]]
        learned = [parts[i] for i in order[count:count + most]]
        mixed += held[:OF_EACH]
        members.append(FleetMember(policy, *demonstrations(learned, 0.01),
                                   *demonstrations(held, 0.01), units, settings))
    nobody = members[0]
    return members, FleetMember(policy, nobody.data, np.empty((0, 0)),
                                *demonstrations(mixed, 0.01), units, settings)


def learn_alone(members: list[FleetMember], start: dict) -> list[dict]:
    """Return each robot's weights when it learns from nobody else."""
    found = []
    for member in members:
        weights = start
        for number in range(1, member.settings.rounds + 1):
            weights, _ = member.learn(weights, number)
        found.append(weights)
    return found


def learn_together(members: list[FleetMember], start: dict, case: str) -> dict:
    """Return what the fleet learns."""
    from liquid_trainer.fleet_app import make_client, run_rounds, run_secure
    from liquid_trainer.fleet_local import LocalGrid
    from liquid_trainer.fleet_strategy import make_strategy
    name, spoil, more = CASES[case]
    # The order of the robots is by speed and mass: the one in the middle is no outlier by its
    # conditions, so only what it sends makes it one.
    acting = list(members)
    if spoil:
        acting[len(acting) // 2] = Spoiled(acting[len(acting) // 2], spoil)

    logging.getLogger('flwr').setLevel(logging.ERROR)
    grid = LocalGrid(make_client(lambda context: acting[context.node_config['robot']]),
                     [{'robot': number} for number in range(len(acting))])
    rounds = members[0].settings.rounds
    if name == 'secure':
        from flwr.app import Context, RecordDict
        context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
        return run_secure(grid, context, start, rounds, len(acting))
    strategy = make_strategy(name, len(acting), 1, score=False, **more)
    found, _ = run_rounds(grid, strategy, start, rounds)
    return found


def scores_of(members: list[FleetMember], everyone: FleetMember,
              weights: list[dict]) -> dict[str, dict[str, np.ndarray]]:
    """
    Return the scores of each robot's weights.

    :return: by task (`own`, `all`) and figure, `(robots,)`.
    """
    same = all(one is weights[0] for one in weights)
    own = [member.score(one) for member, one in zip(members, weights, strict=True)]
    mixed = [everyone.score(one) for one in (weights[:1] if same else weights)]
    return {task: {name: np.array([scores[name] for scores in found]) for name in SCORES}
            for task, found in (('own', own),
                                ('all', mixed * len(members) if same else mixed))}


def run_case(case: str, seed: int, arguments: argparse.Namespace) -> dict:
    """Let the robots learn, alone or as a fleet, in this process; return their scores."""
    torch.set_num_threads(1)
    settings = FleetSettings(rounds=arguments.rounds, steps=arguments.steps,
                             batch=arguments.batch, window=arguments.window,
                             rate=arguments.rate, seed=100_000 * seed)
    policy, loaded = load_start({'checkpoint': arguments.checkpoint, 'fresh': True, 'seed': seed})
    members, everyone = make_members(robots_of(list(load_parts(arguments.data))), policy,
                                     loaded.interface.target_units, settings, arguments.parts)
    start = travelling_weights(policy)
    weights = (learn_alone(members, start) if case == 'alone' else
               [learn_together(members, start, case)] * len(members))
    return scores_of(members, everyone, weights)


def rows_of(case: str, scores: list[dict], alone: list[dict], honest: list[int],
            about: dict) -> list[dict]:
    """Return the figures of a case over all seeds; a broken robot's own scores do not count."""
    rows = []
    for task in ('own', 'all'):
        for name, unit in SCORES.items():
            here, there = (np.concatenate([one[task][name][honest] for one in found])
                           for found in (scores, alone))
            rows.append(_row(name, task, case, None, here, unit, about))
            if case != 'alone':
                rows.append(_row(f'{name}_better', task, case, 'alone',
                                 (here < there).astype(float), '1', about))
                rows.append(_row(f'{name}_difference', task, case, 'alone', here - there, unit,
                                 about))
    return rows


def _row(figure: str, task: str, policy: str, against: str | None, values: np.ndarray,
         unit: str, about: dict) -> dict:
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    low, high = float(values.mean() - half), float(values.mean() + half)
    worst = float(values.max())
    if figure.endswith('_better'):
        low, high = wilson(int(values.sum()), len(values))
        worst = float(values.min())
    row = {'figure': figure, 'task': f'fleet_{task}', 'policy': policy,
           'value': float(values.mean()), 'low': low, 'high': high, 'worst': worst, 'unit': unit,
           'n': len(values), **about}
    return {**row, 'against': against} if against else row


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    default = FleetSettings()
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('bags', nargs='*', type=Path, help='none: those prepared before')
    parser.add_argument('--checkpoint', required=True, type=Path, help='its encoder is used')
    parser.add_argument('--data', type=Path, default=Path('runs/fleet'),
                        help='folder for what is made of the bags')
    parser.add_argument('--cases', nargs='+', default=list(CASES), choices=CASES)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--steps', type=int, default=10)
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--rate', type=float, default=default.rate, help='of learning, at first')
    parser.add_argument('--window', type=float, default=0.5, help='of a stream [s]')
    parser.add_argument('--parts', type=int, default=12, help='a robot learns from, at most')
    parser.add_argument('--processes', type=int, default=os.cpu_count() or 1)
    parser.add_argument('--append', type=Path, default=None)
    arguments = parser.parse_args(argv)
    if arguments.bags:
        prepare_all(arguments.bags, arguments.checkpoint, arguments.data, arguments.processes)
    cases = ['alone', *arguments.cases]
    found: dict[str, dict] = {case: {} for case in cases}
    began = time.monotonic()
    jobs = [(case, seed) for seed in arguments.seeds for case in cases]
    with ProcessPoolExecutor(arguments.processes) as pool, tqdm(
            total=len(jobs), unit='fleet', disable=None) as bar:
        waiting = {pool.submit(run_case, *job, arguments): job for job in jobs}
        for future in as_completed(waiting):
            case, seed = waiting[future]
            found[case][seed] = future.result()
            bar.write(f'{time.monotonic() - began:6.0f} s  seed {seed}  {case:<20}own nll '
                      f'{found[case][seed]["own"]["nll"].mean():.3f}')
            bar.update()
    count = SPEEDS * MASSES
    rows = []
    for case in cases:
        broken = count // 2 if case != 'alone' and CASES[case][1] else None
        about = {'seeds': arguments.seeds, 'rounds': arguments.rounds, 'steps': arguments.steps,
                 'batch': arguments.batch, 'window': arguments.window, 'rate': arguments.rate,
                 'robots': count, 'parts': arguments.parts,
                 'preset': 'full' if len(arguments.seeds) >= 3 else 'quick', 'commit': commit(),
                 'machine': f'{platform.machine()}, {os.cpu_count()} cores',
                 'date': date.today().isoformat()}
        rows += rows_of(case, *([found[name][seed] for seed in arguments.seeds]
                                for name in (case, 'alone')),
                        [i for i in range(count) if i != broken], about)
    for row in rows:
        print(f'{row["policy"]:<20}{row["task"]:<11}{row["figure"]:<28}{row["value"]:8.4f}  '
              f'({row["low"]:.4f} to {row["high"]:.4f}, worst {row["worst"]:.4f})')
    print(f'{time.monotonic() - began:.0f} s')
    if arguments.append is not None:
        append_rows(arguments.append, rows)
    return 0


if __name__ == '__main__':
    sys.exit(main())
