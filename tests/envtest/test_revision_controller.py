"""The revision controller's process against a real API server, with the roles, webhooks and definitions that are shipped.

The process runs as its own ServiceAccount: what its roles lack fails here. It is reached at 127.0.0.1 instead of through its Service.
"""

from __future__ import annotations

import asyncio
import base64
import pathlib
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import yaml

from cloudstate_core.kube import kinds, objects
from cloudstate_core.kube.api import Body, Kind, KubeError
from cloudstate_core.kube.client import KubeClient
from envtest.steps import EVENT, Component, as_account, events, eventually, told
from kn_cloudstate.ports import free_port
from revision_controller.trust import CONFIGURATION, CONFIGURATIONS, SECRET_NAME

BASE = pathlib.Path(__file__).parents[2] / "deploy/knative/base"
SYSTEM, ACCOUNT = "cloudstate-system", "cloudstate-revision-controller"
KNATIVE_SERVICE = kinds.KNATIVE_SERVICE


class _Container(objects.Struct, frozen=True):
    name: str = ""


class _PodSpec(objects.Struct, frozen=True):
    containers: tuple[_Container, ...] = ()


class _RawRevision(objects.Revision, frozen=True):
    spec: _PodSpec = _PodSpec()  # type: ignore[assignment]


REVISION: Kind[_RawRevision] = Kind("serving.knative.dev", "v1", "revisions", "Revision", _RawRevision)
GROUP = "rbac.authorization.k8s.io"
RBAC = {
    "ClusterRole": Kind(GROUP, "v1", "clusterroles", "ClusterRole", objects.Object),
    "ClusterRoleBinding": Kind(GROUP, "v1", "clusterrolebindings", "ClusterRoleBinding", objects.Object),
    "Role": Kind(GROUP, "v1", "roles", "Role", objects.Object),
    "RoleBinding": Kind(GROUP, "v1", "rolebindings", "RoleBinding", objects.Object),
}
ACCOUNTS = Kind("", "v1", "serviceaccounts", "ServiceAccount", objects.Object)


def shipped(name: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all((BASE / name).read_text()) if document]


async def install(kube: KubeClient) -> None:
    """The namespace, the roles and the configuration as shipped."""
    await kube.apply(kinds.NAMESPACE, "", SYSTEM, {}, "test")
    for document in [*shipped("revision-controller.yaml"), *shipped("config.yaml")]:
        kind = {**RBAC, "ServiceAccount": ACCOUNTS, "ConfigMap": kinds.CONFIG_MAP}.get(document["kind"])
        if kind is not None:
            namespace = "" if document["kind"].startswith("Cluster") else SYSTEM
            await kube.apply(kind, namespace, document["metadata"]["name"], document, "test")


async def install_webhooks(kube: KubeClient, port: int) -> None:
    """The webhooks as shipped, but that they lead to a port of this machine."""
    for kind, document in zip(CONFIGURATIONS, shipped("webhooks.yaml"), strict=True):
        await kube.delete(kind, "", CONFIGURATION)
        for webhook in document["webhooks"]:
            webhook["clientConfig"] = {"url": f"https://localhost:{port}{webhook['clientConfig']['service']['path']}"}
        await kube.create(kind, "", document)


def process_of(port: int, kubeconfig: str) -> Component:
    own = {
        "POD_NAMESPACE": SYSTEM, "WEBHOOK_PORT": str(port), "WEBHOOK_HOST": "127.0.0.1", "WEBHOOK_NAMES": "localhost", "WEBHOOK_LINGER": "0s",
        "ADMIN_PORT": str(free_port()), "PROXY_IMAGE": "dev.local/proxy:1", "KUBECONFIG": kubeconfig,
    }  # fmt: skip
    return Component("revision_controller", own)


@pytest.fixture
async def controller(kube: KubeClient, tmp_path: pathlib.Path) -> AsyncIterator[Component]:
    """The controller, called by the API server."""
    port = free_port()
    await install(kube)
    await install_webhooks(kube, port)
    process = process_of(port, await as_account(kube, SYSTEM, ACCOUNT, tmp_path))
    await process.start()
    try:
        await eventually(lambda: answered(kube), bool, "admission")
        yield process
    finally:
        code = await process.stop()
        for kind in CONFIGURATIONS:
            await kube.delete(kind, "", CONFIGURATION)
    assert code == 0


