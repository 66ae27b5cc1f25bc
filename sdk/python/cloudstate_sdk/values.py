"""Value entities as a proxy drives them: one stream for each entity in memory, its value first."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import grpc
from google.protobuf import any_pb2

from cloudstate_sdk.context import CommandFailed, ValueContext, answer, pack, packed
from cloudstate_sdk.definition import Definition
from cloudstate_sdk.handling import finished, text_of
from cloudstate_sdk.kinds import adapted, empty, read
from cloudstate_sdk.pb.cloudstate import entity_pb2, value_entity_pb2
from cloudstate_sdk.requests import parse

log = logging.getLogger(__name__)
In = value_entity_pb2.ValueEntityStreamIn
Out = value_entity_pb2.ValueEntityStreamOut


def handler(definitions: dict[str, Definition]) -> Any:
    """The protocol's one method, over all value entities of a function."""

    async def handle(requests: AsyncIterator[In], context: Any) -> AsyncIterator[Out]:
        entity: LiveValue | None = None
        async for message in requests:
            if message.HasField("init"):
                entity = LiveValue(definitions[message.init.service_name], message.init)
            elif entity is None:
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the first message of an entity's stream must be `init`")
            else:
                yield await entity.command(message.command)

    return grpc.stream_stream_rpc_method_handler(handle, In.FromString, Out.SerializeToString)


class LiveValue:
    """One value entity in memory."""

    def __init__(self, definition: Definition, init: value_entity_pb2.ValueEntityInit) -> None:
        assert definition.state is not None
        self._definition, self._entity_id, self._kind = definition, init.entity_id, definition.state or object
        self._entity = definition.entity()
        self._value: any_pb2.Any | None = init.state.value if init.state.HasField("value") else None

    async def command(self, command: Any) -> Out:
        """Execute a command; a mistake of the handler crashes the entity, a `fail` does not."""
        target = self._definition.commands[command.name]
        reply = value_entity_pb2.ValueEntityReply(command_id=command.id)
        try:
            context: ValueContext[Any] = ValueContext(self._entity_id, self._state(), self._value is not None, command.metadata)
            with closing(context):
                result = await finished(getattr(self._entity, target.handler)(parse(command, target), context))
            answer(reply.client_action, result, target.wraps, context)
            if context.updated is not None:
                pack(reply.state_action.update.value, adapted(context.updated, self._kind))
            elif context.deleted:
                reply.state_action.delete.SetInParent()
        except CommandFailed as failure:
            refusal = entity_pb2.Failure(command_id=command.id, description=str(failure))
            refused = value_entity_pb2.ValueEntityReply(command_id=command.id, client_action=entity_pb2.ClientAction(failure=refusal))
            return Out(reply=refused)
        except Exception as error:
            log.exception("%s: command %s failed", self._definition.service, command.name)
            return Out(failure=entity_pb2.Failure(command_id=command.id, description=text_of(error)))
        reply.side_effects.extend(context.effects)
        if reply.HasField("state_action"):
            self._value = reply.state_action.update.value if context.updated is not None else None
        return Out(reply=reply)

    def _state(self) -> Any:
        """A copy of the value for a command."""
        return empty(self._kind) if self._value is None else read(packed(self._value), self._kind, self._definition.descriptor.pool)
