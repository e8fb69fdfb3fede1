"""
One recorded run of the robot, read from a rosbag2 recording into arrays.

Everything the report and the demo's table say is computed from what is here, so the same numbers
come out of a recording made by the demo, by the recorder node or by `ros2 bag record`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from liquid_sim.pictures import Picture, encode_color, encode_depth
from liquid_trainer.bag_file import Bag, BagError

NANOSECONDS = 1_000_000_000
# Stamps and receive times further apart than this come from different clocks (simulated time).
CLOCKS_APART = 30 * NANOSECONDS
# Stamps before 2001 are no date, they count simulated time.
EARLIEST = 10**18
# Pictures are kept at most this often [Hz]; an eye needs no more in a small animation.
PICTURE_RATE = 10.0


class RecordError(ValueError):
    """A recording that cannot be reported on; the text says what was expected and what came."""


@dataclass(frozen=True)
class Topic:
    """
    When the messages of one topic were made and when they were received.

    :param name: topic name as recorded.
    :param type: message type.
    :param stamps: header stamps [ns], `(N,)` int64; zeros when the type has no header.
    :param received: log times [ns], `(N,)` int64: when the recorder received each message, or
        when it was sent, where the recorder could tell (this project's can).
    """

    name: str
    type: str
    stamps: np.ndarray
    received: np.ndarray

    @property
    def stamped(self) -> bool:
        """Tell whether the messages carry stamps."""
        return bool(self.stamps.size and self.stamps.any())


@dataclass(frozen=True)
class Series:
    """
    Named values over time.

    :param stamps: times [ns], `(N,)` int64.
    :param values: `(N, D)` float64.
    :param names: D names.
    """

    stamps: np.ndarray
    values: np.ndarray
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that times, values and names belong together."""
        expected = (len(self.stamps), len(self.names))
        if self.values.shape != expected:
            raise ValueError(f'values must be {expected}, got {self.values.shape}')

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.stamps)

    def column(self, name: str) -> np.ndarray:
        """
        Return one column.

        :param name: name of the column.
        :return: `(N,)`.
        :raises KeyError: if there is none of that name.
        """
        if name not in self.names:
            raise KeyError(f'expected one of {list(self.names)}, got {name!r}')
        return self.values[:, self.names.index(name)]


def empty_series(names: tuple[str, ...] = ()) -> Series:
    """
    Return a series without samples.

    :param names: names of its columns.
    """
    return Series(np.zeros(0, np.int64), np.zeros((0, len(names))), names)


@dataclass(frozen=True)
class SafetyRecord:
    """
    What the safety filter said of each command.

    :param stamps: moment each command was issued [ns], `(N,)`.
    :param received: receive time of each status [ns], `(N,)`.
    :param states: state constant of SafetyStatus, `(N,)` int.
    :param proposed: proposed command, NaN where there was none, `(N, A)`.
    :param issued: issued command, NaN where there was none, `(N, A)`.
    :param proposal_stamps: stamp of the proposal behind each command [ns], 0 for none, `(N,)`.
    :param image_stamps: stamp of the image behind each command [ns], 0 for none, `(N,)`.
    :param constraints: names of the active constraints of each command.
    :param amounts: by how much each of them changed the command.
    :param interventions: the filter's own counter, `(N,)`.
    :param missed_deadlines: the filter's own counter, `(N,)`.
    :param reasons: why the command is not the proposal, in words.
    """

    stamps: np.ndarray
    received: np.ndarray
    states: np.ndarray
    proposed: Series
    issued: Series
    proposal_stamps: np.ndarray
    image_stamps: np.ndarray
    constraints: tuple[tuple[str, ...], ...]
    amounts: tuple[tuple[float, ...], ...]
    interventions: np.ndarray
    missed_deadlines: np.ndarray
    reasons: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class PolicyRecord:
    """
    What the policy proposed.

    :param stamps: stamp of the newest observation used [ns], `(N,)`.
    :param received: receive times [ns], `(N,)`.
    :param image_stamps: stamp of the image behind it [ns], 0 for none, `(N,)`.
    :param weights: mixture weights, `(N, K)`; rows with fewer components are filled with zeros.
    :param chosen_components: index of the chosen component, `(N,)`.
    :param versions: model versions that appeared, in order.
    """

    stamps: np.ndarray
    received: np.ndarray
    image_stamps: np.ndarray
    weights: np.ndarray
    chosen_components: np.ndarray
    versions: tuple[str, ...]


