"""The demo, as a user runs it: nodes as processes, table, recording, report, exit codes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip('rclpy')
pytest.importorskip('liquid_policy_msgs.msg')

from sensor_msgs.msg import JointState  # noqa: E402

from liquid_policy_sim import demo  # noqa: E402
from liquid_policy_sim.monitor import Seen  # noqa: E402
from liquid_sim.run_record import read_run  # noqa: E402
from liquid_sim.run_statistics import parts, topic_figures  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
# Longest time a demo of one part may take on a machine that is busy with something else [s].
PATIENCE = 150


def environment(**more):
    """Return the environment of a demo that meets nobody else's."""
    folders = [str(ROOT / name) for name in ('liquid_policy_node', 'liquid_trainer_node',
                                             'liquid_policy_sim')]
    return {**os.environ, 'PYTHONUNBUFFERED': '1',
            'PYTHONPATH': os.pathsep.join([*folders, os.environ.get('PYTHONPATH', '')]), **more}


def start(*arguments, cwd=None):
    return subprocess.Popen(
        [sys.executable, '-m', 'liquid_policy_sim.demo', *arguments], cwd=cwd or ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment())


def read_until(process, text):
    """Return what the demo printed up to a text."""
    printed = ''
    for line in process.stdout:
        printed += line
        if text in line:
            return printed
    raise AssertionError(f'the demo ended without {text!r}:\n{printed}')


def test_demo_picks_a_part_and_leaves_table_recording_and_report(tmp_path):
    output = tmp_path / 'out'
    process = start('--expert', '--parts', '1', '--output', str(output))
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, printed
    assert re.search(r'parts picked +1 \(100% of those decided\)', printed), printed
    assert re.search(r'safety: action distribution → command +\d', printed)
    assert re.search(r'first part in the bin \d+\.\d s after the command', printed)
    run = read_run(output / 'recording')
    assert parts(run).picked == 1
    figures = {topic.name: topic for topic in topic_figures(run)}
    for name in ('joint_states', 'camera/color/image_raw', 'demonstration/arm_velocity',
                 'safety_status', 'scene/image/compressed', 'arm_velocity_controller/commands'):
        assert figures[name].messages > 20, f'{name} is not in the recording'
    assert figures['joint_states'].counted
    page = (output / 'report.html').read_text('utf-8')
    assert '<b>1 / 1<small>100%</small></b>' in page
    assert 'First part in the bin' in page
    assert 100_000 < len(page) < 15_000_000
    assert {path.stem for path in (output / 'logs').iterdir()} >= {'simulator', 'safety'}


def test_learned_policy_is_timed_from_image_to_command(tmp_path, checkpoint):
    output = tmp_path / 'out'
    process = start('--checkpoint', checkpoint, '--seconds', '5', '--output', str(output))
    printed, _ = process.communicate(timeout=PATIENCE)
    # An untrained policy picks nothing, and the demo says so.
    assert process.returncode == 1 and 'error: no part was picked' in printed, printed
    number = r'[\d.,]+'
    for row in (rf'perception: image → features +{number} +{number} +{number}',
                rf'policy: joint state → action distribution +{number} +{number} +{number}',
                rf'image stamp → command on the wire +{number} +{number} +{number}',
                rf'perception: encode one image +{number} +{number}',
                rf'policy: one step +{number} +{number}',
                rf'part position error p50 / p99 \[mm\] +{number} / {number}',
                rf'perception \+ policy \+ safety +{number} +{number}'):
        assert re.search(row, printed), f'no row {row!r} in\n{printed}'
    run = read_run(output / 'recording')
    assert run.policy.weights.sum(axis=1) == pytest.approx(1.0, abs=1e-4)
    assert run.estimate.names == ('part_x', 'part_y', 'part_z', 'part_speed')


def test_interrupt_reports_on_what_was_recorded_so_far(tmp_path):
    process = start('--expert', '--output', str(tmp_path / 'out'))
    read_until(process, 'parts: seen')
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, printed
    assert 'Traceback' not in printed
    assert re.search(r'commands issued +\d+', printed), printed
    assert (tmp_path / 'out' / 'report.html').exists()


