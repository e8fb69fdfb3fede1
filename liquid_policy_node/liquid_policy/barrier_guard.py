"""
Limits of the whole robot, for one command at a time.

Of the manoeuvre of a command (held, then braked; `liquid_policy.barrier_manoeuvre`) at no instant

- may a watched point come nearer to an obstacle than the margin,
- may the tool be faster than its limit, or than what a human's distance allows, the base's motion
  included,
- may the braking break the limits of torque and tipping below, or end in a posture that tips;

and of the command itself, with the acceleration (u - u_previous) / dt it asks for,

- torque:   |M(q) a + h(q, v)| <= limit (1 - margin),   for every payload of the range,
- tipping:  the zero-moment point stays inside the support polygon by its margin, likewise,
- power:    sum max(0, torque_i u_i) <= limit, likewise.

`excess` says exactly whether a command is safe, `rows` linearises the limits about one for the
quadratic programme. Torque and tipping are affine in u, so their rows are exact.

Source: Ames et al., Control barrier functions: theory and applications, ECC 2019; the manoeuvre
as a barrier, see there; zero-moment point: Vukobratovic and Borovac, IJHR 1 (2004); separation:
ISO/TS 15066, 5.5.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from liquid_policy.barrier_bounds import Links, fastest_between, sagitta
from liquid_policy.barrier_box import FilterSettings
from liquid_policy.barrier_forces import ForceBounds, greatest_power
from liquid_policy.barrier_manoeuvre import Manoeuvre, finer, hold_and_brake
from liquid_policy.barrier_rows import HARD, GuardRows, Moment
from liquid_policy.barrier_shapes import Shapes, lowest_between
from liquid_policy.limits import Limits, LimitsError
from liquid_policy.robot_model import RobotModel
from liquid_policy.safety_spec import SafetySpec, SeparationSpec

SHORTEST_STEP = 1e-3   # [s]; a shorter step counts as this one when accelerations are made of it
NEAR = 0.3             # [m]; obstacles farther than this after the manoeuvre need no row
EDGE = 1e-9            # of rows and excess, for rounding
# Share of a reference's excess by which limits that are not linear are tightened in their rows:
# what linearising leaves out is smaller, so one programme suffices as a rule.
BACKOFF = 0.1
# Share of the tool's speed kept free: while the delay is unknown so is the posture, and with it
# what a joint's speed does to the tool.
POSTURE = 0.03
# Power bends most: it is the product of a torque that changes with the command and the command.
POWER_BACKOFF = 0.3
PARTS = 3   # into which pieces are cut where whole ones do not show that forces keep their limits
FAST = 10   # commands that are followed before a robot is tried as a slow one again
POWER_BACK, SPEED_BACK = 0.01, 2e-3   # shares of the limit; at least that much
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
class Plan:
    """A command's manoeuvre in the joints."""

    command: bytes              # as they lie in memory: the quickest exact comparison
    manoeuvre: Manoeuvre
    rate: np.ndarray            # (S - 1, K), A_k of barrier_bounds, seen from the robot
    change: np.ndarray          # (S - 1, K), A'_k


