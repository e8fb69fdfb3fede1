"""Episodes read from bags: known answers, every kind of bag, and what is refused."""

import itertools
import os
import random
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compressed_pictures import compressed_interface, fields_of
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from liquid_policy.alignment import Aligner
from liquid_policy.conversion import (
    fill_message,
    image_from_message,
    stamp_of,
    vector_from_message,
)
from liquid_policy.interface import Interface, load_interface
from liquid_trainer import cache, mcap_file
from liquid_trainer.bags import (
    Bag,
    BagError,
    BagReader,
    BagWarning,
    Episode,
    ReadSettings,
    find_bags,
    read_episodes,
)
from liquid_trainer.check_bags import main as check_bags
from liquid_trainer.message_types import message_types, new_message
from liquid_trainer.recording import BagWriter

CONFIG = Path(__file__).parents[2] / 'config'


def _with_known_timing() -> Interface:
    """Give the manipulator's interface with the latencies that the answers below rest on."""
    shipped = load_interface(CONFIG / 'manipulator.interface.yaml')
    timing = {'imu': (0.01, 0.1), 'joint_positions': (0.0, 0.05)}
    return replace(
        shipped, features=replace(shipped.features, latency=0.02, max_age=0.15),
        observations={name: replace(spec, latency=timing[name][0], max_age=timing[name][1])
                      for name, spec in shipped.observations.items()},
        actions={name: replace(spec, max_age=0.05) for name, spec in shipped.actions.items()})


INTERFACE = _with_known_timing()
MS, SECOND = 1_000_000, 1_000_000_000
EPISODE, MARKER = 'episode', 'liquid_policy_msgs/msg/EpisodeMarker'
START, SUCCESS, FAILURE, DISCARD = range(4)
TYPES = message_types([MARKER])
TOPICS = {**INTERFACE.topics(), EPISODE: MARKER}


def _stamped(message, stamp: int):
    if hasattr(message, 'header'):
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, SECOND)
    return message


def _filled(spec, values, stamp: int):
    return _stamped(fill_message(spec, new_message(TYPES, spec.type), values), stamp)


