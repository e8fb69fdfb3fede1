"""The last node before the robot: filters proposals, brakes when anything is wrong."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from nav_msgs.msg import Odometry
from sensor_msgs.msg import JointState, Range
from std_srvs.srv import Trigger

from liquid_policy.barrier import Filtered, JointFeedback, Proposal, ReleaseRefused, State
from liquid_policy.barrier_load import describe_filter
from liquid_policy.conversion import nanoseconds
from liquid_policy.effort_load import load_safety
from liquid_policy.filter_parameters import filter_settings
from liquid_policy.inputs import read_proposal
from liquid_policy.interface import load_interface
from liquid_policy.safety_cycle import PATIENCE, Answer, SafetyCycle
from liquid_policy.stamps import header_stamp
from liquid_policy_msgs.msg import ActionDistribution
from liquid_policy_node import qos
from liquid_policy_node.command_output import CommandOutput
from liquid_policy_node.lifecycle import ManagedNode, NodeSettings, run
from liquid_policy_node.parameters import SettingsError, parameter
from liquid_policy_node.resources import find_description, find_interface

LONGEST_BRAKING = 5.0   # when deactivated [s]; no robot takes that long
SHORTEST_WAIT = 100_000     # for messages, after an answer that took all the time there was [ns]


@dataclass(frozen=True)
class SafetySettings(NodeSettings):
    """Parameters of the safety node."""

    description: str = parameter(
        '', "Path of the robot's URDF or xacro; empty: the one the interface file names.")
    period: float = parameter(
        0.01, 'Time between two commands.', 's', low=0.001, high=0.02)
    proposal_timeout: float = parameter(
        0.05, 'Brake when the newest proposal is older, by stamp or by receipt.', 's',
        low=0.005, high=1.0, live=True)
    joint_timeout: float = parameter(
        0.05, 'Brake when the newest joint states are older, by stamp or by receipt.', 's',
        low=0.005, high=1.0, live=True)
    future_tolerance: float = parameter(
        0.02, 'How far a stamp may lie ahead of the clock.', 's', low=0.0, high=1.0)
    longest_period: float = parameter(
        0.025, 'Longest gap between two commands the braking distance covers. As long as the '
        "robot's own command timeout, it covers a safety node that stalls or dies.", 's',
        low=0.001, high=0.2)
    actuation_delay: float = parameter(
        0.02, "Delay plus time constant of the robot's velocity control, at most.", 's',
        low=0.0, high=0.5)
    position_margin: float = parameter(
        0.01, 'Kept free before every position limit.', 'rad', low=0.0, high=0.5)
    standing_speed: float = parameter(
        0.02, 'A joint slower than this stands still; a stop can be released.', 'rad/s',
        low=0.001, high=0.5)

    joint_limits: str = parameter(
        '', "Path of a joint_limits.yaml in ros2_control's format, from the interface file's "
        'folder if not absolute; empty: none. The strictest of all files holds.')
    dry_run: bool = parameter(
        False, 'Report what would be done and send no command; somebody else moves the robot.')
    chance: float = parameter(
        0.5, "Probability with which limits are to hold for an action drawn from the policy's "
        'distribution, not for its mean only; 0.5 takes the chosen action for certain.', low=0.5,
        high=0.9999)
    other_modes: bool = parameter(
        False, "Take another component of the policy's distribution when the chosen action breaks "
        'a limit and that component breaks none.')
    effort_share: float = parameter(
        1.1, 'Brake when a measured effort exceeds this share of its limit.', low=0.1, high=10.0)
    overshoot: float = parameter(
        0.0, "By how much the robot's velocity control overshoots a speed at most, as a share of "
        'it; speed limits and braking distances are stretched by it.', low=0.0, high=0.5)
    human_timeout: float = parameter(
        0.2, 'With safety.separation: when human_distance is older, a human is taken to stand at '
        'the robot.', 's', low=0.01, high=2.0, live=True)
    takeover_time: float = parameter(
        0.3, 'After activation, wait this long for joint states before the first command, to '
        'take over a moving robot at its speed.', 's', low=0.0, high=2.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.longest_period < 1.5 * self.period:
            raise SettingsError(
                f'longest_period: must be at least 1.5 times the period of {self.period} s, '
                f'got {self.longest_period}')


class SafetyNode(ManagedNode):
    """
    Turns proposals into commands no proposal can make unsafe, 100 times a second.

    A timer of its own asks the filter for a command, with or without a proposal; a fresh proposal
    is answered at once besides. What braking and stopping do is in `liquid_policy.barrier`, what
    is fresh enough to be used in `liquid_policy.safety_cycle`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__('safety', SafetySettings, **kwargs)
        self._timer: Any = None
        self._state = State.INACTIVE
        self._simulated = self._engaged = False
        self._interventions = self._missed = 0
        self._last_now = self._began = 0

    def configure(self) -> None:
        """Read interface and limits, create the topics."""
        settings = self.settings
        path = find_interface(settings.robot)
        self._interface = load_interface(path)
        self.robot = self._interface.robot
        self._filter = load_safety(
            self._interface,
            find_description(settings.description or self._interface.description, path),
            filter_settings(asdict(settings)),
            path.parent / settings.joint_limits if settings.joint_limits else None)
        limits = self._filter.limits
        self._cycle = SafetyCycle(self._filter, self._interface, settings.future_tolerance)
        self._output = CommandOutput(self, self._interface, limits)
        topics = {source.topic for source in self._interface.observations.values()
                  if source.type == 'sensor_msgs/msg/JointState'}
        self._joint_subscriptions = [
            self.subscribe(JointState, topic, self.on_joints, qos.STREAM_IN) for topic in topics]
        self._subscriptions_made = [*self._joint_subscriptions]
        self._subscriptions_made.append(self.subscribe(
            ActionDistribution, 'action_distribution', self.on_proposal, qos.PROPOSAL_IN))
        if self._cycle.human_watched:
            self._subscriptions_made.append(
                self.subscribe(Range, 'human_distance', self.on_human, qos.STREAM_IN))
        if self._cycle.odometry_needed:
            self._subscriptions_made.append(
                self.subscribe(Odometry, 'odom', self.on_odometry, qos.STREAM_IN))
        self._services_made = [
            self.create_service(Trigger, '~/stop', self.on_stop),
            self.create_service(Trigger, '~/release', self.on_release)]
        self._clear()
        self._publish_status(Filtered(np.zeros(0), State.INACTIVE, ('inactive',)))
        bounds = (-limits.effort, limits.effort) if limits.torques else (limits.low, limits.high)
        self.get_logger().info(
            f'{self.robot}: ' + ', '.join(
                f'{name} {low:g}..{high:g} {unit}' for name, low, high, unit in zip(
                    limits.names, *bounds, limits.units, strict=True))
            + '; whole robot: ' + describe_filter(
                [name for guard in self._filter.guards for name in guard.names])
            + ('; DRY RUN, no command is sent' if settings.dry_run else ''))

    def activate(self) -> None:
        """Start issuing commands."""
        self._clear()
        self._simulated = self.get_parameter('use_sim_time').value
        clock = self.get_clock() if self._simulated else self._steady
        self._cycle.start(self._tick_now())
        self._timer = self.create_timer(self.settings.period, self.on_timer, clock=clock)

    def deactivate(self) -> None:
        """Bring the robot to rest, then fall silent."""
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
        torques, self._taken = self._filter.limits.torques, self.steady_now()
        braking = self._cycle.commanding or not torques
        for _ in range(int(LONGEST_BRAKING / self.settings.period) if braking else 0):
            feedback = self._newest_feedback() if torques else None
            result = self._filter.filter(
                None, feedback, self.settings.period, ('deactivating',))
            self._issue(result)
            if self._at_rest(result, feedback):
                break
            time.sleep(self.settings.period)
        self._publish_status(Filtered(np.zeros(0), State.INACTIVE, ('inactive',)))

    def _at_rest(self, result: Filtered, feedback: JointFeedback | None) -> bool:
        """Whether braking is over: the command stands still, or the joints if told torques."""
        if not self._filter.limits.torques:
            return not result.command[self._filter.limits.moving].any()
        return feedback is None or bool(
            (np.abs(feedback.velocity) < self.settings.standing_speed).all())

    def _newest_feedback(self) -> JointFeedback | None:
        """
        Joint states taken straight from their topics, while no callback can run.

        Speeds brake without looking, torques do not. No clock runs either, so their age is that
        of their receipt.
        """
        for subscription in self._joint_subscriptions:
            with subscription.handle:
                while taken := subscription.handle.take_message(subscription.msg_type, False):
                    if self.guard('joint_states', self._cycle.keep_joints, taken[0]):
                        self._taken = self.steady_now()
        silent = 1e-9 * (self.steady_now() - self._taken)
        return self._cycle.newest if silent <= self.settings.joint_timeout else None

    def cleanup(self) -> None:
        """Destroy the topics."""
        for subscription in self._subscriptions_made:
            self.destroy_subscription(subscription)
        for service in self._services_made:
            self.destroy_service(service)
        self._output.destroy()

    # Inputs.

    def on_joints(self, message: JointState) -> None:
        """Keep the newest joint states; what cannot be used counts as silence."""
        now = self.ros_now()
        self._check_clock(now)
        if self._cycle.joints(message, now, self._tick_now()):
            self.diagnostics.tick('joint_states')

    def on_proposal(self, message: ActionDistribution) -> None:
        """Keep the newest proposal and answer it at once; a broken one ends the last one."""
        now, tick = self.ros_now(), self._tick_now()
        self._check_clock(now)
        if not self._cycle.propose(
                header_stamp(message), nanoseconds(message.image_stamp),
                lambda: read_proposal(message, self._interface.action_names), now, tick):
            return
        self.diagnostics.tick('proposals')
        if self._cycle.due(tick, self.settings.period):
            self._answer(now)
            self._wait(self.settings.period + min(PATIENCE, 0.25 * self.settings.period))

    def on_human(self, message: Range) -> None:
        """Keep how near the nearest human is; infinite: nobody is seen."""
        self._cycle.human(message, self.ros_now(), self._tick_now())

    def on_odometry(self, message: Odometry) -> None:
        """Keep where the base is."""
        self._cycle.odometry(message, self.ros_now(), self._tick_now())

    def on_timer(self) -> None:
        """Issue a command, whatever has come."""
        if not self.guard('cycle', self._answer) and (
                self._cycle.commanding or not self._filter.limits.torques):
            # Nothing is known to go wrong here; if it does, the robot must still be braked, and
            # once in a period: it may have failed before the cycle noted when it began.
            self._began = self._tick_now()
            self._issue(self._filter.filter(
                None, None, self.settings.period, ('the safety node failed, see its log',)))
        self._wait(self.settings.period)

    def _wait(self, duration: float) -> None:
        """Have the timer answer this long [s] after the last answer began, if nothing has come."""
        if self._timer is not None:
            spent = max(self._tick_now() - self._began, 0)      # simulated time may go back
            self._timer.timer_period_ns = max(int(1e9 * duration) - spent, SHORTEST_WAIT)
            self._timer.reset()

    def on_stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Stop and stay stopped."""
        self._filter.stop('stopped by ~/stop; ~/release ends it')
        self.get_logger().warning('stop requested')
        response.success, response.message = True, 'stopping; ~/release ends it'
        return response

    def on_release(
        self, request: Trigger.Request, response: Trigger.Response,
    ) -> Trigger.Response:
        """End a stop if that is safe."""
        feedback, why = self._cycle.feedback(
            self.ros_now(), self._tick_now(), self.settings.joint_timeout)
        try:
            if not self.active:
                raise ReleaseRefused('the safety node is not active')
            self._filter.release(feedback)
            response.success, response.message = True, 'released'
        except ReleaseRefused as error:
            response.success = False
            response.message = f'not released: {error}' + (f' ({why})' if why else '')
        self.get_logger().warning(response.message)
        return response

    # The cycle.

    def _answer(self, now: int | None = None) -> None:
        """
        Issue a command for this moment.

        :param now: the node's clock [ns]; asked for when left out.
        """
        began = time.perf_counter()
        if now is None:
            now = self.ros_now()
            self._check_clock(now)
        self._began = tick = now if self._simulated else self._tick_now()
        answer = self._cycle.answer(now, tick, self.settings)
        if answer is None:
            return
        if answer.result.state in (State.PASSING, State.LIMITING):
            self._engaged = True
        self._issue(answer.result, answer.wanted)
        self._count(answer, now)
        self.diagnostics.latency('filter_cycle', time.perf_counter() - began)

    def _issue(self, result: Filtered, wanted: Proposal | None = None) -> None:
        """Send the command and say what was done instead of what was wanted."""
        if self.settings.dry_run:
            self._publish_status(replace(
                result, reasons=('dry run: nothing is sent', *result.reasons)), wanted)
            return
        now = self.ros_now()
        self._output.send(result.command, now, self._engaged)
        self._publish_status(result, wanted, now)

    def _publish_status(
        self, result: Filtered, wanted: Proposal | None = None, now: int | None = None,
    ) -> None:
        self._output.report(
            result, self.ros_now() if now is None else now, self._interventions, self._missed,
            wanted, self._cycle.proposal)

    def _count(self, answer: Answer, now: int) -> None:
        """Keep the figures for diagnostics, and log changes of state."""
        result = answer.result
        self.diagnostics.tick('commands')
        if answer.late:
            self._missed += 1
            self.diagnostics.count('missed_deadlines')
        if answer.human_lost:
            self.diagnostics.count('human_distance_stale')
        if result.state != State.PASSING:
            self._interventions += 1
        for constraint in result.active:
            self.diagnostics.count(constraint)
        if answer.proposal is not None:
            if answer.new_stamp:    # the tick's; an image's comes again with it
                self.diagnostics.latency('stamp_to_command', 1e-9 * (now - answer.proposal.stamp))
            if answer.new_image:
                self.diagnostics.latency(
                    'image_to_command', 1e-9 * (now - answer.proposal.image_stamp))
        halted = result.state in (State.BRAKING, State.STOPPED)
        if halted:
            self.diagnostics.count(result.state.name.lower())
        if result.state != self._state:
            if halted:
                self.diagnostics.count('halts')
            if halted and self.due('halt'):
                self.get_logger().warning(
                    f'{result.state.name}: {"; ".join(result.reasons)} '
                    f'[{self.diagnostics.total("halts")} so far]')
            elif self._state in (State.BRAKING, State.STOPPED) and self.due('resume'):
                self.get_logger().info(f'proposals are used again ({result.state.name})')
            self._state = result.state
        self.diagnostics.info('state', result.state.name)
        self.diagnostics.fault(
            'halted', f'{result.state.name}: {"; ".join(result.reasons)}' if halted else '',
            warning=True)

    def _tick_now(self) -> int:
        """A clock that runs like the timer's [ns]: steady, or simulated."""
        return self.ros_now() if self._simulated else time.monotonic_ns()

    def _check_clock(self, now: int) -> None:
        """After a jump back of the clock, nothing from before it counts."""
        if now < self._last_now - 50_000_000:
            self.report('time_jumped_back', (
                f'the clock went back by {1e-9 * (self._last_now - now):.3f} s; waiting for new '
                'joint states and proposals'))
            self._cycle.forget()
        self._last_now = now

    def _clear(self) -> None:
        """As after a start: nothing known, nothing counted."""
        self._simulated = self._engaged = False
        self._last_now = self._began = self._interventions = self._missed = 0
        self._state = State.INACTIVE
        self._cycle.start(0)


def main(argv: list[str] | None = None) -> int:
    """Run the safety node."""
    return run(SafetyNode, argv)


if __name__ == '__main__':
    raise SystemExit(main())
