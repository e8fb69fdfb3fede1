"""The report of a recording whose figures are known beforehand."""

import base64
import json
import re

import cv2
import numpy as np
import pytest
import synthetic_run
from rosbags.rosbag2 import StoragePlugin

from liquid_sim import pictures, report, run_statistics, run_table
from liquid_sim.run_record import RecordError, read_run
from liquid_trainer import plots

PLAN = synthetic_run.Plan(seconds=3.0, image_delay=1, feature_delay=2, policy_delay=1,
                          safety_delay=2, lost_images=(20, 21, 50), pictures=True)


@pytest.fixture(scope='module')
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp('bags') / 'run'
    return path, synthetic_run.write(path, PLAN)


@pytest.fixture(scope='module')
def run(recording):
    return read_run(recording[0])


def content(text):
    """Return the data the page's script reads."""
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)
    return json.loads(found.group(1))


def numbers(text):
    return np.frombuffer(base64.b64decode(text), '<f4')


def test_stage_latencies_are_those_that_were_put_in(run):
    found = {stage.name: stage for stage in run_statistics.stages(run)}
    # Stamps of today are good to 256 ns in float64.
    for name, delay in (('camera: image stamp → image sent', 1e-3),
                        ('perception: image → features', 2e-3),
                        ('policy: joint state → action distribution', 1e-3),
                        ('safety: action distribution → command', 2e-3)):
        assert found[name].latencies == pytest.approx(np.full(len(found[name].latencies), delay),
                                                      abs=1e-6)


