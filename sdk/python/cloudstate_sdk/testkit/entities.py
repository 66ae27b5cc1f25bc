"""What the kits of entities share: one stream at a time, commands numbered from 1 on it, and a crash that ends it."""

from __future__ import annotations

import abc
from typing import Any, Generic, TypeVar

from cloudstate_sdk.any_values import Value
from cloudstate_sdk.context import Entries, pack
from cloudstate_sdk.pb.cloudstate import entity_pb2
from cloudstate_sdk.testkit.driving import Conversation, Kit, metadata_of
from cloudstate_sdk.testkit.results import Crashed, Result

R = TypeVar("R", bound=Result)


class EntityKit(Kit, abc.ABC, Generic[R]):
    """One entity in memory."""

    def __init__(self, entity: type, entity_type: str, entity_id: str, **changes: Any) -> None:
        super().__init__(entity, entity_type, **changes)
        self.entity_id = entity_id
        self._stream: Conversation[Any, Any] | None = None
        self._commands = 0

    def call(self, command: str, request: Value, metadata: Entries = ()) -> R:
        """Execute a command by the name of its gRPC method.

        Crashed when the handler raises anything but `fail`; LookupError for a method that the service has not, TypeError for a request or a reply of
        another type than the method's.
        """
        return self._run(self.acall(command, request, metadata))

    async def acall(self, command: str, request: Value, metadata: Entries = ()) -> R:
        """`call`, for tests that are coroutines."""
        message = entity_pb2.Command(entity_id=self.entity_id, name=command)
        pack(message.payload, self._checked(self._method(command), request))
        if metadata:
            message.metadata.CopyFrom(metadata_of(metadata))
        async with self._turn:
            stream = self._live()
            self._commands += 1
            message.id = self._commands
            answer = await stream.ask(self._command(message))
            if answer.HasField("failure"):
                self._stream = None
                raise Crashed(f"{self._component.__name__}.{self._definition.commands[command].handler}: {answer.failure.description}")
            return self._stored(command, answer.reply)

    def _live(self) -> Conversation[Any, Any]:
        """The stream; a new one, on which the entity is rebuilt, when there is none."""
        if self._stream is None:
            self._commands, self._stream = 0, self._open()
        return self._stream

    @abc.abstractmethod
    def _open(self) -> Conversation[Any, Any]:
        """Begin a stream and rebuild the entity."""

    @abc.abstractmethod
    def _command(self, command: entity_pb2.Command) -> Any:
        """A command in the message of the entity's kind."""

    @abc.abstractmethod
    def _stored(self, command: str, reply: Any) -> R:
        """Do with a reply what the proxy does; what came of it."""
