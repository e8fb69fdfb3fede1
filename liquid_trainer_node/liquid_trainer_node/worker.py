"""The learning thread beside the trainer node's executor."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from liquid_trainer.online.budget import Budget
from liquid_trainer.online.promotion import Standing
from liquid_trainer.online.window import Window

if TYPE_CHECKING:
    from liquid_trainer.online.session import Announcement, OnlineSession

METRIC = 'negative log likelihood of held-out recent windows [nat/number]'
# Longest rest at once, so that a changed share or the end is noticed [s].
_NAP = 0.1


@dataclass(frozen=True)
class WorkerSettings:
    """What the trainer node's parameters say about learning; see `TrainerSettings`."""

    folder: Path | None = None
    rate: float = 1e-3
    replay: float = 0.5
    consolidation: float = 2.0
    correction: float = 4.0
    period: float = 0.5
    least_windows: int = 2
    promote: bool = True
    niceness: int = 10
    share: float = 0.5


@dataclass(frozen=True)
class Report:
    """How learning stands; see `TrainerStatus`."""

    steps: int = 0
    loss: float = float('nan')
    loss_start: float = float('nan')
    rate: float = 0.0
    running: str = ''
    phase: str = 'settled'
    decision: str = ''
    trouble: str = ''
    foreign: str = ''
    promotions: int = 0
    refusals: int = 0
    roll_backs: int = 0
    held_out: int = 0
    skills: int = 0
    before: float = float('nan')
    after: float = float('nan')
    old_before: float = float('nan')
    old_after: float = float('nan')


class Worker:
    """Runs an `OnlineSession` in a thread of its own, within its share of one core."""

    def __init__(self, start: Standing, settings: WorkerSettings,
                 skills: Sequence[Window] = ()) -> None:
        """
        Start the thread; torch, which takes seconds, is imported in it.

        :param start: the policy to begin with.
        :param skills: see `OnlineSession`.
        """
        self.fault = ''
        self.report = Report(running=start.version)
        self._start, self._settings, self._skills = start, settings, list(skills)
        self._budget = Budget(settings.share)
        self._windows: queue.Queue[Window] = queue.Queue(maxsize=64)
        self._discarded: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._announced: queue.SimpleQueue[Announcement] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name='trainer', daemon=True)
        self._thread.start()

    @property
    def share(self) -> float:
        """Largest share of one core for this process."""
        return self._budget.share

    @share.setter
    def share(self, share: float) -> None:
        self._budget.share = share

    def put(self, window: Window) -> None:
        """Hand over a window; the oldest waiting one gives way."""
        while True:
            try:
                self._windows.put_nowait(window)
                return
            except queue.Full:
                try:
                    self._windows.get_nowait()
                except queue.Empty:
                    continue

    def discard(self, episode: str) -> None:
        """Have an episode forgotten."""
        self._discarded.put(episode)

    def announcements(self) -> list[Announcement]:
        """Return what the policy node has to be told since the last call."""
        found = []
        while not self._announced.empty():
            found.append(self._announced.get())
        return found

    def cpu_share(self) -> float:
        """Share of one core this process used since the last call."""
        return self._budget.measured()

    def stop(self) -> None:
        """End the thread; a promotion under way is as safe as from a kill."""
        self._ended.set()
        self._thread.join(10.0)

    def _run(self) -> None:
        try:
            # Linux keeps niceness by thread.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._settings.niceness)
            session = self._session()
            while not self._ended.is_set():
                self._listen(session)
                for _ in session.work(time.monotonic()):
                    self._show(session)
                    self._rest()
                    if self._ended.is_set():
                        return
                self._show(session)
                self._rest()
                self._ended.wait(0.02)
        except Exception as error:  # noqa: BLE001 - shown in the status, the node lives on
            self.fault = f'{type(error).__name__}: {error}; deactivate and activate to try again'

    def _session(self) -> OnlineSession:
        from liquid_trainer.online.session import OnlineSession, SessionSettings
        from liquid_trainer.online.settings import LearnerSettings
        settings = self._settings
        return OnlineSession(
            self._start, settings.folder,
            learner=LearnerSettings(
                rate=settings.rate, replay=settings.replay,
                consolidation=settings.consolidation, correction=settings.correction),
            settings=SessionSettings(
                period=settings.period, least_windows=settings.least_windows,
                promote=settings.promote),
            skills=self._skills)

    def _listen(self, session: OnlineSession) -> None:
        while not self._discarded.empty():
            session.discard(self._discarded.get())
        while True:
            try:
                session.add(self._windows.get_nowait(), time.monotonic())
            except queue.Empty:
                return

    def _show(self, session: OnlineSession) -> None:
        while session.announcements:
            self._announced.put(session.announcements.popleft())
        learner, verdict = session.learner, session.verdict
        scores = {} if verdict is None else {
            'before': verdict.before, 'after': verdict.after, 'old_before': verdict.old_before,
            'old_after': verdict.old_after}
        self.report = Report(
            steps=learner.steps, loss=learner.loss, loss_start=learner.loss_start,
            rate=learner.rate, running=session.running.version, phase=session.phase,
            decision=session.journal.last, trouble=session.trouble, foreign=session.foreign,
            promotions=session.counts.promotions, refusals=session.counts.refusals,
            roll_backs=session.counts.roll_backs, held_out=session.held_out,
            skills=session.skills, **scores)

    def _rest(self) -> None:
        """Wait until the process is within its share again."""
        while not self._ended.is_set():
            rest = self._budget.rest()
            if rest <= 0.0:
                return
            self._ended.wait(min(rest, _NAP))
