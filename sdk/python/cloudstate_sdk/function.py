"""Serves the entities and actions of a user function to a stateful proxy, and answers its discovery."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections import deque
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, empty_pb2
from google.protobuf.descriptor import FileDescriptor

from cloudstate_sdk import event_sourcing, serving, values
from cloudstate_sdk.actions import Calls
from cloudstate_sdk.crdt import stream as crdt_stream
from cloudstate_sdk.definition import ACTION, CRDT, EVENT_SOURCED, VALUE_ENTITY, Definition, DefinitionError, definition_of
from cloudstate_sdk.pb.cloudstate import entity_pb2
from cloudstate_sdk.serving import Server

log = logging.getLogger(__name__)
ENDS = (signal.SIGTERM, signal.SIGINT)


class Function:
    """A user function that serves some entities and actions. DefinitionError when one is none, or two serve the same."""

    def __init__(self, *entities: type, name: str = "") -> None:
        self._definitions: dict[str, Definition] = {}
        for entity in entities:
            definition = definition_of(entity)
            if (other := self._definitions.setdefault(definition.service, definition)) is not definition:
                raise DefinitionError(f"{other.entity.__name__} and {entity.__name__} both serve {definition.service}")
        self._name = name or "-".join(e.__name__.lower() for e in entities)
        self.reports: deque[str] = deque(maxlen=100)
        """What the proxy has found wrong with this function, the latest last."""

    def run(self, host: str | None = None, port: int | None = None, transport: str = "") -> None:
        """Serve until SIGTERM or SIGINT, on `$HOST:$PORT` unless told otherwise; `transport` as for `start`."""
        address = host or os.environ.get("HOST", "127.0.0.1"), port if port is not None else int(os.environ.get("PORT", "8080"))
        asyncio.run(self.serve(*address, transport))

    async def serve(self, host: str, port: int, transport: str = "") -> None:
        """Serve until SIGTERM or SIGINT, or until cancelled."""
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        # before the port opens: whoever finds it open may tell this process to end
        for number in ENDS:
            loop.add_signal_handler(number, stopped.set)
        try:
            server, bound = await self.start(host, port, transport)
            log.info("%s serves on %s:%d", self._name, host, bound)
            try:
                await stopped.wait()
            finally:
                await server.stop(1.0)
        finally:
            for number in ENDS:
                loop.remove_signal_handler(number)

    async def start(self, host: str, port: int, transport: str = "") -> tuple[Server, int]:
        """Start serving; the server and its port.

        `transport` is `native` (the engine of `cloudstate-sdk[engine]`), `grpcio`, or `auto`: the engine where it is installed. '' stands for what
        CLOUDSTATE_SDK_TRANSPORT says, else for `auto`. OSError when the port is taken; ImportError and ValueError for a transport that is not there.
        """
        return await serving.start(self._methods(), host, port, transport)

    def _methods(self) -> dict[str, Any]:
        """The protocol's methods by path."""
        discover: Any = grpc.unary_unary_rpc_method_handler(self._discover, entity_pb2.ProxyInfo.FromString, entity_pb2.EntitySpec.SerializeToString)
        report: Any = grpc.unary_unary_rpc_method_handler(
            self._report_error, entity_pb2.UserFunctionError.FromString, empty_pb2.Empty.SerializeToString
        )
        services: dict[str, dict[str, Any]] = {"cloudstate.EntityDiscovery": {"discover": discover, "reportError": report}}
        if found := self._of(EVENT_SOURCED):
            services[EVENT_SOURCED] = {"handle": event_sourcing.handler(found)}
        if found := self._of(VALUE_ENTITY):
            services[VALUE_ENTITY] = {"handle": values.handler(found)}
        if found := self._of(CRDT):
            services[CRDT] = {"handle": crdt_stream.handler(found)}
        if found := self._of(ACTION):
            services[ACTION] = Calls(found).handlers()
        return {f"/{service}/{name}": method for service, methods in services.items() for name, method in methods.items()}

    async def _discover(self, info: entity_pb2.ProxyInfo, context: Any) -> entity_pb2.EntitySpec:
        spec = entity_pb2.EntitySpec(proto=_descriptors([d.descriptor for d in self._definitions.values()]))
        for definition in self._definitions.values():
            entity = spec.entities.add(
                entity_type=definition.entity_type,
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
        self.reports.append(error.message)
        return empty_pb2.Empty()

    def _of(self, entity_type: str) -> dict[str, Definition]:
        return {name: definition for name, definition in self._definitions.items() if definition.entity_type == entity_type}


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
