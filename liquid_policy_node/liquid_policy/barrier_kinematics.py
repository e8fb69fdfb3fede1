"""
Where a robot's points are along a whole manoeuvre, all samples in one go.

The same kinematics as Pinocchio's (`liquid_policy.robot_model`, against which it is tested), as
products of homogeneous transforms,

    X_k = X_parent(k) (F_0 + sin q_k F_1 + cos q_k F_2 + q_k F_3),   K of them,

one matrix product per joint for every sample together (Rodrigues' formula; a prismatic joint has
only F_0 and F_3): a dozen calls of numpy in place of a dozen of Pinocchio for every sample.

Source: Lynch and Park, Modern Robotics (2017), chapters 3 and 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Joint:
    """
    A joint of one degree of freedom.

    :param entry: its place among the actions.
    :param parent: place of the joint its parent link hangs on, -1 for the root link.
    :param placement: pose of the joint in the parent's link, `(4, 4)`.
    :param axis: unit vector, in the joint's frame.
    :param prismatic: whether it slides rather than turns.
    :param extension: of a sliding joint, how far from its zero it can be [m].
    """

    entry: int
    parent: int
    placement: np.ndarray
    axis: np.ndarray
    prismatic: bool
    extension: float = 0.0


@dataclass(frozen=True, eq=False)
class Attached:
    """
    A point fixed to a link.

    :param joint: place of the joint the link hangs on, -1 for the root link.
    :param offset: of the point in that joint's frame, `(3,)` [m].
    """

    joint: int
    offset: np.ndarray


class Chain:
    """Joints, parents before children, and the points that are followed; the tool is the last."""

    def __init__(self, joints: tuple[Joint, ...], points: tuple[Attached, ...]) -> None:
        """
        Prepare the constant matrices.

        :param joints: parents come before children.
        :param points: followed; of the last one the velocity is wanted.
        """
        self.joints, self.points = joints, points
        # Frames are turned so that each joint's axis is its z axis, a column of its transform.
        turned = np.array([_turn_z_to(joint.axis) for joint in joints]).reshape(-1, 4, 4)
        self._entries = np.array([joint.entry for joint in joints], dtype=np.intp)
        basis = np.zeros((len(joints), 4, 4, 4))
        for place, joint in enumerate(joints):
            x, y, z = joint.axis
            cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
            basis[place, 0] = np.eye(4)
            if joint.prismatic:
                basis[place, 3, :3, 3] = joint.axis
            else:
                basis[place, 0, :3, :3] += cross @ cross
                basis[place, 1, :3, :3] = cross
                basis[place, 2, :3, :3] = -cross @ cross
            back = turned[joint.parent].T if joint.parent >= 0 else np.eye(4)
            basis[place] = back @ joint.placement @ basis[place] @ turned[place]
        self._basis = basis.reshape(len(joints), 4, 16)
        self._parents = tuple(joint.parent for joint in joints)
        self._slides = any(joint.prismatic for joint in joints)
        # the root link's pose stands behind the joints'
        self._on = np.array([point.joint if point.joint >= 0 else len(joints)
                             for point in points], dtype=np.intp)
        self._offset = np.array([
            (turned[point.joint].T if point.joint >= 0 else np.eye(4)) @ [*point.offset, 1.0]
            for point in points]).reshape(len(points), 1, 4, 1)
        towards = self.path(points[-1].joint) if points else ()
        self._towards: slice | np.ndarray = np.array(towards, dtype=np.intp)
        if towards == tuple(range(len(towards))):
            self._towards = slice(0, len(towards))   # a view is quicker than a copy
        self._sliding = np.array([joints[place].prismatic for place in towards])[:, None, None] \
            if any(joints[place].prismatic for place in towards) else None

    def path(self, joint: int) -> tuple[int, ...]:
        """
        Places of the joints from the root to a link, in that order.

        :param joint: the joint it hangs on, -1 for the root link.
        """
        found: list[int] = []
        while joint >= 0:
            found.append(joint)
            joint = self.joints[joint].parent
        return tuple(reversed(found))

    def poses(self, positions: np.ndarray) -> np.ndarray:
        """
        Where the joints are, and the root link behind them.

        :param positions: of every action entry, `(S, A)`; only joints are read.
        :return: homogeneous transforms, `(K + 1, S, 4, 4)`, to be handed to the other methods.
        """
        samples, count = len(positions), len(self.joints)
        turned = positions.T[self._entries]
        terms = np.empty((count, samples, 4))
        terms[:, :, 0] = 1.0
        np.sin(turned, out=terms[:, :, 1])
        np.cos(turned, out=terms[:, :, 2])
        terms[:, :, 3] = turned if self._slides else 0.0
        local = (terms @ self._basis).reshape(count, samples, 4, 4)
        poses = np.empty((count + 1, samples, 4, 4))
        poses[count] = _IDENTITY
        for place, parent in enumerate(self._parents):
            if parent < 0:
                poses[place] = local[place]
            else:
                np.matmul(poses[parent], local[place], out=poses[place])
        return poses

    def places(self, poses: np.ndarray) -> np.ndarray:
        """
        Where all points are, in the root's frame.

        :param poses: see there.
        :return: `(P, S, 3)` [m].
        """
        return (poses[self._on] @ self._offset)[:, :, :3, 0]

    def last_velocity(self, poses: np.ndarray, velocities: np.ndarray) -> np.ndarray:
        """
        How fast the last point moves, in the root's frame.

        :param poses: see there.
        :param velocities: of every action entry, `(S, A)`.
        :return: `(S, 3)` [m/s].
        """
        levers = self._levers(poses)
        levers *= velocities.T[self._entries[self._towards]][:, :, None]
        return np.add.reduce(levers, axis=0)

    def _levers(self, poses: np.ndarray) -> np.ndarray:
        """Columns of the last point's Jacobian for the joints before it, `(K, S, 3)`."""
        found = poses[self._towards]
        axis = found[..., :3, 2]
        arm = (poses[self._on[-1]] @ self._offset[-1, 0])[:, :3, 0] - found[..., :3, 3]
        levers = axis.take(_NEXT, axis=2) * arm.take(_AFTER, axis=2)
        levers -= axis.take(_AFTER, axis=2) * arm.take(_NEXT, axis=2)
        return levers if self._sliding is None else np.where(self._sliding, axis, levers)

    def speed_slopes(
        self, poses: np.ndarray, sample: int, velocity: np.ndarray, direction: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        How the last point's speed changes with velocities and positions of the entries.

        With dJ_i/dq_j = z_j x J_i for j before i, else z_i x J_j, and v = sum J_i q_i',

            dv/dq_j = z_j x sum_{i >= j} J_i q_i'  +  (sum_{i < j} z_i q_i') x J_j.

        :param poses: see there.
        :param sample: which.
        :param velocity: of every action entry, `(A,)`.
        :param direction: unit vector along the point's velocity.
        :return: slopes by velocities and by positions, `(A,)` each.
        """
        here = poses[:, sample:sample + 1]
        entries = self._entries[self._towards]
        levers, axes = self._levers(here)[:, 0], here[self._towards][:, 0, :3, 2]
        if self._sliding is not None:
            axes = np.where(self._sliding[:, 0], 0.0, axes)
        speeds = velocity[entries][:, None]
        behind = np.add.accumulate((levers * speeds)[::-1])[::-1]
        turned = axes * speeds
        before = np.add.accumulate(turned) - turned
        # n . (z x b) = z . (b x n),  n . (w x J) = J . (n x w)
        across = behind.take(_NEXT, axis=1) * direction[_AFTER] \
            - behind.take(_AFTER, axis=1) * direction[_NEXT]
        along = direction[_NEXT] * before.take(_AFTER, axis=1) \
            - direction[_AFTER] * before.take(_NEXT, axis=1)
        by_velocity, by_position = np.zeros((2, len(velocity)))
        by_velocity[entries] = levers @ direction
        by_position[entries] = (axes * across + levers * along).sum(axis=1)
        return by_velocity, by_position


def _turn_z_to(axis: np.ndarray) -> np.ndarray:
    """Rotation that brings the z axis to a unit vector, homogeneous, `(4, 4)`."""
    other = np.eye(3)[np.abs(axis).argmin()]
    first = np.cross(other, axis)
    first /= np.linalg.norm(first)
    turn = np.eye(4)
    turn[:3, :3] = np.column_stack([first, np.cross(axis, first), axis])
    return turn


_IDENTITY = np.eye(4)
_NEXT, _AFTER = np.array([1, 2, 0]), np.array([2, 0, 1])
