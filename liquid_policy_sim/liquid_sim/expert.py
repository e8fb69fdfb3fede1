"""A scripted expert that picks parts off the belt: inverse kinematics and velocity control."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
import pinocchio

from liquid_sim import scene


@dataclass(frozen=True)
class ExpertSettings:
    """
    How the expert moves.

    :param speed: largest tool speed in the horizontal plane [m/s].
    :param vertical_speed: largest vertical tool speed [m/s].
    :param acceleration: largest change of the tool's velocity [m/s2].
    :param gain: of the tool's position error [1/s].
    :param press: how long it presses on after the cup has sealed [s]. Nothing a policy measures
        tells when that was, so it will lift a little early or late; pressing for longer than
        that makes good for a tool that was a centimetre too high.
    """

    speed: float = 0.75
    vertical_speed: float = 0.40
    acceleration: float = 3.0
    gain: float = 5.0
    press: float = 0.3


class Phase(enum.Enum):
    """What the expert is about."""

    PICK = 'pick'
    LIFT = 'lift'
    CARRY = 'carry'
    PLACE = 'place'


WAIT = np.array([0.65, -0.20, 0.585])         # the tool above the belt, upstream [m]
CARRY_HEIGHT = 0.68                            # on the way out; the way back is lower [m]
PLACE = np.array([*scene.BIN_CENTRE, 0.56])    # where the part is let go [m]
PRESS_DEPTH = 0.012   # aimed below a part's top: the cup's rubber gives [m]
REACH_Y = (-0.32, 0.30)                        # of a part that is worth a try [m]


class ArmKinematics:
    """
    The arm's kinematics from the URDF, for a tool that keeps its working orientation.

    :param urdf: URDF text.
    """

    def __init__(self, urdf: str):
        self._model = pinocchio.buildModelFromXML(urdf)
        self._data = self._model.createData()
        joints = [self._model.joints[self._model.getJointId(n)] for n in scene.ARM_JOINTS]
        self._q = [j.idx_q for j in joints]
        self._v = [j.idx_v for j in joints]
        self._frame = self._model.getFrameId('tool_tip')
        self._full = pinocchio.neutral(self._model)

    def tool_pose(self, position):
        """Return the tool's position (3,) [m] and rotation (3, 3) in base_link."""
        self._full[self._q] = position
        pinocchio.framesForwardKinematics(self._model, self._data, self._full)
        pose = self._data.oMf[self._frame]
        return pose.translation.copy(), pose.rotation.copy()

    def joint_velocity(self, position, tool_velocity, rotation, turn_gain: float = 4.0):
        """
        Return the joint velocities (6,) [rad/s] that move the tool and keep its orientation.

        :param position: joint positions, (6,) [rad].
        :param tool_velocity: wanted velocity of the tool in base_link, (3,) [m/s].
        :param rotation: wanted rotation of the tool in base_link, (3, 3).
        :param turn_gain: of the orientation error [1/s].

        Source: damped least squares, Nakamura and Hanafusa, 1986.
        """
        _, now = self.tool_pose(position)
        jacobian = pinocchio.computeFrameJacobian(
            self._model, self._data, self._full, self._frame,
            pinocchio.LOCAL_WORLD_ALIGNED)[:, self._v]
        turn = turn_gain * pinocchio.log3(rotation @ now.T)
        wanted = np.concatenate([tool_velocity, turn])
        return jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + 1e-5 * np.eye(6), wanted)

    def solve(self, position, rotation, guess):
        """
        Return joint positions (6,) [rad] that put the tool at a pose.

        :raises ValueError: if no solution was found near the guess.
        """
        joints = np.array(guess, dtype=float)
        for _ in range(500):
            error = position - self.tool_pose(joints)[0]
            change = self.joint_velocity(joints, error, rotation, turn_gain=1.0)
            joints += np.clip(change, -0.2, 0.2)
            if np.abs(change).max() < 1e-10:
                return joints
        raise ValueError(f'no joint positions found for tool position {position}')