async def answered(kube: KubeClient) -> bool:
    """Both webhooks refuse what only they can refuse: the API server may not know them yet. A dry run leaves nothing behind."""
    wrong = {"cloudstate.io/enabled": "yes"}
    for kind, body in ((REVISION, revision("probe", ENABLED)), (KNATIVE_SERVICE, service(wrong))):
        try:
            await dry_run(kube, kind, "default", body)
        except KubeError as error:
            if "denied the request" not in str(error):
                return False
        else:
            return False
    return True


async def unreviewed(kube: KubeClient, namespace: str) -> bool:
    """No webhook is asked any more about a revision that one would have to be asked about."""
    await dry_run(kube, REVISION, namespace, revision("probe", ENABLED))
    return True


async def dry_run(kube: KubeClient, kind: Kind[Any], namespace: str, body: Body) -> None:
    name = f"probe-{secrets.token_hex(3)}"
    complete = {"apiVersion": kind.api_version, "kind": kind.kind, **body, "metadata": {**body.get("metadata", {}), "name": name}}
    await kube._call("POST", kind.path(namespace), {"dryRun": "All"}, complete)


def service(template: dict[str, str], own: dict[str, str] | None = None, name: str = "cart") -> Body:
    made = {"metadata": {"annotations": template}, "spec": {"containers": [{"image": "dev.local/cart:1"}]}}
    return {"metadata": {"name": name, "annotations": own or {}}, "spec": {"template": made}}


def revision(name: str, annotations: dict[str, str]) -> Body:
    labels = {"serving.knative.dev/service": "cart", "serving.knative.dev/configuration": "cart"}
    container = {"name": "user-container", "image": "dev.local/cart:1", "readinessProbe": {"tcpSocket": {"port": 0}}}
    return {"metadata": {"name": name, "labels": labels, "annotations": annotations}, "spec": {"containers": [container]}}


def store(**spec: Any) -> Body:
    return {"metadata": {"name": "carts"}, "spec": spec}


ENABLED = {"cloudstate.io/enabled": "true", "cloudstate.io/stateful-store": "carts"}
REDIS = {"host": "redis", "credentialsFromSecret": {"name": "carts"}}


async def refusal(call: Awaitable[Any]) -> str:
    with pytest.raises(KubeError) as refused:
        await call
    return str(refused.value)


async def ready(kube: KubeClient, namespace: str) -> objects.Condition:
    found = await kube.get(kinds.STATEFUL_STORE, namespace, "carts")
    return objects.condition(found.status.conditions, "Ready") or objects.Condition("Ready")


# Revisions --------------------------------------------------------------------------------------------------------------


async def test_a_revision_gets_its_proxy_and_is_told_so(kube: KubeClient, namespace: str, controller: Component) -> None:
    await kube.create(kinds.STATEFUL_STORE, namespace, store(redis=REDIS))
    made = await kube.create(REVISION, namespace, revision("cart-1", ENABLED))
    assert made.metadata.annotations["cloudstate.io/paired"] == "v1"
    assert made.metadata.annotations["autoscaling.knative.dev/class"] == "concurrency.cloudstate.io"
    assert [container.name for container in made.spec.containers] == ["user-container", "cloudstate-proxy"]
    told = await eventually(lambda: events(kube, namespace, "cart-1"), lambda found: "StoreNotReady" in found, "an event about the store")
    assert told["StoreNotReady"] == "StatefulStore carts: Secret carts: must exist in this namespace, with the key password"


