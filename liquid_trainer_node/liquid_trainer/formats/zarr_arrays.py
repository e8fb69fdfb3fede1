"""
Arrays of zarr, version 2, as published data sets have them: in a folder or a zip file.

Format: zarr-specs.readthedocs.io, version 2. Compression is left to numcodecs.
"""

from __future__ import annotations

import itertools
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .dataset import FormatError

COMPRESSOR = {'id': 'blosc', 'cname': 'zstd', 'clevel': 5, 'shuffle': 2, 'blocksize': 0}


class ZarrError(FormatError):
    """Something that is no zarr array that can be read here."""


class Store:
    """
    The entries of a zarr hierarchy.

    :param path: a folder, or a zip file of one.
    :raises ZarrError: if it is neither.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._zip: zipfile.ZipFile | None = None
        self._prefix = ''
        if self.path.is_dir():
            return
        if not self.path.is_file():
            raise ZarrError(f'{path}: expected a zarr array or group, a folder or zip '
                            'file, came nothing of this name')
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError) as error:
            raise ZarrError(f'{path}: expected a whole zip file, came: {error}; copy or download '
                            'it again') from error
        # The hierarchy may lie in a folder within the zip file.
        names = self._zip.namelist()
        tops = {name.partition('/')[0] for name in names}
        if len(tops) == 1 and not {'.zgroup', '.zarray', '.zattrs'} & tops:
            self._prefix = f'{tops.pop()}/'

    def get(self, name: str) -> bytes | None:
        """Return an entry, None where there is none."""
        if self._zip is None:
            file = self.path / name
            return file.read_bytes() if file.is_file() else None
        try:
            return self._zip.read(self._prefix + name)
        except KeyError:
            return None
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise ZarrError(f'{self.path}: {name}: expected a whole entry, came: {error}; copy '
                            'or download it again') from error

    def arrays(self, group: str) -> list[str]:
        """Return names of the arrays right below a group, sorted."""
        if self._zip is None:
            return sorted(file.parent.name for file in (self.path / group).glob('*/.zarray'))
        parts = [name.removeprefix(self._prefix).split('/') for name in self._zip.namelist()]
        return sorted(part[1] for part in parts
                      if len(part) == 3 and part[0] == group and part[2] == '.zarray')

    def close(self) -> None:
        """Give the file back."""
        if self._zip is not None:
            self._zip.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


class ZarrArray:
    """
    One array, read in parts.

    :param store: what holds it.
    :param name: of the array; empty when the store is the array itself.
    :raises ZarrError: if it is not there, or of a kind that is not read here.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._place = f'{name}/' if name else ''
        self._where = f'{store.path}/{name}' if name else str(store.path)
        text = store.get(f'{self._place}.zarray')
        if text is None:
            raise ZarrError(f'{self._where}: expected a zarr array of version 2, came nothing of '
                            'this name')
        try:
            meta: dict[str, Any] = json.loads(text)
            self.shape, self._chunks = tuple(meta['shape']), tuple(meta['chunks'])
            self.dtype = np.dtype(meta['dtype'])
        except (ValueError, KeyError, TypeError) as error:
            raise ZarrError(f'{self._where}: expected a zarr array, came: {error!r}') from error
        if meta.get('zarr_format') != 2 or meta.get('filters') or meta.get('order') != 'C':
            raise ZarrError(f'{self._where}: expected version 2 without filters in C order, came '
                            f'version {meta.get("zarr_format")}, filters {meta.get("filters")}, '
                            f'order {meta.get("order")}')
        if not self.shape or len(self.shape) != len(self._chunks) or min(self._chunks) < 1:
            raise ZarrError(f'{self._where}: expected shape and chunks of equal length, came '
                            f'{self.shape} and {self._chunks}')
        self._fill = meta.get('fill_value') or 0
        self._separator = meta.get('dimension_separator', '.')
        self._blosc = (meta.get('compressor') or {}).get('id') == 'blosc'
        self._decode = _decoder(self._where, meta.get('compressor'))
        self.attributes: dict[str, Any] = json.loads(store.get(f'{self._place}.zattrs') or '{}')

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, start: int = 0, end: int | None = None) -> np.ndarray:
        """
        Return what lies at `[start:end]` of the first dimension.

        :raises ZarrError: if a chunk is damaged.
        """
        end = len(self) if end is None else end
        result = np.full((end - start, *self.shape[1:]), self._fill, self.dtype)
        size = self._chunks[0]
        numbers = [range(start // size, -(-end // size))]
        numbers += [range(-(-whole // part)) for whole, part in
                    zip(self.shape[1:], self._chunks[1:], strict=True)]
        for place in itertools.product(*numbers):
            values = self._chunk(place)
            if values is None:
                continue
            first = place[0] * size
            low, high = max(start, first), min(end, first + size)
            inner = [slice(n * part, min((n + 1) * part, whole)) for n, part, whole in
                     zip(place[1:], self._chunks[1:], self.shape[1:], strict=True)]
            cut = tuple(slice(0, part.stop - part.start) for part in inner)
            into = (slice(low - start, high - start), *inner)
            within = (slice(low - first, high - first), *cut)
            result[into] = values[within]
        return result

    def _chunk(self, place: tuple[int, ...]) -> np.ndarray | None:
        name = self._place + self._separator.join(map(str, place))
        data = self._store.get(name)
        if data is None:       # zarr leaves out chunks of nothing but the fill value
            return None
        try:
            if self._blosc and struct.unpack_from('<12xI', data)[0] != len(data):
                raise ValueError(f'{len(data)} bytes')     # blosc itself would read on behind
            values = np.frombuffer(self._decode(data), self.dtype)
        except Exception as error:       # each codec has errors of its own
            raise ZarrError(f'{self._store.path}/{name}: expected a whole chunk, came: {error}; '
                            'the file is damaged') from error
        if values.size != int(np.prod(self._chunks)):
            raise ZarrError(f'{self._store.path}/{name}: expected {int(np.prod(self._chunks))} '
                            f'numbers, came {values.size}; the file is damaged')
        return values.reshape(self._chunks)


def read_array(folder: Path) -> np.ndarray:
    """
    Return a whole array.

    :param folder: with `.zarray` and the chunks.
    :raises ZarrError: if it is not there, damaged, or of a kind that is not read here.
    """
    return ZarrArray(Store(Path(folder)), '').rows()


def _decoder(where: str, compressor: dict[str, Any] | None) -> Callable[[bytes], Any]:
    if compressor is None:
        return bytes
    try:
        from numcodecs import get_codec
    except ImportError as error:
        raise ZarrError(f'{where}: compressed with {compressor.get("id")}, which needs '
                        'numcodecs; run: pip install numcodecs') from error
    try:
        return get_codec(compressor).decode
    except ValueError as error:
        raise ZarrError(f'{where}: expected a compression that numcodecs knows, came: {error}; '
                        'decompress it with the software that wrote it') from error


class ArrayWriter:
    """
    Append rows to a new array in a folder.

    :param folder: of the array, created.
    :param shape: of one row.
    :param dtype: of the numbers.
    :param chunk: rows per file.
    :param attributes: kept beside the array, as JSON.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: Any, chunk: int = 256,
                 attributes: dict[str, Any] | None = None) -> None:
        from numcodecs import get_codec
        folder.mkdir(parents=True)
        self._folder, self._shape, self._dtype = folder, shape, np.dtype(dtype).newbyteorder('<')
        self._chunk, self._attributes = chunk, attributes or {}
        self._codec = get_codec(COMPRESSOR)
        self._pending: list[np.ndarray] = []
        self._waiting = self._written = 0
        self.rows = 0

    def add(self, values: np.ndarray) -> None:
        """Append rows, `(count, *shape)`."""
        values = np.asarray(values, self._dtype)
        if values.shape[1:] != self._shape:
            raise ValueError(f'{self._folder.name}: expected rows of {self._shape}, came '
                             f'{values.shape[1:]}')
        self._pending.append(values)
        self._waiting += len(values)
        self.rows += len(values)
        if self._waiting >= self._chunk:
            self._flush(False)

    def close(self) -> None:
        """Write what is left, and the description."""
        self._flush(True)
        meta = {'zarr_format': 2, 'shape': [self.rows, *self._shape],
                'chunks': [self._chunk, *self._shape], 'dtype': self._dtype.str,
                'compressor': COMPRESSOR, 'fill_value': 0, 'order': 'C', 'filters': None}
        (self._folder / '.zarray').write_text(json.dumps(meta, indent=4))
        if self._attributes:
            (self._folder / '.zattrs').write_text(json.dumps(self._attributes, indent=4))

    def _flush(self, last: bool) -> None:
        values = (np.concatenate(self._pending) if self._pending
                  else np.empty((0, *self._shape), self._dtype))
        while len(values) >= self._chunk or (last and len(values)):
            part, values = values[:self._chunk], values[self._chunk:]
            whole = np.zeros((self._chunk, *self._shape), self._dtype)
            whole[:len(part)] = part
            name = '.'.join([str(self._written), *('0' for _ in self._shape)])
            (self._folder / name).write_bytes(self._codec.encode(whole))
            self._written += 1
        self._pending, self._waiting = [values], len(values)
