"""Messages to numbers and back, with the messages of rclpy and those of rosbags alike."""

import importlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liquid_policy.conversion import (
    MessageError,
    commands_from_action,
    fill_message,
    image_from_message,
    stamp_of,
    vector_from_message,
)
from liquid_policy.interface import ActionSpec, ImageSpec, SourceSpec, load_interface

INTERFACE = load_interface(Path(__file__).parents[1] / 'config' / 'manipulator.interface.yaml')
JOINTS = INTERFACE.observations['joint_positions']
COLOR, DEPTH = INTERFACE.images['color'], INTERFACE.images['depth']


def _from_rclpy(kind: str):
    package, _, name = kind.split('/')
    return getattr(importlib.import_module(f'{package}.msg'), name)()


def _from_rosbags(kind: str):
    from liquid_trainer.message_types import message_types, new_message
    return new_message(message_types(), kind)


@pytest.fixture(params=['rclpy', 'rosbags'])
def new(request):
    """Make an empty message of a type."""
    pytest.importorskip(request.param)
    return _from_rclpy if request.param == 'rclpy' else _from_rosbags


def _set(message, key, values):
    """Set a list field in the container this kind of message wants."""
    old = getattr(message, key)
    setattr(message, key, np.array(values, old.dtype) if isinstance(old, np.ndarray) else values)


def _joint_state(new, names, positions, velocities=()):
    message = new('sensor_msgs/msg/JointState')
    message.name = list(names)
    _set(message, 'position', list(positions))
    _set(message, 'velocity', list(velocities))
    return message


def _image(new, spec: ImageSpec, pixels: np.ndarray, **changes):
    message = new('sensor_msgs/msg/Image')
    message.height, message.width = spec.message_size
    message.encoding = spec.encoding
    data = pixels.tobytes()
    message.step = len(data) // message.height
    for key, value in changes.items():
        if key != 'data':
            setattr(message, key, value)
    data = changes.get('data', data)
    old = message.data
    message.data = np.frombuffer(data, np.uint8) if isinstance(old, np.ndarray) else data
    return message


def _names():
    return [field.partition('.')[2] for field in JOINTS.fields]


def test_stamp_is_nanoseconds(new):
    message = new('sensor_msgs/msg/Imu')
    message.header.stamp.sec, message.header.stamp.nanosec = 12, 345
    assert stamp_of(message) == 12_000_000_345
    assert stamp_of(new('std_msgs/msg/Float64MultiArray')) is None


def test_joints_are_found_by_name_in_any_order_among_others(new):
    rng = np.random.default_rng(1)
    expected = rng.normal(size=6)
    names = [*_names(), 'left_wheel_joint', 'right_wheel_joint']
    values = [*expected, 7.0, 8.0]
    for _ in range(5):
        order = rng.permutation(8)
        message = _joint_state(new, [names[i] for i in order], [values[i] for i in order])
        result = vector_from_message(JOINTS, message)
        assert result.dtype == np.float64
        assert np.array_equal(result, expected)


def test_missing_joint_is_named(new):
    names = _names()
    message = _joint_state(new, names[:3] + ['other'] + names[4:], np.zeros(6))
    with pytest.raises(MessageError, match=f'expected joints.*{names[3]}.*came.*other'):
        vector_from_message(JOINTS, message)


def test_empty_joint_state_is_refused(new):
    with pytest.raises(MessageError, match='expected joints'):
        vector_from_message(JOINTS, new('sensor_msgs/msg/JointState'))


def test_too_few_positions_are_refused(new):
    with pytest.raises(MessageError, match='expected 6 values of position.*came 5'):
        vector_from_message(JOINTS, _joint_state(new, _names(), np.zeros(5)))


def test_velocity_that_is_not_measured_is_refused(new):
    spec = replace(JOINTS, fields=('velocity.elbow_joint',), units=('rad/s',), names=())
    with pytest.raises(MessageError, match='does not measure velocity'):
        vector_from_message(spec, _joint_state(new, _names(), np.zeros(6)))


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_value_that_is_not_finite_is_named(new, bad):
    positions = [0.0, 0.0, bad, 0.0, 0.0, 0.0]
    with pytest.raises(MessageError, match=r'expected finite.*elbow_joint = -?(nan|inf)'):
        vector_from_message(JOINTS, _joint_state(new, _names(), positions))


