"""Compressed pictures: what image_transport sends is read; what is not whole is refused."""

import struct
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liquid_policy.conversion import MessageError, image_from_message
from liquid_policy.interface import COMPRESSED_IMAGE_TYPE, load_interface

cv2 = pytest.importorskip('cv2')

INTERFACE = load_interface(Path(__file__).parents[1] / 'config' / 'manipulator.interface.yaml')
HEIGHT, WIDTH = 48, 64
COLOR = replace(INTERFACE.images['color'], type=COMPRESSED_IMAGE_TYPE, height=HEIGHT, width=WIDTH)
DEPTH = replace(INTERFACE.images['depth'], type=COMPRESSED_IMAGE_TYPE, height=HEIGHT, width=WIDTH)
DEPTH_MM = replace(DEPTH, encoding='16UC1', unit='mm')


def picture(channels=3):
    """Return a smooth picture in red, green, blue."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, channels), np.uint8)
    return cv2.resize(coarse, (WIDTH, HEIGHT))


def packed(ending, pixels):
    """Return the bytes of a picture, given in OpenCV's order."""
    return cv2.imencode(ending, np.ascontiguousarray(pixels))[1].tobytes()


def message(data, name='rgb8; jpeg compressed bgr8', kind='plain'):
    """Return a CompressedImage as rclpy or rosbags hand it over, or like either."""
    if kind == 'rclpy':
        from array import array
        pytest.importorskip('rclpy')
        from sensor_msgs.msg import CompressedImage
        return CompressedImage(format=name, data=array('B', data))
    if kind == 'rosbags':
        pytest.importorskip('rosbags')
        from liquid_trainer.message_types import message_types, new_message
        return new_message(message_types(), COMPRESSED_IMAGE_TYPE, format=name,
                           data=np.frombuffer(data, np.uint8))
    return SimpleNamespace(format=name, data=data)


@pytest.mark.parametrize('kind', ['rclpy', 'rosbags'])
@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8', 'rgba8', 'bgra8'])
def test_png_is_read_without_loss_and_in_the_order_red_green_blue(kind, encoding):
    rgb = picture()
    data = packed('.png', rgb[..., ::-1])
    sent = message(data, f'{encoding}; png compressed bgr8', kind)
    result = image_from_message(replace(COLOR, encoding=encoding), sent)
    assert np.array_equal(result, rgb) and result.dtype == np.uint8


def test_jpeg_is_nearly_what_was_sent_whatever_its_padding():
    rgb = picture()
    data = packed('.jpg', rgb[..., ::-1])
    result = image_from_message(COLOR, message(data))
    assert np.abs(result.astype(int) - rgb).mean() < 4       # quality 95; order red, green, blue
    for name in ('jpeg', 'jpg', ''):        # of drivers that compress themselves
        assert np.array_equal(image_from_message(COLOR, message(data + bytes(64), name)), result)


