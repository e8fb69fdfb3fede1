"""The MuJoCo scene: the robot of the URDF beside a conveyor belt, parts and a bin."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np

ARM_JOINTS = (
    'shoulder_pan_joint', 'shoulder_lift_joint', 'elbow_joint',
    'wrist_1_joint', 'wrist_2_joint', 'wrist_3_joint',
)
WHEEL_JOINTS = ('left_wheel_joint', 'right_wheel_joint')

BELT_TOP = 0.42          # height of the belt's surface above the floor [m]
BELT_X = 0.65            # the belt's centre line, in front of the robot [m]
BELT_HALF_WIDTH = 0.12   # [m]
BELT_HALF_LENGTH = 0.85  # [m]
BIN_CENTRE = (0.25, 0.52)   # [m]
BIN_HALF = 0.14          # [m]
BIN_HEIGHT = 0.36        # of its rim above the floor [m]
PART_COUNT = 4           # bodies that take turns as parts
LARGEST_BOX = (0.040, 0.040, 0.035)   # half sizes [m]
LARGEST_CYLINDER = (0.040, 0.035)     # radius, half height [m]
CAMERA_FIELD_OF_VIEW = 58.0   # vertical [degrees]


@dataclass(frozen=True)
class SceneSettings:
    """
    What the scene is made of.

    :param description: URDF or xacro file of the robot.
    :param timestep: of the physics [s].
    """

    description: Path | None = None
    timestep: float = 0.002

    def __post_init__(self):
        if not 0.0001 <= self.timestep <= 0.005:
            raise ValueError(f'timestep: expected 0.0001 to 0.005 s, got {self.timestep}')


def find_description() -> Path:
    """Return the default robot's xacro file; see `find_file`."""
    return find_file('urdf', 'manipulator.urdf.xacro')


def find_interface() -> Path:
    """Return the default robot's interface file; see `find_file`."""
    return find_file('config', 'manipulator.interface.yaml')


def find_parameters() -> Path:
    """Return the default robot's parameter file; see `find_file`."""
    return find_file('config', 'manipulator.yaml')


def find_file(folder: str, name: str) -> Path:
    """
    Return a file of liquid_policy_node, from the source tree or from an installation.

    :raises FileNotFoundError: naming the places that were searched.
    """
    places = [Path(__file__).resolve().parents[2] / 'liquid_policy_node' / folder / name]
    try:
        from ament_index_python.packages import get_package_share_directory
        places.append(Path(get_package_share_directory('liquid_policy_node')) / folder / name)
    except Exception:  # no ROS, or the package is not installed: the source tree may do
        pass
    for place in places:
        if place.exists():
            return place
    raise FileNotFoundError(f'{name} not found; searched {[str(p) for p in places]}')


def read_urdf(path: Path) -> str:
    """Return the URDF text of a URDF or xacro file."""
    if path.suffix != '.xacro':
        return path.read_text()
    import xacro
    return xacro.process_file(str(path)).toxml()


def _robot_spec(urdf: str) -> mujoco.MjSpec:
    """Return the robot as MuJoCo reads it from the URDF, free to move on the floor."""
    root = ElementTree.fromstring(urdf)
    for name in ('ros2_control', 'gazebo'):
        for element in root.findall(name):
            root.remove(element)
    extension = ElementTree.SubElement(root, 'mujoco')
    ElementTree.SubElement(extension, 'compiler', {
        'fusestatic': 'false', 'discardvisual': 'false', 'balanceinertia': 'false',
    })
    spec = mujoco.MjSpec.from_string(ElementTree.tostring(root, encoding='unicode'))
    spec.body('base_link').add_freejoint(name='base')   # it drives, so it is not welded
    return spec


