"""
What the cell's sensors say, as ROS messages; the same for the node and for written bags.

Messages are made by a factory, so that this module needs neither rclpy nor rosbags:
`RosbagsMessages` here, and in the simulator node one that makes rclpy's classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

BASE_FRAME = 'base_link'
OPTICAL_FRAME = 'camera_optical_frame'
IMU_FRAME = 'imu_link'


class RosbagsMessages:
    """Makes messages of a `rosbags` type store."""

    def __init__(self, typestore):
        self._types = typestore.types

    def make(self, type_name: str, **fields) -> Any:
        """Return a message of a type such as `std_msgs/msg/Header`."""
        return self._types[type_name](**fields)

    def floats(self, values):
        """Return a sequence of float64 as the message classes want it."""
        return np.ascontiguousarray(values, dtype=np.float64)

    def data(self, array):
        """Return an array's bytes as the message classes want a uint8[]."""
        return np.frombuffer(np.ascontiguousarray(array).tobytes(), dtype=np.uint8)


class Telemetry:
    """
    Turns a cell's readings into messages.

    :param factory: makes messages, see `RosbagsMessages`.
    """

    def __init__(self, factory):
        self._factory = factory

    def time(self, stamp: int):
        """Return a `builtin_interfaces/msg/Time` of nanoseconds."""
        return self._factory.make('builtin_interfaces/msg/Time',
                                  sec=stamp // 10**9, nanosec=stamp % 10**9)

    def header(self, stamp: int, frame: str = ''):
        """Return a header; stamp in nanoseconds."""
        return self._factory.make('std_msgs/msg/Header', stamp=self.time(stamp), frame_id=frame)

    def joint_state(self, sim, stamp: int):
        """Return the `sensor_msgs/JointState` of arm and wheels [rad, rad/s, Nm]."""
        names, position, velocity, effort = sim.joint_state()
        floats = self._factory.floats
        return self._factory.make(
            'sensor_msgs/msg/JointState', header=self.header(stamp), name=list(names),
            position=floats(position), velocity=floats(velocity), effort=floats(effort))

    def imu(self, sim, stamp: int):
        """Return the `sensor_msgs/Imu`; it measures no orientation (REP 145)."""
        gyro, force = sim.imu()
        unknown = np.zeros(9)
        unknown[0] = -1.0
        gyro_covariance = np.diag([4e-6] * 3).ravel()
        force_covariance = np.diag([4e-4] * 3).ravel()
        return self._factory.make(
            'sensor_msgs/msg/Imu', header=self.header(stamp, IMU_FRAME),
            orientation=self._quaternion([0, 0, 0, 1]), orientation_covariance=unknown,
            angular_velocity=self._vector(gyro), angular_velocity_covariance=gyro_covariance,
            linear_acceleration=self._vector(force),
            linear_acceleration_covariance=force_covariance)

    def images(self, sim, stamp: int):
        """Return the colour (rgb8) and depth (32FC1, m) `sensor_msgs/Image`s of one instant."""
        color, depth = sim.render_camera()
        return (self._image(color, 'rgb8', 3, stamp), self._image(depth, '32FC1', 4, stamp))

    def odometry(self, sim, stamp: int):
        """Return the `nav_msgs/Odometry` of the wheels, base_link in odom."""
        x, y, yaw, v, w = sim.odometry()
        return self._odometry(
            stamp, 'odom', BASE_FRAME, [x, y, 0], [0, 0, np.sin(yaw / 2), np.cos(yaw / 2)],
            [v, 0, 0], [0, 0, w])

    def part(self, sim, stamp: int):
        """Return the part on the belt as `nav_msgs/Odometry` in base_link; None without one."""
        part = sim.part()
        if part is None:
            return None
        # the twist is expressed in base_link too: the target's speed is along its y axis
        return self._odometry(stamp, BASE_FRAME, BASE_FRAME, part.position, part.quaternion,
                              part.velocity, [0, 0, 0])

    def status(self, sim, stamp: int):
        """Return the `liquid_policy_msgs/ConveyorStatus`."""
        return self._factory.make('liquid_policy_msgs/msg/ConveyorStatus',
                                  header=self.header(stamp, BASE_FRAME), **sim.status())

    def joint_command(self, values):
        """Return a `std_msgs/Float64MultiArray` for a ros2_control group controller."""
        layout = self._factory.make('std_msgs/msg/MultiArrayLayout', dim=[], data_offset=0)
        return self._factory.make('std_msgs/msg/Float64MultiArray', layout=layout,
                                  data=self._factory.floats(values))

    def base_command(self, v: float, w: float, stamp: int):
        """Return a `geometry_msgs/TwistStamped` [m/s, rad/s]."""
        return self._factory.make(
            'geometry_msgs/msg/TwistStamped', header=self.header(stamp, BASE_FRAME),
            twist=self._twist([v, 0, 0], [0, 0, w]))

    def marker(self, kind: int, episode: str, stamp: int, note: str = ''):
        """Return a `liquid_policy_msgs/EpisodeMarker`."""
        return self._factory.make('liquid_policy_msgs/msg/EpisodeMarker', kind=kind,
                                  header=self.header(stamp), episode=episode, note=note)

    def _image(self, array, encoding, pixel_bytes, stamp):
        height, width = array.shape[:2]
        return self._factory.make(
            'sensor_msgs/msg/Image', header=self.header(stamp, OPTICAL_FRAME), height=height,
            width=width, encoding=encoding, is_bigendian=0, step=width * pixel_bytes,
            data=self._factory.data(array))

    def _vector(self, values):
        x, y, z = (float(v) for v in values)
        return self._factory.make('geometry_msgs/msg/Vector3', x=x, y=y, z=z)

    def _quaternion(self, values):
        x, y, z, w = (float(v) for v in values)
        return self._factory.make('geometry_msgs/msg/Quaternion', x=x, y=y, z=z, w=w)

    def _twist(self, linear, angular):
        return self._factory.make('geometry_msgs/msg/Twist', linear=self._vector(linear),
                                  angular=self._vector(angular))

    def _odometry(self, stamp, frame, child, position, quaternion, linear, angular):
        make, none = self._factory.make, np.zeros(36)
        x, y, z = (float(v) for v in position)
        pose = make('geometry_msgs/msg/Pose',
                    position=make('geometry_msgs/msg/Point', x=x, y=y, z=z),
                    orientation=self._quaternion(quaternion))
        return make(
            'nav_msgs/msg/Odometry', header=self.header(stamp, frame), child_frame_id=child,
            pose=make('geometry_msgs/msg/PoseWithCovariance', pose=pose, covariance=none),
            twist=make('geometry_msgs/msg/TwistWithCovariance',
                       twist=self._twist(linear, angular), covariance=none))
