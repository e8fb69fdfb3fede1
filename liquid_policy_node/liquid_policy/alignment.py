"""
Samples of many topics brought onto one control clock, by header stamp.

One rule, the same on the robot and in the bag reader. For a tick `t` and a source with latency
`l` (how long after its stamp a message is sure to have arrived), only samples with
stamp <= t - l + j count, j being a twentieth of the control period and at most l: stamps jitter
by microseconds, and what is due at a tick must not wait for the next by chance.

* `hold`: the newest of them.
* `interpolate`: linear at t - l - 1/rate between the two neighbours, so that both are sure to
  have arrived; the newest sample when there is no later neighbour.

What is older than `max_age` at the tick is stale. Because no sample counts before it is sure to
have arrived, the order of arrival does not matter: a robot that answers a tick at once and a bag
reader that has seen everything find the same numbers, bit for bit. A sample that arrives later
than its latency allows is reported (`Outcome.LATE`).
"""

import enum
from bisect import bisect_right
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .conversion import NANOSECONDS
from .interface import FeatureSpec, Interface, SourceSpec

FEATURES = 'features'
# By how much the stamps of a schedule jitter, as a share of the control period.
_JITTER = 0.05


class Outcome(enum.Enum):
    """What became of a sample."""

    ACCEPTED = 'accepted'
    LATE = 'late'  # kept, but a tick already answered should have used it
    JUMPED = 'jumped'  # kept; the clock went ahead by more than reset_gap
    RESET = 'reset'  # kept as the first of a new time; all older samples are forgotten
    REPEATED = 'repeated'  # ignored: same stamp as the sample before
    BACKWARDS = 'backwards'  # ignored: older than the sample before
    FUTURE = 'future'  # ignored: ahead of the clock

    @property
    def kept(self) -> bool:
        """Whether the sample is used."""
        return self in (Outcome.ACCEPTED, Outcome.LATE, Outcome.JUMPED, Outcome.RESET)


@dataclass(frozen=True)
class Verdict:
    """What became of a sample, and why in words (empty when accepted)."""

    outcome: Outcome
    reason: str = ''

    @property
    def kept(self) -> bool:
        """Whether the sample is used."""
        return self.outcome.kept


@dataclass(frozen=True)
class Aligned:
    """
    What is known at one tick.

    :param tick: stamp of the tick [ns].
    :param vector: observations in the interface's order, float32 `(vector_size,)`; NaN where a
        source has no sample at all.
    :param features: what was pushed as `features` (feature vector, or image index), or None.
    :param image_stamp: stamp of the image behind the features [ns], or None.
    :param targets: float32 `(target_size,)`; NaN where absent or stale.
    :param ages: age [s] of each observation, of `features` if the interface has any, and of each
        target; infinite without sample.
    :param stale: observations and `features` that are missing or older than their max_age. Empty
        means that a policy may act.
    :param newest: newest stamp used [ns].
    """

    tick: int
    vector: np.ndarray
    features: Any
    image_stamp: int | None
    targets: np.ndarray
    ages: dict[str, float]
    stale: tuple[str, ...]
    newest: int


