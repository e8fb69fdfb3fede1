"""The conveyor cell as a simulation one can step: belt, feeder, arm servos, suction, sensors."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

os.environ.setdefault('MUJOCO_GL', 'osmesa')

import mujoco  # noqa: E402  (reads MUJOCO_GL when imported)

from liquid_sim import scene  # noqa: E402

CONTROL_PERIOD = 0.01    # one command per tick [s]
WHEEL_RADIUS = 0.10      # [m], as in the URDF
WHEEL_TRACK = 0.50       # [m], as in the URDF
SPAWN_Y = -0.54          # where the feeder lays a part on the belt [m]
GONE_Y = 0.42            # past this a part can no longer be reached [m]
LIPS_TO_SEAL = 3         # of the cup's four lips; with fewer the vacuum leaks
LIPS_TO_KEEP = 2

# Speeds and masses that demonstrations show, and those kept back for evaluation.
SEEN_SPEEDS = ((0.06, 0.10), (0.13, 0.17), (0.20, 0.23))
UNSEEN_SPEEDS = ((0.05, 0.06), (0.10, 0.13), (0.17, 0.20), (0.23, 0.25))
SEEN_MASSES = ((0.15, 0.5), (0.7, 1.1))
UNSEEN_MASSES = ((0.1, 0.15), (0.5, 0.7), (1.1, 1.5))
ALL_SPEEDS = tuple(sorted(SEEN_SPEEDS + UNSEEN_SPEEDS))
ALL_MASSES = ((0.1, 1.5),)


class Part(NamedTuple):
    """
    A part as seen from base_link.

    position [m] of its centre, quaternion (x, y, z, w), velocity [m/s] of its centre over the
    floor, height [m] of its top face above its centre.
    """

    position: np.ndarray
    quaternion: np.ndarray
    velocity: np.ndarray
    half_height: float


@dataclass(frozen=True)
class ConveyorSettings:
    """
    What varies in the cell.

    :param speeds: intervals the belt's speed is drawn from [m/s]; while a part is on the belt
        it goes on wandering within the one interval that was drawn.
    :param masses: intervals the parts' masses are drawn from [kg].
    :param variation: 0 to 1: how much light, colours, camera and base pose vary.
    :param sensor_noise: scale of the sensors' noise; 0 switches it off.
    :param command_delay: ticks between a command and its effect.
    """

    speeds: tuple = SEEN_SPEEDS
    masses: tuple = SEEN_MASSES
    variation: float = 1.0
    sensor_noise: float = 1.0
    command_delay: int = 1
    scene: scene.SceneSettings = field(default_factory=scene.SceneSettings)

    def __post_init__(self):
        for name, low, high in (('speeds', 0.0, 0.5), ('masses', 0.01, 3.0)):
            for interval in getattr(self, name):
                if len(interval) != 2 or not low <= interval[0] <= interval[1] <= high:
                    raise ValueError(
                        f'{name}: expected intervals (low, high) within {low} to {high}, '
                        f'got {interval}')
        if not 0.0 <= self.variation <= 1.0:
            raise ValueError(f'variation: expected 0 to 1, got {self.variation}')
        if self.command_delay < 0:
            raise ValueError(f'command_delay: expected 0 or more ticks, got {self.command_delay}')


def seen(**changes) -> ConveyorSettings:
    """Return the conditions of the demonstrations."""
    return ConveyorSettings(**changes)


def unseen(**changes) -> ConveyorSettings:
    """Return belt speeds and masses that no demonstration shows."""
    return ConveyorSettings(speeds=UNSEEN_SPEEDS, masses=UNSEEN_MASSES, **changes)


def everything(**changes) -> ConveyorSettings:
    """Return the whole range of belt speeds and masses."""
    return ConveyorSettings(speeds=ALL_SPEEDS, masses=ALL_MASSES, **changes)


def jumping(**changes) -> ConveyorSettings:
    """Return a belt that goes to any other speed at any time, which no demonstration shows."""
    return ConveyorSettings(speeds=((0.05, 0.25),), masses=ALL_MASSES, **changes)


CONDITIONS = ('seen', 'unseen', 'everything', 'jumping')


def _draw(rng, intervals) -> float:
    """Return a number drawn uniformly from a union of intervals."""
    widths = np.array([high - low for low, high in intervals])
    low, high = intervals[rng.choice(len(intervals), p=widths / widths.sum())]
    return float(rng.uniform(low, high))


class ConveyorSim:
    """
    The cell, stepped by one 10 ms command at a time; seeded and deterministic.

    A command is (9,): six joint velocities [rad/s], suction level (0 to 1), base linear
    [m/s] and angular [rad/s] velocity.
    """

    def __init__(self, settings: ConveyorSettings | None = None, seed: int = 0):
        self.settings = settings or ConveyorSettings()
        self.model = scene.build_model(self.settings.scene)
        self.data = mujoco.MjData(self.model)
        model = self.model
        arm = [model.joint(name) for name in scene.ARM_JOINTS]
        wheels = [model.joint(name) for name in scene.WHEEL_JOINTS]
        self._q = np.array([j.qposadr[0] for j in arm + wheels])
        self._v = np.array([j.dofadr[0] for j in arm + wheels])
        self._actuators = np.array([
            model.actuator(n).id for n in scene.ARM_JOINTS + scene.WHEEL_JOINTS])
        self._force = model.actuator_forcerange[self._actuators]
        self._suction = model.actuator('suction').id
        self._belt_q = model.joint('belt').qposadr[0]
        self._belt_v = model.joint('belt').dofadr[0]
        self._base = model.body('base_link').id
        self._tip = model.site('tool_tip').id
        cup = model.body('suction_cup_link').id
        self._lips = np.array([
            g for g in range(model.ngeom)
            if model.geom_bodyid[g] == cup and model.geom_contype[g] != 0])
        self._parts = [_PartBody(model, i) for i in range(scene.PART_COUNT)]
        self._camera = model.camera('camera').id
        self._nominal = {
            'cam_pos': model.cam_pos.copy(), 'cam_quat': model.cam_quat.copy(),
            'cam_fovy': model.cam_fovy.copy(), 'mat_rgba': model.mat_rgba.copy(),
            'light_dir': model.light_dir.copy(), 'light_diffuse': model.light_diffuse.copy(),
        }
        self._substeps = round(CONTROL_PERIOD / model.opt.timestep)
        self._inertia = np.zeros((model.nv, model.nv))
        self._renderers: dict = {}
        self.watch: Callable[[], None] | None = None   # called after every step of the physics
        self.reset(seed)

    # -- life ---------------------------------------------------------------------------------

    def reset(self, seed: int) -> None:
        """Start again: a new arrangement drawn from the seed, the arm at home, an empty belt."""
        self._rng = np.random.default_rng(seed)
        self._noise = np.random.default_rng([seed, 1])
        model, data = self.model, self.data
        for name, value in self._nominal.items():
            getattr(model, name)[:] = value
        mujoco.mj_resetData(model, data)
        self._vary()
        data.qpos[self._q[:6]] = home_position()
        for part in self._parts:
            part.park(model, data)
        self._active: int | None = None
        self._wait = 0.3
        self._speed = self._target_speed = _draw(self._rng, self.settings.speeds)
        self._band = self.settings.speeds
        self._speed_until = 0.0
        self._integral = np.zeros(8)
        self._pending = [np.zeros(9) for _ in range(self.settings.command_delay)]
        self._level = 0.0
        self._sealed = False
        self.seen = self.picked = self.missed = 0
        self._mass = 0.0
        self._ticks = 0
        mujoco.mj_forward(model, data)
        # let wheels and casters settle before anyone looks
        for _ in range(20):
            self._advance(np.zeros(9))

    def close(self) -> None:
        """Free the renderers; needed before the interpreter ends."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    @property
    def time(self) -> float:
        """Simulated seconds since reset."""
        return self._ticks * CONTROL_PERIOD

    def step(self, command) -> None:
        """
        Advance one control period under a command.

        :param command: (9,), see the class.
        :raises ValueError: if it is not nine finite numbers.
        """
        command = np.asarray(command, dtype=float)
        if command.shape != (9,) or not np.isfinite(command).all():
            raise ValueError(f'command: expected 9 finite numbers, got {command!r}')
        self._pending.append(command)
        self._feed()
        self._advance(self._pending.pop(0))
        self._ticks += 1
        self._judge()

    # -- sensors ------------------------------------------------------------------------------

    def joint_state(self):
        """Return joint names, position [rad], velocity [rad/s] and effort [Nm], each (8,)."""
        noise = self.settings.sensor_noise
        position = self.data.qpos[self._q] + self._noise.normal(0, 1e-4 * noise, 8)
        velocity = self.data.qvel[self._v] + self._noise.normal(0, 2e-3 * noise, 8)
        effort = self.data.actuator_force[self._actuators].copy()
        return scene.ARM_JOINTS + scene.WHEEL_JOINTS, position, velocity, effort

    def imu(self):
        """Return angular velocity [rad/s] and specific force [m/s2] in imu_link, each (3,)."""
        noise = self.settings.sensor_noise
        gyro = self.data.sensor('gyro').data + self._noise.normal(0, 2e-3 * noise, 3)
        force = self.data.sensor('accelerometer').data + self._noise.normal(0, 0.02 * noise, 3)
        return gyro, force

    def odometry(self):
        """Return x, y [m], yaw [rad] in the world and v [m/s], w [rad/s] from the wheels."""
        rotation = self.data.xmat[self._base].reshape(3, 3)
        x, y = self.data.xpos[self._base][:2]
        left, right = self.data.qvel[self._v[6:]] * WHEEL_RADIUS
        return (float(x), float(y), float(np.arctan2(rotation[1, 0], rotation[0, 0])),
                float((left + right) / 2), float((right - left) / WHEEL_TRACK))

    def part(self) -> Part | None:
        """Return the part on the belt, seen from base_link; None while there is none."""
        if self._active is None or self.holding:
            return None
        body = self._parts[self._active]
        rotation = self.data.xmat[self._base].reshape(3, 3)
        quaternion = np.zeros(4)
        mujoco.mju_mat2Quat(
            quaternion, (rotation.T @ self.data.xmat[body.id].reshape(3, 3)).ravel())
        return Part(
            rotation.T @ (self.data.xpos[body.id] - self.data.xpos[self._base]),
            quaternion[[1, 2, 3, 0]],
            rotation.T @ self.data.qvel[body.v:body.v + 3],
            body.half_height(self.model))

    def tool(self) -> np.ndarray:
        """Return the position of the cup's face in base_link, (3,) [m]."""
        rotation = self.data.xmat[self._base].reshape(3, 3)
        return rotation.T @ (self.data.site_xpos[self._tip] - self.data.xpos[self._base])

    @property
    def holding(self) -> bool:
        """Whether the cup holds a part."""
        return self._sealed and self._level > 0.5

    def status(self) -> dict:
        """Return the counts of parts and the belt's state."""
        return {
            'seen': self.seen, 'picked': self.picked, 'missed': self.missed,
            'belt_speed': self._speed, 'part_mass': self._mass, 'holding': self.holding,
        }

    def render_camera(self):
        """Return colour (96, 96, 3) uint8 and depth (96, 96) float32 [m] of the camera."""
        renderer = self._renderer(96, 96)
        renderer.update_scene(self.data, 'camera', scene_option=self._option())
        color = renderer.render()
        renderer.enable_depth_rendering()
        depth = renderer.render().astype(np.float32)
        renderer.disable_depth_rendering()
        scale = self.settings.sensor_noise
        if scale:
            grain = self._noise.normal(0, 2.5 * scale, (96, 96, 1))
            color = np.clip(color + grain, 0, 255).astype(np.uint8)
            # structured-light and stereo depth err with the square of the distance
            depth = depth + (self._noise.normal(0, 0.002 * scale, (96, 96)) * depth**2)
        return color, depth.astype(np.float32)

    def render_scene(self, width: int = 320, height: int = 240):
        """Return a third-person view, (height, width, 3) uint8."""
        renderer = self._renderer(width, height)
        renderer.update_scene(self.data, 'scene', scene_option=self._option())
        return renderer.render()

    # -- inside -------------------------------------------------------------------------------

    def _renderer(self, width, height):
        if (width, height) not in self._renderers:
            self._renderers[width, height] = mujoco.Renderer(self.model, height, width)
        return self._renderers[width, height]

    def _option(self):
        option = mujoco.MjvOption()
        option.geomgroup[3] = 0   # collision shapes
        return option

    def _vary(self) -> None:
        """Draw light, colours, camera and the base's place beside the belt."""
        amount, rng, model = self.settings.variation, self._rng, self.model

        def spread(scale, size=None):
            return amount * rng.uniform(-scale, scale, size)

        for name in ('floor', 'belt'):
            index = model.material(name).id
            model.mat_rgba[index, :3] = np.clip(1.0 + spread(0.25) + spread(0.12, 3), 0.3, 1.6)
        model.light_diffuse[:] *= 1.0 + spread(0.35)
        model.light_dir[:] += spread(0.35, model.light_dir.shape)
        model.cam_pos[self._camera] += spread(0.006, 3)
        twist = np.zeros(4)
        mujoco.mju_axisAngle2Quat(twist, np.array([0.0, 0.0, 1.0]), spread(0.01))
        for axis in np.eye(3)[:2]:
            more, result = np.zeros(4), np.zeros(4)
            mujoco.mju_axisAngle2Quat(more, axis, spread(0.01))
            mujoco.mju_mulQuat(result, twist, more)
            twist = result
        turned = np.zeros(4)
        mujoco.mju_mulQuat(turned, model.cam_quat[self._camera], twist)
        model.cam_quat[self._camera] = turned
        model.cam_fovy[self._camera] += spread(0.6)
        x, y, yaw = spread(0.015), spread(0.015), spread(0.025)
        self.data.qpos[:7] = [x, y, 0, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]

    def _feed(self) -> None:
        """Lay the next part on the belt when it is due, and let the belt's speed wander."""
        if self._active is None:
            self._wait -= CONTROL_PERIOD
            if self._wait <= 0:
                self._spawn()
        if self.time >= self._speed_until:
            self._target_speed = _draw(self._rng, self._band)
            self._speed_until = self.time + self._rng.uniform(1.0, 2.5)
        change = 0.5 * CONTROL_PERIOD   # the belt's drive accelerates at 0.5 m/s2
        self._speed += float(np.clip(self._target_speed - self._speed, -change, change))

    def _spawn(self) -> None:
        rng = self._rng
        self._active = int(rng.integers(scene.PART_COUNT))
        self._mass = _draw(rng, self.settings.masses)
        x = scene.BELT_X + rng.uniform(-0.05, 0.05)
        self._parts[self._active].place(
            self.model, self.data, rng, self._mass, x, SPAWN_Y, self._speed)
        self.seen += 1
        # the speed wanders within one band until the next part comes
        speed = _draw(rng, self.settings.speeds)
        self._band = (next(b for b in self.settings.speeds if b[0] <= speed <= b[1]),)
        self._target_speed = speed
        self._speed_until = self.time + rng.uniform(1.0, 2.5)

    def _judge(self) -> None:
        """Count the active part as picked or missed when its fate is settled."""
        if self._active is None:
            return
        part = self._parts[self._active]
        x, y, z = self.data.xpos[part.id]
        in_bin = (abs(x - scene.BIN_CENTRE[0]) < scene.BIN_HALF
                  and abs(y - scene.BIN_CENTRE[1]) < scene.BIN_HALF)
        if self.holding:
            return
        if in_bin and z < 0.2:
            self.picked += 1
        elif (y > GONE_Y and abs(x - scene.BELT_X) < 0.2) or z < 0.1 or not np.isfinite(z):
            self.missed += 1
        else:
            return
        part.park(self.model, self.data)
        self._active = None
        self._mass = 0.0
        self._wait = self._rng.uniform(0.1, 0.6)

    def _advance(self, command) -> None:
        """Run the joint servos and the physics for one control period."""
        model, data = self.model, self.data
        wanted = np.empty(8)
        wanted[:6] = command[:6]
        wanted[6] = (command[7] - command[8] * WHEEL_TRACK / 2) / WHEEL_RADIUS
        wanted[7] = (command[7] + command[8] * WHEEL_TRACK / 2) / WHEEL_RADIUS
        # a cup that has sealed keeps its vacuum until most of its lip has come off
        needed = LIPS_TO_KEEP if self.holding else LIPS_TO_SEAL
        self._sealed = self._lips_on_part() >= needed
        self._level = float(np.clip(command[6], 0, 1))
        data.ctrl[self._suction] = self._level if self._sealed and self._level > 0.5 else 0.0
        mujoco.mj_fullM(model, self._inertia, data.qM)
        inertia = self._inertia[np.ix_(self._v[:6], self._v[:6])]
        for _ in range(self._substeps):
            error = wanted - data.qvel[self._v]
            self._integral = np.clip(self._integral + error * model.opt.timestep, -0.03, 0.03)
            torque = np.empty(8)
            # a velocity servo with the arm's own inertia and gravity fed forward, as in a drive
            torque[:6] = (inertia @ (60.0 * error[:6] + 900.0 * self._integral[:6])
                          + data.qfrc_bias[self._v[:6]] - data.qfrc_passive[self._v[:6]])
            torque[6:] = 12.0 * error[6:] + 150.0 * self._integral[6:]
            data.ctrl[self._actuators] = np.clip(torque, self._force[:, 0], self._force[:, 1])
            data.qpos[self._belt_q] = 0.0
            data.qvel[self._belt_v] = self._speed
            mujoco.mj_step(model, data)
            if self.watch is not None:
                self.watch()
        data.qpos[self._belt_q] = 0.0

    def _lips_on_part(self) -> int:
        """Return how many of the cup's lips touch the active part."""
        if self._active is None:
            return 0
        pairs = self.data.contact.geom
        geom = self._parts[self._active].geom
        on_part = (pairs == geom).any(axis=1)
        return int(np.isin(self._lips, pairs[on_part]).sum())


