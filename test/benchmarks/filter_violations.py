"""
Does anything get past the safety filter, and how close to its limits does it let the robot go?

`random`: random arms in random states near an obstacle, each with a last command that the filter
lets pass there;
the filter's answer to a random proposal is followed by an independent, dense integration of
holding it for the longest period and braking, with Pinocchio's kinematics and dynamics, for no
load and for the heaviest. `adversarial`: closed loops in which every proposal steers the
nearest point into its obstacle as fast as possible, with jitter and the full delay. `mujoco`: the
trials of `liquid_sim.safety_trial`. A violation is an instant (of `random`, a state; of `mujoco`,
a trial) at which a limit is broken, the margins of distance and torque not counted.
`conservatism` is how much of each limit is left where it decided, `least_gap` the least.

Run it as `docker/in_environment.sh python3 test/benchmarks/filter_violations.py`. The random
states come in batches that are kept under `runs/filter_violations` as they are done, on as many
processes as asked for: stopped, the same command goes on where it was. `--preset full` takes an
hour or two on two cores of their own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / 'liquid_policy_node' / 'test'))

from random_robot import World, arm_limits, random_urdf  # noqa: E402

from liquid_policy.barrier import FilterSettings, JointFeedback, SafetyFilter, State  # noqa: E402
from liquid_policy.barrier_load import make_guard  # noqa: E402
from liquid_policy.barrier_shapes import Shapes  # noqa: E402
from liquid_policy.safety_spec import ObstacleSpec, PointSpec, SafetySpec  # noqa: E402

RESULTS = Path(__file__).parent / 'results' / 'filter_violations.jsonl'
KEPT = REPOSITORY / 'runs' / 'filter_violations'
BATCH = 500   # states, of one arm
PRESETS = {'small': (2000, 20, 0), 'medium': (20_000, 200, 6), 'full': (1_000_000, 10_000, 12)}
JOINTS, PERIOD, MARGIN, SPEED = 5, 0.025, 0.02, 0.8
POWER, EFFORT, INSTANTS = 80.0, 200.0, 31
RULES = FilterSettings(longest_period=PERIOD, delay=0.02, position_margin=0.0)
SPEC = SafetySpec(
    tool='tool', tool_speed=SPEED, distance_margin=MARGIN, torque=True, payload=(0.0, 1.0),
    power=POWER,
    points={'tool': PointSpec('tool', 'tool', 0.03), 'elbow': PointSpec('elbow', 'link_2', 0.05)},
    obstacles={'floor': ObstacleSpec('floor', 'plane', normal=(0.0, 0.0, 1.0), offset=-0.2),
               'ball': ObstacleSpec('ball', 'sphere', center=(0.5, 0.0, 0.4), radius=0.15),
               'crate': ObstacleSpec('crate', 'box', center=(0.0, -0.6, 0.5),
                                     half=(0.2, 0.1, 0.2))})
UNITS = {'distance': 'm', 'tool_speed': 'm/s', 'position': 'rad', 'torque': '1', 'power': 'W'}
SHAPES = Shapes(list(SPEC.obstacles.values()))
RADIUS = np.array([point.radius for point in SPEC.points.values()])


def make_arm(generator: np.random.Generator) -> SafetyFilter:
    """A filter of a random arm."""
    limits = arm_limits(JOINTS, generator=generator, effort=EFFORT)
    return SafetyFilter(limits, RULES, (
        make_guard(SPEC, limits, RULES, random_urdf(generator, JOINTS)),))


def measure(safety: SafetyFilter, positions: np.ndarray, velocities: np.ndarray):
    """Clearance of the nearest point `(N,)` [m] and speed of the tool `(N,)` [m/s]."""
    model = safety.guards[0].model
    points, tool = model.points(model.configuration(positions), model.velocity(velocities))
    distance, _ = SHAPES.distance(points.reshape(-1, 3))
    distance = distance.reshape(len(SPEC.obstacles), len(positions), -1) - RADIUS
    return distance.min(axis=(0, 2)), np.linalg.norm(tool, axis=1)


def integrate(position: np.ndarray, command: np.ndarray, deceleration: np.ndarray):
    """
    Hold a command for the longest period, then brake.

    Instants lie evenly, and just before and after every moment at which a joint comes to rest.

    :return: positions, velocities and accelerations, `(N, A)` each.
    """
    stop = np.abs(command / deceleration)
    knots = np.concatenate([[0.0], stop])
    times = np.sort(np.concatenate([
        np.linspace(0.0, PERIOD + stop.max(), INSTANTS), PERIOD + knots - 1e-9,
        PERIOD + knots + 1e-9]))[:, None]
    braking = np.minimum(np.maximum(times - PERIOD, 0.0), stop)
    slowing = np.sign(command) * deceleration
    held = np.minimum(times, PERIOD)
    offset = command * (held + braking) - 0.5 * slowing * braking ** 2
    changing = (times > PERIOD) & (times < PERIOD + stop)
    return position + offset, command - slowing * braking, -slowing * changing


def forces_of(safety: SafetyFilter, positions, velocities, accelerations):
    """Joint torques without and with the heaviest load `(2, N, A)` [N m], by Pinocchio."""
    model = safety.guards[0].model
    return model.efforts(
        model.configuration(positions), model.velocity(velocities),
        model.velocity(accelerations))[..., model.dofs]


def near_an_obstacle(safety: SafetyFilter, generator: np.random.Generator) -> np.ndarray:
    """Of sixteen random postures the one nearest to an obstacle, outside its margin, `(A,)`."""
    limits = safety.limits
    postures = generator.uniform(limits.lower, limits.upper, (16, JOINTS))
    clearance, _ = measure(safety, postures, np.zeros_like(postures))
    return postures[np.where(clearance < MARGIN, np.inf, clearance).argmin()]


def follow(safety: SafetyFilter, start: np.ndarray, command: np.ndarray) -> dict[str, float]:
    """
    How much of each limit is left, at least, while a command is held and braked.

    Torque and power are convex in the load, so that none between is worse than both ends.
    """
    limits = safety.limits
    ahead, way, change = integrate(start, command, limits.deceleration)
    clearance, speed = measure(safety, ahead, way)
    torque = forces_of(safety, ahead, way, change)
    return {'distance': clearance.min() - MARGIN, 'tool_speed': SPEED - speed.max(),
            'position': min((ahead - limits.lower).min(), (limits.upper - ahead).min()),
            'torque': 1.0 - np.abs(torque).max() / EFFORT,
            'power': POWER - np.maximum(torque * way, 0.0).sum(axis=2).max()}


def safe_command(
    safety: SafetyFilter, position: np.ndarray, generator: np.random.Generator,
) -> np.ndarray | None:
    """A command in a random direction, as fast as can be held and braked safely, `(A,)`."""
    limits = safety.limits
    direction = generator.uniform(limits.low, limits.high)
    for share in (1.0, 0.7, 0.4, 0.2, 0.1, 0.03):
        command = share * direction
        start = position + command * RULES.delay
        ahead, way, _ = integrate(start, command, limits.deceleration)
        if (ahead < limits.lower).any() or (ahead > limits.upper).any() \
                or measure(safety, ahead[:2], way[:2])[1].max() > SPEED:
            continue
        left = follow(safety, start, command)
        left['torque'] -= SPEC.torque_margin
        if min(left.values()) >= 0.0:
            return command
    return None


def issue(safety: SafetyFilter, command: np.ndarray) -> None:
    """Let a filter believe that it has issued a command for long."""
    safety.reset()
    safety.command = command
    safety._issued[0] = (0.0, command)


def random_batch(place: tuple[int, int, int]) -> dict:
    """
    One call from each of many random states.

    :param place: seed, number of the batch, how many states.
    """
    seed, batch, count = place
    generator = np.random.default_rng([seed, batch])
    found: dict = {'seed': seed, 'batch': batch, 'states': 0, 'violations': 0, 'changed': 0,
                   'braked': 0, 'broken': [], 'gaps': {}}
    names = {'distance': 'distance', 'speed': 'tool_speed', 'torque': 'torque',
             'power': 'power', 'position': 'position'}
    while found['states'] < count:
        safety = make_arm(generator)
        limits = safety.limits
        for _ in range(min(500, count)):
            if found['states'] >= count:
                break
            position = near_an_obstacle(safety, generator)
            previous = safe_command(safety, position, generator)
            if previous is None:
                continue  # no filter could have issued a last command here
            feedback = JointFeedback(position, previous, np.full(JOINTS, np.nan), 0.0)
            issue(safety, previous)
            if safety.filter(previous, feedback, PERIOD).state != State.PASSING:
                continue  # this one would not have
            issue(safety, previous)
            start = position + previous * RULES.delay
            elapsed = generator.uniform(0.002, PERIOD)
            wanted = generator.normal(0.0, 2.0, JOINTS)
            result = safety.filter(wanted, feedback, elapsed)
            command, change = result.command, (result.command - previous) / elapsed
            left = follow(safety, start, command)
            now = forces_of(safety, start[None], previous[None], change[None])[:, 0]
            left['torque'] = min(left['torque'], 1.0 - np.abs(now).max() / EFFORT)
            left['power'] = min(left['power'], POWER - np.maximum(
                now * command, 0.0).sum(axis=1).max())
            broken = [name for name, least in (
                ('distance', -MARGIN), ('tool_speed', -1e-6 * SPEED), ('position', -1e-9),
                ('torque', -1e-6), ('power', -1e-6 * POWER)) if not left[name] >= least]
            if (command < limits.low).any() or (command > limits.high).any():
                broken.append('velocity')
            if (np.abs(change) > limits.acceleration * (1 + 1e-9)).any():
                broken.append('acceleration')
            found['states'] += 1
            found['violations'] += bool(broken)
            found['changed'] += result.state == State.LIMITING
            found['braked'] += result.state == State.BRAKING
            found['broken'] += [[found['states'], name, left.get(name, 0.0)] for name in broken]
            if result.state == State.LIMITING:
                for name in {names[item.partition('/')[0]] for item in result.active
                             if item.partition('/')[0] in names}:
                    found['gaps'].setdefault(name, []).append(round(float(left[name]), 7))
    return found


def fingerprint() -> str:
    """What the filter's code and this benchmark are, so that batches of others do not count."""
    library = REPOSITORY / 'liquid_policy_node' / 'liquid_policy'
    files = [*sorted(library.glob('barrier*.py')), library / 'robot_model.py', Path(__file__)]
    return hashlib.sha256(b''.join(file.read_bytes() for file in files)).hexdigest()[:16]


