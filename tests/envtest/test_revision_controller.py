"""The revision controller's process against a real API server: admission with its own certificates, store status, events."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cloudstate_core.kube import kinds, objects
from cloudstate_core.kube.api import Body, Kind, KubeError
from cloudstate_core.kube.client import KubeClient
from envtest.conftest import Component, eventually, free_port
from revision_controller.trust import CONFIGURATION, WEBHOOKS

KNATIVE_SERVICE = kinds.KNATIVE_SERVICE
RAW_REVISION: Kind[Any] = Kind("serving.knative.dev", "v1", "revisions", "Revision", objects.Revision)


def webhook(name: str, path: str, port: int, resource: str, operations: list[str], namespace: str) -> Body:
    return {
        "name": name,
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
        "clientConfig": {"url": f"https://localhost:{port}{path}"},
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "rules": [{"apiGroups": ["serving.knative.dev"], "apiVersions": ["v1"], "operations": operations, "resources": [resource]}],
    }


@pytest.fixture
async def controller(kube: KubeClient, namespace: str) -> AsyncIterator[Component]:
    """The controller, called by the API server for this test's namespace."""
    port = free_port()
    (mutating, (pair,)), (validating, (check,)) = WEBHOOKS
    for kind, hook in (
        (mutating, webhook(pair, "/mutate-revision", port, "revisions", ["CREATE"], namespace)),
        (validating, webhook(check, "/validate-service", port, "services", ["CREATE", "UPDATE"], namespace)),
    ):
        await kube.delete(kind, "", CONFIGURATION)
        await kube.create(kind, "", {"metadata": {"name": CONFIGURATION}, "webhooks": [hook]})
    own = {
        "POD_NAMESPACE": namespace, "WEBHOOK_PORT": str(port), "WEBHOOK_HOST": "127.0.0.1", "WEBHOOK_NAMES": "localhost",
        "ADMIN_PORT": str(free_port()), "PROXY_IMAGE": "dev.local/proxy:1",
    }  # fmt: skip
    process = Component("revision_controller", own)
    await process.start()
    await eventually(lambda: answered(kube, namespace), bool, "admission")
    yield process
    assert await process.stop() == 0
    for kind, _ in WEBHOOKS:
        await kube.delete(kind, "", CONFIGURATION)


async def answered(kube: KubeClient, namespace: str) -> bool:
    """A service without our annotations gets through admission."""
    name = f"probe-{secrets.token_hex(3)}"
    await kube.create(KNATIVE_SERVICE, namespace, {"metadata": {"name": name}, "spec": service_spec({})})
    await kube.delete(KNATIVE_SERVICE, namespace, name)
    return True


def service_spec(annotations: dict[str, str]) -> Body:
    template = {"metadata": {"annotations": annotations}, "spec": {"containers": [{"image": "dev.local/cart:1"}]}}
    return {"template": template}


def revision(name: str, annotations: dict[str, str]) -> Body:
    labels = {"serving.knative.dev/service": "cart", "serving.knative.dev/configuration": "cart"}
    container = {"name": "user-container", "image": "dev.local/cart:1", "readinessProbe": {"tcpSocket": {"port": 0}}}
    return {"metadata": {"name": name, "labels": labels, "annotations": annotations}, "spec": {"containers": [container]}}


ENABLED = {"cloudstate.io/enabled": "true", "cloudstate.io/stateful-store": "carts"}


async def test_a_revision_gets_its_proxy(kube: KubeClient, namespace: str, controller: Component) -> None:
    store = {"metadata": {"name": "carts"}, "spec": {"redis": {"host": "redis", "credentialsFromSecret": {"name": "carts"}}}}
    await kube.create(kinds.STATEFUL_STORE, namespace, store)
    made = await kube.create(RAW_REVISION, namespace, revision("cart-1", ENABLED))
    assert made.metadata.annotations["cloudstate.io/paired"] == "v1"
    assert made.metadata.annotations["autoscaling.knative.dev/class"] == "concurrency.cloudstate.io"
    told = await eventually(lambda: events(kube, namespace, "cart-1"), bool, "an event about the revision")
    assert told <= {"Paired", "StoreNotReady"}


