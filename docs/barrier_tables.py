"""
Write the tables of docs/barrier_layer.md and docs/identify.md from the benchmarks' files.

Usage: docker/in_environment.sh python3 docs/barrier_tables.py [--check]

Each table stands between `<!-- NAME -->` and `<!-- end -->`; with `--check` nothing is written and
the exit status is 1 if a table is out of date.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / 'test' / 'benchmarks' / 'results'


def rows_of(name: str) -> dict[tuple[str, str, str], dict]:
    """
    Rows of a benchmark.

    :param name: of its result file.
    :return: by figure, task and policy, in the file's order.
    """
    lines = (RESULTS / f'{name}.jsonl').read_text(encoding='utf-8').splitlines()
    return {(row['figure'], row['task'], row['policy']): row for row in map(json.loads, lines)}


def solver_table() -> str:
    """
    Table of differentiable solvers.

    :return: Markdown.
    """
    rows = rows_of('barrier_layer')
    tasks = list(dict.fromkeys(task for figure, task, _ in rows if figure == 'forward_p50'))
    lines = ['| solver | largest error | '
             + ' | '.join(f'{task.replace("_", " ")} [ms]' for task in tasks) + ' |',
             '|---|---|' + '---|' * len(tasks)]
    for policy in dict.fromkeys(policy for _, _, policy in rows):
        error = rows['error_max', 'random', policy]
        times = [' / '.join(f'{1e3 * rows[figure, task, policy]["value"]:.3g}'
                            for figure in ('forward_p50', 'gradient_p50')) for task in tasks]
        lines.append(f'| {policy} | {error["value"]:.1e} ({error["n"]} problems) | '
                     + ' | '.join(times) + ' |')
    return '\n'.join(lines)


def obstacle_table() -> str:
    """
    Table of the robot and the disc.

    :return: Markdown.
    """
    rows = rows_of('obstacle')
    lines = ['| disc | driver | success | touched the disc | decisions changed | closest |',
             '|---|---|---|---|---|---|']
    for figure, task, policy in rows:
        if figure != 'success':
            continue
        cells = []
        for name in ('success', 'violations', 'interventions'):
            row = rows[name, task, policy]
            cells.append(f'{row["value"]:.1%} ({row["low"]:.1%} … {row["high"]:.1%})')
        closest = rows['smallest_distance', task, policy]['value']
        lines.append(f'| {task.removeprefix("obstacle_")} | {policy} | {" | ".join(cells)} | '
                     f'{closest:.2f} m |')
    return '\n'.join(lines)


def torque_table() -> str:
    """
    Table of torque errors and margins.

    :return: Markdown.
    """
    rows = rows_of('torque_margin')
    joints = list(dict.fromkeys(figure.removeprefix('torque_margin_') for figure, _, _ in rows
                                if figure.startswith('torque_margin_')))
    lines = ['| predicted | model | | ' + ' | '.join(joint.replace('_', ' ') for joint in joints)
             + ' |', '|---|---|---|' + '---|' * len(joints)]
    for task, policy in dict.fromkeys((task, policy) for _, task, policy in rows):
        for figure, label in (('torque_error_rms', 'rms'), ('torque_margin', '99.9 %')):
            cells = [f'{rows[f"{figure}_{joint}", task, policy]["value"]:.2f}' for joint in joints]
            lines.append(f'| {task.replace("_", " ")} | {policy} | {label} | '
                         + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


PAGES = {'barrier_layer.md': {'solvers': solver_table, 'obstacle': obstacle_table},
         'identify.md': {'torque': torque_table}}


def fill(page: str, text: str) -> str:
    """
    Bring a page's tables up to date.

    :param page: file name, one of `PAGES`.
    :param text: the page.
    :return: the same with new tables.
    :raises ValueError: if a table's place is missing.
    """
    for name, table in PAGES[page].items():
        pattern = re.compile(rf'(<!-- {name} -->\n)(?:(?!<!--).)*(<!-- end -->)', re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f'{page}: no place <!-- {name} --> ... <!-- end -->')
        new = table()
        text = pattern.sub(lambda match, new=new: match[1] + new + '\n' + match[2], text)
    return text


def main() -> int:
    """
    Write or check the tables.

    :return: exit status.
    """
    stale = 0
    for page in PAGES:
        path = ROOT / 'docs' / page
        text = path.read_text(encoding='utf-8')
        filled = fill(page, text)
        if '--check' not in sys.argv[1:]:
            path.write_text(filled, encoding='utf-8')
        elif filled != text:
            print(f'{page}: tables are out of date; run docs/barrier_tables.py', file=sys.stderr)
            stale = 1
    return stale


if __name__ == '__main__':
    sys.exit(main())
