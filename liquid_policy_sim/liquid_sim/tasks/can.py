"""
Can: pick a can out of one bin and put it into its place in another.

The world is robosuite's PickPlaceCan with a Panda arm, at 20 Hz, told how far to move its hand;
demonstrations have robomimic's layout (Mandlekar et al., What Matters in Learning from Offline
Human Demonstrations for Robot Manipulation, arXiv:2108.03298). Scripted ones are made here
(`generate_can`); those of people that robomimic publishes are read by the same function.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from liquid_policy.interface import parse_interface
from liquid_sim.tasks.task import Outcome, Task
from liquid_trainer.arrays import ArrayEpisodes
from liquid_trainer.formats.dataset import FormatError
from liquid_trainer.formats.robomimic import read_robomimic

STEPS, RATE = 400, 20.0     # longest episode, as robomimic's; control clock [Hz]
KEYS = ('robot0_eef_pos', 'robot0_eef_quat', 'robot0_gripper_qpos', 'object')
_SIZES = (3, 4, 2, 14)
INSTALL = 'pip install --no-deps -r docker/requirements-can.txt'

SOURCE = """\
make your own with: generate_can --episodes 200 --output runs/can.hdf5
or get robomimic's (proficient human, low_dim_v141.hdf5) as described on
https://robomimic.github.io/docs/datasets/robomimic_v0.1.html"""

_FIELDS = (
    *(f'hand_{axis}' for axis in 'xyz'),
    *(f'hand_{side}_{axis}' for side in ('across', 'along') for axis in 'xyz'),
    'finger_left', 'finger_right',
    *(f'can_{axis}' for axis in 'xyz'), *(f'to_can_{axis}' for axis in 'xyz'),
    *(f'can_up_{axis}' for axis in 'xyz'))
_ACTIONS = ('move_x', 'move_y', 'move_z', 'turn_x', 'turn_y', 'turn_z', 'grip')


def _interface():
    fields = ', '.join(f'position.{name}' for name in _FIELDS)
    data = ', '.join(f'data.{index}' for index in range(len(_ACTIONS)))
    limits = '\n'.join(f'  {name}: {{range: [-1.0, 1.0]}}' for name in _ACTIONS)
    return parse_interface(f"""
format: 1
robot: can
description: none
rate: {RATE}
clock: state
observations:
  state:                   # metres in the world's frame, and unit vectors
    topic: joint_states
    type: sensor_msgs/msg/JointState
    fields: [{fields}]
    unit: '1'
    rate: {RATE}
    align: hold
    latency: 0.0
    max_age: {1.0 / RATE}
actions:
  hand:                    # of 5 cm and 0.5 rad; grip: -1 opens, 1 closes
    topic: hand/commands
    type: std_msgs/msg/Float64MultiArray
    demonstration: demonstration/hand
    fields: [{data}]
    names: [{', '.join(_ACTIONS)}]
    unit: '1'
    rate: {RATE}
    align: next
    max_age: {1.0 / RATE}
limits:
{limits}
""", 'can')


def rotation_matrix(quaternion: np.ndarray) -> np.ndarray:
    """
    Return the rotation of a unit quaternion x, y, z, w.

    :param quaternion: `(..., 4)`.
    :return: `(..., 3, 3)`.
    """
    x, y, z, w = np.moveaxis(np.asarray(quaternion, np.float64), -1, 0)
    return np.stack((
        np.stack((1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)), -1),
        np.stack((2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)), -1),
        np.stack((2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)), -1)), -2)


def state_vector(observed: np.ndarray) -> np.ndarray:
    """
    Return what a policy is told.

    Two columns of the rotation stand for the hand's quaternion, which has a sign that means
    nothing; of the can, which is round, only where it stands and which way it points counts.

    :param observed: `KEYS` side by side: hand [m], quaternion x, y, z, w, fingers [m], can [m],
        its quaternion, and the rest of robomimic's `object`, `(..., 23)`.
    :return: `(..., 20)`, named as the interface says.
    """
    observed = np.asarray(observed, np.float64)
    hand, fingers, can = observed[..., :3], observed[..., 7:9], observed[..., 9:12]
    turned = rotation_matrix(observed[..., 3:7])
    return np.concatenate((hand, turned[..., 0], turned[..., 1], fingers, can, can - hand,
                           rotation_matrix(observed[..., 12:16])[..., 2]), -1)


