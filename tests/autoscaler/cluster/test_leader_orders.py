"""The leader while everything happens at any time and news comes in any order: once all is quiet, what is kept is what there should be.

Watches lag and are cut, calls fail and take a while, objects are deleted and made again under their names, the garbage collector comes late.
Time is the test's: it moves only when nothing else can.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import selectors
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from autoscaler.cluster import naming
from autoscaler.cluster.leader import Leader
from autoscaler.placement.by_pod import PlainByPod
from autoscaler.placement.service import ServicePlacement
from cloudstate_core.kube import kinds
from cloudstate_core.kube.api import Kind, KubeError
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb

from .leading import SETTINGS, Watched, activator, deployment_body, pa_body, pod_body
from .world import NAMESPACE

NAMES = ("cart-1", "cart-2")
NETWORK: dict[str, Kind[Any]] = {"services": kinds.SERVICE, "endpointslices": kinds.ENDPOINT_SLICE, "endpoints": kinds.ENDPOINTS}
OWNED = NETWORK | {"shardmaps": kinds.SHARD_MAP}
LATE = ["podautoscalers", "deployments", "pods", "autoscalingpolicies", *NETWORK]
MOMENT = 1e-6
"""Seconds that a turn of the loop takes."""
CLASS = "autoscaling.knative.dev/class"


class _Idle(selectors.SelectSelector):
    loop: Hasty

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        assert ready or timeout is not None, "everything waits for ever"
        self.loop.now += MOMENT if ready or not timeout else timeout + MOMENT
        return ready


class Hasty(asyncio.SelectorEventLoop):
    """Waits for nothing: its time moves on instead."""

    def __init__(self) -> None:
        selector = _Idle()
        selector.loop, self.now = self, 0.0
        super().__init__(selector)

    def time(self) -> float:
        return self.now


class Cluster(Watched):
    """Knative, people and the garbage collector at work on an API server; `rough`: calls take a while, and some fail."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random, self.rough, self.people = random.Random(seed), False, asyncio.current_task()
        self.annotations: dict[str, str] = {"cloudstate.io/paired": "v1", "cloudstate.io/shards": "4"} if seed % 2 else {}

    async def _pass(self, call: str) -> None:
        if self.rough and self.random.random() < 0.3:
            await asyncio.sleep(self.random.choice([0.0, 0.0, 0.1, 0.3]))
        if self.rough and self.random.random() < 0.08 and asyncio.current_task() is not self.people:
            raise KubeError(500, "InternalError", "a rough day")

    def has(self, plural: str, name: str) -> bool:
        return (plural, NAMESPACE, name) in self.held

    @property
    def service(self) -> str:
        """Uid of the Knative Service."""
        return str(self.held["services", NAMESPACE, "cart"]["metadata"]["uid"])

    async def podautoscaler(self, name: str) -> None:
        body = pa_body(name, **self.annotations)
        body["metadata"]["labels"]["serving.knative.dev/serviceUID"] = self.service
        await self.begin(body)

    async def collect(self) -> None:
        """Delete what belongs to what is gone: as long as there is something, since one may belong to another."""
        for name in NAMES:
            body = self.held.get(("podautoscalers", NAMESPACE, name))
            if body and body["metadata"]["labels"]["serving.knative.dev/serviceUID"] != self.service:
                await self.delete(kinds.POD_AUTOSCALER, NAMESPACE, name)
        uids = {body["metadata"]["uid"] for body in self.held.values()}
        for (plural, _, name), body in list(self.held.items()):
            owners = body["metadata"].get("ownerReferences", [])
            if owners and not any(owner["uid"] in uids for owner in owners):
                await self.delete(OWNED[plural], NAMESPACE, name)

    # What may happen ----------------------------------------------------------------------------------------------------

    async def remake(self, kind: Kind[Any], name: str, make: Callable[[], Awaitable[None]], often: float) -> None:
        """Delete an object if it is there, and perhaps make it again."""
        await self.delete(kind, NAMESPACE, name)
        if self.random.random() < often:
            await make()

    async def move_class(self, name: str) -> None:
        if self.has("podautoscalers", name):
            metadata = self.read(kinds.POD_AUTOSCALER, NAMESPACE, name).metadata
            other = "kpa.autoscaling.knative.dev" if metadata.annotations[CLASS] == naming.CLASS else naming.CLASS
            await self.merge(kinds.POD_AUTOSCALER, NAMESPACE, name, {"metadata": {"annotations": {CLASS: other}}})

    async def new_service(self) -> None:
        """Another Knative Service under the name; one of its revisions may outlive it a while."""
        if self.annotations:
            self.annotations["cloudstate.io/shards"] = self.random.choice(["2", "4", "8"])
        await self.remake(kinds.KNATIVE_SERVICE, "cart", lambda: self.begin({"metadata": {"name": "cart"}}, kinds.KNATIVE_SERVICE), 1.0)
        for name in self.random.sample(NAMES, self.random.randint(1, 2)):
            if self.has("podautoscalers", name):
                await self.remake(kinds.POD_AUTOSCALER, name, lambda name=name: self.podautoscaler(name), 0.6)  # type: ignore[misc]

    async def step(self) -> None:
        """One of these things."""
        pick, name = self.random.choice, self.random.choice(NAMES)
        pod, size = f"{name}-{pick('abc')}", self.random.randrange(4)
        policy = {"metadata": {"name": "p"}, "spec": {"selector": {"matchLabels": {naming.SERVICE: "cart"}}, "scale": {"max": size + 1}}}
        plural = pick(list(NETWORK))
        ours = [key[2] for key in self.held if key[0] == plural and key[2] != "cart"]
        match self.random.randrange(12):
            case 0 | 1:
                await self.remake(kinds.POD_AUTOSCALER, name, lambda: self.podautoscaler(name), 0.7)
            case 2:
                await self.move_class(name)
            case 3:
                await self.remake(kinds.DEPLOYMENT, f"{name}-deployment", lambda: self.begin(deployment_body(name, size), kinds.DEPLOYMENT), 0.7)
            case 4:
                await self.begin(deployment_body(name, size), kinds.DEPLOYMENT)
            case 5:
                await self.remake(kinds.POD, pod, lambda: self.begin(pod_body(pod, f"10.0.1.{size}", name), kinds.POD), 0.6)
            case 6:
                await self.begin(pod_body(pod, f"10.0.1.{size}", pick(NAMES)), kinds.POD)
            case 7:
                await self.remake(kinds.AUTOSCALING_POLICY, "p", lambda: self.begin(policy, kinds.AUTOSCALING_POLICY), 0.7)
            case 8:
                await self.delete(NETWORK[plural], NAMESPACE, pick([*ours, "none"]))
            case 9:
                self.held_back.add(pick(LATE))
            case 10:
                late = pick(LATE)
                self.cut |= {late} if self.random.random() < 0.3 else set()
                self.let_go(late)
            case _:
                await pick([self.collect, self.new_service, lambda: self.remake(kinds.POD, "activator", lambda: activator(self), 0.7)])()


