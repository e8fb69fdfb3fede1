"""The plots of the report, as plain data that the page's script draws."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from liquid_sim import run_statistics
from liquid_sim.run_record import Run, Series
from liquid_trainer.plots import (
    BLUE,
    GREEN,
    GREY,
    MOST_POINTS,
    ORANGE,
    PALETTE,
    PURPLE,
    RED,
    area,
    line,
    packed,
    spans,
)

BANDS = {'limiting': ('rgba(240, 180, 41, 0.25)', '#f0b429', 2),
         'braking': ('rgba(214, 69, 61, 0.20)', '#d6453d', 3),
         'stopped': ('rgba(90, 60, 140, 0.22)', '#5a3c8c', 4)}


@dataclass(frozen=True)
class DrawnLimits:
    """
    Limits to be drawn as lines, by joint or action name; what is missing is not drawn.

    :param position: lower and upper joint position [rad].
    :param rate: largest magnitude of the action, in the action's unit.
    """

    position: dict[str, tuple[float, float]] = field(default_factory=dict)
    rate: dict[str, float] = field(default_factory=dict)


def bands(run: Run) -> dict[str, Any]:
    """
    Return the times in which the safety filter intervened, for shading.

    :param run: what was recorded.
    """
    order = np.argsort(run.safety.stamps, kind='stable')
    seconds = run.seconds(run.safety.stamps[order])
    return {name: {'color': color, 'solid': solid,
                   'spans': spans(seconds, run.safety.states[order] == state)}
            for name, (color, solid, state) in BANDS.items()}


def part_group(run: Run) -> dict[str, Any] | None:
    """
    Return where the part is and where the policy believes it to be.

    :param run: what was recorded.
    """
    plots: list[dict[str, Any]] = []
    for name, title, unit in (('part_x', 'part x', 'm'),
                              ('part_y', 'part y (along the belt)', 'm'),
                              ('part_z', 'part z', 'm'), ('part_speed', 'part speed', 'm/s')):
        series = []
        if name in run.estimate.names and len(run.estimate):
            seconds = run.seconds(run.estimate.stamps)
            mean, deviation = run.estimate.column(name), run.estimate_deviation.column(name)
            series.append(area('± 2 σ', seconds, mean - 2 * deviation, mean + 2 * deviation,
                               'rgba(36, 100, 214, 0.18)'))
            series.append(line('estimate', seconds, mean, BLUE))
        if len(run.truth):
            # A jump to the next part must not be drawn as a movement: broken where time is.
            seconds, truth = broken(run.truth, name, run)
            series.append(line('ground truth', seconds, truth, ORANGE))
        if series:
            # Wide deviations while no part is in sight would flatten the rest of the plot.
            plots.append({'kind': 'time', 'title': title, 'unit': unit, 'series': series,
                          'limits': sensible(run, name)})
    error = run_statistics.pose_error(run)
    if error.errors.size:
        plots.append({'kind': 'time', 'title': 'part position error', 'unit': 'mm', 'floor': 0,
                      'series': [line('error', run.seconds(error.stamps), 1e3 * error.errors,
                                      RED, dots=True)]})
    if len(run.conveyor):
        seconds = run.seconds(run.conveyor.stamps)
        plots.append({'kind': 'time', 'title': 'belt speed and part mass', 'unit': 'm/s, kg',
                      'floor': 0, 'series': [
                          line('belt speed [m/s]', seconds, run.conveyor.column('belt_speed'),
                               BLUE, step=True),
                          line('part mass [kg]', seconds, run.conveyor.column('part_mass'),
                               GREY, step=True)]})
    if not plots:
        return None
    return {'title': 'The part: belief and truth', 'columns': 'two', 'plots': plots,
            'note': 'What the policy believes of the part from camera, IMU and joints, against '
                    'the simulator’s ground truth (never an input), in base_link.'}


def broken(series: Series, name: str, run: Run, longest: float = 0.15) -> tuple[np.ndarray,
                                                                               np.ndarray]:
    """
    Return a column with NaN between samples that do not belong together.

    :param series: `(N, D)`.
    :param name: the column.
    :param run: gives time zero.
    :param longest: samples further apart than this [s] are not connected.
    :return: times [s] and values, `(N + breaks,)`.
    """
    seconds, values = run.seconds(series.stamps), series.column(name)
    breaks = np.flatnonzero((np.diff(seconds) > longest)
                            | (np.abs(np.diff(series.values[:, 1])) > 0.05)) + 1
    return (np.insert(seconds, breaks, seconds[breaks - 1] + 1e-3),
            np.insert(values, breaks, np.nan))


def sensible(run: Run, name: str) -> list[float] | None:
    """
    Return bounds of a plot that neither outliers nor wide deviations can stretch.

    :param run: what was recorded.
    :param name: name of the target.
    :return: lower and upper bound; None to let the page choose.
    """
    values = [run.truth.column(name)] if len(run.truth) else []
    if name in run.estimate.names and len(run.estimate):
        values.append(np.percentile(run.estimate.column(name), [1, 99]))
    joined = np.concatenate(values)
    joined = joined[np.isfinite(joined)]
    if not joined.size:
        return None
    low, high = float(joined.min()), float(joined.max())
    room = max(0.15 * (high - low), 0.01)
    return [low - room, high + room]


def command_group(run: Run, limits: DrawnLimits) -> dict[str, Any] | None:
    """
    Return what each action was proposed, issued, demonstrated and measured to be, with limits.

    :param run: what was recorded.
    :param limits: drawn as dashed lines.
    """
    plots: list[dict[str, Any]] = []
    seconds = run.seconds(run.safety.stamps)
    for name in action_names(run):
        series = []
        if name in run.velocities.names:
            series.append(line('measured', run.seconds(run.velocities.stamps),
                               run.velocities.column(name), GREEN, width=1))
        series += [line('demonstrated', run.seconds(part.stamps), part.column(name), PURPLE,
                        width=1) for part in run.demonstrated.values() if name in part.names]
        if name in run.safety.issued.names:
            series.append(line('proposed', seconds, run.safety.proposed.column(name), ORANGE,
                               width=1))
            series.append(line('issued', seconds, run.safety.issued.column(name), BLUE))
        else:
            series += [line('issued', run.seconds(part.stamps), part.column(name), BLUE)
                       for part in run.issued.values() if name in part.names]
        levels = []
        if name in limits.rate:
            levels = [{'y': limits.rate[name], 'name': 'limit'}, {'y': -limits.rate[name]}]
        unit = {'base_v': 'm/s', 'base_w': 'rad/s', 'suction': '1'}.get(name, 'rad/s')
        plots.append({'kind': 'time', 'title': name, 'unit': unit, 'series': series,
                      'levels': levels, 'bands': list(BANDS)})
    if not plots:
        return None
    return {'title': 'Commands and what became of them', 'columns': 'three', 'plots': plots,
            'note': 'Shaded where the safety filter changed the proposal (limiting) or had none '
                    'it could use (braking). Drag to zoom all plots, double-click to zoom out.'}


def action_names(run: Run) -> tuple[str, ...]:
    """
    Return the names of everything that was commanded, in order.

    :param run: what was recorded.
    """
    if run.safety.issued.names:
        return run.safety.issued.names
    names = [name for part in (*run.issued.values(), *run.demonstrated.values())
             for name in part.names]
    return tuple(dict.fromkeys(names))


def joint_group(run: Run, limits: DrawnLimits) -> dict[str, Any] | None:
    """
    Return the joint positions with their limits.

    :param run: what was recorded.
    :param limits: drawn as dashed lines.
    """
    plots: list[dict[str, Any]] = []
    seconds = run.seconds(run.positions.stamps)
    for name in run.positions.names:
        if name in action_names(run) or 'wheel' not in name:
            levels = [{'y': value, **({'name': 'limit'} if index == 0 else {})}
                      for index, value in enumerate(limits.position.get(name, ()))]
            plots.append({'kind': 'time', 'title': name, 'unit': 'rad', 'levels': levels,
                          'series': [line('position', seconds, run.positions.column(name),
                                          BLUE)], 'bands': list(BANDS)})
    if not plots:
        return None
    return {'title': 'Joint positions', 'columns': 'three', 'plots': plots, 'note':
            'Dashed: position limits of the URDF, where they are within the plot.'}


def mixture_group(run: Run) -> dict[str, Any] | None:
    """
    Return the mixture's weights over time and how sure the policy is of its choice.

    :param run: what was recorded.
    """
    policy = run.policy
    if not policy.stamps.size or policy.weights.shape[1] == 0:
        return None
    order = np.argsort(policy.stamps, kind='stable')
    seconds, weights = run.seconds(policy.stamps[order]), policy.weights[order]
    skip = max(1, len(seconds) // MOST_POINTS)
    count = weights.shape[1]
    # Components beyond the palette are drawn with the last colour; more than 8 are unusual.
    series = [{'name': f'component {index}',
               'color': PALETTE[min(index, len(PALETTE) - 1)],
               'x': packed(seconds[::skip]), 'y': packed(weights[::skip, index])}
              for index in range(count)]
    plots: list[dict[str, Any]] = [
        {'kind': 'stack', 'title': 'mixture weights', 'unit': '1', 'series': series,
         'limits': [0, 1]},
        {'kind': 'time', 'title': 'chosen component', 'unit': 'index', 'floor': 0,
         'limits': [-0.5, max(count - 0.5, 0.5)],
         'series': [line('chosen', seconds, policy.chosen_components[order], BLUE, step=True)]}]
    return {'title': 'The policy’s distribution', 'columns': 'two', 'plots': plots,
            'note': f'Weights of the {count} mixture component{"s" if count > 1 else ""}, and the '
                    'one the robot followed.'}


def latency_group(run: Run, budget: float) -> dict[str, Any] | None:
    """
    Return the stages' latencies as distribution and over time.

    :param run: what was recorded.
    :param budget: time from image stamp to command that is aimed at [s].
    """
    stages = run_statistics.stages(run)
    if not stages:
        return None
    shares, timed, lowest, highest = [], [], np.inf, 0.0
    for index, stage in enumerate(stages):
        color = PALETTE[index % len(PALETTE)]
        values = np.sort(1e3 * stage.latencies)
        values = np.maximum(values, 1e-3)
        share = np.arange(1, values.size + 1) / values.size
        lowest = min(lowest, values[0])
        highest = max(highest, values[-1])
        name = stage.name.replace('image stamp', 'stamp') if len(stages) > 6 else stage.name
        shares.append(line(name, values, 100 * share, color, width=1.8))
        timed.append(line(name, run.seconds(stage.stamps), 1e3 * stage.latencies, color,
                          dots=True))
    return {'title': 'Latency', 'columns': 'two', 'note':
            f'Dashed: {1e3 * budget:g} ms from image stamp to command.', 'plots': [
                {'kind': 'share', 'title': 'share of messages below', 'unit': '%', 'axis': ' ms',
                 'series': shares, 'limits': [0, 100], 'height': 240,
                 'range': [float(lowest) * 0.9, max(float(highest), 1e3 * budget) * 1.2],
                 'marks': [{'x': 1e3 * budget}]},
                {'kind': 'time', 'title': 'over time', 'unit': 'ms', 'series': timed, 'floor': 0,
                 'height': 240, 'levels': [{'y': 1e3 * budget}]}]}


SHOWN_TOPICS = ('joint_states', 'imu/data', 'camera/color/image_raw', 'features',
                'action_distribution', 'arm_velocity_controller/commands')


def interval_group(run: Run) -> dict[str, Any] | None:
    """
    Return the time between neighbouring messages of the topics that matter most.

    :param run: what was recorded.
    """
    plots: list[dict[str, Any]] = []
    for name in SHOWN_TOPICS:
        topic = run.topics.get(name)
        if topic is None or topic.received.size < 3:
            continue
        stamps = np.sort(topic.stamps[topic.stamps > 0] if topic.stamped else topic.received)
        seconds = run.seconds(stamps)
        plots.append({'kind': 'time', 'title': name, 'unit': 'ms', 'floor': 0, 'series': [
            line('', seconds[1:], 1e3 * np.diff(seconds), BLUE, dots=True)]})
    if not plots:
        return None
    return {'title': 'Time between messages', 'columns': 'three', 'plots': plots,
            'note': 'By header stamp where there is one, else by time of receipt. A gap stands '
                    'out as a dot above the line.'}


def groups(run: Run, limits: DrawnLimits, budget: float = 0.010) -> list[dict[str, Any]]:
    """
    Return all plots of the report, in groups.

    :param run: what was recorded.
    :param limits: drawn as dashed lines.
    :param budget: time from image stamp to command that is aimed at [s].
    """
    found = [part_group(run), command_group(run, limits), joint_group(run, limits),
             mixture_group(run), latency_group(run, budget), interval_group(run)]
    return [group for group in found if group is not None]