def test_one_of_joints_without_use_may_be_nan(new):
    message = _joint_state(new, [*_names(), 'wheel'], [*range(6), np.nan])
    assert np.array_equal(vector_from_message(JOINTS, message), np.arange(6))


def test_a_joint_given_twice_is_refused(new):
    message = _joint_state(new, [*_names(), 'elbow_joint'], range(7))
    with pytest.raises(MessageError, match='each joint once.*elbow_joint'):
        vector_from_message(JOINTS, message)


def test_nested_fields_are_read_in_order(new):
    message = new('sensor_msgs/msg/Imu')
    for index, part in enumerate(('angular_velocity', 'linear_acceleration')):
        for axis, name in enumerate('xyz'):
            setattr(getattr(message, part), name, float(3 * index + axis))
    assert np.array_equal(vector_from_message(INTERFACE.observations['imu'], message),
                          np.arange(6.0))


def test_field_the_message_lacks_is_named(new):
    spec = replace(INTERFACE.observations['imu'], fields=('angular_velocity.w',),
                   units=('rad/s',), names=())
    with pytest.raises(MessageError, match=r'expected a field angular_velocity\.w'):
        vector_from_message(spec, new('sensor_msgs/msg/Imu'))


def test_too_short_array_is_refused(new):
    message = new('std_msgs/msg/Float64MultiArray')
    _set(message, 'data', [1.0, 2.0])
    with pytest.raises(MessageError, match='expected a value at 2 for data.2, came 2'):
        vector_from_message(INTERFACE.actions['arm'], message)


def test_text_where_a_number_belongs_is_refused(new):
    spec = replace(INTERFACE.observations['imu'], fields=('header.frame_id',), units=('1',),
                   names=())
    with pytest.raises(MessageError, match='expected a number at header.frame_id'):
        vector_from_message(spec, new('sensor_msgs/msg/Imu'))


def test_color_is_read_without_copy(new):
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    message = _image(new, COLOR, pixels)
    result = image_from_message(COLOR, message)
    assert np.array_equal(result, pixels) and result.dtype == np.uint8
    assert np.shares_memory(result, np.frombuffer(message.data, np.uint8))


@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8'])
def test_every_color_encoding_becomes_rgb(new, encoding):
    rgb = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    if encoding == 'mono8':
        rgb = np.repeat(rgb[..., :1], 3, axis=2)
    alpha = np.full((4, 5, 1), 9, np.uint8)
    sent = {'rgb8': rgb, 'bgr8': rgb[..., ::-1], 'rgba8': np.concatenate([rgb, alpha], 2),
            'bgra8': np.concatenate([rgb[..., ::-1], alpha], 2), 'mono8': rgb[..., 0]}[encoding]
    spec = replace(COLOR, encoding=encoding, height=4, width=5)
    for padding in (0, 3):
        rows = np.pad(np.ascontiguousarray(sent).reshape(4, -1), ((0, 0), (0, padding)))
        assert np.array_equal(image_from_message(spec, _image(new, spec, rows)), rgb)


def test_padding_of_the_last_row_may_be_left_out(new):
    rows = np.random.default_rng(0).integers(0, 256, (96, 300), np.uint8)
    message = _image(new, COLOR, rows, data=rows.tobytes()[:-12])
    assert np.array_equal(image_from_message(COLOR, message),
                          rows[:, :288].reshape(96, 96, 3))


@pytest.mark.parametrize('big_endian', [0, 1])
@pytest.mark.parametrize('padding', [0, 4])
def test_depth_is_metres_in_either_byte_order(new, big_endian, padding):
    depth = np.random.default_rng(0).uniform(0.1, 2.9, (96, 96)).astype(np.float32)
    rows = depth.astype('>f4' if big_endian else '<f4').view(np.uint8).reshape(96, -1)
    rows = np.pad(rows, ((0, 0), (0, padding)))
    result = image_from_message(DEPTH, _image(new, DEPTH, rows, is_bigendian=big_endian))
    assert result.dtype == np.float32
    assert np.array_equal(result, depth)


