"""Functions that cannot be served, through a real proxy: what /ready says, what clients get, what the function is told, and what mends it."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2

from autoscaler.coordination import CoordinationServer
from cloudstate_core.journal.memory import MemoryJournal
from cloudstate_core.journal.server import JournalServer
from cloudstate_core.pb.cloudstate import entity_pb2
from stateful_proxy.service import TAKEN
from tests.stateful_proxy.functions import Function, spec
from tests.stateful_proxy.processes import BACKENDS, NAME, PATIENCE, SHARDS, ProxyProcess, shared, until

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def without(field: str) -> entity_pb2.EntitySpec:
    made = spec()
    made.ClearField(field)
    return made


def importing() -> entity_pb2.EntitySpec:
    """Its only file imports one that is not there."""
    made = spec()
    files = descriptor_pb2.FileDescriptorSet.FromString(made.proto)
    files.file[0].dependency.append("missing.proto")
    made.proto = files.SerializeToString()
    return made


def garbage() -> entity_pb2.EntitySpec:
    made = spec()
    made.proto = b"\xff\xff"
    return made


Make = Callable[..., ProxyProcess]


@pytest.fixture(params=BACKENDS)
async def proxy_of(request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    """Makes proxies in front of a port, ended with the test."""
    made: list[ProxyProcess] = []

    def make(port: int, **environment: str) -> ProxyProcess:
        made.append(ProxyProcess(port, request.param, **environment))
        return made[-1]

    yield make
    for proxy in made:
        if hasattr(proxy, "process"):
            await proxy.end(signal.SIGKILL)


@pytest.fixture
async def function() -> AsyncIterator[Function]:
    """A function that can be served, not started."""
    made = Function(spec())
    yield made
    if hasattr(made, "server"):
        await made.stop()


async def count(proxy: ProxyProcess, method: str = "/t.S/Count", connect: bool = True, key: bytes = b"a") -> int:
    """One command; `connect`: wait until the data port is there."""
    request = b"\x0a" + bytes([len(key)]) + key
    return int(await proxy.channel.unary_unary(method)(request, timeout=PATIENCE, wait_for_ready=connect))


async def refused(proxy: ProxyProcess) -> str:
    """The text with which a command ends that cannot be executed now."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await count(proxy, connect=False)
    assert error.value.code() == UNAVAILABLE, error.value
    return str(error.value.details())


@pytest.fixture
def silent() -> Any:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()


async def test_a_port_that_never_speaks(proxy_of: Make, silent: int) -> None:
    proxy = await proxy_of(silent).spawn(stderr=asyncio.subprocess.PIPE)
    where = f"user function at 127.0.0.1:{silent}: "
    assert (await proxy.ready(503, where)).startswith((where + "has not answered discovery", where + "discovery failed: "))
    assert proxy.page("/alive") == (200, "alive\n")
    await refused(proxy)
    assert proxy.process.stderr is not None
    async with asyncio.timeout(PATIENCE):
        while f"not ready after 3 s: {where}" not in (line := (await proxy.process.stderr.readline()).decode()):
            assert line, "it has ended"
    assert await proxy.end() == 0, "it can be told to stop all the same"


async def test_a_function_that_is_not_there_yet(proxy_of: Make, function: Function) -> None:
    proxy = await proxy_of(function.port).spawn()
    await proxy.ready(503, f"user function at 127.0.0.1:{function.port}: discovery failed: ")
    await refused(proxy)
    await function.start()
    await proxy.ready()
    assert await count(proxy) == 1


async def test_a_function_that_never_answers_discovery(proxy_of: Make) -> None:
    function = Function()
    await function.start()
    try:
        proxy = await proxy_of(function.port).spawn()
        await proxy.ready(503, "has not answered discovery")
        await until(lambda: function.asked >= 1, "it was asked")
        await refused(proxy)
        function.says = spec()
        function.speaks.set()
        await proxy.ready()
        assert await count(proxy) == 1
    finally:
        await function.stop()


@pytest.mark.parametrize(
    ("says", "text"),
    [
        (without("entities"), "the function serves no entity: EntitySpec.entities must have at least one"),
        (without("proto"), "t.S: EntitySpec.proto does not define this service"),
        (garbage(), "EntitySpec.proto: is not a serialized google.protobuf.FileDescriptorSet"),
        (importing(), "EntitySpec.proto: has not all files: missing.proto (imported by t.proto)"),
        (spec(key=False), "t.S.Count: t.M has no entity key; mark a field with (cloudstate.entity_key) = true"),
        (spec(service="t.T"), "t.T: EntitySpec.proto does not define this service"),
        (spec(entity_type="cloudstate.View"), "t.S: entity type 'cloudstate.View' is not supported; supported: " + ", ".join(TAKEN)),
    ],
    ids=["no entity", "no descriptors", "garbage", "missing import", "no key", "no such service", "unsupported type"],
)
async def test_a_spec_that_cannot_be_served(proxy_of: Make, says: entity_pb2.EntitySpec, text: str) -> None:
    function = Function(says)
    await function.start()
    try:
        proxy = await proxy_of(function.port).spawn()
        found = await proxy.ready(503, "cannot be served")
        assert found == f"user function at 127.0.0.1:{function.port}: cannot be served: {text}\n"
        await until(lambda: function.reported, "the function is told")
        assert function.reported == [text]
        await refused(proxy)
        assert proxy.page("/alive")[0] == 200
    finally:
        await function.stop()


