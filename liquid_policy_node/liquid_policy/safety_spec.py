"""Limits of the whole robot, as the interface file's `safety` section states them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

SHAPES = {
    'plane': ('normal', 'offset'), 'sphere': ('center', 'radius'),
    'capsule': ('start', 'end', 'radius'), 'box': ('center', 'half'),
}
FRAMES = ('robot', 'world')


@dataclass(frozen=True)
class PointSpec:
    """
    A ball fixed to a link, kept away from obstacles.

    :param name: its name in the file.
    :param frame: link or frame of the URDF at its centre.
    :param radius: of the ball [m].
    :param offset: of its centre from the frame's origin, in the frame [m].
    """

    name: str
    frame: str
    radius: float = 0.0
    offset: tuple[float, ...] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        _expect(isinstance(self.frame, str) and self.frame, 'frame', 'a frame of the URDF',
                self.frame)
        _check_number(self, 'radius', 0.0)
        _check_vector(self, 'offset')


@dataclass(frozen=True)
class ObstacleSpec:
    """
    A convex body no point may touch.

    :param name: its name in the file.
    :param shape: `plane` (normal, offset: free is `normal . p >= offset`), `sphere` (center,
        radius), `capsule` (start, end, radius) or `box` (center, half; sides along the axes).
    :param frame: `robot`: fixed to the robot's root link; `world`: fixed in the odometry's frame.
    :param normal: of a plane, towards the free side; made a unit vector.
    :param offset: of a plane along its normal [m].
    :param center: of a sphere or box [m].
    :param radius: of a sphere or capsule [m].
    :param start: one end of a capsule's axis [m].
    :param end: the other end [m].
    :param half: half lengths of a box's sides [m].
    :param points: names of the points kept away from it; all when left out.
    """

    name: str
    shape: str
    frame: str = 'robot'
    normal: tuple[float, ...] | None = None
    offset: float | None = None
    center: tuple[float, ...] | None = None
    radius: float | None = None
    start: tuple[float, ...] | None = None
    end: tuple[float, ...] | None = None
    half: tuple[float, ...] | None = None
    points: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _expect(isinstance(self.shape, str) and self.shape in SHAPES, 'shape',
                f'one of {tuple(SHAPES)}', self.shape)
        _expect(isinstance(self.points, tuple), 'points', 'a list of names', self.points)
        _expect(self.frame in FRAMES, 'frame', f'one of {FRAMES}', self.frame)
        for key in ('normal', 'offset', 'center', 'radius', 'start', 'end', 'half'):
            needed = key in SHAPES[self.shape]
            _expect((getattr(self, key) is not None) == needed, key,
                    'a value' if needed else f'nothing for a {self.shape}', getattr(self, key))
        for key in ('normal', 'center', 'start', 'end', 'half'):
            if getattr(self, key) is not None:
                _check_vector(self, key)
        if self.offset is not None:
            _check_number(self, 'offset', -math.inf)
        if self.radius is not None:
            _check_number(self, 'radius', 0.0)
        if self.half is not None:
            _expect(min(self.half) > 0.0, 'half', 'lengths above 0', self.half)
        if self.normal is not None:
            length = math.hypot(*self.normal)
            _expect(length > 0.0, 'normal', 'a vector longer than 0', self.normal)
            object.__setattr__(self, 'normal', tuple(v / length for v in self.normal))


@dataclass(frozen=True)
class SeparationSpec:
    """
    Speed and separation monitoring: the nearer a human, the slower the tool.

    :param human_speed: at which a human may walk towards the robot [m/s].
    :param reaction: time from a measurement of the human to its effect on the robot [s].
    :param deceleration: of the tool that braking achieves at least [m/s2].
    :param margin: distance kept besides: reach of a hand, error of the sensor [m].
    """

    human_speed: float = 1.6
    reaction: float = 0.1
    deceleration: float = 2.0
    margin: float = 0.2

    def __post_init__(self) -> None:
        for key in ('human_speed', 'reaction', 'margin'):
            _check_number(self, key, 0.0)
        _check_number(self, 'deceleration', 1e-3)


@dataclass(frozen=True)
class SafetySpec:
    """
    The `safety` section; whatever is left out is not limited.

    :param tool: frame of the tool: carries the payload, has the tool's speed.
    :param payload: lightest and heaviest load at the tool [kg]; limits of torque, power and
        tipping hold for every load between.
    :param torque: whether the effort limits of the URDF bound the predicted torque.
    :param torque_margin: share of each effort limit kept free for what the model does not know.
    :param power: largest total mechanical power of the joints [W].
    :param tool_speed: largest speed of the tool [m/s].
    :param distance_margin: kept between points and obstacles [m].
    :param tip_margin: smallest distance of the zero-moment point from the edge of the wheels'
        support polygon [m].
    :param points: balls kept away from obstacles, by name.
    :param obstacles: bodies they are kept away from, by name.
    :param separation: slows the tool near a human.
    :param soft: names of limits among `power`, `tool_speed` that may be broken when no command
        keeps them, the last named first; `tool_speed` not beside `separation`.
    """

    tool: str | None = None
    payload: tuple[float, ...] = (0.0, 0.0)
    torque: bool = False
    torque_margin: float = 0.1
    power: float | None = None
    tool_speed: float | None = None
    distance_margin: float = 0.02
    tip_margin: float | None = None
    points: dict[str, PointSpec] = field(default_factory=dict)
    obstacles: dict[str, ObstacleSpec] = field(default_factory=dict)
    separation: SeparationSpec | None = None
    soft: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_vector(self, 'payload', 2)
        _expect(0.0 <= self.payload[0] <= self.payload[1], 'payload',
                '[lightest, heaviest] of 0 kg or more', self.payload)
        _expect(isinstance(self.torque, bool), 'torque', 'true or false', self.torque)
        _check_number(self, 'torque_margin', 0.0)
        _expect(self.torque_margin < 1.0, 'torque_margin', 'a share below 1', self.torque_margin)
        _check_number(self, 'distance_margin', 0.0)
        for key in ('power', 'tool_speed'):
            if getattr(self, key) is not None:
                _check_number(self, key, 1e-6)
        if self.tip_margin is not None:
            _check_number(self, 'tip_margin', 0.0)
        needs_tool = [key for key in ('tool_speed', 'separation')
                      if getattr(self, key) is not None]
        if self.payload[1] > 0.0:
            needs_tool.append('payload')
        _expect(self.tool is not None or not needs_tool, 'tool',
                f'a frame of the URDF, because of {", ".join(needs_tool)}', self.tool)
        _expect(bool(self.points) or not self.obstacles, 'points',
                'at least one point to be kept away from the obstacles', 'none')
        for name, obstacle in self.obstacles.items():
            for point in obstacle.points:
                _expect(point in self.points, f'obstacles.{name}.points',
                        f'names from {tuple(self.points)}', point)
        for name in self.soft:
            _expect(name in ('power', 'tool_speed'), 'soft', "'power' or 'tool_speed'", name)
        _expect(self.separation is None or 'tool_speed' not in self.soft, 'soft',
                "no 'tool_speed' beside separation, which never gives way", self.soft)

    @property
    def needs_odometry(self) -> bool:
        """Whether an obstacle is fixed in the world rather than to the robot."""
        return any(obstacle.frame == 'world' for obstacle in self.obstacles.values())


def plain(spec: Any) -> dict[str, Any]:
    """
    Give a spec as YAML values, without what has its default.

    :param spec: one of the dataclasses of this module.
    """
    data: dict[str, Any] = {}
    for entry in fields(spec):
        value = getattr(spec, entry.name)
        if entry.name == 'name' or value is None or value == entry.default or value == {}:
            continue
        if isinstance(value, dict):
            data[entry.name] = {name: plain(item) for name, item in value.items()}
        elif isinstance(value, SeparationSpec):
            data[entry.name] = plain(value)
        else:
            data[entry.name] = list(value) if isinstance(value, tuple) else value
    return data


def _expect(good: Any, key: str, expected: str, came: Any) -> None:
    if not good:
        raise ValueError(f'{key}: expected {expected}, came {came!r}')


def _is_number(value: Any) -> bool:
    return (isinstance(value, (int, float)) and not isinstance(value, bool)
            and math.isfinite(value))


def _check_number(spec: Any, key: str, least: float) -> None:
    value = getattr(spec, key)
    wanted = 'a number' if least == -math.inf else f'a number of {least:g} or more'
    _expect(_is_number(value) and value >= least, key, wanted, value)
    object.__setattr__(spec, key, float(value))


def _check_vector(spec: Any, key: str, size: int = 3) -> None:
    value = getattr(spec, key)
    good = isinstance(value, tuple) and len(value) == size and all(map(_is_number, value))
    _expect(good, key, f'{size} numbers', value)
    object.__setattr__(spec, key, tuple(map(float, value)))
