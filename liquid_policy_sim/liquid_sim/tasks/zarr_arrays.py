"""Arrays of a zarr (version 2) folder, as published data sets have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


class ZarrError(ValueError):
    """A folder that is no zarr array that can be read here."""


def read_array(folder: Path) -> np.ndarray:
    """
    Return a whole array.

    :param folder: with `.zarray` and the chunks; chunked along the first dimension only.
    :raises ZarrError: if it is not there, damaged, or of a kind that is not read here.
    """
    try:
        meta: dict[str, Any] = json.loads((folder / '.zarray').read_text())
    except (OSError, ValueError) as error:
        raise ZarrError(f'{folder}: expected a zarr array, came: {error}') from error
    shape, chunks = tuple(meta['shape']), tuple(meta['chunks'])
    if meta.get('zarr_format') != 2 or meta.get('filters') or meta.get('order') != 'C':
        raise ZarrError(f'{folder}: expected version 2 without filters in C order, came '
                        f'version {meta.get("zarr_format")}, filters {meta.get("filters")}, '
                        f'order {meta.get("order")}')
    if chunks[1:] != shape[1:]:
        raise ZarrError(f'{folder}: expected chunks along the first dimension only, came '
                        f'{chunks} for {shape}')
    decode = _decoder(folder, meta.get('compressor'))
    dtype = np.dtype(meta['dtype'])
    result = np.full(shape, meta.get('fill_value') or 0, dtype)
    for number in range(-(-shape[0] // chunks[0])):
        path = folder / '.'.join(['0' if i else str(number) for i in range(len(shape))])
        if not path.exists():       # zarr leaves out chunks of nothing but the fill value
            continue
        values = np.frombuffer(decode(path.read_bytes()), dtype)
        if values.size != int(np.prod(chunks)):
            raise ZarrError(f'{path}: expected {int(np.prod(chunks))} numbers, came '
                            f'{values.size}; the file is damaged')
        first = number * chunks[0]
        result[first:first + chunks[0]] = values.reshape(chunks)[:shape[0] - first]
    return result


def _decoder(folder: Path, compressor: dict[str, Any] | None):
    if compressor is None:
        return bytes
    try:
        from numcodecs import get_codec
    except ImportError as error:
        raise ZarrError(f'{folder}: compressed with {compressor.get("id")}, which needs '
                        'numcodecs; run: pip install numcodecs') from error
    return get_codec(compressor).decode
