"""
Push-T: push a T-shaped block onto its outline with a round tool.

The world is that of gym-pusht; the demonstrations are the 206 of Diffusion Policy (Chi et al.,
arXiv:2303.04137), made by a person with a mouse at 10 Hz.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from liquid_policy.interface import parse_interface
from liquid_sim.tasks.task import Outcome, Task
from liquid_trainer.arrays import ArrayEpisodes, ArrayError
from liquid_trainer.formats.zarr_arrays import read_array

STEPS, PERIOD = 300, 0.1        # of an episode; of the control clock [s]
GOAL = np.array([256.0, 256.0, np.pi / 4])     # of the outline: x, y [px], angle [rad]
_TOOL = 15.0                    # radius of the tool [px]
# Corners of the T in its own frame [px]: of the bar, then of the stem; x right, y down.
_CORNERS = np.array([(-60, 30), (60, 30), (60, 0), (-60, 0),
                     (-15, 30), (-15, 120), (15, 120), (15, 30)], np.float64)

SOURCE = """\
wget https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip && unzip pusht.zip
then give --data pusht/pusht_cchi_v7_replay.zarr"""

_STATE = ('agent_x', 'agent_y', 'block_x', 'block_y', 'block_sine', 'block_cosine',
          'agent_in_block_x', 'agent_in_block_y', 'off_x_near', 'off_y_near', 'turn_near',
          'off_x_far', 'off_y_far', 'turn_far', 'own_off_x_near', 'own_off_y_near', 'gap_near',
          'gap_far')
_KEYPOINTS = ('agent_x', 'agent_y', *(f'corner_{i}_{axis}' for i in range(8) for axis in 'xy'))


def _interface(names: tuple[str, ...]):
    fields = ', '.join(f'position.{name}' for name in names)
    return parse_interface(f"""
format: 1
robot: push_t
description: none
rate: {1.0 / PERIOD}
clock: state
observations:
  state:                   # pixels of the 512 x 512 table, and sine and cosine
    topic: joint_states
    type: sensor_msgs/msg/JointState
    fields: [{fields}]
    unit: '1'
    rate: {1.0 / PERIOD}
    align: hold
    latency: 0.0
    max_age: {PERIOD}
actions:
  agent:
    topic: agent/commands
    type: std_msgs/msg/Float64MultiArray
    demonstration: demonstration/agent
    fields: [data.0, data.1]
    names: [target_x, target_y]
    unit: '1'
    rate: {1.0 / PERIOD}
    align: next
    max_age: {PERIOD}
limits:
  target_x: {{range: [0.0, 512.0]}}
  target_y: {{range: [0.0, 512.0]}}
""", 'push_t')


def state_vector(state: np.ndarray) -> np.ndarray:
    """
    Return what a policy is told of states.

    The angle becomes sine and cosine, which have no jump; where the tool is in the block's own
    frame says at once what a push will do. Success is a matter of two or three pixels out of
    512, so what is left to do is told a second time, magnified: how far the block is off the
    outline, in the table's and in its own frame, how far it is turned, and the gap between tool
    and block, each through a tanh that is steep near zero.

    :param state: tool x, y, block x, y [px], block angle [rad], `(..., 5)`.
    :return: `(..., 18)`, named as the interface says.
    """
    state = np.asarray(state, np.float64)
    agent, block, angle = state[..., :2], state[..., 2:4], state[..., 4]
    sine, cosine = np.sin(angle), np.cos(angle)

    def in_block(vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, y = np.moveaxis(vector, -1, 0)
        return cosine * x + sine * y, cosine * y - sine * x

    tool, off = in_block(agent - block), block - GOAL[:2]
    own, gap = in_block(off), _distance_to_block(*tool) - _TOOL
    turn = _turn(angle - GOAL[2])
    return np.concatenate((agent, block, np.stack((
        sine, cosine, *tool, *(np.tanh(value / scale) for value, scale in (
            (off[..., 0], 12.0), (off[..., 1], 12.0), (turn, 0.1),
            (off[..., 0], 40.0), (off[..., 1], 40.0), (turn, 0.4),
            (own[0], 12.0), (own[1], 12.0), (gap, 8.0), (gap, 30.0)))), -1)), -1)


def _distance_to_block(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance of points in the T's own frame to it [px]; 0 inside."""
    def to_box(left: float, right: float, low: float, high: float) -> np.ndarray:
        return np.hypot(np.maximum(np.maximum(left - x, x - right), 0.0),
                        np.maximum(np.maximum(low - y, y - high), 0.0))
    return np.minimum(to_box(-60, 60, 0, 30), to_box(-15, 15, 30, 120))


def keypoint_vector(state: np.ndarray) -> np.ndarray:
    """
    Return tool and corners of the T, as a camera with a perfect detector would give them.

    :param state: as `state_vector`, `(..., 5)`.
    :return: tool x, y, then eight corners' x, y [px], `(..., 18)`.
    """
    state = np.asarray(state, np.float64)
    sine, cosine = np.sin(state[..., 4:5]), np.cos(state[..., 4:5])
    x = state[..., 2:3] + cosine * _CORNERS[:, 0] - sine * _CORNERS[:, 1]
    y = state[..., 3:4] + sine * _CORNERS[:, 0] + cosine * _CORNERS[:, 1]
    corners = np.stack((x, y), -1).reshape(*state.shape[:-1], 16)
    return np.concatenate((state[..., :2], corners), -1)


