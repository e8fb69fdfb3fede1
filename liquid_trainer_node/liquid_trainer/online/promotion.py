"""Checkpoints that take over, and the ledger that says which one is in charge."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from liquid_policy.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from liquid_policy.files import flush_folder, write_atomically
from liquid_trainer.online.files import remove_parts

SETTLED, ANNOUNCED, WATCHING = 'settled', 'announced', 'watching'
PHASES = (SETTLED, ANNOUNCED, WATCHING)
_LEDGER = 'ledger.json'


@dataclass(frozen=True)
class Standing:
    """
    A checkpoint that is, was, or may come in charge.

    :param version: as written inside it.
    :param path: of the file.
    :param sha256: of the file.
    """

    version: str
    path: str
    sha256: str

    def load(self) -> Checkpoint:
        """
        Read it.

        :raises CheckpointError: if it is missing, damaged or another file.
        """
        checkpoint = load_checkpoint(self.path, self.sha256)
        if checkpoint.version != self.version:
            raise CheckpointError(f'{self.path}: expected version {self.version}, came '
                                  f'{checkpoint.version}')
        return checkpoint


@dataclass(frozen=True)
class Ledger:
    """
    Who is in charge; written as a whole, or not at all.

    :param running: the checkpoint in charge.
    :param previous: the one to return to; None when nothing was promoted yet.
    :param phase: `announced`: the policy node has been told; `watching`: it has confirmed;
        `settled`: it stays.
    :param before: live errors of the last windows under the previous one.
    :param promotions: how many there have been.
    """

    running: Standing
    previous: Standing | None = None
    phase: str = SETTLED
    before: tuple[float, ...] = field(default=())
    promotions: int = 0

    def __post_init__(self):
        if self.phase not in PHASES:
            raise ValueError(f'phase: expected one of {PHASES}, came {self.phase!r}')

    def to_bytes(self) -> bytes:
        """Return the ledger as JSON."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Ledger:
        """
        Return the ledger that `to_bytes` wrote.

        :raises ValueError: if it is damaged.
        """
        try:
            values = json.loads(data)
            previous = values['previous']
            return cls(Standing(**values['running']),
                       None if previous is None else Standing(**previous), values['phase'],
                       tuple(map(float, values['before'])), int(values['promotions']))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'expected a ledger, came: {error}') from error


class Promotions:
    """
    Brings checkpoints into charge so that a crash at any moment leaves a whole one there.

    Each step is one atomic write, and each leads from one good state to another: the file first,
    read back and tried out, then the ledger, then the announcement. What the ledger names exists
    and is whole; what it does not name was never announced.

    :param folder: of the ledger and the checkpoints.
    :param start: the checkpoint learning began with; always there to return to.
    :param passed: called with the name of each step that is done, for tests that end it there.
    """

    def __init__(self, folder: Path, start: Standing, keep: int = 3,
                 passed: Callable[[str], None] = lambda step: None):
        self._folder, self._start, self._keep, self._passed = folder, start, keep, passed
        self.recovered = self.trouble = ''
        self.ledger = self._recover()

    @property
    def models(self) -> Path:
        """The folder of the checkpoints."""
        return self._folder / 'models'

    def _recover(self) -> Ledger:
        """Read the ledger an earlier run left, and believe only what can be loaded."""
        fresh = Ledger(self._start)
        path = self._folder / _LEDGER
        try:
            remove_parts(self._folder)
            remove_parts(self.models)
            data = path.read_bytes()
        except FileNotFoundError:
            return fresh
        except OSError as error:
            self.recovered = f'{path}: {error.strerror}; starting with {self._start.version}'
            return fresh
        try:
            ledger = Ledger.from_bytes(data)
        except ValueError as error:
            self.recovered = f'{path}: {error}; starting with {self._start.version}'
            return fresh
        for standing in (ledger.running, ledger.previous, self._start):
            if standing is None:
                continue
            try:
                standing.load()
            except CheckpointError as error:
                self.recovered = f'{error}'
                continue
            if standing == ledger.running:
                self.recovered = f'goes on with {standing.version}, {ledger.phase}'
                return ledger
            self.recovered += f'; returned to {standing.version}'
            return Ledger(standing, promotions=ledger.promotions)
        return fresh

    def promote(self, checkpoint: Checkpoint, try_out: Callable[[Checkpoint], None],
                before: tuple[float, ...] = ()) -> Standing:
        """
        Put a checkpoint in charge; announce it afterwards.

        :param checkpoint: with a version of its own.
        :param try_out: raises ValueError if the file as read back does not do what it should.
        :param before: see `Ledger`.
        :raises OSError: if it cannot be written; the one in charge stays.
        :raises ValueError: if it cannot be read back or fails the trial; likewise.
        """
        path = (self.models / f'{checkpoint.version}.safetensors').absolute()
        self._passed('begun')
        standing = Standing(checkpoint.version, str(path), checkpoint.save(path))
        flush_folder(path.parent)
        self._passed('written')
        try:
            try_out(standing.load())
            self._passed('tried')
            self._write(Ledger(standing, self.ledger.running, ANNOUNCED, before,
                               self.ledger.promotions + 1))
        except (OSError, ValueError):
            path.unlink(missing_ok=True)
            raise
        self._passed('in charge')
        self._remove_old()
        self._passed('tidied')
        return standing

    def confirm(self) -> None:
        """Note that the policy node proposes with the one in charge."""
        self._change(replace(self.ledger, phase=WATCHING))
        self._passed('confirmed')

    def settle(self) -> None:
        """Note that it stays."""
        self._change(replace(self.ledger, phase=SETTLED, before=()))
        self._passed('settled')

    def roll_back(self) -> Standing:
        """
        Put the previous one in charge again; announce it afterwards.

        :raises ValueError: if there is none.
        """
        previous = self.ledger.previous
        if previous is None:
            raise ValueError('expected a checkpoint before the one in charge, there is none')
        self._change(Ledger(previous, None, SETTLED, (), self.ledger.promotions))
        self._passed('rolled back')
        return previous

    def _change(self, ledger: Ledger) -> None:
        """Change the phase even where the disk refuses: what is decided holds for this run."""
        self.ledger = ledger
        try:
            self._write(ledger)
            self.trouble = ''
        except OSError as error:
            self.trouble = (f'{self._folder}: {error.strerror}; the ledger on disk still says '
                            'what was decided before, make room or give another folder')

    def _write(self, ledger: Ledger) -> None:
        write_atomically(self._folder / _LEDGER, ledger.to_bytes())
        self.ledger = ledger

    def _remove_old(self) -> None:
        """Keep the newest few checkpoints besides the two the ledger names."""
        named = {standing.path for standing in (self.ledger.running, self.ledger.previous)
                 if standing is not None}
        files = sorted(self.models.glob('*.safetensors'), key=lambda path: path.stat().st_mtime)
        for path in [path for path in files if str(path.absolute()) not in named][:-self._keep]:
            path.unlink(missing_ok=True)
