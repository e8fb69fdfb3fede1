"""
SIGKILL of each node while the arm moves: it stands after its braking distance, and goes on later.

The simulated cell runs in this process, in step with the commands it gets, so every time below is
simulated and a machine that stalls moves nothing. Perception, policy and safety node are processes
of their own, started as on a robot.
"""

import threading
import time

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('mujoco')
pytest.importorskip('onnxruntime')
pytest.importorskip('pinocchio')

import rclpy
from bench_robot import until
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter

from liquid_policy_node import bringup
from liquid_policy_node.runner import Runner
from liquid_policy_sim.sim_node import SimNode

TICK = 0.01
TIMEOUT = 0.1           # of the simulator's controllers, its default [s]
MOVING, STANDING = 0.3, 0.05   # of the fastest joint [rad/s]
# How long a node's end can go unnoticed: messages on their way and a command's own delay, and
# what comes before it: the age at which features, or proposals, or commands are stale [s].
UNDERWAY = 0.05
UNNOTICED = {'perception': 0.15 + 0.05, 'policy': 0.05, 'safety': TIMEOUT}
DECELERATION = np.array([10.0, 10.0, 10.0, 15.0, 15.0, 15.0])   # of the interface file [rad/s2]


class Cell:
    """The simulator node, spinning, and the arm's motion as MuJoCo has it."""

    def __init__(self):
        self.node = SimNode(parameter_overrides=[Parameter(name, value=value) for name, value in {
            'lock_step': True, 'lock_step_timeout': 0.15, 'publish_clock': True,
            'scene_rate': 0.0, 'conditions': 'seen', 'seed': 3,
            'command_timeout': TIMEOUT}.items()])
        assert until(lambda: self.node.get_name())
        self.positions, self.velocities = [], []
        self._running = True
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()
        assert until(lambda: self.node.active)
        sim = self.node._sim
        sim.watch = lambda: self._note(sim.data.qpos[sim._q[:6]], sim.data.qvel[sim._v[:6]])

    def _note(self, position, velocity):
        self.positions.append(position.copy())
        self.velocities.append(velocity.copy())

    def _spin(self):
        executor = SingleThreadedExecutor()
        executor.add_node(self.node)
        while self._running:
            executor.spin_once(0.05)
        executor.shutdown(0.0)

    @property
    def unanswered(self):
        """Steps made without a command, because none came for `lock_step_timeout`."""
        return self.node.diagnostics.total('unanswered_steps')

    def moves(self, since=0):
        """Whether the arm moves now, having stepped at all since then."""
        return len(self.velocities) > since and np.abs(self.velocities[-1]).max() > MOVING

    def stood(self, since, ticks=15):
        """Whether it has stood for so many ticks since then."""
        count = ticks * 5
        recent = self.velocities[-count:]
        return len(self.velocities) > since + count and np.abs(recent).max() < STANDING

    def close(self):
        self.node.trigger_shutdown()
        self._running = False
        self._thread.join(10.0)
        self.node.destroy_node()


@pytest.fixture(scope='module')
def running():
    """The cell, and a runner for each of the three nodes."""
    rclpy.init()
    cell = Cell()
    specs = {spec.name: spec for spec in bringup.nodes(
        {'sim': 'false', 'use_sim_time': 'true', 'log_level': 'warn'})}
    runners = {}

    def start(name):
        runners[name] = Runner([specs[name]])
        runners[name].start()
        return runners[name].processes[name]
    processes = {name: start(name) for name in ('safety', 'perception', 'policy')}
    yield cell, processes, start
    for runner in runners.values():
        runner.stop()
    cell.close()
    rclpy.try_shutdown()


@pytest.mark.timeout(400)   # three processes start, on whatever machine
@pytest.mark.parametrize('name', ['policy', 'perception', 'safety'])
def test_a_killed_node_leaves_the_arm_standing_within_its_braking_distance(running, name):
    """No farther than its speed until the silence is noticed, and braking; then on again."""
    cell, processes, start = running
    assert until(cell.moves, 120.0), 'the policy does not move the arm'
    begin, unanswered = len(cell.positions), cell.unanswered
    processes[name].kill()
    processes[name].wait(20.0)
    assert until(lambda: cell.stood(begin), 120.0), 'the arm does not come to rest'
    after = np.array(cell.positions[begin - 1:])
    speed = np.abs(cell.velocities[begin - 1:]).max(axis=0)
    went = np.abs(after - after[0]).max(axis=0)
    # Two steps wait in vain for the safety node; with more of them the machine kept it from
    # answering, and its last command may have held for the controllers' timeout besides.
    stalled = TIMEOUT if name != 'safety' and cell.unanswered > unanswered + 3 else 0.0
    allowed = speed * (UNNOTICED[name] + UNDERWAY + stalled) + speed ** 2 / (2.0 * DECELERATION)
    far = int((went / allowed).argmax())
    print(f'{name}: {went[far]:.3f} rad at {speed[far]:.2f} rad/s, allowed {allowed[far]:.3f} rad')
    # a servo that is to stand turns back a little from where it came to rest
    assert (went <= allowed + 0.01).all(), (went, allowed)
    seen = len(cell.positions)
    time.sleep(0.2)
    assert len(cell.positions) == seen or np.abs(cell.velocities[seen:]).max() < STANDING
    processes[name] = start(name)
    assert until(lambda: cell.moves(seen), 120.0), f'the arm does not move again after {name}'
