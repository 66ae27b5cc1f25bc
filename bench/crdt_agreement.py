"""How soon proxies agree on a replicated value: from an acknowledged change to the last of three that shows it."""

from __future__ import annotations

import asyncio
import random
import time

from kn_cloudstate.results import Row
from tests.stateful_proxy.crdt.function import CrdtCluster, Watcher, add
from tests.stateful_proxy.processes import until

PROXIES, CHANGES, BAR = 3, 200, 200.0
"""`BAR` in milliseconds, at the 99th percentile."""


async def _delays(backend: str) -> list[float]:
    """Seconds that each change took, in ascending order."""
    cluster, delays, total = CrdtCluster(backend), [], 0
    await cluster.start()
    try:
        proxies = [await cluster.proxy(f"pod-{number}") for number in range(PROXIES)]
        watchers = [Watcher(proxy, "k") for proxy in proxies]
        for number in range(1, CHANGES + 1):
            await add(random.choice(proxies), "k", 1)
            told, total = time.monotonic(), total + 1
            await until(lambda total=total: all(total in watcher.seen for watcher in watchers), f"everybody has seen change {number}")
            delays.append(max(0.0, *(watcher.seen[total] - told for watcher in watchers)))
        for watcher in watchers:
            watcher.stop()
    finally:
        await cluster.stop()
    return sorted(delays)


def rows(backend: str) -> list[Row]:
    """The 99th percentile, on a journal in memory that a server holds."""
    delays = asyncio.run(_delays(backend))
    p99 = delays[int(len(delays) * 0.99) - 1] * 1_000
    return [Row(f"replicated value: {PROXIES} proxies agree, p99", p99, "ms", bar=BAR)]