async def test_the_installations_default_store_is_written_on_the_revision(kube: KubeClient, namespace: str, controller: Component) -> None:
    await kube.create(kinds.STATEFUL_STORE, namespace, {"metadata": {"name": "main"}, "spec": {"redis": {"host": "redis"}}})
    await kube.merge(kinds.CONFIG_MAP, SYSTEM, "config-cloudstate", {"data": {"default-stateful-store": "main"}})
    try:

        async def attempt() -> str:
            made = await kube.create(REVISION, namespace, revision(f"cart-{secrets.token_hex(2)}", {"cloudstate.io/enabled": "true"}))
            return made.metadata.annotations["cloudstate.io/stateful-store"]

        assert await eventually(attempt, bool, "the new default") == "main"
    finally:
        await kube.merge(kinds.CONFIG_MAP, SYSTEM, "config-cloudstate", {"data": {"default-stateful-store": ""}})


async def test_a_revision_without_its_store_is_refused(kube: KubeClient, namespace: str, controller: Component) -> None:
    said = await refusal(kube.create(REVISION, namespace, revision("cart-1", ENABLED)))
    assert f"'carts' must name a StatefulStore in namespace {namespace}, and there is none" in said


async def test_the_store_of_a_paired_revision_goes_and_comes_back(kube: KubeClient, namespace: str, controller: Component) -> None:
    body = store(inMemory={})
    await kube.create(kinds.STATEFUL_STORE, namespace, body)
    await kube.create(REVISION, namespace, revision("cart-1", ENABLED | {"autoscaling.knative.dev/max-scale": "1"}))
    await eventually(lambda: events(kube, namespace, "cart-1"), lambda found: "Paired" in found, "Paired")
    await kube.delete(kinds.STATEFUL_STORE, namespace, "carts")
    await eventually(lambda: events(kube, namespace, "cart-1"), lambda found: "StoreMissing" in found, "StoreMissing")
    await kube.create(kinds.STATEFUL_STORE, namespace, body)
    paired = await eventually(
        lambda: told(kube, namespace, "cart-1"), lambda found: [reason for reason, _ in found].count("Paired") == 2, "Paired again"
    )
    assert [reason for reason, _ in paired] == ["Paired", "StoreMissing", "Paired"]


async def test_what_a_revisions_pods_were_made_with_does_not_change(kube: KubeClient, namespace: str, controller: Component) -> None:
    await kube.create(kinds.STATEFUL_STORE, namespace, store(redis=REDIS))
    await kube.create(REVISION, namespace, revision("cart-1", ENABLED))
    change = {"metadata": {"annotations": {"cloudstate.io/shards": "8"}}}
    assert "'8' cannot replace None on a revision" in await refusal(kube.merge(REVISION, namespace, "cart-1", change))
    removal = {"metadata": {"annotations": {"cloudstate.io/paired": None}}}
    assert "None cannot replace 'v1' on a revision" in await refusal(kube.merge(REVISION, namespace, "cart-1", removal))
    await kube.merge(REVISION, namespace, "cart-1", {"metadata": {"annotations": {"cloudstate.io/policy": "calm", "a/b": "c"}}})


async def test_knative_goes_on_while_the_webhook_is_away(kube: KubeClient, namespace: str, controller: Component) -> None:
    await kube.create(kinds.STATEFUL_STORE, namespace, store(redis=REDIS))
    await kube.create(REVISION, namespace, revision("cart-1", ENABLED))
    await kube.create(KNATIVE_SERVICE, namespace, service(ENABLED))
    await controller.stop()
    traffic = {"metadata": {"labels": {"serving.knative.dev/routingState": "active"}, "annotations": {"serving.knative.dev/routes": "cart"}}}
    await kube.merge(REVISION, namespace, "cart-1", traffic)
    await kube.create(KNATIVE_SERVICE, namespace, service({}, name="plain"))
    await kube.create(REVISION, namespace, revision("plain-1", {}))
    assert "failed calling webhook" in await refusal(kube.create(REVISION, namespace, revision("cart-2", ENABLED)))
    await kube.delete(KNATIVE_SERVICE, namespace, "cart")
    await controller.start()
    await eventually(lambda: answered(kube), bool, "admission again")


