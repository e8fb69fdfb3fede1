"""Torques of an arm whose parameters are known: found again, and errors that are not flattered."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

pinocchio = pytest.importorskip('pinocchio')

from liquid_trainer.identify import (  # noqa: E402
    IdentifySettings,
    choose,
    identify,
    like_motions,
    main,
)
from liquid_trainer.inverse_dynamics import (  # noqa: E402
    SLOW,
    Joints,
    RigidBodies,
    Sums,
    choose_ridge,
    fit,
    gather,
    predict,
)
from liquid_trainer.message_types import new_message  # noqa: E402
from liquid_trainer.motions import (  # noqa: E402
    MotionError,
    cut_motions,
    make_motions,
    read_motions,
    smooth_derivative,
)
from liquid_trainer.recording import BagWriter  # noqa: E402

JOINTS = ('waist', 'shoulder', 'elbow')
VISCOUS, COULOMB, OFFSET = np.array([2.0, 1.5, 0.5]), np.array([1.0, 0.6, 0.3]), 0.1
NOISE = 0.05    # N m


def urdf(heavier: float = 1.0) -> str:
    """Return an arm of three joints, the first about the vertical; a gripper joint besides."""
    links, joints = ['<link name="base"/>'], []
    parents = {'waist': ('base', '0 0 0.2', '0 0 1', 4.0), 'shoulder': ('waist_link', '0 0 0.1',
               '0 1 0', 3.0), 'elbow': ('shoulder_link', '0.3 0 0', '0 1 0', 2.0),
               'finger': ('elbow_link', '0.25 0 0', '1 0 0', 0.1)}
    for name, (parent, place, axis, mass) in parents.items():
        mass *= heavier
        links.append(f'<link name="{name}_link"><inertial><origin xyz="0.12 0.01 0.02"/>'
                     f'<mass value="{mass}"/><inertia ixx="{0.01 * mass}" ixy="0" ixz="0" '
                     f'iyy="{0.02 * mass}" iyz="0" izz="{0.02 * mass}"/></inertial></link>')
        joints.append(f'<joint name="{name}" type="revolute"><parent link="{parent}"/>'
                      f'<child link="{name}_link"/><origin xyz="{place}"/><axis xyz="{axis}"/>'
                      '<limit lower="-3" upper="3" velocity="3" effort="50"/></joint>')
    return f'<robot name="arm">{"".join(links + joints)}</robot>'


def samples(number: int, seconds: float = 5.0, heavier: float = 1.3):
    """Return times, positions, velocities and torques of one motion of the real arm."""
    rng = np.random.default_rng((1, number))
    times = np.arange(0.0, seconds, 0.01)
    speed, phase = rng.uniform(1.0, 4.0, (3, 3)), rng.uniform(0, 6, (3, 3))
    size = rng.uniform(0.1, 0.5, (3, 3))
    angle = times[:, None, None] * speed + phase
    q = (size * np.sin(angle)).sum(1) + rng.uniform(-0.5, 0.5, 3)
    v = (size * speed * np.cos(angle)).sum(1)
    a = -(size * speed ** 2 * np.sin(angle)).sum(1)
    model = pinocchio.buildModelFromXML(urdf(heavier))
    model = pinocchio.buildReducedModel(model, [model.getJointId('finger')],
                                        pinocchio.neutral(model))
    data = model.createData()
    torque = np.array([pinocchio.rnea(model, data, *state) for state in
                       zip(q, v, a, strict=True)])
    torque += VISCOUS * v + COULOMB * np.tanh(v / SLOW) + OFFSET
    return times, q, v, torque + rng.normal(0, NOISE, q.shape)


@pytest.fixture(scope='module')
def motions():
    return [motion for number in range(8)
            for motion in make_motions(f'm{number}', JOINTS, *samples(number), window=0.05)]


@pytest.fixture(scope='module')
def judged(motions):
    return {item.name: item for item in identify(motions, np.arange(8), urdf())}


def test_parameters_are_found_again(motions, judged):
    item = judged['rigid_bodies']
    model = RigidBodies(urdf(), JOINTS, np.ones(3))
    found = model.friction(item.parameters)
    for joint, viscous, coulomb in zip(JOINTS, VISCOUS, COULOMB, strict=True):
        # 4,000 samples with noise of 0.05: a thousandth at best, accelerations add their part.
        assert found[joint]['viscous'] == pytest.approx(viscous, rel=0.05)
        assert found[joint]['coulomb'] == pytest.approx(coulomb, rel=0.1)
    # Masses alone cannot be told from torques; the torques that they cause can.
    new = make_motions('new', JOINTS, *samples(99), window=0.05)[0]
    error = predict(model, item.parameters, new) - new.effort
    assert np.sqrt((error ** 2).mean(0)).max() < 2 * NOISE


def test_held_out_error_is_the_noise_and_the_margin_covers_it(judged):
    item = judged['rigid_bodies']
    assert (item.rms < 2 * NOISE).all() and (item.rms > 0.9 * NOISE).all()
    error = np.abs(item.predicted - item.measured)
    assert (error <= item.margin(0.99)).mean(0) == pytest.approx(np.full(3, 0.99), abs=0.001)


def test_the_description_as_it_stands_needs_a_larger_margin(judged):
    # It knows no friction and lacks 30 % of the mass.
    assert (judged['urdf'].margin(0.999) > COULOMB + 10 * NOISE).all()
    assert (judged['urdf'].rms > 5 * judged['rigid_bodies'].rms).all()
    assert choose(list(judged.values()), None).name == 'urdf'
    assert choose([item for item in judged.values() if item.name != 'urdf'],
                  None).name == 'rigid_bodies'
    with pytest.raises(MotionError, match='expected --urdf'):
        choose([judged['joints']], 'rigid_bodies')


def test_a_repetition_does_not_flatter(motions):
    again = [make_motions(f'm{number}', JOINTS, *samples(number % 2), window=0.05)[0]
             for number in range(6)]
    # A recording that began later is the same motion too.
    again.append(again[1].take(slice(200, None)))
    assert like_motions(again).tolist() == [0, 1, 0, 1, 0, 1, 1]
    assert len(set(like_motions(motions))) == 8
    settings = IdentifySettings()
    repeated = identify(again, np.arange(7), None, settings)[-1]
    apart = identify(again, like_motions(again), None, settings)[-1]
    assert repeated.name == 'features' and (apart.rms > 3 * repeated.rms).all()


def test_what_never_moved_stays_at_the_description():
    model = RigidBodies(urdf(), JOINTS, np.ones(3))
    times, q, v, _ = samples(0)
    still = make_motions('still', JOINTS, times, 0 * q + 0.3, 0 * v, 0 * v, 0.05)[0]
    still = make_motions('still', JOINTS, times, still.position, still.velocity,
                         predict(model, model.prior, still), 0.05)[0]
    parameters = fit(model, gather(model, still), 1e-6)
    assert parameters == pytest.approx(model.prior, abs=1e-6)


def test_friction_never_pushes():
    model = Joints(('a', 'b'), np.ones(2))
    rng = np.random.default_rng(0)
    speed = rng.normal(size=(500, 2))
    # Whatever is measured along with the first joint's motion, it is not negative friction.
    motion = make_motions('m', ('a', 'b'), np.arange(500) / 100, 0 * speed, speed,
                          speed * [-2.0, 3.0], 0.05)[0]
    found = model.friction(fit(model, gather(model, motion), 1e-8))
    assert abs(found['a']['viscous']) < 1e-12 and abs(found['a']['coulomb']) < 1e-12
    assert found['b']['viscous'] == pytest.approx(3.0, rel=1e-4)


def test_the_ridge_that_predicts_is_chosen():
    rng = np.random.default_rng(0)
    truth = np.zeros((40, 1))
    truth[0] = 1.0
    parts = []
    for _ in range(5):
        rows = rng.normal(size=(12, 40))
        targets = rows @ truth + rng.normal(size=(12, 1))
        parts.append(Sums(rows.T @ rows, rows.T @ targets, float((targets ** 2).sum())))
    # 60 noisy samples of 40 parameters: without a ridge the noise is learned.
    model = SimpleNamespace(prior=np.zeros((40, 1)), lowest=np.full((40, 1), -np.inf))
    assert choose_ridge(model, parts) > 1e-3
    assert parts[0].error(truth) == pytest.approx(
        (parts[0] + parts[1] - parts[1]).error(truth))


def test_derivative_is_exact_for_parabolas_and_delays_nothing():
    times = np.arange(0, 1, 0.01)
    values = np.stack((3 * times ** 2, np.sin(5 * times)), 1)
    slope = smooth_derivative(values, 0.01, 0.08)
    assert slope[4:-4, 0] == pytest.approx(6 * times[4:-4])
    # Over a window of 0.09 s the fit flattens a sine of 5 rad/s by 1 %, and shifts it by nothing.
    assert slope[4:-4, 1] == pytest.approx(5 * np.cos(5 * times[4:-4]), abs=0.1)
    with pytest.raises(MotionError, match='at least 9 samples'):
        smooth_derivative(values[:5], 0.01, 0.08)


def test_pauses_cut_and_uneven_stamps_are_evened():
    times, q, v, torque = samples(3)
    rng = np.random.default_rng(0)
    times = times + rng.uniform(-0.002, 0.002, len(times))
    times[250:] += 1.0
    torque[100] = np.nan
    first, second = make_motions('m', JOINTS, times, q, v, torque, 0.05)
    assert (first.name, second.name) == ('m#0', 'm#1')
    # The period is the median of jittering ones, 1 % off.
    assert abs(len(first) - 250) <= 4 and abs(len(second) - 250) <= 4
    assert np.isfinite(first.effort).all()
    stamps = times[0] + first.period * np.arange(200)
    wanted = np.interp(stamps, times, q[:, 0])
    assert first.position[:200, 0] == pytest.approx(wanted, abs=1e-3)


def test_long_motions_are_cut_into_equal_pieces(motions):
    pieces = cut_motions(motions[:1], 2.0)      # of 5 s
    assert [len(piece) for piece in pieces] == [167, 167, 166]
    assert [piece.name for piece in pieces] == ['m0/0', 'm0/1', 'm0/2']
    assert np.array_equal(np.concatenate([piece.effort for piece in pieces]), motions[0].effort)
    assert cut_motions(motions[:1], 60.0)[0].name == 'm0'


def write_bag(path: Path, number: int) -> None:
    kind = 'sensor_msgs/msg/JointState'
    times, q, v, torque = samples(number, 3.0)
    with BagWriter(path, {'joint_states': kind}, durable=False) as writer:
        for row, time in enumerate(times):
            stamp = round((time + 1.0) * 1e9)
            # The arm's joints in another order, a wheel without torque between them.
            message = new_message(
                writer.types, kind, name=['elbow', 'wheel', 'waist', 'shoulder'],
                position=np.insert(q[row, [2, 0, 1]], 1, 0.0),
                velocity=np.insert(v[row, [2, 0, 1]], 1, 0.0),
                effort=np.insert(torque[row, [2, 0, 1]], 1, np.nan))
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 10 ** 9)
            writer.write('joint_states', stamp, message)


def test_the_command_reads_bags_and_writes_margins(tmp_path, capsys):
    for number in range(4):
        write_bag(tmp_path / 'bags' / f'bag_{number}', number)
    (tmp_path / 'arm.urdf').write_text(urdf())
    out, picture = tmp_path / 'out' / 'margin.yaml', tmp_path / 'torque.png'
    assert main([str(tmp_path / 'bags'), '--urdf', str(tmp_path / 'arm.urdf'), '--output',
                 str(out), '--plot', str(picture), '--joints', *JOINTS, '--quantile', '0.99']) == 0
    written = yaml.safe_load(out.read_text())
    assert list(written['torque_margin']) == list(JOINTS)
    assert written['identified']['model'] == 'urdf'
    assert written['identified']['different_motions'] == 4
    margin, share = written['torque_margin']['waist'], written['share_of_limit']['waist']
    assert margin > COULOMB[0] and margin / 50.0 <= share <= margin / 50.0 + 0.0011
    assert picture.stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert 'safety.torque_margin' in printed and 'rigid_bodies' in printed


def test_tables_and_folders_read_alike(tmp_path):
    times, q, v, torque = samples(5, 2.0)
    folder = tmp_path / 'folder' / 'measurement_1'
    folder.mkdir(parents=True)
    np.savetxt(folder / 'time.csv', times, delimiter=',')
    np.savetxt(folder / 'trajectory.csv', np.hstack((q, v)), delimiter=',')
    np.savetxt(folder / 'input.csv', torque[:-1], delimiter=',')
    header = ','.join(['time', *(f'{part}.{joint}' for part in ('effort', 'velocity', 'position')
                                 for joint in JOINTS)])
    np.savetxt(tmp_path / 'table.csv', np.hstack((times[:, None], torque, v, q)), delimiter=',',
               header=header, comments='')
    one, = read_motions([tmp_path / 'folder'], JOINTS)
    two, = read_motions([tmp_path / 'table.csv'])
    assert one.joints == two.joints == JOINTS
    assert one.effort == pytest.approx(two.effort[:-1]) and len(one) == 199
    unnamed, = read_motions([folder])
    assert unnamed.joints == ('joint_1', 'joint_2', 'joint_3')


def test_what_is_wrong_is_named(tmp_path, capsys):
    with pytest.raises(MotionError, match='nothing of this name'):
        read_motions([tmp_path / 'none'])
    (tmp_path / 'a.csv').write_text('time,position.a,velocity.a\n0,1,2\n')
    with pytest.raises(MotionError, match='came without effort'):
        read_motions([tmp_path / 'a.csv'])
    (tmp_path / 'a.csv').write_text('time,position.a,velocity.a,effort.a\n0,1,2,x\n')
    with pytest.raises(MotionError, match='expected numbers'):
        read_motions([tmp_path / 'a.csv'])
    table = np.hstack((np.arange(100)[:, None] / 100, np.random.default_rng(0).normal(
        size=(100, 3))))
    np.savetxt(tmp_path / 'a.csv', table, delimiter=',', comments='',
               header='time,position.a,velocity.a,effort.a')
    with pytest.raises(MotionError, match="expected joint 'b', came a"):
        read_motions([tmp_path / 'a.csv'], ['b'])
    assert main([str(tmp_path / 'a.csv'), '--output', str(tmp_path / 'm.yaml')]) == 1
    assert 'at least two motions' in capsys.readouterr().err
    with pytest.raises(MotionError, match='expected a joint of the URDF'):
        RigidBodies(urdf(), ['waist', 'hip'], np.ones(2))


