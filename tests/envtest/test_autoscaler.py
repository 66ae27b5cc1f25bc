"""The autoscaler's process against a real API server: network, status, scale, policy, restart. Pods and activators are played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc.aio
import pytest

from cloudstate_core.kube import kinds, objects
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from envtest.conftest import Component, eventually, free_port

CLASS = {"autoscaling.knative.dev/class": "concurrency.cloudstate.io"}
ACTIVATOR_LABELS = {"app.kubernetes.io/component": "activator", "app.kubernetes.io/part-of": "cloudstate-knative"}


def autoscaler_of(namespace: str) -> tuple[Component, int]:
    """A replica of the autoscaler, and its port; the test's namespace stands for the installation's."""
    port = free_port()
    own = {"POD_IP": "127.0.0.1", "POD_NAMESPACE": namespace, "AUTOSCALER_PORT": str(port), "AUTOSCALER_ADMIN_PORT": str(free_port())}
    return Component("autoscaler", own | {"AUTOSCALER_TICK": "500ms"}), port


@pytest.fixture
async def autoscaler(namespace: str) -> AsyncIterator[int]:
    process, port = autoscaler_of(namespace)
    await process.start()
    yield port
    assert await process.stop() == 0


class World:
    """What Knative and the kubelet would do, played by the test."""

    def __init__(self, kube: KubeClient, namespace: str) -> None:
        self.kube, self.namespace = kube, namespace

    async def revision(self, name: str, annotations: dict[str, str] | None = None, replicas: int = 1, protocol: str = "http1") -> None:
        labels = {"serving.knative.dev/revision": name, "serving.knative.dev/service": "hello", "serving.knative.dev/revisionUID": f"u-{name}"}
        template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "user-container", "image": "dev.local/none"}]}}
        deployment = {
            "metadata": {"name": f"{name}-deployment", "labels": labels},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template},
        }
        await self.kube.create(kinds.DEPLOYMENT, self.namespace, deployment)
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


@pytest.fixture
def world(kube: KubeClient, namespace: str) -> World:
    return World(kube, namespace)


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


@pytest.fixture
async def activator(autoscaler: int) -> AsyncIterator[Activator]:
    made = Activator(autoscaler)
    yield made
    await made.close()


FAST = {
    "selector": {"matchLabels": {"app": "hello"}},
    "scale": {"min": 0, "max": 5},
    "metrics": [{"type": "Concurrency", "target": 10, "utilization": 100}],
    "windows": {"stable": "6s"},
    "scaleToZero": {"enabled": True, "gracePeriod": "1s"},
}


async def test_a_revision_becomes_ready_scales_with_load_and_goes_to_zero(world: World, activator: Activator) -> None:
    await world.kube.create(kinds.AUTOSCALING_POLICY, world.namespace, {"metadata": {"name": "fast"}, "spec": FAST})
    await world.activator()
    await world.revision("hello-1")
    first = await eventually(lambda: world.pa("hello-1"), lambda pa: bool(pa.status.service_name), "a service name")
    assert first.status.service_name == "hello-1"
    assert first.status.metrics_service_name == "hello-1-private"
    assert state(first)["SKSReady"] == ("True", "")
    assert state(first)["Active"] == ("Unknown", "Queued")
    service = await world.kube.get(kinds.SERVICE, world.namespace, "hello-1")
    assert [(port.name, port.port) for port in service.spec.ports] == [("http", 80), ("https", 443)]
    slices, _ = await world.kube.list(kinds.ENDPOINT_SLICE, world.namespace, "kubernetes.io/service-name=hello-1")
    assert [endpoint.addresses for endpoint in slices[0].endpoints] == [("10.1.2.3",)]
    assert [(port.name, port.port) for port in slices[0].ports] == [("http", 8012)]

    await world.revision_pod("hello-1", "hello-1-a")
    up = await eventually(lambda: world.pa("hello-1"), lambda pa: state(pa).get("Ready") == ("True", ""), "Ready")
    assert state(up) == {"Active": ("True", ""), "ScaleTargetInitialized": ("True", ""), "SKSReady": ("True", ""), "Ready": ("True", "")}
    assert (up.status.desired_scale, up.status.actual_scale) == (1, 1)
    name = f"{world.namespace}/hello"

    async def members() -> list[str]:
        return [m.data_address for m in activator.routes[name].map.members] if name in activator.routes else []

    await eventually(members, lambda found: found == ["10.1.9.9:8012"], "a route to the pod")
    assert activator.routes[name].plain

    activator.stats = [pb.RevisionStats(service=name, revision="hello-1", concurrency=30, requests=10)]
    await eventually(lambda: world.replicas("hello-1"), lambda n: n == 3, "three replicas")
    activator.stats = []
    await eventually(lambda: world.replicas("hello-1"), lambda n: n == 0, "no replicas")
    await world.kube.delete(kinds.POD, world.namespace, "hello-1-a")
    zero = await eventually(lambda: world.pa("hello-1"), lambda pa: pa.status.actual_scale == 0, "no pod")
    assert state(zero)["Active"] == ("False", "NoTraffic")
    assert state(zero)["ScaleTargetInitialized"] == ("True", "")

    activator.stats = [pb.RevisionStats(service=name, revision="hello-1", concurrency=1, requests=1)]
    await eventually(lambda: world.replicas("hello-1"), lambda n: n == 1, "a pod for the first request at zero")
    woken = await eventually(lambda: world.pa("hello-1"), lambda pa: state(pa)["Active"][0] == "Unknown", "activation")
    assert state(woken)["Active"] == ("Unknown", "Queued")
