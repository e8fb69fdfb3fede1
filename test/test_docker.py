"""The Docker files name what exists, and the health check tells a live robot from a dead one."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


def executables() -> set[str]:
    """
    Console scripts of all packages.

    :return: their names.
    """
    text = ''.join(path.read_text() for path in ROOT.glob('liquid_*/setup.py'))
    return set(re.findall(r"'(\w+) = [\w.]+:\w+'", text))


def test_compose_starts_executables_that_exist():
    services = yaml.safe_load((ROOT / 'docker' / 'compose.yaml').read_text())['services']
    assert set(services) == {'simulator', 'robot', 'trainer'}
    for name, service in services.items():
        assert service['command'][0] in executables(), name
        script = service['healthcheck']['test'][3].removeprefix('/opt/liquid_policy/')
        assert (ROOT / script).is_file(), name
        assert (ROOT / service.get('build', {}).get('dockerfile', 'docker/Dockerfile')).is_file()


def test_dockerfile_copies_files_that_exist():
    text = (ROOT / 'docker' / 'Dockerfile').read_text().replace('\\\n', ' ')
    copies = [line.split()[1:-1] for line in text.splitlines() if re.match(r'COPY (?!--)', line)]
    assert copies
    for source in (source for copy in copies for source in copy):
        assert (ROOT / source).exists(), source


def test_dockerfile_runs_as_a_user_and_checks_its_health():
    lines = (ROOT / 'docker' / 'Dockerfile').read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith('USER ')]
    assert users and users[-1] != 'root'
    assert any(line.startswith('HEALTHCHECK ') for line in lines)


def run_healthcheck(seconds: float, domain: int) -> subprocess.CompletedProcess:
    """
    Run the container's health check here.

    :param seconds: how long it may wait.
    :param domain: ROS domain.
    :return: the finished process.
    """
    environment = {
        **os.environ, 'ROS_DOMAIN_ID': str(domain), 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
    }
    script = str(ROOT / 'docker' / 'healthcheck.py')
    return subprocess.run(
        [sys.executable, script, 'safety_status', str(seconds)], env=environment,
        capture_output=True, text=True, timeout=40, check=False,
    )


@pytest.fixture
def status_publisher():
    """
    Publish SafetyStatus at 20 Hz in a domain of its own.

    :return: function of the state to publish, which returns the domain.
    """
    rclpy = pytest.importorskip('rclpy')
    messages = pytest.importorskip('liquid_policy_msgs.msg')
    domain = 20 + os.getpid() % 80
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    node = rclpy.create_node('robot', context=context)
    publisher = node.create_publisher(messages.SafetyStatus, 'safety_status', 10)
    done = threading.Event()
    threads = []

    def start(state: int) -> int:
        def publish():
            while not done.wait(0.05):
                publisher.publish(messages.SafetyStatus(state=state))

        threads.append(threading.Thread(target=publish))
        threads[-1].start()
        return domain

    yield start
    done.set()
    for thread in threads:
        thread.join()
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_healthcheck_accepts_an_active_safety_node(status_publisher):
    done = run_healthcheck(15.0, status_publisher(1))
    assert done.returncode == 0, done.stdout + done.stderr


def test_healthcheck_refuses_an_inactive_safety_node(status_publisher):
    done = run_healthcheck(8.0, status_publisher(0))
    assert done.returncode == 1
    assert 'not active' in done.stdout


def test_healthcheck_refuses_silence():
    pytest.importorskip('rclpy')
    done = run_healthcheck(1.0, 20 + (os.getpid() + 40) % 80)
    assert done.returncode == 1
    assert 'nothing came on /safety_status' in done.stdout