def _dress_robot(spec: mujoco.MjSpec) -> None:
    """Add what a URDF cannot say: motors, cup, camera, IMU, and what touches what."""
    joints = {joint.name: joint for joint in spec.joints}
    for name in ARM_JOINTS + WHEEL_JOINTS:
        # URDF effort limits arrive as the joint's actuator force range
        low, high = joints[name].actfrcrange
        spec.add_actuator(
            name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT,
            forcerange=[low, high], forcelimited=True, gear=[1, 0, 0, 0, 0, 0])
    spec.add_actuator(
        name='suction', target='suction_cup_link', trntype=mujoco.mjtTrn.mjTRN_BODY,
        biastype=mujoco.mjtBias.mjBIAS_NONE, gaintype=mujoco.mjtGain.mjGAIN_FIXED,
        gainprm=[90.0] + [0.0] * 9, ctrllimited=True, ctrlrange=[0, 1])

    for name in ARM_JOINTS:
        # a geared motor's rotor, felt at the joint; URDF has no word for it
        joints[name].armature = 0.10 if joints[name].actfrcrange[1] > 100 else 0.02

    for body in spec.bodies:
        for geom in body.geoms:
            visual = geom.contype == 0 and geom.conaffinity == 0
            geom.group = 1 if visual else 3
            if visual:
                continue
            # robot geometry touches the world (bit 1), never itself
            geom.contype, geom.conaffinity = 2, 1
            if 'caster' in body.name:
                geom.friction = [0.001, 0.0, 0.0]
                geom.condim = 1
                geom.priority = 1   # or the floor's friction would hold it
            elif 'wheel' in body.name:
                geom.friction = [1.0, 0.01, 0.001]
            elif body.name == 'suction_cup_link':
                geom.friction = [1.2, 0.02, 0.001]
                geom.condim = 4
                geom.margin, geom.gap = 0.005, 0.005
                # a rubber bellows gives: the tool may press in by some millimetres
                geom.solref = [0.02, 1.0]
                geom.solimp = [0.3, 0.95, 0.008, 0.5, 2.0]

    body = spec.body('camera_optical_frame')
    # a MuJoCo camera looks along -z with y up; an optical frame along +z with y down
    body.add_camera(name='camera', quat=[0, 1, 0, 0], fovy=CAMERA_FIELD_OF_VIEW)
    site = spec.body('imu_link').add_site(name='imu')
    spec.body('tool_tip').add_site(name='tool_tip')
    for kind, name in ((mujoco.mjtSensor.mjSENS_GYRO, 'gyro'),
                       (mujoco.mjtSensor.mjSENS_ACCELEROMETER, 'accelerometer')):
        spec.add_sensor(name=name, type=kind, objtype=mujoco.mjtObj.mjOBJ_SITE, objname=site.name)


def _texture(spec, name, first, second, repeat, builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER):
    spec.add_texture(name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, builtin=builtin,
                     rgb1=first, rgb2=second, width=256, height=256)
    material = spec.add_material(name=name, texrepeat=[repeat, repeat], reflectance=0.0)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name


