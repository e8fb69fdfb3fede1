"""What the learner draws: right labels, right chunks, streams that miss nothing."""

import errno
import os
import resource
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from liquid_trainer import cache  # noqa: E402
from liquid_trainer.cache import (  # noqa: E402
    DEPTH_UNIT,
    StoredEpisode,
    StoredEpisodes,
    load_stored,
    store_depth,
    write_stored,
)
from liquid_trainer.windows import Demonstrations, Streams, split_episodes  # noqa: E402


def _episode(number, ticks=50, gap=None):
    times = np.arange(ticks) / 100
    if gap is not None:
        times[gap:] += 0.1
    images = max(1, ticks // 3)
    stamps = np.arange(images) * 0.03
    return StoredEpisode(
        name=f'e{number}', times=times, vectors=np.full((ticks, 2), number, np.float32),
        image_index=np.minimum(np.arange(ticks) // 3, images - 1) - (np.arange(ticks) < 2),
        image_times=stamps, colors=np.full((images, 4, 4, 3), number, np.uint8),
        depths=np.full((images, 4, 4), 1000 * number, np.uint16),
        actions=(100.0 * number + np.arange(ticks))[:, None].astype(np.float32),
        targets=np.full((ticks, 1), np.nan, np.float32))


def test_chunk_is_the_future_and_stops_at_the_end():
    data = Demonstrations([_episode(0), _episode(1)])
    chunk, inside = data.chunks(np.array([3, 46, 50]), horizon=3, dt=0.02)
    assert chunk[..., 0].tolist() == [[3, 5, 7], [46, 48, 49], [100, 102, 104]]
    assert inside.tolist() == [[True] * 3, [True, True, False], [True] * 3]


def test_chunk_does_not_reach_over_a_gap():
    data = Demonstrations([_episode(0, gap=20)])
    chunk, inside = data.chunks(np.array([17]), horizon=3, dt=0.02)
    assert inside.tolist() == [[True, True, False]]
    assert chunk[0, :2, 0].tolist() == [17, 19]


def test_elapsed_times_are_those_of_the_stamps():
    data = Demonstrations([_episode(0, gap=20), _episode(1)], tick=0.01)
    assert data.elapsed[[0, 1, 20, 50]] == pytest.approx([0.01, 0.01, 0.11, 0.01])


def test_image_label_is_of_the_images_own_time():
    data = Demonstrations([_episode(0), _episode(1)])
    # Image 5 is stamped 0.15 s and first used at tick 15 here; images of episode 1 follow.
    row = int(np.flatnonzero(data.frame_images == 5)[0])
    assert (data.frame_stamped[row], data.frame_used[row]) == (15, 15)
    row = int(np.flatnonzero(data.frame_images == 16 + 5)[0])
    assert data.frame_stamped[row] == 50 + 15
    colors, depths = data.read_images(np.array([0, 16]))
    assert colors[:, 0, 0, 0].tolist() == [0, 1]
    assert depths[:, 0, 0] == pytest.approx([0.0, 1000 * DEPTH_UNIT])


def test_streams_carry_on_where_they_stopped_and_see_everything():
    data = Demonstrations([_episode(i, ticks=n) for i, n in enumerate((50, 37, 61))])
    streams = Streams(data, batch=4, length=10, seed=3)
    last, seen = np.full(4, -1), set()
    for _ in range(60):
        ticks, valid, fresh = streams.draw()
        follows = ticks[:, 0] == last + 1
        assert np.all(fresh | follows)
        assert np.all(np.diff(ticks, axis=1)[valid[:, 1:]] == 1)
        starts = np.isin(ticks[:, 0], data.bounds[:-1])
        assert np.all(starts[fresh] | (last[fresh] < 0))
        last = ticks[:, -1]
        seen |= set(ticks[valid].tolist())
    assert seen == set(range(data.ticks))


def test_streams_go_on_from_a_saved_state():
    data = Demonstrations([_episode(i) for i in range(3)])
    one = Streams(data, batch=4, length=10, seed=3)
    for _ in range(7):
        one.draw()
    other = Streams(data, batch=4, length=10, seed=3)
    other.restore(one.state())
    for _ in range(20):
        for left, right in zip(one.draw(), other.draw(), strict=True):
            assert np.array_equal(left, right)


def test_split_keeps_episodes_whole_and_is_repeatable():
    names = [f'e{i}' for i in range(20)]
    learned, held = split_episodes(names, 0.1, seed=1)
    assert len(held) == 2 and sorted(learned + held) == list(range(20))
    assert (learned, held) == split_episodes(names, 0.1, seed=1)
    assert split_episodes(names, 0.1, seed=2) != (learned, held)
    assert split_episodes(['only'], 0.5, seed=0) == ([0], [])


def test_parts_of_one_demonstration_stay_together():
    """Else it would be scored on what lies between two things it has learned."""
    names = [f'bag/{i // 3}' for i in range(30)]
    learned, held = split_episodes(names, 0.3, seed=0)
    assert len(held) == 9 and sorted(learned + held) == list(range(30))
    assert not {names[i] for i in learned} & {names[i] for i in held}
    assert split_episodes(['one', 'one'], 0.5, seed=0) == ([0, 1], [])


def test_a_decoded_bag_that_somebody_may_be_reading_stays(tmp_path):
    """Two trainings that start together decode the same bag; the second one to end gives way."""
    write_stored([_Read(_episode(1))], tmp_path / 'bag')
    stored = next(load_stored(tmp_path / 'bag'))
    before = (tmp_path / 'bag' / '00000' / 'colors.npy').stat()
    assert write_stored([_Read(_episode(1))], tmp_path / 'bag') == 1
    assert (tmp_path / 'bag' / '00000' / 'colors.npy').stat().st_ino == before.st_ino
    assert stored.name == next(load_stored(tmp_path / 'bag')).name
    # What a full disk or an unreadable bag ends leaves nothing behind.
    def broken():
        yield _Read(_episode(2))
        raise OSError('no space left')
    with pytest.raises(OSError, match='no space'):
        write_stored(broken(), tmp_path / 'other')
    assert [path.name for path in tmp_path.iterdir()] == ['bag']


def test_depth_is_kept_to_a_tenth_of_a_millimetre():
    depths = np.array([0.0, np.nan, np.inf, -1.0, 0.12345, 2.9999], np.float32)
    back = store_depth(depths) * DEPTH_UNIT
    assert back[:4].tolist() == [0, 0, 0, 0]
    assert back[4:] == pytest.approx([0.12345, 2.9999], abs=DEPTH_UNIT / 2 + 1e-7)


class _Read:
    """What the bag reader gives, as far as the cache looks at it."""

    demonstration = 0

    def __init__(self, episode):
        self.__dict__.update(episode.__dict__)
        self.depths = episode.depths * np.float32(DEPTH_UNIT)
        self.stamps = np.round(episode.times * 1e9).astype(np.int64) + 10**18
        self.image_stamps = np.round(episode.image_times * 1e9).astype(np.int64) + 10**18


def test_cache_gives_back_what_was_written(tmp_path):
    episodes = [_episode(1), _episode(2, ticks=30)]
    assert write_stored(map(_Read, episodes), tmp_path / 'bag') == 2
    for stored, known in zip(load_stored(tmp_path / 'bag'), episodes, strict=True):
        assert stored.name == known.name
        for name in ('times', 'vectors', 'image_index', 'image_times', 'colors', 'depths',
                     'actions', 'targets'):
            np.testing.assert_allclose(getattr(stored, name), getattr(known, name), atol=1e-9)


def test_numbers_in_files_are_those_in_memory(tmp_path):
    episodes = [_episode(1), _episode(2, ticks=30), _episode(3)]
    for number, episode in enumerate(episodes):
        write_stored([_Read(episode)], tmp_path / f'{number}')
    places = [tmp_path / f'{number}' / '00000' for number in range(3)]
    stored = StoredEpisodes([e.name for e in episodes], places)
    known, came = Demonstrations(episodes), Demonstrations(stored, scratch=tmp_path / 'scratch')
    for name in ('vectors', 'actions', 'targets', 'elapsed', 'images', '_times', 'frame_images',
                 'frame_used', 'frame_stamped', 'bounds', 'image_bounds'):
        np.testing.assert_allclose(getattr(came, name), getattr(known, name), atol=1e-7)
    assert came.names == known.names
    assert not list((tmp_path / 'scratch').iterdir())       # files without a name
    chosen = np.array([0, known.image_count - 1, 3])
    for ours, theirs in zip(came.read_images(chosen), known.read_images(chosen), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [e.name for e in stored[1:]] == [e.name for e in episodes[1:]]


def test_a_full_disk_is_named_before_anything_is_learned(tmp_path, monkeypatch):
    """Numbers in a file that has no room would end the process without a word."""
    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'posix_fallocate', full)
    with pytest.raises(OSError, match='No space left.*choose another output folder.*scratch'):
        Demonstrations([_episode(1)], scratch=tmp_path / 'scratch')


def test_more_episodes_than_files_may_be_open(tmp_path):
    """Image files are closed again: 450 episodes with two each, 850 of any kind allowed."""
    write_stored([_Read(_episode(1, ticks=20))], tmp_path / 'bag')
    place = tmp_path / 'bag' / '00000'
    stored = StoredEpisodes([f'{i}' for i in range(450)], 450 * [place])
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    now = max(int(name) for name in os.listdir('/proc/self/fd'))
    resource.setrlimit(resource.RLIMIT_NOFILE, (now + 850, before[1]))
    try:
        data = Demonstrations(stored)
        colors, _ = data.read_images(np.arange(data.image_count))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(colors) == data.image_count


def test_a_bag_is_read_for_its_digest_once_until_it_changes(tmp_path, monkeypatch):
    bag = tmp_path / 'bag'
    bag.mkdir()
    (bag / 'a.mcap').write_bytes(b'one')
    read = []
    plain = cache.bag_digest
    monkeypatch.setattr(cache, 'bag_digest', lambda *a: read.append(a) or plain(*a))

    def digest(interface='rate: 100'):
        return cache._Digests(tmp_path / 'digests.jsonl', interface).of(bag)

    first = digest()
    assert digest() == first == plain(bag, 'rate: 100') and len(read) == 1
    assert digest('rate: 50') != first and len(read) == 2
    (bag / 'a.mcap').write_bytes(b'other')
    assert digest() not in (first, digest('rate: 50'))
    # A process that was killed while it wrote costs a digest, no more.
    text = (tmp_path / 'digests.jsonl').read_text()
    (tmp_path / 'digests.jsonl').write_text(text[:-20])
    assert digest() == plain(bag, 'rate: 100')


def test_robot_without_a_depth_camera_has_depths_that_say_nothing(tmp_path):
    read = _Read(_episode(1))
    read.depths = np.empty((0, 0, 0), np.float32)
    write_stored([read], tmp_path / 'bag')
    stored = next(load_stored(tmp_path / 'bag'))
    assert stored.depths.shape == stored.colors.shape[:3] and not stored.depths.any()


@pytest.mark.parametrize('change, text', [
    ({'times': np.zeros(50)}, 'growing times'),
    ({'times': np.zeros(1)}, 'at least 2 ticks'),
    ({'actions': np.zeros((49, 1))}, 'expected 50 actions, came 49'),
    ({'actions': np.full((50, 1), np.nan)}, 'finite actions.*50 of 50 ticks'),
    ({'vectors': np.full((50, 2), np.inf)}, 'finite vectors'),
    ({'image_index': np.full(50, 99)}, 'image indices'),
    ({'depths': np.zeros((3, 4, 4), np.uint16)}, 'depths of shape'),
])
def test_episode_that_cannot_be_learned_from_is_refused(change, text):
    with pytest.raises(ValueError, match=text):
        StoredEpisode(**{**_episode(0).__dict__, **change})


def test_no_episode_is_refused():
    with pytest.raises(ValueError, match='at least one episode'):
        Demonstrations([])
