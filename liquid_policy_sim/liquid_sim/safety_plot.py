"""
A picture of what the safety filter did: proposal, command and limits over time.

    python -m liquid_sim.safety_plot runs/demo/bag safety.png
    python -m liquid_sim.safety_plot --trial full safety.png

The first reads a recording's `safety_status`, the second runs a trial of `liquid_sim.safety_trial`
and also shows the limits of each moment. Where the filter changed or braked is shaded.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from liquid_policy.barrier import State
from liquid_policy.interface import InterfaceError, load_interface
from liquid_policy.limits import LimitsError, load_limits
from liquid_sim import scene

COLORS = {State.LIMITING: '#f2c14e', State.BRAKING: '#e4572e', State.STOPPED: '#8d3b72'}
WORDS = {State.LIMITING: 'limited', State.BRAKING: 'braked', State.STOPPED: 'stopped'}


@dataclass(frozen=True, eq=False)
class History:
    """
    What the filter did, command by command; arrays over T commands and A entries.

    :param names: of the entries.
    :param times: [s], `(T,)`, ascending.
    :param proposed: NaN where there was none, `(T, A)`.
    :param issued: `(T, A)`.
    :param low: lowest safe command, `(T, A)`.
    :param high: highest safe command, `(T, A)`.
    :param states: `State` of each, `(T,)`.
    """

    names: tuple[str, ...]
    times: np.ndarray
    proposed: np.ndarray
    issued: np.ndarray
    low: np.ndarray
    high: np.ndarray
    states: np.ndarray

    def __post_init__(self) -> None:
        shape = (len(self.times), len(self.names))
        for name in ('proposed', 'issued', 'low', 'high'):
            came = getattr(self, name).shape
            if came != shape:
                raise ValueError(f'{name}: expected shape {shape}, came {came}')

    def spans(self, state: State) -> list[tuple[float, float]]:
        """
        When the filter was in a state: begin and end of each stretch [s].

        :param state: which.
        """
        inside = np.concatenate([[False], self.states == state, [False]])
        edges = np.flatnonzero(inside[1:] != inside[:-1])
        ends = np.append(self.times, self.times[-1] if len(self.times) else 0.0)
        return [(float(ends[begin]), float(ends[end]))
                for begin, end in zip(edges[::2], edges[1::2], strict=True)]


def history_of_bag(path: Path, interface: Path, description: Path) -> History:
    """
    The filter's history in a recording, with the limits of the robot's files.

    :param path: rosbag2 folder or file.
    :param interface: the robot's interface file.
    :param description: its URDF or xacro.
    :raises ValueError: if the recording holds no `safety_status`, or of another robot.
    """
    from liquid_sim.run_record import read_run
    safety = read_run(path).safety
    if safety is None or not len(safety.stamps):
        raise ValueError(f'{path}: expected messages on safety_status, came none')
    limits = load_limits(load_interface(interface), description)
    if limits.names != safety.issued.names:
        raise ValueError(
            f'{path}: expected the actions {", ".join(limits.names)}, came '
            f'{", ".join(safety.issued.names)}; give --interface and --description')
    times = 1e-9 * (safety.stamps - safety.stamps[0])
    ones = np.ones((len(times), 1))
    return History(
        limits.names, times, safety.proposed.values, safety.issued.values, ones * limits.low,
        ones * limits.high, safety.states)


def history_of_trial(kind: str, payload: float, seconds: float) -> History:
    """
    The filter's history in a trial.

    :param kind: one of `liquid_sim.safety_trial.KINDS`.
    :param payload: at the tool [kg].
    :param seconds: length [s].
    """
    from liquid_sim.safety_trial import TrialSettings, run_trial
    trial = run_trial(TrialSettings(kind, payload, seconds=seconds))
    return History(
        trial.names, trial.times, trial.proposed, trial.issued, trial.low, trial.high,
        trial.states)


def draw(history: History, title: str = ''):
    """
    The picture.

    :param history: what to draw.
    :param title: above it.
    :return: a matplotlib figure; closing it is the caller's.
    """
    from matplotlib.figure import Figure
    count = len(history.names)
    figure = Figure(figsize=(11.0, 1.0 + 1.25 * count), layout='constrained')
    axes = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    for index, (axis, name) in enumerate(zip(axes, history.names, strict=True)):
        low, high = history.low[:, index], history.high[:, index]
        axis.fill_between(history.times, low, high, step='post', color='#d7e8d4', label='safe')
        axis.step(history.times, history.proposed[:, index], where='post', color='#7a7a7a',
                  linewidth=0.8, label='proposed')
        axis.step(history.times, history.issued[:, index], where='post', color='#1f4e79',
                  linewidth=1.3, label='issued')
        for state, color in COLORS.items():
            for number, (begin, end) in enumerate(history.spans(state)):
                axis.axvspan(begin, end, color=color, alpha=0.25, linewidth=0.0,
                             label=WORDS[state] if number == 0 else None)
        known = np.concatenate([low, high, history.issued[:, index]])
        known = known[np.isfinite(known)]
        if known.size:
            margin = 0.15 * max(float(np.ptp(known)), 1e-3)
            axis.set_ylim(known.min() - margin, known.max() + margin)  # proposals may be anything
        axis.set_ylabel(name, rotation=0, ha='right', va='center', fontsize=8)
        axis.tick_params(labelsize=7)
    axes[-1].set_xlabel('time [s]')
    handles, labels = [], []
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            if label not in labels:
                handles.append(handle)
                labels.append(label)
    figure.legend(handles, labels, loc='outside upper right', ncols=len(labels), fontsize=8)
    figure.suptitle(title, x=0.01, ha='left', fontsize=10)
    return figure


def main(argv: list[str] | None = None) -> int:
    """Draw what the safety filter did."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument('recording', type=Path, nargs='?', help='rosbag2 folder or file')
    parser.add_argument('output', type=Path, help='picture: .png, .svg or .pdf')
    parser.add_argument('--trial', help='run this trial instead of reading a recording')
    parser.add_argument('--payload', type=float, default=1.5, help='of the trial, kg')
    parser.add_argument('--seconds', type=float, default=5.0, help='of the trial')
    parser.add_argument('--interface', type=Path, help="the robot's; default: the manipulator's")
    parser.add_argument('--description', type=Path, help='its URDF or xacro')
    options = parser.parse_args(argv)
    if (options.recording is None) == (options.trial is None):
        parser.error('give either a recording or --trial')
    try:
        if options.trial is not None:
            history = history_of_trial(options.trial, options.payload, options.seconds)
            title = f'{options.trial}, {options.payload:g} kg'
        else:
            history = history_of_bag(
                options.recording, options.interface or scene.find_interface(),
                options.description or scene.find_description())
            title = str(options.recording)
    except (ValueError, InterfaceError, LimitsError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    draw(history, title).savefig(options.output, dpi=110)
    changed = float(np.mean(history.states != State.PASSING))
    print(f'{options.output}: {len(history.times)} commands, {changed:.1%} changed')
    return 0


if __name__ == '__main__':
    sys.exit(main())
