"""
How far an arm's torques are from what its model expects: the command `identify`.

Fits inverse dynamics to recorded motions, predicts the torques of motions it has not seen, and
writes the margin that a torque limit needs: the quantile of |predicted - measured| per joint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from liquid_policy.limits import LimitsError, joint_limits, load_urdf
from liquid_trainer.bag_file import BagError
from liquid_trainer.inverse_dynamics import (
    Features,
    InverseDynamics,
    Joints,
    RigidBodies,
    Sums,
    choose_ridge,
    fit,
    gather,
    predict,
)
from liquid_trainer.motions import Motion, MotionError, cut_motions, read_motions

_PATH = 60          # points of a motion that are compared with those of another
_NEAR = 0.2         # states closer than this, in standard deviations per number, are alike
_SHARED = 0.3       # motions that share more of their states than this are alike


@dataclass(frozen=True)
class IdentifySettings:
    """How a model is fitted and judged."""

    quantile: float = field(default=0.999, metadata={
        'description': 'share of held-out samples within the margin'})
    folds: int = field(default=5, metadata={'description': 'parts left out in turn'})
    seed: int = field(default=0, metadata={'description': 'of the folds'})

    def __post_init__(self) -> None:
        if not 0.5 <= self.quantile < 1.0:
            raise ValueError(f'quantile: expected 0.5 to below 1, came {self.quantile}')
        if self.folds < 2:
            raise ValueError(f'folds: expected at least 2, came {self.folds}')


@dataclass(frozen=True, eq=False)
class Judgement:
    """
    Errors of one model on motions it was not fitted to; T samples in all, J joints.

    :param name: of the model.
    :param joints: names.
    :param predicted: for every motion in the order given, `(T, J)` [N m].
    :param measured: `(T, J)` [N m].
    :param parameters: fitted to all motions, `(P, K)`.
    :param ridge: chosen for them.
    """

    name: str
    joints: tuple[str, ...]
    predicted: np.ndarray
    measured: np.ndarray
    parameters: np.ndarray
    ridge: float

    @property
    def size(self) -> np.ndarray:
        """Root mean square of the measured torque, `(J,)` [N m]."""
        return np.maximum(np.sqrt((self.measured ** 2).mean(0)), 1e-9)

    @property
    def rms(self) -> np.ndarray:
        """Root mean square of the error, `(J,)` [N m]."""
        return np.sqrt(((self.predicted - self.measured) ** 2).mean(0))

    def margin(self, quantile: float) -> np.ndarray:
        """Return what `quantile` of |predicted - measured| stay within, `(J,)` [N m]."""
        return np.quantile(np.abs(self.predicted - self.measured), quantile, axis=0)


def like_motions(motions: Sequence[Motion]) -> np.ndarray:
    """
    Return a number per motion, equal for motions along (nearly) the same states.

    A repetition of a motion that was learned from says nothing of motions to come: it must be
    left out together with it.
    """
    samples = [np.hstack((m.position, m.velocity))[
        np.linspace(0, len(m) - 1, min(len(m), _PATH)).astype(int)] for m in motions]
    spread = np.concatenate(samples).std(0)
    samples = [s / np.where(spread > 0.0, spread, 1.0) for s in samples]
    near = _NEAR ** 2 * samples[0].shape[1]
    group = np.arange(len(motions))
    for i, one in enumerate(samples):
        for j in range(i):
            if group[i] == group[j]:
                continue
            distance = ((one[:, None] - samples[j][None]) ** 2).sum(2)
            if max((distance.min(0) < near).mean(), (distance.min(1) < near).mean()) > _SHARED:
                group[group == group[i]] = group[j]
    return np.unique(group, return_inverse=True)[1]


def regions(motions: Sequence[Motion], count: int) -> list[np.ndarray]:
    """
    Return, for every sample of every motion, the number of the region of joint space it is in.

    Regions lie one behind the other along the direction in which the positions differ most, and
    hold equally many samples.
    """
    positions = np.concatenate([motion.position for motion in motions])
    middle = positions.mean(0)
    _, directions = np.linalg.eigh(np.cov(positions.T).reshape(2 * (positions.shape[1],)))
    along = (positions - middle) @ directions[:, -1]
    edges = np.quantile(along, np.arange(1, count) / count)
    return [np.searchsorted(edges, (motion.position - middle) @ directions[:, -1])
            for motion in motions]


def judge(name: str, model: InverseDynamics, motions: Sequence[Motion], groups: np.ndarray,
          settings: IdentifySettings) -> Judgement:
    """
    Fit a model to all groups but some, predict those, and so on until all were predicted.

    How near the parameters stay to the prior is chosen within what is fitted to, by leaving out
    one region of joint space after the other: what serves there serves motions to come.

    :param name: of the model.
    :param motions: what was measured.
    :param groups: of each motion, 0 to their number; a group is left out as a whole.
    """
    sums: list[list[Sums | None]] = [[None] * settings.folds for _ in range(groups.max() + 1)]
    for motion, group, region in zip(motions, groups, regions(motions, settings.folds),
                                     strict=True):
        for part in np.unique(region):
            new = gather(model, motion.take(region == part))
            old = sums[group][part]
            sums[group][part] = new if old is None else old + new

    def fitted(chosen: np.ndarray) -> tuple[np.ndarray, float]:
        parts = []
        for region in range(settings.folds):
            found = [part for group in chosen if (part := sums[group][region]) is not None]
            if found:
                parts.append(sum(found[1:], found[0]))
        ridge = choose_ridge(model, parts)
        return fit(model, sum(parts[1:], parts[0]), ridge), ridge

    order = np.random.default_rng(settings.seed).permutation(groups.max() + 1)
    predicted: list[np.ndarray] = [np.empty(0)] * len(motions)
    for held in np.array_split(order, min(settings.folds, len(order))):
        parameters, _ = fitted(np.setdiff1d(order, held))
        for index in np.flatnonzero(np.isin(groups, held)).tolist():
            predicted[index] = predict(model, parameters, motions[index])
    parameters, ridge = fitted(order)
    return Judgement(name, motions[0].joints, np.concatenate(predicted), _measured(motions),
                     parameters, ridge)


def identify(motions: Sequence[Motion], groups: np.ndarray, urdf: str | None = None,
             settings: IdentifySettings | None = None) -> list[Judgement]:
    """
    Judge every model that can be built.

    :param motions: what was measured.
    :param groups: which are left out together, see `like_motions`; at least two.
    :param urdf: description as text; without it only models without geometry are possible.
    :return: with a URDF the first is the description as it stands, which is what a filter that
        reads it believes, then the same with identified parameters. `joints` and `features` need
        none.
    :raises MotionError: if nothing can be left out, or the URDF lacks a joint.
    """
    settings = settings or IdentifySettings()
    if groups.max() < 1:
        raise MotionError('expected at least two motions, to judge one by the other, came one; '
                          'record more, or cut it into shorter ones with --longest')
    measured, joints = _measured(motions), motions[0].joints
    scale = np.maximum(np.sqrt((measured ** 2).mean(0)), 1e-6)
    found: list[Judgement] = []
    models: dict[str, InverseDynamics] = {
        'joints': Joints(joints, scale), 'features': Features(joints, scale)}
    if urdf is not None:
        bodies = RigidBodies(urdf, joints, scale)
        given = np.concatenate([predict(bodies, bodies.prior, motion) for motion in motions])
        found.append(Judgement('urdf', joints, given, measured, bodies.prior, np.inf))
        models = {'rigid_bodies': bodies, **models}
    return found + [judge(name, model, motions, groups, settings)
                    for name, model in models.items()]


def margin_file(judgement: Judgement, motions: Sequence[Motion], groups: np.ndarray,
                settings: IdentifySettings, efforts: Mapping[str, float]) -> dict:
    """
    Return what is written: the margins, and how they were found.

    :param efforts: effort limit of each joint, where one is known [N m].
    """
    joints = motions[0].joints
    margin = judgement.margin(settings.quantile)

    def by_joint(values: np.ndarray) -> dict[str, float]:
        return {joint: round(float(value), 4) for joint, value in
                zip(joints, values, strict=True)}

    content: dict[str, Any] = {'torque_margin': by_joint(margin)}
    if all(np.isfinite(efforts.get(joint, np.inf)) for joint in joints):
        # Rounded up: a margin may be too large, never too small.
        limits = np.array([efforts[joint] for joint in joints])
        content['share_of_limit'] = by_joint(np.ceil(1e3 * margin / limits) / 1e3)
    error = np.abs(judgement.predicted - judgement.measured)
    content['identified'] = {
        'model': judgement.name, 'quantile': settings.quantile, 'motions': len(motions),
        'different_motions': int(groups.max() + 1), 'samples': len(error),
        'rms': by_joint(judgement.rms), 'largest': by_joint(error.max(0)),
        'rms_torque': by_joint(np.sqrt((judgement.measured ** 2).mean(0)))}
    if judgement.name in ('joints', 'rigid_bodies'):
        content['friction'] = {
            joint: {name: round(value, 5) for name, value in values.items()}
            for joint, values in Joints(joints, np.ones(len(joints))).friction(
                judgement.parameters).items()}
    return content


def table(judgements: Sequence[Judgement], settings: IdentifySettings) -> str:
    """Return the errors as text, a line per model and joint."""
    share = f'{100 * settings.quantile:g} %'
    lines = [f'{"model":<14}{"joint":<22}{"torque rms":>11}{"error rms":>11}{"of it":>8}'
             f'{share:>10}{"largest":>10}']
    for item in judgements:
        columns = zip(item.joints, item.size, item.rms, item.margin(settings.quantile),
                      np.abs(item.predicted - item.measured).max(0), strict=True)
        lines += [f'{item.name:<14}{joint:<22}{size:>11.3f}{rms:>11.3f}{rms / size:>8.0%}'
                  f'{margin:>10.3f}{largest:>10.3f}'
                  for joint, size, rms, margin, largest in columns]
    return '\n'.join(lines)


def plot(path: Path, judgement: Judgement, motions: Sequence[Motion],
         settings: IdentifySettings, most: float = 12.0) -> None:
    """Draw measured and predicted torque with the margin, for the longest motions."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

    starts = np.concatenate(([0], np.cumsum([len(m) for m in motions])))
    chosen: list[int] = []
    groups, seconds = like_motions(motions), 0.0
    for index in sorted(range(len(motions)), key=lambda i: -len(motions[i])):
        if seconds < most and groups[index] not in groups[chosen]:
            chosen.append(index)
            seconds += len(motions[index]) * motions[index].period
    rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in sorted(chosen)])
    times = np.arange(len(rows)) * motions[0].period
    margin = judgement.margin(settings.quantile)
    joints = motions[0].joints
    figure, axes = pyplot.subplots(len(joints), 1, sharex=True, squeeze=False,
                                   figsize=(9, 1.6 * len(joints) + 0.8))
    for column, axis in enumerate(axes[:, 0]):
        expected = judgement.predicted[rows, column]
        axis.fill_between(times, expected - margin[column], expected + margin[column],
                          color='tab:orange', alpha=0.2, linewidth=0, label='margin')
        axis.plot(times, judgement.measured[rows, column], color='tab:blue', linewidth=0.8,
                  label='measured')
        axis.plot(times, expected, color='tab:orange', linewidth=1.2, label='predicted, held out')
        axis.set_ylabel(f'{joints[column]}\n[N m]')
        axis.grid(alpha=0.3)
    axes[0, 0].legend(ncols=3, loc='upper right', fontsize='small')
    axes[0, 0].set_title(f'{judgement.name}: margin for {100 * settings.quantile:g} % of samples')
    axes[-1, 0].set_xlabel('time, one motion after the other [s]')
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when a margin was found."""
    default = IdentifySettings()
    parser = argparse.ArgumentParser(
        prog='identify', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('recordings', nargs='+', type=Path,
                        help='bags with JointState (position, velocity, effort), CSV files, or '
                        'folders of them')
    parser.add_argument('--urdf', type=Path, help='description of the arm, URDF or xacro')
    parser.add_argument('--joints', nargs='+', default=[], help='joints, if not all')
    parser.add_argument('--topic', default='/joint_states', help='of the bags')
    parser.add_argument('--model', choices=('urdf', 'rigid_bodies', 'joints', 'features'),
                        help='whose margin is written; urdf where one is given, else the best')
    parser.add_argument('--quantile', type=float, default=default.quantile,
                        help='share of held-out samples within the margin')
    parser.add_argument('--window', type=float, default=0.1,
                        help='accelerations are slopes of the speed over this time [s]')
    parser.add_argument('--longest', type=float, default=5.0,
                        help='longer motions are cut into pieces, judged one by the others [s]')
    parser.add_argument('--output', type=Path, default=Path('torque_margin.yaml'),
                        help='file to write')
    parser.add_argument('--plot', type=Path, help='picture of predicted and measured torque')
    arguments = parser.parse_args(argv)
    try:
        settings = IdentifySettings(quantile=arguments.quantile)
        motions = cut_motions(read_motions(arguments.recordings, arguments.joints,
                                           arguments.topic, arguments.window),
                              arguments.longest)
        groups = like_motions(motions)
        urdf = load_urdf(arguments.urdf) if arguments.urdf else None
        limits = joint_limits(urdf) if urdf else {}
        seconds = sum(len(motion) * motion.period for motion in motions)
        print(f'{len(motions)} motions, {groups.max() + 1} of them different, {seconds:.0f} s, '
              f'{len(motions[0].joints)} joints', flush=True)
        alone = np.arange(len(motions))
        if groups.max() == 0:
            print('All motions are alike: what follows holds for repetitions of this one only.')
            groups = alone
        elif groups.max() + 1 < len(motions):
            print('Repetitions of motions that were learned from:')
            print(table(identify(motions, alone, urdf, settings), settings), flush=True)
            print('Motions unlike those that were learned from:')
        judgements = identify(motions, groups, urdf, settings)
        print(table(judgements, settings))
        chosen = choose(judgements, arguments.model)
    except (MotionError, BagError, LimitsError, ValueError, OSError) as error:
        print(f'identify: {error}', file=sys.stderr)
        return 1
    content = margin_file(chosen, motions, groups, settings,
                          {name: limit.effort for name, limit in limits.items()})
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(yaml.safe_dump(content, sort_keys=False), encoding='utf-8')
    print(f'margin of {chosen.name!r}: {arguments.output}')
    if 'share_of_limit' in content:
        print(f'in the interface file: safety.torque_margin: '
              f'{max(content["share_of_limit"].values())}')
    if arguments.plot:
        plot(arguments.plot, chosen, motions, settings)
        print(f'picture: {arguments.plot}')
    return 0


def choose(judgements: Sequence[Judgement], name: str | None) -> Judgement:
    """
    Return the judgement whose margin is written.

    :param name: of a model; None: the description as it stands, which is what the filter
        believes, and without one the model that predicts best.
    """
    if name is None:
        if judgements[0].name == 'urdf':
            return judgements[0]
        return min(judgements, key=lambda item: float((item.rms / item.size).mean()))
    for item in judgements:
        if item.name == name:
            return item
    raise MotionError(f'model {name!r}: expected --urdf with it')


def _measured(motions: Sequence[Motion]) -> np.ndarray:
    return np.concatenate([motion.effort for motion in motions])


if __name__ == '__main__':
    sys.exit(main())