@dataclass(frozen=True)
class DiagnosticSample:
    """
    One status of /diagnostics.

    :param stamp: when it was made [ns].
    :param level: 0 ok, 1 warning, 2 error, 3 stale.
    :param message: summary.
    :param values: key to value, as text.
    """

    stamp: int
    level: int
    message: str
    values: dict[str, str]


@dataclass(frozen=True)
class Run:
    """
    One recorded run.

    Topic names are without leading slash and namespace. Anything that was not recorded is empty.

    :param path: the recording.
    :param start: time zero of plots and animation [ns].
    :param end: last time in the recording [ns].
    :param simulated_time: whether stamps are of simulated time; differences between stamps and log
        times then mean nothing.
    :param topics: what was recorded, by short name.
    :param positions: joint positions [rad].
    :param velocities: joint velocities [rad/s].
    :param efforts: joint efforts [N m].
    :param issued: commands as the robot got them, one series per topic.
    :param demonstrated: what a teacher commanded, one series per topic.
    :param safety: what the safety filter did.
    :param policy: what the policy proposed.
    :param estimate: what the policy believed, means.
    :param estimate_deviation: standard deviations of `estimate`.
    :param truth: true part position [m] and speed [m/s], named as `estimate`.
    :param conveyor: counters and truth of the conveyor.
    :param diagnostics: status name to samples in order of time.
    :param pictures: `scene`, `color`, `depth` to pictures in order of time.
    :param markers: episode markers: (stamp [ns], kind, episode).
    :param depth_range: depth [m] of the first and last colour of the depth pictures.
    :param notes: what is wrong with the recording, for people.
    """

    path: Path
    start: int
    end: int
    simulated_time: bool
    topics: dict[str, Topic]
    positions: Series
    velocities: Series
    efforts: Series
    issued: dict[str, Series]
    demonstrated: dict[str, Series]
    safety: SafetyRecord
    policy: PolicyRecord
    estimate: Series
    estimate_deviation: Series
    truth: Series
    conveyor: Series
    diagnostics: dict[str, tuple[DiagnosticSample, ...]]
    pictures: dict[str, tuple[Picture, ...]]
    markers: tuple[tuple[int, int, str], ...]
    depth_range: tuple[float, float]
    notes: tuple[str, ...] = ()

    @property
    def duration(self) -> float:
        """Return the length of the run [s]."""
        return (self.end - self.start) / NANOSECONDS

    def seconds(self, stamps: np.ndarray) -> np.ndarray:
        """
        Return times since the start of the run.

        :param stamps: `(N,)` [ns].
        :return: `(N,)` [s].
        """
        return (np.asarray(stamps, np.int64) - self.start) / NANOSECONDS


# The short names the project uses; a namespace in front of them is cut off.
KNOWN = (
    'camera/color/image_raw', 'camera/depth/image_raw', 'imu/data', 'joint_states', 'odom',
    'features', 'action_distribution', 'estimate', 'arm_velocity_controller/commands',
    'gripper_controller/commands', 'base_controller/cmd_vel', 'demonstration/arm_velocity',
    'demonstration/gripper', 'demonstration/base', 'safety_status', 'ground_truth/part',
    'conveyor_status', 'scene/image/compressed', 'episode', 'model_update', 'trainer_status',
    'diagnostics', 'clock',
)
TRUTH_NAMES = ('part_x', 'part_y', 'part_z', 'part_speed')
CONVEYOR_NAMES = ('seen', 'picked', 'missed', 'belt_speed', 'part_mass', 'holding')


def short_name(topic: str) -> str:
    """
    Return a topic's name without leading slash and namespace.

    :param topic: name as recorded, e.g. `/robot/joint_states`.
    :return: e.g. `joint_states`; names the project does not know lose the leading slash only.
    """
    for name in KNOWN:
        if topic == name or topic.endswith('/' + name):
            return name
    return topic.lstrip('/')


def _nanoseconds(stamp: Any) -> int:
    return int(stamp.sec) * NANOSECONDS + int(stamp.nanosec)


