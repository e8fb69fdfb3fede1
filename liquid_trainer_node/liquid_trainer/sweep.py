"""
Run a command many times with some arguments varied, and say which did best.

Example: `sweep --output runs/sweep --vary core=cfc,lstm --vary seed=0,1,2 -- train --bags
runs/demonstrations --interface config/manipulator.interface.yaml --stage-steps 0,2000,0`.
Trials run in processes of this machine, or on Ray with `--address local`, `auto` or the address
of a cluster. A sweep that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from liquid_trainer.trials import (
    SweepError,
    Trial,
    combinations,
    make_trials,
    parse_choices,
    run_here,
    run_on_ray,
)

# Figures of which more is better, most telling first; then those of which less is.
_MORE, _LESS = ('success', 'score', 'coverage'), ('nll', 'loss')
_SHOWN = 6          # figures in the table


def rank(results: Sequence[tuple[Trial, dict[str, Any]]], metric: str | None = None
         ) -> tuple[str | None, list[tuple[Trial, dict[str, Any]]]]:
    """
    Return the metric and the results, best first; those without it come last.

    :param metric: a figure's name; the most telling one there is when left out.
    :raises SweepError: if no trial has that figure.
    """
    names = list(dict.fromkeys(name for _, found in results for name in found['figures']))
    if metric is None:
        known = [name for name in (*_MORE[:2], *_LESS) if name in names]
        metric = known[0] if known else (names[0] if names else None)
    elif names and metric not in names:
        raise SweepError(f'--metric: expected one of {", ".join(names)}, came {metric!r}')
    sign = -1.0 if metric in _MORE else 1.0

    def order(result: tuple[Trial, dict[str, Any]]) -> float:
        value = result[1]['figures'].get(metric)
        return sign * value if value is not None and value == value else float('inf')

    return metric, sorted(results, key=order)


def table(results: Sequence[tuple[Trial, dict[str, Any]]], metric: str | None) -> str:
    """Return the results as text, a line for each trial."""
    varied = list(dict.fromkeys(name for trial, _ in results for name in trial.values))
    figures = list(dict.fromkeys(name for _, found in results for name in found['figures']))
    figures = ([metric] if metric else []) + [name for name in figures if name != metric]
    figures = figures[:_SHOWN]
    lines = [[*varied, *figures, 'seconds', '']]
    for trial, found in results:
        shown = [found['figures'].get(name) for name in figures]
        lines.append([*(trial.values.get(name, '') for name in varied),
                      *('-' if value is None else f'{value:.4g}' for value in shown),
                      f'{found["seconds"]:.0f}', found.get('error', '')])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join('  '.join(text.ljust(width) for text, width in
                               zip(line, widths, strict=True)).rstrip() for line in lines)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line; `command` is what stands behind `--`."""
    parser = argparse.ArgumentParser(prog='sweep', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', required=True, type=Path, help='folder to write')
    parser.add_argument('--vary', action='append', default=[], metavar='NAME=A,B,C',
                        help='an argument and its values; NAME=LOW..HIGH with --samples. A NAME '
                        'with a point is given by --set, {NAME} in the command is replaced')
    parser.add_argument('--samples', type=int, default=None,
                        help='draw so many combinations instead of taking all')
    parser.add_argument('--seed', type=int, default=0, help='of what is drawn')
    parser.add_argument('--metric', default=None, help='figure to rank by')
    parser.add_argument('--processes', type=int, default=os.cpu_count() or 1,
                        help='trials at a time, without Ray (default %(default)s)')
    parser.add_argument('--address', default=None,
                        help='run on Ray: local, auto, host:port or ray://host:port')
    parser.add_argument('--cpus', type=float, default=1.0, help='of a trial on Ray')
    parser.add_argument('--gpus', type=float, default=0.0, help='of a trial on Ray')
    parser.add_argument('command', nargs=argparse.REMAINDER, help='-- and what is run')
    arguments = parser.parse_args(argv)
    if arguments.command[:1] == ['--']:
        del arguments.command[0]
    return arguments


def run(arguments: argparse.Namespace) -> list[tuple[Trial, dict[str, Any]]]:
    """Run what is left of a sweep and return all results, in the order of the trials."""
    points = combinations(parse_choices(arguments.vary), arguments.samples, arguments.seed)
    trials = make_trials(arguments.command, points, arguments.output.resolve() / 'trials')
    results: dict[str, dict[str, Any]] = {}
    for trial in trials:
        found = trial.result
        if found is not None and found['status'] == 'done':
            results[trial.name] = found
    left = [trial for trial in trials if trial.name not in results]
    if len(left) < len(trials):
        print(f'{len(trials) - len(left)} of {len(trials)} trials are finished and kept')
    run_left = (run_here(left, arguments.processes) if arguments.address is None else
                run_on_ray(left, arguments.address, arguments.cpus, arguments.gpus))
    with tqdm(total=len(trials), initial=len(results), unit='trial', disable=None) as bar:
        for trial, found in run_left if left else ():
            results[trial.name] = found
            known = [(t, results[t.name]) for t in trials if t.name in results]
            metric, ranked = rank(known, arguments.metric)
            if metric and metric in ranked[0][1]['figures']:
                bar.set_postfix_str(f'best {metric} {ranked[0][1]["figures"][metric]:.4g}')
            bar.update()
    return [(trial, results[trial.name]) for trial in trials]


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when every trial was finished."""
    arguments = parse_arguments(argv)
    try:
        results = run(arguments)
        metric, ranked = rank(results, arguments.metric)
    except (SweepError, OSError) as error:
        print(f'sweep: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('sweep: stopped; the same command goes on', file=sys.stderr)
        return 130
    path = arguments.output / 'results.jsonl'
    path.write_text(''.join(json.dumps({'trial': trial.name, **found}) + '\n'
                            for trial, found in ranked))
    print(table(ranked, metric))
    trial, found = ranked[0]
    if metric in found['figures']:
        print(f'best: {metric} {found["figures"][metric]:.4g}: {trial.folder}')
    failed = sum(found['status'] != 'done' for _, found in results)
    if failed:
        print(f'sweep: {failed} of {len(results)} trials failed, see {path} and their '
              f'log.txt; the same command tries them again', file=sys.stderr)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
