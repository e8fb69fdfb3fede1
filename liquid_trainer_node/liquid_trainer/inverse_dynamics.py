"""
Inverse dynamics that are linear in what is unknown: torques = rows(motion) @ parameters.

A least squares fit needs only the sums of `rows' rows` and `rows' torques`, which add up over
recordings: leaving some out for cross-validation costs a subtraction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np

from .motions import Motion, MotionError

# Below this speed Coulomb friction fades in: encoders do not tell slower motion from rest.
SLOW = 0.02     # rad/s or m/s
# Parameters of each joint, and what they cannot be below: friction does not push.
FRICTION = {'viscous': 0.0, 'coulomb': 0.0, 'offset': -np.inf, 'rotor': 0.0}


class InverseDynamics(Protocol):
    """A family of models, one for every value of its parameters."""

    prior: np.ndarray
    """Parameters to stay near where the data say nothing, `(P, K)`."""
    lowest: np.ndarray
    """What no parameter may be below, -inf where there is no such thing, `(P, K)`."""

    def rows(self, motion: Motion) -> np.ndarray:
        """Return what multiplies the parameters, `(R, P)`."""

    def targets(self, effort: np.ndarray) -> np.ndarray:
        """Return torques `(T, J)` in the order of the rows, `(R, K)`."""

    def torques(self, answers: np.ndarray) -> np.ndarray:
        """Undo `targets`, `(T, J)`."""


class Joints:
    """
    Every joint for itself: friction, offset and rotor inertia, in this order `FRICTION`.

    All there is to a joint with a large gear, where the arm's weight is borne otherwise. With the
    fewest parameters it says most of motions unlike those seen.

    :param joints: names, J.
    :param scale: typical torque of each joint, so that small joints count too, `(J,)` [N m].
    """

    def __init__(self, joints: Sequence[str], scale: np.ndarray):
        self.joints, self.scale = tuple(joints), np.asarray(scale, float)
        self.prior = np.zeros((len(FRICTION) * len(self.joints), 1))
        self.lowest = np.tile(list(FRICTION.values()), len(self.joints))[:, None]

    def rows(self, motion: Motion) -> np.ndarray:
        """Return `(T J, P)`, each joint's rows divided by its scale."""
        parts = np.stack((motion.velocity, np.tanh(motion.velocity / SLOW),
                          np.ones_like(motion.velocity), motion.acceleration), 2)
        rows = np.einsum('tjf,jk->tjkf', parts / self.scale[:, None], np.eye(len(self.joints)))
        return rows.reshape(parts.shape[0] * parts.shape[1], -1)

    def targets(self, effort: np.ndarray) -> np.ndarray:
        """Return `(T J, 1)`, scaled."""
        return (effort / self.scale).reshape(-1, 1)

    def torques(self, answers: np.ndarray) -> np.ndarray:
        """Undo `targets`."""
        return answers.reshape(-1, len(self.joints)) * self.scale

    def friction(self, parameters: np.ndarray) -> dict[str, dict[str, float]]:
        """
        Return `FRICTION` by joint: [N m s/rad], [N m], [N m], [kg m2].

        :param parameters: `(P, 1)`.
        """
        values = parameters[-len(FRICTION) * len(self.joints):].reshape(-1, len(FRICTION))
        return {joint: dict(zip(FRICTION, map(float, row), strict=True))
                for joint, row in zip(self.joints, values, strict=True)}


