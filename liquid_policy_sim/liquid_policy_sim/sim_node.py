"""The simulated cell, behind the topics of a real robot."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from liquid_policy.conversion import commands_from_action, fill_message
from liquid_policy.interface import IMAGE_TYPE, load_interface
from liquid_policy_node import qos
from liquid_policy_node.lifecycle import ManagedNode, run
from liquid_policy_node.resources import find_interface, message_class
from liquid_policy_sim.renderer import Renderer
from liquid_policy_sim.settings import SimSettings
from liquid_sim import conveyor, drivers, messages
from liquid_sim.controllers import Controllers
from liquid_sim.pacing import Pacer
from liquid_sim.pictures import jpeg
from liquid_sim.twin import RenderTwin

PERIOD = conveyor.CONTROL_PERIOD
NANOSECONDS = 1_000_000_000
# EpisodeMarker kinds, see EpisodeMarker.msg.
START, SUCCESS, FAILURE, DISCARD = range(4)
# The expert is sure of what it does [units of the action].
EXPERT_DEVIATION = 1e-3
class RclpyMessages:
    """Makes rclpy's messages for `liquid_sim.messages.Telemetry`."""

    def __init__(self) -> None:
        self._classes: dict[str, type] = {}

    def make(self, type_name: str, **fields: Any) -> Any:
        """Return a message of a type such as `std_msgs/msg/Header`."""
        if type_name not in self._classes:
            package, _, name = type_name.partition('/msg/')
            self._classes[type_name] = getattr(importlib.import_module(f'{package}.msg'), name)
        return self._classes[type_name](**fields)

    def floats(self, values: Any) -> list[float]:
        """Return float64 as rclpy takes them."""
        return np.asarray(values, float).tolist()

    def data(self, array: np.ndarray) -> bytes:
        """Return an array's bytes; of all types rclpy takes for uint8[], bytes is the fastest."""
        return array.tobytes()


