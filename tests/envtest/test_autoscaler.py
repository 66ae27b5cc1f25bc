"""The autoscaler's process against a real API server: network, status, scale, policy, restart. Pods and activators are played by the test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cloudstate_core.kube import kinds
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from envtest.autoscaling import FAST, Activator, World, autoscaler_of, state
from envtest.steps import eventually, told


@pytest.fixture
async def autoscaler(namespace: str) -> AsyncIterator[int]:
    process, port = autoscaler_of(namespace)
    await process.start()
    yield port
    assert await process.stop() == 0


@pytest.fixture
async def activator(autoscaler: int) -> AsyncIterator[Activator]:
    made = Activator(autoscaler)
    yield made
    await made.close()


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

    async def scaled() -> list[str]:
        """Events come a moment after what they tell of; one is told again with newer figures while the status is not seen yet."""
        events = await told(world.kube, world.namespace, "hello-1")
        return list(dict.fromkeys(note.partition(":")[0] for reason, note in events if reason == "Scaled"))

    steps = ["Scaled from 1 to 3", "Scaled from 3 to 0", "Scaled from 0 to 1"]
    await eventually(scaled, lambda found: found[-3:] == steps, "what was decided")
    panic = [reason for reason, _ in await told(world.kube, world.namespace, "hello-1") if reason.startswith("Panic")]
    assert panic[:2] == ["PanicEntered", "PanicLeft"]
