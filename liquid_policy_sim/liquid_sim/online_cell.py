"""The conveyor with a learner beside the policy: what the nodes do over topics, in one process."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from liquid_policy.alignment import Aligner
from liquid_policy.checkpoint import Checkpoint
from liquid_policy.runtime import EncoderRuntime
from liquid_policy.stepping import Inputs, Model
from liquid_sim import drivers
from liquid_sim.conveyor import CONTROL_PERIOD, GONE_Y, ConveyorSettings, ConveyorSim
from liquid_sim.scene import BELT_X
from liquid_trainer.online import WindowCollector
from liquid_trainer.online.session import Announcement, OnlineSession
from liquid_trainer.online.window import Window

VISIBLE_Y = -0.45       # upstream of this the part is still under the feeder's roof [m]


@dataclass(frozen=True)
class Phase:
    """
    Conditions that hold for a while.

    :param settings: of the cell; speeds and masses are drawn from them from the next part on.
    :param seconds: for how long.
    """

    settings: ConveyorSettings
    seconds: float


@dataclass(frozen=True, eq=False)
class Reading:
    """
    What comes at one tick.

    :param time: since the beginning [s].
    :param features: of the image taken now, or None without one.
    :param imu: `(6,)`.
    :param joints: `(6,)`.
    :param part: position [m] and speed [m/s] of the part in base_link, `(4,)`; NaN without one.
    :param demonstration: `(9,)`; NaN when nobody demonstrates.
    """

    time: float
    features: np.ndarray | None
    imu: np.ndarray
    joints: np.ndarray
    part: np.ndarray
    demonstration: np.ndarray


@dataclass
class Log:
    """
    What came of it, one entry per tick with a part on the belt, out of the feeder's roof.

    :param times: [s].
    :param errors: distance of the estimate of the policy in charge from the part [m].
    :param frozen: that of the policy the run began with, on the same inputs [m].
    :param promoted: times and checkpoints that came in charge.
    :param helped: share of all ticks at which the expert drove.
    """

    times: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    frozen: list[float] = field(default_factory=list)
    promoted: list[tuple[float, str]] = field(default_factory=list)
    helped: list[bool] = field(default_factory=list)


class Loop:
    """
    Policy, collector and learner on one stream of readings.

    :param checkpoint: to begin with.
    :param session: learns; None for a policy that stays as it is.
    """

    def __init__(self, checkpoint: Checkpoint, session: OnlineSession | Keeper | None):
        self._interface = checkpoint.interface
        self._aligner = Aligner(self._interface)
        self._collector = WindowCollector(self._interface)
        self._session = session
        self._model, self._frozen = Model(checkpoint), Model(checkpoint)
        self._window: deque[Inputs] = deque(maxlen=200)     # 2 s, as the policy node keeps
        self._pieces: Iterator[None] = iter(())
        self.version = checkpoint.version
        self.log = Log()

    def perceive(self, reading: Reading) -> np.ndarray | None:
        """Take what is seen at a tick and return the proposal, `(9,)`, or None."""
        stamp = drivers.stamp_of(reading.time)
        pushes = [('imu', reading.imu), ('joint_positions', reading.joints)]
        if reading.features is not None:
            pushes.insert(0, ('features', reading.features))
        # As the nodes do: what is not finite is refused.
        pushes = [(name, value) for name, value in pushes if np.isfinite(value).all()]
        for name, value in pushes:
            self._aligner.push(name, stamp, value)
        if np.isfinite(reading.part).all():
            pushes.insert(0, ('part', reading.part))
        for name, value in pushes:
            self._collector.observe(name, stamp, value)
        proposal = None
        for tick in self._aligner.ticks_ready():
            aligned = self._aligner.at(tick)
            if aligned.stale:
                continue
            inputs = Inputs(tick, aligned.features, aligned.vector)
            self._window.append(inputs)
            step = self._model.step(inputs)
            proposal = step.chosen[0].astype(float)
            self._collector.propose(tick, self.version, proposal)
            self._collector.believe(tick, step.distribution.estimate_mean)
            self._compare(reading, step.distribution.estimate_mean,
                          self._frozen.step(inputs).distribution.estimate_mean)
        return proposal

    def _compare(self, reading: Reading, mean: np.ndarray, frozen: np.ndarray) -> None:
        part = reading.part
        # Not what falls into the bin, which nobody picks any more.
        if on_belt(part):
            self.log.times.append(reading.time)
            self.log.errors.append(float(np.linalg.norm(mean[:3] - part[:3])))
            self.log.frozen.append(float(np.linalg.norm(frozen[:3] - part[:3])))

    def learn(self, reading: Reading) -> None:
        """Take the demonstration of a tick; then learn for as long as a tick lasts."""
        if self._session is None:
            return
        shown = reading.demonstration
        if np.isfinite(shown).all():
            stamp, start = drivers.stamp_of(reading.time), 0
            for name, spec in self._interface.actions.items():
                self._collector.demonstrate(name, stamp, shown[start:start + spec.size])
                start += spec.size
        window = self._collector.advance()
        if window is not None:
            self._session.add(window, reading.time)
        for _ in self._session.work(reading.time):
            pass
        while self._session.announcements:
            self._swap(self._session.announcements.popleft().standing.load(), reading.time)

    def _swap(self, checkpoint: Checkpoint, time: float) -> None:
        """Change models between two steps, as the policy node does."""
        if checkpoint.version == self.version:
            return
        model = Model(checkpoint)
        model.warm(self._window)
        self._model, self.version = model, checkpoint.version
        self.log.promoted.append((time, checkpoint.version))


def on_belt(part: np.ndarray) -> np.ndarray:
    """
    Return whether a part can be seen on the belt.

    :param part: position in base_link, x and y first, `(2 or more, ...)` [m]; NaN without one.
    """
    x, y = part[:2]
    return (y > VISIBLE_Y) & (y < GONE_Y) & (np.abs(x - BELT_X) < 0.2)


class Tape:
    """Readings kept to be played again, so that variants of the learner see the same."""

    def __init__(self) -> None:
        self.readings: list[Reading] = []

    def save(self, path: Path) -> None:
        """Write an npz file; a tick without an image has a row of NaN."""
        readings = self.readings
        size = next(r.features for r in readings if r.features is not None).shape[0]
        blank = np.full(size, np.nan, np.float32)
        columns: dict[str, Any] = {name: np.stack([getattr(r, name) for r in readings])
                                   for name in ('imu', 'joints', 'part', 'demonstration')}
        np.savez_compressed(
            path, time=np.array([r.time for r in readings]),
            features=np.stack([blank if r.features is None else r.features for r in readings]),
            **columns)

    @classmethod
    def load(cls, path: Path) -> Tape:
        """Return what `save` wrote."""
        tape = cls()
        with np.load(path) as stored:
            values = {name: stored[name] for name in stored}
        for row, features in enumerate(values.pop('features')):
            tape.readings.append(Reading(
                features=None if np.isnan(features[0]) else features,
                time=float(values['time'][row]),
                **{name: value[row] for name, value in values.items() if name != 'time'}))
        return tape


def play(tape: Tape, checkpoint: Checkpoint, session: OnlineSession | Keeper | None) -> Log:
    """Let a learner listen to a tape; what the policy proposes moves nothing."""
    loop = Loop(checkpoint, session)
    for reading in tape.readings:
        loop.perceive(reading)
        loop.learn(reading)
    return loop.log


class Keeper:
    """In place of a learner: keeps the windows that it would have got."""

    def __init__(self) -> None:
        self.windows: list[Window] = []
        self.announcements: deque[Announcement] = deque()

    def add(self, window: Window, now: float) -> None:
        """Keep a window."""
        self.windows.append(window)

    def work(self, now: float) -> Iterator[None]:
        """Do nothing."""
        return iter(())


class LearningCell:
    """
    The cell, driven by the policy in charge, corrected by the expert, learned from as it goes.

    As in `generate.Supervised` the expert takes over where policy and expert differ for too long,
    and demonstrates all the time.

    :param checkpoint: to begin with.
    :param session: learns; None for a policy that stays as it is.
    :param safety: between proposal and robot.
    :param help: whether the expert takes over.
    """

    def __init__(self, checkpoint: Checkpoint, session: OnlineSession | Keeper | None,
                 safety: drivers.Safety, help: bool = True):
        self._encoder = EncoderRuntime(checkpoint)
        self.loop = Loop(checkpoint, session)
        self._safety, self._help = safety, help
        self._near, self._far = checkpoint.interface.images['depth'].range or (0.0, np.inf)
        self.tape = Tape()

    def run(self, phases: list[Phase], seed: int) -> Log:
        """
        Go through phases of conditions, one after the other, without a pause.

        :param seed: of the cell.
        """
        from liquid_sim.generate import Supervised
        sim = ConveyorSim(phases[0].settings, seed)
        expert = drivers.ExpertDriver(sim)
        source = _Source(self, sim, expert)
        driver = Supervised(source, source.teacher, patience=0.25 if self._help else 1e9)
        driver.reset(seed)
        self._safety.reset()
        try:
            for phase in phases:
                sim.settings = phase.settings
                end = sim.time + phase.seconds
                while sim.time < end - CONTROL_PERIOD / 2:
                    proposal, wanted = driver.act()
                    assert source.reading is not None
                    self.loop.log.helped.append(proposal is wanted)
                    command = self._safety.command(sim, proposal)
                    reading = replace(source.reading, demonstration=wanted)
                    self.tape.readings.append(reading)
                    self.loop.learn(reading)
                    sim.step(command)
        finally:
            sim.close()
        return self.loop.log

    def read(self, sim: ConveyorSim, camera: drivers.Camera) -> Reading:
        """Read the cell's sensors."""
        features = None
        if camera.due(sim.time):
            color, depth = sim.render_camera()
            features = self._encoder.encode(color, np.clip(depth, self._near, self._far))
        part = sim.part()
        seen = np.full(4, np.nan) if part is None else np.array(
            [*part.position, part.velocity[1]])
        return Reading(sim.time, features, np.concatenate(sim.imu()), sim.joint_state()[1][:6],
                       seen, np.full(9, np.nan))


class _Source:
    """The policy in charge as a driver, and the expert beside it."""

    def __init__(self, cell: LearningCell, sim: ConveyorSim, teacher: drivers.ExpertDriver):
        self._cell, self._sim, self.teacher = cell, sim, teacher
        self.reading: Reading | None = None

    def reset(self, seed: int) -> None:
        self._camera = drivers.Camera()

    def act(self):
        self.reading = self._cell.read(self._sim, self._camera)
        return self._cell.loop.perceive(self.reading), None
