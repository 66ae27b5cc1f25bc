"""Services without a proxy through a real activator process: a real leader, grpcio and aiohttp as pods and as clients, on each transport."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from aiohttp import web

from autoscaler.coordination import CoordinationServer, RevisionSpec
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from kn_cloudstate.ports import free_port

LIMIT = 60.0
BACKENDS = ["grpcio", *(["native"] if importlib.util.find_spec("cloudstate_engine") is not None else [])]
native_only = pytest.mark.parametrize("door", [b for b in BACKENDS if b == "native"], indirect=True)
LARGE = 32 * 1024 * 1024
TIMEOUTS = (1, 5, 20)
"""Seconds to try in turn where an answer must begin and then run out of its time: on a busy machine a short time is over before."""


class RpcPod:
    """A grpcio server with every shape of call; keeps the metadata it saw."""

    def __init__(self) -> None:
        self.metadata: list[dict[str, Any]] = []
        self.server = grpc.aio.server(handlers=[self])
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    def service(self, details: Any) -> Any:
        behaviour = getattr(self, details.method.rsplit("/", 1)[1].lower())

        async def stream(requests: Any, context: Any) -> AsyncIterator[bytes]:
            self.metadata.append(dict(context.invocation_metadata()))
            async for message in behaviour(requests):
                yield message

        return grpc.stream_stream_rpc_method_handler(stream)

    async def echo(self, requests: Any) -> AsyncIterator[bytes]:
        """Each message back."""
        async for message in requests:
            yield message

    async def many(self, requests: Any) -> AsyncIterator[bytes]:
        """A thousand messages for one."""
        async for message in requests:
            for n in range(1000):
                yield message + b"%d" % n

    async def count(self, requests: Any) -> AsyncIterator[bytes]:
        """How many messages came."""
        yield b"%d" % len([message async for message in requests])

    async def slow(self, requests: Any) -> AsyncIterator[bytes]:
        """One message, if any was sent, and no end."""
        async for message in requests:
            if message:
                yield message
        await asyncio.sleep(600)


class WebPod:
    """An aiohttp server; keeps the headers it saw and how many requests it had at a time."""

    def __init__(self) -> None:
        self.headers: list[dict[str, str]] = []
        self.now = self.most = 0
        self.release = asyncio.Event()
        application = web.Application(client_max_size=1 << 30)
        application.router.add_get("/ws", self.chat)
        application.router.add_get("/large", self.large)
        application.router.add_get("/slow", self.slow)
        application.router.add_get("/drip", self.drip)
        application.router.add_route("*", "/{path:.*}", self.echo)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)

    async def start(self) -> None:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.address = f"127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        self.release.set()
        await self._runner.cleanup()

    async def echo(self, request: web.Request) -> web.StreamResponse:
        self.headers.append({k.lower(): v for k, v in request.headers.items()})
        return web.Response(body=await request.read())

    async def large(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(LARGE // 65536):
            await response.write(bytes(65536))
        return response

    async def drip(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await self.release.wait()
        return response

    async def slow(self, request: web.Request) -> web.StreamResponse:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.release.wait()
        finally:
            self.now -= 1
        return web.Response(text="done")

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Echoes; 'bye' makes the server close."""
        self.headers.append({k.lower(): v for k, v in request.headers.items()})
        channel = web.WebSocketResponse()
        await channel.prepare(request)
        await channel.send_str("hello")
        async for message in channel:
            if message.type == aiohttp.WSMsgType.BINARY:
                await channel.send_bytes(message.data)
            elif message.data == "bye":
                await channel.close(code=4001)
            else:
                await channel.send_str(message.data)
        return channel


