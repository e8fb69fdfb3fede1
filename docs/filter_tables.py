"""Tables of safety.md: what gets past the filter, how near to limits it goes, what it costs."""

from placing import rows_of

TASKS = {'random': 'random states', 'adversarial': 'adversarial closed loops, instants',
         'mujoco': 'MuJoCo, instants', 'sought': 'states with proposals sought to break limits'}


def violation_table() -> str:
    """
    Table of violations, and of what is left of a limit where it decided.

    :return: Markdown.
    """
    rows = [*rows_of('filter_violations'), *rows_of('filter_attack')]
    lines = ['| tried | number | violations | 95 % upper bound of the rate |', '|---|---|---|---|']
    for row in rows:
        if row['figure'] == 'violations':
            lines.append(f'| {TASKS[row["task"]]} | {row["n"]:,} | {row["value"]} | '
                         f'{row["high"] / row["n"]:.1e} |')
    lines += ['', '| limit that decided | times | left of it, median | least left |',
              '|---|---|---|---|']
    least = {row['task']: row['value'] for row in rows if row['figure'] == 'least_gap'}
    for row in rows:
        if row['figure'] == 'conservatism':
            task, _, limit = row['task'].partition('_')
            unit = '' if row['unit'] == '1' else f' {row["unit"]}'
            lines.append(f'| {limit.replace("_", " ")} ({task}) | {row["n"]:,} | '
                         f'{row["value"]:.2g}{unit} | {least[row["task"]]:.2g}{unit} |')
    return '\n'.join(lines)


def latency_table() -> str:
    """
    Table of processor time with several solvers.

    :return: Markdown.
    """
    found = {(row['policy'], row['figure']): row for row in rows_of('filter_latency')}
    lines = ['| solver | programme, median / 99 % | whole call, median / 99 % |', '|---|---|---|']
    for policy in dict.fromkeys(policy for policy, _ in found):
        cells = [' / '.join(f'{1e6 * found[policy, f"{figure}_p{share}"]["value"]:.3g}'
                            for share in (50, 99)) + ' us' for figure in ('solve', 'call')
                 if (policy, f'{figure}_p99') in found]
        lines.append(f'| {policy} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def rate_table() -> str:
    """
    Table of the safety node's share of a core, next to a node that only relays.

    :return: Markdown.
    """
    found = {(row['task'], row['figure']): row for row in rows_of('safety_rate')}
    lines = ['| node | share of a core | against the relay | reached | machine |',
             '|---|---|---|---|---|']
    for task in dict.fromkeys(task for task, _ in found):
        share, ratio, rate = (
            found[task, figure]['value'] for figure in ('core_share', 'cost_ratio', 'rate'))
        lines.append(f'| {task} | {share:.0%} | {ratio:.2f} | {rate:.0f} Hz | '
                     f'{found[task, "rate"]["machine"]} |')
    return '\n'.join(lines)


TABLES = {'violations': violation_table, 'latency': latency_table, 'rate': rate_table}
