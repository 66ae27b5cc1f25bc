"""Pairing: what a revision looks like afterwards, that doing it again changes nothing, and what cannot be paired."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from revision_controller.pairing import CLASS, CLASS_KEY, PROXY, PairingError, ProxySettings, paired, patch
from revision_controller.stores import SecretKey, Store

SETTINGS = ProxySettings("example.com/proxy:1", "leader:8101")
STORE = Store("carts", "redis", "redis://redis:6379/0", SecretKey("login", "password"))


def revision(*containers: dict[str, Any], annotations: dict[str, str] | None = None) -> dict[str, Any]:
    labels = {"serving.knative.dev/service": "cart", "serving.knative.dev/configuration": "cart"}
    metadata = {"name": "cart-1", "namespace": "shop", "labels": labels, "annotations": {"cloudstate.io/enabled": "true"} | (annotations or {})}
    return {"metadata": metadata, "spec": {"containers": list(containers), "timeoutSeconds": 300}}


def user(**more: Any) -> dict[str, Any]:
    return {"name": "user-container", "image": "example.com/cart:1", **more}


def pair(given: dict[str, Any]) -> dict[str, Any]:
    return paired(given, STORE, SETTINGS)


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}


def apply(given: dict[str, Any], operations: list[dict[str, Any]]) -> dict[str, Any]:
    """A JSON patch as the API server applies it, as far as pairing makes any."""
    made = copy.deepcopy(given)
    for operation in operations:
        parent, _, name = operation["path"].rpartition("/")
        where = made
        for part in parent.strip("/").split("/"):
            where = where[part]
        assert operation["op"] == "add" or name in where
        where[name] = operation["value"]
    return made


def defaulted(given: dict[str, Any]) -> dict[str, Any]:
    """What Knative's own defaulting does to a revision between two calls."""
    made = copy.deepcopy(given)
    for container in made["spec"]["containers"]:
        container.setdefault("resources", {}).setdefault("limits", {})
        if container.get("ports") or len(made["spec"]["containers"]) == 1:
            probe = container.setdefault("readinessProbe", {"tcpSocket": {"port": 0}})
            probe.setdefault("successThreshold", 1)
            for port in container.get("ports") or []:
                port.setdefault("protocol", "TCP")
    made["spec"]["enableServiceLinks"] = False
    return made


def test_the_proxy_takes_the_port_and_the_function_comes_first() -> None:
    made = pair(revision(user(ports=[{"name": "h2c", "containerPort": 7000}], readinessProbe={"tcpSocket": {"port": 0}})))
    function, proxy = made["spec"]["containers"]
    assert function["name"] == "user-container"
    assert not {"ports", "readinessProbe", "livenessProbe", "startupProbe"} & set(function)
    assert environment(function) == {"PORT": "7000", "HOST": "127.0.0.1"}
    assert proxy["name"] == PROXY
    assert [(port["name"], port["containerPort"]) for port in proxy["ports"]] == [("h2c", 8080)]
    assert proxy["readinessProbe"]["grpc"]["port"] == 8080


def test_the_proxy_is_told_all_that_it_needs() -> None:
    given = revision(user(), annotations={"cloudstate.io/shards": "64", "cloudstate.io/passivation-timeout": "2m"})
    proxy = pair(given)["spec"]["containers"][1]
    assert environment(proxy) == {
        "CLOUDSTATE_HOST": "0.0.0.0",
        "CLOUDSTATE_DATA_PORT": "8080",
        "CLOUDSTATE_PEER_PORT": "8559",
        "CLOUDSTATE_ADMIN_PORT": "8558",
        "CLOUDSTATE_ADVERTISE_PORT": "8013",
        "CLOUDSTATE_USER_FUNCTION": "127.0.0.1:8090",
        "CLOUDSTATE_SERVICE": "shop/cart",
        "CLOUDSTATE_REVISION": "cart-1",
        "CLOUDSTATE_SHARDS": "64",
        "CLOUDSTATE_PASSIVATION_TIMEOUT": "2m",
        "CLOUDSTATE_COORDINATOR": "leader:8101",
        "CLOUDSTATE_JOURNAL": "redis://redis:6379/0",
        "CLOUDSTATE_LOG": "WARNING",
    }
    password = next(v for v in proxy["env"] if v["name"] == "CLOUDSTATE_JOURNAL_PASSWORD")
    assert password["valueFrom"] == {"secretKeyRef": {"name": "login", "key": "password"}}


