"""The life of a control-plane process: it leads, tells how it is, gives its lease back, and ends when its work fails or does not stop."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import time
from collections.abc import Awaitable, Callable, Iterator

import aiohttp
import pytest

from cloudstate_core.kube import leader
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.replica import Replica, Role
from kn_cloudstate.ports import free_port

from .conftest import kubeconfig
from .fake_api import FakeApi

Work = Callable[[KubeClient], Awaitable[None]]
PATIENCE = 60.0
"""Seconds until a state must be there."""


@pytest.fixture
def start(api: FakeApi, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Role], tuple[Replica, int]]]:
    """Starts replicas that try often, and that no pause of the machine makes lose their lease; they end with the test."""
    monkeypatch.setattr(leader, "RETRY", 0.02)
    monkeypatch.setattr(leader, "STOP_WITHIN", 0.3)
    monkeypatch.setattr(leader, "RENEW_WITHIN", PATIENCE)
    monkeypatch.setattr(leader, "RELEASE_WITHIN", PATIENCE)
    replicas: list[Replica] = []

    def make(role: Role) -> tuple[Replica, int]:
        port = free_port()
        replicas.append(Replica(role, "n", f"replica-{len(replicas)}", port, kubeconfig(tmp_path, api.url)))
        replicas[-1].start()
        return replicas[-1], port

    yield make
    for replica in replicas:
        if not replica.ended.is_set():
            replica.drain()


async def ask(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status, await answer.text()


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                if await holds():
                    return
            await asyncio.sleep(0.01)


async def ended(replica: Replica) -> None:
    async def holds() -> bool:
        return replica.ended.is_set()

    await until(holds)
    await asyncio.to_thread(replica.stop)


async def waits(_: KubeClient) -> None:
    await asyncio.Event().wait()


async def test_it_leads_says_so_and_gives_the_lease_back(api: FakeApi, start: Callable[[Role], tuple[Replica, int]]) -> None:
    problem = "not yet"
    role = Role("part", waits, problem=lambda: problem, metrics=lambda: ["# TYPE mine gauge\nmine 7\n"])
    replica, port = start(role)

    async def leads() -> bool:
        return await ask(port, "/alive") == (200, "leading\n")

    await until(leads)
    assert api.items["leases"]["part"]["spec"]["holderIdentity"] == "replica-0"
    assert await ask(port, "/ready") == (503, "not yet\n")
    problem = ""
    assert await ask(port, "/ready") == (200, "ready\n")
    assert await ask(port, "/metrics") == (200, "# TYPE cloudstate_leading gauge\ncloudstate_leading 1\n# TYPE mine gauge\nmine 7\n")
    replica.drain()
    await ended(replica)
    assert replica.failure == ""
    assert api.items["leases"]["part"]["spec"]["holderIdentity"] == ""


@pytest.mark.parametrize("where", ["lead", "serve"])
async def test_it_ends_when_its_work_fails(api: FakeApi, start: Callable[[Role], tuple[Replica, int]], where: str) -> None:
    async def fails(_: KubeClient) -> None:
        while not api.items["leases"]:  # held in any case, so that there is something to give back
            await asyncio.sleep(0.01)
        raise ValueError("mine")

    replica, _ = start(Role("part", fails, waits) if where == "lead" else Role("part", waits, fails))
    await ended(replica)
    assert "mine" in replica.failure
    assert api.items["leases"]["part"]["spec"]["holderIdentity"] == ""


async def test_work_that_does_not_stop_is_stopped_with_the_process(
    api: FakeApi, start: Callable[[Role], tuple[Replica, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even when what every replica does takes its time to end."""
    monkeypatch.setattr(leader, "RENEW_WITHIN", 2.0)
    acts: list[float] = []
    clients: set[KubeClient] = set()
    over = False

    async def endless(client: KubeClient) -> None:
        clients.add(client)
        while not over:
            with contextlib.suppress(asyncio.CancelledError):
                acts.append(time.monotonic())
                await asyncio.sleep(0.01)

    async def slow_to_end(_: KubeClient) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            while not over:
                await asyncio.sleep(0.05)

    replica, _ = start(Role("part", endless, slow_to_end))

    async def acting() -> bool:
        return bool(acts)

    await until(acting)
    api.put("leases", "part", **{**api.items["leases"]["part"], "spec": {"holderIdentity": "other", "leaseDurationSeconds": 15}})
    await ended(replica)
    assert "StillWorking" in replica.failure
    count = len(acts)
    await asyncio.sleep(0.1)
    assert len(acts) == count
    assert api.items["leases"]["part"]["spec"]["holderIdentity"] == "other"
    over = True
    await asyncio.to_thread(bury, replica, clients)


def bury(replica: Replica, clients: set[KubeClient]) -> None:
    """What the end of its process would do."""
    loop = replica._loop
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.wait(tasks))
    for task in tasks:
        assert task.cancelled() or task.exception() is None
    for client in clients:
        loop.run_until_complete(client.close())
