"""
What perception, policy and safety node answer to recorded messages, without ROS.

The nodes' own library code, driven by the recorded messages in their order of receipt. Time is
the time of receipt on the robot's clock, as with `use_sim_time` while a bag is played: it stands
still between two messages, so nothing depends on how fast this machine is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from liquid_policy.alignment import FEATURES, Aligned, Aligner, FramePairer, Outcome
from liquid_policy.barrier import Filtered, FilterSettings, JointFeedback, SafetyFilter
from liquid_policy.checkpoint import Checkpoint
from liquid_policy.conversion import (
    NANOSECONDS,
    image_from_message,
    stamp_of,
    vector_from_message,
)
from liquid_policy.inputs import (
    JointReader,
    PlanarMotion,
    StampGuard,
    TimedProposal,
    header_stamp,
    planar_motion,
)
from liquid_policy.interface import ImageSpec, Interface, SourceSpec
from liquid_policy.runtime import EncoderRuntime
from liquid_policy.stepping import Inputs, Model, Step

JOINT_STATE = 'sensor_msgs/msg/JointState'
# The safety node waits this long [s] for a proposal that is late, and a quarter of its period.
PATIENCE = 0.0025


def _entry(default: Any, node: str, name: str = '') -> Any:
    return field(default=default, metadata={'node': node, 'parameter': name})


@dataclass(frozen=True)
class NodeParameters:
    """
    The nodes' parameters that decide what they answer; names and defaults are theirs.

    With `dry_run` every command is judged from the measured joints. They lag behind the commands,
    so that more seem to accelerate too fast; without, from what the filter said before.
    """

    gap: float = _entry(1.0, 'policy')
    mode_threshold: float = _entry(1.0, 'policy')
    answer_images: bool = _entry(False, 'policy')
    policy_tolerance: float = _entry(0.1, 'policy', 'future_tolerance')
    image_tolerance: float = _entry(0.1, 'perception', 'future_tolerance')
    period: float = _entry(0.01, 'safety')
    proposal_timeout: float = _entry(0.05, 'safety')
    joint_timeout: float = _entry(0.05, 'safety')
    future_tolerance: float = _entry(0.02, 'safety')
    longest_period: float = _entry(0.025, 'safety')
    actuation_delay: float = _entry(0.02, 'safety')
    position_margin: float = _entry(0.01, 'safety')
    standing_speed: float = _entry(0.02, 'safety')
    joint_limits: str = _entry('', 'safety')
    chance: float = _entry(0.5, 'safety')
    other_modes: bool = _entry(False, 'safety')
    effort_share: float = _entry(1.1, 'safety')
    overshoot: float = _entry(0.0, 'safety')
    human_timeout: float = _entry(0.2, 'safety')
    takeover_time: float = _entry(0.3, 'safety')
    dry_run: bool = _entry(False, 'safety')

    @property
    def filter(self) -> FilterSettings:
        """The safety filter's settings, as the safety node makes them."""
        return FilterSettings(
            longest_period=self.longest_period, delay=self.actuation_delay,
            position_margin=self.position_margin, still=self.standing_speed, chance=self.chance,
            other_modes=self.other_modes, effort_share=self.effort_share,
            overshoot=self.overshoot)

    @classmethod
    def read(cls, path: str | Path, **changes: Any) -> NodeParameters:
        """
        Read a parameter file of the nodes; what it does not say has its default.

        :param path: such as `config/manipulator.yaml`.
        :param changes: by field, on top.
        :raises ValueError: if the file is no parameter file.
        """
        try:
            content = yaml.safe_load(Path(path).read_text())
            given = {node: (content.get(node) or {}).get('ros__parameters') or {}
                     for node in ('perception', 'policy', 'safety')}
        except (yaml.YAMLError, AttributeError, UnicodeDecodeError) as error:
            raise ValueError(f'{path}: expected parameters by node and ros__parameters, came: '
                             f'{error}') from None
        values = {}
        for entry in fields(cls):
            node, name = entry.metadata['node'], entry.metadata['parameter'] or entry.name
            if node and name in given[node]:
                values[entry.name] = given[node][name]
        return cls(**{**values, **changes})


@dataclass(frozen=True, eq=False)
class Proposed:
    """
    What the policy node publishes.

    :param time: when [ns].
    :param aligned: what was known.
    :param step: what the policy answered.
    """

    time: int
    aligned: Aligned
    step: Step

    @property
    def stamp(self) -> int:
        """Stamp of the newest observation used [ns]: the message's header."""
        return self.aligned.newest

    def timed(self, version: str, dt: float) -> TimedProposal:
        """Return the proposal as the safety node reads it from its message of float32."""
        distribution = self.step.distribution
        return TimedProposal(
            self.stamp, self.aligned.image_stamp or 0, version, dt,
            *(np.asarray(values, np.float32).astype(np.float64) for values in (
                self.step.chosen, distribution.weights, distribution.means,
                distribution.scales)))


