"""Windows of demonstration from live topics, and small steps on them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from liquid_policy.alignment import Aligner, Outcome, Verdict, align_next
from liquid_policy.conversion import NANOSECONDS
from liquid_policy.interface import Interface


@dataclass(frozen=True, eq=False)
class Window:
    """
    What was seen and demonstrated at consecutive ticks.

    :param ticks: stamps, int64 `(T,)` [ns].
    :param features: float32 `(T, features)`.
    :param vectors: observations, float32 `(T, vector)`.
    :param actions: demonstrated from each tick on, float32 `(T, actions)`.
    :param targets: float32 `(T, targets)`, NaN where unknown.
    """

    ticks: np.ndarray
    features: np.ndarray
    vectors: np.ndarray
    actions: np.ndarray
    targets: np.ndarray

    def elapsed(self) -> np.ndarray:
        """Time since the tick before [s], `(T,)`; the first counts as the median."""
        steps = np.diff(self.ticks) / NANOSECONDS
        return np.concatenate(([np.median(steps)], steps)).astype(np.float32)

    def chunks(self, horizon: int, dt: float) -> tuple[np.ndarray, np.ndarray]:
        """
        Actions demonstrated from each tick on.

        :param horizon: steps H.
        :param dt: time between the steps [s].
        :return: `(T, H, actions)`, and which of them lie within the window, `(T, H)`.
        """
        times = (self.ticks - self.ticks[0]) / NANOSECONDS
        half = np.median(np.diff(times)) / 2
        wanted = times[:, None] + np.arange(horizon) * dt
        index = np.searchsorted(times, wanted - half)
        inside = index < len(times)
        return self.actions[np.minimum(index, len(times) - 1)], inside


class WindowCollector:
    """
    Brings live observations and demonstrated actions together into windows of fixed length.

    The rules are those of the bag reader: observations by stamp through `Aligner`, the action of
    a tick is the first that follows it.
    """

    def __init__(self, interface: Interface, length: float = 2.0) -> None:
        """
        Collect nothing yet.

        :param interface: the robot's.
        :param length: of one window [s].
        """
        self.interface = interface
        self._ticks_per_window = max(2, round(length * interface.rate))
        self._patience = max(spec.max_age for spec in interface.actions.values())
        self._aligner = Aligner(interface)
        self.clear()

    def clear(self) -> None:
        """Forget everything collected."""
        self._aligner.clear()
        self._rows: deque[Any] = deque(maxlen=4 * self._ticks_per_window)
        self._actions: dict[str, deque[tuple[int, np.ndarray]]] = {
            name: deque(maxlen=8 * self._ticks_per_window) for name in self.interface.actions}

    def observe(self, name: str, stamp: int, value: np.ndarray) -> Verdict:
        """
        Take one sample of an observation, a target, or `features`.

        :param stamp: header stamp [ns].
        """
        verdict = self._aligner.push(name, stamp, value)
        if verdict.outcome is Outcome.RESET:
            self._rows.clear()
            for queue in self._actions.values():
                queue.clear()
        return verdict

    def demonstrate(self, name: str, stamp: int, values: np.ndarray) -> None:
        """
        Take one demonstrated action.

        :param name: of the action in the interface.
        :param stamp: header stamp, or time of receipt where the type has none [ns].
        """
        self._actions[name].append((stamp, values))

    def advance(self) -> Window | None:
        """
        Answer the ticks that have come; call it after each message of the clock.

        :return: a window when one is complete, else None.
        """
        for tick in self._aligner.ticks_ready():
            known = self._aligner.at(tick)
            if known.stale:
                self._rows.clear()  # a window has no holes
            else:
                self._rows.append(known)
        if len(self._rows) <= self._ticks_per_window:
            return None
        newest = self._rows[-1].tick
        last = self._rows[self._ticks_per_window - 1].tick
        if newest - last < self._patience * NANOSECONDS:
            return None  # the last tick's action may still come
        rows = [self._rows.popleft() for _ in range(self._ticks_per_window)]
        ticks = np.array([row.tick for row in rows], np.int64)
        actions = self._aligned(ticks)
        if not np.isfinite(actions).all():
            return None  # nobody was demonstrating all the time
        blank = np.zeros(0, np.float32)
        return Window(
            ticks, np.stack([blank if row.features is None else row.features for row in rows]),
            np.stack([row.vector for row in rows]), actions,
            np.stack([row.targets for row in rows]))

    def _aligned(self, ticks: np.ndarray) -> np.ndarray:
        parts = []
        for name, spec in self.interface.actions.items():
            queue = self._actions[name]
            while queue and queue[0][0] < ticks[0]:
                queue.popleft()
            stamps = np.array([stamp for stamp, _ in queue], np.int64)
            values = np.array([value for _, value in queue]).reshape(-1, spec.size)
            order = np.argsort(stamps, kind='stable')
            parts.append(align_next(ticks, stamps[order], values[order], spec.max_age))
        return np.concatenate(parts, axis=1)


class OnlineFitter:
    """
    A private copy of a policy that is stepped on windows; encoder and scales stay as they are.

    The copy is never handed out: promotion needs held-out scores, which this does not have.
    """

    def __init__(self, checkpoint: Any, rate: float = 1e-4, memory: int = 32) -> None:
        """
        Copy the policy; imports torch.

        :param checkpoint: a `liquid_policy.checkpoint.Checkpoint`.
        :param rate: learning rate of AdamW.
        :param memory: windows kept to draw from besides the newest.
        """
        import torch

        from liquid_policy.export import to_policy
        torch.set_num_threads(1)
        self._torch = torch
        self._policy = to_policy(checkpoint)
        for parameter in self._policy.encoder.parameters():
            parameter.requires_grad_(False)
        self._trained = [p for p in self._policy.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=rate, weight_decay=1e-4)
        self._windows: deque[Window] = deque(maxlen=memory)
        self._random = np.random.default_rng(0)
        self.rate = rate
        self.steps = 0
        self.loss = float('nan')
        self.loss_start = float('nan')
        self._first: list[float] = []

    def add(self, window: Window) -> None:
        """Keep a window to learn from."""
        self._windows.append(window)

    @property
    def windows(self) -> int:
        """How many windows there are to draw from."""
        return len(self._windows)

    def step(self) -> Mapping[str, float]:
        """
        One optimisation step on one window, the newest half of the time.

        :return: `loss` (negative log-likelihood per number) and the `gradient` norm.
        :raises FloatingPointError: if the loss is not finite; the weights stay.
        """
        torch, policy = self._torch, self._policy
        newest = self._random.random() < 0.5
        window = self._windows[-1 if newest else self._random.integers(len(self._windows))]
        loss = self._loss(window)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradient = float(torch.nn.utils.clip_grad_norm_(self._trained, 1.0))
        value = float(loss.detach())
        if not (np.isfinite(value) and np.isfinite(gradient)):
            raise FloatingPointError(f'loss {value}, gradient {gradient}: expected finite numbers')
        self._optimizer.step()
        self.steps += 1
        if len(self._first) < 10:
            self._first.append(value)
            self.loss_start = float(np.mean(self._first))
        self.loss = value if self.steps == 1 else self.loss + 0.1 * (value - self.loss)
        assert not policy.training
        return {'loss': value, 'gradient': gradient}

    def _loss(self, window: Window) -> Any:
        torch, policy = self._torch, self._policy
        made = policy.settings.head
        observed = np.concatenate((window.features, window.vectors), axis=1)
        x = policy.normalise(torch.from_numpy(observed)[None])
        elapsed = torch.from_numpy(window.elapsed())[None, :, None]
        outputs, _ = policy.core.sequence(x, elapsed, policy.initial_state(1))
        mixture, mean, scale = policy.heads(outputs[0], x[0])
        chunk, inside = window.chunks(made.horizon, made.dt)
        loss = policy.head.loss(
            mixture, policy.action_scaling(torch.from_numpy(chunk)), torch.from_numpy(inside))
        targets = policy.target_scaling(torch.from_numpy(window.targets))
        return loss + policy.estimate.loss(mean, scale, targets)


