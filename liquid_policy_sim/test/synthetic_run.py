"""
A recording whose every figure is known beforehand.

The messages are made with the same message definitions and written by the same library as real
recordings; only the robot behind them is missing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

MESSAGES = Path(__file__).resolve().parents[2] / 'liquid_policy_msgs' / 'msg'
NAMES = ('shoulder_pan_joint', 'shoulder_lift_joint', 'elbow_joint', 'wrist_1_joint',
         'wrist_2_joint', 'wrist_3_joint', 'suction', 'base_v', 'base_w')
START = 1_790_000_000_000_000_000
MS = 1_000_000


@dataclass(frozen=True)
class Plan:
    """
    What the synthetic recording shall contain.

    :param seconds: length [s].
    :param image_delay: image stamp to its receipt [ms].
    :param feature_delay: receipt of the image to receipt of its features [ms].
    :param policy_delay: receipt of a joint state to receipt of the distribution [ms].
    :param safety_delay: receipt of the distribution to issue of the command [ms].
    :param lost_images: indices of images that were published and not recorded.
    :param pictures: whether images carry pixels worth looking at (slower).
    :param pose_error: estimated minus true position [m].
    :param namespace: in front of every topic.
    :param start: first stamp [ns].
    """

    seconds: float = 2.0
    image_delay: int = 1
    feature_delay: int = 2
    policy_delay: int = 1
    safety_delay: int = 1
    lost_images: tuple[int, ...] = ()
    pictures: bool = False
    pose_error: tuple[float, float, float] = (0.003, 0.004, 0.0)
    namespace: str = ''
    start: int = START


def typestore():
    """Return a typestore that knows the project's messages."""
    store = get_typestore(Stores.ROS2_JAZZY)
    types = {}
    for path in sorted(MESSAGES.glob('*.msg')):
        types.update(get_types_from_msg(path.read_text('utf-8'),
                                        f'liquid_policy_msgs/msg/{path.stem}'))
    store.register(types)
    return store


