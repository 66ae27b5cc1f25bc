"""Caches: complete after every fault, each change told once and in order, never a tight loop, never lost when the API server comes back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pathlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from cloudstate_core.kube import cache as cache_module
from cloudstate_core.kube import client as client_module
from cloudstate_core.kube.cache import Cache, difference
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.kinds import CONFIG_MAP
from cloudstate_core.kube.objects import ConfigMap, Metadata
from kn_cloudstate.ports import free_port

from .conftest import kubeconfig
from .fake_api import CUT, END, FakeApi, cut, refusing, status

PATIENCE = 60.0
"""Seconds until a state must be there."""


def item(name: str, version: int = 1, uid: str = "") -> ConfigMap:
    return ConfigMap(metadata=Metadata(name=name, uid=uid or f"u-{name}", resource_version=str(version)))


class Follower:
    """Builds its own copy from what a cache tells, and checks each step."""

    def __init__(self, cache: Cache[ConfigMap]) -> None:
        self.known: dict[str, ConfigMap] = {}
        self.told: list[tuple[str, str]] = []
        cache.listen(self.change)

    def change(self, before: ConfigMap | None, after: ConfigMap | None) -> None:
        changed = after or before
        assert changed is not None
        key = changed.metadata.key
        assert self.known.get(key) == before, "told with another object than the one known"
        assert after is None or before is None or after.metadata.resource_version != before.metadata.resource_version, "told twice"
        if after is None:
            del self.known[key]
        else:
            self.known[key] = after
        self.told.append((changed.metadata.name, "gone" if after is None else "new" if before is None else "changed"))


# The difference -----------------------------------------------------------------------------------------------------------


def test_a_relist_tells_new_changed_and_gone() -> None:
    same, old, gone = item("same"), item("changed"), item("gone")
    changed, new = item("changed", 2), item("new")
    known = {each.metadata.key: each for each in (same, old, gone)}
    assert difference(known, [same, changed, new]) == [(old, changed), (None, new), (gone, None)]


def test_an_object_made_again_under_its_name_is_gone_and_new() -> None:
    first, second = item("a", 1, uid="one"), item("a", 5, uid="two")
    assert difference({"a": first}, [second]) == [(first, None), (None, second)]


objects_by_name = st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(1, 3), st.integers(1, 2)))


@given(objects_by_name, objects_by_name)
def test_told_differences_turn_what_was_known_into_what_is_listed(known: dict[str, Any], listed: dict[str, Any]) -> None:
    before = {name: item(name, version, f"u{uid}") for name, (version, uid) in known.items()}
    after = {name: item(name, version, f"u{uid}") for name, (version, uid) in listed.items()}
    copy = dict(before)
    for old, new in difference(before, after.values()):
        assert old != new
        if old is not None:
            assert copy.pop(old.metadata.key) == old
        if new is not None:
            copy[new.metadata.key] = new
    assert {k: (v.metadata.uid, v.metadata.resource_version) for k, v in copy.items()} == {
        k: (v.metadata.uid, v.metadata.resource_version) for k, v in after.items()
    }


# Following ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry without long waits."""
    monkeypatch.setattr(cache_module, "RETRY_FIRST", 0.002)
    monkeypatch.setattr(cache_module, "RETRY_LAST", 0.02)


@pytest.fixture
async def cache(client: KubeClient, quick: None) -> Cache[ConfigMap]:
    """A cache that the test itself runs."""
    return Cache(client, CONFIG_MAP, "n")


