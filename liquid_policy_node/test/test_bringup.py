"""One list of nodes for all starters; the runner starts it, passes output on, ends it cleanly."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip('rclpy')

from bench_robot import until

from liquid_policy_node import bringup, runner
from liquid_policy_node.bringup import ArgumentError, NodeSpec


@pytest.fixture
def model(tmp_path):
    """A file that stands for a checkpoint; nothing here loads it."""
    path = tmp_path / 'model.safetensors'
    path.write_bytes(b'')
    return str(path)


def names(arguments, scenario='manipulator'):
    """Names of the nodes, without what only some machines have."""
    return [spec.name for spec in bringup.nodes(arguments, scenario)
            if spec.name != 'robot_state_publisher']


def test_arguments_choose_the_nodes(model):
    """Simulator, trainer and recorder come and go; recording needs no policy."""
    robot = ['safety', 'perception', 'policy']
    assert names({'checkpoint': model}) == ['simulator', *robot]
    assert names({'checkpoint': model, 'sim': 'false'}) == robot
    assert names({'checkpoint': model, 'trainer': 'true', 'record': 'true'}) == [
        'simulator', *robot, 'trainer', 'recorder']
    assert names({}, 'record') == ['simulator', 'safety', 'recorder']
    assert names({'sim': 'false'}, 'record') == ['recorder']


def test_every_node_gets_its_parameters(model):
    """From the robot's parameter file and from the arguments."""
    specs = {spec.name: spec for spec in bringup.nodes(
        {'checkpoint': model, 'use_sim_time': 'true', 'namespace': 'left', 'log_level': 'warn',
         'record': '/tmp/bags/one'})}
    configured = yaml.safe_load((Path(__file__).parents[1] / 'config' / 'manipulator.yaml')
                                .read_text())
    for name, spec in specs.items():
        assert spec.namespace == 'left' and spec.log_level == 'warn'
        for key, value in configured.get(name, {}).get('ros__parameters', {}).items():
            assert spec.parameters[key] == value
        if name != 'robot_state_publisher':
            assert spec.parameters['use_sim_time'] == (name != 'simulator')
    assert specs['simulator'].parameters['publish_clock'] is True
    assert specs['policy'].parameters['checkpoint'] == model
    assert specs['perception'].parameters['checkpoint'] == model
    assert specs['recorder'].parameters['folder'] == '/tmp/bags/one'
    expert = bringup.nodes({}, 'record')[0]
    assert expert.name == 'simulator' and expert.parameters['expert'] is True


@pytest.mark.parametrize(('arguments', 'words'), [
    ({'simm': 'true'}, 'unknown argument simm; there are sim, checkpoint'),
    ({'sim': 'maybe'}, "sim: expected true, false, came 'maybe'"),
    ({'log_level': 'loud'}, 'log_level: expected debug'),
    ({'sim': 'false', 'record': '/dev/null/bag'}, 'record: expected a folder that can be made')])
def test_wrong_arguments_are_refused(arguments, words):
    """The error names the argument and what there is."""
    with pytest.raises(ArgumentError, match=words):
        bringup.nodes(arguments)


def test_a_robot_or_checkpoint_that_is_not_there_is_named():
    """With the names of those that are."""
    with pytest.raises(FileNotFoundError, match="'no_robot'.*manipulator"):
        bringup.nodes({'robot': 'no_robot'})
    with pytest.raises(FileNotFoundError, match='nowhere'):
        bringup.nodes({'checkpoint': 'nowhere'})


def test_only_the_simulated_robot_is_simulated():
    with pytest.raises(ArgumentError, match='manipulator only, came six_axis_arm .*sim:=false'):
        bringup.nodes({'robot': 'six_axis_arm'}, 'record')


@pytest.mark.parametrize(('text', 'words'), [
    ('safety: [1, 2', 'expected parameters by node'),
    ('safety: 3', 'expected parameters by node'),
    ('- safety', 'expected parameters by node'),
    ('safty: {ros__parameters: {overshoot: 0.2}}', 'unknown safty, did you mean safety')])
def test_a_wrong_parameter_file_is_refused(tmp_path, text, words):
    """Else a robot would run with defaults its owner thinks are changed."""
    shipped = bringup.find_interface('manipulator')
    interface = tmp_path / 'own.interface.yaml'
    interface.write_text(shipped.read_text())
    (tmp_path / 'own.yaml').write_text(text)
    with pytest.raises(ArgumentError, match=f'own.yaml: {words}'):
        bringup.nodes({'robot': str(interface), 'sim': 'false'}, 'record')


def test_a_description_in_the_working_folder_does_not_take_over(tmp_path, monkeypatch):
    """The robot's limits are in it."""
    interface = bringup.find_interface('manipulator')
    beside = bringup.find_description('manipulator.urdf.xacro', interface)
    (tmp_path / 'manipulator.urdf.xacro').write_text('<robot name="other"/>')
    (tmp_path / 'mine.urdf').write_text('<robot name="mine"/>')
    monkeypatch.chdir(tmp_path)
    assert bringup.find_description('manipulator.urdf.xacro', interface) == beside
    assert bringup.find_description('mine.urdf', interface) == Path('mine.urdf')


def test_every_argument_is_described():
    """What `ros2 launch --show-args` and `run --help` show."""
    for arguments in bringup.ARGUMENTS.values():
        assert {argument.name for argument in arguments} >= {
            'sim', 'robot', 'record', 'use_sim_time', 'namespace', 'log_level'}
        assert all(len(argument.description) > 10 for argument in arguments)


