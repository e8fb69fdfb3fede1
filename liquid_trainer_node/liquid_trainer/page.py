"""
One HTML page that needs nothing else: tiles, findings, tables and plots one can zoom.

What is in the plots is made by `liquid_trainer.plots`.
"""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

HINT = 'Drag in a plot over time to zoom all of them, double-click to zoom out.'


@dataclass(frozen=True)
class Block:
    """
    A table, for the terminal and for the page.

    :param title: heading.
    :param head: names of the columns.
    :param rows: cells as text, each row as long as `head`.
    :param note: what a reader must know to read the numbers; may be empty.
    :param wide: as wide as the page; otherwise two stand side by side.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ''
    wide: bool = False


@dataclass(frozen=True)
class Page:
    """
    What a page shows.

    :param title: heading.
    :param subtitle: lines below it.
    :param tiles: from `tile`, joined.
    :param data: `duration` [s], `groups` of plots, `bands` by name, and what `script` reads.
    :param blocks: tables.
    :param note: sentence above the tables.
    :param lead: HTML between tiles and tables.
    :param footer: last line.
    :param style: CSS besides the page's own.
    :param script: JavaScript besides the page's own, run when the plots are there.
    """

    title: str
    subtitle: Sequence[str]
    tiles: str
    data: dict[str, Any]
    blocks: Sequence[Block] = ()
    note: str = ''
    lead: str = ''
    footer: str = HINT
    style: str = ''
    script: str = ''

    def html(self) -> str:
        """Return the page without any reference to another file."""
        data = {'bands': {}, **self.data}
        replacements = {
            'STYLE': page_file('page.css') + self.style,
            'SCRIPT': page_file('plots.js') + self.script + 'setTime(data.begin || 0);\n',
            'TITLE': html.escape(self.title),
            'SUBTITLE': '<br>'.join(html.escape(line) for line in self.subtitle),
            'TILES': self.tiles,
            'LEAD': self.lead,
            'NOTE': html.escape(self.note),
            'TABLES': tables(self.blocks),
            'FOOTER': html.escape(self.footer),
            # `</script>` inside a string would end the script element.
            'DATA': json.dumps(data, separators=(',', ':'), allow_nan=False).replace(
                '</', '<\\/'),
        }
        text = page_file('page.html')
        for name, value in replacements.items():
            text = text.replace(f'@{name}@', value)
        return text


def page_file(name: str, package: str = 'liquid_trainer', folder: str = 'page_files') -> str:
    """Return the text of a file that pages are made of."""
    return (resources.files(package) / folder / name).read_text('utf-8')


def write_page(text: str, output: str | Path) -> int:
    """
    Write a page beside its final place, then move it there.

    :return: size of the file [bytes].
    """
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = output.with_name(f'.{output.name}.{os.getpid()}')
    beside.write_text(text, 'utf-8')
    beside.replace(output)
    return output.stat().st_size


def number(value: float | None, digits: int = 1, factor: float = 1.0) -> str:
    """
    Return a number as text, a dash for unknown ones.

    :param value: None and NaN are unknown.
    :param digits: digits behind the point.
    :param factor: the value is multiplied with this first (1000 for milliseconds).
    """
    if value is None or not math.isfinite(value):
        return '–'
    return f'{value * factor:,.{digits}f}'


def tile(value: str, unit: str, label: str, tone: str = '') -> str:
    """
    Return one figure of the summary.

    :param tone: `good`, `warn`, `bad` or empty.
    """
    small = f'<small>{html.escape(unit)}</small>' if unit else ''
    return (f'<div class="tile {tone}"><b>{html.escape(value)}{small}</b>'
            f'<span>{html.escape(label)}</span></div>')


def tone_of(value: float, good: float, bearable: float) -> str:
    """Return good, warn or bad for a value of which less is better."""
    if not math.isfinite(value):
        return ''
    return 'good' if value <= good else 'warn' if value <= bearable else 'bad'


def findings(found: Sequence[tuple[str, str]]) -> str:
    """
    Return remarks as a list.

    :param found: tone (`good`, `warn`, `bad`) and text of each.
    """
    items = ''.join(f'<li class="{tone}">{html.escape(text)}</li>' for tone, text in found)
    return f'<section><h2>Findings</h2><ul class="findings">{items}</ul></section>'


def tables(blocks: Sequence[Block]) -> str:
    """Return tables as HTML."""
    pieces = []
    for block in blocks:
        head = ''.join(f'<th>{html.escape(cell)}</th>' for cell in block.head)
        rows = ''.join('<tr>' + ''.join(f'<td>{html.escape(cell)}</td>' for cell in row) + '</tr>'
                       for row in block.rows)
        note = f'<p class="note">{html.escape(block.note)}</p>' if block.note else ''
        shape = 'card wide all' if block.wide else 'card wide'
        pieces.append(f'<div class="{shape}"><h3>{html.escape(block.title)}</h3><table>'
                      f'{f"<thead><tr>{head}</tr></thead>" if any(block.head) else ""}'
                      f'<tbody>{rows}</tbody></table>{note}</div>')
    return ''.join(pieces)


def text(blocks: Sequence[Block]) -> str:
    """Return tables for a terminal: columns aligned, the first to the left."""
    lines: list[str] = []
    for block in blocks:
        heads = [block.head] if any(block.head) else []
        widths = [max((len(row[column]) for row in [*heads, *block.rows]), default=0)
                  for column in range(len(block.head))]
        lines.append(f'-- {block.title} ' + '-' * max(0, 74 - len(block.title)))
        for row in [*heads, *block.rows]:
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            lines.append('  ' + '  '.join(cells).rstrip())
        lines.append('')
    return '\n'.join(lines).rstrip()
