"""Push-T from pictures: the table from above, 96 by 96, and where the tool is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from liquid_policy.interface import parse_interface
from liquid_policy.settings import EncoderSettings
from liquid_sim.tasks import push_t
from liquid_sim.tasks.task import Task
from liquid_trainer.arrays import ArrayEpisodes
from liquid_trainer.formats.dataset import FormatError
from liquid_trainer.formats.diffusion_policy import read_diffusion_policy
from liquid_trainer.pictures import Pictures

SIZE = 96               # rows and columns of the published pictures


def _interface():
    rate = 1.0 / push_t.PERIOD
    return parse_interface(f"""
format: 1
robot: push_t_image
description: none
rate: {rate}
clock: state
images:
  color:                   # the table from above
    topic: camera/color/image_raw
    type: sensor_msgs/msg/Image
    encoding: rgb8
    height: {SIZE}
    width: {SIZE}
    rate: {rate}
features:
  topic: features
  size: {EncoderSettings().size}
  rate: {rate}
  max_age: {2 * push_t.PERIOD}
observations:
  state:                   # of the tool; pixels of the 512 x 512 table
    topic: joint_states
    type: sensor_msgs/msg/JointState
    fields: [position.agent_x, position.agent_y]
    unit: '1'
    rate: {rate}
    align: hold
    latency: 0.0
    max_age: {push_t.PERIOD}
actions:
  agent:
    topic: agent/commands
    type: std_msgs/msg/Float64MultiArray
    demonstration: demonstration/agent
    fields: [data.0, data.1]
    names: [target_x, target_y]
    unit: '1'
    rate: {rate}
    align: next
    max_age: {push_t.PERIOD}
limits:
  target_x: {{range: [0.0, 512.0]}}
  target_y: {{range: [0.0, 512.0]}}
""", 'push_t_image')


def mirror_pictures(color: np.ndarray) -> np.ndarray:
    """
    Return pictures as seen in the mirror of `push_t.mirror_states`.

    :param color: `(pictures, rows, columns, 3)`.
    """
    return np.ascontiguousarray(color[:, ::-1, ::-1].swapaxes(1, 2))


def read_pictures(path: Path) -> Pictures:
    """
    Return the published pictures, and where tool and corners of the T are in them.

    :param path: the published `.zarr` folder.
    :raises FormatError: if it is not there, or has no pictures of this size.
    """
    data = read_diffusion_policy(path, ['state'], ['img'])
    shown = data.layout.pictures[0]
    if (shown.height, shown.width) != (SIZE, SIZE):
        raise FormatError(f'{path}: expected pictures of {SIZE} x {SIZE}, came '
                          f'{shown.height} x {shown.width}')
    states = push_t.read_states(path)[0]
    color, first = np.empty((len(states), SIZE, SIZE, 3), np.uint8), 0
    for episode in data:
        for number, picture in enumerate(episode.frames['img']()):
            color[first + number] = picture
        first += len(episode)
    return Pictures(color, push_t.keypoint_vector(states), mirror_pictures,
                    push_t.keypoint_vector(push_t.mirror_states(states)))


class PushTPictures(push_t.PushT):
    """The world of gym-pusht as a camera above the table sees it."""

    def __init__(self) -> None:
        super().__init__(_tool)

    def image(self) -> np.ndarray:
        """Return what the camera sees, uint8 `(96, 96, 3)`."""
        world: Any = self._env
        return world._get_img(world._draw(), width=SIZE, height=SIZE)


def _tool(state: np.ndarray) -> np.ndarray:
    """Return of a state what a policy with a camera is told: where the tool is."""
    return np.asarray(state, np.float64)[..., :2]


def _task() -> Task:
    def read(path: Path) -> ArrayEpisodes:
        states, actions, ends = push_t.read_states(path)
        return ArrayEpisodes(_tool(states), np.asarray(actions, np.float64), ends)

    def read_mirrored(path: Path) -> ArrayEpisodes:
        states, actions, ends = push_t.read_states(path)
        return ArrayEpisodes(_tool(push_t.mirror_states(states)), push_t.mirror_points(actions),
                             ends)

    return Task(name='push_t_image', score='coverage', steps=push_t.STEPS,
                interface=_interface(), relative=(0, 1), environment=PushTPictures, read=read,
                read_mirrored=read_mirrored, source=push_t.SOURCE, pictures=read_pictures)


TASKS = {'push_t_image': _task}
