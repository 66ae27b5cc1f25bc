"""Calls: what is sent, what each refusal becomes, that connections are given back, and that no answer can break a control loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest
from aiohttp import web

from cloudstate_core.kube import api as kube_api
from cloudstate_core.kube import client as client_module
from cloudstate_core.kube import kinds, objects
from cloudstate_core.kube.client import KubeClient

from .fake_api import END, Answer, FakeApi, refusing

CONFIG = kinds.CONFIG_MAP


PATIENCE = 60.0
"""Seconds until a state must be there."""


def text(body: str, code: int = 200) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(text=body, status=code)

    return answer


def test_paths_of_collections_objects_and_parts() -> None:
    assert kinds.POD.path() == "/api/v1/pods"
    assert kinds.POD.path("a", "b", "status") == "/api/v1/namespaces/a/pods/b/status"
    assert kinds.LEASE.path("a") == "/apis/coordination.k8s.io/v1/namespaces/a/leases"
    assert kinds.NAMESPACE.path("", "a") == "/api/v1/namespaces/a"


@pytest.mark.parametrize(
    ("code", "kind"),
    [(404, kube_api.NotFound), (409, kube_api.Conflict), (410, kube_api.Gone), (429, kube_api.TooManyRequests), (500, kube_api.KubeError)],
)
async def test_each_status_is_its_error(api: FakeApi, client: KubeClient, code: int, kind: type[kube_api.KubeError]) -> None:
    api.faults["GET"].append(refusing(code, "Why", "because"))
    with pytest.raises(kube_api.KubeError, match="Why: GET /api/v1/namespaces/n/configmaps/a: because") as caught:
        await client.get(CONFIG, "n", "a")
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.reason, caught.value.retry_after) == (code, "Why", 0)


async def test_the_wait_that_the_server_asks_for_is_kept(api: FakeApi, client: KubeClient) -> None:
    api.faults["GET"] += [
        refusing(429, "TooManyRequests", headers={"Retry-After": "7"}),
        refusing(429, "TooManyRequests", details={"retryAfterSeconds": 3}),
        refusing(503, "Busy", headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
    ]
    waits = []
    for _ in range(3):
        with pytest.raises(kube_api.KubeError) as caught:
            await client.get(CONFIG, "n", "a")
        waits.append(caught.value.retry_after)
    assert waits == [7, 3, 0]


@pytest.mark.parametrize("body", ["<html>Bad gateway</html>", "", "[1", '{"code": "x"}', "\xff" * 300])
async def test_a_refusal_that_is_no_status_tells_its_text(api: FakeApi, client: KubeClient, body: str) -> None:
    api.faults["GET"].append(text(body, 502))
    with pytest.raises(kube_api.KubeError) as caught:
        await client.get(CONFIG, "n", "a")
    assert caught.value.status == 502
    assert body[:90] in str(caught.value)


@pytest.mark.parametrize("body", ["<html>hello</html>", "", '{"metadata": 1}', "[]"])
async def test_an_answer_that_is_not_the_apis_is_an_error_like_others(api: FakeApi, client: KubeClient, body: str) -> None:
    api.faults["GET"].append(text(body))
    with pytest.raises(kube_api.KubeError, match="configmaps"):
        await client.get(CONFIG, "n", "a")
    api.faults["LIST"].append(text(body))
    with pytest.raises(kube_api.KubeError, match="configmaps"):
        await client.list(CONFIG, "n")
    api.faults["WATCH"].append(text(body + "\n" if body else '{"type": "ADDED"}\n'))
    with pytest.raises(kube_api.KubeError, match="configmaps"):
        await anext(client.watch(CONFIG, "100", "n"))


async def test_no_server_is_an_error_without_status(api: FakeApi, client: KubeClient) -> None:
    await client.list(CONFIG, "n")
    await api.close()
    with pytest.raises(kube_api.KubeError) as caught:
        await client.get(CONFIG, "n", "a")
    assert (caught.value.status, caught.value.reason) == (0, "Connection")
    await api.start()


async def test_a_call_has_a_limit(api: FakeApi, client: KubeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "CALL_LIMIT", 0.05)
    released = asyncio.Event()

    async def slow(_: web.Request) -> web.StreamResponse:
        await released.wait()
        return web.Response()

    api.faults["GET"].append(slow)
    with pytest.raises(kube_api.KubeError, match="Timeout"):
        await client.get(CONFIG, "n", "a")
    released.set()


async def test_a_closed_client_refuses(client: KubeClient) -> None:
    await client.close()
    with pytest.raises(kube_api.KubeError, match="closed"):
        await client.get(CONFIG, "n", "a")


async def test_what_is_not_there_is_deleted_already(api: FakeApi, client: KubeClient) -> None:
    api.put("configmaps", "a", data={})
    await client.delete(CONFIG, "n", "a")
    await client.delete(CONFIG, "n", "a")
    assert api.count("DELETE") == 2
    api.faults["DELETE"].append(refusing(403, "Forbidden"))
    with pytest.raises(kube_api.KubeError, match="Forbidden"):
        await client.delete(CONFIG, "n", "a")


async def test_a_list_comes_in_pages(api: FakeApi, client: KubeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "LIMIT", 3)
    for n in range(8):
        api.put("configmaps", f"c{n}", data={"n": str(n)})
    found, version = await client.list(CONFIG, "n", labels="app=a,tier in (x, y)", fields="metadata.name!=b")
    assert [item.data["n"] for item in found] == list("01234567")
    assert version == str(api.version)
    queries = [query for verb, query in api.asked if verb == "LIST"]
    assert [query.pop("continue", None) for query in queries] == [None, f"{version}:3", f"{version}:6"]
    assert all(q == {"limit": "3", "labelSelector": "app=a,tier in (x, y)", "fieldSelector": "metadata.name!=b"} for q in queries)


async def test_a_list_whose_pages_grew_too_old_starts_anew(api: FakeApi, client: KubeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """And then comes whole, so that it cannot happen again."""
    monkeypatch.setattr(client_module, "LIMIT", 1)
    api.put("configmaps", "a")
    api.put("configmaps", "b")

    async def changed_meanwhile(request: web.Request) -> web.StreamResponse:
        answer = await api._list(request)
        api.put("configmaps", "c")
        api.compact()
        return answer

    api.faults["LIST"].append(changed_meanwhile)
    found, version = await client.list(CONFIG, "n")
    assert [item.metadata.name for item in found] == ["a", "b", "c"]
    assert version == str(api.version)
    assert [sorted(query) for _, query in api.asked] == [["limit"], ["continue", "limit"], []]


async def test_null_fields_are_absent_ones(api: FakeApi, client: KubeClient) -> None:
    """Go writes a slice without endpoints so."""
    api.put("endpointslices", "a", endpoints=None, ports=None, metadata={"labels": None})
    api.put("endpointslices", "b", endpoints=[{"addresses": ["::1"], "conditions": {"ready": None}}], ports=None)
    found, _ = await client.list(kinds.ENDPOINT_SLICE, "n")
    assert [[e.addresses for e in item.endpoints] for item in found] == [[], [("::1",)]]
    assert found[0].metadata.labels == {}
    assert (await client.get(kinds.ENDPOINT_SLICE, "n", "a")).ports == ()


async def test_an_object_that_cannot_be_read_hides_no_others(
    api: FakeApi, client: KubeClient, caplog: pytest.LogCaptureFixture
) -> None:
    api.put("configmaps", "bad", data="not a map")
    api.put("configmaps", "good", data={"a": "b"})
    found, version = await client.list(CONFIG, "n")
    assert [item.metadata.name for item in found] == ["good"]
    assert "n/bad is left out" in caplog.text
    watch = client.watch(CONFIG, version, "n")
    api.put("configmaps", "good", data=7)
    api.put("configmaps", "good", data={"a": "c"})
    assert await anext(watch) == ("DELETED", objects.ConfigMap(metadata=ANY_METADATA))
    kind, item = await anext(watch)
    assert (kind, item.data) == ("MODIFIED", {"a": "c"})
    await watch.aclose()


class _Any:
    def __eq__(self, other: object) -> bool:
        return isinstance(other, objects.Metadata) and other.key == "n/good"


ANY_METADATA: Any = _Any()


async def test_a_watch_tells_changes_and_bookmarks_until_it_ends(api: FakeApi, client: KubeClient) -> None:
    api.put("configmaps", "a", data={"x": "1"})
    start = str(api.version)
    api.put("configmaps", "a", data={"x": "2"})
    api.put("leases", "other")
    api.remove("configmaps", "a")
    seen = []
    async for kind, item in client.watch(CONFIG, start, "n"):
        seen.append((kind, item.metadata.name, item.data, item.metadata.resource_version))
        if kind == "DELETED":
            api.bookmark()
            api.send(END)
    assert seen == [
        ("MODIFIED", "a", {"x": "2"}, "102"),
        ("DELETED", "a", {"x": "2"}, "104"),
        ("BOOKMARK", "", {}, "104"),
    ]
    assert api.asked[0][1] == {"watch": "1", "resourceVersion": start, "allowWatchBookmarks": "true", "timeoutSeconds": "60"}


async def test_a_line_of_any_length_and_lines_in_pieces(api: FakeApi, client: KubeClient) -> None:
    watch = client.watch(CONFIG, str(api.version), "n")
    api.put("configmaps", "huge", data={"x": "y" * 5_000_000})
    _, item = await anext(watch)
    assert len(item.data["x"]) == 5_000_000
    line = json.dumps({"type": "ADDED", "object": {"metadata": {"name": "ü"}}}, ensure_ascii=False).encode() + b"\n"
    pieces = asyncio.get_running_loop().create_task(trickle(api, line + b"\n" + line))
    assert [(await anext(watch))[1].metadata.name for _ in range(2)] == ["ü", "ü"]
    await pieces
    await watch.aclose()


async def trickle(api: FakeApi, data: bytes) -> None:
    for n in range(len(data)):
        api.send(data[n : n + 1])
        await asyncio.sleep(0)


async def test_connections_are_given_back_whatever_the_answer(api: FakeApi, client: KubeClient) -> None:
    api.put("configmaps", "a")
    for code in (400, 404, 409, 410, 429, 500):
        api.faults["GET"].append(refusing(code, "No", "x" * 100_000))
        with pytest.raises(kube_api.KubeError):
            await client.get(CONFIG, "n", "a")
        await client.get(CONFIG, "n", "a")
        await client.list(CONFIG, "n")
        api.faults["WATCH"].append(refusing(code, "No"))
        with pytest.raises(kube_api.KubeError):
            await anext(client.watch(CONFIG, "1", "n"))
    assert len(api.peers) == 1


async def test_a_watch_that_nobody_reads_any_more_is_closed(api: FakeApi, client: KubeClient) -> None:
    api.put("configmaps", "a")
    async with contextlib.aclosing(client.watch(CONFIG, "100", "n")) as watch:
        await anext(watch)
    await until_closed(api)


async def test_a_cancelled_watch_is_closed(api: FakeApi, client: KubeClient) -> None:
    async def follow() -> None:
        async for _ in client.watch(CONFIG, "100", "n"):
            pass

    task = asyncio.ensure_future(follow())
    async with asyncio.timeout(PATIENCE):
        while not api.watches:
            await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until_closed(api)


async def until_closed(api: FakeApi) -> None:
    """Until the server sees the watch's connection closed."""
    async with asyncio.timeout(PATIENCE):
        while not all(transport.is_closing() for transport in api.peers):  # type: ignore[attr-defined]
            await asyncio.sleep(0.001)


