"""The safety node's parameters that the filter's guarantee rests on, as the filter's settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from liquid_policy.barrier_box import FilterSettings
from liquid_policy.limits import LimitsError

# Parameter of the safety node -> field of FilterSettings.
FIELDS = {
    'longest_period': 'longest_period', 'actuation_delay': 'delay',
    'position_margin': 'position_margin', 'standing_speed': 'still', 'chance': 'chance',
    'other_modes': 'other_modes', 'effort_share': 'effort_share', 'overshoot': 'overshoot',
}


def filter_settings(parameters: Mapping[str, Any]) -> FilterSettings:
    """
    The filter's settings among a safety node's parameters; what is not given has its default.

    :param parameters: by name; others than those in `FIELDS` are the node's alone.
    :raises ValueError: for a value out of its bounds.
    """
    return FilterSettings(**{
        field: parameters[name] for name, field in FIELDS.items() if name in parameters})


def read_filter_settings(path: str | Path, node: str = 'safety') -> FilterSettings:
    """
    The filter's settings in a parameter file, so that a simulation without nodes has the same.

    :param path: the parameter file of a robot, such as `config/manipulator.yaml`.
    :param node: name of the safety node in it; when it is not there, everything has its default.
    :raises LimitsError: if the file cannot be read or its values are out of bounds.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding='utf-8'))
        return filter_settings(((data or {}).get(node) or {}).get('ros__parameters') or {})
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise LimitsError(
            f'{path}: expected a readable parameter file, came {error}') from None