class Term:
    """A leader on the cluster, without its port."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.leader = cluster, Leader(cluster, dataclasses.replace(SETTINGS, endpoints=True))  # type: ignore[arg-type]
        self.ours = self.leader._podautoscalers
        self.tasks: list[asyncio.Future[None]] = []

    async def begin(self) -> None:
        self.leader._listen()
        caches, controllers = self.leader._caches.all(), (self.ours.controller, self.ours.policies_controller)
        self.tasks += [asyncio.ensure_future(cache.run()) for cache in caches]
        for cache in caches:
            await cache.synced.wait()
        for controller in controllers:
            controller.queue._clock = asyncio.get_running_loop().time
        self.tasks += [asyncio.ensure_future(work) for work in (*(c.run() for c in controllers), self.leader._coordination.run())]

    def join(self) -> None:
        """A proxy comes, or another process of it, or it goes."""
        service, pick = self.leader._services.get("ns/cart"), self.cluster.random
        if service is None or not isinstance(placement := service.placement, ServicePlacement):
            return
        pod, now = f"m{pick.randrange(4)}", time.monotonic()
        if pick.random() < 0.3:
            self.leader._coordination.process_exited("ns/cart", pod)
            return
        member = pb.Member(member_id=f"{pod}#{pick.randrange(3)}", pod=pod, revision=pick.choice(list(service.revisions)))
        assert placement.hello(now, pb.Hello(service="ns/cart", member=member, journal_id="j", shard_count=placement.shard_count)) == ""
        owned = [pb.OwnedShard(shard=s, epoch=1) for s in placement.map.owned_by(member.member_id) if not placement.map.entries[s].next]
        placement.heartbeat(now, member.member_id, pb.Heartbeat(journal_ok=True, owned=owned, generation=placement.map.generation))
        self.leader._coordination.touch("ns/cart")

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.leader._end()
        assert asyncio.all_tasks() == {asyncio.current_task()}, "something goes on"

    # What must be so once all is quiet -------------------------------------------------------------------------------------

    def check(self) -> None:
        cluster, leader = self.cluster, self.leader
        held = {name: cluster.read(kinds.POD_AUTOSCALER, NAMESPACE, name) for name in NAMES if cluster.has("podautoscalers", name)}
        wanted = {name: pa for name, pa in held.items() if naming.is_ours(pa)}
        keys = {f"ns/{name}" for name in wanted}
        assert leader.revisions.keys() == keys
        assert self.ours.network._written.keys() <= keys
        assert self.ours._policy_of.keys() == keys
        assert {name for service in leader._services._services.values() for name in service.revisions} == wanted.keys()
        assert not leader._followed.is_set()
        for name, pa in wanted.items():
            self._check_revision(name, pa)
        if cluster.has("autoscalingpolicies", "p"):
            assert cluster.read(kinds.AUTOSCALING_POLICY, NAMESPACE, "p").status["matched"] == len(wanted)
        for service in leader._coordination._services.values():
            assert service.kept.generation == service.placement.map.generation
        self._check_map({pa.metadata.annotations.get("cloudstate.io/shards") for pa in wanted.values()})

    def _check_revision(self, name: str, pa: Any) -> None:
        cluster, revision = self.cluster, self.leader.revisions[f"ns/{name}"]
        network = [(kinds.SERVICE, name), (kinds.SERVICE, f"{name}-private"), (kinds.ENDPOINTS, name), (kinds.ENDPOINT_SLICE, f"{name}-activators")]
        for kind, made in network:
            (owner,) = cluster.read(kind, NAMESPACE, made).metadata.owner_references
            assert owner.uid == pa.metadata.uid
        assert revision.pa.metadata.uid == pa.metadata.uid
        assert (pa.status.service_name, pa.status.actual_scale) == (name, revision.ready)
        assert revision.pods.wanted == cluster.read(kinds.DEPLOYMENT, NAMESPACE, f"{name}-deployment").spec.replicas
        pods = {key[2] for key, body in cluster.held.items() if key[0] == "pods" and body["metadata"]["labels"].get(naming.REVISION) == name}
        assert {pod.metadata.name for pod in revision.pods_known()} == pods
        if isinstance(revision._shards, PlainByPod):
            members = {pod for pod, member in revision._service.placement.members.items() if member.revision == name}
            assert members == pods - revision._shards.draining

    def _check_map(self, shards: set[str | None]) -> None:
        leader, cluster = self.leader, self.cluster
        assert leader._store._records.keys() <= leader._services._services.keys()
        service = leader._services.get("ns/cart")
        if service is None or not isinstance(service.placement, ServicePlacement):
            return
        assert {str(service.placement.shard_count)} == shards
        if cluster.has("shardmaps", "cart"):
            kept = cluster.read(kinds.SHARD_MAP, NAMESPACE, "cart")
            written = kept.spec.generation == service.placement.map.generation
            assert not written or [owner.uid for owner in kept.metadata.owner_references] == [cluster.service]


async def live(seed: int) -> None:
    cluster = Cluster(seed)
    pick = cluster.random
    await activator(cluster)
    await cluster.begin({"metadata": {"name": "cart"}}, kinds.KNATIVE_SERVICE)
    for name in NAMES:
        await cluster.begin(deployment_body(name), kinds.DEPLOYMENT)
        await cluster.podautoscaler(name)
    cluster.rough = pick.random() < 0.8
    term = Term(cluster)
    await term.begin()
    for _ in range(pick.randrange(10, 60)):
        await cluster.step()
        term.join()
        for _ in range(pick.randrange(12)):
            await asyncio.sleep(0)
        await asyncio.sleep(pick.choice([0.0, 0.0, 0.0, 0.1, 3.0]))
    cluster.rough = False
    cluster.let_go(*LATE)
    await activator(cluster)
    for name in NAMES:
        if not cluster.has("deployments", f"{name}-deployment"):
            await cluster.begin(deployment_body(name), kinds.DEPLOYMENT)
    for _ in range(4):
        await cluster.collect()
        for revision in term.leader.revisions.values():
            revision.loop.heard("an activator")
            revision.loop.wake()
        await asyncio.sleep(100.0)
    term.check()
    calls = cluster.calls.total() - cluster.calls["get"]
    await asyncio.sleep(500.0)
    assert cluster.calls.total() - cluster.calls["get"] == calls, "it is not at rest"
    await term.end()


@pytest.mark.parametrize("seed", range(40))
def test_once_all_is_quiet_everything_is_as_it_should_be(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Hasty()
    monkeypatch.setattr(time, "monotonic", loop.time)
    try:
        loop.run_until_complete(live(seed))
    finally:
        loop.close()
