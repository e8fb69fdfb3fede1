"""The cell obeys its own physics: belt, suction, servos, sensors; and repeats itself exactly."""

import numpy as np
import pytest

from liquid_sim import conveyor, scene
from liquid_sim.expert import Expert

STILL = np.zeros(9)


@pytest.fixture(scope='module')
def sim():
    sim = conveyor.ConveyorSim(conveyor.seen(), seed=0)
    yield sim
    sim.close()


def test_same_seed_same_run(sim):
    def run(seed):
        sim.reset(seed)
        rng = np.random.default_rng(3)
        for _ in range(150):
            sim.step(np.concatenate([rng.uniform(-0.5, 0.5, 6), [1.0, 0.05, 0.1]]))
        color, depth = sim.render_camera()
        return np.concatenate([sim.data.qpos, *sim.imu()]), color, depth

    first, second, other = run(5), run(5), run(6)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[1], other[1])


def test_part_rides_at_the_belts_speed(sim):
    sim.reset(1)
    while sim.part() is None:
        sim.step(STILL)
    for _ in range(20):
        sim.step(STILL)
    for _ in range(100):
        sim.step(STILL)
        assert sim.part().velocity[1] == pytest.approx(sim.status()['belt_speed'], abs=0.01)


def test_speeds_stay_in_the_intervals_and_change_within_an_episode(sim):
    sim.reset(2)
    slack = 0.012   # of the drive while it accelerates from one to the next
    speeds = []
    for _ in range(3000):
        sim.step(STILL)
        speeds.append(sim.status()['belt_speed'])
    inside = [any(low - slack <= s <= high + slack for low, high in conveyor.SEEN_SPEEDS)
              for s in speeds]
    assert np.mean(inside) > 0.97   # crossing a gap takes the drive 0.1 s
    assert np.ptp(speeds) > 0.005


def test_seen_and_unseen_conditions_do_not_overlap():
    for seen, unseen in ((conveyor.SEEN_SPEEDS, conveyor.UNSEEN_SPEEDS),
                         (conveyor.SEEN_MASSES, conveyor.UNSEEN_MASSES)):
        for low, high in seen:
            assert all(high <= a or b <= low for a, b in unseen)


def test_untouched_parts_are_missed_not_picked(sim):
    sim.reset(3)
    while sim.missed < 1:
        sim.step(STILL)
    assert sim.picked == 0 and sim.seen == 1


def test_cup_lifts_only_with_suction(sim):
    def lifted(level):
        sim.reset(4)
        expert = Expert(sim)
        while not (sim.part() is None and sim.holding) and sim.time < 15:
            sim.step(expert.act())
        assert sim.holding
        before = sim.tool()[2]
        for _ in range(150):
            command = expert.act()
            command[6] = level
            sim.step(command)
        in_cell = [sim.data.xpos[part.id] for part in sim._parts
                   if abs(sim.data.xpos[part.id][0]) < 2]
        return max(position[2] for position in in_cell) - before

    assert lifted(1.0) > 0.05
    assert lifted(0.0) < 0.0


def test_joint_velocity_servo_follows_its_command(sim):
    sim.reset(5)
    command = np.array([0.4, -0.3, 0.2, 0.5, -0.6, 0.7, 0, 0, 0])
    for _ in range(50):
        sim.step(command)
    _, _, velocity, _ = sim.joint_state()
    np.testing.assert_allclose(velocity[:6], command[:6], atol=0.03)


def test_base_drives_as_told(sim):
    sim.reset(6)
    x, y, yaw, _, _ = sim.odometry()
    for _ in range(100):
        sim.step([0, 0, 0, 0, 0, 0, 0, -0.2, 0])
    x_after, y_after, _, v, w = sim.odometry()
    travelled = (x_after - x) * np.cos(yaw) + (y_after - y) * np.sin(yaw)
    assert travelled == pytest.approx(-0.2, abs=0.02)
    assert v == pytest.approx(-0.2, abs=0.02) and w == pytest.approx(0, abs=0.02)


def test_resting_imu_feels_gravity_and_no_rotation(sim):
    sim.reset(7)
    for _ in range(100):
        sim.step(STILL)
    readings = []
    for _ in range(100):
        sim.step(STILL)
        readings.append(np.concatenate(sim.imu()))
    mean = np.mean(readings, axis=0)
    np.testing.assert_allclose(mean[:3], 0, atol=2e-3)
    np.testing.assert_allclose(mean[3:], [0, 0, 9.81], atol=0.05)


def test_depth_measures_metres_to_the_belt(sim):
    sim = conveyor.ConveyorSim(conveyor.seen(variation=0.0, sensor_noise=0.0), seed=0)
    _, depth = sim.render_camera()
    # the belt's plane is where the camera's own pose says, along the optical axis
    camera = sim.data.cam_xpos[sim.model.camera('camera').id]
    axis = -sim.data.cam_xmat[sim.model.camera('camera').id].reshape(3, 3)[:, 2]
    along = (scene.BELT_TOP - camera[2]) / axis[2]
    hit = camera + along * axis
    assert abs(hit[0] - scene.BELT_X) < scene.BELT_HALF_WIDTH, 'the view is not on the belt'
    assert depth[47:49, 47:49].mean() == pytest.approx(along, abs=0.01)
    sim.close()


@pytest.mark.parametrize('command', [np.zeros(8), np.full(9, np.nan), [0] * 8 + [np.inf]])
def test_bad_commands_are_refused(sim, command):
    with pytest.raises(ValueError, match='expected 9 finite numbers'):
        sim.step(command)


@pytest.mark.parametrize('change', [
    {'speeds': ((0.2, 0.1),)}, {'masses': ((0.0, 0.1),)}, {'variation': 1.5},
    {'command_delay': -1}])
def test_bad_settings_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        conveyor.ConveyorSettings(**change)