def test_image_stamp_to_command_is_timed_from_each_image_to_the_first_command(run, recording):
    stamps = np.array([stamp for index, stamp in enumerate(recording[1].images)
                       if index not in PLAN.lost_images])
    ready = stamps + 3_000_000    # image and feature delay
    tick = 10_000_000
    step = synthetic_run.START + -(-(ready - synthetic_run.START) // tick) * tick
    expected = (step + 3_000_000 - stamps) / 1e9   # policy and safety delay
    inside = step < synthetic_run.START + recording[1].ticks * tick
    found = next(stage for stage in run_statistics.stages(run)
                 if stage.name == run_statistics.LAST_STAGE)
    assert found.latencies == pytest.approx(expected[inside], abs=1e-6)


def test_losses_are_counted_against_the_publisher(run):
    figures = {topic.name: topic for topic in run_statistics.topic_figures(run)}
    color, joints = figures['camera/color/image_raw'], figures['joint_states']
    assert (color.lost, color.counted, color.messages) == (3, True, 87)
    assert (joints.lost, joints.counted) == (0, True)
    assert joints.rate == pytest.approx(100.0)
    assert (figures['features'].lost, figures['features'].counted) == (3, False)
    assert figures['ground_truth/part'].lost is None
    assert color.longest_gap == pytest.approx(0.1, abs=1e-6)


def test_pose_error_is_the_distance_put_in(run):
    error = run_statistics.pose_error(run)
    # (3, 4, 0) mm is 5 mm, at each estimate but the last (2 ms after the last ground truth) and
    # those in the jump to the next part, where truth is not a line.
    assert np.median(error.errors) == pytest.approx(5e-3, abs=1e-9)
    assert np.median(error.speed_errors) == pytest.approx(0.01, abs=1e-9)


def test_safety_and_parts_are_counted(run, recording):
    safety = run_statistics.safety_figures(run)
    assert (safety.commands, safety.interventions) == (300, 30)
    assert safety.constraints == [('velocity/elbow_joint', 30)]
    assert safety.shares['limiting'] == pytest.approx(0.1)
    parts = run_statistics.parts(run)
    assert (parts.seen, parts.picked, parts.missed, parts.success) == (3, 2, 0, 1.0)
    assert len(run_statistics.count_stamps(run, 'picked')) == recording[1].picked


def test_table_prints_these_figures(run):
    text = run_table.text(run_table.blocks(run))
    assert re.search(r'parts picked +2 \(100% of those decided\)', text)
    assert re.search(r'part position error p50 / p99 \[mm\] +5\.0 / ', text)
    assert re.search(r'perception: image → features +2\d\.\d +2\.00 +2\.00', text)
    assert re.search(r'camera/color/image_raw +87 .* 3$', text, re.M)
    assert re.search(r'interventions +30 \(10\.0 %\)', text)
    assert re.search(r'perception: encode one image +0\.050 +0\.090', text)
    assert re.search(r'perception \+ policy \+ safety +300 +75', text)


def test_namespace_and_sqlite3_give_the_same_figures(run, tmp_path):
    synthetic_run.write(tmp_path / 'bag', synthetic_run.Plan(
        **{**PLAN.__dict__, 'namespace': '/robot_7'}), StoragePlugin.SQLITE3)
    other = read_run(tmp_path / 'bag')
    assert run_table.text(run_table.blocks(other)) == run_table.text(run_table.blocks(run))


def test_simulated_time_gives_no_date_and_no_latency_of_stamps(tmp_path):
    synthetic_run.write(tmp_path / 'bag', synthetic_run.Plan(seconds=1.0, start=10**9))
    run = read_run(tmp_path / 'bag')
    assert run.simulated_time
    names = [stage.name for stage in run_statistics.stages(run)]
    assert 'camera: image stamp → image sent' not in names
    text = report.page(run)
    assert '1970' not in text and 'latencies are in simulated time' in text


def test_page_is_complete_in_itself_and_holds_the_figures(run):
    text = report.page(run)
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert 'http://' not in text and 'https://' not in text
    assert '@DATA@' not in text and '@STYLE@' not in text
    assert '<b>2 / 2<small>100%</small></b>' in text
    assert '<b>5.0<small>mm</small></b>' in text
    data = content(text)
    assert data['duration'] == pytest.approx(run.duration)
    assert len(data['events']) == 2
    assert [len(data['bands'][name]['spans']) for name in ('limiting', 'braking')] == [30, 0]
    plots = {(group['title'].split(':')[0], plot['title']): plot
             for group in data['groups'] for plot in group['plots']}
    commands = plots['Commands and what became of them', 'elbow_joint']['series']
    issued = next(line for line in commands if line['name'] == 'issued')
    assert numbers(issued['y']) == pytest.approx(run.safety.issued.column('elbow_joint'),
                                                 abs=1e-6)
    share = next(line for line in plots['Latency', 'share of messages below']['series']
                 if line['name'].startswith('perception'))
    assert numbers(share['x']) == pytest.approx(np.full(87, 2.0), abs=1e-3)
    assert numbers(share['y'])[-1] == 100.0


def test_pictures_show_what_the_camera_saw(run):
    data = content(report.page(run))
    frames = {kind: [cv2.imdecode(np.frombuffer(base64.b64decode(frame), np.uint8), 1)
                     for frame in views['frames']] for kind, views in data['pictures'].items()}
    assert frames['scene'][0].shape == (240, 320, 3)
    assert frames['color'][10].shape == frames['depth'][10].shape == (96, 96, 3)
    # 10 pictures a second at most, though the camera gives 30.
    assert len(frames['color']) <= 31
    index = len(frames['color']) // 2
    moment = data['pictures']['color']['times'][index]
    x = int(96 * (round(moment * 30) % 90) / 90)
    # BGR of the orange part (220, 130, 40); JPEG is not exact.
    assert frames['color'][index][50, x].astype(int) == pytest.approx([40, 130, 220], abs=40)


def test_colours_of_depth_are_red_near_blue_far_black_unknown():
    depth = np.array([[0.02, 1.48, 0.0, np.nan]], np.float32)
    red, blue, unknown, missing = pictures.colorize(depth, (0.0, 1.5))[0]
    assert red[0] > 100 > red[2] and blue[2] > blue[0]
    assert not unknown.any() and not missing.any()


def test_rows_with_padding_are_cut():
    pixels = np.arange(2 * 8, dtype=np.uint8)
    assert pictures._rows(pixels, 2, 2, 8, np.uint8, 3)[1, 1].tolist() == [11, 12, 13]
    with pytest.raises(ValueError, match='expected 4 rows of at least 6 bytes, got step 8'):
        pictures._rows(pixels, 4, 2, 8, np.uint8, 3)


def test_pictures_are_made_to_fit(run):
    kept = report.fitted(run.pictures, 40_000)
    size = sum(len(picture.data) for some in kept.values() for picture in some)
    assert size <= 44_000
    assert all(some[0].stamp == run.pictures[kind][0].stamp for kind, some in kept.items())


def test_thinning_keeps_peaks():
    y = np.zeros(100_000)
    y[56_789] = 5.0
    x, thin = plots.thinned(np.arange(100_000.0), y, 1000)
    assert len(thin) <= 1000
    assert x[thin.argmax()] == 56_789 and thin.max() == 5.0


def test_spans_join_neighbours_and_end_in_silence():
    times = np.array([0.0, 0.01, 0.02, 0.03, 5.0])
    inside = np.array([False, True, True, False, True])
    assert plots.spans(times, inside) == [[0.01, 0.03], [5.0, 5.1]]


def test_recording_without_robot_topics_still_gives_a_page(tmp_path):
    out = synthetic_run.Recording(tmp_path / 'bag')
    for tick in range(5):
        out.write('joint_states', 10**9 + tick * 10**7, 'sensor_msgs/msg/JointState',
                  header=out.header(10**9 + tick * 10**7), name=['a'], position=np.zeros(1))
    out.close()
    text = report.page(read_run(tmp_path / 'bag'))
    assert 'Joint positions' in text


def test_demonstrations_are_drawn_without_a_safety_node(tmp_path):
    out = synthetic_run.Recording(tmp_path / 'bag')
    for tick in range(50):
        stamp = 10**18 + tick * 10**7
        out.write('joint_states', stamp, 'sensor_msgs/msg/JointState', header=out.header(stamp),
                  name=['first', 'second'], position=np.zeros(2), velocity=np.full(2, 0.2))
        out.write('demonstration/arm_velocity', stamp, 'std_msgs/msg/Float64MultiArray',
                  data=np.array([0.1 * tick, 0.0]))
        twist = out.make('geometry_msgs/msg/Twist', linear=out.make(
            'geometry_msgs/msg/Vector3', x=0.3))
        out.write('demonstration/base', stamp, 'geometry_msgs/msg/TwistStamped',
                  header=out.header(stamp), twist=twist)
    out.close()
    groups = content(report.page(read_run(tmp_path / 'bag')))['groups']
    plots = {plot['title']: plot for group in groups for plot in group['plots']
             if group['title'].startswith('Commands')}
    assert list(plots) == ['first', 'second', 'base_v', 'base_w']
    shown = {line['name']: numbers(line['y']) for line in plots['first']['series']}
    assert shown['demonstrated'] == pytest.approx(0.1 * np.arange(50), abs=1e-6)
    assert shown['measured'] == pytest.approx(np.full(50, 0.2))
    assert numbers(plots['base_v']['series'][0]['y']) == pytest.approx(np.full(50, 0.3))


def test_recording_cut_off_by_a_crash_is_reported_as_far_as_it_goes(recording, tmp_path):
    path = next(recording[0].glob('*.mcap'))
    (tmp_path / 'cut.mcap').write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    run = read_run(tmp_path / 'cut.mcap')
    assert 0 < len(run.positions) < recording[1].ticks
    assert 'cut.mcap was cut off' in report.page(run)


def test_bad_recordings_are_named(tmp_path, capsys):
    with pytest.raises(RecordError, match='came nothing of this name'):
        read_run(tmp_path / 'none')
    (tmp_path / 'folder').mkdir()
    with pytest.raises(RecordError, match='expected a rosbag2 folder'):
        read_run(tmp_path / 'folder')
    out = synthetic_run.Recording(tmp_path / 'empty')
    out.close()
    with pytest.raises(RecordError, match='came an empty bag'):
        read_run(tmp_path / 'empty')
    assert report.main([str(tmp_path / 'none')]) == 1
    assert capsys.readouterr().err.startswith('report: ')


def test_command_line_writes_the_report(recording, tmp_path, capsys):
    output = tmp_path / 'out' / 'report.html'
    assert report.main([str(recording[0]), '-o', str(output)]) == 0
    assert 100_000 < output.stat().st_size < 15_000_000
    printed = capsys.readouterr().out
    assert 'parts seen' in printed and str(output) in printed
    assert [path.name for path in output.parent.iterdir()] == ['report.html']
