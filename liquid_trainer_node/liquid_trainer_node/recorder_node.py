"""Records what the interface file lists, with episode markers, into a rosbag2 bag (mcap)."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock

from liquid_policy.interface import Interface, load_interface
from liquid_policy_node.lifecycle import ManagedNode, NodeSettings, Refusal, run
from liquid_policy_node.parameters import SettingsError, parameter
from liquid_policy_node.resources import find_interface, message_class
from liquid_trainer.bag_windows import EPISODE_TOPIC, EPISODE_TYPE
from liquid_trainer.recording import BagWriter, RecordingError
from liquid_trainer_node.simulated_time import SimulatedTime

# Half a second of the fastest streams; a stall of the disk shorter than that loses nothing.
DEPTH = 100
LARGE_DEPTH = 15
LARGE = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
# Messages that may wait for simulated time to begin, and how long [s] one that is sent after
# the clock's newest tick waits for the next (the simulation may be halted).
EARLY = 1000
PATIENCE = 0.3
CLOCK = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)


@dataclass(frozen=True)
class Held:
    """A message whose simulated time of sending is not known yet."""

    topic: str
    data: bytes
    sent: int        # system time [ns]
    received: int    # steady time [ns]


@dataclass(frozen=True)
class RecorderSettings(NodeSettings):
    """Parameters of the recorder node."""

    folder: str = parameter(
        'recordings/bag', 'Folder of the bag; if it exists, a number is put behind the name.')
    extra_topics: tuple[str, ...] = parameter(
        ('action_distribution', 'safety_status', 'estimate', 'conveyor_status', 'model_update',
         'scene/image/compressed', 'odom', '/diagnostics'),
        "Topics to record besides the interface's, as far as they are published.")
    max_size: int = parameter(
        0, 'Size at which the next file of the bag is begun; 0: never.', 'bytes', low=0,
        high=1 << 50)
    compression: str = parameter(
        '', 'Compression of the bag; costs processor time while recording.',
        one_of=('', 'lz4', 'zstd'))
    interval: float = parameter(
        0.5, 'Longest time a message stays in memory only.', 's', low=0.05, high=1.0)
    discovery_period: float = parameter(
        0.1, 'Time between two looks for new publishers.', 's', low=0.02, high=5.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.folder:
            raise SettingsError('folder: expected a path, got an empty text')


class RecorderNode(ManagedNode):
    """
    Write messages as they came over the wire, without decoding them.

    A topic is subscribed when its first publisher appears, with the reliability and durability
    its publishers offer: nothing they send reliably may be missing, and what a camera sends best
    effort must still match. Log time is the time of sending, in simulated time too, so a
    recorder that is late does not shift actions that have no header.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__('recorder', RecorderSettings, **kwargs)
        self._interface: Interface | None = None
        self._bag: BagWriter | None = None
        self._timer: Any = None
        self._subscriptions_by_topic: dict[str, tuple[Any, QoSProfile]] = {}
        self._wanted: dict[str, str | None] = {}
        self._lost: Counter[str] = Counter()
        self._simulated = SimulatedTime()
        self._clock_subscription: Any = None
        self._held: deque[Held] = deque()
        self._sequence_numbers: dict[str, int] = {}
        self._publisher_counts: dict[str, int] = {}

    def configure(self) -> None:
        """Read the interface file and see that the folder can be made."""
        path = find_interface(self.settings.robot)
        self._interface = load_interface(path)
        self.robot = self._interface.robot
        parent = Path(self.settings.folder).expanduser().absolute().parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refusal(f'folder: {parent} cannot be made ({error.strerror}); choose another '
                          'with the parameter folder') from None
        self._wanted = {self.resolve_topic_name(topic): kind for topic, kind
                        in {**self._interface.topics(), EPISODE_TOPIC: EPISODE_TYPE}.items()}
        for topic in self.settings.extra_topics:
            if topic:
                self._wanted.setdefault(self.resolve_topic_name(topic), None)

    def activate(self) -> None:
        """Begin a new bag."""
        assert self._interface is not None
        path = free_path(Path(self.settings.folder).expanduser().absolute())
        known = {topic: kind for topic, kind in self._wanted.items() if kind is not None}
        self._lost.clear()
        self._bag = BagWriter(path, known, self.settings.interval, self.settings.max_size,
                              self.settings.compression)
        self._timer = self.create_timer(self.settings.discovery_period, self._look,
                                        clock=self._steady)
        if self.get_clock().ros_time_is_active:
            self._simulated = SimulatedTime()
            self._clock_subscription = self.create_subscription(
                Clock, '/clock', self._tick, CLOCK)
        self.diagnostics.info('bag', path)
        self.get_logger().info(f'recording into {path}')

    def deactivate(self) -> None:
        """Complete the bag."""
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
        for subscription, _ in self._subscriptions_by_topic.values():
            self.destroy_subscription(subscription)
        if self._clock_subscription is not None:
            self.destroy_subscription(self._clock_subscription)
            self._clock_subscription = None
        self._subscriptions_by_topic.clear()
        self._sequence_numbers.clear()
        self._release(patience=0.0)
        self._lost.update(held.topic for held in self._held)
        self._held.clear()
        bag, self._bag = self._bag, None
        if bag is None:
            return
        try:
            bag.close()
        except RecordingError as error:
            self.report('recording', str(error))
        self.get_logger().info(
            f'recorded {bag.message_count} messages, {bag.size / 1e6:.1f} MB, lost '
            f'{sum(self._lost.values())} in {bag.path}: {_listed(bag.counts)}'
            + (f'; lost: {_listed(self._lost)}' if self._lost else ''))

    def cleanup(self) -> None:
        """Forget the interface."""
        self._interface = None
        self._wanted.clear()

    def _look(self) -> None:
        """Subscribe to what has publishers, again when one appears that would not match."""
        waiting = []
        for topic, kind in self._wanted.items():
            publishers = self.get_publishers_info_by_topic(topic)
            self._publisher_counts[topic] = len(publishers)
            types = {publisher.topic_type for publisher in publishers}
            if kind is not None and types - {kind}:
                self.diagnostics.fault(f'type_of_{topic}', f'{topic}: expected {kind}, came '
                                       f'{sorted(types - {kind})}', warning=True)
            offers = [publisher.qos_profile for publisher in publishers
                      if publisher.topic_type == (kind or publisher.topic_type)]
            if not offers:
                waiting.append(topic)
                continue
            found = kind or publishers[0].topic_type
            profile = matching(offers, LARGE_DEPTH if found in LARGE else DEPTH)
            known = self._subscriptions_by_topic.get(topic)
            if known is not None:
                if not stricter(known[1], profile):
                    continue
                self.destroy_subscription(known[0])
                del self._subscriptions_by_topic[topic]
            self.guard('subscription', self._subscribe, topic, found, profile)
        self.diagnostics.info('waiting_for', ', '.join(waiting))
        self._release()
        if self._bag is not None:
            self.diagnostics.info('written', self._bag.message_count)
            self.diagnostics.info('written_mb', f'{self._bag.size / 1e6:.1f}')
            self.diagnostics.info('lost', sum(self._lost.values()))
            self.diagnostics.info('lost_by_topic', _listed(self._lost))
            if self._bag.error is not None:
                self._fail(self._bag.error)

    def _subscribe(self, topic: str, kind: str, profile: QoSProfile) -> None:
        assert self._bag is not None
        self._bag.add_topic(topic, kind)

        def receive(data: bytes, info: dict[str, Any]) -> None:
            self._write(topic, data, info)

        self._subscriptions_by_topic[topic] = (self.create_subscription(
            message_class(kind), topic, receive, profile, raw=True), profile)

    def _write(self, topic: str, data: bytes, info: dict[str, Any]) -> None:
        if self._bag is None:
            return
        sent = info.get('source_timestamp', 0)
        if sent > 0 and self.get_clock().ros_time_is_active:
            self._held.append(Held(topic, data, sent, self._steady.now().nanoseconds))
            self._release()
        else:
            self._put(topic, data, sent if sent > 0 else self.get_clock().now().nanoseconds)
        self._count_lost(topic, info.get('publication_sequence_number'))

    def _put(self, topic: str, data: bytes, time: int) -> None:
        assert self._bag is not None
        try:
            self._bag.write(topic, time, data)
        except RecordingError as error:
            self._lost[topic] += 1
            self._fail(error)

    def _tick(self, clock: Clock, info: dict[str, Any]) -> None:
        self._simulated.add(info['source_timestamp'],
                            clock.clock.sec * 1_000_000_000 + clock.clock.nanosec)
        self._release()

    def _release(self, patience: float = PATIENCE) -> None:
        """Write the messages whose simulated time of sending is known."""
        while self._held and self._bag is not None:
            first = self._held[0]
            time = self._simulated.at(first.sent)
            if time is None:
                waited = (self._steady.now().nanoseconds - first.received) * 1e-9
                if self._simulated.newest is None or waited < patience:
                    break
                time = self._simulated.newest
            self._held.popleft()
            self._put(first.topic, first.data, time)
        while self._simulated.newest is None and len(self._held) > EARLY:
            self._lost[self._held.popleft().topic] += 1

    def _count_lost(self, topic: str, number: int | None) -> None:
        """Find what did not come, by the publisher's sequence numbers."""
        if number is None or self._publisher_counts.get(topic) != 1:
            self._sequence_numbers.pop(topic, None)  # several publishers count each for itself
            return
        last = self._sequence_numbers.get(topic)
        self._sequence_numbers[topic] = number
        if last is not None and number > last + 1:
            self._lost[topic] += number - last - 1
            self.report(f'lost_{topic}', f'{topic}: {self._lost[topic]} messages did not arrive; '
                        'see that all nodes use config/fastdds.xml, and the load of the machine')

    def _fail(self, error: RecordingError) -> None:
        self.diagnostics.fault('recording', str(error))
        self.report('recording', str(error), period=10.0)