def test_the_proxy_gets_what_annotations_say_and_what_the_function_is_bound_to() -> None:
    certificates = {"name": "K_CA_CERTS", "valueFrom": {"configMapKeyRef": {"name": "trust", "key": "ca"}}}
    bound = [{"name": "K_SINK", "value": "http://broker"}, certificates, {"name": "A", "value": "b"}]
    annotations = {"cloudstate.io/entity-headers": "x-user", "cloudstate.io/sink": "http://own/{topic}"}
    function, proxy = pair(revision(user(env=bound), annotations=annotations))["spec"]["containers"]
    assert [variable for variable in proxy["env"] if variable["name"] in ("K_SINK", "K_CA_CERTS", "A")] == bound[:2]
    assert [variable for variable in function["env"] if variable in bound] == bound
    found = environment(proxy)
    assert (found["CLOUDSTATE_ENTITY_HEADERS"], found["CLOUDSTATE_SINK"]) == ("x-user", "http://own/{topic}")


def test_a_store_without_a_password_gives_no_reference_to_a_secret() -> None:
    proxy = paired(revision(user()), Store("carts", "redis", "redis://redis:6379/0"), SETTINGS)["spec"]["containers"][1]
    assert all("valueFrom" not in variable for variable in proxy["env"])


@pytest.mark.parametrize(("declared", "told"), [(None, "8090"), (8080, "8090"), (8558, "8090"), (8559, "8090"), (7000, "7000")])
def test_where_the_function_listens(declared: int | None, told: str) -> None:
    container = user() if declared is None else user(ports=[{"containerPort": declared}])
    function, proxy = pair(revision(container))["spec"]["containers"]
    assert environment(function)["PORT"] == told
    assert environment(proxy)["CLOUDSTATE_USER_FUNCTION"] == f"127.0.0.1:{told}"


def test_the_revision_tells_its_class_and_the_store_it_was_paired_with() -> None:
    annotations = pair(revision(user()))["metadata"]["annotations"]
    assert annotations == {
        "cloudstate.io/enabled": "true", "cloudstate.io/stateful-store": "carts", "cloudstate.io/paired": "v1", CLASS_KEY: CLASS,
    }  # fmt: skip


def test_of_several_containers_only_the_one_with_the_port_gives_it_up() -> None:
    sidecar = {"name": "helper", "image": "example.com/helper", "env": [{"name": "PORT", "value": "1"}]}
    made = pair(revision(sidecar, user(ports=[{"containerPort": 7000}])))
    assert [c["name"] for c in made["spec"]["containers"]] == ["user-container", PROXY, "helper"]
    assert made["spec"]["containers"][2] == sidecar


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (revision(), "spec.containers: must have a container for the user function"),
        (revision(user(), {"name": PROXY, "image": "mine"}), "spec.containers: the name cloudstate-proxy is the proxy's"),
        (revision(user(), {"name": "b"}), "with several containers one must have a port"),
        (revision(user(ports=[{"containerPort": 1}]), {"name": "b", "ports": [{"containerPort": 2}]}), "exactly one container may have a port"),
        (revision(user(ports=[{"containerPort": 1}, {"containerPort": 2}])), "the user function must have one port, has several"),
        (revision(user(ports=[{"containerPort": 8012}])), "containerPort 8012 is taken by queue-proxy"),
        (
            revision(user(), annotations={CLASS_KEY: "kpa.autoscaling.knative.dev"}),
            "annotation autoscaling.knative.dev/class: 'kpa.autoscaling.knative.dev' must be concurrency.cloudstate.io",
        ),
        ({"metadata": {"generateName": "cart-", "namespace": "shop"}, "spec": {"containers": [user()]}}, "metadata.name: must be set"),
    ],
)
def test_what_cannot_be_paired_is_told_why(given: dict[str, Any], said: str) -> None:
    with pytest.raises(PairingError) as refused:
        pair(given)
    assert said in str(refused.value)


