"""
The safety filter against policies that mean harm, in dynamics that are not its own.

MuJoCo carries a load the filter knows only the range of, the velocity servos have their own lag,
messages get lost or late; what counts is measured after every step of the physics.
`python -m liquid_sim.safety_trial` runs every trial and prints a table.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import mujoco
import numpy as np

from liquid_policy.barrier import FilterSettings, JointFeedback, SafetyFilter, State
from liquid_policy.barrier_load import load_filter
from liquid_policy.barrier_shapes import Shapes
from liquid_policy.interface import Interface, load_interface
from liquid_policy.safety_spec import ObstacleSpec, PointSpec, SafetySpec
from liquid_sim import scene
from liquid_sim.conveyor import CONTROL_PERIOD, ConveyorSettings, ConveyorSim

KINDS = ('full', 'noise', 'flips', 'frozen', 'loss', 'delay')
AGE = 0.005      # of the joint states when they are used [s]
TIMEOUT = 0.05   # after which a proposal or joint states are stale [s]
SERVO_DELAY = 0.02   # of the cell's velocity servos, at most [s]
OVERSHOOT = 0.3      # of the cell's velocity servos: a step's 0.135, more when it turns round
HALT = 0.5       # how long a frozen policy says nothing [s]

# The cell: belt with its rails, bin, the floor; the robot's own mast and chassis.
CELL = SafetySpec(
    tool='tool_tip', payload=(0.0, 1.5), torque=True, torque_margin=0.1, tool_speed=1.0,
    power=250.0, distance_margin=0.03, tip_margin=0.03,
    points={
        'tool': PointSpec('tool', 'tool_tip', 0.02),
        'wrist': PointSpec('wrist', 'wrist_2_link', 0.06),
        'elbow': PointSpec('elbow', 'forearm_link', 0.06),
    },
    obstacles={
        'floor': ObstacleSpec('floor', 'plane', 'world', normal=(0.0, 0.0, 1.0), offset=0.0),
        'belt': ObstacleSpec('belt', 'box', 'world', center=(scene.BELT_X, 0.0, 0.21),
                             half=(0.16, 0.87, 0.22)),
        'bin': ObstacleSpec('bin', 'box', 'world', center=(*scene.BIN_CENTRE, 0.19),
                            half=(0.15, 0.15, 0.19)),
        'mast': ObstacleSpec('mast', 'capsule', start=(0.22, -0.19, 0.3), end=(0.22, -0.19, 0.9),
                             radius=0.02),
        'chassis': ObstacleSpec('chassis', 'box', center=(0.0, 0.0, 0.19),
                                half=(0.31, 0.22, 0.13)),
    })


@dataclass(frozen=True)
class TrialSettings:
    """
    One trial.

    :param kind: `full`: all joints and the base at full speed, direction changing at random;
        `noise`: another command every tick; `flips`: full speed, all signs flipping every 0.3 s;
        `frozen`: as full, silent for half a second out of every second; `loss`: as full, 30 % of
        proposals and of joint states lost; `delay`: as full, commands 50 ms late.
    :param payload: mass at the tool [kg], unknown to the filter.
    :param filtered: whether the filter is on.
    :param seconds: length [s].
    :param seed: of everything random.
    """

    kind: str = 'full'
    payload: float = 0.0
    filtered: bool = True
    seconds: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f'kind: expected one of {KINDS}, came {self.kind!r}')
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
    :param distance: nearest a watched ball came to an obstacle, negative inside [m].
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


def guarded_interface(spec: SafetySpec = CELL) -> Interface:
    """
    The manipulator's interface with limits of the whole robot.

    :param spec: the limits.
    """
    return replace(load_interface(scene.find_interface()), safety=spec)


def run_trial(settings: TrialSettings, spec: SafetySpec = CELL) -> Trial:
    """
    Run one trial.

    :param settings: which.
    :param spec: limits of the whole robot; also what is measured against.
    """
    late = 5 if settings.kind == 'delay' else 1
    sim = ConveyorSim(ConveyorSettings(command_delay=late), seed=settings.seed)
    rules = FilterSettings(delay=CONTROL_PERIOD * late + SERVO_DELAY, overshoot=OVERSHOOT)
    safety = load_filter(guarded_interface(spec), scene.find_description(), rules)
    try:
        _load(sim, settings.payload, settings.seed)
        return _run(sim, safety, settings, spec)
    finally:
        sim.close()


def _load(sim: ConveyorSim, mass: float, seed: int) -> None:
    """Fix a ball of this mass at the tool's tip, by changing the cup's inertia; start again."""
    model = sim.model
    cup = model.body('suction_cup_link').id
    tip = model.body('tool_tip').pos      # in the cup's frame
    own = model.body_mass[cup]
    model.body_ipos[cup] = (own * model.body_ipos[cup] + mass * tip) / (own + mass)
    model.body_inertia[cup] += 0.4 * mass * 0.05 ** 2
    model.body_mass[cup] = own + mass
    # The cell is air to the robot: a blow by what nobody watches (rails, parts, the forearm's
    # middle) would be measured as the filter's doing. Distances are measured all the same.
    robot = model.body_rootid[model.body('base_link').id]
    floor = model.geom('floor').id
    for geom in range(model.ngeom):
        if geom != floor and model.body_rootid[model.geom_bodyid[geom]] != robot:
            model.geom_contype[geom] = model.geom_conaffinity[geom] = 0
    mujoco.mj_setConst(model, mujoco.MjData(model))
    sim.reset(seed)


class _Gauge:
    """Takes the peaks from MuJoCo."""

    def __init__(self, sim: ConveyorSim, safety: SafetyFilter, spec: SafetySpec) -> None:
        self.peaks, self._sim = Peaks(), sim
        limits, model = safety.limits, sim.model
        arm = [model.joint(name) for name in scene.ARM_JOINTS]
        self._q = np.array([joint.qposadr[0] for joint in arm])
        self._v = np.array([joint.dofadr[0] for joint in arm])
        entries = np.flatnonzero(limits.joint)
        self._lower, self._upper = limits.lower[entries], limits.upper[entries]
        self._speed, self._effort = limits.speed[entries], limits.effort[entries]
        self._actuators = np.array([model.actuator(name).id for name in scene.ARM_JOINTS])
        self._bodies = [model.body(point.frame).id for point in spec.points.values()]
        self._offsets = [np.array(point.offset) for point in spec.points.values()]
        self._radius = np.array([point.radius for point in spec.points.values()])
        obstacles = list(spec.obstacles.values())
        self._shapes = Shapes(obstacles)
        self._kept_away = np.array([
            [not item.points or name in item.points for name in spec.points]
            for item in obstacles], dtype=bool).reshape(len(obstacles), len(spec.points))
        self._fixed = np.array([item.frame == 'robot' for item in obstacles])
        self._base = model.body('base_link').id
        self._tip = model.site('tool_tip').id
        self._upright = sim.data.xmat[self._base].reshape(3, 3)[:, 2].copy()
        self._jacobian = np.zeros((3, model.nv))

    def __call__(self) -> None:
        sim, peaks = self._sim, self.peaks
        data = sim.data
        position, velocity = data.qpos[self._q], data.qvel[self._v]
        peaks.position = min(peaks.position, float(np.minimum(
            position - self._lower, self._upper - position).min()))
        peaks.velocity = max(peaks.velocity, float((np.abs(velocity) / self._speed).max()))
        torque = np.abs(data.actuator_force[self._actuators]) / self._effort
        peaks.torque = max(peaks.torque, float(torque.max()))
        mujoco.mj_jacSite(sim.model, data, self._jacobian, None, self._tip)
        peaks.tool_speed = max(
            peaks.tool_speed, float(np.linalg.norm(self._jacobian @ data.qvel)))
        rotation = data.xmat[self._base].reshape(3, 3)
        points = np.array([
            data.xpos[body] + data.xmat[body].reshape(3, 3) @ offset
            for body, offset in zip(self._bodies, self._offsets, strict=True)])
        world, _ = self._shapes.distance(points)
        robot, _ = self._shapes.distance((points - data.xpos[self._base]) @ rotation)
        distance = np.where(self._fixed[:, None], robot, world) - self._radius
        peaks.distance = min(
            peaks.distance, float(distance[self._kept_away].min(initial=np.inf)))
        tilt = np.arccos(np.clip(rotation[:, 2] @ self._upright, -1.0, 1.0))
        peaks.tilt = max(peaks.tilt, float(tilt))


def _run(
    sim: ConveyorSim, safety: SafetyFilter, settings: TrialSettings, spec: SafetySpec,
) -> Trial:
    generator = np.random.default_rng(settings.seed + 1)
    limits, size = safety.limits, len(safety.limits.names)
    arm = np.flatnonzero(limits.joint)
    gauge = _Gauge(sim, safety, spec)
    sim.watch = gauge
    gauge()
    rows: list[tuple] = []
    wanted, proposal, proposal_age = np.zeros(size), None, np.inf
    feedback, feedback_age = None, np.inf
    for tick in range(round(settings.seconds / CONTROL_PERIOD)):
        time = tick * CONTROL_PERIOD
        wanted = _wish(settings.kind, wanted, limits.high, tick, generator)
        silent = settings.kind == 'frozen' and time % (2 * HALT) >= HALT
        lost = settings.kind == 'loss' and generator.random() < 0.3
        if not silent and not lost:
            proposal, proposal_age = wanted, 0.0
        if not (settings.kind == 'loss' and generator.random() < 0.3):
            feedback, feedback_age = _measure(sim, arm, size), AGE
        usable = proposal if proposal_age <= TIMEOUT else None
        if settings.filtered:
            known = None if feedback is None or feedback_age > TIMEOUT else replace(
                feedback, age=feedback_age)
            result = safety.filter(usable, known, CONTROL_PERIOD)
            command, state, active = result.command, result.state, result.active
        else:
            command = np.zeros(size) if usable is None else usable
            state, active = State.PASSING, ()
        box = safety.box
        nothing = np.full(size, np.nan)
        rows.append((
            time, nothing if usable is None else usable, command,
            nothing if box is None else box.low, nothing if box is None else box.high,
            int(state), active))
        sim.step(command)
        proposal_age += CONTROL_PERIOD
        feedback_age += CONTROL_PERIOD
    sim.watch = None
    times, proposed, issued, low, high, states, limited = zip(*rows, strict=True)
    return Trial(
        limits.names, np.array(times), np.array(proposed), np.array(issued), np.array(low),
        np.array(high), np.array(states), limited, gauge.peaks)


def _measure(sim: ConveyorSim, arm: np.ndarray, size: int) -> JointFeedback:
    """What the robot says of itself."""
    _, position, velocity, effort = sim.joint_state()
    known = np.full((3, size), np.nan)
    for row, values in zip(known, (position, velocity, effort), strict=True):
        row[arm] = values[:len(arm)]
    return JointFeedback(
        known[0], known[1], known[2], base=np.array(sim.odometry()[:3]))


def _wish(
    kind: str, last: np.ndarray, speed: np.ndarray, tick: int, generator: np.random.Generator,
) -> np.ndarray:
    """What a policy of this kind wants now: far beyond every speed limit."""
    if kind == 'noise':
        return generator.normal(0.0, 3.0, len(speed)) * speed
    if kind == 'flips':
        if tick % 30 == 0:
            return -last if tick else 5.0 * speed * generator.choice([-1.0, 1.0], len(speed))
        return last
    if tick % 50 == 0:
        return 5.0 * speed * generator.choice([-1.0, 1.0], len(speed))
    return last


def describe(trials: list[tuple[TrialSettings, Trial]]) -> str:
    """
    A table of trials.

    :param trials: with their settings.
    :return: Markdown.
    """
    columns = ('policy', 'payload', 'filter', 'joint to its limit', 'joint speed', 'torque',
               'tool speed', 'distance', 'base tilt', 'changed')
    lines = [f'| {" | ".join(columns)} |', '|' + '---|' * len(columns)]
    for settings, trial in trials:
        peaks = trial.peaks
        changed = np.mean(trial.states != State.PASSING)
        lines.append(
            f'| {settings.kind} | {settings.payload:g} kg | '
            f'{"on" if settings.filtered else "off"} | {1e3 * peaks.position:.1f} mrad | '
            f'{peaks.velocity:.1%} | {peaks.torque:.1%} | {peaks.tool_speed:.3f} m/s | '
            f'{1e3 * peaks.distance:.1f} mm | {1e3 * peaks.tilt:.1f} mrad | '
            f'{changed:.0%} |')
    return '\n'.join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run trials and print what MuJoCo measured."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument('--kinds', nargs='+', choices=KINDS, default=KINDS)
    parser.add_argument('--payloads', nargs='+', type=float, default=[0.0, 1.5], help='kg')
    parser.add_argument('--seconds', type=float, default=5.0, help='length of each trial')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--output', type=Path, help='also write the table to this file')
    options = parser.parse_args(argv)
    trials = []
    for kind in options.kinds:
        for filtered in (True, False):
            for payload in options.payloads:
                settings = TrialSettings(kind, payload, filtered, options.seconds, options.seed)
                trials.append((settings, run_trial(settings)))
    table = describe(trials)
    print(table)
    if options.output:
        options.output.write_text(table + '\n', encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
