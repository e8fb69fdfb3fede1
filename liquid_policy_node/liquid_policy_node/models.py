"""A loaded policy and its steps: everything of the policy node that is not ROS."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.task import Future

from liquid_policy.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from liquid_policy.conversion import NANOSECONDS
from liquid_policy.interface import Interface, differences
from liquid_policy.runtime import (
    Distribution,
    EncoderRuntime,
    ModeKeeper,
    PolicyRuntime,
    chunk_time,
)


def encoder_identity(checkpoint: Checkpoint) -> str:
    """
    What tells encoders apart: a digest of the exported form.

    Two checkpoints that share an encoder share this, so a new core needs no new encoder.
    """
    return hashlib.sha256(checkpoint.export('encoder.onnx')).hexdigest()[:16]


def load_for(interface: Interface, path: str, sha256: str = '') -> Checkpoint:
    """
    Read a checkpoint that was trained for this robot.

    :param interface: the robot's.
    :param path: checkpoint file.
    :param sha256: digest it must have, empty for any.
    :raises CheckpointError: if it cannot be read, or its robot differs; every differing field is
        named.
    """
    checkpoint = load_checkpoint(path, sha256)
    different = differences(checkpoint.interface, interface)
    if different:
        raise CheckpointError(
            f'{path}: trained for another robot than this one ({checkpoint.interface.robot} '
            f'against {interface.robot}); it differs in {"; ".join(different)}. Give the '
            'interface file it was trained with, or train one for this robot')
    return checkpoint


@dataclass(frozen=True)
class Encoder:
    """
    A loaded image encoder.

    :param version: the checkpoint's version.
    :param identity: see `encoder_identity`.
    :param runtime: makes the features.
    """

    version: str
    identity: str
    runtime: EncoderRuntime


def load_encoder(interface: Interface, path: str, sha256: str = '', threads: int = 1) -> Encoder:
    """
    Load a checkpoint's encoder and run it once, so that the first image is not slower.

    :raises CheckpointError: see `load_for`.
    """
    checkpoint = load_for(interface, path, sha256)
    runtime = EncoderRuntime(checkpoint, threads)
    depth = next((spec for spec in interface.images.values() if spec.is_depth), None)
    color = next((spec for spec in interface.images.values() if not spec.is_depth), depth)
    if color is None:
        raise CheckpointError(f'{path}: this robot has no images, so it needs no perception node')
    shape = (color.height, color.width)
    runtime.encode(np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.float32))
    return Encoder(checkpoint.version, encoder_identity(checkpoint), runtime)


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
        self, checkpoint: Checkpoint, path: str, gap: float = 1.0, threshold: float = 0.2,
        threads: int = 1,
    ) -> None:
        """
        Build the run-time form; weights of the checkpoint are not kept.

        :param checkpoint: the policy.
        :param path: where it came from.
        :param gap: after a longer silence the state starts anew [s].
        :param threshold: see `ModeKeeper`.
        :param threads: threads of one step.
        """
        self.version, self.path = checkpoint.version, path
        self.encoder_identity = encoder_identity(checkpoint) if checkpoint.interface.images else ''
        self.dt = chunk_time(checkpoint)
        self._period = 1.0 / checkpoint.interface.rate
        self._gap = gap
        self._runtime = PolicyRuntime(checkpoint, threads)
        self._keeper = ModeKeeper.of(checkpoint, threshold)
        self.reset()

    def reset(self) -> None:
        """Forget everything seen."""
        self._state = self._runtime.initial_state()
        self._keeper.reset()
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
        state, distribution = self._runtime.step(
            inputs.features, inputs.vector, elapsed, self._state)
        # A sum is finite only if every term is.
        if not math.isfinite(state.sum() + distribution.means.sum()):
            self.reset()
            raise ValueError(f'model {self.version} answered with numbers that are not finite; '
                             'its state starts anew')
        self._state, self.last = state, inputs.tick
        component, chosen = self._keeper.choose(distribution, elapsed)
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


def in_thread(work: Callable[[], Any]) -> Future:
    """
    Run something slow beside the executor; `await` the result in a callback.

    :param work: called in a thread of its own.
    """
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 - raised again where it is awaited
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
