"""Heads by name."""

from __future__ import annotations

from liquid_policy.head_settings import HeadSettings
from liquid_policy.heads.deterministic import DeterministicHead
from liquid_policy.heads.diffusion import DiffusionHead
from liquid_policy.heads.flow import FlowHead
from liquid_policy.heads.head import Head
from liquid_policy.heads.imle import ImleHead
from liquid_policy.heads.mixture import MixtureHead

_KINDS: dict[str, type] = {
    'mixture': MixtureHead, 'deterministic': DeterministicHead, 'imle': ImleHead,
    'flow': FlowHead, 'diffusion': DiffusionHead}


def build_head(inputs: int, actions: int, settings: HeadSettings) -> Head:
    """
    Return the head that the settings name.

    :param inputs: numbers it sees.
    :param actions: numbers of an action.
    """
    return _KINDS[settings.kind](inputs, actions, settings)
