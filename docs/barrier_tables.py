"""Tables of barrier_layer.md and identify.md: solvers, robot and disc, torques."""

from placing import rows_of


def rows_by_key(name: str) -> dict[tuple[str, str, str], dict]:
    """
    Rows of a benchmark.

    :param name: of its result file.
    :return: by figure, task and policy, in the file's order.
    """
    return {(row['figure'], row['task'], row['policy']): row for row in rows_of(name)}


def solver_table() -> str:
    """
    Table of differentiable solvers.

    :return: Markdown.
    """
    rows = rows_by_key('barrier_layer')
    tasks = list(dict.fromkeys(task for figure, task, _ in rows if figure == 'forward_p50'))
    lines = ['| solver | largest error | '
             + ' | '.join(f'{task.replace("_", " ")} [ms]' for task in tasks) + ' |',
             '|---|---|' + '---|' * len(tasks)]
    for policy in dict.fromkeys(policy for _, _, policy in rows):
        error = rows['error_max', 'random', policy]
        times = [' / '.join(f'{1e3 * rows[figure, task, policy]["value"]:.3g}'
                            for figure in ('forward_p50', 'gradient_p50')) for task in tasks]
        lines.append(f'| {policy} | {error["value"]:.1e} ({error["n"]} problems) | '
                     + ' | '.join(times) + ' |')
    return '\n'.join(lines)


def obstacle_table() -> str:
    """
    Table of the robot and the disc.

    :return: Markdown.
    """
    rows = rows_by_key('obstacle')
    lines = ['| disc | driver | success | touched the disc | decisions changed | closest |',
             '|---|---|---|---|---|---|']
    for figure, task, policy in rows:
        if figure != 'success':
            continue
        cells = []
        for name in ('success', 'violations', 'interventions'):
            row = rows[name, task, policy]
            cells.append(f'{row["value"]:.1%} ({row["low"]:.1%} … {row["high"]:.1%})')
        closest = rows['smallest_distance', task, policy]['value']
        lines.append(f'| {task.removeprefix("obstacle_")} | {policy} | {" | ".join(cells)} | '
                     f'{closest:.2f} m |')
    return '\n'.join(lines)


def conveyor_table() -> str:
    """
    Table of the conveyor, learned with the layer, filtered afterwards, or neither.

    :return: Markdown.
    """
    rows = rows_by_key('safe_training')
    lines = ['| driver | picked | proposals changed | episodes with a broken limit |',
             '|---|---|---|---|']
    for figure, task, policy in rows:
        if figure == 'success':
            picked, changed, broken = (
                rows[name, task, policy] for name in ('success', 'interventions', 'violations'))
            lines.append(
                f'| {policy} | {picked["value"]:.0%} ({picked["low"]:.0%} … {picked["high"]:.0%}) '
                f'of {picked["n"]} | {changed["value"]:.1%} | '
                f'{round(broken["value"] * broken["n"])} of {broken["n"]} |')
    return '\n'.join(lines)


def torque_table() -> str:
    """
    Table of torque errors and margins.

    :return: Markdown.
    """
    rows = rows_by_key('torque_margin')
    joints = list(dict.fromkeys(figure.removeprefix('torque_margin_') for figure, _, _ in rows
                                if figure.startswith('torque_margin_')))
    lines = ['| predicted | model | | ' + ' | '.join(joint.replace('_', ' ') for joint in joints)
             + ' |', '|---|---|---|' + '---|' * len(joints)]
    for task, policy in dict.fromkeys((task, policy) for _, task, policy in rows):
        for figure, label in (('torque_error_rms', 'rms'), ('torque_margin', '99.9 %')):
            cells = [f'{rows[f"{figure}_{joint}", task, policy]["value"]:.2f}' for joint in joints]
            lines.append(f'| {task.replace("_", " ")} | {policy} | {label} | '
                         + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


PAGES = {'barrier_layer.md': {'solvers': solver_table, 'obstacle': obstacle_table,
                              'conveyor': conveyor_table},
         'identify.md': {'torque': torque_table}}