async def test_an_excluded_namespace_is_left_alone(kube: KubeClient, namespace: str, controller: Component) -> None:
    await kube.merge(kinds.NAMESPACE, "", namespace, {"metadata": {"labels": {"webhooks.cloudstate.io/exclude": "true"}}})

    async def attempt() -> bool:
        made = await kube.create(REVISION, namespace, revision(f"cart-{secrets.token_hex(2)}", {"cloudstate.io/enabled": "true"}))
        return "cloudstate.io/paired" not in made.metadata.annotations

    await eventually(attempt, bool, "a revision that is not looked at")
    unpaired = (await kube.list(REVISION, namespace))[0][0].metadata.name
    await eventually(lambda: events(kube, namespace, unpaired), lambda found: "NotPaired" in found, "NotPaired")


# Services ---------------------------------------------------------------------------------------------------------------


async def test_services_with_bad_annotations_are_refused_in_sentences(kube: KubeClient, namespace: str, controller: Component) -> None:
    for bad, said in (
        ({"cloudstate.io/enabled": "yes"}, "annotation cloudstate.io/enabled: 'yes' must be \"true\" or \"false\""),
        ({"cloudstate.io/shard": "8"}, "annotation cloudstate.io/shard: no such key (its value is '8'); the keys are"),
        ({"cloudstate.io/shards": "0"}, "annotation cloudstate.io/shards: '0' must be a whole number from 1 to 4096"),
        ({"cloudstate.io/passivation-timeout": "soon"}, "must be a duration above zero such as 500ms, 30s or 2m"),
        ({"cloudstate.io/paired": "v1"}, "annotation cloudstate.io/paired: no such key"),
    ):
        assert said in await refusal(kube.create(KNATIVE_SERVICE, namespace, service(bad)))
        assert said in await refusal(kube.create(KNATIVE_SERVICE, namespace, service({}, bad)))


async def test_the_same_file_serves_one_machine_and_a_cluster(kube: KubeClient, namespace: str, controller: Component) -> None:
    sample = yaml.safe_load((BASE.parents[2] / "samples/shopping-cart/service.yaml").read_text())
    given = sample["metadata"].setdefault("annotations", {})
    given["local.cloudstate.io/commands"] = "cart"
    assert "annotation local.cloudstate.io/commands: no such key" in await refusal(kube.create(KNATIVE_SERVICE, namespace, sample))
    del given["local.cloudstate.io/commands"]
    made = await kube.create(KNATIVE_SERVICE, namespace, sample)
    assert given.items() <= made.metadata.annotations.items()


async def test_the_number_of_shards_is_fixed_once_the_service_exists(kube: KubeClient, namespace: str, controller: Component) -> None:
    await kube.create(KNATIVE_SERVICE, namespace, service(ENABLED))
    change = service(ENABLED | {"cloudstate.io/shards": "64"})
    said = await refusal(kube.merge(KNATIVE_SERVICE, namespace, "cart", {"spec": change["spec"]}))
    assert "'64' cannot be changed: the service has 256 shards, fixed for its life" in said


# Stores and policies ----------------------------------------------------------------------------------------------------


async def test_a_store_tells_whether_it_can_be_reached(
    kube: KubeClient, namespace: str, controller: Component, redis_servers: Callable[..., Any]
) -> None:
    server = redis_servers("--requirepass", "s3cret")
    spec = {"redis": {"host": "127.0.0.1", "port": server.port, "credentialsFromSecret": {"name": "carts"}}}
    await kube.create(kinds.STATEFUL_STORE, namespace, store(**spec))
    await eventually(lambda: ready(kube, namespace), lambda c: c.reason == "SecretMissing", "SecretMissing")
    secret = {"metadata": {"name": "carts"}, "stringData": {"password": "s3cret"}}
    await kube.create(kinds.SECRET, namespace, secret)
    await kube.merge(kinds.STATEFUL_STORE, namespace, "carts", {"spec": {"redis": {"database": 1}}})
    good = await eventually(lambda: ready(kube, namespace), lambda c: c.status == "True", "Connected")
    assert good.reason == "Connected"
    await kube.merge(kinds.STATEFUL_STORE, namespace, "carts", {"spec": {"redis": {"database": 2}}})

    async def observed() -> bool:
        found = await kube.get(kinds.STATEFUL_STORE, namespace, "carts")
        return found.status.observed_generation == found.metadata.generation == 3

    await eventually(observed, bool, "the third generation observed")
    assert (await ready(kube, namespace)).last_transition_time == good.last_transition_time