@dataclass
class _Collector:
    """Lists that grow while a recording is read."""

    depth_range: tuple[float, float]
    types: dict[str, tuple[str, str]] = field(default_factory=dict)
    stamps: dict[str, list[int]] = field(default_factory=dict)
    received: dict[str, list[int]] = field(default_factory=dict)
    joints: list[tuple] = field(default_factory=list)
    commands: dict[str, list[tuple]] = field(default_factory=dict)
    joint_names: tuple[str, ...] = ()
    safety: list[Any] = field(default_factory=list)
    policy: list[tuple] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    estimates: list[tuple] = field(default_factory=list)
    estimate_names: tuple[str, ...] = ()
    truth: list[tuple] = field(default_factory=list)
    conveyor: list[tuple] = field(default_factory=list)
    diagnostics: dict[str, list[DiagnosticSample]] = field(default_factory=dict)
    pictures: dict[str, list[Picture]] = field(default_factory=dict)
    markers: list[tuple[int, int, str]] = field(default_factory=list)

    def add(self, topic: str, message_type: str, received: int, message: Any) -> None:
        """Take one message in."""
        name = short_name(topic)
        self.types.setdefault(name, (topic, message_type))
        header = getattr(message, 'header', None)
        stamp = _nanoseconds(header.stamp) if header is not None else 0
        self.stamps.setdefault(name, []).append(stamp)
        self.received.setdefault(name, []).append(received)
        take = _TAKE.get(name)
        if take is not None:
            take(self, stamp or received, received, message)

    def _joints(self, stamp: int, received: int, message: Any) -> None:
        names = tuple(message.name)
        if not self.joint_names:
            self.joint_names = names
        if names != self.joint_names:
            return
        missing = np.full(len(names), np.nan)
        rows = [np.asarray(values, float) if len(values) == len(names) else missing
                for values in (message.position, message.velocity, message.effort)]
        self.joints.append((stamp, *rows))

    def _command(self, topic: str, stamp: int, message: Any) -> None:
        values = (message.data if hasattr(message, 'data')
                  else [message.twist.linear.x, message.twist.angular.z])
        rows = self.commands.setdefault(topic, [])
        if not rows or len(rows[0][1]) == len(values):
            rows.append((stamp, np.array(values, float)))

    def _safety(self, stamp: int, received: int, message: Any) -> None:
        self.safety.append((stamp, received, message))

    def _policy(self, stamp: int, received: int, message: Any) -> None:
        if not self.versions or self.versions[-1] != message.model_version:
            self.versions.append(message.model_version)
        self.policy.append((stamp, received, _nanoseconds(message.image_stamp),
                            np.asarray(message.weights, float), int(message.chosen_component)))

    def _estimate(self, stamp: int, received: int, message: Any) -> None:
        names = tuple(message.names)
        self.estimate_names = self.estimate_names or names
        if names == self.estimate_names and len(message.mean) == len(names):
            self.estimates.append((stamp, np.asarray(message.mean, float),
                                   np.asarray(message.standard_deviation, float)))

    def _truth(self, stamp: int, received: int, message: Any) -> None:
        position = message.pose.pose.position
        speed = message.twist.twist.linear.y
        self.truth.append((stamp, np.array([position.x, position.y, position.z, speed])))

    def _conveyor(self, stamp: int, received: int, message: Any) -> None:
        self.conveyor.append((stamp, np.array([float(getattr(message, name))
                                               for name in CONVEYOR_NAMES])))

    def _diagnostics(self, stamp: int, received: int, message: Any) -> None:
        for status in message.status:
            level = status.level[0] if isinstance(status.level, bytes) else int(status.level)
            self.diagnostics.setdefault(status.name, []).append(DiagnosticSample(
                stamp, level, status.message, {pair.key: pair.value for pair in status.values}))

    def _marker(self, stamp: int, received: int, message: Any) -> None:
        self.markers.append((stamp, int(message.kind), message.episode))

    def _picture(self, kind: str, stamp: int, make: Callable[[], bytes]) -> None:
        kept = self.pictures.setdefault(kind, [])
        # Half a period of a 30 Hz camera of tolerance, or jitter would thin the pictures twice.
        if kept and stamp - kept[-1].stamp < NANOSECONDS / PICTURE_RATE - 16_000_000:
            return
        try:
            kept.append(Picture(stamp, make()))
        except ValueError:
            # A broken image is the robot's trouble, and in its statistics; no reason to stop here.
            return

    def _color(self, stamp: int, received: int, message: Any) -> None:
        self._picture('color', stamp, lambda: encode_color(
            message.data, message.height, message.width, message.step, message.encoding))

    def _depth(self, stamp: int, received: int, message: Any) -> None:
        self._picture('depth', stamp, lambda: encode_depth(
            message.data, message.height, message.width, message.step, message.encoding,
            self.depth_range))

    def _scene(self, stamp: int, received: int, message: Any) -> None:
        self._picture('scene', stamp, lambda: bytes(message.data))