class Aligner:
    """
    Collect samples, name the ticks of the control clock, and say what is known at each.

    Memory is bounded: samples older than any tick still to be answered can need are dropped, and
    so are ticks nobody asks for (counted in `dropped_ticks`).

    :param interface: what to align.
    :param settle: how far the clock must be past a tick before it is ready [s]. 0 on the robot,
        where a tick is answered at once; the bag reader waits for what comes late.
    :param reset_gap: when the clock goes back by more than this, time has restarted [s]. One
        other source cannot restart time: its stamps are ignored until the clock follows.
    :param future: a stamp further ahead of the clock than this is ignored [s].
    """

    def __init__(self, interface: Interface, settle: float = 0.0, reset_gap: float = 1.0,
                 future: float = 0.5) -> None:
        for name, value, least in (('settle', settle, 0), ('reset_gap', reset_gap, 0.05),
                                   ('future', future, 0.01)):
            if not value >= least:
                raise ValueError(f'expected {name} of at least {least} s, came {value}')
        self.interface = interface
        self.counts: Counter[Outcome] = Counter()
        self.dropped_ticks = 0
        self._settle = _ns(settle)
        self._reset_gap = _ns(reset_gap)
        self._future = _ns(future)
        self._period = _ns(1 / interface.rate)
        specs: dict[str, SourceSpec | FeatureSpec] = {**interface.observations,
                                                      **interface.targets}
        if interface.features is not None:
            specs[FEATURES] = interface.features
        jitter = _ns(_JITTER / interface.rate)
        self._sources = {name: _Source(name, spec, jitter) for name, spec in specs.items()}
        self._clock = self._sources[interface.clock]
        reach = max(source.reach for source in self._sources.values())
        most = 2 * round((reach + self._settle + self._future) / self._period) + 100
        self._ticks: deque[int] = deque(maxlen=most)
        self._now: int | None = None
        self._due: int | None = None
        self._answered: int | None = None
        self._ended = False

    def push(self, name: str, stamp: int, value: Any, now: int | None = None) -> Verdict:
        """
        Take one sample.

        :param name: observation, target, or `features`.
        :param stamp: header stamp, or time of receipt for types without header [ns].
        :param value: `(size,)` numbers of an observation or target; for `features` anything that
            stands for the image.
        :param now: the node's clock, if there is one to judge stamps from the future by [ns].
        :return: what became of it. Ignored samples change nothing; a `RESET` has forgotten
            everything before.
        :raises KeyError: for a name the interface does not have.
        :raises ValueError: for a value of another shape.
        """
        source = self._sources[name]
        if source.size is not None:
            value = np.asarray(value, dtype=np.float64)
            if value.shape != (source.size,):
                raise ValueError(f'{name}: expected shape ({source.size},), came {value.shape}')
        verdict = self._judge(source, stamp, now)
        self.counts[verdict.outcome] += 1
        if not verdict.kept:
            return verdict
        if verdict.outcome is Outcome.RESET:
            self.clear()
        source.append(stamp, value)
        if source is self._clock:
            self._advance(stamp)
        return verdict

    def ticks_ready(self) -> list[int]:
        """
        Give the ticks that can be answered now, oldest first, each once [ns].

        Call it after all sources of one message have been pushed.
        """
        ready = []
        while self._ticks and (self._ended or self._now is None
                               or self._ticks[0] + self._settle <= self._now):
            ready.append(self._ticks.popleft())
        return ready

    def finish(self) -> list[int]:
        """Give the ticks still waiting to settle, when no more samples will come."""
        self._ended = True
        ready = self.ticks_ready()
        self._ended = False
        return ready

    def at(self, tick: int) -> Aligned:
        """
        Say what is known at a tick.

        :param tick: a stamp from `ticks_ready`, not older than one asked for before [ns].
        """
        self._answered = tick if self._answered is None else max(tick, self._answered)
        return self._known(tick)

    def ahead(self, tick: int) -> Aligned:
        """
        Say what is known by now of a tick to come; it can still be answered.

        The clock's own sample of that tick has not come yet. It is carried on from the last two,
        for a policy that is shown joints which stand still while time goes by takes them for
        stopped.

        :param tick: any time, not before the last tick [ns].
        """
        return self._known(tick, self._clock)

    def _known(self, tick: int, carried: '_Source | None' = None) -> Aligned:
        ages: dict[str, float] = {}
        stale: list[str] = []
        newest = 0
        parts: dict[str, np.ndarray] = {}
        features, image_stamp = None, None
        for name, source in self._sources.items():
            found = source.at(tick) if source is not carried else source.carried(tick)
            if found is None:
                ages[name] = float('inf')
            else:
                value, oldest, stamp = found
                ages[name] = (tick - oldest) / NANOSECONDS
            fresh = found is not None and tick - oldest <= source.max_age
            if name in self.interface.targets:
                parts[name] = value if fresh else source.nothing
                continue
            if not fresh:
                stale.append(name)
            if name == FEATURES:
                features, image_stamp = (value, stamp) if found is not None else (None, None)
            else:
                parts[name] = value if found is not None else source.nothing
            newest = max(newest, stamp if found is not None else 0)
        return Aligned(
            tick, _joined(parts, self.interface.observations), features, image_stamp,
            _joined(parts, self.interface.targets), ages, tuple(stale), newest)

    def age(self, name: str, now: int) -> float:
        """
        Say how old the newest sample of a source is.

        :param name: observation, target, or `features`.
        :param now: time to compare with [ns].
        :return: seconds, infinite when there is none.
        """
        newest = self._sources[name].newest
        return float('inf') if newest is None else (now - newest) / NANOSECONDS

    def clear(self) -> None:
        """Forget all samples and ticks."""
        for source in self._sources.values():
            source.clear()
        self._ticks.clear()
        self._now = self._due = self._answered = None

    def _judge(self, source: '_Source', stamp: int, now: int | None) -> Verdict:
        newest = source.newest
        limit = self._future
        if now is not None and stamp > now + limit:
            return Verdict(Outcome.FUTURE, _ahead(source.name, stamp - now, "the node's clock"))
        if newest is not None and stamp <= newest:
            back = newest - stamp
            if back == 0:
                return Verdict(Outcome.REPEATED, f'{source.name}: stamp repeated, ignored')
            if back <= self._reset_gap:
                return Verdict(Outcome.BACKWARDS, f'{source.name}: expected a stamp after the one '
                               f'before, came one {back / 1e9:.3f} s earlier, ignored')
            if source is not self._clock and self._now is not None:
                return Verdict(Outcome.BACKWARDS, f'{source.name}: stamps went back by '
                               f'{back / 1e9:.3f} s while {self._clock.name} did not, ignored')
            return Verdict(Outcome.RESET, f'{source.name}: stamps went back by {back / 1e9:.3f} s;'
                           ' taken as a restart of time, everything before is forgotten')
        if source is self._clock:
            if newest is not None and stamp - newest > self._reset_gap:
                return Verdict(Outcome.JUMPED, f'{source.name}: the clock went ahead by '
                               f'{(stamp - newest) / 1e9:.3f} s at once')
            return _ACCEPTED
        if self._now is not None and stamp > self._now + limit:
            return Verdict(Outcome.FUTURE, _ahead(source.name, stamp - self._now,
                                                  self._clock.name))
        if self._answered is not None and stamp + source.arrival <= self._answered:
            late = (self._answered - stamp - source.latency) / 1e9
            return Verdict(Outcome.LATE, f'{source.name}: came {late:.3f} s later than its '
                           'latency allows; raise latency in the interface file, or find what '
                           'delays it')
        return _ACCEPTED

    def _advance(self, stamp: int) -> None:
        """Move the clock on: a tick if one is due, and drop what is too old to matter."""
        if self._now is None:
            # Judged without a clock so far: what is ahead of it would block what follows.
            for source in self._sources.values():
                if source.newest is not None and source.newest > stamp + self._future:
                    source.clear()
        self._now = stamp
        half = self._period // 2
        if self._due is None or stamp >= self._due - half:
            if self._due is None or stamp - self._due > half:
                self._due = stamp
            self._due += self._period
            if len(self._ticks) == self._ticks.maxlen:
                self.dropped_ticks += 1
            self._ticks.append(stamp)
        oldest = self._ticks[0] if self._ticks else stamp
        for source in self._sources.values():
            source.drop_before(min(oldest, stamp) - source.reach)


