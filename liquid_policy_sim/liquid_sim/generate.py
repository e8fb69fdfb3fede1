"""Record demonstrations of the conveyor to rosbag2, as fast as the machine can simulate."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from liquid_policy.command import command
from liquid_policy.interface import Interface, load_interface
from liquid_sim import conveyor, drivers, scene
from liquid_sim.conveyor import CONTROL_PERIOD
from liquid_sim.evaluate import load_driver
from liquid_sim.messages import RosbagsMessages, Telemetry
from liquid_sim.rollout import run_episode
from liquid_trainer.message_types import message_types
from liquid_trainer.processes import worker_processes
from liquid_trainer.recording import BagWriter

START, SUCCESS, FAILURE = 0, 1, 2    # EpisodeMarker kinds
# Some demonstrations are undisturbed; the others show how to come back: standard deviation of
# the joint velocities' disturbance [rad/s], and shoves per second.
DISTURBANCES = ((0.0, 0.0), (0.05, 0.6), (0.1, 0.9), (0.2, 0.6), (0.3, 0.3))


@dataclass(frozen=True)
class Job:
    """
    One bag to be recorded.

    :param folder: the bag.
    :param seed: of the episode.
    :param parts: how many parts it shows.
    :param interface: path of the interface file.
    :param conditions: one of `conveyor.CONDITIONS`.
    :param noise: of the executed joint velocities [rad/s].
    :param shoves: pushes per second.
    :param checkpoint: when given, this policy drives and the expert corrects it, see `Supervised`.
    """

    folder: Path
    seed: int
    parts: int
    interface: Path
    conditions: str
    noise: float
    shoves: float
    checkpoint: Path | None = None


class BagSink:
    """Writes what the robot's topics would carry during an episode."""

    def __init__(self, folder: Path, interface: Interface, episode: str):
        topics = dict(interface.topics())
        topics.update({
            'odom': 'nav_msgs/msg/Odometry',
            'conveyor_status': 'liquid_policy_msgs/msg/ConveyorStatus',
            'episode': 'liquid_policy_msgs/msg/EpisodeMarker',
        })
        if interface.features is not None:   # images are recorded, not what was made of them
            topics.pop(interface.features.topic, None)
        self._writer = BagWriter(folder, topics)
        self._telemetry = Telemetry(RosbagsMessages(message_types(topics.values())))
        self._interface, self._episode = interface, episode
        self._camera = drivers.Camera()
        self._count = 0

    def __call__(self, sim, proposal, demonstration, command) -> None:
        """Write one tick."""
        stamp = drivers.stamp_of(sim.time)
        telemetry, interface = self._telemetry, self._interface
        if self._count == 0:
            self._write('episode', stamp, telemetry.marker(START, self._episode, stamp))
        if self._camera.due(sim.time):
            for name, image in zip(('color', 'depth'), telemetry.images(sim, stamp), strict=True):
                self._write(interface.images[name].topic, stamp, image)
        self._write(interface.observations['imu'].topic, stamp, telemetry.imu(sim, stamp))
        self._write(interface.observations['joint_positions'].topic, stamp,
                    telemetry.joint_state(sim, stamp))
        part = telemetry.part(sim, stamp)
        if part is not None:
            self._write(interface.targets['part'].topic, stamp, part)
        if self._count % 2 == 0:
            self._write('odom', stamp, telemetry.odometry(sim, stamp))
        if self._count % 10 == 0:
            self._write('conveyor_status', stamp, telemetry.status(sim, stamp))
        for values, key in ((demonstration, 'demonstration'), (command, 'topic')):
            actions = interface.actions
            self._write(getattr(actions['arm'], key), stamp, telemetry.joint_command(values[:6]))
            self._write(getattr(actions['gripper'], key), stamp,
                        telemetry.joint_command(values[6:7]))
            self._write(getattr(actions['base'], key), stamp,
                        telemetry.base_command(values[7], values[8], stamp))
        self._count += 1

    def end(self, sim, success: bool) -> None:
        """Mark the episode's end and close the bag."""
        stamp = drivers.stamp_of(sim.time)
        kind = SUCCESS if success else FAILURE
        self._write('episode', stamp, self._telemetry.marker(kind, self._episode, stamp))
        self._writer.close()

    def _write(self, topic, stamp, message):
        self._writer.write(topic, stamp, message)


