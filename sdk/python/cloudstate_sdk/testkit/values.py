"""A value entity in memory, with the value that a proxy would keep for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cloudstate_sdk import values
from cloudstate_sdk.any_values import Value
from cloudstate_sdk.context import packed
from cloudstate_sdk.definition import VALUE_ENTITY
from cloudstate_sdk.pb.cloudstate import entity_pb2, value_entity_pb2
from cloudstate_sdk.testkit.driving import Conversation
from cloudstate_sdk.testkit.entities import EntityKit
from cloudstate_sdk.testkit.results import Result, decoded, outcome

In = value_entity_pb2.ValueEntityStreamIn


@dataclass(frozen=True, slots=True)
class ValueResult(Result):
    """What came of a command on a value entity."""

    updated: Any = None
    """The value that was stored; None when none was."""
    deleted: bool = False


class ValueKit(EntityKit[ValueResult]):
    """Calls the commands of one entity and keeps its value, as a proxy does; `state` is a value to begin with.

    DefinitionError for a class that is no value entity.
    """

    def __init__(self, entity: type, entity_id: str = "entity", *, state: Value | None = None) -> None:
        super().__init__(entity, VALUE_ENTITY, entity_id)
        self._value = None if state is None else packed(state)

    @property
    def state(self) -> Any:
        """The stored value; None when there is none."""
        return None if self._value is None else decoded(self._value, self._definition.descriptor)

    def restart(self) -> Any:
        """Forget what is in memory and begin again from the stored value, as after a crash or a move to another pod; that value."""
        self._commands, self._stream = 0, self._open()
        return self.state

    def _open(self) -> Conversation[Any, Any]:
        stream: Conversation[Any, Any] = Conversation(values.handler({self._definition.service: self._definition}).stream_stream)
        init = value_entity_pb2.ValueEntityInit(service_name=self._definition.service, entity_id=self.entity_id)
        init.state.SetInParent()
        if self._value is not None:
            init.state.value.CopyFrom(self._value)
        stream.send(In(init=init))
        return stream

    def _command(self, command: entity_pb2.Command) -> Any:
        return In(command=command)

    def _stored(self, command: str, reply: Any) -> ValueResult:
        """Nothing of a failed command is stored."""
        result = outcome(self._definition, command, reply.client_action, reply.side_effects)
        action = None if reply.client_action.HasField("failure") else reply.state_action.WhichOneof("action")
        if action == "update":
            self._value = reply.state_action.update.value
            return ValueResult(**result, updated=self.state)
        if action == "delete":
            self._value = None
        return ValueResult(**result, deleted=action == "delete")
