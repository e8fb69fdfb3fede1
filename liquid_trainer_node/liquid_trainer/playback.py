"""A bag played through perception, policy and safety filter, and the actions it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from liquid_policy.alignment import align_next
from liquid_policy.checkpoint import Checkpoint
from liquid_policy.conversion import NANOSECONDS, MessageError, stamp_of, vector_from_message
from liquid_policy.effort_load import load_safety
from liquid_policy.interface import ActionSpec, ImageSpec, SourceSpec
from liquid_policy.safety_cycle import SafetyCycle
from liquid_trainer.bag_file import Bag, BagError, Record
from liquid_trainer.bag_routes import Spec, find_namespace, find_routes
from liquid_trainer.offline_nodes import (
    JOINT_STATE,
    Judged,
    NodeParameters,
    OfflinePerception,
    OfflinePolicy,
    OfflineSafety,
    Proposed,
)


@dataclass(frozen=True)
class Delivery:
    """
    One recorded message on its way to the nodes.

    :param now: time of receipt on the robot's clock, never falling [ns].
    :param record: as recorded.
    :param specs: what of the interface it feeds; empty for what only the safety node reads.
    """

    now: int
    record: Record
    specs: list[Spec]


class Playback:
    """
    Plays one bag; iterate over it once for what the nodes answer, in order.

    :param path: of the bag.
    :param checkpoint: the policy; its interface says what to read.
    :param description: the robot's URDF or xacro, for the safety filter; None: no filter.
    :param parameters: of the nodes.
    :param namespace: of the recorded robot; found by itself unless the bag holds several.
    :param joint_limits: `joint_limits.yaml` of the safety node, if there is one.
    :raises BagError: if the bag lacks what the policy reads.
    """

    def __init__(self, path: str | Path, checkpoint: Checkpoint,
                 description: str | Path | None = None,
                 parameters: NodeParameters | None = None, namespace: str | None = None,
                 joint_limits: str | Path | None = None) -> None:
        self.interface = interface = checkpoint.interface
        self.parameters = parameters or NodeParameters()
        self.bag = Bag(path)
        self.rejected: Counter[str] = Counter()     # messages that nobody could use, by reason
        self._namespace = find_namespace(self.bag, interface, namespace)
        try:
            self._routes = find_routes(self.bag, interface, self._namespace)
        except BagError:
            # A run without recorded actions can still be played, only not compared.
            self._routes = find_routes(self.bag, interface, self._namespace, actions='none')
        self._offset = self._clock_offset()
        self._start = self._first_time()
        self._perception = None
        if interface.features is not None:
            self._perception = OfflinePerception(checkpoint, self.parameters.image_tolerance)
        self.policy = OfflinePolicy(checkpoint, self.parameters)
        self.safety: OfflineSafety | None = None
        if description is not None:
            self.safety = OfflineSafety(SafetyCycle(
                load_safety(interface, description, self.parameters.filter, joint_limits),
                interface, self.parameters.future_tolerance), self.parameters, self._start)
        self._actions: dict[str, tuple[list[int], list[np.ndarray]]] = {}

    @property
    def start(self) -> int:
        """When the first message comes, and the nodes are activated [ns]."""
        return self._start

    def deliveries(self) -> Iterator[Delivery]:
        """Give the messages that the nodes read, in the order of their receipt."""
        others = self._safety_topics()
        now = self._start
        for record in self.bag.messages({*self._routes, *others},
                                        rejected=lambda _, why: self._reject(why)):
            now = max(now, record.time - self._offset)
            yield Delivery(now, record, self._routes.get(record.topic, []))

    def __iter__(self) -> Iterator[Proposed | Judged]:
        for delivery in self.deliveries():
            yield from self.deliver(delivery)

    def deliver(self, delivery: Delivery) -> list[Proposed | Judged]:
        """
        Give one message to the nodes and return what they answer.

        A message reaches the safety node before the proposal that it causes.
        """
        now, message = delivery.now, delivery.record.message
        found: list[Proposed | Judged] = [*self.safety.advance(now)] if self.safety else []
        other = self._safety_topics().get(delivery.record.topic)
        sources = [spec for spec in delivery.specs if isinstance(spec, SourceSpec)
                   and spec.name in self.interface.observations]
        if self.safety is not None:
            if other is not None:
                self._guard(self.safety.other, other, message, now)
            if delivery.record.type == JOINT_STATE and sources:
                self._guard(self.safety.joints, message, now)
        for spec in delivery.specs:
            if isinstance(spec, ImageSpec):
                seen = self._guard(self._perception.look, spec, message, now) \
                    if self._perception else None
                if seen is not None:
                    stamp, features = seen
                    found += self._propose(self.policy.features(stamp, features, now), now)
            elif isinstance(spec, ActionSpec):
                self._guard(self._keep_action, spec, message, now)
        if sources:
            found += self._propose(self._guard(self.policy.observe, sources, message, now), now)
        return found

    def _propose(self, proposals: list[Proposed] | None, now: int) -> list[Proposed | Judged]:
        """Hand proposals to the safety node; return both."""
        found: list[Proposed | Judged] = []
        for proposed in proposals or []:
            found.append(proposed)
            if self.safety is not None:
                timed = proposed.timed(self.policy.model.version, self.policy.model.dt)
                found += self._guard(self.safety.propose, timed, now) or []
        return found

    def recorded_actions(self, ticks: np.ndarray) -> np.ndarray:
        """
        Return the recorded action that followed each tick; after playing.

        :param ticks: [ns], `(T,)`.
        :return: float32 `(T, actions)`, NaN where none came in time.
        """
        parts = []
        for name, spec in self.interface.actions.items():
            stamps, values = self._actions.get(name, ([], []))
            order = np.argsort(np.array(stamps, dtype=np.int64), kind='stable')
            parts.append(align_next(
                ticks, np.array(stamps, dtype=np.int64)[order],
                np.array(values, dtype=np.float64).reshape(-1, spec.size)[order], spec.max_age))
        return np.concatenate(parts, axis=1)

    def _keep_action(self, spec: ActionSpec, message: Any, now: int) -> None:
        stamp = stamp_of(message)
        stamps, values = self._actions.setdefault(spec.name, ([], []))
        values.append(vector_from_message(spec, message))
        stamps.append(now if stamp is None else stamp)

    def _guard(self, work: Any, *arguments: Any) -> Any:
        """Do something with a message; one that cannot be used is counted, as in a node."""
        try:
            return work(*arguments)
        except (MessageError, ValueError) as error:
            self._reject(str(error))
            return None

    def _reject(self, reason: str) -> None:
        self.rejected[reason] += 1

    def _safety_topics(self) -> dict[str, str]:
        """What the safety node reads besides joint states, by absolute topic name."""
        if self.safety is None:
            return {}
        return {topic: name for name in self.safety.topics()
                if (topic := f'{self._namespace}/{name}') in self.bag.topics}

    def _clock_offset(self) -> int:
        """
        How far the time of receipt is ahead of the robot's clock [ns].

        0 unless it is more than transport explains: a bag of simulated time, say.
        """
        clock = self.interface.clock_source
        topic = clock.topic if clock.topic.startswith('/') else f'{self._namespace}/{clock.topic}'
        for record in self.bag.messages({topic}, rejected=lambda *_: None):
            stamp = stamp_of(record.message)
            offset = 0 if stamp is None else record.time - stamp
            return offset if abs(offset) > NANOSECONDS else 0
        return 0

    def _first_time(self) -> int:
        for record in self.bag.messages(self._routes, rejected=lambda *_: None):
            return record.time - self._offset
        return 0
