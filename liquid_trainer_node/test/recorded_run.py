"""A short recording of the manipulator with everything that goes wrong on a robot."""

import numpy as np
from compressed_pictures import fields_of

from liquid_policy.conversion import fill_message
from liquid_policy.interface import COMPRESSED_IMAGE_TYPE
from liquid_trainer.message_types import message_types, new_message
from liquid_trainer.recording import BagWriter

MARKER = 'liquid_policy_msgs/msg/EpisodeMarker'
MILLISECOND, SECOND = 1_000_000, 1_000_000_000
START = 500 * SECOND
HOME = np.array([0.0, -1.2, 1.6, -1.9, -1.5, 0.0])
JOINTS = ('shoulder_pan_joint', 'shoulder_lift_joint', 'elbow_joint', 'wrist_1_joint',
          'wrist_2_joint', 'wrist_3_joint')
TYPES = message_types([MARKER])


def stamped(message, stamp: int):
    """Return the message with its header's stamp set [ns]."""
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, SECOND)
    return message


def moving_robot(interface, seconds=1.0, seed=0, faults=True):
    """
    Give (log time [ns], topic, message) of a robot whose joints swing and whose camera sees noise.

    Messages are received 1 ms after their stamp. With faults: images stop for 0.2 s, joint states
    for 70 ms, one joint state is not finite, one IMU stamp repeats.
    """
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, 6)
    for tick in range(round(seconds * 100)):
        stamp = START + tick * 10 * MILLISECOND
        now, time = stamp + MILLISECOND, tick / 100
        speed = 0.5 * np.cos(3.0 * time + phase)
        place = HOME + 0.5 / 3.0 * (np.sin(3.0 * time + phase) - np.sin(phase))
        if tick % 3 == 0 and not (faults and 40 <= tick < 60):
            for spec in interface.images.values():
                shape = (spec.height, spec.width)
                pixels = rng.uniform(0.5, 1.5, shape).astype(np.float32) if spec.is_depth \
                    else rng.integers(0, 255, (*shape, 3), dtype=np.uint8)
                fields = fields_of(spec, pixels) if spec.type == COMPRESSED_IMAGE_TYPE else dict(
                    height=shape[0], width=shape[1], encoding=spec.encoding,
                    step=pixels.nbytes // shape[0], data=pixels.reshape(-1).view(np.uint8))
                yield now, spec.topic, stamped(new_message(TYPES, spec.type, **fields), stamp)
        imu = interface.observations['imu']
        repeated = faults and tick == 20
        yield now, imu.topic, stamped(
            fill_message(imu, new_message(TYPES, imu.type), rng.normal(0, 1, 6)),
            stamp - (10 * MILLISECOND if repeated else 0))
        if not (faults and 75 <= tick < 82):
            joints = interface.observations['joint_positions']
            position = place.copy()
            if faults and tick == 30:
                position[2] = np.nan
            yield now, joints.topic, stamped(new_message(
                TYPES, joints.type, name=list(JOINTS), position=position, velocity=speed,
                effort=np.zeros(6)), stamp)
        if tick % 2 == 0:
            odometry = new_message(TYPES, 'nav_msgs/msg/Odometry')
            odometry.pose.pose.orientation.w = 1.0
            yield now, 'odom', stamped(odometry, stamp)
        for spec in interface.actions.values():
            message = fill_message(spec, new_message(TYPES, spec.type),
                                   speed if spec.size == 6 else np.zeros(spec.size))
            if hasattr(message, 'header'):
                stamped(message, stamp + MILLISECOND)
            yield now, spec.demonstration, message


def record(path, interface, **options):
    """Write the recording and return its folder."""
    topics = {**interface.topics(), 'episode': MARKER, 'odom': 'nav_msgs/msg/Odometry'}
    with BagWriter(path, topics, durable=False) as writer:
        for time, topic, message in moving_robot(interface, **options):
            writer.write(topic, time, message)
    return path
