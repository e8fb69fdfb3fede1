"""Bags that are written: what others read of them, and what a crash or a full disk leaves."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import Reader

from liquid_policy.interface import load_interface
from liquid_trainer import mcap_file
from liquid_trainer.bag_file import Bag
from liquid_trainer.message_types import UnknownTypeError, message_types, new_message
from liquid_trainer.recording import BagWriter, RecordingError, bag_files, main, recover

CONFIG = Path(__file__).parents[2] / 'config'
JOINTS, MARKER = 'sensor_msgs/msg/JointState', 'liquid_policy_msgs/msg/EpisodeMarker'
# A child finds the packages where this process found them.
ENVIRONMENT = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
TOPICS = {'joint_states': JOINTS, 'episode': MARKER}


def _joints(writer: BagWriter, number: int):
    message = new_message(writer.types, JOINTS, name=['a', 'b'],
                          position=np.array([number, -number], float))
    message.header.stamp.sec = number
    return message


def _write(path: Path, count: int = 100, **settings) -> None:
    with BagWriter(path, TOPICS, **settings) as writer:
        for number in range(count):
            writer.write('joint_states', number * 10_000_000, _joints(writer, number))
            if number % 10 == 0:
                writer.flush()
        writer.write('episode', count * 10_000_000,
                     new_message(writer.types, MARKER, kind=1, episode='last'))


def _numbers(path: Path) -> list[int]:
    return [record.message.header.stamp.sec for record in Bag(path).messages(['/joint_states'])]


@pytest.mark.parametrize('compression', ['', 'lz4', 'zstd'])
def test_other_readers_read_the_bag(tmp_path, compression):
    _write(tmp_path / 'bag', compression=compression)
    with AnyReader([tmp_path / 'bag']) as reader:  # checks type hashes too
        assert reader.message_count == 101
        assert reader.topics['/joint_states'].msgcount == 100
        assert reader.duration == 1_000_000_001
        found = [(connection.topic, stamp, reader.deserialize(data, connection.msgtype))
                 for connection, stamp, data in reader.messages()]
    for number, (topic, stamp, message) in enumerate(found[:-1]):
        assert topic == '/joint_states' and stamp == number * 10_000_000
        assert message.position.tolist() == [number, -number]
    assert found[-1][2].episode == 'last' and found[-1][2].kind == 1


def test_the_file_alone_is_read_too(tmp_path):
    _write(tmp_path / 'bag')
    with Reader(tmp_path / 'bag' / 'bag_0.mcap') as reader:
        assert reader.message_count == 101
        assert len(list(reader.messages())) == 101


def test_custom_definitions_are_in_the_bag(tmp_path):
    _write(tmp_path / 'bag')
    (channel,) = [channel for channel in mcap_file.summary(tmp_path / 'bag' / 'bag_0.mcap')
                  .channels.values() if channel.topic == '/episode']
    assert channel.schema.name == MARKER and channel.schema.encoding == 'ros2msg'
    assert 'uint8 END_SUCCESS=1' in channel.schema.text
    assert 'MSG: std_msgs/Header' in channel.schema.text


def test_all_topics_of_an_interface_are_announced(tmp_path):
    interface = load_interface(CONFIG / 'manipulator.interface.yaml')
    with BagWriter(tmp_path / 'bag', interface) as writer:
        message = new_message(writer.types, 'sensor_msgs/msg/Imu')
        writer.write('imu/data', 5, message)
    with Reader(tmp_path / 'bag') as reader:
        assert {f'/{topic}': kind for topic, kind in interface.topics().items()} == {
            connection.topic: connection.msgtype for connection in reader.connections}


def test_serialized_messages_are_written_as_they_are(tmp_path):
    with BagWriter(tmp_path / 'bag', TOPICS) as writer:
        data = bytes(writer.types.serialize_cdr(_joints(writer, 3), JOINTS))
        writer.write('/joint_states', 7, data)
    with Reader(tmp_path / 'bag') as reader:
        assert [bytes(found) for _, _, found in reader.messages()] == [data]


def test_a_large_bag_is_split_and_read_as_one(tmp_path):
    message = bytes(1 << 20)
    with BagWriter(tmp_path / 'bag', {'image': 'sensor_msgs/msg/Image'},
                   max_size=8 << 20) as writer:
        for number in range(40):
            writer.write('image', number, message)
    files = bag_files(tmp_path / 'bag', '.mcap')
    assert [file.name for file in files] == [f'bag_{number}.mcap' for number in range(len(files))]
    assert len(files) == 5
    assert max(file.stat().st_size for file in files) < 14 << 20
    with Reader(tmp_path / 'bag') as reader:
        assert [stamp for _, stamp, _ in reader.messages()] == list(range(40))
    assert Bag(tmp_path / 'bag').counts == {'/image': 40}


def test_topics_can_be_added_while_recording(tmp_path):
    with BagWriter(tmp_path / 'bag', TOPICS) as writer:
        writer.write('joint_states', 0, _joints(writer, 0))
        writer.flush()
        writer.add_topic('late', 'std_msgs/msg/String')
        writer.add_topic('late', 'std_msgs/msg/String')
        with pytest.raises(ValueError, match='expected type std_msgs/msg/String'):
            writer.add_topic('late', JOINTS)
        writer.write('late', 1, new_message(writer.types, 'std_msgs/msg/String', data='hello'))
        writer.add_topic('later', 'liquid_policy_msgs/msg/ConveyorStatus')
    with AnyReader([tmp_path / 'bag']) as reader:
        assert reader.message_count == 2


def test_wrong_calls_are_refused(tmp_path):
    _write(tmp_path / 'bag')
    with pytest.raises(RecordingError, match='expected a new folder'):
        BagWriter(tmp_path / 'bag', TOPICS)
    with pytest.raises(RecordingError, match='choose another output folder'):
        BagWriter(Path('/proc/bag'), TOPICS)
    with pytest.raises(UnknownTypeError, match='expected a definition of no_msgs/msg/No'):
        BagWriter(tmp_path / 'other', {'a': 'no_msgs/msg/No'})
    with BagWriter(tmp_path / 'third', TOPICS) as writer:
        with pytest.raises(ValueError, match="expected one of the topics.*'odom'"):
            writer.write('odom', 0, b'')
        with pytest.raises(TypeError, match='expected serialized bytes'):
            writer.write('joint_states', 0, object())


def test_closing_twice_does_nothing(tmp_path):
    writer = BagWriter(tmp_path / 'bag', TOPICS)
    writer.write('joint_states', 0, _joints(writer, 0))
    writer.close()
    writer.close()
    assert _numbers(tmp_path / 'bag') == [0]


def test_an_error_of_the_caller_still_completes_the_bag(tmp_path):
    with pytest.raises(RuntimeError), BagWriter(tmp_path / 'bag', TOPICS) as writer:
        writer.write('joint_states', 0, _joints(writer, 0))
        raise RuntimeError
    with Reader(tmp_path / 'bag') as reader:
        assert reader.message_count == 1


@pytest.mark.parametrize('compression', ['', 'zstd'])
def test_a_bag_cut_off_anywhere_gives_what_is_before(tmp_path, compression):
    _write(tmp_path / 'bag', 60, compression=compression)
    whole = (tmp_path / 'bag' / 'bag_0.mcap').read_bytes()
    content = mcap_file.summary(tmp_path / 'bag' / 'bag_0.mcap')
    assert content is not None and content.message_count == 61
    cut = tmp_path / 'cut_0.mcap'
    lengths = []
    for size in [*random.Random(0).sample(range(9, len(whole)), 300), len(whole)]:
        cut.write_bytes(whole[:size])
        seen = mcap_file.Content()
        found = [time for _, time, _ in mcap_file.read(cut, seen)]
        assert found == [number * 10_000_000 for number in range(len(found))]
        assert seen.complete == (size == len(whole))
        assert seen.good_until <= size
        lengths.append((size, len(found)))
    counts = [count for _, count in sorted(lengths)]
    assert counts == sorted(counts)  # a longer file never gives less
    assert counts[-1] == 61


@pytest.mark.parametrize('compression', ['', 'zstd'])
def test_a_recovered_bag_is_read_by_everyone(tmp_path, compression):
    _write(tmp_path / 'bag', 60, compression=compression)
    file = tmp_path / 'bag' / 'bag_0.mcap'
    whole = file.read_bytes()
    for size in random.Random(1).sample(range(len(whole) // 2, len(whole)), 20):
        (tmp_path / 'bag' / 'metadata.yaml').unlink()
        file.write_bytes(whole[:size])
        expected = [time for _, time, _ in mcap_file.read(file)]
        assert recover(tmp_path / 'bag') == len(expected)
        with AnyReader([tmp_path / 'bag']) as reader:
            assert [stamp for _, stamp, _ in reader.messages()] == expected
            assert reader.message_count == len(expected)
        assert recover(tmp_path / 'bag') == len(expected)


def test_recovering_is_a_command(tmp_path, capsys):
    _write(tmp_path / 'bag', 60)
    file = tmp_path / 'bag' / 'bag_0.mcap'
    file.write_bytes(file.read_bytes()[:-100])
    assert main([str(tmp_path / 'bag')]) == 0
    assert '61 messages' in capsys.readouterr().out
    assert main([str(tmp_path)]) == 1
    assert 'expected a folder with .mcap files' in capsys.readouterr().err


def test_a_damaged_chunk_costs_only_itself(tmp_path):
    _write(tmp_path / 'bag', 60)
    file = tmp_path / 'bag' / 'bag_0.mcap'
    data = bytearray(file.read_bytes())
    middle = [chunk for chunk in _chunks(file)][3]
    data[middle[0] + middle[1] // 2] ^= 0xFF
    file.write_bytes(data)
    content = mcap_file.Content()
    found = {time // 10_000_000 for _, time, _ in mcap_file.read(file, content)}
    assert content.damaged == {middle[0]}
    missing = set(range(61)) - found
    assert 0 < len(missing) <= 11


def _chunks(file: Path) -> list[tuple[int, int]]:
    content = mcap_file.Content()
    for _ in mcap_file.read(file, content):
        pass
    return [(chunk.offset, chunk.length)
            for chunk in mcap_file._chunk_indexes(file, content.good_until)]


# Writes numbered messages for ever and says on stdout, unbuffered, which number was taken when.
_ENDLESS = """
import os, sys, time
from pathlib import Path
import numpy as np
from liquid_trainer.message_types import new_message
from liquid_trainer.recording import BagWriter
writer = BagWriter(Path(sys.argv[1]), {'joint_states': 'sensor_msgs/msg/JointState'})
message = new_message(writer.types, 'sensor_msgs/msg/JointState', position=np.zeros(8))
for number in range(10**9):
    message.header.stamp.sec = number
    writer.write('joint_states', time.time_ns(), message)
    if number % 10 == 0:
        os.write(1, f'{number} {time.monotonic()}\\n'.encode())
    time.sleep(0.001)
