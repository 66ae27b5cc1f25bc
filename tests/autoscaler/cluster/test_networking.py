"""The network of a revision: shapes as Knative's ingresses read them, choice of activators, and what counts as changed by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.cluster.naming import data_port, host_port, is_ours, is_paired, service_of, shards_of
from autoscaler.cluster.networking import chosen, is_as_wanted, leader_slice, owned_by, private_service, public_service, public_slice
from cloudstate_core.kube import kinds

from .world import PAIRED, deep_merge, podautoscaler, read


def ports(body: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(p["name"], p["port"], p["targetPort"], p.get("appProtocol")) for p in body["spec"]["ports"]]


H2C = "kubernetes.io/h2c"
PUBLIC = {
    "http1": [("http", 80, 8012, None), ("https", 443, 8112, None)],
    "h2c": [("http2", 81, 8013, H2C), ("https", 443, 8112, None)],
}
METRICS = [("https", 443, 8112, None), ("http-autometric", 9090, 9090, None), ("http-usermetric", 9091, 9091, None)]
PRIVATE = {
    "http1": [("http", 80, 8012, None), *METRICS, ("http-istio", 8012, 8012, None)],
    "h2c": [("http2", 80, 8013, H2C), *METRICS, ("http2-istio", 8013, 8013, H2C)],
}


@pytest.mark.parametrize("protocol", ["http1", "h2c"])
def test_services_have_the_shape_of_knative_s_own(protocol: str) -> None:
    pa = podautoscaler(protocol=protocol)
    public, private = public_service(pa), private_service(pa)
    assert ports(public) == PUBLIC[protocol]
    assert ports(private) == PRIVATE[protocol]
    assert "selector" not in public["spec"]
    assert private["spec"]["selector"] == {"serving.knative.dev/revisionUID": "r-cart-1"}
    assert (public["metadata"]["name"], private["metadata"]["name"]) == ("cart-1", "cart-1-private")
    for body in (public, private):
        (owner,) = body["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("PodAutoscaler", "u1", True)
        assert body["metadata"]["labels"]["serving.knative.dev/revision"] == "cart-1"
        # With these the stock activator would probe the pods.
        assert "networking.internal.knative.dev/serviceType" not in body["metadata"]["labels"]


@pytest.mark.parametrize(
    ("protocol", "addresses", "kind", "port"),
    [("http1", ["10.0.0.2", "10.0.0.1"], "IPv4", ("http", 8012)), ("h2c", ["fd00::1"], "IPv6", ("http2", 8013))],
)
def test_the_slice_points_the_public_service_at_activators(protocol: str, addresses: list[str], kind: str, port: tuple[str, int]) -> None:
    body = public_slice(podautoscaler(protocol=protocol), addresses)
    assert body["addressType"] == kind
    assert [e["addresses"] for e in body["endpoints"]] == [[a] for a in sorted(addresses)]
    assert all(e["conditions"]["ready"] for e in body["endpoints"])
    assert [(p["name"], p["port"]) for p in body["ports"]] == [port]
    assert body["metadata"]["labels"]["kubernetes.io/service-name"] == "cart-1"
    assert body["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] == "cloudstate-autoscaler"


def test_the_leader_s_slice() -> None:
    body = leader_slice("cloudstate-autoscaler", "system", "10.0.0.9", 8101)
    assert body["metadata"]["labels"]["kubernetes.io/service-name"] == "cloudstate-autoscaler"
    assert body["endpoints"] == [{"addresses": ["10.0.0.9"], "conditions": {"ready": True}}]
    assert (body["ports"][0]["name"], body["ports"][0]["port"]) == ("grpc", 8101)
    assert leader_slice("a", "b", "fd00::1", 1)["addressType"] == "IPv6"


ADDRESSES = st.lists(st.integers(1, 250).map(lambda n: f"10.0.0.{n}"), min_size=1, max_size=12, unique=True)


@given(ADDRESSES, st.integers(0, 14), st.data())
def test_a_revision_s_activators_change_by_one_when_one_comes_or_goes(addresses: list[str], count: int, data: st.DataObject) -> None:
    before = chosen("ns/cart-1", addresses, count)
    assert len(before) == min(len(addresses), max(1, count))
    assert set(before) <= set(addresses)
    assert chosen("ns/cart-1", addresses[::-1], count) == before
    gone = data.draw(st.sampled_from(addresses))
    left = [a for a in addresses if a != gone]
    after = chosen("ns/cart-1", left, count)
    assert set(before) - {gone} <= set(after)
    if gone not in before:
        assert after == before


def test_revisions_are_spread_over_activators() -> None:
    addresses = [f"10.0.0.{n}" for n in range(10)]
    used = [a for n in range(500) for a in chosen(f"ns/r-{n}", addresses, 2)]
    assert all(50 <= used.count(a) <= 170 for a in addresses)


EDITS: list[dict[str, Any]] = [
    {"spec": {"ports": [{"name": "http", "port": 80, "targetPort": 9999}, {"name": "https", "port": 443, "targetPort": 8112}]}},
    {"spec": {"ports": []}},
    {"spec": {"selector": {"app": "other"}}},
    {"metadata": {"labels": {"serving.knative.dev/revision": "other"}}},
]


@pytest.mark.parametrize("edit", EDITS)
def test_a_service_that_somebody_has_edited_is_not_as_wanted(edit: dict[str, Any]) -> None:
    body = public_service(podautoscaler())
    assert is_as_wanted(read(kinds.SERVICE, body), body)
    assert is_as_wanted(read(kinds.SERVICE, deep_merge(body, {"metadata": {"labels": {"more": "labels"}}, "spec": {"clusterIP": "10.9.9.9"}})), body)
    assert not is_as_wanted(read(kinds.SERVICE, deep_merge(body, edit)), body)


SLICE_EDITS: list[dict[str, Any]] = [
    {"endpoints": []},
    {"endpoints": [{"addresses": ["10.6.6.6"], "conditions": {"ready": True}}]},
    {"endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": False}}]},
    {"endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"], "conditions": {"ready": False}}]},
    {"ports": [{"name": "http", "port": 1}]},
    {"metadata": {"labels": {"kubernetes.io/service-name": "other"}}},
]


@pytest.mark.parametrize("edit", SLICE_EDITS)
def test_a_slice_that_somebody_has_edited_is_not_as_wanted(edit: dict[str, Any]) -> None:
    body = public_slice(podautoscaler(), ["10.0.0.1"])
    assert is_as_wanted(read(kinds.ENDPOINT_SLICE, body), body)
    assert not is_as_wanted(read(kinds.ENDPOINT_SLICE, deep_merge(body, edit)), body)


def test_ownership_is_by_uid() -> None:
    made = read(kinds.SERVICE, public_service(podautoscaler()))
    assert owned_by(made, podautoscaler())
    assert not owned_by(made, podautoscaler(uid="another of the same name"))
    assert not owned_by(read(kinds.SERVICE, {"metadata": {"name": "cart-1"}}), podautoscaler())


def test_names() -> None:
    assert service_of(podautoscaler()) == "ns/cart"
    assert service_of(podautoscaler(labels={"serving.knative.dev/service": "", "serving.knative.dev/configuration": "c"})) == "ns/c"
    assert service_of(podautoscaler(labels={"serving.knative.dev/service": ""})) == "ns/cart-1"
    assert is_ours(podautoscaler())
    assert not is_ours(podautoscaler(annotations={"autoscaling.knative.dev/class": "kpa.autoscaling.knative.dev"}))
    assert is_paired(podautoscaler(annotations=PAIRED))
    assert not is_paired(podautoscaler())
    assert [shards_of(podautoscaler(annotations={"cloudstate.io/shards": text})) for text in ("16", "0", "x", "")] == [16, 256, 256, 256]
    assert [data_port(podautoscaler(protocol=p)) for p in ("http1", "h2c", "")] == [8012, 8013, 8012]
    assert [host_port(a, 8012) for a in ("10.0.0.1", "fd00::1")] == ["10.0.0.1:8012", "[fd00::1]:8012"]
