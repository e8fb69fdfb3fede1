"""
PointMaze: push a ball through a maze to a goal.

The world is that of gymnasium-robotics, at 100 Hz; an episode succeeds within 0.45 m of the goal,
as there. Demonstrations are made here (`generate_maze`) or those published by Farama (D4RL, Fu et
al., arXiv:2004.07219), which have the same layout.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from liquid_policy.interface import parse_interface
from liquid_sim.tasks.maze import Maze
from liquid_sim.tasks.task import Outcome, Task
from liquid_trainer.arrays import ArrayEpisodes
from liquid_trainer.formats.dataset import FormatError
from liquid_trainer.formats.minari import read_minari

PERIOD = 0.01                   # of the control clock [s]
NEAR = 0.45                     # this far from the goal the task is done [m]
# Size as in task names -> (size as in the world's name, longest episode)
SIZES = {'umaze': ('UMaze', 300), 'medium': ('Medium', 600), 'large': ('Large', 800)}

SOURCE = """\
make your own with: generate_maze --size {size} --output runs/maze_{size}
or get Farama's: pip install minari; minari download D4RL/pointmaze/{size}-v2"""

# Which way to push changes abruptly from one side of a wall to the other, and networks learn slow
# functions of their inputs first; so places are told as waves, too (Tancik et al., Fourier
# Features Let Networks Learn High Frequency Functions, arXiv:2006.10739).
WAVES = (2.0, 4.0, 8.0)         # their lengths; a cell is 1 m wide [m]

_FIELDS = ('x', 'y', 'velocity_x', 'velocity_y', 'goal_x', 'goal_y', 'to_goal_x', 'to_goal_y',
           *(f'{wave}_{length:g}_{name}' for length in WAVES for wave in ('sin', 'cos')
             for name in ('x', 'y', 'goal_x', 'goal_y')))


def _interface(size: str):
    fields = ', '.join(f'position.{name}' for name in _FIELDS)
    return parse_interface(f"""
format: 1
robot: point_maze_{size}
description: none
rate: {1.0 / PERIOD}
clock: state
observations:
  state:                   # metres and metres per second in the maze's frame
    topic: joint_states
    type: sensor_msgs/msg/JointState
    fields: [{fields}]
    unit: '1'
    rate: {1.0 / PERIOD}
    align: hold
    latency: 0.0
    max_age: {PERIOD}
actions:
  ball:
    topic: ball/commands
    type: std_msgs/msg/Float64MultiArray
    demonstration: demonstration/ball
    fields: [data.0, data.1]
    names: [push_x, push_y]
    unit: '1'
    rate: {1.0 / PERIOD}
    align: next
    max_age: {PERIOD}
limits:
  push_x: {{range: [-1.0, 1.0]}}
  push_y: {{range: [-1.0, 1.0]}}
""", f'point_maze_{size}')