@pytest.mark.parametrize('big_endian', [0, 1])
def test_depth_in_millimetres_becomes_metres(new, big_endian):
    spec = replace(DEPTH, encoding='16UC1', unit='mm')
    depth = np.full((96, 96), 1234, '>u2' if big_endian else '<u2')
    result = image_from_message(spec, _image(new, spec, depth, is_bigendian=big_endian))
    assert result.dtype == np.float32
    assert np.allclose(result, 1.234, rtol=1e-6)


def test_unknown_depth_is_zero_and_far_is_the_range_end(new):
    spec = replace(DEPTH, range=(0.2, 3.0))
    depth = np.full((96, 96), 1.0, np.float32)
    depth[0, :6] = [np.nan, np.inf, -np.inf, 5.0, 0.1, 0.0]
    result = image_from_message(spec, _image(new, spec, depth))
    assert np.array_equal(result[0, :7], np.float32([0, 3, 0, 3, 0, 0, 1]))
    assert np.isfinite(result).all()


def test_color_of_a_larger_camera_is_averaged(new):
    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    spec = replace(COLOR, encoding='bgr8', height=96, width=128, camera=(480, 640))
    result = image_from_message(spec, _image(new, spec, pixels))
    means = pixels.reshape(96, 5, 128, 5, 3).mean((1, 3))[..., ::-1]
    assert result.shape == (96, 128, 3) and result.dtype == np.uint8
    assert np.abs(result - means).max() <= 0.5 + 1e-6
    with pytest.raises(MessageError, match='expected 640x480 pixels, came 128x96.*camera'):
        image_from_message(spec, _image(new, replace(spec, camera=None), pixels[:96, :128]))


def test_depth_of_a_larger_camera_is_picked_and_never_averaged(new):
    depth = np.random.default_rng(0).choice(np.float32([0.0, np.nan, 0.5, 2.5]), (480, 640))
    spec = replace(DEPTH, camera=(480, 640))
    result = image_from_message(spec, _image(new, spec, depth))
    assert result.shape == (96, 96) and result.dtype == np.float32
    assert set(np.unique(result)) == {0.0, 0.5, 2.5}


IMAGE_FAULTS = {
    'encoding': (dict(encoding='bgr8'), "expected encoding rgb8, came 'bgr8'.*driver"),
    'empty encoding': (dict(encoding=''), "expected encoding rgb8, came ''"),
    'width': (dict(width=640, height=480), 'expected 96x96 pixels, came 640x480.*shrunk'),
    'transposed': (dict(width=95), 'expected 96x96 pixels, came 95x96'),
    'step': (dict(step=100), 'expected rows of at least 288 bytes, came step 100'),
    'no step': (dict(step=0), 'expected rows of at least 288 bytes, came step 0'),
    'step beyond the data': (dict(step=1 << 31), 'cut off'),
    'truncated': (dict(data=bytes(96 * 288 - 1)), 'expected 27648 bytes, came 27647.*cut off'),
    'no data': (dict(data=b''), 'came 0.*cut off'),
}


@pytest.mark.parametrize('case', IMAGE_FAULTS)
def test_image_that_is_not_as_declared_is_refused(new, case):
    changes, text = IMAGE_FAULTS[case]
    message = _image(new, COLOR, np.zeros((96, 96, 3), np.uint8), **changes)
    with pytest.raises(MessageError, match=text) as caught:
        image_from_message(COLOR, message)
    assert 'color (camera/color/image_raw)' in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 1000), st.binary(max_size=500),
       st.sampled_from(['rgb8', 'bgr8', '32FC1', '16UC1', 'mono8', '', 'yuv']),
       st.integers(0, 1), st.sampled_from(['rgb8', 'mono8', '32FC1', '16UC1']))
def test_no_image_message_does_anything_but_convert_or_be_refused(
        height, width, step, data, encoding, big_endian, declared):
    unit = {'32FC1': 'm', '16UC1': 'mm'}.get(declared)
    spec = ImageSpec('any', 'image', 'sensor_msgs/msg/Image', declared, 5, 7, 30.0, unit,
                     (0.0, 1.0) if unit else None)
    message = SimpleNamespace(height=height, width=width, step=step, data=data, encoding=encoding,
                              is_bigendian=big_endian)
    try:
        result = image_from_message(spec, message)
    except MessageError:
        return
    assert result.shape[:2] == (5, 7) and np.isfinite(result).all()