def random_states(count: int, seed: int, processes: int) -> dict:
    """Batches of random states, those already done included."""
    KEPT.mkdir(parents=True, exist_ok=True)
    file = KEPT / f'{fingerprint()}_{seed}.jsonl'
    done = [json.loads(line) for line in file.read_text(encoding='utf-8').splitlines()] \
        if file.exists() else []
    batches = -(-count // BATCH)
    done = [batch for batch in done if batch['batch'] < batches]
    known = {batch['batch'] for batch in done}
    missing = [(seed, number, min(BATCH, count - number * BATCH))
               for number in range(batches) if number not in known]
    begin = time.perf_counter()
    context = multiprocessing.get_context('spawn')
    with context.Pool(processes) as pool, file.open('a', encoding='utf-8') as kept:
        for number, batch in enumerate(pool.imap_unordered(random_batch, missing), start=1):
            done.append(batch)
            kept.write(json.dumps(batch) + '\n')
            kept.flush()
            show(len(done), batches, sum(item['violations'] for item in done),
                 (time.perf_counter() - begin) / number * (len(missing) - number))
    print(flush=True)
    found = {key: sum(batch[key] for batch in done)
             for key in ('states', 'violations', 'changed', 'braked')}
    gaps: dict[str, list[float]] = {}
    for batch in done:
        for name, values in batch['gaps'].items():
            gaps.setdefault(name, []).extend(values)
    for batch in done:
        for place, name, left in batch['broken']:
            print(f'  batch {batch["batch"]}, state {place}: {name}, left {left:.3g}')
    return {**found, 'left': gaps}


def show(done: int, count: int, violations: int, left: float) -> None:
    """A bar on one line."""
    filled = 40 * done // count
    print(f'\r[{"#" * filled}{"." * (40 - filled)}] {done}/{count} batches, {violations} '
          f'violations, {left / 60:.0f} min left ', end='', flush=True)


def adversarial(episodes: int, seed: int) -> dict:
    """Closed loops against proposals that steer into the obstacles."""
    generator = np.random.default_rng(seed)
    found = {'states': 0, 'violations': 0}
    gaps, fastest = [], 0.0
    for _ in range(episodes):
        safety = make_arm(generator)
        for _ in range(1000):
            start = generator.uniform(-2.0, 2.0, JOINTS)
            if measure(safety, start[None], np.zeros((1, JOINTS)))[0][0] > 0.05:
                break
        world, command, nearest = World(start, RULES.delay), np.zeros(JOINTS), np.inf
        model = safety.guards[0].model
        for tick in range(80):
            q = model.configuration(world.position[None])
            points, _ = model.points(q, model.velocity(np.zeros((1, JOINTS))))
            distance, normal = SHAPES.distance(points[0])
            body, point = np.unravel_index((distance - RADIUS).argmin(), distance.shape)
            slope = normal[body, point] @ model.point_jacobian(q[0], int(point), JOINTS)
            wanted = -10.0 * np.sign(slope)
            if tick % 40 > 30:
                wanted = generator.normal(0.0, 5.0, JOINTS)
            elapsed = generator.uniform(0.004, PERIOD)
            command = safety.filter(wanted, JointFeedback(
                world.position.copy(), command, np.full(JOINTS, np.nan), 0.0), elapsed).command
            instants = list(world.run(command, elapsed))
            clearance, speed = measure(safety, *(
                np.array(part) for part in zip(*instants, strict=True)))
            nearest, fastest = min(nearest, clearance.min()), max(fastest, speed.max())
            found['states'] += len(instants)
            found['violations'] += int((clearance < 0.0).sum()) + int(
                (speed > SPEED * (1.0 + 1e-6)).sum())
        gaps.append(nearest - MARGIN)
    return {**found, 'left': {'distance': gaps, 'tool_speed': [SPEED - fastest]}}


def in_mujoco(trials: int) -> dict:
    """Trials in MuJoCo: how many broke a limit."""
    from liquid_sim.safety_trial import CELL, KINDS, TrialSettings, run_trial
    broken, instants, nearest = 0, 0, np.inf
    for index in range(trials):
        trial = run_trial(TrialSettings(
            KINDS[index % len(KINDS)], (0.0, 1.5, 0.7)[index // len(KINDS) % 3], seconds=3.0,
            seed=index))
        peaks = trial.peaks
        instants += 5 * len(trial.times)
        nearest = min(nearest, peaks.distance)
        bad = (peaks.position < 0.0 or peaks.velocity > 1.0 or peaks.torque >= 1.0
               or peaks.distance < 0.0 or peaks.tool_speed > CELL.tool_speed * 1.05)
        broken += bad
        if bad:
            print(f'  {KINDS[index % len(KINDS)]}, seed {index}: {peaks}', flush=True)
    return {'states': instants, 'violations': broken,
            'left': {'distance': [nearest - CELL.distance_margin]}}


def main() -> None:
    """Print the counts; with --write keep them."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('--preset', choices=PRESETS, default='small')
    parser.add_argument('--states', type=int, help='random states, in place of the preset')
    parser.add_argument('--episodes', type=int, help='adversarial episodes, likewise')
    parser.add_argument('--trials', type=int, help='trials in MuJoCo, likewise')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument('--write', action='store_true', help='write the result file')
    options = parser.parse_args()
    given = (options.states, options.episodes, options.trials)
    counts = [preset if count is None else count
              for count, preset in zip(given, PRESETS[options.preset], strict=True)]
    preset = options.preset if given == (None, None, None) else 'custom'
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=REPOSITORY, text=True,
                            capture_output=True, check=False).stdout.strip()
    shared = {'policy': 'daqp', 'seeds': [options.seed], 'preset': preset, 'commit': commit,
              'machine': f'{platform.machine()}, {os.cpu_count()} cores',
              'date': date.today().isoformat()}
    rows = []
    for task, run, count in (
            ('random', lambda count, seed: random_states(count, seed, options.processes),
             counts[0]),
            ('adversarial', adversarial, counts[1]),
            ('mujoco', lambda count, seed: in_mujoco(count), counts[2])):
        if not count:
            continue
        begin = time.perf_counter()
        found = run(count, options.seed)
        # with none in n, 3 / n bounds the rate with 95 % (the rule of three)
        upper = 3.0 if not found['violations'] else found['violations'] + 2 * np.sqrt(
            found['violations'])
        rows.append({'figure': 'violations', 'task': task, 'value': found['violations'],
                     'low': max(0.0, found['violations'] - 2 * found['violations'] ** 0.5),
                     'high': float(upper), 'unit': '1', 'n': int(found['states']), **shared})
        rows += [{'figure': figure, 'task': f'{task}_{name}', 'value': float(value(gaps)),
                  'unit': UNITS[name], 'n': len(gaps), **shared}
                 for name, gaps in sorted(found['left'].items())
                 for figure, value in (('conservatism', np.median), ('least_gap', np.min))]
        summary = {key: value for key, value in found.items() if key != 'left'}
        print(f'{task}: {summary} in {time.perf_counter() - begin:.0f} s', flush=True)
        for name, gaps in sorted(found['left'].items()):
            print(f'  {name}: {np.median(gaps):.4g} {UNITS[name]} left in the middle, '
                  f'{np.min(gaps):.4g} at least, where it decided {len(gaps)} times', flush=True)
    if options.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
        print(f'written to {RESULTS.relative_to(REPOSITORY)}')


if __name__ == '__main__':
    main()
