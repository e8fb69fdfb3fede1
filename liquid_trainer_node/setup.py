"""Build of liquid_trainer_node: the library liquid_trainer, the trainer and the recorder node."""

from setuptools import find_packages, setup

package_name = 'liquid_trainer_node'

setup(
    name=package_name,
    version='0.1.0',
    packages=find_packages(include=['liquid_trainer', 'liquid_trainer.*', 'liquid_trainer_node']),
    package_data={'liquid_trainer': ['page_files/*']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{package_name}']),
        (f'share/{package_name}', ['package.xml']),
    ],
    install_requires=[
        'setuptools', 'numpy', 'PyYAML', 'daqp', 'h5py', 'matplotlib', 'pin', 'rosbags', 'torch',
        'tqdm',
    ],
    zip_safe=True,
    maintainer='Liquid policy maintainers',
    maintainer_email='maintainers@liquid-policy.example.org',
    description='Learning liquid policies from demonstrations; trainer and recorder nodes',
    license='Apache-2.0',
    entry_points={
        'console_scripts': [
            'trainer_node = liquid_trainer_node.trainer_node:main',
            'recorder_node = liquid_trainer_node.recorder_node:main',
            'train = liquid_trainer.train:main',
            'online_skills = liquid_trainer.online.skills:main',
            'sweep = liquid_trainer.sweep:main',
            'check_bags = liquid_trainer.check_bags:main',
            'import_dataset = liquid_trainer.import_dataset:main',
            'export_dataset = liquid_trainer.export_dataset:main',
            'export = liquid_trainer.export_forms:main',
            'identify = liquid_trainer.identify:main',
            'replay = liquid_trainer.replay:main',
            'inspect_bags = liquid_trainer.inspect_bags:main',
            'curate = liquid_trainer.curate:main',
        ],
    },
)
