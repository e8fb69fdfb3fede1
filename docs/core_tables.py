"""Tables of cores.md: options from the code, speed and accuracy from the figures."""

from dataclasses import fields

from placing import rows_of

from liquid_policy.core_settings import CoreSettings


def option_table() -> str:
    """
    Table of a core's options.

    :return: Markdown.
    """
    lines = ['| option | default | of | meaning |', '|---|---|---|---|']
    for item in fields(CoreSettings):
        kinds = ', '.join(item.metadata.get('kinds', ('all',)))
        default = str(item.default).lower() if isinstance(item.default, bool) else item.default
        unit = f' [{item.metadata["unit"]}]' if 'unit' in item.metadata else ''
        meaning = item.metadata['description'].replace('|', '\\|')
        lines.append(f'| `{item.name}` | `{default}` | {kinds} | {meaning}{unit} |')
    return '\n'.join(lines)


def speed_table() -> str:
    """
    Table of training steps and how they compare.

    :return: Markdown.
    """
    rows = rows_of('sequence_training')
    lines = ['| batch x steps | core | a training step | against |', '|---|---|---|---|']
    for row in rows:
        if row['figure'] != 'training_step_p50':
            continue
        ratios = [f'{other["value"]:.1f} x {other["against"]} ({other["low"]:.1f} … '
                  f'{other["high"]:.1f})' for other in rows
                  if other['figure'] == 'speedup'
                  and (other['task'], other['policy']) == (row['task'], row['policy'])]
        lines.append(
            f'| {row["task"]} | {row["policy"]} | {1e3 * row["value"]:.0f} ms '
            f'({1e3 * row["low"]:.0f} … {1e3 * row["high"]:.0f}) | {", ".join(ratios) or "—"} |')
    return '\n'.join(lines)


def accuracy_table() -> str:
    """
    Table of what the cores learn.

    :return: Markdown.
    """
    rows = rows_of('core_accuracy')
    lines = ['| core | error of rates | error of the cue |', '|---|---|---|']
    for name in dict.fromkeys(row['policy'] for row in rows):
        found = {row['task']: row for row in rows if row['policy'] == name}
        cells = [f'{found[task]["value"]:.3f} ({found[task]["low"]:.3f} … '
                 f'{found[task]["high"]:.3f})' for task in ('rates', 'cue')]
        lines.append(f'| {name} | {cells[0]} | {cells[1]} |')
    return '\n'.join(lines)


PAGES = {'cores.md': {'options': option_table, 'speed': speed_table,
                      'accuracy': accuracy_table}}
