"""Every command in README works: it is run here, in small, or checked as far as a machine can."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / 'README.md').read_text(encoding='utf-8')
ENVIRONMENT = {
    **os.environ, 'ROS_DOMAIN_ID': str(20 + (os.getpid() + 7) % 80),
    'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST', 'OMP_NUM_THREADS': '1',
}
IN_ENVIRONMENT = 'docker/in_environment.sh'

# Words that a test replaces so that a command takes seconds, by the command's executable. The
# folder runs/ becomes a temporary one.
SMALLER = {
    'generate': {'--episodes': '3', '+': '--parts 1 --processes 1'},
    'train': {'--minutes': '9', '+': '--stage-steps 1,1,1 --threads 1 --held-out 0.34'},
    'evaluate': {'--parts': '1', '--seeds': '0', '+': '--processes 1'},
    'render': {'+': '--seconds 1 --rate 4 --height 90'},
    'run': {},
    'report': {},
    'check_bags': {},
    'check_interface': {},
}


def commands() -> list[str]:
    """
    Commands of README.

    :return: lines of its bash blocks, in order.
    """
    blocks = re.findall(r'```bash\n(.*?)```', README, re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def own_commands() -> list[str]:
    """
    Commands that run in the workspace's environment.

    :return: those without the wrapper, such as `generate --output ...`.
    """
    return [line.removeprefix(IN_ENVIRONMENT).strip() for line in commands()
            if line.startswith(IN_ENVIRONMENT)]


def smaller(command: str, folder: Path) -> list[str]:
    """
    A command that takes seconds instead of hours.

    :param command: as in README, without wrapper.
    :param folder: stands for `runs`.
    :return: words to run.
    """
    words = shlex.split(command.replace('runs/', f'{folder}/'))
    replaced, given, skip = SMALLER[words[0]], [], False
    for word in words:
        if word.startswith('--'):
            skip = False
        if not skip:
            given.append(word)
        if word in replaced:
            given.append(replaced[word])
            skip = True
    return [str(ROOT / IN_ENVIRONMENT), *given, *shlex.split(replaced.get('+', ''))]


def launch_arguments(words: list[str]) -> dict[str, str]:
    """
    Arguments of the form `name:=value`.

    :param words: words of a command.
    :return: value by name.
    """
    return dict(word.split(':=', 1) for word in words if ':=' in word)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Give the folder that stands for runs/ in all commands, in README's order."""
    return tmp_path_factory.mktemp('runs')


def run(command: str, folder: Path, limit: float = 100.0) -> str:
    """
    Run a command of README in small.

    :param command: as in README, without wrapper.
    :param folder: stands for `runs`.
    :param limit: longest time [s].
    :return: what it printed.
    """
    words = smaller(command, folder)
    if words[1] == 'train':
        words += ['--cache', str(folder / 'cache')]
    done = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, text=True, timeout=limit,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 0, f'{shlex.join(words)}\n{done.stdout[-3000:]}'
    return done.stdout


def run_until_alive(words: list[str], topic: str, seconds: float = 2.0) -> str:
    """
    Start nodes, wait until a topic is alive, let them run on, and end them with Ctrl-C.

    :param words: command.
    :param topic: topic that has to come within 40 s.
    :param seconds: how long to go on [s].
    :return: what the nodes printed.
    """
    process = subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        check = [sys.executable, str(ROOT / 'docker' / 'healthcheck.py'), topic, '40']
        alive = subprocess.run(check, env=ENVIRONMENT, capture_output=True, text=True,
                               timeout=60, check=False)
        time.sleep(seconds)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            output, _ = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    assert alive.returncode == 0, f'{alive.stdout}{alive.stderr}\n{output[-3000:]}'
    assert process.returncode == 0, f'{process.returncode}\n{output[-3000:]}'
    return output


def one(start: str) -> str:
    """
    The command of README that starts so.

    :param start: its beginning, without wrapper.
    :return: the whole command.
    """
    found = [command for command in own_commands() if command.startswith(start)]
    assert len(found) == 1, f'README has {len(found)} commands that start with {start!r}'
    return found[0]


