"""
Limits of the whole robot, for one command at a time.

Of the manoeuvre of a command (held, then braked; `liquid_policy.barrier_manoeuvre`) at no instant

- may a watched point come nearer to an obstacle than the margin,
- may the tool be faster than its limit, or than what a human's distance allows,
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

from dataclasses import dataclass

import numpy as np

from liquid_policy.barrier_box import FilterSettings
from liquid_policy.barrier_manoeuvre import Manoeuvre, hold_and_brake
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
STEP_BACK = 2e-4       # [m]; at least that much for distances, so that the search ends soon
# Samples of the manoeuvre at which its forces are looked at, and at which sample what brakes there
# is read: begin and middle of the braking, just before rest, at rest.
BRAKING_SAMPLES = ((1, 1), (3, 3), (5, 4), (5, None))


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


def fastest_between(velocity: np.ndarray) -> tuple[float, int]:
    """
    An upper bound of the speed anywhere along a manoeuvre.

    Between two samples a velocity that changes linearly is nowhere faster than at the faster of
    both. What it deviates from that, a joint that comes to rest in between included, is bounded by
    a quarter of the second differences on both sides (a kink in the middle of a piece leaves the
    chord by that much, a parabola by less). While the command is held only the posture changes,
    for which, as for the posture's uncertainty, `POSTURE` is added.

    :param velocity: at the samples of `hold_and_brake`, `(S, 3)` [m/s].
    :return: the bound [m/s], and the sample at the faster end of the piece it is found in.
    """
    speed = np.sqrt((velocity * velocity).sum(axis=1))
    second = velocity[3:] - 2.0 * velocity[2:-1] + velocity[1:-2]
    bend = np.zeros(len(velocity))
    bend[2:-1] = np.sqrt((second * second).sum(axis=1))
    bound = np.maximum(speed[1:], speed[:-1]) * (1.0 + POSTURE)
    bound[1:] += 0.25 * (bend[1:-1] + bend[2:])
    piece = int(bound.argmax())
    return float(bound[piece]), piece + int(speed[piece + 1] > speed[piece])


@dataclass(frozen=True, eq=False)
class _Plan:
    """A command's manoeuvre in the joints."""

    command: bytes              # as they lie in memory: the quickest exact comparison
    manoeuvre: Manoeuvre
    configuration: np.ndarray   # (S, nq)
    velocity: np.ndarray        # (S, nv)


