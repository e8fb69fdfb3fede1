"""A robot whose camera sends what image_transport makes of its images."""

import struct
from dataclasses import replace

import cv2
import numpy as np

from liquid_policy.interface import COMPRESSED_IMAGE_TYPE, Interface

# depth_quantization and depth_max of compressed_depth_image_transport, as they are by default.
SCALE = np.float32(100.0 * 101.0)
OFFSET = np.float32(1.0) - SCALE / np.float32(10.0)


def compressed_interface(interface: Interface) -> Interface:
    """Give the interface of the same robot with compressed images."""
    ending = {True: 'compressedDepth', False: 'compressed'}
    return replace(interface, images={
        name: replace(spec, type=COMPRESSED_IMAGE_TYPE,
                      topic=f'{spec.topic}/{ending[spec.is_depth]}')
        for name, spec in interface.images.items()})


def fields_of(spec, pixels: np.ndarray, codec: str = 'jpeg') -> dict:
    """
    Give the fields of a CompressedImage.

    :param spec: of the image.
    :param pixels: as `image_from_message` gives them.
    :param codec: of colour, `jpeg` or `png`.
    """
    if spec.is_depth:
        known = np.where(pixels > 0, pixels, 1.0).astype(np.float32)
        inverse = np.where(pixels > 0, SCALE / known + OFFSET, 0).astype(np.uint16)
        data = struct.pack('<iff', 0, SCALE, OFFSET) + cv2.imencode('.png', inverse)[1].tobytes()
        return {'format': '32FC1; compressedDepth png', 'data': np.frombuffer(data, np.uint8)}
    data = cv2.imencode(f'.{codec}', np.ascontiguousarray(pixels[..., ::-1]))[1].reshape(-1)
    return {'format': f'rgb8; {codec} compressed bgr8', 'data': data}
