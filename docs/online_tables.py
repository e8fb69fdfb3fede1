"""Tables of online.md, from the figures."""

from placing import rows_of

MISSING = '—'
PRESETS = ('seeds', 'ablation', 'robust', 'long')
SPANS = ('calm', '30s', '60s', '300s')
NAMES = {
    'online': 'the learner', 'online-replay': 'without replay',
    'online-consolidation': 'without consolidation', 'online-gate': 'without the gate',
    'online-refinement': "without the head's extra steps",
    'online, noise': 'inputs noisy by a tenth of their scales',
    'online, NaN': 'NaN for 0.5 s of every 10 s',
    'online, mislabelled': 'a fifth of the demonstrated actions at random'}


def _percent(row: dict | None) -> str:
    if row is None:
        return MISSING
    text = f'{100 * row["value"]:.0f} %'
    return f'{text} ({100 * row["low"]:.0f} to {100 * row["high"]:.0f})' if 'low' in row else text


def _name(who: str, row: dict) -> str:
    return NAMES[who] + (', as it was before' if row.get('learner') == 'before' else '')


def _learners(preset: str) -> list[tuple[str, dict[str, dict]]]:
    """Figures of each learner of a preset, by figure."""
    rows = [row for row in rows_of('online_learning') if row['preset'] == preset]
    found: dict[str, dict[str, dict]] = {}
    for row in rows:
        who = row['policy'].partition(' ')[2]
        if who in NAMES and row['figure'] != 'pose_error':
            found.setdefault(who, {})[row['figure'] + (
                f' {row["task"]}' if row['figure'] == 'success' else '')] = row
    return list(found.items())


def gain_table() -> str:
    """
    Table of what learning gained and cost.

    :return: Markdown.
    """
    lines = ['| learner | seeds | less error before the change, mean; median | 30 to 60 s after | '
             '60 to 120 s | 5 to 10 min | error in old cells | promotions, roll-backs |',
             '|---|---|---|---|---|---|---|---|']
    for preset in PRESETS:
        for who, figures in _learners(preset):
            cuts = [f'{_percent(figures.get(f"pose_error_reduction_{span}"))}; '
                    f'{_percent(figures.get(f"median_pose_error_reduction_{span}"))}'
                    if f'pose_error_reduction_{span}' in figures else MISSING for span in SPANS]
            old = figures['old_pose_error']
            lines.append(
                f'| {_name(who, old)} | {old["n"]} | ' + ' | '.join(cuts)
                + f' | {1e3 * old["value"]:.1f} mm, shipped {1e3 * old["frozen"]:.1f} mm | '
                f'{figures["promotions"]["value"]:.1f}, {figures["roll_backs"]["value"]:.1f} |')
    return '\n'.join(dict.fromkeys(lines))      # presets have the learner itself in common


def success_table() -> str:
    """
    Table of parts picked before and after ten minutes of change.

    :return: Markdown.
    """
    lines = ['| policy | conditions | picked | 95 % | parts |', '|---|---|---|---|---|']
    for row in rows_of('online_learning'):
        if row['figure'] == 'success':
            who = row['policy'].partition(' ')[2]
            task = 'old' if row['task'] == 'seen' else 'new'
            name = 'as shipped' if who == 'frozen' else f'{NAMES.get(who, who)}, in charge last'
            lines.append(f'| {name} | {task} | {100 * row["value"]:.0f} % | '
                         f'{100 * row["low"]:.0f} to {100 * row["high"]:.0f} % | {row["n"]} |')
    return '\n'.join(lines) if len(lines) > 2 else '| not measured yet |\n|---|'


PAGES = {'online.md': {'gain': gain_table, 'success': success_table}}
