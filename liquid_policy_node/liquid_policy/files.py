"""Files that are whole or absent, whatever ends the process while they are written."""

from __future__ import annotations

import os
from pathlib import Path

PART = '.part'


def write_atomically(path: Path, data: bytes) -> None:
    """
    Write beside the place, flush to the disk, rename, flush the folder.

    :raises OSError: if the disk is full or the folder cannot be written; the old file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f'.{path.name}.{os.getpid()}{PART}')
    try:
        with open(beside, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Let a rename in this folder survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
