"""
Frames of video files, and video files of frames, by PyAV.

OpenCV's wheels hold no AV1 decoder that runs without a graphics card, and AV1 is what LeRobot
writes; hence PyAV.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .dataset import FormatError

# Name for people: encoder, and its options besides the quality.
CODECS = {
    'av1': ('libsvtav1', {'preset': '8'}),
    'h264': ('libx264', {'preset': 'medium'}),
}
QUALITY = 30        # constant rate factor of both encoders: lower is better


class MissingFileError(FormatError):
    """A file that the data set names is not there."""


def av_module() -> Any:
    """
    Return PyAV.

    :raises FormatError: if it is not installed.
    """
    os.environ.setdefault('SVT_LOG', '1')      # the encoder's own reports: errors only
    try:
        import av
    except ImportError as error:
        raise FormatError('videos need PyAV; run: pip install -r docker/requirements-formats.txt, '
                          'or leave the images out') from error
    return av


def frames(path: Path, count: int, rate: float, start: float = 0.0) -> Iterator[np.ndarray]:
    """
    Give the frames of an episode, uint8 `(height, width, 3)`.

    :param path: the video; several episodes may lie in one file.
    :param count: frames of the episode.
    :param rate: [Hz]; the frames must lie this evenly.
    :param start: of the episode in the file [s].
    :raises MissingFileError: if there is no such file.
    :raises FormatError: if it is damaged, or its frames are not where they should be.
    """
    av = av_module()
    if not path.is_file():
        raise MissingFileError(f'{path}: expected a video, came nothing of this name')
    given = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise FormatError(f'{path}: expected a whole video, came a file without one; copy '
                                  'or download it again')
            stream = container.streams.video[0]
            if start > 0:       # to the key frame before; what comes too early is dropped below
                container.seek(int(start / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                wanted = start + given / rate
                if frame.time < wanted - 0.5 / rate:
                    continue
                if frame.time > wanted + 0.5 / rate:
                    raise FormatError(f'{path}: expected a frame at {wanted:.4f} s, came one at '
                                      f'{frame.time:.4f} s; frames are missing')
                yield frame.to_ndarray(format='rgb24')
                given += 1
                if given == count:
                    return
    except av.error.FFmpegError as error:
        raise FormatError(f'{path}: expected a whole video, came: {error}; copy or download it '
                          'again') from error
    raise FormatError(f'{path}: expected {count} frames from {start:g} s on, came {given}; the '
                      'video is cut off')


class VideoWriter:
    """
    Append frames to a video. Use it as a context manager.

    :param path: file to write, ending in `.mp4`.
    :param height: rows; must be even.
    :param width: columns; must be even.
    :param rate: frames per second.
    :param codec: one of `CODECS`.
    :param quality: constant rate factor, 0 to 51; lower is better.
    :raises FormatError: for an odd size or an unknown codec.
    """

    def __init__(self, path: Path, height: int, width: int, rate: float, codec: str = 'av1',
                 quality: int = QUALITY) -> None:
        av = av_module()
        if codec not in CODECS:
            raise FormatError(f'expected a codec of {list(CODECS)}, came {codec!r}')
        if height % 2 or width % 2:
            raise FormatError(f'expected images of even height and width for video, came '
                              f'{height}x{width}; store them as png')
        name, options = CODECS[codec]
        path.parent.mkdir(parents=True, exist_ok=True)
        self.count = 0
        self._av, self._rate = av, Fraction(rate).limit_denominator(1001)
        self._container = av.open(str(path), 'w')
        self._stream = self._container.add_stream(name, rate=self._rate, options={
            **options, 'crf': str(quality)})
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = 'yuv420p'
        # Few frames between key frames: windows of training start anywhere.
        self._stream.gop_size = 2
        self._stream.codec_context.time_base = 1 / self._rate

    def add(self, frame: np.ndarray) -> None:
        """Append one frame, uint8 `(height, width, 3)`."""
        picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format='rgb24')
        picture.pts, picture.time_base = self.count, 1 / self._rate
        self._container.mux(self._stream.encode(picture))
        self.count += 1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if kind is None:
            self._container.mux(self._stream.encode(None))
        self._container.close()
