"""Tables of parquet files as numpy arrays, by pyarrow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import FormatError
from .video import MissingFileError


def pyarrow_module() -> Any:
    """
    Return pyarrow, with its parquet part.

    :raises FormatError: if it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise FormatError('LeRobot data sets need pyarrow; run: '
                          'pip install -r docker/requirements-formats.txt') from error
    return pyarrow


def read_table(path: Path, columns: Sequence[str] | None = None, episode: int | None = None
               ) -> Any:
    """
    Return columns of a file as a pyarrow table.

    :param columns: names; all when left out.
    :param episode: only rows of which `episode_index` is this.
    :raises MissingFileError: if there is no such file.
    :raises FormatError: if it is damaged or lacks a column.
    """
    arrow = pyarrow_module()
    if not path.is_file():
        raise MissingFileError(f'{path}: expected a parquet file, came nothing of this name')
    try:
        there = arrow.parquet.read_schema(path).names
        missing = [name for name in columns or () if name not in there]
        if missing:
            raise FormatError(f'{path}: expected the columns {missing}, came {there}')
        chosen = None if episode is None else [('episode_index', '==', episode)]
        return arrow.parquet.read_table(path, columns=columns, filters=chosen)
    except (arrow.ArrowException, OSError) as error:
        raise FormatError(f'{path}: expected a whole parquet file, came: {error}; copy or '
                          'download it again') from error


def numbers(table: Any, name: str, size: int, where: str) -> np.ndarray:
    """
    Return a column of numbers or of lists of numbers, `(rows, size)`.

    :param size: numbers per row.
    :raises FormatError: if the rows hold another number of values, or none.
    """
    values = table.column(name).combine_chunks()
    if hasattr(values, 'chunks'):
        values = values.chunk(0) if values.num_chunks else values
    if values.null_count:
        raise FormatError(f'{where}: {name}: expected values in every row, came '
                          f'{values.null_count} empty ones')
    while hasattr(values, 'flatten') and hasattr(values.type, 'value_type'):
        values = values.flatten()
    flat = values.to_numpy(zero_copy_only=False)
    rows = table.num_rows
    if len(flat) != rows * size or flat.dtype == object:
        raise FormatError(f'{where}: {name}: expected {size} numbers in each of {rows} rows, came '
                          f'{len(flat)} values of {flat.dtype}')
    return flat.reshape(rows, size)