"""


def test_killing_the_writer_loses_at_most_the_last_second(tmp_path):
    process = subprocess.Popen([sys.executable, '-c', _ENDLESS, tmp_path / 'bag'],
                               stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(2.0)
    process.kill()
    killed = time.monotonic()
    lines = [line.split() for line in process.stdout.read().splitlines()
             if len(line.split()) == 2]
    process.wait()
    assert process.returncode == -signal.SIGKILL
    found = _numbers(tmp_path / 'bag')
    assert found == list(range(len(found)))  # whole and in order
    taken = [int(number) for number, when in lines if float(when) < killed - 1.0]
    assert len(found) > taken[-1] > 100
    assert not (tmp_path / 'bag' / 'metadata.yaml').exists()
    assert recover(tmp_path / 'bag') == len(found)
    with AnyReader([tmp_path / 'bag']) as reader:
        assert reader.message_count == len(found)


# A limit on the size of files gives what a full disk gives: writes that fail half way.
_LIMITED = """
import resource, signal, sys, time
from pathlib import Path
from liquid_trainer.recording import BagWriter, RecordingError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
writer = BagWriter(Path(sys.argv[1]), {'image': 'sensor_msgs/msg/Image'}, interval=0.05)
try:
    for number in range(1000):
        writer.write('image', number, bytes(10_000))
        time.sleep(0.01)