def make_world(pictures: bool = False) -> Any:
    """
    Return robosuite's environment.

    :param pictures: able to draw itself.
    :raises ImportError: with what to install, if it is missing.
    """
    silent = logging.root.manager.disable
    logging.disable(logging.WARNING)        # of parts that this arm does not have, among others
    try:
        import robosuite
        from robosuite.controllers import load_composite_controller_config
    except ImportError as error:
        raise ImportError(f'Can needs robosuite, which is no part of the environment ({error}); '
                          f'run: {INSTALL}') from error
    finally:
        logging.disable(silent)
    logging.getLogger('robosuite_logs').setLevel(logging.ERROR)
    controller = load_composite_controller_config(controller='BASIC', robot='Panda')
    arm = controller['body_parts']['right']
    controller['body_parts'] = {'right': arm}
    return robosuite.make(
        'PickPlaceCan', robots='Panda', controller_configs=controller, control_freq=int(RATE),
        has_renderer=False, has_offscreen_renderer=pictures, use_camera_obs=False,
        horizon=STEPS, ignore_done=True)


class Can:
    """robosuite's PickPlaceCan."""

    def __init__(self) -> None:
        self._world = make_world()
        self._camera: Any = None

    def reset(self, seed: int) -> np.ndarray:
        """Put the can anywhere in the first bin, and return the first observation."""
        self._world.rng = np.random.default_rng(seed)
        self.observed = self._published(self._world.reset())
        self._camera, self._start = None, self.observed[9:12].copy()
        return state_vector(self.observed)

    def step(self, action: np.ndarray) -> Outcome:
        """Move the hand for 0.05 s: by shares of 5 cm and 0.5 rad, and grip."""
        seen, _, _, _ = self._world.step(np.clip(np.asarray(action, np.float64), -1.0, 1.0))
        self.observed = self._published(seen)
        # robosuite's own rule: in its quarter of the bin, below its rim, and let go.
        done = bool(self._world._check_success())
        return Outcome(state_vector(self.observed), 1.0 if done else self._progress(), done)

    @property
    def target(self) -> np.ndarray:
        """Middle of the can's place in the second bin [m], `(3,)`."""
        return np.array(self._world.target_bin_placements[self._world.object_id])

    def state(self) -> np.ndarray:
        """Return the simulator's time, positions and velocities, as robomimic's `states`."""
        return np.asarray(self._world.sim.get_state().flatten())

    def picture(self) -> np.ndarray:
        """Return the scene from the front."""
        import mujoco
        model, data = self._world.sim.model._model, self._world.sim.data._data
        if self._camera is None:
            self._camera = mujoco.Renderer(model, 256, 256)
            self._shown = mujoco.MjvOption()
            self._shown.geomgroup[0] = 0            # the shapes that collisions are counted with
        self._camera.update_scene(data, 'agentview', self._shown)
        return self._camera.render()

    def close(self) -> None:
        """Give everything back."""
        if self._camera is not None:
            self._camera.close()
        self._world.close()

    def _progress(self) -> float:
        """Return how far the can is from its start to its place, at most 0.9."""
        whole = np.linalg.norm(self.target[:2] - self._start[:2])
        left = np.linalg.norm(self.target[:2] - self.observed[9:11])
        return float(np.clip(1.0 - left / whole, 0.0, 0.9))

    @staticmethod
    def _published(seen: dict[str, np.ndarray]) -> np.ndarray:
        """Return the observation as robomimic's files have it: `KEYS` side by side."""
        return np.concatenate((
            seen['robot0_eef_pos'], seen['robot0_eef_quat'], seen['robot0_gripper_qpos'],
            seen['Can_pos'], seen['Can_quat'], seen['Can_to_robot0_eef_pos'],
            seen['Can_to_robot0_eef_quat']))


def read(path: Path) -> ArrayEpisodes:
    """
    Return demonstrations.

    :param path: hdf5 in robomimic's layout with low-dimensional observations.
    :raises FormatError: if it is not there, damaged, or of another task.
    """
    data = read_robomimic(path, KEYS)
    sizes = tuple(feature.size for feature in data.layout.observations)
    if sizes != _SIZES or data.layout.action.size != len(_ACTIONS):
        raise FormatError(f'{path}: expected {dict(zip(KEYS, _SIZES, strict=True))} and '
                          f'{len(_ACTIONS)} actions, came {sizes} and {data.layout.action.size}')
    seen = data.arrays(KEYS)
    return ArrayEpisodes(state_vector(seen.vectors), np.clip(seen.actions, -1.0, 1.0), seen.ends)


def _task() -> Task:
    return Task(name='can_scripted', score='progress', steps=STEPS, interface=_interface(),
                relative=(), environment=Can, read=read, read_mirrored=None, source=SOURCE)


TASKS = {'can_scripted': _task}