class RigidBodies(Joints):
    """
    A robot described by URDF, its bodies besides what `Joints` has.

    Parameters are the ten inertial ones of every body that the joints move (mass, mass times
    centre of mass, inertia about the joint), then those of `Joints`. Only combinations of them
    can be told from torques; the others stay at the description's values.

    :param urdf: description as text; its geometry is taken for true.
    :param joints: names of the joints, J; all others rest at their zero.
    :param scale: typical torque of each joint, `(J,)` [N m].
    :raises MotionError: if a joint is not in the description or has more than one axis.

    Source: Atkeson, An and Hollerbach, Estimation of inertial parameters of manipulator loads and
    links, IJRR 5(3), 1986; the rows are Pinocchio's joint torque regressor.
    """

    def __init__(self, urdf: str, joints: Sequence[str], scale: np.ndarray):
        import pinocchio

        super().__init__(joints, scale)
        whole = pinocchio.buildModelFromXML(urdf)
        missing = [name for name in joints if not whole.existJointName(name)]
        if missing:
            raise MotionError(f'{missing[0]}: expected a joint of the URDF, which has '
                              f'{", ".join(list(whole.names)[1:])}; name them with --joints')
        others = [whole.getJointId(name) for name in list(whole.names)[1:] if name not in joints]
        self._pinocchio = pinocchio
        self.model = pinocchio.buildReducedModel(whole, others, pinocchio.neutral(whole))
        self._data = self.model.createData()
        found = [self.model.joints[self.model.getJointId(name)] for name in joints]
        for name, joint in zip(joints, found, strict=True):
            if joint.nv != 1:
                raise MotionError(f'{name}: expected a joint with one axis, came {joint.nv}')
        self._place = np.array([joint.idx_v for joint in found])
        # Pinocchio keeps cosine and sine of joints that turn without end.
        self._turning = np.array([joint.nq == 2 for joint in found])
        self._first = np.array([joint.idx_q for joint in found])
        bodies = [self.model.inertias[i].toDynamicParameters()
                  for i in range(1, self.model.njoints)]
        self.prior = np.concatenate((*bodies, self.prior[:, 0]))[:, None]
        free = np.full((len(self.prior) - len(self.lowest), 1), -np.inf)
        self.lowest = np.concatenate((free, self.lowest))

    def rows(self, motion: Motion) -> np.ndarray:
        """Return `(T J, P)`, each joint's rows divided by its scale."""
        count, joints = motion.position.shape
        q = np.zeros((count, self.model.nq))
        v, a = np.zeros((2, count, self.model.nv))
        turning, first = self._turning, self._first
        q[:, first] = np.where(turning, np.cos(motion.position), motion.position)
        q[:, first[turning] + 1] = np.sin(motion.position[:, turning])
        v[:, self._place], a[:, self._place] = motion.velocity, motion.acceleration
        regressor = self._pinocchio.computeJointTorqueRegressor
        bodies = np.stack([regressor(self.model, self._data, *state)[self._place]
                           for state in zip(q, v, a, strict=True)])
        bodies = (bodies / self.scale[:, None]).reshape(count * joints, -1)
        return np.hstack((bodies, super().rows(motion)))


class Features:
    """
    An arm of which no description is at hand: what torques are made of, without its geometry.

    Friction; gravity as sines and cosines of one and two joints; inertia as accelerations, alone
    and with the sine and cosine of one joint; products of two speeds. An arm's true inverse
    dynamics contain products of more joints, so this interpolates between motions like those it
    saw and does not extrapolate.

    :param joints: names of the joints, J.
    :param scale: typical torque of each joint, `(J,)` [N m].
    """

    def __init__(self, joints: Sequence[str], scale: np.ndarray):
        self.scale = np.asarray(scale, float)
        count = len(joints)
        pairs = count * (count - 1) // 2
        self.prior = np.zeros((1 + 5 * count + 4 * pairs + 2 * count * count
                               + pairs + count, count))
        self.lowest = np.full_like(self.prior, -np.inf)

    def rows(self, motion: Motion) -> np.ndarray:
        """Return `(T, P)`."""
        q, v, a = motion.position, motion.velocity, motion.acceleration
        sines, cosines = np.sin(q), np.cos(q)
        waves = np.hstack((sines, cosines))
        parts = [np.ones((len(q), 1)), v, np.tanh(v / SLOW), a, waves]
        for i, j in combinations(range(q.shape[1]), 2):
            parts.append(np.stack((sines[:, i] * sines[:, j], sines[:, i] * cosines[:, j],
                                   cosines[:, i] * sines[:, j], cosines[:, i] * cosines[:, j],
                                   v[:, i] * v[:, j]), 1))
        parts += [(a[:, :, None] * waves[:, None]).reshape(len(q), -1), v * v]
        return np.hstack(parts)

    def targets(self, effort: np.ndarray) -> np.ndarray:
        """Return `(T, J)`, scaled."""
        return effort / self.scale

    def torques(self, answers: np.ndarray) -> np.ndarray:
        """Undo `targets`."""
        return answers * self.scale


