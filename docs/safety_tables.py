"""Tables of safety.md: policies that mean harm, with the filter and without."""

import filter_tables
from placing import rows_of

# figure: heading, factor, format
PEAKS = {
    'worst_position': ('joint to its limit', 1.0, '{:.2f} rad'),
    'worst_velocity': ('joint speed', 1e2, '{:.0f} %'),
    'worst_torque': ('torque', 1e2, '{:.0f} %'),
    'worst_tool_speed': ('tool speed', 1.0, '{:.2f} m/s'),
    'worst_distance': ('distance', 1e3, '{:.0f} mm'),
    'worst_tilt': ('base tilt', 1e3, '{:.0f} mrad'),
}


def trial_table() -> str:
    """
    Table of the trials in MuJoCo.

    :return: Markdown.
    """
    rows = rows_of('safety_trials')
    found = {(row['task'], row['policy'], row['figure']): row['value'] for row in rows}
    counts = {(row['task'], row['policy']): row['n'] for row in rows}
    lines = ['| robot | policy | filter | '
             + ' | '.join(heading for heading, _, _ in PEAKS.values()) + ' | broken |',
             '|---|---|---|' + '---|' * (len(PEAKS) + 1)]
    for task, policy in counts:
        robot, _, kind = task.partition('/')
        cells = []
        for figure, (_, factor, text) in PEAKS.items():
            value = found.get((task, policy, figure))
            cells.append('-' if value is None else text.format(factor * value))
        lines.append(
            f'| {robot} | {kind} | {"on" if policy == "filter" else "off"} | '
            f'{" | ".join(cells)} | {found[task, policy, "violations"]} of '
            f'{counts[task, policy]} |')
    return '\n'.join(lines)


PAGES = {'safety.md': {'trials': trial_table, **filter_tables.TABLES}}
