"""Build of liquid_policy_tests: nothing to install; colcon test runs the tests in this folder."""

from setuptools import setup

package_name = 'liquid_policy_tests'

setup(
    name=package_name,
    version='0.1.0',
    packages=[],
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{package_name}']),
        (f'share/{package_name}', ['package.xml']),
    ],
    install_requires=['setuptools'],
    extras_require={'test': ['pytest', 'pytest-timeout']},
    zip_safe=True,
    maintainer='Liquid policy maintainers',
    maintainer_email='maintainers@liquid-policy.example.org',
    description='Tests across the packages: launch, graph, style',
    license='Apache-2.0',
)
