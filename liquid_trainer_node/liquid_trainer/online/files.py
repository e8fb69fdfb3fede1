"""What killed writers left behind, and lines that survive a crash."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from liquid_policy.files import PART


def remove_parts(folder: Path) -> int:
    """
    Remove what processes that were killed left unfinished.

    :return: how many files.
    """
    count = 0
    if folder.is_dir():
        for path in folder.glob(f'.*{PART}'):
            path.unlink(missing_ok=True)
            count += 1
    return count


def append_line(path: Path, values: dict[str, Any]) -> None:
    """
    Add one JSON line and flush it to the disk.

    A line cut short by a crash ends where it ends: the next one begins on a line of its own.

    :raises OSError: if the disk is full or the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (json.dumps(values) + '\n').encode()
    with open(path, 'ab+') as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b'\n':
                text = b'\n' + text
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a JSON lines file; what a crash cut short is left out."""
    found = []
    for line in path.read_text(encoding='utf-8').splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found