@dataclass(eq=False, slots=True)
class _Path:
    """A command's manoeuvre in space; None where a quick bound has shown it to be far or slow."""

    room: np.ndarray                   # (O, P) [m], least distance to the margin, at least
    pieces: np.ndarray | None = None   # (O, S - 1, P) [m], the same piece by piece
    heading: np.ndarray | None = None  # (S, 3): x, y, yaw of the base in the world
    distance: np.ndarray | None = None   # (O, S, P) [m], less the points' radii
    normal: np.ndarray | None = None     # (O, S, P, 3)
    tool: np.ndarray | None = None       # (S, 3), velocity of the tool
    fastest: float = 0.0               # bound of the tool's speed [m/s]
    worst: int = 0                     # sample at the faster end of that piece


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
        self._in_world = np.array([item.frame == 'world' for item in obstacles], dtype=bool)
        self._speed_limited = spec.tool_speed is not None or spec.separation is not None
        self._effort = limits.effort[model.entries] * (1.0 - spec.torque_margin)
        self._torque_rows = np.flatnonzero(np.isfinite(self._effort)) if spec.torque else \
            np.zeros(0, dtype=np.intp)
        self._torque_dofs = _together(model.dofs[self._torque_rows].tolist())
        self._dofs, self._moved = _together(model.dofs.tolist()), _together(
            model.entries.tolist())
        self._used = _together(self._torque_rows.tolist())
        self._edges, self._floor = np.zeros((0, 3)), 0.0
        if spec.tip_margin is not None:
            if support is None:
                raise LimitsError('tip_margin needs the support polygon')
            self._edges = support_edges(support[0], spec.tip_margin)
            self._floor = support[1]
        # rows of tipping from the floor's force and moment: n . zmp f_z - b f_z
        edge, floor = self._edges, self._floor
        self._tipping = np.column_stack([
            edge[:, 0] * floor, edge[:, 1] * floor, -edge[:, 2], edge[:, 1], -edge[:, 0],
            np.zeros(len(edge))])
        # bounds of torques and, above only, of tipping
        effort, edges = self._effort[self._used], len(edge)
        self._most = np.concatenate([effort, np.zeros(edges)])
        self._least = np.concatenate([effort, np.full(edges, np.inf)])
        self._hard_speed = 'tool_speed' not in spec.soft
        self._dynamic = bool(len(self._torque_rows) or len(self._edges) or spec.power)
        chain = model.chain
        self._links = Links(chain, chain.points, self._size)
        self._world_links = Links(chain, chain.points, self._size, model.base)
        self._tool_links = self._world_links if self._drive else self._links
        self._forces = ForceBounds(model, self._size) if self._dynamic else None
        # where distances were last computed, and which; at first nothing is far
        self._anchor = (
            np.zeros((len(obstacles), self._size)), np.zeros((len(obstacles), 3)),
            np.full((len(obstacles), len(points)), -1e9))
        self._moving = bool(self._drive) and bool(self._in_world.any())
        self._spans = self._world_links.lengths.sum(axis=1)[:len(points)]
        names: list[str] = []
        priority: list[int] = []

        def add(name: str, key: str = '') -> None:
            names.append(name)
            place = spec.soft.index(key) + 1 if key in spec.soft else HARD
            priority.append(place)

        for item in obstacles:
            for point in points:
                add(f'distance/{item.name}/{point.name}')
        if self._speed_limited:
            add('speed/tool', 'tool_speed')
        for load in model.payloads if self._dynamic else ():
            for index in self._torque_rows:
                add(f'torque/{limits.names[model.entries[index]]}/{load:g}kg')
            for kind in ('tip', 'stand'):
                for number in range(len(self._edges)):
                    add(f'{kind}/edge_{number}/{load:g}kg')
            if spec.power:
                add(f'power/{load:g}kg', 'power')
        self.names = tuple(names)
        self.priority = np.array(priority, dtype=np.intp)
        self._pairs = len(obstacles) * len(points)
        self._power_places = np.array(
            [place for place, name in enumerate(names) if name.startswith('power/')], dtype=int)
        self._fast = 0   # for how many commands a motion is too fast to be tried as a slow one
        self._sharper: Callable[[], np.ndarray] | None = None
        self._planned: Plan | None = None
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
        self._path = self._planned = self._exceeded = None
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
        self._step = max(min(moment.elapsed, self.settings.longest_period), SHORTEST_STEP)
        self._loads_made: _Loads | None = None

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
        """The command's manoeuvre; kept for the same command."""
        key = command.tobytes()
        if self._planned is None or self._planned.command != key:
            moving = command * self._moves
            manoeuvre = hold_and_brake(moving, self._deceleration, self.settings.longest_period)
            self._planned = Plan(key, manoeuvre, *(manoeuvre.sizes @ self._links.rates))
            self._path = None
        return self._planned

    def _follow(self, command: np.ndarray) -> _Path:
        """The command's manoeuvre in space; kept for the same command."""
        plan = self._plan(command)
        if self._path is None:
            far, slow = self._far(plan), self._slow(plan)
            away = bool((far > 0.0).all())
            if away and slow is not None:
                self._path = _Path(far, fastest=slow)
                return self._path
            manoeuvre, model = plan.manoeuvre, self.model
            posture = self._start + manoeuvre.offset
            if slow is None:
                tool = model.tool_velocity(posture, manoeuvre.velocity)
                speed = np.sqrt(np.add.reduce(tool * tool, axis=1))
                rate, change = manoeuvre.sizes @ self._tool_links.rates \
                    if self._drive else (plan.rate, plan.change)
                bound = fastest_between(
                    speed, rate, change, manoeuvre.duration, self._tool_links.lengths[-1])
                piece = int(bound.argmax())
                known = _Path(
                    far, tool=tool, fastest=float(bound[piece]),
                    worst=piece + int(speed[piece + 1] > speed[piece]))
            else:
                known = _Path(far, fastest=slow)
            if not away:
                chain = model.chain
                points = chain.places(chain.poses(posture))[:len(self._radius)]
                self._measure(points.transpose(1, 0, 2), plan, known)
            self._path = known
        return self._path

    def _slow(self, plan: Plan) -> float | None:
        """A bound of the tool's speed from the joints' speeds, if that is low enough."""
        if not self._speed_limited:
            return 0.0
        rate = plan.manoeuvre.sizes[0, 0] @ self._tool_links.rates if self._drive else plan.rate[0]
        bound = float(rate @ self._tool_links.lengths[-1])
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
        way += np.abs(plan.manoeuvre.offset[-1])
        count = len(self._radius)
        if self._moving:
            moved = self._world_links.travel(way)[:, :count]
            step = np.abs(self._pose - pose)
            moved += np.hypot(step[:, 0], step[:, 1])[:, None] + step[:, 2:] * self._spans
        else:
            moved = self._links.travel(way)[:, :count]
        return clearance - moved + (self._keep - self.spec.distance_margin) - self._slack(plan)

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
            rate, change = plan.rate, plan.change
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
        By how much a command breaks each limit, at most.

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
        if self._dynamic:
            parts.append(self._force_excess(command, refused))
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
        while self._sharper is not None:   # a limit that is kept was not looked at closely
            sharper, self._sharper = self._sharper, None
            excess[self._power_places] = np.maximum(
                self._power_now, sharper()) - (self.spec.power or 0.0)
        if self._pairs:
            self._distance_rows(reference, matrix, high)
            row = self._pairs
        if self._speed_limited:
            self._speed_row(reference, matrix, high, row)
            row += 1
        if self._dynamic:
            loads, edges = self._loads, len(self._edges)
            payloads, count = loads.middle.shape
            blocks = matrix[row:].reshape(payloads, -1, self._size)
            blocks[:, :count] = loads.matrix
            low[row:].reshape(payloads, -1)[:, :count] = -self._least - loads.middle
            high[row:].reshape(payloads, -1)[:, :count] = self._most - loads.middle
            for place in range(payloads if edges else 0):
                here = slice(count, count + edges)
                self._standing_rows(reference, place, blocks[place, here],
                                    high[row:].reshape(payloads, -1)[place, here])
            if self.spec.power:
                places = self._power_places
                matrix[places], high[places] = self._power_rows(reference, excess[places])
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

    def _speed_row(
        self, reference: np.ndarray, matrix: np.ndarray, high: np.ndarray, row: int,
    ) -> None:
        path, manoeuvre = self._follow(reference), self._plan(reference).manoeuvre
        if path.tool is None or not np.isfinite(self._allowed):
            return   # slow
        sample = path.worst
        velocity = path.tool[sample]
        speed = math.sqrt(velocity @ velocity)
        if speed < 1e-9:
            return
        by_speed, by_position = self.model.tool_slopes(
            self._start + manoeuvre.offset[sample], manoeuvre.velocity[sample], self._size)
        direction = velocity / speed
        gradient = direction @ by_speed
        if sample > 1:   # what stands stays so
            gradient *= manoeuvre.acceleration[sample] != 0.0
        if sample:
            gradient += direction @ by_position * manoeuvre.gain(sample)
        gradient *= self._moves * (1.0 + POSTURE)
        matrix[row] = gradient
        left = self._allowed * (1.0 - EDGE) - path.fastest * (1.0 + POSTURE)
        back = BACKOFF * -left + SPEED_BACK * self._allowed if left < 0.0 else 0.0
        high[row] = left - back + gradient @ reference

    # Limits of the command itself.

    @property
    def _loads(self) -> _Loads:
        """Torque and zero-moment point as functions of the command, for each payload."""
        if self._loads_made is None:
            self._loads_made = self._affine()
        return self._loads_made

    def _affine(self) -> _Loads:
        previous = self._moment.previous * self.limits.moving
        model = self.model
        inertia, bias = model.dynamics(self._start, previous)
        self._inertia = inertia
        if model.plain:
            columns = inertia / self._step
        else:
            columns = np.zeros((len(inertia), model.nv, self._size))
            columns[:, :, model.moving] = inertia[:, :, model.columns] / self._step
        offset = bias - columns @ previous
        torque, rest = columns[:, self._dofs], offset[:, self._dofs]
        matrix, middle = torque[:, self._used], rest[:, self._used]
        if len(self._edges):
            # n . zmp <= b with zmp = (-m_y, m_x) / f_z about the floor, times f_z
            matrix = np.concatenate([matrix, self._tipping @ columns[:, :6]], axis=1)
            middle = np.concatenate([middle, offset[:, :6] @ self._tipping.T], axis=1)
        return _Loads(matrix, middle, torque, rest, bias[:, self._dofs])

    def _force_excess(self, command: np.ndarray, refused: bool) -> np.ndarray:
        """
        By how much the forces of a command and of braking after it break their limits, at most.

        Torque, tipping and power now, with the acceleration the command asks for; while it is
        held and braked, at every instant (`liquid_policy.barrier_forces`); and at rest. Whether
        the robot stands in the posture where it comes to rest.

        :param command: `(A,)`.
        :param refused: whether another limit, a hard one, is broken; then only the forces of the
            command itself are looked at.
        :return: in the order of `names`, payload by payload.
        """
        plan, model, loads = self._plan(command), self.model, self._loads
        assert self._forces is not None
        edges = len(self._edges)
        now = loads.torque @ command + loads.rest
        excess = np.abs(now[:, self._used]) - self._effort[self._used]
        if edges:
            tip = loads.matrix[:, -edges:] @ command + loads.middle[:, -edges:]
            excess = np.concatenate([excess, tip], axis=1)
        # a command that is refused anyway need not be followed into its braking
        self._held_counts = np.zeros(len(excess), dtype=bool)
        self._sharper = None
        later = None
        if not (refused or (excess > 0.0).any()):
            self._fast = max(self._fast - 1, 0)
            later = None if self._fast else self._slowly(plan)
            if later is None:
                self._fast = self._fast or FAST
                later = self._braking(plan)
            excess = np.maximum(excess, later[:, :excess.shape[1]])
        parts = [excess]
        if edges:
            edge, end = self._edges, model.configuration(
                self._start + plan.manoeuvre.offset[-1])
            parts.append(np.array([
                edge[:, :2] @ center[:2] - edge[:, 2] for center in model.balance(end)]))
        if self.spec.power:
            now *= command[self._moved]
            power = np.add.reduce(np.maximum(now, 0.0), axis=1)
            self._power_now = power
            if later is not None:
                self._held_counts = later[:, -1] > power
                power = np.maximum(power, later[:, -1])
            parts.append(power[:, None] - self.spec.power)
        return np.concatenate(parts, axis=1).ravel()

    def _slowly(self, plan: Plan) -> np.ndarray | None:
        """A bound of what `_braking` gives, from forces at rest; None if that breaks a limit."""
        assert self._forces is not None
        rest = self.model.gravity(self._start)
        off = self._forces.around(plan.manoeuvre, np.abs(self._inertia))
        size = np.abs(rest) + off
        parts = [size[:, self._torque_dofs] - self._effort[self._used]]
        if len(self._edges):
            parts.append(
                rest[:, :6] @ self._tipping.T + off[:, :6] @ np.abs(self._tipping).T)
        if self.spec.power:
            parts.append((size[:, self._dofs] @ plan.manoeuvre.sizes[0, 0, self._moved]
                          - self.spec.power)[:, None])
        found = np.concatenate(parts, axis=1)
        if not (found <= 0.0).all():
            return None
        if self.spec.power:
            found[:, -1] += self.spec.power
            self._sharper = lambda: self._braking(plan)[:, -1]
        return found

    def _braking(self, plan: Plan) -> np.ndarray:
        """
        Excess of torques and tipping and total power while held, braked and at rest.

        :return: `(L, torques + edges)`, and power behind them if it is limited.
        """
        found = self._braking_at(plan.manoeuvre)
        if (found[:, -1] > (self.spec.power or np.inf)).any() or (
                found[:, :found.shape[1] - bool(self.spec.power)] > 0.0).any():
            found = self._braking_at(finer(plan.manoeuvre, PARTS))
        return found

    def _braking_at(self, manoeuvre: Manoeuvre) -> np.ndarray:
        """`_braking` by the samples of a manoeuvre: the finer they are, the sharper."""
        assert self._forces is not None
        forces, off = self._forces.along(self._start, manoeuvre)
        size, both = np.abs(forces), off.repeat(2, axis=0)
        size[:, :-1] += both
        parts = [np.maximum.reduce(size, axis=1)[:, self._torque_dofs] - self._effort[self._used]]
        if len(self._edges):
            tipping = forces[..., :6] @ self._tipping.T
            tipping[:, :-1] += both[:, :6] @ np.abs(self._tipping).T
            parts.append(np.maximum.reduce(tipping, axis=1))
        if self.spec.power:
            pieces = (len(forces), -1, 2, forces.shape[2])
            # speeds are greatest at the beginning of a piece: a bound that mostly suffices
            speed = manoeuvre.sizes[0][:, self._moved, None]
            power = np.maximum.reduce(
                size[:, :-1].reshape(pieces)[..., self._dofs] @ speed, axis=(1, 2))
            sharper = partial(
                greatest_power, forces[:, :-1].reshape(pieces)[..., self._dofs],
                off[:, self._dofs], manoeuvre.velocity[:, self._moved])
            enough = bool((power <= self.spec.power).all())
            self._sharper = sharper if enough else None
            if not enough:
                power = sharper()[:, None]
            parts.append(power)
        return np.concatenate(parts, axis=1)

    def _standing_rows(
        self, reference: np.ndarray, place: int, matrix: np.ndarray, high: np.ndarray,
    ) -> None:
        """The posture at the end of the braking stands by itself: linear about the reference."""
        plan = self._plan(reference)
        end = self.model.configuration(self._start + plan.manoeuvre.offset[-1])
        center = self.model.balance(end)[place]
        jacobian = self.model.balance_jacobian(end, place, self._size)
        edge, gain = self._edges, plan.manoeuvre.gain(len(plan.manoeuvre.duration))
        matrix[:] = edge[:, :2] @ jacobian[:2] * gain * self._stretch
        left = edge[:, 2] - EDGE - edge[:, :2] @ center[:2]
        high[:] = left - BACKOFF * np.maximum(-left, 0.0) + matrix @ reference

    def _power_rows(
        self, reference: np.ndarray, excess: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Power of the command itself or of holding it, linear about the reference.

        :param reference: `(A,)`.
        :param excess: of the power, for each payload `(L,)` [W].
        :return: rows `(L, A)` and their upper bounds `(L,)`.
        """
        entries, loads, limit = self.model.entries, self._loads, self.spec.power or 0.0
        speed = reference[entries]
        torque, held = loads.torque @ reference + loads.rest, loads.held
        needed = np.add.reduce(np.maximum(held * speed, 0.0), axis=1)
        now = np.add.reduce(np.maximum(torque * speed, 0.0), axis=1)
        # of a limit that is kept the braking may not have been looked at
        over = excess > 0.0
        holding = np.where(over, self._held_counts, needed > now)[:, None]
        excess = np.where(over, excess, np.maximum(excess, needed - limit))
        # what is held does not speed up: its torque does not change with the command
        torque = np.where(holding, held, torque)
        working = torque * speed > 0.0
        matrix = np.where(
            holding, 0.0, ((speed * working)[:, None, :] @ loads.torque)[:, 0])
        matrix[:, entries] += torque * working
        back = np.where(excess > 0.0, POWER_BACKOFF * excess + POWER_BACK * limit, 0.0)
        return matrix, matrix @ reference - excess - back


_NOTHING = np.zeros(0)


def _together(places: list[int]) -> slice | np.ndarray:
    """Places as a slice where they are neighbours, which numpy reads and writes faster."""
    if not places:
        return slice(0, 0)
    first, last = places[0], places[-1] + 1
    return slice(first, last) if places == list(range(first, last)) else np.array(places)


def _placed(points: np.ndarray, heading: np.ndarray) -> np.ndarray:
    """Points of the robot `(S, P, 3)` in the world, for poses of the base `(S, 3)`."""
    cosine, sine = np.cos(heading[:, 2, None]), np.sin(heading[:, 2, None])
    world = points.copy()
    world[..., 0] = cosine * points[..., 0] - sine * points[..., 1] + heading[:, 0, None]
    world[..., 1] = sine * points[..., 0] + cosine * points[..., 1] + heading[:, 1, None]
    return world


@dataclass(frozen=True, eq=False)
class _Loads:
    """Rows of torque and tipping for each payload, and all torques: `torque @ u + rest`."""

    matrix: np.ndarray    # (L, rows, A)
    middle: np.ndarray    # (L, rows): what the rows are at u = 0
    torque: np.ndarray    # (L, joints, A)
    rest: np.ndarray      # (L, joints)
    held: np.ndarray      # (L, joints), torque at constant speed


def support_edges(corners: np.ndarray, margin: float) -> np.ndarray:
    """
    The support polygon as half planes `n . p <= b`, moved inwards by the margin.

    :param corners: counter-clockwise, `(n, 2)` [m].
    :param margin: [m].
    :return: rows of n (unit, outwards) and b, `(n, 3)`.
    :raises LimitsError: if nothing is left.
    """
    side = np.roll(corners, -1, axis=0) - corners
    normal = np.stack([side[:, 1], -side[:, 0]], axis=1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    bound = (normal * corners).sum(axis=1) - margin
    if not (normal @ corners.mean(axis=0) <= bound).all():
        raise LimitsError(
            f'tip_margin: {margin:g} m leaves nothing of the support polygon '
            f'{corners.round(3).tolist()}')
    return np.column_stack([normal, bound])
