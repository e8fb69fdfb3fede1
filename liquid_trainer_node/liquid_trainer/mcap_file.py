"""
MCAP files: written so that what is on disk is always readable, read however they end.

The format is at https://mcap.dev/spec. A file is a row of records; messages are grouped in chunks,
and an index at the end serves random access. A file whose writer was killed lacks that index and
may end within a record: `read` gives everything before that, `repair` adds the index.
"""

import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import lz4.frame

try:
    from compression import zstd
except ImportError:
    from backports import zstd

MAGIC = b'\x89MCAP0\r\n'
HEADER, FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, MESSAGE_INDEX = range(1, 8)
CHUNK_INDEX, STATISTICS, METADATA, METADATA_INDEX, SUMMARY_OFFSET, DATA_END = (
    0x08, 0x0B, 0x0C, 0x0D, 0x0E, 0x0F)

NANOSECONDS = 1_000_000_000

_RECORD = struct.Struct('<BQ')
_MESSAGE = struct.Struct('<BQHIQQ')
_MESSAGE_BODY = struct.Struct('<HIQQ')
_CHUNK_HEAD = struct.Struct('<QQQI')

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    '': bytes, 'zstd': lambda data: zstd.compress(data, 1),
    'lz4': lambda data: lz4.frame.compress(data)}
DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    '': lambda data: data, 'zstd': lambda data: zstd.decompress(data),
    'lz4': lambda data: lz4.frame.decompress(data)}


class McapError(ValueError):
    """A file that is no ROS 2 MCAP at all."""


@dataclass(frozen=True)
class Schema:
    """A message definition."""

    id: int
    name: str
    encoding: str
    text: str

    def record(self) -> bytes:
        """Give the record that holds it."""
        return _record(SCHEMA, struct.pack('<H', self.id) + _text(self.name)
                       + _text(self.encoding) + _text(self.text))


@dataclass(frozen=True)
class Channel:
    """A topic."""

    id: int
    schema: Schema
    topic: str
    metadata: dict[str, str] = field(default_factory=dict)
    encoding: str = 'cdr'

    def record(self) -> bytes:
        """Give the record that holds it."""
        return _record(CHANNEL, struct.pack('<HH', self.id, self.schema.id) + _text(self.topic)
                       + _text(self.encoding) + _map(self.metadata))


@dataclass
class ChunkIndex:
    """Where a chunk lies and what it holds."""

    start_time: int
    end_time: int
    offset: int
    length: int
    index_offsets: dict[int, int]
    index_length: int
    compression: str
    compressed_size: int
    size: int

    def record(self) -> bytes:
        """Give the record that holds it."""
        offsets = b''.join(struct.pack('<HQ', *entry) for entry in self.index_offsets.items())
        return _record(CHUNK_INDEX, struct.pack(
            '<QQQQ', self.start_time, self.end_time, self.offset, self.length)
            + struct.pack('<I', len(offsets)) + offsets + struct.pack('<Q', self.index_length)
            + _text(self.compression) + struct.pack('<QQ', self.compressed_size, self.size))


class Place(NamedTuple):
    """
    Where reading may begin.

    :param time: earliest log time of what lies there [ns].
    :param offset: of the record [bytes].
    :param channels: with messages there; None where the file does not say.
    """

    time: int
    offset: int
    channels: frozenset[int] | None = None


