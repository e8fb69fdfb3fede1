"""Checkpoints loaded for a robot, and slow work done beside the executor."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.task import Future

from liquid_policy.checkpoint import (
    Checkpoint,
    CheckpointError,
    encoder_identity,
    load_checkpoint,
)
from liquid_policy.interface import Interface, differences
from liquid_policy.runtime import EncoderRuntime


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
    # Limits are the safety node's: a policy runs on a robot whose cell was described later.
    different = differences(checkpoint.interface, interface, running=True)
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


def load_encoder(interface: Interface, path: str, sha256: str = '', threads: int = 1,
                 provider: str = 'cpu') -> Encoder:
    """
    Load a checkpoint's encoder and run it once, so that the first image is not slower.

    :raises CheckpointError: see `load_for`.
    """
    checkpoint = load_for(interface, path, sha256)
    runtime = EncoderRuntime(checkpoint, threads, provider)
    depth = next((spec for spec in interface.images.values() if spec.is_depth), None)
    color = next((spec for spec in interface.images.values() if not spec.is_depth), depth)
    if color is None:
        raise CheckpointError(f'{path}: this robot has no images, so it needs no perception node')
    shape = (color.height, color.width)
    runtime.encode(np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.float32))
    return Encoder(checkpoint.version, encoder_identity(checkpoint), runtime)


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
