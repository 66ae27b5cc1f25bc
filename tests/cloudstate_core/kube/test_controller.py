"""Control loops: every key reaches its state in the end, whatever fails; none is worked on twice at once; cancellation ends it."""

from __future__ import annotations

import asyncio
import logging
import random

import pytest

from cloudstate_core.kube.api import Conflict, KubeError, TooManyRequests
from cloudstate_core.kube.controller import Controller, Reconcile

from .world import simulate


def controller(reconcile: Reconcile, workers: int = 4) -> Controller:
    """In simulated time."""
    return Controller("test", reconcile, workers, clock=asyncio.get_running_loop().time)


def test_every_key_gets_there_though_most_attempts_fail() -> None:
    async def check() -> None:
        chance = random.Random(7)
        wanted = {f"k{n}": chance.randrange(100) for n in range(200)}
        actual: dict[str, int] = {}
        busy: set[str] = set()

        async def reconcile(key: str) -> None:
            assert key not in busy
            busy.add(key)
            try:
                goal = wanted[key]
                await asyncio.sleep(chance.random())
                if chance.random() < 0.6:
                    raise chance.choice([Conflict(409, "Conflict", "stale"), KubeError(0, "Connection", "lost"), ValueError("a bug")])
                actual[key] = goal
            finally:
                busy.discard(key)

        loops = controller(reconcile, workers=8)
        task = asyncio.ensure_future(loops.run())
        for _ in range(500):
            key = f"k{chance.randrange(200)}"
            wanted[key] = chance.randrange(100)
            loops.queue.add(key)
            await asyncio.sleep(0.05)
        for key in wanted:
            loops.queue.add(key)
        while actual != wanted:
            assert not task.done()
            await asyncio.sleep(1)
        assert loops.failed_total > 0
        task.cancel()
        await asyncio.wait({task}, timeout=1)
        assert task.cancelled()

    simulate(check())


def test_it_looks_again_when_the_reconciler_says_so() -> None:
    async def check() -> list[float]:
        times: list[float] = []

        async def reconcile(key: str) -> float | None:
            times.append(asyncio.get_running_loop().time())
            return 10.0 if len(times) < 3 else None

        loops = controller(reconcile)
        loops.queue.add("a")
        task = asyncio.ensure_future(loops.run())
        await asyncio.sleep(1000)
        task.cancel()
        assert loops.done_total == 3
        return times

    assert simulate(check()) == pytest.approx([0, 10, 20])


def test_a_busy_server_is_left_alone_as_long_as_it_asks() -> None:
    async def check() -> list[float]:
        times: list[float] = []

        async def reconcile(key: str) -> None:
            times.append(asyncio.get_running_loop().time())
            if len(times) < 3:
                raise TooManyRequests(429, "TooManyRequests", "busy", retry_after=9.0)

        loops = controller(reconcile)
        loops.queue.add("a")
        task = asyncio.ensure_future(loops.run())
        await asyncio.sleep(100)
        task.cancel()
        return times

    assert simulate(check()) == pytest.approx([0, 9, 18])


def test_one_slow_key_holds_no_other() -> None:
    async def check() -> None:
        done: list[str] = []

        async def reconcile(key: str) -> None:
            await asyncio.sleep(1000 if key == "slow" else 0.1)
            done.append(key)

        loops = controller(reconcile, workers=2)
        for key in ("slow", "a", "b", "c"):
            loops.queue.add(key)
        task = asyncio.ensure_future(loops.run())
        await asyncio.sleep(1)
        assert done == ["a", "b", "c"]
        task.cancel()

    simulate(check())


def test_what_was_cut_off_is_done_by_the_next_run() -> None:
    """A leader that loses its lease and gets it again goes on with what it had begun."""

    async def check() -> None:
        done: list[str] = []

        async def reconcile(key: str) -> None:
            await asyncio.sleep(10)
            done.append(key)

        loops = controller(reconcile)
        loops.queue.add("a")
        first = asyncio.ensure_future(loops.run())
        await asyncio.sleep(1)
        first.cancel()
        await asyncio.wait({first})
        assert not done
        second = asyncio.ensure_future(loops.run())
        await asyncio.sleep(20)
        assert done == ["a"]
        second.cancel()

    simulate(check())


def test_a_bug_is_logged_with_its_key_and_a_conflict_quietly(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        async def reconcile(key: str) -> None:
            raise ValueError("mine") if key == "bug" else Conflict(409, "Conflict", "stale")

        loops = controller(reconcile)
        loops.queue.add("bug")
        loops.queue.add("stale")
        task = asyncio.ensure_future(loops.run())
        await asyncio.sleep(0.01)
        task.cancel()

    with caplog.at_level(logging.INFO):
        simulate(check())
    levels = {record.message.split(": ")[1].split()[0]: record.levelname for record in caplog.records}
    assert levels == {"bug": "ERROR", "stale": "INFO"}
