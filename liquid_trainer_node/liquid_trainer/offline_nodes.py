"""
What perception, policy and safety node answer to recorded messages, without ROS.

The nodes' own library code, driven by the recorded messages in their order of receipt. Time is
the time of receipt on the robot's clock, as with `use_sim_time` while a bag is played: it stands
still between two messages, so nothing depends on how fast this machine is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from liquid_policy.alignment import FEATURES, Aligned, Aligner, FramePairer, Outcome
from liquid_policy.barrier import Filtered, FilterSettings
from liquid_policy.checkpoint import Checkpoint
from liquid_policy.conversion import (
    NANOSECONDS,
    image_from_message,
    stamp_of,
    vector_from_message,
)
from liquid_policy.filter_parameters import filter_settings
from liquid_policy.inputs import TimedProposal
from liquid_policy.interface import ImageSpec, SourceSpec
from liquid_policy.runtime import EncoderRuntime
from liquid_policy.safety_cycle import PATIENCE, SafetyCycle
from liquid_policy.stamps import StampGuard, header_stamp
from liquid_policy.stepping import Inputs, Model, Step

JOINT_STATE = 'sensor_msgs/msg/JointState'


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
        return filter_settings(asdict(self))

    @classmethod
    def read(cls, path: str | Path, **changes: Any) -> NodeParameters:
        """
        Read a parameter file of the nodes; what it does not say has its default.

        :param path: such as `config/manipulator.yaml`.
        :param changes: by field, on top.
        :raises ValueError: if the file is no parameter file, or a value has another type.
        """
        nodes = ('perception', 'policy', 'safety')
        try:
            content = yaml.safe_load(Path(path).read_text())
            given = {node: (content.get(node) or {}).get('ros__parameters') or {}
                     for node in nodes}
            if not any(given.values()):
                raise ValueError(f'none for {", ".join(nodes)}')
        except (OSError, yaml.YAMLError, AttributeError, ValueError) as error:
            raise ValueError(f'{path}: expected parameters by node and ros__parameters, came: '
                             f'{error}') from None
        values = {}
        for entry in fields(cls):
            node, name = entry.metadata['node'], entry.metadata['parameter'] or entry.name
            if name in given[node]:
                value, kind = given[node][name], type(entry.default)
                if type(value) is not kind and not (kind is float and type(value) is int):
                    raise ValueError(f'{path}: {node}.{name}: expected a {kind.__name__}, came '
                                     f'{value!r}')
                values[entry.name] = value
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
    The safety node, in simulated time: one clock stamps and ticks.

    :param cycle: of the robot's filter.
    :param parameters: of the nodes.
    :param start: when it is activated [ns].
    """

    def __init__(self, cycle: SafetyCycle, parameters: NodeParameters, start: int) -> None:
        self._cycle, self._parameters = cycle, parameters
        self._next = start + self._ns(parameters.period)
        cycle.start(start)

    def topics(self) -> tuple[str, ...]:
        """Return what it reads besides joint states and proposals."""
        return (('human_distance',) if self._cycle.human_watched else ()) \
            + (('odom',) if self._cycle.odometry_needed else ())

    def advance(self, now: int) -> list[Judged]:
        """Let time go on; what the timer does then."""
        if now < self._next:
            return []
        self._next = now + self._ns(self._parameters.period)
        return self._answer(now)

    def joints(self, message: Any, now: int) -> None:
        """
        Take joint states.

        :raises ValueError: for a message that cannot be used.
        """
        self._cycle.joints(message, now, now)

    def other(self, name: str, message: Any, now: int) -> None:
        """
        Take what `topics` names.

        :raises ValueError: for a message that cannot be used.
        """
        take = self._cycle.odometry if name == 'odom' else self._cycle.human
        take(message, now, now)

    def propose(self, proposal: TimedProposal, now: int) -> list[Judged]:
        """
        Take a proposal and answer it.

        :raises ValueError: for a stamp that cannot be.
        """
        period = self._parameters.period
        if not self._cycle.propose(
                proposal.stamp, proposal.image_stamp, lambda: proposal, now, now) \
                or not self._cycle.due(now, period):
            return []
        self._next = now + self._ns(period + min(PATIENCE, 0.25 * period))
        return self._answer(now)

    def _answer(self, now: int) -> list[Judged]:
        answer = self._cycle.answer(now, now, self._parameters)
        if answer is None:
            return []
        return [Judged(now, answer.proposal.stamp if answer.proposal else None,
                       answer.wanted.action if answer.wanted else None, answer.result)]

    @staticmethod
    def _ns(seconds: float) -> int:
        return int(NANOSECONDS * seconds)
