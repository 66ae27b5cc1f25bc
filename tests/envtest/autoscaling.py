"""What the tests of the autoscaler's process share: a replica, the cluster around it, activators and proxies, all played by the test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from cloudstate_core.kube import kinds, objects
from cloudstate_core.kube.api import Conflict, NotFound
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from envtest.steps import Component
from kn_cloudstate.ports import free_port

CLASS = {"autoscaling.knative.dev/class": "concurrency.cloudstate.io"}
ACTIVATOR_LABELS = {"app.kubernetes.io/component": "activator", "app.kubernetes.io/part-of": "cloudstate-knative"}


def autoscaler_of(namespace: str, address: str = "10.9.8.7") -> tuple[Component, int]:
    """A replica of the autoscaler, and its port; the test's namespace stands for the installation's."""
    port = free_port()
    own = {"POD_IP": address, "POD_NAMESPACE": namespace, "AUTOSCALER_PORT": str(port), "AUTOSCALER_ADMIN_PORT": str(free_port())}
    return Component("autoscaler", own | {"AUTOSCALER_TICK": "500ms"}), port


class World:
    """What Knative and the kubelet would do, played by the test."""

    def __init__(self, kube: KubeClient, namespace: str) -> None:
        self.kube, self.namespace = kube, namespace

    async def revision(self, name: str, annotations: dict[str, str] | None = None, replicas: int = 1, protocol: str = "http1") -> None:
        """A Deployment and its PodAutoscaler, as Knative makes them for service 'hello'."""
        labels = {"serving.knative.dev/revision": name, "serving.knative.dev/service": "hello", "serving.knative.dev/revisionUID": f"u-{name}"}
        template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "user-container", "image": "dev.local/none"}]}}
        deployment = {
            "metadata": {"name": f"{name}-deployment", "labels": labels},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template},
        }
        await self.kube.create(kinds.DEPLOYMENT, self.namespace, deployment)
        await self.podautoscaler(name, annotations, protocol)

    async def podautoscaler(self, name: str, annotations: dict[str, str] | None = None, protocol: str = "http1") -> None:
        labels = {"serving.knative.dev/revision": name, "serving.knative.dev/service": "hello", "serving.knative.dev/revisionUID": f"u-{name}"}
        pa = {
            "metadata": {"name": name, "labels": labels | {"app": "hello"}, "annotations": CLASS | (annotations or {})},
            "spec": {
                "containerConcurrency": 0,
                "protocolType": protocol,
                "reachability": "Reachable",
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": f"{name}-deployment"},
            },
        }
        await self.kube.create(kinds.POD_AUTOSCALER, self.namespace, pa)

    async def pod(self, name: str, labels: dict[str, str], address: str, ready: bool = True) -> None:
        body = {"metadata": {"name": name, "labels": labels}, "spec": {"containers": [{"name": "c", "image": "dev.local/none"}]}}
        await self.kube.create(kinds.POD, self.namespace, body)
        state = "True" if ready else "False"
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [{"type": "Ready", "status": state}]}
        await self.kube.merge(kinds.POD, self.namespace, name, {"status": status}, "status")

    async def activator(self) -> None:
        await self.pod("activator", ACTIVATOR_LABELS, "10.1.2.3")

    async def revision_pod(self, revision: str, name: str, address: str = "10.1.9.9") -> None:
        await self.pod(name, {"serving.knative.dev/revision": revision}, address)

    async def pa(self, name: str) -> objects.PodAutoscaler:
        return await self.kube.get(kinds.POD_AUTOSCALER, self.namespace, name)

    async def replicas(self, name: str) -> int:
        return (await self.kube.get(kinds.DEPLOYMENT, self.namespace, f"{name}-deployment")).spec.replicas

    async def delete_pod(self, name: str) -> None:
        """The pod is gone at once: no kubelet is there to end its processes."""
        await self.kube.delete(kinds.POD, self.namespace, name)

    async def route(self, **percentages: int) -> None:
        """The Route of service 'hello' leads to revisions 'hello-<key>' with these percentages from now on."""
        traffic = [{"revisionName": key.replace("_", "-"), "percent": value} for key, value in percentages.items()]
        with contextlib.suppress(Conflict):
            await self.kube.create(kinds.ROUTE, self.namespace, {"metadata": {"name": "hello"}, "spec": {}})
        await self.kube.merge(kinds.ROUTE, self.namespace, "hello", {"status": {"traffic": traffic}}, "status")

    async def policy(self, spec: dict[str, Any], name: str = "fast") -> None:
        """Create a policy, or replace its spec."""
        try:
            await self.kube.create(kinds.AUTOSCALING_POLICY, self.namespace, {"metadata": {"name": name}, "spec": spec})
        except Conflict:
            await self.kube.merge(kinds.AUTOSCALING_POLICY, self.namespace, name, {"spec": spec})

    async def policy_status(self, name: str = "fast") -> dict[str, Any]:
        return (await self.kube.get(kinds.AUTOSCALING_POLICY, self.namespace, name)).status

    async def shard_map(self) -> objects.ShardMap:
        return await self.kube.get(kinds.SHARD_MAP, self.namespace, "hello")

    async def generation(self) -> int:
        """Of the map that is kept; 0 while there is none."""
        with contextlib.suppress(NotFound):
            return (await self.shard_map()).spec.generation
        return 0

    async def pods(self) -> dict[str, objects.Pod]:
        found, _ = await self.kube.list(kinds.POD, self.namespace, "serving.knative.dev/revision")
        return {pod.metadata.name: pod for pod in found}


def state(pa: objects.PodAutoscaler) -> dict[str, tuple[str, str]]:
    return {c.type: (c.status, c.reason) for c in pa.status.conditions}


class Activator:
    """A stream to the leader that tells statistics each 0.2 s."""

    def __init__(self, port: int) -> None:
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        path = "/cloudstate_knative.v1.CoordinationService/Route"
        self.call = self.channel.stream_stream(path, pb.RouteRequest.SerializeToString, pb.RouteResponse.FromString)(wait_for_ready=True)
        self.stats: list[pb.RevisionStats] = []
        self.routes: dict[str, pb.ServiceRoute] = {}
        self.tasks = [asyncio.create_task(self._tell()), asyncio.create_task(self._listen())]

    async def _tell(self) -> None:
        while True:
            await self.call.write(pb.RouteRequest(activator_id="a1", stats=self.stats))
            await asyncio.sleep(0.2)

    async def _listen(self) -> None:
        async for response in self.call:
            for route in response.services:
                self.routes[route.map.service] = route

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.channel.close()


FAST = {
    "selector": {"matchLabels": {"app": "hello"}},
    "scale": {"min": 0, "max": 5},
    "metrics": [{"type": "Concurrency", "target": 10, "utilization": 100}],
    "windows": {"stable": "6s"},
    "scaleToZero": {"enabled": True, "gracePeriod": "1s"},
}


class Proxy:
    """A stream of a proxy to the leader: it beats, holds what the map gives it, and checks that the map was kept before it was told."""

    def __init__(self, world: World, port: int, pod: str, revision: str, shards: int, load: float = 0.01) -> None:
        self.world, self.pod, self.load = world, pod, load
        self.name = f"{pod}#1"
        self.entries: dict[int, pb.ShardEntry] = {}
        self.generation, self.early = 0, 0
        """`early` = maps with owners that were told before they were kept."""
        self.refused = ""
        self.held: set[int] = set()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        method = pb.Method(path="/shop.Cart/Get", persistence_id="cart", key_fields=[pb.KeyField(numbers=[1], type=9)])
        member = pb.Member(member_id=self.name, pod=pod, revision=revision, data_address=f"{pod}:8013", peer_address=f"{pod}:8559")
        service = f"{world.namespace}/hello"
        self.hello = pb.Hello(service=service, member=member, journal_id="j1", shard_count=shards, methods=[method])
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        """Join, again and again."""
        path = "/cloudstate_knative.v1.CoordinationService/Join"
        join = self.channel.stream_stream(path, pb.JoinRequest.SerializeToString, pb.JoinResponse.FromString)
        while True:
            self.entries, self.generation = {}, 0
            call: Any = join(wait_for_ready=True)
            beats = asyncio.create_task(self._beat(call))
            try:
                await self._listen(call)
            except grpc.aio.AioRpcError:
                pass
            finally:
                beats.cancel()
                await asyncio.gather(beats, return_exceptions=True)
            await asyncio.sleep(0.1)

    async def _beat(self, call: Any) -> None:
        await call.write(pb.JoinRequest(hello=self.hello))
        while True:
            self.held = {shard for shard, e in self.entries.items() if e.owner == self.name and not e.next}
            owned = [pb.OwnedShard(shard=s, epoch=1, load=self.load) for s in self.held]
            await call.write(pb.JoinRequest(heartbeat=pb.Heartbeat(owned=owned, journal_ok=True, generation=self.generation)))
            await asyncio.sleep(0.2)

    async def _listen(self, call: Any) -> None:
        async for message in call:
            self.refused = message.refusal.reason
            if message.HasField("map"):
                if any(e.owner for e in message.map.entries):
                    self.early += await self.world.generation() < message.map.generation
                self.entries |= {e.shard: e for e in message.map.entries}
                self.generation = message.map.generation

    @property
    def owners(self) -> dict[int, str]:
        return {shard: entry.owner for shard, entry in self.entries.items()}

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.channel.close()


@contextlib.asynccontextmanager
async def replica(namespace: str, address: str = "10.9.8.7") -> AsyncIterator[tuple[Component, int]]:
    """A running replica of the autoscaler; one that has not been killed must end well."""
    process, port = autoscaler_of(namespace, address)
    await process.start()
    try:
        yield process, port
    finally:
        assert process.process is not None
        if process.process.returncode is None:
            assert await process.stop() == 0


class Cast:
    """Activators and proxies that end with the test."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.streams: list[Activator | Proxy] = []

    def activator(self, port: int) -> Activator:
        made = Activator(port)
        self.streams.append(made)
        return made

    def proxy(self, port: int, pod: str, revision: str = "hello-1", shards: int = 16, load: float = 0.01) -> Proxy:
        made = Proxy(self.world, port, pod, revision, shards, load)
        self.streams.append(made)
        return made

    async def leave(self) -> None:
        """All streams break."""
        for stream in self.streams:
            await stream.close()
        self.streams.clear()


def stats(world: World, revision: str, concurrency: float) -> list[pb.RevisionStats]:
    return [pb.RevisionStats(service=f"{world.namespace}/hello", revision=revision, concurrency=concurrency, requests=1)]


async def holder(world: World) -> str:
    """Who leads."""
    lease = await world.kube.get(kinds.LEASE, world.namespace, "cloudstate-autoscaler")
    return lease.spec.holder_identity or ""
