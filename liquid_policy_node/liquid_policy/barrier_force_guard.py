"""
Limits of the forces a command needs: torque, tipping and power, for every payload of the range.

Of the command itself, with the acceleration (u - u_previous) / dt it asks for,

- torque:   |M(q) a + h(q, v)| <= limit (1 - margin),
- tipping:  the zero-moment point stays inside the support polygon by its margin,
- power:    sum max(0, torque_i u_i) <= limit;

while it is held and braked the same at every instant (`liquid_policy.barrier_forces`), and the
robot stands by itself where it comes to rest. Torque and tipping are affine in u, so their rows
are exact.

Source: zero-moment point: Vukobratovic and Borovac, IJHR 1 (2004).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from liquid_policy.barrier_forces import ForceBounds, greatest_power
from liquid_policy.barrier_manoeuvre import Manoeuvre, Plan, finer
from liquid_policy.limits import Limits, LimitsError
from liquid_policy.robot_model import RobotModel
from liquid_policy.safety_spec import SafetySpec

EDGE = 1e-9     # of rows, for rounding
# Share of a reference's excess by which limits that are not linear are tightened in their rows:
# what linearising leaves out is smaller, so one programme suffices as a rule.
BACKOFF = 0.1
# Power bends most: it is the product of a torque that changes with the command and the command.
POWER_BACKOFF = 0.3
POWER_BACK = 0.01   # share of the limit; at least that much
POWER_NEAR = 0.5    # share of the limit; power below it needs no row
PARTS = 3   # into which pieces are cut where whole ones do not show that forces keep their limits
FAST = 10   # commands that are followed before a robot is tried as a slow one again


@dataclass(frozen=True, eq=False)
class _Loads:
    """Rows of torque and tipping for each payload, and all torques: `torque @ u + rest`."""

    matrix: np.ndarray    # (L, rows, A)
    middle: np.ndarray    # (L, rows): what the rows are at u = 0
    torque: np.ndarray    # (L, joints, A)
    rest: np.ndarray      # (L, joints)
    held: np.ndarray      # (L, joints), torque at constant speed


class ForceLimits:
    """Torque, tipping and power of the `safety` section, for one moment at a time."""

    def __init__(
        self, limits: Limits, spec: SafetySpec, model: RobotModel, stretch: float,
        support: tuple[np.ndarray, float] | None = None,
    ) -> None:
        """
        Prepare everything that does not change.

        :param limits: the robot's limits, entry by entry.
        :param spec: limits of the whole robot.
        :param model: the robot, with the spec's tool and payload.
        :param stretch: by how much more than a command the robot can move.
        :param support: the support polygon, see `robot_model.support_polygon`; needed for the
            tip margin.
        :raises LimitsError: for a tip margin no posture has.
        """
        self.model, self.power = model, spec.power
        self._size, self._stretch, self._moving = len(limits.names), stretch, limits.moving
        effort = limits.effort[model.entries] * (1.0 - spec.torque_margin)
        rows = np.flatnonzero(np.isfinite(effort)) if spec.torque else np.zeros(0, dtype=np.intp)
        self._torque_dofs = _together(model.dofs[rows].tolist())
        self._dofs, self._moved = _together(model.dofs.tolist()), _together(
            model.entries.tolist())
        self._used = _together(rows.tolist())
        self._effort = effort[self._used]
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
        edges = len(edge)
        self._most = np.concatenate([self._effort, np.zeros(edges)])
        self._least = np.concatenate([self._effort, np.full(edges, np.inf)])
        self.names = tuple(
            f'{name}/{load:g}kg'
            for load in model.payloads for name in (
                *(f'torque/{limits.names[model.entries[index]]}' for index in rows),
                *(f'{kind}/edge_{number}' for kind in ('tip', 'stand')
                  for number in range(edges)),
                *(('power',) if spec.power else ())))
        self._power_places = np.array([
            place for place, name in enumerate(self.names) if name.startswith('power/')],
            dtype=int)
        self._bounds = ForceBounds(model, self._size)
        self._fast = 0   # for how many commands a motion is too fast to be tried as a slow one
        self._sharper: Callable[[], np.ndarray] | None = None

    def begin(self, start: np.ndarray, previous: np.ndarray, step: float) -> None:
        """
        Take in a new moment.

        :param start: posture in which a command takes effect, `(A,)`.
        :param previous: the last command, `(A,)`.
        :param step: time in which the robot comes from that one to the next [s].
        """
        self._start, self._previous, self._step = start, previous * self._moving, step
        self._loads_made: _Loads | None = None

    @property
    def _loads(self) -> _Loads:
        """Torque and zero-moment point as functions of the command, for each payload."""
        if self._loads_made is None:
            self._loads_made = self._affine()
        return self._loads_made

    def _affine(self) -> _Loads:
        previous, model = self._previous, self.model
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

    def excess(self, command: np.ndarray, plan: Plan, refused: bool) -> np.ndarray:
        """
        By how much the forces of a command and of braking after it break their limits, at most.

        Torque, tipping and power now, with the acceleration the command asks for; while it is
        held and braked, at every instant (`liquid_policy.barrier_forces`); and at rest. Whether
        the robot stands in the posture where it comes to rest.

        :param command: `(A,)`.
        :param plan: where it leads.
        :param refused: whether another limit, a hard one, is broken; then only the forces of the
            command itself are looked at.
        :return: in the order of `names`, payload by payload.
        """
        model, loads, edges = self.model, self._loads, len(self._edges)
        now = loads.torque @ command + loads.rest
        excess = np.abs(now[:, self._used]) - self._effort
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
            edge, end = self._edges, model.configuration(self._start + plan.end)
            parts.append(np.array([
                edge[:, :2] @ center[:2] - edge[:, 2] for center in model.balance(end)]))
        if self.power:
            now *= command[self._moved]
            power = np.add.reduce(np.maximum(now, 0.0), axis=1)
            self._power_now = power
            if later is not None:
                self._held_counts = later[:, -1] > power
                power = np.maximum(power, later[:, -1])
            parts.append(power[:, None] - self.power)
        return np.concatenate(parts, axis=1).ravel() if len(parts) > 1 else excess.ravel()

    def _slowly(self, plan: Plan) -> np.ndarray | None:
        """A bound of what `_braking` gives, from forces at rest; None if that breaks a limit."""
        rest = self.model.gravity(self._start)
        off = self._bounds.around(plan, np.abs(self._inertia))
        size = np.abs(rest) + off
        parts = [size[:, self._torque_dofs] - self._effort]
        if len(self._edges):
            parts.append(
                rest[:, :6] @ self._tipping.T + off[:, :6] @ np.abs(self._tipping).T)
        if self.power:
            parts.append((size[:, self._dofs] @ plan.speed[self._moved] - self.power)[:, None])
        found = np.concatenate(parts, axis=1)
        if not (found <= 0.0).all():
            return None
        if self.power:
            found[:, -1] += self.power
            self._sharper = lambda: self._braking(plan)[:, -1]
        return found

    def _braking(self, plan: Plan) -> np.ndarray:
        """
        Excess of torques and tipping and total power while held, braked and at rest.

        :return: `(L, torques + edges)`, and power behind them if it is limited.
        """
        found = self._braking_at(plan.manoeuvre)
        if (found[:, -1] > (self.power or np.inf)).any() or (
                found[:, :found.shape[1] - bool(self.power)] > 0.0).any():
            found = self._braking_at(finer(plan.manoeuvre, PARTS))
        return found

    def _braking_at(self, manoeuvre: Manoeuvre) -> np.ndarray:
        """`_braking` by the samples of a manoeuvre: the finer they are, the sharper."""
        forces, off = self._bounds.along(self._start, manoeuvre)
        size, both = np.abs(forces), off.repeat(2, axis=0)
        size[:, :-1] += both
        parts = [np.maximum.reduce(size, axis=1)[:, self._torque_dofs] - self._effort]
        if len(self._edges):
            tipping = forces[..., :6] @ self._tipping.T
            tipping[:, :-1] += both[:, :6] @ np.abs(self._tipping).T
            parts.append(np.maximum.reduce(tipping, axis=1))
        if self.power:
            pieces = (len(forces), -1, 2, forces.shape[2])
            # speeds are greatest at the beginning of a piece: a bound that mostly suffices
            speed = manoeuvre.sizes[0][:, self._moved, None]
            power = np.maximum.reduce(
                size[:, :-1].reshape(pieces)[..., self._dofs] @ speed, axis=(1, 2))
            sharper = partial(
                greatest_power, forces[:, :-1].reshape(pieces)[..., self._dofs],
                off[:, self._dofs], manoeuvre.velocity[:, self._moved])
            enough = bool((power <= self.power).all())
            self._sharper = sharper if enough else None
            if not enough:
                power = sharper()[:, None]
            parts.append(power)
        return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]

    def rows(
        self, reference: np.ndarray, plan: Plan, excess: np.ndarray, rows: np.ndarray,
        low: np.ndarray, high: np.ndarray,
    ) -> None:
        """
        The limits about a command, linear in it: `low <= rows u <= high`.

        :param reference: `(A,)`.
        :param plan: where it leads.
        :param excess: what `excess` says of it; sharpened for power.
        :param rows: `(r, A)`, 0 and filled in here, like both bounds.
        :param low: `(r,)`.
        :param high: `(r,)`.
        """
        loads, edges = self._loads, len(self._edges)
        payloads, count = loads.middle.shape
        blocks = rows.reshape(payloads, -1, self._size)
        blocks[:, :count] = loads.matrix
        low.reshape(payloads, -1)[:, :count] = -self._least - loads.middle
        high.reshape(payloads, -1)[:, :count] = self._most - loads.middle
        for place in range(payloads if edges else 0):
            here = slice(count, count + edges)
            self._standing_rows(
                reference, plan, place, blocks[place, here],
                high.reshape(payloads, -1)[place, here])
        if not self.power:
            return
        places, near = self._power_places, (POWER_NEAR - 1.0) * self.power
        while self._sharper is not None and (excess[places] > near).any():
            # a limit that is kept was not looked at closely
            sharper, self._sharper = self._sharper, None
            excess[places] = np.maximum(self._power_now, sharper()) - self.power
        if (excess[places] > near).any():
            rows[places], high[places] = self._power_rows(reference, excess[places])

    def _standing_rows(
        self, reference: np.ndarray, plan: Plan, place: int, matrix: np.ndarray, high: np.ndarray,
    ) -> None:
        """The posture at the end of the braking stands by itself: linear about the reference."""
        end = self.model.configuration(self._start + plan.end)
        center = self.model.balance(end)[place]
        jacobian = self.model.balance_jacobian(end, place, self._size)
        edge, manoeuvre = self._edges, plan.manoeuvre
        gain = manoeuvre.gain(len(manoeuvre.duration))
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
        entries, loads, limit = self.model.entries, self._loads, self.power or 0.0
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


def _together(places: list[int]) -> slice | np.ndarray:
    """Places as a slice where they are neighbours, which numpy reads and writes faster."""
    if not places:
        return slice(0, 0)
    first, last = places[0], places[-1] + 1
    return slice(first, last) if places == list(range(first, last)) else np.array(places)


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
