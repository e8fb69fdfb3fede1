"""
The safety filter of a robot that is commanded by torques.

A torque is judged by the velocity it leads to: u = v + M(q)^-1 (torque - h(q, v)) dt, for the
lightest and the heaviest payload. If the velocity filter (`liquid_policy.barrier`) lets both
pass, the torque passes bit for bit. Otherwise the nearest safe velocity is made a torque again by
inverse dynamics with the middle payload. What the unknown payload makes of that torque differs by
at most

    error = | M_p^-1 ((M_m - M_p) a + h_m - h_p) |,   over the payloads p and |a| <= limit,

whose largest value over random postures is found at the start (sampled, not proven); braking
distances count with a deceleration that is smaller by twice that: once for the braking itself,
once for the step before it. Tool speed and distances are kept for all speeds the payload allows
(`liquid_policy.barrier_effort_guard`).

Source: Singletary, Kolathaya and Ames, Safety-critical kinematic control of robotic systems,
IEEE L-CSS 6 (2022): a kinematic barrier made dynamic by inverse dynamics; Featherstone, Rigid Body
Dynamics Algorithms (2008).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from liquid_policy.barrier import Filtered, SafetyFilter, State
from liquid_policy.barrier_box import FilterSettings, JointFeedback, brake
from liquid_policy.limits import Limits, LimitsError
from liquid_policy.robot_model import RobotModel
from liquid_policy.safety_spec import SafetySpec

POSTURES = 300      # over which the payload's error is bounded
SHORTEST_STEP = 1e-4   # [s]; a shorter time since the last call counts as this
LEAST_SHARE = 0.2   # of the deceleration that must be left for braking distances


class EffortFilter:
    """Filters proposed torques one after the other."""

    def __init__(
        self, limits: Limits, model: RobotModel, settings: FilterSettings | None = None,
        armature: np.ndarray | None = None, spec: SafetySpec | None = None,
    ) -> None:
        """
        Bound what the unknown payload does.

        :param limits: of velocities, positions, accelerations and efforts; every entry a joint.
        :param model: the robot with its payload range.
        :param settings: what the guarantee rests on.
        :param armature: inertia of the motors' rotors, felt at the joints, of which URDF says
            nothing, `(A,)` [kg m2]; None: none.
        :param spec: tool speed, separation and obstacles to be kept; the model has its points and
            tool. None: none.
        :raises LimitsError: if the payload's range leaves too little to brake with.
        """
        if not limits.joint.all():
            raise LimitsError('torques: expected every action to be a joint, came also '
                              + ', '.join(name for name, joint in zip(
                                  limits.names, limits.joint, strict=True) if not joint))
        self.limits, self.model = limits, model
        self.settings = settings or FilterSettings()
        self._armature = np.zeros(len(limits.names)) if armature is None else armature
        self.payload_error = payload_error(limits, model, self._armature)
        left = limits.deceleration - 2.0 * self.payload_error
        if (left < LEAST_SHARE * limits.deceleration).any():
            worst = int((left / limits.deceleration).argmin())
            raise LimitsError(
                f'{limits.names[worst]}: a payload of {model.payloads[0]:g} to '
                f'{model.payloads[-1]:g} kg leaves {left[worst]:.3g} of '
                f'{limits.deceleration[worst]:g} rad/s2 to brake with; narrow the payload or '
                'raise the deceleration')
        gentle = replace(limits, deceleration=left)
        self._guard = None
        if spec is not None and (spec.tool_speed is not None or spec.obstacles
                                 or spec.separation is not None):
            # only here, for the others do without it
            from liquid_policy.barrier_effort_guard import EffortGuard
            self._guard = EffortGuard(
                gentle, self.settings, replace(spec, torque=False), model,
                limits.deceleration + 2.0 * self.payload_error)
        self.guards = () if self._guard is None else (self._guard,)
        self._core = SafetyFilter(gentle, self.settings, self.guards)
        self._position: np.ndarray | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop is latched."""
        return self._core.stopped

    def stop(self, reason: str) -> None:
        """Brake from now on, whatever is proposed, until released."""
        self._core.stop(reason)

    def release(self, feedback: JointFeedback | None) -> None:
        """
        End a latched stop.

        :param feedback: the robot's joints, None when they are stale or unknown.
        :raises ReleaseRefused: while it is unknown or unsafe.
        """
        if feedback is not None:
            self._core.reset(feedback)
            still = np.abs(self._core.command) <= self.settings.still
            self._core.command = np.where(still, 0.0, self._core.command)
        self._core.release(feedback)

    def filter(
        self, proposal: np.ndarray | None, feedback: JointFeedback | None, elapsed: float,
        reasons: tuple[str, ...] = (), human_distance: float = np.inf,
    ) -> Filtered:
        """
        The torques for this moment.

        :param proposal: wanted torques, `(A,)` [N m]; None when there is nothing usable.
        :param feedback: the robot's joints with velocities; None when stale or unknown. Then the
            last known posture is held against gravity.
        :param elapsed: time since the last call [s]; taken for the time to the next one too.
        :param reasons: why proposal or feedback are None, if they are.
        :param human_distance: distance of the nearest human [m]; infinite without one.
        :return: torques within the effort limits. Amounts are velocities [rad/s], of `effort/...`
            torques [N m].
        """
        limits, size = self.limits, len(self.limits.names)
        if feedback is None or not (np.isfinite(feedback.position).all()
                                    and np.isfinite(feedback.velocity).all()):
            return self._hold(reasons or ('no joint states with velocities',))
        self._position, velocity = feedback.position, feedback.velocity
        period = self.settings.longest_period
        step = min(max(elapsed, SHORTEST_STEP), period) if np.isfinite(elapsed) else period
        dynamics = self._dynamics(feedback.position, velocity)
        usable = proposal is not None and np.shape(proposal) == (size,) \
            and bool(np.isfinite(proposal).all())
        if usable:
            ends = [velocity + step * np.linalg.solve(inertia, proposal - bias)
                    for inertia, bias in dynamics]
            wanted, spread = 0.5 * (ends[0] + ends[1]), 0.5 * np.abs(ends[0] - ends[1])
        elif proposal is not None:
            reasons = (*reasons, f'proposal: expected {size} finite torques')
        # what is found instead leads to accelerations within the limits
        error = self.payload_error * step
        if self._guard is not None:
            self._guard.doubt = error
        self._core.reset(feedback)
        result = self._core.filter(
            wanted if usable else None, feedback, elapsed, reasons, human_distance)
        box = self._core.box
        if not usable or box is None or result.state == State.BRAKING:
            target = brake(velocity, limits, step)
            return replace(result, command=self._within(
                self._torque(dynamics, (target - velocity) / step)))
        inside = (box.low + spread <= wanted) & (wanted <= box.high - spread)
        asked = np.array(proposal, dtype=float)
        safe = bool(inside.all()) and result.state == State.PASSING and (
            self._guard is None or self._guard.keeps(wanted, spread))
        if safe and (np.abs(asked) <= limits.effort).all():
            return Filtered(asked, State.PASSING)
        middle = 0.5 * (box.low + box.high)
        target = np.clip(result.command, np.minimum(box.low + error, middle),
                         np.maximum(box.high - error, middle))
        torque = self._torque(dynamics, (target - velocity) / step)
        if safe:
            torque = asked
        command = self._within(torque)
        cut = np.flatnonzero(command != torque)
        active = (*result.active, *(
            f'payload/{limits.names[index]}' for index in np.flatnonzero(~inside)
            if not result.active), *(f'effort/{limits.names[index]}' for index in cut))
        amounts = (*result.amounts, *(
            float(spread[index]) for index in np.flatnonzero(~inside) if not result.active),
            *(float(abs(torque[index] - command[index])) for index in cut))
        return Filtered(
            command, State.LIMITING, (f'limited by {", ".join(active)}',), active, amounts)

    def _within(self, torque: np.ndarray) -> np.ndarray:
        """Torques cut off at the effort limits."""
        return np.clip(torque, -self.limits.effort, self.limits.effort)

    def _hold(self, reasons: tuple[str, ...]) -> Filtered:
        """Hold the last known posture against gravity; all one can do without joint states."""
        state = State.STOPPED if self.stopped else State.BRAKING
        if self._position is None:
            return Filtered(np.zeros(len(self.limits.names)), state, reasons)
        still = np.zeros(len(self.limits.names))
        torque = self._torque(self._dynamics(self._position, still), still)
        return Filtered(self._within(torque), state, reasons)

    def _dynamics(
        self, position: np.ndarray, velocity: np.ndarray,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """M `(A, A)` and h `(A,)` of the joints for the lightest and the heaviest payload."""
        return _joint_dynamics(self.model, position, velocity, self._armature)

    @staticmethod
    def _torque(
        dynamics: list[tuple[np.ndarray, np.ndarray]], acceleration: np.ndarray,
    ) -> np.ndarray:
        """Torque of an acceleration with the middle payload; affine in the mass, so the mean."""
        return np.mean([inertia @ acceleration + bias for inertia, bias in dynamics], axis=0)


def _joint_dynamics(
    model: RobotModel, position: np.ndarray, velocity: np.ndarray, armature: np.ndarray,
) -> list[tuple[np.ndarray, np.ndarray]]:
    dofs = model.dofs
    found = [(inertia[np.ix_(dofs, dofs)] + np.diag(armature), bias[dofs])
             for inertia, bias in zip(*model.dynamics(position, velocity), strict=True)]
    return [found[0], found[-1]]


def payload_error(
    limits: Limits, model: RobotModel, armature: np.ndarray, seed: int = 0,
) -> np.ndarray:
    """
    How far accelerations can be from those asked for, because the payload is unknown.

    :param limits: positions, speeds and accelerations to be tried.
    :param model: the robot with its payload range.
    :param armature: inertia of the rotors, `(A,)` [kg m2].
    :param seed: of the postures.
    :return: per joint, largest found over random postures and speeds, `(A,)` [rad/s2].
    """
    generator, worst = np.random.default_rng(seed), np.zeros(len(limits.names))
    lower, upper = (np.where(np.isfinite(bound), bound, default) for bound, default in (
        (limits.lower, -np.pi), (limits.upper, np.pi)))
    for _ in range(POSTURES):
        position = generator.uniform(lower, upper)
        (light, light_bias), (heavy, heavy_bias) = _joint_dynamics(
            model, position, generator.uniform(limits.low, limits.high), armature)
        # half the difference of the ends: the torque is that of the middle payload
        force = 0.5 * np.abs(heavy - light) @ limits.acceleration \
            + 0.5 * np.abs(heavy_bias - light_bias)
        for inertia in (light, heavy):
            worst = np.maximum(worst, np.abs(np.linalg.inv(inertia)) @ force)
    return worst
