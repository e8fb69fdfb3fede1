"""What a training shows while it runs: a bar, TensorBoard, a table on disk, curves."""

from __future__ import annotations

import json
from pathlib import Path

from tqdm import tqdm

from liquid_trainer.settings import STAGES


class Progress:
    """
    Show and keep a training's figures.

    :param folder: `history.jsonl`, `curves.png` and `tensorboard/` are written here.
    :param append: go on with the history that is there.
    :param quiet: no bar.
    :param since: stage and step of the saved state gone on from; what was recorded after it is
        forgotten, since it will happen again.
    """

    def __init__(self, folder: Path, append: bool = False, quiet: bool = False,
                 since: tuple[str, int] | None = None):
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / 'history.jsonl'
        if not append:
            self._path.unlink(missing_ok=True)
        self.rows = _read(self._path)
        if since is not None:
            last = (STAGES.index(since[0]), since[1])
            self.rows = [row for row in self.rows
                         if (STAGES.index(row['stage']), row['step']) <= last]
            beside = self._path.with_suffix('.part')
            beside.write_text(''.join(json.dumps(row) + '\n' for row in self.rows))
            beside.replace(self._path)
        self._drawn = -1
        self._bar = tqdm(total=100, disable=quiet, bar_format=(
            '{l_bar}{bar}| {elapsed} {postfix}'))
        self._writer = _tensorboard(folder / 'tensorboard', self._steps() + 1 if append else None)

    def _steps(self) -> int:
        """Steps of all stages recorded so far: those of TensorBoard, one after the other."""
        return sum(max(row['step'] for row in self.rows if row['stage'] == stage)
                   for stage in {row['stage'] for row in self.rows})

    def show(self, stage: str, share: float, text: str) -> None:
        """Move the bar: `share` of the stage is done."""
        self._bar.set_description_str(stage)
        self._bar.n = round(100 * min(share, 1.0), 1)
        self._bar.set_postfix_str(text)

    def record(self, stage: str, step: int, kind: str, values: dict[str, float],
               seconds: float) -> None:
        """Keep figures; `kind` is `train` or `held_out`, `seconds` the training's age."""
        row = {'stage': stage, 'step': step, 'kind': kind, 'seconds': round(seconds, 1), **values}
        self.rows.append(row)
        with open(self._path, 'a') as file:
            file.write(json.dumps(row) + '\n')
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(f'{stage}/{kind}/{name}', value, self._steps())
            self._writer.flush()

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        self._bar.write(text)

    def draw(self) -> None:
        """Draw the curves so far."""
        if self._drawn == len(self.rows):
            return
        self._drawn = len(self.rows)
        draw_curves(self.rows, self._folder / 'curves.png')

    def close(self) -> None:
        """Draw the curves and close the files."""
        self._bar.close()
        if self._writer:
            self._writer.close()
        self.draw()


class Silence:
    """Progress of a process that leaves showing and writing to another one."""

    def show(self, stage: str, share: float, text: str) -> None:
        """Show nothing."""

    def record(self, stage: str, step: int, kind: str, values: dict[str, float],
               seconds: float) -> None:
        """Keep nothing."""

    def say(self, text: str) -> None:
        """Print nothing."""

    def draw(self) -> None:
        """Draw nothing."""

    def close(self) -> None:
        """Close nothing."""


def _read(history: Path) -> list[dict]:
    rows = []
    for line in history.read_text().splitlines() if history.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:      # the last line of a process that was killed
            continue
    return rows


def _tensorboard(folder: Path, since: int | None):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:     # a convenience, not worth failing for
        return None
    return SummaryWriter(str(folder), purge_step=since)


def draw_curves(rows: list[dict], path: Path) -> None:
    """Draw every figure of the history over time, one panel per figure and stage."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    wanted = ('loss', 'where', 'act', 'nll', 'estimate', 'action_error', 'position_error',
              'frame_position_error', 'speed_error', 'effective_components')
    panels = sorted({(row['stage'], name) for row in rows for name in row if name in wanted},
                    key=lambda panel: (('frames', 'core', 'joint').index(panel[0]),
                                       wanted.index(panel[1])))
    if not panels:
        return
    columns = 4
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * lines), layout='constrained')
    FigureCanvasAgg(figure)
    for index, (stage, name) in enumerate(panels):
        axes = figure.add_subplot(lines, columns, index + 1)
        for kind in ('train', 'held_out'):
            points = [(row['seconds'] / 60, row[name]) for row in rows
                      if row['stage'] == stage and row['kind'] == kind and name in row]
            if points:
                few = kind == 'held_out' or len(points) < 10
                axes.plot(*zip(*points, strict=True), label=kind.replace('_', ' '),
                          marker='.' if few else None, linewidth=1)
        axes.set_title(f'{stage}: {name.replace("_", " ")}', fontsize=9)
        axes.set_xlabel('min', fontsize=8)
        values = [row[name] for row in rows if row['stage'] == stage and name in row]
        if 0 < 10 * min(values) < max(values):      # less is read better on an even scale
            axes.set_yscale('log')
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=90)
