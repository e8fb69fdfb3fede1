"""The robot and the disc: exact motion, a safe expert, and barriers that hold for any network."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from liquid_sim.obstacle_task import (  # noqa: E402
    Driver,
    ObstacleSettings,
    advance,
    barrier_layer,
    demonstrate,
    drive,
    observe,
    train_driver,
)

WORLD = ObstacleSettings()


@pytest.fixture(scope='module')
def demonstrations():
    return demonstrate(12, 3, WORLD)


def test_a_held_input_drives_an_arc():
    state = torch.tensor([[0.0, 0.0, 0.0, 2.0]], dtype=torch.float64)
    turning = torch.tensor([[0.5, 0.0]], dtype=torch.float64)
    for _ in range(10):
        state, way = advance(state, turning, 0.1)
    # Radius v / w = 4 m, half a radian.
    wanted = [4 * np.sin(0.5), 4 * (1 - np.cos(0.5)), 0.5, 2.0]
    assert state[0].tolist() == pytest.approx(wanted, abs=1e-5)
    assert way.shape == (10, 1, 2)


def test_the_expert_arrives_and_touches_nothing(demonstrations):
    assert demonstrations.success.all() and not demonstrations.touched.any()
    assert demonstrations.interventions.max() > 0.05      # and comes close enough to be told


def test_any_network_is_kept_out_of_the_disc_by_the_layer_and_by_the_filter():
    torch.manual_seed(0)
    state = torch.tensor([20.0, 15.0, 0.0, 4.0])
    for driver, filtered in ((Driver(barrier_layer(WORLD)), False), (Driver(), True)):
        with torch.no_grad():       # whatever it sees: full speed ahead
            driver.action.weight.zero_()
            driver.action.bias.copy_(torch.tensor([0.0, 4.0]))
        found = drive(driver, 8, 1, dataclasses.replace(WORLD, longest=6.0), filtered)
        assert not found.touched.any()
        assert found.interventions.max() > 0.1
    free = drive(driver, 8, 1, dataclasses.replace(WORLD, longest=6.0))
    assert free.touched.any() and free.nearest.min() < 0.0
    assert observe(state[None], torch.zeros(1, 2)).shape == (1, 5)


def test_training_with_the_layer_teaches_actions_and_gains(demonstrations):
    torch.manual_seed(0)
    driver = Driver(barrier_layer(WORLD))
    observation, state = demonstrations.observations[::40], demonstrations.states[::40]
    before = driver.gains.bias.detach().clone()
    losses = train_driver(driver, demonstrations, 60, 0)
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])
    assert not torch.equal(driver.gains.bias, before)
    with torch.no_grad():
        action, _ = driver(observation, state)
        matrix, low = driver.layer.barrier(
            state, torch.nn.functional.softplus(driver.gains(driver.trunk(observation)))[:, None])
    assert (torch.einsum('bmn,bn->bm', matrix, action) > low - 1e-3).all()


def test_a_trained_layer_is_told_of_another_disc(demonstrations):
    torch.manual_seed(0)
    driver = Driver(barrier_layer(WORLD))
    larger = dataclasses.replace(WORLD, radius=8.0, longest=8.0)
    assert not drive(driver, 6, 2, larger).touched.any()


def test_the_same_seed_gives_the_same_episodes():
    short = dataclasses.replace(WORLD, longest=3.0)
    first, second = demonstrate(4, 7, short), demonstrate(4, 7, short)
    assert np.array_equal(first.nearest, second.nearest)
    assert not np.array_equal(first.nearest, demonstrate(4, 8, short).nearest)


@pytest.mark.parametrize('change', [{'radius': 0.0}, {'margin': -1.0}, {'period': 0.0}])
def test_impossible_worlds_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(WORLD, **change)
