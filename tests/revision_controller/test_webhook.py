"""The admission server over real TLS: reviews in and out, certificates that change while it serves, stores that are looked up."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from cloudstate_core.kube.api import KubeError, NotFound
from cloudstate_core.kube.objects import Metadata, StatefulStore
from kn_cloudstate.ports import free_port
from revision_controller.certificates import Certificates, make
from revision_controller.config import config_of
from revision_controller.webhook import LARGEST, Webhook

FIRST, SECOND = make(("localhost",), datetime.now(UTC)), make(("localhost",), datetime.now(UTC))
CARTS = StatefulStore(Metadata(name="carts", namespace="shop"), {"redis": {"host": "redis"}})
ENABLED = {"cloudstate.io/enabled": "true", "cloudstate.io/stateful-store": "carts"}


class Stores:
    """A cache and an API server that know some stores."""

    def __init__(self, cached: StatefulStore | None = None, served: StatefulStore | None = None, failure: KubeError | None = None) -> None:
        self.cached, self.served, self.failure, self.asked = cached, served, failure, 0

    def get(self, namespace: str, name: str) -> StatefulStore | None:
        return self.cached if (namespace, name) == ("shop", "carts") else None

    async def ask(self, kind: Any, namespace: str, name: str) -> StatefulStore:
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        if self.served is None:
            raise NotFound(404, "NotFound", "no such store")
        return self.served


@pytest.fixture
async def serve() -> AsyncIterator[Any]:
    started: list[Webhook] = []
    port = free_port()

    async def start(stores: Stores, **config: str) -> Any:
        client: Any = SimpleNamespace(get=stores.ask)
        cache: Any = stores
        webhook = Webhook(client, cache, lambda: config_of(config, "proxy:1", "leader:8101"))
        webhook.use(FIRST)
        await webhook.start("127.0.0.1", port)
        started.append(webhook)
        return SimpleNamespace(webhook=webhook, url=f"https://localhost:{port}")

    yield start
    for webhook in started:
        await webhook.stop()


async def post(url: str, body: Any, trust: Certificates = FIRST) -> tuple[int, Any]:
    context = ssl.create_default_context(cadata=trust.ca.decode())
    async with aiohttp.ClientSession() as session, session.post(url, data=json.dumps(body), ssl=context, headers=JSON) as response:
        text = await response.text()
        return response.status, json.loads(text) if response.content_type == "application/json" else text


JSON = {"Content-Type": "application/json"}


def review(new: dict[str, Any], old: dict[str, Any] | None = None, kind: str = "Revision", **more: Any) -> dict[str, Any]:
    request = {"uid": "u1", "kind": {"kind": kind}, "namespace": "shop", "object": new, "oldObject": old, **more}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


def revision(annotations: dict[str, str]) -> dict[str, Any]:
    return {"metadata": {"name": "cart-1", "annotations": annotations}, "spec": {"containers": [{"image": "cart"}]}}


def environment(response: dict[str, Any]) -> dict[str, str]:
    operations = json.loads(base64.b64decode(response["patch"]))
    containers = next(operation["value"] for operation in operations if operation["path"] == "/spec/containers")
    return {variable["name"]: variable.get("value", "") for variable in containers[1]["env"]}


async def test_a_revision_is_paired_in_the_namespace_of_the_request(serve: Any) -> None:
    stores = Stores(cached=CARTS)
    server = await serve(stores)
    status, answer = await post(f"{server.url}/mutate-revision", review(revision(ENABLED), dryRun=True))
    assert (status, answer["response"]["uid"], answer["response"]["allowed"]) == (200, "u1", True)
    assert environment(answer["response"])["CLOUDSTATE_SERVICE"] == "shop/cart-1"
    assert stores.asked == 0


async def test_a_store_that_the_cache_does_not_know_yet_is_asked_for(serve: Any) -> None:
    stores = Stores(served=CARTS)
    server = await serve(stores)
    _, answer = await post(f"{server.url}/mutate-revision", review(revision(ENABLED)))
    assert answer["response"]["allowed"]
    assert stores.asked == 1


async def test_the_installations_default_store_serves_who_names_none(serve: Any) -> None:
    server = await serve(Stores(cached=CARTS), **{"default-stateful-store": "carts"})
    _, answer = await post(f"{server.url}/mutate-revision", review(revision({"cloudstate.io/enabled": "true"})))
    assert environment(answer["response"])["CLOUDSTATE_JOURNAL"] == "redis://redis:6379/0"


async def test_a_missing_store_is_refused_and_an_unreachable_api_is_told_apart(serve: Any) -> None:
    stores = Stores()
    server = await serve(stores)
    _, missing = await post(f"{server.url}/mutate-revision", review(revision(ENABLED)))
    assert missing["response"]["status"]["message"].endswith("'carts' must name a StatefulStore in namespace shop, and there is none")
    stores.failure = KubeError(0, "Connection", "refused")
    _, unknown = await post(f"{server.url}/mutate-revision", review(revision(ENABLED)))
    assert "StatefulStore shop/carts: cannot be looked up now" in unknown["response"]["status"]["message"]
    assert server.webhook.outcomes["/mutate-revision", "refused"] == 2


async def test_a_service_is_warned_about_its_store_and_a_revision_is_kept_as_it_is(serve: Any) -> None:
    server = await serve(Stores())
    service = {"metadata": {"name": "cart"}, "spec": {"template": {"metadata": {"annotations": ENABLED}}}}
    _, warned = await post(f"{server.url}/validate-service", review(service, kind="Service"))
    assert warned["response"]["allowed"]
    assert "there is none" in warned["response"]["warnings"][0]
    _, refused = await post(f"{server.url}/validate-service", review(revision({}), revision(ENABLED)))
    assert not refused["response"]["allowed"]


async def test_what_is_on_its_way_out_may_go(serve: Any) -> None:
    server = await serve(Stores())
    going = {"metadata": {"name": "cart", "deletionTimestamp": "2030-01-01T00:00:00Z", "annotations": {"cloudstate.io/old": "x"}}}
    _, answer = await post(f"{server.url}/validate-service", review(going, going, kind="Service"))
    assert answer["response"] == {"uid": "u1", "allowed": True}


@pytest.mark.parametrize(
    ("path", "spec", "said"),
    [
        ("/validate-store", {"redis": {"host": "a b"}}, "spec.redis.host: 'a b' must be the name"),
        ("/validate-policy", {"scale": {"min": -1}}, "spec.scale.min: -1 must be at least 0"),
    ],
)
async def test_stores_and_policies(serve: Any, path: str, spec: dict[str, Any], said: str) -> None:
    server = await serve(Stores())
    _, answer = await post(server.url + path, review({"metadata": {"name": "one"}, "spec": spec}))
    assert said in answer["response"]["status"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        [],
        "text",
        {"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "request": {"uid": "u", "object": {}}},
        {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"},
        {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "u", "object": None}},
        {"apiVersion": "v1", "kind": "Pod"},
    ],
)
async def test_what_is_no_review_is_a_bad_request(serve: Any, body: Any) -> None:
    server = await serve(Stores())
    status, text = await post(f"{server.url}/mutate-revision", body)
    assert status == 400
    assert "must be an AdmissionReview of admission.k8s.io/v1" in text


async def test_a_body_beyond_the_limit_is_not_read(serve: Any) -> None:
    server = await serve(Stores())
    status, _ = await post(f"{server.url}/mutate-revision", review(revision({"a/b": "x" * LARGEST})))
    assert status == 413


async def test_certificates_change_while_it_serves(serve: Any) -> None:
    server = await serve(Stores(cached=CARTS))
    url = f"{server.url}/mutate-revision"
    server.webhook.use(SECOND)
    assert (await post(url, review(revision(ENABLED)), SECOND))[0] == 200
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await post(url, review(revision(ENABLED)), FIRST)


async def test_a_pair_that_does_not_match_leaves_the_one_in_use_alone(serve: Any) -> None:
    server = await serve(Stores(cached=CARTS))
    with pytest.raises(ssl.SSLError):
        server.webhook.use(Certificates(SECOND.ca, SECOND.certificate, FIRST.key))
    assert (await post(f"{server.url}/mutate-revision", review(revision(ENABLED)), FIRST))[0] == 200