@pytest.fixture(scope='module')
def demonstrations(folder) -> Path:
    """Give a folder of bags made with README's command."""
    run(one('generate'), folder)
    return folder / 'demonstrations'


@pytest.fixture(scope='module')
def checkpoint(demonstrations, folder) -> Path:
    """Give a checkpoint learned with README's command."""
    run(one('train --bags runs/demonstrations'), folder)
    return folder / 'policy' / 'checkpoint.safetensors'


@pytest.fixture
def graph():
    """Skip where nodes cannot run."""
    pytest.importorskip('rclpy')
    pytest.importorskip('liquid_policy_msgs.msg')


def test_readme_has_commands():
    assert len(commands()) > 15


def test_every_command_is_known_to_a_test():
    for command in commands():
        words = shlex.split(command)
        if words[0] == IN_ENVIRONMENT:
            assert words[1] in SMALLER, command
        else:
            assert words[0] in {'make', 'ros2', 'docker', '.', 'docker/setup_ros.sh'}, command


@pytest.mark.timeout(120)
def test_generate_records_bags(demonstrations):
    assert len(list(demonstrations.rglob('*.mcap'))) == 3


def test_check_bags_finds_every_episode_good(demonstrations, folder):
    output = run(one('check_bags'), folder)
    assert 'episode_00000' in output, output


@pytest.mark.parametrize(
    'command', [command for command in own_commands() if command.startswith('check_interface')])
def test_check_interface_describes_lists_and_compares(command):
    done = subprocess.run(smaller(command, Path('runs')), cwd=ROOT, env=ENVIRONMENT, text=True,
                          capture_output=True, timeout=60, check=False)
    expected = 'robot' if '--against' in command else 'forward_velocity_controller/commands' \
        if '--topics' not in command else 'demonstration/arm_velocity'
    assert expected in done.stdout, done.stdout + done.stderr
    # Two robots differ, and the command says so with its status too.
    assert done.returncode == int('--against' in command)


@pytest.mark.timeout(150)
def test_train_learns_from_them(checkpoint):
    from liquid_policy.checkpoint import load_checkpoint

    assert load_checkpoint(checkpoint).interface.robot == 'manipulator'


@pytest.mark.timeout(120)
def test_evaluate_counts_picked_parts(checkpoint, folder):
    output = run(one('evaluate'), folder)
    assert re.search(r'\d+ ?%|picked', output), output


@pytest.mark.timeout(120)
def test_render_writes_a_picture(checkpoint, folder):
    run(one('render'), folder)
    assert (folder / 'scene.gif').stat().st_size > 1000


@pytest.mark.timeout(120)
def test_run_starts_a_deployed_checkpoint(graph, checkpoint, folder):
    run_until_alive(smaller(one('run checkpoint:='), folder), 'safety_status')


@pytest.mark.timeout(120)
def test_run_records_the_policy(graph, checkpoint, folder, tmp_path):
    words = smaller(one('run sim:=true record:=true'), folder)
    words = [word if word != 'record:=true' else f'record:={tmp_path}/bag' for word in words]
    shipped = ROOT / 'liquid_policy_node' / 'checkpoints' / 'manipulator.safetensors'
    if not shipped.is_file():
        words.append(f'checkpoint:={checkpoint}')
    run_until_alive(words, 'safety_status', seconds=3.0)
    assert list(tmp_path.rglob('*.mcap'))


@pytest.fixture(scope='module')
def recorded(folder) -> Path:
    """Give a bag that the recorder node wrote while the expert demonstrated."""
    pytest.importorskip('rclpy')
    words = smaller(one('run --scenario record'), folder)
    run_until_alive(words, 'demonstration/arm_velocity', seconds=4.0)
    return folder / 'recorded'


@pytest.mark.timeout(120)
def test_run_records_demonstrations(graph, recorded):
    bags = list(recorded.rglob('*.mcap'))
    assert bags and bags[0].stat().st_size > 100_000


