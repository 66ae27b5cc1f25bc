"""Serves entity classes to a stateful proxy: discovery, and one stream for every live entity."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from google.protobuf import any_pb2, descriptor_pb2, empty_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError, Message

from cloudstate_sdk.entity import URL, CommandFailed, Context, Definition, definition_of
from cloudstate_sdk.pb.cloudstate import entity_pb2, event_sourced_pb2

log = logging.getLogger(__name__)

MAX_PENDING = 100_000
"""Streams that may wait to be taken. From 1,000 on (its default) grpc's core rejects some at random, and a proxy wakes many entities at once."""
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.so_reuseport", 0),
    ("grpc.server.max_pending_requests", MAX_PENDING),
    ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING),
]


class Function:
    """A user function that serves some entity classes."""

    def __init__(self, *entities: type, name: str = "") -> None:
        self._definitions = {d.service: d for d in map(definition_of, entities)}
        self._name = name or "-".join(e.__name__.lower() for e in entities)

    def run(self, host: str | None = None, port: int | None = None) -> None:
        """Serve until SIGTERM or SIGINT, on `$HOST:$PORT` unless told otherwise."""
        asyncio.run(self.serve(host or os.environ.get("HOST", "127.0.0.1"), port if port is not None else int(os.environ.get("PORT", "8080"))))

    async def serve(self, host: str, port: int) -> None:
        """Serve until SIGTERM or SIGINT, or until cancelled."""
        server, bound = await self.start(host, port)
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        log.info("%s serves on %s:%d", self._name, host, bound)
        await stopped.wait()
        await server.stop(1.0)

    async def start(self, host: str, port: int) -> tuple[grpc.aio.Server, int]:
        """Start serving; the server and its port. RuntimeError when the port is taken."""
        server = grpc.aio.server(options=OPTIONS)
        discover: Any = grpc.unary_unary_rpc_method_handler(
            self._discover, entity_pb2.ProxyInfo.FromString, entity_pb2.EntitySpec.SerializeToString
        )
        report: Any = grpc.unary_unary_rpc_method_handler(
            self._report_error, entity_pb2.UserFunctionError.FromString, empty_pb2.Empty.SerializeToString
        )
        handle: Any = grpc.stream_stream_rpc_method_handler(
            self._handle, event_sourced_pb2.EventSourcedStreamIn.FromString, event_sourced_pb2.EventSourcedStreamOut.SerializeToString
        )
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler("cloudstate.EntityDiscovery", {"discover": discover, "reportError": report}),
                grpc.method_handlers_generic_handler("cloudstate.eventsourced.EventSourced", {"handle": handle}),
            )
        )
        bound = server.add_insecure_port(f"{host}:{port}")
        await server.start()
        return server, bound

    async def _discover(self, info: entity_pb2.ProxyInfo, context: Any) -> entity_pb2.EntitySpec:
        spec = entity_pb2.EntitySpec(proto=_descriptors([d.descriptor for d in self._definitions.values()]))
        for definition in self._definitions.values():
            entity = spec.entities.add(
                entity_type="cloudstate.eventsourced.EventSourced",
                service_name=definition.service,
                persistence_id=definition.persistence_id,
            )
            if definition.passivation > 0:
                entity.passivation_strategy.timeout.timeout = round(definition.passivation * 1000)
        about = spec.service_info
        about.service_name, about.support_library_name, about.support_library_version = self._name, "cloudstate-sdk (Python)", "0.1.0"
        about.protocol_minor_version = 2
        return spec

    async def _report_error(self, error: entity_pb2.UserFunctionError, context: Any) -> empty_pb2.Empty:
        log.error("the proxy reports: %s", error.message)
        return empty_pb2.Empty()

    async def _handle(
        self, requests: AsyncIterator[event_sourced_pb2.EventSourcedStreamIn], context: Any
    ) -> AsyncIterator[event_sourced_pb2.EventSourcedStreamOut]:
        entity: LiveEntity | None = None
        async for message in requests:
            kind = message.WhichOneof("message")
            if kind == "init":
                entity = LiveEntity(self._definitions[message.init.service_name], message.init)
            elif entity is None:
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the first message of an entity's stream must be `init`")
            elif kind == "event":
                entity.replay(message.event.payload)
            else:
                yield await entity.command(message.command)


