"""Leaders come and go: what the API server keeps is enough to go on, and nobody sees the change in status or scale."""

from __future__ import annotations

import asyncio

import pytest

from cloudstate_core.kube import kinds, objects
from envtest.autoscaling import FAST, Cast, World, holder, replica, state, stats
from envtest.steps import eventually

PAIRED = {"cloudstate.io/paired": "v1", "cloudstate.io/shards": "16"}


class History:
    """What a reader of the API sees while a test goes on."""

    def __init__(self, world: World, revision: str) -> None:
        self.seen: set[tuple[int | None, int | None, int, tuple[tuple[str, str], ...]]] = set()
        self.task = asyncio.create_task(self._look(world, revision))

    async def _look(self, world: World, revision: str) -> None:
        while True:
            pa = await world.pa(revision)
            conditions = tuple((c.type, c.status) for c in pa.status.conditions)
            self.seen.add((pa.status.desired_scale, pa.status.actual_scale, await world.replicas(revision), conditions))
            await asyncio.sleep(0.05)

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def leader_address(world: World) -> list[tuple[str, ...]]:
    found, _ = await world.kube.list(kinds.ENDPOINT_SLICE, world.namespace, "kubernetes.io/service-name=cloudstate-autoscaler")
    return [endpoint.addresses for each in found for endpoint in each.endpoints]


@pytest.mark.parametrize("annotations", [{}, PAIRED], ids=["plain", "paired"])
async def test_when_the_leader_is_killed_the_other_goes_on_and_nothing_moves(world: World, cast: Cast, annotations: dict[str, str]) -> None:
    await world.policy(FAST)
    await world.activator()
    async with replica(world.namespace, "10.9.8.1") as (first, first_port):
        await eventually(lambda: leader_address(world), lambda found: found == [("10.9.8.1",)], "the first leads")
        async with replica(world.namespace, "10.9.8.2") as (_, second_port):
            await world.revision("hello-1", annotations, replicas=3)
            for n in range(3):
                await world.revision_pod("hello-1", f"p{n}", f"10.1.9.{n}")
            activator = cast.activator(first_port)
            activator.stats = stats(world, "hello-1", 25)
            for n in range(3):
                cast.proxy(first_port, f"p{n}") if annotations else None

            def whole(pa: objects.PodAutoscaler) -> bool:
                return state(pa).get("Ready") == ("True", "") and (pa.status.desired_scale, pa.status.actual_scale) == (3, 3)

            await eventually(lambda: world.pa("hello-1"), whole, "three pods that serve")
            history, was = History(world, "hello-1"), await holder(world)
            await first.kill()
            await cast.leave()
            await eventually(lambda: leader_address(world), lambda found: found == [("10.9.8.2",)], "the other leads")
            assert await holder(world) != was
            activator = cast.activator(second_port)
            activator.stats = stats(world, "hello-1", 25)
            for n in range(3):
                cast.proxy(second_port, f"p{n}") if annotations else None
            name = f"{world.namespace}/hello"

            async def ready() -> int:
                return sum(len(route.ready_members) for route in activator.routes[name].revisions) if name in activator.routes else 0

            await eventually(ready, lambda count: count == 3, "routes to all pods")
            await asyncio.sleep(2)  # several decisions of the new leader
            await history.end()
            conditions = tuple((kind, "True") for kind in ("Active", "Ready", "SKSReady", "ScaleTargetInitialized"))
            assert history.seen == {(3, 3, 3, conditions)}
            activator.stats = stats(world, "hello-1", 50)
            await eventually(lambda: world.replicas("hello-1"), lambda n: n == 5, "the new leader decides")


async def test_a_paired_revision_s_map_is_kept_before_it_is_told_and_outlives_its_leader(world: World, cast: Cast) -> None:
    await world.activator()
    await world.kube.create(kinds.KNATIVE_SERVICE, world.namespace, {"metadata": {"name": "hello"}, "spec": {}})
    await world.revision("hello-1", PAIRED, replicas=2)
    for n in range(2):
        await world.revision_pod("hello-1", f"p{n}", f"10.1.9.{n}")
    name = f"{world.namespace}/hello"
    async with replica(world.namespace) as (_, port):
        cast.activator(port)
        proxies = [cast.proxy(port, f"p{n}") for n in range(2)]

        async def spread() -> list[int]:
            return sorted(len(proxy.held) for proxy in proxies)

        await eventually(spread, lambda found: sum(found) == 16 and found[0] >= 6, "shards are spread")

        async def told() -> list[dict[int, str]]:
            return [owners_in(await world.shard_map()), *(proxy.owners for proxy in proxies)]

        # shards may still move: the map at this leader's end is what the next one begins with
        await eventually(told, lambda found: found[0] == found[1] == found[2], "a map that is kept and told to all")
        assert [proxy.early for proxy in proxies] == [0, 0]
    await cast.leave()
    kept = await world.shard_map()
    owners = owners_in(kept)
    (owner,) = kept.metadata.owner_references
    assert (owner.kind, owner.name) == ("Service", "hello")

    async with replica(world.namespace) as (_, port):
        activator = cast.activator(port)
        await eventually(lambda: methods(activator, name), lambda found: found == ["/shop.Cart/Get"], "methods before any proxy has joined")
        proxies = [cast.proxy(port, f"p{n}") for n in range(2)]

        async def joined() -> list[dict[int, str]]:
            return [proxy.owners for proxy in proxies]

        await eventually(joined, lambda found: found == [owners, owners], "the same owners")
        assert all(proxy.generation >= kept.spec.generation for proxy in proxies)
        assert not any(proxy.refused for proxy in proxies)
        await world.delete_pod("p1")
        await cast.streams.pop().close()
        await eventually(joined, lambda found: set(found[0].values()) == {"p0#1"}, "the end of a pod is proof")
        assert proxies[0].early == 0
        assert proxies[0].generation > kept.spec.generation
        await eventually(world.shard_map, lambda found: found.spec.generation == proxies[0].generation, "that all which is kept was told")


def owners_in(kept: objects.ShardMap) -> dict[int, str]:
    return {shard: entry.owner for shard, entry in enumerate(kept.spec.shards)}


async def methods(activator: object, name: str) -> list[str]:
    routes = activator.routes  # type: ignore[attr-defined]
    return [method.path for method in routes[name].methods] if name in routes else []


async def test_a_map_that_somebody_touches_or_deletes_is_written_on(world: World, cast: Cast) -> None:
    await world.activator()
    await world.revision("hello-1", PAIRED)
    await world.revision_pod("hello-1", "p0")
    async with replica(world.namespace) as (_, port):
        proxies = [cast.proxy(port, "p0")]
        await eventually(world.shard_map, lambda found: {e.owner for e in found.spec.shards} == {"p0#1"}, "an owner")
        await world.kube.merge(kinds.SHARD_MAP, world.namespace, "hello", {"metadata": {"labels": {"looked": "at"}}})
        await world.revision_pod("hello-1", "p1", "10.1.9.8")
        proxies.append(cast.proxy(port, "p1"))
        await eventually(world.shard_map, lambda found: any(e.owner == "p1#1" for e in found.spec.shards), "a second owner")
        await world.kube.delete(kinds.SHARD_MAP, world.namespace, "hello")
        await proxies.pop().close()
        await world.delete_pod("p1")
        await eventually(world.shard_map, lambda found: {e.owner for e in found.spec.shards} == {"p0#1"}, "the map is there again")
