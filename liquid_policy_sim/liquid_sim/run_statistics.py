"""
Figures of a recorded run: latencies, rates, losses, errors.

Times are stamps in nanoseconds on one clock; results are SI.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

import numpy as np

from liquid_sim.run_record import NANOSECONDS, Run, Topic
from liquid_sim.stamp_statistics import (
    Spread,
    first_response,
    interpolated,
    longest_gap,
    lost_by_count,
    lost_by_stamps,
    matched,
    rate,
    spread,
)

# States of SafetyStatus.msg, in order of its constants.
SAFETY_STATES = ('inactive', 'passing', 'limiting', 'braking', 'stopped')
# Diagnostic value with which a node says how many messages it published (see sim_node).
PUBLISHED = 'info.published'
LAST_STAGE = 'image stamp → command on the wire'


@dataclass(frozen=True)
class Stage:
    """
    One stage on the way from image to command.

    :param name: what is timed, from where to where.
    :param rate: how often it happens [1/s].
    :param stamps: when each began [ns], `(N,)`.
    :param latencies: how long each took [s], `(N,)`.
    """

    name: str
    rate: float
    stamps: np.ndarray
    latencies: np.ndarray

    @property
    def spread(self) -> Spread:
        """Return the spread of the latencies [s]."""
        return spread(self.latencies)


def _stage(name: str, begun: np.ndarray, ended: np.ndarray) -> Stage:
    """Make a stage of begin and end times [ns], both `(N,)`, NaN where one is unknown."""
    known = np.isfinite(begun) & np.isfinite(ended)
    stamps = begun[known].astype(np.int64)
    # Differences of float64 nanoseconds since 1970 are good to 256 ns; enough for milliseconds.
    return Stage(name, rate(stamps), stamps, (ended - begun)[known] / NANOSECONDS)


def _topic(run: Run, name: str) -> Topic:
    missing = np.zeros(0, np.int64)
    return run.topics.get(name, Topic(name, '', missing, missing))


def stages(run: Run) -> list[Stage]:
    """
    Return the stages of the run that can be timed.

    Stages between nodes are timed on the wire: from the log time of what a node waits for to the
    log time of what it answers, so each contains one transport. The last one is the time that
    matters to the robot: from the stamp of each image to the moment when the first command that
    knows this image had been sent.

    :param run: what was recorded.
    :return: stages in the order of the data's way; empty ones are left out.
    """
    color, depth = _topic(run, 'camera/color/image_raw'), _topic(run, 'camera/depth/image_raw')
    features, joints = _topic(run, 'features'), _topic(run, 'joint_states')
    found: list[Stage] = []
    image_came = np.fmax(color.received.astype(float),
                         matched(depth.stamps, color.stamps, depth.received))
    if not run.simulated_time:
        found.append(_stage('camera: image stamp → image sent', color.stamps.astype(float),
                            image_came))
    found.append(_stage('perception: image → features',
                        matched(color.stamps, features.stamps, image_came),
                        features.received.astype(float)))
    # A joint state is answered once as itself, and again with an image that came after it.
    causes, answers = first_response(run.policy.stamps, run.policy.received)
    found.append(_stage('policy: joint state → action distribution',
                        matched(joints.stamps, causes, joints.received), answers.astype(float)))
    causes, answers = first_response(run.safety.proposal_stamps, run.safety.received)
    found.append(_stage('safety: action distribution → command',
                        matched(run.policy.stamps, causes, run.policy.received),
                        answers.astype(float)))
    if not run.simulated_time:
        causes, answers = first_response(run.policy.image_stamps, run.policy.received)
        found.append(_stage('image stamp → action distribution', causes.astype(float),
                            answers.astype(float)))
    causes, answers = first_response(run.safety.image_stamps, run.safety.stamps)
    found.append(_stage(LAST_STAGE, causes.astype(float), answers.astype(float)))
    return [stage for stage in found if stage.latencies.size]


@dataclass(frozen=True)
class TopicFigures:
    """
    What arrived of one topic.

    :param name: short name.
    :param messages: number recorded.
    :param rate: [1/s].
    :param longest_gap: longest time without a message [s].
    :param lost: messages that should have been recorded and were not; None if that is unknown.
    :param counted: whether `lost` was counted against the publisher (else: gaps in the stamps).
    """

    name: str
    messages: int
    rate: float
    longest_gap: float
    lost: int | None
    counted: bool


# Published on events, or only while there is something to say: silence is no loss.
EVENTS = ('episode', 'model_update', 'diagnostics', 'trainer_status', 'ground_truth/part',
          'estimate')


def published_counts(run: Run) -> dict[str, list[tuple[int, int]]]:
    """
    Return what publishers say they published.

    :param run: what was recorded.
    :return: topic to (stamp [ns], messages with stamps up to there); from the diagnostic value
        `PUBLISHED`, a JSON object of topic to count in which `until` is the stamp [ns].
    """
    counts: dict[str, list[tuple[int, int]]] = {}
    for samples in run.diagnostics.values():
        for sample in samples:
            try:
                published = json.loads(sample.values.get(PUBLISHED, 'null'))
                until = int(published.pop('until')) if published else 0
            except (ValueError, KeyError, AttributeError, TypeError):
                continue
            for topic, count in (published or {}).items():
                counts.setdefault(topic, []).append((until, int(count)))
    return counts


def topic_figures(run: Run) -> list[TopicFigures]:
    """
    Return rate, gaps and losses of each topic.

    :param run: what was recorded.
    """
    counts = published_counts(run)
    figures = []
    for name, topic in run.topics.items():
        # Every node stamps its diagnostics by its own clock.
        own = topic.stamped and name != 'diagnostics'
        stamps = topic.stamps[topic.stamps > 0] if own else topic.received
        lost = lost_by_count(stamps, counts[name]) if name in counts and topic.stamped else None
        counted = lost is not None
        if lost is None and name not in EVENTS and topic.stamped:
            lost = lost_by_stamps(stamps)
        figures.append(TopicFigures(name, int(topic.received.size), rate(stamps),
                                    longest_gap(stamps), lost, counted))
    return figures


@dataclass(frozen=True)
class PoseError:
    """
    Distance between estimated and true part position.

    :param stamps: when [ns], `(N,)`.
    :param errors: distance [m], `(N,)`.
    :param speed_errors: absolute error of the part's speed [m/s], `(N,)`; empty if not estimated.
    """

    stamps: np.ndarray
    errors: np.ndarray
    speed_errors: np.ndarray


# Upstream of this a part is still under the feeder's roof, where no camera sees it [m, base_link].
FEEDER_ROOF_Y = -0.45


def pose_error(run: Run, furthest: float = 0.15) -> PoseError:
    """
    Compare what the policy believed of the part with where it truly was.

    Left out are the times without a part, and with one that is hidden under the feeder's roof.

    :param run: what was recorded.
    :param furthest: longest gap in the ground truth that may be bridged [s].
    """
    places = ('part_x', 'part_y', 'part_z')
    if not len(run.estimate) or any(name not in run.estimate.names for name in places):
        return PoseError(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    truth = interpolated(run.truth, run.estimate.stamps, furthest)
    known = np.isfinite(truth).all(axis=1) & (truth[:, 1] > FEEDER_ROOF_Y)
    believed = np.stack([run.estimate.column(name) for name in places], axis=1)
    errors = np.linalg.norm(believed[known] - truth[known, :3], axis=1)
    speed = (np.abs(run.estimate.column('part_speed')[known] - truth[known, 3])
             if 'part_speed' in run.estimate.names else np.zeros(0))
    return PoseError(run.estimate.stamps[known], errors, speed)


@dataclass(frozen=True)
class SafetyFigures:
    """
    What the safety filter did in the run.

    :param commands: commands it spoke about.
    :param interventions: commands that are not the proposal.
    :param shares: share of commands in each state, by the state's name.
    :param constraints: how many commands each constraint changed, most frequent first.
    :param missed_deadlines: control periods that began late.
    """

    commands: int
    interventions: int
    shares: dict[str, float]
    constraints: list[tuple[str, int]]
    missed_deadlines: int


def safety_figures(run: Run) -> SafetyFigures:
    """
    Count the safety filter's interventions.

    :param run: what was recorded.
    """
    states = run.safety.states
    spoken = np.isin(states, [1, 2, 3, 4])
    shares = {name: float(np.mean(states == index)) if states.size else 0.0
              for index, name in enumerate(SAFETY_STATES)}
    counter = Counter(name for names in run.safety.constraints for name in set(names))
    missed = run.safety.missed_deadlines
    return SafetyFigures(
        int(spoken.sum()), int(np.isin(states, [2, 3]).sum()), shares, counter.most_common(),
        int(missed[-1] - missed[0]) if missed.size else 0)


@dataclass(frozen=True)
class Parts:
    """
    What became of the parts.

    :param seen: parts that came into reach.
    :param picked: parts picked.
    :param missed: parts that left unpicked.
    """

    seen: int
    picked: int
    missed: int

    @property
    def success(self) -> float:
        """Return the share of decided parts that were picked; NaN when none was decided."""
        decided = self.picked + self.missed
        return self.picked / decided if decided else float('nan')


def parts(run: Run) -> Parts:
    """
    Count the parts of the run.

    :param run: what was recorded.
    """
    if not len(run.conveyor):
        return Parts(0, 0, 0)
    change = [int(run.conveyor.column(name)[-1]) for name in ('seen', 'picked', 'missed')]
    return Parts(*change)


def count_stamps(run: Run, name: str) -> np.ndarray:
    """
    Return when a counter of the conveyor went up.

    :param run: what was recorded.
    :param name: `seen`, `picked` or `missed`.
    :return: [ns], one per part, `(N,)` int64.
    """
    if not len(run.conveyor):
        return np.zeros(0, np.int64)
    rises = np.maximum(np.diff(run.conveyor.column(name), prepend=0.0), 0).astype(int)
    return np.repeat(run.conveyor.stamps, rises)


@dataclass(frozen=True)
class NodeFigures:
    """
    What a node said about itself in /diagnostics.

    :param name: the node.
    :param resident: most memory it held [bytes]; NaN if it did not say.
    :param share: processor share, mean over the run, 1 is one core; NaN if it did not say.
    :param latencies: stage to its last (median, 99th percentile) [s].
    """

    name: str
    resident: float
    share: float
    latencies: dict[str, tuple[float, float]]


def node_figures(run: Run) -> list[NodeFigures]:
    """
    Return what the nodes said about themselves.

    :param run: what was recorded.
    """
    figures = []
    for name, samples in run.diagnostics.items():
        def values(key: str, samples: tuple = samples) -> np.ndarray:
            found = [_number(sample.values.get(key)) for sample in samples]
            return np.array(found or [np.nan])

        last = samples[-1].values
        stages = [key[:-len('.p50_ms')] for key in last if key.endswith('.p50_ms')]
        resident, share = values('process.resident_mb'), values('process.cpu')
        figures.append(NodeFigures(
            name,
            float(np.nanmax(resident)) * 1e6 if np.isfinite(resident).any() else np.nan,
            float(np.nanmean(share)) if np.isfinite(share).any() else np.nan,
            {stage: (_number(last.get(f'{stage}.p50_ms')) / 1e3,
                     _number(last.get(f'{stage}.p99_ms')) / 1e3) for stage in stages}))
    return figures


def _number(text: str | None) -> float:
    try:
        return float(text) if text is not None else float('nan')
    except ValueError:
        return float('nan')
