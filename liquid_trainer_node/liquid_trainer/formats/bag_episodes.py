"""Demonstrations to and from rosbag2 bags, by an interface."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from liquid_policy.conversion import fill_message
from liquid_policy.interface import ActionSpec, ImageSpec, Interface, SourceSpec
from liquid_trainer.bag_windows import (
    END_FAILURE,
    END_SUCCESS,
    EPISODE_TOPIC,
    EPISODE_TYPE,
    START,
)
from liquid_trainer.bags import ReadSettings, read_episodes
from liquid_trainer.message_types import new_message
from liquid_trainer.recording import BagWriter

from .dataset import NANOSECONDS, Dataset, Demonstration, Feature, FormatError, Layout, Picture
from .interfaces import action_columns, columns_of, plain_name

_ENDS = {'success': END_SUCCESS, 'failure': END_FAILURE}
# A gap of more than this many periods ends an episode: the other formats know even steps only.
# One missed tick may pass.
_MOST_PERIODS = 2.5
_LONGEST = 3600.0       # [s]


def write_bag(folder: Path, episode: Demonstration, plan: Plan, compression: str = '') -> int:
    """
    Write one episode as a bag, and return its messages.

    What was known at a step was measured before it, by as long as the interface says messages
    take; reading the bag finds it at the same step again. Actions come on the demonstration
    topics.

    :param folder: the bag; takes its name when it is complete.
    :param episode: to be written.
    :param plan: which number goes where.
    :param compression: of the bag, `''`, `zstd` or `lz4`.
    :raises FormatError: if the images cannot be read.
    """
    beside = folder.with_name(f'.{folder.name}.part')
    shutil.rmtree(beside, ignore_errors=True)
    if folder.exists():
        raise FormatError(f'{folder}: expected a new bag, came one that exists; choose another '
                          'output folder')
    topics = {topic: source.type for topic, source, _ in plan.sources}
    topics.update({topic: action.type for topic, action, _ in plan.actions})
    topics.update({image.topic: image.type for _, image in plan.images})
    # A bag's files are called after its folder, and that is renamed when the bag is whole.
    inner = beside / folder.name
    beside.mkdir(parents=True)
    try:
        with BagWriter(inner, {**topics, EPISODE_TOPIC: EPISODE_TYPE}, durable=False,
                       compression=compression) as writer:
            _write(writer, episode, plan)
        count = writer.message_count
        inner.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return count


class Plan:
    """
    Which number of a data set goes into which message of an interface.

    :param dataset: what is written.
    :param interface: of the robot.
    :raises FormatError: if the interface asks for what the data set does not have.
    """

    def __init__(self, dataset: Dataset, interface: Interface) -> None:
        layout, source = dataset.layout, dataset.source
        self.sources = []
        # How long before a step what is known then was measured [ns].
        self.delays: dict[str, int] = {}
        for topic, specs in _by_topic(interface.observations).items():
            spec = _merged(specs)
            latest = max(part.latency for part in specs)
            self.delays[topic] = 0 if interface.clock_source in specs else _ns(latest)
            names = [name for part in specs for name in part.names]
            self.sources.append((topic, spec, columns_of(layout, names, 'observations', source)))
        self.actions = []
        for action in interface.actions.values():
            self.actions.append((action.demonstration, action,
                                 action_columns(layout, action.names, source)))
        cameras = {plain_name(picture.name): picture.name for picture in layout.pictures}
        self.images: list[tuple[str, ImageSpec]] = []
        self.image_delay = _ns(interface.features.latency if interface.features else 0.0)
        for name, image in interface.images.items():
            found = next((cameras[full] for full in (name, f'{name}_image', f'{name}_depth')
                          if full in cameras), None)
            if found is None:
                raise FormatError(f'{source}: expected images called {name!r}, as the interface '
                                  f'says, came {list(cameras)}')
            if image.encoding not in ('rgb8', 'bgr8', '32FC1'):
                raise FormatError(f'images.{name}: expected rgb8, bgr8 or 32FC1 to write, came '
                                  f'{image.encoding}')
            self.images.append((found, image))


def _ns(seconds: float) -> int:
    return round(seconds * NANOSECONDS)


def _by_topic(specs: Mapping[str, SourceSpec]) -> dict[str, list[SourceSpec]]:
    groups: dict[str, list[SourceSpec]] = {}
    for spec in specs.values():
        groups.setdefault(spec.topic, []).append(spec)
    return groups


def _merged(specs: Sequence[SourceSpec]) -> SourceSpec:
    """Give one spec for all numbers that travel in the same message."""
    return replace(specs[0], fields=tuple(path for spec in specs for path in spec.fields),
                   units=tuple(unit for spec in specs for unit in spec.units), names=())


def _write(writer: BagWriter, episode: Demonstration, plan: Plan) -> None:
    types = writer.types

    def mark(kind: int, stamp: int) -> None:
        message = new_message(types, EPISODE_TYPE, kind=kind, episode=episode.name,
                              note=episode.task)
        writer.write(EPISODE_TOPIC, stamp, _stamped(message, stamp))

    def send(topic: str, spec: SourceSpec | ActionSpec, stamp: int, values: np.ndarray) -> None:
        message = fill_message(spec, new_message(types, spec.type), values)
        writer.write(topic, stamp, _stamped(message, stamp - plan.delays.get(topic, 0)))

    taken = [(topic, spec, np.stack([episode.vectors[feature][:, column]
                                     for feature, column in places], axis=1))
             for topic, spec, places in plan.sources]
    done = [(topic, spec, np.asarray(episode.actions)[:, places])
            for topic, spec, places in plan.actions]
    streams = [(spec, episode.frames[name]()) for name, spec in plan.images]
    marked = episode.outcome in _ENDS or bool(episode.task)
    if marked:
        mark(START, int(episode.stamps[0]))
    for step, stamp in enumerate(map(int, episode.stamps)):
        for image, frames in streams:
            frame = next(frames, None)
            if frame is None:
                raise FormatError(f'{episode.name}: {image.name}: expected {len(episode)} images, '
                                  f'one per step, came {step}')
            writer.write(image.topic, stamp, _image(types, image, frame,
                                                    stamp - plan.image_delay))
        for topic, spec, values in taken:
            send(topic, spec, stamp, values[step])
        for topic, action, values in done:
            send(topic, action, stamp, values[step])
    if episode.outcome in _ENDS:
        mark(_ENDS[episode.outcome], int(episode.stamps[-1]))


def _stamped(message: Any, stamp: int) -> Any:
    header = getattr(message, 'header', None)
    if header is not None:
        header.stamp.sec, header.stamp.nanosec = divmod(stamp, NANOSECONDS)
    return message


def _image(types: Any, spec: ImageSpec, frame: np.ndarray, stamp: int) -> Any:
    height, width = spec.message_size
    if frame.shape[:2] != (height, width):
        import cv2
        # Averages when shrinking; depth is picked, since an average of two distances is neither.
        way = cv2.INTER_NEAREST if spec.is_depth else cv2.INTER_AREA
        frame = cv2.resize(frame, (width, height), interpolation=way)
    if spec.is_depth:
        frame = np.asarray(frame, '<f4')
    elif spec.encoding == 'bgr8':
        frame = frame[..., ::-1]
    data = np.frombuffer(np.ascontiguousarray(frame).tobytes(), np.uint8)
    message = new_message(types, spec.type, height=height, width=width,
                          encoding=spec.encoding, is_bigendian=0,
                          step=len(data) // height, data=data)
    return _stamped(message, stamp)


def bag_layout(interface: Interface, every: int = 1) -> Layout:
    """
    Return the layout of what is read from bags of an interface.

    :param every: of how many ticks one is taken.
    :raises FormatError: if that is not positive.
    """
    if every < 1:
        raise FormatError(f'expected to take one of 1 or more ticks, came {every}')
    features = interface.features
    pictures = () if features is None else tuple(
        Picture(name, spec.height, spec.width, spec.is_depth)
        for name, spec in interface.images.items() if name in features.images)
    return Layout(interface.robot, interface.rate / every, tuple(
        Feature(name, spec.names, spec.units) for name, spec in interface.observations.items()),
        Feature('action', interface.action_names, interface.action_units), pictures)


def read_bags(paths: Sequence[str | Path], interface: Interface, every: int = 1,
              progress: Callable[[int, int], None] | None = None,
              report: Callable[[str], None] | None = None) -> Iterator[Demonstration]:
    """
    Read episodes of bags on the control clock, evenly spaced.

    :param paths: bags, or folders of bags.
    :param interface: of the robot.
    :param every: take one of so many ticks.
    :param progress: called with bytes read and bytes in all.
    :param report: called with what is worth knowing.
    :raises BagError: for a bag that cannot be used.
    """
    settings = ReadSettings(max_gap=_MOST_PERIODS / interface.rate, longest=_LONGEST)
    layout, used = bag_layout(interface, every), dict[str, int]()
    for episode in read_episodes(paths, interface, settings, progress, report):
        # Parts of one episode, cut at a gap, share its name.
        part = used[episode.name] = used.get(episode.name, -1) + 1
        rows = np.arange(0, len(episode), every)
        yield Demonstration(
            episode.name if not part else f'{episode.name}_{part}', episode.stamps[rows],
            {name: episode.vectors[rows, interface.slice_of(name)]
             for name in interface.observations}, episode.actions[rows],
            {picture.name: _known(episode.images[picture.name], episode.image_index[rows])
             for picture in layout.pictures},
            episode.task, episode.outcome)


def _known(images: np.ndarray, index: np.ndarray) -> Callable[[], Iterator[np.ndarray]]:
    return lambda: (images[max(int(number), 0)] for number in index)