@dataclass
class Content:
    """
    What a file holds in all; kept by the writer, found by `read`.

    :param channels: topics by number.
    :param counts: messages by channel.
    :param chunks: index of the chunks.
    :param start_time: earliest log time [ns].
    :param end_time: latest log time [ns].
    :param complete: whether the file has its footer.
    :param good_until: where whole records end [bytes].
    :param damaged: where chunks lie whose content is not what was written [bytes].
    :param places: where chunks begin, or single messages half a second apart.
    :param position: place of the message given last: of its chunk [bytes], and its number there.
    """

    channels: dict[int, Channel] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    chunks: list[ChunkIndex] = field(default_factory=list)
    start_time: int = 0
    end_time: int = 0
    complete: bool = False
    good_until: int = 0
    damaged: set[int] = field(default_factory=set)
    places: list['Place'] = field(default_factory=list)
    position: tuple[int, int] = (0, 0)

    @property
    def message_count(self) -> int:
        """How many messages there are."""
        return sum(self.counts.values())

    def add(self, channel: int, time: int) -> None:
        """Count one message."""
        if not self.counts or time < self.start_time:
            self.start_time = time
        if time > self.end_time:
            self.end_time = time
        self.counts[channel] = self.counts.get(channel, 0) + 1


class McapWriter:
    """
    Append messages to one file, in chunks.

    After `end_chunk` returns, all messages so far are with the operating system: killing this
    process loses none of them. When writing fails (full disk) the file is cut back to its last
    whole chunk and stays readable.

    :param path: file to create.
    :param compression: `''`, `zstd` or `lz4`.
    :raises FileExistsError: if there is such a file.
    """

    def __init__(self, path: Path, compression: str = '') -> None:
        if compression not in COMPRESS:
            raise ValueError(f'expected compression from {tuple(COMPRESS)}, came {compression!r}')
        self.path = path
        self.content = Content()
        self._compression = compression
        self._compress = COMPRESS[compression]
        self._file: BinaryIO = open(path, 'xb', buffering=0)  # noqa: SIM115
        self._parts: list[bytes | memoryview] = []
        self._pending = 0
        self._index: dict[int, list[tuple[int, int]]] = {}
        self._start_time = self._end_time = 0
        self._good = 0
        self._write(MAGIC + _record(HEADER, _text('ros2') + _text('liquid_trainer')))

    @property
    def size(self) -> int:
        """Bytes written and pending."""
        return self._good + self._pending

    @property
    def pending(self) -> int:
        """Bytes of the chunk that is not yet written."""
        return self._pending

    def fileno(self) -> int:
        """File descriptor, to synchronise with the disk."""
        return self._file.fileno()

    def add_channel(self, channel: Channel) -> None:
        """Announce a topic; its schema is written the first time it is used."""
        known = {other.schema.id for other in self.content.channels.values()}
        if channel.schema.id not in known:
            self._append(channel.schema.record())
        self._append(channel.record())
        self.content.channels[channel.id] = channel

    def add_message(self, channel: int, time: int, data: bytes | memoryview) -> None:
        """
        Append a message to the pending chunk.

        :param channel: id of an announced channel.
        :param time: log time [ns].
        :param data: serialized message; not copied, so it must not change until the chunk ends.
        """
        if not self._index:
            self._start_time = self._end_time = time
        self._start_time = min(self._start_time, time)
        self._end_time = max(self._end_time, time)
        self._index.setdefault(channel, []).append((time, self._pending))
        head = _MESSAGE.pack(MESSAGE, _MESSAGE_BODY.size + len(data), channel, 0, time, time)
        self._append(head)
        self._append(data)
        self.content.add(channel, time)

    def end_chunk(self) -> None:
        """
        Write the pending chunk.

        :raises OSError: if that fails; the chunk is then lost, the file is good without it.
        """
        if not self._parts:
            return
        raw = b''.join(self._parts)
        data = self._compress(raw)
        head = _CHUNK_HEAD.pack(self._start_time, self._end_time, len(raw), zlib.crc32(raw)) + \
            _text(self._compression) + struct.pack('<Q', len(data))
        size = _RECORD.size + len(head) + len(data)
        offset = self._good
        indexes, offsets = _message_indexes(self._index, offset + size)
        chunk = ChunkIndex(self._start_time, self._end_time, offset, size, offsets, len(indexes),
                           self._compression, len(data), len(raw))
        index, self._parts, self._pending, self._index = self._index, [], 0, {}
        try:
            self._write(_RECORD.pack(CHUNK, size - _RECORD.size) + head, data, indexes)
        except OSError:
            for channel, entries in index.items():
                self.content.counts[channel] -= len(entries)
            raise
        self.content.chunks.append(chunk)

    def close(self, metadata: dict[str, dict[str, str]] | None = None) -> None:
        """
        Write what is pending and the index.

        :param metadata: metadata records by name.
        :raises OSError: if that fails; the file is closed and readable without.
        """
        if self._file.closed:
            return
        try:
            self.end_chunk()
            self._write(_ending(self.content, metadata or {}, self._good))
        finally:
            self._file.close()

    def _append(self, data: bytes | memoryview) -> None:
        self._parts.append(data)
        self._pending += len(data)

    def _write(self, *parts: bytes) -> None:
        """Write all or nothing."""
        try:
            for part in parts:
                view = memoryview(part)
                while view:  # a raw file may take less than it is given
                    view = view[self._file.write(view):]
        except OSError:
            self._file.seek(self._good)
            self._file.truncate()
            raise
        self._good += sum(len(part) for part in parts)


