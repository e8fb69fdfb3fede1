"""Trials of a sweep: one command with some arguments varied, and where each is run."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

# Module of each command, and what tells it where to leave its figures.
COMMANDS = {
    'train': ('liquid_trainer.train', '--output'),
    'train_task': ('liquid_sim.train_task', '--output'),
    'evaluate': ('liquid_sim.evaluate', '--append'),
    'evaluate_task': ('liquid_sim.evaluate_task', '--append'),
}
STATE, LOG, CARD, FIGURES, RESULT = (
    'resume.safetensors', 'log.txt', 'model_card.json', 'figures.jsonl', 'trial.json')


class SweepError(ValueError):
    """A sweep is not described as it should be, or cannot be run here."""


@dataclass(frozen=True)
class Trial:
    """
    One run of the command.

    :param values: of what is varied, by name.
    :param command: its name and arguments, those varied among them.
    :param folder: for everything it writes; what is in it already is gone on from.
    """

    values: dict[str, str]
    command: tuple[str, ...]
    folder: Path

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def result(self) -> dict[str, Any] | None:
        """What came of it, None while it is not finished."""
        try:
            return json.loads((self.folder / RESULT).read_text())
        except (OSError, ValueError):
            return None


def parse_choices(texts: Sequence[str]) -> dict[str, list[str] | tuple[float, float]]:
    """
    Return the choices for each varied argument.

    :param texts: `name=a,b,c`, or `name=low..high` for numbers drawn from a range.
    :raises SweepError: if one is not of that form.
    """
    choices: dict[str, list[str] | tuple[float, float]] = {}
    for text in texts:
        name, equals, values = text.partition('=')
        low, dots, high = values.partition('..')
        if not (name and equals and values) or name in choices:
            raise SweepError(f'--vary: expected name=a,b,c or name=low..high, each name once, '
                             f'came {text!r}')
        if dots:
            try:
                choices[name] = (float(low), float(high))
            except ValueError as error:
                raise SweepError(f'--vary: expected two numbers in {text!r}: {error}') from None
        else:
            choices[name] = values.split(',')
    return choices


def combinations(choices: dict[str, list[str] | tuple[float, float]], samples: int | None = None,
                 seed: int = 0) -> list[dict[str, str]]:
    """
    Return every combination of choices, or some of them.

    :param choices: lists, or ranges (low, high); those above 0 are drawn from on a logarithmic
        scale.
    :param samples: how many to draw at random; needed where there is a range.
    :param seed: of what is drawn: the first ones stay when more are asked for.
    :raises SweepError: if there is a range and no number of samples.
    """
    ranges = [name for name, values in choices.items() if isinstance(values, tuple)]
    if samples is None:
        if ranges:
            raise SweepError(f'--vary: expected --samples with the range of {ranges[0]}')
        lists = [list(map(str, values)) for values in choices.values()]
        return [dict(zip(choices, values, strict=True)) for values in itertools.product(*lists)]
    rng = np.random.default_rng(seed)
    drawn: dict[tuple, dict[str, str]] = {}
    for _ in range(100 * samples):
        values = {}
        for name, values_of in choices.items():
            if isinstance(values_of, tuple):
                low, high = values_of
                share = rng.random()
                number = low * (high / low) ** share if low > 0 else low + share * (high - low)
                values[name] = f'{number:.4g}'
            else:
                values[name] = values_of[int(rng.integers(len(values_of)))]
        drawn.setdefault(tuple(values.values()), values)
        if len(drawn) == samples:
            break
    return list(drawn.values())


def make_trials(command: Sequence[str], points: Sequence[dict[str, str]],
                folder: Path) -> list[Trial]:
    """
    Return the trials of a sweep.

    A varied name takes the place of `{name}` in the command; a name with a point in it joins
    what `--set` gives; any other one becomes an option.

    :param command: one of `COMMANDS` or a module's dotted name, and its arguments.
    :param points: values of what is varied, by name.
    :param folder: for the trials' folders.
    :raises SweepError: if the command is unknown.
    """
    if not command or (command[0] not in COMMANDS and '.' not in command[0]):
        raise SweepError(f'expected a command after --, one of {", ".join(COMMANDS)} or a module, '
                         f'came {command[0] if command else "none"!r}')
    trials = []
    for values in points:
        given = list(command)
        for name, value in values.items():
            if any(f'{{{name}}}' in part for part in given):
                given = [part.replace(f'{{{name}}}', value) for part in given]
            elif '.' in name:
                if '--set' not in given:
                    given.append('--set')
                given.insert(given.index('--set') + 1, f'{name}={value}')
            else:
                given += [f'--{name}', value]
        name = ','.join(f'{key}={_last(value)}' for key, value in values.items()) or 'only'
        trials.append(Trial(values, tuple(given), folder / re.sub(r'[^\w.,=+-]', '_', name)))
    if len({trial.folder for trial in trials}) < len(trials):
        trials = [replace(trial, folder=trial.folder.with_name(f'{i:03d},{trial.name}'))
                  for i, trial in enumerate(trials)]
    return trials


def _last(value: str) -> str:
    """Return what tells paths apart: a checkpoint's folder, a file's name."""
    path = Path(value)
    return path.parent.name if path.name == 'checkpoint.safetensors' else path.name


def run_trial(trial: Trial, folder: str = '.') -> dict[str, Any]:
    """
    Run a trial in a process of its own and return what came of it.

    :param folder: to run it in; relative paths of the command start there.
    :return: `status` (`done` or `failed`), `seconds`, `figures` by name, and `error`: the last
        line it wrote if it failed. The same is written into the trial's folder.
    """
    place = trial.folder
    place.mkdir(parents=True, exist_ok=True)
    module, option = COMMANDS.get(trial.command[0], (trial.command[0], '--output'))
    line = [sys.executable, '-m', module, *trial.command[1:],
            option, str(place if option == '--output' else place / FIGURES)]
    if (place / STATE).exists():
        line.append('--resume')
    (place / FIGURES).unlink(missing_ok=True)
    began = time.monotonic()
    with open(place / LOG, 'a', encoding='utf-8') as log:
        code = subprocess.run(line, stdout=log, stderr=subprocess.STDOUT, check=False,
                              cwd=folder if Path(folder).is_dir() else None).returncode
    found: dict[str, Any] = {'status': 'done' if code == 0 else 'failed', 'values': trial.values,
                             'seconds': round(time.monotonic() - began, 1), 'figures': {}}
    if code == 0:
        found['figures'] = figures_of(place)
    else:
        lines = (place / LOG).read_text(encoding='utf-8', errors='replace').split('\n')
        said = [text.strip() for text in lines if text.strip()]
        found['error'] = said[-1] if said else f'ended with {code} and said nothing'
    _write(place / RESULT, found)
    return found


def figures_of(folder: Path) -> dict[str, float]:
    """Return the figures a command left: held-out scores, or an evaluation's."""
    figures: dict[str, float] = {}
    if (folder / CARD).exists():
        card = json.loads((folder / CARD).read_text())
        figures |= card.get('held_out') or {}
    if (folder / FIGURES).exists():
        for line in (folder / FIGURES).read_text().splitlines():
            row = json.loads(line)
            figures[row['figure']] = row['value']
    return figures