def _image(spec, value: float, stamp: int, height: int | None = None):
    shape = (height or spec.height, spec.width)
    pixels = np.full(shape, value, np.float32) if spec.is_depth else \
        np.full((*shape, 3), int(value) % 256, np.uint8)
    return _stamped(new_message(
        TYPES, spec.type, height=shape[0], width=shape[1], encoding=spec.encoding,
        step=pixels.nbytes // shape[0], data=pixels.reshape(-1).view(np.uint8)), stamp)


def _marker(kind: int, name: str, stamp: int):
    return (stamp, EPISODE, _stamped(new_message(TYPES, MARKER, kind=kind, episode=name), stamp))


def _drive(seconds: float, start: int = 1000 * SECOND, first: int = 0,
           interface: Interface = INTERFACE, demonstrated: bool = True):
    """
    Give (log time, topic, message) of a robot whose every number at tick k is k.

    Messages are received 1 ms after their stamp, actions 2 ms after their tick.
    """
    for k in range(first, first + round(seconds * 100)):
        stamp = start + (k - first) * 10 * MS
        if k % 3 == 0:
            for name, spec in interface.images.items():
                value = k / 1000 if name == 'depth' else k
                yield stamp + 1 * MS, spec.topic, _image(spec, value, stamp)
        for spec in (*interface.observations.values(), *interface.targets.values()):
            yield stamp + 1 * MS, spec.topic, _filled(spec, np.full(spec.size, k), stamp)
        for spec in interface.actions.values():
            topic = spec.demonstration if demonstrated else spec.topic
            yield stamp + 2 * MS, topic, _filled(spec, np.full(spec.size, k), stamp + 2 * MS)


def _record(path: Path, messages, topics=None) -> Path:
    with BagWriter(path, TOPICS if topics is None else topics, durable=False) as writer:
        for time, topic, message in messages:
            writer.write(topic, time, message)
    return path


def _read(path, interface: Interface = INTERFACE, **settings) -> list[Episode]:
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return list(read_episodes(path, interface, ReadSettings(**settings)))


def _check(episode: Episode, lost: int = 20) -> np.ndarray:
    """Check that every number is where the rule puts it; give the numbers of the ticks."""
    ticks = episode.vectors[:, 6].astype(int)
    assert len(episode) > 0
    assert np.array_equal(episode.vectors[:, 6:], np.repeat(ticks[:, None], 6, 1))
    assert np.array_equal(episode.vectors[:, :6], np.repeat(ticks[:, None] - 1, 6, 1))  # 10 ms
    assert np.array_equal(episode.actions, np.repeat(ticks[:, None], 9, 1))
    assert np.array_equal(episode.targets, np.repeat(ticks[:, None], 4, 1))
    # The newest image at least 20 ms old; one image every three ticks.
    images = (ticks - 2) // 3 * 3
    colors = episode.colors[episode.image_index, 0, 0, 0]
    assert np.array_equal(colors, images % 256)
    depths = episode.depths[episode.image_index, 0, 0]
    assert np.allclose(depths, np.minimum(images / 1000, 3.0), atol=1e-6)
    assert np.array_equal(np.diff(episode.stamps), np.diff(ticks) * 10 * MS)
    return ticks


def test_every_number_is_where_the_rule_puts_it(tmp_path):
    (episode,) = _read(_record(tmp_path / 'bag', _drive(4.0)))
    ticks = _check(episode)
    assert ticks.tolist() == list(range(2, 400))  # the first image is 20 ms old at tick 2
    assert episode.outcome == 'unmarked' and episode.name == 'bag'
    assert episode.dropped == {'without fresh imu, features': 1, 'without fresh features': 1}
    assert episode.rejected == {}
    assert episode.vectors.dtype == episode.actions.dtype == episode.targets.dtype == np.float32
    assert episode.colors.dtype == np.uint8 and episode.colors.shape[1:] == (96, 96, 3)
    assert episode.depths.dtype == np.float32 and episode.depths.shape[1:] == (96, 96)
    assert len(episode.colors) == len(episode.depths) == len(episode.image_stamps)
    assert episode.times[0] == 0 and episode.times[-1] == pytest.approx(3.97)
    assert episode.stamps[0] == 1000 * SECOND + 20 * MS


def _rosbags_bag(path: Path, messages, plugin, mode, version=9) -> Path:
    writer = Writer(path, version=version, storage_plugin=plugin)
    if mode is not None:
        writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connections = {topic: writer.add_connection(f'/{topic}', kind, typestore=TYPES)
                       for topic, kind in TOPICS.items()}
        for time, topic, message in messages:
            writer.write(connections[topic], time,
                         TYPES.serialize_cdr(message, TOPICS[topic]))
    return path


@pytest.mark.parametrize('plugin, mode', [
    (StoragePlugin.SQLITE3, None), (StoragePlugin.MCAP, None),
    (StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
    (StoragePlugin.SQLITE3, CompressionMode.FILE),
    (StoragePlugin.MCAP, CompressionMode.MESSAGE), (StoragePlugin.MCAP, CompressionMode.FILE),
    (StoragePlugin.MCAP, CompressionMode.STORAGE)])
@pytest.mark.parametrize('version', [8, 9])
def test_bags_of_other_recorders_give_the_same_bits(tmp_path, plugin, mode, version):
    messages = [_marker(START, 'one', 1000 * SECOND), *_drive(1.5),
                _marker(SUCCESS, 'one', 1002 * SECOND)]
    own = _read(_record(tmp_path / 'own', messages))
    path = _rosbags_bag(tmp_path / 'other', messages, plugin, mode, version)
    for place in (path, *(file for file in path.iterdir() if file.suffix != '.yaml')):
        other = _read(place)
        assert len(own) == len(other) == 1
        _same(own[0], other[0])
        _check(other[0])
        assert other[0].outcome == 'success' and other[0].name == 'one'


def _same(first: Episode, second: Episode) -> None:
    for key in ('stamps', 'vectors', 'image_index', 'image_stamps', 'actions', 'targets'):
        assert getattr(first, key).tobytes() == getattr(second, key).tobytes(), key
    for name, images in first.images.items():
        assert images.tobytes() == second.images[name].tobytes()


def test_a_bag_without_metadata_is_read(tmp_path):
    path = _record(tmp_path / 'bag', _drive(1.0))
    expected = _read(path)
    (path / 'metadata.yaml').unlink()
    _same(expected[0], _read(path)[0])


def test_a_split_bag_is_read_as_one(tmp_path):
    messages = list(_drive(2.0))
    with BagWriter(tmp_path / 'bag', TOPICS, max_size=1 << 20) as writer:
        for time, topic, message in messages:
            writer.write(topic, time, message)
    assert len(list((tmp_path / 'bag').glob('*.mcap'))) > 3
    (episode,) = _read(tmp_path / 'bag')
    assert _check(episode).tolist() == list(range(2, 200))


def test_markers_cut_episodes(tmp_path):
    parts, start, first = [], 1000 * SECOND, 0
    for name, kind in (('a', SUCCESS), ('b', FAILURE), ('c', DISCARD), ('d', SUCCESS)):
        parts += [_marker(START, name, start), *_drive(1.2, start, first),
                  _marker(kind, name, start + 1200 * MS)]
        start, first = start + 3 * SECOND, first + 300
    parts += [_marker(DISCARD, 'd', start), _marker(START, 'e', start),
              *_drive(1.2, start, first), _marker(START, 'f', start + 1300 * MS),
              *_drive(1.2, start + 2 * SECOND, first + 300)]
    episodes = _read(_record(tmp_path / 'bag', parts))
    assert [(episode.name, episode.outcome) for episode in episodes] == [
        ('a', 'success'), ('b', 'failure'), ('e', 'unfinished'), ('f', 'unfinished')]
    assert [episode.demonstration for episode in episodes] == [0, 1, 4, 5]
    for episode, first in zip(episodes, (0, 300, 1200, 1500), strict=True):
        assert _check(episode).tolist() == list(range(first + 2, first + 120))


def test_what_is_outside_episodes_is_not_used(tmp_path):
    parts = [*_drive(1.0), _marker(START, 'a', 1001 * SECOND),
             *_drive(1.0, 1001 * SECOND, 300), _marker(SUCCESS, 'a', 1002 * SECOND),
             *_drive(1.0, 1002 * SECOND, 600)]
    (episode,) = _read(_record(tmp_path / 'bag', parts))
    assert _check(episode).tolist() == list(range(302, 400))


def test_a_bag_of_discarded_episodes_is_no_error(tmp_path):
    parts = [_marker(START, 'a', 1000 * SECOND), *_drive(1.0),
             _marker(DISCARD, 'a', 1001 * SECOND)]
    assert _read(_record(tmp_path / 'bag', parts)) == []


def test_a_long_episode_knows_its_end_when_its_first_part_is_given(tmp_path):
    """One that is discarded at its end, or after it, gives no part at all."""
    parts = []
    for number, kinds in enumerate(((SUCCESS,), (DISCARD,), (SUCCESS, DISCARD), (FAILURE,), ())):
        start = (1000 + 10 * number) * SECOND
        parts += [_marker(START, str(number), start), *_drive(5.0, start),
                  *(_marker(kind, str(number), start + (5 + place) * SECOND)
                    for place, kind in enumerate(kinds))]
    episodes = _read(_record(tmp_path / 'bag', parts), longest=1.0)
    found = {}
    for episode in episodes:
        found.setdefault((episode.name, episode.demonstration, episode.outcome), []).append(
            len(episode))
    assert set(found) == {('0', 0, 'success'), ('3', 3, 'failure'), ('4', 4, 'unfinished')}
    assert all(len(sizes) > 1 and sum(sizes) == 498 for sizes in found.values())


def test_a_bag_named_twice_is_read_once(tmp_path):
    one, two = (_record(tmp_path / 'bags' / name, _drive(0.1)) for name in ('x', 'y'))
    assert find_bags([two, tmp_path / 'bags', one / '..' / 'y']) == [two, one]


def test_several_bags_are_read_with_progress(tmp_path):
    for name in ('x', 'y'):
        _record(tmp_path / 'bags' / name, _drive(1.0))
    calls = []
    episodes = list(read_episodes(tmp_path / 'bags', INTERFACE,
                                  progress=lambda done, total: calls.append((done, total))))
    assert [episode.name for episode in episodes] == ['x', 'y']
    done = [entry[0] for entry in calls]
    assert done == sorted(done) and len(done) > 2
    assert {entry[1] for entry in calls} == {sum(
        file.stat().st_size for file in (tmp_path / 'bags').rglob('*') if file.is_file())}
    assert len(find_bags(tmp_path / 'bags')) == 2
    (tmp_path / 'bags' / 'x').rename(tmp_path / 'bags' / '.x')   # not finished
    assert find_bags(tmp_path / 'bags') == [tmp_path / 'bags' / 'y']


def test_commands_are_the_actions_when_nobody_demonstrated(tmp_path):
    path = _record(tmp_path / 'bag', _drive(1.0, demonstrated=False))
    (episode,) = _read(path)
    _check(episode)
    with pytest.raises(BagError, match='expected the topics /demonstration/arm_velocity'):
        _read(path, actions='demonstration')


def test_a_bag_without_actions_can_be_read_on_request(tmp_path):
    messages = [entry for entry in _drive(1.0) if not entry[1].startswith('demonstration')]
    path = _record(tmp_path / 'bag', messages)
    with pytest.raises(BagError, match='expected the topics /arm_velocity_controller/commands'):
        _read(path)
    (episode,) = _read(path, actions='none')
    assert np.isnan(episode.actions).all() and len(episode) == 98


def test_images_can_be_left_out(tmp_path):
    (episode,) = _read(_record(tmp_path / 'bag', _drive(1.0)), images=False)
    assert episode.images == {} and set(episode.image_index) == {-1}
    assert len(episode) == 99  # only the first tick lacks an observation (imu, 10 ms)


def test_absent_targets_are_nan(tmp_path):
    messages = [entry for entry in _drive(1.0) if entry[1] != 'ground_truth/part']
    (episode,) = _read(_record(tmp_path / 'bag', messages))
    assert np.isnan(episode.targets).all() and len(episode) == 98


def test_a_silent_sensor_cuts_the_episode(tmp_path):
    silent = range(1001 * SECOND, 1002 * SECOND)
    messages = [entry for entry in _drive(3.0) if entry[1] != 'imu/data' or entry[0] not in silent]
    first, second = _read(_record(tmp_path / 'bag', messages))
    # The last sample (tick 99) is stale when older than 100 ms.
    assert first.vectors[-1, 6] == 109 and second.vectors[0, 6] == 201
    _, rest = first, second
    assert _check(rest).tolist() == list(range(201, 300))
    assert second.dropped['without fresh imu'] == 91
    (joined,) = _read(tmp_path / 'bag', max_gap=5.0)
    assert len(joined) == len(first) + len(second)


def test_missing_actions_drop_ticks(tmp_path):
    quiet = range(1001 * SECOND, 1001 * SECOND + 200 * MS)
    messages = [entry for entry in _drive(2.0)
                if entry[1] != 'demonstration/gripper' or entry[0] not in quiet]
    (episode,) = _read(_record(tmp_path / 'bag', messages))
    # 20 actions are missing; the next one may come up to 50 ms after its tick.
    assert episode.dropped['without an action'] == 20 - 4
    assert np.diff(episode.stamps).max() == 170 * MS


def test_a_long_episode_is_cut_and_loses_nothing(tmp_path):
    path = _record(tmp_path / 'bag', _drive(8.0))
    (whole,) = _read(path)
    parts = _read(path, longest=2.0)
    assert len(parts) > 2
    for part in parts:
        _check(part)
        assert part.times[-1] < 2.5  # the last part has what settled last, too
        assert len(part.colors) <= 2.5 * 34 + 6
    for key in ('stamps', 'vectors', 'actions', 'targets'):
        joined = np.concatenate([getattr(part, key) for part in parts])
        assert joined.tobytes() == getattr(whole, key).tobytes()


@pytest.mark.parametrize('kind', ['own', 'sqlite', 'mcap, file compressed', 'cut off', 'marked'])
def test_parts_decoded_by_several_processes_are_the_parts_read_one_after_the_other(
        tmp_path, kind):
    """Bit for bit, of every kind of bag, with messages that are left out in several parts."""
    messages = [*_drive(5.0)]
    if kind == 'marked':
        messages = [_marker(START, 'a', 1000 * SECOND), *messages[:1500],
                    _marker(SUCCESS, 'a', 1002 * SECOND), *messages[1500:2500],
                    _marker(START, 'b', 1003 * SECOND), *messages[2500:]]
    color = INTERFACE.images['color']
    broken = {100, 2000}
    messages = [(time, topic, _image(color, 0.0, stamp_of(message), 95))
                if topic == color.topic and index // 10 * 10 in broken else (time, topic, message)
                for index, (time, topic, message) in enumerate(messages)]
    if kind == 'sqlite':
        path = _rosbags_bag(tmp_path / 'bag', messages, StoragePlugin.SQLITE3, None)
    elif kind == 'mcap, file compressed':
        path = _rosbags_bag(tmp_path / 'bag', messages, StoragePlugin.MCAP, CompressionMode.FILE)
    else:
        path = tmp_path / 'bag'
        with BagWriter(path, TOPICS, durable=False, max_size=2_000_000) as writer:
            for time, topic, message in messages:
                writer.write(topic, time, message)
    if kind == 'cut off':
        *others, last = sorted(path.glob('*.mcap'), key=lambda file: file.stat().st_mtime_ns)
        os.truncate(last, last.stat().st_size // 2)
        for file in others:     # without the index at its end
            os.truncate(file, file.stat().st_size - 300)
    settings, notes = ReadSettings(longest=1.0), []
    expected = list(read_episodes(path, INTERFACE, settings, report=notes.append))
    reader = BagReader(path, INTERFACE, settings, lambda text: None)
    folders = [(tmp_path / 'cache', reader)]
    with pytest.warns(BagWarning) as warned:
        cache._decode_all(folders, 3, lambda *_: None)
    assert len(expected) > 3 and len(reader.windows()) > 3
    found = list(cache.load_stored(tmp_path / 'cache'))
    assert [one.name for one in found] == [one.name for one in expected]
    for one, other in zip(found, expected, strict=True):
        for key in ('vectors', 'image_index', 'colors', 'actions', 'targets'):
            assert getattr(one, key).tobytes() == getattr(other, key).tobytes()
        assert np.array_equal(one.times, other.times)
    # What is said about the bag is said once, not by every part.
    assert sorted(str(one.message) for one in warned) == sorted(
        note for note in notes if 'expected an index' not in note)
    assert any('messages left out' in note for note in notes)


def test_decoding_that_was_killed_goes_on_with_the_parts_that_are_missing(tmp_path, monkeypatch):
    path = _record(tmp_path / 'bag', _drive(6.0))
    reader = BagReader(path, INTERFACE, ReadSettings(longest=2.0), lambda text: None)
    cache._decode_all([(tmp_path / 'cache', reader)], 1, lambda *_: None)
    before = [one.vectors.copy() for one in cache.load_stored(tmp_path / 'cache')]
    # As if it had been killed when all parts but the second were there.
    (tmp_path / 'cache' / 'index.json').unlink()
    os.rename(tmp_path / 'cache' / '00001', tmp_path / 'cache' / '00001.12345.part')
    os.utime(tmp_path / 'cache' / '00001.12345.part', (0, 0))
    (tmp_path / 'cache' / '00002.23456.part').mkdir()       # somebody else is at it
    read = []
    plain = BagReader.read
    monkeypatch.setattr(BagReader, 'read', lambda self, window, *more: (
        read.append(window), plain(self, window, *more))[1])
    cache._decode_all([(tmp_path / 'cache', reader)], 1, lambda *_: None)
    assert len(read) == 1
    assert [place.name for place in (tmp_path / 'cache').glob('*.part')] == ['00002.23456.part']
    after = [one.vectors for one in cache.load_stored(tmp_path / 'cache')]
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))


def test_a_single_tick_between_two_gaps_does_not_stop_a_training(tmp_path):
    # The first image after a gap seems to come from the future; the next is 20 ms old at tick 5.
    parts = [*_drive(1.0), *_drive(0.06, 1010 * SECOND), *_drive(1.0, 1020 * SECOND)]
    path = _record(tmp_path / 'bag', parts)
    lengths = [len(episode) for episode in _read(path)]
    assert lengths == [98, 1, 95]
    stored = cache.cached_episodes([path], INTERFACE, tmp_path / 'cache', 1)
    assert [len(episode.times) for episode in stored] == [98, 95]


def test_memory_is_bounded_by_one_episode(tmp_path):
    parts = []
    for number in range(4):
        start = (1000 + 10 * number) * SECOND
        parts += [_marker(START, str(number), start), *_drive(3.0, start),
                  _marker(SUCCESS, str(number), start + 3 * SECOND)]
    path = _record(tmp_path / 'bag', parts)
    del parts
    size = 100 * 96 * 96 * 7
    tracemalloc.start()
    count = sum(1 for _ in read_episodes(path, INTERFACE))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 4
    # The frames, the arrays made of them, the episode still held, and a chunk of the bag.
    assert peak < 3 * size + 12_000_000


def test_log_times_of_another_clock_do_not_matter(tmp_path):
    """A bag recorded in simulated time by a recorder on wall time."""
    messages = [(time + 10**18, topic, message)
                for time, topic, message in _drive(2.0, 5 * SECOND)]
    (episode,) = _read(_record(tmp_path / 'bag', messages))
    ticks = _check(episode)
    # Without header, only the time of receipt tells; what came before the clock is left out.
    assert ticks.tolist() == list(range(2, 200))


def test_time_that_restarts_cuts_the_episode(tmp_path):
    messages = [*_drive(2.0, 100 * SECOND), *(
        (time + 100 * SECOND, topic, message) for time, topic, message in _drive(2.0, 5 * SECOND))]
    episodes = _read(_record(tmp_path / 'bag', messages))
    assert [episode.stamps[0] // SECOND for episode in episodes] == [100, 5]
    assert any('went back' in reason for reason in episodes[-1].rejected)
    for episode in episodes:
        assert len(_check(episode)) > 140


def test_namespaces_are_found(tmp_path):
    def within(name):
        return [(time, f'{name}/{topic}', message) for time, topic, message in _drive(1.0)]
    one = {f'left/{topic}': kind for topic, kind in TOPICS.items()}
    both = {**one, **{f'right/{topic}': kind for topic, kind in TOPICS.items()}}
    (episode,) = _read(_record(tmp_path / 'one', within('left'), one))
    _check(episode)
    path = _record(tmp_path / 'both', within('left') + within('right'), both)
    with pytest.raises(BagError, match="one robot, came topics of.*'/left', '/right'.*namespace"):
        _read(path)
    (episode,) = _read(path, namespace='right')
    _check(episode)


def test_padding_behind_a_message_is_accepted(tmp_path):
    spec = INTERFACE.observations['joint_positions']

    def padded():
        for time, topic, message in _drive(1.0):
            if topic == spec.topic:
                message = bytes(TYPES.serialize_cdr(message, spec.type)) + bytes(8)
            yield time, topic, message
    (episode,) = _read(_record(tmp_path / 'bag', padded()))
    _check(episode)


def test_bag_and_robot_see_the_same_bits(tmp_path):
    """Messages in the order the robot got them, through the aligner live and through the bag."""
    rng = np.random.default_rng(0)
    # Within its latency, less the twentieth of a period by which stamps may jitter.
    delays = {spec.name: max(0.0, spec.latency - 0.05 / INTERFACE.rate)
              for spec in INTERFACE.observations.values()}
    arrivals = []
    for k in range(600):
        stamp = 1000 * SECOND + k * 10 * MS + int(rng.integers(0, 3 * MS))
        for spec in INTERFACE.observations.values():
            if rng.random() < 0.03 and spec.name != INTERFACE.clock:
                continue
            late = int(rng.uniform(0, delays[spec.name]) * SECOND)
            arrivals.append((stamp + late, spec.topic,
                             _filled(spec, rng.normal(size=spec.size), stamp)))
        for spec in INTERFACE.actions.values():
            arrivals.append((stamp + 4 * MS, spec.demonstration,
                             _filled(spec, np.zeros(spec.size), stamp + 4 * MS)))
    for spec in INTERFACE.observations.values():  # one topic keeps its order
        times = np.maximum.accumulate([time for time, topic, _ in arrivals if topic == spec.topic])
        iterator = iter(times.tolist())
        arrivals = [(next(iterator) if topic == spec.topic else time, topic, message)
                    for time, topic, message in arrivals]
    arrivals.sort(key=lambda entry: entry[0])
    live, seen = Aligner(INTERFACE), {}
    sources = {spec.topic: spec for spec in INTERFACE.observations.values()}
    for _, topic, message in arrivals:
        if topic in sources:
            spec = sources[topic]
            live.push(spec.name, stamp_of(message), vector_from_message(spec, message))
            for tick in live.ticks_ready():
                known = live.at(tick)
                if known.stale == ('features',):
                    seen[tick] = known.vector
    episodes = _read(_record(tmp_path / 'bag', arrivals), images=False)
    read = dict(itertools.chain(*(zip(episode.stamps.tolist(), episode.vectors, strict=True)
                                  for episode in episodes)))
    assert len(read) > 550
    assert {tick: seen[tick].tobytes() for tick in read} == {
        tick: vector.tobytes() for tick, vector in read.items()}


# What is refused.

def test_a_missing_topic_is_named_with_what_is_there(tmp_path):
    messages = [entry for entry in _drive(0.5) if entry[1] != 'imu/data']
    path = _record(tmp_path / 'bag', messages)
    with pytest.raises(BagError, match=r'expected the topics /imu/data \[sensor_msgs/msg/Imu\], '
                                       r'came a bag with .*/joint_states.*record'):
        _read(path)


def test_a_topic_of_another_type_is_refused(tmp_path):
    topics = {**TOPICS, 'imu/data': 'sensor_msgs/msg/JointState'}
    spec = INTERFACE.observations['joint_positions']
    messages = [(time, topic, _filled(spec, np.zeros(6), time) if topic == 'imu/data' else message)
                for time, topic, message in _drive(0.5)]
    path = _record(tmp_path / 'bag', messages, topics)
    with pytest.raises(BagError, match='expected sensor_msgs/msg/Imu on /imu/data, came sensor_'):
        _read(path)


def test_an_empty_bag_is_refused(tmp_path):
    path = _record(tmp_path / 'bag', [])
    with pytest.raises(BagError, match='expected recorded messages, came an empty bag.*record'):
        _read(path)
    (path / 'bag_0.mcap').write_bytes(b'')
    with pytest.raises(BagError, match='came an empty bag'):
        _read(path)


def test_what_is_no_bag_is_refused(tmp_path):
    with pytest.raises(BagError, match='came nothing of this name'):
        _read(tmp_path / 'missing')
    with pytest.raises(BagError, match='expected bags in this folder, found none'):
        _read(tmp_path)
    (tmp_path / 'text.txt').write_text('hello')
    with pytest.raises(BagError, match='a file ending in .mcap'):
        _read(tmp_path / 'text.txt')
    for name in ('false.mcap', 'false.db3', 'false.mcap.zstd', 'false.db3.zstd'):
        (tmp_path / name).write_bytes(b'this is no bag, whatever it is called' * 50)
        with pytest.raises(BagError, match='false.*expected.*came'):
            _read(tmp_path / name)


def test_a_bag_that_is_cut_off_is_used_and_reported(tmp_path):
    path = _record(tmp_path / 'bag', _drive(4.0))
    file = path / 'bag_0.mcap'
    *_, last = mcap_file.summary(file).places       # how many chunks there are depends on time
    os.truncate(file, last.offset + 1000)
    (path / 'metadata.yaml').unlink()
    notes = []
    episodes = list(read_episodes(path, INTERFACE, report=notes.append))
    assert 'expected an index at its end' in notes[0]
    assert 'liquid_trainer.recording' in notes[0]
    assert 10 < len(_check(episodes[0])) < 398
    with pytest.warns(BagWarning, match='expected an index'):
        list(read_episodes(path, INTERFACE))


@pytest.mark.parametrize('mode', [None, CompressionMode.FILE])
@pytest.mark.parametrize('plugin', [StoragePlugin.SQLITE3, StoragePlugin.MCAP])
def test_other_bags_that_are_cut_off_give_what_is_left_or_an_error(tmp_path, plugin, mode):
    path = _rosbags_bag(tmp_path / 'bag', _drive(2.0), plugin, mode)
    (file,) = [file for file in path.iterdir() if file.suffix != '.yaml']
    whole = file.read_bytes()
    read = 0
    for share in (0.02, 0.3, 0.6, 0.9, 0.99):
        file.write_bytes(whole[:int(len(whole) * share)])
        try:
            episodes = list(read_episodes(path, INTERFACE, report=lambda text: None))
        except BagError as error:
            assert 'expected' in str(error) and 'came' in str(error)
            continue
        for episode in episodes:
            _check(episode)
        read += len(episodes)
    assert read or plugin is StoragePlugin.SQLITE3  # sqlite needs its last pages


def test_bad_messages_are_left_out_and_reported(tmp_path):
    spec = INTERFACE.observations['joint_positions']

    def bad():
        for number, (time, topic, message) in enumerate(_drive(2.0)):
            if topic == spec.topic and number % 50 < 7:
                message = _filled(spec, np.full(6, np.nan), stamp_of(message))
            yield time, topic, message
    notes = []
    episodes = list(read_episodes(_record(tmp_path / 'bag', bad()), INTERFACE,
                                  report=notes.append))
    assert all(len(_check(episode)) for episode in episodes)
    assert 'messages left out' in notes[0] and 'expected finite values' in notes[0]
    assert any('expected finite values' in reason for reason in episodes[-1].rejected)


def test_a_topic_of_only_bad_messages_is_refused(tmp_path):
    spec = INTERFACE.images['color']
    small = [(time, topic, _image(spec, 0, stamp_of(message), height=48)
              if topic == spec.topic else message) for time, topic, message in _drive(0.5)]
    with pytest.raises(BagError, match='all 17 messages of /camera/color.*expected 96x96 pixels, '
                                       'came 96x48'):
        _read(_record(tmp_path / 'bag', small))


def test_a_bag_without_header_stamps_says_so(tmp_path):
    unstamped = ((time, topic, _stamped(message, 0)) for time, topic, message in _drive(1.0))
    path = _record(tmp_path / 'bag', unstamped)
    with pytest.raises(BagError, match=r'expected header stamps, came \d+ messages stamped zero'):
        _read(path)


def test_a_bag_without_any_usable_tick_says_why(tmp_path):
    late = [(time, topic, _stamped(message, stamp_of(message) - SECOND)
             if topic == 'imu/data' else message) for time, topic, message in _drive(2.0)]
    with pytest.raises(BagError, match='expected at least one tick.*ticks without fresh imu'):
        _read(_record(tmp_path / 'bag', late))


def test_garbage_in_a_message_is_left_out(tmp_path):
    spec = INTERFACE.observations['imu']

    def bad():
        for number, (time, topic, message) in enumerate(_drive(1.0)):
            if topic == spec.topic and number % 9 == 1:
                message = bytes(TYPES.serialize_cdr(message, spec.type))[:number % 60]
            yield time, topic, message
    notes = []
    episodes = list(read_episodes(_record(tmp_path / 'bag', bad()), INTERFACE,
                                  report=notes.append))
    assert episodes and 'expected a serialized sensor_msgs/msg/Imu' in notes[0]


def test_a_damaged_chunk_is_reported(tmp_path):
    path = _record(tmp_path / 'bag', _drive(4.0))
    file = path / 'bag_0.mcap'
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    notes = []
    episodes = list(read_episodes(path, INTERFACE, report=notes.append))
    assert any('1 damaged' in note for note in notes)
    assert sum(len(episode) for episode in episodes) < 350


@pytest.mark.parametrize('kind', ['own', 'sqlite', 'mcap'])
def test_no_damage_does_anything_but_cost_messages_or_be_refused(tmp_path, kind):
    messages = list(_drive(0.4))
    if kind == 'own':
        _record(tmp_path / 'bag', messages)
    else:
        plugin = StoragePlugin.SQLITE3 if kind == 'sqlite' else StoragePlugin.MCAP
        _rosbags_bag(tmp_path / 'bag', messages, plugin, None)
    (file,) = [file for file in (tmp_path / 'bag').iterdir() if file.suffix != '.yaml']
    whole, chance = file.read_bytes(), random.Random(0)
    for _ in range(40):
        data = bytearray(whole)
        begin = chance.choice([0, 0, len(data) - 4000])
        for _ in range(chance.choice([1, 5, 50])):
            data[begin + chance.randrange(4000)] = chance.randrange(256)
        file.write_bytes(data)
        try:
            for episode in read_episodes(file, INTERFACE, report=lambda text: None):
                assert len(episode) > 0
        except BagError as error:
            assert 'expected' in str(error) or 'unusable' in str(error)


def test_settings_are_checked():
    with pytest.raises(ValueError, match='expected actions from'):
        ReadSettings(actions='guess')
    with pytest.raises(ValueError, match='positive longest'):
        ReadSettings(longest=0.0)


def test_any_bag_can_be_looked_into(tmp_path):
    bag = Bag(_record(tmp_path / 'bag', [*_drive(0.1), _marker(START, 'a', 1001 * SECOND)]))
    assert bag.topics['/episode'] == MARKER and bag.counts['/joint_states'] == 10
    records = list(bag.messages(['/episode']))
    assert [record.message.episode for record in records] == ['a']
    assert len(list(bag.messages())) == sum(bag.counts.values())


def test_a_robot_with_one_color_camera_is_read(tmp_path):
    arm = load_interface(CONFIG / 'six_axis_arm.interface.yaml')
    messages = []
    for k in range(200):
        stamp = 1000 * SECOND + k * 8 * MS  # joint states at 125 Hz, control at 100 Hz
        joints = new_message(TYPES, 'sensor_msgs/msg/JointState',
                             name=[f'joint_{number}' for number in range(1, 7)],
                             position=np.full(6, k, float), velocity=np.full(6, -k, float))
        messages.append((stamp, 'joint_states', _stamped(joints, stamp)))
        if k % 4 == 0:
            spec = replace(arm.images['wrist'])
            messages.append((stamp, spec.topic, _image(spec, k, stamp)))
        action = arm.actions['arm']
        messages.append((stamp + MS, action.demonstration, _filled(action, np.full(6, k), stamp)))
    (episode,) = _read(_record(tmp_path / 'bag', messages, arm.topics()), arm)
    assert np.array_equal(episode.vectors[:, 0], -episode.vectors[:, 6])
    assert np.array_equal(episode.actions[:, 0], episode.vectors[:, 0])
    assert episode.depths.shape == (0, 0, 0) and len(episode.colors) > 40
    assert len(episode) == pytest.approx(160, abs=4)


def _compressed(codec: str = 'png', broken: tuple[int, ...] = ()):
    """Give the drive of a robot whose camera compresses; some colour images are cut off."""
    interface = compressed_interface(INTERFACE)
    sent = {spec.topic: (spec, interface.images[name]) for name, spec in INTERFACE.images.items()}
    count = 0
    for time, topic, message in _drive(2.0):
        if topic not in sent:
            yield time, topic, message
            continue
        raw, spec = sent[topic]
        fields = fields_of(spec, image_from_message(raw, message), codec)
        if not spec.is_depth:
            count += 1
            if count in broken:
                fields['data'] = fields['data'][:-4]
        yield time, spec.topic, _stamped(
            new_message(TYPES, spec.type, **fields), stamp_of(message))


def test_compressed_images_are_read_as_raw_ones(tmp_path):
    interface = compressed_interface(INTERFACE)
    topics = {**interface.topics(), EPISODE: MARKER}
    (raw,) = _read(_record(tmp_path / 'raw', _drive(2.0)))
    (found,) = _read(_record(tmp_path / 'packed', _compressed(), topics), interface)
    assert np.array_equal(found.colors, raw.colors)          # png loses nothing
    # Inverse depth in steps of d^2 / 10100 m, rounded down; nearer than 0.16 m has no 16 bits.
    near = raw.depths > 0.16
    assert near.any()
    assert np.all((found.depths - raw.depths)[near] < raw.depths[near] ** 2 / 9000)
    for key in ('stamps', 'vectors', 'actions', 'image_index'):
        assert np.array_equal(getattr(found, key), getattr(raw, key))
    (lossy,) = _read(_record(tmp_path / 'jpeg', _compressed('jpeg'), topics), interface)
    assert np.abs(lossy.colors.astype(int) - raw.colors).max() <= 4


def test_a_compressed_image_that_is_cut_off_is_left_out_and_counted(tmp_path):
    interface = compressed_interface(INTERFACE)
    path = _record(tmp_path / 'bag', _compressed('jpeg', broken=(5, 6)),
                   {**interface.topics(), EPISODE: MARKER})
    reports: list[str] = []
    (episode,) = read_episodes(path, interface, report=reports.append)
    assert len(reports) == 1 and '2 messages left out' in reports[0] and 'cut off' in reports[0]
    (whole,) = read_episodes(_record(tmp_path / 'whole', _compressed('jpeg'),
                                     {**interface.topics(), EPISODE: MARKER}), interface)
    assert len(whole.colors) - len(episode.colors) == 2      # the depth image goes with its pair
    assert np.array_equal(episode.stamps, whole.stamps)


def test_an_interface_with_raw_images_says_that_the_bag_has_compressed_ones(tmp_path):
    topics = {**compressed_interface(INTERFACE).topics(), EPISODE: MARKER}
    path = _record(tmp_path / 'bag', _compressed(), topics)
    with pytest.raises(BagError, match=r'camera/color/image_raw/compressed \[sensor_msgs/msg/Comp'
                       r'ressedImage\].*images.color.topic and images.color.type'):
        _read(path)


def test_the_command_says_what_can_be_learned(tmp_path, capsys):
    path = _record(tmp_path / 'bag', [_marker(START, 'a', 1000 * SECOND), *_drive(1.0),
                                      _marker(SUCCESS, 'a', 1001 * SECOND)])
    (tmp_path / 'interface.yaml').write_text(INTERFACE.to_yaml())
    arguments = [str(path), '--interface', str(tmp_path / 'interface.yaml')]
    assert check_bags(arguments) == 0
    out = capsys.readouterr().out
    assert 'bag a: success, 0.97 s, 98 ticks, 33 images' in out
    # Actions rise from 2 to 99 and may be at most 3 rad/s: only tick 2 and 3 are inside.
    assert 'wrist_3_joint: 98.0% of the demonstrated actions are outside' in out
    assert '1 episodes (1 success), 1.0 s, 98 ticks' in out
    assert check_bags([str(tmp_path / 'missing'), *arguments[1:]]) == 1
    assert 'expected a bag, came nothing of this name' in capsys.readouterr().err


def test_a_bag_is_read_by_the_definitions_it_carries(tmp_path):
    """An older marker, without the field `note`, beside one of today."""
    old = get_typestore(Stores.ROS2_JAZZY)
    old.register(get_types_from_msg(
        'std_msgs/Header header\nuint8 kind\nstring episode\n', MARKER))
    with Writer(tmp_path / 'old', version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {topic: writer.add_connection(f'/{topic}', kind, typestore=old)
                       for topic, kind in TOPICS.items()}
        for time, topic, message in [_marker(START, 'a', 1000 * SECOND), *_drive(1.0),
                                     _marker(SUCCESS, 'a', 1001 * SECOND)]:
            kind = TOPICS[topic]
            if kind == MARKER:
                message = old.types[kind](message.header, message.kind, message.episode)
            writer.write(connections[topic], time, old.serialize_cdr(message, kind))
    _record(tmp_path / 'today', [_marker(START, 'b', 1000 * SECOND), *_drive(1.0),
                                 _marker(FAILURE, 'b', 1001 * SECOND)])
    for _ in range(2):
        episodes = _read([tmp_path / 'today', tmp_path / 'old'])
        assert [(episode.name, episode.outcome) for episode in episodes] == [
            ('b', 'failure'), ('a', 'success')]
