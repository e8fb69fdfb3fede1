"""LeRobot data sets of both versions: there and back, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from small_dataset import LAYOUT, LENGTHS, dataset, episode, same

from liquid_trainer.formats.dataset import NANOSECONDS, FormatError
from liquid_trainer.formats.lerobot import read_lerobot
from liquid_trainer.formats.lerobot_writer import LeRobotSettings, write_lerobot
from liquid_trainer.formats.statistics import Statistics, merged

pa = pytest.importorskip('pyarrow', reason='docker/requirements-formats.txt is not installed')
parquet = pytest.importorskip('pyarrow.parquet')
VERSIONS = ('v2.1', 'v3.0')
CAMERA = 'observation.images.front'


def written(folder, version, images='png', **options):
    """Write the small data set without its depth camera."""
    write_lerobot(folder, LAYOUT, dataset(), LeRobotSettings(version, images, **options))
    return folder


def told(number):
    """Return an episode as LeRobot knows it: one state, one camera."""
    made = episode(number)
    return replace(made, vectors={'observation.state': np.concatenate(
        (made.vectors['state'], made.vectors['force']), 1)},
        frames={CAMERA: made.frames['front']})


@pytest.mark.parametrize('version', VERSIONS)
def test_pictures_without_loss_keep_everything(tmp_path, version):
    back = read_lerobot(written(tmp_path / 'a', version))
    assert (back.layout.robot, back.layout.rate) == ('tester', 20.0)
    (state,) = back.layout.observations
    assert state.names == ('shoulder', 'elbow', 'wrist.turn', 'push', 'pull')
    assert state.units == ('rad', 'rad', '1', 'N', 'N')
    assert back.layout.action == LAYOUT.action
    for number, found in enumerate(back):
        same(found, told(number))


@pytest.mark.parametrize('version', VERSIONS)
@pytest.mark.parametrize('codec', ['av1', 'h264'])
def test_video_keeps_numbers_exactly_and_colours_nearly(tmp_path, version, codec):
    pytest.importorskip('av')
    back = read_lerobot(written(tmp_path / 'a', version, 'video', codec=codec, quality=20))
    for number, found in enumerate(back):
        same(found, told(number), images=False)
        frames = np.stack(list(found.frames[CAMERA]()))
        wanted = np.stack(list(told(number).frames[CAMERA]()))
        assert frames.shape == wanted.shape
        # Half the colour's resolution, and quantisation; a frame off by one differs by far more.
        assert np.abs(frames.astype(float) - wanted).mean() < 2
        assert np.abs(frames[1:].astype(float) - wanted[:-1]).mean() > 8


def test_files_lie_where_lerobot_looks_for_them(tmp_path):
    pytest.importorskip('av')
    written(tmp_path / 'old', 'v2.1', 'video')
    written(tmp_path / 'new', 'v3.0', 'video')

    def files(name):
        return sorted(str(file.relative_to(tmp_path / name))
                      for file in (tmp_path / name).rglob('*') if file.is_file())

    assert files('old') == sorted([
        'meta/info.json', 'meta/stats.json', 'meta/tasks.jsonl', 'meta/episodes.jsonl',
        'meta/episodes_stats.jsonl',
        *(f'data/chunk-000/episode_{n:06d}.parquet' for n in range(3)),
        *(f'videos/chunk-000/{CAMERA}/episode_{n:06d}.mp4' for n in range(3))])
    assert files('new') == sorted([
        'meta/info.json', 'meta/stats.json', 'meta/tasks.parquet',
        'meta/episodes/chunk-000/file-000.parquet', 'data/chunk-000/file-000.parquet',
        f'videos/{CAMERA}/chunk-000/file-000.mp4'])


def test_columns_are_those_of_lerobot(tmp_path):
    written(tmp_path / 'a', 'v3.0')
    table = parquet.read_table(tmp_path / 'a' / 'data' / 'chunk-000' / 'file-000.parquet')
    assert table.column('index').to_pylist() == list(range(sum(LENGTHS)))
    assert table.column('frame_index').to_pylist() == [n for c in LENGTHS for n in range(c)]
    assert table.column('episode_index').to_pylist() == [n for n in range(3)
                                                         for _ in range(LENGTHS[n])]
    seconds = np.concatenate([np.arange(c) / 20.0 for c in LENGTHS]).astype(np.float32)
    np.testing.assert_array_equal(table.column('timestamp').to_numpy(), seconds)
    assert table.schema.field('action').type == pa.list_(pa.float32(), 4)
    rows = parquet.read_table(tmp_path / 'a/meta/episodes/chunk-000/file-000.parquet').to_pylist()
    assert [(r['dataset_from_index'], r['dataset_to_index']) for r in rows] == [
        (0, 12), (12, 19), (19, 28)]
    tasks = parquet.read_table(tmp_path / 'a' / 'meta' / 'tasks.parquet').to_pylist()
    assert tasks == [{'task_index': 0, 'task': 'task 0'}, {'task_index': 1, 'task': 'task 1'}]


def test_statistics_are_those_of_all_rows(tmp_path):
    written(tmp_path / 'a', 'v2.1')
    stats = json.loads((tmp_path / 'a' / 'meta' / 'stats.json').read_text())['action']
    actions = np.concatenate([episode(n).actions for n in range(3)]).astype(np.float64)
    np.testing.assert_allclose(stats['mean'], actions.mean(0), rtol=1e-9)
    np.testing.assert_allclose(stats['std'], actions.std(0), rtol=1e-9)
    np.testing.assert_array_equal(stats['max'], actions.max(0))
    assert stats['count'] == [28]


def test_merged_statistics_equal_those_of_the_whole():
    values = np.random.default_rng(0).normal(5, 2, (50, 3))
    whole = merged([Statistics.of(values[:7]), Statistics.of(values[7:20]),
                    Statistics.of(values[20:])])
    np.testing.assert_allclose(whole.mean, values.mean(0))
    np.testing.assert_allclose(whole.deviation, values.std(0))


def _edit(folder, change):
    file = folder / 'meta' / 'info.json'
    info = json.loads(file.read_text())
    change(info)
    file.write_text(json.dumps(info))


@pytest.mark.parametrize('change, text', [
    (lambda i: i.update(codebase_version='v1.6'), "codebase_version of .*, came 'v1.6'"),
    (lambda i: i.pop('codebase_version'), 'codebase_version of .*, came None'),
    (lambda i: i.pop('fps'), r"expected \['fps'\]"),
    (lambda i: i['features'].pop('action'), 'expected a feature action of numbers'),
    (lambda i: i['features'].pop('observation.state'), 'expected observations of'),
    (lambda i: i['features']['observation.state'].update(shape=[4], names=None),
     'observation.state: expected 4 numbers in each of 12 rows, came 60'),
    (lambda i: i['features']['action'].update(names=['a', 'a', 'b', 'c']),
     'action: expected a name of its own for each number'),
    (lambda i: i['features'][CAMERA].update(shape=[32, 48, 1]),
     r'expected colour images \(height, width, 3\), came \(32, 48, 1\)'),
    (lambda i: i['features'][CAMERA].update(info={'video.is_depth_map': True}),
     'observation.images.front: expected colour, came a depth video'),
    (lambda i: i['features'][CAMERA].update(shape=[16, 48, 3]),
     r'row 0: expected a picture of \(16, 48, 3\), came \(32, 48, 3\)'),
    (lambda i: i.update(total_episodes=4), 'expected 4 episodes as info.json says, came 3'),
    (lambda i: i['features'].update({'observation.more': {'dtype': 'float32', 'shape': [1]}}),
     r"expected the columns \['observation.more'\]"),
])
@pytest.mark.parametrize('version', VERSIONS)
def test_a_wrong_description_is_refused(tmp_path, version, change, text):
    _edit(written(tmp_path / 'a', version), change)
    with pytest.raises(FormatError, match=text):
        for found in read_lerobot(tmp_path / 'a'):
            list(found.frames[CAMERA]())


def _table(folder, change):
    file = min((folder / 'data').rglob('*.parquet'))
    parquet.write_table(change(parquet.read_table(file)), file)


def _with(name, values):
    return lambda table: table.set_column(table.column_names.index(name), name, [values])


@pytest.mark.parametrize('change, text', [
    (lambda t: t.slice(0, 11), 'expected 12 rows, as the list of episodes says, came 11'),
    (_with('action', pa.array([[1.0, 2.0, np.nan, 4.0]] * 12, pa.list_(pa.float32()))),
     'action: expected finite numbers, came nan of wrist.turn at step 0'),
    (_with('action', pa.array([[1.0, 2.0, 3.0, 4.0]] * 11 + [None], pa.list_(pa.float32()))),
     'action: expected values in every row, came 1 empty ones'),
    (_with('action', pa.array([[1.0, 2.0, 3.0, 4.0]] * 11 + [[1.0]], pa.list_(pa.float32()))),
     'action: expected 4 numbers in each of 12 rows, came 45'),
    (_with('stamp_ns', pa.array([0] * 12)), 'expected growing times, came a step back at step 1'),
    (lambda t: t.drop_columns(['timestamp']), r"expected the columns \['timestamp'\]"),
])
def test_a_bad_table_is_refused(tmp_path, change, text):
    _table(written(tmp_path / 'a', 'v2.1'), change)
    with pytest.raises(FormatError, match=text):
        read_lerobot(tmp_path / 'a')[0]


def test_missing_and_damaged_files_are_named(tmp_path):
    folder = written(tmp_path / 'a', 'v2.1')
    file = folder / 'data' / 'chunk-000' / 'episode_000001.parquet'
    content = file.read_bytes()
    file.write_bytes(content[:len(content) // 2])
    with pytest.raises(FormatError, match='episode_000001.parquet: expected a whole parquet file'):
        read_lerobot(folder)[1]
    file.unlink()
    with pytest.raises(FormatError, match='episode_000001.parquet: .*nothing of this name'):
        read_lerobot(folder)[1]
    (folder / 'meta' / 'episodes.jsonl').write_text('{"episode_index": 0}\n')
    with pytest.raises(FormatError, match='episode_index and length, came: KeyError'):
        read_lerobot(folder)
    with pytest.raises(FormatError, match='expected the description of a LeRobot data set'):
        read_lerobot(tmp_path)


def test_bad_videos_are_refused(tmp_path):
    pytest.importorskip('av')
    folder = written(tmp_path / 'a', 'v2.1', 'video')
    videos = sorted((folder / 'videos').rglob('*.mp4'))
    content = videos[1].read_bytes()
    videos[1].write_bytes(videos[2].read_bytes())   # 9 frames, where 7 belong
    assert len(list(read_lerobot(folder)[1].frames[CAMERA]())) == 7
    videos[2].write_bytes(content)                  # 7 frames, where 9 belong
    with pytest.raises(FormatError, match='expected 9 frames from 0 s on, came 7; .*cut off'):
        list(read_lerobot(folder)[2].frames[CAMERA]())
    videos[2].write_bytes(content[:len(content) // 2])
    with pytest.raises(FormatError, match='expected a whole video, came'):
        list(read_lerobot(folder)[2].frames[CAMERA]())
    videos[2].unlink()
    with pytest.raises(FormatError, match='expected a video, came nothing of this name'):
        read_lerobot(folder)[2]
    assert len(read_lerobot(folder, images=[])[2].frames) == 0
    _edit(folder, lambda info: info.update(fps=40))
    with pytest.raises(FormatError, match='expected a frame at 0.0250 s, came one at 0.0500 s'):
        list(read_lerobot(folder)[0].frames[CAMERA]())


def test_names_of_all_kinds_are_read(tmp_path):
    for names, wanted in (
            ([['shoulder', 'elbow', 'turn', 'grip']], ('shoulder', 'elbow', 'turn', 'grip')),
            ({'motors': ['a', 'b', 'c', 'd']}, ('a', 'b', 'c', 'd')),
            (None, ('action_0', 'action_1', 'action_2', 'action_3')),
            (['axis'], ('action_0', 'action_1', 'action_2', 'action_3'))):
        folder = written(tmp_path / str(wanted[0]) / str(names)[:6], 'v3.0')
        _edit(folder, lambda info, names=names: info['features']['action'].update(names=names))
        assert read_lerobot(folder).layout.action.names == wanted


def test_without_our_stamps_times_are_those_of_the_data_set(tmp_path):
    folder = written(tmp_path / 'a', 'v2.1')
    _edit(folder, lambda info: info['features'].pop('stamp_ns'))
    stamps = read_lerobot(folder)[1].stamps
    steps = np.arange(7) / 20.0
    np.testing.assert_array_equal(stamps - stamps[0], np.round(
        steps.astype(np.float32).astype(np.float64) * NANOSECONDS).astype(np.int64))


def test_what_lerobot_cannot_hold_is_refused(tmp_path):
    with pytest.raises(FormatError, match='expected a whole number of steps per second'):
        write_lerobot(tmp_path / 'a', replace(LAYOUT, rate=12.5), dataset())
    with pytest.raises(FormatError, match=r"version: expected one of .*, came 'v2.0'"):
        LeRobotSettings('v2.0')
    bad = replace(episode(1), frames={**episode(1).frames, 'front': lambda: iter(())})
    with pytest.raises(FormatError, match='front: expected 7 images, one per step, came 0'):
        write_lerobot(tmp_path / 'a', LAYOUT, [episode(0), bad], LeRobotSettings(images='png'))
    assert not list(tmp_path.iterdir())
