"""The online learner as a whole: windows in, decisions and announcements out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from liquid_policy.checkpoint import Checkpoint, CheckpointError
from liquid_policy.policy import Policy
from liquid_trainer.online.alarm import Alarm
from liquid_trainer.online.gate import GateSettings, Scores, Verdict, judge
from liquid_trainer.online.journal import Journal
from liquid_trainer.online.learner import OnlineLearner, resting_policy, with_filter
from liquid_trainer.online.promotion import (
    ANNOUNCED,
    SETTLED,
    WATCHING,
    Promotions,
    Standing,
)
from liquid_trainer.online.scores import (
    combined_error,
    judged_from,
    published_scores,
    score,
)
from liquid_trainer.online.settings import LearnerSettings
from liquid_trainer.online.skills import divide_skills
from liquid_trainer.online.split import TimeSplit, Use
from liquid_trainer.online.trial import make_candidate, try_out
from liquid_trainer.online.watch import WatchSettings, find_fault, is_settled
from liquid_trainer.online.window import Window

# Half of a live window is not judged: a policy that did not run begins it with an empty state.
_BURN_IN = 0.5


@dataclass(frozen=True)
class SessionSettings:
    """When the session does what."""

    period: float = field(default=0.5, metadata={
        'description': 'from one optimisation step to the next', 'unit': 's'})
    least_windows: int = field(default=4, metadata={
        'description': 'windows to learn from before the first step'})
    attempt: float = field(default=3.0, metadata={
        'description': 'shortest time from one candidate to the next', 'unit': 's'})
    judged: int = field(default=4, metadata={
        'description': 'windows that come after a candidate was made, and that it is judged by'})
    skills: int = field(default=32, metadata={
        'description': 'most windows of the frozen old-skill set; where none were given, as '
                       'many of the first held-out ones'})
    patience: float = field(default=10.0, metadata={
        'description': 'how long the policy node may take to propose with a promoted policy',
        'unit': 's'})
    give_up: int = field(default=12, metadata={
        'description': 'refusals in a row after which learning starts again from the running '
                       'policy'})
    promote: bool = field(default=True, metadata={
        'description': 'promote at all; without, it only learns and judges'})

    def __post_init__(self):
        for name in ('period', 'attempt', 'patience'):
            if not getattr(self, name) > 0.0:
                raise ValueError(f'{name}: expected above 0 s, came {getattr(self, name)}')
        for name in ('least_windows', 'judged', 'skills', 'give_up'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name}: expected 1 or more, came {getattr(self, name)}')


@dataclass(frozen=True)
class Announcement:
    """
    What the policy node is told: run this.

    :param standing: the checkpoint.
    :param before: mean loss of the running policy on held-out recent windows [nat/number].
    :param after: this one's.
    """

    standing: Standing
    before: float
    after: float


@dataclass
class Counts:
    """What has happened since the session began."""

    windows: int = 0
    promotions: int = 0
    refusals: int = 0
    roll_backs: int = 0


class OnlineSession:
    """
    Learns from windows, judges candidates, promotes, watches, and returns to the one before.

    Driven by whoever has the windows: `add` each, call `work` often, publish what stands in
    `announcements`. Time comes in as an argument, so simulated time will do.
    """

    def __init__(self, start: Standing, folder: Path | None = None,
                 learner: LearnerSettings | None = None, gate: GateSettings | None = None,
                 watch: WatchSettings | None = None, settings: SessionSettings | None = None,
                 split: TimeSplit | None = None, skills: Sequence[Window] = ()):
        """
        Go on where an earlier session in this folder ended.

        :param start: the checkpoint to begin with.
        :param folder: of reservoir, ledger, journal and checkpoints; None: nothing is kept and
            nothing promoted.
        :param skills: windows of what the policy could do before: of every third episode they
            are the frozen old-skill set, the others are replayed (`divide_skills`). Empty: the
            first held-out windows become the old-skill set.
        :raises CheckpointError: if the checkpoint cannot be read.
        """
        torch.set_num_threads(1)
        self.settings = settings or SessionSettings()
        self.gate, self.watch = gate or GateSettings(), watch or WatchSettings()
        self.split = split or TimeSplit()
        self.journal = Journal(None if folder is None else folder / 'journal.jsonl')
        self.promotions = None if folder is None else Promotions(folder, start)
        self._base = start.load()
        self.running = start if self.promotions is None else self.promotions.ledger.running
        learner = learner or LearnerSettings()
        self._running = self._policy(self.running)
        self._reference = self._policy(start)
        self._shadow: Policy | None = None      # the policy before, while a promotion is watched
        self.learner = OnlineLearner(self._base, learner,
                                     None if folder is None else folder / 'replay')
        self.learner.restart(self._running.state_dict())
        self._made_from = with_filter(self._base, learner)
        self._candidate = resting_policy(self._made_from)
        self._made_at: int | None = None    # newest stamp the candidate has learned from
        self._fresh: deque[Window] = deque(maxlen=2 * self.settings.judged)     # what came since
        self._skills, replayed = divide_skills(skills, self.settings.skills)
        self._given = bool(skills)
        # Without skills nobody knows what is usual: what this run began with may need repair.
        self._usual = list(skills) if self.gate.enabled and self.gate.alarm else []
        self._alarm: Alarm | None = None
        if not self.learner.reservoir.seen:
            for window in replayed:
                self.learner.rehearse(window)
        self._old: Scores | None = None     # of the policy learning began with, on the skills
        self._errors: deque[float] = deque(maxlen=self.watch.windows)
        self._live: list[float] = []
        self._before: list[float] = []
        self.announcements: deque[Announcement] = deque()
        self.counts = Counts()
        self.verdict: Verdict | None = None
        self.foreign = ''
        self._refusals = 0
        self._step_due = self._attempt_due = -np.inf
        self._announced_at: float | None = None
        self._tried_at = 0
        self._resume()

    # Beginning and end.

    def _policy(self, standing: Standing) -> Policy:
        same = standing.version == self._base.version
        checkpoint = self._base if same else standing.load()
        return resting_policy(checkpoint, 'cpu')

    def _resume(self) -> None:
        """Take up what an earlier session left unfinished."""
        if self.promotions is None:
            return
        ledger = self.promotions.ledger
        if self.promotions.recovered:
            self.journal.write('recovered', self.promotions.recovered,
                               version=self.running.version)
        if self.running.version == self._base.version:
            return
        self._announce(float('nan'), float('nan'))
        if ledger.phase != SETTLED and ledger.previous is not None:
            self._shadow = self._policy(ledger.previous)
            self._errors.extend(ledger.before)

    @property
    def phase(self) -> str:
        """What becomes of the newest promotion: `settled`, `announced` or `watching`."""
        return SETTLED if self.promotions is None else self.promotions.ledger.phase

    @property
    def trouble(self) -> str:
        """What is wrong with the disk, in words; empty when nothing is."""
        found = [self.learner.reservoir.trouble, self.journal.trouble]
        if self.promotions is not None:
            found.append(self.promotions.trouble)
        return '; '.join(text for text in found if text)

    @property
    def skills(self) -> int:
        """How many windows the frozen old-skill set has."""
        return len(self._skills)

    @property
    def held_out(self) -> int:
        """How many windows have come that the candidate has not learned from."""
        return len(self._fresh)

    @property
    def running_policy(self) -> Policy:
        """A copy of the policy in charge, without its encoder; not to be changed."""
        return self._running

    # Windows.

    def add(self, window: Window, now: float) -> None:
        """
        Take a window: to learn from, to judge by, and to see how the running policy does.

        :param now: time [s].
        """
        self.counts.windows += 1
        self._follow(window, now)
        self._watch(window)
        self._listen(window, now)
        if self._made_at is not None:
            if window.ticks[-1] <= self._made_at:
                self._drop_candidate()      # time went back
            elif judged_from(window) > self._made_at:
                self._fresh.append(window)
        if self._given or self._learned_from(window):
            self.learner.add(window)

    def _learned_from(self, window: Window) -> bool:
        """Return whether a window may be learned from; the first stretches become old skills."""
        skills = self._skills
        if len(skills) >= self.settings.skills:
            return not skills[-1].ticks[0] <= window.ticks[0] <= skills[-1].ticks[-1]
        use = self.split.use(window.ticks)
        if use is Use.HELD_OUT:
            skills.append(window)
        return use is Use.TRAIN

    def _drop_candidate(self) -> None:
        self._made_at = None
        self._fresh.clear()

    def _listen(self, window: Window, now: float) -> None:
        """Raise the alarm, or end it."""
        if self._alarm is None or not self._alarm.add(self._errors_of([window])[0],
                                                      int(window.ticks[0])):
            return
        self._drop_candidate()
        self._attempt_due = now + self.settings.attempt
        if self._alarm.raised:
            self.learner.attend(self._alarm.since, self._running)
            self.journal.write('alarm', f'the policy that learning began with errs '
                               f'{self._alarm.times * self.gate.alarm:.1f} times what is rare on '
                               'old skills: there is something to repair')
        else:
            self.learner.attend(None)
            self.journal.write('calm', 'conditions are usual again: nothing to repair')

    def _errors_of(self, windows: Sequence[Window]) -> np.ndarray:
        """Errors of the policy that learning began with, `(windows, 1 + targets)`."""
        scores = score(self._reference, windows, _BURN_IN)
        return np.column_stack((scores.action, scores.target))

    def _learn_what_is_usual(self) -> Iterator[None]:
        errors = []
        for begin in range(0, len(self._usual), 8):
            errors.append(self._errors_of(self._usual[begin:begin + 8]))
            yield
        self._usual = []
        self._alarm = Alarm(np.concatenate(errors), self.gate.alarm)

    def discard(self, episode: str) -> int:
        """
        Forget an episode that is not to be learned from.

        :return: how many of its windows there were.
        """
        before = len(self._skills)
        self._fresh = deque((w for w in self._fresh if w.episode != episode),
                            maxlen=self._fresh.maxlen)
        if not self._given:
            self._skills = [window for window in self._skills if window.episode != episode]
            self._old = None
        count = before - len(self._skills) + self.learner.forget(episode)
        self.journal.write('discarded', f'{count} windows of episode {episode!r}', windows=count)
        return count

    # Work.

    def work(self, now: float) -> Iterator[None]:
        """
        Do what is due, in pieces of some milliseconds; yields between them.

        :param now: time [s].
        """
        if self._usual:
            yield from self._learn_what_is_usual()
        if now >= self._step_due and len(self.learner.recent) >= self.settings.least_windows:
            late = now - self._step_due
            self._step_due = now + self.settings.period - min(
                late if np.isfinite(late) else 0.0, 0.1 * self.settings.period)
            yield from self.learner.step()
        if self._alarm is not None and not self._alarm.raised:
            return      # nothing to repair, and among a few windows chance finds gains anyway
        if self._made_at is None:
            if now >= self._attempt_due and self.learner.steps > self._tried_at \
                    and self.learner.recent:
                self._attempt_due = now + self.settings.attempt
                self._tried_at = self.learner.steps
                yield from self.learner.refine()
                self._made_at = int(self.learner.recent[-1].ticks[-1])
                self._candidate.load_state_dict(self.learner.average)
        elif len(self._fresh) >= self.settings.judged:
            if self.phase == SETTLED and not self.foreign:
                yield from self._attempt(now)
            # While a promotion is watched, a newer candidate takes the place of this one.
            self._drop_candidate()

    def _attempt(self, now: float) -> Iterator[None]:
        """
        Judge the candidate by what came after it was made; in charge with it if it is better.

        Source: first predict, then learn; Gama et al., On evaluating stream learning algorithms,
        2013.
        """
        recent = list(self._fresh)
        running = score(self._running, recent)
        yield
        candidate = score(self._candidate, recent)
        yield
        reference = kept = None
        if self._skills and self.gate.enabled:
            if self._old is None or len(self._old) != len(self._skills):
                self._old = score(self._reference, self._skills)
                yield
            reference = self._old
            kept = score(self._candidate, self._skills)
            yield
        self.verdict = verdict = judge(running, candidate, reference, kept, self.gate)
        numbers = {'steps': self.learner.steps, 'recent_before': verdict.before,
                   'recent_after': verdict.after, 'old_before': verdict.old_before,
                   'old_after': verdict.old_after}
        if not verdict.promote:
            self._refuse(verdict, numbers)
            return
        if self.promotions is None or not self.settings.promote:
            self.journal.write('better', f'not promoted, that is switched off: {verdict.reason}',
                               **numbers)
            return
        yield from self._promote(verdict, numbers, now)

    def _refuse(self, verdict: Verdict, numbers: dict) -> None:
        self.counts.refusals += 1
        self._refusals += 1
        self.journal.write('refused', verdict.reason, version=self.running.version, **numbers)
        if verdict.forgetting:
            self.learner.slow_down()
        if self._refusals >= self.settings.give_up:
            self._refusals = 0
            self.learner.restart(self._running.state_dict())
            self._drop_candidate()
            self.journal.write('restarted', f'{self.settings.give_up} refusals in a row: '
                               'learning starts again from the running policy')

    def _promote(self, verdict: Verdict, numbers: dict, now: float) -> Iterator[None]:
        assert self.promotions is not None
        previous, shadow = self.running, self._running
        checkpoint = make_candidate(
            self._made_from, self._candidate, self.promotions.ledger.promotions + 1,
            {'from': previous.version, 'verdict': verdict.reason, **numbers})
        yield
        window = self._fresh[-1]
        try:
            self.running = self.promotions.promote(
                checkpoint, lambda read: try_out(read, self._candidate, window),
                tuple(self._errors))
        except (OSError, ValueError) as error:
            self.counts.refusals += 1
            text = error.strerror if isinstance(error, OSError) and error.strerror else error
            self.promotions.trouble = f'not promoted: {text}'
            self.journal.write('failed', self.promotions.trouble, version=previous.version,
                               **numbers)
            return
        yield
        self.promotions.trouble = ''
        self._refusals = 0
        self.counts.promotions += 1
        self._running, self._shadow = self._policy(self.running), shadow
        self._before, self._live = [], []
        self.learner.speed_up()
        self.journal.write('promoted', verdict.reason, version=self.running.version,
                           previous=previous.version, **numbers)
        self._announce(verdict.before, verdict.after)
        self._announced_at = None

    def _announce(self, before: float, after: float) -> None:
        self.announcements.append(Announcement(self.running, before, after))

    # After a promotion.

    def _follow(self, window: Window, now: float) -> None:
        """See which policy really proposes."""
        version = window.version
        if self.promotions is None or not version:
            return
        if version == self.running.version:
            self.foreign = ''
            self._announced_at = None
            if self.phase == ANNOUNCED:
                self.promotions.confirm()
                self.journal.write('confirmed', 'the policy node proposes with it',
                                   version=version)
            return
        if self._announced_at is None:
            self._announced_at = now
        elif now - self._announced_at > self.settings.patience:
            self._announced_at = now
            self._not_taken(version)

    def _not_taken(self, version: str) -> None:
        assert self.promotions is not None
        previous = self.promotions.ledger.previous
        if self.phase != SETTLED and previous is not None and version == previous.version:
            self.journal.write(
                'not taken', f'the policy node still proposes with {version}; set its '
                'accept_updates, or see its log for why it refused', version=self.running.version)
            self._return(previous)
            return
        self.foreign = (f'the policy node runs {version}, expected {self.running.version}; load '
                        'that one into it, or give the trainer the one it runs')
        self.journal.write('foreign', self.foreign, version=version)
        self._announce(float('nan'), float('nan'))

    def _watch(self, window: Window) -> None:
        """Compare what the running graph published with what the policy before would have."""
        assert window.proposed is not None
        silent = not np.isfinite(window.proposed).any()
        if self.phase == ANNOUNCED and silent:
            # Nobody proposes: there is nobody to confirm it either.
            assert self.promotions is not None
            self.promotions.confirm()
        live = float('nan')
        if window.version == self.running.version:
            scaling = self._running.action_scaling, self._running.target_scaling
            action, target = (one.scale.numpy() for one in scaling)
            live = float(combined_error(published_scores(window, action, target, _BURN_IN))[0])
        elif silent:
            live = self._error(self._running, window)
        if not np.isfinite(live):
            return
        if self.phase != WATCHING or self._shadow is None:
            self._errors.append(live)
            return
        would = self._error(self._shadow, window)
        if not np.isfinite(would):
            return
        self._live.append(live)
        self._before.append(would)
        assert self.promotions is not None
        fault = find_fault(list(self._errors), self._live, self._before, self.watch)
        if fault:
            self._roll_back(fault)
        elif is_settled(self._live, self._before, self.watch):
            self.promotions.settle()
            self.journal.write(
                'settled', f'live error {np.median(self._live):.3f}, the policy before would '
                f'have made {np.median(self._before):.3f}', version=self.running.version)
            self._errors.extend(self._live)
            self._shadow = None

    @staticmethod
    def _error(policy: Policy, window: Window) -> float:
        return float(combined_error(score(policy, [window], _BURN_IN))[0])

    def _roll_back(self, fault: str) -> None:
        assert self.promotions is not None
        self.counts.roll_backs += 1
        self._errors.extend(self._before)   # what is usual now, whoever had been in charge
        bad = self.running.version
        previous = self.promotions.ledger.previous
        assert previous is not None
        self._return(previous)
        self.journal.write('rolled back', fault, version=bad, previous=previous.version)
        self._announce(float('nan'), float('nan'))

    def _return(self, previous: Standing) -> None:
        """Put the one before in charge again, and learn on from it, more carefully."""
        assert self.promotions is not None
        self.promotions.roll_back()
        self.running = previous
        try:
            self._running = self._shadow or self._policy(previous)
        except CheckpointError as error:
            self.journal.write('failed', f'{error}', version=previous.version)
        self._shadow = None
        self.learner.restart(self._running.state_dict())
        self._drop_candidate()
        self.learner.slow_down()


def standing_of(checkpoint: Checkpoint, path: str | Path, sha256: str) -> Standing:
    """Return how a checkpoint is named in the ledger."""
    return Standing(checkpoint.version, str(Path(path).absolute()), sha256)
