"""Sliding windows of demonstration from live topics."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from liquid_policy.alignment import Aligned, Aligner, Outcome, Verdict, align_next
from liquid_policy.conversion import NANOSECONDS
from liquid_policy.interface import Interface
from liquid_trainer.online.window import Window


class WindowCollector:
    """
    Brings live observations, demonstrations and proposals together into sliding windows.

    The rules are those of the bag reader: observations by stamp through `Aligner`, the action of
    a tick is the first that follows it. A ring buffer holds the newest ticks; a window without
    anything to learn from (no demonstration, no target) is left out, and so is one with a hole.
    """

    def __init__(self, interface: Interface, length: float = 2.0, stride: float = 0.5) -> None:
        """
        Collect nothing yet.

        :param interface: the robot's.
        :param length: of one window [s].
        :param stride: from one window's start to the next one's [s].
        """
        if not 0.0 < stride <= length:
            raise ValueError(f'stride: expected above 0 and at most {length} s, came {stride}')
        self.interface = interface
        self.ticks_per_window = max(2, round(length * interface.rate))
        self._stride = max(1, round(stride * interface.rate))
        self._patience = max(spec.max_age for spec in interface.actions.values())
        # A longer time between two ticks is a hole: whatever was held has grown too old in it.
        ages = [spec.max_age for spec in interface.observations.values()]
        ages += [interface.features.max_age] if interface.features is not None else []
        self._longest = round(max(ages) * NANOSECONDS)
        self._aligner = Aligner(interface)
        self.episode = ''
        self.clear()

    def clear(self) -> None:
        """Forget everything collected."""
        self._aligner.clear()
        self.stale: tuple[str, ...] = ()
        most = self.ticks_per_window + round(self._patience * self.interface.rate) + 8
        self._rows: deque[Aligned] = deque(maxlen=2 * most)
        self._fresh = 0     # ticks since the last window's last one
        self._kept = 8 * most
        self._forget_samples()

    def _forget_samples(self) -> None:
        self._actions: dict[str, deque[tuple[int, np.ndarray]]] = {
            name: deque(maxlen=self._kept) for name in self.interface.actions}
        self._said: deque[tuple[int, str, np.ndarray]] = deque(maxlen=self._kept)
        self._believed: deque[tuple[int, np.ndarray]] = deque(maxlen=self._kept)

    def observe(self, name: str, stamp: int, value: np.ndarray) -> Verdict:
        """
        Take one sample of an observation, a target, or `features`.

        :param stamp: header stamp [ns].
        :raises ValueError: for the wrong shape, or numbers that are not finite.
        """
        if not np.isfinite(value).all():
            raise ValueError(f'{name}: expected finite numbers, came NaN or infinity')
        verdict = self._aligner.push(name, stamp, value)
        if verdict.outcome is Outcome.RESET:
            self._rows.clear()
            self._fresh = 0
            self._forget_samples()
        return verdict

    def demonstrate(self, name: str, stamp: int, values: np.ndarray) -> None:
        """
        Take one demonstrated action.

        :param name: of the action in the interface.
        :param stamp: header stamp, or time of receipt where the type has none [ns].
        """
        if not np.isfinite(values).all():
            raise ValueError(f'{name}: expected finite numbers, came NaN or infinity')
        self._actions[name].append((stamp, np.asarray(values)))

    def propose(self, stamp: int, version: str, values: np.ndarray) -> None:
        """
        Take what the running policy proposed.

        :param stamp: of the newest observation behind it [ns].
        :param version: of the policy.
        :param values: the first action of the chosen sequence, `(actions,)`.
        """
        if np.isfinite(values).all():
            self._said.append((stamp, version, np.asarray(values)))

    def believe(self, stamp: int, mean: np.ndarray) -> None:
        """
        Take what the running policy believes of the targets.

        :param stamp: of the newest observation behind it [ns].
        :param mean: `(targets,)`.
        """
        if np.isfinite(mean).all():
            self._believed.append((stamp, np.asarray(mean)))

    def advance(self) -> Window | None:
        """
        Answer the ticks that have come; call it after each message of the clock.

        :return: a window when one is complete, else None.
        """
        for tick in self._aligner.ticks_ready():
            known = self._aligner.at(tick)
            self.stale = known.stale
            late = self._rows and not 0 < tick - self._rows[-1].tick <= self._longest
            if known.stale or late:
                self._rows.clear()  # a window has no holes
            if not known.stale:
                self._rows.append(known)
                self._fresh += 1
        count = self.ticks_per_window
        if len(self._rows) <= count or self._fresh < self._stride:
            return None
        newest = self._rows[-1].tick
        # The last tick's action may still come, so the newest rows wait.
        settled = [row for row in self._rows
                   if newest - row.tick >= self._patience * NANOSECONDS][-count:]
        if len(settled) < count:
            return None
        self._fresh = 0
        return self._window(settled)

    def _window(self, rows: list[Aligned]) -> Window | None:
        ticks = np.array([row.tick for row in rows], np.int64)
        actions = self._aligned(ticks)
        targets = np.stack([row.targets for row in rows])
        demonstrated = np.isfinite(actions).all(1)
        actions[~demonstrated] = np.nan
        if not demonstrated.any() and not np.isfinite(targets).any():
            return None
        proposed, versions = np.full_like(actions, np.nan), set()
        by_stamp = {stamp: place for place, stamp in enumerate(ticks.tolist())}
        for stamp, version, said in self._said:
            if stamp in by_stamp:
                proposed[by_stamp[stamp]] = said
                versions.add(version)
        estimated = np.full_like(targets, np.nan)
        for stamp, mean in self._believed:
            if stamp in by_stamp:
                estimated[by_stamp[stamp]] = mean
        blank = np.zeros(0, np.float32)
        return Window(
            ticks, np.stack([blank if row.features is None else row.features for row in rows]),
            np.stack([row.vector for row in rows]), actions, targets, proposed, estimated,
            versions.pop() if len(versions) == 1 else '', self.episode)

    def _aligned(self, ticks: np.ndarray) -> np.ndarray:
        parts: list[Any] = []
        for name, spec in self.interface.actions.items():
            queue = self._actions[name]
            stamps = np.array([stamp for stamp, _ in queue], np.int64)
            values = np.array([value for _, value in queue]).reshape(-1, spec.size)
            order = np.argsort(stamps, kind='stable')
            parts.append(align_next(ticks, stamps[order], values[order], spec.max_age))
        return np.concatenate(parts, axis=1).astype(np.float32)