@contextlib.asynccontextmanager
async def running(cache: Cache[ConfigMap]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(cache.run())
    try:
        async with asyncio.timeout(PATIENCE):
            await cache.synced.wait()
        yield
        assert not task.done(), "nothing may end a cache"
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(holds: Callable[[], object]) -> None:
    try:
        async with asyncio.timeout(PATIENCE):
            while not holds():
                await asyncio.sleep(0.002)
    except TimeoutError:
        pytest.fail("it never held")


def same(cache: Cache[ConfigMap], api: FakeApi) -> bool:
    def versions(items: Any) -> dict[str, str]:
        return {name: each["metadata"]["resourceVersion"] for name, each in items.items()}

    mine = {each.metadata.name: each.metadata.resource_version for each in cache.items.values()}
    return mine == versions(api.items["configmaps"])


async def test_it_lists_then_follows(api: FakeApi, cache: Cache[ConfigMap]) -> None:
    api.put("configmaps", "a", data={"x": "1"})
    follower = Follower(cache)
    async with running(cache):
        assert follower.told == [("a", "new")]
        api.put("configmaps", "b")
        api.put("configmaps", "a", data={"x": "2"})
        api.remove("configmaps", "b")
        await until(lambda: len(follower.told) == 4)
    assert follower.told[1:] == [("b", "new"), ("a", "changed"), ("b", "gone")]
    found = cache.get("n", "a")
    assert found is not None
    assert found.data == {"x": "2"}
    assert cache.get("n", "b") is None
    assert cache.relists == 1


async def test_a_listener_that_fails_stops_neither_others_nor_the_cache(
    api: FakeApi, cache: Cache[ConfigMap], caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: object, __: object) -> None:
        raise ValueError("my fault")

    cache.listen(fails)
    follower = Follower(cache)
    async with running(cache):
        api.put("configmaps", "a")
        api.put("configmaps", "b")
        await until(lambda: len(follower.told) == 2)
    assert caplog.text.count("a listener to configmaps failed") == 2


async def test_a_watch_goes_on_from_the_last_bookmark(api: FakeApi, cache: Cache[ConfigMap]) -> None:
    """Other kinds' changes age the version: without bookmarks each reconnection would be a list of everything."""
    async with running(cache):
        await until(lambda: api.watches)
        for n in range(5):
            api.put("leases", f"l{n}")
        api.bookmark()
        api.compact()
        api.send(END)
        await until(lambda: api.count("WATCH") == 2)
        api.put("configmaps", "a")
        await until(lambda: same(cache, api))
    assert [query["resourceVersion"] for verb, query in api.asked if verb == "WATCH"] == ["100", "105"]
    assert cache.relists == 1


@pytest.mark.parametrize("how", ["status", "event"])
async def test_a_version_too_old_leads_to_a_list_and_its_difference(
    api: FakeApi, cache: Cache[ConfigMap], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "abc":
        api.put("configmaps", name)
    follower = Follower(cache)
    async with running(cache):
        await until(lambda: api.watches)
        watch = next(iter(api.watches))
        api.watches.clear()  # from here on it hears nothing
        api.remove("configmaps", "a")
        api.put("configmaps", "b")
        api.put("configmaps", "d")
        api.remove("configmaps", "c")
        api.put("configmaps", "c")
        api.compact()
        if how == "event":
            watch.put_nowait(b'{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}\n')
        watch.put_nowait(CUT if how == "status" else END)
        await until(lambda: same(cache, api))
    assert sorted(follower.told[3:]) == [("a", "gone"), ("b", "changed"), ("c", "gone"), ("c", "new"), ("d", "new")]
    assert cache.relists == 2
    if how == "event":
        assert not caplog.records, "versions grow old: nothing to report"


async def test_a_connection_lost_in_the_middle_of_a_line_loses_and_repeats_nothing(api: FakeApi, cache: Cache[ConfigMap]) -> None:
    follower = Follower(cache)
    async with running(cache):
        for n in range(20):
            await until(lambda: api.watches)
            seen = len(follower.told)
            watch = next(iter(api.watches))
            api.watches.clear()
            api.put("configmaps", f"c{n}", data={"x": "y" * 100})
            line = api.history[-1][2]
            watch.put_nowait(line[: n * len(line) // 19])
            await asyncio.sleep(0.002)
            watch.put_nowait(CUT if n % 2 else END)
            await until(lambda s=seen: len(follower.told) > s)  # type: ignore[misc]
        assert same(cache, api)
    assert follower.told == [(f"c{n}", "new") for n in range(20)]
    assert cache.relists == 1


async def test_it_waits_as_long_as_a_busy_server_asks(api: FakeApi, cache: Cache[ConfigMap], monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(cache_module.asyncio, "sleep", note)
    api.faults["LIST"].append(refusing(429, "TooManyRequests", headers={"Retry-After": "17"}))
    api.faults["WATCH"] += [refusing(429, "TooManyRequests", headers={"Retry-After": "23"}) for _ in range(5)]
    task = asyncio.ensure_future(cache.run())
    async with asyncio.timeout(PATIENCE):
        while api.count("WATCH") < 6:
            await sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [wait for wait in waits if wait > 1] == [17, 23, 23, 23, 23, 23]
    assert cache.relists == 1, "being busy is no reason to ask for everything again"


async def test_a_watch_without_a_sign_of_life_is_left(api: FakeApi, cache: Cache[ConfigMap], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "WATCH_SILENCE", 0.2)
    async with running(cache):
        await until(lambda: api.watches)
        api.watches.clear()  # as if the connection led nowhere
        api.put("configmaps", "a")
        await until(lambda: same(cache, api))
    assert api.count("WATCH") >= 2
    assert cache.relists == 1


async def ends_at_once(request: web.Request) -> web.StreamResponse:
    return web.Response(text="")


async def garbage(request: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>welcome</html>\n")


async def gone_event(request: web.Request) -> web.StreamResponse:
    return web.Response(text='{"type":"ERROR","object":{"code":410,"message":"too old"}}\n')


@pytest.mark.parametrize(
    "answer",
    [ends_at_once, garbage, gone_event, refusing(410, "Expired"), refusing(403, "Forbidden"), refusing(500, "Internal")],
    ids=["ends at once", "garbage", "gone as event", "gone", "forbidden", "internal"],
)
async def test_no_answer_to_a_watch_makes_a_tight_loop(
    api: FakeApi, client: KubeClient, answer: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With waits from 50 ms that double, half a second has room for a few requests; one outage is one line in the log."""
    monkeypatch.setattr(cache_module, "RETRY_FIRST", 0.05)
    cache = Cache(client, CONFIG_MAP, "n")
    api.always["WATCH"] = answer
    with caplog.at_level(logging.INFO, "cloudstate_core.kube.cache"):
        async with running(cache):
            await asyncio.sleep(0.5)
            await until(lambda: caplog.records)
            asked = len(api.asked)
            del api.always["WATCH"]
            api.put("configmaps", "a")
            await until(lambda: same(cache, api) and api.watches)
            api.put("configmaps", "b")
            await until(lambda: same(cache, api))
    assert asked <= 14
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"], caplog.text
    assert "trying again until it works" in caplog.records[0].message
    assert "followed again" in caplog.records[1].message


async def test_a_watch_that_breaks_again_and_again_without_news_leads_to_a_list(api: FakeApi, cache: Cache[ConfigMap]) -> None:
    """Its version may be the trouble, for a server whose data was restored from a copy."""

    async def breaks(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        cut(request)
        return response

    api.put("configmaps", "a")
    api.faults["WATCH"] += [breaks, breaks, breaks]
    async with running(cache):
        api.put("configmaps", "b")
        await until(lambda: same(cache, api))
        await until(lambda: cache.relists == 2)


async def test_news_make_the_next_wait_short_again(api: FakeApi, cache: Cache[ConfigMap]) -> None:
    async with running(cache):
        await until(lambda: api.watches)
        for n in range(12):
            cache._delay = cache_module.RETRY_LAST  # as after an outage
            api.put("configmaps", f"c{n}")
            await until(lambda: same(cache, api))
            assert cache._delay == cache_module.RETRY_FIRST


async def test_an_api_server_that_is_away_for_long_is_found_again(
    api: FakeApi, quick: None, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes on from where it was: a list from every cache at once is the last thing that a starting server needs."""
    port = free_port()  # nobody's outgoing connection can take it meanwhile, not even the client's own
    await api.close()
    await api.start(port=port)
    client = await KubeClient.connect(kubeconfig(tmp_path, api.url))
    cache = Cache(client, CONFIG_MAP, "n")
    follower = Follower(cache)
    api.put("configmaps", "a")
    async with running(cache):
        await until(lambda: api.watches)
        await api.close()
        api.put("configmaps", "b")
        await asyncio.sleep(0.3)
        await api.start(port=port)
        await until(lambda: same(cache, api))
    await client.close()
    assert follower.told == [("a", "new"), ("b", "new")]
    assert cache.relists == 1
    assert [record.message.rpartition(": ")[2] for record in caplog.records][1:] == ["followed again"]


async def test_every_replica_waits_its_own_time(api: FakeApi, client: KubeClient) -> None:
    caches = [Cache(client, CONFIG_MAP, "n") for _ in range(20)]
    pauses = {cache._trouble(client_module.KubeError(0, "Watch", "broke")) for cache in caches}
    assert len(pauses) == 20
    assert all(cache_module.RETRY_FIRST / 2 <= pause <= cache_module.RETRY_FIRST for pause in pauses)


# Everything at once -------------------------------------------------------------------------------------------------------

Fault = Callable[[FakeApi, random.Random], None]


def lose_answer(verb: str) -> Fault:
    def inject(api: FakeApi, _: random.Random) -> None:
        async def lost(request: web.Request) -> web.StreamResponse:
            cut(request)
            return web.Response()

        api.faults[verb].append(lost)

    return inject


def refuse(verb: str, code: int) -> Fault:
    return lambda api, _: api.faults[verb].append(refusing(code, "Refused"))


def half_a_line(api: FakeApi, chance: random.Random) -> None:
    """One of the watches gets half of what changed, then nothing more."""
    for watch in list(api.watches):
        api.watches.discard(watch)
        api.put("configmaps", "half")
        line = api.history[-1][2]
        watch.put_nowait(line[: chance.randrange(len(line))])
        watch.put_nowait(chance.choice([CUT, END]))


def page_expires(api: FakeApi, _: random.Random) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return status(410, "Expired") if "continue" in request.query else await api._list(request)

    api.faults["LIST"].append(answer)


FAULTS: list[Fault] = [
    lambda api, _: api.compact(),
    lambda api, _: api.send(CUT),
    lambda api, _: api.send(END),
    lambda api, _: api.bookmark(),
    lambda api, _: api.send(b'{"type":"ERROR","object":{"code":410,"reason":"Expired","message":"too old"}}\n'),
    lambda api, _: api.send(b'{"type":"ERROR","object":{"code":500,"reason":"Internal","message":"etcd"}}\n'),
    lambda api, _: api.send(b"rubbish\n"),
    lambda api, _: api.faults["WATCH"].append(ends_at_once),
    half_a_line,
    page_expires,
    lose_answer("LIST"),
    lose_answer("WATCH"),
    refuse("LIST", 500),
    refuse("LIST", 429),
    refuse("WATCH", 410),
    refuse("WATCH", 429),
    refuse("WATCH", 500),
]


@pytest.mark.parametrize("seed", range(12))
async def test_after_any_faults_the_copy_is_the_servers(
    api: FakeApi, cache: Cache[ConfigMap], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(client_module, "LIMIT", 4)
    chance = random.Random(seed)
    follower = Follower(cache)
    async with running(cache):
        for _ in range(150):
            name = f"c{chance.randrange(10)}"
            if chance.random() < 0.3 and name in api.items["configmaps"]:
                api.remove("configmaps", name)
            else:
                api.put("configmaps", name, data={"x": "y" * chance.choice([0, 10, 100_000])})
            if chance.random() < 0.2:
                chance.choice(FAULTS)(api, chance)
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() * 0.01)
        await until(lambda: same(cache, api))
        assert follower.known == cache.items
