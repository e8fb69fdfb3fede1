"""
Where a robot's points are along a whole manoeuvre, all samples in one go.

The same kinematics as Pinocchio's (`liquid_policy.robot_model`, against which it is tested), as
products of homogeneous transforms,

    X_k = X_parent(k) (F_0 + sin q_k F_1 + cos q_k F_2 + q_k F_3),

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
            basis[place] = joint.placement @ basis[place]
        self._basis = basis.reshape(len(joints), 4, 16)
        # axis and origin of every joint, from its transform
        self._axes = np.zeros((len(joints), 1, 4, 2))
        for place, joint in enumerate(joints):
            self._axes[place, 0, :3, 0] = joint.axis
            self._axes[place, 0, 3, 1] = 1.0
        # the root link's pose stands behind the joints'
        self._on = np.array([point.joint if point.joint >= 0 else len(joints)
                             for point in points], dtype=np.intp)
        self._offset = np.array([[*point.offset, 1.0] for point in points]).reshape(
            len(points), 1, 4, 1)
        towards = self.path(points[-1].joint) if points else ()
        self._towards = np.array(towards, dtype=np.intp)
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

    def follow(
        self, positions: np.ndarray, velocities: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Where the points are, and how fast the last of them is.

        :param positions: of every action entry, `(S, A)`; only joints are read.
        :param velocities: likewise, `(S, A)`.
        :return: points `(P, S, 3)` [m] and the last one's velocity `(S, 3)` [m/s], both in the
            root's frame.
        """
        samples, count = len(positions), len(self.joints)
        turned = positions.T[self._entries]
        terms = np.empty((count, samples, 4))
        terms[:, :, 0] = 1.0
        np.sin(turned, out=terms[:, :, 1])
        np.cos(turned, out=terms[:, :, 2])
        terms[:, :, 3] = turned
        local = (terms @ self._basis).reshape(count, samples, 4, 4)
        poses = np.empty((count + 1, samples, 4, 4))
        poses[count] = _IDENTITY
        for place, joint in enumerate(self.joints):
            if joint.parent < 0:
                poses[place] = local[place]
            else:
                np.matmul(poses[joint.parent], local[place], out=poses[place])
        points = (poses[self._on] @ self._offset)[:, :, :3, 0]
        towards = self._towards
        found = (poses[towards] @ self._axes[towards])[:, :, :3]   # (K, S, 3, 2)
        axis, arm = found[..., 0], points[-1] - found[..., 1]
        lever = axis.take(_NEXT, axis=2) * arm.take(_AFTER, axis=2) \
            - axis.take(_AFTER, axis=2) * arm.take(_NEXT, axis=2)
        if self._sliding is not None:
            lever = np.where(self._sliding, axis, lever)
        speeds = velocities.T[self._entries[towards]]
        return points, (lever * speeds[:, :, None]).sum(axis=0)


_IDENTITY = np.eye(4)
_NEXT, _AFTER = np.array([1, 2, 0]), np.array([2, 0, 1])
