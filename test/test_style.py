"""Imports point one way, run-time modules stay light, and packages say who they belong to."""

import ast
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    'liquid_policy': ROOT / 'liquid_policy_node' / 'liquid_policy',
    'liquid_policy_node': ROOT / 'liquid_policy_node' / 'liquid_policy_node',
    'liquid_trainer': ROOT / 'liquid_trainer_node' / 'liquid_trainer',
    'liquid_trainer_node': ROOT / 'liquid_trainer_node' / 'liquid_trainer_node',
    'liquid_sim': ROOT / 'liquid_policy_sim' / 'liquid_sim',
    'liquid_policy_sim': ROOT / 'liquid_policy_sim' / 'liquid_policy_sim',
}
LIBRARIES = ('liquid_policy', 'liquid_trainer', 'liquid_sim')
# What each of our packages may import of the others.
MAY_IMPORT = {
    'liquid_policy': set(),
    'liquid_trainer': {'liquid_policy'},
    'liquid_sim': {'liquid_policy', 'liquid_trainer'},
    'liquid_policy_node': {'liquid_policy'},
    'liquid_trainer_node': {'liquid_policy', 'liquid_trainer', 'liquid_policy_node'},
    'liquid_policy_sim': {*LIBRARIES, 'liquid_policy_node'},
}
ROS = re.compile(r'(rclpy|launch|launch_ros|builtin_interfaces|\w+_msgs|std_srvs|ros2\w*)$')
# What runs on the robot; torch takes 200 MB and seconds, so these must load without it.
RUN_TIME = ('interface', 'conversion', 'alignment', 'limits', 'barrier', 'barrier_load',
            'barrier_guard', 'barrier_effort', 'effort_load', 'filter_parameters', 'robot_model',
            'safety_cycle', 'checkpoint', 'numpy_step', 'onnx_graph', 'runtime', 'stepping')
RUN_TIME_NODES = ('perception_node', 'policy_node', 'safety_node', 'bringup', 'runner')
PACKAGE_FILES = sorted(ROOT.glob('*/package.xml'))


def sources(package: str) -> list[Path]:
    """
    Python files of a package.

    :param package: key of `FOLDERS`.
    :return: paths, sorted.
    """
    return sorted(FOLDERS[package].rglob('*.py'))


def imported_modules(path: Path) -> Iterator[tuple[str, int]]:
    """
    Modules that a file imports, wherever the statement stands.

    :param path: Python file.
    :return: full dotted name and line number, one per statement or alias.
    """
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            for alias in node.names:
                yield f'{node.module}.{alias.name}', node.lineno


def places(package: str, forbidden) -> list[str]:
    """
    Import statements of a package that a rule forbids.

    :param package: key of `FOLDERS`.
    :param forbidden: function of the imported dotted name, true where forbidden.
    :return: `file:line imports name`, one per statement.
    """
    return [
        f'{path.relative_to(ROOT)}:{line} imports {name}'
        for path in sources(package)
        for name, line in imported_modules(path)
        if forbidden(name)
    ]


@pytest.mark.parametrize('library', LIBRARIES)
def test_libraries_import_no_ros(library):
    assert places(library, lambda name: ROS.match(name.partition('.')[0])) == []


@pytest.mark.parametrize('package', FOLDERS)
def test_imports_point_one_way(package):
    others = set(FOLDERS) - MAY_IMPORT[package] - {package}
    assert places(package, lambda name: name.partition('.')[0] in others) == []


@pytest.mark.parametrize('package', FOLDERS)
def test_nothing_imports_a_node_or_a_test(package):
    node = re.compile(r'liquid_\w+\.(\w+_node)\b')
    test = re.compile(r'(test|tests|conftest)(\.|$)')
    assert places(package, lambda name: node.match(name) or test.match(name)) == []


def modules_on_the_robot() -> list[str]:
    """
    Modules that a robot loads.

    :return: dotted names of the files that exist among `RUN_TIME` and `RUN_TIME_NODES`.
    """
    names = [('liquid_policy', name) for name in RUN_TIME]
    names += [('liquid_policy_node', name) for name in RUN_TIME_NODES]
    return [f'{package}.{name}' for package, name in names]