def test_a_mark_without_a_proxy_does_not_keep_a_revision_from_getting_one() -> None:
    made = pair(revision(user(), annotations={"cloudstate.io/paired": "v1"}))
    assert made["spec"]["containers"][1]["name"] == PROXY


unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Time is not what these properties are about, and machines are shared."""

# Any revision -----------------------------------------------------------------------------------------------------------

names = st.sampled_from(["A", "B", "PORT", "HOST", "PATH"])
variables = st.lists(st.fixed_dictionaries({"name": names, "value": st.text(max_size=5)}), max_size=4)
free_ports = st.integers(1024, 8000)
extras = st.fixed_dictionaries(
    {"image": st.sampled_from(["a:1", "b@sha256:0"])},
    optional={
        "env": variables,
        "command": st.lists(st.text(max_size=4), max_size=2),
        "resources": st.just({"requests": {"cpu": "1"}}),
        "volumeMounts": st.just([{"name": "scratch", "mountPath": "/scratch"}]),
        "readinessProbe": st.just({"tcpSocket": {"port": 0}}),
        "livenessProbe": st.just({"httpGet": {"path": "/"}}),
        "securityContext": st.just({"runAsUser": 1}),
    },
)


@st.composite
def revisions(draw: st.DrawFn) -> dict[str, Any]:
    containers = [{"name": f"c{n}", **extra} for n, extra in enumerate(draw(st.lists(extras, min_size=1, max_size=3)))]
    serving = draw(st.integers(0, len(containers) - 1))
    if len(containers) > 1 or draw(st.booleans()):
        containers[serving]["ports"] = [{"containerPort": draw(free_ports)}]
    return revision(*containers, annotations=draw(st.dictionaries(st.sampled_from(["a/b", "cloudstate.io/shards"]), st.just("8"))))


@unhurried
@given(revisions())
def test_pairing_twice_is_pairing_once(given: dict[str, Any]) -> None:
    once = pair(given)
    assert patch(once, pair(once)) == []
    assert pair(once) == once


@unhurried
@given(revisions())
def test_the_second_call_after_knative_has_filled_in_defaults_patches_nothing(given: dict[str, Any]) -> None:
    first = defaulted(given)
    between = defaulted(apply(first, patch(first, pair(first))))
    assert patch(between, pair(between)) == []


@unhurried
@given(revisions())
def test_the_patch_leads_to_the_paired_revision_and_leaves_what_came_untouched(given: dict[str, Any]) -> None:
    before = copy.deepcopy(given)
    made = pair(given)
    assert given == before
    assert apply(given, patch(given, made)) == made


@unhurried
@given(revisions())
def test_of_the_users_containers_nothing_else_is_lost(given: dict[str, Any]) -> None:
    made = pair(given)["spec"]["containers"]
    lost = {"ports", "readinessProbe", "livenessProbe", "startupProbe", "env"}
    before = {c["name"]: c for c in given["spec"]["containers"]}
    after = {c["name"]: c for c in made if c["name"] != PROXY}
    assert set(before) == set(after)
    function = made[0]["name"]
    for name, container in before.items():
        if name != function:
            assert after[name] == container
        else:
            assert {k: v for k, v in after[name].items() if k not in lost} == {k: v for k, v in container.items() if k not in lost}
            kept = [v for v in container.get("env", []) if v["name"] not in ("PORT", "HOST")]
            assert after[name]["env"][:-2] == kept
    assert sum(bool(c.get("ports")) for c in made) == 1