@dataclass(frozen=True, eq=False)
class Judged:
    """
    What the safety node does.

    :param time: when [ns].
    :param proposal_stamp: of the proposal that was judged [ns]; None without a usable one.
    :param wanted: the action proposed for this moment, `(A,)`, or None.
    :param result: the command and its reasons.
    """

    time: int
    proposal_stamp: int | None
    wanted: np.ndarray | None
    result: Filtered


class OfflinePerception:
    """
    The perception node.

    :param checkpoint: has the encoder.
    :param tolerance: how far ahead of the clock a stamp may be [s].
    """

    def __init__(self, checkpoint: Checkpoint, tolerance: float = 0.1) -> None:
        interface = checkpoint.interface
        assert interface.features is not None
        self._interface = interface
        self._runtime = EncoderRuntime(checkpoint)
        self._pairer = FramePairer(interface.features)
        self._guards = {name: StampGuard(interface.images[name].topic, tolerance)
                        for name in interface.features.images}

    def look(self, spec: ImageSpec, message: Any, now: int) -> tuple[int, np.ndarray] | None:
        """
        Return stamp [ns] and features, float32 `(size,)`, when a moment's images are complete.

        :raises ValueError: for an image that is not as declared.
        """
        stamp = header_stamp(message)
        if not self._guards[spec.name].accept(stamp, now):
            return None
        # A copy: the bag's memory goes on to the next chunk while an image waits for its pair.
        pair = self._pairer.push(spec.name, stamp, np.array(image_from_message(spec, message)))
        if pair is None:
            return None
        moment, images = pair
        depth, color = None, None
        for name, image in images.items():
            if self._interface.images[name].is_depth:
                depth = image
            else:
                color = image
        assert color is not None
        if depth is None:
            depth = np.zeros(color.shape[:2], np.float32)    # nothing known
        return moment, self._runtime.encode(color, depth)


class OfflinePolicy:
    """
    The policy node.

    :param checkpoint: the policy.
    :param parameters: of the nodes.
    """

    def __init__(self, checkpoint: Checkpoint, parameters: NodeParameters) -> None:
        self.model = Model(checkpoint, gap=parameters.gap, threshold=parameters.mode_threshold)
        self.counts: Counter[str] = Counter()       # what was not used, and why
        self._aligner = Aligner(checkpoint.interface)
        self._tolerance, self._answers = parameters.policy_tolerance, parameters.answer_images

    def features(self, stamp: int, values: np.ndarray, now: int) -> list[Proposed]:
        """Take the features of one image and return what is proposed because of them."""
        if not self._push(FEATURES, stamp, values, now) or not self._answers:
            return []
        spec = self._aligner.interface.features
        tick = self.model.upcoming(stamp + round(1e9 * spec.latency)) if spec else None
        if tick is None:
            return []
        aligned = self._aligner.ahead(tick)
        if aligned.stale or aligned.features is None:
            return []
        step = self.model.preview(Inputs(tick, aligned.features, aligned.vector))
        return [] if step is None else [Proposed(now, aligned, step)]

    def observe(self, sources: list[SourceSpec], message: Any, now: int) -> list[Proposed]:
        """
        Take one message and return what is proposed because of it.

        :param sources: what the message feeds.
        :raises ValueError: for a message that is not as declared.
        """
        stamp = stamp_of(message)
        for source in sources:
            self._push(source.name, now if stamp is None else stamp,
                       vector_from_message(source, message), now)
        ready = self._aligner.ticks_ready()
        found = []
        for tick in ready:
            proposed = self._tick(tick, now)
            if proposed is not None and tick == ready[-1]:
                found.append(proposed)
        return found

    def _push(self, name: str, stamp: int, value: np.ndarray, now: int) -> bool:
        if 1e-9 * (stamp - now) > self._tolerance:
            self.counts[f'{name}: stamp in the future'] += 1
            return False
        verdict = self._aligner.push(name, stamp, value)
        if verdict.outcome is not Outcome.ACCEPTED:
            self.counts[f'{name}: {verdict.outcome.value} stamp'] += 1
        if verdict.outcome is Outcome.RESET:
            self.model.reset()
        return verdict.kept

    def _tick(self, tick: int, now: int) -> Proposed | None:
        aligned = self._aligner.at(tick)
        if aligned.stale:
            self.counts[f'no proposal, without fresh {", ".join(aligned.stale)}'] += 1
            return None
        features = aligned.features
        if features is None:
            features = np.zeros(0, np.float32)
        return Proposed(now, aligned, self.model.step(Inputs(tick, features, aligned.vector)))


