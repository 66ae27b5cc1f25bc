"""One revision: pods that come, break and go, the takeover of a running fleet, and what its status is made of. Time is the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from autoscaler.cluster.revision import JOIN_AGAIN, Revision
from autoscaler.cluster.services import Services
from autoscaler.cluster.shard_maps import ShardMapStore
from autoscaler.coordination import CoordinationServer
from autoscaler.placement.service import PlacementSettings, ServicePlacement
from autoscaler.settings import effective
from cloudstate_core.kube import kinds, objects
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb

from .world import NAMESPACE, PAIRED, Kube, pod, podautoscaler

SERVICE = "ns/cart"


class Probes:
    """Stands where the prober stands."""

    def __init__(self) -> None:
        self.followed: dict[str, str] = {}

    def follow(self, name: str, address: str) -> None:
        self.followed[name] = address

    def forget(self, name: str) -> None:
        self.followed.pop(name, None)

    async def close(self) -> None:
        self.followed.clear()


class World:
    def __init__(self) -> None:
        self.kube, self.now, self.pods = Kube(), 100.0, dict[str, objects.Pod]()
        self.coordination = CoordinationServer(lambda: self.now)
        store = ShardMapStore(self.kube, lambda name: self.services.methods(name))  # type: ignore[arg-type]
        self.services = Services(self.coordination, store)
        self.changes = 0
        self.revision: Revision
        self.probes = Probes()

    async def begin(self, annotations: dict[str, str] | None = None, replicas: int = 1, **parts: Any) -> Revision:
        pa = podautoscaler(annotations=annotations, **parts)
        await self.services.add_revision(pa, lambda: None, 30, PlacementSettings())
        await self.kube.create(kinds.DEPLOYMENT, NAMESPACE, {"metadata": {"name": "cart-1-deployment"}, "spec": {"replicas": replicas}})
        for name in self.pods:
            await self.kube.create(kinds.POD, NAMESPACE, {"metadata": {"name": name}})
        deployment = self.kube.read(kinds.DEPLOYMENT, NAMESPACE, "cart-1-deployment")
        settings = effective(pa.metadata.annotations, None)
        self.revision = Revision(
            self.kube, pa, settings, deployment, self.services, self.coordination,  # type: ignore[arg-type]
            lambda: self.pods.values(), lambda: self.now, self._changed, 2.0,
        )  # fmt: skip
        self.revision._prober = self.probes  # type: ignore[assignment]
        for each in list(self.pods.values()):
            self.revision.pod_changed(None, each)
        return self.revision

    def _changed(self) -> None:
        self.changes += 1

    def set(self, new: objects.Pod | None, name: str = "") -> None:
        before = self.pods.get(new.metadata.name if new else name)
        if new is not None:
            self.pods[new.metadata.name] = new
        else:
            del self.pods[name]
        self.revision.pod_changed(before, new)

    def serving(self) -> dict[str, str]:
        service = self.services.get(SERVICE)
        assert service is not None
        return {name: member.data_address for name, member in service.placement.members.items()}

    async def tick(self, seconds: float = 2.0, load: float | None = None) -> None:
        self.now += seconds
        if load is not None:
            self.revision.loop.heard("act")
            self.revision.loop.on_stats("act", load, 1)
        await self.revision.loop.tick()

    def join(self, *names: str) -> ServicePlacement:
        placement = self.services.get(SERVICE).placement  # type: ignore[union-attr]
        assert isinstance(placement, ServicePlacement)
        for name in names:
            hello = pb.Hello(service=SERVICE, member=pb.Member(member_id=f"{name}#1", pod=name, revision="cart-1"), journal_id="j", shard_count=256)
            assert placement.hello(self.now, hello) == ""
            self.beat(name)
        return placement

    def beat(self, *names: str) -> None:
        placement = self.services.get(SERVICE).placement  # type: ignore[union-attr]
        for name in names:
            owned = [pb.OwnedShard(shard=s, epoch=1) for s in placement.map.owned_by(f"{name}#1") if not placement.map.entries[s].next]
            placement.heartbeat(self.now, f"{name}#1", pb.Heartbeat(journal_ok=True, owned=owned, generation=placement.map.generation))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.revision.stop()


# Plain pods -------------------------------------------------------------------------------------------------------------


async def test_a_plain_pod_serves_once_it_passes_or_the_kubelet_says_so(world: World) -> None:
    await world.begin()
    world.set(pod("a", ready=False))
    world.set(pod("b", ready=True, address="fd00::2"))
    world.set(pod("c", ready=False, address=""))
    assert world.probes.followed == {"a": "10.0.0.1:8012"}
    assert world.serving() == {"b": "[fd00::2]:8012"}
    world.revision._passed("a")
    assert world.serving() == {"a": "10.0.0.1:8012", "b": "[fd00::2]:8012"}
    assert world.probes.followed == {}


async def test_a_pod_that_breaks_after_it_passed_serves_no_more(world: World) -> None:
    await world.begin()
    world.set(pod("a", ready=False))
    world.revision._passed("a")
    world.set(pod("a", ready=True))
    assert world.serving()
    world.set(pod("a", ready=False))
    assert world.serving() == {}
    assert "a" in world.probes.followed
    world.revision._passed("a")
    world.set(pod("a", ready=False, restarts=1))
    assert world.serving() == {}, "it passed as another process"


async def test_a_pod_that_is_being_deleted_gets_nothing_more_at_once(world: World) -> None:
    await world.begin()
    world.set(pod("a"))
    world.set(pod("a", deleted=True))
    assert world.serving() == {}
    world.revision._passed("a")
    assert world.serving() == {}
    world.set(None, "a")
    world.set(pod("a"))
    assert world.serving() == {"a": "10.0.0.1:8012"}


async def test_h2c_pods_take_calls_at_the_h2c_port(world: World) -> None:
    await world.begin(protocol="h2c")
    world.set(pod("a"))
    assert world.serving() == {"a": "10.0.0.1:8013"}


# Pods with a proxy ------------------------------------------------------------------------------------------------------


async def test_a_paired_pod_that_is_being_deleted_is_drained_at_once_and_its_end_is_proof(world: World) -> None:
    await world.begin(PAIRED, replicas=2)
    for name in ("a", "b"):
        world.set(pod(name))
    placement = world.join("a", "b")
    world.set(pod("a", deleted=True))
    assert placement.ready_members() == ["b#1"]
    world.set(pod("a", deleted=True, phase="Succeeded"))
    assert list(placement.members) == ["b#1"]
    world.set(None, "b")
    assert not placement.members


async def test_a_proxy_that_joins_from_a_pod_that_is_being_deleted_gets_no_shards(world: World) -> None:
    world.pods["a"] = pod("a", deleted=True)
    await world.begin(PAIRED)
    placement = world.join("a")
    world.revision.members_changed()
    assert placement.ready_members() == []


async def test_probes_are_for_plain_pods(world: World) -> None:
    await world.begin(PAIRED)
    world.set(pod("a", ready=False))
    assert world.probes.followed == {}


# A new leader -----------------------------------------------------------------------------------------------------------


def told(active: str, initialized: bool = True, scale: int = 4, reason: str = "") -> objects.PodAutoscalerStatus:
    conditions = (objects.Condition("Active", active, reason), objects.Condition("ScaleTargetInitialized", str(initialized)))
    return objects.PodAutoscalerStatus(desired_scale=scale, actual_scale=scale, conditions=conditions)


@pytest.mark.parametrize("annotations", [{}, PAIRED])
async def test_a_fleet_that_is_there_stays_until_activators_have_spoken_and_then_is_not_cut_down(world: World, annotations: dict[str, str]) -> None:
    for n in range(4):
        world.pods[f"p{n}"] = pod(f"p{n}", address=f"10.0.0.{n}")
    revision = await world.begin(annotations, replicas=4, status=told("True"))
    for _ in range(3):
        await world.tick()
    assert revision.observed(True).want == -1
    assert revision.ready == 4, "proxies that are on their way count while the kubelet calls their pods ready"
    await world.tick(load=1.0)
    assert (revision.observed(True).want, revision.pods.wanted, revision.ready) == (4, 4, 4)
    if annotations:
        world.join(*world.pods)
    for _ in range(20):
        world.beat(*world.pods) if annotations else None
        await world.tick(load=1.0)
    assert revision.pods.wanted == 4, "not before a stable window was measured"
    assert not revision.loop.state.draining


async def test_pods_whose_proxy_never_joins_count_for_a_while_only(world: World) -> None:
    world.pods["a"] = pod("a")
    revision = await world.begin(PAIRED)
    assert revision.ready == 1
    world.now += JOIN_AGAIN
    assert revision.ready == 0
    world.join("a")
    assert revision.ready == 1


async def test_nothing_at_zero_needs_no_activator(world: World) -> None:
    revision = await world.begin(replicas=0, status=told("False", scale=0))
    await world.tick()
    assert revision.observed(True).want == 0
    await world.tick(load=1.0)
    assert revision.pods.wanted == 1


async def test_a_revision_that_was_not_ours_to_serve_is_not_taken_for_idle(world: World) -> None:
    world.pods["a"] = pod("a")
    revision = await world.begin(status=told("False", reason="NotOwned"))
    for _ in range(16):
        await world.tick(load=0.0)
    assert revision.pods.wanted == 1, "the grace of an idle revision is over, but this one was never told to be idle"


# Status, settings and hand edits ----------------------------------------------------------------------------------------


async def test_an_idle_revision_with_a_minimum_is_not_told_to_be_at_zero(world: World) -> None:
    world.pods["a"] = pod("a")
    revision = await world.begin({"autoscaling.knative.dev/min-scale": "1"}, status=told("False", scale=0))
    await world.tick(load=0.0)
    assert revision.observed(True).want == 1


async def test_the_last_pod_s_grace_is_told_as_zero(world: World) -> None:
    world.pods["a"] = pod("a")
    revision = await world.begin(status=told("False", scale=0))
    await world.tick(load=0.0)
    assert (revision.observed(True).want, revision.pods.wanted) == (0, 1)


async def test_other_settings_and_reachability_are_taken_over(world: World) -> None:
    world.pods["a"] = pod("a")
    revision = await world.begin()
    settings = effective({"autoscaling.knative.dev/min-scale": "3"}, None)
    assert revision.update(podautoscaler(), settings)
    assert not revision.update(podautoscaler(), settings)
    await world.tick(load=0.0)
    assert revision.pods.wanted == 3
    revision.update(podautoscaler(reachability="Unreachable"), settings)
    assert not revision.loop.reachable


async def test_replicas_set_by_hand_are_corrected(world: World) -> None:
    for n in range(2):
        world.pods[f"p{n}"] = pod(f"p{n}")
    revision = await world.begin(replicas=2, status=told("True", scale=2))
    await world.tick(load=1.0)
    await world.kube.scale(kinds.DEPLOYMENT, NAMESPACE, "cart-1-deployment", 0)
    revision.deployment_changed(world.kube.read(kinds.DEPLOYMENT, NAMESPACE, "cart-1-deployment"))
    world.pods.clear()
    await world.tick(load=1.0)
    assert revision.pods.wanted == 2
    await world.kube.scale(kinds.DEPLOYMENT, NAMESPACE, "cart-1-deployment", 5)
    revision.deployment_changed(world.kube.read(kinds.DEPLOYMENT, NAMESPACE, "cart-1-deployment"))
    for n in range(5):
        world.set(pod(f"p{n}"))
        await world.kube.apply(kinds.POD, NAMESPACE, f"p{n}", {}, "kubelet")
    for _ in range(3):
        await world.tick(load=1.0)
    assert revision.pods.wanted == 2
    marked = [p for p in world.pods if world.kube.read(kinds.POD, NAMESPACE, p).metadata.annotations]
    assert len(marked) == 3, "each was named before the replicas were lowered"


async def test_what_was_decided_is_told_once(world: World) -> None:
    world.pods["a"] = pod("a")
    await world.begin()
    await world.tick(load=1.0)
    changes = world.changes
    assert changes
    await world.tick(load=1.0)
    await world.tick(load=1.0)
    assert world.changes == changes


# The end ----------------------------------------------------------------------------------------------------------------


async def test_no_pod_is_probed_any_more_when_the_leader_s_end_interrupts_a_revision_s(world: World) -> None:
    revision = await world.begin()
    world.set(pod("a", ready=False))
    revision.start()
    for _ in range(10):
        await asyncio.sleep(0)
    assert world.probes.followed
    ending = asyncio.ensure_future(revision.stop())
    await asyncio.sleep(0)
    ending.cancel()
    await asyncio.gather(ending, return_exceptions=True)
    assert not world.probes.followed


async def test_the_kubelet_s_word_counts_from_when_proxies_may_join(world: World) -> None:
    """A leader with much to look at lets them in late."""
    world.pods["a"] = pod("a")
    revision = await world.begin(PAIRED)
    world.now += JOIN_AGAIN
    assert revision.ready == 0
    revision.let_in()
    assert revision.ready == 1
    world.now += JOIN_AGAIN
    assert revision.ready == 0