async def test_a_function_that_is_mended_is_served_without_a_restart_of_the_proxy(proxy_of: Make) -> None:
    function = Function(spec(key=False))
    await function.start()
    try:
        proxy = await proxy_of(function.port).spawn()
        await proxy.ready(503, "has no entity key")
        await until(lambda: function.reported, "the function is told")
        function.says = spec()
        await proxy.ready()
        assert await count(proxy) == 1
        assert len(function.reported) == 1
    finally:
        await function.stop()


async def test_a_function_that_restarts_as_it_was_goes_on(proxy_of: Make, function: Function) -> None:
    await function.start()
    proxy = await proxy_of(function.port).start()
    assert [await count(proxy), await count(proxy)] == [1, 2]
    await function.stop()
    await proxy.ready(503, f"user function at 127.0.0.1:{function.port}: discovery failed")
    waiting = asyncio.create_task(count(proxy))
    await until(lambda: "cloudstate_commands_waiting 1" in proxy.page("/metrics")[1], "the command waits")
    await function.start()
    assert await waiting == 3, "nothing acknowledged is lost, nothing done twice"
    await proxy.ready()
    assert await count(proxy) == 4


async def test_a_function_that_comes_back_as_another_ends_the_proxy(proxy_of: Make, function: Function) -> None:
    await function.start()
    proxy = await proxy_of(function.port).spawn(stderr=asyncio.subprocess.PIPE)
    await proxy.ready()
    assert await count(proxy) == 1
    await function.stop()
    await proxy.ready(503)
    function.says = spec(method="Tally")
    await function.start()
    _, errors = await asyncio.wait_for(proxy.process.communicate(), PATIENCE)
    assert proxy.process.returncode == 1
    [told] = [line for line in errors.decode().splitlines() if line.startswith("error: ")]
    where = f"error: user function at 127.0.0.1:{function.port}: "
    assert told == where + "came back as another: /t.S/Count is gone; a proxy serves what it found first, and starts anew for anything else"
    again = await proxy_of(function.port).start()
    assert await count(again, "/t.S/Tally") == 1, "its successor serves the other"


async def test_shards_of_a_proxy_whose_function_is_another_go_to_the_next(proxy_of: Make, function: Function) -> None:
    store = MemoryJournal(NAME, SHARDS)
    journal, leader = JournalServer(lambda keyspace, shards: store), CoordinationServer(asyncio.get_running_loop().time)
    placement = leader.add_service(NAME, SHARDS, ["s"], "r1")
    coordinates = {
        "CLOUDSTATE_JOURNAL": f"remote:127.0.0.1:{await journal.start('127.0.0.1', 0)}",
        "CLOUDSTATE_COORDINATOR": f"127.0.0.1:{await leader.start('127.0.0.1', 0)}",
        "CLOUDSTATE_REVISION": "r1",
    }
    task = asyncio.create_task(leader.run())
    steady = Function(spec())
    await steady.start()
    await function.start()
    try:
        first = await proxy_of(function.port, CLOUDSTATE_POD="p1", **coordinates).start()
        await until(lambda: len(first.owned()) == SHARDS, "it owns every shard")
        keys = [b"%d" % n for n in range(40)]
        assert await asyncio.gather(*(count(first, key=key) for key in keys)) == [1] * len(keys)
        second = await proxy_of(steady.port, CLOUDSTATE_POD="p2", **coordinates).start()
        await shared(placement, first, second)
        again = await asyncio.gather(*(count(first, key=key) for key in keys))
        assert again == [2] * len(keys), "and the first has entities in memory: it notices by their streams that its function goes"
        await function.stop()
        function.says = spec(method="Tally")
        await function.start()
        assert await asyncio.wait_for(first.process.wait(), PATIENCE) == 1
        await until(lambda: len(second.owned()) == SHARDS, "the other owns every shard")
        assert await asyncio.gather(*(count(second, key=key) for key in keys)) == [3] * len(keys)
    finally:
        task.cancel()
        await leader.stop()
        await journal.stop()
        await steady.stop()
