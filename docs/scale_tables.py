"""Tables of scale.md and fleet.md, from the figures."""

from placing import rows_of

MISSING = '—'


def decoding_table() -> str:
    """
    Table of rates from the disk to learning.

    :return: Markdown.
    """
    rows = rows_of('decoding')
    lines = ['| what | rate | bags |', '|---|---|---|']
    for row in rows:
        if row['figure'] != 'rate':
            continue
        text = f'{row["value"] / 1e6:.0f} MB/s' if row['unit'] == 'B/s' else (
            f'{row["value"]:.0f} windows/s')
        shares = [f'{other["value"]:.2f} x {other["against"]}' for other in rows
                  if other['figure'] == 'share' and other['policy'] == row['policy']]
        lines.append(f'| {row["policy"]} | {", ".join([text, *shares])} | {row["n"]} |')
    return '\n'.join(lines)


def memory_table() -> str:
    """
    Table of memory by number of bags.

    :return: Markdown.
    """
    rows = [row for row in rows_of('decoding') if row['figure'] == 'memory']
    counts = sorted({row['n'] for row in rows})
    lines = ['| | ' + ' | '.join(f'{count} bag{"s" * (count > 1)}' for count in counts) + ' |',
             '|---' * (1 + len(counts)) + '|']
    for name in dict.fromkeys(row['policy'] for row in rows):
        found = {row['n']: f'{row["value"] / 1e6:.0f} MB' for row in rows
                 if row['policy'] == name}
        lines.append(f'| {name} | ' + ' | '.join(found.get(n, MISSING) for n in counts) + ' |')
    return '\n'.join(lines)


def parallel_table() -> str:
    """
    Table of training in several processes.

    :return: Markdown.
    """
    rows = rows_of('parallel_training')
    lines = ['| | steps/s | speedup | largest difference of a loss |', '|---|---|---|---|']
    for name in dict.fromkeys(row['policy'] for row in rows):
        found = {row['figure']: row['value'] for row in rows if row['policy'] == name}
        lines.append(
            f'| {name} | {found["steps_per_second"]:.2f} | '
            + (f'{found["speedup"]:.2f} | {found["loss_difference"]:.1e} |'
               if 'speedup' in found else f'{MISSING} | {MISSING} |'))
    return '\n'.join(lines)


def fleet_table() -> str:
    """
    Table of robots alone and in the fleet.

    :return: Markdown.
    """
    rows = rows_of('fleet')
    lines = ['| | held-out nll, own | better | all | better | position error, own | all |',
             '|---|---|---|---|---|---|---|']
    for name in dict.fromkeys(row['policy'] for row in rows):
        found = {(row['figure'], row['task']): row for row in rows if row['policy'] == name}
        cells = []
        for task in ('fleet_own', 'fleet_all'):
            row = found['nll', task]
            better = found.get(('nll_better', task))
            cells += [f'{row["value"]:.2f} ({row["low"]:.2f} … {row["high"]:.2f})',
                      f'{round(better["value"] * better["n"])} of {better["n"]}'
                      if better else MISSING]
        cells += [f'{1e3 * found["position_error_mean", task]["value"]:.0f} mm'
                  for task in ('fleet_own', 'fleet_all')]
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    if rows:
        made = rows[0]
        lines += ['', f'{len(made["seeds"])} seed{"s" * (len(made["seeds"]) > 1)}, '
                      f'{made["rounds"]} rounds of {made["steps"]} steps.']
    return '\n'.join(lines)


PAGES = {'scale.md': {'decoding': decoding_table, 'memory': memory_table,
                      'parallel': parallel_table},
         'fleet.md': {'fleet': fleet_table}}
