"""
Rosbag2 bags as they are found: mcap or sqlite3, split, compressed, or cut off by a crash.

Messages come in the order they were recorded, decoded by the definitions the bag carries.
"""

import shutil
import sqlite3
import tempfile
import weakref
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rosbags.serde import SerdeError
from rosbags.typesys import (
    Stores,
    TypesysError,
    get_types_from_idl,
    get_types_from_msg,
    get_typestore,
)

from . import mcap_file
from .message_types import UnknownTypeError, message_types, part_of
from .recording import bag_files

ENDINGS = ('.mcap', '.db3', '.mcap.zstd', '.db3.zstd')
_ZSTD_MAGIC = b'\x28\xb5\x2f\xfd'


class BagError(ValueError):
    """A bag cannot be used; the text names the bag, what was expected, what came, what to do."""


class Place(NamedTuple):
    """
    Where a message lies; places are ordered as messages are read.

    :param file: number of the storage file.
    :param offset: of its chunk [bytes], or number of its row.
    :param number: within the chunk, from 1.
    """

    file: int = 0
    offset: int = 0
    number: int = 0


class Record(NamedTuple):
    """
    One recorded message.

    :param topic: absolute topic name.
    :param type: message type.
    :param time: log time [ns].
    :param message: decoded message.
    :param place: where it lies.
    """

    topic: str
    type: str
    time: int
    message: Any
    place: Place = Place()


@dataclass(frozen=True)
class Span:
    """
    A stretch of a bag, and what is read besides to understand it.

    :param lead: where reading begins.
    :param begin: where the stretch begins.
    :param end: where it ends; None: with the bag, or at `last`.
    :param until: time of receipt [ns] up to which is read on behind `end`.
    :param last: where reading ends at the latest.
    """

    lead: Place = Place()
    begin: Place = Place()
    end: Place | None = None
    until: int = 0
    last: Place | None = None

    def owns(self, place: Place) -> bool:
        """Say whether a message lies in the stretch."""
        return self.begin <= place and (self.end is None or place < self.end)

    def is_past(self, place: Place, time: int) -> bool:
        """Say whether nothing from here on is read."""
        if self.last is not None and place >= self.last:
            return True
        return self.end is not None and place >= self.end and time > self.until


@dataclass
class _Topic:
    type: str
    encoding: str = ''
    text: str = ''
    count: int = 0


class _Types:
    """Message types by the definitions found in bags."""

    def __init__(self) -> None:
        self.store = get_typestore(Stores.EMPTY)
        self._learned: set[tuple[str, str]] = set()

    def learn(self, kind: str, encoding: str, text: str) -> None:
        """
        Register a type.

        :param encoding: `ros2msg` or `ros2idl`.
        :param text: its definition; the installed one is taken if empty.
        :raises TypesysError: if it cannot be read, or is known with another definition.
        """
        if (kind, text) in self._learned:
            return
        if not text:
            installed = message_types([kind])
            types = {name: installed.fielddefs[name] for name in _with_parts(installed, kind)}
        elif encoding == 'ros2msg':
            types = get_types_from_msg(text, kind)
        else:
            types = {}
            for part in text.split('=' * 80 + '\n'):
                idl = part.split('\n', 1)[1] if part.startswith('IDL: ') else part
                if idl.strip():
                    types.update(get_types_from_idl(idl))
        self.store.register(types)
        self.store.get_msgdef(kind)
        self._learned.add((kind, text))


# Making code of definitions takes longer than reading a short bag.
_SHARED = _Types()


