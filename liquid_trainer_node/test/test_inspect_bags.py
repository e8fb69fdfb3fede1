"""Bags of another robot with known faults: each is found, counted and shown."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from recorded_run import record
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from liquid_policy.interface import load_interface
from liquid_trainer.bag_file import BagError
from liquid_trainer.bag_statistics import read_statistics
from liquid_trainer.inspect_bags import inspect, main

INTERFACE = Path(__file__).parents[2] / 'config' / 'manipulator.interface.yaml'
GLOVE = 'other_robot_msgs/msg/Glove'
SECOND = 1_000_000_000
COUNT = 400     # joint states at 50 Hz


@pytest.fixture(scope='module')
def store():
    made = get_typestore(Stores.ROS2_HUMBLE)
    made.register(get_types_from_msg(
        'std_msgs/Header header\nfloat32[5] bend\nuint8[] picture\nbool closed\n', GLOVE))
    return made


def _header(store, stamp):
    return store.types['std_msgs/msg/Header'](
        store.types['builtin_interfaces/msg/Time'](*divmod(int(stamp), SECOND)), '')


@pytest.fixture(scope='module')
def bag(store, tmp_path_factory):
    """A robot with a type nobody knows, a gap, a NaN, a spike, stamps back, and a late message."""
    path = tmp_path_factory.mktemp('bags') / 'other'
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        joints = writer.add_connection('/arm/states', 'sensor_msgs/msg/JointState',
                                       typestore=store)
        glove = writer.add_connection('/glove', GLOVE, typestore=store)
        plain = writer.add_connection('/effort', 'std_msgs/msg/Float64', typestore=store)
        rng = np.random.default_rng(0)
        for tick in range(COUNT):
            stamp = 1_700_000_000 * SECOND + tick * SECOND // 50
            if 100 <= tick < 125:
                continue        # half a second of silence
            position = np.array([np.sin(tick / 50), np.cos(tick / 50)])
            position[0] += 40.0 * (tick == 200)
            position[1] = np.nan if tick == 210 else position[1]
            shown = stamp - (SECOND if tick == 300 else 0)
            late = 300_000_000 if tick >= 380 else 2_000_000
            writer.write(joints, stamp + late, store.serialize_cdr(
                store.types['sensor_msgs/msg/JointState'](
                    _header(store, shown), ['a', 'b'], position, rng.normal(0, 1, 2),
                    np.zeros(2)), 'sensor_msgs/msg/JointState'))
            bend = rng.normal(0, 1, 5).astype(np.float32) if tick < 300 else np.zeros(
                5, np.float32)
            writer.write(glove, stamp + late, store.serialize_cdr(store.types[GLOVE](
                _header(store, stamp), bend, np.full(500, tick if tick < 300 else 0, np.uint16)
                .astype(np.uint8), tick % 2 == 0 and tick < 300), GLOVE))
            writer.write(plain, stamp + late, store.serialize_cdr(
                store.types['std_msgs/msg/Float64'](float(tick)), 'std_msgs/msg/Float64'))
    return path


def test_rates_gaps_and_stamps_are_those_put_in(bag):
    found = read_statistics(bag).topics
    arm, glove = found['/arm/states'], found['/glove']
    assert arm.rate == pytest.approx(50.0) and len(arm.received) == COUNT - 25
    assert arm.backwards == 1 and arm.repeated_stamps == 0
    assert len(glove.gaps) == 1 and glove.lost == 25
    assert glove.gaps[0] == pytest.approx([99 / 50, 26 / 50])
    assert np.median(glove.delays) == pytest.approx(0.002, abs=1e-6)
    assert glove.delays.max() == pytest.approx(0.3, abs=1e-6)
    assert len(found['/effort'].delays) == 0 and found['/effort'].rate == pytest.approx(50.0)


def test_values_of_unknown_types_are_read_by_name(bag):
    found = read_statistics(bag).topics
    assert found['/arm/states'].paths[:2] == ('position.a', 'position.b')
    glove = found['/glove']
    assert glove.paths == (*(f'bend.{index}' for index in range(5)), 'closed')
    assert glove.bytes_each == 500
    # From tick 300 on, numbers and picture stay as they are.
    assert glove.repeats == COUNT - 301
    assert glove.longest_repeat == pytest.approx(99 / 50 + 0.298)


def test_outliers_and_nan_are_found_where_they_are(bag):
    arm = read_statistics(bag).topics['/arm/states']
    assert arm.not_finite == {'position.b': 1}
    assert arm.spikes() == {'position.a': 1}
    assert arm.constant() == ('effort.a', 'effort.b')


def test_lists_of_changing_length_are_read_as_far_as_they_go(store, tmp_path):
    kind = 'std_msgs/msg/Float64MultiArray'
    layout = store.types['std_msgs/msg/MultiArrayLayout']([], 0)
    with Writer(tmp_path / 'bag', version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        lists = writer.add_connection('/lists', kind, typestore=store)
        for tick in range(100):
            data = np.arange(tick % 3) + 10.0 * tick
            writer.write(lists, (100 + tick) * SECOND // 10, store.serialize_cdr(
                store.types[kind](layout, data), kind))
    topic = read_statistics(tmp_path / 'bag').topics['/lists']
    assert topic.paths == ('layout.data_offset', 'data.0', 'data.1')
    assert np.isfinite(topic.values).sum(0).tolist() == [100, 66, 33]
    assert topic.values[5, 1:].tolist() == [50.0, 51.0]
    assert topic.other_shapes == 66 and topic.not_finite == {}
    assert topic.constant() == ('layout.data_offset',)
    # It is so all the time: nothing to remark.
    assert [finding.text for finding in inspect([tmp_path / 'bag']).findings] == []


def test_findings_name_topic_and_number(bag, tmp_path):
    twin = tmp_path / 'twin'
    shutil.copytree(bag, twin)
    result = inspect([bag, twin])
    texts = '\n'.join(f'{finding.tone} {finding.text}' for finding in result.findings)
    assert 'bad the same bag 2 times: other, twin' in texts
    assert re.search(r'bad /arm/states: 2 stamps go back', texts)
    assert re.search(r'bad /arm/states position.b: 2 times NaN', texts)
    assert re.search(r'warn /arm/states: samples far .* position.a \(2\)', texts)
    assert re.search(r'warn /glove: 2 gaps in 2 bags, the longest 0.52 s; about 50 mess', texts)
    assert re.search(r'warn /glove: the same values for 2.28 s', texts)
    assert re.search(r'warn /glove: 1 % of messages come more than 0.3 s', texts)
    assert [finding.tone for finding in result.findings] == sorted(
        finding.tone for finding in result.findings)


def test_a_sound_bag_has_no_faults(tmp_path):
    interface = load_interface(INTERFACE)
    bag = record(tmp_path / 'bag', interface, seconds=1.5, faults=False)
    result = inspect([bag], interface)
    assert [finding.text for finding in result.findings if finding.tone == 'bad'] == []
    assert len(result.tracks) == 1 and result.tracks[0].states.shape[1] == interface.vector_size
    assert result.idle[0] < 0.1


def test_repetitions_and_standing_are_found(tmp_path):
    interface = load_interface(INTERFACE)
    bags = [record(tmp_path / name, interface, seconds=1.5, seed=seed, faults=False)
            for name, seed in (('first', 1), ('other', 2), ('again', 1))]
    result = inspect(bags, interface)
    assert {frozenset((one, other)) for one, other in result.repeated.items()} == {
        frozenset((0, 2))}


def test_command_writes_one_page_that_needs_nothing_else(bag, tmp_path, capsys):
    output = tmp_path / 'page.html'
    assert main([str(bag), '--output', str(output)]) == 0
    printed = capsys.readouterr().out
    assert '/arm/states' in printed and 'bad: /arm/states: 1 stamps go back' in printed
    page = output.read_text()
    assert not re.search(r'(src|href)=["\']?http', page)
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', page, re.S).group(1))
    titles = [group['title'] for group in data['groups']]
    assert titles == ['Timeline', 'Time between messages', 'From stamp to receipt',
                      '/arm/states', '/effort', '/glove']
    lanes = data['groups'][0]['plots'][0]['series']
    # `/effort` has no stamps: the messages that came late leave a gap before them.
    assert [len(series['spans']) for series in lanes] == [2, 3, 2]
    assert [plot['title'] for plot in data['groups'][3]['plots']] == [
        'position.a', 'position.b', 'velocity.a', 'velocity.b']


def test_what_is_no_bag_is_named_and_the_rest_is_read(bag, tmp_path):
    with pytest.raises(BagError, match='found none'):
        inspect([tmp_path])
    broken = tmp_path / 'broken'
    broken.mkdir()
    (broken / 'x.mcap').write_bytes(b'no mcap file at all')
    result = inspect([bag, broken])
    assert len(result.bags) == 1
    assert result.findings[0].tone == 'bad' and 'x.mcap' in result.findings[0].text
