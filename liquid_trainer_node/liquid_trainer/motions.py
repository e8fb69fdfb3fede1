"""Measured motions of an arm: positions, velocities and torques, from bags or CSV files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .bag_file import ENDINGS, Bag, find_bags

_GAP = 5.0          # a pause this many periods long ends a motion
_LEAST = 20         # shorter pieces say nothing of accelerations
_FOLDER = ('time.csv', 'trajectory.csv', 'input.csv')
_PARTS = ('position', 'velocity', 'effort')


class MotionError(ValueError):
    """Recordings cannot be used; the text says what was expected, what came, what to do."""


@dataclass(frozen=True, eq=False)
class Motion:
    """
    One uninterrupted recording on an even grid of time; T samples, J joints.

    :param name: where it is from.
    :param joints: names of the joints.
    :param period: time between samples [s].
    :param position: `(T, J)` [rad or m].
    :param velocity: `(T, J)` [rad/s or m/s].
    :param acceleration: `(T, J)` [rad/s2 or m/s2], see `smooth_derivative`.
    :param effort: measured torques as they came, `(T, J)` [N m or N].
    """

    name: str
    joints: tuple[str, ...]
    period: float
    position: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    effort: np.ndarray

    def __post_init__(self) -> None:
        shape = (len(self.position), len(self.joints))
        for name in (*_PARTS, 'acceleration'):
            came = getattr(self, name).shape
            if came != shape:
                raise MotionError(f'{self.name}: {name}: expected {shape}, came {came}')

    def __len__(self) -> int:
        return len(self.position)

    def take(self, rows: slice | np.ndarray) -> Motion:
        """Return some of the samples."""
        return Motion(self.name, self.joints, self.period, self.position[rows],
                      self.velocity[rows], self.acceleration[rows], self.effort[rows])


def smooth_derivative(values: np.ndarray, period: float, window: float) -> np.ndarray:
    """
    Derivative by a parabola fitted to the samples around each.

    It delays nothing. At both ends, where the window is cut off, the outermost whole fit holds.

    :param values: `(T, J)`, T at least the window.
    :param period: time between samples [s].
    :param window: length of the fit [s]; at least 5 samples are used.
    :return: `(T, J)`, per second.

    Source: Savitzky and Golay, Smoothing and differentiation of data by simplified least squares
    procedures, Analytical Chemistry 36(8), 1964.
    """
    half = max(2, round(window / period / 2))
    if len(values) < 2 * half + 1:
        raise MotionError(f'expected at least {2 * half + 1} samples for a window of {window} s, '
                          f'came {len(values)}')
    steps = np.arange(-half, half + 1)
    slope = steps / (period * (steps ** 2).sum())     # the parabola's slope in its middle
    inner = np.stack([np.convolve(column, slope[::-1], 'valid') for column in values.T], 1)
    return np.pad(inner, ((half, half), (0, 0)), 'edge')


def make_motions(name: str, joints: Sequence[str], times: np.ndarray, position: np.ndarray,
                 velocity: np.ndarray, effort: np.ndarray, window: float) -> list[Motion]:
    """
    Cut samples at pauses and bring each piece onto an even grid.

    :param name: of the recording.
    :param joints: names, J.
    :param times: ascending, repeated ones are left out, `(T,)` [s].
    :param position: `(T, J)`; likewise `velocity` and `effort`. Rows that are not finite are
        left out.
    :param window: of `smooth_derivative` [s].
    """
    good = np.isfinite(np.hstack((position, velocity, effort))).all(1)
    good[1:] &= np.diff(np.maximum.accumulate(times)) > 0.0
    times = times[good]
    if len(times) < _LEAST:
        return []
    period = float(np.median(np.diff(times)))
    ends = np.flatnonzero(np.diff(times) > _GAP * period) + 1
    motions = []
    for index, rows in enumerate(np.split(np.flatnonzero(good), ends)):
        stamps = times[np.searchsorted(np.flatnonzero(good), rows)]
        grid = stamps[0] + period * np.arange(int(round((stamps[-1] - stamps[0]) / period)) + 1)
        if len(grid) < max(_LEAST, window / period + 3):
            continue
        even = [np.stack([np.interp(grid, stamps, column) for column in values[rows].T], 1)
                for values in (position, velocity, effort)]
        label = name if len(ends) == 0 else f'{name}#{index}'
        motions.append(Motion(label, tuple(joints), period, even[0], even[1],
                              smooth_derivative(even[1], period, window), even[2]))
    return motions


def cut_motions(motions: Sequence[Motion], longest: float) -> list[Motion]:
    """
    Cut motions into equal pieces no longer than this, so that one can be judged by the others.

    :param longest: piece [s].
    """
    pieces = []
    for motion in motions:
        count = int(np.ceil(len(motion) * motion.period / longest))
        for index, rows in enumerate(np.array_split(np.arange(len(motion)), max(count, 1))):
            piece = motion.take(rows)
            pieces.append(piece if count < 2 else replace(piece, name=f'{motion.name}/{index}'))
    return pieces


def read_motions(paths: Sequence[str | Path], joints: Sequence[str] = (),
                 topic: str = '/joint_states', window: float = 0.1,
                 progress: Callable[[int, int], None] | None = None) -> list[Motion]:
    """
    Read every recording found under paths.

    Understood are rosbag2 bags with `sensor_msgs/msg/JointState`; CSV files with a header
    `time,position.<joint>,velocity.<joint>,effort.<joint>,...`; and folders of `time.csv`,
    `trajectory.csv` (positions, then velocities) and `input.csv` (torques) without headers.

    :param paths: bags, CSV files, or folders of them.
    :param joints: which joints, in this order; those of the first recording when left out.
    :param topic: of the bags' JointState.
    :param window: of `smooth_derivative` [s].
    :param progress: called with the number of recordings read and their total.
    :raises MotionError: if there is none, or one cannot be used.
    """
    sources: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise MotionError(f'{path}: expected a bag, a CSV file or a folder of them, came '
                              'nothing of this name')
        found = _sources(path)
        if not found:
            raise MotionError(f'{path}: expected a bag, a CSV file, or folders with '
                              f'{", ".join(_FOLDER)}, found none')
        sources += found
    motions: list[Motion] = []
    names = tuple(joints)
    for number, source in enumerate(sources):
        samples = _read(source, names, topic)
        names = names or samples.joints
        position, velocity, effort = samples.columns(names)
        motions += make_motions(source.name, names, samples.times, position, velocity, effort,
                                window)
        if progress:
            progress(number + 1, len(sources))
    if not motions:
        raise MotionError(f'expected motions of at least {_LEAST} samples, came none in '
                          f'{len(sources)} recordings')
    return motions


@dataclass(frozen=True, eq=False)
class _Samples:
    """Raw samples of one recording; NaN where a message lacked a joint."""

    source: Path
    joints: tuple[str, ...]
    times: np.ndarray
    values: np.ndarray      # (T, 3, J)

    def columns(self, joints: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return positions, velocities and efforts of some joints, `(T, J)` each."""
        missing = [joint for joint in joints if joint not in self.joints]
        if missing:
            raise MotionError(f'{self.source}: expected joint {missing[0]!r}, came '
                              f'{", ".join(self.joints)}; name the joints with --joints')
        chosen = self.values[:, :, [self.joints.index(joint) for joint in joints]]
        if len(chosen) and not np.isfinite(chosen).all((1, 2)).any():
            raise MotionError(f'{self.source}: expected position, velocity and effort of '
                              f'{", ".join(joints)}, came none with all three; does the driver '
                              'publish effort?')
        return chosen[:, 0], chosen[:, 1], chosen[:, 2]