def record(job: Job) -> dict:
    """Record one bag and return its figures."""
    interface = load_interface(job.interface)
    settings = getattr(conveyor, job.conditions)()
    sim = conveyor.ConveyorSim(settings, job.seed)
    expert = drivers.ExpertDriver(sim, job.noise, shoves=job.shoves)
    driver: drivers.Driver = expert
    if job.checkpoint is not None:
        driver = Supervised(load_driver(sim, job.checkpoint), expert)
    # a bag takes its name when it is complete: what is left of a broken run is never trained on
    unfinished = job.folder.parent / '.unfinished' / job.folder.name
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(exist_ok=True)
    sink = BagSink(unfinished, interface, job.folder.name)
    outcome = run_episode(sim, driver, drivers.Safety(interface), job.seed, job.parts, sink)
    sink.end(sim, outcome.missed == 0)
    sim.close()
    os.replace(unfinished, job.folder)
    return {'seen': outcome.seen, 'picked': outcome.picked, 'seconds': outcome.seconds}


class Supervised:
    """
    A policy drives, the expert says what it would have done, and takes over where they differ.

    Corrections then stay near what a good policy meets; left alone, a policy that has gone wrong
    once goes where nothing is to be learned. As an operator would: Kelly et al., HG-DAgger:
    Interactive imitation learning with human experts, arXiv:1810.02890.

    :param policy: drives.
    :param expert: demonstrates.
    :param tolerance: largest difference of a joint velocity that is let pass [rad/s].
    :param patience: how long more than that is let pass [s].
    :param takeover: how long the expert then drives [s].
    """

    def __init__(self, policy: drivers.Driver, expert: drivers.ExpertDriver,
                 tolerance: float = 0.7, patience: float = 0.25, takeover: float = 0.8):
        self._policy, self._expert = policy, expert
        self._tolerance, self._patience, self._takeover = tolerance, patience, takeover

    def reset(self, seed: int) -> None:
        """Start an episode."""
        self._policy.reset(seed)
        self._expert.reset(seed)
        self._apart = self._left = 0.0

    def act(self):
        """Return what to propose and what to demonstrate."""
        proposal, _ = self._policy.act()
        _, wanted = self._expert.act()
        if proposal is None or self._left > 0:
            self._left -= CONTROL_PERIOD
            return wanted, wanted
        apart = np.abs(proposal[:6] - wanted[:6]).max() > self._tolerance
        self._apart = max(0.0, self._apart + (CONTROL_PERIOD if apart else -CONTROL_PERIOD))
        if self._apart > self._patience:
            self._apart, self._left = 0.0, self._takeover
        return proposal, wanted


def jobs_of(arguments) -> list[Job]:
    """Return the bags to record; those that exist already are left alone."""
    jobs = []
    for index in range(arguments.episodes):
        seed = arguments.seed + index
        folder = arguments.output / f'episode_{seed:05d}'
        if folder.exists():
            continue
        noise, shoves = (arguments.noise * d for d in DISTURBANCES[seed % len(DISTURBANCES)])
        jobs.append(Job(folder, seed, arguments.parts, arguments.interface,
                        arguments.conditions, noise, shoves, arguments.checkpoint))
    return jobs


@command('generate', 'stopped; finished bags are kept, the same command goes on')
def main(argv=None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog='generate', description=__doc__)
    parser.add_argument('--output', type=Path, default=Path('runs/demonstrations'),
                        help='folder for the bags (default %(default)s)')
    parser.add_argument('--interface', type=Path, default=scene.find_interface())
    parser.add_argument('--episodes', type=int, default=120)
    parser.add_argument('--parts', type=int, default=4, help='parts per episode')
    parser.add_argument('--seed', type=int, default=0, help='of the first episode')
    parser.add_argument('--conditions', choices=conveyor.CONDITIONS, default='seen')
    parser.add_argument('--noise', type=float, default=1.0,
                        help='scale of the disturbances; 0 for clean demonstrations only')
    parser.add_argument('--checkpoint', type=Path, default=None,
                        help='let this policy drive while the expert corrects it (DAgger)')
    parser.add_argument('--processes', type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    jobs = jobs_of(arguments)
    skipped = arguments.episodes - len(jobs)
    if skipped:
        print(f'{skipped} bags exist already in {arguments.output} and are kept')
    totals = {'seen': 0, 'picked': 0, 'seconds': 0.0}
    with worker_processes(arguments.processes) as pool:
        futures = [pool.submit(record, job) for job in jobs]
        with tqdm(total=len(jobs), unit='bag', desc='recording', disable=None) as progress:
            for future in as_completed(futures):
                for key, value in future.result().items():
                    totals[key] += value
                progress.set_postfix_str(f"{totals['picked']}/{totals['seen']} parts picked")
                progress.update()
    shutil.rmtree(arguments.output / '.unfinished', ignore_errors=True)
    print(f"recorded {len(jobs)} bags in {arguments.output}: {totals['seconds']:.0f} s of motion, "
          f"{totals['picked']} of {totals['seen']} parts picked")
    return 0


if __name__ == '__main__':
    sys.exit(main())