class OfflineSafety:
    """
    The safety node, in simulated time.

    :param safety_filter: from `load_filter`.
    :param interface: of the robot.
    :param parameters: of the nodes.
    :param start: when it is activated [ns].
    """

    def __init__(self, safety_filter: SafetyFilter, interface: Interface,
                 parameters: NodeParameters, start: int) -> None:
        self.filter, self._parameters = safety_filter, parameters
        self._joints = JointReader(safety_filter.limits)
        self._guards = {name: StampGuard(name, parameters.future_tolerance) for name in (
            'joint_states', 'action_distribution', 'human_distance', 'odom')}
        safety = interface.safety
        self._human_watched = safety is not None and safety.separation is not None
        self._odometry_needed = any(
            getattr(guard, 'needs_odometry', False) for guard in safety_filter.guards)
        self._activated, self._next = start, start + self._ns(parameters.period)
        self._commanding = False
        self._last = 0
        self._feedback: JointFeedback | None = None
        self._feedback_stamp = self._feedback_receipt = 0
        self._proposal: TimedProposal | None = None
        self._proposal_receipt = self._image_used = 0
        self._base: PlanarMotion | None = None
        self._base_receipt = self._human_receipt = -10 ** 12
        self._human_distance = 0.0

    def topics(self) -> dict[str, str]:
        """Type of every topic it reads besides joint states and proposals."""
        found = {'human_distance': 'sensor_msgs/msg/Range'} if self._human_watched else {}
        return {**found, **({'odom': 'nav_msgs/msg/Odometry'} if self._odometry_needed else {})}

    def advance(self, now: int) -> list[Judged]:
        """Let time go on; what the timer does then."""
        if now < self._next:
            return []
        found = self._cycle(now)
        self._next = now + self._ns(self._parameters.period)
        return found

    def joints(self, message: Any, now: int) -> None:
        """
        Take joint states.

        :raises ValueError: for a message that cannot be used.
        """
        stamp = header_stamp(message)
        feedback = self._joints.read(message)
        if not self._guards['joint_states'].accept(stamp, now):
            return
        self._feedback, self._feedback_stamp, self._feedback_receipt = feedback, stamp, now
        if not self._commanding:
            self.filter.reset(feedback)

    def other(self, name: str, message: Any, now: int) -> None:
        """
        Take what `topics` names.

        :raises ValueError: for a message that cannot be used.
        """
        if not self._guards[name].accept(header_stamp(message), now):
            return
        if name == 'odom':
            self._base, self._base_receipt = planar_motion(message), now
        else:
            self._human_distance, self._human_receipt = float(message.range), now

    def propose(self, proposal: TimedProposal, now: int) -> list[Judged]:
        """
        Take a proposal and answer it.

        :raises ValueError: for a stamp that cannot be.
        """
        image = proposal.image_stamp
        if not self._guards['action_distribution'].accept(proposal.stamp, now, image):
            return []
        self._proposal, self._proposal_receipt = proposal, now
        period = self._parameters.period
        if now - self._last < 0.2e9 * period and image <= self._image_used:
            return []
        found = self._cycle(now)
        self._next = now + self._ns(period + min(PATIENCE, 0.25 * period))
        return found

    def _cycle(self, now: int) -> list[Judged]:
        parameters = self._parameters
        elapsed = 1e-9 * (now - self._last) if self._last else parameters.period
        self._last = now
        feedback, joints_why = self._fresh_feedback(now)
        if not self._commanding and feedback is None \
                and now - self._activated < 1e9 * parameters.takeover_time:
            return []
        proposal, proposal_why = self._fresh_proposal(now)
        wanted = proposal.at(now) if proposal else None
        if proposal is not None:
            self._image_used = max(self._image_used, proposal.image_stamp)
        if parameters.dry_run and feedback is not None:
            self.filter.reset(feedback)
        human = np.inf if not self._human_watched else (
            0.0 if now - self._human_receipt > 1e9 * parameters.human_timeout
            else self._human_distance)
        result = self.filter.filter(
            wanted, feedback, elapsed, tuple(filter(None, (proposal_why, joints_why))), human)
        self._commanding = True
        return [Judged(now, proposal.stamp if proposal else None,
                       wanted.action if wanted else None, result)]

    def _fresh_feedback(self, now: int) -> tuple[JointFeedback | None, str]:
        if self._feedback is None:
            return None, 'joint_states have not come'
        age = 1e-9 * (now - min(self._feedback_stamp, self._feedback_receipt))
        if age > self._parameters.joint_timeout:
            return None, (f'joint_states are {age:.3f} s old, allowed are '
                          f'{self._parameters.joint_timeout}')
        base = self._base
        if self._odometry_needed \
                and now - self._base_receipt > 1e9 * self._parameters.joint_timeout:
            base = None
        pose = None if base is None else base.at(self._feedback_stamp)
        return replace(self._feedback, age=max(age, 0.0), base=pose), ''

    def _fresh_proposal(self, now: int) -> tuple[TimedProposal | None, str]:
        if self._proposal is None:
            return None, 'no proposal has come'
        age = 1e-9 * (now - min(self._proposal.stamp, self._proposal_receipt))
        if age > self._parameters.proposal_timeout:
            return None, (f'the proposal is {age:.3f} s old, allowed are '
                          f'{self._parameters.proposal_timeout}')
        return self._proposal, ''

    @staticmethod
    def _ns(seconds: float) -> int:
        return int(NANOSECONDS * seconds)

