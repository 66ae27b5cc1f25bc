"""The activator as a process, on each transport: a leader of the test's own and two back ends that say who they are."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from cloudstate_core.hashing import shard_of
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.transport import create
from kn_cloudstate.ports import free_port

LIMIT = 60.0
SHARDS = 4
NAME = "/shop.Cart/Name"


def installed(backend: str) -> bool:
    try:
        create(backend).stop()
    except ImportError:
        return False
    return True


BACKENDS = [b for b in ("grpcio", "native") if installed(b)]


class Leader:
    """CoordinationService/Route: keeps what activators tell and pushes what the test says."""

    def __init__(self) -> None:
        self.stats: list[pb.RevisionStats] = []
        self.route: pb.ServiceRoute | None = None
        self.generation = 0
        self.changed = asyncio.Condition()
        self.port = 0

    async def start(self, port: int) -> None:
        method: Any = grpc.stream_stream_rpc_method_handler(self._route, pb.RouteRequest.FromString, pb.RouteResponse.SerializeToString)
        service = grpc.method_handlers_generic_handler("cloudstate_knative.v1.CoordinationService", {"Route": method})
        self.server = grpc.aio.server(handlers=[service])
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        await self.server.start()

    async def _route(self, requests: AsyncIterator[pb.RouteRequest], context: Any) -> AsyncIterator[pb.RouteResponse]:
        reader = asyncio.create_task(self._read(requests))
        sent: pb.ServiceRoute | None = None
        try:
            while True:
                async with self.changed:
                    while self.route is sent:
                        await self.changed.wait()
                    sent = self.route
                assert sent is not None
                yield pb.RouteResponse(services=[sent])
        finally:
            reader.cancel()

    async def _read(self, requests: AsyncIterator[pb.RouteRequest]) -> None:
        async for request in requests:
            async with self.changed:
                self.stats += request.stats
                self.changed.notify_all()

    async def push(self, owners: list[str], addresses: dict[str, str], limit: int = 0) -> None:
        """Owners by shard; every member with an address is ready."""
        self.generation += 1
        self.route = pb.ServiceRoute(
            map=pb.MapUpdate(
                service="shop/cart",
                shard_count=SHARDS,
                generation=self.generation,
                full=True,
                entries=[pb.ShardEntry(shard=s, owner=o, since=self.generation) for s, o in enumerate(owners)],
                members=[pb.Member(member_id=m, pod=m, revision="cart-1", data_address=a) for m, a in addresses.items()],
            ),
            methods=[pb.Method(path=NAME, persistence_id="cart", key_fields=[pb.KeyField(numbers=[1], type=9)])],
            revisions=[pb.RevisionRoute(revision="cart-1", container_concurrency=limit, ready_members=list(addresses))],
            hosts=["cart.shop.example.com"],
            default_revision="cart-1",
        )
        async with self.changed:
            self.changed.notify_all()


class Backend:
    """A pod: answers every unary call with its name; keeps the metadata it saw; may refuse."""

    def __init__(self, name: str) -> None:
        self.name, self.refuses = name, 0
        self.metadata: list[dict[str, Any]] = []
        self.server = grpc.aio.server(handlers=[self])
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, request: bytes, context: Any) -> bytes:
        self.metadata.append(dict(context.invocation_metadata()))
        if self.refuses:
            self.refuses -= 1
            context.set_trailing_metadata((("cloudstate-refused", "not-owner;generation=2;next=b"),))
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not executed")
        if request.endswith(b"fail"):
            context.set_trailing_metadata((("why", "because"),))
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no such luck")
        return self.name.encode()


class Town:
    """All of it."""

    def __init__(self) -> None:
        self.leader, self.a, self.b = Leader(), Backend("a"), Backend("b")
        self.port, self.admin = free_port(), free_port()

    @property
    def addresses(self) -> dict[str, str]:
        return {"a": self.a.address, "b": self.b.address}

    async def call(self, key: str, **options: Any) -> str:
        """One call through the front door; the name of the pod that answered."""
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            method: Any = channel.unary_unary(NAME)
            answer: bytes = await method(b"\x0a" + bytes([len(key)]) + key.encode(), **{"timeout": LIMIT, **options})
            return answer.decode()

    async def get(self, path: str) -> tuple[int, str]:
        """An answer of the admin port; status 0 while it does not listen."""

        def fetch() -> tuple[int, str]:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=LIMIT) as response:
                    return response.status, response.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()
            except OSError:
                return 0, ""

        return await asyncio.to_thread(fetch)

    async def until(self, path: str, status: int, says: str = "") -> None:
        """Wait for an answer of the admin port."""
        async with asyncio.timeout(LIMIT):
            while True:
                found, body = await self.get(path)
                if found == status and says in body:
                    return
                await asyncio.sleep(0.02)

    async def until_refused(self) -> None:
        """Wait until a pod has refused a call."""
        async with asyncio.timeout(LIMIT):
            while "cloudstate_activator_refused_total 0\n" in (await self.get("/metrics"))[1]:
                await asyncio.sleep(0.02)


@pytest.fixture(params=BACKENDS)
async def town(request: pytest.FixtureRequest) -> AsyncIterator[Town]:
    """A front door whose leader knows one service at zero."""
    found = Town()
    await found.leader.start(free_port())  # one that can be taken again: no outgoing connection gets it
    await found.a.server.start()
    await found.b.server.start()
    environment = {
        "ACTIVATOR_PORT": str(found.port),
        "ACTIVATOR_ADMIN_PORT": str(found.admin),
        "CLOUDSTATE_COORDINATOR": f"127.0.0.1:{found.leader.port}",
        "CLOUDSTATE_TRANSPORT": request.param,
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "activator", env={**os.environ, **environment})
    try:
        await found.leader.push([""] * SHARDS, {})
        await found.until("/ready", 200)
        yield found
        process.terminate()
        assert await asyncio.wait_for(process.wait(), LIMIT) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        for server in (found.a.server, found.b.server, found.leader.server):
            await server.stop(0)


async def test_from_zero_to_the_owners(town: Town) -> None:
    keys = [f"k{n}" for n in range(12)]
    calls = [asyncio.create_task(town.call(key)) for key in keys]
    async with town.leader.changed:
        await asyncio.wait_for(town.leader.changed.wait_for(lambda: any(s.requests for s in town.leader.stats)), LIMIT)
    await town.until("/metrics", 200, 'kn_revision_request_queued{k8s_namespace_name="shop",kn_service_name="cart",kn_revision_name="cart-1"} 12')
    await town.leader.push(["a", "b", "a", "b"], town.addresses)
    assert await asyncio.gather(*calls) == ["ab"[shard_of("cart", key, SHARDS) % 2] for key in keys]
    seen = town.a.metadata + town.b.metadata
    assert len({m["cloudstate-command-id"] for m in seen}) == len(keys)
    assert {m["k-proxy-request"] for m in seen} == {"activator"}


async def test_a_refused_call_finds_the_new_owner(town: Town) -> None:
    await town.leader.push(["a"] * SHARDS, town.addresses)
    town.a.refuses = 1_000_000
    call = asyncio.create_task(town.call("ann", metadata=(("cloudstate-command-id", "mine"), ("knative-serving-x", "y"), ("mine", "1"))))
    await town.until_refused()
    await town.leader.push(["b"] * SHARDS, town.addresses)
    assert await call == "b"
    last = town.b.metadata[-1]
    assert (last["cloudstate-command-id"], last["cloudstate-retry"], last["mine"]) == ("mine", "1", "1")
    assert "knative-serving-x" not in last
    assert last.get("k-original-host") in (f"127.0.0.1:{town.port}", None)  # grpcio does not tell a server the authority


async def test_a_dead_pod_is_waited_out(town: Town) -> None:
    await town.leader.push(["a"] * SHARDS, {"a": f"127.0.0.1:{free_port()}"})
    call = asyncio.create_task(town.call("ann"))
    await town.until_refused()
    await town.leader.push(["b"] * SHARDS, town.addresses)
    assert await call == "b"


async def test_statuses_and_trailers_pass_and_bad_requests_are_told(town: Town) -> None:
    await town.leader.push(["a"] * SHARDS, town.addresses)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await town.call("xfail")
    assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "no such luck")
    trailers: Any = failed.value.trailing_metadata()
    assert dict(trailers)["why"] == "because"
    with pytest.raises(grpc.aio.AioRpcError) as nameless:
        await town.call("")
    assert nameless.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_the_deadline_of_a_held_call_is_kept_and_its_place_freed(town: Town) -> None:
    queued = 'kn_revision_request_queued{k8s_namespace_name="shop",kn_service_name="cart",kn_revision_name="cart-1"}'
    for seconds in (0.3, 3.0, 20.0):
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await town.call("ann", timeout=seconds)
        assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        if queued in (await town.get("/metrics"))[1]:  # else it has passed before the call was there
            break
    await town.until("/metrics", 200, f"{queued} 0")


async def test_routes_stay_in_force_while_the_leader_is_away_and_a_new_one_is_heard(town: Town) -> None:
    await town.leader.push(["a"] * SHARDS, town.addresses)
    assert await town.call("ann") == "a"
    port = town.leader.port
    await town.leader.server.stop(0)
    await town.until("/metrics", 200, "kn_activator_stats_conn_reachable 0")
    assert await town.call("ann") == "a"
    town.leader = Leader()
    await town.leader.start(port)
    await town.leader.push(["b"] * SHARDS, town.addresses)
    await town.until("/routes", 200, '"b": 4')
    assert await town.call("ann") == "b"


@pytest.mark.skipif("native" not in BACKENDS, reason="the grpcio backend's front door speaks gRPC only")
@pytest.mark.parametrize("town", ["native"], indirect=True)
async def test_network_probes_on_the_same_port(town: Town) -> None:
    def fetch() -> tuple[int, str | None]:
        request = urllib.request.Request(f"http://127.0.0.1:{town.port}/", headers={"K-Network-Probe": "probe", "K-Network-Hash": "h1"})
        with urllib.request.urlopen(request, timeout=LIMIT) as response:
            return response.status, response.headers["K-Network-Hash"]

    assert await asyncio.to_thread(fetch) == (200, "h1")


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"CLOUDSTATE_COORDINATOR": "nowhere"}, "CLOUDSTATE_COORDINATOR='nowhere'"),
        ({"CLOUDSTATE_COORDINATOR": "x:1", "ACTIVATOR_PORT": "http"}, "ACTIVATOR_PORT='http'"),
        ({"CLOUDSTATE_COORDINATOR": "x:1", "CLOUDSTATE_TRANSPORT": "pigeon"}, "pigeon"),
    ],
)
async def test_a_bad_setting_is_told_and_nothing_serves(environment: dict[str, str], says: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "activator", env={**os.environ, **environment}, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await asyncio.wait_for(process.communicate(), LIMIT)
    assert process.returncode == 1
    assert says in errors.decode()