def read(path: Path, content: Content | None = None,
         wanted: Callable[[Channel], bool] | None = None,
         progress: Callable[[int], None] | None = None,
         begin: int = 0, offsets: Iterable[int] | None = None
         ) -> Iterator[tuple[Channel, int, memoryview]]:
    """
    Give the messages of a file in the order they were written, also of one that was cut off.

    :param path: an MCAP file.
    :param content: filled in while reading, with the counts of the wanted messages.
    :param wanted: says for each channel whether its messages are given; all if left out.
    :param progress: called with the bytes read so far.
    :param begin: offset of a `Place` to begin at; `content` must know the channels then.
    :param offsets: of the only records to read, with the same condition.
    :return: channel, log time [ns], serialized message.
    :raises McapError: if it is no MCAP file of ROS 2.
    """
    content = content if content is not None else Content()
    schemas: dict[int, Schema] = {}
    schemas.update((channel.schema.id, channel.schema) for channel in content.channels.values())
    chosen = {number for number, channel in content.channels.items()
              if wanted is None or wanted(channel)}
    only = None if offsets is None else iter(offsets)
    with open(path, 'rb') as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise McapError(f'{path}: expected an MCAP file, came something else')
        content.good_until = len(MAGIC)
        end = os.fstat(file.fileno()).st_size
        if begin:
            file.seek(begin)
        while True:
            if only is not None:
                following = next(only, None)
                if following is None:
                    return
                file.seek(following)
            start = file.tell()
            head = file.read(_RECORD.size)
            if len(head) < _RECORD.size:
                return
            kind, size = _RECORD.unpack(head)
            if file.tell() + size > end:
                return
            if kind in (CHUNK, SCHEMA, CHANNEL, MESSAGE, HEADER, FOOTER):
                body = file.read(size)
            else:
                file.seek(size, 1)
            if kind == FOOTER:
                content.complete = file.read(len(MAGIC)) == MAGIC
                return
            if kind == HEADER:
                try:
                    profile, _ = _read_text(body, 0)
                except (struct.error, UnicodeDecodeError):
                    profile = 'unreadable'
                if profile != 'ros2':
                    raise McapError(f"{path}: expected profile 'ros2', came {profile!r}")
            elif kind == CHUNK:
                _note_place(content, start, body)
                try:
                    raw = _unpack_chunk(body)
                except _BadChunkError:
                    content.damaged.add(start)
                else:
                    yield from _records(raw, schemas, content, chosen, wanted, start)
            elif kind in (SCHEMA, CHANNEL, MESSAGE):
                if kind == MESSAGE:
                    _note_place(content, start, body[6:], NANOSECONDS // 2)
                yield from _records(head + body, schemas, content, chosen, wanted, start)
            where = file.tell()
            if kind in (CHUNK, MESSAGE, SCHEMA, CHANNEL, HEADER, MESSAGE_INDEX):
                content.good_until = where
            if progress is not None:
                progress(where)


def _note_place(content: Content, offset: int, times: bytes, apart: int = 0) -> None:
    """Take note of a chunk or message whose log time stands first in `times`."""
    if len(times) < 8:
        return
    (time,) = struct.unpack_from('<Q', times)
    if not content.places or (offset > content.places[-1].offset
                              and time >= content.places[-1].time + apart):
        content.places.append(Place(time, offset))


def summary(path: Path) -> Content | None:
    """Give channels and counts from a file's index at once, or None when it has none."""
    with open(path, 'rb') as file:
        size = file.seek(0, 2)
        if size < 45:
            return None
        file.seek(-37, 2)
        tail = file.read()
        if tail[-8:] != MAGIC or tail[0] != FOOTER:
            return None
        (start,) = struct.unpack_from('<Q', tail, 9)
        if not 0 < start < size:
            return None
        file.seek(start)
        data = file.read(size - 37 - start)
    try:
        content = _read_summary(data)
    except (struct.error, UnicodeDecodeError):  # damaged: the records themselves may be good
        return None
    if content is not None and any(place.offset >= start for place in content.places):
        return None
    return content


def _read_summary(data: bytes) -> Content | None:
    content = Content(complete=True)
    schemas: dict[int, Schema] = {}
    counted = False
    same: dict[frozenset[int], frozenset[int]] = {}
    for kind, body in _split(data):
        if kind == SCHEMA:
            schema = _read_schema(body)
            schemas[schema.id] = schema
        elif kind == CHANNEL:
            channel = _read_channel(body, schemas)
            content.channels[channel.id] = channel
        elif kind == CHUNK_INDEX:
            time, _, offset, _, length = struct.unpack_from('<QQQQI', body)
            channels = frozenset(number for number, _ in
                                 struct.iter_unpack('<HQ', body[36:36 + length]))
            content.places.append(Place(time, offset, same.setdefault(channels, channels)
                                        if channels else None))
        elif kind == STATISTICS:
            content.start_time, content.end_time = struct.unpack_from('<QQ', body, 26)
            (length,) = struct.unpack_from('<I', body, 42)
            content.counts = dict(struct.iter_unpack('<HQ', body[46:46 + length]))
            counted = True
    content.places.sort(key=lambda place: place.offset)
    return content if counted and content.channels and content.places else None


def repair(path: Path, metadata: dict[str, dict[str, str]] | None = None) -> Content:
    """
    Complete a file that was cut off: drop the torn end, add the index.

    :param path: an MCAP file; one that is complete is left as it is.
    :param metadata: metadata records by name.
    :return: what it holds.
    """
    content = Content()
    for _ in read(path, content):
        pass
    if content.complete:
        return content
    content.chunks = [chunk for chunk in _chunk_indexes(path, content.good_until)
                      if chunk.offset not in content.damaged]
    end = content.good_until
    with open(path, 'r+b') as file:
        if content.chunks:  # its index may be cut off: make it anew
            last = content.chunks[-1]
            end = last.offset + last.length
            file.seek(last.offset + _RECORD.size)
            raw = _unpack_chunk(file.read(last.length - _RECORD.size))
            indexes, last.index_offsets = _message_indexes(_index_of(raw), end)
            last.index_length = len(indexes)
            file.seek(end)
            file.write(indexes)
            end += len(indexes)
        file.truncate(end)
        file.seek(end)
        file.write(_ending(content, metadata or {}, end))
    content.complete = True
    return content


class _BadChunkError(Exception):
    """A chunk that does not hold what it says."""


def _unpack_chunk(body: bytes) -> bytes:
    try:
        _, _, size, crc = _CHUNK_HEAD.unpack_from(body)
        compression, where = _read_text(body, _CHUNK_HEAD.size)
        (length,) = struct.unpack_from('<Q', body, where)
        raw = DECOMPRESS[compression](body[where + 8:where + 8 + length])
    except Exception as error:
        raise _BadChunkError from error
    if len(raw) != size or (crc and zlib.crc32(raw) != crc):
        raise _BadChunkError
    return raw


def _records(raw: bytes, schemas: dict[int, Schema], content: Content, chosen: set[int],
             wanted: Callable[[Channel], bool] | None, start: int
             ) -> Iterator[tuple[Channel, int, memoryview]]:
    view = memoryview(raw)
    where, end, count = 0, len(raw), 0
    channels = content.channels
    while where + _RECORD.size <= end:
        kind, size = _RECORD.unpack_from(raw, where)
        where += _RECORD.size
        if where + size > end:
            return
        if kind == MESSAGE:
            if size < _MESSAGE_BODY.size:
                return
            number, _, time, _ = _MESSAGE_BODY.unpack_from(raw, where)
            count += 1
            if number in chosen:
                content.add(number, time)
                content.position = start, count
                yield channels[number], time, view[where + _MESSAGE_BODY.size:where + size]
        elif kind in (SCHEMA, CHANNEL):
            try:
                _learn(kind, raw[where:where + size], schemas, channels, chosen, wanted)
            except (struct.error, UnicodeDecodeError):
                content.damaged.add(content.good_until)
        where += size


def _learn(kind: int, body: bytes, schemas: dict[int, Schema], channels: dict[int, Channel],
           chosen: set[int], wanted: Callable[[Channel], bool] | None) -> None:
    """Take note of a definition or a topic."""
    if kind == SCHEMA:
        schema = _read_schema(body)
        schemas[schema.id] = schema
        return
    channel = _read_channel(body, schemas)
    channels[channel.id] = channel
    if wanted is None or wanted(channel):
        chosen.add(channel.id)


def _chunk_indexes(path: Path, end: int) -> Iterator[ChunkIndex]:
    with open(path, 'rb') as file:
        file.seek(len(MAGIC))
        current: ChunkIndex | None = None
        while file.tell() + _RECORD.size <= end:
            offset = file.tell()
            kind, size = _RECORD.unpack(file.read(_RECORD.size))
            after = offset + _RECORD.size + size
            if kind == CHUNK:
                if current is not None:
                    yield current
                head = file.read(min(size, 256))
                start, stop, length, _ = _CHUNK_HEAD.unpack_from(head)
                compression, where = _read_text(head, _CHUNK_HEAD.size)
                (compressed,) = struct.unpack_from('<Q', head, where)
                current = ChunkIndex(start, stop, offset, _RECORD.size + size, {}, 0, compression,
                                     compressed, length)
            elif kind == MESSAGE_INDEX and current is not None:
                (channel,) = struct.unpack('<H', file.read(2))
                current.index_offsets[channel] = offset
                current.index_length = after - current.offset - current.length
            file.seek(after)
        if current is not None:
            yield current


def _index_of(raw: bytes) -> dict[int, list[tuple[int, int]]]:
    """Give (log time, place) of the messages in a chunk, by channel."""
    index: dict[int, list[tuple[int, int]]] = {}
    where = 0
    while where + _RECORD.size <= len(raw):
        kind, size = _RECORD.unpack_from(raw, where)
        if kind == MESSAGE:
            channel, _, time, _ = _MESSAGE_BODY.unpack_from(raw, where + _RECORD.size)
            index.setdefault(channel, []).append((time, where))
        where += _RECORD.size + size
    return index


def _message_indexes(index: dict[int, list[tuple[int, int]]], where: int
                     ) -> tuple[bytes, dict[int, int]]:
    """Give the records that index a chunk and, by channel, where each lies."""
    records, offsets = bytearray(), {}
    for channel, entries in index.items():
        offsets[channel] = where + len(records)
        flat = struct.pack(f'<{2 * len(entries)}Q', *(n for entry in entries for n in entry))
        records += _record(MESSAGE_INDEX, struct.pack('<HI', channel, len(flat)) + flat)
    return bytes(records), offsets


def _ending(content: Content, metadata: dict[str, dict[str, str]], offset: int) -> bytes:
    """Give everything that follows the last chunk of a file."""
    out = bytearray()
    indexes = b''
    for name, values in metadata.items():
        record = _record(METADATA, _text(name) + _map(values))
        indexes += _record(METADATA_INDEX, struct.pack('<QQ', offset + len(out), len(record))
                           + _text(name))
        out += record
    out += _record(DATA_END, struct.pack('<I', 0))
    summary_start = offset + len(out)
    schemas = {channel.schema.id: channel.schema for channel in content.channels.values()}
    counts = b''.join(struct.pack('<HQ', *entry) for entry in sorted(content.counts.items()))
    groups = [
        (SCHEMA, b''.join(schema.record() for schema in schemas.values())),
        (CHANNEL, b''.join(channel.record() for channel in content.channels.values())),
        (CHUNK_INDEX, b''.join(chunk.record() for chunk in content.chunks)),
        (METADATA_INDEX, indexes),
        (STATISTICS, _record(STATISTICS, struct.pack(
            '<QHIIIIQQI', content.message_count, len(schemas), len(content.channels), 0,
            len(metadata), len(content.chunks), content.start_time, content.end_time,
            len(counts)) + counts)),
    ]
    offsets = b''
    for kind, data in groups:
        if data:
            offsets += _record(SUMMARY_OFFSET, struct.pack('<BQQ', kind, offset + len(out),
                                                           len(data)))
            out += data
    summary_offset_start = offset + len(out)
    out += offsets
    footer = struct.pack('<QQ', summary_start, summary_offset_start)
    covered = bytes(out[summary_start - offset:]) + _RECORD.pack(FOOTER, 20) + footer
    out += _record(FOOTER, footer + struct.pack('<I', zlib.crc32(covered)))
    return bytes(out + MAGIC)


def _record(kind: int, body: bytes) -> bytes:
    return _RECORD.pack(kind, len(body)) + body


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack('<I', len(data)) + data


def _map(values: dict[str, str]) -> bytes:
    data = b''.join(_text(key) + _text(value) for key, value in values.items())
    return struct.pack('<I', len(data)) + data


def _read_text(data: bytes, where: int) -> tuple[str, int]:
    (length,) = struct.unpack_from('<I', data, where)
    return data[where + 4:where + 4 + length].decode(), where + 4 + length


def _read_schema(body: bytes) -> Schema:
    (number,) = struct.unpack_from('<H', body)
    name, where = _read_text(body, 2)
    encoding, where = _read_text(body, where)
    text, _ = _read_text(body, where)
    # Bags of one robot carry the same texts: many open bags share them.
    return Schema(number, name, encoding, sys.intern(text))


def _read_channel(body: bytes, schemas: dict[int, Schema]) -> Channel:
    number, schema = struct.unpack_from('<HH', body)
    topic, where = _read_text(body, 4)
    encoding, where = _read_text(body, where)
    (length,) = struct.unpack_from('<I', body, where)
    metadata, where = {}, where + 4
    end = where + length
    while where < end:
        key, where = _read_text(body, where)
        metadata[key], where = _read_text(body, where)
    return Channel(number, schemas.get(schema, Schema(0, '', '', '')), topic, metadata, encoding)


def _split(data: bytes) -> Iterator[tuple[int, bytes]]:
    where = 0
    while where + _RECORD.size <= len(data):
        kind, size = _RECORD.unpack_from(data, where)
        where += _RECORD.size
        yield kind, data[where:where + size]
        where += size
