"""
Messages to numbers and numbers to messages, the same code on the robot and in the bag reader.

Messages are duck typed: those of rclpy and those of the `rosbags` reader both work, so nothing
here imports ROS.
"""

from array import array
from functools import lru_cache
from typing import Any

import numpy as np

from .compressed_image import PictureError, unpack_picture
from .interface import COMPRESSED_IMAGE_TYPE, ActionSpec, ImageSpec, Interface, SourceSpec

NANOSECONDS = 1_000_000_000

# Bytes per pixel and sample type of every encoding an interface may declare.
_ENCODINGS = {
    'rgb8': (3, 'u1'), 'bgr8': (3, 'u1'), 'rgba8': (4, 'u1'), 'bgra8': (4, 'u1'),
    'mono8': (1, 'u1'), '32FC1': (4, 'f4'), '16UC1': (2, 'u2'),
}


class MessageError(ValueError):
    """A message is not what the interface says; the text names expected, received and remedy."""


def stamp_of(message: Any) -> int | None:
    """
    Give the header stamp of a message.

    :param message: any message.
    :return: nanoseconds, or None for a type without header.
    """
    header = getattr(message, 'header', None)
    if header is None:
        return None
    return nanoseconds(header.stamp)


def nanoseconds(time: Any) -> int:
    """
    Give a message's time as one number [ns].

    :param time: a builtin_interfaces/Time.
    """
    return time.sec * NANOSECONDS + time.nanosec


def vector_from_message(spec: SourceSpec | ActionSpec, message: Any) -> np.ndarray:
    """
    Read the numbers of one observation, target or action from its message.

    Joints are found by name: any order, and further joints do not matter.

    :param spec: what to read.
    :param message: a message of type `spec.type`.
    :return: float64 `(spec.size,)`, in the units of `spec.units`, all finite.
    :raises MessageError: for a missing field or joint, or a value that is not finite.
    """
    if spec.type == 'sensor_msgs/msg/JointState':
        values = _joint_values(spec, message)
    else:
        values = np.array([_number_at(spec, message, path) for path in spec.fields])
    if not np.isfinite(values).all():
        wrong = ', '.join(f'{path} = {value}' for path, value
                          in zip(spec.fields, values, strict=True) if not np.isfinite(value))
        raise MessageError(f'{spec.name} ({spec.topic}): expected finite values, came {wrong}; '
                           'check the driver or sensor that publishes it')
    return values


def image_from_message(spec: ImageSpec, message: Any) -> np.ndarray:
    """
    Read an image as the encoder is fed.

    Colour is not copied where encoding and rows allow it (the result is then read-only). Depth is
    cleaned: unknown (NaN, 0 or nearer than the range) is 0, farther than the range, or infinite,
    is the range's end. Images of larger cameras (`spec.camera`) are shrunk.

    :param spec: what to expect.
    :param message: of `spec.type`: a sensor_msgs/msg/Image or CompressedImage.
    :return: colour uint8 `(height, width, 3)` in the order red, green, blue; depth float32
        `(height, width)` [m].
    :raises MessageError: for another size, encoding, row length or amount of data than declared,
        and for compressed data that is cut off or damaged.
    """
    read = _image_from_compressed if spec.type == COMPRESSED_IMAGE_TYPE else _image_from_raw
    return _shrunk(spec, read(spec, message))


def _image_from_raw(spec: ImageSpec, message: Any) -> np.ndarray:
    pixel, sample = _ENCODINGS[spec.encoding]
    where, (height, width) = f'{spec.name} ({spec.topic})', spec.message_size
    if message.encoding != spec.encoding:
        raise MessageError(f'{where}: expected encoding {spec.encoding}, came '
                           f'{message.encoding!r}; set the camera driver to {spec.encoding} or '
                           f'change images.{spec.name}.encoding in the interface file and retrain')
    if (message.height, message.width) != (height, width):
        raise MessageError(f'{where}: expected {width}x{height} pixels, came '
                           f'{message.width}x{message.height}; set the camera to that size, or '
                           f'correct images.{spec.name}.camera (what is larger is shrunk) in the '
                           'interface file and retrain')
    row = width * pixel
    step = message.step
    if step < row:
        raise MessageError(f'{where}: expected rows of at least {row} bytes, came step {step}; '
                           'the driver fills in step wrongly')
    data = message.data
    # The padding of the last row may be left out.
    needed = step * (height - 1) + row
    if len(data) < needed:
        raise MessageError(f'{where}: expected {step * height} bytes, came {len(data)}; the '
                           'image is cut off, check driver and transport')
    pixels = np.frombuffer(data, np.uint8, count=needed)
    if step == row:
        rows = pixels.reshape(height, row)
    else:
        rows = np.lib.stride_tricks.as_strided(pixels, (height, row), (step, 1),
                                               writeable=False)
    if spec.is_depth:
        order = '>' if message.is_bigendian else '<'
        return _clean_depth(spec, np.ascontiguousarray(rows).view(f'{order}{sample}'))
    return _as_rgb(spec.encoding, rows.reshape(height, width, pixel)
                   if step == row else
                   np.ascontiguousarray(rows).reshape(height, width, pixel))


