"""A robot's safety filter from its files: URDF, interface, joint_limits.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from liquid_policy.barrier import SafetyFilter
from liquid_policy.barrier_box import FilterSettings
from liquid_policy.interface import Interface
from liquid_policy.limits import Limits, LimitsError, limits_of, load_urdf
from liquid_policy.robot_model import RobotModel, base_entries, support_polygon
from liquid_policy.safety_spec import SafetySpec

POSTURES = 200   # tried at start: whether the robot can hold its heaviest payload


def load_filter(
    interface: Interface, description: str | Path, settings: FilterSettings | None = None,
    joint_limits_file: str | Path | None = None,
) -> SafetyFilter:
    """
    The filter that enforces everything a robot's files say.

    :param interface: the robot's interface.
    :param description: path of its URDF or xacro.
    :param settings: what the guarantee rests on.
    :param joint_limits_file: path of a `joint_limits.yaml`, if there is one.
    :raises LimitsError: for missing or contradictory limits.
    """
    urdf = load_urdf(description)
    return filter_of(interface, limits_of(interface, urdf, joint_limits_file), urdf, settings)


def filter_of(
    interface: Interface, limits: Limits, urdf: str, settings: FilterSettings | None = None,
) -> SafetyFilter:
    """As `load_filter`, of files that were read already."""
    settings = settings or FilterSettings()
    if interface.safety is None:
        return SafetyFilter(limits, settings)
    guard = make_guard(interface.safety, limits, settings, urdf, base_entries(interface))
    return SafetyFilter(limits, settings, (guard,))


def make_guard(
    spec: SafetySpec, limits: Limits, settings: FilterSettings, urdf: str,
    base: dict[int, int] | None = None,
):
    """
    Limits of the whole robot, ready to be enforced.

    :param spec: what they are.
    :param limits: the robot's limits, entry by entry.
    :param settings: what the guarantee rests on.
    :param urdf: the robot's description.
    :param base: actions that drive the base, see `base_entries`.
    :return: a `RobotGuard`.
    :raises LimitsError: for frames the URDF does not have, or limits the robot breaks at rest.
    """
    try:
        import daqp  # noqa: F401 - missing packages are to show now, not when it solves first
        import pinocchio  # noqa: F401
    except ImportError as error:
        raise LimitsError(
            f'the safety section needs {error.name} (rosdep pinocchio, pip install daqp)',
        ) from error
    from liquid_policy.barrier_guard import RobotGuard
    model = RobotModel(
        urdf, limits.names, limits.joint, spec.points, spec.tool, spec.payload, base,
        floating=bool(base) or spec.tip_margin is not None)
    if spec.torque:
        check_holding(spec, limits, model)
    support = support_polygon(urdf) if spec.tip_margin is not None else None
    return RobotGuard(limits, settings, spec, model, support)


def spread(count: int, size: int) -> np.ndarray:
    """
    Return points that fill the unit cube evenly, `(count, size)`.

    numpy's random numbers would do as well, and take 7 MB of memory and 40 ms of the start.

    Source: Roberts, The unreasonable effectiveness of quasirandom sequences, 2018: steps of
    1/g, 1/g^2, ... modulo 1, where g is the positive root of g^(size + 1) = g + 1.
    """
    root = 2.0
    for _ in range(60):
        root = (1.0 + root) ** (1.0 / (size + 1))
    steps = root ** -np.arange(1.0, size + 1)
    return (0.5 + np.arange(1.0, count + 1)[:, None] * steps) % 1.0


def check_holding(spec: SafetySpec, limits: Limits, model: RobotModel) -> None:
    """
    Refuse a payload that the robot cannot even hold at rest.

    Joint efforts of gravity alone are compared with the limits in postures spread over all.

    :param spec: payload and torque margin.
    :param limits: positions and efforts.
    :param model: the robot with its payloads.
    :raises LimitsError: naming joint, payload, needed and allowed effort.
    """
    lower, upper = (np.where(np.isfinite(bound), bound, default) for bound, default in (
        (limits.lower, -np.pi), (limits.upper, np.pi)))
    allowed = limits.effort[model.entries] * (1.0 - spec.torque_margin)
    postures = model.configuration(
        lower + spread(POSTURES, len(limits.names)) * (upper - lower))
    still = np.zeros((POSTURES, model.nv))
    for payload, forces in zip(
            model.payloads, model.efforts(postures, still, still), strict=True):
        for force in forces:
            needed = np.abs(force[model.dofs])
            if (needed > allowed).any():
                worst = int((needed - allowed).argmax())
                raise LimitsError(
                    f'{limits.names[model.entries[worst]]}: holding {payload:g} kg at rest needs '
                    f'up to {needed[worst]:.4g} N m, allowed are {allowed[worst]:.4g} (effort '
                    f'limit less a margin of {spec.torque_margin:g}); lower safety.payload or '
                    'safety.torque_margin')


def describe_filter(names: Sequence[str]) -> str:
    """
    Say in one line what a filter's guards enforce.

    :param names: names of the guards' rows.
    """
    kinds: dict[str, int] = {}
    for name in names:
        kinds[name.partition('/')[0]] = kinds.get(name.partition('/')[0], 0) + 1
    return ', '.join(f'{kind} ({count})' for kind, count in kinds.items()) or 'none'