@pytest.mark.timeout(120)
def test_report_is_one_page(graph, recorded, folder):
    run(one('report'), folder)
    page = (folder / 'recorded.html').read_text(encoding='utf-8')
    assert '</html>' in page
    assert not re.search(r'(src|href)="https?:', page)


def test_a_command_for_another_robot_trains_with_its_interface():
    from liquid_policy.interface import load_interface

    words = shlex.split(one('train --bags runs/six_axis_arm'))
    interface = load_interface(ROOT / words[words.index('--interface') + 1])
    assert interface.robot == 'six_axis_arm'


@pytest.mark.parametrize('command', [line for line in commands() if line.startswith('make ')])
def test_make_target_exists(command):
    targets = re.findall(r'^([a-z]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    assert shlex.split(command)[1] in targets


def test_environment_can_be_sourced():
    assert '. docker/env.sh' in commands()
    script = '. docker/env.sh && python3 -c "import liquid_policy.interface" && test -r ' \
        '"$FASTRTPS_DEFAULT_PROFILES_FILE"'
    subprocess.run(['bash', '-euc', script], cwd=ROOT, check=True, timeout=60)


def test_setup_beside_ros_says_when_there_is_no_ros():
    environment = {key: value for key, value in ENVIRONMENT.items() if key != 'ROS_DISTRO'}
    done = subprocess.run(['docker/setup_ros.sh'], cwd=ROOT, env=environment, text=True,
                          capture_output=True, timeout=20, check=False)
    assert done.returncode == 1
    assert 'docker/setup.sh' in done.stderr


LAUNCHES = [line for line in commands() if line.startswith('ros2 launch')]


@pytest.mark.parametrize('command', LAUNCHES)
def test_launch_arguments_are_accepted(graph, command):
    from liquid_policy_node import bringup

    words = shlex.split(command)
    name = words[3].removesuffix('.launch.py')
    assert (ROOT / 'launch' / words[3]).is_file()
    values = bringup.complete(launch_arguments(words), name)
    if 'checkpoint' in values:
        assert not values['checkpoint'] or values['checkpoint'].endswith('.safetensors')


@pytest.mark.skipif(shutil.which('ros2') is None, reason='needs a ROS 2 installation (ros2)')
@pytest.mark.parametrize('command', LAUNCHES)
def test_ros2_launch_knows_the_arguments(command):
    done = subprocess.run([*shlex.split(command), '--show-args'], cwd=ROOT, env=ENVIRONMENT,
                          capture_output=True, text=True, timeout=60, check=True)
    for name in launch_arguments(shlex.split(command)):
        assert f"'{name}'" in done.stdout


@pytest.mark.parametrize(
    'command', [line for line in commands() if line.startswith(('ros2 topic', 'ros2 service'))])
def test_messages_and_services_have_the_named_fields(graph, command):
    import importlib

    words = shlex.split(command.replace('$PWD', str(ROOT)))
    kind = next(word for word in words if re.fullmatch(r'\w+/(msg|srv)/\w+', word))
    package, group, name = kind.split('/')
    message = getattr(importlib.import_module(f'{package}.{group}'), name)
    message = message.Request if group == 'srv' else message
    values = yaml.safe_load(words[-1]) if words[-1].startswith('{') else {}
    message(**values)


def test_docker_commands_name_the_files():
    for command in commands():
        if command.startswith('docker '):
            words = shlex.split(command)
            assert (ROOT / words[words.index('-f') + 1]).is_file(), command


def test_pictures_and_files_that_readme_names_exist():
    names = re.findall(r'\]\(((?!http)[^)#]+)\)', README)
    names += re.findall(r'`((?:docker|config|launch|test|docs|liquid_\w+)/[\w./-]+)`', README)
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_tables_are_those_of_the_code(graph):
    script = str(ROOT / 'docs' / 'tables.py')
    done = subprocess.run([sys.executable, script, '--check'], env=ENVIRONMENT, cwd=ROOT,
                          capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
