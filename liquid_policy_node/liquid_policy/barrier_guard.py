"""
Limits of the whole robot, for one command at a time.

Of the manoeuvre of a command (held, then braked; `liquid_policy.barrier_manoeuvre`) at no instant

- may a watched point come nearer to an obstacle than the margin,
- may the tool be faster than its limit, or than what a human's distance allows, the base's motion
  included,
- may forces break their limits (`liquid_policy.barrier_force_guard`).

`excess` says exactly whether a command is safe, `rows` linearises the limits about one for the
quadratic programme.

Source: Ames et al., Control barrier functions: theory and applications, ECC 2019; the manoeuvre
as a barrier, see there; separation: ISO/TS 15066, 5.5.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from liquid_policy.barrier_bounds import Links, fastest_between, sagitta
from liquid_policy.barrier_box import FilterSettings
from liquid_policy.barrier_force_guard import BACKOFF, EDGE, ForceLimits
from liquid_policy.barrier_manoeuvre import Manoeuvre, Plan
from liquid_policy.barrier_rows import HARD, GuardRows, Moment
from liquid_policy.barrier_shapes import Shapes, lowest_between
from liquid_policy.limits import Limits
from liquid_policy.robot_model import RobotModel
from liquid_policy.safety_spec import SafetySpec, SeparationSpec

SHORTEST_STEP = 1e-3   # [s]; a shorter step counts as this one when accelerations are made of it
NEAR = 0.3             # [m]; obstacles farther than this after the manoeuvre need no row
# Share of the tool's speed kept free: while the delay is unknown so is the posture, and with it
# what a joint's speed does to the tool.
POSTURE = 0.03
SPEED_BACK = 2e-3      # share of the limit; at least that much
STEP_BACK = 2e-4       # [m]; at least that much for distances, so that the search ends soon


def separation_speed(spec: SeparationSpec, distance: float) -> float:
    """
    The largest speed of the tool towards a human at this distance.

    Solves `(v_h + v) t + v_h v / a + v^2 / (2 a) + margin = distance` for v: during the reaction
    time t both move, during braking at a the human moves on.

    :param spec: the human's speed v_h, t, a and the margin.
    :param distance: of the nearest human [m]; infinite without one.
    :return: speed, 0 or more [m/s].

    Source: ISO/TS 15066:2016, 5.5.4.2.3, with constant deceleration.
    """
    if distance == np.inf:
        return np.inf
    room = distance - spec.margin - spec.human_speed * spec.reaction
    if not room > 0.0:  # also for NaN
        return 0.0
    half = spec.reaction * spec.deceleration + spec.human_speed
    return float(2.0 * room * spec.deceleration / (
        half + np.sqrt(half * half + 2.0 * room * spec.deceleration)))


@dataclass(eq=False, slots=True)
class _Path:
    """A command's manoeuvre in space; None where a quick bound has shown it to be far or slow."""

    room: np.ndarray                   # (O, P) [m], least distance to the margin, at least
    pieces: np.ndarray | None = None   # (O, S - 1, P) [m], the same piece by piece
    heading: np.ndarray | None = None  # (S, 3): x, y, yaw of the base in the world
    distance: np.ndarray | None = None   # (O, S, P) [m], less the points' radii
    normal: np.ndarray | None = None     # (O, S, P, 3)
    fastest: float = 0.0               # bound of the tool's speed [m/s]
    worst: int = 0                     # sample at the faster end of that piece
    tool: np.ndarray | None = None     # (3,), velocity of the tool there
    slopes: np.ndarray | None = None   # (3, A), how that changes with the command, if known


