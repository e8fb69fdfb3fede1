"""
The safety filter's constraints in training: what a policy proposes now is made safe first.

A policy that runs behind a filter is judged by what comes out of it. With `safe: barrier` so is
training: the action of the present moment passes through the same constraints, as a differentiable
layer, before it is compared with the demonstration. Later steps of a chunk are left alone: they
are proposed anew before their time comes. So are the bounds of acceleration and jerk: they say how
near an action must be to the one before, which in training is the demonstration's, and would give
the answer away. So do limits of torque, power and tipping, by the forces of that change: they are
left out too.

Source: Xiao, Hasani, Li and Rus, BarrierNet, arXiv:2111.11277.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from liquid_policy.barrier_box import FilterSettings, JointFeedback
from liquid_policy.barrier_layer import project
from liquid_policy.barrier_load import load_filter
from liquid_policy.barrier_rows import Guard, LinearConstraints, Moment, build_constraints
from liquid_policy.interface import Interface
from liquid_policy.limits import Limits, LimitsError
from liquid_policy.policy import Scaling
from liquid_trainer.windows import Demonstrations

# Heads whose answer is the actions themselves; others come to actions by sampling.
PROJECTED_HEADS = ('mixture', 'deterministic')
_FREE = 1e6         # an acceleration that bounds nothing; braking keeps its own
_SOFT = 1e3         # price of breaking a soft row of priority 1; the greatest gives way first


class SafeActions:
    """
    Passes the first step of every proposed chunk through the filter's constraints.

    :param interface: says which observed numbers are joint positions.
    :param limits: of the robot.
    :param data: demonstrations; the command before a moment is the one demonstrated there.
    :param settings: of the filter.
    :param guards: limits of the whole robot, those of the filter.
    :param rows: how many moments of a batch are made safe; more cost time, as every moment's
        constraints are built by the filter's own code.
    :raises LimitsError: if the position of a joint that is commanded is not observed.
    """

    def __init__(self, interface: Interface, limits: Limits, data: Demonstrations,
                 settings: FilterSettings | None = None, guards: Sequence[Guard] = (),
                 rows: int = 256):
        self.limits = dataclasses.replace(
            limits, acceleration=np.where(np.isfinite(limits.acceleration), _FREE, np.inf),
            jerk=np.full_like(limits.jerk, np.inf))
        self.data, self.guards, self.rows = data, tuple(guards), rows
        self.settings = settings or FilterSettings()
        names = [name.rpartition('position.')[2] for name in interface.vector_names]
        self._columns = np.full(len(limits.names), -1)
        for index in np.flatnonzero(limits.joint):
            if limits.names[index] not in names:
                raise LimitsError(f'{limits.names[index]}: expected its position among the '
                                  'observations, to learn with the barrier; came '
                                  f'{", ".join(interface.vector_names)}')
            self._columns[index] = names.index(limits.names[index])

    @classmethod
    def load(cls, interface: Interface, description: Path, data: Demonstrations) -> SafeActions:
        """
        Take limits and guards from the robot's files, as the safety node does; none of forces.

        :raises LimitsError: for missing or contradictory limits.
        """
        loaded = load_filter(_without_forces(interface), description)
        return cls(interface, loaded.limits, data, loaded.settings, loaded.guards)

    def constraints(self, tick: int) -> LinearConstraints:
        """Return what the filter would enforce at a tick, but for acceleration and jerk."""
        data = self.data
        first = tick in data.bounds[:-1]
        previous = data.actions[tick if first else tick - 1].astype(float)
        vector = data.vectors[tick].astype(float)
        position = np.where(self.limits.joint, vector[self._columns], np.nan)
        feedback = JointFeedback(position, np.where(self.limits.joint, previous, np.nan),
                                 np.full(len(previous), np.nan))
        return build_constraints(
            self.limits, self.settings,
            Moment(feedback, previous, previous[None], float(data.elapsed[tick])), self.guards)

    def __call__(self, answer: Any, ticks: np.ndarray, scaling: Scaling,
                 rng: np.random.Generator) -> tuple[Any, Tensor]:
        """
        Return a head's answer with a safe first step, and the share that had to be changed.

        :param answer: normalised: a mixture, or chunks `(batch, horizon, actions)`.
        :param ticks: which moments, `(batch,)`.
        :param scaling: of actions.
        :param rng: chooses among them where there are more than `rows`.
        """
        means = answer if isinstance(answer, Tensor) else answer.means[..., 0, :]
        if isinstance(answer, Tensor):
            means = answer[:, None, 0]                              # (batch, 1, actions)
        chosen = np.arange(len(ticks))
        if len(ticks) > self.rows:
            chosen = np.sort(rng.choice(len(ticks), self.rows, replace=False))
        built = [self.constraints(int(tick)) for tick in ticks[chosen]]
        count, components, size = len(chosen), means.shape[1], means.shape[2]

        def stacked(arrays: list[np.ndarray]) -> Tensor:
            one = torch.from_numpy(np.stack(arrays)).unsqueeze(1)
            return one.expand(-1, components, *one.shape[2:]).flatten(0, 1)

        price = None
        priority = stacked([item.priority for item in built])
        if bool((priority > 0).any()):
            price = torch.where(priority > 0, _SOFT / priority.clamp_min(1), torch.inf)
        at = torch.from_numpy(chosen)
        proposal = scaling.inverse(means[at]).flatten(0, 1)
        found = project(
            proposal.double(), stacked([item.matrix for item in built]),
            stacked([item.low for item in built]), stacked([item.high for item in built]),
            # Near is near in the policy's own scale: a radian is not a metre.
            scaling.scale.double().reciprocal().square().expand(len(proposal), -1), price)
        safe = scaling(found.action.to(means.dtype)).reshape(count, components, size)
        # What was safe stays as it was, to the last bit.
        safe = torch.where(found.changed.reshape(count, components, 1), safe, means[at])
        means = means.index_copy(0, at, safe)
        share = found.changed.double().mean()
        if isinstance(answer, Tensor):
            return torch.cat((means, answer[:, 1:]), 1), share
        whole = torch.cat((means.unsqueeze(2), answer.means[:, :, 1:]), 2)
        return dataclasses.replace(answer, means=whole), share


def _without_forces(interface: Interface) -> Interface:
    """Leave out limits that bound how far an action may be from the one before."""
    spec = interface.safety
    if spec is None:
        return interface
    return dataclasses.replace(interface, safety=dataclasses.replace(
        spec, torque=False, power=None, tip_margin=None,
        soft=tuple(name for name in spec.soft if name != 'power')))


def find_description(interface_file: Path, name: str) -> Path:
    """
    Return the path of the robot's description.

    Looked for beside the interface file, and in the folder `urdf` of the package that it is in.

    :param interface_file: path of the interface file.
    :param name: file name the interface gives.
    :raises LimitsError: if it is not there.
    """
    folder = interface_file.resolve().parent
    places = [folder, folder.parent / 'urdf', folder.parent / 'liquid_policy_node' / 'urdf']
    for place in places:
        if (place / name).is_file():
            return place / name
    raise LimitsError(f'{name}: expected the robot description in one of '
                      f'{", ".join(map(str, places))}, found none; put it there')
