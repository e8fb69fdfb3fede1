"""Robots of a fleet in one process, to try a strategy and to test."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

from liquid_trainer.flower import ClientApp, Context, Error, Grid, Message, RecordDict


class LocalGrid(Grid):
    """
    Robots in this process, asked one after the other: for tests, and to try a strategy.

    :param app: what every robot runs.
    :param robots: their `node_config`, one for each.
    """

    def __init__(self, app: ClientApp, robots: list[dict[str, Any]]):
        # What Flower's runtime sets in the server's process, and messages are signed with.
        from flwr.supercore.task_identity import TaskIdentity
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 0
        self._app = app
        self._contexts = {number: Context(
            run_id=1, node_id=number, node_config=config, state=RecordDict(), run_config={})
            for number, config in enumerate(robots, start=1)}
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """Take the run; there is only one."""

    @property
    def run(self) -> Any:
        """The run, as far as anybody asks for it."""
        return SimpleNamespace(run_id=1)

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int,
                       group_id: str, ttl: float | None = None) -> Message:
        """Return a message to a robot."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type,
                       group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the robots' numbers, from 1."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let robots answer, and keep the answers."""
        names = []
        for message in messages:
            self._replies[name := str(len(self._replies))] = self._answer(message)
            names.append(name)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the answers."""
        return [self._replies.pop(name) for name in message_ids]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None
                         ) -> Iterable[Message]:
        """Return the robots' answers."""
        return [self._answer(message) for message in messages]

    def _answer(self, message: Message) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        # A robot changes what it was sent; the next one must get it as it was.
        copy = Message(deepcopy(message.content), dst_node_id=message.metadata.dst_node_id,
                       message_type=message.metadata.message_type,
                       group_id=message.metadata.group_id)
        try:
            return self._app(copy, context)
        except Exception as error:      # what the robot's own process would have died of
            return Message(Error(code=0, reason=f'{type(error).__name__}: {error}'),
                           reply_to=copy)
