"""Events told of many objects at once: few writes are under way, and a server that is too busy costs time, not events."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from cloudstate_core.kube import events
from cloudstate_core.kube.api import KubeError, TooManyRequests
from cloudstate_core.kube.events import AT_ONCE, TRIES, Recorder
from cloudstate_core.kube.kinds import REVISION
from cloudstate_core.kube.objects import Metadata, Revision


class Server:
    """Counts writes; refuses the first `busy` tries of each event."""

    def __init__(self, busy: int = 0, failure: KubeError | None = None) -> None:
        self.busy, self.failure = busy, failure
        self.under_way = self.most = 0
        self.tries: dict[str, int] = {}
        self.written: set[str] = set()

    async def create(self, kind: Any, namespace: str, body: Any) -> None:
        name = body["regarding"]["name"]
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        self.tries[name] = self.tries.get(name, 0) + 1
        if self.failure is not None:
            raise self.failure
        if self.tries[name] <= self.busy:
            raise TooManyRequests(429, "TooManyRequests", "busy")
        self.written.add(name)


async def told(server: Server, count: int) -> None:
    client: Any = SimpleNamespace(create=server.create)
    recorder = Recorder(client, "test", "test-1")
    for n in range(count):
        recorder.tell(REVISION, Revision(Metadata(name=f"r{n}", namespace="shop", uid=str(n))), "Reason", "note")
    while recorder._tasks:
        await asyncio.gather(*recorder._tasks)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PATIENCE", 0.0)


async def test_few_writes_are_under_way_at_once() -> None:
    server = Server()
    await told(server, 200)
    assert len(server.written) == 200
    assert server.most == AT_ONCE


async def test_a_busy_server_costs_time_not_events() -> None:
    server = Server(busy=TRIES - 1)
    await told(server, 20)
    assert len(server.written) == 20


async def test_trouble_that_lasts_and_any_other_trouble_ends_the_try() -> None:
    busy = Server(busy=TRIES)
    await told(busy, 1)
    assert (busy.written, busy.tries) == (set(), {"r0": TRIES})
    broken = Server(failure=KubeError(403, "Forbidden", "no"))
    await told(broken, 1)
    assert broken.tries == {"r0": 1}


async def test_closing_gives_up_what_is_not_written() -> None:
    server = Server()
    client: Any = SimpleNamespace(create=server.create)
    recorder = Recorder(client, "test", "test-1")
    for n in range(100):
        recorder.tell(REVISION, Revision(Metadata(name=f"r{n}", namespace="shop", uid=str(n))), "Reason", "note")
    await recorder.close()
    await asyncio.sleep(0)
    assert len(server.written) < 100
    assert not recorder._tasks
