"""
Does a trainer that is killed while it promotes ever leave half a checkpoint, or a worse one?

A child promotes without end: every checkpoint carries a score, each promoted one a better one than
the one before, and every third promotion is rolled back, as after a bad watch. After a random time
it is killed (SIGKILL), and what it left is judged as the next trainer and the policy node would:
the ledger must name a file that loads with its checksum, all other checkpoints must be whole, and
the one in charge must be one that had passed, never worse than before the kill.

`docker/in_environment.sh python3 test/benchmarks/promotion_kills.py --kills 200`: 3 to 10 minutes.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np

from liquid_policy.checkpoint import Checkpoint, file_digest, load_checkpoint
from liquid_policy.files import PART
from liquid_policy.interface import load_interface
from liquid_trainer.online.promotion import Promotions, Standing

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / 'results' / 'promotion_kills.jsonl'
INTERFACE = ROOT / 'liquid_policy_node' / 'config' / 'manipulator.interface.yaml'
WEIGHTS = 250_000       # numbers in a checkpoint: 1 MB


def made(number: int, score: float, interface) -> Checkpoint:
    """Return a checkpoint that carries its score."""
    return Checkpoint(f'model+online.{number}', {}, interface, {'score': score},
                      {'w': np.full(WEIGHTS, number, np.float32)})


def open_folder(folder: Path, interface, passed=lambda step: None) -> Promotions:
    """Go on with the promotions in a folder."""
    path = folder / 'start.safetensors'
    if not path.exists():
        made(0, 0.0, interface).save(path)
    return Promotions(folder / 'online', Standing('model+online.0', str(path), file_digest(path)),
                      passed=passed)


def promote_for_ever(folder: Path) -> None:
    """Be the child: promote, confirm, settle or roll back; say which step is done."""
    interface = load_interface(INTERFACE)
    promotions = open_folder(folder, interface, lambda step: print(step, flush=True))
    while True:
        ledger = promotions.ledger
        number = ledger.promotions + 1
        best = ledger.running.load().card['score']
        promotions.promote(made(number, best + 1.0, interface), lambda read: None)
        promotions.confirm()
        if number % 3 == 0:
            promotions.roll_back()
        else:
            promotions.settle()


def kill_once(folder: Path, steps: int, wait: float) -> str:
    """
    Start a child, kill it, and return the last step it had done.

    :param steps: that the child is left to do.
    :param wait: time after the last of them [s].
    """
    child = subprocess.Popen([sys.executable, __file__, '--child', str(folder)],
                             stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    done = [child.stdout.readline() for _ in range(steps)]
    time.sleep(wait)
    child.send_signal(signal.SIGKILL)
    done += child.stdout.read().splitlines()
    child.wait()
    return done[-1].strip() if done else 'nothing'


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--kills', type=int, default=200)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--append', type=Path, default=RESULTS)
    parser.add_argument('--child', type=Path, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        promote_for_ever(arguments.child)
    # Not needed by the child, and slow to import.
    from liquid_sim.evaluate import append_rows, commit, wilson
    interface, random = load_interface(INTERFACE), np.random.default_rng(arguments.seed)
    steps: Counter[str] = Counter()
    halves = worse = lost = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = open_folder(folder, interface).ledger.running.load().card['score']
        for _ in range(arguments.kills):
            steps[kill_once(folder, int(random.integers(1, 16)), random.uniform(0.0, 0.03))] += 1
            promotions = open_folder(folder, interface)
            lost += bool(promotions.recovered) and 'returned' in promotions.recovered
            try:
                score = promotions.ledger.running.load().card['score']
                for path in promotions.models.glob('*.safetensors'):
                    load_checkpoint(path)
            except ValueError:
                halves += 1
                continue
            halves += len(list((folder / 'online').rglob(f'.*{PART}')))
            # A roll-back returns to the one before, which is one worse in these scores; an
            # unsettled promotion may be in charge until its watch ends.
            worse += score < before - 1.0
            before = score
    print(f'{arguments.kills} kills; last step done: {dict(steps)}')
    about = {'task': 'kills', 'policy': 'promotion', 'seeds': [arguments.seed], 'preset': 'full',
             'commit': commit(), 'machine': f'{platform.machine()}, {os.cpu_count()} cores',
             'date': date.today().isoformat(), 'n': arguments.kills}
    rows = []
    for figure, count in (('half_checkpoints', halves), ('worse_in_charge', worse),
                          ('lost_promotions', lost)):
        low, high = wilson(count, arguments.kills)
        rows.append({'figure': figure, 'value': count / arguments.kills, 'low': low, 'high': high,
                     'unit': '1', **about})
        print(f'{figure}: {count}')
    append_rows(arguments.append, rows)


if __name__ == '__main__':
    main()
