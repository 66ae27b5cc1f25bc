"""Real proxies with one replicated counter behind them: that they agree, and what survives."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import grpc
import pytest

from tests.stateful_proxy.crdt.function import CrdtCluster, Watcher, add
from tests.stateful_proxy.processes import BACKENDS, PATIENCE, until


@pytest.fixture(params=BACKENDS)
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[CrdtCluster]:
    made = CrdtCluster(request.param)
    await made.start()
    yield made
    await made.stop()
    assert made.function.broken == []


async def test_three_proxies_show_every_change(cluster: CrdtCluster) -> None:
    proxies = [await cluster.proxy(f"pod-{n}") for n in range(3)]
    watchers = [Watcher(proxy, "k") for proxy in proxies]
    for total in range(1, 31):
        assert await add(proxies[total % 3], "k", 1) == total
        await until(lambda total=total: all(total in w.seen for w in watchers), f"everybody has seen change {total}")  # type: ignore[misc]
    for watcher in watchers:
        assert list(watcher.seen) == sorted(watcher.seen), "what it shows never goes back"
        watcher.stop()


async def test_all_change_it_at_the_same_time_and_nothing_is_lost(cluster: CrdtCluster) -> None:
    proxies = [await cluster.proxy(f"pod-{n}") for n in range(3)]
    watchers = [Watcher(proxy, "k") for proxy in proxies]
    await asyncio.gather(*(add(proxies[n % 3], "k", 1) for n in range(300)))
    await until(lambda: all(w.last == 300 for w in watchers), "everybody has seen all of it")
    for watcher in watchers:
        assert max(watcher.seen) == 300, "nothing is counted twice"
        watcher.stop()


async def test_a_value_survives_crashes_and_the_time_without_any_proxy(cluster: CrdtCluster) -> None:
    proxies = [await cluster.proxy(f"pod-{n}") for n in range(2)]
    for number in range(20):
        await add(proxies[number % 2], "k", 1)
    await proxies[0].end(signal.SIGKILL)
    assert await add(proxies[1], "k", 1) in (21, 20), "a change that was told before the crash is in the journal"
    await proxies[1].end(signal.SIGKILL)
    alone = await cluster.proxy("pod-3")
    assert await add(alone, "k", 0) == 21
    assert await add(alone, "k", 1) == 22


async def test_a_proxy_that_stops_ends_its_streams_in_good_order(cluster: CrdtCluster) -> None:
    proxies = [await cluster.proxy(f"pod-{n}") for n in range(2)]
    watcher = Watcher(proxies[0], "k")
    await add(proxies[0], "k", 5)
    await until(lambda: watcher.last == 5, "it watches")
    assert await proxies[0].end() == 0
    await asyncio.wait_for(watcher.task, PATIENCE)
    assert await watcher.call.code() is grpc.StatusCode.OK
    assert await add(proxies[1], "k", 0) == 5


async def test_a_function_that_restarts_finds_its_value_again(cluster: CrdtCluster) -> None:
    proxy, other = [await cluster.proxy(f"pod-{n}") for n in range(2)]
    assert await add(proxy, "k", 5) == 5
    await cluster.function.stop()
    await proxy.ready(503)
    waiting = asyncio.create_task(add(proxy, "k", 1))
    await until(lambda: "cloudstate_commands_waiting 1" in proxy.page("/metrics")[1], "the command waits")
    await cluster.function.start()
    assert await waiting == 6
    assert await add(other, "k", 1) in (6, 7), "the other may not have been told yet; nothing is lost"
    await until(lambda: proxy.page("/ready")[0] == 200, "it serves again")
    assert await add(proxy, "k", 1) in (7, 8)
    watcher = Watcher(proxy, "k")
    await until(lambda: watcher.last == 8, "all of it is there")
    watcher.stop()
