"""
Figures of a recorded run: latencies, rates, losses, errors.

All functions are plain arithmetic on time stamps, so each has a known answer to test against.
Times are stamps in nanoseconds on one clock; results are SI.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

import numpy as np

from liquid_sim.run_record import NANOSECONDS, Run, Series, Topic

# States of SafetyStatus.msg, in order of its constants.
SAFETY_STATES = ('inactive', 'passing', 'limiting', 'braking', 'stopped')
# Diagnostic value with which a node says how many messages it published (see sim_node).
PUBLISHED = 'info.published'
LAST_STAGE = 'image stamp → command on the wire'


@dataclass(frozen=True)
class Spread:
    """
    How a quantity is spread.

    :param count: number of values that were finite.
    :param p50: median; NaN without values.
    :param p99: 99th percentile; NaN without values.
    :param highest: largest; NaN without values.
    """

    count: int
    p50: float
    p99: float
    highest: float


def spread(values: np.ndarray) -> Spread:
    """
    Return median, 99th percentile and maximum of the finite values.

    Percentiles interpolate linearly between the neighbouring values.

    :param values: any unit, `(N,)`.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not values.size:
        return Spread(0, np.nan, np.nan, np.nan)
    p50, p99 = np.percentile(values, [50, 99])
    return Spread(values.size, float(p50), float(p99), float(values.max()))


def rate(stamps: np.ndarray) -> float:
    """
    Return the mean rate [1/s] over the time between the first and last message.

    :param stamps: [ns], `(N,)`.
    :return: NaN with fewer than two messages or no time between them.
    """
    stamps = np.asarray(stamps, np.int64)
    if stamps.size < 2 or stamps.max() == stamps.min():
        return float('nan')
    return (stamps.size - 1) * NANOSECONDS / float(stamps.max() - stamps.min())


def longest_gap(stamps: np.ndarray) -> float:
    """
    Return the longest time between two neighbouring messages [s].

    :param stamps: [ns], `(N,)`, any order.
    :return: NaN with fewer than two messages.
    """
    if len(stamps) < 2:
        return float('nan')
    return float(np.diff(np.sort(stamps)).max()) / NANOSECONDS


def lost_by_stamps(stamps: np.ndarray) -> int | None:
    """
    Count messages of a periodic topic that are missing between those that came.

    The period is the median distance of the stamps; a distance of n periods (rounded) is n - 1
    missing messages; stamps may jitter by a quarter of the period. Losses before the first and
    after the last message cannot be seen.

    :param stamps: [ns], `(N,)`, any order.
    :return: None if the topic is not periodic: with fewer than three messages, or when more than
        one in five distances is no multiple of the period.
    """
    if len(stamps) < 3:
        return None
    distances = np.diff(np.sort(np.asarray(stamps, np.int64)))
    period = float(np.median(distances))
    if period <= 0:
        return None
    off = np.abs(distances / period - np.maximum(np.rint(distances / period), 1))
    # A 30 Hz camera on a 100 Hz clock comes after 30, 30 and 40 ms: a third off is still periodic.
    if np.mean(off > 0.4) > 0.2:
        return None
    return int(np.maximum(np.rint(distances / period) - 1, 0).sum())


def lost_by_count(stamps: np.ndarray, counts: list[tuple[int, int]]) -> int | None:
    """
    Count messages that were published but not recorded.

    :param stamps: stamps of the recorded messages [ns], `(N,)`.
    :param counts: (stamp [ns], messages published with stamps up to there) from the publisher.
    :return: messages lost between the first and last count; None with fewer than two counts.
    """
    if len(counts) < 2:
        return None
    (first, before), (last, after) = counts[0], counts[-1]
    recorded = int(np.count_nonzero((stamps > first) & (stamps <= last)))
    return max(after - before - recorded, 0)


def first_response(causes: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Return for each cause the first answer that names it.

    :param causes: stamp of the cause behind each answer [ns], 0 for none, `(N,)`.
    :param answers: time of each answer [ns], `(N,)`.
    :return: distinct causes in order, and the earliest answer to each, both `(M,)` [ns].
    """
    causes, answers = np.asarray(causes, np.int64), np.asarray(answers, np.int64)
    known = causes > 0
    causes, answers = causes[known], answers[known]
    order = np.lexsort((answers, causes))
    causes, answers = causes[order], answers[order]
    first = np.ones(causes.size, bool)
    first[1:] = causes[1:] != causes[:-1]
    return causes[first], answers[first]


def matched(stamps: np.ndarray, wanted: np.ndarray, values: np.ndarray) -> np.ndarray:
    """
    Return the value that carries each wanted stamp.

    :param stamps: stamp of each value, `(N,)` int64; the first of equal stamps counts.
    :param wanted: stamps to look for, `(M,)` int64.
    :param values: `(N,)`.
    :return: `(M,)` float64, NaN where no value carries the stamp.
    """
    result = np.full(len(wanted), np.nan)
    if not len(stamps):
        return result
    order = np.argsort(stamps, kind='stable')
    ordered = np.asarray(stamps)[order]
    place = np.minimum(np.searchsorted(ordered, wanted), ordered.size - 1)
    found = ordered[place] == wanted
    result[found] = np.asarray(values, float)[order][place[found]]
    return result


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


def interpolated(series: Series, stamps: np.ndarray, furthest: float) -> np.ndarray:
    """
    Return a series at other times, linearly between its samples.

    :param series: `(N, D)`.
    :param stamps: wanted times [ns], `(M,)`.
    :param furthest: two samples further apart than this [s] do not belong together.
    :return: `(M, D)`, NaN outside the series and in its gaps.
    """
    result = np.full((len(stamps), len(series.names)), np.nan)
    if not len(series) or not len(stamps):
        return result
    order = np.argsort(series.stamps, kind='stable')
    times, values = series.stamps[order], series.values[order]
    later = np.searchsorted(times, stamps)
    inside = later < times.size
    later = np.minimum(later, times.size - 1)
    exact = inside & (times[later] == stamps)
    result[exact] = values[later[exact]]
    between = inside & ~exact & (later > 0)
    before = later[between] - 1
    span = (times[later[between]] - times[before]).astype(float)
    share = (stamps[between] - times[before]) / span
    mixed = values[before] + share[:, None] * (values[before + 1] - values[before])
    mixed[span > furthest * NANOSECONDS] = np.nan
    result[between] = mixed
    return result


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