class Recording:
    """Writes messages of any type by naming only the fields that matter."""

    def __init__(self, path: Path, namespace: str = '',
                 storage: StoragePlugin = StoragePlugin.MCAP) -> None:
        self.store = typestore()
        self.namespace = namespace
        self.writer = Writer(path, version=9, storage_plugin=storage)
        self.connections = {}
        self.rows = []

    def stamp(self, ns: int):
        """Return builtin_interfaces/Time."""
        return self.store.types['builtin_interfaces/msg/Time'](ns // 10**9, ns % 10**9)

    def header(self, ns: int, frame: str = ''):
        """Return std_msgs/Header."""
        return self.store.types['std_msgs/msg/Header'](self.stamp(ns), frame)

    def make(self, type_name: str, /, **given):
        """Return a message of a type, empty but for the given fields."""
        fields = {}
        for field, kind in self.store.fielddefs[type_name][1]:
            fields[field] = given[field] if field in given else self._empty(kind)
        return self.store.types[type_name](**fields)

    def _empty(self, kind):
        code, detail = int(kind[0]), kind[1]
        if code == 1:    # basic type: (name, size)
            name = detail[0]
            return '' if name == 'string' else False if name == 'bool' else 0
        if code == 2:
            return self.make(detail)
        item, size = detail
        if int(item[0]) == 1 and item[1][0] != 'string':
            return np.zeros(size, {'octet': 'uint8', 'bool': 'bool'}.get(item[1][0], item[1][0]))
        return [self._empty(item) for _ in range(size)]

    def write(self, topic: str, received: int, kind: str, /, **given) -> None:
        """Keep one message, to be written in order of receipt."""
        self.rows.append((received, topic, kind, self.make(kind, **given)))

    def close(self) -> None:
        """Write everything."""
        self.writer.open()
        for received, topic, name, message in sorted(self.rows, key=lambda row: row[0]):
            full = f'{self.namespace}/{topic}'
            if full not in self.connections:
                self.connections[full] = self.writer.add_connection(
                    full, name, typestore=self.store)
            self.writer.write(self.connections[full], received,
                              self.store.serialize_cdr(message, name))
        self.writer.close()


def write(path: Path, plan: Plan | None = None,
          storage: StoragePlugin = StoragePlugin.MCAP) -> SimpleNamespace:
    """
    Write the recording.

    :param path: folder to be made.
    :param plan: what it shall contain.
    :return: what was put in: images, ticks, lost.
    """
    plan = plan or Plan()
    out = Recording(path, plan.namespace, storage)
    ticks = round(plan.seconds * 100)
    images = round(plan.seconds * 30)
    image_stamps = [plan.start + round(index * 1e9 / 30) for index in range(images)]
    for index, stamp in enumerate(image_stamps):
        if index in plan.lost_images:
            continue
        came = stamp + plan.image_delay * MS
        color, depth = _pixels(index, images, plan.pictures)
        out.write('camera/color/image_raw', came, 'sensor_msgs/msg/Image',
                  header=out.header(stamp, 'camera_optical_frame'), height=96, width=96,
                  encoding='rgb8', step=288, data=color.reshape(-1))
        out.write('camera/depth/image_raw', came, 'sensor_msgs/msg/Image',
                  header=out.header(stamp, 'camera_optical_frame'), height=96, width=96,
                  encoding='32FC1', step=384, data=depth.view(np.uint8).reshape(-1))
        out.write('features', came + plan.feature_delay * MS, 'liquid_policy_msgs/msg/Features',
                  header=out.header(stamp), encoder_id='synthetic',
                  values=np.zeros(128, np.float32))
        if plan.pictures and index % 3 == 0:
            out.write('scene/image/compressed', came, 'sensor_msgs/msg/CompressedImage',
                      header=out.header(stamp), format='jpeg', data=_scene(index, images))
    kept = np.array([stamp for index, stamp in enumerate(image_stamps)
                     if index not in plan.lost_images])
    feature_ready = kept + (plan.image_delay + plan.feature_delay) * MS
    picked = 0
    for tick in range(ticks):
        stamp = plan.start + tick * 10 * MS
        joint_came = stamp
        phase = 2 * np.pi * tick / 300
        position = np.array([np.sin(phase + joint) for joint in range(8)])
        velocity = np.array([2 * np.pi / 3 * np.cos(phase + joint) for joint in range(8)])
        out.write('joint_states', joint_came, 'sensor_msgs/msg/JointState',
                  header=out.header(stamp, 'base_link'),
                  name=[*NAMES[:6], 'left_wheel_joint', 'right_wheel_joint'],
                  position=position, velocity=velocity, effort=np.zeros(8))
        truth = np.array([0.6, -0.5 + (tick % 300) * 1.5e-3, 0.42])
        _odometry(out, stamp, truth, 0.15)
        out.write('estimate', stamp + 2 * MS, 'liquid_policy_msgs/msg/Estimate',
                  header=out.header(stamp, 'base_link'),
                  names=['part_x', 'part_y', 'part_z', 'part_speed'], units=['m'] * 3 + ['m/s'],
                  mean=np.array([*(truth + plan.pose_error), 0.16]),
                  standard_deviation=np.full(4, 0.01))
        known = kept[feature_ready <= joint_came]
        image = int(known[-1]) if known.size else 0
        _step(out, plan, tick, stamp, joint_came, image, velocity)
        if tick % 10 == 0:
            picked = tick // 100
            out.write('conveyor_status', stamp, 'liquid_policy_msgs/msg/ConveyorStatus',
                      header=out.header(stamp), seen=picked + 1, picked=picked,
                      missed=0, belt_speed=0.1 + 0.05 * (tick % 400 > 200), part_mass=0.4,
                      holding=bool(tick % 100 > 80))
    _published(out, plan, image_stamps, ticks)
    out.close()
    return SimpleNamespace(images=image_stamps, ticks=ticks, lost=len(plan.lost_images),
                           picked=picked)


def _step(out, plan, tick, stamp, joint_came, image, velocity):
    """Write one tick of policy and safety; each tenth command is limited to 1.5."""
    weights = np.array([0.6 + 0.3 * np.sin(tick / 40), 0.3 - 0.2 * np.sin(tick / 40)])
    weights = np.append(weights, 1 - weights.sum()).astype(np.float32)
    proposed = np.append(velocity[:6], [float(tick % 100 > 50), 0.0, 0.0])
    policy_came = joint_came + plan.policy_delay * MS
    out.write('action_distribution', policy_came, 'liquid_policy_msgs/msg/ActionDistribution',
              header=out.header(stamp), image_stamp=out.stamp(image), model_version='test-1',
              action_names=list(NAMES), action_units=['rad/s'] * 9, dt=0.01, horizon=1,
              components=3, weights=weights, means=np.zeros(27, np.float32),
              standard_deviations=np.ones(27, np.float32), chosen_component=int(tick % 200 > 100),
              chosen=proposed.astype(np.float32))
    issued = proposed.copy()
    limited = tick % 10 == 0
    if limited:
        issued[:6] = np.clip(issued[:6], -1.5, 1.5)
    at = policy_came + plan.safety_delay * MS
    out.write('safety_status', at, 'liquid_policy_msgs/msg/SafetyStatus',
              header=out.header(at), state=2 if limited else 1,
              reasons=['velocity'] if limited else [], action_names=list(NAMES),
              proposed=proposed, issued=issued,
              active_constraints=['velocity/elbow_joint'] if limited else [],
              amounts=np.array([0.5] if limited else []), proposal_stamp=out.stamp(stamp),
              image_stamp=out.stamp(image), model_version='test-1',
              interventions=tick // 10 + 1, missed_deadlines=0)
    out.write('arm_velocity_controller/commands', at, 'std_msgs/msg/Float64MultiArray',
              data=issued[:6])


def _published(out, plan, image_stamps, ticks):
    """Write what the simulator says it published, at the start and at the end."""
    for until, images, joints in ((plan.start - 1, 0, 0),
                                  (plan.start + (ticks - 1) * 10 * MS, len(image_stamps), ticks)):
        text = json.dumps({'until': until, 'camera/color/image_raw': images,
                           'joint_states': joints})
        said = {'simulator': {'info.published': text}}
        said |= {name: {'process.resident_mb': str(100 + images / 1000), 'process.cpu': '0.25',
                        f'{stage}.p50_ms': '0.050', f'{stage}.p99_ms': '0.090'}
                 for name, stage in (('perception', 'encode'), ('policy', 'step'),
                                     ('safety', 'filter_cycle'))}
        for name, values in said.items():
            pairs = [out.make('diagnostic_msgs/msg/KeyValue', key=key, value=value)
                     for key, value in values.items()]
            status = out.make('diagnostic_msgs/msg/DiagnosticStatus', name=name, level=0,
                              values=pairs)
            out.write('diagnostics', until + 1, 'diagnostic_msgs/msg/DiagnosticArray',
                      header=out.header(until + 1), status=[status])


def _odometry(out, stamp, position, speed):
    make = out.make
    pose = make('geometry_msgs/msg/Pose', position=make(
        'geometry_msgs/msg/Point', x=position[0], y=position[1], z=position[2]))
    twist = make('geometry_msgs/msg/Twist', linear=make(
        'geometry_msgs/msg/Vector3', y=speed))
    out.write('ground_truth/part', stamp, 'nav_msgs/msg/Odometry',
              header=out.header(stamp, 'base_link'),
              pose=make('geometry_msgs/msg/PoseWithCovariance', pose=pose),
              twist=make('geometry_msgs/msg/TwistWithCovariance', twist=twist))


def _pixels(index: int, count: int, pictures: bool):
    color = np.full((96, 96, 3), 90, np.uint8)
    depth = np.full((96, 96), 0.8, np.float32)
    if pictures:
        color[40:60] = (70, 74, 80)
        x = int(96 * (index % 90) / 90)
        color[44:56, max(0, x - 6):x + 6] = (220, 130, 40)
        depth[44:56, max(0, x - 6):x + 6] = 0.55
        depth += np.linspace(0, 0.4, 96, dtype=np.float32)[:, None]
    return color, depth


def _scene(index: int, count: int):
    pixels = np.full((240, 320, 3), 200, np.uint8)
    pixels[150:190] = (80, 80, 86)
    x = int(320 * (index % 90) / 90)
    cv2.rectangle(pixels, (x - 12, 130), (x + 12, 150), (40, 120, 220), -1)
    cv2.line(pixels, (60, 220), (140, 100), (60, 60, 70), 9)
    cv2.line(pixels, (140, 100), (x, 120), (230, 140, 40), 7)
    return cv2.imencode('.jpg', pixels)[1].reshape(-1)
