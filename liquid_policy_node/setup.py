"""Build of liquid_policy_node: the library liquid_policy and the nodes around it."""

from glob import glob
from os.path import isfile

from setuptools import find_packages, setup

package_name = 'liquid_policy_node'


def files(*patterns: str) -> list[str]:
    """
    Files that match the patterns, in order of name.

    :param patterns: glob patterns relative to this file's folder.
    :return: paths; folders are left out.
    :raises FileNotFoundError: if a pattern matches nothing, as in a checkout that lost the
        links `launch` and `config`; without this check the package would build without them.
    """
    found = []
    for pattern in patterns:
        matches = sorted(path for path in glob(pattern) if isfile(path))
        if not matches:
            raise FileNotFoundError(
                f'{package_name}: no file matches {pattern!r}; the links launch -> ../launch and '
                'config -> ../config and the folders urdf and checkpoints must be there'
            )
        found += matches
    return found


share = f'share/{package_name}'

setup(
    name=package_name,
    version='0.1.0',
    packages=find_packages(include=['liquid_policy', 'liquid_policy.*', 'liquid_policy_node']),
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{package_name}']),
        (share, ['package.xml']),
        (f'{share}/launch', files('launch/*.launch.py')),
        (f'{share}/config', files('config/*.yaml', 'config/*.xml')),
        (f'{share}/urdf', files('urdf/*')),
        (f'{share}/checkpoints', files('checkpoints/*.safetensors', 'checkpoints/README.md')),
    ],
    install_requires=[
        'setuptools', 'numpy', 'PyYAML', 'safetensors', 'onnxruntime', 'daqp', 'pin', 'xacro',
    ],
    extras_require={'train': ['torch', 'onnx'], 'solvers': ['torchdiffeq'],
                    'test': ['pytest', 'hypothesis']},
    zip_safe=True,
    maintainer='Liquid policy maintainers',
    maintainer_email='maintainers@liquid-policy.example.org',
    description='Liquid imitation policies: perception, policy and safety nodes',
    license='Apache-2.0',
    entry_points={
        'console_scripts': [
            'perception_node = liquid_policy_node.perception_node:main',
            'policy_node = liquid_policy_node.policy_node:main',
            'safety_node = liquid_policy_node.safety_node:main',
            'run = liquid_policy_node.runner:main',
            'check_interface = liquid_policy.interface:main',
        ],
    },
)
