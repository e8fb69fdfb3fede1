"""
Parts of a bag that can be read independently of each other, by several processes.

A part owns the ticks whose clock message lies in it. It is read from a little before, so that all
is known that a tick may need, to a little after, for what comes late. What comes out depends on
the bag and the part alone: however many processes share the parts, the result is the same.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from liquid_policy.conversion import NANOSECONDS
from liquid_policy.interface import Interface

from .bag_file import Bag, Place, Span

EPISODE_TOPIC = 'episode'
EPISODE_TYPE = 'liquid_policy_msgs/msg/EpisodeMarker'
START, END_SUCCESS, END_FAILURE, DISCARD = range(4)
OUTCOMES = {END_SUCCESS: 'success', END_FAILURE: 'failure'}
# Images of a part in memory.
MOST_BYTES = 512 << 20
# Messages may be this much later or earlier in the bag than by their stamps [s].
_ASTRAY = 1.0


@dataclass
class Demonstration:
    """
    What lies between two markers, or a whole bag without any.

    :param number: within the bag.
    :param name: from its marker.
    :param outcome: see `Episode`.
    :param task: note of its marker.
    :param time: when it begins [ns of receipt].
    :param begin: where its first marker lies.
    :param end: where its last one does; None: it goes on to the end of the bag.
    :param discarded: not to be learned from.
    """

    number: int
    name: str
    outcome: str
    task: str = ''
    time: int = 0
    begin: Place = Place()
    end: Place | None = None
    discarded: bool = False


@dataclass(frozen=True)
class Window:
    """
    A part of a demonstration.

    :param demonstration: that it is of.
    :param span: what it owns, and what is read for that.
    """

    demonstration: Demonstration
    span: Span


@dataclass
class Tally:
    """
    What was found while reading, added up part by part in their order.

    :param ticks: episodes' ticks.
    :param unstamped: messages whose header stamp is zero.
    :param dropped: ticks left out, by reason.
    :param rejected: messages left out, by topic.
    :param early: of these, those before the topic's first usable one, by topic.
    :param used: usable messages, by topic.
    :param errors: the first reason, by topic.
    :param damaged: places of damaged chunks, by file.
    """

    ticks: int = 0
    unstamped: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    early: Counter[str] = field(default_factory=Counter)
    used: Counter[str] = field(default_factory=Counter)
    errors: dict[str, str] = field(default_factory=dict)
    damaged: dict[str, list[int]] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Return what JSON can keep, for `read`."""
        return dict(vars(self))

    @classmethod
    def read(cls, plain: dict[str, Any]) -> Tally:
        """Return what `plain` has given."""
        tally = cls(**plain)
        for name in ('dropped', 'rejected', 'early', 'used'):
            setattr(tally, name, Counter(plain[name]))
        return tally

    def reject(self, topic: str, reason: str) -> None:
        """Count a message that is left out."""
        self.rejected[topic] += 1
        self.early[topic] += not self.used[topic]
        self.errors.setdefault(topic, reason)

    def add(self, other: Tally) -> None:
        """Add what the next part has found."""
        self.ticks += other.ticks
        self.unstamped += other.unstamped
        self.dropped.update(other.dropped)
        self.rejected.update(other.rejected)
        self.early.update({topic: count for topic, count in other.early.items()
                           if not self.used[topic]})
        self.used.update(other.used)
        self.errors = {**other.errors, **self.errors}
        for file, places in other.damaged.items():
            self.damaged[file] = sorted({*self.damaged.get(file, ()), *places})


def find_demonstrations(bag: Bag, marker: str) -> list[Demonstration]:
    """
    Give the demonstrations of a bag, the discarded ones too.

    One that is discarded after its end, before another begins, is discarded as well.

    :param marker: absolute name of the topic with `EpisodeMarker` messages.
    """
    if bag.topics.get(marker) != EPISODE_TYPE:
        time = min((time for time, _ in bag.places()), default=0)
        return [Demonstration(0, bag.path.name, 'unmarked', time=time)]
    found: list[Demonstration] = []
    is_open = False
    for record in bag.sparse(marker):
        kind, name = record.message.kind, record.message.episode
        last = found[-1] if found else None
        if is_open and last is not None:
            last.end = record.place
            last.outcome = OUTCOMES.get(kind, 'unfinished')
        if kind == START:
            found.append(Demonstration(
                len(found), name, 'unfinished', getattr(record.message, 'note', ''),
                record.time, record.place))
        elif kind == DISCARD and last is not None and (is_open or name in ('', last.name)):
            last.discarded = True
        is_open = kind == START
    return found


def cut(bag: Bag, demonstrations: list[Demonstration], interface: Interface, longest: float,
        settle: float, images: bool) -> Iterator[Window]:
    """
    Cut demonstrations into parts where the bag can be entered.

    :param longest: length of a part [s]; less for cameras whose images would fill the memory.
    :param settle: how long a tick waits for messages that came late [s].
    :param images: whether images are read.
    """
    reaches = [spec.max_age + spec.latency for spec in (
        *interface.observations.values(), *interface.targets.values())]
    if interface.features is not None:
        reaches.append(interface.features.max_age + interface.features.latency)
    before = max(reaches) + _ASTRAY
    after = settle + max((spec.max_age for spec in interface.actions.values()), default=0.0) \
        + _ASTRAY
    seen = interface.features.images if interface.features is not None and images else ()
    rate = sum(spec.rate * spec.height * spec.width * (4 if spec.is_depth else 3)
               for spec in (interface.images[name] for name in seen))
    length = min(longest, max(MOST_BYTES / rate, 2.0)) if rate else longest
    times_and_places = bag.places()
    places = [place for _, place in times_and_places]
    for one in demonstrations:
        if one.discarded:
            continue
        low = bisect.bisect_right(places, one.begin)
        high = len(places) if one.end is None else bisect.bisect_left(places, one.end)
        edges, since = [], one.time
        for index in range(low, high):
            time = times_and_places[index][0]
            # Here, if the part would be too long with what lies from here to the next place; the
            # last is taken for as long as the one before it.
            following = times_and_places[index + 1][0] if index + 1 < high \
                else 2 * time - times_and_places[max(index - 1, 0)][0]
            if following > since + length * NANOSECONDS and time > since:
                edges.append(index)
                since = time
        begin, lead = one.begin, one.begin
        for index in edges:
            time, end = times_and_places[index]
            yield Window(one, Span(lead, begin, end, time + round(after * NANOSECONDS), one.end))
            back = index
            while back > low and times_and_places[back][0] > time - before * NANOSECONDS:
                back -= 1
            begin = end
            lead = max(one.begin, places[back] if back > low else one.begin)
        yield Window(one, Span(lead, begin, last=one.end))
