"""Table of formats.md: what is learned from a real robot's data set."""

from placing import rows_of


def real_robot_table() -> str:
    """
    Errors of policies and of what needs no learning.

    :return: Markdown.
    """
    rows = rows_of('real_robot')
    if not rows:
        return '| not measured yet |\n|---|'
    errors = {}
    for row in rows:
        task, _, unit = row['task'].rpartition(', ')
        errors.setdefault((task, row['policy']), {})[unit] = row
    lines = ['| learned from | policy | arm [rad] | hand | training |', '|---|---|---|---|---|']
    shown = set()
    for (task, policy), units in errors.items():
        # What needs no learning does as well whatever a policy observes.
        same = (policy, *(row['value'] for row in units.values()))
        if same in shown:
            continue
        shown.add(same)
        learned = '+' in policy
        cells = [f'{units[unit]["value"]:.4f} ({units[unit]["low"]:.4f} … '
                 f'{units[unit]["high"]:.4f})' for unit in ('rad', '1')]
        lines.append(f'| {task if learned else ""} | {policy} | {" | ".join(cells)} | '
                     f'{units["rad"]["preset"] if learned else "none"} |')
    return '\n'.join(lines)


PAGES = {'formats.md': {'real_robot': real_robot_table}}
