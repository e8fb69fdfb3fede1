"""
Write rosbag2 bags (mcap) that survive a crash or a full disk.

A thread hands everything to the operating system twice a second and asks for it to be put on the
disk: killing the process loses at most that half second. `python3 -m liquid_trainer.recording
<bag>` completes a bag that was cut off, so that `ros2 bag` plays it; this project's own reader
needs no such help.
"""

import argparse
import contextlib
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from liquid_policy.interface import Interface

from . import mcap_file
from .message_types import add_types, definition_of, message_types

CHUNK_BYTES = 4 << 20


class RecordingError(OSError):
    """Recording has stopped; the text says why and what is left."""


class BagWriter:
    """
    Append messages to a bag. Use it as a context manager, or call `close`.

    :param path: folder to create.
    :param topics: an interface (all its topics), or type by topic; more with `add_topic`.
    :param interval: longest time a message stays in this process only [s].
    :param max_size: size at which the next file of the bag is begun [bytes]; 0 for never.
    :param compression: of chunks: `''`, `zstd` or `lz4`.
    :param durable: ask for data to be put on the disk too, against loss of power.
    :raises RecordingError: if the folder exists or cannot be written.
    :raises UnknownTypeError: if a message type has no definition.
    """

    def __init__(self, path: str | Path, topics: Interface | Mapping[str, str],
                 interval: float = 0.5, max_size: int = 0, compression: str = '',
                 durable: bool = True) -> None:
        if not interval > 0:
            raise ValueError(f'expected a positive interval, came {interval}')
        self.path = Path(path)
        self._interface = topics if isinstance(topics, Interface) else None
        types = topics.topics() if isinstance(topics, Interface) else dict(topics)
        self.types = message_types(types.values())
        self._channels: dict[str, mcap_file.Channel] = {}
        self._schemas: dict[str, mcap_file.Schema] = {}
        self._hashes: dict[str, str] = {}
        self._max_size, self._compression, self._durable = max_size, compression, durable
        self._lock = threading.RLock()
        self._error: RecordingError | None = None
        self._files: list[mcap_file.McapWriter] = []
        try:
            self.path.mkdir(parents=True)
            self._open_file()
        except FileExistsError:
            raise RecordingError(f'{self.path}: expected a new folder, came one that exists; '
                                 'choose another name') from None
        except OSError as error:
            raise RecordingError(f'{self.path}: cannot be written: {error.strerror}; choose '
                                 'another output folder') from None
        for topic, kind in types.items():
            self.add_topic(topic, kind)
        self._stop = threading.Event()
        self._keeper = threading.Thread(target=self._keep, args=(interval,), daemon=True,
                                        name='bag')
        self._keeper.start()

    @property
    def error(self) -> RecordingError | None:
        """Why recording has stopped, or None."""
        return self._error

    @property
    def message_count(self) -> int:
        """Messages taken so far."""
        return sum(file.content.message_count for file in self._files)

    @property
    def size(self) -> int:
        """Bytes taken so far."""
        return sum(file.size for file in self._files)

    @property
    def counts(self) -> dict[str, int]:
        """Messages taken so far by topic."""
        return {topic: sum(file.content.counts.get(channel.id, 0) for file in self._files)
                for topic, channel in self._channels.items()}

    def add_topic(self, topic: str, kind: str) -> None:
        """
        Announce a topic; again with the same type does nothing.

        :param topic: its name; a relative one is taken as in the root namespace.
        :param kind: message type, `package/msg/Name`.
        """
        topic = _absolute(topic)
        with self._lock:
            if topic in self._channels:
                known = self._channels[topic].schema.name
                if known != kind:
                    raise ValueError(f'{topic}: expected type {known}, came {kind}')
                return
            add_types(self.types, [kind])
            if kind not in self._schemas:
                text, self._hashes[kind] = definition_of(self.types, kind)
                self._schemas[kind] = mcap_file.Schema(len(self._schemas) + 1, kind, 'ros2msg',
                                                       text)
            channel = mcap_file.Channel(len(self._channels) + 1, self._schemas[kind], topic, {
                'offered_qos_profiles': '', 'topic_type_hash': self._hashes[kind]})
            self._channels[topic] = channel
            self._files[-1].add_channel(channel)

    def write(self, topic: str, log_time: int, message: Any) -> None:
        """
        Append one message.

        :param topic: an announced topic.
        :param log_time: time of receipt [ns].
        :param message: serialized message (bytes, as a raw subscription gives it), or a message
            made with `liquid_trainer.message_types.new_message`.
        :raises RecordingError: if recording has stopped, now or before.
        :raises ValueError: for a topic that is not announced.
        """
        channel = self._channels.get(topic) or self._channels.get(_absolute(topic))
        if channel is None:
            raise ValueError(f'expected one of the topics {list(self._channels)}, came {topic!r}')
        if not isinstance(message, (bytes, memoryview)):
            if not hasattr(message, '__msgtype__'):
                raise TypeError(f'{topic}: expected serialized bytes or a message of '
                                f'message_types, came {type(message).__name__}')
            message = self.types.serialize_cdr(message, channel.schema.name)
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._max_size and self._files[-1].size > self._max_size:
                self._guarded(self._next_file)
            file = self._files[-1]
            file.add_message(channel.id, log_time, message)
            if file.pending > CHUNK_BYTES:
                self._guarded(file.end_chunk)

    def flush(self) -> None:
        """
        Hand everything to the operating system.

        :raises RecordingError: if that fails.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            self._guarded(self._files[-1].end_chunk)

    def close(self) -> None:
        """
        Complete the bag; calling it again does nothing.

        :raises RecordingError: if that fails; what the disk took is readable.
        """
        if self._stop.is_set():
            return
        self._stop.set()
        self._keeper.join()
        with self._lock:
            failed = self._error
            if failed is not None:
                # The index is small and may still fit; without it the bag is readable too.
                with contextlib.suppress(OSError):
                    self._files[-1].close(self._metadata())
                with contextlib.suppress(OSError):
                    self._write_metadata()
                raise failed
            self._guarded(lambda: self._files[-1].close(self._metadata()))
            self._guarded(self._write_metadata)

    def __enter__(self) -> 'BagWriter':
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if kind is None:
            self.close()
        else:
            with contextlib.suppress(RecordingError):
                self.close()

    def _keep(self, interval: float) -> None:
        """Flush and synchronise until closed."""
        while not self._stop.wait(interval):
            with contextlib.suppress(RecordingError):
                self.flush()
            if self._durable and self._error is None:
                # Outside the lock: a slow disk must not hold up who writes.
                with contextlib.suppress(OSError, ValueError):
                    os.fdatasync(self._files[-1].fileno())

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except OSError as error:
            self._error = RecordingError(
                error.errno, f'{self.path}: recording stopped: {error.strerror or error}; the bag '
                'is readable up to at most a second before; free space or choose another output '
                'folder')
            raise self._error from None

    def _open_file(self) -> None:
        path = self.path / f'{self.path.name}_{len(self._files)}.mcap'
        file = mcap_file.McapWriter(path, self._compression)
        for channel in self._channels.values():
            file.add_channel(channel)
        self._files.append(file)

    def _next_file(self) -> None:
        self._files[-1].close(self._metadata())
        self._open_file()

    def _metadata(self) -> dict[str, dict[str, str]]:
        if self._interface is None:
            return {}
        return {'interface': {'yaml': self._interface.to_yaml()}}

    def _write_metadata(self) -> None:
        _write_metadata(self.path, [(file.path, file.content) for file in self._files])


def recover(path: str | Path) -> int:
    """
    Complete a bag of mcap files that was cut off, so that every rosbag2 tool reads it.

    :param path: the bag's folder.
    :return: how many messages it holds.
    :raises RecordingError: if there is no mcap file to recover.
    """
    path = Path(path)
    files = bag_files(path, '.mcap')
    if not files:
        raise RecordingError(f'{path}: expected a folder with .mcap files, found none')
    try:
        contents = [(file, mcap_file.repair(file)) for file in files]
    except mcap_file.McapError as error:
        raise RecordingError(str(error)) from None
    _write_metadata(path, contents)
    return sum(content.message_count for _, content in contents)


def bag_files(path: Path, *endings: str) -> list[Path]:
    """Give the storage files of a bag's folder in the order they were written."""
    def key(file: Path) -> tuple[int, str]:
        number = file.name.partition('.')[0].rpartition('_')[2]
        return (int(number) if number.isdigit() else -1, file.name)
    if not path.is_dir():
        return []
    return sorted((file for file in path.iterdir() if file.name.endswith(endings)), key=key)


