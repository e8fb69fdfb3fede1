"""
Play bags through a policy and its safety filter, and compare with what was recorded.

`python3 -m liquid_trainer.replay <bags> --checkpoint <file> --output <folder>`
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from liquid_policy.barrier import State
from liquid_policy.checkpoint import Checkpoint, load_checkpoint
from liquid_policy.command import command
from liquid_policy.conversion import NANOSECONDS
from liquid_trainer.bag_file import BagError, find_bags
from liquid_trainer.offline_nodes import Judged, NodeParameters, Proposed
from liquid_trainer.playback import Playback
from liquid_trainer.safe_actions import find_description


@dataclass
class Replayed:
    """
    One bag's comparison, on the T ticks at which the policy proposed something.

    :param name: of the bag.
    :param action_names: of the A actions.
    :param units: of the actions.
    :param ticks: [ns], `(T,)`.
    :param recorded: the action that followed each tick; NaN where none did, `(T, A)`.
    :param proposed: for the tick itself, `(T, A)`.
    :param deviations: of the whole mixture around its mean, `(T, A)`.
    :param means: of the mixture, `(T, A)`.
    :param densities: -log of the mixture's density at the recorded action, of each action
        for itself, `(T, A)`.
    :param ahead: error of the chosen plan H steps ahead, mean absolute, `(H, A)`.
    :param step_time: between the steps of a plan [s].
    :param times: of the safety filter's answers [ns], `(S,)`.
    :param states: of the filter, `(S,)`.
    :param issued: commands, `(S, A)`.
    :param constraints: answers in which each constraint changed the command.
    :param amounts: largest change by each constraint, in the action's unit.
    :param reasons: answers by reason of braking.
    :param left_out: what the nodes could not use.
    """

    name: str
    action_names: tuple[str, ...]
    units: tuple[str, ...]
    ticks: np.ndarray
    recorded: np.ndarray
    proposed: np.ndarray
    means: np.ndarray
    deviations: np.ndarray
    densities: np.ndarray
    ahead: np.ndarray
    step_time: float
    times: np.ndarray
    states: np.ndarray
    issued: np.ndarray
    constraints: Counter[str] = field(default_factory=Counter)
    amounts: dict[str, float] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def errors(self) -> np.ndarray:
        """Proposed less recorded, `(T, A)`; NaN where nothing was recorded."""
        return self.proposed - self.recorded

    @property
    def nll(self) -> float:
        """Mean -log density of a recorded action's numbers, each for itself [nats]."""
        return float(np.nanmean(self.densities)) if np.isfinite(self.densities).any() \
            else float('nan')

    @property
    def interventions(self) -> int:
        """Answers of the safety filter that are not the proposal."""
        return int((self.states != State.PASSING).sum())

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain numbers, for JSON; None where unknown."""
        def plain(values: np.ndarray) -> dict[str, float | None]:
            return {name: (round(float(value), 6) if np.isfinite(value) else None)
                    for name, value in zip(self.action_names, values, strict=True)}

        compared = np.isfinite(self.errors).all(1)
        errors = self.errors[compared] if compared.any() else np.full(
            (1, len(self.action_names)), np.nan)
        nll = self.nll
        return {
            'bag': self.name, 'proposals': len(self.ticks), 'compared': int(compared.sum()),
            'units': dict(zip(self.action_names, self.units, strict=True)),
            'mean_absolute_error': plain(np.abs(errors).mean(0)),
            'p95_absolute_error': plain(np.percentile(np.abs(errors), 95, axis=0)),
            'bias': plain(errors.mean(0)),
            'nll': round(nll, 6) if np.isfinite(nll) else None,
            'safety_answers': len(self.states), 'interventions': self.interventions,
            'states': {State(state).name.lower(): int((self.states == state).sum())
                       for state in np.unique(self.states)},
            'constraints': dict(self.constraints.most_common()),
            'largest_amounts': {name: round(value, 6) for name, value in self.amounts.items()},
            'reasons': dict(self.reasons.most_common(20)),
            'left_out': dict(self.left_out.most_common(20)),
        }


def mixture_density(recorded: np.ndarray, weights: np.ndarray, means: np.ndarray,
                    scales: np.ndarray) -> np.ndarray:
    """
    Return -log density of each number under its marginal of a Gaussian mixture [nats].

    :param recorded: `(A,)`; NaN gives NaN.
    :param weights: `(K,)`.
    :param means: `(K, A)`.
    :param scales: standard deviations, `(K, A)`.
    """
    scales = np.maximum(scales.astype(np.float64), 1e-12)
    with np.errstate(divide='ignore'):
        terms = (np.log(weights.astype(np.float64))[:, None] - np.log(scales)
                 - 0.5 * np.log(2 * np.pi) - 0.5 * np.square((recorded - means) / scales))
    most = terms.max(0)
    return -(most + np.log(np.exp(terms - most).sum(0)))


def replay_bag(path: str | Path, checkpoint: Checkpoint,
               description: str | Path | None = None,
               parameters: NodeParameters | None = None, namespace: str | None = None,
               joint_limits: str | Path | None = None, progress: Any = None) -> Replayed:
    """
    Play one bag and compare.

    :param path: of the bag.
    :param checkpoint: the policy.
    :param description: the robot's URDF or xacro; None: without the safety filter.
    :param parameters: of the nodes.
    :param namespace: of the recorded robot.
    :param joint_limits: path of a `joint_limits.yaml`, if the safety node has one.
    :param progress: called with the seconds played so far.
    :raises BagError: if the bag lacks what the policy reads, or the policy never proposes.
    """
    playback = Playback(path, checkpoint, description, parameters, namespace, joint_limits)
    proposed: list[Proposed] = []
    judged: list[Judged] = []
    for answer in playback:
        if isinstance(answer, Proposed):
            proposed.append(answer)
            if progress is not None and len(proposed) % 50 == 0:
                progress((answer.time - playback.start) / NANOSECONDS)
        else:
            judged.append(answer)
    left_out = playback.rejected + playback.policy.counts
    if not proposed:
        reasons = ', '.join(f'{count} x {reason}' for reason, count in left_out.most_common(5))
        raise BagError(f'{path}: expected at least one moment with fresh observations, came none '
                       f'({reasons or "no observations"}); check topics and max_age')
    interface = checkpoint.interface
    ticks = np.array([answer.aligned.tick for answer in proposed])
    recorded = playback.recorded_actions(ticks)
    steps = [answer.step for answer in proposed]
    weights = [step.distribution.weights for step in steps]
    means = np.array([np.einsum('k,ka->a', w, step.distribution.means[:, 0])
                      for w, step in zip(weights, steps, strict=True)])
    squares = np.array([
        np.einsum('k,ka->a', w, np.square(step.distribution.scales[:, 0])
                  + np.square(step.distribution.means[:, 0]))
        for w, step in zip(weights, steps, strict=True)])
    result = Replayed(
        Path(path).name, interface.action_names, interface.action_units, ticks, recorded,
        np.array([step.chosen[0] for step in steps]), means,
        np.sqrt(np.maximum(squares - np.square(means), 0.0)),
        np.array([mixture_density(row, step.distribution.weights, step.distribution.means[:, 0],
                                  step.distribution.scales[:, 0])
                  for row, step in zip(recorded, steps, strict=True)]),
        _errors_ahead(playback, ticks, [step.chosen for step in steps],
                      playback.policy.model.dt),
        playback.policy.model.dt, np.array([answer.time for answer in judged], dtype=np.int64),
        np.array([int(answer.result.state) for answer in judged], dtype=int),
        np.array([answer.result.command for answer in judged]).reshape(
            -1, len(interface.action_names)), left_out=left_out)
    for answer in judged:
        for name, amount in zip(answer.result.active, answer.result.amounts, strict=True):
            result.constraints[name] += 1
            result.amounts[name] = max(result.amounts.get(name, 0.0), abs(float(amount)))
        if answer.result.state in (State.BRAKING, State.STOPPED):
            for reason in answer.result.reasons:
                result.reasons[reason.split(' are ')[0].split(' is ')[0]] += 1
    return result


def _errors_ahead(playback: Playback, ticks: np.ndarray, plans: list[np.ndarray],
                  step_time: float) -> np.ndarray:
    """Mean absolute error of the plans by step, `(H, A)`; NaN where nothing was recorded."""
    chosen = np.array(plans)
    found = np.full(chosen.shape[1:], np.nan)
    for step in range(chosen.shape[1]):
        later = ticks + round(step * step_time * NANOSECONDS)
        error = np.abs(chosen[:, step] - playback.recorded_actions(later))
        known = np.isfinite(error).all(1)
        if known.any():
            found[step] = error[known].mean(0)
    return found


def replay(paths: Iterable[str | Path], checkpoint: Checkpoint, output: Path,
           **options: Any) -> list[Replayed]:
    """
    Play bags one after the other; write `replay.jsonl` and a page for each.

    :param paths: bags, or folders with bags.
    :param checkpoint: the policy.
    :param output: folder.
    :param options: of `replay_bag`.
    """
    from liquid_trainer.replay_page import replay_page
    output.mkdir(parents=True, exist_ok=True)
    results: list[Replayed] = []
    with open(output / 'replay.jsonl', 'w') as rows:
        for bag in find_bags(list(paths)):
            with tqdm(desc=bag.name, unit='s', disable=None, leave=False) as bar:
                result = replay_bag(bag, checkpoint, progress=lambda done, bar=bar: bar.update(
                    round(done, 1) - bar.n), **options)
            rows.write(json.dumps({'policy': checkpoint.version, **result.to_dict()}) + '\n')
            replay_page(result, checkpoint, output / f'{result.name}.html')
            results.append(result)
    return results


@command('replay')
def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when all bags were played."""
    parser = argparse.ArgumentParser(prog='replay', description=(
        'Play bags through a policy and its safety filter, and compare with what was recorded.'))
    parser.add_argument('bags', nargs='+', type=Path, help='bags, or folders with bags')
    parser.add_argument('--checkpoint', type=Path, required=True, help='the policy')
    parser.add_argument('--output', type=Path, default=Path('runs/replay'),
                        help='folder for pages and figures (default %(default)s)')
    parser.add_argument('--interface', type=Path, default=None, help=(
        "the robot's interface file, where its description (URDF) and node parameters are found; "
        'without one, or without a description, the safety filter is left out'))
    parser.add_argument('--description', type=Path, default=None, help='URDF or xacro')
    parser.add_argument('--parameters', type=Path, default=None,
                        help="the nodes' parameter file (default: beside the interface file)")
    parser.add_argument('--namespace', default=None, help='of the recorded robot')
    parser.add_argument('--dry-run', action='store_true', help=(
        'judge each proposal from the measured joints, not from what the filter said before'))
    options = parser.parse_args(argv)
    checkpoint = load_checkpoint(options.checkpoint)
    description, parameters = options.description, options.parameters
    if options.interface is not None:
        if description is None and checkpoint.interface.description:
            description = find_description(options.interface,
                                           checkpoint.interface.description)
        own = options.interface.with_name(
            options.interface.name.replace('.interface.yaml', '.yaml'))
        if parameters is None and own != options.interface and own.is_file():
            parameters = own
    changes: dict[str, Any] = {'dry_run': True} if options.dry_run else {}
    given = NodeParameters.read(parameters, **changes) if parameters else \
        NodeParameters(**changes)
    beside = options.interface or parameters    # a relative path starts there, as in the node
    results = replay(
        options.bags, checkpoint, options.output, description=description, parameters=given,
        namespace=options.namespace, joint_limits=beside.parent / given.joint_limits
        if beside is not None and given.joint_limits else None)
    from liquid_trainer.page import text
    from liquid_trainer.replay_page import blocks
    for result in results:
        print(f'{result.name}\n{text(blocks(result))}\n')
    print(f'{len(results)} bags replayed; pages and replay.jsonl in {options.output}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
