"""
Write the tables of docs/cores.md: options from the code, figures from the benchmarks.

Usage: docker/in_environment.sh python3 docs/core_tables.py [--check]

Each table stands between `<!-- NAME -->` and `<!-- end -->`; with `--check` nothing is written and
the exit status is 1 if a table is out of date.
"""

import json
import re
import sys
from dataclasses import fields
from pathlib import Path

from liquid_policy.core_settings import CORES, CoreSettings

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / 'docs' / 'cores.md'
RESULTS = ROOT / 'test' / 'benchmarks' / 'results'


def rows_of(name: str) -> list[dict]:
    """
    Rows of a benchmark.

    :param name: of its result file.
    :return: one dictionary per line.
    """
    lines = (RESULTS / f'{name}.jsonl').read_text(encoding='utf-8').splitlines()
    return [json.loads(line) for line in lines]


def option_table() -> str:
    """
    Table of a core's options.

    :return: Markdown.
    """
    lines = ['| option | default | of | meaning |', '|---|---|---|---|']
    for item in fields(CoreSettings):
        kinds = ', '.join(item.metadata.get('kinds', ('all',)))
        default = str(item.default).lower() if isinstance(item.default, bool) else item.default
        unit = f' [{item.metadata["unit"]}]' if 'unit' in item.metadata else ''
        meaning = item.metadata['description'].replace('|', '\\|')
        lines.append(f'| `{item.name}` | `{default}` | {kinds} | {meaning}{unit} |')
    return '\n'.join(lines)


def speed_table() -> str:
    """
    Table of training steps and how they compare.

    :return: Markdown.
    """
    rows = rows_of('sequence_training')
    lines = ['| batch x steps | core | a training step | against |', '|---|---|---|---|']
    for row in rows:
        if row['figure'] != 'training_step_p50':
            continue
        ratios = [f'{other["value"]:.1f} x {other["against"]} ({other["low"]:.1f} … '
                  f'{other["high"]:.1f})' for other in rows
                  if other['figure'] == 'speedup'
                  and (other['task'], other['policy']) == (row['task'], row['policy'])]
        lines.append(
            f'| {row["task"]} | {row["policy"]} | {1e3 * row["value"]:.0f} ms '
            f'({1e3 * row["low"]:.0f} … {1e3 * row["high"]:.0f}) | {", ".join(ratios) or "—"} |')
    return '\n'.join(lines)


def accuracy_table() -> str:
    """
    Table of what the cores learn.

    :return: Markdown.
    """
    rows = rows_of('core_accuracy')
    lines = ['| core | error of rates | error of the cue |', '|---|---|---|']
    for name in dict.fromkeys(row['policy'] for row in rows):
        found = {row['task']: row for row in rows if row['policy'] == name}
        cells = [f'{found[task]["value"]:.3f} ({found[task]["low"]:.3f} … '
                 f'{found[task]["high"]:.3f})' for task in ('rates', 'cue')]
        lines.append(f'| {name} | {cells[0]} | {cells[1]} |')
    return '\n'.join(lines)


def fill(text: str) -> str:
    """
    Bring the page's tables up to date.

    :param text: the page.
    :return: the same with new tables.
    :raises ValueError: if a table's place is missing, or a core is not mentioned.
    """
    for kind in CORES:
        if f'`{kind}`' not in text:
            raise ValueError(f'cores.md: core `{kind}` is not mentioned')
    tables = {'options': option_table(), 'speed': speed_table(), 'accuracy': accuracy_table()}
    for name, table in tables.items():
        pattern = re.compile(rf'(<!-- {name} -->\n)(?:(?!<!--).)*(<!-- end -->)', re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f'cores.md: no place <!-- {name} --> ... <!-- end -->')
        text = pattern.sub(lambda match, table=table: match[1] + table + '\n' + match[2], text)
    return text


def main() -> int:
    """
    Write or check the tables.

    :return: exit status.
    """
    text = PAGE.read_text(encoding='utf-8')
    filled = fill(text)
    if '--check' in sys.argv[1:]:
        if filled != text:
            print('cores.md: tables are out of date; run docs/core_tables.py', file=sys.stderr)
        return int(filled != text)
    PAGE.write_text(filled, encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
