"""Keeping the network: what is right is not written, what somebody deletes or edits comes back, what is another's is never touched."""

from __future__ import annotations

from typing import Any

import pytest

from autoscaler.cluster.network import Network, Path
from cloudstate_core.kube import kinds
from cloudstate_core.kube.api import KubeError

from .world import NAMESPACE, Kube, podautoscaler

ACTIVATORS = ["10.0.0.1"]


class Cluster:
    """The objects as a cache sees them: `see` brings it up to date and tells of changes."""

    def __init__(self) -> None:
        self.kube = Kube()
        self.services: dict[str, Any] = {}
        self.slices: dict[str, Any] = {}
        self.endpoints: dict[str, Any] = {}
        self.network = self.restarted()

    def restarted(self, endpoints_too: bool = False) -> Network:
        self.network = Network(self.kube, self.services, self.slices, self.endpoints if endpoints_too else None)  # type: ignore[arg-type]
        return self.network

    def see(self) -> set[str]:
        touched: set[str] = set()
        for kind, held in ((kinds.SERVICE, self.services), (kinds.ENDPOINT_SLICE, self.slices), (kinds.ENDPOINTS, self.endpoints)):
            now = {f"{ns}/{name}": self.kube.read(kind, ns, name) for plural, ns, name in self.kube.held if plural == kind.plural}  # type: ignore[arg-type]
            for key in held.keys() | now.keys():
                before, after = held.get(key), now.get(key)
                if before != after:
                    held.pop(key, None)
                    held.update({key: after} if after is not None else {})
                    touched |= set(self.network.changed(before)) if before is not None else set()
        return touched

    @property
    def writes(self) -> int:
        return sum(count for verb, count in self.kube.calls.items() if verb != "get")


async def test_a_revision_s_network_is_written_once_and_kept() -> None:
    cluster, pa = Cluster(), podautoscaler()
    assert await cluster.network.ensure(pa, ACTIVATORS) is Path.READY
    assert cluster.writes == 3
    assert await cluster.network.ensure(pa, ACTIVATORS) is Path.READY
    cluster.see()
    assert await cluster.network.ensure(pa, ACTIVATORS) is Path.READY
    assert sum(cluster.kube.calls.values()) == 3


async def test_a_new_leader_writes_nothing_that_is_right() -> None:
    cluster, pa = Cluster(), podautoscaler()
    await cluster.network.ensure(pa, ACTIVATORS)
    cluster.see()
    later = cluster.restarted()
    cluster.kube.calls.clear()
    assert await later.ensure(pa, ACTIVATORS) is Path.READY
    assert await later.ensure(pa, []) is Path.READY
    assert not cluster.kube.calls


async def test_other_activators_are_written_and_none_changes_nothing() -> None:
    cluster, pa = Cluster(), podautoscaler()
    assert await cluster.network.ensure(pa, []) is Path.OPEN
    assert await cluster.network.ensure(pa, ACTIVATORS) is Path.READY
    assert await cluster.network.ensure(pa, []) is Path.READY
    cluster.see()
    assert await cluster.network.ensure(pa, ["10.0.0.2"]) is Path.READY
    cluster.see()
    assert [e.addresses for e in cluster.slices["ns/cart-1-activators"].endpoints] == [("10.0.0.2",)]


@pytest.mark.parametrize("name", ["services/cart-1", "services/cart-1-private", "endpointslices/cart-1-activators"])
@pytest.mark.parametrize("how", ["deleted", "edited"])
async def test_what_somebody_deletes_or_edits_comes_back(name: str, how: str) -> None:
    cluster, pa = Cluster(), podautoscaler()
    await cluster.network.ensure(pa, ACTIVATORS)
    cluster.see()
    plural, _, own = name.partition("/")
    held = cluster.kube.held[plural, NAMESPACE, own]
    if how == "deleted":
        del cluster.kube.held[plural, NAMESPACE, own]
    elif plural == "services":
        held["spec"] = {**held["spec"], "ports": []}
    else:
        held["endpoints"] = []
    assert cluster.see() == {"ns/cart-1"}
    await cluster.network.ensure(pa, ACTIVATORS)
    cluster.see()
    made = cluster.services | cluster.slices
    assert made[f"ns/{own}"].spec.ports if plural == "services" else made[f"ns/{own}"].endpoints
    calls = cluster.writes
    await cluster.network.ensure(pa, ACTIVATORS)
    assert cluster.writes == calls