def _take_command(topic: str) -> Callable[[_Collector, int, int, Any], None]:
    return lambda collector, stamp, received, message: collector._command(topic, stamp, message)


# What is told to the robot, and what a teacher told it: topic, and names of the values where
# they are not those of the first joints.
COMMANDS: dict[str, tuple[str, ...]] = {
    'arm_velocity_controller/commands': (), 'gripper_controller/commands': ('suction',),
    'base_controller/cmd_vel': ('base_v', 'base_w'), 'demonstration/arm_velocity': (),
    'demonstration/gripper': ('suction',), 'demonstration/base': ('base_v', 'base_w'),
}
_TAKE: dict[str, Callable[[_Collector, int, int, Any], None]] = {
    **{topic: _take_command(topic) for topic in COMMANDS},
    'joint_states': _Collector._joints,
    'safety_status': _Collector._safety,
    'action_distribution': _Collector._policy,
    'estimate': _Collector._estimate,
    'ground_truth/part': _Collector._truth,
    'conveyor_status': _Collector._conveyor,
    'diagnostics': _Collector._diagnostics,
    'episode': _Collector._marker,
    'camera/color/image_raw': _Collector._color,
    'camera/depth/image_raw': _Collector._depth,
    'scene/image/compressed': _Collector._scene,
}


def _stack(rows: list[tuple], index: int, width: int) -> np.ndarray:
    if not rows:
        return np.zeros((0, width))
    return np.stack([row[index] for row in rows])


def _times(rows: list[tuple], index: int = 0) -> np.ndarray:
    return np.array([row[index] for row in rows], np.int64)


def _safety_record(rows: list[tuple]) -> SafetyRecord:
    names: tuple[str, ...] = next((tuple(row[2].action_names) for row in rows
                                   if len(row[2].action_names)), ())
    missing = np.full(len(names), np.nan)

    def values(which: str) -> np.ndarray:
        if not rows:
            return np.zeros((0, len(names)))
        return np.stack([np.asarray(getattr(row[2], which), float)
                         if len(getattr(row[2], which)) == len(names) else missing
                         for row in rows])

    stamps = _times(rows)
    return SafetyRecord(
        stamps=stamps,
        received=_times(rows, 1),
        states=np.array([int(row[2].state) for row in rows], int),
        proposed=Series(stamps, values('proposed'), names),
        issued=Series(stamps, values('issued'), names),
        proposal_stamps=np.array([_nanoseconds(row[2].proposal_stamp) for row in rows], np.int64),
        image_stamps=np.array([_nanoseconds(row[2].image_stamp) for row in rows], np.int64),
        constraints=tuple(tuple(row[2].active_constraints) for row in rows),
        amounts=tuple(tuple(float(amount) for amount in row[2].amounts) for row in rows),
        interventions=np.array([int(row[2].interventions) for row in rows], np.int64),
        missed_deadlines=np.array([int(row[2].missed_deadlines) for row in rows], np.int64),
        reasons=tuple(tuple(row[2].reasons) for row in rows),
    )


def _policy_record(rows: list[tuple], versions: list[str]) -> PolicyRecord:
    width = max((len(row[3]) for row in rows), default=0)
    weights = np.zeros((len(rows), width))
    for index, row in enumerate(rows):
        weights[index, :len(row[3])] = row[3]
    return PolicyRecord(_times(rows), _times(rows, 1), _times(rows, 2), weights,
                        np.array([row[4] for row in rows], int), tuple(versions))


