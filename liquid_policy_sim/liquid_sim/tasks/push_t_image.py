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
from liquid_trainer.pictures import Pictures

SIZE = 96               # rows and columns of the published pictures
_CORNERS = 8            # of the T
_MAGNIFIED = (12.0, 40.0)   # distances of a corner from the outline's [px]: what a tanh of 1 means
_REACH = 30.0           # the same for the tool's distance from a corner [px]
ENCODER = EncoderSettings(size=176, near=3 * 2 * _CORNERS)


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
  size: {ENCODER.size}
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


def near() -> tuple[np.ndarray, np.ndarray]:
    """
    Return what is wanted magnified, as `Pictures` says.

    How far each corner of the T is from its place on the outline, in two magnifications, and how
    far the tool is from each corner.
    """
    goal = push_t.keypoint_vector(np.array([0.0, 0.0, *push_t.GOAL]))[2:]
    tool, corners = np.eye(2, 2 + 2 * _CORNERS), np.eye(2 + 2 * _CORNERS)[2:]
    return (np.concatenate((*(corners / scale for scale in _MAGNIFIED),
                            (np.tile(tool, (_CORNERS, 1)) - corners) / _REACH)),
            np.concatenate((*(-goal / scale for scale in _MAGNIFIED), np.zeros(2 * _CORNERS))))


def read_pictures(path: Path) -> Pictures:
    """
    Return what the camera sees of the demonstrations, and where tool and corners of the T are.

    The demonstrations are moved as a whole so that they end on the outline
    (`push_t.finish_on_outline`), which no published picture shows, so all are drawn anew.

    :param path: the published `.zarr` folder, or an `.npz`; see `push_t.read_states`.
    """
    states, actions, ends = push_t.read_states(path)
    states, _ = push_t.finish_on_outline(states, actions, ends)
    world = PushTPictures()
    world.reset(0)
    try:
        color = np.array([world.draw(state) for state in states])
    finally:
        world.close()
    return Pictures(color, push_t.keypoint_vector(states), mirror_pictures,
                    push_t.keypoint_vector(push_t.mirror_states(states)), near())


class PushTPictures(push_t.PushT):
    """The world of gym-pusht as a camera above the table sees it."""

    def __init__(self) -> None:
        super().__init__(_tool)

    def draw(self, state: np.ndarray) -> np.ndarray:
        """Put tool and block somewhere, without a touch, and return what the camera sees."""
        world: Any = self._env
        world.block.angle = float(state[4])     # turns about the centre of mass, so goes first
        world.block.position = tuple(map(float, state[2:4]))
        world.agent.position = tuple(map(float, state[:2]))
        for body in (world.block, world.agent):
            world.space.reindex_shapes_for_body(body)
        return self.image()

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
        states, actions = push_t.finish_on_outline(states, actions, ends)
        return ArrayEpisodes(_tool(states), actions, ends)

    def read_mirrored(path: Path) -> ArrayEpisodes:
        states, actions, ends = push_t.read_states(path)
        states, actions = push_t.finish_on_outline(states, actions, ends)
        return ArrayEpisodes(_tool(push_t.mirror_states(states)), push_t.mirror_points(actions),
                             ends)

    return Task(name='push_t_image', score='coverage', steps=push_t.STEPS,
                interface=_interface(), relative=(0, 1), environment=PushTPictures, read=read,
                read_mirrored=read_mirrored, source=push_t.SOURCE, pictures=read_pictures,
                encoder=ENCODER)


TASKS = {'push_t_image': _task}