@dataclass(frozen=True, eq=False)
class Sums:
    """
    What a fit needs to know of recordings; these add up.

    :param gram: `rows' rows`, `(P, P)`.
    :param moment: `rows' targets`, `(P, K)`.
    :param square: sum of the targets' squares.
    """

    gram: np.ndarray
    moment: np.ndarray
    square: float

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.gram + other.gram, self.moment + other.moment,
                    self.square + other.square)

    def __sub__(self, other: Sums) -> Sums:
        return Sums(self.gram - other.gram, self.moment - other.moment,
                    self.square - other.square)

    def error(self, parameters: np.ndarray) -> float:
        """Return the sum of squared errors of parameters `(P, K)`."""
        return float(((self.gram @ parameters - 2.0 * self.moment) * parameters).sum()
                     + self.square)


def gather(model: InverseDynamics, motion: Motion) -> Sums:
    """Return the sums of one motion."""
    rows, targets = model.rows(motion), model.targets(motion.effort)
    return Sums(rows.T @ rows, rows.T @ targets, float((targets ** 2).sum()))


def predict(model: InverseDynamics, parameters: np.ndarray, motion: Motion) -> np.ndarray:
    """Return the torques a model expects of a motion, `(T, J)` [N m]."""
    return model.torques(model.rows(motion) @ parameters)


def fit(model: InverseDynamics, sums: Sums, ridge: float) -> np.ndarray:
    """
    Return parameters `(P, K)` by least squares that stay near the prior, none below its lowest.

    :param model: gives the prior.
    :param sums: of the recordings.
    :param ridge: how near: 1 weighs a parameter's distance as much as all of the data. Every
        parameter is measured by the torque it causes in the data, so units do not matter.
    """
    prior, lowest = model.prior, model.lowest
    size = np.sqrt(np.diag(sums.gram))
    moved = size > 1e-9 * size.max()        # the others stay at the prior
    size = np.where(moved, size, np.inf)
    gram = sums.gram / np.outer(size, size) + ridge * np.eye(len(size))
    short = (sums.moment - sums.gram @ prior) / size[:, None]
    change = np.linalg.solve(gram, short)
    for column in np.flatnonzero((prior + change / size[:, None] < lowest).any(0)):
        room = np.where(moved, (lowest - prior)[:, column] * np.where(moved, size, 1.0), -np.inf)
        change[:, column] = _bounded(gram, short[:, column], room)
    return prior + change / size[:, None]


def _bounded(gram: np.ndarray, right: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Return what minimises `x' gram x / 2 - right' x` with x at least `low`."""
    import daqp

    count = len(right)
    answer, _, flag, _ = daqp.solve(
        np.ascontiguousarray(gram), -right, np.zeros((0, count)), np.full(count, 1e30),
        np.maximum(low, -1e30), np.zeros(count, dtype=np.int32))
    if flag < 1:
        raise MotionError('expected parameters within their bounds, came none (DAQP says '
                          f'{flag}); record motions in which every joint moves')
    return answer


def choose_ridge(model: InverseDynamics, parts: Sequence[Sums],
                 ridges: Sequence[float] = tuple(10.0 ** np.arange(-8.0, 0.0))) -> float:
    """
    Return the ridge whose fits predict best what was left out.

    :param parts: sums of recordings, each left out once; a single part is taken on trust, with
        the smallest ridge.
    """
    if len(parts) < 2:
        return ridges[0]
    total = sum(parts[1:], parts[0])
    errors = [sum(part.error(fit(model, total - part, ridge)) for part in parts)
              for ridge in ridges]
    return ridges[int(np.argmin(errors))]