def _write(path: Path, content: dict[str, Any]) -> None:
    beside = path.with_name(f'.{path.name}.{os.getpid()}.part')
    beside.write_text(json.dumps(content, indent=2) + '\n')
    os.replace(beside, path)


def run_here(trials: Sequence[Trial], processes: int) -> Iterator[tuple[Trial, dict[str, Any]]]:
    """Run trials in processes of this machine; yield each with what came of it."""
    with ThreadPoolExecutor(processes) as pool:
        waiting = {pool.submit(run_trial, trial, str(Path.cwd())): trial for trial in trials}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def run_on_ray(trials: Sequence[Trial], address: str, cpus: float = 1.0,
               gpus: float = 0.0) -> Iterator[tuple[Trial, dict[str, Any]]]:
    """
    Run trials on Ray; yield each with what came of it.

    A machine of the cluster that does not share the trials' folder keeps checkpoints there; the
    figures come back either way.

    :param address: `local` starts Ray on this machine, `auto` joins the one that runs here,
        `host:port` or `ray://host:port` another one.
    :param cpus: processors a trial takes.
    :param gpus: accelerators a trial takes.
    :raises SweepError: if Ray is not installed or cannot be reached.
    """
    try:
        import ray
    except ImportError as error:
        raise SweepError(
            f'--address: expected Ray, came {error}; `pip install -r '
            'docker/requirements-scale.txt`, or leave out --address: trials then run in '
            'processes of this machine') from None
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False
                 if address == 'local' else None)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SweepError(f'--address: expected a Ray cluster at {address!r}, came: {error}; '
                         '`ray start --head` starts one, `--address local` needs none') from None
    try:
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus)(run_trial)
        waiting = {remote.remote(trial, str(Path.cwd())): trial for trial in trials}
        while waiting:
            ready, _ = ray.wait(list(waiting))
            for reference in ready:
                trial = waiting.pop(reference)
                try:
                    found = ray.get(reference)
                except ray.exceptions.RayError as error:
                    found = {'status': 'failed', 'values': trial.values, 'seconds': 0.0,
                             'figures': {}, 'error': str(error).strip().split('\n')[-1]}
                if trial.result is None:
                    trial.folder.mkdir(parents=True, exist_ok=True)
                    _write(trial.folder / RESULT, found)
                yield trial, found
    finally:
        ray.shutdown()
