"""
One cycle of the safety node: what is fresh among what has come, and the command that follows.

The safety node and the replay of bags run this; the node adds topics, timers and figures. Two
clocks: `now` is the one that messages are stamped with, `tick` never jumps (they are the same in
simulated time). What is old by either does not count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from liquid_policy.barrier import Filtered, JointFeedback, Proposal, SafetyFilter
from liquid_policy.effort_load import EffortSafety
from liquid_policy.inputs import JointReader, PlanarMotion, TimedProposal, planar_motion
from liquid_policy.interface import Interface
from liquid_policy.stamps import StampGuard, header_stamp

# Proposals are answered when they come. One that is late by less than this [s] (and a quarter of
# the period) is waited for: if the timer stepped in before it, its forerunner would have been
# given the change of speed that is allowed to it.
PATIENCE = 0.0025
NEVER = -10 ** 12       # receipt of what has not come [ns]


class CycleSettings(Protocol):
    """The safety node's parameters that decide what is fresh; all in seconds."""

    @property
    def period(self) -> float: ...

    @property
    def proposal_timeout(self) -> float: ...

    @property
    def joint_timeout(self) -> float: ...

    @property
    def human_timeout(self) -> float: ...

    @property
    def takeover_time(self) -> float: ...

    @property
    def dry_run(self) -> bool: ...


@dataclass(frozen=True, eq=False)
class Answer:
    """
    What one cycle found.

    :param result: the command and its reasons.
    :param wanted: the action proposed for this moment; None without a fresh proposal.
    :param proposal: where it is from.
    :param new_stamp: whether this is the first command in which that proposal's observations
        have a part.
    :param new_image: likewise its image.
    :param late: whether the cycle before was more than 1.5 periods ago.
    :param human_lost: whether the nearest human's distance should be known and is not.
    """

    result: Filtered
    wanted: Proposal | None
    proposal: TimedProposal | None
    new_stamp: bool
    new_image: bool
    late: bool
    human_lost: bool


