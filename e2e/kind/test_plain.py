"""Ordinary Knative services on our class, without a proxy: from and to zero, with load, every protocol through the activator."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from .conftest import INGRESS, LIMIT, Cluster, Json, Product, knative_service, soon
from .test_stock_knative import count, get

CLASS = {"autoscaling.knative.dev/class": "concurrency.cloudstate.io", "autoscaling.knative.dev/window": "6s"}
FROM_ZERO = 3
SLEEP = "/?sleep=500ms"


async def test_a_plain_service_answers_from_zero_as_quickly_as_on_stock_knative(product: Product, cluster: Cluster, measured: Any) -> None:
    stock = {"autoscaling.knative.dev/window": "6s"}
    cluster.apply(knative_service("ours", annotations=CLASS, TARGET="you"), knative_service("stock", annotations=stock, TARGET="you"))
    took: dict[str, list[float]] = {"ours": [], "stock": []}
    for service in took:
        cluster.until_ready(service)
    for _ in range(FROM_ZERO):
        for service, times in took.items():
            await soon(lambda name=service: not cluster.pods(name), f"no pod of {service}")
            began = time.monotonic()
            status, body = await get(cluster, service)
            times.append(time.monotonic() - began)
            assert (status, body.partition(" from ")[0]) == (200, "Hello you")
    measured("plain service: from zero to the answer", took["ours"], "s", peer=("stock activator and KPA", took["stock"], 1.5))
    assert cluster.get("podautoscaler", "ours-00001")["metadata"]["annotations"]["autoscaling.knative.dev/class"] == "concurrency.cloudstate.io"


async def test_a_plain_service_scales_with_load_and_back(product: Product, cluster: Cluster) -> None:
    pace = CLASS | {"autoscaling.knative.dev/target": "4", "autoscaling.knative.dev/max-scale": "3"}
    cluster.apply(knative_service("hello", annotations=pace))
    cluster.until_ready("hello")
    answers: list[int] = []
    going = True

    async def client() -> None:
        while going:
            answers.append((await get(cluster, "hello", SLEEP))[0])

    clients = [asyncio.create_task(client()) for _ in range(16)]
    await soon(lambda: ready(cluster.living("hello")) == 3, "three ready pods")
    going = False
    await asyncio.gather(*clients)
    assert set(answers) == {200}
    await soon(lambda: not cluster.living("hello"), "zero")


def ready(pods: list[Json]) -> int:
    conditions = [c for pod in pods for c in pod["status"].get("conditions", ()) if c["type"] == "Ready"]
    return sum(c["status"] == "True" for c in conditions)


@pytest.fixture
def class_of_all(product: Product) -> Iterator[None]:
    """The whole cluster on our class, as an administrator would set it."""
    knative = Cluster(product.system.kubeconfig, "knative-serving")
    for value in ("concurrency.cloudstate.io", None):
        patch = json.dumps({"data": {"pod-autoscaler-class": value}})
        knative.kubectl("patch", "configmap", "config-autoscaler", "--type", "merge", "--patch", patch)
        if value:
            yield


@pytest.mark.usefixtures("class_of_all")
async def test_a_service_without_annotations_is_served_when_the_cluster_is_on_our_class(cluster: Cluster) -> None:
    async def on_our_class() -> bool:
        """Knative's webhooks learn of the setting a little later."""
        name = f"hello-{secrets.token_hex(2)}"
        cluster.apply(knative_service(name))
        cluster.until_ready(name)
        annotations = cluster.get("podautoscaler", f"{name}-00001")["metadata"]["annotations"]
        if annotations.get("autoscaling.knative.dev/class") != "concurrency.cloudstate.io":
            return False
        assert (await get(cluster, name))[0] == 200
        await soon(lambda: not cluster.living(name), "zero")
        assert (await get(cluster, name))[0] == 200
        return True

    deadline = time.monotonic() + LIMIT
    while not await on_our_class():
        assert time.monotonic() < deadline, "the class never reached a PodAutoscaler"


async def test_grpc_streams_through_the_activator(product: Product, cluster: Cluster) -> None:
    cluster.apply(knative_service("echo", port="h2c", annotations=CLASS))
    cluster.until_ready("echo")
    await soon(lambda: not cluster.pods("echo"), "no pod")
    cold = await asyncio.to_thread(count, cluster, "echo", 20)
    warm = await asyncio.to_thread(count, cluster, "echo", 20)
    for messages in (cold, warm):
        assert [message.split()[0] for message in messages] == [str(i) for i in range(20)]


async def test_a_websocket_through_the_activator(product: Product, cluster: Cluster) -> None:
    cluster.apply(knative_service("hello", annotations=CLASS))
    cluster.until_ready("hello")
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"ws://{INGRESS}/", headers={"Host": cluster.host("hello")}) as socket,
    ):
        for text in ("one", "two"):
            await socket.send_str(text)
            assert await socket.receive_str(timeout=LIMIT) == text


async def test_a_service_tells_why_it_has_as_many_pods_as_it_has(product: Product, cluster: Cluster) -> None:
    cluster.apply(knative_service("hello", annotations=CLASS | {"autoscaling.knative.dev/min-scale": "2"}))
    cluster.until_ready("hello")
    await soon(lambda: cluster.get("podautoscaler", "hello-00001")["status"].get("actualScale") == 2, "two pods")
    status = cluster.get("podautoscaler", "hello-00001")["status"]
    assert {c["type"]: c["status"] for c in status["conditions"]} == {
        "Active": "True", "Ready": "True", "SKSReady": "True", "ScaleTargetInitialized": "True",
    }  # fmt: skip
    assert (status["desiredScale"], status["serviceName"], status["metricsServiceName"]) == (2, "hello-00001", "hello-00001-private")
