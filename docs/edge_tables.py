"""Tables of edge.md: what was to be reached, and what was measured."""

import math
import sys

from placing import ROOT, rows_of

PARTS = ('step_latency', 'graph_latency')


def target_table() -> str:
    """
    Table of the benchmark's targets.

    :return: Markdown.
    """
    sys.path.insert(0, str(ROOT / 'test' / 'benchmarks'))
    from bench import Figures, targets

    rows = [{'part': part, **row} for part in PARTS for row in rows_of(part)]
    lines = ['| what | measured | wanted |', '|---|---|---|']
    for name, unit, value, target, better in targets(Figures(rows)):
        word = 'below' if better == 'less' else 'at least'
        found = f'{value:.3g} {unit}' if math.isfinite(value) else 'not measured'
        lines.append(f'| {name} | {found} | {word} {target:g} {unit} |')
    return '\n'.join(lines)


PAGES = {'edge.md': {'targets': target_table}}
