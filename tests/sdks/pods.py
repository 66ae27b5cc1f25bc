"""Proxies as pods: one leader and one journal for all, in this process, and a function behind them."""

from __future__ import annotations

import asyncio
import signal
import time

from autoscaler.coordination import CoordinationServer
from cloudstate_core.journal.memory import MemoryJournal
from cloudstate_core.journal.server import JournalServer
from tests.stateful_proxy.processes import NAME, SHARDS, ProxyProcess


class Pods:
    """Started and stopped as a whole; pods are added one by one."""

    def __init__(self, function: int) -> None:
        self.function = function
        self.proxies: list[ProxyProcess] = []

    async def start(self) -> Pods:
        """Start leader and journal."""
        store = MemoryJournal(NAME, SHARDS)
        self.journal = JournalServer(lambda keyspace, count: store)
        self.journal_port = await self.journal.start("127.0.0.1", 0)
        self.leader = CoordinationServer(time.monotonic)
        self.leader.add_service(NAME, SHARDS, ["service"], "r1")
        self.leader_port = await self.leader.start("127.0.0.1", 0)
        self.task = asyncio.create_task(self.leader.run())
        return self

    async def add(self) -> ProxyProcess:
        """One more pod, ready."""
        proxy = ProxyProcess(
            self.function,
            "auto",
            CLOUDSTATE_JOURNAL=f"remote:127.0.0.1:{self.journal_port}",
            CLOUDSTATE_COORDINATOR=f"127.0.0.1:{self.leader_port}",
            CLOUDSTATE_POD=f"pod-{len(self.proxies)}",
            CLOUDSTATE_REVISION="r1",
        )
        self.proxies.append(proxy)
        return await proxy.start()

    async def stop(self) -> None:
        """End everything but the function."""
        for proxy in self.proxies:
            await proxy.channel.close()
            await proxy.end(signal.SIGKILL)
        self.task.cancel()
        await self.leader.stop()
        await self.journal.stop()
