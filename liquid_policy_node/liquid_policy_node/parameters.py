"""One frozen dataclass per node, turned into described, bounded ROS parameters and back."""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, field, fields, replace
from typing import Any, TypeVar

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.exceptions import (
    InvalidParameterTypeException,
    InvalidParameterValueException,
    ParameterUninitializedException,
)
from rclpy.parameter import Parameter

from liquid_policy_node.spelling import misspelt

Settings = TypeVar('Settings')

_TYPES = {
    bool: Parameter.Type.BOOL, int: Parameter.Type.INTEGER, float: Parameter.Type.DOUBLE,
    str: Parameter.Type.STRING, tuple[float, ...]: Parameter.Type.DOUBLE_ARRAY,
    tuple[str, ...]: Parameter.Type.STRING_ARRAY,
}


def parameter(
    default: Any, description: str, unit: str = '', low: float | None = None,
    high: float | None = None, one_of: tuple = (), live: bool = False,
) -> Any:
    """
    A dataclass field that knows how to be a ROS parameter.

    :param default: default value; its field's annotation decides the parameter's type.
    :param description: what it means, one sentence.
    :param unit: SI unit, empty for none.
    :param low: smallest value allowed, also for every entry of a list; None for no bound.
    :param high: largest value allowed.
    :param one_of: the values allowed, empty for all.
    :param live: whether it may change while the node runs.
    :return: the field.
    """
    metadata = dict(
        description=description, unit=unit, low=low, high=high, one_of=one_of, live=live)
    return field(default=default, metadata=metadata)


class SettingsError(ValueError):
    """A parameter is outside its bounds, or parameters contradict each other."""


def check(settings: Any) -> None:
    """
    Check every field against its own metadata; call it first in `__post_init__`.

    :param settings: a dataclass whose fields were made by `parameter`.
    :raises SettingsError: naming the parameter, what is allowed and what came.
    """
    for item in fields(settings):
        value, about = getattr(settings, item.name), item.metadata
        unit = f' {about["unit"]}' if about.get('unit') else ''
        for entry in value if isinstance(value, (tuple, list)) else [value]:
            if isinstance(entry, float) and entry != entry:
                raise SettingsError(f'{item.name}: a number is needed, got NaN')
            if about.get('low') is not None and entry < about['low']:
                raise SettingsError(
                    f'{item.name}: must be at least {about["low"]}{unit}, got {entry}')
            if about.get('high') is not None and entry > about['high']:
                raise SettingsError(
                    f'{item.name}: must be at most {about["high"]}{unit}, got {entry}')
            if about.get('one_of') and entry not in about['one_of']:
                raise SettingsError(
                    f'{item.name}: must be one of {", ".join(map(repr, about["one_of"]))}, '
                    f'got {entry!r}')


def declare(
    node: Any, settings_class: type[Settings], apply: Callable[[Settings], None] | None = None,
) -> Settings:
    """
    Declare every field as a parameter and return the settings as they stand.

    A change at run time builds the whole new dataclass first (so its cross-field rules are
    checked too) and is applied only if that succeeds.

    :param node: rclpy node.
    :param settings_class: frozen dataclass, every field made by `parameter`.
    :param apply: called with the new settings after an accepted change.
    :return: the settings.
    :raises SettingsError: if a given value has the wrong type or breaks a rule, or a name that
        ROS would pass over in silence is nearly one of these.
    """
    hints = typing.get_type_hints(settings_class)
    specs = {item.name: item for item in fields(settings_class)}  # type: ignore[arg-type]
    values = {}
    for name, item in specs.items():
        kind = _TYPES[hints[name]]
        default = list(item.default) if isinstance(item.default, tuple) else item.default
        try:
            given = node.declare_parameter(
                name, kind if default is MISSING else default, _descriptor(item, kind))
            values[name] = _plain(given.value)
        except (InvalidParameterTypeException, InvalidParameterValueException,
                ParameterUninitializedException) as error:
            hint = ' (write floats with a decimal point)' if 'DOUBLE' in kind.name else ''
            raise SettingsError(
                f'parameter {name} of node {node.get_name()}: expected '
                f'{kind.name.lower()}{hint}: {error}') from error
    slips = misspelt(node._parameter_overrides, specs)
    if slips:
        raise SettingsError(f'parameters of node {node.get_name()}: {slips}')
    try:
        current = settings_class(**values)
    except SettingsError as error:
        raise SettingsError(f'node {node.get_name()}: parameter {error}') from error
    state = [current]

    def candidate(changes: list) -> Settings:
        return replace(state[0], **{  # type: ignore[type-var]
            change.name: _plain(change.value) for change in changes if change.name in specs})

    def validate(changes: list) -> SetParametersResult:
        for change in changes:
            if change.name in specs and not specs[change.name].metadata['live'] \
                    and _plain(change.value) != getattr(state[0], change.name):
                return SetParametersResult(successful=False, reason=(
                    f"{change.name} is read once; set it at start, or in the node's "
                    'parameter file'))
        try:
            candidate(changes)
        except (SettingsError, TypeError) as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def accept(changes: list) -> None:
        new = candidate(changes)
        if new != state[0]:
            state[0] = new
            if apply is not None:
                apply(new)

    node.add_on_set_parameters_callback(validate)
    node.add_post_set_parameters_callback(accept)
    return current


def _plain(value: Any) -> Any:
    """ROS lists (array.array, list) as tuples, everything else as it is."""
    return value if isinstance(value, (bool, int, float, str)) else tuple(value)


def _descriptor(item: Field, kind: Parameter.Type) -> ParameterDescriptor:
    """What `ros2 param describe` shows."""
    about = item.metadata
    unit = f' [{about["unit"]}]' if about['unit'] else ''
    live = '' if about['live'] else ' Read once, at start.'
    one_of = f' One of {", ".join(map(str, about["one_of"]))}.' if about['one_of'] else ''
    descriptor = ParameterDescriptor(description=f'{about["description"]}{unit}{one_of}{live}')
    if about['low'] is None or about['high'] is None:
        return descriptor
    if kind in (Parameter.Type.DOUBLE, Parameter.Type.DOUBLE_ARRAY):
        descriptor.floating_point_range = [FloatingPointRange(
            from_value=float(about['low']), to_value=float(about['high']))]
    elif kind == Parameter.Type.INTEGER:
        descriptor.integer_range = [IntegerRange(
            from_value=int(about['low']), to_value=int(about['high']))]
    return descriptor