class SafetyCycle:
    """Keeps the newest inputs with their ages, and asks the filter."""

    def __init__(self, safety_filter: SafetyFilter | EffortSafety, interface: Interface,
                 future_tolerance: float) -> None:
        """
        Know nothing yet.

        :param safety_filter: from `load_safety`.
        :param interface: of the robot.
        :param future_tolerance: how far a stamp may lie ahead of `now` [s].
        """
        self.filter = safety_filter
        safety = interface.safety
        self.human_watched = safety is not None and safety.separation is not None
        self.odometry_needed = any(
            getattr(guard, 'needs_odometry', False) for guard in safety_filter.guards)
        self._joints = JointReader(safety_filter.limits)
        self._guards = {name: StampGuard(name, future_tolerance) for name in (
            'joint_states', 'action_distribution', 'human_distance', 'odom')}
        self.start(0)

    def start(self, tick: int) -> None:
        """
        Begin anew: nothing is known and nothing was commanded.

        :param tick: when [ns].
        """
        self.commanding = False
        self._activated = tick
        self.forget()

    def forget(self) -> None:
        """Drop every input; after a jump of the clock nothing from before it counts."""
        self.newest: JointFeedback | None = None
        self._joints_stamp = self._joints_receipt = 0
        self.proposal: TimedProposal | None = None
        self._proposal_fault, self._proposal_receipt = '', 0
        self._base: PlanarMotion | None = None
        self._base_receipt = self._human_receipt = NEVER
        self._human_distance = 0.0
        self._last = self._stamp_used = self._image_used = 0
        for guard in self._guards.values():
            guard.forget()

    def keep_joints(self, message: Any) -> None:
        """Take joint states without looking at their stamp, while no clock runs."""
        self.newest = self._joints.read(message)

    def joints(self, message: Any, now: int, tick: int) -> bool:
        """
        Take joint states.

        :return: whether they are new.
        :raises ValueError: if they cannot be used; that counts as silence.
        """
        stamp = header_stamp(message)
        feedback = self._joints.read(message)  # first: what cannot be used takes no stamp
        if not self._guards['joint_states'].accept(stamp, now):
            return False
        self.newest, self._joints_stamp, self._joints_receipt = feedback, stamp, tick
        if not self.commanding:
            # Whoever takes over a moving robot brakes it instead of stopping it dead.
            self.filter.reset(feedback)
        return True

    def human(self, message: Any, now: int, tick: int) -> None:
        """
        Take how near the nearest human is; infinite: nobody is seen.

        :raises ValueError: for a stamp that cannot be.
        """
        if self._guards['human_distance'].accept(header_stamp(message), now):
            self._human_distance, self._human_receipt = float(message.range), tick

    def odometry(self, message: Any, now: int, tick: int) -> None:
        """
        Take where the base is.

        :raises ValueError: for a message that cannot be used.
        """
        if self._guards['odom'].accept(header_stamp(message), now):
            self._base, self._base_receipt = planar_motion(message), tick

    def propose(self, stamp: int, image: int, read: Callable[[], TimedProposal], now: int,
                tick: int) -> bool:
        """
        Take a proposal; a broken one ends the last one.

        :param stamp: of its newest observation [ns].
        :param image: of the newest image behind it [ns].
        :param read: makes it; asked only if the stamp is new.
        :return: whether it is new.
        :raises ValueError: for a stamp that cannot be, and whatever `read` raises of it.
        """
        if not self._guards['action_distribution'].accept(stamp, now, image):
            return False
        self.proposal, self._proposal_fault = None, ''
        try:
            self.proposal = read()
        except ValueError as error:
            self._proposal_fault = str(error)
            raise
        self._proposal_receipt = tick
        return True

    def due(self, tick: int, period: float) -> bool:
        """Whether the newest proposal is answered at once: of a burst one is, and new images."""
        assert self.proposal is not None
        return tick - self._last >= 0.2e9 * period or self.proposal.image_stamp > self._image_used

    def answer(self, now: int, tick: int, settings: CycleSettings) -> Answer | None:
        """
        Ask the filter for the command of this moment.

        :return: None while the robot that is taken over has not been heard of.
        """
        elapsed = 1e-9 * (tick - self._last) if self._last else settings.period
        self._last = tick
        feedback, joints_why = self.feedback(now, tick, settings.joint_timeout)
        if not self.commanding and feedback is None and (
                self.filter.limits.torques
                or tick - self._activated < 1e9 * settings.takeover_time):
            return None  # its speed is not known yet; torques need its posture too
        proposal, proposal_why = self._fresh_proposal(now, tick, settings.proposal_timeout)
        wanted = proposal.at(now) if proposal else None
        if settings.dry_run and feedback is not None:
            self.filter.reset(feedback)  # somebody else commands: go on from what is measured
        human, human_lost = self.nearest_human(tick, settings.human_timeout)
        result = self.filter.filter(
            wanted, feedback, elapsed, tuple(filter(None, (proposal_why, joints_why))), human)
        self.commanding = True
        stamp, image = (proposal.stamp, proposal.image_stamp) if proposal else (0, 0)
        found = Answer(
            result, wanted, proposal, stamp > self._stamp_used, image > self._image_used,
            elapsed > 1.5 * settings.period, human_lost)
        self._stamp_used = max(self._stamp_used, stamp)
        self._image_used = max(self._image_used, image)
        return found

    def feedback(self, now: int, tick: int, timeout: float) -> tuple[JointFeedback | None, str]:
        """Return the joint states with their age, or why there are none fresh enough [s]."""
        if self.newest is None:
            return None, 'joint_states have not come'
        age = 1e-9 * max(now - self._joints_stamp, tick - self._joints_receipt)
        if age > timeout:
            return None, f'joint_states are {age:.3f} s old, allowed are {timeout}'
        base = self._base
        if self.odometry_needed and tick - self._base_receipt > 1e9 * timeout:
            base = None
        pose = None if base is None else base.at(self._joints_stamp)
        return replace(self.newest, age=max(age, 0.0), base=pose), ''

    def nearest_human(self, tick: int, timeout: float) -> tuple[float, bool]:
        """
        Return the distance of the nearest human [m], infinite if none is looked for, and whether
        it should be known and is not; then it is 0.
        """
        if not self.human_watched:
            return np.inf, False
        lost = tick - self._human_receipt > 1e9 * timeout
        return (0.0 if lost else self._human_distance), lost

    def _fresh_proposal(
        self, now: int, tick: int, timeout: float,
    ) -> tuple[TimedProposal | None, str]:
        """The proposal, or why there is none."""
        if self.proposal is None:
            return None, self._proposal_fault or 'no proposal has come'
        age = 1e-9 * max(now - self.proposal.stamp, tick - self._proposal_receipt)
        if age > timeout:
            return None, f'the proposal is {age:.3f} s old, allowed are {timeout}'
        return self.proposal, ''
