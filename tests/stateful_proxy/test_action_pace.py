"""Large streams through a real proxy: the slower side sets the pace, every byte arrives, and the proxy's memory stays small."""

from __future__ import annotations

import asyncio
import pathlib
import signal
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2

from cloudstate_core.pb.cloudstate import action_pb2, entity_pb2
from kn_cloudstate.ports import free_port
from stateful_proxy.service import ACTION
from tests.stateful_proxy.processes import BACKENDS, PATIENCE, ProxyProcess

PIECE, COUNT = 100_000, 1000
MOST_AHEAD = 60_000_000
"""Bytes of the 100 MB that buffers and windows of caller, proxy and function may hold together (grpc's windows grow)."""
MOST_MEMORY = 32 << 10
"""KiB by which the proxy may grow."""


def spec() -> entity_pb2.EntitySpec:
    """One action service: a stream in, a stream out."""
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    file.message_type.add(name="M").field.add(name="data", number=1, type=12, label=1)
    service = file.service.add(name="S")
    service.method.add(name="In", input_type=".t.M", output_type=".t.M", client_streaming=True)
    service.method.add(name="Out", input_type=".t.M", output_type=".t.M", server_streaming=True)
    made = entity_pb2.EntitySpec(proto=descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString())
    made.entities.add(entity_type=ACTION, service_name="t.S")
    made.service_info.protocol_minor_version = 2
    return made


class Function:
    """Gives 100 MB out, and takes any number in once `go` is set."""

    def __init__(self) -> None:
        self.port, self.go, self.given = free_port(), asyncio.Event(), 0

    async def start(self) -> None:
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        discovery: Any = {
            "discover": grpc.unary_unary_rpc_method_handler(self._discover),
            "reportError": grpc.unary_unary_rpc_method_handler(self._report),
        }
        action: Any = {
            "handleStreamedIn": grpc.stream_unary_rpc_method_handler(self._take),
            "handleStreamedOut": grpc.unary_stream_rpc_method_handler(self._give),
        }
        handlers = (("cloudstate.EntityDiscovery", discovery), (ACTION, action))
        self.server.add_generic_rpc_handlers(tuple(grpc.method_handlers_generic_handler(*named) for named in handlers))
        assert self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()

    async def _discover(self, request: bytes, context: Any) -> bytes:
        return spec().SerializeToString()

    async def _report(self, request: bytes, context: Any) -> bytes:
        return b""

    async def _give(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        response = answer(bytes(PIECE))
        for _ in range(COUNT):
            self.given += PIECE
            yield response

    async def _take(self, requests: Any, context: Any) -> bytes:
        await self.go.wait()
        taken = 0
        async for request in requests:
            taken += len(action_pb2.ActionCommand.FromString(request).payload.value)
        return answer(b"%d" % taken)


def answer(payload: bytes) -> bytes:
    response = action_pb2.ActionResponse()
    response.reply.payload.type_url, response.reply.payload.value = "type.googleapis.com/t.M", payload
    return response.SerializeToString()


@pytest.fixture
async def function() -> AsyncIterator[Function]:
    made = Function()
    await made.start()
    yield made
    made.go.set()
    await made.server.stop(0)


@pytest.fixture(params=BACKENDS)
async def proxy(request: pytest.FixtureRequest, function: Function) -> AsyncIterator[ProxyProcess]:
    made = await ProxyProcess(function.port, request.param).start()
    yield made
    await made.end(signal.SIGKILL)


def memory(proxy: ProxyProcess, field: str) -> int:
    """KiB; VmRSS now, VmHWM at the most."""
    status = pathlib.Path(f"/proc/{proxy.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{field}:"))


async def rests(given: Any) -> int:
    """The count once it grows no more."""
    seen: list[int] = []
    async with asyncio.timeout(PATIENCE):
        while len(seen) < 30 or not seen[-1] or len(set(seen[-30:])) > 1:
            seen.append(given())
            await asyncio.sleep(0.02)
    return seen[-1]


async def test_a_caller_who_reads_slowly(proxy: ProxyProcess, function: Function) -> None:
    before = memory(proxy, "VmRSS")
    call = proxy.channel.unary_stream("/t.S/Out")(b"", timeout=120, wait_for_ready=True)
    received = len(await call.read())
    assert await rests(lambda: function.given) <= MOST_AHEAD
    while (message := await call.read()) is not grpc.aio.EOF:
        received += len(message)
    assert received == COUNT * PIECE
    assert await call.code() is grpc.StatusCode.OK
    assert memory(proxy, "VmHWM") - before <= MOST_MEMORY


async def test_a_function_that_reads_slowly(proxy: ProxyProcess, function: Function) -> None:
    given = 0

    async def requests() -> AsyncIterator[bytes]:
        nonlocal given
        for _ in range(COUNT):
            given += PIECE
            yield bytes(PIECE)

    before = memory(proxy, "VmRSS")
    call = proxy.channel.stream_unary("/t.S/In")(requests(), timeout=120, wait_for_ready=True)
    assert await rests(lambda: given) <= MOST_AHEAD
    function.go.set()
    assert await call == b"%d" % (COUNT * PIECE)
    assert memory(proxy, "VmHWM") - before <= MOST_MEMORY
