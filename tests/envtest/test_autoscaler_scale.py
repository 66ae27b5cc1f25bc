"""Scale against a real API server: bounds, policies as they change, hand edits, traffic splits, and who leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from cloudstate_core.kube import kinds
from envtest.autoscaling import FAST, Cast, Proxy, World, state, stats
from envtest.steps import eventually

COST = "controller.kubernetes.io/pod-deletion-cost"
PAIRED = {"cloudstate.io/paired": "v1", "cloudstate.io/shards": "40"}


async def test_a_policy_s_changes_apply_to_what_runs_and_a_bad_one_says_so(world: World, port: int, cast: Cast) -> None:
    activator = cast.activator(port)
    await world.policy(FAST)
    await world.revision("hello-1")
    await world.revision_pod("hello-1", "a")
    activator.stats = stats(world, "hello-1", 30)
    await eventually(lambda: world.replicas("hello-1"), lambda n: n == 3, "three pods for 30 at 10 each")
    told = await eventually(world.policy_status, lambda s: s.get("matched") == 1, "whom it applies to")
    assert told["effective"][0]["metrics"] == [{"type": "Concurrency", "target": "10"}]
    assert told["conditions"][0]["reason"] == "Accepted"

    await world.policy(FAST | {"metrics": [{"type": "Concurrency", "target": 6, "utilization": 100}]})
    await eventually(lambda: world.replicas("hello-1"), lambda n: n == 5, "five pods for 30 at 6 each")
    await eventually(world.policy_status, lambda s: s["effective"][0]["metrics"][0]["target"] == "6", "the values in force")

    bad = FAST | {"behavior": {"maxScaleUpRate": 1.0000001}, "scale": {"min": 0, "max": 9}}
    await world.policy(bad)
    told = await eventually(world.policy_status, lambda s: s["conditions"][0]["status"] == "False", "that it is bad")
    assert "behavior.maxScaleUpRate" in told["conditions"][0]["message"]
    assert told["effective"][0]["max"] == 5, "the last good form stays in force"

    await world.policy({"scale": {"max": 2}, "metrics": FAST["metrics"]}, "named")
    await world.kube.merge(kinds.POD_AUTOSCALER, world.namespace, "hello-1", {"metadata": {"annotations": {"cloudstate.io/policy": "named"}}})
    await eventually(lambda: world.policy_status("named"), lambda s: s.get("matched") == 1, "the one that the annotation names")
    await eventually(world.policy_status, lambda s: s.get("matched") == 0, "the other one applies no more")
    await eventually(lambda: world.replicas("hello-1"), lambda n: n == 2, "its bound")


async def test_bounds_by_annotation(world: World, port: int, cast: Cast) -> None:
    activator, prefix = cast.activator(port), "autoscaling.knative.dev"
    bounds = {f"{prefix}/min-scale": "2", f"{prefix}/max-scale": "4", f"{prefix}/window": "6s", f"{prefix}/target": "10"}
    await world.revision("hello-1", bounds)
    await eventually(lambda: world.replicas("hello-1"), lambda n: n == 2, "the minimum")
    for n in range(2):
        await world.revision_pod("hello-1", f"p{n}", f"10.1.9.{n}")
    activator.stats = stats(world, "hello-1", 500)
    await eventually(lambda: world.replicas("hello-1"), lambda n: n == 4, "the maximum")
    activator.stats = []
    await eventually(lambda: world.replicas("hello-1"), lambda n: n == 2, "the minimum again")
    idle = await eventually(lambda: world.pa("hello-1"), lambda pa: pa.status.desired_scale == 2, "a status")
    assert state(idle)["Active"] == ("True", "")


async def test_replicas_set_by_hand_are_corrected(world: World, port: int, cast: Cast) -> None:
    activator = cast.activator(port)
    await world.policy(FAST)
    await world.revision("hello-1", replicas=2)
    for n in range(2):
        await world.revision_pod("hello-1", f"p{n}", f"10.1.9.{n}")
    activator.stats = stats(world, "hello-1", 15)
    await eventually(lambda: world.pa("hello-1"), lambda pa: pa.status.desired_scale == 2, "two pods")
    for replicas in (7, 0, 1):
        await world.kube.scale(kinds.DEPLOYMENT, world.namespace, "hello-1-deployment", replicas)
        await eventually(lambda: world.replicas("hello-1"), lambda n: n == 2, f"two pods again after {replicas}")


async def test_the_pod_that_leaves_was_drained_and_named_before_replicas_are_lowered(world: World, port: int, cast: Cast) -> None:
    activator = cast.activator(port)
    await world.policy(FAST)
    await world.revision("hello-1", PAIRED, replicas=3)
    for n in range(3):
        await world.revision_pod("hello-1", f"p{n}", f"10.1.9.{n}")
    loads = {"p0": 0.5, "p1": 0.001, "p2": 0.5}
    proxies = {pod: cast.proxy(port, pod, shards=40, load=load) for pod, load in loads.items()}
    activator.stats = stats(world, "hello-1", 25)

    await eventually(held_by(*proxies.values()), lambda found: sum(found) == 40 and min(found) > 0, "every pod has shards")
    await world.policy(FAST | {"scale": {"min": 0, "max": 2}})
    lowered = False
    async with asyncio.timeout(120):
        while not lowered:
            lowered = await world.replicas("hello-1") == 2
            named = {name for name, pod in (await world.pods()).items() if COST in pod.metadata.annotations}
            if lowered:
                assert len(named) == 1, "named before the replicas were lowered"
            await asyncio.sleep(0.02)
    (victim,) = named
    assert victim == "p1", "the least loaded one"
    owners = {e.owner for e in (await world.shard_map()).spec.shards}
    assert owners == {"p0#1", "p2#1"}, "drained before it goes"
    await proxies[victim].close()
    await world.delete_pod(victim)
    await eventually(lambda: world.pa("hello-1"), lambda pa: (pa.status.desired_scale, pa.status.actual_scale) == (2, 2), "two pods")


def held_by(*proxies: Proxy) -> Callable[[], Awaitable[list[int]]]:
    async def look() -> list[int]:
        return [len(proxy.held) for proxy in proxies]

    return look


async def test_a_tenth_of_the_traffic_is_a_tenth_of_the_shards(world: World, port: int, cast: Cast) -> None:
    cast.activator(port)
    for revision in ("hello-1", "hello-2"):
        await world.revision(revision, PAIRED)
        await world.revision_pod(revision, f"{revision}-a", "10.1.9.9")
    await world.route(hello_1=100)
    old = cast.proxy(port, "hello-1-a", "hello-1", shards=40)
    await eventually(held_by(old), lambda found: found == [40], "all at the old revision")
    new = cast.proxy(port, "hello-2-a", "hello-2", shards=40)
    held = held_by(old, new)
    await world.route(hello_1=90, hello_2=10)
    await eventually(held, lambda found: found == [36, 4], "a tenth at the new one")
    moved = set(new.held)
    await world.route(hello_1=80, hello_2=20)
    await eventually(held, lambda found: found == [32, 8], "a fifth at the new one")
    assert moved <= new.held, "raising a share only adds entities"
