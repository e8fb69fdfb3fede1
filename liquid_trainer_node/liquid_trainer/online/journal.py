"""An append-only log of what the learner decided and why."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from liquid_trainer.online.files import append_line


class Journal:
    """
    One JSON line per decision: `date`, `event`, `text`, and the numbers behind it.

    :param path: of the log; None keeps the newest lines in memory only.
    :param now: date and time of a line.
    """

    def __init__(self, path: Path | None,
                 now: Callable[[], datetime] = lambda: datetime.now(timezone.utc)):
        self._path, self._now = path, now
        self.recent: deque[dict[str, Any]] = deque(maxlen=200)
        self.trouble = ''
        self._waiting: deque[dict[str, Any]] = deque(maxlen=1000)

    @property
    def last(self) -> str:
        """Return the newest decision in words; empty before the first."""
        return self.recent[-1]['text'] if self.recent else ''

    def write(self, event: str, text: str, **values: Any) -> None:
        """
        Add a decision; a disk that cannot be written is no reason to stop deciding.

        Lines that could not be written wait in memory and follow when the disk has room again.
        """
        line = {'date': self._now().isoformat(timespec='milliseconds'), 'event': event,
                'text': text, **values}
        self.recent.append(line)
        if self._path is None:
            return
        self._waiting.append(line)
        self.flush()

    def flush(self) -> None:
        """Write what waits."""
        try:
            while self._waiting:
                assert self._path is not None
                append_line(self._path, self._waiting[0])
                self._waiting.popleft()
            self.trouble = ''
        except OSError as error:
            self.trouble = (f'{self._path}: {error.strerror}; decisions wait in memory, make '
                            'room or give another folder')