except RecordingError as error:
    print('stopped', number, error)
    assert writer.error is error
try:
    writer.close()
except RecordingError as error:
    print('closed', error)
"""


def test_a_disk_that_fills_up_is_an_error_and_leaves_a_readable_bag(tmp_path):
    done = subprocess.run([sys.executable, '-c', _LIMITED, tmp_path / 'bag'], text=True,
                          capture_output=True, timeout=60, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    stopped, closed = done.stdout.splitlines()
    assert 'recording stopped: File too large; the bag is readable' in stopped
    assert 'free space or choose another output folder' in closed
    taken = int(stopped.split()[1])
    assert 25 <= taken < 60  # 30 fit; a write fails up to 0.05 s after the disk did
    counts = Bag(tmp_path / 'bag').counts['/image']
    assert 20 <= counts <= 30
    with Reader(tmp_path / 'bag') as reader:  # the index still fitted
        assert reader.message_count == counts


@pytest.mark.skipif(os.geteuid() != 0, reason='mounting needs root')
def test_a_full_file_system_is_an_error_and_leaves_a_readable_bag(tmp_path):
    small = tmp_path / 'small'
    small.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'none', small],
                      capture_output=True).returncode:
        pytest.skip('mounting is not allowed here')
    try:
        writer = BagWriter(small / 'bag', {'image': 'sensor_msgs/msg/Image'}, interval=0.02)
        with pytest.raises(RecordingError, match='No space left on device'):
            for number in range(1000):
                writer.write('image', number, bytes(10_000))
                time.sleep(0.002)
        with pytest.raises(RecordingError, match='No space left on device'):
            writer.close()
        found = [time for _, time, _ in mcap_file.read(small / 'bag' / 'bag_0.mcap')]
        assert found == list(range(len(found))) and len(found) > 80
    finally:
        subprocess.run(['umount', small], check=True)


def test_memory_does_not_grow_with_the_bag(tmp_path):
    with BagWriter(tmp_path / 'bag', {'image': 'sensor_msgs/msg/Image'}, durable=False) as writer:
        for number in range(20):
            writer.write('image', number, bytes(1_000_000))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(20, 220):
            writer.write('image', number, bytes(1_000_000))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 30_000  # kB; 200 MB were written


def test_empty_messages_have_every_field():
    types = message_types([MARKER, 'liquid_policy_msgs/msg/ActionDistribution'])
    odometry = new_message(types, 'nav_msgs/msg/Odometry')
    assert odometry.pose.covariance.shape == (36,) and odometry.child_frame_id == ''
    proposal = new_message(types, 'liquid_policy_msgs/msg/ActionDistribution', horizon=3)
    assert proposal.horizon == 3 and proposal.means.dtype == np.float32
    for name in ('sensor_msgs/msg/CameraInfo', 'diagnostic_msgs/msg/DiagnosticArray', MARKER,
                 'liquid_policy_msgs/msg/ActionDistribution'):
        message = new_message(types, name)
        again = types.deserialize_cdr(types.serialize_cdr(message, name), name)
        assert type(again) is type(message)
    with pytest.raises(ValueError, match="expected fields.*'no'"):
        new_message(types, MARKER, no=1)