class _Source:
    """The recent samples of one source, in the order of their stamps."""

    # Against a publisher far faster than declared; at rate and latency as declared a source
    # never comes near it.
    MOST = 20_000

    def __init__(self, name: str, spec: SourceSpec | FeatureSpec, jitter: int) -> None:
        self.name = name
        self.size = spec.size if isinstance(spec, SourceSpec) else None
        self.nothing = np.full(self.size or 0, np.nan)
        self.latency = _ns(spec.latency)
        self.arrival = self.latency - min(jitter, self.latency)
        self.max_age = _ns(spec.max_age)
        self.reach = self.max_age + self.latency + _ns(2 / spec.rate)
        self._interval = _ns(1 / spec.rate)
        self._delay = self._interval if spec.align == 'interpolate' else None
        self._stamps: list[int] = []
        self._values: list[Any] = []

    @property
    def newest(self) -> int | None:
        return self._stamps[-1] if self._stamps else None

    def append(self, stamp: int, value: Any) -> None:
        self._stamps.append(stamp)
        self._values.append(value)
        if len(self._stamps) > self.MOST:
            del self._stamps[:self.MOST // 2], self._values[:self.MOST // 2]

    def clear(self) -> None:
        self._stamps.clear()
        self._values.clear()

    def drop_before(self, stamp: int) -> None:
        """Drop what is older, but for the newest sample: its age is still to be told."""
        if self._stamps and self._stamps[0] < stamp:
            # All but one older sample can go: it may be the only one before a tick.
            count = bisect_right(self._stamps, stamp) - 1
            if count > 0:
                del self._stamps[:count], self._values[:count]

    def at(self, tick: int) -> tuple[Any, int, int] | None:
        """Give value, oldest and newest stamp behind it, or None without sample."""
        last = bisect_right(self._stamps, tick - self.arrival) - 1
        if last < 0:
            return None
        if self._delay is None:
            return self._values[last], self._stamps[last], self._stamps[last]
        when = tick - self.latency - self._delay
        before = bisect_right(self._stamps, when, 0, last + 1) - 1
        if before < 0 or before == last:
            return self._values[last], self._stamps[last], self._stamps[last]
        early, late = self._stamps[before], self._stamps[before + 1]
        share = (when - early) / (late - early)
        value = self._values[before] + share * (self._values[before + 1] - self._values[before])
        return value, early, late

    def carried(self, tick: int) -> tuple[Any, int, int] | None:
        """As `at`, but what is held goes on as from the sample before, for a period at most."""
        found = self.at(tick)
        if found is None or self._delay is not None or len(self._stamps) < 2:
            return found
        value, oldest, newest = found
        before, last = self._stamps[-2:]
        step = tick - self.latency - last
        if newest != last or step <= 0 or last - before > 1.5 * self._interval:
            return found
        share = min(step, self._interval) / (last - before)
        return value + share * (value - self._values[-2]), oldest, newest


@dataclass
class FramePairer:
    """
    Put the images of one moment together.

    The first image of `features.images` gives the moment; each other image belongs to it when its
    stamp is at most `features.pairing` away. Memory is bounded: a moment that stays incomplete is
    dropped when a later one is complete, or after `most` moments.

    :param spec: features of the interface.
    :param most: moments kept waiting.
    """

    spec: FeatureSpec
    most: int = 8
    dropped: int = 0
    _waiting: dict[str, deque] = field(default_factory=dict)
    _last: int | None = None

    def push(self, name: str, stamp: int, value: Any) -> tuple[int, dict[str, Any]] | None:
        """
        Take one image.

        :param name: its name in the interface; images that are not in the stack are ignored.
        :param stamp: header stamp [ns].
        :param value: anything that stands for the image.
        :return: stamp and images by name, in the stack's order, when a moment has become
            complete; else None.
        """
        if name not in self.spec.images:
            return None
        queue = self._waiting.setdefault(name, deque(maxlen=self.most))
        first = self.spec.images[0]
        if queue and stamp < queue[-1][0] - NANOSECONDS or (
                self._last is not None and stamp < self._last - NANOSECONDS):
            self._waiting.clear()  # time has restarted
            self._last = None
            queue = self._waiting.setdefault(name, deque(maxlen=self.most))
        if name == first and len(queue) == self.most:
            self.dropped += 1
        queue.append((stamp, value))
        tolerance = _ns(self.spec.pairing)
        for moment, image in reversed(self._waiting.get(first, ())):
            if self._last is not None and moment <= self._last:
                break
            found = {first: image}
            for other in self.spec.images[1:]:
                near = [(abs(when - moment), content) for when, content
                        in self._waiting.get(other, ()) if abs(when - moment) <= tolerance]
                if not near:
                    break
                found[other] = min(near, key=lambda entry: entry[0])[1]
            else:
                self._forget(moment)
                return moment, found
        return None

    def _forget(self, moment: int) -> None:
        tolerance = _ns(self.spec.pairing)
        self._last = moment
        for name, queue in self._waiting.items():
            while queue and queue[0][0] <= moment + (tolerance if name != self.spec.images[0]
                                                     else 0):
                when, _ = queue.popleft()
                if name == self.spec.images[0] and when < moment:
                    self.dropped += 1


def align_next(ticks: np.ndarray, stamps: np.ndarray, values: np.ndarray, max_age: float
               ) -> np.ndarray:
    """
    Give each tick the action that followed it: the first with stamp >= tick.

    :param ticks: `(T,)` int64 [ns].
    :param stamps: `(N,)` int64 [ns], not falling.
    :param values: `(N, size)`.
    :param max_age: how long after the tick it may come [s].
    :return: float32 `(T, size)`, NaN where none came in time.
    """
    values = np.asarray(values, dtype=np.float64)
    result = np.full((len(ticks), values.shape[1]), np.nan, dtype=np.float32)
    if not len(stamps):
        return result
    index = np.searchsorted(stamps, ticks, side='left')
    found = index < len(stamps)
    found[found] = stamps[index[found]] - ticks[found] <= _ns(max_age)
    result[found] = values[index[found]]
    return result


_ACCEPTED = Verdict(Outcome.ACCEPTED)


def _ns(seconds: float) -> int:
    return round(seconds * NANOSECONDS)


def _ahead(name: str, gap: int, reference: str) -> str:
    return (f'{name}: expected a stamp at or before {reference}, came one {gap / 1e9:.3f} s '
            'ahead, ignored; synchronise the clocks of the two machines')


def _joined(parts: dict[str, np.ndarray], names: Any) -> np.ndarray:
    chosen = [parts[name] for name in names]
    return np.concatenate(chosen).astype(np.float32) if chosen else np.empty(0, np.float32)