@dataclass(frozen=True, eq=False)
class _Path:
    """A command's manoeuvre in space."""

    heading: np.ndarray      # (S, 3): x, y, yaw of the base in the world
    distance: np.ndarray     # (O, S, P) [m], less the points' radii
    normal: np.ndarray       # (O, S, P, 3)
    room: np.ndarray         # (O, S - 1, P) [m], to the margin
    tool: np.ndarray         # (S, 3), velocity of the tool


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
        self._deceleration = np.where(limits.moving, limits.deceleration, 1.0)
        self._drive = {int(column): int(entry) for column, entry in zip(
            model.columns, model.moving, strict=True) if column < 6}
        points, obstacles = list(spec.points.values()), list(spec.obstacles.values())
        fixed = [place for place, item in enumerate(obstacles) if item.frame == 'robot']
        moving = [place for place, item in enumerate(obstacles) if item.frame == 'world']
        self._groups = tuple(
            (_together(places), Shapes([obstacles[place] for place in places]), in_world)
            for places, in_world in ((fixed, False), (moving, True)) if places)
        self._obstacles = len(obstacles)
        self._radius = np.array([point.radius for point in points])
        self._keep = np.array([
            [np.inf if item.points and point.name not in item.points else 0.0
             for point in points] for item in obstacles]).reshape(len(obstacles), len(points))
        self._in_world = np.array([item.frame == 'world' for item in obstacles], dtype=bool)
        self._speed_limited = spec.tool_speed is not None or spec.separation is not None
        self._effort = limits.effort[model.entries] * (1.0 - spec.torque_margin)
        self._torque_rows = np.flatnonzero(np.isfinite(self._effort)) if spec.torque else \
            np.zeros(0, dtype=np.intp)
        self._torque_dofs = model.dofs[self._torque_rows]
        self._edges, self._floor = np.zeros((0, 3)), 0.0
        if spec.tip_margin is not None:
            if support is None:
                raise LimitsError('tip_margin needs the support polygon')
            self._edges = support_edges(support[0], spec.tip_margin)
            self._floor = support[1]
        self._dynamic = bool(len(self._torque_rows) or len(self._edges) or spec.power)
        names, priority = [], []

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
            for edge in range(len(self._edges)):
                add(f'tip/edge_{edge}/{load:g}kg')
            for edge in range(len(self._edges)):
                add(f'stand/edge_{edge}/{load:g}kg')
            if spec.power:
                add(f'power/{load:g}kg', 'power')
        self.names = tuple(names)
        self.priority = np.array(priority, dtype=np.intp)
        self._pairs = len(obstacles) * len(points)
        self._planned: _Plan | None = None
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
        recent = moment.recent.mean(axis=0)
        ahead = np.where(limits.moving, recent * late, 0.0)
        known = np.where(limits.joint, feedback.position, 0.0)
        self._start = known + np.where(limits.joint, ahead, 0.0)
        pose = np.zeros(3) if feedback.base is None else feedback.base
        self._pose = self._drive_on(pose, ahead[None])[0]
        self._allowed = np.inf if self.spec.tool_speed is None else self.spec.tool_speed
        if self.spec.separation is not None:
            self._allowed = min(self._allowed, separation_speed(
                self.spec.separation, moment.human_distance))
        self._step = max(min(moment.elapsed, self.settings.longest_period), SHORTEST_STEP)
        self._loads_made: list[_Load] | None = None

    def _drive_on(self, pose: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """Pose of the base after each offset: along the arc's chord, `(S, 3)`."""
        result = np.tile(pose, (len(offset), 1))
        forward = offset[:, self._drive[0]] if 0 in self._drive else np.zeros(len(offset))
        left = offset[:, self._drive[1]] if 1 in self._drive else np.zeros(len(offset))
        turn = offset[:, self._drive[5]] if 5 in self._drive else np.zeros(len(offset))
        middle = pose[2] + 0.5 * turn
        cosine, sine = np.cos(middle), np.sin(middle)
        result[:, 0] += cosine * forward - sine * left
        result[:, 1] += sine * forward + cosine * left
        result[:, 2] += turn
        return result

    # Limits along the manoeuvre.

    def _plan(self, command: np.ndarray) -> _Plan:
        """The command's manoeuvre; kept for the same command."""
        key = command.tobytes()
        if self._planned is None or self._planned.command != key:
            moving = np.where(self.limits.moving, command, 0.0)
            manoeuvre = hold_and_brake(
                moving * self._stretch, self._deceleration, self.settings.longest_period)
            self._planned = _Plan(
                key, manoeuvre,
                self.model.configuration(self._start + manoeuvre.offset),
                self.model.velocity(manoeuvre.velocity))
            self._path = None
        return self._planned

    def _follow(self, command: np.ndarray) -> _Path:
        """The command's manoeuvre in space; kept for the same command."""
        plan = self._plan(command)
        if self._path is None:
            points, tool = self.model.points(plan.configuration, plan.velocity)
            self._path = self._measure(points, tool, plan.manoeuvre)
        return self._path

    def _measure(
        self, points: np.ndarray, tool: np.ndarray, manoeuvre: Manoeuvre,
    ) -> _Path:
        """Distances of the points along their way."""
        samples, count = points.shape[:2]
        heading = np.zeros((samples, 3))
        distance = np.empty((self._obstacles, samples, count))
        normal = np.empty((self._obstacles, samples, count, 3))
        lowest = np.empty((self._obstacles, samples - 1, count))
        if not self._pairs:
            return _Path(heading, distance, normal, lowest, tool)
        for places, shapes, in_world in self._groups:
            seen = points
            if in_world and self._drive:
                heading = self._drive_on(self._pose, manoeuvre.offset)
                seen = _placed(points, heading)
            value, gradient = shapes.distance(seen.reshape(-1, 3))
            value = value.reshape(-1, samples, count)
            gradient = gradient.reshape(-1, samples, count, 3)
            distance[places], normal[places] = value, gradient
            lowest[places] = lowest_between(value, gradient, seen)
        distance = distance - self._radius
        # What is too near already may stay there, not come nearer.
        least = np.minimum(distance[:, 0], self.spec.distance_margin) - self._keep
        room = lowest - (self._radius + least)[:, None]
        return _Path(heading, distance, normal, room, tool)

    def excess(self, command: np.ndarray) -> np.ndarray:
        """
        By how much a command breaks each limit, exactly.

        :param command: `(A,)`.
        :return: in the limits' own units, above 0 where broken, in the order of `names`.
        """
        key = command.tobytes()
        if self._exceeded is not None and self._exceeded[0] == key:
            return self._exceeded[1]
        parts = []
        if self._pairs or self._speed_limited:
            path = self._follow(command)
            if self._pairs:
                parts.append((-EDGE - path.room.min(axis=1)).ravel())
            if self._speed_limited:
                parts.append(np.array([fastest_between(path.tool)[0] - self._allowed]))
        if self._dynamic:
            parts.append(self._force_excess(command))
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
        row = 0
        if self._pairs:
            self._distance_rows(reference, matrix, high)
            row = self._pairs
        if self._speed_limited:
            self._speed_row(reference, matrix, high, row)
            row += 1
        if self._dynamic:
            for place, load in enumerate(self._loads):
                count, edges = len(load.high), len(self._edges)
                matrix[row:row + count] = load.matrix
                low[row:row + count], high[row:row + count] = load.low, load.high
                row += count
                if edges:
                    self._standing_rows(
                        reference, place, matrix[row:row + edges], high[row:row + edges])
                    row += edges
                if self.spec.power:
                    gradient = self._power_gradient(load, reference)
                    matrix[row] = gradient
                    left = self.spec.power - self._power(load, reference)
                    high[row] = left - BACKOFF * max(-left, 0.0) + gradient @ reference
                    row += 1
        return GuardRows(matrix, low, high, self.excess(reference))

    def _distance_rows(
        self, reference: np.ndarray, matrix: np.ndarray, high: np.ndarray,
    ) -> None:
        path, plan = self._follow(reference), self._plan(reference)
        room, worst = path.room, path.room.argmin(axis=1)
        for obstacle, point in zip(*np.nonzero(room.min(axis=1) < NEAR), strict=True):
            piece = worst[obstacle, point]
            ends = path.distance[obstacle, piece:piece + 2, point]
            # nothing can be done about where the manoeuvre begins
            sample = max(piece + int(ends[1] <= ends[0]), 1)
            normal = path.normal[obstacle, sample, point]
            jacobian = self.model.point_jacobian(
                plan.configuration[sample], point, self._size)
            if self._in_world[obstacle]:
                yaw = path.heading[sample, 2]
                cosine, sine = np.cos(yaw), np.sin(yaw)
                normal = np.array([cosine * normal[0] + sine * normal[1],
                                   cosine * normal[1] - sine * normal[0], normal[2]])
            else:
                jacobian[:, list(self._drive.values())] = 0.0
            gradient = -(normal @ jacobian) * plan.manoeuvre.gain[sample] * self._stretch
            row = obstacle * len(self._radius) + point
            matrix[row] = gradient
            left = room[obstacle, piece, point]
            back = BACKOFF * -left + STEP_BACK if left < 0.0 else 0.0
            high[row] = left - EDGE - back + gradient @ reference

    def _speed_row(
        self, reference: np.ndarray, matrix: np.ndarray, high: np.ndarray, row: int,
    ) -> None:
        path, plan = self._follow(reference), self._plan(reference)
        fastest, sample = fastest_between(path.tool)
        if fastest < 1e-9 or not np.isfinite(self._allowed):
            return
        jacobian = self.model.point_jacobian(plan.configuration[sample], -1, self._size)
        changing = plan.manoeuvre.moving[sample] * self._stretch
        gradient = path.tool[sample] @ jacobian * changing / fastest
        matrix[row] = gradient
        left = self._allowed * (1.0 - EDGE) - fastest
        high[row] = left - BACKOFF * max(-left, 0.0) + gradient @ reference

    # Limits of the command itself.

    @property
    def _loads(self) -> list[_Load]:
        """Torque and zero-moment point as functions of the command, for each payload."""
        if self._loads_made is None:
            self._loads_made = self._affine()
        return self._loads_made

    def _affine(self) -> list[_Load]:
        previous = np.where(self.limits.moving, self._moment.previous, 0.0)
        model, step, loads = self.model, self._step, []
        for inertia, bias in model.dynamics(self._start, previous):
            columns = np.zeros((model.nv, self._size))
            columns[:, model.moving] = inertia[:, model.columns] / step
            offset = bias - columns @ previous
            torque, rest = columns[model.dofs], offset[model.dofs]
            # n . zmp <= b with zmp = (-m_y, m_x) / f_z about the floor, times f_z
            edge, floor = self._edges, self._floor
            tip = (-edge[:, :1] * (columns[4] - floor * columns[0])
                   + edge[:, 1:2] * (columns[3] + floor * columns[1]) - edge[:, 2:] * columns[2])
            lift = (-edge[:, 0] * (offset[4] - floor * offset[0])
                    + edge[:, 1] * (offset[3] + floor * offset[1]) - edge[:, 2] * offset[2])
            used = self._torque_rows
            effort = self._effort[used]
            loads.append(_Load(
                np.concatenate([torque[used], tip]),
                np.concatenate([-effort - rest[used], np.full(len(edge), -np.inf)]),
                np.concatenate([effort - rest[used], -lift]), torque, rest))
        return loads

    def _force_excess(self, command: np.ndarray) -> np.ndarray:
        """
        By how much the forces of a command and of braking after it break their limits.

        Torque and tipping now, with the acceleration the command asks for; at the beginning, in
        the middle and at the end of the braking, with every moving entry at its full deceleration;
        and at rest. Power now; whether the robot stands in the posture where it comes to rest.

        :return: in the order of `names`, payload by payload.
        """
        plan, model = self._plan(command), self.model
        samples = [0, *(sample for sample, _ in BRAKING_SAMPLES)]
        speeding = np.zeros((len(samples), self._size))
        speeding[0] = np.where(
            self.limits.moving, (command - self._moment.previous) / self._step, 0.0)
        stopping = -np.sign(plan.manoeuvre.velocity[1]) * self._deceleration
        for row, (_, braking) in enumerate(BRAKING_SAMPLES, start=1):
            if braking is not None:
                speeding[row] = stopping * plan.manoeuvre.moving[braking]
        velocity = plan.velocity[samples]
        velocity[0] = model.velocity(np.where(self.limits.moving, self._moment.previous, 0.0))
        forces = model.efforts(plan.configuration[samples], velocity, model.velocity(speeding))
        parts = [(np.abs(forces[..., self._torque_dofs]) - self._effort[self._torque_rows]).max(
            axis=1)]
        edge, floor = self._edges, self._floor
        if len(edge):
            pitch = forces[..., 4] - floor * forces[..., 0]
            roll = forces[..., 3] + floor * forces[..., 1]
            parts.append((roll[..., None] * edge[:, 1] - pitch[..., None] * edge[:, 0]
                          - forces[..., 2, None] * edge[:, 2]).max(axis=1))
            parts.append(np.array([
                edge[:, :2] @ center[:2] - edge[:, 2]
                for center in model.balance(plan.configuration[-1])]))
        if self.spec.power:
            work = forces[:, 0, model.dofs] * command[model.entries]
            parts.append(np.maximum(work, 0.0).sum(axis=1, keepdims=True) - self.spec.power)
        return np.concatenate(parts, axis=1).ravel()

    def _standing_rows(
        self, reference: np.ndarray, place: int, matrix: np.ndarray, high: np.ndarray,
    ) -> None:
        """The posture at the end of the braking stands by itself: linear about the reference."""
        plan = self._plan(reference)
        center = self.model.balance(plan.configuration[-1])[place]
        jacobian = self.model.balance_jacobian(plan.configuration[-1], place, self._size)
        edge = self._edges
        matrix[:] = edge[:, :2] @ jacobian[:2] * plan.manoeuvre.gain[-1] * self._stretch
        left = edge[:, 2] - EDGE - edge[:, :2] @ center[:2]
        high[:] = left - BACKOFF * np.maximum(-left, 0.0) + matrix @ reference

    def _power(self, load: _Load, command: np.ndarray) -> float:
        """Total mechanical power of the joints that do work, at most [W]."""
        speed = command[self.model.entries]
        return float(np.maximum((load.torque @ command + load.rest) * speed, 0.0).sum())

    def _power_gradient(self, load: _Load, command: np.ndarray) -> np.ndarray:
        entries = self.model.entries
        torque, speed = load.torque @ command + load.rest, command[entries]
        working = torque * speed > 0.0
        gradient = (speed * working) @ load.torque
        gradient[entries] += torque * working
        return gradient


def _together(places: list[int]) -> slice | np.ndarray:
    """Places as a slice where they are neighbours, which numpy reads and writes faster."""
    first, last = places[0], places[-1] + 1
    return slice(first, last) if last - first == len(places) else np.array(places)


def _placed(points: np.ndarray, heading: np.ndarray) -> np.ndarray:
    """Points of the robot `(S, P, 3)` in the world, for poses of the base `(S, 3)`."""
    cosine, sine = np.cos(heading[:, 2, None]), np.sin(heading[:, 2, None])
    world = points.copy()
    world[..., 0] = cosine * points[..., 0] - sine * points[..., 1] + heading[:, 0, None]
    world[..., 1] = sine * points[..., 0] + cosine * points[..., 1] + heading[:, 1, None]
    return world


@dataclass(frozen=True, eq=False)
class _Load:
    """Rows of torque and tipping for one payload, and all torques: `torque @ u + rest`."""

    matrix: np.ndarray
    low: np.ndarray
    high: np.ndarray
    torque: np.ndarray
    rest: np.ndarray


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
