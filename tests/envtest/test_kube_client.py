"""The Kubernetes client against a real API server: every kind of call."""

from __future__ import annotations

import contextlib
import secrets

import pytest

from cloudstate_core.kube import client as client_module
from cloudstate_core.kube import kinds, objects
from cloudstate_core.kube.api import Conflict, KubeError, NotFound
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.events import Recorder
from envtest.steps import CONFIG, eventually, named


async def test_objects_are_made_read_replaced_and_deleted(kube: KubeClient, namespace: str) -> None:
    made = await kube.create(CONFIG, namespace, named("a", data={"x": "1"}))
    with pytest.raises(Conflict, match="AlreadyExists"):
        await kube.create(CONFIG, namespace, named("a"))
    assert await kube.get(CONFIG, namespace, "a") == made
    version = {"resourceVersion": made.metadata.resource_version}
    changed = await kube.replace(CONFIG, namespace, "a", named("a", metadata=version, data={"y": "2"}))
    assert changed.data == {"y": "2"}
    with pytest.raises(Conflict, match="object has been modified"):
        await kube.replace(CONFIG, namespace, "a", named("a", metadata=version, data={}))
    await kube.delete(CONFIG, namespace, "a")
    await kube.delete(CONFIG, namespace, "a")
    with pytest.raises(NotFound, match="NotFound"):
        await kube.get(CONFIG, namespace, "a")
    with pytest.raises(KubeError) as caught:
        await kube.create(CONFIG, namespace, named("Not A Name"))
    assert (caught.value.status, caught.value.reason) == (422, "Invalid")


async def test_applied_fields_belong_to_their_manager(kube: KubeClient, namespace: str) -> None:
    await kube.apply(CONFIG, namespace, "a", {"metadata": {"labels": {"by": "one"}}, "data": {"one": "1", "shared": "1"}}, "one")
    await kube.apply(CONFIG, namespace, "a", {"data": {"two": "2"}}, "two")
    with pytest.raises(Conflict, match="shared"):
        await kube.apply(CONFIG, namespace, "a", {"data": {"two": "2", "shared": "2"}}, "two", force=False)
    taken = await kube.apply(CONFIG, namespace, "a", {"data": {"two": "2", "shared": "2"}}, "two")
    assert taken.data == {"one": "1", "shared": "2", "two": "2"}
    left = await kube.apply(CONFIG, namespace, "a", {"data": {}}, "one")
    assert (left.data, left.metadata.labels) == ({"shared": "2", "two": "2"}, {})


async def test_merged_fields_change_and_go(kube: KubeClient, namespace: str) -> None:
    await kube.create(CONFIG, namespace, named("a", data={"x": "1", "y": "1"}))
    merged = await kube.merge(CONFIG, namespace, "a", {"data": {"x": None, "z": "2"}})
    assert merged.data == {"y": "1", "z": "2"}


async def test_replicas_are_set_through_the_scale_part(kube: KubeClient, namespace: str) -> None:
    pod = {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "dev.local/none"}]}}
    await kube.create(kinds.DEPLOYMENT, namespace, named("a", spec={"selector": {"matchLabels": {"app": "a"}}, "template": pod}))
    await kube.scale(kinds.DEPLOYMENT, namespace, "a", 7)
    scaled = await kube.get(kinds.DEPLOYMENT, namespace, "a")
    assert scaled.spec.replicas == 7
    with pytest.raises(NotFound):
        await kube.scale(kinds.DEPLOYMENT, namespace, "b", 1)