def _natural(path: Path) -> tuple:
    digits = ''.join(c if c.isdigit() else ' ' for c in path.name).split()
    return (str(path.parent), [int(part) for part in digits], path.name)


def _sources(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if all((path / name).is_file() for name in _FOLDER):
        return [path]
    folders = sorted({file.parent for file in path.rglob(_FOLDER[1])
                      if all((file.parent / name).is_file() for name in _FOLDER)}, key=_natural)
    if folders:
        return folders
    tables = sorted(path.rglob('*.csv'), key=_natural)
    return tables or (find_bags(path) if any(path.rglob('*' + e) for e in ENDINGS) else [])


def _read(source: Path, joints: tuple[str, ...], topic: str) -> _Samples:
    if source.is_dir() and (source / _FOLDER[1]).is_file():
        return _read_folder(source, joints)
    return _read_table(source) if source.suffix == '.csv' else _read_bag(source, topic)


def _read_folder(folder: Path, joints: tuple[str, ...]) -> _Samples:
    times, states, efforts = (_numbers(folder / name) for name in _FOLDER)
    count = efforts.shape[1]
    if states.shape[1] != 2 * count:
        raise MotionError(f'{folder}: expected {2 * count} columns in trajectory.csv for {count} '
                          f'torques, came {states.shape[1]}')
    length = min(len(times), len(states), len(efforts))
    names = joints if len(joints) == count else tuple(f'joint_{i + 1}' for i in range(count))
    return _Samples(folder, names, times[:length, 0], np.stack(
        (states[:length, :count], states[:length, count:], efforts[:length]), 1))


def _read_table(path: Path) -> _Samples:
    with open(path, encoding='utf-8') as file:
        header = [name.strip() for name in file.readline().split(',')]
    joints = tuple(name.removeprefix('effort.') for name in header if name.startswith('effort.'))
    wanted = ['time', *(f'{part}.{joint}' for part in _PARTS for joint in joints)]
    missing = [name for name in wanted if name not in header]
    if not joints or missing:
        raise MotionError(f'{path}: expected a header time,position.<joint>,velocity.<joint>,'
                          f'effort.<joint>, came without {(missing or ["effort.<joint>"])[0]}')
    values = _numbers(path, skip=1)[:, [header.index(name) for name in wanted]]
    return _Samples(path, joints, values[:, 0], values[:, 1:].reshape(-1, 3, len(joints)))


def _numbers(path: Path, skip: int = 0) -> np.ndarray:
    try:
        return np.loadtxt(path, delimiter=',', skiprows=skip, ndmin=2)
    except ValueError as error:
        raise MotionError(f'{path}: expected numbers separated by commas, came: {error}') from None


def _read_bag(path: Path, topic: str) -> _Samples:
    bag = Bag(path)
    kind = bag.topics.get(topic)
    if kind != 'sensor_msgs/msg/JointState':
        raise MotionError(f'{path}: expected sensor_msgs/msg/JointState on {topic}, came '
                          f'{kind or "nothing"}; name the topic with --topic')
    names: dict[str, int] = {}
    rows = []
    for record in bag.messages([topic]):
        message = record.message
        stamp = message.header.stamp.sec + 1e-9 * message.header.stamp.nanosec
        for name in message.name:
            names.setdefault(name, len(names))
        parts = [np.asarray(getattr(message, part), float) for part in _PARTS]
        rows.append((stamp or 1e-9 * record.time, [names[name] for name in message.name], parts))
    values = np.full((len(rows), 3, len(names)), np.nan)
    for row, (_, columns, parts) in enumerate(rows):
        for part, numbers in enumerate(parts):
            if len(numbers) == len(columns):
                values[row, part, columns] = numbers
    # Joints that never have all three are not the arm's: wheels, grippers.
    complete = np.isfinite(values).all(1).any(0) if rows else np.zeros(0, bool)
    order = [name for name, index in names.items() if complete[index]]
    return _Samples(path, tuple(order), np.array([row[0] for row in rows]),
                    values[:, :, [names[name] for name in order]])