def test_commands_go_to_the_right_topics():
    action = np.arange(9.0)
    commands = commands_from_action(INTERFACE, action)
    assert list(commands) == ['arm', 'gripper', 'base']
    assert np.array_equal(commands['arm'], action[:6])
    assert np.array_equal(commands['gripper'], [6.0])
    assert np.array_equal(commands['base'], [7.0, 8.0])


@pytest.mark.parametrize('action, text', [
    (np.zeros(8), r'shape \(9,\), came \(8,\)'), (np.zeros((1, 9)), r'came \(1, 9\)'),
    (np.array([0.0] * 8 + [np.nan]), 'base_w'), (np.array([np.inf] + [0.0] * 8), 'shoulder_pan')])
def test_action_of_wrong_shape_or_not_finite_is_refused(action, text):
    with pytest.raises(ValueError, match=text):
        commands_from_action(INTERFACE, action)


@pytest.mark.parametrize('name', INTERFACE.actions)
def test_what_is_filled_in_is_read_back(new, name):
    spec = INTERFACE.actions[name]
    values = np.random.default_rng(3).normal(size=spec.size)
    message = fill_message(spec, new(spec.type), values)
    assert np.array_equal(vector_from_message(spec, message), values)


def test_filling_leaves_the_rest_alone(new):
    message = new('geometry_msgs/msg/TwistStamped')
    message.header.frame_id = 'base_link'
    message.twist.linear.y = 3.0
    fill_message(INTERFACE.actions['base'], message, np.array([1.0, 2.0]))
    assert message.header.frame_id == 'base_link'
    assert (message.twist.linear.x, message.twist.linear.y, message.twist.angular.z) == (1, 3, 2)


def test_observations_can_be_filled_too(new):
    for spec in (*INTERFACE.observations.values(), *INTERFACE.targets.values()):
        values = np.random.default_rng(4).normal(size=spec.size)
        message = fill_message(spec, new(spec.type), values)
        assert np.array_equal(vector_from_message(spec, message), values)


def test_joint_state_command_has_one_entry_per_joint(new):
    spec = ActionSpec('arm', 'commands', 'sensor_msgs/msg/JointState', 'shown',
                      ('position.a', 'velocity.a', 'position.b'), ('rad', 'rad/s', 'rad'),
                      ('a', 'a_speed', 'b'), 100.0, 0.05)
    message = fill_message(spec, new(spec.type), np.array([1.0, 2.0, 3.0]))
    assert list(message.name) == ['a', 'b']
    assert np.array_equal(message.position, [1.0, 3.0])
    assert message.velocity[0] == 2.0 and np.isnan(message.velocity[1])


def test_filling_a_wrong_number_of_values_is_refused(new):
    spec = INTERFACE.actions['arm']
    with pytest.raises(ValueError, match='expected 6 values, came 5'):
        fill_message(spec, new(spec.type), np.zeros(5))


def test_filling_a_field_the_message_lacks_is_refused(new):
    spec = replace(INTERFACE.actions['base'], fields=('twist.linear.x', 'twist.spin'))
    with pytest.raises(MessageError, match='twist.spin'):
        fill_message(spec, new(spec.type), np.zeros(2))


def test_rclpy_commands_survive_the_wire():
    pytest.importorskip('rclpy')
    from rclpy.serialization import deserialize_message, serialize_message
    for spec in INTERFACE.actions.values():
        message = fill_message(spec, _from_rclpy(spec.type), np.arange(spec.size) + 0.5)
        again = deserialize_message(serialize_message(message), type(message))
        assert np.array_equal(vector_from_message(spec, again), np.arange(spec.size) + 0.5)


def test_specs_of_any_number_of_fields_round_trip():
    fields = tuple(f'data.{index}' for index in reversed(range(26)))
    spec = SourceSpec('hand', 'hand', 'std_msgs/msg/Float64MultiArray', fields, ('rad',) * 26,
                      100.0, 0.1)
    message = SimpleNamespace(data=[])
    fill_message(spec, message, np.arange(26))
    assert message.data == list(range(25, -1, -1))
    assert np.array_equal(vector_from_message(spec, message), np.arange(26))
