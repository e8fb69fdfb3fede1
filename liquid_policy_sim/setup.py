"""Build of liquid_policy_sim: the library liquid_sim, the simulator node and the demo."""

from setuptools import find_packages, setup

package_name = 'liquid_policy_sim'

setup(
    name=package_name,
    version='0.1.0',
    packages=find_packages(include=['liquid_sim', 'liquid_sim.*', 'liquid_policy_sim']),
    package_data={'liquid_sim': ['report_page/*']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{package_name}']),
        (f'share/{package_name}', ['package.xml']),
    ],
    install_requires=['setuptools', 'numpy', 'mujoco', 'tqdm'],
    zip_safe=True,
    maintainer='Liquid policy maintainers',
    maintainer_email='maintainers@liquid-policy.example.org',
    description='MuJoCo simulation of the mobile manipulator at a conveyor',
    license='Apache-2.0',
    entry_points={
        'console_scripts': [
            'sim_node = liquid_policy_sim.sim_node:main',
            'demo = liquid_policy_sim.demo:main',
            'report = liquid_sim.report:main',
            'generate = liquid_sim.generate:main',
            'evaluate = liquid_sim.evaluate:main',
            'generate_can = liquid_sim.generate_can:main',
            'generate_maze = liquid_sim.generate_maze:main',
            'train_task = liquid_sim.train_task:main',
            'evaluate_task = liquid_sim.evaluate_task:main',
            'benchmark = liquid_sim.benchmark.run:main',
            'watch = liquid_sim.watch:main',
            'render = liquid_sim.render:main',
        ],
    },
)