def _write_metadata(path: Path, files: list[tuple[Path, mcap_file.Content]]) -> None:
    """Write metadata.yaml of rosbag2, version 9, as Jazzy does."""
    totals: dict[str, tuple[mcap_file.Channel, int]] = {}
    for _, content in files:
        for number, channel in content.channels.items():
            _, count = totals.get(channel.topic, (channel, 0))
            totals[channel.topic] = (channel, count + content.counts.get(number, 0))
    filled = [content for _, content in files if content.message_count]
    start = min((content.start_time for content in filled), default=0)
    end = max((content.end_time for content in filled), default=0)
    data = {'rosbag2_bagfile_information': {
        'version': 9, 'storage_identifier': 'mcap',
        'duration': {'nanoseconds': end - start},
        'starting_time': {'nanoseconds_since_epoch': start},
        'message_count': sum(content.message_count for _, content in files),
        'topics_with_message_count': [{
            'topic_metadata': {
                'name': topic, 'type': channel.schema.name, 'serialization_format': 'cdr',
                'offered_qos_profiles': [],
                'type_description_hash': channel.metadata.get('topic_type_hash', '')},
            'message_count': count} for topic, (channel, count) in totals.items()],
        'compression_format': '', 'compression_mode': '',
        'relative_file_paths': [file.name for file, _ in files],
        'files': [{
            'path': file.name,
            'starting_time': {'nanoseconds_since_epoch': content.start_time},
            'duration': {'nanoseconds': content.end_time - content.start_time},
            'message_count': content.message_count} for file, content in files],
        'custom_data': None, 'ros_distro': 'jazzy'}}
    temporary = path / 'metadata.yaml.part'
    with open(temporary, 'w', encoding='utf-8') as file:
        yaml.safe_dump(data, file, sort_keys=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path / 'metadata.yaml')


def _absolute(topic: str) -> str:
    return topic if topic.startswith('/') else f'/{topic}'


def main(argv: list[str] | None = None) -> int:
    """Complete bags that were cut off."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument('bags', nargs='+', type=Path, help='folders of bags')
    code = 0
    for bag in parser.parse_args(argv).bags:
        try:
            print(f'{bag}: {recover(bag)} messages')
        except OSError as error:
            print(f'error: {error}', file=sys.stderr)
            code = 1
    return code


if __name__ == '__main__':
    sys.exit(main())
