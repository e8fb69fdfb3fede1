"""
Pictures out of sensor_msgs/CompressedImage, as image_transport's plugins fill it.

JPEG and PNG of the plugin `compressed`; PNG of `compressedDepth`, where 12 bytes stand before the
picture and 32-bit distances are kept as 16-bit inverse depth. What is not whole is refused before
a decoder sees it: decoders make a grey half of a picture out of half of its data, or say nothing.
OpenCV is loaded with the first picture, so that robots with raw images do without it.
"""

import struct
import zlib
from typing import Any

import numpy as np

_PNG = b'\x89PNG\r\n\x1a\n'
_JPEG = b'\xff\xd8\xff'
# compression_common.h of compressed_depth_image_transport: an enumeration, then two parameters.
_DEPTH_HEAD = struct.Struct('<iff')
# Start of frame: all but the tables 0xC4, 0xC8 and 0xCC.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class PictureError(ValueError):
    """Data that is no whole picture; the text says what was expected and what came."""


def unpack_picture(message: Any, height: int, width: int) -> np.ndarray:
    """
    Give the picture inside a message.

    :param message: a sensor_msgs/msg/CompressedImage.
    :param height: rows it must have; checked before anything is decoded.
    :param width: columns it must have.
    :return: `(height, width)` or `(height, width, channels)`, uint8 or uint16, colours in OpenCV's
        order blue, green, red; float32 [m] for 32-bit `compressedDepth`, NaN where nothing is
        known.
    :raises PictureError: for another size or format, and for data that is cut off or damaged.
    """
    data = bytes(message.data)
    encoding, _, codec = (part.strip() for part in message.format.partition(';'))
    head = None
    if 'compressedDepth' in codec:
        if 'rvl' in codec:
            raise PictureError("expected compressedDepth as png, came 'rvl'; set the publisher's "
                               'parameter compressedDepth.format to png')
        if len(data) < _DEPTH_HEAD.size:
            raise PictureError(f'expected {_DEPTH_HEAD.size} bytes before the picture, came '
                               f'{len(data)} in all; the image is cut off')
        head, data = _DEPTH_HEAD.unpack_from(data), data[_DEPTH_HEAD.size:]
    size = _whole_size(data, message.format)
    if size != (height, width):
        raise PictureError(f'expected {width}x{height} pixels, came {size[1]}x{size[0]}; set the '
                           'camera to that size, or correct its `camera` (what is larger is '
                           'shrunk) in the interface file and retrain')
    import cv2
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise PictureError(f'expected a picture, came {len(data)} bytes that OpenCV cannot '
                           f'decode: {error}') from None
    if picture is None or picture.shape[:2] != size:
        raise PictureError(f'expected a picture of {width}x{height} pixels, came {len(data)} '
                           'damaged bytes; check camera and transport')
    if head is not None and encoding == '32FC1':
        return _depth_of(picture, *head[1:])
    return picture


def _depth_of(inverse: np.ndarray, scale: float, offset: float) -> np.ndarray:
    """Give distances [m] from inverse depth, as the plugin's own decoder does."""
    if inverse.dtype != np.uint16 or inverse.ndim != 2:
        raise PictureError(f'expected 16-bit inverse depth, came {inverse.dtype} of shape '
                           f'{inverse.shape}')
    with np.errstate(all='ignore'):
        depth = np.float32(scale) / (inverse.astype(np.float32) - np.float32(offset))
    depth[inverse == 0] = np.nan
    return depth


def _whole_size(data: bytes, name: str) -> tuple[int, int]:
    """Give rows and columns of a picture that is whole."""
    try:
        if data.startswith(_PNG):
            return _png_size(data)
        if data.startswith(_JPEG):
            return _jpeg_size(data)
    except (struct.error, IndexError):
        # The same words for every picture, so that they are counted together.
        raise PictureError('expected a whole picture, came data that end within it; the image is '
                           'cut off, check driver and transport') from None
    raise PictureError(f'expected JPEG or PNG data, came {len(data)} bytes of format {name!r} '
                       f'that begin with {data[:8]!r}; set the publisher to jpeg or png')


def _png_size(data: bytes) -> tuple[int, int]:
    where, size = len(_PNG), (0, 0)
    while True:
        length, kind = struct.unpack_from('>I4s', data, where)
        end = where + 8 + length
        (checksum,) = struct.unpack_from('>I', data, end)
        if zlib.crc32(data[where + 4:end]) != checksum:
            raise PictureError('expected intact PNG data, came a wrong checksum; check camera '
                               'and transport')
        if kind == b'IHDR':
            width, height = struct.unpack_from('>II', data, where + 8)
            size = height, width
        if kind == b'IEND':
            return size
        where = end + 4


def _jpeg_size(data: bytes) -> tuple[int, int]:
    # Some cameras pad with zeros behind the end.
    if not data.rstrip(b'\0').endswith(b'\xff\xd9'):
        raise IndexError
    where = 2
    while data[where] == 0xFF:
        marker = data[where + 1]
        if marker == 0xFF:      # filling
            where += 1
            continue
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from('>HH', data, where + 5)
            return height, width
        (length,) = struct.unpack_from('>H', data, where + 2)
        where += 2 + length
    raise PictureError('expected JPEG markers up to the picture, came something else; the image '
                       'is damaged, check camera and transport')
