"""Windows to learn from again: an even sample of all that ever came, kept on disk."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from liquid_policy.files import write_atomically
from liquid_trainer.online.files import remove_parts
from liquid_trainer.online.window import Window

_STATE = 'reservoir.json'


class Reservoir:
    """
    Keeps each window that was ever offered with the same probability.

    Source: algorithm R, Vitter, Random sampling with a reservoir, 1985.

    :param folder: where the files go; None keeps everything in memory.
    :param size: most windows kept.
    :param spare: most windows kept in memory while the folder cannot be written.
    """

    def __init__(self, folder: Path | None, size: int = 512, seed: int = 0, spare: int = 32):
        if size < 1:
            raise ValueError(f'size: expected 1 or more windows, came {size}')
        self._folder, self._size, self._spare = folder, size, spare
        self._random = np.random.default_rng(seed)
        self._memory: dict[int, Window] = {}
        self._slots: set[int] = set()
        self.seen = 0
        self.trouble = ''
        if folder is not None:
            self._open(folder)

    def _open(self, folder: Path) -> None:
        """Go on with what an earlier run left."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            remove_parts(folder)
        except OSError as error:
            self.trouble = f'{folder}: {error.strerror}; windows are kept in memory only'
        self._slots = {int(path.stem.removeprefix('window_'))
                       for path in folder.glob('window_*.npz')
                       if path.stem.removeprefix('window_').isdecimal()}
        self._slots = {slot for slot in self._slots if slot < self._size}
        try:
            self.seen = int(json.loads((folder / _STATE).read_text())['seen'])
        except (OSError, ValueError, KeyError, TypeError):
            self.seen = 0
        self.seen = max(self.seen, len(self._slots))

    def __len__(self) -> int:
        return len(self._slots | set(self._memory))

    def offer(self, window: Window) -> bool:
        """
        Take a window, or leave it.

        :return: whether it was taken.
        """
        self.seen += 1
        taken = self._slots | set(self._memory)
        if len(taken) < self._size:
            slot = next(slot for slot in range(self._size) if slot not in taken)
        else:
            slot = int(self._random.integers(self.seen))
            if slot >= self._size:
                return False
        self._store(slot, window)
        return True

    def _store(self, slot: int, window: Window) -> None:
        if self._folder is None:
            self._memory[slot] = window
            return
        try:
            write_atomically(self._path(slot), window.to_bytes())
            write_atomically(self._folder / _STATE, json.dumps({'seen': self.seen}).encode())
            self.trouble = ''
            self._slots.add(slot)
            self._memory.pop(slot, None)
        except OSError as error:
            self.trouble = (f'{self._folder}: {error.strerror}; new windows are kept in memory '
                            'only, make room or give another folder')
            if slot in self._slots:
                return  # the old one is still there
            while len(self._memory) >= self._spare:
                self._memory.pop(next(iter(self._memory)))
            self._memory[slot] = window

    def draw(self, count: int) -> list[Window]:
        """Return windows drawn with equal chance; fewer where files turned out damaged."""
        found = []
        for _ in range(count):
            slots = sorted(self._slots | set(self._memory))
            if not slots:
                break
            window = self._load(slots[int(self._random.integers(len(slots)))])
            if window is not None:
                found.append(window)
        return found

    def __iter__(self) -> Iterator[Window]:
        """Give every window there is."""
        for slot in sorted(self._slots | set(self._memory)):
            window = self._load(slot)
            if window is not None:
                yield window

    def forget(self, episode: str) -> int:
        """
        Remove the windows of an episode that is not to be learned from.

        :return: how many there were.
        """
        count = 0
        for slot in sorted(self._slots | set(self._memory)):
            window = self._load(slot)
            if window is not None and window.episode == episode:
                self._drop(slot)
                count += 1
        return count

    def _load(self, slot: int) -> Window | None:
        if slot in self._memory:
            return self._memory[slot]
        try:
            return Window.from_bytes(self._path(slot).read_bytes())
        except (OSError, ValueError) as error:
            self.trouble = f'{self._path(slot)}: {error}; forgotten'
            self._drop(slot)
            return None

    def _drop(self, slot: int) -> None:
        self._memory.pop(slot, None)
        self._slots.discard(slot)
        if self._folder is not None:
            # From a read-only folder it cannot go; it is not drawn again in this run.
            with contextlib.suppress(OSError):
                self._path(slot).unlink(missing_ok=True)

    def _path(self, slot: int) -> Path:
        assert self._folder is not None
        return self._folder / f'window_{slot:05d}.npz'