def _image_from_compressed(spec: ImageSpec, message: Any) -> np.ndarray:
    where, (height, width) = f'{spec.name} ({spec.topic})', spec.message_size
    try:
        picture = unpack_picture(message, height, width)
    except PictureError as error:
        raise MessageError(f'{where}: {error}') from None
    pixel, sample = _ENCODINGS[spec.encoding]
    channels = 1 if spec.is_depth else pixel
    came = 1 if picture.ndim == 2 else picture.shape[2]
    # JPEG knows no transparency, whatever the camera's own encoding was.
    fits = came == channels or (came == 3 and channels == 4)
    if picture.dtype != np.dtype(sample) or not fits:
        raise MessageError(f'{where}: expected a picture of encoding {spec.encoding}, came '
                           f'{message.format!r} with {came} channels of {picture.dtype}; correct '
                           f'images.{spec.name}.encoding in the interface file and retrain')
    if spec.is_depth:
        return _clean_depth(spec, picture.reshape(height, width))
    if came == 1:
        return _as_rgb('mono8', picture.reshape(height, width, 1))
    return _as_rgb('bgr8', picture[..., :3])


def commands_from_action(interface: Interface, action: np.ndarray) -> dict[str, np.ndarray]:
    """
    Split one action into what each command topic is told.

    :param interface: the robot's interface.
    :param action: `(interface.action_size,)`, units of `interface.action_units`.
    :return: float64 values by name of the action, ready for `fill_message`.
    :raises ValueError: for another shape or a value that is not finite.
    """
    action = np.asarray(action, dtype=np.float64)
    if action.shape != (interface.action_size,):
        raise ValueError(f'expected an action of shape ({interface.action_size},), '
                         f'came {action.shape}')
    if not np.isfinite(action).all():
        wrong = [name for name, value in zip(interface.action_names, action, strict=True)
                 if not np.isfinite(value)]
        raise ValueError(f'expected a finite action, came non-finite values for {wrong}')
    return {name: action[interface.slice_of(name)] for name in interface.actions}


def fill_message(spec: ActionSpec | SourceSpec, message: Any, values: np.ndarray) -> Any:
    """
    Write numbers where `vector_from_message` reads them; the rest of the message stays.

    :param spec: what to write.
    :param message: a message of type `spec.type`, changed in place.
    :param values: `(spec.size,)`.
    :return: the message.
    :raises ValueError: for another number of values than the interface declares.
    """
    numbers = [float(value) for value in values]
    if len(numbers) != spec.size:
        raise ValueError(f'{spec.name}: expected {spec.size} values, came {len(numbers)}')
    if spec.type == 'sensor_msgs/msg/JointState':
        return _fill_joint_state(spec, message, numbers)
    lists: dict[tuple[str | int, ...], dict[int, float]] = {}
    for path, value in zip(map(_split, spec.fields), numbers, strict=True):
        *parents, last = path
        if isinstance(last, int):
            lists.setdefault(tuple(parents), {})[last] = value
            continue
        owner = _owner(spec, message, parents)
        if not hasattr(owner, last):
            raise MessageError(_no_field(spec, '.'.join(map(str, path)), message))
        setattr(owner, last, value)
    for place, entries in lists.items():
        *parents, last = place
        owner = _owner(spec, message, parents)
        if not isinstance(last, str) or not hasattr(owner, last):
            raise MessageError(_no_field(spec, '.'.join(map(str, place)), message))
        old = getattr(owner, last)
        content = [float(value) for value in old]
        content += [0.0] * (max(entries) + 1 - len(content))
        for index, value in entries.items():
            content[index] = value
        setattr(owner, last, _like(old, content))
    return message


def _joint_values(spec: SourceSpec | ActionSpec, message: Any) -> np.ndarray:
    names = message.name
    # Drivers rarely change the order of joints: remember where they were.
    places, missing, twice = _places(spec.fields, tuple(names))
    if twice:
        raise MessageError(f'{spec.name} ({spec.topic}): expected each joint once, came '
                           f'{list(twice)} more than once; two publishers may have been merged')
    if missing:
        raise MessageError(f'{spec.name} ({spec.topic}): expected joints {list(missing)}, came '
                           f'{list(names)}; start the controllers of these joints '
                           '(joint_state_broadcaster) or correct the interface file')
    values = np.empty(len(places))
    for index, (kind, place) in enumerate(places):
        numbers = getattr(message, kind)
        if len(numbers) != len(names):
            raise MessageError(f'{spec.name} ({spec.topic}): expected {len(names)} values of '
                               f'{kind}, one per joint, came {len(numbers)}; the publisher of '
                               f'{spec.topic} does not measure {kind}')
        values[index] = numbers[place]
    return values