def state_vector(state: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """
    Return what a policy is told.

    :param state: ball's x, y [m] and velocity [m/s], `(..., 4)`.
    :param goal: x, y [m], `(..., 2)`.
    :return: both, from the ball to the goal [m], and sines and cosines of ball's and goal's
        places for all `WAVES`, `(..., 32)`.
    """
    state, goal = np.asarray(state, np.float64), np.asarray(goal, np.float64)
    places = np.concatenate((state[..., :2], goal), -1)
    waves = [wave(2.0 * np.pi / length * places)
             for length in WAVES for wave in (np.sin, np.cos)]
    return np.concatenate((state, goal, goal - state[..., :2], *waves), -1)


def make_world(size: str) -> Any:
    """
    Return gymnasium-robotics' environment.

    :param size: one of `SIZES`.
    :raises ImportError: with what to install, if it is missing.
    """
    import gymnasium
    try:
        # It prints a notice about worlds that are not used here.
        with contextlib.redirect_stderr(io.StringIO()):
            import gymnasium_robotics  # noqa: F401  registers the environment
    except ImportError as error:
        raise ImportError(f'PointMaze needs gymnasium-robotics ({error}); run: pip install '
                          'gymnasium-robotics==1.4.2') from error
    world = gymnasium.make(f'PointMaze_{SIZES[size][0]}-v3', disable_env_checker=True).unwrapped
    # It reads the file before it returns, and would leave one behind for every world made.
    Path(world.tmp_xml_file_path).unlink(missing_ok=True)   # type: ignore[attr-defined]
    return world


class PointMaze:
    """
    The world of gymnasium-robotics.

    :param size: one of `SIZES`.
    """

    def __init__(self, size: str):
        self._world = make_world(size)
        self.maze = Maze.of(self._world.maze.maze_map)

    def reset(self, seed: int) -> np.ndarray:
        """Draw start and goal, and return the first observation."""
        observed, _ = self._world.reset(seed=seed)
        self._trail = [observed['achieved_goal']]
        self._whole = self.maze.way_to_go(observed['achieved_goal'], observed['desired_goal'])
        return self._vector(observed)

    def step(self, action: np.ndarray) -> Outcome:
        """Push, -1 to 1 along x and y, for 0.01 s."""
        observed, _, _, _, info = self._world.step(np.asarray(action, np.float64))
        self._trail.append(observed['achieved_goal'])
        done = bool(info['success'])
        left = self.maze.way_to_go(observed['achieved_goal'], observed['desired_goal'])
        score = 1.0 if done else float(np.clip(1.0 - left / self._whole, 0.0, 1.0))
        return Outcome(self._vector(observed), score, done)

    def picture(self) -> np.ndarray:
        """Return the maze from above: walls, goal, the ball and where it has been."""
        import cv2
        scale, (rows, columns) = 48, self.maze.walls.shape

        def pixel(point):
            return (int(round((point[0] + columns / 2) * scale)),
                    int(round((rows / 2 - point[1]) * scale)))

        walls = np.kron(self.maze.walls, np.ones((scale, scale), bool))[..., None]
        image = np.where(walls, (70, 78, 92), (244, 242, 236)).astype(np.uint8)
        goal = pixel(self._world.goal)
        cv2.circle(image, goal, round(NEAR * scale), (198, 228, 204), -1, cv2.LINE_AA)
        cv2.circle(image, goal, 5, (38, 140, 70), -1, cv2.LINE_AA)
        cv2.polylines(image, [np.array([pixel(p) for p in self._trail])], False, (236, 160, 96),
                      2, cv2.LINE_AA)
        cv2.circle(image, pixel(self._trail[-1]), round(0.1 * scale) + 1, (196, 66, 30), -1,
                   cv2.LINE_AA)
        return image

    def close(self) -> None:
        """Give everything back."""
        self._world.close()

    @staticmethod
    def _vector(observed: dict[str, np.ndarray]) -> np.ndarray:
        return state_vector(observed['observation'], observed['desired_goal'])


def task(size: str) -> Task:
    """Return the task of a maze."""
    return Task(name=f'point_maze_{size}', score='progress', steps=SIZES[size][1],
                interface=_interface(size), relative=(), environment=lambda: PointMaze(size),
                read=read, read_mirrored=None, source=SOURCE.format(size=size))


def read(path: Path) -> ArrayEpisodes:
    """
    Return demonstrations.

    :param path: a Minari data set (such as `D4RL/pointmaze/umaze-v2`), or its hdf5 file.
    :raises FormatError: if it is not there, damaged, or of another task.
    """
    data = read_minari(path, ('observation', 'desired_goal')).arrays()
    if data.vectors.shape[1] != 6 or data.actions.shape[1] != 2:
        raise FormatError(f'{path}: expected an observation of 4 numbers, a goal of 2 and '
                          f'actions of 2, came {data.vectors.shape[1]} numbers observed and '
                          f'{data.actions.shape[1]} done')
    return ArrayEpisodes(state_vector(data.vectors[:, :4], data.vectors[:, 4:]),
                         np.clip(data.actions, -1.0, 1.0), data.ends)


def _named(size: str):
    return lambda: task(size)


TASKS = {f'point_maze_{size}': _named(size) for size in SIZES}