def _commands(collector: _Collector, prefix: str, wanted: bool) -> dict[str, Series]:
    """Return the command topics whose names do, or do not, begin with a prefix."""
    found = {}
    for topic, rows in collector.commands.items():
        if topic.startswith(prefix) == wanted:
            width = len(rows[0][1])
            names = COMMANDS[topic] or collector.joint_names[:width]
            if len(names) != width:
                names = tuple(f'{topic}.{index}' for index in range(width))
            found[topic] = Series(_times(rows), _stack(rows, 1, width), names)
    return found


def _assemble(path: Path, collector: _Collector, notes: tuple[str, ...]) -> Run:
    topics = {
        name: Topic(topic, message_type, np.array(collector.stamps[name], np.int64),
                    np.array(collector.received[name], np.int64))
        for name, (topic, message_type) in sorted(collector.types.items())
    }
    # Diagnostics are stamped by each node's own clock, which may not be the simulated one.
    stamped = [topic for name, topic in topics.items()
               if topic.stamped and name not in ('diagnostics', 'clock')]
    # The clock of the stamps is the clock of the run; without any stamp, the recorder's clock.
    # Latched messages (markers, model updates) may be much older than the recording: left out.
    periodic = [topic for topic in stamped if len(topic.stamps) > 2] or stamped
    times = (np.concatenate([topic.stamps[topic.stamps > 0] for topic in periodic]) if periodic
             else np.concatenate([topic.received for topic in topics.values()]))
    apart = [int(np.median(np.abs(topic.received - topic.stamps))) for topic in periodic]
    width = len(collector.joint_names)
    joints = [Series(_times(collector.joints), _stack(collector.joints, index, width),
                     collector.joint_names) for index in (1, 2, 3)]
    names = collector.estimate_names
    estimates = [Series(_times(collector.estimates),
                        _stack(collector.estimates, index, len(names)), names)
                 for index in (1, 2)]
    return Run(
        path=path,
        start=int(times.min()),
        end=int(times.max()),
        simulated_time=int(times.min()) < EARLIEST
        or bool(apart) and float(np.median(apart)) > CLOCKS_APART,
        topics=topics,
        positions=joints[0], velocities=joints[1], efforts=joints[2],
        issued=_commands(collector, 'demonstration/', False),
        demonstrated=_commands(collector, 'demonstration/', True),
        safety=_safety_record(collector.safety),
        policy=_policy_record(collector.policy, collector.versions),
        estimate=estimates[0],
        estimate_deviation=estimates[1],
        truth=Series(_times(collector.truth), _stack(collector.truth, 1, 4), TRUTH_NAMES),
        conveyor=Series(_times(collector.conveyor),
                        _stack(collector.conveyor, 1, len(CONVEYOR_NAMES)), CONVEYOR_NAMES),
        diagnostics={name: tuple(samples) for name, samples in collector.diagnostics.items()},
        pictures={kind: tuple(pictures) for kind, pictures in collector.pictures.items()},
        markers=tuple(collector.markers),
        depth_range=collector.depth_range,
        notes=notes,
    )


def read_run(path: str | Path, depth_range: tuple[float, float] = (0.0, 1.5)) -> Run:
    """
    Read a recording.

    :param path: rosbag2 folder or a single `.mcap` or `.db3` file.
    :param depth_range: depth [m] shown in the first and in the last colour of the depth pictures.
    :return: the run.
    :raises RecordError: if there is no recording, it cannot be read, or it holds no message.
        What is broken in a recording that can be read is in the run's notes.
    """
    path = Path(path)
    collector, rejected = _Collector(depth_range), Counter[str]()
    try:
        bag = Bag(path)
        for record in bag.messages(rejected=lambda topic, reason: rejected.update([topic])):
            collector.add(record.topic, record.type, record.time, record.message)
    except (BagError, OSError) as error:
        raise RecordError(str(error)) from error
    notes = [f'{file.name} was cut off; {size} bytes of it are whole'
             for file, size in bag.cut_off.items()]
    notes += [f'{topic}: {count} messages could not be decoded'
              for topic, count in rejected.items()]
    if not collector.types:
        raise RecordError(f'{path}: expected messages that can be decoded; {"; ".join(notes)}')
    return _assemble(path, collector, tuple(notes))
