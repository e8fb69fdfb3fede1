"""A policy with its carried state, stepped by stamps: the same in nodes and in simulation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from liquid_policy.checkpoint import Checkpoint, encoder_identity
from liquid_policy.conversion import NANOSECONDS
from liquid_policy.low_pass import LowPass
from liquid_policy.runtime import Distribution, ModeKeeper, PolicyRuntime, chunk_time


@dataclass(frozen=True)
class Inputs:
    """
    What the policy is fed at one tick.

    :param tick: stamp [ns].
    :param features: `(features,)`.
    :param vector: `(vector,)`.
    """

    tick: int
    features: np.ndarray
    vector: np.ndarray


@dataclass(frozen=True)
class Step:
    """
    What the policy answers at one tick.

    :param distribution: in physical units.
    :param component: the component chosen.
    :param chosen: its sequence, `(H, A)`.
    :param elapsed: time since the step before [s].
    """

    distribution: Distribution
    component: int
    chosen: np.ndarray
    elapsed: float


class Model:
    """One policy with its carried state; steps by the time that truly elapsed."""

    def __init__(
        self, checkpoint: Checkpoint, path: str = '', gap: float = 1.0, threshold: float = 1.0,
        threads: int = 1, seed: int = 0,
    ) -> None:
        """
        Build the run-time form; weights of the checkpoint are not kept.

        :param checkpoint: the policy.
        :param path: where it came from.
        :param gap: after a longer silence the state starts anew [s].
        :param threshold: see `ModeKeeper`.
        :param threads: threads of one step.
        :param seed: of the noise that sampling heads are given.
        """
        self.version, self.path = checkpoint.version, path
        self.encoder_identity = encoder_identity(checkpoint) if checkpoint.interface.images else ''
        self.dt = chunk_time(checkpoint)
        self._period = 1.0 / checkpoint.interface.rate
        self._gap = gap
        self._runtime = PolicyRuntime(checkpoint, threads, seed)
        self._keeper = ModeKeeper.of(checkpoint, threshold)
        self._low_pass = LowPass.of(checkpoint)
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        """
        Forget everything seen.

        :param seed: of the noise that sampling heads are given; None: go on with it.
        """
        if seed is not None:
            self._runtime.seed(seed)
        self._state = self._runtime.initial_state()
        self._keeper.reset()
        if self._low_pass is not None:
            self._low_pass.reset()
        self.last: int | None = None

    def elapsed(self, tick: int) -> float | None:
        """
        Time since the last step [s]; None where the state has to start anew.

        That is at the first step, when time went back, and after a silence longer than the gap.
        """
        if self.last is None or tick <= self.last:
            return None
        elapsed = (tick - self.last) / NANOSECONDS
        return elapsed if elapsed <= self._gap else None

    def step(self, inputs: Inputs) -> Step:
        """
        Advance to a tick.

        :param inputs: finite and fresh.
        :raises ValueError: for wrong shapes or numbers that are not finite (the state stays), or
            if the model's own answer is not finite (the state starts anew).
        """
        elapsed = self.elapsed(inputs.tick)
        if elapsed is None:
            self.reset()
            elapsed = self._period
        vector = inputs.vector if self._low_pass is None else self._low_pass.step(inputs.vector)
        state, distribution = self._runtime.step(
            inputs.features, vector, elapsed, self._state)
        if not _finite(state, distribution):
            self.reset()
            raise ValueError(f'model {self.version} answered with numbers that are not finite; '
                             'its state starts anew')
        self._state, self.last = state, inputs.tick
        component, chosen = self._keeper.choose(distribution, elapsed)
        return Step(distribution, component, chosen, elapsed)

    def upcoming(self, stamp: int) -> int | None:
        """
        The tick at which something is answered that has just come [ns].

        One control period after the last tick, or at a later stamp; None before the first tick.
        A head that draws samples would answer with other noise, and a low-pass filter would have
        to keep what it saw: None, too.

        :param stamp: from when on what has come counts [ns].
        """
        if self.last is None or self._runtime.samples or self._low_pass is not None:
            return None
        return max(stamp, self.last + round(NANOSECONDS * self._period))

    def preview(self, inputs: Inputs) -> Step | None:
        """
        Answer a tick that is still to come, with what is known by now; nothing is kept.

        The state goes on from tick to tick only, as it did in training, so that what is answered
        in between changes nothing later.

        :param inputs: finite and fresh; the tick from `upcoming`.
        :return: None where the state has to start anew or the answer is not finite.
        """
        elapsed = self.elapsed(inputs.tick)
        if elapsed is None:
            return None
        state, distribution = self._runtime.step(
            inputs.features, inputs.vector, elapsed, self._state)
        if not _finite(state, distribution):
            return None
        component, chosen = self._keeper.choose(distribution, elapsed, keep=False)
        return Step(distribution, component, chosen, elapsed)

    def warm(self, window: Iterable[Inputs]) -> int:
        """
        Step through what was seen lately, so that the state is that of a policy that ran along.

        :param window: oldest first; what is not after the last step is skipped.
        :return: steps taken.
        """
        count = 0
        for inputs in window:
            if self.last is None or inputs.tick > self.last:
                self.step(inputs)
                count += 1
        return count


def _finite(state: np.ndarray, distribution: Distribution) -> bool:
    """Whether all numbers are; a sum of squares is only then, and costs half of a sum."""
    means = distribution.means
    return math.isfinite(np.vdot(state, state) + np.vdot(means, means))
