"""Tables of point_maze.md and can.md: how often policies do the tasks."""

from functools import partial

from placing import rows_of


def success_table(name: str) -> str:
    """
    Table of policies.

    :param name: of the result file.
    :return: Markdown.
    """
    rows = rows_of(name)
    if not rows:
        return '| not measured yet |\n|---|'
    lines = ['| task | policy | success | way covered | episodes | parameters | steps learned |',
             '|---|---|---|---|---|---|---|']
    for row in rows:
        if row['figure'] != 'success':
            continue
        progress = next(other for other in rows if other['figure'] == 'progress'
                        and (other['task'], other['policy']) == (row['task'], row['policy']))
        lines.append(
            f'| {row["task"]} | {row["policy"]} | {row["value"]:.1%} ({row["low"]:.1%} … '
            f'{row["high"]:.1%}) | {progress["value"]:.3f} | {row["n"]} | '
            f'{row["parameters"]:,} | {row["training_steps"]:,} |')
    return '\n'.join(lines)


PAGES = {'point_maze.md': {'results': partial(success_table, 'point_maze')},
         'can.md': {'results': partial(success_table, 'can')}}
