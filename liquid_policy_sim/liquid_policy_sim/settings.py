"""Parameters of the simulator node."""

from __future__ import annotations

from dataclasses import dataclass

from liquid_policy_node.lifecycle import NodeSettings
from liquid_policy_node.parameters import SettingsError, parameter

CONDITIONS = ('everything', 'seen', 'unseen', 'jumping')


@dataclass(frozen=True)
class SimSettings(NodeSettings):
    """Parameters of the simulator."""

    seed: int = parameter(0, 'Seed of the arrangement, the parts and all noise.', low=0,
                          high=2**31 - 1)
    conditions: str = parameter(
        'everything', 'Which belt speeds and masses come: all, those that demonstrations show, '
        'those kept back from them, or all on a belt that jumps from any speed to any other.',
        one_of=CONDITIONS)
    variation: float = parameter(
        1.0, 'How much light, colours, camera and base pose vary.', '1', low=0.0, high=1.0)
    sensor_noise: float = parameter(1.0, "Scale of the sensors' noise.", '1', low=0.0, high=10.0)
    real_time_factor: float = parameter(
        1.0, 'Simulated seconds per second; 0 for as fast as possible. Anything but 1 needs '
        'publish_clock.', '1', low=0.0, high=100.0)
    publish_clock: bool = parameter(
        False, 'Publish /clock and stamp with simulated time; the other nodes then need '
        'use_sim_time. Otherwise stamps are the time of the system.')
    lock_step: bool = parameter(
        False, 'Make each step only when all commands have come since the last one; with one '
        'deterministic command per joint state the whole run is deterministic.')
    lock_step_timeout: float = parameter(
        1.0, 'Longest wait for commands in lock step; then the step is made without.', 's',
        low=0.01, high=60.0)
    command_timeout: float = parameter(
        0.1, 'Simulated time after which the last command no longer holds: arm and base are '
        'braked to a standstill, the gripper keeps its suction.', 's', low=0.01, high=10.0)
    wait_for_driver: bool = parameter(
        False, 'Keep the cell still until the first gripper command; the safety node sends one '
        'with the first proposal. Sensors are published meanwhile.')
    scene_rate: float = parameter(
        10.0, 'Rate of scene/image/compressed, for people only; 0 for none.', 'Hz', low=0.0,
        high=30.0)
    expert: bool = parameter(
        False, 'Let the scripted expert propose actions and publish them as demonstrations.')
    expert_noise: float = parameter(
        0.0, "Disturbance of the expert's proposals; its demonstrations stay clean.", 'rad/s',
        low=0.0, high=1.0)
    parts_per_episode: int = parameter(
        1, 'Parts in one episode of the expert; its markers are published on episode.', low=1,
        high=1000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.real_time_factor != 1.0 and not self.publish_clock:
            raise SettingsError(
                f"real_time_factor: {self.real_time_factor} needs publish_clock; on the system's "
                'clock nothing but 1 gives velocities that fit the positions')
