"""Killed at every step of a promotion, a whole and known checkpoint is in charge afterwards."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from liquid_policy.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from liquid_policy.interface import load_interface
from liquid_trainer.online.promotion import ANNOUNCED, SETTLED, Promotions, Standing

INTERFACE = load_interface(Path(__file__).resolve().parents[2] / 'liquid_policy_node' / 'config'
                           / 'manipulator.interface.yaml')
STEPS = ('begun', 'written', 'tried', 'in charge', 'tidied', 'confirmed', 'settled',
         'rolled back')
CHILD = """
import os, signal, sys
from test_online_promotion import begin, promote_once
promote_once(begin(sys.argv[1], lambda step: step == sys.argv[2]
                   and os.kill(os.getpid(), signal.SIGKILL)), sys.argv[2])
"""


def made(number):
    """A checkpoint that says which one it is."""
    return Checkpoint(f'model+online.{number}', {}, INTERFACE, {},
                      {'w': np.full(2_000, number, np.float32)})


def begin(folder, passed=lambda step: None):
    """Promotions in a folder whose first checkpoint is number 0."""
    path = Path(folder) / 'start.safetensors'
    if not path.exists():
        made(0).save(path)
    from liquid_policy.checkpoint import file_digest
    start = Standing('model+online.0', str(path), file_digest(path))
    return Promotions(Path(folder) / 'online', start, passed=passed)


def promote_once(promotions, last):
    """One promotion up to a step."""
    promotions.promote(made(promotions.ledger.promotions + 1), lambda read: None, (0.1, 0.2))
    promotions.confirm()
    if last == 'rolled back':
        promotions.roll_back()
    promotions.settle()


@pytest.mark.parametrize('step', STEPS)
def test_a_kill_leaves_a_whole_checkpoint_in_charge(tmp_path, step):
    """After a kill at this step the ledger names a file that loads, and no half file is left."""
    promote_once(begin(tmp_path), 'settled')        # number 1 is in charge
    here = Path(__file__).resolve()
    done = subprocess.run(
        [sys.executable, '-c', CHILD, str(tmp_path), step], capture_output=True, text=True,
        timeout=120, check=False,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(here.parent), *sys.path])})
    assert done.returncode == -signal.SIGKILL, done.stderr
    again = begin(tmp_path)
    ledger = again.ledger
    version = ledger.running.load().version         # whole, and what the ledger says
    before_charge = step in ('begun', 'written', 'tried', 'rolled back')
    assert version == ('model+online.1' if before_charge else 'model+online.2')
    if step in ('in charge', 'tidied'):
        assert ledger.phase == ANNOUNCED and ledger.before == (0.1, 0.2)
        assert ledger.previous.load().version == 'model+online.1'
    assert not list((tmp_path / 'online').rglob('.*.part'))
    for path in again.models.glob('*.safetensors'):
        load_checkpoint(path)
    promote_once(again, 'settled')                  # and it goes on
    assert again.ledger.phase == SETTLED


def test_what_fails_its_trial_is_not_promoted(tmp_path):
    promotions = begin(tmp_path)

    def refuse(read):
        raise ValueError('answers differently')
    with pytest.raises(ValueError, match='answers differently'):
        promotions.promote(made(1), refuse)
    assert promotions.ledger.running.version == 'model+online.0'
    assert not list(promotions.models.glob('*'))


def test_a_damaged_checkpoint_in_charge_gives_way_to_the_one_before(tmp_path):
    """Damaged after the promotion: by a disk, or by somebody."""
    promotions = begin(tmp_path)
    promote_once(promotions, 'settled')
    promotions.promote(made(2), lambda read: None)
    path = Path(promotions.ledger.running.path)
    path.write_bytes(path.read_bytes()[:-100])
    again = begin(tmp_path)
    assert again.ledger.running.version == 'model+online.1' and 'returned' in again.recovered
    (tmp_path / 'online' / 'ledger.json').write_text('{"running": ')
    assert begin(tmp_path).ledger.running.version == 'model+online.0'


def test_a_disk_that_cannot_be_written_leaves_who_is_in_charge(tmp_path, monkeypatch):
    """Full: no promotion; a roll-back holds for this run, and the trouble is named."""
    promotions = begin(tmp_path)
    promote_once(promotions, 'settled')
    promotions.promote(made(2), lambda read: None)
    replaced = os.replace

    def fail(*arguments):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='No space left'):
        promotions.promote(made(3), lambda read: None)
    assert promotions.ledger.running.version == 'model+online.2'
    assert promotions.roll_back().version == 'model+online.1'
    assert 'No space left' in promotions.trouble
    monkeypatch.setattr(os, 'replace', replaced)
    assert begin(tmp_path).ledger.running.version == 'model+online.2'   # watched again


def test_old_files_are_removed_but_never_a_named_one(tmp_path):
    promotions = begin(tmp_path)
    for _ in range(7):
        promote_once(promotions, 'settled')
    names = {path.name for path in promotions.models.glob('*.safetensors')}
    assert len(names) == 5
    assert {'model+online.7.safetensors', 'model+online.6.safetensors'} <= names
    with pytest.raises(ValueError, match='there is none'):
        begin(tmp_path / 'other').roll_back()
    with pytest.raises(CheckpointError, match='expected version'):
        Standing('another', promotions.ledger.running.path, '').load()
