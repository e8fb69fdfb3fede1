"""
How far is predicted from measured torque on a real arm, and what margin does that ask for?

100 recordings of a Schunk 6-axis arm at 250 Hz (positions, velocities, motor torques; CC0, see
docs/identify.md for where to get them). Judged twice: predicting repetitions of motions that were
learned from, and predicting motions unlike them. Run it as
`docker/in_environment.sh python3 test/benchmarks/torque_margin.py`.
"""

from __future__ import annotations

import argparse
import platform
import sys
from datetime import date
from pathlib import Path

import numpy as np

from liquid_sim.evaluate import append_rows, commit
from liquid_trainer.identify import IdentifySettings, Judgement, identify, like_motions, plot
from liquid_trainer.motions import Motion, read_motions

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from recordings import recording  # noqa: E402

RESULTS = Path(__file__).parent / 'results' / 'torque_margin.jsonl'
PICTURE = Path(__file__).resolve().parents[2] / 'docs' / 'torque.png'
NAME = 'schunk_6dof_torque'


def interval(motions: list[Motion], item: Judgement, joint: int,
             quantile: float | None) -> tuple[float, float]:
    """Return the 95 % interval over recordings of the error's rms, or of its quantile."""
    ends = np.cumsum([len(motion) for motion in motions])[:-1]
    parts = np.split(np.abs(item.predicted - item.measured)[:, joint], ends)
    rng = np.random.default_rng(0)
    values = []
    for _ in range(200):
        drawn = np.concatenate([parts[i] for i in rng.integers(0, len(parts), len(parts))])
        values.append(np.sqrt((drawn ** 2).mean()) if quantile is None
                      else np.quantile(drawn, quantile))
    return float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5))


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--dry', action='store_true', help='write nothing')
    arguments = parser.parse_args()
    folder = recording(NAME)
    if folder is None:
        print(f'{NAME}: not found; put it into a folder that LIQUID_DATA names')
        return 1
    settings = IdentifySettings()
    motions = read_motions([folder])
    groups = like_motions(motions)
    common = {'seeds': [settings.seed], 'commit': commit(),
              'preset': f'{len(motions)} recordings, {groups.max() + 1} different motions',
              'machine': f'{platform.machine()}, 1 core', 'date': date.today().isoformat()}
    rows = []
    for task, used in (('repeated', np.arange(len(motions))), ('new_motion', groups)):
        for item in identify(motions, used, None, settings):
            for column, joint in enumerate(item.joints):
                for figure, value, quantile in (
                        ('torque_error_rms', item.rms[column], None),
                        ('torque_margin', item.margin(settings.quantile)[column],
                         settings.quantile)):
                    low, high = interval(motions, item, column, quantile)
                    rows.append({'figure': f'{figure}_{joint}', 'task': task,
                                 'policy': item.name, 'value': float(value), 'low': low,
                                 'high': high, 'unit': 'N m', 'n': len(item.measured), **common})
                    print(f'{figure:<18}{joint:<9}{task:<12}{item.name:<10}{value:8.3f} N m '
                          f'({low:.3f} to {high:.3f}), torque rms {item.size[column]:.3f}',
                          flush=True)
            if task == 'new_motion' and item.name == 'joints' and not arguments.dry:
                plot(PICTURE, item, motions, settings)
    if not arguments.dry:
        append_rows(RESULTS, rows)
        print(f'{RESULTS}, {PICTURE}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
