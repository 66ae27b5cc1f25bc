"""The leader over real gRPC streams, with proxies and an activator that are played by the test."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio
import pytest

from autoscaler.coordination import CoordinationServer, RevisionSpec
from autoscaler.fleet import Phase
from autoscaler.placement.by_pod import PlainByPod, ShardsByPod
from autoscaler.placement.service import ServicePlacement
from autoscaler.revision_scaler import RevisionScaler
from autoscaler.scaling_loop import Pod, ScalingLoop
from autoscaler.settings import effective
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.policy import parse_policy
from cloudstate_core.shard_map import ShardMap
from tests.autoscaler.cancelling import ends_all_the_same

SERVICE, SHARDS = "ns/cart", 16
JOIN, ROUTE = (f"/cloudstate_knative.v1.CoordinationService/{name}" for name in ("Join", "Route"))
LIMIT = 60.0


async def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"not reached: {what}"
        await asyncio.sleep(0.01)


class Stream:
    """One side of a stream that the test plays; what was received is kept in order."""

    def __init__(self, channel: grpc.aio.Channel, path: str, request: Any, response: Any) -> None:
        self.call = channel.stream_stream(path, request.SerializeToString, response.FromString)()
        self.received: list[Any] = []
        self.closed = False
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            async for message in self.call:
                self.received.append(message)
        self.closed = True


class Proxy(Stream):
    """Keeps its copy of the map; beats when the test says so, holding whatever the map gives it."""

    def __init__(self, channel: grpc.aio.Channel, name: str, revision: str = "cart-1", journal: str = "j1", shards: int = SHARDS) -> None:
        super().__init__(channel, JOIN, pb.JoinRequest, pb.JoinResponse)
        self.name, self.at_function = name, 0.0
        address = {"data_address": f"{name}:9000", "peer_address": f"{name}:8559"}
        member = pb.Member(member_id=name, pod=name.partition("#")[0], revision=revision, **address)
        method = pb.Method(path="/shop.Cart/Get", persistence_id="cart", key_fields=[pb.KeyField(numbers=[1], type=9)])
        self.hello = pb.Hello(service=SERVICE, member=member, journal_id=journal, shard_count=shards, methods=[method])

    async def join(self) -> None:
        await self.call.write(pb.JoinRequest(hello=self.hello))
        await self.beat()

    @property
    def entries(self) -> dict[int, pb.ShardEntry]:
        return {e.shard: e for m in self.received if m.HasField("map") for e in m.map.entries}

    @property
    def generation(self) -> int:
        return max((m.map.generation for m in self.received if m.HasField("map")), default=0)

    @property
    def members(self) -> set[str]:
        """As it was told last."""
        return next(({member.member_id for member in m.map.members} for m in reversed(self.received) if m.HasField("map")), set())

    @property
    def acknowledged(self) -> list[int]:
        return [m.acknowledgement.sent_at for m in self.received if m.HasField("acknowledgement")]

    def given(self) -> set[int]:
        return {shard for shard, e in self.entries.items() if e.owner == self.name and not e.next}

    async def beat(self, sent_at: int = 1) -> None:
        owned = [pb.OwnedShard(shard=s, epoch=1, load=0.01) for s in self.given()]
        beat = pb.Heartbeat(
            sent_at=sent_at, owned=owned, journal_ok=True, generation=self.generation, function_concurrency=self.at_function
        )
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self.call.write(pb.JoinRequest(heartbeat=beat))

    async def beat_until(self, condition: Callable[[], Any], what: str, *others: Proxy) -> None:
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < deadline, f"not reached: {what}"
            for proxy in (self, *others):
                await proxy.beat()
            await asyncio.sleep(0.03)


class Activator(Stream):
    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__(channel, ROUTE, pb.RouteRequest, pb.RouteResponse)

    @property
    def routes(self) -> list[pb.ServiceRoute]:
        return [route for message in self.received for route in message.services]

    def owners(self) -> set[str]:
        return {e.owner for e in {e.shard: e for route in self.routes for e in route.map.entries}.values()}


class Leader:
    """A running server, a channel to it, and what it kept."""

    def __init__(self) -> None:
        self.kept: list[ShardMap] = []
        self.refuse_to_keep = False
        self.server = CoordinationServer(time.monotonic, self._keep)
        self.channel: grpc.aio.Channel
        self.placement: ServicePlacement

    async def _keep(self, shard_map: ShardMap) -> None:
        if self.refuse_to_keep:
            raise OSError("the map cannot be written")
        self.kept.append(shard_map)


@pytest.fixture
async def leader() -> AsyncIterator[Leader]:
    found = Leader()
    found.placement = found.server.add_service(SERVICE, SHARDS, ("cart.example.com",), "cart-1", container_concurrency=7, timeout_seconds=11)
    port = await found.server.start("127.0.0.1", 0)
    task = asyncio.create_task(found.server.run())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as found.channel:
        yield found
    task.cancel()
    await found.server.stop()


async def test_a_proxy_gets_the_whole_map_and_its_beats_are_acknowledged_after_it(leader: Leader) -> None:
    proxy = Proxy(leader.channel, "a")
    await proxy.join()
    await proxy.beat_until(lambda: len(proxy.given()) == SHARDS, "every shard is given to the only proxy")
    await proxy.beat(sent_at=77)
    await until(lambda: 77 in proxy.acknowledged, "the beat is acknowledged")
    first = next(m.map for m in proxy.received if m.HasField("map"))
    assert first.full
    assert len(first.entries) == SHARDS
    told = 0
    for message in proxy.received:
        if message.HasField("map"):
            assert message.map.generation > told
            told = message.map.generation
        else:
            assert message.acknowledgement.generation <= told


async def test_an_activator_learns_everything_it_routes_by_and_then_changes(leader: Leader) -> None:
    activator = Activator(leader.channel)
    await until(lambda: activator.routes, "the first route")
    assert activator.routes[0].map.full
    proxy = Proxy(leader.channel, "a")
    await proxy.join()
    await until(lambda: activator.owners() == {"a"} and activator.routes[-1].revisions[0].ready_members, "the owner")
    route = activator.routes[-1]
    assert list(route.hosts) == ["cart.example.com"]
    assert route.default_revision == "cart-1"
    assert (route.revisions[0].container_concurrency, route.revisions[0].timeout_seconds) == (7, 11)
    assert list(route.revisions[0].ready_members) == ["a"]
    assert [method.path for method in route.methods] == ["/shop.Cart/Get"]
    assert route.map.members[0].data_address == "a:9000"
    assert not route.map.full


async def test_shards_move_to_a_second_proxy_and_back_when_it_exits(leader: Leader) -> None:
    a, b, activator = Proxy(leader.channel, "a"), Proxy(leader.channel, "b"), Activator(leader.channel)
    await a.join()
    await a.beat_until(lambda: len(a.given()) == SHARDS, "a has every shard")
    await b.join()
    await a.beat_until(lambda: len(b.given()) >= SHARDS // 2 - 1, "b gets its share", b)
    assert not a.given() & b.given()
    leader.server.process_exited(SERVICE, "b")
    await a.beat_until(lambda: len(a.given()) == SHARDS, "a has every shard again")
    await until(lambda: activator.owners() == {"a"}, "the activator knows")


async def test_a_proxy_that_leaves_without_a_shard_is_no_member_for_the_others_any_more(leader: Leader) -> None:
    a, b = Proxy(leader.channel, "a"), Proxy(leader.channel, "b")
    await a.join()
    await b.join()
    await a.beat_until(lambda: len(b.given()) >= SHARDS // 2 - 1, "b gets its share", b)
    leader.placement.drain("b")
    await a.beat_until(lambda: len(a.given()) == SHARDS and leader.placement.drained("b"), "a has every shard again", b)
    before = a.generation
    assert a.members == {"a", "b"}
    leader.server.process_exited(SERVICE, "b")
    await a.beat_until(lambda: a.members == {"a"}, "a is told who is left")
    assert a.generation == before, "the map is the same"


async def test_statistics_arrive_at_once(leader: Leader) -> None:
    seen: list[tuple[str, float]] = []
    leader.server.on_stats = lambda activator, stats: seen.append((activator, stats.concurrency))
    activator = Activator(leader.channel)
    stats = pb.RevisionStats(service=SERVICE, revision="cart-1", concurrency=3.0, requests=1.0, waiting=1)
    await activator.call.write(pb.RouteRequest(activator_id="act", stats=[stats]))
    await until(lambda: seen, "statistics")
    assert seen == [("act", 3.0)]


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"journal": "other"}, "journal other"), ({"shards": 8}, "8 shards")],
)
async def test_a_proxy_of_another_layout_is_told_why(leader: Leader, changes: dict[str, Any], says: str) -> None:
    first = Proxy(leader.channel, "a")
    await first.join()
    await until(first.given, "the first proxy is a member")
    stranger = Proxy(leader.channel, "x", **changes)
    await stranger.join()
    await until(lambda: stranger.closed, "the stream ends")
    assert says in stranger.received[0].refusal.reason


async def test_a_stream_that_does_not_begin_with_hello_is_told_the_rule(leader: Leader) -> None:
    stream = Proxy(leader.channel, "a")
    await stream.beat()
    await until(lambda: stream.closed, "the stream ends")
    assert "`hello`" in stream.received[0].refusal.reason


async def test_nothing_is_told_that_was_not_kept(leader: Leader) -> None:
    leader.refuse_to_keep = True
    proxy = Proxy(leader.channel, "a")
    await proxy.join()
    await until(lambda: proxy.acknowledged, "the first beat is acknowledged")
    for n in range(10):
        await proxy.beat(sent_at=100 + n)
    await until(lambda: 109 in proxy.acknowledged, "the last beat is acknowledged")
    assert not proxy.given()
    leader.refuse_to_keep = False
    await proxy.beat_until(proxy.given, "the map is told once it is kept")
    assert leader.kept[-1].generation == proxy.generation


async def test_traffic_is_split_between_revisions(leader: Leader) -> None:
    old, new, activator = Proxy(leader.channel, "a"), Proxy(leader.channel, "b", "cart-2"), Activator(leader.channel)
    await old.join()
    await old.beat_until(old.given, "the old revision serves")
    leader.server.set_routes(SERVICE, ("c.example.com",), "cart-1", (RevisionSpec("cart-1", 75.0), RevisionSpec("cart-2", 25.0, 1)))
    await new.join()
    await old.beat_until(lambda: len(new.given()) >= 1, "a first shard moves", new)
    await until(lambda: activator.routes[-1].revisions[-1].ready_members, "the activator knows the new revision's pod")
    assert [r.revision for r in activator.routes[-1].revisions] == ["cart-1", "cart-2"]
    assert list(activator.routes[-1].hosts) == ["c.example.com"]
    assert len(new.given()) <= 4


async def test_a_removed_service_ends_its_streams_and_routes(leader: Leader) -> None:
    proxy, activator = Proxy(leader.channel, "a"), Activator(leader.channel)
    await proxy.join()
    await until(lambda: proxy.given() and activator.routes, "both are connected")
    leader.server.remove_service(SERVICE)
    await until(lambda: proxy.closed, "the proxy's stream ends")
    assert "has been removed" in proxy.received[-1].refusal.reason
    await until(lambda: not activator.routes[-1].hosts, "the activator is told")
    leader.server.process_exited(SERVICE, "a")


async def test_a_later_leader_goes_on_above_every_earlier_generation(leader: Leader) -> None:
    proxy = Proxy(leader.channel, "a")
    await proxy.join()
    await until(proxy.given, "a map")
    kept = leader.kept[-1]
    restarted = CoordinationServer(time.monotonic)
    assert restarted.add_service(SERVICE, SHARDS, (), "cart-1", kept=kept).map == kept
    await asyncio.sleep(0.002)
    assert CoordinationServer(time.monotonic).add_service(SERVICE, SHARDS, (), "cart-1").map.generation > kept.generation


class Pods:
    """The running pods of a revision, and how many were started besides."""

    def __init__(self, *names: str) -> None:
        self.names, self.started = names, 0

    def pods(self) -> list[Pod]:
        return [Pod(name, Phase.READY, 0.0) for name in self.names]

    async def start(self) -> None:
        self.started += 1

    async def stop(self, name: str) -> None:
        raise AssertionError(f"{name} was stopped")


async def test_what_proxies_tell_of_their_functions_scales_their_revision(leader: Leader) -> None:
    """Two pods of one revision tell 1.5 and 2 commands at their functions, a pod of another one tells 50: at 1 a pod, four are wanted."""
    document = {
        "apiVersion": "autoscaling.cloudstate.io/v1alpha1", "kind": "AutoscalingPolicy", "metadata": {"name": "p"},
        "spec": {"metrics": [{"type": "FunctionConcurrency", "target": 1}]},
    }  # fmt: skip
    first, second, other = (Proxy(leader.channel, name, revision) for name, revision in (("a#1", "cart-1"), ("b#1", "cart-1"), ("c#1", "cart-2")))
    first.at_function, second.at_function, other.at_function = 1.5, 2.0, 50.0
    for proxy in (first, second, other):
        await proxy.join()
    shards = ShardsByPod(leader.placement)
    await first.beat_until(
        lambda: all(map(shards.is_member, "abc")) and all(map(shards.function_concurrency_of_pod, "abc")), "all have told", second, other
    )
    pods = Pods("a", "b")
    loop = ScalingLoop(RevisionScaler(effective({}, parse_policy(document))), pods, shards, time.monotonic)
    loop.heard("activator")
    await loop.tick()
    assert (loop.state.wanted, pods.started) == (4, 2)


async def test_who_watches_members_is_told_when_they_change_and_only_then(leader: Leader) -> None:
    told: list[str] = []
    leader.server.on_members = told.append
    proxy = Proxy(leader.channel, "a")
    await proxy.join()
    await proxy.beat_until(lambda: told, "the member is told")
    await proxy.beat_until(proxy.given, "it has shards")
    told.clear()
    for n in range(10):
        await proxy.beat(sent_at=200 + n)
    await until(lambda: 209 in proxy.acknowledged, "the last beat is acknowledged")
    assert told == []
    leader.server.process_exited(SERVICE, "a")
    await until(lambda: told == [SERVICE], "its end is told")


async def test_a_plain_service_is_told_by_its_new_name_before_the_old_one_means_something_else(leader: Leader) -> None:
    activator = Activator(leader.channel)
    members = leader.server.add_plain("ns/shop")
    members.set_members("shop-1", {"p": "10.0.0.1:8012"})
    leader.server.set_routes("ns/shop", (), "shop-1", (RevisionSpec("shop-1"),))
    await until(lambda: any(route.map.service == "ns/shop" for route in activator.routes), "the plain service")
    leader.server.rename_plain("ns/shop", "ns/shop/plain")
    leader.server.add_service("ns/shop", SHARDS, (), "shop-2")
    leader.server.touch("ns/shop")
    await until(lambda: any(r.default_revision == "shop-2" for r in activator.routes), "the paired service")
    names = [route.map.service for route in activator.routes]
    renamed = names.index("ns/shop/plain")
    assert activator.routes[renamed].plain
    assert activator.routes[renamed].map.full
    assert list(activator.routes[renamed].revisions[0].ready_members) == ["p"]
    paired = next(n for n, route in enumerate(activator.routes) if route.default_revision == "shop-2")
    assert renamed < paired
    assert activator.routes[paired].map.full


async def test_a_plain_pod_that_is_about_to_leave_is_sent_nothing_more(leader: Leader) -> None:
    """The loop drains a pod and stops it at its next look: activators must know before."""
    activator = Activator(leader.channel)
    members = leader.server.add_plain("ns/shop")
    members.set_members("shop-1", {"p": "10.0.0.1:8012", "q": "10.0.0.2:8012"})
    leader.server.set_routes("ns/shop", (), "shop-1", (RevisionSpec("shop-1"),))

    def ready() -> list[str]:
        routes = [route for route in activator.routes if route.map.service == "ns/shop"]
        return list(routes[-1].revisions[0].ready_members) if routes else []

    await until(lambda: ready() == ["p", "q"], "both take calls")
    PlainByPod(members).drain_pod("q")
    await until(lambda: ready() == ["p"], "the activator is told")


async def test_a_service_at_zero_costs_nothing_until_something_happens(leader: Leader) -> None:
    ticks = {"busy": 0, "idle": 0}

    def counted(name: str, decide: Callable[[float], bool]) -> Callable[[float], bool]:
        def tick(now: float) -> bool:
            ticks[name] += 1
            return decide(now)

        return tick

    busy, idle = leader.server.add_service(SERVICE, SHARDS, (), "cart-1"), leader.server.add_service("ns/idle", SHARDS, (), "idle-1")
    proxy = Proxy(leader.channel, "a")
    await proxy.join()
    await proxy.beat_until(proxy.given, "the busy service has an owner")
    busy.tick = counted("busy", busy.tick)  # type: ignore[method-assign]
    idle.tick = counted("idle", idle.tick)  # type: ignore[method-assign]
    await until(lambda: ticks["busy"] >= 3, "three looks at the busy service")
    assert ticks["idle"] == 0
    leader.server.touch("ns/idle")
    await until(lambda: ticks["idle"] == 1, "it is decided on when touched")


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancellation_is_not_lost_when_something_happens_in_that_moment(turns: int) -> None:
    """A term waits for its end: it must not last until the process is told to give up."""
    server = CoordinationServer(time.monotonic)
    running = asyncio.create_task(server.run())
    assert await ends_all_the_same(running, lambda: server.touch(SERVICE), turns)