def matching(offers: list[QoSProfile], depth: int) -> QoSProfile:
    """
    Give the strictest profile that matches every publisher.

    :param offers: what publishers of one topic offer.
    :param depth: messages that may wait.
    """
    reliable = all(offer.reliability == ReliabilityPolicy.RELIABLE for offer in offers)
    latched = all(offer.durability == DurabilityPolicy.TRANSIENT_LOCAL for offer in offers)
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE)


def stricter(first: QoSProfile, second: QoSProfile) -> bool:
    """Say whether `first` asks for something that `second` does not."""
    return (
        first.reliability == ReliabilityPolicy.RELIABLE != second.reliability
        or first.durability == DurabilityPolicy.TRANSIENT_LOCAL != second.durability)


def free_path(path: Path) -> Path:
    """Give the path, or the first of path_1, path_2, ... that does not exist."""
    candidate, number = path, 0
    while candidate.exists():
        number += 1
        candidate = path.with_name(f'{path.name}_{number}')
    return candidate


def _listed(counts: Mapping[str, int]) -> str:
    return ', '.join(f'{topic} {count}' for topic, count in counts.items() if count)


def main(argv: list[str] | None = None) -> int:
    """Run the recorder node."""
    return run(RecorderNode, argv)


if __name__ == '__main__':
    raise SystemExit(main())
