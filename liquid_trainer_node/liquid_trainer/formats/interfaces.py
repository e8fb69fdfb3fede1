"""An interface file for a robot that is only known from a data set."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from liquid_policy.interface import (
    UNITS,
    ActionSpec,
    FeatureSpec,
    ImageSpec,
    Interface,
    Limit,
    SourceSpec,
)

from .dataset import Demonstration, Feature, FormatError, Layout

DEPTH_RANGE = (0.0, 3.0)        # [m], what the encoder tells apart

# What only somebody who knows the robot can say.
_TO_EDIT = """\
# Made from {source}. It trains as it is. Before a policy drives
# a robot, correct what a data set does not tell:
#   description: the robot's URDF or xacro; "none" means no limits but those below
#   topics and types: those of the robot's drivers and controllers; the recorded bags have these
#   unit: 1 is "not known" here{units}
#   limits: the widest of the data and a twentieth more, not the robot's own
#   latency, max_age: how late messages are; a data set has everything at once
"""


@dataclass
class Extent:
    """
    How far the numbers of a data set reach, and how fast they change.

    :param rate: steps per second.
    """

    rate: float
    low: np.ndarray = field(default_factory=lambda: np.empty(0))
    high: np.ndarray = field(default_factory=lambda: np.empty(0))
    speed: np.ndarray = field(default_factory=lambda: np.empty(0))
    change: np.ndarray = field(default_factory=lambda: np.empty(0))

    def add(self, values: np.ndarray) -> None:
        """Take an episode, `(steps, numbers)`."""
        values = np.asarray(values, np.float64)
        none = np.zeros((1, values.shape[1]))
        first = np.abs(np.diff(values, axis=0, append=values[-1:])).max(0) * self.rate
        second = np.abs(np.concatenate((none, np.diff(values, 2, axis=0)))).max(0) * self.rate**2
        if not len(self.low):
            self.low, self.high = values.min(0), values.max(0)
            self.speed, self.change = first, second
            return
        self.low = np.minimum(self.low, values.min(0))
        self.high = np.maximum(self.high, values.max(0))
        self.speed, self.change = np.maximum(self.speed, first), np.maximum(self.change, second)


def extent_of(episodes: Iterable[Demonstration], rate: float) -> Extent:
    """Return how far the actions of episodes reach."""
    extent = Extent(rate)
    for episode in episodes:
        extent.add(episode.actions)
    return extent


def with_units(layout: Layout, units: Mapping[str, str]) -> Layout:
    """
    Return a layout whose numbers have units.

    :param units: unit by pattern of a feature's name, or of `feature/number`, such as
        `action/*Shoulder*`; later ones win.
    :raises FormatError: for an unknown unit, or a pattern that fits nothing.
    """
    used = dict.fromkeys(units, False)

    def told(feature: Feature) -> Feature:
        found = list(feature.units)
        for index, name in enumerate(feature.names):
            for pattern, unit in units.items():
                if any(fnmatch.fnmatchcase(path, pattern)
                       for path in (feature.name, f'{feature.name}/{name}')):
                    found[index], used[pattern] = unit, True
        return replace(feature, units=tuple(found))

    unknown = sorted(set(units.values()) - set(UNITS))
    if unknown:
        raise FormatError(f'expected units of {UNITS}, came {unknown}')
    result = replace(layout, observations=tuple(map(told, layout.observations)),
                     action=told(layout.action))
    idle = [pattern for pattern, hit in used.items() if not hit]
    if idle:
        there = [f'{part.name}/{name}' for part in (*layout.observations, layout.action)
                 for name in part.names]
        raise FormatError(f'expected patterns that fit one of {there}, came {idle}')
    return result


def derive_interface(layout: Layout, extent: Extent, sizes: Mapping[str, tuple[int, int]],
                     camera: str = '', features: int = 128) -> Interface:
    """
    Return an interface that fits a data set.

    The first feature's messages are the control clock. All are JointState, whose positions hold
    the numbers by name, whatever they are; a robot's own topics are to be filled in by hand.

    :param layout: of the data set; it needs a rate.
    :param extent: of the actions, for their limits.
    :param sizes: height and width of images by camera; those of the layout where missing.
    :param camera: which one perception looks through; the first when left out.
    :param features: how many image features.
    :raises FormatError: if the rate or observed numbers are missing, or names cannot be used.
    """
    if layout.rate is None:
        raise FormatError('expected steps per second, came none in the data set; give --rate')
    if not layout.observations:
        raise FormatError('expected observed numbers, to take the control clock from, came none')
    rate, age = layout.rate, round(1.5 / layout.rate, 4)
    observations, topics = {}, dict[str, str]()
    sources = {feature.name: number_names(feature) for feature in layout.observations}
    for index, feature in enumerate(layout.observations):
        name, kind = plain_name(feature.name), 'velocity' if feature.of else 'position'
        topics[feature.name] = topics.get(
            feature.of, 'joint_states' if not index else f'{name}_states')
        observations[name] = SourceSpec(
            name=name, topic=topics[feature.name], type='sensor_msgs/msg/JointState',
            fields=tuple(f'{kind}.{number}' for number in sources[feature.of or feature.name]),
            units=feature.units, names=sources[feature.name], rate=rate, max_age=age)
    images, seen, told = _images(layout, sizes, camera, rate, age, features)
    action = layout.action
    names = number_names(action)
    actions = {'action': ActionSpec(
        name='action', topic='action/commands', type='std_msgs/msg/Float64MultiArray',
        demonstration='demonstration/action',
        fields=tuple(f'data.{index}' for index in range(action.size)), units=action.units,
        names=names, rate=rate, max_age=age)}
    limits = {name: _limit(name, unit, extent, index)
              for index, (name, unit) in enumerate(zip(names, action.units, strict=True))}
    taken = {'action', 'features', *images}
    if taken & set(observations):
        observations = {(f'{name}_numbers' if name in taken else name): spec
                        for name, spec in observations.items()}
        observations = {name: replace(spec, name=name) for name, spec in observations.items()}
    return Interface(robot=plain_name(layout.robot), description='none', rate=rate,
                     clock=next(iter(observations)), observations=observations, actions=actions,
                     limits=limits, images=images if seen else {}, features=told)


def _images(layout: Layout, sizes: Mapping[str, tuple[int, int]], camera: str, rate: float,
            age: float, features: int) -> tuple[dict[str, ImageSpec], bool, FeatureSpec | None]:
    images = {}
    for picture in layout.pictures:
        name = plain_name(picture.name)
        height, width = sizes.get(picture.name, (picture.height, picture.width))
        images[name] = ImageSpec(
            name=name, topic=f'{name}/image_raw', type='sensor_msgs/msg/Image',
            encoding='32FC1' if picture.depth else 'rgb8', height=height, width=width, rate=rate,
            unit='m' if picture.depth else None, range=DEPTH_RANGE if picture.depth else None)
    if not images:
        return {}, False, None
    colours = [name for name, spec in images.items() if not spec.is_depth]
    wanted = plain_name(camera) if camera else (colours or list(images))[0]
    if wanted not in images:
        raise FormatError(f'expected a camera of {list(images)}, came {camera!r}')
    looked = [wanted]
    # A depth image of the same camera, if there is one, is seen with it.
    looked += [name for name, spec in images.items() if spec.is_depth and name != wanted
               and name.replace('depth', '') in (wanted.replace('color', ''),
                                                 wanted.replace('image', ''))][:1]
    told = FeatureSpec(topic='features', size=features, rate=rate, max_age=age,
                       images=tuple(looked))
    return images, True, told


def _limit(name: str, unit: str, extent: Extent, index: int) -> Limit:
    low, high = float(extent.low[index]), float(extent.high[index])
    margin = 0.05 * max(high - low, 1e-3)
    span = (_rounded(low - margin, math.floor), _rounded(high + margin, math.ceil))
    speed, change = (max(1.05 * float(part[index]), 1e-3)
                     for part in (extent.speed, extent.change))
    if unit in ('rad/s', 'm/s'):
        fastest = max(abs(low), abs(high), 1e-3)
        return Limit(name, velocity=_rounded(1.05 * fastest, math.ceil),
                     acceleration=_rounded(speed, math.ceil))
    if unit in ('rad', 'm'):
        return Limit(name, range=span, velocity=_rounded(speed, math.ceil),
                     acceleration=_rounded(change, math.ceil))
    return Limit(name, range=span)


def _rounded(value: float, way: Any) -> float:
    """Round to three digits, up or down."""
    if not value:
        return 0.0
    digits = 2 - math.floor(math.log10(abs(value)))
    return float(round(way(value * 10.0**digits) / 10.0**digits, max(digits, 0)))


def interface_text(interface: Interface, layout: Layout, source: str) -> str:
    """Return the interface file, headed by what is to be edited."""
    known = any(unit != '1' for part in (*layout.observations, layout.action)
                for unit in part.units)
    units = '' if known else '; --unit says it when importing'
    return _TO_EDIT.format(source=Path(source).name, units=units) + interface.to_yaml()


def plain_name(name: str) -> str:
    """Return a name that topics may have: `observation.images.top` becomes `top`."""
    name = re.sub(r'^(observation\.)?(images?\.)?', '', name) or name
    name = re.sub(r'[^A-Za-z0-9_]+', '_', name).strip('_') or 'data'
    return name if name[0].isalpha() else f'n{name}'


def number_names(feature: Feature) -> tuple[str, ...]:
    """
    Return names of numbers that an interface may have.

    :raises FormatError: if two become the same.
    """
    names = tuple(number_name(name) for name in feature.names)
    if len(set(names)) != len(names):
        raise FormatError(f'{feature.name}: expected names that differ in letters or digits, came '
                          f'{list(feature.names)}')
    return names


def number_name(name: str) -> str:
    """Return a name with only what names in an interface may have."""
    name = re.sub(r'[^A-Za-z0-9_./-]+', '_', name)
    name = re.sub(r'\.+', '.', name).strip('.') or '_'
    return name if name[0].isalpha() or name[0] == '_' else f'_{name}'


def columns_of(layout: Layout, wanted: Sequence[str], kind: str, source: str
               ) -> list[tuple[str, int]]:
    """
    Say where named numbers lie among a data set's observations.

    :param wanted: names in an interface.
    :param kind: what they are, for errors.
    :return: feature and column of each.
    :raises FormatError: for a name the data set does not have.
    """
    places = {number_name(name): (feature.name, column) for feature in layout.observations
              for column, name in enumerate(feature.names)}
    _known(wanted, places, kind, source)
    return [places[name] for name in wanted]


def action_columns(layout: Layout, wanted: Sequence[str], source: str) -> list[int]:
    """
    Say where named actions lie in a data set's action.

    :raises FormatError: for a name the data set does not have.
    """
    places = {number_name(name): column for column, name in enumerate(layout.action.names)}
    _known(wanted, places, 'actions', source)
    return [places[name] for name in wanted]


def _known(wanted: Sequence[str], there: Mapping[str, Any], kind: str, source: str) -> None:
    unknown = [name for name in wanted if name not in there]
    if unknown:
        raise FormatError(f'{source}: expected {kind} called {unknown}, as the interface says, '
                          f'came {list(there)}; rename them in the interface file (names)')