class Expert:
    """
    Picks parts one after the other, knowing where they truly are.

    Its motion is made easy to imitate: the approach is a funnel (the lower, the better the tool
    is aligned) instead of a sequence of waypoints, and the way back from the bin is lower than
    the way there, so that a joint position tells which of the two it is.

    :param sim: the cell; the expert reads its ground truth.
    """

    def __init__(self, sim, settings: ExpertSettings | None = None):
        self._sim = sim
        self._settings = settings or ExpertSettings()
        description = sim.settings.scene.description or scene.find_description()
        self._arm = ArmKinematics(scene.read_urdf(description))
        self._rotation = scene.tool_down()
        self.reset()

    def reset(self) -> None:
        """Forget the current part."""
        self.phase = Phase.PICK
        self._velocity = np.zeros(3)
        self._belt = np.zeros(3)
        self._held_for = 0.0
        self._seen_picked = 0

    def act(self, period: float = 0.01) -> np.ndarray:
        """
        Return the command (9,) for the cell as it is now.

        :param period: time until the next call [s].
        """
        _, position, _, _ = self._sim.joint_state()
        tool = self._sim.tool()
        target, feedforward, suction = self._goal(tool, period)
        limits = np.array([self._settings.speed] * 2 + [self._settings.vertical_speed])
        wanted = self._settings.gain * (target - tool)
        # shorten the horizontal part as a vector, so that the tool moves straight
        horizontal = np.linalg.norm(wanted[:2])
        if horizontal > limits[0]:
            wanted[:2] *= limits[0] / horizontal
        wanted[2] = np.clip(wanted[2], -limits[2], limits[2])
        wanted += feedforward
        change = wanted - self._velocity
        most = self._settings.acceleration * period
        size = float(np.linalg.norm(change))
        self._velocity = self._velocity + change * min(1.0, most / max(size, 1e-9))
        joints = self._arm.joint_velocity(position[:6], self._velocity, self._rotation)
        joints = joints * min(1.0, 1.9 / max(float(np.abs(joints).max()), 1e-9))
        return np.concatenate([joints, [suction, 0.0, 0.0]])

    def _goal(self, tool, period):
        """Return the tool's target (3,), the velocity to add (3,) and the suction level."""
        still = np.zeros(3)
        if self.phase is Phase.PICK:
            return self._approach(tool, period)
        if not self._sim.holding and self.phase in (Phase.LIFT, Phase.CARRY):
            self.phase = Phase.PICK   # lost it
            return WAIT, still, 0.0
        if self.phase is Phase.LIFT:
            if tool[2] > CARRY_HEIGHT - 0.10:
                self.phase = Phase.CARRY
            return np.array([tool[0], tool[1], CARRY_HEIGHT]), still, 1.0
        if self.phase is Phase.CARRY:
            target = np.array([PLACE[0], PLACE[1], CARRY_HEIGHT])
            distance = np.linalg.norm(target[:2] - tool[:2])
            # sink towards the bin only when above it
            target[2] = np.clip(CARRY_HEIGHT - 1.5 * (0.12 - distance), PLACE[2], CARRY_HEIGHT)
            if distance < 0.05 and tool[2] < PLACE[2] + 0.035:
                self.phase = Phase.PLACE
                return target, still, 0.0
            return target, still, 1.0
        # let go, wait until it is gone (somebody else may drive), leave at the lower height
        if self._sim.holding:
            return tool, still, 0.0
        self.phase = Phase.PICK
        return WAIT, still, 0.0

    def _approach(self, tool, period):
        part = self._sim.part()
        if self._sim.holding:
            self._held_for += period
            if self._held_for > self._settings.press:
                self.phase = Phase.LIFT
                self._held_for = 0.0
            return tool - [0, 0, PRESS_DEPTH], self._belt, 1.0
        self._held_for = 0.0
        if part is None or not REACH_Y[0] < part.position[1] < REACH_Y[1]:
            return WAIT, np.zeros(3), 0.0
        top = part.position + [0, 0, part.half_height]
        error = np.linalg.norm((top - tool)[:2])
        hover = np.clip(2.5 * (error - 0.010), 0.0, 0.08)
        target = top + [0, 0, hover - PRESS_DEPTH]
        if tool[1] > 0.10 and tool[0] < 0.45:
            target[2] = WAIT[2]   # still coming back from the bin, stay above the belt's rim
        suction = 1.0 if error < 0.02 and tool[2] - top[2] < 0.03 else 0.0
        self._belt = part.velocity * [1, 1, 0]
        return target, self._belt, suction
