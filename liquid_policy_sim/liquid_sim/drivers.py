"""Who drives the cell: the expert, or a learned policy; both through the safety filter."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from liquid_policy.alignment import Aligner
from liquid_policy.barrier import FilterSettings, JointFeedback
from liquid_policy.barrier_load import load_filter
from liquid_policy.checkpoint import Checkpoint
from liquid_policy.filter_parameters import read_filter_settings
from liquid_policy.interface import Interface
from liquid_policy.runtime import EncoderRuntime
from liquid_policy.stepping import Inputs, Model
from liquid_sim import scene
from liquid_sim.conveyor import CONTROL_PERIOD, ConveyorSim
from liquid_sim.expert import Expert

IMAGE_PERIOD = 1.0 / 30.0    # of the camera [s]
SHOVE = np.array([0.45, 0.35, 0.35, 0.2, 0.05, 0.2])   # of the joints, at most [rad/s]
START = 1_000_000_000        # stamp of simulated time zero [ns]; zero means "no stamp" to ROS


def stamp_of(time: float) -> int:
    """Return the stamp [ns] of simulated seconds."""
    return START + round(time * 1e9)


class Driver(Protocol):
    """Whoever drives the cell."""

    def reset(self, seed: int) -> None:
        """Start an episode."""

    def act(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return what to propose and what to demonstrate, (9,) each or None."""
        ...


class Camera:
    """Says when the next image is due, at 30 Hz on the control clock."""

    def __init__(self):
        self._next = 0.0

    def due(self, time: float) -> bool:
        """Return whether an image is to be taken now; each due time is told once."""
        if time < self._next - 1e-6:
            return False
        self._next += IMAGE_PERIOD
        return True


class Safety:
    """
    The safety node's filter around a simulated robot: same limits, same settings.

    :param interface: of the robot.
    :param description: its URDF or xacro; the default robot's when left out.
    :param settings: what the guarantee rests on; those of the default robot's parameter file
        when left out.
    """

    def __init__(self, interface: Interface, description: Path | None = None,
                 settings: FilterSettings | None = None):
        self._filter = load_filter(
            interface, description or scene.find_description(),
            settings or read_filter_settings(scene.find_parameters()))
        limits = self._filter.limits
        self._joint = np.flatnonzero(limits.joint)
        self._size = len(limits.names)
        self.interventions = 0

    def reset(self) -> None:
        """Start from rest."""
        self._filter.reset()
        self.interventions = 0

    def command(self, sim: ConveyorSim, proposal: np.ndarray | None) -> np.ndarray:
        """Return what the robot is told, (9,); None brakes."""
        _, position, velocity, effort = sim.joint_state()
        feedback = JointFeedback(
            self._of_actions(position), self._of_actions(velocity), self._of_actions(effort),
            base=np.array(sim.odometry()[:3]))
        result = self._filter.filter(proposal, feedback, CONTROL_PERIOD)
        self.interventions += bool(result.active)
        return result.command

    def _of_actions(self, joints: np.ndarray) -> np.ndarray:
        """Return the arm's values in the order of the actions, NaN where there is no joint."""
        values = np.full(self._size, np.nan)
        values[self._joint] = joints[:len(self._joint)]
        return values


class ExpertDriver:
    """
    The expert, its commands disturbed on their way to the robot, the demonstrations not.

    Disturbed demonstrations show how to recover (Laskey et al., DART: Noise injection for robust
    imitation learning, arXiv:1703.09327).

    :param noise: standard deviation of the disturbance of the joint velocities [rad/s].
    :param shoves: how often the arm is pushed away for half a second [1/s]. Without, the tool is
        always where the part is, and a policy learns to follow its own motion instead of it.
    """

    def __init__(self, sim: ConveyorSim, noise: float = 0.0, time_constant: float = 0.3,
                 shoves: float = 0.0):
        self.expert = Expert(sim)
        self._noise, self._time_constant, self._shoves = noise, time_constant, shoves

    def reset(self, seed: int) -> None:
        """Start an episode."""
        self.expert.reset()
        self._rng = np.random.default_rng([seed, 2])
        self._disturbance = np.zeros(6)
        self._shove, self._shove_left = np.zeros(6), 0.0

    def act(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what to propose and what to demonstrate, both (9,)."""
        wanted = self.expert.act(CONTROL_PERIOD)
        # an Ornstein-Uhlenbeck process of the given deviation and time constant
        share = CONTROL_PERIOD / self._time_constant
        self._disturbance = (self._disturbance * (1 - share)
                             + self._rng.normal(0, self._noise * np.sqrt(2 * share), 6))
        self._shove_left -= CONTROL_PERIOD
        if self._rng.random() < self._shoves * CONTROL_PERIOD:
            self._shove_left = self._rng.uniform(0.2, 0.6)
            self._shove = self._rng.uniform(-1, 1, 6) * SHOVE
        proposal = wanted.copy()
        proposal[:6] += self._disturbance
        if self._shove_left > 0:
            proposal[:6] += self._shove
        return proposal, wanted


class Estimate(NamedTuple):
    """What a policy believed at a tick, in the order of the interface's targets."""

    mean: np.ndarray
    scale: np.ndarray


class PolicyDriver:
    """
    A checkpoint, stepped on the cell's readings by the same code as the nodes.

    :param sim: the cell.
    :param checkpoint: the policy.
    """

    def __init__(self, sim: ConveyorSim, checkpoint: Checkpoint):
        self._sim, self._interface = sim, checkpoint.interface
        self._encoder, self._model = EncoderRuntime(checkpoint), Model(checkpoint)
        interface = self._interface
        depth = interface.images['depth']
        self._near, self._far = depth.range or (0.0, np.inf)
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Forget everything, as a policy node does when it is activated."""
        self._aligner = Aligner(self._interface)
        self._camera = Camera()
        self._model.reset(seed)
        self.estimate: Estimate | None = None

    def act(self) -> tuple[np.ndarray | None, None]:
        """Return the proposal (9,), or None while inputs are missing; no demonstration."""
        sim = self._sim
        stamp = stamp_of(sim.time)
        if self._camera.due(sim.time):
            color, depth = sim.render_camera()
            features = self._encoder.encode(color, np.clip(depth, self._near, self._far))
            self._aligner.push('features', stamp, features)
        self._aligner.push('imu', stamp, np.concatenate(sim.imu()))
        self._aligner.push('joint_positions', stamp, sim.joint_state()[1][:6])
        proposal = None
        for tick in self._aligner.ticks_ready():
            aligned = self._aligner.at(tick)
            if aligned.stale:
                continue
            step = self._model.step(Inputs(tick, aligned.features, aligned.vector))
            self.estimate = Estimate(step.distribution.estimate_mean,
                                     step.distribution.estimate_scale)
            proposal = step.chosen[0].astype(float)
        return proposal, None
