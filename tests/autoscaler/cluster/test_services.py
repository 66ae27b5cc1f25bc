"""Services: traffic to quotas, what is kept, first and last revision, and revisions with a proxy beside others without."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from autoscaler.cluster.services import Services, shards_by_pod, traffic_of
from autoscaler.cluster.shard_maps import ShardMapStore, body_of
from autoscaler.coordination import CoordinationServer
from autoscaler.placement.by_pod import PlainByPod, ShardsByPod
from autoscaler.placement.plain import PlainMembers
from autoscaler.placement.service import PlacementSettings, ServicePlacement
from cloudstate_core.kube import kinds, objects
from cloudstate_core.kube.api import Conflict, KubeError
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.shard_map import Entry, ShardMap

from .world import NAMESPACE, PAIRED, Kube, podautoscaler

SETTINGS = PlacementSettings()
METHOD = pb.Method(path="/shop.Cart/Get", persistence_id="cart")


def route(*traffic: tuple[str, int]) -> objects.Route:
    return objects.Route(objects.Metadata("cart", NAMESPACE), objects.RouteStatus(tuple(objects.TrafficTarget(n, p) for n, p in traffic)))


class World:
    def __init__(self) -> None:
        self.kube, self.now = Kube(), 0.0
        self.coordination = CoordinationServer(lambda: self.now)
        self.store = ShardMapStore(self.kube, lambda name: self.services.methods(name))  # type: ignore[arg-type]
        self.services = Services(self.coordination, self.store)

    async def add(self, name: str, *traffic: tuple[str, int], paired: bool = True, settings: PlacementSettings = SETTINGS) -> Any:
        pa = podautoscaler(name, PAIRED if paired else {}, uid=name)
        return await self.services.add_revision(pa, lambda: route(*traffic) if traffic else None, 30, settings)

    def remove(self, name: str) -> None:
        self.services.remove_revision(podautoscaler(name))

    def told(self, name: str) -> dict[str, float]:
        return {r.name: r.percent for r in self.coordination._services[name].revisions}

    def join(self, *members: tuple[str, str]) -> ServicePlacement:
        placement = self.coordination._services["ns/cart"].placement
        assert isinstance(placement, ServicePlacement)
        for name, revision in members:
            member = pb.Member(member_id=name, pod=name, revision=revision)
            hello = pb.Hello(service="ns/cart", member=member, journal_id="j", shard_count=placement.shard_count)
            assert placement.hello(self.now, hello) == ""
        return placement

    def converge(self, placement: ServicePlacement, ticks: int = 600) -> None:
        for _ in range(ticks):
            self.now += 0.2
            for name in placement.members:
                owned = [pb.OwnedShard(shard=s, epoch=1) for s, e in enumerate(placement.map.entries) if e.owner == name and not e.next]
                placement.heartbeat(self.now, name, pb.Heartbeat(owned=owned, journal_ok=True, generation=placement.map.generation))
            placement.tick(self.now)


def test_a_route_s_percentages_add_up_by_revision() -> None:
    assert traffic_of(route(("cart-1", 60), ("cart-2", 30), ("cart-1", 10))) == {"cart-1": 70.0, "cart-2": 30.0}
    tagged = objects.Route(status=objects.RouteStatus((objects.TrafficTarget("cart-1", None, "tag"),)))
    assert traffic_of(tagged) == {"cart-1": 0.0}
    assert traffic_of(None) == {}


async def test_a_tenth_of_the_traffic_is_a_tenth_of_the_shards() -> None:
    world = World()
    await world.add("cart-1", ("cart-1", 100))
    placement = world.join(("a", "cart-1"), ("b", "cart-2"))
    world.converge(placement)
    await world.add("cart-2", ("cart-1", 90), ("cart-2", 10))
    assert world.told("ns/cart") == {"cart-1": 90.0, "cart-2": 10.0}
    world.converge(placement)
    assert len(placement.map.owned_by("b")) == 26, "a tenth of 256"
    world.services.set_traffic("ns/cart", route(("cart-2", 100)))
    world.converge(placement)
    assert len(placement.map.owned_by("b")) == 256


async def test_the_largest_share_is_the_default_and_no_traffic_makes_one_pool() -> None:
    world = World()
    service = await world.add("cart-1")
    await world.add("cart-2")
    assert world.told("ns/cart") == {"cart-1": 50.0, "cart-2": 50.0}
    assert service.default_revision == "cart-2"
    world.services.set_traffic("ns/cart", route(("cart-1", 51), ("cart-2", 49), ("cart-0", 0)))
    assert service.default_revision == "cart-1"
    world.services.set_traffic("ns/cart", None)
    assert world.told("ns/cart") == {"cart-1": 50.0, "cart-2": 50.0}
    world.services.set_traffic("ns/unknown", None)


async def test_a_service_goes_with_its_last_revision() -> None:
    world = World()
    await world.add("cart-1")
    await world.add("cart-2")
    world.remove("cart-1")
    assert set(world.told("ns/cart")) == {"cart-2"}
    world.remove("cart-1")
    world.remove("cart-2")
    assert world.services.get("ns/cart") is None
    assert not world.coordination._services
    assert world.services.methods("ns/cart") == ()


async def test_what_an_earlier_leader_kept_is_taken_over() -> None:
    world = World()
    kept = ShardMap("ns/cart", "j", 41, (Entry("a", since=41), *(Entry() for _ in range(15))))
    await world.kube.create(kinds.SHARD_MAP, NAMESPACE, body_of(kept, [METHOD], None) | {"metadata": {"name": "cart"}})
    service = await world.add("cart-1")
    assert service.placement.map == kept, "16 shards, whatever the annotation says by now"
    assert list(service.placement.methods) == [METHOD]


async def test_revisions_taken_in_at_the_same_time_share_one_placement() -> None:
    world = World()
    found = await asyncio.gather(*(world.add(f"cart-{n}") for n in range(5)))
    assert len({id(service.placement) for service in found}) == 1
    assert len(world.told("ns/cart")) == 5
    assert world.kube.calls["get"] == 2


async def test_a_service_whose_map_cannot_be_read_is_not_made_up() -> None:
    world = World()
    world.kube.fail = lambda call: KubeError(500, "InternalError", "no")
    with pytest.raises(KubeError):
        await world.add("cart-1")
    assert world.services.get("ns/cart") is None
    world.kube.fail = lambda call: None
    assert await world.add("cart-1")


async def test_shards_move_as_eagerly_as_the_default_revision_s_policy_says() -> None:
    world, eager = World(), PlacementSettings(max_concurrent_moves=99)
    service = await world.add("cart-1", ("cart-1", 100))
    await world.add("cart-2", ("cart-1", 90), ("cart-2", 10), settings=eager)
    assert service.placement.settings == SETTINGS
    world.services.set_eagerness(podautoscaler("cart-1"), eager)
    assert service.placement.settings == eager
    world.services.set_eagerness(podautoscaler("cart-2"), SETTINGS)
    assert service.placement.settings == eager
    world.services.set_traffic("ns/cart", route(("cart-2", 100)))
    assert service.placement.settings == SETTINGS


async def test_plain_pods_are_told_by_name_and_address() -> None:
    world = World()
    service = await world.add("cart-1", paired=False)
    await world.add("cart-2", paired=False)
    world.services.set_plain_members(service, "cart-1", {"a": "10.0.0.1:8012"})
    world.services.set_plain_members(service, "cart-2", {"b": "10.0.0.2:8012"})
    assert service.placement.ready_members("cart-1") == ["a"]
    assert isinstance(shards_by_pod(service), PlainByPod)
    world.remove("cart-1")
    assert service.placement.ready_members() == ["b"]


@pytest.mark.parametrize("plain_first", [True, False])
async def test_pairing_can_be_switched_on_and_off(plain_first: bool) -> None:
    world = World()
    order = [("cart-1", False), ("cart-2", True)] if plain_first else [("cart-2", True), ("cart-1", False)]
    both = [await world.add(name, ("cart-1", 90), ("cart-2", 10), paired=paired) for name, paired in order]
    plain, paired = both if plain_first else both[::-1]
    assert isinstance(paired.placement, ServicePlacement)
    assert isinstance(plain.placement, PlainMembers)
    assert (paired.name, plain.name) == ("ns/cart", "ns/cart/plain")
    assert set(world.told("ns/cart")) == {"cart-2"}
    assert set(world.told("ns/cart/plain")) == {"cart-1"}
    assert isinstance(shards_by_pod(paired), ShardsByPod)
    world.services.set_plain_members(plain, "cart-1", {"a": "10.0.0.1:8012"})
    assert world.services.of(podautoscaler("cart-1")) is plain
    assert world.services.of(podautoscaler("cart-2")) is paired
    again = await world.add("cart-0", paired=False)
    assert again is plain
    for name in ("cart-1", "cart-0"):
        world.remove(name)
    assert set(world.coordination._services) == {"ns/cart"}
    world.remove("cart-2")
    assert not world.coordination._services


async def test_a_pod_of_a_revision_that_is_not_ours_any_more_gives_its_shards_up() -> None:
    world = World()
    await world.add("cart-2")
    placement = world.join(("a", "cart-1"), ("b", "cart-2"))
    world.converge(placement)
    assert placement.map.owned_by("a")
    world.services.pod_left("ns/cart", "a", ended=False)
    world.converge(placement)
    assert not placement.map.owned_by("a")
    world.services.pod_left("ns/cart", "a", ended=True)
    assert list(placement.members) == ["b"]
    world.services.pod_left("ns/other", "a", ended=True)


async def test_a_service_made_again_does_not_begin_with_the_shards_and_the_journal_of_the_one_before() -> None:
    """Its first revision may come while the last of the other is not gone yet."""
    world = World()

    def revision(name: str, service: str, shards: str) -> Any:
        return podautoscaler(name, PAIRED | {"cloudstate.io/shards": shards}, {"serving.knative.dev/serviceUID": service}, uid=name)

    async def add(pa: Any) -> Any:
        return await world.services.add_revision(pa, lambda: None, 30, SETTINGS)

    old, new = revision("cart-3", "k1", "16"), revision("cart-1", "k2", "32")
    await add(old)
    with pytest.raises(Conflict, match="made again"):
        await add(new)
    assert world.told("ns/cart").keys() == {"cart-3"}
    assert world.services.of(new) is None
    world.services.remove_revision(old)
    service = await add(new)
    assert service.placement.shard_count == 32
    await add(revision("cart-2", "k2", "32"))
    await add(revision("cart-4", "", "32"))
    assert world.told("ns/cart").keys() == {"cart-1", "cart-2", "cart-4"}
