"""Random serial arms for property tests: URDF, limits, and a world that carries commands out."""

from __future__ import annotations

from collections import deque

import numpy as np

from liquid_policy.barrier import JointFeedback
from liquid_policy.limits import Limits


def random_urdf(generator: np.random.Generator, joints: int, effort: float = 500.0) -> str:
    """
    A serial arm with links of random length and mass, axes in random directions.

    :param generator: decides.
    :param joints: how many.
    :param effort: limit of every joint [N m].
    """
    text = ['<robot name="random"><link name="base"/>']
    parent, origin = 'base', '0 0 0.3'
    for index in range(joints):
        length, mass = generator.uniform(0.15, 0.4), generator.uniform(0.5, 4.0)
        axis = generator.normal(size=3)
        axis /= np.linalg.norm(axis)
        inertia = mass * length ** 2 / 12 + 1e-3
        text.append(
            f'<link name="link_{index}"><inertial><origin xyz="0 0 {length / 2}"/>'
            f'<mass value="{mass}"/><inertia ixx="{inertia}" iyy="{inertia}" izz="{inertia / 4}" '
            f'ixy="0" ixz="0" iyz="0"/></inertial></link>'
            f'<joint name="joint_{index}" type="revolute"><parent link="{parent}"/>'
            f'<child link="link_{index}"/><origin xyz="{origin}"/>'
            f'<axis xyz="{axis[0]} {axis[1]} {axis[2]}"/>'
            f'<limit lower="-2.5" upper="2.5" velocity="2.0" effort="{effort}"/></joint>')
        parent, origin = f'link_{index}', f'0 0 {length}'
    text.append(
        f'<link name="tool"/><joint name="tool_joint" type="fixed"><parent link="{parent}"/>'
        f'<child link="tool"/><origin xyz="{origin}"/></joint></robot>')
    return ''.join(text)


def arm_limits(
    joints: int, speed: float = 2.0, acceleration: float = 10.0, effort: float = 500.0,
    generator: np.random.Generator | None = None,
) -> Limits:
    """Limits of such an arm, every entry a joint; speeds and accelerations random if asked."""
    speeds, accelerations = np.full(joints, speed), np.full(joints, acceleration)
    if generator is not None:
        speeds = generator.uniform(0.5, speed, joints)
        accelerations = generator.uniform(0.4, 1.0, joints) * acceleration
    all_joints = np.ones(joints, dtype=bool)
    return Limits(
        names=tuple(f'joint_{index}' for index in range(joints)), units=('rad/s',) * joints,
        moving=all_joints, joint=all_joints.copy(), lower=np.full(joints, -2.5),
        upper=np.full(joints, 2.5), low=-speeds, high=speeds,
        range_bound=np.zeros(joints, dtype=bool), acceleration=accelerations,
        effort=np.full(joints, effort))


class World:
    """Joints whose velocity is the command of some time ago, integrated exactly."""

    def __init__(self, position: np.ndarray, delay: float) -> None:
        self.delay, self.time = delay, 0.0
        self.position = position.copy()
        self._orders: deque[tuple[float, np.ndarray]] = deque([(-1.0, np.zeros_like(position))])

    def feedback(self, velocity: np.ndarray) -> JointFeedback:
        """What the filter is told; nothing is known of efforts."""
        return JointFeedback(
            self.position.copy(), velocity, np.full(len(velocity), np.nan), 0.0)

    def run(self, command: np.ndarray, duration: float, pieces: int = 3):
        """Carry out a command; yields position and velocity at several instants."""
        self._orders.append((self.time + self.delay, command.copy()))
        for _ in range(pieces):
            end = self.time + duration / pieces
            while len(self._orders) > 1 and self._orders[1][0] <= end - 1e-12:
                self._advance(max(self._orders[1][0], self.time))
                self._orders.popleft()
            self._advance(end)
            yield self.position, self._orders[0][1]

    def _advance(self, until: float) -> None:
        self.position = self.position + self._orders[0][1] * (until - self.time)
        self.time = until
