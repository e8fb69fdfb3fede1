"""The robots of the safety trials, in MuJoCo: the conveyor's manipulator and arms on a stand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mujoco
import numpy as np

from liquid_policy.barrier import JointFeedback
from liquid_policy.interface import Interface, load_interface
from liquid_sim import scene
from liquid_sim.bare_arm import BareArm, BareArmSettings
from liquid_sim.conveyor import ConveyorSettings, ConveyorSim

BENT = (0.3, -0.6, 1.1, 0.2, -0.5, 0.1)   # where the arms on a stand begin [rad]


class RobotFiles(NamedTuple):
    """
    What describes a robot of the trials.

    :param interface: name of its interface file.
    :param description: name of its URDF.
    :param period: time between two commands [s].
    :param payloads: lightest and heaviest load it is tried with [kg].
    """

    interface: str
    description: str
    period: float
    payloads: tuple[float, float]

    def load(self) -> tuple[Interface, Path]:
        """Return the interface and the path of the URDF."""
        return (load_interface(scene.find_file('config', f'{self.interface}.interface.yaml')),
                scene.find_file('urdf', self.description))


ROBOTS = {
    'manipulator': RobotFiles('manipulator', 'manipulator.urdf.xacro', 0.01, (0.0, 1.5)),
    'six_axis_arm': RobotFiles('six_axis_arm', 'six_axis_arm.urdf.xacro', 0.01, (0.0, 1.5)),
    'six_axis_torque': RobotFiles('six_axis_torque', 'six_axis_arm.urdf.xacro', 0.005, (0.0, 0.3)),
}


@dataclass(frozen=True, eq=False)
class RobotView:
    """
    Where a robot's joints and links are in MuJoCo.

    :param model: of the whole scene.
    :param data: of the whole scene.
    :param q: places of the joints' positions.
    :param v: places of the joints' velocities.
    :param actuators: their motors.
    :param base: the link that drives; 0, the world, for an arm on a stand.
    """

    model: mujoco.MjModel
    data: mujoco.MjData
    q: np.ndarray
    v: np.ndarray
    actuators: np.ndarray
    base: int

    def body(self, name: str) -> int:
        """Return MuJoCo's number of a link; a root link that stands on the floor is the world."""
        return max(mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_BODY, name), 0)


def view_of(sim: ConveyorSim | BareArm, joints: tuple[str, ...]) -> RobotView:
    """
    Look at a simulation.

    :param sim: the cell or an arm on a stand.
    :param joints: names of the arm's joints.
    """
    model = sim.model
    return RobotView(
        model, sim.data, np.array([model.joint(joint).qposadr[0] for joint in joints]),
        np.array([model.joint(joint).dofadr[0] for joint in joints]),
        np.array([model.actuator(joint).id for joint in joints]),
        model.body('base_link').id if isinstance(sim, ConveyorSim) else 0)


class TrialRobot:
    """
    One robot with its load, told what the interface's actions are.

    :param name: key of `ROBOTS`.
    :param payload: at the tool [kg], of which the filter is told nothing.
    :param late: periods between a command and its effect.
    :param seed: of the cell.
    """

    def __init__(self, name: str, payload: float, late: int, seed: int) -> None:
        files = ROBOTS[name]
        interface, description = files.load()
        self.size = interface.action_size
        self._cell: ConveyorSim | None = None
        self._sim: Any
        if name == 'manipulator':
            self._cell = self._sim = ConveyorSim(ConveyorSettings(command_delay=late), seed=seed)
            _load_cell(self._cell, payload, seed)
            joints: tuple[str, ...] = scene.ARM_JOINTS
        else:
            joints = interface.action_names
            torques = 'N m' in interface.action_units
            armature = tuple(interface.limits[joint].armature or 0.05 for joint in joints)
            tool = None if interface.safety is None else interface.safety.tool
            self._sim = BareArm(description, joints, BareArmSettings(
                'effort' if torques else 'velocity', files.period, command_delay=late,
                payload=payload, tool=tool, armature=armature))
            self._sim.reset(np.array(BENT))
        self.view = view_of(self._sim, joints)

    def watch(self, look: Any) -> None:
        """Have something called after every step of the physics; None ends it."""
        self._sim.watch = look

    def step(self, command: np.ndarray) -> None:
        """Advance one period."""
        self._sim.step(command)

    def measure(self, entries: np.ndarray) -> JointFeedback:
        """
        What the robot says of itself.

        :param entries: which actions are its joints.
        """
        known = np.full((3, self.size), np.nan)
        found = self._sim.joint_state()
        for row, values in zip(known, found[-3:], strict=True):
            row[entries] = values[:len(entries)]
        base = None if self._cell is None else np.array(self._cell.odometry()[:3])
        return JointFeedback(known[0], known[1], known[2], base=base)

    def close(self) -> None:
        """Free what the simulation holds."""
        if self._cell is not None:
            self._cell.close()


def _load_cell(sim: ConveyorSim, mass: float, seed: int) -> None:
    """Fix a ball of this mass at the tool's tip, by changing the cup's inertia; start again."""
    model = sim.model
    cup = model.body('suction_cup_link').id
    tip = model.body('tool_tip').pos      # in the cup's frame
    own = model.body_mass[cup]
    model.body_ipos[cup] = (own * model.body_ipos[cup] + mass * tip) / (own + mass)
    model.body_inertia[cup] += 0.4 * mass * 0.05 ** 2
    model.body_mass[cup] = own + mass
    # The cell is air to the robot: a blow by what nobody watches (rails, parts, the forearm's
    # middle) would be measured as the filter's doing. Distances are measured all the same.
    robot = model.body_rootid[model.body('base_link').id]
    floor = model.geom('floor').id
    for geom in range(model.ngeom):
        if geom != floor and model.body_rootid[model.geom_bodyid[geom]] != robot:
            model.geom_contype[geom] = model.geom_conaffinity[geom] = 0
    mujoco.mj_setConst(model, mujoco.MjData(model))
    sim.reset(seed)