async def test_a_deletion_that_is_seen_during_a_write_is_not_forgotten() -> None:
    cluster, pa = Cluster(), podautoscaler()
    await cluster.network.ensure(pa, ACTIVATORS)
    cluster.see()
    cluster.kube.held["endpointslices", NAMESPACE, "cart-1-activators"]["endpoints"] = []
    cluster.see()

    def meanwhile(call: str) -> None:
        """The old object's end is told while the write is on its way; what was written is deleted as well."""
        if call.startswith("apply endpointslices"):
            held = cluster.slices.pop("ns/cart-1-activators")
            cluster.network.changed(held)

    cluster.kube.fail = meanwhile  # type: ignore[assignment]
    await cluster.network.ensure(pa, ACTIVATORS)
    del cluster.kube.held["endpointslices", NAMESPACE, "cart-1-activators"]
    cluster.kube.fail = lambda call: None
    await cluster.network.ensure(pa, ACTIVATORS)
    assert ("endpointslices", NAMESPACE, "cart-1-activators") in cluster.kube.held


@pytest.mark.parametrize("owners", [[], [{"kind": "ServerlessService", "name": "cart-1", "uid": "sks", "controller": True}]])
async def test_a_service_of_another_is_left_alone_until_it_goes(owners: list[dict[str, Any]]) -> None:
    cluster, pa = Cluster(), podautoscaler()
    await cluster.kube.create(kinds.SERVICE, NAMESPACE, {"metadata": {"name": "cart-1", "ownerReferences": owners}, "spec": {"ports": []}})
    before = dict(cluster.kube.held)
    for _ in range(3):
        assert await cluster.network.ensure(pa, ACTIVATORS) is Path.FOREIGN
    assert cluster.kube.held == before
    await cluster.kube.delete(kinds.SERVICE, NAMESPACE, "cart-1")
    assert await cluster.network.ensure(pa, ACTIVATORS) is Path.READY


async def test_an_object_of_ours_that_lost_its_label_is_taken_up_again() -> None:
    cluster, pa = Cluster(), podautoscaler()
    await cluster.network.ensure(pa, ACTIVATORS)
    cluster.kube.held["services", NAMESPACE, "cart-1"]["metadata"]["labels"] = {}
    later = cluster.restarted()  # its cache selects by the label
    assert await later.ensure(pa, ACTIVATORS) is Path.READY
    assert cluster.kube.held["services", NAMESPACE, "cart-1"]["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "cloudstate-autoscaler"


async def test_a_write_that_failed_is_tried_again() -> None:
    cluster, pa = Cluster(), podautoscaler()
    cluster.kube.fail = lambda call: KubeError(500, "InternalError", "no") if "endpointslices" in call else None
    with pytest.raises(KubeError):
        await cluster.network.ensure(pa, ACTIVATORS)
    cluster.kube.fail = lambda call: None
    assert await cluster.network.ensure(pa, ACTIVATORS) is Path.READY
    assert ("endpointslices", NAMESPACE, "cart-1-activators") in cluster.kube.held


async def test_endpoints_are_written_too_where_an_ingress_reads_them() -> None:
    cluster, pa = Cluster(), podautoscaler()
    network = cluster.restarted(endpoints_too=True)
    for _ in range(2):
        assert await network.ensure(pa, ["10.0.0.2", "10.0.0.1"]) is Path.READY
    assert cluster.writes == 4
    written = cluster.kube.held["endpoints", pa.metadata.namespace, pa.metadata.name]
    assert [address["ip"] for address in written["subsets"][0]["addresses"]] == ["10.0.0.1", "10.0.0.2"]
    assert written["metadata"]["labels"]["endpointslice.kubernetes.io/skip-mirror"] == "true", "or it would be copied into a second slice"


@pytest.mark.parametrize("told", ["before they are written again", "after"])
async def test_endpoints_come_back_that_kubernetes_deletes_with_a_service_that_comes_back(told: str) -> None:
    """Its controller does so for every Service that is deleted; an ingress drops the hosts of one without endpoints."""
    cluster, pa = Cluster(), podautoscaler()
    network = cluster.restarted(endpoints_too=True)
    await network.ensure(pa, ACTIVATORS)
    cluster.see()
    writes = cluster.writes
    await network.ensure(pa, ACTIVATORS)
    assert cluster.writes == writes
    await cluster.kube.delete(kinds.SERVICE, NAMESPACE, "cart-1")
    if told == "after":
        assert cluster.see() == {"ns/cart-1"}
        await network.ensure(pa, ACTIVATORS)
    await cluster.kube.delete(kinds.ENDPOINTS, NAMESPACE, "cart-1")
    assert cluster.see() == {"ns/cart-1"}
    await network.ensure(pa, ACTIVATORS)
    assert {plural for plural, _, name in cluster.kube.held if name == "cart-1"} == {"services", "endpoints"}
