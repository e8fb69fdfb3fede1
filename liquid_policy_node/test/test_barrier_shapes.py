"""Distances against known answers, sampling and finite differences."""

import numpy as np
import pytest

from liquid_policy.barrier_manoeuvre import SHARES, finer, hold_and_brake
from liquid_policy.barrier_shapes import Shapes, lowest_between
from liquid_policy.safety_spec import ObstacleSpec

BODIES = (
    ObstacleSpec('floor', 'plane', normal=(0.0, 0.0, 2.0), offset=0.1),
    ObstacleSpec('ball', 'sphere', center=(0.4, 0.0, 0.5), radius=0.2),
    ObstacleSpec('rod', 'capsule', start=(0.0, 0.5, 0.0), end=(0.0, 0.5, 1.0), radius=0.1),
    ObstacleSpec('crate', 'box', center=(-0.5, 0.0, 0.3), half=(0.2, 0.3, 0.1)),
)


@pytest.mark.parametrize(('point', 'expected'), [
    ((0.0, 0.0, 0.3), (0.2, np.sqrt(0.2) - 0.2, 0.4, 0.3)),
    ((0.4, 0.0, 0.5), (0.4, -0.2, np.hypot(0.4, 0.5) - 0.1, np.hypot(0.7, 0.1))),
    ((0.0, 0.5, 1.3), (1.2, np.sqrt(0.16 + 0.25 + 0.64) - 0.2, 0.2, np.sqrt(0.09 + 0.04 + 0.81))),
    ((-0.5, 0.1, 0.35), (0.25, np.sqrt(0.81 + 0.01 + 0.0225) - 0.2, np.hypot(0.5, 0.4) - 0.1,
                         -0.05)),
])
def test_distances_are_those_of_geometry(point, expected):
    """Outside, at an end, in the middle, inside."""
    distance, _ = Shapes(BODIES).distance(np.array([point]))
    assert distance[:, 0] == pytest.approx(expected, abs=1e-12)


def test_gradients_agree_with_finite_differences():
    """Central differences of 1e-6 m err by 1e-10 where the distance is smooth."""
    generator = np.random.default_rng(1)
    points = generator.uniform(-1.0, 1.0, (200, 3))
    shapes = Shapes(BODIES)
    _, normal = shapes.distance(points)
    for axis in range(3):
        step = np.zeros(3)
        step[axis] = 1e-6
        slope = (shapes.distance(points + step)[0] - shapes.distance(points - step)[0]) / 2e-6
        good = np.abs(slope - normal[..., axis]) < 1e-5
        assert good.mean() > 0.99  # the rest lies at an edge of the box, where there are two
    assert np.linalg.norm(normal, axis=-1) == pytest.approx(1.0)


@pytest.mark.parametrize('seed', range(5))
def test_the_lower_bound_holds_between_the_samples(seed):
    """On random parabolas, 400 instants per piece: never nearer than the bound says."""
    generator = np.random.default_rng(seed)
    shapes = Shapes(BODIES)
    for _ in range(10):
        start, speed, bend = (generator.normal(0.0, scale, 3) for scale in (0.7, 1.0, 2.0))
        times = np.linspace(0.0, 0.5, 6)

        def at(time, start=start, speed=speed, bend=bend):
            return start + time[:, None] * speed + 0.5 * time[:, None] ** 2 * bend
        points = at(times)[:, None, :]
        distance, normal = shapes.distance(points.reshape(-1, 3))
        sagitta = np.full((5, 1), 0.125 * 0.1 ** 2 * np.linalg.norm(bend))
        bound = lowest_between(
            distance[:, :, None], normal[:, :, None], points, sagitta)[:, :, 0]
        for piece in range(5):
            fine = at(np.linspace(times[piece], times[piece + 1], 400))
            assert (shapes.distance(fine)[0].min(axis=1) >= bound[:, piece] - 1e-9).all()


def test_a_straight_way_along_a_plane_costs_nothing():
    """The bound is exact there, so a tool may follow a table."""
    points = np.array([[[x, 0.0, 0.3]] for x in (0.0, 0.1, 0.2)])
    distance, normal = Shapes(BODIES[:1]).distance(points.reshape(-1, 3))
    bound = lowest_between(distance[:, :, None], normal[:, :, None], points)
    assert bound == pytest.approx(0.2, abs=1e-15)


def test_the_manoeuvre_is_what_braking_does():
    """Against integration in steps of 10 us; entries stop at their own times."""
    command = np.array([1.0, -2.0, 0.0, 0.3])
    deceleration, period = np.array([5.0, 4.0, 1.0, 10.0]), 0.025
    manoeuvre = hold_and_brake(command, deceleration, period)
    step = 1e-5
    times = period + np.sort([*(SHARES * 0.5), 0.2, 0.5, 0.0, 0.03])
    position, velocity, time, index = np.zeros(4), command.copy(), 0.0, 0
    assert manoeuvre.offset[0] == pytest.approx(np.zeros(4))
    while index < len(times):
        if time >= times[index] - 1e-9:
            assert manoeuvre.offset[index + 1] == pytest.approx(position, abs=3e-5)
            assert manoeuvre.velocity[index + 1] == pytest.approx(velocity, abs=1e-4)
            index += 1
        if time >= period - 1e-9:
            slower = np.maximum(np.abs(velocity) - deceleration * step, 0.0)
            velocity = np.sign(velocity) * slower
        position = position + velocity * step
        time += step


def test_the_gain_is_the_derivative_of_the_manoeuvre():
    """Against central differences, for the entry that brakes longest too."""
    deceleration = np.array([5.0, 4.0, 10.0])
    command = np.array([1.0, -1.7, 0.3])
    manoeuvre = hold_and_brake(command, deceleration, 0.02)
    gain = manoeuvre.gain(len(manoeuvre.duration))
    for entry in range(3):
        change = np.zeros(3)
        change[entry] = 1e-6
        # at the end of the braking every entry stands, whatever the sampled times are
        slope = (hold_and_brake(command + change, deceleration, 0.02).offset[-1]
                 - hold_and_brake(command - change, deceleration, 0.02).offset[-1]) / 2e-6
        assert slope[entry] == pytest.approx(gain[entry], rel=1e-6)


def test_a_finer_manoeuvre_is_the_same_one():
    """Every third sample is the coarse one's; the others lie on the parabolas between."""
    deceleration, period = np.array([5.0, 4.0, 10.0]), 0.02
    coarse = hold_and_brake(np.array([1.0, -1.7, 0.3]), deceleration, period)
    fine = finer(coarse, 3)
    for name in ('offset', 'velocity'):
        assert getattr(fine, name)[::3] == pytest.approx(getattr(coarse, name), abs=1e-15)
    assert fine.duration.sum() == pytest.approx(coarse.duration.sum())
    assert len(fine.acceleration) == len(fine.velocity) == len(fine.duration) + 1
    assert fine.sizes[0] == pytest.approx(np.abs(fine.velocity[:-1]))
    assert fine.sizes[1] == pytest.approx(np.abs(fine.acceleration[:-1]))
    way = (0.5 * (fine.velocity[1:] + fine.velocity[:-1]) * fine.duration[:, None]).cumsum(axis=0)
    assert fine.offset[1:] == pytest.approx(way, abs=1e-14)
    assert np.diff(fine.velocity, axis=0) == pytest.approx(
        fine.acceleration[:-1] * fine.duration[:, None], abs=1e-14)