def test_node_that_dies_ends_the_demo_with_an_error(tmp_path):
    process = start('--expert', '--output', str(tmp_path / 'out'))
    read_until(process, 'parts: seen')
    children = Path(f'/proc/{process.pid}/task').glob('*/children')
    pids = [int(pid) for path in children for pid in path.read_text().split()]
    safety = next(pid for pid in pids if 'safety_node' in Path(
        f'/proc/{pid}/cmdline').read_text('utf-8'))
    os.kill(safety, signal.SIGKILL)
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert 'error: safety ended with exit code -9' in printed
    assert 'parts seen' in printed    # what was recorded is reported all the same


@pytest.mark.parametrize(('content', 'text'), [
    (None, 'none.safetensors'), (b'not a checkpoint', 'bad.safetensors')])
def test_unusable_checkpoint_says_what_to_do(tmp_path, capsys, content, text):
    path = tmp_path / text
    if content is not None:
        path.write_bytes(content)
    assert demo.main(['--checkpoint', str(path), '--output', str(tmp_path / 'out')]) == 2
    error = capsys.readouterr().err
    assert text in error and 'make train' in error and 'ARGS=--expert' in error
    assert 'Traceback' not in error
    assert not (tmp_path / 'out').exists()


def test_demo_refuses_to_share_its_topics_with_another_robot(tmp_path, capsys, ros):
    node = ros.create_node('other_robot')
    try:
        node.create_publisher(JointState, 'joint_states', 10)
        assert demo.main(['--expert', '--output', str(tmp_path / 'out')]) == 2
    finally:
        node.destroy_node()
    error = capsys.readouterr().err
    assert 'another robot or demo publishes joint_states' in error and 'ROS_DOMAIN_ID' in error
    assert not (tmp_path / 'out').exists()


def plan(*arguments):
    return demo.parse(['--output', '/nowhere/out', *arguments])


def test_demo_ends_with_the_last_part_or_the_time():
    ten = plan('--parts', '10')
    assert not demo.finished(ten, Seen(seen=10, picked=8, missed=1), 30.0)
    assert demo.finished(ten, Seen(seen=10, picked=8, missed=2), 30.0)
    assert demo.finished(ten, Seen(), 201.0)    # nothing happens for 20 s per part
    timed = plan('--seconds', '5')
    assert not demo.finished(timed, Seen(picked=100), 4.9)
    assert demo.finished(timed, Seen(), 5.1)


def test_verdict_names_what_failed():
    assert demo.verdict(plan(), demo.Result(died='policy ended with exit code 1'), None) == (
        'policy ended with exit code 1')
    assert demo.verdict(plan(), demo.Result(), None) == 'nothing was recorded'


@pytest.mark.parametrize(('arguments', 'text'), [
    (['--parts', '0'], 'expected 1 or more'), (['--seconds', '-1'], 'expected more than 0'),
    (['--parts', '3', '--seconds', '3'], 'not allowed with')])
def test_wrong_arguments_are_refused(arguments, text, capsys):
    with pytest.raises(SystemExit) as error:
        demo.parse(arguments)
    assert error.value.code == 2
    assert text in capsys.readouterr().err


def test_output_is_never_overwritten(tmp_path, capsys):
    (tmp_path / 'precious').write_text('x')
    with pytest.raises(SystemExit):
        demo.parse(['--output', str(tmp_path)])
    assert 'exists and is not empty' in capsys.readouterr().err


def test_line_shows_what_is_known():
    seen = Seen(seen=3, picked=2, missed=1, nodes={
        'perception': {'features.rate_hz': '30.02'},
        'safety': {'commands.rate_hz': '99.7', 'image_to_command.p50_ms': '6.12',
                   'image_to_command.p99_ms': '9.04', 'info.state': 'PASSING'}})
    assert seen.line() == ('parts: seen 3, picked 2, missed 1 | images 30, commands 100 Hz | '
                           'image to command 6.1 / 9.0 ms | safety passing')
    assert Seen().line() == 'parts: seen 0, picked 0, missed 0'


def test_command_time_is_before_now_and_not_long_ago():
    assert 0 <= time.time() - demo.command_time() < 3600
