"""
The search for the nearest safe command: clip, verify, and only then solve.

Most proposals are safe, or only break limits of single entries; clipping answers those exactly.
What couples entries is verified exactly, along the whole manoeuvre, before a command is issued.
If it fails, the limits are linearised about the failed command and a quadratic programme gives
the next candidate (sequential quadratic programming), which is slowed down a little where it still
breaks a limit by a little; after `ROUNDS` of them the search goes on along the line to braking.
Braking is safe from the end of the last command's longest period, as that command's verification
has shown; where it is not safe yet, the last command is kept if it still is, and verified like any
other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from liquid_policy.barrier_box import (
    CAUSES,
    JERK,
    Box,
    FilterSettings,
    brake,
    eased,
    safe_box,
)
from liquid_policy.barrier_qp import nearest_command
from liquid_policy.barrier_rows import Guard, LinearConstraints, Moment, tighten
from liquid_policy.limits import Limits

ROUNDS = 3          # quadratic programmes per call, at most
SHARES = (0.9, 0.6, 0.25, 0.0625)   # of the way from braking to the last candidate, tried at last
EAGER, LITTLE = 1.1, 1e-3   # slowing down: so many times what is reckoned, and that share more
MOST_SLOWER = 0.1   # share beyond which it is better to linearise again
TOLERANCE = 1e-6    # excess that counts as rounding, in the limit's own unit


@dataclass(frozen=True, eq=False)
class Proposal:
    """
    What a policy wants, with its doubts.

    :param action: the chosen action of this moment, `(A,)`.
    :param weights: probability of each component, `(K,)`.
    :param means: each component's action of this moment, `(K, A)`.
    :param deviations: its standard deviations, `(K, A)`.
    """

    action: np.ndarray
    weights: np.ndarray | None = None
    means: np.ndarray | None = None
    deviations: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Found:
    """
    Outcome of a search.

    :param command: the nearest safe command found, `(A,)`; None: brake.
    :param reasons: why it is not the proposal; empty when it is.
    :param active: limits that changed it.
    :param amounts: by how much each changed its entry, or by how much the proposal would have
        broken it if it is a limit of the whole robot.
    """

    command: np.ndarray | None
    reasons: tuple[str, ...] = ()
    active: tuple[str, ...] = ()
    amounts: tuple[float, ...] = ()


class NearestSafe:
    """The search of one robot, for one moment at a time."""

    def __init__(
        self, limits: Limits, settings: FilterSettings, guards: Sequence[Guard],
    ) -> None:
        """
        Prepare what does not change.

        :param limits: the robot's limits.
        :param settings: what the guarantee rests on.
        :param guards: limits of the whole robot.
        """
        self._limits, self._settings, self._guards = limits, settings, guards
        size = len(limits.names)
        self._names = tuple(name for guard in guards for name in guard.names)
        self._priority = np.concatenate(
            [np.zeros(0, dtype=np.intp), *(guard.priority for guard in guards)])
        self._eye = np.eye(size)
        self._all_names = tuple(f'box/{name}' for name in limits.names) + self._names
        self._all_priority = np.concatenate([np.zeros(size, dtype=np.intp), self._priority])

    def find(self, proposal: Proposal, moment: Moment, box: Box) -> Found:
        """
        The nearest safe command.

        :param proposal: its action is finite, `(A,)`.
        :param moment: of the call.
        :param box: safe commands of this moment, entry by entry; not empty.
        """
        self._moment, self._box = moment, box
        for guard in self._guards:
            guard.begin(moment)
        spread = self._spread(proposal)
        if self._settings.other_modes and proposal.means is not None \
                and self._kept(proposal.action, spread) is None:
            other = self._other_mode(proposal)
            if other is not None:
                return other
        if spread is not None:
            box = self._tighter_box(spread)
        action = wanted = proposal.action
        if moment.rate is not None:
            wanted = eased(action, moment.asked, moment.previous, self._limits.jerk,
                           min(max(moment.elapsed, 0.0), self._settings.longest_period))
        candidate = np.minimum(np.maximum(wanted, box.low), box.high)
        changed = (candidate != action).nonzero()[0]
        active, amounts = [], []
        if len(changed):
            by = candidate - action
            cause = np.where(by > 0.0, *box.causes)
            if wanted is not action:
                cause[candidate == wanted] = JERK
            cause = cause.tolist()
            active = [f'{CAUSES[cause[index]]}/{self._limits.names[index]}' for index in changed]
            amounts = np.abs(by)[changed].tolist()
        excess = self._excess(candidate)
        broken = (~(excess <= TOLERANCE)).nonzero()[0]  # NaN counts as broken
        if spread is not None and self._guards and not broken.size:
            rows = self._rows(candidate, box, spread)
            size = len(candidate)
            broken = np.flatnonzero(rows.excess(candidate)[size:] > TOLERANCE)
        if not broken.size:
            if not active:
                return Found(action.copy())
            return Found(candidate, (f'limited by {", ".join(active)}',), tuple(active),
                         tuple(amounts))
        active += [self._names[index] for index in broken]
        amounts += [max(float(excess[index]), 0.0) for index in broken]
        command, notes = self._solve(wanted, candidate, box, spread)
        if command is None and spread is not None:
            command, notes = self._solve(wanted, candidate, self._box, None)
            notes = ('the chance margin leaves no command and was given up', *notes)
        return Found(
            command, (f'limited by {", ".join(active)}', *notes), tuple(active), tuple(amounts))

    def _solve(
        self, action: np.ndarray, candidate: np.ndarray, box: Box, spread: np.ndarray | None,
    ) -> tuple[np.ndarray | None, tuple[str, ...]]:
        """The nearest command by quadratic programmes, verified; None: brake."""
        constraints = self._rows(candidate, box, spread)
        size, notes = len(action), cast(tuple[str, ...], ())
        for round_ in range(ROUNDS):
            if round_:
                more = self._rows(candidate, box, spread)
                constraints = LinearConstraints(
                    np.concatenate([constraints.matrix, more.matrix[size:]]),
                    np.concatenate([constraints.low, more.low[size:]]),
                    np.concatenate([constraints.high, more.high[size:]]),
                    constraints.names + more.names[size:],
                    np.concatenate([constraints.priority, more.priority[size:]]))
            nearest = nearest_command(action, constraints, self._limits.weight)
            if nearest.command is None:
                # linearised far away, the rows may contradict each other; braking is safe
                nearest = nearest_command(
                    action, _allowing(self._braking(), constraints), self._limits.weight)
            if nearest.command is None:
                return None, (f'{nearest.fault}; braking',)
            candidate = nearest.command
            if nearest.relaxed:
                gave = sorted({name for name, level in zip(
                    constraints.names, constraints.priority, strict=True)
                    if level in nearest.relaxed})
                notes = (f'gave way: {", ".join(gave)}',)
            must = ~np.isin(self._priority, nearest.relaxed) if nearest.relaxed else _ALL
            excess = self._excess(candidate)
            if (excess[must] <= TOLERANCE).all():
                return candidate, notes
            if spread is None and not nearest.relaxed:
                slower = self._slower(candidate, excess, constraints, box)
                if slower is not None and (self._excess(slower) <= TOLERANCE).all():
                    return slower, notes
        braking = self._braking()
        for share in SHARES:
            between = np.clip(braking + share * (candidate - braking), box.low, box.high)
            if (self._excess(between)[must] <= TOLERANCE).all():
                return between, notes
        if not (self._excess(braking)[must] <= TOLERANCE).all():
            # To slow down now would break what going on as before does not.
            kept = np.clip(self._moment.previous, box.low, box.high)
            if (self._excess(kept)[must] <= TOLERANCE).all():
                return kept, (*notes, 'braking now would break a limit; kept the last command, '
                              'which breaks none')
        return None, (*notes, 'no command between the nearest and braking is safe; braking')

    @staticmethod
    def _slower(
        candidate: np.ndarray, excess: np.ndarray, constraints: LinearConstraints, box: Box,
    ) -> np.ndarray | None:
        """
        The candidate slowed down by what it still breaks, None if that is much or of no use.

        What is missing after linearising is mostly little, and to follow another command costs
        less than to linearise again and to follow that one's answer.
        """
        broken = (~(excess <= TOLERANCE)).nonzero()[0]
        first = len(constraints.names) - len(excess)   # the newest rows are the last
        falls = constraints.matrix[first + broken] @ candidate
        share = EAGER * np.max(excess[broken] / np.maximum(falls, 1e-12)) + LITTLE
        if not share <= MOST_SLOWER:
            return None
        return np.minimum(np.maximum((1.0 - share) * candidate, box.low), box.high)

    def _braking(self) -> np.ndarray:
        """The command one step closer to rest."""
        step = min(max(self._moment.elapsed, 0.0), self._settings.longest_period)
        return brake(self._moment.previous, self._limits, step)

    def _excess(self, command: np.ndarray) -> np.ndarray:
        """By how much a command breaks each limit of the whole robot."""
        if not self._guards:
            return np.zeros(0)
        if len(self._guards) == 1:
            return self._guards[0].excess(command)
        return np.concatenate([guard.excess(command) for guard in self._guards])

    def _rows(
        self, reference: np.ndarray, box: Box, spread: np.ndarray | None,
    ) -> LinearConstraints:
        """Every limit, linear about the reference."""
        rows = [guard.rows(reference) for guard in self._guards]
        constraints = LinearConstraints(
            np.concatenate([self._eye, *[row.matrix for row in rows]]),
            np.concatenate([box.low, *[row.low for row in rows]]),
            np.concatenate([box.high, *[row.high for row in rows]]),
            self._all_names, self._all_priority)
        if spread is None:
            return constraints
        return tighten(constraints, self._settings, spread)

    # The policy's distribution.

    def _spread(self, proposal: Proposal) -> np.ndarray | None:
        """Deviations of the component that is being followed, None if they do not matter."""
        if self._settings.chance <= 0.5 or proposal.deviations is None or proposal.means is None:
            return None
        nearest = int(((proposal.means - proposal.action) ** 2).sum(axis=1).argmin())
        return self._spread_of(proposal, nearest)

    def _spread_of(self, proposal: Proposal, place: int) -> np.ndarray | None:
        """Deviations of a component, None if they do not matter."""
        if self._settings.chance <= 0.5 or proposal.deviations is None:
            return None
        spread = proposal.deviations[place]
        return spread if np.isfinite(spread).all() else None

    def _tighter_box(self, spread: np.ndarray) -> Box:
        """The box with its chance margin."""
        moment = self._moment
        return safe_box(
            self._limits, self._settings, moment.feedback, moment.previous, moment.recent,
            moment.elapsed, moment.rate, self._settings.chance_quantile * spread)

    def _kept(self, action: np.ndarray, spread: np.ndarray | None) -> np.ndarray | None:
        """
        The action, delayed by limits of acceleration, if it breaks no other limit; else None.

        :param action: `(A,)`.
        :param spread: its standard deviations, whose margin is kept too.
        """
        box = self._box if spread is None else self._tighter_box(spread)
        if not box.allows(action):
            return None
        command = np.clip(action, box.low, box.high)
        if (self._excess(command) > TOLERANCE).any():
            return None
        if spread is not None and self._guards:
            rows = self._rows(command, box, spread)
            if (rows.excess(command)[len(command):] > TOLERANCE).any():
                return None
        return command

    def _other_mode(self, proposal: Proposal) -> Found | None:
        """The likeliest component that breaks no limit, by its own margin."""
        assert proposal.means is not None
        weights = proposal.weights
        order = range(len(proposal.means)) if weights is None else np.argsort(-weights)
        for place in order:
            mean = proposal.means[place]
            if not np.isfinite(mean).all():
                continue
            command = self._kept(mean, self._spread_of(proposal, int(place)))
            if command is None:
                continue
            change = float(np.abs(command - proposal.action).max())
            return Found(command, (f'took component {place}, which breaks no limit',),
                         (f'mode/{place}',), (change,))
        return None


_ALL = slice(None)


def _allowing(command: np.ndarray, constraints: LinearConstraints) -> LinearConstraints:
    """The same rows, none of them broken by the command; the box stays."""
    size, value = len(command), constraints.matrix @ command
    low, high = np.minimum(constraints.low, value), np.maximum(constraints.high, value)
    low[:size], high[:size] = constraints.low[:size], constraints.high[:size]
    return replace(constraints, low=low, high=high)