async def events(kube: KubeClient, namespace: str, name: str) -> set[str]:
    found = await kube.list(EVENT_REASONS, namespace)
    return {event.reason for event in found[0] if event.regarding.name == name}


class _Regarding(objects.Struct, frozen=True):
    name: str = ""


class _Event(objects.Object, frozen=True):
    reason: str = ""
    regarding: _Regarding = _Regarding()


EVENT_REASONS: Kind[_Event] = Kind("events.k8s.io", "v1", "events", "Event", _Event)


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ({"cloudstate.io/enabled": "yes"}, "annotation cloudstate.io/enabled: 'yes' must be \"true\" or \"false\""),
        ({"cloudstate.io/enabled": "true", "cloudstate.io/shard": "8"}, "annotation cloudstate.io/shard: no such key (its value is '8'); the keys"),
        ({"cloudstate.io/shards": "0"}, "annotation cloudstate.io/shards: '0' must be a whole number from 1 to 4096"),
        ({"cloudstate.io/passivation-timeout": "soon"}, "must be a duration above zero such as 500ms, 30s or 2m"),
        ({"cloudstate.io/paired": "v1"}, "annotation cloudstate.io/paired: no such key"),
    ],
)
async def test_a_service_with_a_bad_annotation_is_refused_in_a_sentence(
    kube: KubeClient, namespace: str, controller: Component, annotations: dict[str, str], said: str
) -> None:
    with pytest.raises(KubeError) as refused:
        await kube.create(KNATIVE_SERVICE, namespace, {"metadata": {"name": "cart"}, "spec": service_spec(annotations)})
    assert said in str(refused.value)


async def test_a_revision_without_its_store_is_refused(kube: KubeClient, namespace: str, controller: Component) -> None:
    with pytest.raises(KubeError) as refused:
        await kube.create(RAW_REVISION, namespace, revision("cart-1", ENABLED))
    assert f"'carts' must name a StatefulStore in namespace {namespace}, and there is none" in str(refused.value)


async def test_the_number_of_shards_is_fixed_once_the_service_exists(kube: KubeClient, namespace: str, controller: Component) -> None:
    await kube.create(KNATIVE_SERVICE, namespace, {"metadata": {"name": "cart"}, "spec": service_spec(ENABLED)})
    change = {"spec": service_spec(ENABLED | {"cloudstate.io/shards": "64"})}
    with pytest.raises(KubeError) as refused:
        await kube.merge(KNATIVE_SERVICE, namespace, "cart", change)
    assert "'64' cannot be changed: the service has 256 shards, fixed for its life" in str(refused.value)


async def test_a_store_tells_whether_it_can_be_reached(kube: KubeClient, namespace: str, controller: Component) -> None:
    port = free_port()
    store = {"metadata": {"name": "carts"}, "spec": {"redis": {"host": "127.0.0.1", "port": port}}}
    await kube.create(kinds.STATEFUL_STORE, namespace, store)

    async def reason() -> str:
        found = await kube.get(kinds.STATEFUL_STORE, namespace, "carts")
        ready = objects.condition(found.status.conditions, "Ready")
        return ready.reason if ready is not None else ""

    await eventually(reason, lambda text: text == "Unreachable", "Unreachable")
    server = await asyncio.create_subprocess_exec("redis-server", "--port", str(port), "--save", "", stdout=asyncio.subprocess.DEVNULL)
    try:
        await eventually(reason, lambda text: text == "Connected", "Connected")
    finally:
        server.terminate()
        await server.wait()


async def test_a_store_must_name_exactly_one_kind(kube: KubeClient, namespace: str) -> None:
    with pytest.raises(KubeError, match="spec must name exactly one of inMemory, redis, postgres, cassandra"):
        await kube.create(kinds.STATEFUL_STORE, namespace, {"metadata": {"name": "two"}, "spec": {"inMemory": {}, "redis": {"host": "r"}}})
