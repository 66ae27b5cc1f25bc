"""Proxies with one replicated counter behind them, on a network that breaks: they go on as far as they may, and agree when it is whole again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from tests.stateful_proxy.crdt.function import CrdtCluster, Watcher, add
from tests.stateful_proxy.processes import BACKENDS, ProxyProcess, until

PROXIES, CHANGES = 3, 60


@pytest.fixture(params=BACKENDS)
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[CrdtCluster]:
    made = CrdtCluster(request.param)
    await made.start()
    yield made
    await made.stop()
    assert made.function.broken == []


async def watched(cluster: CrdtCluster) -> tuple[list[ProxyProcess], list[Watcher]]:
    """Proxies, and who watches at each, after a first change that all have seen."""
    proxies = [await cluster.proxy(f"pod-{number}") for number in range(PROXIES)]
    watchers = [Watcher(proxy, "k") for proxy in proxies]
    await add(proxies[0], "k", 1)
    await agree(watchers, 1)
    return proxies, watchers


async def agree(watchers: list[Watcher], total: int) -> None:
    await until(lambda: all(watcher.last == total for watcher in watchers), f"everybody sees {total}")


async def count(proxy: ProxyProcess) -> bool:
    """One more; True when that was acknowledged."""
    try:
        await add(proxy, "k", 1)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False
    return True


async def test_proxies_that_do_not_hear_each_other_go_on_and_agree_afterwards(cluster: CrdtCluster) -> None:
    proxies, watchers = await watched(cluster)
    for link in cluster.to.values():
        link.cut()
    assert all(await asyncio.gather(*(count(proxies[number % PROXIES]) for number in range(CHANGES))))
    for link in cluster.to.values():
        link.mend()
    await agree(watchers, 1 + CHANGES)
    assert await add(proxies[1], "k", 1) == CHANGES + 2
    await agree(watchers, CHANGES + 2)
    for watcher in watchers:
        assert max(watcher.seen) == CHANGES + 2, "nothing is counted twice"
        watcher.stop()


async def test_a_proxy_that_one_half_of_the_others_hears_is_heard_by_all_in_the_end(cluster: CrdtCluster) -> None:
    proxies, watchers = await watched(cluster)
    cluster.to["pod-2"].cut()
    for number in range(CHANGES):
        assert await count(proxies[number % PROXIES])
    cluster.to["pod-2"].mend()
    await agree(watchers, 1 + CHANGES)
    for watcher in watchers:
        assert list(watcher.seen) == sorted(watcher.seen), "what it shows never goes back"
        watcher.stop()


async def test_a_proxy_that_is_cut_off_from_everything_promises_nothing_and_loses_nothing(cluster: CrdtCluster) -> None:
    proxies, watchers = await watched(cluster)
    cluster.to["pod-0"].cut()
    cluster.to_journal["pod-0"].cut()
    alone = asyncio.gather(*(count(proxies[0]) for _ in range(5)))
    assert all(await asyncio.gather(*(count(proxies[1 + number % 2]) for number in range(CHANGES))))
    await until(lambda: all(watcher.last >= 1 + CHANGES for watcher in watchers[1:]), "the others go on")
    assert not any(await alone), "nothing is acknowledged that the journal does not have"
    cluster.to["pod-0"].mend()
    cluster.to_journal["pod-0"].mend()
    await agree(watchers, 1 + CHANGES + 5)
    assert await add(proxies[0], "k", 1) == CHANGES + 7
    await agree(watchers, CHANGES + 7)
    for watcher in watchers:
        watcher.stop()
