"""
Tool speed and distances of a robot that is told torques.

How fast such a robot goes and how hard it brakes is known up to what an unknown payload makes of a
torque, so that neither the command's manoeuvre nor the way it brakes along is known exactly. Two
bounds cover all of them.

**Tool speed.** A joint moves the tool by its speed times the tool's distance r_i from its axis, so
that |v| <= sum r_i |q_i'|, whatever the other joints do. Braking, hard or gently, only makes it
smaller, but for r_i: it grows by no more than the tool travels (`Links.travel`).

**Distances.** They are found along the manoeuvre of the expected speed u and the least
deceleration d, as for speeds. The joint's true place is off by no more than

    e (T + (|u| + e) / d)  +  (u^2 / 2) (1 / d - 1 / D),

with e the doubt about its speed, T the hold, and D the greatest deceleration; no watched point by
more than it travels for that.

Source: triangle inequality; the manoeuvre as in `liquid_policy.barrier_manoeuvre`.
"""

from __future__ import annotations

import numpy as np

from liquid_policy.barrier_box import FilterSettings
from liquid_policy.barrier_force_guard import BACKOFF, EDGE
from liquid_policy.barrier_guard import POSTURE, SPEED_BACK, RobotGuard
from liquid_policy.barrier_manoeuvre import Plan
from liquid_policy.barrier_rows import Moment
from liquid_policy.barrier_search import TOLERANCE
from liquid_policy.limits import Limits
from liquid_policy.robot_model import RobotModel
from liquid_policy.safety_spec import SafetySpec


class EffortGuard(RobotGuard):
    """Tool speed, separation and distances of the `safety` section, for doubtful speeds."""

    def __init__(
        self, limits: Limits, settings: FilterSettings, spec: SafetySpec, model: RobotModel,
        hardest: np.ndarray,
    ) -> None:
        """
        Prepare everything that does not change.

        :param limits: of speeds, with the deceleration that braking achieves at least.
        :param settings: what the guarantee rests on.
        :param spec: limits of the whole robot; none of forces.
        :param model: the robot with the spec's points and tool.
        :param hardest: deceleration of braking, at most, `(A,)`.
        """
        super().__init__(limits, settings, spec, model)
        self.doubt = np.zeros(self._size)   # about the speed a command leads to, `(A,)`
        self._slower = 0.5 * (1.0 / self._deceleration - 1.0 / hardest)

    def begin(self, moment: Moment) -> None:
        """Take in a new moment; see `RobotGuard.begin`."""
        super().begin(moment)
        if self._speed_limited:
            by_speed, _ = self.model.tool_slopes(self._start, self._start, self._size)
            self._levers = np.sqrt(np.add.reduce(by_speed * by_speed, axis=0))

    def keeps(self, command: np.ndarray, doubt: np.ndarray) -> bool:
        """
        Whether a command keeps every limit with another doubt about it.

        :param command: `(A,)`.
        :param doubt: about the speeds it leads to, `(A,)`.
        """
        mine, self.doubt = self.doubt, doubt
        self._path = self._exceeded = None
        kept = bool((self.excess(command) <= TOLERANCE).all())
        self._path = self._exceeded = None
        self.doubt = mine
        return kept

    def _off(self, plan: Plan) -> np.ndarray:
        """How far joints can be from where they are reckoned to be, `(A,)` [rad or m]."""
        speed = plan.speed
        held = self.settings.longest_period + (speed + self.doubt) / self._deceleration
        return self.doubt * held + speed * speed * self._slower

    def _slack(self, plan: Plan) -> np.ndarray:
        """How far watched points can be from where they are reckoned to be, `(P,)` [m]."""
        return self._links.travel(self._off(plan))[:len(self._radius)]

    def _reach(self, plan: Plan) -> np.ndarray:
        """How far the tool can be from each joint's axis while it brakes, at most, `(A,)` [m]."""
        way = plan.way + self._off(plan)
        return self._levers + self._links.travel(way)[-1]

    def _slow(self, plan: Plan) -> float | None:
        """See `RobotGuard._slow`; it is the only bound here."""
        if not self._speed_limited:
            return 0.0
        return float((plan.speed + self.doubt) @ self._reach(plan))

    def _speed_row(
        self, reference: np.ndarray, matrix: np.ndarray, high: np.ndarray, row: int,
    ) -> None:
        """The bound as a row, for commands of the same signs."""
        plan = self._plan(reference)
        bound = self._slow(plan)
        if bound is None or not np.isfinite(self._allowed):
            return
        gradient = np.sign(reference) * self._moves * self._reach(plan) * (1.0 + POSTURE)
        matrix[row] = gradient
        left = self._allowed * (1.0 - EDGE) - bound * (1.0 + POSTURE)
        back = BACKOFF * -left + SPEED_BACK * self._allowed if left < 0.0 else 0.0
        high[row] = left - back + gradient @ reference