class LiveEntity:
    """One entity in memory, from its init to the end of its stream."""

    def __init__(self, definition: Definition, init: event_sourced_pb2.EventSourcedInit) -> None:
        self._definition, self._entity_id = definition, init.entity_id
        self._entity = definition.entity(init.entity_id)
        self._since_snapshot = 0
        if init.HasField("snapshot") and definition.restored is not None:
            getattr(self._entity, definition.restore)(definition.restored.FromString(init.snapshot.snapshot.value))

    def replay(self, payload: any_pb2.Any) -> None:
        """Apply a stored event."""
        handler, message = self._definition.events[payload.type_url.removeprefix(URL)]
        getattr(self._entity, handler)(message.FromString(payload.value))
        self._since_snapshot += 1

    def _apply(self, event: Message) -> None:
        handler, _ = self._definition.events[event.DESCRIPTOR.full_name]
        getattr(self._entity, handler)(event)

    async def command(self, command: Any) -> event_sourced_pb2.EventSourcedStreamOut:
        """Execute a command; a failure of the handler itself crashes the entity, a `fail` does not."""
        target = self._definition.commands[command.name]
        context = Context(self._entity_id, self._apply)
        reply = event_sourced_pb2.EventSourcedReply(command_id=command.id)
        try:
            result = getattr(self._entity, target.handler)(_parse(command, target.request), context)
            if inspect.isawaitable(result):
                result = await result
        except CommandFailed as failure:
            reply.client_action.failure.command_id = command.id
            reply.client_action.failure.description = str(failure)
            reply.client_action.failure.restart = bool(context.events)
            return event_sourced_pb2.EventSourcedStreamOut(reply=reply)
        except Exception as error:
            log.exception("%s: command %s failed", self._definition.service, command.name)
            failure_message = entity_pb2.Failure(command_id=command.id, description=str(error))
            return event_sourced_pb2.EventSourcedStreamOut(failure=failure_message)
        _pack(reply.client_action.reply.payload, result)
        for event in context.events:
            _pack(reply.events.add(), event)
        self._snapshot(reply)
        return event_sourced_pb2.EventSourcedStreamOut(reply=reply)

    def _snapshot(self, reply: event_sourced_pb2.EventSourcedReply) -> None:
        """Add a snapshot when enough events have come since the last one."""
        self._since_snapshot += len(reply.events)
        every = self._definition.snapshot_every
        if self._definition.snapshot and reply.events and every and self._since_snapshot >= every:
            _pack(reply.snapshot, getattr(self._entity, self._definition.snapshot)())
            self._since_snapshot = 0


def _parse(command: Any, kind: type[Message]) -> Message:
    """The command's request. CommandFailed when it is none: that is the caller's mistake, and no reason to end the entity."""
    try:
        return kind.FromString(command.payload.value)
    except DecodeError as error:
        raise CommandFailed(f"{command.name}: the request is not a {kind.DESCRIPTOR.full_name}: {error}") from error


def _pack(target: any_pb2.Any, message: Message) -> None:
    target.type_url, target.value = URL + message.DESCRIPTOR.full_name, message.SerializeToString(deterministic=True)


def _descriptors(files: list[FileDescriptor]) -> bytes:
    """A serialized FileDescriptorSet of some files and everything they import, imports first."""
    found: dict[str, FileDescriptor] = {}

    def add(file: FileDescriptor) -> None:
        if file.name not in found:
            for dependency in file.dependencies:
                add(dependency)
            found[file.name] = file

    for file in files:
        add(file)
    result = descriptor_pb2.FileDescriptorSet()
    for file in found.values():
        file.CopyToProto(result.file.add())
    return result.SerializeToString()