async def test_status_is_written_by_itself(kube: KubeClient, namespace: str) -> None:
    spec = {"protocolType": "h2c", "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}
    made = await kube.create(kinds.POD_AUTOSCALER, namespace, named("a", spec=spec, status={"desiredScale": 9}))
    assert made.status.desired_scale is None
    status = {"serviceName": "a", "metricsServiceName": "b", "desiredScale": 3, "conditions": [{"type": "Ready", "status": "True"}]}
    body = {"spec": {"protocolType": "http1"}, "status": status}
    for changed in (
        await kube.merge(kinds.POD_AUTOSCALER, namespace, "a", body, "status"),
        await kube.apply(kinds.POD_AUTOSCALER, namespace, "a", {"status": status}, "me", "status"),
    ):
        assert (changed.status.desired_scale, changed.spec.protocol_type) == (3, "h2c")
        assert changed.metadata.generation == made.metadata.generation
        ready = objects.condition(changed.status.conditions, "Ready")
        assert ready is not None
        assert ready.status == "True"


async def test_lists_come_in_pages_and_by_selectors(kube: KubeClient, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "LIMIT", 5)
    for n in range(12):
        await kube.create(CONFIG, namespace, named(f"c{n:02}", metadata={"labels": {"odd": str(n % 2), "third": str(n % 3)}}))
    found, version = await kube.list(CONFIG, namespace, labels="odd=1,third in (0, 1),!none")
    assert [item.metadata.name for item in found] == ["c01", "c03", "c07", "c09"]
    found, _ = await kube.list(CONFIG, namespace)
    assert [item.metadata.name for item in found if item.metadata.name != "kube-root-ca.crt"] == [f"c{n:02}" for n in range(12)]
    found, _ = await kube.list(CONFIG, namespace, fields="metadata.name=c04")
    assert [item.metadata.name for item in found] == ["c04"]
    assert version
    with pytest.raises(KubeError, match="unable to parse"):
        await kube.list(CONFIG, namespace, labels="!!")


async def test_a_watch_tells_what_enters_changes_and_leaves_a_selection(kube: KubeClient, namespace: str) -> None:
    _, version = await kube.list(CONFIG, namespace)
    await kube.create(CONFIG, namespace, named("other", data={}))
    await kube.create(CONFIG, namespace, named("a", metadata={"labels": {"in": "yes"}}))
    await kube.merge(CONFIG, namespace, "a", {"data": {"x": "1"}})
    await kube.merge(CONFIG, namespace, "a", {"metadata": {"labels": {"in": None}}})
    await kube.merge(CONFIG, namespace, "a", {"metadata": {"labels": {"in": "yes"}}})
    await kube.delete(CONFIG, namespace, "a")
    seen: list[tuple[str, dict[str, str]]] = []
    async with contextlib.aclosing(kube.watch(CONFIG, version, namespace, labels="in=yes")) as watch:
        async for kind, item in watch:
            assert item.metadata.name == "a"
            seen.append((kind, item.data))
            if len(seen) == 5:
                break
    assert seen == [("ADDED", {}), ("MODIFIED", {"x": "1"}), ("DELETED", {"x": "1"}), ("ADDED", {"x": "1"}), ("DELETED", {"x": "1"})]


async def test_a_watch_learns_by_bookmarks_that_it_is_up_to_date(kube: KubeClient, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a kind whose empty objects are full of nulls; changes elsewhere move the version on."""
    monkeypatch.setattr(client_module, "WATCH_SECONDS", 15)  # a bookmark comes two seconds before the end
    _, version = await kube.list(kinds.ENDPOINT_SLICE, namespace)
    await kube.create(kinds.ENDPOINT_SLICE, namespace, named("a", addressType="IPv4", endpoints=[]))
    elsewhere = f"e-{secrets.token_hex(4)}"
    seen: list[tuple[str, int]] = []
    async for kind, item in kube.watch(kinds.ENDPOINT_SLICE, version, namespace):
        if not seen:  # it has begun
            await kube.create(kinds.ENDPOINT_SLICE, "default", named(elsewhere, addressType="IPv4", endpoints=[]))
            await kube.delete(kinds.ENDPOINT_SLICE, "default", elsewhere)
        seen.append((kind, int(item.metadata.resource_version)))
    assert seen[0][0] == "ADDED"
    assert {kind for kind, _ in seen[1:]} == {"BOOKMARK"}
    assert seen[-1][1] > seen[0][1]
    assert (await kube.get(kinds.ENDPOINT_SLICE, namespace, "a")).endpoints == ()


async def test_events_are_taken_whatever_they_say(kube: KubeClient, namespace: str) -> None:
    recorder = Recorder(kube, "autoscaler", "p" * 253)
    name = "x" * 199 + "-" + "y" * 50
    about = await kube.create(CONFIG, namespace, named(name))
    recorder.tell(CONFIG, about, "Grown", "ü" * 2000, warning=True)

    async def look() -> int:
        return len((await kube.list(kinds.EVENT, namespace, fields=f"regarding.uid={about.metadata.uid}"))[0])

    assert await eventually(look, bool, "the event") == 1