def mirror_states(states: np.ndarray) -> np.ndarray:
    """
    Return states as seen in a mirror along the outline's own axis.

    The outline lies at the table's middle, turned by 45 degrees, so the table's falling diagonal
    through it is a symmetry of table, outline and T alike: x and y change places and sign.

    :param states: as `state_vector`, `(..., 5)`.
    """
    states = np.asarray(states)
    return np.concatenate((mirror_points(states[..., :2]), mirror_points(states[..., 2:4]),
                           np.mod(np.pi / 2 - states[..., 4:5], 2 * np.pi)), -1)


def mirror_points(points: np.ndarray) -> np.ndarray:
    """Return points `(..., 2)` [px] in the mirror of `mirror_states`."""
    return 512.0 - np.asarray(points)[..., ::-1]


def finish_on_outline(states: np.ndarray, actions: np.ndarray,
                      ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Return demonstrations moved so that each ends with the block on the outline exactly.

    The published ones end at 77 to 90 % coverage, some pixels and degrees off: what to do from
    there to the 95 % that count as success, nobody shows. How a tool pushes a block does not
    depend on where on the table it happens, so an episode may be turned and shifted as a whole;
    then it shows how to reach the place it did reach (hindsight relabelling, Andrychowicz et al.,
    arXiv:1707.01495). The table's edge moves by as little.

    :param states: as `state_vector`, `(steps, 5)`.
    :param actions: places the tool is sent to [px], `(steps, 2)`.
    :param ends: first step of the next episode, `(episodes,)`.
    """
    states, actions = (np.array(values, np.float64) for values in (states, actions))
    for first, end in zip(np.concatenate(([0], ends[:-1])), ends, strict=True):
        place, turn = states[end - 1, 2:4].copy(), _turn(GOAL[2] - states[end - 1, 4])
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        for points in (states[first:end, :2], states[first:end, 2:4], actions[first:end]):
            points[:] = (points - place) @ rotation.T + GOAL[:2]
        states[first:end, 4] += turn
    return states, actions


def _turn(angle: np.ndarray) -> np.ndarray:
    """Return an angle between -pi and pi [rad]."""
    return np.mod(angle + np.pi, 2 * np.pi) - np.pi


def read_states(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Return states `(steps, 5)`, actions `(steps, 2)` [px] and ends `(episodes,)`.

    :param path: the published `.zarr` folder, or an `.npz` with `state`, `action` and
        `episode_ends`.
    :raises ArrayError: if it is not there or lacks an array.
    """
    path = Path(path)
    if path.is_dir():
        return (read_array(path / 'data' / 'state'), read_array(path / 'data' / 'action'),
                read_array(path / 'meta' / 'episode_ends'))
    try:
        with np.load(path, allow_pickle=False) as file:
            return file['state'], file['action'], file['episode_ends']
    except (OSError, KeyError, ValueError) as error:
        raise ArrayError(f'{path}: expected the Push-T demonstrations (.zarr or .npz), came: '
                         f'{error}; get them with\n{SOURCE}') from error


class PushT:
    """
    The world of gym-pusht.

    :param vector: makes observations of states.
    """

    def __init__(self, vector):
        import gym_pusht  # noqa: F401  registers the environment
        import gymnasium
        self._env = gymnasium.make('gym_pusht/PushT-v0', obs_type='state',
                                   disable_env_checker=True).unwrapped
        self._vector = vector

    def reset(self, seed: int) -> np.ndarray:
        """Start an episode anywhere, and return the first observation."""
        state, _ = self._env.reset(seed=seed)
        return self._vector(state)

    def step(self, action: np.ndarray) -> Outcome:
        """Send the tool to a place [px] for 0.1 s."""
        state, _, done, _, info = self._env.step(np.asarray(action, np.float64))
        return Outcome(self._vector(state), float(info['coverage']), bool(done))

    def picture(self) -> np.ndarray:
        """Return the table from above."""
        return np.asarray(self._env.render())

    def close(self) -> None:
        """Give everything back."""
        self._env.close()


def _task(name: str, names: tuple[str, ...], vector) -> Task:
    def read(path: Path) -> ArrayEpisodes:
        states, actions, ends = read_states(path)
        states, actions = finish_on_outline(states, actions, ends)
        return ArrayEpisodes(vector(states), actions, ends)

    def read_mirrored(path: Path) -> ArrayEpisodes:
        states, actions, ends = read_states(path)
        states, actions = finish_on_outline(states, actions, ends)
        return ArrayEpisodes(vector(mirror_states(states)), mirror_points(actions), ends)

    return Task(name=name, score='coverage', steps=STEPS, interface=_interface(names),
                relative=(0, 1), environment=lambda: PushT(vector), read=read,
                read_mirrored=read_mirrored, source=SOURCE)


TASKS = {'push_t_state': lambda: _task('push_t_state', _STATE, state_vector),
         'push_t_keypoints': lambda: _task('push_t_keypoints', _KEYPOINTS, keypoint_vector)}
