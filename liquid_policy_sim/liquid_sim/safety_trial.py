"""
The safety filter against policies that mean harm, in dynamics that are not its own.

MuJoCo carries a load the filter knows only the range of, the velocity servos have their own lag,
messages get lost or late; what counts is measured after every step of the physics. Limits are
those of each robot's own files. `python -m liquid_sim.safety_trial` runs every trial and prints a
table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections import deque
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path

import mujoco
import numpy as np

from liquid_policy.barrier import FilterSettings, JointFeedback, State
from liquid_policy.barrier_shapes import Shapes
from liquid_policy.effort_load import load_safety
from liquid_policy.limits import Limits
from liquid_policy.safety_spec import SafetySpec
from liquid_sim.evaluate import commit
from liquid_sim.trial_robots import ROBOTS, RobotView, TrialRobot

KINDS = ('full', 'noise', 'flips', 'frozen', 'loss', 'delay')
AGE = 0.005      # of the joint states when they are used [s]; torques are filtered at once
TIMEOUT = 0.05   # after which a proposal or joint states are stale [s]
DELAY = 0.05     # of a policy or a robot that is late [s]
SERVO_DELAY = 0.02   # of the velocity servos, at most [s]
OVERSHOOT = 0.2      # of the velocity servos, as in config/manipulator.yaml
HALT = 0.5       # how long a frozen policy says nothing [s]
RUNAWAY = 20.0   # times too fast: no robot any more, the trial ends
CELL = ROBOTS['manipulator'].load()[0].safety or SafetySpec()   # of the manipulator's file
TIPPED = 0.02    # a base that tilts farther has lifted a wheel [rad]


@dataclass(frozen=True)
class TrialSettings:
    """
    One trial.

    :param kind: `full`: all joints and the base at full speed or torque, direction changing at
        random; `noise`: another command every tick; `flips`: full, all signs flipping every
        0.3 s; `frozen`: as full, silent for half a second out of every second; `loss`: as full,
        30 % of proposals and of joint states lost; `delay`: as full, and 50 ms late: commands to
        velocity servos, proposals of torques.
    :param payload: mass at the tool [kg], unknown to the filter.
    :param filtered: whether the filter is on.
    :param seconds: length [s].
    :param seed: of everything random.
    :param robot: one of `liquid_sim.trial_robots.ROBOTS`.
    """

    kind: str = 'full'
    payload: float = 0.0
    filtered: bool = True
    seconds: float = 5.0
    seed: int = 0
    robot: str = 'manipulator'

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f'kind: expected one of {KINDS}, came {self.kind!r}')
        if self.robot not in ROBOTS:
            raise ValueError(f'robot: expected one of {tuple(ROBOTS)}, came {self.robot!r}')
        if not 0.0 <= self.payload <= 10.0:
            raise ValueError(f'payload: expected 0 to 10 kg, came {self.payload}')


@dataclass
class Peaks:
    """
    Extremes MuJoCo measured over a trial, after every step of the physics.

    :param position: nearest a joint came to its limit, negative beyond [rad].
    :param velocity: largest joint speed as a share of its limit.
    :param torque: largest actuator torque as a share of the joint's effort limit; MuJoCo cuts
        torques off at the limit, so 1 means that the motor was saturated.
    :param tool_speed: [m/s].
    :param distance: nearest a watched ball came to an obstacle, negative inside [m]; infinite
        without any.
    :param tilt: of the base against its pose at rest [rad].
    """

    position: float = np.inf
    velocity: float = 0.0
    torque: float = 0.0
    tool_speed: float = 0.0
    distance: float = np.inf
    tilt: float = 0.0


@dataclass(frozen=True, eq=False)
class Trial:
    """
    What came of it; arrays over the T ticks.

    :param names: of the action entries.
    :param times: [s], `(T,)`.
    :param proposed: NaN where there was none, `(T, A)`.
    :param issued: `(T, A)`.
    :param low: lowest safe command, `(T, A)`; NaN where it braked.
    :param high: highest safe command, `(T, A)`.
    :param states: `(T,)`.
    :param active: active constraints of each tick.
    :param peaks: measured by MuJoCo.
    :param broken: limits that were broken.
    """

    names: tuple[str, ...]
    times: np.ndarray
    proposed: np.ndarray
    issued: np.ndarray
    low: np.ndarray
    high: np.ndarray
    states: np.ndarray
    active: tuple[tuple[str, ...], ...] = field(repr=False)
    peaks: Peaks = field(default_factory=Peaks)
    broken: tuple[str, ...] = ()


def run_trial(settings: TrialSettings) -> Trial:
    """
    Run one trial.

    :param settings: which.
    """
    files = ROBOTS[settings.robot]
    interface, description = files.load()
    torques = 'N m' in interface.action_units
    late = round(DELAY / files.period) if settings.kind == 'delay' and not torques else 1
    rules = FilterSettings(longest_period=2.0 * files.period, delay=files.period) if torques \
        else FilterSettings(delay=files.period * late + SERVO_DELAY, overshoot=OVERSHOOT)
    safety = load_safety(interface, description, rules)
    robot = TrialRobot(settings.robot, settings.payload, late, settings.seed)
    try:
        return _run(robot, safety, settings, interface.safety or SafetySpec(), files.period)
    finally:
        robot.close()


class Gauge:
    """Takes the peaks from MuJoCo, each time it is called."""

    def __init__(self, robot: RobotView, limits: Limits, spec: SafetySpec) -> None:
        """
        Start with none.

        :param robot: whose.
        :param limits: of its joints.
        :param spec: of the whole robot.
        """
        self.peaks, self._robot = Peaks(), robot
        entries = np.flatnonzero(limits.joint)
        self._lower, self._upper = limits.lower[entries], limits.upper[entries]
        self._speed, self._effort = limits.speed[entries], limits.effort[entries]
        self._bodies = [robot.body(point.frame) for point in spec.points.values()]
        self._offsets = [np.array(point.offset) for point in spec.points.values()]
        self._radius = np.array([point.radius for point in spec.points.values()])
        obstacles = list(spec.obstacles.values())
        self._shapes = Shapes(obstacles) if obstacles else None
        self._kept_away = np.array([
            [not item.points or name in item.points for name in spec.points]
            for item in obstacles], dtype=bool).reshape(len(obstacles), len(spec.points))
        self._fixed = np.array([item.frame == 'robot' for item in obstacles])
        self._tool = robot.body(spec.tool or '')
        self._upright = robot.data.xmat[robot.base].reshape(3, 3)[:, 2].copy()
        self._jacobian = np.zeros((3, robot.model.nv))

    def __call__(self) -> None:
        robot, peaks = self._robot, self.peaks
        model, data = robot.model, robot.data
        position, velocity = data.qpos[robot.q], data.qvel[robot.v]
        peaks.position = min(peaks.position, float(np.minimum(
            position - self._lower, self._upper - position).min()))
        peaks.velocity = max(peaks.velocity, float((np.abs(velocity) / self._speed).max()))
        torque = np.abs(data.actuator_force[robot.actuators]) / self._effort
        peaks.torque = max(peaks.torque, float(torque.max()))
        mujoco.mj_jacBody(model, data, self._jacobian, None, self._tool)
        # of the link's origin: mj_jacBody takes that
        peaks.tool_speed = max(
            peaks.tool_speed, float(np.linalg.norm(self._jacobian @ data.qvel)))
        rotation = data.xmat[robot.base].reshape(3, 3)
        tilt = np.arccos(np.clip(rotation[:, 2] @ self._upright, -1.0, 1.0))
        peaks.tilt = max(peaks.tilt, float(tilt))
        if self._shapes is None:
            return
        points = np.array([
            data.xpos[body] + data.xmat[body].reshape(3, 3) @ offset
            for body, offset in zip(self._bodies, self._offsets, strict=True)])
        world, _ = self._shapes.distance(points)
        seen, _ = self._shapes.distance((points - data.xpos[robot.base]) @ rotation)
        distance = np.where(self._fixed[:, None], seen, world) - self._radius
        peaks.distance = min(
            peaks.distance, float(distance[self._kept_away].min(initial=np.inf)))

    def broken(self, spec: SafetySpec) -> tuple[str, ...]:
        """Name the limits that were broken; a margin used up is one, a margin used is not."""
        peaks = self.peaks
        checks = {
            'position': peaks.position < 0.0, 'velocity': peaks.velocity > 1.0,
            'torque': spec.torque and peaks.torque >= 1.0,
            'tool_speed': spec.tool_speed is not None and peaks.tool_speed > spec.tool_speed,
            'distance': peaks.distance < 0.0, 'tilt': peaks.tilt > TIPPED}
        return tuple(name for name, is_broken in checks.items() if is_broken)


def _run(
    robot: TrialRobot, safety, settings: TrialSettings, spec: SafetySpec, period: float,
) -> Trial:
    generator = np.random.default_rng(settings.seed + 1)
    limits = safety.limits
    size = len(limits.names)
    entries = np.flatnonzero(limits.joint)
    gauge = Gauge(robot.view, limits, spec)
    robot.watch(gauge)
    gauge()
    rows: list[tuple] = []
    most = limits.effort if limits.torques else limits.high
    late = round(DELAY / period) if settings.kind == 'delay' and limits.torques else 0
    wishes: deque[np.ndarray] = deque(maxlen=late + 1)
    wanted, proposal, proposal_age = np.zeros(size), None, np.inf
    feedback: JointFeedback | None = None
    feedback_age = np.inf
    for tick in range(round(settings.seconds / period)):
        time = tick * period
        wanted = _wish(settings.kind, wanted, most, time, period, generator)
        wishes.append(wanted)
        silent = settings.kind == 'frozen' and time % (2 * HALT) >= HALT
        lost = settings.kind == 'loss' and generator.random() < 0.3
        if not silent and not lost and len(wishes) > late:
            proposal, proposal_age = wishes[0], late * period
        if not (settings.kind == 'loss' and generator.random() < 0.3):
            feedback, feedback_age = robot.measure(entries), 0.0 if limits.torques else AGE
        usable = proposal if proposal_age <= TIMEOUT + 1e-9 else None
        box = None
        if settings.filtered:
            known = None if feedback is None or feedback_age > TIMEOUT else replace(
                feedback, age=feedback_age)
            result = safety.filter(usable, known, period)
            command, state, active = result.command, result.state, result.active
            box = None if limits.torques else safety.box
        else:
            command = np.zeros(size) if usable is None else usable
            state, active = State.PASSING, ()
        nothing = np.full(size, np.nan)
        rows.append((
            time, nothing if usable is None else usable, command,
            nothing if box is None else box.low, nothing if box is None else box.high,
            int(state), active))
        robot.step(command)
        if gauge.peaks.velocity > RUNAWAY:
            break
        proposal_age += period
        feedback_age += period
    robot.watch(None)
    times, proposed, issued, low, high, states, limited = zip(*rows, strict=True)
    return Trial(
        limits.names, np.array(times), np.array(proposed), np.array(issued), np.array(low),
        np.array(high), np.array(states), limited, gauge.peaks, gauge.broken(spec))


def _wish(
    kind: str, last: np.ndarray, most: np.ndarray, time: float, period: float,
    generator: np.random.Generator,
) -> np.ndarray:
    """What a policy of this kind wants now: far beyond every limit."""
    def due(every: float) -> bool:
        return round(time / period) % round(every / period) == 0
    if kind == 'noise':
        return generator.normal(0.0, 3.0, len(most)) * most
    if kind == 'flips':
        if due(0.3):
            return -last if time else 5.0 * most * generator.choice([-1.0, 1.0], len(most))
        return last
    if due(0.5):
        return 5.0 * most * generator.choice([-1.0, 1.0], len(most))
    return last


def describe(trials: list[tuple[TrialSettings, Trial]]) -> str:
    """
    A table of trials.

    :param trials: with their settings.
    :return: Markdown.
    """
    columns = ('robot', 'policy', 'payload', 'filter', 'joint to its limit', 'joint speed',
               'torque', 'tool speed', 'distance', 'base tilt', 'broken')
    lines = [f'| {" | ".join(columns)} |', '|' + '---|' * len(columns)]
    for settings, trial in trials:
        peaks = trial.peaks
        distance = f'{1e3 * peaks.distance:.1f} mm' if np.isfinite(peaks.distance) else '-'
        lines.append(
            f'| {settings.robot} | {settings.kind} | {settings.payload:g} kg | '
            f'{"on" if settings.filtered else "off"} | {1e3 * peaks.position:.1f} mrad | '
            f'{peaks.velocity:.1%} | {peaks.torque:.1%} | {peaks.tool_speed:.3f} m/s | '
            f'{distance} | {1e3 * peaks.tilt:.1f} mrad | '
            f'{", ".join(trial.broken) or "none"} |')
    return '\n'.join(lines)


def rows_of(trials: list[tuple[TrialSettings, Trial]]) -> list[dict]:
    """
    Result rows: of each robot, policy and filter the worst over payloads and seeds.

    :param trials: with their settings.
    """
    units = {'position': 'rad', 'velocity': '1', 'torque': '1', 'tool_speed': 'm/s',
             'distance': 'm', 'tilt': 'rad'}
    groups: dict[tuple[str, str], list[tuple[TrialSettings, Trial]]] = {}
    for settings, trial in trials:
        key = f'{settings.robot}/{settings.kind}', 'filter' if settings.filtered else 'none'
        groups.setdefault(key, []).append((settings, trial))
    rows = []
    for (task, policy), group in groups.items():
        seconds = sum(settings.seconds for settings, _ in group)
        about = {'task': task, 'policy': policy, 'n': len(group),
                 'seeds': sorted({settings.seed for settings, _ in group}),
                 'payloads': sorted({settings.payload for settings, _ in group}),
                 'preset': f'{seconds:g} s', 'commit': commit(),
                 'machine': f'{platform.machine()}, {os.cpu_count()} cores',
                 'date': date.today().isoformat()}
        peaks = [asdict(trial.peaks) for _, trial in group]
        for name, unit in units.items():
            least = name in ('position', 'distance')
            value = (min if least else max)(peak[name] for peak in peaks)
            if np.isfinite(value):
                rows.append({'figure': f'worst_{name}', 'value': value, 'unit': unit, **about})
        broken = sum(bool(trial.broken) for _, trial in group)
        rows.append({'figure': 'violations', 'value': broken, 'unit': '1', **about})
    return rows


def main(argv: list[str] | None = None) -> int:
    """Run trials and print what MuJoCo measured."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument('--robots', nargs='+', choices=tuple(ROBOTS), default=tuple(ROBOTS))
    parser.add_argument('--kinds', nargs='+', choices=KINDS, default=KINDS)
    parser.add_argument('--payloads', nargs='+', type=float,
                        help="kg; default: the lightest and heaviest of each robot's trials")
    parser.add_argument('--seconds', type=float, default=5.0, help='length of each trial')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--output', type=Path, help='also write the table to this file')
    parser.add_argument('--write', type=Path, help='write result rows to this .jsonl file')
    options = parser.parse_args(argv)
    trials = []
    for robot in options.robots:
        for kind in options.kinds:
            for filtered in (True, False):
                for payload in options.payloads or ROBOTS[robot].payloads:
                    for seed in options.seeds:
                        settings = TrialSettings(
                            kind, payload, filtered, options.seconds, seed, robot)
                        trials.append((settings, run_trial(settings)))
    table = describe(trials)
    print(table)
    if options.output:
        options.output.write_text(table + '\n', encoding='utf-8')
    if options.write:
        options.write.write_text(
            ''.join(json.dumps(row) + '\n' for row in rows_of(trials)), encoding='utf-8')
    return int(any(settings.filtered and trial.broken for settings, trial in trials))


if __name__ == '__main__':
    sys.exit(main())
