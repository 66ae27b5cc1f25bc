"""Work queues: nothing is lost, nothing is worked on twice at once, failures come later and later; as rules over any course of events."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cloudstate_core.kube.queue import BACKOFF_FIRST, BACKOFF_LAST, WorkQueue

from .world import World, simulate

KEYS = st.sampled_from("abc")
WORKERS = 2


class Life(RuleBasedStateMachine):
    """A queue beside a model of it, in simulated time. Each of the workers waits for a key or works on one."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.loop = self.world.machine()
        self.queue = WorkQueue(self.loop.time)
        self.takers: list[asyncio.Task[str]] = []
        self.working: set[str] = set()
        self.ready: set[str] = set()
        """What a free worker must get, unless somebody works on it."""
        self.due: dict[str, float] = {}
        """What becomes ready, and when."""
        self.failures: dict[str, int] = {}

    def teardown(self) -> None:
        self.world.close()

    @rule(key=KEYS)
    def add(self, key: str) -> None:
        self.queue.add(key)
        self.ready.add(key)

    @rule(key=KEYS, seconds=st.sampled_from([0.0, 0.5, 1.0, 5.0, 30.0]))
    def add_after(self, key: str, seconds: float) -> None:
        self.queue.add_after(key, seconds)
        self.later(key, seconds)

    def later(self, key: str, seconds: float) -> None:
        self.due[key] = min(self.due.get(key, math.inf), self.world.now + seconds)

    @precondition(lambda self: self.working)
    @rule(data=st.data(), failed=st.booleans(), least=st.sampled_from([0.0, 0.0, 2.0]))
    def done(self, data: st.DataObject, failed: bool, least: float) -> None:
        key = data.draw(st.sampled_from(sorted(self.working)))
        self.working.discard(key)
        self.queue.done(key, failed, least)
        if failed:
            self.later(key, max(least, min(BACKOFF_LAST, BACKOFF_FIRST * 2 ** self.failures.get(key, 0))))
            self.failures[key] = self.failures.get(key, 0) + 1
        else:
            self.failures.pop(key, None)

    @precondition(lambda self: self.takers)
    @rule(key=KEYS, news=st.booleans(), turns=st.integers(0, 4))
    def give_up(self, key: str, news: bool, turns: int) -> None:
        """A worker is cancelled, perhaps a few turns of its loop after something came for it."""
        taker = self.takers.pop()
        if news:
            self.add(key)
        for _ in range(turns):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
        taker.cancel()
        self.loop.run_forever()
        if not taker.cancelled():
            self.takers.append(taker)  # it had its key before

    @rule(seconds=st.sampled_from([0.03, 0.6, 2.0, 100.0]))
    def pass_time(self, seconds: float) -> None:
        until = self.world.now + seconds
        while self.world.now < until:
            self.world.now = min(until, self.loop.wakes)
            self.settle()

    @invariant()
    def settle(self) -> None:
        """Workers take what they can; that is what the model allows, and all that it demands."""
        self.takers += [self.loop.create_task(self.queue.take()) for _ in range(WORKERS - len(self.takers) - len(self.working))]
        self.loop.run_forever()
        for key in [key for key, due in self.due.items() if self.takers and due <= self.world.now + 1e-6]:
            del self.due[key]
            self.ready.add(key)
        for taker in [taker for taker in self.takers if taker.done()]:
            self.takers.remove(taker)
            key = taker.result()
            assert key not in self.working, "worked on twice at the same time"
            assert key in self.ready, "came before it was due, or for nothing"
            self.ready.discard(key)
            self.working.add(key)
        assert not self.takers or self.ready <= self.working, "a worker waits though there is work"
        assert self.queue.idle == (not self.working and not self.ready)


Life.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestLife = Life.TestCase


async def drain(queue: WorkQueue, count: int) -> list[str]:
    return [await queue.take() for _ in range(count)]


def test_a_key_is_in_the_queue_once_and_in_order() -> None:
    async def check() -> None:
        queue = WorkQueue(asyncio.get_running_loop().time)
        for key in "abab":
            queue.add(key)
        assert len(queue) == 2
        assert await drain(queue, 2) == ["a", "b"]

    simulate(check())


def test_a_key_that_changes_while_it_is_worked_on_comes_again() -> None:
    async def check() -> None:
        queue = WorkQueue(asyncio.get_running_loop().time)
        queue.add("a")
        key = await queue.take()
        queue.add("a")
        assert len(queue) == 0
        queue.done(key)
        assert await queue.take() == "a"
        queue.done("a")
        assert queue.idle

    simulate(check())


def test_failures_come_later_and_later_and_success_forgets_them() -> None:
    async def check() -> list[float]:
        loop = asyncio.get_running_loop()
        queue = WorkQueue(loop.time)
        queue.add("a")
        gaps = []
        for failed in [True] * 14 + [False]:
            before = loop.time()
            await queue.take()
            gaps.append(loop.time() - before)
            queue.done("a", failed)
        queue.add("a")
        await queue.take()
        queue.done("a", failed=True)
        before = loop.time()
        await queue.take()
        return [*gaps, loop.time() - before]

    gaps = simulate(check())
    assert gaps[1:12] == pytest.approx([0.05 * 2**n for n in range(11)])
    assert gaps[12:15] == pytest.approx([60, 60, 60])
    assert gaps[15] == pytest.approx(0.05)


def test_the_earliest_wish_counts() -> None:
    async def check() -> list[float]:
        loop = asyncio.get_running_loop()
        queue = WorkQueue(loop.time)
        queue.add_after("a", 30)
        queue.add_after("a", 5)
        queue.add_after("a", 60)
        queue.add_after("b", 7)
        times = []
        for _ in range(2):
            queue.done(await queue.take())
            times.append(loop.time())
        queue.add_after("a", 40)
        queue.done(await queue.take())
        return [*times, loop.time()]

    assert simulate(check()) == pytest.approx([5, 7, 47])


def test_a_waiting_worker_hears_of_an_earlier_wish() -> None:
    async def check() -> float:
        loop = asyncio.get_running_loop()
        queue = WorkQueue(loop.time)
        queue.add_after("slow", 100)
        taker = asyncio.ensure_future(queue.take())
        await asyncio.sleep(10)
        queue.add_after("quick", 1)
        assert await taker == "quick"
        return loop.time()

    assert simulate(check()) == pytest.approx(11)


@pytest.mark.parametrize("turns", range(8))
@pytest.mark.parametrize("later", [False, True])
def test_a_cancelled_worker_ends_and_loses_no_key(turns: int, later: bool) -> None:
    """Also when the cancellation comes any number of turns of the loop after a key."""

    async def check() -> None:
        queue = WorkQueue(asyncio.get_running_loop().time)
        if later:
            queue.add_after("other", 1000)
        worker = asyncio.ensure_future(forever(queue))
        await asyncio.sleep(1)
        queue.add("a")
        for _ in range(turns):
            await asyncio.sleep(0)
        worker.cancel()
        await asyncio.wait({worker}, timeout=5)
        assert worker.cancelled()
        if not queue._working:
            assert await queue.take() == "a"

    async def forever(queue: WorkQueue) -> None:
        while True:
            await queue.take()

    simulate(check())