class RobotGuard:
    """The `safety` section of an interface file, enforced."""

    def __init__(
        self, limits: Limits, settings: FilterSettings, spec: SafetySpec, model: RobotModel,
        support: tuple[np.ndarray, float] | None = None,
    ) -> None:
        """
        Prepare everything that does not change.

        :param limits: the robot's limits, entry by entry.
        :param settings: what the guarantee rests on.
        :param spec: limits of the whole robot.
        :param model: the robot, with the spec's points, tool and payload.
        :param support: the support polygon, see `robot_model.support_polygon`; needed for the
            tip margin.
        :raises LimitsError: for a tip margin no posture has.
        """
        self.limits, self.settings, self.spec, self.model = limits, settings, spec, model
        self._size = len(limits.names)
        self._stretch = 1.0 + settings.overshoot
        self._moves = limits.moving * self._stretch
        self._deceleration = np.where(limits.moving, limits.deceleration, 1.0)
        self._drive = {column: entry for entry, column in model.base.items()}
        points, obstacles = list(spec.points.values()), list(spec.obstacles.values())
        fixed = [place for place, item in enumerate(obstacles) if item.frame == 'robot']
        moving = [place for place, item in enumerate(obstacles) if item.frame == 'world']
        self._groups = tuple((np.array(places), in_world) for places, in_world in (
            (fixed, False), (moving, True)) if places)
        self._bodies, self._obstacles = obstacles, len(obstacles)
        self._shapes: dict[bytes, Shapes] = {}
        self._radius = np.array([point.radius for point in points])
        self._keep = np.array([
            [np.inf if item.points and point.name not in item.points else 0.0
             for point in points] for item in obstacles]).reshape(len(obstacles), len(points))
        self._allowance = self._keep - spec.distance_margin
        self._in_world = np.array([item.frame == 'world' for item in obstacles], dtype=bool)
        self._speed_limited = spec.tool_speed is not None or spec.separation is not None
        self._hard_speed = 'tool_speed' not in spec.soft
        self._forces = ForceLimits(limits, spec, model, self._stretch, support) \
            if spec.torque or spec.power or spec.tip_margin is not None else None
        chain = model.chain
        self._links = Links(chain, chain.points, self._size)
        self._world_links = Links(chain, chain.points, self._size, model.base)
        self._tool_links = self._world_links if self._drive else self._links
        count = len(points)
        # how far points, and the tool, move by each entry's way
        self._per_way = (self._links.rates @ self._links.lengths.T)[:, :count]
        self._world_per_way = (self._world_links.rates @ self._world_links.lengths.T)[:, :count]
        if self._speed_limited:
            self._tool_per_way = self._tool_links.rates @ self._tool_links.lengths[-1]
        # where distances were last computed, and which; at first nothing is far
        self._anchor = (
            np.zeros((len(obstacles), self._size)), np.zeros((len(obstacles), 3)),
            np.full((len(obstacles), count), -1e9))
        self._moving = bool(self._drive) and bool(self._in_world.any())
        self._spans = self._world_links.lengths.sum(axis=1)[:count]
        names = [f'distance/{item.name}/{point.name}' for item in obstacles for point in points]
        self._pairs = len(names)
        names += ['speed/tool'] if self._speed_limited else []
        names += self._forces.names if self._forces else ()
        self.names = tuple(names)
        soft = {{'power': 'power', 'tool_speed': 'speed'}[key]: place
                for place, key in enumerate(spec.soft, start=1)}
        self.priority = np.array(
            [soft.get(name.partition('/')[0], HARD) for name in names], dtype=np.intp)
        self._plans: Plan | None = None
        self._planned = b''   # the command it is of, as it lies in memory: quickest to compare
        self._path: _Path | None = None
        self._exceeded: tuple[bytes, np.ndarray] | None = None

    @property
    def needs_odometry(self) -> bool:
        """Whether the pose of the base must be known."""
        return self.spec.needs_odometry and bool(self._drive)

    # The moment.

    def begin(self, moment: Moment) -> None:
        """Take in a new moment; `excess` and `rows` then speak of it."""
        feedback, limits = moment.feedback, self.limits
        self._moment = moment
        self._path = self._plans = self._exceeded = None
        self._first = True   # whether no command's tool speed has been looked at yet
        late = feedback.age + self.settings.delay
        recent = moment.recent
        ahead = (recent[0] if len(recent) == 1 else recent.mean(axis=0)) * late
        self._start = np.where(limits.joint, feedback.position + ahead, 0.0)
        self._pose = np.zeros(3) if feedback.base is None else feedback.base
        if self._drive:
            self._pose = self._drive_on(self._pose, ahead[None])[0][0]
        self._allowed = np.inf if self.spec.tool_speed is None else self.spec.tool_speed
        if self.spec.separation is not None:
            self._allowed = min(self._allowed, separation_speed(
                self.spec.separation, moment.human_distance))
        if self._forces is not None:
            self._forces.begin(self._start, moment.previous, max(
                min(moment.elapsed, self.settings.longest_period), SHORTEST_STEP))

    def _drive_on(self, pose: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Pose of the base after each offset, and how far at most that is from the truth.

        Each piece is driven in the direction of its middle. The direction is off by half the
        piece's turn at most, and so is the way by that share of it.

        :param pose: x, y, yaw before the first piece.
        :param offset: way so far at the end of each piece, of all entries, `(S, A)`.
        :return: poses `(S, 3)` and errors `(S,)` [m].
        """
        way = np.zeros((len(offset) + 1, 3))
        for axis, column in enumerate((0, 1, 5)):
            if column in self._drive:
                way[1:, axis] = offset[:, self._drive[column]]
        step = way[1:] - way[:-1]
        middle = pose[2] + 0.5 * (way[1:, 2] + way[:-1, 2])
        cosine, sine = np.cos(middle), np.sin(middle)
        result = np.empty((len(offset), 3))
        result[:, 0] = pose[0] + (cosine * step[:, 0] - sine * step[:, 1]).cumsum()
        result[:, 1] = pose[1] + (sine * step[:, 0] + cosine * step[:, 1]).cumsum()
        result[:, 2] = pose[2] + way[1:, 2]
        return result, (0.5 * np.hypot(step[:, 0], step[:, 1]) * np.abs(step[:, 2])).cumsum()

    # Limits along the manoeuvre.

    def _plan(self, command: np.ndarray) -> Plan:
        """Where the command leads; kept for the same command."""
        key = command.tobytes()
        if self._plans is None or self._planned != key:
            self._plans, self._planned = Plan(
                command * self._moves, self._deceleration, self.settings.longest_period), key
            self._path = None
        return self._plans

    def _follow(self, command: np.ndarray) -> _Path:
        """The command's manoeuvre in space; kept for the same command."""
        plan = self._plan(command)
        if self._path is None:
            path, slow = _Path(self._far(plan)), self._slow(plan)
            if slow is None:
                self._follow_tool(plan, path)
            else:
                path.fastest = slow
            if not (path.room > 0.0).all():
                chain = self.model.chain
                points = chain.places(
                    chain.poses(self._start + plan.manoeuvre.offset))[:len(self._radius)]
                self._measure(points.transpose(1, 0, 2), plan, path)
            self._path = path
        return self._path

    def _follow_tool(self, plan: Plan, path: _Path) -> None:
        """
        How fast the tool becomes.

        A moment's first command that is too fast at once is not followed: that refuses it, and
        where it will be at the end of the hold, reckoned from here, suffices for its row. Later
        ones are followed: their rows should not forget the braking.
        """
        if self._first:
            self._first = False
            by_speed, by_position = self.model.tool_slopes(self._start, plan.moving, self._size)
            tool = by_speed @ plan.moving
            if math.sqrt(tool @ tool) * (1.0 + POSTURE) > self._allowed:
                by_position *= plan.period
                held = tool + by_position @ plan.moving
                if held @ held > tool @ tool:
                    # twice, for the second derivatives of a position are symmetric
                    tool, by_speed = held, by_speed + 2.0 * by_position
                path.tool, path.slopes = tool, by_speed
                path.fastest = math.sqrt(tool @ tool)
                return
        self._watch_tool(plan.manoeuvre, path)

    def _watch_tool(self, manoeuvre: Manoeuvre, path: _Path) -> None:
        """Find where along a manoeuvre the tool is fastest."""
        links = self._tool_links
        tool = self.model.tool_velocity(self._start + manoeuvre.offset, manoeuvre.velocity)
        speed = np.sqrt(np.add.reduce(tool * tool, axis=1))
        rate, change = manoeuvre.sizes @ links.rates
        bound = fastest_between(speed, rate, change, manoeuvre.duration, links.lengths[-1])
        piece = int(bound.argmax())
        path.fastest = float(bound[piece])
        path.worst = piece + int(speed[piece + 1] > speed[piece])
        path.tool = tool[path.worst]

    def _slow(self, plan: Plan) -> float | None:
        """A bound of the tool's speed from the joints' speeds, if that is low enough."""
        if not self._speed_limited:
            return 0.0
        bound = float(plan.speed @ self._tool_per_way)
        return bound if bound <= self._allowed else None

    def _far(self, plan: Plan) -> np.ndarray:
        """
        Least distances to the margins `(O, P)` by how far points can move.

        A distance changes by no more than its point moves. Since the posture for which distances
        to an obstacle were last computed, a point has moved, and moves in the manoeuvre, at most
        by `Links.travel`.
        """
        if not self._pairs:
            return _NOTHING
        position, pose, clearance = self._anchor
        way = np.abs(self._start - position)
        way *= self.limits.joint
        way += plan.way
        if self._moving:
            moved = way @ self._world_per_way
            step = np.abs(self._pose - pose)
            moved += np.hypot(step[:, 0], step[:, 1])[:, None] + step[:, 2:] * self._spans
        else:
            moved = way @ self._per_way
        return clearance - moved + self._allowance - self._slack(plan)

    def _slack(self, plan: Plan) -> np.ndarray | float:
        """How far points can be from where they are reckoned to be [m]; see `EffortGuard`."""
        return 0.0

    def _measure(self, points: np.ndarray, plan: Plan, path: _Path) -> None:
        """
        Find the distances along the way to obstacles that are not far.

        :param points: along the way, `(S, P, 3)` [m].
        :param plan: the manoeuvre.
        :param path: its `room` is what `_far` says; the rest is filled in.
        """
        manoeuvre, (samples, count) = plan.manoeuvre, points.shape[:2]
        obstacles = self._obstacles
        near = np.logical_or.reduce(path.room < NEAR, axis=1)   # others get no row either
        heading, off = None, self._slack(plan)
        path.distance = np.empty((obstacles, samples, count))
        path.normal = np.empty((obstacles, samples, count, 3))
        path.pieces = np.empty((obstacles, samples - 1, count))
        position, pose, clearance = self._anchor
        for places, in_world in self._groups:
            places = places[near[places]]
            if not len(places):
                continue
            seen, links, slack = points, self._links, None
            if in_world and self._drive:
                heading, error = self._drive_on(self._pose, manoeuvre.offset)
                slack, seen, links = error[1:], _placed(points, heading), self._world_links
            rate, change = manoeuvre.sizes @ links.rates
            value, gradient = self._shapes_of(places).distance(seen.reshape(-1, 3))
            value = value.reshape(-1, samples, count)
            gradient = gradient.reshape(-1, samples, count, 3)
            lowest = lowest_between(value, gradient, seen, sagitta(
                rate, change, manoeuvre.duration, links.lengths[:count]))
            if slack is not None:
                lowest -= slack[:, None]
            value -= self._radius
            # What is too near already may stay there, not come nearer.
            least = np.minimum(value[:, 0] - off, self.spec.distance_margin) - self._keep[places]
            lowest -= (self._radius + off + least)[:, None]
            path.room[places] = np.minimum.reduce(lowest, axis=1)
            path.pieces[places], path.distance[places] = lowest, value
            path.normal[places] = gradient
            position[places], pose[places] = self._start, self._pose
            clearance[places] = value[:, 0]
        path.heading = heading

    def _shapes_of(self, places: np.ndarray) -> Shapes:
        """Some of the obstacles, grouped by shape."""
        key = places.tobytes()
        if key not in self._shapes:
            self._shapes[key] = Shapes([self._bodies[place] for place in places])
        return self._shapes[key]

    def excess(self, command: np.ndarray) -> np.ndarray:
        """
        By how much a command breaks each limit, at most; of what is refused, about how much.

        :param command: `(A,)`.
        :return: in the limits' own units, above 0 where broken, in the order of `names`.
        """
        key = command.tobytes()
        if self._exceeded is not None and self._exceeded[0] == key:
            return self._exceeded[1]
        parts, refused = [], False
        if self._pairs or self._speed_limited:
            path = self._follow(command)
            parts.append((-EDGE - path.room).ravel())
            refused = bool((path.room < 0.0).any())
            if self._speed_limited:
                beyond = path.fastest * (1.0 + POSTURE) - self._allowed
                parts.append(np.array([beyond]))
                refused = refused or (beyond > 0.0 and self._hard_speed)
        if self._forces is not None:
            parts.append(self._forces.excess(command, self._plan(command), refused))
        excess = np.concatenate(parts) if parts else np.zeros(0)
        self._exceeded = (key, excess)
        return excess

    def rows(self, reference: np.ndarray) -> GuardRows:
        """
        The limits about a command, linear in it.

        :param reference: `(A,)`.
        """
        matrix = np.zeros((len(self.names), self._size))
        low, high = np.full(len(matrix), -np.inf), np.full(len(matrix), np.inf)
        row, excess = 0, self.excess(reference)
        if self._pairs:
            self._distance_rows(reference, matrix, high)
            row = self._pairs
        if self._speed_limited:
            self._speed_row(reference, matrix, high, row)
            row += 1
        if self._forces is not None:
            self._forces.rows(reference, self._plan(reference), excess[row:], matrix[row:],
                              low[row:], high[row:])
        return GuardRows(matrix, low, high, excess)

    def _distance_rows(
        self, reference: np.ndarray, matrix: np.ndarray, high: np.ndarray,
    ) -> None:
        path, plan = self._follow(reference), self._plan(reference)
        if path.pieces is None:
            return   # all far away
        pieces, distance, normals = path.pieces, path.distance, path.normal
        assert distance is not None and normals is not None
        for obstacle, point in zip(*np.nonzero(path.room < NEAR), strict=True):
            piece = pieces[obstacle, :, point].argmin()
            ends = distance[obstacle, piece:piece + 2, point]
            # nothing can be done about where the manoeuvre begins
            sample = max(piece + int(ends[1] <= ends[0]), 1)
            normal = normals[obstacle, sample, point]
            jacobian = self._jacobian(plan, sample, point)
            if self._in_world[obstacle] and path.heading is not None:
                yaw = path.heading[sample, 2]
                cosine, sine = np.cos(yaw), np.sin(yaw)
                normal = np.array([cosine * normal[0] + sine * normal[1],
                                   cosine * normal[1] - sine * normal[0], normal[2]])
            elif self._drive:
                jacobian[:, list(self._drive.values())] = 0.0
            gradient = -(normal @ jacobian) * plan.manoeuvre.gain(sample) * self._stretch
            row = obstacle * len(self._radius) + point
            matrix[row] = gradient
            left = pieces[obstacle, piece, point]
            back = BACKOFF * -left + STEP_BACK if left < 0.0 else 0.0
            high[row] = left - EDGE - back + gradient @ reference

    def _jacobian(self, plan: Plan, sample: int, point: int) -> np.ndarray:
        """How a point, -1 for the tool, moves with the entries at a sample, `(3, A)`."""
        return self.model.point_jacobian(
            self.model.configuration(self._start + plan.manoeuvre.offset[sample]), point,
            self._size)

    def _slope_along(
        self, direction: np.ndarray, sample: int, manoeuvre: Manoeuvre,
    ) -> np.ndarray:
        """How the tool's velocity in a direction changes at a sample with the command, `(A,)`."""
        by_speed, by_position = self.model.tool_slopes(
            self._start + manoeuvre.offset[sample], manoeuvre.velocity[sample], self._size)
        gradient = direction @ by_speed
        if sample > 1:   # what stands stays so
            gradient *= manoeuvre.acceleration[sample] != 0.0
        if sample:
            gradient += direction @ by_position * manoeuvre.gain(sample)
        return gradient

    def _speed_row(
        self, reference: np.ndarray, matrix: np.ndarray, high: np.ndarray, row: int,
    ) -> None:
        path = self._follow(reference)
        if path.tool is None or not np.isfinite(self._allowed):
            return   # slow
        speed = math.sqrt(path.tool @ path.tool)
        if speed < 1e-9:
            return
        direction = path.tool / speed
        if path.slopes is not None:
            gradient = direction @ path.slopes
        else:
            gradient = self._slope_along(direction, path.worst, self._plan(reference).manoeuvre)
        gradient *= self._moves * (1.0 + POSTURE)
        matrix[row] = gradient
        left = self._allowed * (1.0 - EDGE) - path.fastest * (1.0 + POSTURE)
        back = BACKOFF * -left + SPEED_BACK * self._allowed if left < 0.0 else 0.0
        high[row] = left - back + gradient @ reference


_NOTHING = np.zeros(0)


def _placed(points: np.ndarray, heading: np.ndarray) -> np.ndarray:
    """Points of the robot `(S, P, 3)` in the world, for poses of the base `(S, 3)`."""
    cosine, sine = np.cos(heading[:, 2, None]), np.sin(heading[:, 2, None])
    world = points.copy()
    world[..., 0] = cosine * points[..., 0] - sine * points[..., 1] + heading[:, 0, None]
    world[..., 1] = sine * points[..., 0] + cosine * points[..., 1] + heading[:, 1, None]
    return world
