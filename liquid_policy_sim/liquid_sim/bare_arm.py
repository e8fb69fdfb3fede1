"""An arm of a URDF on a stand, in MuJoCo: what a bench robot does with speeds or torques."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

os.environ.setdefault('MUJOCO_GL', 'osmesa')

import mujoco  # noqa: E402  (reads MUJOCO_GL when imported)

from liquid_sim import scene  # noqa: E402

# Of the velocity servos: those of the conveyor's cell.
PROPORTIONAL, INTEGRAL, WINDUP = 60.0, 900.0, 0.03
COMMANDS = ('velocity', 'effort')


@dataclass(frozen=True)
class BareArmSettings:
    """
    What varies.

    :param command: what the arm is told: joint `velocity` or joint `effort`.
    :param period: time between two commands [s].
    :param timestep: of the physics [s].
    :param command_delay: periods between a command and its effect.
    :param payload: mass at the tool [kg], a solid ball of 5 cm.
    :param tool: body that carries it.
    :param armature: inertia of each motor's rotor, felt at its joint; one for all or one per
        joint [kg m2].
    """

    command: str = 'velocity'
    period: float = 0.01
    timestep: float = 0.001
    command_delay: int = 1
    payload: float = 0.0
    tool: str | None = None
    armature: float | tuple[float, ...] = 0.05

    def __post_init__(self) -> None:
        if self.command not in COMMANDS:
            raise ValueError(f'command: expected one of {COMMANDS}, came {self.command!r}')
        if self.payload and self.tool is None:
            raise ValueError('payload: expected a tool that carries it, came none')
        if not 0.0 < self.timestep <= self.period:
            raise ValueError(f'timestep: expected above 0, at most the period of {self.period} s, '
                             f'came {self.timestep}')


class BareArm:
    """
    The arm, stepped by one command at a time; nothing around it, no contacts, deterministic.

    :param description: URDF or xacro; its root link is fixed to the world.
    :param joints: names of the joints that are told something, in order; the others are free.
    :param settings: see there.
    """

    def __init__(self, description: Path, joints: tuple[str, ...],
                 settings: BareArmSettings | None = None) -> None:
        self.settings = settings or BareArmSettings()
        self.joints = joints
        self.model = _build(description, joints, self.settings)
        self.data = mujoco.MjData(self.model)
        model = self.model
        self._q = np.array([model.joint(name).qposadr[0] for name in joints])
        self._v = np.array([model.joint(name).dofadr[0] for name in joints])
        self._actuators = np.array([model.actuator(name).id for name in joints])
        self._force = model.actuator_forcerange[self._actuators]
        self._inertia = np.zeros((model.nv, model.nv))
        self._substeps = round(self.settings.period / self.settings.timestep)
        self.watch: Callable[[], None] | None = None   # called after every step of the physics
        self.reset()

    def reset(self, position: np.ndarray | None = None) -> None:
        """
        Start again, at rest.

        :param position: of the joints [rad]; all 0 when left out.
        """
        mujoco.mj_resetData(self.model, self.data)
        if position is not None:
            self.data.qpos[self._q] = position
        mujoco.mj_forward(self.model, self.data)
        self._integral = np.zeros(len(self.joints))
        still = np.zeros(len(self.joints))
        first = still if self.settings.command == 'velocity' else self.holding()
        self._pending = [first for _ in range(self.settings.command_delay)]
        self._ticks = 0

    @property
    def time(self) -> float:
        """Simulated seconds since reset."""
        return self._ticks * self.settings.period

    def holding(self) -> np.ndarray:
        """Return the torques that hold the present posture at rest [N m]."""
        return self.data.qfrc_bias[self._v].copy()

    def joint_state(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return position [rad], velocity [rad/s] and effort [N m] of the joints."""
        data = self.data
        return (data.qpos[self._q].copy(), data.qvel[self._v].copy(),
                data.actuator_force[self._actuators].copy())

    def step(self, command: np.ndarray) -> None:
        """
        Advance one period under a command.

        :param command: velocities [rad/s] or torques [N m], one per joint.
        :raises ValueError: if it is not one finite number per joint.
        """
        command = np.array(command, dtype=float)
        if command.shape != self._q.shape or not np.isfinite(command).all():
            raise ValueError(f'command: expected {len(self._q)} finite numbers, came {command!r}')
        self._pending.append(command)
        wanted = self._pending.pop(0)
        model, data = self.model, self.data
        if self.settings.command == 'velocity':
            mujoco.mj_fullM(model, self._inertia, data.qM)
            inertia = self._inertia[np.ix_(self._v, self._v)]
        for _ in range(self._substeps):
            torque = wanted
            if self.settings.command == 'velocity':
                error = wanted - data.qvel[self._v]
                self._integral = np.clip(
                    self._integral + error * model.opt.timestep, -WINDUP, WINDUP)
                torque = inertia @ (PROPORTIONAL * error + INTEGRAL * self._integral) + (
                    data.qfrc_bias[self._v] - data.qfrc_passive[self._v])
            data.ctrl[self._actuators] = np.clip(torque, self._force[:, 0], self._force[:, 1])
            mujoco.mj_step(model, data)
            if self.watch is not None:
                self.watch()
        self._ticks += 1


def _build(
    description: Path, joints: tuple[str, ...], settings: BareArmSettings,
) -> mujoco.MjModel:
    """The arm as MuJoCo reads it, a motor per joint, the load, no joint stops, no contacts."""
    root = ElementTree.fromstring(scene.read_urdf(description))
    for element in root.findall('ros2_control'):
        root.remove(element)
    extension = ElementTree.SubElement(root, 'mujoco')
    ElementTree.SubElement(extension, 'compiler', {
        'fusestatic': 'false', 'balanceinertia': 'false', 'strippath': 'false'})
    spec = mujoco.MjSpec.from_string(ElementTree.tostring(root, encoding='unicode'))
    known = {joint.name: joint for joint in spec.joints}
    missing = [name for name in joints if name not in known]
    if missing:
        raise ValueError(f'{description}: expected joints {missing}, it has {sorted(known)}')
    for name, armature in zip(
            joints, np.broadcast_to(settings.armature, len(joints)).tolist(), strict=True):
        low, high = known[name].actfrcrange
        known[name].armature = armature
        spec.add_actuator(
            name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT, forcelimited=True,
            forcerange=[low, high] if low < high else [-1e6, 1e6])
    if settings.payload:
        ball = spec.body(settings.tool).add_body(name='payload')
        ball.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[0.05, 0.0, 0.0],
                      mass=settings.payload)
    spec.option.timestep = settings.timestep
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT
    model = spec.compile()
    model.jnt_limited[:] = 0   # whoever commands the arm keeps it in its range, or does not
    return model