def test_jpeg_of_a_larger_camera_is_shrunk():
    data = message(packed('.jpg', picture()[..., ::-1]))
    whole = image_from_message(COLOR, data)
    result = image_from_message(
        replace(COLOR, height=HEIGHT // 2, width=WIDTH // 4, camera=(HEIGHT, WIDTH)), data)
    means = whole.reshape(HEIGHT // 2, 2, WIDTH // 4, 4, 3).mean((1, 3))
    assert np.abs(result - means).max() <= 0.5 + 1e-6


def test_transparency_is_left_out_and_grey_becomes_grey():
    rgba = picture(4)
    data = packed('.png', rgba[..., [2, 1, 0, 3]])
    result = image_from_message(replace(COLOR, encoding='rgba8'), message(data))
    assert np.array_equal(result, rgba[..., :3])
    grey = picture()[..., 0]
    result = image_from_message(replace(COLOR, encoding='mono8'), message(packed('.png', grey)))
    assert np.array_equal(result, np.repeat(grey[..., None], 3, axis=2))


def test_orientation_of_a_file_does_not_turn_the_image():
    """A raw image would not have been turned either."""
    data = packed('.jpg', picture()[..., ::-1])
    tags = b'Exif\0\0' + struct.pack('<2sHIHHHIHHI', b'II', 42, 8, 1, 0x0112, 3, 1, 3, 0, 0)
    turned = data[:2] + b'\xff\xe1' + struct.pack('>H', 2 + len(tags)) + tags + data[2:]
    assert np.array_equal(image_from_message(COLOR, message(turned)),
                          image_from_message(COLOR, message(data)))


@pytest.mark.parametrize('head', [b'', struct.pack('<iff', 0, 0.0, 0.0)])
def test_depth_in_millimetres_is_exact(head):
    """As png of the plugin `compressed`, and of `compressedDepth` behind its 12 bytes."""
    depth = np.random.default_rng(1).integers(1, 2999, (HEIGHT, WIDTH), np.uint16)
    name = '16UC1; compressedDepth png' if head else '16UC1; png compressed '
    result = image_from_message(DEPTH_MM, message(head + packed('.png', depth), name))
    assert np.array_equal(result, depth * np.float32(1e-3))


def test_inverse_depth_comes_back_within_its_steps():
    """
    Quantised as compressed_depth_image_transport does by default (depth_max 10, quantization 100).

    A step of inverse depth is d^2 / a metres wide; 0 says that nothing is known.
    """
    depth = np.random.default_rng(1).uniform(0.3, 2.9, (HEIGHT, WIDTH)).astype(np.float32)
    a = 100.0 * 101.0
    b = 1.0 - a / 10.0
    inverse = (a / depth + b).astype(np.uint16)
    inverse[0, 0] = 0
    data = struct.pack('<iff', 0, a, b) + packed('.png', inverse)
    result = image_from_message(DEPTH, message(data, '32FC1; compressedDepth png'))
    assert result[0, 0] == 0.0
    result[0, 0] = depth[0, 0]
    assert np.all(np.abs(result - depth) < 1.01 * 3.0 ** 2 / a)


JPEG, PNG = packed('.jpg', picture()), packed('.png', picture())
REFUSED = {
    'nothing': (COLOR, b'', 'jpeg', 'JPEG or PNG data, came 0 bytes'),
    'half a jpeg': (COLOR, JPEG[:len(JPEG) // 2], 'jpeg', 'cut off'),
    'jpeg without its last byte': (COLOR, JPEG[:-1], 'jpeg', 'cut off'),
    'head of a jpeg': (COLOR, JPEG[:3], 'jpeg', 'cut off'),
    'half a png': (COLOR, PNG[:len(PNG) // 2], 'png', 'cut off'),
    'png without its last byte': (COLOR, PNG[:-1], 'png', 'cut off'),
    'damaged png': (COLOR, PNG[:900] + bytes([PNG[900] ^ 1]) + PNG[901:], 'png', 'wrong checksum'),
    'another size': (COLOR, packed('.jpg', picture()[:40]), 'jpeg', '64x48 pixels, came 64x40'),
    'video': (COLOR, b'\0\0\0\1\x67' * 40, 'h264', "JPEG or PNG data, came .* 'h264'"),
    'grey': (COLOR, packed('.jpg', picture()[..., 0]), 'mono8; jpeg compressed ',
             'encoding rgb8, came .* 1 channels of uint8'),
    'colour where grey is declared': (replace(COLOR, encoding='mono8'), JPEG, 'jpeg',
                                      'encoding mono8, came .* 3 channels'),
    'colour where depth is declared': (DEPTH_MM, PNG, 'png', 'encoding 16UC1, came .* uint8'),
    'depth in another unit': (DEPTH, packed('.png', np.ones((HEIGHT, WIDTH), np.uint16)),
                              '16UC1; png compressed ', 'encoding 32FC1, came .* uint16'),
    'rvl': (DEPTH, bytes(40), '16UC1; compressedDepth rvl', "as png, came 'rvl'.*parameter"),
    'depth without its head': (DEPTH, bytes(11), '32FC1; compressedDepth png', 'cut off'),
    'inverse depth of 8 bits': (
        DEPTH, struct.pack('<iff', 0, 1.0, 0.0) + packed('.png', picture()[..., 0]),
        '32FC1; compressedDepth png', '16-bit inverse depth, came uint8'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_a_picture_that_is_not_as_declared_is_refused(case):
    spec, data, name, words = REFUSED[case]
    with pytest.raises(MessageError, match=words) as caught:
        image_from_message(spec, message(data, name))
    assert f'{spec.name} ({spec.topic})' in str(caught.value)


def test_a_picture_that_claims_to_be_huge_is_refused_before_it_is_decoded():
    """A few bytes may claim gigabytes: 60,000 x 60,000 pixels in 100 bytes of PNG."""
    body = b'IHDR' + struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)
    data = PNG[:8] + struct.pack('>I', 13) + body + struct.pack('>I', zlib.crc32(body)) + PNG[33:]
    with pytest.raises(MessageError, match='came 60000x60000'):
        image_from_message(COLOR, message(data))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([JPEG, PNG]), st.integers(0, len(PNG)), st.binary(max_size=6),
       st.integers(0, len(PNG)), st.sampled_from([COLOR, DEPTH, DEPTH_MM]),
       st.sampled_from(['jpeg', '32FC1; compressedDepth png', '; compressedDepth', 'x;y;z']))
def test_no_data_does_anything_but_convert_or_be_refused(data, place, put, end, spec, name):
    """Bytes replaced anywhere, cut anywhere."""
    data = data[:place] + put + data[place + len(put):]
    try:
        result = image_from_message(spec, message(data[:max(end, 40)], name))
    except MessageError:
        return
    shape = (HEIGHT, WIDTH) if spec.is_depth else (HEIGHT, WIDTH, 3)
    assert result.shape == shape and np.isfinite(result).all()
