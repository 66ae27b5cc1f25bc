"""A user function with one replicated counter for each key, and a cluster of real proxies before it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2

from autoscaler.coordination import CoordinationServer
from cloudstate_core.journal.memory import MemoryJournal
from cloudstate_core.journal.server import JournalServer
from cloudstate_core.pb.cloudstate import crdt_pb2, entity_pb2
from kn_cloudstate.ports import free_port
from stateful_proxy.service import CRDT
from tests.stateful_proxy.processes import NAME, PATIENCE, SHARDS, ProxyProcess

KEY_OPTION = b"\xc0\x43\x01"


def spec() -> entity_pb2.EntitySpec:
    """`t.C` with Add and Watch; a request is a key and a number, and so is an answer."""
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    message = file.message_type.add(name="M")
    message.field.add(name="id", number=1, type=9, label=1).options.MergeFromString(KEY_OPTION)
    message.field.add(name="number", number=2, type=18, label=1)
    service = file.service.add(name="C")
    service.method.add(name="Add", input_type=".t.M", output_type=".t.M")
    service.method.add(name="Watch", input_type=".t.M", output_type=".t.M", server_streaming=True)
    made = entity_pb2.EntitySpec(proto=descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString())
    made.entities.add(entity_type=CRDT, service_name="t.C", persistence_id="counter")
    made.service_info.protocol_minor_version = 2
    return made


def request(key: str, number: int = 0) -> bytes:
    """A request: field 1 a string, field 2 a sint64."""
    delta = crdt_pb2.PNCounterDelta(change=number).SerializeToString()  # field 1, sint64
    raw = key.encode()
    return b"\n" + bytes([len(raw)]) + raw + (b"\x10" + delta[1:] if delta else b"")


def number_in(answer: bytes) -> int:
    """The number in a request or an answer."""
    tail = answer[2 + answer[1] :]
    return crdt_pb2.PNCounterDelta.FromString(b"\x08" + tail[1:]).change if tail else 0


class CounterFunction:
    """Each stream has its own copy of the value, and is told of changes elsewhere."""

    def __init__(self) -> None:
        self.port = free_port()
        self.broken: list[str] = []

    async def start(self) -> None:
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        discovery: Any = {"discover": unary(self._discover), "reportError": unary(self._report)}
        handle: Any = {"handle": stream(self._handle, crdt_pb2.CrdtStreamIn.FromString, crdt_pb2.CrdtStreamOut.SerializeToString)}
        handlers = (("cloudstate.EntityDiscovery", discovery), (CRDT, handle))
        self.server.add_generic_rpc_handlers(tuple(grpc.method_handlers_generic_handler(*named) for named in handlers))
        assert self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()

    async def stop(self) -> None:
        await self.server.stop(0)

    async def _discover(self, request_: bytes, context: Any) -> bytes:
        return spec().SerializeToString()

    async def _report(self, request_: bytes, context: Any) -> bytes:
        self.broken.append(entity_pb2.UserFunctionError.FromString(request_).message)
        return b""

    async def _handle(self, requests: Any, context: Any) -> AsyncIterator[crdt_pb2.CrdtStreamOut]:
        total, key, watching = 0, "", set[int]()

        def told(number: int, change: int = 0) -> crdt_pb2.CrdtReply:
            reply = crdt_pb2.CrdtReply(command_id=number, streamed=number in watching)
            reply.client_action.reply.payload.type_url = "type.googleapis.com/t.M"
            reply.client_action.reply.payload.value = request(key, total)
            if change:
                reply.state_action.update.pncounter.change = change
            return reply

        async for message in requests:
            match message.WhichOneof("message"):
                case "init":
                    total, key = message.init.delta.pncounter.change, message.init.entity_id
                case "delta":
                    total += message.delta.pncounter.change
                case "delete":
                    total = 0
                case "stream_cancelled":
                    watching.discard(message.stream_cancelled.id)
                    cancelled = crdt_pb2.CrdtStreamCancelledResponse(command_id=message.stream_cancelled.id)
                    yield crdt_pb2.CrdtStreamOut(stream_cancelled_response=cancelled)
                case "command":
                    command = message.command
                    if command.streamed:
                        watching.add(command.id)
                    change = number_in(command.payload.value)
                    total += change
                    yield crdt_pb2.CrdtStreamOut(reply=told(command.id, change))
                    if not change:
                        continue
            for number in watching:
                news = told(number)
                streamed = crdt_pb2.CrdtStreamedMessage(command_id=number, client_action=news.client_action)
                yield crdt_pb2.CrdtStreamOut(streamed_message=streamed)


class Link:
    """A TCP way to a port, which can be cut and mended."""

    def __init__(self) -> None:
        self.target = 0
        self._cut = False
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self) -> Link:
        """Take connections on a port of its own."""
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    def cut(self) -> None:
        """From now on nothing gets through, in either direction."""
        self._cut = True
        for writer in self._open:
            writer.transport.abort()

    def mend(self) -> None:
        """Connections are taken again."""
        self._cut = False

    def stop(self) -> None:
        """End every connection."""
        self.cut()
        self._server.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        if self._cut:  # meanwhile
            writer.transport.abort()
            back.transport.abort()
            return
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        self._open.discard(writer)
        writer.close()


class CrdtCluster:
    """A leader and a journal in this process; proxies beside it, each a pod of its own, with one function behind all of them. What proxies say to
    one another, and to the journal, goes by links."""

    def __init__(self, backend: str) -> None:
        self.backend, self.function = backend, CounterFunction()
        self.proxies: list[ProxyProcess] = []
        self.to: dict[str, Link] = {}
        """The way to each pod from all others."""
        self.to_journal: dict[str, Link] = {}
        """Each pod's way to the journal."""

    async def start(self) -> None:
        await self.function.start()
        self.store = MemoryJournal(NAME, SHARDS)
        self.journal = JournalServer(lambda keyspace, count: self.store)
        self.journal_port = await self.journal.start("127.0.0.1", 0)
        self.leader = CoordinationServer(time.monotonic)
        placement = self.leader.add_service(NAME, SHARDS, ["counter"], "r1")
        hello = placement.hello

        def introduced(now: float, message: Any) -> str:
            link = self.to[message.member.pod]
            link.target = int(message.member.peer_address.rpartition(":")[2])
            message.member.peer_address = f"127.0.0.1:{link.port}"
            return hello(now, message)

        placement.hello = introduced  # type: ignore[method-assign, assignment]
        self.leader_port = await self.leader.start("127.0.0.1", 0)
        self.task = asyncio.create_task(self.leader.run())

    async def proxy(self, pod: str) -> ProxyProcess:
        self.to[pod], self.to_journal[pod] = await Link().start(), await Link().start()
        self.to_journal[pod].target = self.journal_port
        environment = {
            "CLOUDSTATE_JOURNAL": f"remote:127.0.0.1:{self.to_journal[pod].port}", "CLOUDSTATE_COORDINATOR": f"127.0.0.1:{self.leader_port}",
            "CLOUDSTATE_POD": pod, "CLOUDSTATE_REVISION": "r1",
        }  # fmt: skip
        proxy = ProxyProcess(self.function.port, self.backend, **environment)
        self.proxies.append(proxy)
        return await proxy.start()

    async def stop(self) -> None:
        for proxy in self.proxies:
            if proxy.process.returncode is None:
                await proxy.end(signal.SIGKILL)
        for link in (*self.to.values(), *self.to_journal.values()):
            link.stop()
        self.task.cancel()
        await self.leader.stop()
        await self.journal.stop()
        await self.function.stop()


async def add(proxy: ProxyProcess, key: str, number: int) -> int:
    """Add to a counter; what it was at that proxy then."""
    method: Any = proxy.channel.unary_unary("/t.C/Add")
    return number_in(await method(request(key, number), timeout=PATIENCE, wait_for_ready=True))


class Watcher:
    """One open Watch call: what it saw last, and when each value was seen first."""

    def __init__(self, proxy: ProxyProcess, key: str) -> None:
        method: Any = proxy.channel.unary_stream("/t.C/Watch")
        self.call = method(request(key))
        self.seen: dict[int, float] = {}
        self.last = 0
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for answer in self.call:
            self.last = number_in(answer)
            self.seen.setdefault(self.last, time.monotonic())

    def stop(self) -> None:
        self.call.cancel()
        self.task.cancel()
