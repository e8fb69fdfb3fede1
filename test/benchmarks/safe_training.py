"""
The conveyor, learned three ways: with the barrier in training, filtered afterwards, or neither.

Two policies are learned from the same bags with the same seed and steps: `barrier` with the safety
filter's constraints as a layer before the loss (docs/barrier_layer.md), `plain` without. Both
start from a checkpoint, whose encoder rests. Then they pick parts: `barrier+filter`,
`plain+filter`, and `plain` with nothing between it and the servos. Counted are parts picked,
proposals changed, and episodes in which MuJoCo measured a broken limit. Run it as
`docker/in_environment.sh python3 test/benchmarks/safe_training.py --bags runs/demonstrations`
(about 25 min for each policy and 5 min for each arm on two quiet cores; `--steps 20 --parts 1`
shows that it works). What is learned already in `--output` is not learned again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np

from liquid_policy.interface import load_interface
from liquid_policy.limits import load_limits
from liquid_sim import conveyor, drivers, scene
from liquid_sim.evaluate import commit, load_driver, wilson
from liquid_sim.rollout import run_episode
from liquid_sim.safety_trial import Gauge
from liquid_sim.trial_robots import view_of

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / 'results' / 'safe_training.jsonl'
SHIPPED = REPOSITORY / 'liquid_policy_node' / 'checkpoints' / 'manipulator.safetensors'
ARMS = {'barrier+filter': ('barrier', True), 'plain+filter': ('plain', True),
        'plain': ('plain', False)}
PARTS_PER_EPISODE = 10


class Unfiltered(drivers.Safety):
    """Passes every proposal on; what the filter would have changed is counted all the same."""

    def command(self, sim: conveyor.ConveyorSim, proposal: np.ndarray | None) -> np.ndarray:
        """Return the proposal, at rest without one."""
        safe = super().command(sim, proposal)
        wanted = np.zeros(len(safe)) if proposal is None else proposal
        self._filter.command = wanted   # what is commanded is what the next change starts from
        return wanted


def learn(name: str, options: argparse.Namespace) -> Path:
    """Learn one policy, unless it is there; its checkpoint."""
    from liquid_trainer.train import main as train
    folder = options.output / name
    checkpoint = folder / 'checkpoint.safetensors'
    if not checkpoint.is_file():
        code = train([
            '--bags', *map(str, options.bags), '--interface', str(scene.find_interface()),
            '--output', str(folder), '--core', 'cfc-mixed',
            '--safe', 'barrier' if name == 'barrier' else 'none',
            '--description', str(scene.find_description()),
            '--stage-steps', f'0,{options.steps},0', '--threads', '1', '--seed', '0',
            '--init-encoder' if options.fresh else '--init', str(options.start)])
        if code:
            raise SystemExit(code)
    return checkpoint


def pick(checkpoint: Path, filtered: bool, parts: int, seed: int) -> dict[str, float]:
    """Let a policy pick parts; sums over all episodes."""
    found = {'picked': 0, 'seen': 0, 'changed': 0, 'ticks': 0, 'episodes': 0, 'broken': 0}
    interface = load_interface(scene.find_interface())
    assert interface.safety is not None
    limits = load_limits(interface, scene.find_description())
    for index in range(-(-parts // PARTS_PER_EPISODE)):
        number = 1_000_000 + 10_000 * seed + index
        sim = conveyor.ConveyorSim(conveyor.unseen(), number)
        try:
            safety = (drivers.Safety if filtered else Unfiltered)(interface)
            driver = load_driver(sim, checkpoint)
            # a tool that presses on parts touches the belt's neighbourhood by trade
            spec = replace(interface.safety, torque=False)
            gauge = Gauge(view_of(sim, scene.ARM_JOINTS), limits, spec)
            sim.watch = gauge
            outcome = run_episode(
                sim, driver, safety, number, min(PARTS_PER_EPISODE, parts - found['seen']))
            for key, value in (('picked', outcome.picked), ('seen', outcome.seen),
                               ('changed', outcome.interventions), ('ticks', outcome.ticks),
                               ('episodes', 1), ('broken', bool(gauge.broken(spec)))):
                found[key] += value
            print(f'  episode {number}: {outcome.picked} of {outcome.seen}, '
                  f'broken: {", ".join(gauge.broken(spec)) or "none"}', flush=True)
        finally:
            sim.watch = None
            sim.close()
    return found


def main() -> None:
    """Learn, pick, write."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('--bags', type=Path, nargs='+', required=True)
    parser.add_argument('--output', type=Path, default=REPOSITORY / 'runs' / 'safe_training')
    parser.add_argument('--start', type=Path, default=SHIPPED, help='checkpoint to start from')
    parser.add_argument('--fresh', action='store_true',
                        help='take only the encoder from it, learn the core anew')
    parser.add_argument('--steps', type=int, default=1200, help='of the core')
    parser.add_argument('--parts', type=int, default=100, help='for each arm')
    parser.add_argument('--seed', type=int, default=30, help='of the parts')
    parser.add_argument('--arms', nargs='+', choices=tuple(ARMS), default=tuple(ARMS))
    parser.add_argument('--write', action='store_true',
                        help='write the result file; rows of other arms stay')
    options = parser.parse_args()
    rows = []
    for arm in options.arms:
        name, filtered = ARMS[arm]
        found = pick(learn(name, options), filtered, options.parts, options.seed)
        about = {
            'task': 'conveyor_unseen', 'policy': arm, 'seeds': [options.seed],
            'preset': f'{options.steps} core steps '
                      f'{"from the encoder" if options.fresh else "more"}',
            'commit': commit(), 'machine': f'{platform.machine()}, {os.cpu_count()} cores',
            'date': date.today().isoformat()}
        for figure, count, total in (
                ('success', found['picked'], found['seen']),
                ('interventions', found['changed'], found['ticks']),
                ('violations', found['broken'], found['episodes'])):
            low, high = wilson(int(count), int(total))
            rows.append({'figure': figure, 'value': count / total, 'low': low, 'high': high,
                         'unit': '1', 'n': int(total), **about})
        print(f'{arm}: picked {found["picked"]} of {found["seen"]}, changed '
              f'{found["changed"] / found["ticks"]:.1%} of proposals, limits broken in '
              f'{found["broken"]} of {found["episodes"]} episodes', flush=True)
    if options.write:
        kept = [json.loads(line) for line in RESULTS.read_text(encoding='utf-8').splitlines()] \
            if RESULTS.is_file() else []
        rows += [row for row in kept if row['policy'] not in options.arms]
        RESULTS.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
        print(f'written to {RESULTS.relative_to(REPOSITORY)}')


if __name__ == '__main__':
    main()