@lru_cache(maxsize=64)
def _places(fields: tuple[str, ...], names: tuple[str, ...]
            ) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...], tuple[str, ...]]:
    """Give list and index of each field, joints that are missing, and those given twice."""
    where = {name: index for index, name in enumerate(names)}
    wanted = [field.partition('.')[::2] for field in fields]
    joints = dict.fromkeys(joint for _, joint in wanted)
    missing = tuple(joint for joint in joints if joint not in where)
    twice = tuple(joint for joint in joints if names.count(joint) > 1)
    if missing or twice:
        return (), missing, twice
    return tuple((kind, where[joint]) for kind, joint in wanted), (), ()


@lru_cache(maxsize=4096)
def _split(path: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in path.split('.'))


def _number_at(spec: SourceSpec | ActionSpec, message: Any, path: str) -> float:
    value = message
    for part in _split(path):
        try:
            value = value[part] if isinstance(part, int) else getattr(value, part)
        except IndexError:
            raise MessageError(f'{spec.name} ({spec.topic}): expected a value at {part} '
                               f'for {path}, came {len(value)}; the publisher sends another '
                               'number of values than the interface file declares') from None
        except (AttributeError, TypeError, KeyError):
            raise MessageError(_no_field(spec, path, message)) from None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise MessageError(f'{spec.name} ({spec.topic}): expected a number at {path}, came '
                           f'{type(value).__name__}; correct fields in the interface file'
                           ) from None


def _no_field(spec: SourceSpec | ActionSpec, path: str, message: Any) -> str:
    return (f'{spec.name} ({spec.topic}): expected a field {path} in {spec.type}, came '
            f'{type(message).__name__} without it; correct type or fields in the interface file')


def _owner(spec: SourceSpec | ActionSpec, message: Any, parents: Any) -> Any:
    for part in parents:
        try:
            message = message[part] if isinstance(part, int) else getattr(message, part)
        except (AttributeError, IndexError, TypeError, KeyError):
            raise MessageError(_no_field(spec, '.'.join(map(str, parents)), message)) from None
    return message


def _like(old: Any, content: list[float]) -> Any:
    """Give a list the container a message of this kind wants."""
    if isinstance(old, np.ndarray):  # rosbags, and fixed-size arrays of rclpy
        return np.array(content, dtype=old.dtype)
    if isinstance(old, array):  # rclpy
        return array(old.typecode, content)
    return content


def _fill_joint_state(spec: Any, message: Any, values: list[float]) -> Any:
    joints = list(dict.fromkeys(field.partition('.')[2] for field in spec.fields))
    message.name = joints
    kinds = dict.fromkeys(field.partition('.')[0] for field in spec.fields)
    for kind in kinds:
        content = [float('nan')] * len(joints)
        for field, value in zip(spec.fields, values, strict=True):
            head, _, joint = field.partition('.')
            if head == kind:
                content[joints.index(joint)] = value
        setattr(message, kind, _like(getattr(message, kind), content))
    return message


def _as_rgb(encoding: str, pixels: np.ndarray) -> np.ndarray:
    if encoding == 'rgb8':
        return pixels
    if encoding == 'mono8':
        return np.repeat(pixels, 3, axis=2)
    order = [2, 1, 0] if encoding.startswith('bgr') else [0, 1, 2]
    return np.ascontiguousarray(pixels[..., order])


def _shrunk(spec: ImageSpec, image: np.ndarray) -> np.ndarray:
    if image.shape[:2] == (spec.height, spec.width):
        return image
    import cv2
    way = cv2.INTER_NEAREST if spec.is_depth else cv2.INTER_AREA
    return cv2.resize(image, (spec.width, spec.height), interpolation=way)


def _clean_depth(spec: ImageSpec, depth: np.ndarray) -> np.ndarray:
    assert spec.range is not None  # ImageSpec sees to that
    nearest, farthest = spec.range
    if spec.encoding == '16UC1':
        depth = depth * np.float32(1e-3)  # mm
    depth = depth.astype(np.float32, copy=True)
    np.nan_to_num(depth, copy=False, nan=0.0, posinf=farthest, neginf=0.0)
    np.minimum(depth, np.float32(farthest), out=depth)
    depth[depth < nearest] = 0.0
    return depth
