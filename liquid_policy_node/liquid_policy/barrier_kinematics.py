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
    """Joints, parents before children, and the points that are followed."""

    def __init__(self, joints: tuple[Joint, ...], points: tuple[Attached, ...]) -> None:
        """
        Prepare the constant matrices.

        :param joints: parents come before children.
        :param points: followed.
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
        self._parents = tuple(joint.parent for joint in joints)
        self._slides = any(joint.prismatic for joint in joints)
        # the root link's pose stands behind the joints'
        self._on = np.array([point.joint if point.joint >= 0 else len(joints)
                             for point in points], dtype=np.intp)
        self._offset = np.array(
            [[*point.offset, 1.0] for point in points]).reshape(len(points), 1, 4, 1)

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


_IDENTITY = np.eye(4)
