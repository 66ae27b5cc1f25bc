"""User functions that are made up for tests of the real proxy, without any SDK."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2

from cloudstate_core.pb.cloudstate import entity_pb2, event_sourced_pb2
from kn_cloudstate.ports import free_port
from stateful_proxy.service import EVENT_SOURCED

KEY_OPTION = b"\xc0\x43\x01"
ANY = b'\n\x19google/protobuf/any.proto\x12\x0fgoogle.protobuf"\x05\n\x03Anyb\x06proto3'
"""The descriptor of google/protobuf/any.proto, as a file of a set."""


def spec(entity_type: str = EVENT_SOURCED, service: str = "t.S", method: str = "Count", key: bool = True) -> entity_pb2.EntitySpec:
    """A function with one service of one method."""
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    field = file.message_type.add(name="M").field.add(name="id", number=1, type=9, label=1)
    if key:
        field.options.MergeFromString(KEY_OPTION)
    file.service.add(name="S").method.add(name=method, input_type=".t.M", output_type=".t.M")
    made = entity_pb2.EntitySpec(proto=descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString())
    made.entities.add(entity_type=entity_type, service_name=service, persistence_id="p")
    made.service_info.protocol_minor_version = 2
    return made


class Function:
    """A user function that says what it is told to say; each command is one event, and its answer the number of events."""

    def __init__(self, says: entity_pb2.EntitySpec | None = None) -> None:
        self.says, self.port = says, free_port()
        self.speaks = asyncio.Event()
        """Not set: it never answers discovery."""
        if says is not None:
            self.speaks.set()
        self.asked = 0
        self.reported: list[str] = []

    async def start(self) -> None:
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        discovery: Any = {"discover": unary(self._discover), "reportError": unary(self._report)}
        handle: Any = {"handle": stream(self._handle, event_sourced_pb2.EventSourcedStreamIn.FromString)}
        handlers = (("cloudstate.EntityDiscovery", discovery), (EVENT_SOURCED, handle))
        self.server.add_generic_rpc_handlers(tuple(grpc.method_handlers_generic_handler(*named) for named in handlers))
        assert self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()

    async def stop(self) -> None:
        """End as a process does that is killed."""
        self.speaks.set()
        await self.server.stop(0)

    async def _discover(self, request: bytes, context: Any) -> bytes:
        self.asked += 1
        await self.speaks.wait()
        assert self.says is not None
        return self.says.SerializeToString()

    async def _report(self, request: bytes, context: Any) -> bytes:
        self.reported.append(entity_pb2.UserFunctionError.FromString(request).message)
        return b""

    async def _handle(self, requests: Any, context: Any) -> AsyncIterator[bytes]:
        count = 0
        async for message in requests:
            count += message.WhichOneof("message") == "event"
            if message.WhichOneof("message") == "command":
                count += 1
                out = event_sourced_pb2.EventSourcedStreamOut()
                out.reply.command_id = message.command.id
                payload = out.reply.client_action.reply.payload
                payload.type_url, payload.value = "type.googleapis.com/t.M", b"%d" % count
                out.reply.events.add(type_url="json.cloudstate.io/e", value=b"{}")
                yield out.SerializeToString()
