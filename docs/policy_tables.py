"""Tables of benchmark.md: policies against each other."""

from placing import rows_of

TITLES = {'heads': 'Heads', 'fractions': 'Share of the demonstrations', 'cores': 'Cores',
          'elapsed': 'Three in ten observations lost', 'sizes': 'Hidden units',
          'solvers': 'Solvers of the ODE core', 'components': 'Components of the mixture'}


def table_of(rows: list[dict]) -> list[str]:
    """
    Table of some policies, best first.

    :param rows: of one task and one question.
    :return: lines of Markdown.
    """
    figures = {(row['policy'], row['figure']): row for row in rows}
    score = next(row['figure'] for row in rows
                 if row['unit'] == '1' and row['figure'] != 'success')
    lines = [f'| policy | success | by seed | episodes | {score} | error | best of 8 | NLL | '
             'parameters |', '|---|---|---|---|---|---|---|---|---|']
    won = [row for row in rows if row['figure'] == 'success']
    for row in won if row_order(won) else sorted(won, key=lambda row: -row['value']):
        def cell(figure: str, policy: str = row['policy'], digits: int = 2) -> str:
            found = figures.get((policy, figure))
            return f'{found["value"]:.{digits}f}' if found else '—'
        each = ' '.join(f'{100 * value:.0f}' for value in row['each'])
        lines.append(
            f'| {row["policy"]} | {row["value"]:.1%} ({row["low"]:.1%} … {row["high"]:.1%}) | '
            f'{each} | {row["n"]} | {cell(score, digits=3)} | {cell("error")} | '
            f'{cell("best_of_8")} | {cell("nll", digits=3)} | {row["parameters"]:,} |')
    return lines


def row_order(won: list[dict]) -> bool:
    """Whether rows are best left in their order: those of shares of the data are."""
    return any(row['question'] == 'fractions' for row in won)


def policy_table() -> str:
    """
    Tables of all tasks and questions that figures are committed of.

    :return: Markdown.
    """
    rows = rows_of('policies')
    lines: list[str] = []
    for task in dict.fromkeys(row['task'] for row in rows):
        for question, title in TITLES.items():
            some = [row for row in rows if (row['task'], row['question']) == (task, question)]
            if some:
                lines += ['', f'**{title}**, `{task}`, {some[0]["steps"]:,} steps of learning', '',
                          *table_of(some)]
    return '\n'.join(lines[1:])


PAGES = {'benchmark.md': {'policies': policy_table}}
