"""The leader in an API server's real order of things: news late, objects made again under their names, changes while a call is under way."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from autoscaler.cluster.leader import Leader
from autoscaler.cluster.revision import Revision
from cloudstate_core.kube import kinds, objects
from cloudstate_core.kube.api import KubeError, TooManyRequests
from cloudstate_core.shard_map import Entry, free_map

from .leading import SETTINGS, Watched, activator, deployment_body, leading, pa_body, pod_body, revision_body, settle, status_of
from .world import NAMESPACE

PATIENCE = 60.0


async def whole(kube: Watched, **annotations: str) -> None:
    """A revision with all that belongs to it, and an activator."""
    await activator(kube)
    await kube.begin(revision_body(), kinds.REVISION)
    await kube.begin(deployment_body(), kinds.DEPLOYMENT)
    await kube.begin(pa_body(**annotations))


def matched(kube: Watched) -> int:
    policy: objects.AutoscalingPolicy = kube.read(kinds.AUTOSCALING_POLICY, NAMESPACE, "p")
    return int(policy.status["matched"])


async def test_a_revision_is_taken_in_and_let_go() -> None:
    kube = Watched()
    await whole(kube)
    async with leading(kube) as leader:
        assert list(leader.revisions) == ["ns/cart-1"]
        assert status_of(kube).service_name == "cart-1"
        await kube.delete(kinds.POD_AUTOSCALER, NAMESPACE, "cart-1")
        await settle()
        assert not leader.revisions


@pytest.mark.parametrize("plural", ["services", "endpointslices", "endpoints"])
async def test_what_somebody_deletes_of_the_network_comes_back(plural: str) -> None:
    kube = Watched()
    await whole(kube)
    kind = {"services": kinds.SERVICE, "endpointslices": kinds.ENDPOINT_SLICE, "endpoints": kinds.ENDPOINTS}[plural]
    name = "cart-1-activators" if plural == "endpointslices" else "cart-1"
    async with leading(kube, dataclasses.replace(SETTINGS, endpoints=True)):
        assert (plural, NAMESPACE, name) in kube.held
        await kube.delete(kind, NAMESPACE, name)
        await settle()
        assert (plural, NAMESPACE, name) in kube.held


@pytest.mark.parametrize("plural", ["services", "endpointslices", "endpoints"])
async def test_what_is_made_and_deleted_between_two_lists_comes_back(plural: str) -> None:
    """No watch tells of it."""
    kube = Watched()
    kind = {"services": kinds.SERVICE, "endpointslices": kinds.ENDPOINT_SLICE, "endpoints": kinds.ENDPOINTS}[plural]
    name = "cart-1-activators" if plural == "endpointslices" else "cart-1"
    async with leading(kube, dataclasses.replace(SETTINGS, endpoints=True)):
        kube.held_back.add(plural)
        await whole(kube)
        await settle()
        await kube.delete(kind, NAMESPACE, name)
        assert (plural, NAMESPACE, name) not in kube.held
        kube.cut.add(plural)
        kube.let_go(plural)
        deadline = time.monotonic() + PATIENCE
        while (plural, NAMESPACE, name) not in kube.held:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)


# What is told ------------------------------------------------------------------------------------------------------------


async def test_a_policy_tells_its_use_although_that_came_back_before_its_status_was_seen() -> None:
    kube = Watched()
    await whole(kube, **{"cloudstate.io/policy": "p"})
    await kube.begin({"metadata": {"name": "p"}, "spec": {"scale": {"max": 3}}}, kinds.AUTOSCALING_POLICY)
    async with leading(kube):
        assert matched(kube) == 1
        kube.held_back.add("autoscalingpolicies")
        await kube.begin(pa_body(ours=False))
        await settle()
        assert matched(kube) == 0
        await kube.begin(pa_body(**{"cloudstate.io/policy": "p"}))
        await settle()
        kube.let_go("autoscalingpolicies")
        await settle()
        assert matched(kube) == 1
        calls = kube.calls["merge"]
        await settle()
        assert kube.calls["merge"] == calls, "and is at rest"


async def test_a_podautoscaler_that_is_made_again_does_not_get_its_predecessor_s_status() -> None:
    """It would be told as one that was up before its first pod is."""
    kube = Watched()
    await whole(kube)
    gate = kube.hold("create services/cart-1-private")
    async with leading(kube):
        assert kube.waiting == ["create services/cart-1-private"]
        kube.held_back.add("podautoscalers")
        await kube.delete(kinds.POD_AUTOSCALER, NAMESPACE, "cart-1")
        await kube.begin(pa_body())
        gate.set()
        await settle()
        assert status_of(kube) == objects.PodAutoscalerStatus()


# Revisions come and go ---------------------------------------------------------------------------------------------------


async def test_a_revision_that_leaves_the_class_while_it_is_taken_in_is_not_scaled() -> None:
    kube = Watched()
    await whole(kube)
    await kube.delete(kinds.REVISION, NAMESPACE, "cart-1")
    gate = kube.hold("get revisions/cart-1")
    async with leading(kube) as leader:
        assert kube.waiting == ["get revisions/cart-1"]
        await kube.begin(pa_body(ours=False))
        kube.fail = lambda call: KubeError(403, "Forbidden", "not ours") if call.startswith("merge podautoscalers") else None
        await settle()
        gate.set()
        await settle()
        assert not leader.revisions


async def test_the_timeout_is_the_revision_s_own_and_not_that_of_one_that_had_its_name() -> None:
    kube = Watched()
    await activator(kube)
    before = revision_body(timeout=10)
    before["metadata"]["uid"] = "an earlier one"
    await kube.begin(before, kinds.REVISION)
    async with leading(kube) as leader:
        kube.held_back.add("revisions")
        await kube.delete(kinds.REVISION, NAMESPACE, "cart-1")
        await kube.begin(revision_body(timeout=600), kinds.REVISION)
        await kube.begin(deployment_body(), kinds.DEPLOYMENT)
        await kube.begin(pa_body())
        await settle()
        service = leader._services.get("ns/cart")
        assert service is not None
        assert service.revisions["cart-1"].timeout_seconds == 600


async def test_nothing_is_remembered_of_a_revision_that_goes_while_its_network_is_written() -> None:
    kube = Watched()
    await whole(kube)
    gate = kube.hold("create services/cart-1-private")
    async with leading(kube) as leader:
        await kube.delete(kinds.POD_AUTOSCALER, NAMESPACE, "cart-1")
        await settle()
        gate.set()
        await settle()
        assert leader._podautoscalers.network._written == {}
        assert not leader.revisions


async def test_a_pod_that_is_given_another_label_is_no_pod_of_its_revision_any_more() -> None:
    kube = Watched()
    await whole(kube)
    await kube.begin(pod_body("a", "10.0.0.5"), kinds.POD)
    async with leading(kube) as leader:
        service = leader._services.get("ns/cart")
        assert service is not None
        assert list(service.placement.members) == ["a"]
        await kube.begin(pod_body("a", "10.0.0.5", revision="taken-out"), kinds.POD)
        await settle()
        assert not service.placement.members
        assert leader._caches.pods_of("ns/cart-1") == []
        await kube.delete(kinds.POD, NAMESPACE, "a")
        await settle()
        assert not leader._caches._pods_by_revision


# Terms begin and end -----------------------------------------------------------------------------------------------------


async def test_a_revision_whose_first_look_fails_has_not_been_looked_at() -> None:
    kube = Watched()
    await whole(kube)
    busy = [TooManyRequests(429, "TooManyRequests", "busy", retry_after=0.0)]
    kube.fail = lambda call: busy[0] if busy and call.startswith("create services/") else None
    async with leading(kube) as leader:
        ours = leader._podautoscalers
        assert ours.unseen == {"ns/cart-1"}
        assert not ours.all_seen.is_set()
        busy.clear()
        async with asyncio.timeout(PATIENCE):
            await ours.all_seen.wait()
        assert list(leader.revisions) == ["ns/cart-1"]


async def test_nothing_is_told_after_the_end_of_a_term() -> None:
    kube = Watched()
    await whole(kube)
    async with leading(kube) as leader:
        kube.fail = lambda call: TooManyRequests(429, "TooManyRequests", "busy") if call.startswith("create events/") else None
        (pa,) = leader._caches.podautoscalers.items.values()
        recorder = leader._podautoscalers._recorder
        recorder.tell(kinds.POD_AUTOSCALER, pa, "Scaled", "from 1 to 2")
        await settle()
        (telling,) = recorder._tasks
    assert telling.cancelled()


@contextlib.asynccontextmanager
async def term(kube: Watched) -> AsyncIterator[tuple[Leader, asyncio.Future[None]]]:
    """A whole term, once proxies and activators are let in."""
    leader = Leader(kube, dataclasses.replace(SETTINGS, port=0))  # type: ignore[arg-type]
    running = asyncio.ensure_future(leader.run())
    deadline = time.monotonic() + PATIENCE
    while kube.calls["apply"] == 0:  # the slice that leads to this leader
        assert time.monotonic() < deadline
        assert not running.done()
        await asyncio.sleep(0.01)
    yield leader, running
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_revisions_are_told_when_proxies_are_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[str]()
    monkeypatch.setattr(Revision, "let_in", lambda revision: told.append(revision.pa.metadata.name))
    kube = Watched()
    await whole(kube)
    async with term(kube):
        assert told == ["cart-1", "cart-1"], "when it is taken in, and again when they can come"


async def test_a_term_ends_once_another_leader_s_map_shows_that_it_does_not_know_what_is_kept() -> None:
    """As after somebody has deleted the Lease: no map of the service could ever be written again."""
    kube = Watched()
    await whole(kube, **{"cloudstate.io/paired": "v1", "cloudstate.io/shards": "4"})
    async with term(kube) as (leader, running):
        ours = free_map("ns/cart", "j", 4, 10)
        await leader._keep(ours)
        shards: list[dict[str, Any]] = [{"owner": "b"}, {}, {}, {}]
        theirs = {"spec": {"service": "ns/cart", "generation": 11, "journalID": "j", "shards": shards}}
        await kube.merge(kinds.SHARD_MAP, NAMESPACE, "cart", theirs)
        with pytest.raises(KubeError, match="another leader"):
            await leader._keep(ours.changed({0: Entry("a")}))
        async with asyncio.timeout(PATIENCE):
            await running
    assert kube.read(kinds.SHARD_MAP, NAMESPACE, "cart").spec.shards[0].owner == "b"
