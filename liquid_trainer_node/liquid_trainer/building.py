"""Policies to begin a training with: made for an interface, untrained or from others' weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from liquid_policy.checkpoint import load_checkpoint
from liquid_policy.core_settings import core_settings
from liquid_policy.export import to_policy
from liquid_policy.features import load_published
from liquid_policy.head_settings import HeadSettings, head_settings, option_values
from liquid_policy.interface import Interface
from liquid_policy.policy import Policy
from liquid_policy.settings import EncoderSettings, PolicySettings


def build_policy(interface: Interface, core: str, width: float = 0.5,
                 core_options: Sequence[str] = (), head: str = 'mixture',
                 head_options: Sequence[str] = ()) -> Policy:
    """
    Return an untrained policy that fits the interface.

    :param core: a core's name, or an older name of one.
    :param width: the encoder's.
    :param core_options: such as `units=32`; the fields of `CoreSettings`.
    :param head: a head's name.
    :param head_options: such as `components=8`; the fields of its settings.
    :raises ValueError: if an option is bad.
    """
    encoder = None
    if interface.features is not None:
        image = interface.images[interface.features.images[0]]
        encoder = EncoderSettings(width=width, size=interface.features.size, height=image.height,
                                  width_pixels=image.width)
    # A chunk's steps are no shorter than the control clock's.
    period = 1.0 / interface.rate
    options = {'dt': max(HeadSettings.dt, period)} | option_values(head_options, 'head')
    return Policy(PolicySettings(vector_size=interface.vector_size,
                                 action_size=interface.action_size,
                                 target_size=interface.target_size, encoder=encoder,
                                 core=core_settings(core, core_options, unit_time=period),
                                 head=head_settings({**options, 'kind': head}),
                                 relative=positions_of_actions(interface)))


def positions_of_actions(interface: Interface) -> tuple[int, ...]:
    """
    Return where in the vector each action's own present value is, if every action has one.

    A robot that is told positions mostly does something near where it is: actions told relative
    to that are small, and holding still is the easiest thing to learn.

    :return: columns of the observed numbers of the actions' names and units; empty if one lacks.
    """
    there = {pair: column for column, pair in enumerate(
        zip(interface.vector_names, interface.vector_units, strict=True))}
    wanted = list(zip(interface.action_names, interface.action_units, strict=True))
    return tuple(there[pair] for pair in wanted) if all(p in there for p in wanted) else ()


def take_encoder(policy: Policy, path: Path) -> None:
    """
    Give a policy the encoder of a checkpoint, or published MobileNetV2 weights.

    :param policy: changed in place.
    :param path: of either, a safetensors file.
    :raises ValueError: if it is neither, or has another shape.
    """
    if policy.encoder is None:
        raise ValueError(f'{path}: expected a robot with cameras to take an encoder for, came one '
                         'without; leave it out')
    try:
        with safe_open(path, 'np') as file:
            published = 'features.0.0.weight' in file.keys()  # noqa: SIM118
        if published:
            load_published(policy.encoder, load_file(path))
            return
    except SafetensorError as error:
        raise ValueError(f'{path}: expected safetensors, came: {error}; copy it again') from None
    other = to_policy(load_checkpoint(path))
    try:
        if other.encoder is None:
            raise ValueError('one without an encoder')
        policy.encoder.load_state_dict(other.encoder.state_dict())
    except (ValueError, RuntimeError) as error:
        raise ValueError(f'{path}: expected an encoder as of this policy, came {error}; use the '
                         'same --width and interface') from None
