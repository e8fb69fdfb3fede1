"""Reading hdf5 files, with errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import FormatError


def h5py_module() -> Any:
    """
    Return h5py.

    :raises FormatError: if it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise FormatError('hdf5 files need h5py; run: pip install h5py') from error
    return h5py


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """
    Open a file to read.

    :raises FormatError: if it is not there, no hdf5 file, or damaged where it is read.
    """
    h5py = h5py_module()
    if not path.is_file():
        raise FormatError(f'{path}: expected an hdf5 file, came '
                          f'{"a folder" if path.is_dir() else "nothing of this name"}')
    try:
        with h5py.File(path, 'r') as file:
            yield file
    except (OSError, RuntimeError) as error:
        raise FormatError(f'{path}: expected a whole hdf5 file, came: {error}; copy or download '
                          'it again') from error


def group(parent: Any, name: str, where: str) -> Any:
    """
    Return a group within another.

    :raises FormatError: if there is none of this name.
    """
    child = parent.get(name)
    if child is None or not hasattr(child, 'keys'):
        raise FormatError(f'{where}: expected a group {name!r}, came {sorted(parent)}')
    return child


def array(parent: Any, name: str, where: str) -> np.ndarray:
    """
    Return a whole array.

    :raises FormatError: if there is none of this name.
    """
    child = parent.get(name)
    if child is None or not hasattr(child, 'shape'):
        raise FormatError(f'{where}: expected an array {name!r}, came {sorted(parent)}')
    return np.asarray(child)


def leaves(parent: Any, prefix: str = '') -> dict[str, Any]:
    """Return the arrays below a group by their path, in the file's order."""
    found: dict[str, Any] = {}
    for name, child in parent.items():
        if hasattr(child, 'shape'):
            found[prefix + name] = child
        else:
            found.update(leaves(child, f'{prefix}{name}/'))
    return found
