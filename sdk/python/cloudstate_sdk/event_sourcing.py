"""Event sourced entities as a proxy drives them: one stream for each entity in memory, its events replayed first."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import grpc
from google.protobuf import any_pb2

from cloudstate_sdk.any_values import Value
from cloudstate_sdk.context import CommandFailed, Context, answer, pack
from cloudstate_sdk.definition import Definition
from cloudstate_sdk.handling import finished, text_of
from cloudstate_sdk.kinds import read
from cloudstate_sdk.pb.cloudstate import entity_pb2, event_sourced_pb2
from cloudstate_sdk.requests import parse

log = logging.getLogger(__name__)
In = event_sourced_pb2.EventSourcedStreamIn
Out = event_sourced_pb2.EventSourcedStreamOut


def handler(definitions: dict[str, Definition]) -> Any:
    """The protocol's one method, over all event sourced entities of a function."""

    async def handle(requests: AsyncIterator[In], context: Any) -> AsyncIterator[Out]:
        entity: LiveEntity | None = None
        async for message in requests:
            kind = message.WhichOneof("message")
            if kind == "init":
                entity = LiveEntity(definitions[message.init.service_name], message.init)
            elif entity is None:
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the first message of an entity's stream must be `init`")
            elif kind == "event":
                entity.replay(message.event.payload)
            else:
                yield await entity.command(message.command)

    return grpc.stream_stream_rpc_method_handler(handle, In.FromString, Out.SerializeToString)


class LiveEntity:
    """One entity in memory, from its init to the end of its stream."""

    def __init__(self, definition: Definition, init: event_sourced_pb2.EventSourcedInit) -> None:
        self._definition, self._entity_id = definition, init.entity_id
        self._entity = definition.entity(init.entity_id)
        self._since_snapshot = 0
        self._half_applied = ""
        """The @event method that failed with a new event: what it has changed by then is stored nowhere."""
        if init.HasField("snapshot"):
            if definition.restored is None:  # without it the state would be that of the later events alone
                raise LookupError(f"{definition.service}: a snapshot is stored, and no @restore method takes it; to take no more: snapshot_every=0")
            getattr(self._entity, definition.restore)(read(init.snapshot.snapshot, definition.restored, definition.descriptor.pool))

    def replay(self, payload: any_pb2.Any) -> None:
        """Apply a stored event."""
        handler, kind = self._definition.event_handler(payload.type_url)
        getattr(self._entity, handler)(read(payload, kind, self._definition.descriptor.pool))
        self._since_snapshot += 1

    def _apply(self, encoded: any_pb2.Any, event: Value) -> None:
        """Apply a new event as `replay` would."""
        handler, kind = self._definition.event_handler(encoded.type_url)
        if any_pb2.Any in (type(event), kind):
            event = read(encoded, kind, self._definition.descriptor.pool)
        self._half_applied = handler
        getattr(self._entity, handler)(event)
        self._half_applied = ""

    async def command(self, command: Any) -> Out:
        """Execute a command; a mistake of the handler crashes the entity, a `fail` does not."""
        target = self._definition.commands[command.name]
        context = Context(self._entity_id, self._apply, command.metadata)
        reply = event_sourced_pb2.EventSourcedReply(command_id=command.id)
        try:
            with closing(context):
                result = await finished(getattr(self._entity, target.handler)(parse(command, target), context))
            if self._half_applied:
                raise RuntimeError(f"an event was applied in part: `{self._half_applied}` failed, and the command went on")
            answer(reply.client_action, result, target.wraps, context)
            reply.events.extend(context.events)
            self._snapshot(reply)
        except CommandFailed as failure:
            changed = bool(context.events or self._half_applied)
            refusal = entity_pb2.Failure(command_id=command.id, description=str(failure), restart=changed)
            refused = event_sourced_pb2.EventSourcedReply(command_id=command.id, client_action=entity_pb2.ClientAction(failure=refusal))
            return Out(reply=refused)
        except Exception as error:
            log.exception("%s: command %s failed", self._definition.service, command.name)
            return Out(failure=entity_pb2.Failure(command_id=command.id, description=text_of(error)))
        reply.side_effects.extend(context.effects)
        return Out(reply=reply)

    def _snapshot(self, reply: event_sourced_pb2.EventSourcedReply) -> None:
        """Add a snapshot when enough events have come since the last one."""
        self._since_snapshot += len(reply.events)
        every = self._definition.snapshot_every
        if self._definition.snapshot and reply.events and every and self._since_snapshot >= every:
            pack(reply.snapshot, getattr(self._entity, self._definition.snapshot)())
            self._since_snapshot = 0
