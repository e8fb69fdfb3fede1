"""Tables of README: launch arguments and parameters from the code, picks from the figures."""

import importlib
from dataclasses import MISSING, Field, fields

from placing import rows_of

NODES = {
    'perception': ('liquid_policy_node.perception_node', 'PerceptionSettings'),
    'policy': ('liquid_policy_node.policy_node', 'PolicySettings'),
    'safety': ('liquid_policy_node.safety_node', 'SafetySettings'),
    'recorder': ('liquid_trainer_node.recorder_node', 'RecorderSettings'),
    'trainer': ('liquid_trainer_node.trainer_node', 'TrainerSettings'),
    'simulator': ('liquid_policy_sim.sim_node', 'SimSettings'),
}


def cell(text: object) -> str:
    """
    Text that is safe inside a table.

    :param text: anything.
    :return: its text on one line, with the column mark escaped.
    """
    return ' '.join(str(text).split()).replace('|', '\\|').replace('<', '&lt;')


def default_of(item: Field) -> str:
    """
    Default of a parameter as one would write it in a parameter file.

    :param item: dataclass field.
    :return: such as `0.05`, `true`, or a dash where it must be given.
    """
    if item.default is MISSING or item.default in ('', ()):
        return '—'
    if isinstance(item.default, bool):
        return f'`{str(item.default).lower()}`'
    if isinstance(item.default, tuple):
        return f'`{list(item.default)}`'
    return f'`{item.default}`'


def range_of(item: Field) -> str:
    """
    Values a parameter may have.

    :param item: dataclass field with the metadata of `liquid_policy_node.parameters`.
    :return: bounds with unit, or choices.
    """
    about = item.metadata
    if about.get('one_of'):
        return ', '.join(f'`{choice}`' if choice else '—' for choice in about['one_of'])
    unit = '' if about.get('unit') in ('', '1', None) else f' {about["unit"]}'
    low, high = about.get('low'), about.get('high')
    if low is None and high is None:
        return unit.strip()
    if high is None:
        return f'≥ {low}{unit}'
    return f'{low} … {high}{unit}' if low is not None else f'≤ {high}{unit}'


def parameter_table() -> str:
    """
    Table of every node's parameters.

    :return: Markdown.
    """
    from liquid_policy_node.lifecycle import NodeSettings

    lines = ['| node | parameter | default | range | meaning |', '|---|---|---|---|---|']
    shared = {item.name for item in fields(NodeSettings)}
    rows = [('all', item) for item in fields(NodeSettings)]
    for node, (module, name) in NODES.items():
        settings = getattr(importlib.import_module(module), name)
        rows += [(node, item) for item in fields(settings) if item.name not in shared]
    for node, item in rows:
        lines.append(
            f'| {node} | `{item.name}` | {default_of(item)} | {cell(range_of(item))} | '
            f'{cell(item.metadata["description"])} |'
        )
    return '\n'.join(lines)


def argument_table() -> str:
    """
    Table of the launch files' arguments.

    :return: Markdown.
    """
    from liquid_policy_node.bringup import ARGUMENTS

    lines = ['| launch file | argument | default | meaning |', '|---|---|---|---|']
    for scenario, arguments in ARGUMENTS.items():
        for argument in arguments:
            default = f'`{argument.default}`' if argument.default else '—'
            lines.append(
                f'| `{scenario}.launch.py` | `{argument.name}` | {default} | '
                f'{cell(argument.description)} |'
            )
    return '\n'.join(lines)


def conveyor_table() -> str:
    """
    Table of what was picked from the conveyor.

    :return: Markdown.
    """
    rows = rows_of('conveyor')
    lines = ['| policy | conditions | picked | 95 % interval | parts | changed by the filter |',
             '|---|---|---|---|---|---|']
    for row in sorted((row for row in rows if row['figure'] == 'success'),
                      key=lambda row: -row['value']):
        changed = next((f'{other["value"]:.1%}' for other in rows
                        if other['figure'] == 'interventions'
                        and (other['policy'], other['task']) == (row['policy'], row['task'])),
                       '—')
        lines.append(
            f'| {row["policy"]} | {row["task"]} | {row["value"]:.1%} | '
            f'{row["low"]:.1%} … {row["high"]:.1%} | {row["n"]} | {changed} |')
    return '\n'.join(lines)


PAGES = {'README.md': {'arguments': argument_table, 'parameters': parameter_table,
                       'conveyor': conveyor_table}}
