"""Figures into tables, and tables into their places between `<!-- NAME -->` and `<!-- end -->`."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / 'test' / 'benchmarks' / 'results'


def rows_of(name: str) -> list[dict]:
    """
    Rows of a benchmark.

    :param name: of its result file.
    :return: one dictionary per line; none where nothing was measured yet.
    """
    path = RESULTS / f'{name}.jsonl'
    lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def fill(page: str, text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """
    Bring a page's tables up to date.

    :param page: file name, for the error.
    :param text: the page.
    :param tables: makers of Markdown by name.
    :return: the same with new tables.
    :raises ValueError: if a table's place is missing.
    """
    for name, table in tables.items():
        pattern = re.compile(rf'(<!-- {name} -->\n)(?:(?!<!--).)*(<!-- end -->)', re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f'{page}: no place <!-- {name} --> ... <!-- end -->')
        new = table()
        text = pattern.sub(lambda match, new=new: match[1] + new + '\n' + match[2], text)
    return text