class SimNode(ManagedNode):
    """
    Steps the cell and publishes what its sensors measure.

    At real time, each step is computed while the tick before it is still running and published
    when it is due. A command therefore acts one tick after it came, as it does where the cell is
    stepped without ROS, and drawing an image of up to one tick costs no time on the wire.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__('simulator', SimSettings, **kwargs)
        self.failure = ''
        self.on_failure: Callable[[], None] = lambda: None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    # Life cycle.

    def configure(self) -> None:
        """Build the cell and create the topics."""
        settings = self.settings
        self._interface = load_interface(find_interface(settings.robot))
        missing = {'color', 'depth'} - set(self._interface.images)
        if missing:
            raise ValueError(
                f"expected the interface of the cell's robot, with images color and depth; "
                f'{settings.robot} lacks {", ".join(sorted(missing))}')
        for name in ('color', 'depth'):
            image = self._interface.images[name]
            if image.type != IMAGE_TYPE:
                raise ValueError(f'images.{name}.type: expected {IMAGE_TYPE}, which the simulator '
                                 f'sends, came {image.type}')
            if image.camera is not None:
                raise ValueError(f'images.{name}.camera: expected none, for the simulator draws '
                                 f'what the policy sees, came {list(image.camera)}')
        self._simulated = settings.publish_clock or self.get_parameter('use_sim_time').value
        # When steps wait for their commands nothing else delays them; then the cell itself must.
        self._ahead = settings.real_time_factor > 0 and not settings.lock_step
        cell = getattr(conveyor, settings.conditions)(
            variation=settings.variation, sensor_noise=settings.sensor_noise)
        if self._ahead:
            cell = replace(cell, command_delay=max(0, cell.command_delay - 1))
        self._cell_settings = cell
        self._sim = conveyor.ConveyorSim(cell, settings.seed)
        self._messages = RclpyMessages()
        self._telemetry = messages.Telemetry(self._messages)
        self._images = [self._interface.images[name] for name in ('color', 'depth')]
        self._published: dict[str, int] = {}
        self._outputs: dict[str, Any] = {}
        self._create_publishers()
        self._subscriptions_made = [
            self.subscribe(message_class(spec.type), spec.topic,
                           lambda message, name=name: self._on_command(name, message),
                           qos.COMMAND)
            for name, spec in self._interface.actions.items()]

        self.get_logger().info(
            f'{settings.conditions} belt speeds and masses, seed {settings.seed}, '
            + ('as fast as possible' if settings.real_time_factor == 0
               else f'{settings.real_time_factor:g} times real time')
            + (', stamped with simulated time' if self._simulated else ''))

    def activate(self) -> None:
        """Start the simulation."""
        settings = self.settings
        self._sim.reset(settings.seed)
        self._controllers = Controllers(
            {name: spec.size for name, spec in self._interface.actions.items()},
            settings.command_timeout)
        self._answered = threading.Condition()
        self._driver = drivers.ExpertDriver(self._sim, settings.expert_noise)
        self._driver.reset(settings.seed)
        self._camera, self._scene_due = drivers.Camera(), 0.0
        self._episode, self._decided, self._missed = 0, 0, 0
        self._ticks, self._told_skipped = 0, 0.0
        self._offset = time.time_ns() - time.monotonic_ns()    # of the system's clock [ns]
        self._last_stamp = 0
        self._pacer = Pacer(PERIOD, settings.real_time_factor)
        self._renderer = Renderer(RenderTwin(self._cell_settings, settings.seed))
        self._stop.clear()
        self._thread = threading.Thread(target=self._work, name='simulation', daemon=True)
        self._thread.start()

    def deactivate(self) -> None:
        """End the simulation."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(30.0)
            self._thread = None

    def cleanup(self) -> None:
        """Destroy topics and cell."""
        for subscription in self._subscriptions_made:
            self.destroy_subscription(subscription)
        for publisher in self._outputs.values():
            self.destroy_publisher(publisher)
        self._outputs.clear()
        self._sim.close()

    def _create_publishers(self) -> None:
        interface = self._interface
        images = {spec.topic: (spec.type, qos.IMAGE) for spec in interface.images.values()}
        streams = {
            **{spec.topic: spec.type for spec in interface.observations.values()},
            **{spec.topic: spec.type for spec in interface.targets.values()},
            'odom': 'nav_msgs/msg/Odometry',
            'conveyor_status': 'liquid_policy_msgs/msg/ConveyorStatus'}
        topics = {**images, **{topic: (kind, qos.STREAM_OUT) for topic, kind in streams.items()}}
        if self.settings.scene_rate > 0:
            topics['scene/image/compressed'] = ('sensor_msgs/msg/CompressedImage', qos.STREAM_OUT)
        if self._simulated:
            topics['/clock'] = ('rosgraph_msgs/msg/Clock', qos.STREAM_OUT)
        if self.settings.expert:
            topics['action_distribution'] = (
                'liquid_policy_msgs/msg/ActionDistribution', qos.PROPOSAL_OUT)
            topics['episode'] = ('liquid_policy_msgs/msg/EpisodeMarker', qos.EPISODE)
            topics.update({spec.demonstration: (spec.type, qos.STATUS)
                           for spec in interface.actions.values() if spec.demonstration})
        self._outputs = {topic: self.create_publisher(message_class(kind), topic, profile)
                         for topic, (kind, profile) in topics.items()}

    # Commands.

    def _on_command(self, name: str, message: Any) -> None:
        """Keep a command; raises what is wrong with it, and the guard around it reports that."""
        if name == 'base':
            values = [message.twist.linear.x, message.twist.angular.z]
        else:
            values = message.data
        with self._answered:
            self._controllers.accept(name, values, self._time)
            self._answered.notify()
        self.diagnostics.tick(f'{name}_command')

    def _await_commands(self) -> None:
        """Wait for all commands, in lock step."""
        deadline = time.monotonic() + self.settings.lock_step_timeout
        with self._answered:
            while not self._controllers.answered and not self._stop.is_set():
                left = deadline - time.monotonic()
                if left <= 0:
                    self.diagnostics.count('unanswered_steps')
                    return
                self._answered.wait(min(left, 0.2))

    # The simulation.

    def _work(self) -> None:
        try:
            self._renderer.start()
            if self.settings.lock_step:
                self._await_peers()
            self._simulate()
        except Exception as error:  # noqa: BLE001 - a thread's error must not stay in the thread
            self.failure = f'{type(error).__name__}: {error}'
            self.get_logger().fatal(f'the simulation failed: {self.failure}')
            self.diagnostics.fault('simulation', self.failure)
            self.on_failure()
        finally:
            if self.settings.expert and self._episode:
                topic, message = self._marker(DISCARD, self._stamp(time.monotonic_ns()))
                self._outputs[topic].publish(message)
            self._renderer.stop()

    def _await_peers(self) -> None:
        """Wait until somebody listens and answers: the first step is part of the run too."""
        topics = [spec.topic for spec in self._interface.actions.values()]
        clock = self._interface.observations[self._interface.clock].topic
        self.get_logger().info('lock step: waiting for whoever publishes the commands')
        while not self._stop.is_set() and not (
                all(self.count_publishers(topic) for topic in topics)
                and self.count_subscribers(clock)):
            self._stop.wait(0.05)
        self._stop.wait(0.5)   # the other side has found us a little later

    def _simulate(self) -> None:
        begun = time.monotonic_ns()
        self._pacer.begin(begun)
        self._tick(begun)
        while not self._stop.is_set():
            if self.settings.lock_step:
                self._await_commands()
            due = self._pacer.next(time.monotonic_ns())
            started = time.perf_counter()
            with self._answered:
                command = self._controllers.command(self._time)
                braked = self._controllers.braked
                driven = self._controllers.driven('gripper')
            self._ticks += 1
            if driven or not self.settings.wait_for_driver:
                self._sim.step(command)
            self.diagnostics.latency('step', time.perf_counter() - started)
            self.diagnostics.fault('commands', (
                f'no command for {self.settings.command_timeout} s, braked: '
                f'{", ".join(braked)}') if braked else '', warning=True)
            self._tick(due)
            if self._renderer.failure is not None:
                raise self._renderer.failure
            self._note_pace(due, begun)

    def _note_pace(self, due: int, begun: int) -> None:
        now = time.monotonic_ns()
        skipped = self._pacer.skipped
        if self._pacer.done(now):
            self.diagnostics.count('overruns')
        if self._ticks % 100 == 0:
            factor = self._time / max((now - begun) / NANOSECONDS, 1e-9)
            self.diagnostics.info('real_time_factor', f'{factor:.3f}')
            self.diagnostics.info('skipped_s', f'{skipped:.3f}')
            self.diagnostics.fault('pace', (
                f'{skipped - self._told_skipped:.2f} s behind real time and not caught up; close '
                'other programs, or set a real_time_factor below 1 with publish_clock'
            ) if skipped > self._told_skipped else '', warning=True)
            self._told_skipped = skipped

    def _stamp(self, due: int) -> int:
        """
        Return the stamp of a tick.

        On the system's clock it is the time the tick is due, not the later time it may truly be
        published: positions and velocities fit the stamps, and lateness shows as latency.
        """
        if self._simulated:
            return drivers.stamp_of(self._time)
        for _ in range(3):
            before = time.monotonic_ns()
            system = self.get_clock().now().nanoseconds
            after = time.monotonic_ns()
            # Whoever is interrupted between the two clocks would stamp with a wrong time.
            if after - before < 200_000:
                self._offset = system - (before + after) // 2
                break
        stamp = due + self._offset
        # The system's clock may be set back by a little; by more, everybody should notice.
        if 0 <= self._last_stamp - stamp < NANOSECONDS:
            stamp = self._last_stamp + 1
        self._last_stamp = stamp
        return stamp

    def _tick(self, due: int) -> None:
        """Measure, wait until it is time, publish."""
        sim, telemetry, interface = self._sim, self._telemetry, self._interface
        stamp, tick = self._stamp(due), self._ticks
        self._draw(due, stamp)
        ready = []
        if self._simulated:
            ready.append(('/clock', self._messages.make(
                'rosgraph_msgs/msg/Clock', clock=telemetry.time(stamp))))
        observations = interface.observations
        ready.append((observations['imu'].topic, telemetry.imu(sim, stamp)))
        ready.append((observations['joint_positions'].topic, telemetry.joint_state(sim, stamp)))
        part = telemetry.part(sim, stamp)
        if part is not None:
            ready.append((interface.targets['part'].topic, part))
        if tick % 2 == 0:
            ready.append(('odom', telemetry.odometry(sim, stamp)))
        if tick % 10 == 0:
            ready.append(('conveyor_status', telemetry.status(sim, stamp)))
        if self.settings.expert:
            ready += self._episode_markers(stamp) + self._act(stamp)
        if self.settings.lock_step:
            self._renderer.finish()
        self._wait(due)
        for topic, message in ready:
            self._count(topic)
            self._outputs[topic].publish(message)
        # One value, so that all counts belong to the same stamp.
        self.diagnostics.info('published', json.dumps({'until': stamp, **self._published}))

    @property
    def _time(self) -> float:
        """Return simulated seconds since activation; the cell may have begun later."""
        return self._ticks * PERIOD

    def _wait(self, due: int) -> None:
        left = (due - time.monotonic_ns()) / NANOSECONDS
        if left > 0:
            self._stop.wait(left)

    def _count(self, topic: str) -> None:
        self._published[topic] = self._published.get(topic, 0) + 1

    def _draw(self, due: int, stamp: int) -> None:
        """Let the renderer draw what is due; when it is behind, that picture is left out."""
        sim, rate = self._sim, self.settings.scene_rate
        jobs: list[Any] = []
        topics: list[str] = []
        if self._camera.due(self._time):
            jobs.append(lambda cell: self._draw_camera(cell, due, stamp))
            topics += [spec.topic for spec in self._images]
        if rate > 0 and self._time >= self._scene_due - 1e-6:
            self._scene_due += 1.0 / rate
            jobs.append(lambda cell: self._draw_scene(cell, stamp))
            topics.append('scene/image/compressed')
        if jobs and self._renderer.behind and not self.settings.lock_step:
            self.diagnostics.count('pictures_left_out', len(jobs))
        elif jobs:
            # Counted now, not when drawn: the count belongs to the stamp.
            for topic in topics:
                self._count(topic)
            self._renderer.submit(sim, jobs)

    def _draw_camera(self, cell: conveyor.ConveyorSim, due: int, stamp: int) -> None:
        started = time.perf_counter()
        images = self._telemetry.images(cell, stamp)
        self.diagnostics.latency('draw_camera', time.perf_counter() - started)
        self._wait(due)
        if time.monotonic_ns() - due > PERIOD / 2 * NANOSECONDS:
            self.diagnostics.count('late_images')
        for spec, image in zip(self._images, images, strict=True):
            self._outputs[spec.topic].publish(image)

    def _draw_scene(self, cell: conveyor.ConveyorSim, stamp: int) -> None:
        started = time.perf_counter()
        picture = jpeg(cell.render_scene(320, 240))
        self.diagnostics.latency('draw_scene', time.perf_counter() - started)
        self._outputs['scene/image/compressed'].publish(self._messages.make(
            'sensor_msgs/msg/CompressedImage', header=self._telemetry.header(stamp, 'scene'),
            format='jpeg', data=picture))

    # The expert.

    def _act(self, stamp: int) -> list[tuple[str, Any]]:
        """Return the expert's proposal, and its demonstrations."""
        interface, make = self._interface, self._messages.make
        proposal, demonstration = self._driver.act()
        size = len(proposal)
        found = [('action_distribution', make(
            'liquid_policy_msgs/msg/ActionDistribution', header=self._telemetry.header(stamp),
            model_version='expert', action_names=list(interface.action_names),
            action_units=list(interface.action_units), dt=PERIOD, horizon=1, components=1,
            weights=[1.0], means=proposal.tolist(), chosen=proposal.tolist(),
            standard_deviations=[EXPERT_DEVIATION] * size, chosen_component=0))]
        for name, values in commands_from_action(interface, demonstration).items():
            spec = interface.actions[name]
            if spec.demonstration:
                message = fill_message(spec, message_class(spec.type)(), values)
                if hasattr(message, 'header'):
                    message.header.stamp = self._telemetry.time(stamp)
                found.append((spec.demonstration, message))
        return found

    def _episode_markers(self, stamp: int) -> list[tuple[str, Any]]:
        """Return the markers that are due: an episode is so many parts, picked or missed."""
        status = self._sim.status()
        decided = status['picked'] + status['missed']
        found = []
        if self._episode == 0 or decided - self._decided >= self.settings.parts_per_episode:
            if self._episode:
                kind = SUCCESS if status['missed'] == self._missed else FAILURE
                found.append(self._marker(kind, stamp))
            self._episode += 1
            self._decided, self._missed = decided, status['missed']
            found.append(self._marker(START, stamp))
        return found

    def _marker(self, kind: int, stamp: int) -> tuple[str, Any]:
        settings = self.settings
        return 'episode', self._telemetry.marker(
            kind, f'seed_{settings.seed}_{self._episode:04d}', stamp,
            f'expert, {settings.conditions}, noise {settings.expert_noise} rad/s')


def main(argv: list[str] | None = None) -> int:
    """
    Run the simulator.

    :param argv: command line without the program's name; None takes the process's.
    :return: exit code, not 0 if the simulation failed.
    """
    # Three threads share the interpreter; each shall get it back within a fraction of a tick.
    sys.setswitchinterval(0.0005)
    made: list[SimNode] = []

    def make() -> SimNode:
        node = SimNode()
        # The main loop leaves on this as on Ctrl-C, and takes the node down in order.
        node.on_failure = lambda: os.kill(os.getpid(), signal.SIGTERM)
        made.append(node)
        return node

    code = run(make, argv)
    return code or int(bool(made and made[0].failure))


if __name__ == '__main__':
    raise SystemExit(main())
