"""Table of bags.md: what curation does to the error on held-out episodes."""

from placing import rows_of

ARMS = {'all': 'all', 'curated': 'what `curate` leaves', 'random': 'as many at random',
        'clean': 'as recorded, without what was added'}
TASKS = {'conveyor_injected': 'repetitions and pauses added',
         'conveyor_as_recorded': 'as recorded, the first half of the order'}


def curation_table() -> str:
    """
    Held-out error of what was learned from, by arm.

    :return: Markdown.
    """
    rows = rows_of('curation')
    figures = {(row['task'], row['policy'], row['figure']): row for row in rows}
    lines = ['| data | learned from | episodes | seconds | held-out NLL | action error |',
             '|---|---|---|---|---|---|']
    for task, policy in dict.fromkeys((row['task'], row['policy']) for row in rows):
        def cell(figure: str, digits: int, arm: tuple[str, str] = (task, policy)) -> str:
            row = figures[(*arm, figure)]
            value, low, high = (f'{row[key]:.{digits}f}' for key in ('value', 'low', 'high'))
            return value if row['n'] == 1 or not digits else f'{value} ({low} … {high})'

        lines.append(f'| {TASKS[task]} | {ARMS[policy]} | {cell("episodes", 0)} | '
                     f'{cell("seconds_of_data", 0)} | {cell("held_out_nll", 3)} | '
                     f'{cell("held_out_action_error", 3)} |')
    return '\n'.join(lines)


PAGES = {'bags.md': {'curation': curation_table}}