async def test_many_watches_and_a_call_at_once(api: FakeApi, client: KubeClient) -> None:
    """Watches hold connections for good: no pool limit may keep a call waiting."""
    watches = [client.watch(CONFIG, "100", "n") for _ in range(150)]
    api.put("configmaps", "a")
    await asyncio.gather(*(anext(watch) for watch in watches))
    async with asyncio.timeout(PATIENCE):
        await client.get(CONFIG, "n", "a")
    for watch in watches:
        await watch.aclose()


async def test_applied_and_merged_bodies(api: FakeApi, client: KubeClient) -> None:
    sent: list[tuple[str, dict[str, str], str, Any]] = []

    async def keep(request: web.Request) -> web.StreamResponse:
        sent.append((request.path, dict(request.query), request.content_type, await request.json()))
        return web.json_response({"metadata": {"name": "a"}})

    api.always["PATCH"] = keep
    path = "/api/v1/namespaces/n/configmaps/a"
    await client.apply(CONFIG, "n", "a", {"metadata": {"labels": {"x": "y"}}, "data": {"k": "v"}}, "me")
    await client.merge(CONFIG, "n", "a", {"data": {"k": None}})
    whole = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"labels": {"x": "y"}, "name": "a"}, "data": {"k": "v"}}
    assert sent == [
        (path, {"fieldManager": "me", "force": "true"}, "application/apply-patch+yaml", whole),
        (path, {}, "application/merge-patch+json", {"data": {"k": None}}),
    ]
