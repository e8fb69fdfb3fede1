"""The safety filter of a robot that is told torques, from its files; spoken to like the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from liquid_policy.barrier import Filtered, SafetyFilter
from liquid_policy.barrier_box import FilterSettings, JointFeedback
from liquid_policy.barrier_effort import EffortFilter
from liquid_policy.barrier_load import filter_of
from liquid_policy.barrier_rows import Guard
from liquid_policy.barrier_search import Proposal
from liquid_policy.interface import Interface
from liquid_policy.limits import LimitsError, limits_of, load_urdf
from liquid_policy.robot_model import RobotModel
from liquid_policy.safety_spec import SafetySpec

# Limits of the whole robot that a torque filter does not keep; refused rather than ignored.
UNKEPT = ('power', 'tip_margin')
LONGEST_AHEAD = 0.1   # joint states are not made newer than this [s]


class EffortSafety:
    """
    `EffortFilter` with the calls of `SafetyFilter`, so that a node need not tell them apart.

    Torques change speeds at once, so old joint states are made those of the moment at which a new
    torque takes effect, by forward dynamics under the torque in effect, with the middle payload.
    """

    def __init__(self, core: EffortFilter) -> None:
        """
        Wrap a filter.

        :param core: the filter of torques.
        """
        self._core = core
        self.limits = core.limits
        self.guards: tuple[Guard, ...] = core.guards
        self._torque: np.ndarray | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop is latched."""
        return self._core.stopped

    def reset(self, feedback: JointFeedback | None = None) -> None:
        """Forget the torque in effect: somebody else commands."""
        self._torque = None

    def stop(self, reason: str) -> None:
        """Brake from now on, whatever is proposed, until released."""
        self._core.stop(reason)

    def release(self, feedback: JointFeedback | None) -> None:
        """End a latched stop; see `EffortFilter.release`."""
        self._core.release(feedback)

    def filter(
        self, proposal: Proposal | np.ndarray | None, feedback: JointFeedback | None,
        elapsed: float, reasons: tuple[str, ...] = (), human_distance: float = np.inf,
    ) -> Filtered:
        """
        The torques for this moment; see `EffortFilter.filter`.

        :param human_distance: distance of the nearest human [m]; infinite without one.
        """
        action = proposal.action if isinstance(proposal, Proposal) else proposal
        result = self._core.filter(
            action, self._ahead(feedback), elapsed, reasons, human_distance)
        self._torque = result.command
        return result

    def _ahead(self, feedback: JointFeedback | None) -> JointFeedback | None:
        """The joints at the moment at which a new torque takes effect."""
        if feedback is None or self._torque is None or not (
                np.isfinite(feedback.position).all() and np.isfinite(feedback.velocity).all()):
            return feedback
        time = min(feedback.age + self._core.settings.delay, LONGEST_AHEAD)
        ends = self._core._dynamics(feedback.position, feedback.velocity)
        weight, bias = 0.5 * (ends[0][0] + ends[-1][0]), 0.5 * (ends[0][1] + ends[-1][1])
        acceleration = np.linalg.solve(weight, self._torque - bias)
        velocity = feedback.velocity + acceleration * time
        return replace(
            feedback, velocity=velocity,
            position=feedback.position + 0.5 * (feedback.velocity + velocity) * time, age=0.0)


def load_safety(
    interface: Interface, description: str | Path, settings: FilterSettings | None = None,
    joint_limits_file: str | Path | None = None,
) -> SafetyFilter | EffortSafety:
    """
    The filter of a robot, for speeds or for torques as the units of its actions say.

    :param interface: the robot's interface.
    :param description: path of its URDF or xacro.
    :param settings: what the guarantee rests on.
    :param joint_limits_file: path of a `joint_limits.yaml`, if there is one.
    :raises LimitsError: for missing or contradictory limits, and for limits of the whole robot
        that are not kept for torques.
    """
    urdf = load_urdf(description)
    limits = limits_of(interface, urdf, joint_limits_file)
    if not limits.torques:
        return filter_of(interface, limits, urdf, settings)
    spec = interface.safety or SafetySpec()
    unkept = [name for name in UNKEPT if getattr(spec, name) is not None]
    if unkept:
        raise LimitsError(
            f'safety: expected no {" and no ".join(unkept)} for a robot that is told torques, for '
            'which it is not kept; remove it, or command the robot by speeds')
    model = RobotModel(
        urdf, limits.names, limits.joint, spec.points, spec.tool, spec.payload, floating=False)
    return EffortSafety(EffortFilter(limits, model, settings, limits.armature, spec))