class Bag:
    """
    A bag to read.

    :param path: its folder, or one storage file.
    :raises BagError: if there is no bag, or it holds no messages at all.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise BagError(f'{self.path}: expected a bag, came nothing of this name')
        self.files = [self.path] if self.path.is_file() else bag_files(self.path, *ENDINGS)
        if not self.files or not self.files[0].name.endswith(ENDINGS):
            raise BagError(f'{self.path}: expected a rosbag2 folder or a file ending in '
                           f'{", ".join(ENDINGS)}, found none; check the path')
        # Files that end without an index, as after a crash, with the bytes that are whole.
        self.cut_off: dict[Path, int] = {}
        self._scratch: Path | None = None
        self._plain = {file: self._decompressed(file) for file in self.files}
        self._topics: dict[str, _Topic] = {}
        self._types = _SHARED
        self._known: set[str] = set()
        # Where chunks lie that are not what was written, by file; known once they were read.
        self.damaged: dict[Path, set[int]] = {}
        self._channels: dict[Path, dict[int, mcap_file.Channel]] = {}
        self._places: dict[Path, list[mcap_file.Place]] = {}
        for file in self.files:
            self._list(file)
        if not any(topic.count for topic in self._topics.values()):
            came = 'one that is cut off before the first of them is whole' if any(
                self.cut_off.values()) else 'an empty bag'
            raise BagError(f'{self.path}: expected recorded messages, came {came} '
                           f'({self.size} bytes); record again and check that the topics are '
                           'being published (ros2 topic hz)')

    @property
    def topics(self) -> dict[str, str]:
        """Type of every topic with messages."""
        return {name: topic.type for name, topic in self._topics.items() if topic.count}

    @property
    def counts(self) -> dict[str, int]:
        """Messages of every topic."""
        return {name: topic.count for name, topic in self._topics.items() if topic.count}

    @property
    def size(self) -> int:
        """Bytes of all storage files."""
        return sum(file.stat().st_size for file in self.files)

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs to read on; the bag must stay open here meanwhile."""
        return {**self.__dict__, '_types': None, '_known': set(), '_places': {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _types=_SHARED)

    def places(self) -> list[tuple[int, Place]]:
        """Give log times [ns] and places at which reading may begin, in the order of reading."""
        return [(place.time, Place(number, place.offset))
                for number, file in enumerate(self.files) for place in self._places[file]]

    def sparse(self, topic: str) -> Iterator[Record]:
        """
        Give the messages of one topic, reading only where there are any if the bag says where.

        Messages that cannot be decoded are left out.
        """
        for number, file in enumerate(self.files):
            numbers = {key for key, channel in self._channels.get(file, {}).items()
                       if channel.topic == topic}
            if file in self._channels and not numbers:
                continue
            places = self._places[file]
            known = bool(numbers) and all(place.channels is not None for place in places)
            only = [place.offset for place in places if place.channels is not None
                    and not numbers.isdisjoint(place.channels)] if known else None
            for found, kind, time, data, place in self._raw(
                    number, {topic}, lambda _: None, only=only):
                try:
                    yield Record(found, kind, time, self._decode(found, kind, data), place)
                except (SerdeError, AssertionError, mcap_file.zstd.ZstdError):
                    continue

    def messages(self, topics: Collection[str] | None = None,
                 progress: Callable[[int], None] | None = None,
                 rejected: Callable[[str, str], None] | None = None,
                 span: Span = Span()) -> Iterator[Record]:
        """
        Give decoded messages in the order they were recorded.

        :param topics: absolute names of the wanted topics; all if left out.
        :param progress: called with the share read so far of `size` [bytes].
        :param rejected: called with topic and reason for a message that cannot be decoded;
            without it such a message is an error.
        :param span: what is read; `rejected` hears of what lies in its stretch only.
        :raises BagError: for a message that cannot be decoded.
        """
        done = 0
        for number, file in enumerate(self.files):
            size = file.stat().st_size
            if number < span.lead.file:
                done += size
                continue
            whole = max(self._plain[file].stat().st_size, 1)

            def forward(where: int, done: int = done, size: int = size, whole: int = whole
                        ) -> None:
                if progress is not None:
                    progress(done + size * where // whole)

            where = span.lead.offset if number == span.lead.file else 0
            for topic, kind, time, data, place in self._raw(number, topics, forward, where):
                if place < span.lead:
                    continue
                if span.is_past(place, time):
                    return
                try:
                    yield Record(topic, kind, time, self._decode(topic, kind, data), place)
                except (SerdeError, AssertionError, mcap_file.zstd.ZstdError) as error:
                    text = (f'{topic}: expected a serialized {kind}, came {len(data)} bytes: '
                            f'{error}')
                    if rejected is None:
                        raise BagError(f'{self.path}: {text}') from None
                    if span.owns(place):
                        rejected(topic, text)
            done += size
            if progress is not None:
                progress(done)

    def _list(self, file: Path) -> None:
        plain = self._plain[file]
        self._places[file] = []
        if plain.stat().st_size == 0:
            self.cut_off[file] = 0
            return
        if plain.suffix == '.db3':
            self._list_sqlite(file)
            return
        try:
            content = mcap_file.summary(plain)
            if content is None:
                content = mcap_file.Content()
                for _ in mcap_file.read(plain, content):
                    pass
                if not content.complete:
                    self.cut_off[file] = content.good_until
        except mcap_file.McapError as error:
            raise BagError(str(error)) from None
        self._channels[file], self._places[file] = content.channels, content.places
        for number, channel in content.channels.items():
            schema = channel.schema
            self._add(_Topic(schema.name, schema.encoding, schema.text,
                             content.counts.get(number, 0)), channel.topic)

    def _list_sqlite(self, file: Path) -> None:
        definitions: dict[str, tuple[str, str]] = {}
        try:
            with _connect(self._plain[file]) as database:
                tables = {row[0] for row in database.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'table'")}
                if not {'topics', 'messages'} <= tables:
                    raise BagError(f'{file}: expected the tables topics and messages of rosbag2, '
                                   f'came {sorted(tables)}')
                if 'message_definitions' in tables:
                    for name, encoding, text in database.execute(
                            'SELECT topic_type, encoding, encoded_message_definition '
                            'FROM message_definitions'):
                        definitions[name] = (encoding, text)
                topics = database.execute('SELECT id, name, type FROM topics').fetchall()
                self._places[file] = _row_places(database)
                counts = {}
                try:
                    counts = dict(database.execute(
                        'SELECT topic_id, count(*) FROM messages GROUP BY topic_id'))
                except sqlite3.DatabaseError:
                    counts = self._count_rows(file, database)
        except (sqlite3.Error, UnicodeDecodeError, ValueError) as error:
            if isinstance(error, BagError):
                raise
            raise _unreadable(file, error) from None
        for number, name, kind in topics:
            self._add(_Topic(kind, *definitions.get(kind, ('', '')), counts.get(number, 0)), name)

    def _count_rows(self, file: Path, database: sqlite3.Connection) -> dict[int, int]:
        """Count what can be read of a damaged file."""
        counts: dict[int, int] = {}
        self.cut_off[file] = file.stat().st_size
        try:
            for (number,) in database.execute('SELECT topic_id FROM messages'):
                counts[number] = counts.get(number, 0) + 1
        except sqlite3.DatabaseError:
            pass
        return counts

    def _add(self, topic: _Topic, name: str) -> None:
        known = self._topics.setdefault(name, topic)
        if known is topic:
            return
        if known.type != topic.type:
            raise BagError(f'{self.path}: expected one type for {name}, came {known.type} and '
                           f'{topic.type}')
        known.count += topic.count

    def _raw(self, number: int, topics: Collection[str] | None, progress: Callable[[int], None],
             begin: int = 0, only: list[int] | None = None
             ) -> Iterator[tuple[str, str, int, Any, Place]]:
        file = self.files[number]
        plain = self._plain[file]
        if plain.stat().st_size == 0:
            return
        if plain.suffix == '.db3':
            for name, kind, time, blob, row in self._raw_sqlite(plain, topics, begin):
                yield name, kind, time, blob, Place(number, row)
            return

        def wanted(channel: mcap_file.Channel) -> bool:
            return topics is None or channel.topic in topics

        content = mcap_file.Content(channels=dict(self._channels.get(file, {})))
        try:
            for channel, time, data in mcap_file.read(plain, content, wanted, progress, begin,
                                                      only):
                yield (channel.topic, channel.schema.name, time, data,
                       Place(number, *content.position))
        except mcap_file.McapError as error:
            raise BagError(str(error)) from None
        finally:    # also when nobody reads on
            if content.damaged:
                self.damaged[file] = content.damaged

    def _raw_sqlite(self, plain: Path, topics: Collection[str] | None, begin: int
                    ) -> Iterator[tuple[str, str, int, bytes, int]]:
        with _connect(plain) as database:
            named = {number: (name, kind) for number, name, kind
                     in database.execute('SELECT id, name, type FROM topics')
                     if topics is None or name in topics}
            marks = ', '.join('?' * len(named))
            try:
                rows = database.execute(
                    'SELECT topic_id, timestamp, data, id FROM messages '
                    f'WHERE id >= ? AND topic_id IN ({marks}) ORDER BY id', (begin, *named))
            except sqlite3.Error as error:
                raise _unreadable(plain, error) from None
            while True:
                try:
                    row = rows.fetchone()
                except sqlite3.Error:
                    return  # damaged from here on; `cut_off` says so
                if row is None:
                    return
                if not isinstance(row[1], int) or not isinstance(row[2], bytes):
                    continue  # a damaged row
                yield *named[row[0]], row[1], row[2], row[3]

    def _decode(self, topic: str, kind: str, data: Any) -> Any:
        if kind not in self._known:
            self._learn(topic, kind)
        if bytes(data[:4]) == _ZSTD_MAGIC:  # message compression of rosbag2
            data = mcap_file.zstd.decompress(data)
        try:
            return self._types.store.deserialize_cdr(data, kind)
        except SerdeError as error:
            # Some writers leave up to 8 bytes of padding behind a message.
            for padding in (4, 8):
                if 'size mismatch' in str(error) and len(data) > padding + 4:
                    try:
                        return self._types.store.deserialize_cdr(data[:-padding], kind)
                    except SerdeError:
                        continue
            raise

    def _learn(self, topic: str, kind: str) -> None:
        """Register a message type by the bag's own definition, else by the installed one."""
        entry = self._topics[topic]
        try:
            try:
                self._types.learn(kind, entry.encoding, entry.text)
            except TypesysError:
                # Another bag had another definition of this name: this one needs its own.
                self._types = _Types()
                self._known.clear()
                self._types.learn(kind, entry.encoding, entry.text)
        except (KeyError, TypesysError, UnknownTypeError) as error:
            raise BagError(f'{self.path}: expected a usable definition of {kind} for {topic}, '
                           f'came: {error}') from None
        self._known.add(kind)

    def _decompressed(self, file: Path) -> Path:
        """Give the file itself, or a decompressed copy of as much as can be had."""
        if file.suffix != '.zstd':
            return file
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix='bag_'))
            weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        plain = self._scratch / file.stem
        with open(file, 'rb') as packed, open(plain, 'wb') as out:
            unpacker = mcap_file.zstd.ZstdDecompressor()
            try:
                while not unpacker.eof and (block := packed.read(1 << 20)):
                    out.write(unpacker.decompress(block))
            except mcap_file.zstd.ZstdError as error:
                raise BagError(f'{file}: expected zstd data, came {error}') from None
            if not unpacker.eof:
                self.cut_off[file] = packed.tell()
        return plain


def find_bags(paths: str | Path | Collection[str | Path]) -> list[Path]:
    """
    Give the bags among paths, each a bag, a storage file, or a folder with bags below it; what is
    named twice is given once.

    Hidden folders below a folder are left out: that is where unfinished bags wait for a name.

    :raises BagError: if a path holds none.
    """
    found: list[Path] = []
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        path = Path(path)
        if path.is_dir() and not bag_files(path, *ENDINGS):
            below = sorted(entry for entry in path.rglob('*')
                           if entry.is_dir() and bag_files(entry, *ENDINGS)
                           and not any(part.startswith('.')
                                       for part in entry.relative_to(path).parts))
            if not below:
                raise BagError(f'{path}: expected bags in this folder, found none')
            found += below
        else:
            found.append(path)
    once: dict[Path, Path] = {}
    for path in found:
        once.setdefault(path.resolve(), path)
    return list(once.values())


def _unreadable(file: Path, error: Exception) -> BagError:
    return BagError(f'{file}: expected a rosbag2 sqlite3 file, came one that cannot be read '
                    f'({error}); if the recorder was killed, try `sqlite3 {file.name} .recover`')


def _row_places(database: sqlite3.Connection) -> list[mcap_file.Place]:
    """Give times and numbers of rows, every 200th or fewer; as far as they can be read."""
    places: list[mcap_file.Place] = []
    try:
        first, last = database.execute('SELECT min(id), max(id) FROM messages').fetchone()
        if first is None:
            return places
        for row in range(first, last + 1, max(200, (last - first) // 100_000)):
            found = database.execute('SELECT timestamp, id FROM messages WHERE id >= ? '
                                     'ORDER BY id LIMIT 1', (row,)).fetchone()
            if found is not None and all(isinstance(value, int) for value in found):
                places.append(mcap_file.Place(*found))
    except (sqlite3.Error, TypeError):
        pass    # damaged from here on
    return places


class _connect:  # noqa: N801 (used like a function)
    """A sqlite3 file opened only to read, closed at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> sqlite3.Connection:
        # A folder that is mounted read-only needs `immutable`, which ignores a journal.
        for mode in ('mode=ro', 'immutable=1'):
            self._database = sqlite3.connect(f'{self._path.resolve().as_uri()}?{mode}', uri=True)
            try:
                self._database.execute('SELECT count(*) FROM sqlite_master')
                break
            except sqlite3.OperationalError:
                if mode == 'immutable=1':
                    raise
        return self._database

    def __exit__(self, *_: object) -> None:
        self._database.close()


def _with_parts(store: Any, kind: str, found: dict[str, None] | None = None) -> dict[str, None]:
    """Give a type and all it is made of."""
    found = {} if found is None else found
    found[kind] = None
    for _, field in store.fielddefs[kind][1]:
        part = part_of(field)
        if part is not None and part not in found:
            _with_parts(store, part, found)
    return found
