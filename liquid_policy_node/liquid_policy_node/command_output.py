"""What the safety node sends: the robot's commands and its own status, from messages made once."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np

from liquid_policy.barrier import Filtered, Proposal
from liquid_policy.conversion import fill_message
from liquid_policy.inputs import TimedProposal
from liquid_policy.interface import ActionSpec, Interface
from liquid_policy.limits import Limits
from liquid_policy_msgs.msg import SafetyStatus
from liquid_policy_node import qos
from liquid_policy_node.resources import message_class

NANOSECONDS = 1_000_000_000


def write_stamp(stamp: Any, now: int) -> None:
    """
    Set a builtin_interfaces/Time.

    :param stamp: the message.
    :param now: [ns].
    """
    stamp.sec, stamp.nanosec = divmod(now, NANOSECONDS)


class _Output:
    """
    One command topic.

    Its message is made once. A list that is filled from its first number on, as
    Float64MultiArray's, is set at once; other messages go by their fields.
    """

    def __init__(self, node: Any, interface: Interface, spec: ActionSpec, limits: Limits) -> None:
        self.spec, self.place = spec, interface.slice_of(spec.name)
        self.moving = bool(limits.moving[self.place].any())
        kind = message_class(spec.type)
        self.message = kind()
        self.publisher = node.create_publisher(kind, spec.topic, qos.COMMAND)
        self._header = getattr(self.message, 'header', None)
        self._is_list = spec.type == 'std_msgs/msg/Float64MultiArray' and spec.fields == tuple(
            f'data.{index}' for index in range(spec.size))

    def send(self, command: np.ndarray, now: int) -> None:
        values = command[self.place]
        if self._header is not None:
            write_stamp(self._header.stamp, now)
        if self._is_list:
            self.message.data = array('d', values)
        else:
            fill_message(self.spec, self.message, values)
        self.publisher.publish(self.message)


class CommandOutput:
    """Publishers of the robot's commands and of `safety_status`."""

    def __init__(self, node: Any, interface: Interface, limits: Limits) -> None:
        """
        Create the topics.

        :param node: rclpy node.
        :param interface: of the robot.
        :param limits: of the robot.
        """
        self._node = node
        self._outputs = [
            _Output(node, interface, spec, limits) for spec in interface.actions.values()]
        self._status = SafetyStatus(action_names=list(interface.action_names))
        self._status_publisher = node.create_publisher(SafetyStatus, 'safety_status', qos.STATUS)

    def destroy(self) -> None:
        """Destroy the topics."""
        for output in self._outputs:
            self._node.destroy_publisher(output.publisher)
        self._node.destroy_publisher(self._status_publisher)

    def send(self, command: np.ndarray, now: int, everything: bool = True) -> None:
        """
        Tell the robot.

        :param command: finite, `(A,)`.
        :param now: stamp of commands that have one [ns].
        :param everything: False leaves out topics without a speed or torque: a gripper keeps what
            it holds.
        :raises ValueError: if it is not finite; nothing is sent then.
        """
        if not np.isfinite(command).all():
            raise ValueError(f'expected a finite command, came {command.tolist()}')
        for output in self._outputs:
            if everything or output.moving:
                output.send(command, now)

    def report(
        self, result: Filtered, now: int, interventions: int = 0, missed: int = 0,
        wanted: Proposal | None = None, proposal: TimedProposal | None = None,
    ) -> None:
        """
        Say what was done instead of what was wanted.

        :param result: what was done.
        :param now: stamp of the report [ns].
        :param interventions: commands that were not the proposal, so far.
        :param missed: deadlines missed so far.
        :param wanted: what the proposal wanted now, if there was one.
        :param proposal: that proposal.
        """
        status = self._status
        status.state = int(result.state)
        status.reasons, status.active_constraints = list(result.reasons), list(result.active)
        status.issued = array('d', result.command)
        status.amounts = array('d', result.amounts)
        status.interventions, status.missed_deadlines = interventions, missed
        write_stamp(status.header.stamp, now)
        if wanted is None or proposal is None:
            status.proposed, status.model_version = array('d'), ''
            write_stamp(status.proposal_stamp, 0)
            write_stamp(status.image_stamp, 0)
        else:
            status.proposed, status.model_version = array('d', wanted.action), proposal.version
            write_stamp(status.proposal_stamp, proposal.stamp)
            write_stamp(status.image_stamp, proposal.image_stamp)
        self._status_publisher.publish(status)