async def test_a_kind_of_a_later_release_tells_so(kube: KubeClient, namespace: str, controller: Component) -> None:
    await kube.create(kinds.STATEFUL_STORE, namespace, store(postgres={"host": "db"}))
    found = await eventually(lambda: ready(kube, namespace), lambda c: c.status == "False", "a verdict")
    assert found.reason == "NotSupported"
    assert "spec.postgres: is not supported by this release" in found.message


@pytest.mark.parametrize(
    ("kind", "spec", "said"),
    [
        (kinds.STATEFUL_STORE, {"inMemory": {}, "redis": {"host": "r"}}, "spec must name exactly one of inMemory, redis, postgres, cassandra"),
        (kinds.STATEFUL_STORE, {}, "spec must name exactly one of inMemory, redis, postgres, cassandra"),
        (kinds.STATEFUL_STORE, {"redis": {"host": "redis://r"}}, "spec.redis.host must be a host name or an address, without scheme, port and path"),
        (kinds.STATEFUL_STORE, {"redis": {"host": "r", "port": 70000}}, "spec.redis.port: Invalid value"),
        (kinds.AUTOSCALING_POLICY, {"scale": {"min": 3, "max": 2}}, "scale.min must not be above scale.max"),
        (kinds.AUTOSCALING_POLICY, {"windows": {"stable": "5s"}}, "windows.stable must be from 6s to 1h"),
        (kinds.AUTOSCALING_POLICY, {"metrics": [{"type": "Prometheus", "target": 1}]}, "a Prometheus metric needs query and server"),
        (kinds.AUTOSCALING_POLICY, {"metrics": [{"type": "Luck", "target": 1}]}, "Unsupported value"),
        (kinds.AUTOSCALING_POLICY, {"behavior": {"scaleDownDelay": "2h"}}, "a duration here must be at most 1h"),
        (kinds.SHARD_MAP, {"service": "a/b"}, "spec.generation: Required value"),
    ],
)
async def test_the_definitions_alone_refuse_what_is_wrong(kube: KubeClient, namespace: str, kind: Kind[Any], spec: Any, said: str) -> None:
    assert said in await refusal(kube.create(kind, namespace, {"metadata": {"name": "one"}, "spec": spec}))


async def test_admission_refuses_what_the_definitions_cannot(kube: KubeClient, namespace: str, controller: Component) -> None:
    colon = await refusal(kube.create(kinds.STATEFUL_STORE, namespace, store(redis={"host": "redis:6379"})))
    assert "'redis:6379' must be the name or address of a Redis server, without scheme and port" in colon
    zero = {"metadata": {"name": "one"}, "spec": {"scaleToZero": {"gracePeriod": "0s"}}}
    assert "spec.scaleToZero.gracePeriod: '0s' must be from 0.001s" in await refusal(kube.create(kinds.AUTOSCALING_POLICY, namespace, zero))


# Certificates -----------------------------------------------------------------------------------------------------------


async def bundles(kube: KubeClient) -> set[bytes]:
    found = [await kube.get(kind, "", CONFIGURATION) for kind in CONFIGURATIONS]
    return {base64.b64decode(webhook.client_config.ca_bundle) for configuration in found for webhook in configuration.webhooks}