class _PartBody:
    """One of the bodies that take turns as parts."""

    def __init__(self, model, index: int):
        name = f'part_{index}'
        self.index = index
        self.id = model.body(name).id
        self.geom = model.geom(name).id
        self.q = model.joint(name).qposadr[0]
        self.v = model.joint(name).dofadr[0]
        self.cylinder = model.geom_type[self.geom] == mujoco.mjtGeom.mjGEOM_CYLINDER
        # the solver's estimate of what a contact force does, for the compiled mass
        self._inverse_weight = (
            model.body_mass[self.id], model.body_invweight0[self.id].copy(),
            model.dof_invweight0[self.v:self.v + 6].copy())

    def half_height(self, model) -> float:
        return float(model.geom_size[self.geom][1 if self.cylinder else 2])

    def park(self, model, data) -> None:
        """Let the part float out of sight."""
        model.body_gravcomp[self.id] = 1.0
        data.qpos[self.q:self.q + 7] = [-40.0, float(self.index), 0.5, 1, 0, 0, 0]
        data.qvel[self.v:self.v + 6] = 0.0

    def place(self, model, data, rng, mass, x, y, speed) -> None:
        """Lay the part on the belt with a new shape, colour, mass [kg] and pose."""
        if self.cylinder:
            radius, half = rng.uniform((0.025, 0.015), scene.LARGEST_CYLINDER)
            size = np.array([radius, half, 0.0])
            across = mass / 12 * (3 * radius**2 + 4 * half**2)
            inertia = np.array([across, across, mass / 2 * radius**2])
            reach = np.hypot(radius, half)
        else:
            size = rng.uniform((0.025, 0.025, 0.015), scene.LARGEST_BOX)
            half = size[2]
            square = size**2
            inertia = mass / 3 * (square.sum() - square)
            reach = np.linalg.norm(size)
        model.geom_size[self.geom] = size
        model.geom_rbound[self.geom] = reach
        color = rng.uniform(0.1, 1.0, 3)
        color[rng.integers(3)] *= 0.3   # something one can tell from the belt
        model.geom_rgba[self.geom, :3] = color
        compiled, body_weight, dof_weight = self._inverse_weight
        model.body_mass[self.id] = mass
        model.body_inertia[self.id] = inertia
        model.body_invweight0[self.id] = body_weight * compiled / mass
        model.dof_invweight0[self.v:self.v + 6] = dof_weight * compiled / mass
        model.body_gravcomp[self.id] = 0.0
        yaw = rng.uniform(-np.pi, np.pi)
        data.qpos[self.q:self.q + 7] = [
            x, y, scene.BELT_TOP + half + 0.001, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        data.qvel[self.v:self.v + 6] = [0, speed, 0, 0, 0, 0]


def home_position() -> np.ndarray:
    """Return the joint positions of the waiting pose, (6,) [rad]: cup above the belt."""
    return np.array([-0.5843, -1.4696, 1.5842, -1.6854, -1.5708, -0.5843])