class Door:
    """A leader that knows two plain services, `shop/rpc` and `shop/web`, and an activator process in front of their pods."""

    def __init__(self) -> None:
        self.http, self.h2c, self.admin, self.leader_port = free_port(), free_port(), free_port(), free_port()
        self.rpc, self.web, self.web2 = RpcPod(), WebPod(), WebPod()
        self.stats: list[pb.RevisionStats] = []
        self.leader = CoordinationServer(time.monotonic)
        self.leader.on_stats = lambda _, stats: self.stats.append(stats)
        self.members = {name: self.leader.add_plain(f"shop/{name}") for name in ("rpc", "web")}
        for name in self.members:
            self.set_routes(name)
        self.process: asyncio.subprocess.Process | None = None

    async def limit(self, name: str, concurrency: int = 0, timeout: int = 300) -> None:
        """Set limits of a service's one revision, and wait until the activator knows them."""
        self.set_routes(name, concurrency, timeout)
        async with asyncio.timeout(LIMIT), aiohttp.ClientSession(f"http://127.0.0.1:{self.admin}") as session:
            while True:
                async with session.get("/routes") as answer:
                    known = {s["service"]: s["revisions"] for s in await answer.json()}[f"shop/{name}"].get(f"{name}-1", {})
                if (known.get("containerConcurrency"), known.get("timeoutSeconds")) == (concurrency, timeout):
                    return
                await asyncio.sleep(0.02)

    def set_routes(self, name: str, limit: int = 0, timeout: int = 300) -> None:
        """The leader's knowledge of a service's one revision."""
        revision = RevisionSpec(f"{name}-1", container_concurrency=limit, timeout_seconds=timeout)
        self.leader.set_routes(f"shop/{name}", [f"{name}.shop.example.com"], revision.name, [revision])

    def ready(self, name: str, *addresses: str) -> None:
        """Which pods of a service are ready."""
        self.members[name].set_members(f"{name}-1", {f"{name}-pod-{n}": address for n, address in enumerate(addresses)})
        self.set_routes(name)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    def channel(self) -> Any:
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.h2c}", options=[("grpc.use_local_subchannel_pool", 1)])

    def session(self) -> aiohttp.ClientSession:
        """An HTTP/1.1 client of `shop/web`, as Knative's ingress would send its requests."""
        headers = {"Knative-Serving-Namespace": "shop", "Knative-Serving-Revision": "web-1"}
        return aiohttp.ClientSession(self.url, headers=headers, timeout=aiohttp.ClientTimeout(LIMIT))

    async def status(self, path: str, port: int = 0, **headers: str) -> int:
        """The status of an answer of the admin port, or of another one; 0 while it does not listen."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port or self.admin}{path}", headers=named) as answer:
                return answer.status
        except aiohttp.ClientError:
            return 0

    async def metric(self, name: str) -> float:
        """The sum of a metric."""
        async with aiohttp.ClientSession(f"http://127.0.0.1:{self.admin}") as session, session.get("/metrics") as answer:
            lines = (await answer.text()).splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    async def until_metric(self, name: str, value: float) -> None:
        async with asyncio.timeout(LIMIT):
            while await self.metric(name) != value:
                await asyncio.sleep(0.02)

    async def until_status(self, path: str, status: int) -> None:
        async with asyncio.timeout(LIMIT):
            while await self.status(path) != status:
                await asyncio.sleep(0.02)

    async def heard(self, revision: str) -> None:
        """Wait until the leader has heard of traffic of a revision."""
        async with asyncio.timeout(LIMIT):
            while not any(s.revision == revision and s.concurrency > 0 for s in self.stats):
                await asyncio.sleep(0.02)


RPC = (("knative-serving-namespace", "shop"), ("knative-serving-revision", "rpc-1"))


DRAIN = {"test_a_drain_serves_on_then_lets_open_ones_end": 16, "test_an_idle_activator_ends_at_once": 600}
LINGER = {"test_a_drain_serves_on_then_lets_open_ones_end": 6}


@pytest.fixture(params=BACKENDS)
async def door(request: pytest.FixtureRequest) -> AsyncIterator[Door]:
    """Both services are at zero."""
    found = Door()
    await found.leader.start("127.0.0.1", found.leader_port)
    deciding = asyncio.create_task(found.leader.run())
    await found.rpc.server.start()
    await found.web.start()
    await found.web2.start()
    environment = {
        "ACTIVATOR_HTTP_PORT": str(found.http),
        "ACTIVATOR_H2C_PORT": str(found.h2c),
        "ACTIVATOR_ADMIN_PORT": str(found.admin),
        "ACTIVATOR_DRAIN_SECONDS": str(DRAIN.get(request.node.originalname, 4)),
        "ACTIVATOR_LINGER_SECONDS": str(LINGER.get(request.node.originalname, 0)),
        "CLOUDSTATE_COORDINATOR": f"localhost:{found.leader_port}",
        "CLOUDSTATE_TRANSPORT": request.param,
    }
    found.process = await asyncio.create_subprocess_exec(sys.executable, "-m", "activator", env={**os.environ, **environment})
    try:
        await found.until_status("/ready", 200)
        yield found
        with contextlib.suppress(ProcessLookupError):
            found.process.terminate()
        assert await asyncio.wait_for(found.process.wait(), LIMIT) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            found.process.kill()
        deciding.cancel()
        await found.rpc.server.stop(0)
        await found.web.stop()
        await found.web2.stop()
        await found.leader.stop()


# gRPC -------------------------------------------------------------------------------------------------------------------


async def test_every_shape_of_grpc_call_from_zero(door: Door) -> None:
    async with door.channel() as channel:

        async def numbers() -> AsyncIterator[bytes]:
            for n in range(100):
                yield b"%d" % n

        async def bidirectional() -> list[bytes]:
            call = channel.stream_stream("/any.Thing/Echo")(metadata=RPC, timeout=LIMIT)
            found = []
            for n in range(50):  # each answer before the next question
                await call.write(b"%d" % n)
                found.append(await call.read())
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            return found

        unary = asyncio.ensure_future(channel.unary_unary("/any.Thing/Echo")(b"\xffhello", metadata=RPC, timeout=LIMIT))
        await door.heard("rpc-1")
        assert not unary.done()
        door.ready("rpc", door.rpc.address)
        assert await unary == b"\xffhello"
        many = [m async for m in channel.unary_stream("/any.Thing/Many")(b"m", metadata=RPC, timeout=LIMIT)]
        assert many == [b"m%d" % n for n in range(1000)]
        assert await channel.stream_unary("/any.Thing/Count")(numbers(), metadata=RPC, timeout=LIMIT) == b"100"
        assert await bidirectional() == [b"%d" % n for n in range(50)]
        assert await channel.unary_unary("/any.Thing/Echo")(bytes(3_000_000), metadata=RPC, timeout=LIMIT) == bytes(3_000_000)
    seen = door.rpc.metadata[0]
    assert seen["k-proxy-request"] == "activator"
    assert not {name for name in seen if name.startswith(("knative-serving", "cloudstate"))}
    await door.until_metric("kn_revision_request_concurrency", 0)


async def test_an_open_stream_counts_until_it_ends(door: Door) -> None:
    door.ready("rpc", door.rpc.address)
    async with door.channel() as channel:
        call = channel.stream_stream("/any.Thing/Echo")(metadata=RPC, timeout=LIMIT)
        await call.write(b"m")
        assert await call.read() == b"m"
        await door.until_metric("kn_revision_request_concurrency", 1)
        async with asyncio.timeout(LIMIT):
            while not any(s.revision == "rpc-1" and s.concurrency == pytest.approx(1.0, abs=0.05) and not s.requests for s in door.stats):
                await asyncio.sleep(0.05)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
    await door.until_metric("kn_revision_request_concurrency", 0)


async def test_a_revision_nobody_knows(door: Door) -> None:
    async with door.channel() as channel:
        metadata = (("knative-serving-namespace", "shop"), ("knative-serving-revision", "gone"))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await channel.unary_unary("/any.Thing/Echo")(b"m", metadata=metadata, timeout=LIMIT)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "shop/gone" in (error.value.details() or "")
    assert await door.status("/", door.http, Knative_Serving_Namespace="shop", Knative_Serving_Revision="gone") == 404


async def test_the_revisions_timeout_ends_calls_and_streams(door: Door) -> None:
    door.ready("rpc", door.rpc.address)
    await door.limit("rpc", timeout=1)
    async with door.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await channel.unary_unary("/any.Thing/Slow")(b"", metadata=RPC)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        for seconds in TIMEOUTS:
            await door.limit("rpc", timeout=seconds)
            call = channel.unary_stream("/any.Thing/Slow")(b"m", metadata=RPC)
            found = []
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for message in call:
                    found.append(message)
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if found:  # else the time was over before the answer began
                break
        assert found == [b"m"]
    await door.until_metric("kn_revision_request_concurrency", 0)


# HTTP/1.1 ---------------------------------------------------------------------------------------------------------------


@native_only
async def test_http_from_zero_with_bodies_of_every_shape(door: Door) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for n in range(100):
            yield bytes([n]) * 50_000

    async with door.session() as session:
        first = asyncio.create_task(session.post("/echo?a=b", data=b"hello"))
        await door.heard("web-1")
        door.ready("web", door.web.address)
        async with await first as answer:
            assert (answer.status, await answer.read()) == (200, b"hello")
        async with session.post("/echo", data=chunks()) as answer:
            assert await answer.read() == b"".join([c async for c in chunks()])
        async with session.get("/large") as answer:
            assert sum([len(chunk) async for chunk in answer.content.iter_any()]) == LARGE
    seen = door.web.headers[0]
    assert (seen["k-proxy-request"], seen["k-original-host"], seen["host"]) == ("activator", f"127.0.0.1:{door.http}", f"127.0.0.1:{door.http}")
    assert not {name for name in seen if name.startswith(("knative-serving", "cloudstate"))}
    assert door.web.headers[1]["transfer-encoding"] == "chunked"
    await door.until_metric("kn_revision_request_concurrency", 0)


@native_only
async def test_a_pods_limit_holds(door: Door) -> None:
    door.ready("web", door.web.address, door.web2.address)
    await door.limit("web", concurrency=2)
    async with door.session() as session:
        calls = [asyncio.create_task(session.get("/slow")) for _ in range(10)]
        await door.until_metric("kn_revision_request_queued", 6)
        async with asyncio.timeout(LIMIT):
            while (door.web.now, door.web2.now) != (2, 2):  # sent, and perhaps on their way
                await asyncio.sleep(0.02)
        door.web.release.set()
        door.web2.release.set()
        assert [(await call).status for call in calls] == [200] * 10
    assert (door.web.most, door.web2.most) == (2, 2)


@native_only
async def test_the_revisions_timeout_is_504_or_cuts_the_answer(door: Door) -> None:
    door.ready("web", door.web.address)
    await door.limit("web", timeout=1)
    async with door.session() as session:
        async with session.get("/slow") as answer:
            assert (answer.status, "deadline" in await answer.text()) == (504, True)
        for seconds in TIMEOUTS:
            await door.limit("web", timeout=seconds)
            async with session.get("/drip") as answer:
                if answer.status == 200:
                    with pytest.raises(aiohttp.ClientPayloadError):
                        await answer.read()
                    break
                assert answer.status == 504
        assert answer.status == 200
        for seconds in TIMEOUTS:
            await door.limit("web", timeout=seconds)
            said: list[aiohttp.WSMessage] = []
            with contextlib.suppress(aiohttp.WSServerHandshakeError):
                async with session.ws_connect("/ws") as channel:
                    said = [await channel.receive(), await channel.receive()]
            if said and said[0].type is aiohttp.WSMsgType.TEXT:
                break
        assert said[0].data == "hello"
        assert said[1].type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.ERROR)
    await door.until_metric("kn_revision_request_concurrency", 0)


@native_only
async def test_a_websocket_from_zero(door: Door) -> None:
    async with door.session() as session:
        connecting = asyncio.create_task(session.ws_connect("/ws", max_msg_size=0))
        await door.heard("web-1")
        door.ready("web", door.web.address)
        async with await connecting as channel:
            assert await channel.receive_str() == "hello"
            for size in (0, 1, 1_000, 3_000_000):
                await channel.send_bytes(bytes(size))
                assert await channel.receive_bytes() == bytes(size)
            await channel.send_str("ünï")
            assert await channel.receive_str() == "ünï"
            await door.until_metric("kn_revision_request_concurrency", 1)
            await channel.ping()
            await channel.send_str("bye")
            assert (await channel.receive()).type is aiohttp.WSMsgType.CLOSE
            assert channel.close_code == 4001
        await door.until_metric("kn_revision_request_concurrency", 0)
        async with session.ws_connect("/ws") as channel:
            assert await channel.receive_str() == "hello"
        await door.until_metric("kn_revision_request_concurrency", 0)
    assert door.web.headers[0]["k-proxy-request"] == "activator"


@pytest.mark.parametrize("door", ["grpcio"], indirect=True)
async def test_grpcio_says_that_it_forwards_no_http(door: Door) -> None:
    door.ready("web", door.web.address)
    async with door.session() as session, session.get("/") as answer:
        assert (answer.status, "native engine" in await answer.text()) == (501, True)


# Probes and the end -----------------------------------------------------------------------------------------------------


async def test_probes_on_the_data_ports(door: Door, request: pytest.FixtureRequest) -> None:
    ports = [door.http, door.h2c] if "native" in request.node.name else [door.http]
    for port in ports:
        assert await door.status("/", port, K_Network_Probe="probe", K_Network_Hash="h") == 200
        assert await door.status("/", port, K_Network_Probe="probe") == 400
        assert await door.status("/", port, K_Network_Probe="activator") == 200
        assert await door.status("/", port, K_Network_Probe="queue") == 400
        assert await door.status("/", port, User_Agent="kube-probe/1.34") == 200


@native_only
async def test_a_drain_serves_on_then_lets_open_ones_end(door: Door) -> None:
    door.ready("web", door.web.address)
    assert door.process is not None
    async with door.session() as session, session.ws_connect("/ws") as channel:
        assert await channel.receive_str() == "hello"
        door.process.terminate()
        await door.until_status("/ready", 503)
        assert await door.status("/", door.http, User_Agent="kube-probe/1.34") == 503
        assert await door.status("/", door.http, Knative_Serving_Namespace="shop", Knative_Serving_Revision="web-1") == 200
        async with asyncio.timeout(LIMIT):
            while await door.status("/", door.http, K_Network_Probe="activator"):  # the lingering ends: nobody listens any more
                await asyncio.sleep(0.02)
        await channel.send_str("still here")
        assert await channel.receive_str() == "still here"
        assert door.process.returncode is None
        assert (await channel.receive()).type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.ERROR)
    assert await asyncio.wait_for(door.process.wait(), LIMIT) == 0


async def test_an_idle_activator_ends_at_once(door: Door) -> None:
    assert door.process is not None
    door.process.terminate()
    assert await asyncio.wait_for(door.process.wait(), LIMIT) == 0