async def test_certificates_that_are_deleted_or_forgotten_are_mended_at_once(kube: KubeClient, namespace: str, controller: Component) -> None:
    before = await kube.get(kinds.SECRET, SYSTEM, SECRET_NAME)
    assert await bundles(kube) == {base64.b64decode(before.data["ca.crt"])}
    await kube.delete(kinds.SECRET, SYSTEM, SECRET_NAME)

    async def renewed() -> bool:
        held = await kube.get(kinds.SECRET, SYSTEM, SECRET_NAME)
        return held.data != before.data and await bundles(kube) == {base64.b64decode(held.data["ca.crt"])}

    await eventually(renewed, bool, "new certificates that are trusted")
    await eventually(lambda: answered(kube), bool, "admission with the new certificates")
    document = shipped("webhooks.yaml")[0]
    for webhook, there in zip(document["webhooks"], [f"https://localhost:{controller.environment['WEBHOOK_PORT']}/mutate-revision"], strict=True):
        webhook["clientConfig"] = {"url": there}
    await kube.delete(CONFIGURATIONS[0], "", CONFIGURATION)
    await kube.create(CONFIGURATIONS[0], "", document)
    await eventually(lambda: bundles(kube), lambda found: len(found) == 1 and b"" not in found, "trust in the configuration made anew")


def first_of(encoded: str) -> str:
    """The first certificate of a chain in a Secret."""
    return base64.b64decode(encoded).decode().partition("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"


async def test_no_review_fails_while_certificates_are_rotated(kube: KubeClient, namespace: str, controller: Component) -> None:
    """A Secret whose key no longer fits counts as due: new certificates follow while the old ones are still trusted."""
    held = await kube.get(kinds.SECRET, SYSTEM, SECRET_NAME)
    old = base64.b64decode(held.data["ca.crt"])
    await kube.merge(kinds.SECRET, SYSTEM, SECRET_NAME, {"data": {"tls.key": base64.b64encode(b"broken").decode()}})
    failures, asked = [], 0
    port = int(controller.environment["WEBHOOK_PORT"])

    async def rotated() -> bool:
        """There is a new certificate, and the port shows it."""
        now = (await kube.get(kinds.SECRET, SYSTEM, SECRET_NAME)).data["tls.crt"]
        shown = ssl.PEM_cert_to_DER_cert(await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port), timeout=30))
        return now != held.data["tls.crt"] and ssl.PEM_cert_to_DER_cert(first_of(now)) == shown

    async def ask() -> None:
        nonlocal asked
        while True:
            asked += 1
            try:
                await dry_run(kube, KNATIVE_SERVICE, namespace, service({"cloudstate.io/enabled": "false"}))
            except KubeError as error:
                failures.append(str(error))
            await asyncio.sleep(0.02)

    asking = asyncio.create_task(ask())
    await eventually(rotated, bool, "new certificates")
    before = asked
    await eventually(lambda: asyncio.sleep(0, asked), lambda count: count > before + 25, "reviews with the new certificates")
    asking.cancel()
    assert failures == []
    (bundle,) = await bundles(kube)
    assert old in bundle
    assert bundle != old


# Many -------------------------------------------------------------------------------------------------------------------


async def test_a_thousand_revisions_are_told_after_a_cold_start(kube: KubeClient, namespace: str, tmp_path: pathlib.Path) -> None:
    """The revisions were made while no controller was there; each must be told that it has no proxy."""
    count, gate = 1000, asyncio.Semaphore(16)
    port = free_port()
    await install(kube)
    await eventually(lambda: unreviewed(kube, namespace), bool, "that no webhook of an earlier test is asked")

    async def make(n: int) -> None:
        async with gate:
            await kube.create(REVISION, namespace, revision(f"cart-{n}", ENABLED))

    async def number_told() -> int:
        await asyncio.sleep(0.5)  # a list of a thousand events is work for the server under test, too
        return len({event.regarding.name for event in (await kube.list(EVENT, namespace))[0] if event.reason == "NotPaired"})

    await asyncio.gather(*(make(n) for n in range(count)))
    assert await number_told() == 0, "another controller is at work on this server"
    process = process_of(port, await as_account(kube, SYSTEM, ACCOUNT, tmp_path))
    begin = asyncio.get_running_loop().time()
    await process.start()
    try:
        # how long it takes on a machine that does nothing else is for `make bench-control-plane` to tell
        await eventually(number_told, lambda n: n == count, "every revision told", limit=240)
        took = asyncio.get_running_loop().time() - begin
        print(f"{count} revisions told in {took:.1f} s, {process.resident:.0f} MiB resident")
    finally:
        code = await process.stop()
    assert code == 0
