"""Tables of point_maze.md, can.md and push_t_image.md: how often policies do the tasks."""

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
    score = next(row['figure'] for row in rows if row['figure'] != 'success')
    heading = {'progress': 'way covered'}.get(score, score)
    lines = [f'| task | policy | success | {heading} | episodes | parameters | steps learned |',
             '|---|---|---|---|---|---|---|']
    for row in rows:
        if row['figure'] != 'success':
            continue
        mean = next(other for other in rows if other['figure'] == score
                        and (other['task'], other['policy']) == (row['task'], row['policy']))
        lines.append(
            f'| {row["task"]} | {row["policy"]} | {row["value"]:.1%} ({row["low"]:.1%} … '
            f'{row["high"]:.1%}) | {mean["value"]:.3f} | {row["n"]} | '
            f'{row["parameters"]:,} | {row["training_steps"]:,} |')
    return '\n'.join(lines)


PAGES = {'point_maze.md': {'results': partial(success_table, 'point_maze')},
         'can.md': {'results': partial(success_table, 'can')},
         'push_t_image.md': {'results': partial(success_table, 'push_t_image')}}
