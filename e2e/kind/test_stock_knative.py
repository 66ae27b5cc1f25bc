"""The cluster itself, before any part of the product: stock Knative serves every protocol through the ingress, from zero too.

What these tests measure is what the product is held to later, on the same cluster in the same run.
"""

from __future__ import annotations

import time
from typing import Any

import aiohttp
import grpc
import pytest
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from .conftest import INGRESS, LIMIT, Cluster, knative_service, until

FROM_ZERO = 3
SOON = {"autoscaling.knative.dev/window": "6s"}


async def get(cluster: Cluster, service: str, path: str = "/", **headers: str) -> tuple[int, str]:
    """Status and body of an HTTP/1.1 request through the ingress."""
    timeout = aiohttp.ClientTimeout(total=LIMIT)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.get(f"http://{INGRESS}{path}", headers={"Host": cluster.host(service), **headers}) as answer,
    ):
        return answer.status, await answer.text()


def count(cluster: Cluster, service: str, n: int) -> list[str]:
    """The messages of a server-streaming gRPC call through the ingress."""
    with grpc.insecure_channel(INGRESS, options=[("grpc.default_authority", cluster.host(service))]) as channel:
        call: Any = channel.unary_stream("/testapp.Echo/Count", Int32Value.SerializeToString, StringValue.FromString)
        return [message.value for message in call(Int32Value(value=n), timeout=LIMIT)]


async def test_a_service_answers_from_zero(cluster: Cluster, measured: Any) -> None:
    cluster.apply(knative_service("hello", annotations=SOON, TARGET="you"))
    cluster.until_ready("hello")
    took = []
    for _ in range(FROM_ZERO):
        cluster.until_zero("hello")
        started = time.monotonic()
        status, body = await get(cluster, "hello")
        took.append(time.monotonic() - started)
        assert (status, body.partition(" from ")[0]) == (200, "Hello you")
    measured("stock Knative: from zero to the answer", took, "s")


async def test_grpc_streams_from_zero_and_warm(cluster: Cluster, measured: Any) -> None:
    cluster.apply(knative_service("echo", port="h2c", annotations=SOON))
    cluster.until_ready("echo")
    cluster.until_zero("echo")
    started = time.monotonic()
    cold = count(cluster, "echo", 20)
    measured("stock Knative: from zero to the end of a gRPC stream", [time.monotonic() - started], "s")
    warm = count(cluster, "echo", 20)
    for messages in (cold, warm):
        assert [message.split()[0] for message in messages] == [str(i) for i in range(20)]


async def test_a_grpc_status_passes(cluster: Cluster) -> None:
    cluster.apply(knative_service("echo", port="h2c"))
    cluster.until_ready("echo")
    with grpc.insecure_channel(INGRESS, options=[("grpc.default_authority", cluster.host("echo"))]) as channel:
        call: Any = channel.unary_unary("/testapp.Echo/NoSuchMethod")
        with pytest.raises(grpc.RpcError) as failed:
            call(b"", timeout=LIMIT)
    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "NoSuchMethod" in (failed.value.details() or "")


async def test_a_websocket_echoes(cluster: Cluster) -> None:
    cluster.apply(knative_service("hello"))
    cluster.until_ready("hello")
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"ws://{INGRESS}/", headers={"Host": cluster.host("hello")}) as socket,
    ):
        for text in ("one", "two"):
            await socket.send_str(text)
            assert await socket.receive_str(timeout=LIMIT) == text


async def test_traffic_is_split_and_tags_have_their_own_host(cluster: Cluster) -> None:
    cluster.apply(knative_service("hello", TARGET="old"))
    cluster.until_ready("hello")
    service = knative_service("hello", TARGET="new")
    cluster.apply(service)
    cluster.until_ready("hello")
    service["spec"]["traffic"] = [
        {"revisionName": "hello-00001", "percent": 50, "tag": "before"},
        {"revisionName": "hello-00002", "percent": 50},
    ]
    cluster.apply(service)
    until(lambda: len(cluster.items("routes")[0]["status"].get("traffic", [])) == 2, "two targets in the route")
    cluster.until_ready("hello")
    seen = {(await get(cluster, "hello"))[1].split()[1] for _ in range(40)}
    assert seen == {"old", "new"}
    tagged = {(await get(cluster, "before-hello"))[1].split()[1] for _ in range(10)}
    assert tagged == {"old"}


async def test_a_client_cannot_name_another_revision(cluster: Cluster) -> None:
    cluster.apply(knative_service("mine", TARGET="mine"), knative_service("other", TARGET="other"))
    for service in ("mine", "other"):
        cluster.until_ready(service)
        cluster.until_zero(service)  # only the activator looks at the header
    headers = {"Knative-Serving-Revision": "other-00001", "Knative-Serving-Namespace": cluster.namespace}
    status, body = await get(cluster, "mine", **headers)
    assert (status, body.split()[1]) == (200, "mine")