@pytest.mark.parametrize('module', modules_on_the_robot())
def test_run_time_modules_load_without_torch(module):
    if module.startswith('liquid_policy_node.'):
        pytest.importorskip('rclpy')
        pytest.importorskip('liquid_policy_msgs.msg')
    code = (
        f'import sys, {module}\n'
        "print([name for name in ('torch', 'mujoco', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=60,
        env=environment(), check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == '[]', f'{module} loads {done.stdout.strip()} on the robot'


def environment() -> dict[str, str]:
    """
    Environment of a child process that finds our packages first.

    :return: this process's environment with the source folders on PYTHONPATH.
    """
    import os

    folders = [str(folder.parent) for folder in FOLDERS.values()]
    path = os.pathsep.join([*dict.fromkeys(folders), os.environ.get('PYTHONPATH', '')])
    return {**os.environ, 'PYTHONPATH': path}


def test_every_package_is_checked():
    assert [path.parent.name for path in PACKAGE_FILES] == [
        'liquid_policy_msgs', 'liquid_policy_node', 'liquid_policy_sim', 'liquid_trainer_node',
        'test',
    ]


@pytest.mark.parametrize('path', PACKAGE_FILES, ids=lambda path: path.parent.name)
def test_package_has_a_maintainer_and_a_licence(path):
    package = ElementTree.parse(path).getroot()
    assert package.get('format') == '3'
    emails = [maintainer.get('email') for maintainer in package.findall('maintainer')]
    assert emails and all(re.fullmatch(r'[\w.+-]+@[\w-]+(\.[\w-]+)+', email) for email in emails)
    assert package.findtext('license')
    assert len(package.findtext('description').split()) > 4


# Import name -> rosdep key, for what rosdep can install. daqp, onnx and safetensors have no key,
# and torch's key is an older release: docker/requirements-ros.txt brings those.
ROSDEP_KEYS = {
    'ament_index_python': 'ament_index_python',
    'cv2': 'python3-opencv',
    'h5py': 'python3-h5py',
    'launch': 'launch',
    'launch_ros': 'launch_ros',
    'matplotlib': 'python3-matplotlib',
    'mujoco': 'python3-mujoco-pip',
    'numpy': 'python3-numpy',
    'onnxruntime': 'python3-onnxruntime-pip',
    'PIL': 'python3-pil',
    'pinocchio': 'pinocchio',
    'psutil': 'python3-psutil',
    'rclpy': 'rclpy',
    'rosbags': 'python3-rosbags-pip',
    'scipy': 'python3-scipy',
    'tqdm': 'python3-tqdm',
    'transforms3d': 'python3-transforms3d',
    'xacro': 'xacro',
    'yaml': 'python3-yaml',
}
FROM_PIP = {'daqp', 'onnx', 'onnxscript', 'rosbags_image', 'safetensors', 'tensorboard', 'torch'}
# The tasks of the literature, and the diffusion head's noise schedules.
FROM_PIP |= {'diffusers', 'gym_pusht', 'gymnasium', 'gymnasium_robotics', 'numcodecs',
             'robosuite'}
# Only for data sets of LeRobot.
FROM_PIP |= {'av', 'pyarrow'}
# Only where core settings name it.
FROM_PIP |= {'torchdiffeq'}
# Only for what asks for them: docker/requirements-scale.txt and requirements-fleet.txt.
FROM_PIP |= {'flwr', 'ray'}
# What rosbags brings with it; Python 3.14 has the second in its library.
FROM_PIP |= {'backports', 'compression', 'lz4'}


@pytest.mark.parametrize('path', PACKAGE_FILES, ids=lambda path: path.parent.name)
def test_imports_have_their_rosdep_keys(path):
    root = ElementTree.parse(path).getroot()
    keys = {
        element.text for tag in ('depend', 'exec_depend', 'test_depend')
        for element in root.findall(tag)
    }
    missing = {}
    for package, folder in FOLDERS.items():
        if folder.parent != path.parent:
            continue
        for source in sources(package):
            for name, _ in imported_modules(source):
                top = name.partition('.')[0]
                if top in sys.stdlib_module_names or top in FROM_PIP:
                    continue
                if top in FOLDERS:
                    key = FOLDERS[top].parent.name
                elif re.search('_msgs$|_srvs$|_interfaces$', top):
                    key = top
                else:
                    key = ROSDEP_KEYS.get(top, f'(no rosdep key known for {top})')
                if key not in keys and key != path.parent.name:
                    missing.setdefault(key, f'{source.relative_to(ROOT)} imports {name}')
    assert missing == {}


@pytest.mark.parametrize('package', ['liquid_policy_node', 'liquid_trainer_node',
                                     'liquid_policy_sim'])
def test_every_entry_point_names_an_existing_function(package):
    text = (ROOT / package / 'setup.py').read_text()
    entries = re.findall(r"'(\w+) = ([\w.]+):(\w+)'", text)
    assert entries
    for executable, module, function in entries:
        path = ROOT / package / (module.replace('.', '/') + '.py')
        assert path.is_file(), f'{executable}: {path.relative_to(ROOT)} does not exist'
        functions = [
            node.name for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef)
        ]
        assert function in functions, f'{executable}: no function {function} in {path.name}'


@pytest.mark.parametrize('name', ['launch', 'config'])
def test_linked_folders_are_committed_links(name):
    link = ROOT / 'liquid_policy_node' / name
    assert link.is_symlink() and link.resolve() == ROOT / name
