"""The real process: alone, and two of them under a real leader on one journal, with the shopping cart behind them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from autoscaler.coordination import CoordinationServer
from cloudstate_core.journal.memory import MemoryJournal
from cloudstate_core.journal.server import JournalServer
from cloudstate_core.pb.grpc.reflection.v1alpha import reflection_pb2
from kn_cloudstate.ports import free_port
from tests.stateful_proxy.processes import BACKENDS, NAME, PATIENCE, ROOT, SERVICE, SHARDS, ProxyProcess, shared, until


class Cart:
    """Messages of the cart, from the descriptors that reflection gives."""

    def __init__(self, files: list[bytes]) -> None:
        pool = descriptor_pool.DescriptorPool()
        waiting = [descriptor_pb2.FileDescriptorProto.FromString(file) for file in files]
        for file in reversed(waiting):
            with contextlib.suppress(TypeError):
                pool.Add(file)
        package = "com.example.shoppingcart"
        self.add_item, self.get, self.cart = (
            message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{n}")) for n in ("AddLineItem", "GetShoppingCart", "Cart")
        )

    def adding(self, user: str, quantity: int = 1) -> bytes:
        return bytes(self.add_item(user_id=user, product_id="p", name="n", quantity=quantity).SerializeToString())

    def asking(self, user: str) -> bytes:
        return bytes(self.get(user_id=user).SerializeToString())

    def quantity(self, answer: bytes) -> int:
        return sum(item.quantity for item in self.cart.FromString(answer).items)


async def reflect(proxy: ProxyProcess, version: str, **question: str) -> Any:
    """One question to the reflection service."""
    stream = proxy.channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")

    async def questions() -> AsyncIterator[bytes]:
        yield reflection_pb2.ServerReflectionRequest(host="h", **question).SerializeToString()

    answers = [reflection_pb2.ServerReflectionResponse.FromString(answer) async for answer in stream(questions())]
    assert len(answers) == 1
    assert answers[0].valid_host == "h"
    return answers[0]


async def descriptors(proxy: ProxyProcess) -> Cart:
    answer = await reflect(proxy, "v1alpha", file_containing_symbol=SERVICE)
    return Cart(list(answer.file_descriptor_response.file_descriptor_proto))


@pytest.fixture
async def function() -> AsyncIterator[int]:
    """The shopping cart, served on a port."""
    port = free_port()
    folder = ROOT / "samples/shopping-cart"
    environment = {**os.environ, "PORT": str(port), "PYTHONPATH": f"{ROOT / 'sdk/python'}:{folder}"}
    process = await asyncio.create_subprocess_exec(sys.executable, str(folder / "cart.py"), env=environment)
    yield port
    process.terminate()
    await process.wait()


class Cluster:
    """A leader and a journal in this process; proxies beside it."""

    def __init__(self, function: int, backend: str) -> None:
        self.function, self.backend = function, backend
        self.proxies: list[ProxyProcess] = []

    async def start(self) -> None:
        self.store = MemoryJournal(NAME, SHARDS)
        self.journal = JournalServer(lambda keyspace, count: self.store)
        self.journal_port = await self.journal.start("127.0.0.1", 0)
        self.leader = CoordinationServer(time.monotonic)
        self.placement = self.leader.add_service(NAME, SHARDS, ["cart"], "r1")
        self.leader_port = await self.leader.start("127.0.0.1", 0)
        self.task = asyncio.create_task(self.leader.run())

    async def proxy(self, pod: str) -> ProxyProcess:
        environment = {
            "CLOUDSTATE_JOURNAL": f"remote:127.0.0.1:{self.journal_port}", "CLOUDSTATE_COORDINATOR": f"127.0.0.1:{self.leader_port}",
            "CLOUDSTATE_POD": pod, "CLOUDSTATE_REVISION": "r1",
        }  # fmt: skip
        proxy = ProxyProcess(self.function, self.backend, **environment)
        self.proxies.append(proxy)
        return await proxy.start()

    async def stop_leader(self) -> None:
        self.task.cancel()
        await self.leader.stop()

    async def stop(self) -> None:
        for proxy in self.proxies:
            if proxy.process.returncode is None:
                await proxy.end(signal.SIGKILL)
        await self.stop_leader()
        await self.journal.stop()


@pytest.fixture(params=BACKENDS)
async def cluster(request: pytest.FixtureRequest, function: int) -> AsyncIterator[Cluster]:
    cluster = Cluster(function, request.param)
    await cluster.start()
    yield cluster
    await cluster.stop()


@pytest.mark.parametrize("backend", BACKENDS)
async def test_alone(function: int, backend: str) -> None:
    proxy = await ProxyProcess(function, backend).start()
    try:
        cart = await descriptors(proxy)
        for quantity in range(1, 6):
            await proxy.call("AddItem", cart.adding("u", quantity))
        assert cart.quantity(await proxy.call("GetCart", cart.asking("u"))) == 15
        await proxy.call("AddItem", cart.adding("u", 7), cloudstate_command_id="c1")
        await proxy.call("AddItem", cart.adding("u", 7), cloudstate_command_id="c1")
        assert cart.quantity(await proxy.call("GetCart", cart.asking("u"))) == 22
        services = (await reflect(proxy, "v1", list_services="")).list_services_response.service
        assert [s.name for s in services] == ["grpc.reflection.v1alpha.ServerReflection", SERVICE]
        assert not (await reflect(proxy, "v1", file_containing_symbol="no.Such")).file_descriptor_response.file_descriptor_proto
        assert await proxy.channel.unary_unary("/grpc.health.v1.Health/Check")(b"") == b"\x08\x01"
        for method, request, code in [
            ("AddItem", b"", grpc.StatusCode.INVALID_ARGUMENT),
            ("AddItem", b"\xff", grpc.StatusCode.INVALID_ARGUMENT),
            ("AddItem", cart.adding("u", -1), grpc.StatusCode.UNKNOWN),
            ("Nope", b"", grpc.StatusCode.UNIMPLEMENTED),
        ]:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await proxy.call(method, request)
            assert caught.value.code() == code
        _, metrics = await asyncio.to_thread(proxy.page, "/metrics")
        assert "cloudstate_errors_total 0\n" in metrics
        assert json.loads((await asyncio.to_thread(proxy.page, "/entities"))[1])["active"] == 1
    finally:
        code = await proxy.end()
    assert code == 0


async def test_every_proxy_serves_every_key(cluster: Cluster) -> None:
    first, second = await cluster.proxy("p1"), await cluster.proxy("p2")
    await shared(cluster.placement, first, second)
    cart = await descriptors(first)
    users = [f"user-{number}" for number in range(60)]
    await asyncio.gather(*(proxy.call("AddItem", cart.adding(user)) for user in users for proxy in (first, second)))
    for proxy in (first, second):
        answers = await asyncio.gather(*(proxy.call("GetCart", cart.asking(user)) for user in users))
        assert [cart.quantity(answer) for answer in answers] == [2] * len(users)


class Shopper:
    """Adds to carts until told to stop; asks the other proxy after a refusal, as a router does."""

    def __init__(self, cart: Cart, proxies: list[ProxyProcess]) -> None:
        self.cart, self.proxies = cart, proxies
        self.acknowledged: dict[str, int] = {}
        self.attempted: dict[str, int] = {}
        self.failures: list[str] = []
        self.stopped = False

    async def shop(self, user: str) -> None:
        number = 0
        while not self.stopped:
            number += 1
            self.attempted[user] = number
            if await self._add(user, f"{user}/{number}"):
                self.acknowledged[user] = self.acknowledged.get(user, 0) + 1

    async def _add(self, user: str, command: str) -> bool:
        deadline = time.monotonic() + PATIENCE
        turn = hash(command)
        while time.monotonic() < deadline:
            proxy = self.proxies[turn % len(self.proxies)]
            turn += 1
            try:
                await proxy.call("AddItem", self.cart.adding(user), cloudstate_command_id=command, cloudstate_retry="1")
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    self.failures.append(f"{error.code()}: {error.details()}")
                await asyncio.sleep(0.02)
            else:
                return True
        self.failures.append(f"{command}: not done after {PATIENCE:g} s")
        return False

    async def quantities(self, proxy: ProxyProcess) -> dict[str, int]:
        return {u: self.cart.quantity(await proxy.call("GetCart", self.cart.asking(u))) for u in self.attempted}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_nothing_acknowledged_is_lost_or_done_twice_when_a_proxy_ends(cluster: Cluster, number: int) -> None:
    first, second = await cluster.proxy("p1"), await cluster.proxy("p2")
    await until(lambda: len(first.owned()) >= 8 and len(second.owned()) >= 8, "both own shards")
    shopper = Shopper(await descriptors(second), [first, second])
    tasks = [asyncio.create_task(shopper.shop(f"user-{number}")) for number in range(20)]
    await until(lambda: sum(shopper.acknowledged.values()) > 200, "commands are acknowledged")
    code = await first.end(number)
    shopper.proxies = [second]
    await until(lambda: len(second.owned()) == SHARDS, "the other proxy owns every shard")
    before = sum(shopper.acknowledged.values())
    await until(lambda: sum(shopper.acknowledged.values()) > before + 100, "commands go on")
    shopper.stopped = True
    await asyncio.gather(*tasks)
    assert not shopper.failures
    assert await shopper.quantities(second) == shopper.acknowledged
    if number == signal.SIGTERM:
        assert code == 0


async def test_a_paused_proxy_comes_back_and_serves_nothing_old(cluster: Cluster) -> None:
    first, second = await cluster.proxy("p1"), await cluster.proxy("p2")
    await shared(cluster.placement, first, second)
    shopper = Shopper(await descriptors(second), [second])
    users = [f"user-{number}" for number in range(20)]
    await asyncio.gather(*(second.call("AddItem", shopper.cart.adding(user)) for user in users))
    first.process.send_signal(signal.SIGSTOP)
    await until(lambda: len(second.owned()) == SHARDS, "the other proxy owns every shard")
    await asyncio.gather(*(second.call("AddItem", shopper.cart.adding(user)) for user in users))
    first.process.send_signal(signal.SIGCONT)
    shopper.proxies = [first, second]
    assert all(await asyncio.gather(*(shopper._add(user, f"{user}/3") for user in users)))
    shopper.attempted = dict.fromkeys(users, 3)
    assert await shopper.quantities(second) == dict.fromkeys(users, 3)
    assert not shopper.failures


async def test_shards_stay_while_the_leader_is_away(cluster: Cluster) -> None:
    proxy = await cluster.proxy("p1")
    await until(lambda: len(proxy.owned()) == SHARDS, "it owns every shard")
    cart = await descriptors(proxy)
    await cluster.stop_leader()
    for number in range(20):
        await proxy.call("AddItem", cart.adding(f"user-{number}"))
    assert proxy.page("/ready")[0] == 200
    assert len(proxy.owned()) == SHARDS
    assert await proxy.end() == 0


async def test_a_wrong_journal_is_told_and_ends_the_process(function: int) -> None:
    proxy = ProxyProcess(function, "grpcio", CLOUDSTATE_JOURNAL="nosuch:x")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "stateful_proxy", env={**os.environ, **proxy.environment}, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 1
    assert b"nosuch:x" in errors


async def test_a_new_leader_on_an_old_journal_places_again(cluster: Cluster) -> None:
    proxy, other = await cluster.proxy("p1"), await cluster.proxy("p2")
    await until(lambda: len(other.owned()) >= 8, "both own shards")
    assert await proxy.end() == 0
    assert await other.end() == 0
    await cluster.stop_leader()
    cluster.leader = CoordinationServer(time.monotonic)
    cluster.leader.add_service(NAME, SHARDS, ["cart"], "r1")
    cluster.leader_port = await cluster.leader.start("127.0.0.1", 0)
    cluster.task = asyncio.create_task(cluster.leader.run())
    proxy = await cluster.proxy("p2")
    await until(lambda: len(proxy.owned()) == SHARDS, "it owns every shard")


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_proxy_on_redis_finds_its_entities_again_after_kill_9(function: int, backend: str, redis_servers: Any) -> None:
    server = redis_servers("--appendonly", "yes", "--appendfsync", "always", "--requirepass", "a-secret")
    journal = {"CLOUDSTATE_JOURNAL": server.url, "CLOUDSTATE_JOURNAL_PASSWORD": "a-secret"}
    first = await ProxyProcess(function, backend, **journal).start()
    cart = await descriptors(first)
    await asyncio.gather(*(first.call("AddItem", cart.adding(f"user-{n % 10}"), cloudstate_command_id=f"c{n}") for n in range(100)))
    await first.end(signal.SIGKILL)
    second = await ProxyProcess(function, backend, **journal).start()
    try:
        again = {"cloudstate_command_id": "c0", "cloudstate_retry": "1"}
        await second.call("AddItem", cart.adding("user-0"), **again)
        carts = await asyncio.gather(*(second.call("GetCart", cart.asking(f"user-{n}")) for n in range(10)))
        assert [cart.quantity(answer) for answer in carts] == [10] * 10
    finally:
        assert await second.end() == 0


async def test_a_proxy_outlives_an_outage_of_redis(function: int, redis_servers: Any) -> None:
    server = redis_servers("--appendonly", "yes", "--appendfsync", "always")
    proxy = await ProxyProcess(function, "grpcio", CLOUDSTATE_JOURNAL=server.url).start()
    try:
        cart = await descriptors(proxy)
        shopper = Shopper(cart, [proxy])
        tasks = [asyncio.create_task(shopper.shop(f"user-{number}")) for number in range(10)]
        await until(lambda: sum(shopper.acknowledged.values()) > 100, "commands are acknowledged")
        server.stop()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await proxy.call("AddItem", cart.adding("another"))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        await asyncio.to_thread(server.start)
        before = sum(shopper.acknowledged.values())
        await until(lambda: sum(shopper.acknowledged.values()) > before + 100, "commands go on")
        shopper.stopped = True
        await asyncio.gather(*tasks)
        assert not shopper.failures
        assert await shopper.quantities(proxy) == shopper.acknowledged
    finally:
        assert await proxy.end() == 0


async def test_a_wrong_password_is_told_and_ends_the_process_without_showing_it(function: int, redis_servers: Any) -> None:
    server = redis_servers("--requirepass", "a-secret")
    url = server.url.replace("//", "//default:not-this@")
    proxy = ProxyProcess(function, "grpcio", CLOUDSTATE_JOURNAL=url, CLOUDSTATE_LOG="DEBUG")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "stateful_proxy", env={**os.environ, **proxy.environment}, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 1
    assert b"the server refuses: WRONGPASS" in errors
    assert b"not-this" not in errors