def test_the_transport_profile_is_set_unless_the_user_has_one(model, monkeypatch):
    """Every node of every start path gets it."""
    monkeypatch.delenv('FASTRTPS_DEFAULT_PROFILES_FILE', raising=False)
    monkeypatch.delenv('FASTDDS_DEFAULT_PROFILES_FILE', raising=False)
    used = {spec.name: Path(spec.environment['FASTRTPS_DEFAULT_PROFILES_FILE'])
            for spec in bringup.nodes({'checkpoint': model})}
    assert used['simulator'].name == 'fastdds.xml'
    assert used['safety'].name == used['perception'].name == 'fastdds_small.xml'
    assert all('segment_size' in path.read_text() for path in used.values())
    # A shell that has the shipped profile for camera drivers changes nothing.
    monkeypatch.setenv('FASTRTPS_DEFAULT_PROFILES_FILE', str(used['simulator']))
    specs = {spec.name: spec for spec in bringup.nodes({'checkpoint': model})}
    assert specs['policy'].environment['FASTRTPS_DEFAULT_PROFILES_FILE'].endswith('small.xml')
    monkeypatch.setenv('FASTRTPS_DEFAULT_PROFILES_FILE', '/own.xml')
    assert not any(spec.environment for spec in bringup.nodes({'checkpoint': model}))


def test_both_ways_of_writing_arguments_mean_the_same(model):
    """`name:=value` as with ros2 launch, `--name value` as with other programs."""
    one = runner.parse([f'checkpoint:={model}', 'sim:=false', 'use_sim_time:=true'])
    two = runner.parse(['--checkpoint', model, '--sim', 'false', '--use-sim-time'])
    assert one == two and one[1]['use_sim_time'] == 'true'
    assert runner.parse(['--scenario', 'record', '--record'])[1]['record'] == 'true'
    with pytest.raises(ArgumentError, match='expected name:=value'):
        runner.parse(['sim'])


@pytest.fixture
def talkers(tmp_path, monkeypatch):
    """A package whose nodes are small programs: one talks until SIGINT, one ends soon."""
    package = tmp_path / 'talkers'
    package.mkdir()
    (package / '__init__.py').touch()
    (package / 'steady.py').write_text(
        'import signal, sys, time\n'
        'def end(*_):\n'
        '    print("ends", time.monotonic()); sys.exit(0)\n'
        'signal.signal(signal.SIGINT, end)\n'
        'print("argv", *sys.argv[1:])\n'
        'while True: time.sleep(0.05)\n')
    (package / 'deaf.py').write_text(
        'import signal, time\n'
        'signal.signal(signal.SIGINT, signal.SIG_IGN)\n'
        'print("ready")\n'
        'while True: time.sleep(0.05)\n')
    (package / 'brief.py').write_text('print("over")\nraise SystemExit(3)\n')
    monkeypatch.setenv('PYTHONPATH', f'{tmp_path}{os.pathsep}{os.environ.get("PYTHONPATH", "")}')
    monkeypatch.syspath_prepend(str(tmp_path))


def test_the_runner_starts_names_and_ends_in_order(talkers):
    """Parameters and names arrive; who proposes ends first, the robot last."""
    lines = []
    specs = [NodeSpec('talkers', 'steady', name, 'left', {'period': 0.5}, stage=stage)
             for name, stage in (('robot', 2), ('safety', 1), ('policy', 0))]
    started = runner.Runner(specs, lambda name, line: lines.append((name, line)))
    started.start()
    assert until(lambda: len(lines) == 3)
    for name, line in lines:
        assert f'__node:={name}' in line and '__ns:=/left' in line
    assert started.poll() == {'robot': None, 'safety': None, 'policy': None}
    assert started.stop() == {'robot': 0, 'safety': 0, 'policy': 0}
    ended = sorted((float(line.split()[1]), name) for name, line in lines if 'ends' in line)
    assert [name for _, name in ended] == ['policy', 'safety', 'robot']


def test_a_node_that_does_not_listen_is_ended_anyway(talkers):
    """SIGINT, then SIGTERM."""
    lines = []
    started = runner.Runner([NodeSpec('talkers', 'deaf', 'deaf')],
                            lambda name, line: lines.append(line))
    started.start()
    assert until(lambda: lines)
    assert started.stop(patience=0.3) == {'deaf': -signal.SIGTERM}


def test_the_end_of_a_node_is_noticed(talkers):
    """With its exit code."""
    started = runner.Runner([NodeSpec('talkers', 'steady', 'steady'),
                             NodeSpec('talkers', 'brief', 'brief')], lambda name, line: None)
    started.start()
    assert until(started.ended) == {'brief': 3}
    assert started.stop() == {'steady': 0, 'brief': 3}


def test_a_node_that_is_not_installed_is_named_before_anything_starts():
    """With what to do."""
    started = runner.Runner([NodeSpec('no_such_package', 'node', 'ghost')])
    with pytest.raises(FileNotFoundError, match='no_such_package.*colcon build'):
        started.start()
    assert not started.processes


def test_killing_the_runner_ends_its_nodes(talkers, tmp_path):
    """Even SIGKILL: a robot is not left with half of its nodes."""
    program = tmp_path / 'program.py'
    program.write_text(
        'import time\n'
        'from liquid_policy_node.bringup import NodeSpec\n'
        'from liquid_policy_node.runner import Runner\n'
        'runner = Runner([NodeSpec("talkers", "steady", "steady")])\n'
        'runner.start()\n'
        'print(runner.processes["steady"].pid, flush=True)\n'
        'time.sleep(60)\n')
    process = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    lines = [process.stdout.readline(), process.stdout.readline()]
    child = int(next(line for line in lines if line.strip().isdigit()))
    process.kill()
    process.wait()

    def gone():
        try:
            return Path(f'/proc/{child}/stat').read_text().split()[2] == 'Z'
        except OSError:
            return True
    assert until(gone, 5.0)
