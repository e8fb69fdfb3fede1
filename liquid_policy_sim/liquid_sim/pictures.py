"""Camera images made small enough for a web page: JPEG, depth in colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np


@dataclass(frozen=True)
class Picture:
    """
    One encoded picture.

    :param stamp: when it was taken [ns].
    :param data: JPEG.
    """

    stamp: int
    data: bytes


def _rows(data: Any, height: int, width: int, step: int, dtype: type, channels: int) -> np.ndarray:
    """Return the pixels without the padding behind each row."""
    needed = width * channels * np.dtype(dtype).itemsize
    raw = np.frombuffer(bytes(data), np.uint8)
    if step < needed or raw.size < height * step:
        raise ValueError(f'expected {height} rows of at least {needed} bytes, got step {step} and '
                         f'{raw.size} bytes')
    rows = raw[:height * step].reshape(height, step)[:, :needed]
    pixels: np.ndarray = np.ascontiguousarray(rows).view(dtype)
    return pixels.reshape((height, width, channels) if channels > 1 else (height, width))


def jpeg(pixels: np.ndarray, quality: int = 80) -> bytes:
    """
    Return pixels as JPEG.

    :param pixels: RGB, `(height, width, 3)` uint8.
    :param quality: 1 to 100.
    :raises ValueError: if the pixels cannot be encoded.
    """
    done, data = cv2.imencode('.jpg', np.ascontiguousarray(pixels[..., ::-1]),
                              [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f'pixels of shape {pixels.shape}, {pixels.dtype} cannot become a JPEG')
    return data.tobytes()


def smaller_jpeg(data: bytes, quality: int) -> bytes:
    """
    Return a JPEG encoded again at a lower quality; the old one if it does not get smaller.

    :param data: JPEG.
    :param quality: 1 to 100.
    """
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        return data
    again = jpeg(pixels[..., ::-1], quality)
    return again if len(again) < len(data) else data


def encode_color(data: Any, height: int, width: int, step: int, encoding: str) -> bytes:
    """
    Return the pixels of a colour image message as JPEG.

    :param data: pixels of the message.
    :param height: rows.
    :param width: columns.
    :param step: bytes from one row to the next.
    :param encoding: `rgb8` or `bgr8`.
    :raises ValueError: if the encoding is another, or the data does not fit the size.
    """
    if encoding not in ('rgb8', 'bgr8'):
        raise ValueError(f'expected a colour image as rgb8 or bgr8, got {encoding!r}')
    pixels = _rows(data, height, width, step, np.uint8, 3)
    return jpeg(pixels if encoding == 'rgb8' else pixels[..., ::-1])


def colorize(depth: np.ndarray, depth_range: tuple[float, float]) -> np.ndarray:
    """
    Return depth as colours, near in red and far in blue; unknown depth (0, NaN, inf) in black.

    :param depth: [m], `(height, width)`.
    :param depth_range: depth [m] of the first and of the last colour.
    :return: RGB, `(height, width, 3)` uint8.
    """
    near, far = depth_range
    known = np.isfinite(depth) & (depth > 0)
    scaled = 1 - (np.where(known, depth, far) - near) / (far - near)
    colors = cv2.applyColorMap(np.clip(scaled * 255, 0, 255).astype(np.uint8), cv2.COLORMAP_TURBO)
    return np.where(known[..., None], colors[..., ::-1], 0).astype(np.uint8)


def encode_depth(data: Any, height: int, width: int, step: int, encoding: str,
                 depth_range: tuple[float, float]) -> bytes:
    """
    Return the pixels of a depth image message as a coloured JPEG.

    :param data: pixels of the message.
    :param height: rows.
    :param width: columns.
    :param step: bytes from one row to the next.
    :param encoding: `32FC1` (metres) or `16UC1` (millimetres).
    :param depth_range: depth [m] of the first and of the last colour.
    :raises ValueError: if the encoding is another, or the data does not fit the size.
    """
    if encoding == '32FC1':
        depth = _rows(data, height, width, step, np.float32, 1)
    elif encoding == '16UC1':
        depth = _rows(data, height, width, step, np.uint16, 1) * 1e-3
    else:
        raise ValueError(f'expected a depth image as 32FC1 or 16UC1, got {encoding!r}')
    return jpeg(colorize(depth, depth_range))