def _add_cell(spec: mujoco.MjSpec) -> None:
    """Add floor, light, conveyor, bin and parts to the world."""
    world = spec.worldbody
    _texture(spec, 'floor', [0.62, 0.64, 0.66], [0.56, 0.58, 0.60], 12)
    _texture(spec, 'belt', [0.20, 0.22, 0.24], [0.24, 0.26, 0.28], 6)
    spec.add_texture(name='sky', type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
                     builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
                     rgb1=[0.85, 0.88, 0.92], rgb2=[0.55, 0.60, 0.66], width=128, height=128)
    box, plane = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_PLANE

    world.add_geom(name='floor', type=plane, size=[6, 6, 0.1], material='floor',
                   contype=1, conaffinity=2 | 4, friction=[1.0, 0.01, 0.001])
    world.add_light(name='key', pos=[0.2, -1.2, 2.6], dir=[0.2, 0.5, -1.0],
                    diffuse=[0.7, 0.7, 0.7], specular=[0.2, 0.2, 0.2],
                    type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, castshadow=True)
    world.add_light(name='fill', pos=[1.5, 1.5, 2.4], dir=[-0.5, -0.6, -1.0],
                    diffuse=[0.25, 0.25, 0.28], specular=[0, 0, 0],
                    type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, castshadow=False)
    world.add_camera(name='scene', pos=[1.95, -1.15, 1.45], fovy=42,
                     xyaxes=[0.55, 0.835, 0, -0.40, 0.263, 0.878])

    # the belt slides under the parts; its position is put back after every step, its speed stays
    belt = world.add_body(name='belt', pos=[BELT_X, 0, BELT_TOP - 0.02])
    belt.add_joint(name='belt', type=mujoco.mjtJoint.mjJNT_SLIDE, axis=[0, 1, 0])
    belt.add_geom(name='belt', type=box, size=[BELT_HALF_WIDTH, BELT_HALF_LENGTH, 0.02],
                  material='belt', mass=500.0, contype=1, conaffinity=2 | 4,
                  friction=[0.9, 0.01, 0.001])
    frame = [0.75, 0.62, 0.16, 1]
    for sign in (-1, 1):
        rail = BELT_X + sign * (BELT_HALF_WIDTH + 0.015)
        world.add_geom(type=box, pos=[rail, 0, BELT_TOP - 0.03],
                       size=[0.012, BELT_HALF_LENGTH, 0.035], rgba=frame, contype=1, conaffinity=4)
        for y in (-0.7, 0.7):
            world.add_geom(type=box, size=[0.02, 0.02, (BELT_TOP - 0.065) / 2],
                           pos=[BELT_X + sign * BELT_HALF_WIDTH, y, (BELT_TOP - 0.065) / 2],
                           rgba=[0.35, 0.36, 0.38, 1], contype=0, conaffinity=0)
    # the feeder: parts come out of its tunnel
    for x, half in ((-BELT_HALF_WIDTH - 0.022, 0.014), (BELT_HALF_WIDTH + 0.022, 0.014)):
        world.add_geom(type=box, pos=[BELT_X + x, -0.68, BELT_TOP + 0.06], size=[half, 0.17, 0.07],
                       rgba=[0.30, 0.34, 0.40, 1], contype=0, conaffinity=0)
    world.add_geom(type=box, pos=[BELT_X, -0.68, BELT_TOP + 0.135],
                   size=[BELT_HALF_WIDTH + 0.036, 0.17, 0.008], rgba=[0.30, 0.34, 0.40, 1],
                   contype=0, conaffinity=0)

    x, y = BIN_CENTRE
    blue = [0.16, 0.36, 0.62, 1]
    world.add_geom(type=box, pos=[x, y, 0.10], size=[BIN_HALF, BIN_HALF, 0.01], rgba=blue,
                   contype=1, conaffinity=4)
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        world.add_geom(
            type=box, pos=[x + dx * BIN_HALF, y + dy * BIN_HALF, BIN_HEIGHT / 2 + 0.05],
            size=[0.006 if dx else BIN_HALF, 0.006 if dy else BIN_HALF, BIN_HEIGHT / 2 - 0.05],
            rgba=blue, contype=1, conaffinity=4)

    for index in range(PART_COUNT):
        # parked parts float, out of sight; gravity returns when they are put on the belt
        part = world.add_body(name=f'part_{index}', pos=[-40, index, 0.5], gravcomp=1.0)
        part.add_freejoint(name=f'part_{index}')
        kind = box if index % 2 == 0 else mujoco.mjtGeom.mjGEOM_CYLINDER
        # compiled at its largest: MuJoCo's bounding volumes stay as compiled, shapes may shrink
        size = list(LARGEST_BOX) if kind == box else [*LARGEST_CYLINDER, 0]
        part.add_geom(name=f'part_{index}', type=kind, size=size, mass=0.5, contype=4,
                      conaffinity=1 | 2 | 4, friction=[0.8, 0.01, 0.001], rgba=[0.8, 0.2, 0.2, 1])


def build_spec(settings: SceneSettings | None = None) -> mujoco.MjSpec:
    """
    Return the whole scene as an editable MuJoCo specification.

    :raises FileNotFoundError: if the robot's description is not found.
    """
    settings = settings or SceneSettings()
    spec = _robot_spec(read_urdf(settings.description or find_description()))
    _dress_robot(spec)
    _add_cell(spec)
    spec.option.timestep = settings.timestep
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10.0   # keeps held parts from creeping out of the cup
    # the shadow map and multisampling are nine tenths of the rendering time
    spec.visual.quality.shadowsize = 0
    spec.visual.quality.offsamples = 0
    spec.visual.map.znear = 0.02
    spec.visual.map.zfar = 12.0
    spec.visual.headlight.ambient = [0.35, 0.35, 0.35]
    spec.visual.headlight.diffuse = [0.15, 0.15, 0.15]
    spec.stat.extent = 2.0
    return spec


def build_model(settings: SceneSettings | None = None) -> mujoco.MjModel:
    """Return the compiled scene."""
    return build_spec(settings).compile()


def tool_down() -> np.ndarray:
    """Return the tool's working orientation in base_link: z down, wrist in line with the pan."""
    return np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
