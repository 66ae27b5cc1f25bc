"""Leader election: who may take a lease, what is written, how a term ends; over HTTP against an API server in memory, and in simulated time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime

import pytest
from aiohttp import web

from cloudstate_core.kube import leader
from cloudstate_core.kube.api import KubeError
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.leader import DURATION, RENEW_WITHIN, STOP_WITHIN, Election, Seen, StillWorking, may_take
from cloudstate_core.kube.objects import Lease, LeaseSpec, Metadata

from .fake_api import FakeApi, cut, refusing
from .lease_store import LeaseStore, Line
from .world import simulate

PATIENCE = 60.0
"""Seconds of real time until a state must be there."""


def lease(holder: str | None, seconds: int | None = 15) -> Lease:
    return Lease(metadata=Metadata(resource_version="7"), spec=LeaseSpec(holder_identity=holder, lease_duration_seconds=seconds))


def test_the_times_leave_room_between_two_leaders() -> None:
    assert RENEW_WITHIN + STOP_WITHIN < DURATION


@pytest.mark.parametrize("holder", ["", None, "me"])
def test_a_free_lease_and_ones_own_may_be_taken_at_once(holder: str | None) -> None:
    assert may_take(lease(holder), "me", Seen("7", 100.0), 100.0)


@pytest.mark.parametrize(("seconds", "needed"), [(15, 15), (40, 40), (3, 3), (0, DURATION), (None, DURATION)])
def test_anothers_may_be_taken_after_it_has_not_changed_for_its_duration(seconds: int | None, needed: float) -> None:
    """On the follower's clock, counted from when it saw the last change: what the holder's wall clock wrote does not matter."""
    held = lease("other", seconds)
    assert not may_take(held, "me", Seen("7", 100.0), 100.0 + needed - 0.001)
    assert may_take(held, "me", Seen("7", 100.0), 100.0 + needed)


# Over HTTP ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits between attempts; the lease's own times stay."""
    monkeypatch.setattr(leader, "RETRY", 0.02)


@contextlib.asynccontextmanager
async def candidate(election: Election, work: Callable[[], Awaitable[None]]) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.ensure_future(election.run(work))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Work:
    """Work that notes whether it goes on."""

    def __init__(self) -> None:
        self.begun, self.ended = asyncio.Event(), asyncio.Event()

    async def __call__(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()


async def test_one_leads_the_next_takes_over_when_it_goes(api: FakeApi, client: KubeClient, quick: None) -> None:
    first, second = Election(client, "n", "lead", "first"), Election(client, "n", "lead", "second")
    one, two = Work(), Work()
    async with asyncio.timeout(PATIENCE):
        async with candidate(first, one) as running:
            await one.begun.wait()
            async with candidate(second, two):
                gets = api.count("GET")
                while api.count("GET") < gets + 20:  # both ask again and again
                    await asyncio.sleep(0.01)
                assert (first.leading, second.leading, two.begun.is_set()) == (True, False, False)
                running.cancel()
                await two.begun.wait()
                assert one.ended.is_set()
                assert (first.leading, second.leading) == (False, True)
                assert api.items["leases"]["lead"]["spec"]["holderIdentity"] == "second"
                assert api.items["leases"]["lead"]["spec"]["leaseTransitions"] == 1
        assert running.cancelled()
    assert api.items["leases"]["lead"]["spec"]["holderIdentity"] == "", "the last one gives it back too"


async def test_what_a_lease_says(api: FakeApi, client: KubeClient, quick: None) -> None:
    work = Work()
    async with candidate(Election(client, "n", "lead", "me"), work):
        await work.begun.wait()
        taken = api.items["leases"]["lead"]
        async with asyncio.timeout(PATIENCE):
            while api.items["leases"]["lead"]["spec"]["renewTime"] == taken["spec"]["renewTime"]:
                await asyncio.sleep(0.01)
        spec, later = taken["spec"], api.items["leases"]["lead"]["spec"]
    assert (taken["apiVersion"], taken["kind"]) == ("coordination.k8s.io/v1", "Lease")
    assert spec["leaseDurationSeconds"] == 15
    assert spec["acquireTime"].endswith("Z")
    assert len(spec["renewTime"]) == len("2026-01-01T00:00:00.000000Z")
    assert datetime.fromisoformat(later["renewTime"]) > datetime.fromisoformat(spec["renewTime"])
    assert later["acquireTime"] == spec["acquireTime"]
    assert later["leaseTransitions"] == spec["leaseTransitions"] == 0


async def test_of_two_that_see_no_lease_one_makes_it(api: FakeApi, client: KubeClient, quick: None) -> None:
    works = [Work() for _ in range(8)]
    async with contextlib.AsyncExitStack() as stack:
        elections = [Election(client, "n", "lead", f"e{n}") for n in range(8)]
        for election, work in zip(elections, works, strict=True):
            await stack.enter_async_context(candidate(election, work))
        async with asyncio.timeout(PATIENCE):
            while api.count("GET") < 60:
                await asyncio.sleep(0.01)
        assert sum(election.leading for election in elections) == 1
        assert sum(work.begun.is_set() for work in works) == 1


async def test_a_renewal_whose_answer_is_lost_does_not_end_a_term(api: FakeApi, client: KubeClient, quick: None) -> None:
    async def lost(request: web.Request) -> web.StreamResponse:
        await api._put(request)
        cut(request)
        return web.Response()

    work = Work()
    election = Election(client, "n", "lead", "me")
    async with candidate(election, work):
        await work.begun.wait()
        api.faults["PUT"].append(lost)
        api.faults["PUT"].append(refusing(500, "Internal"))
        async with asyncio.timeout(PATIENCE):
            while api.count("PUT") < 5:
                await asyncio.sleep(0.01)
        assert election.leading
        assert not work.ended.is_set()


async def test_a_lease_that_another_has_taken_ends_the_term(api: FakeApi, client: KubeClient, quick: None) -> None:
    work = Work()
    election = Election(client, "n", "lead", "me")
    async with candidate(election, work):
        await work.begun.wait()
        spec = api.items["leases"]["lead"]["spec"]
        api.put("leases", "lead", spec={**spec, "holderIdentity": "other"})
        async with asyncio.timeout(PATIENCE):
            await work.ended.wait()
            while election.leading:
                await asyncio.sleep(0)
    assert api.items["leases"]["lead"]["spec"]["holderIdentity"] == "other", "another's lease is not given back"


# In simulated time --------------------------------------------------------------------------------------------------------


def election_on(store: LeaseStore, identity: str, line: Line | None = None) -> Election:
    return Election(store.client(line or Line()), "n", "lead", identity, asyncio.get_running_loop().time)


def test_work_is_cancelled_in_time_when_the_lease_cannot_be_renewed() -> None:
    async def check() -> float:
        store, line = LeaseStore(), Line()
        now = asyncio.get_running_loop().time
        work = Work()
        async with candidate(election_on(store, "me", line), work):
            await work.begun.wait()
            await asyncio.sleep(20)
            last = store.written[-1]
            line.down = True
            await work.ended.wait()
            return now() - last

    assert RENEW_WITHIN - leader.RETRY <= simulate(check()) <= RENEW_WITHIN


def test_another_leads_after_the_leases_duration_when_the_leader_is_cut_off() -> None:
    async def check() -> float:
        store, line = LeaseStore(), Line()
        now = asyncio.get_running_loop().time
        one, two = Work(), Work()
        async with candidate(election_on(store, "one", line), one):
            await one.begun.wait()
            async with candidate(election_on(store, "two"), two):
                await asyncio.sleep(20)
                line.down = True
                last = store.written[-1]
                await two.begun.wait()
                return now() - last

    assert DURATION <= simulate(check()) <= DURATION + 2 * leader.RETRY


def test_an_exception_of_the_work_is_raised_and_the_lease_given_back() -> None:
    async def check() -> str:
        store = LeaseStore()

        async def fails() -> None:
            await asyncio.sleep(30)
            raise ValueError("mine")

        with pytest.raises(ValueError, match="mine"):
            await election_on(store, "me").run(fails)
        return store.holder

    assert simulate(check()) == ""


def test_work_that_returns_is_begun_again_but_not_in_a_tight_loop() -> None:
    async def check() -> int:
        begun = 0

        async def short() -> None:
            nonlocal begun
            begun += 1

        async with candidate(election_on(LeaseStore(), "me"), short):
            await asyncio.sleep(100)
        return begun

    assert 20 <= simulate(check()) <= 60


def test_the_lease_is_kept_until_slow_work_has_ended_even_when_told_twice() -> None:
    async def check() -> None:
        store = LeaseStore()
        began, ended = asyncio.Event(), asyncio.Event()

        async def slow_to_end() -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(3)
                assert store.holder == "me", "the lease was given back while the work went on"
                ended.set()

        task = asyncio.ensure_future(election_on(store, "me").run(slow_to_end))
        await began.wait()
        await asyncio.sleep(5)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.5)
        await asyncio.wait({task})
        assert task.cancelled()
        assert ended.is_set()
        assert store.holder == ""

    simulate(check())


@pytest.mark.parametrize("why", ["told to end", "cut off"])
def test_work_that_does_not_end_is_reported_before_another_could_lead(why: str) -> None:
    """Nothing but the end of the process can stop it: the lease stays, and the caller hears in time."""

    async def check() -> float:
        store, line = LeaseStore(), Line()
        began = asyncio.Event()
        over = asyncio.Event()

        async def endless() -> None:
            began.set()
            while not over.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await over.wait()

        task = asyncio.ensure_future(election_on(store, "me", line).run(endless))
        await began.wait()
        await asyncio.sleep(33)
        last = store.written[-1]
        if why == "cut off":
            line.down = True
        else:
            task.cancel()
        with pytest.raises(StillWorking):
            await task
        assert store.holder == "me"
        assert store.written[-1] == last
        over.set()
        return asyncio.get_running_loop().time() - last

    assert simulate(check()) < DURATION


def test_a_deleted_lease_makes_no_second_leader_of_one_that_knew_the_first() -> None:
    async def check() -> None:
        store, line = LeaseStore(), Line()
        one, two = Work(), Work()
        async with candidate(election_on(store, "one", line), one):
            await one.begun.wait()
            async with candidate(election_on(store, "two"), two):
                await asyncio.sleep(20)
                line.down = True
                store.delete()
                await two.begun.wait()
                assert one.ended.is_set()

    simulate(check())


def test_a_leader_makes_its_deleted_lease_anew() -> None:
    async def check() -> None:
        store, work = LeaseStore(), Work()
        async with candidate(election_on(store, "me"), work):
            await work.begun.wait()
            await asyncio.sleep(20)
            store.delete()
            await asyncio.sleep(2 * leader.RETRY)
            assert store.holder == "me"
            assert not work.ended.is_set()

    simulate(check())


@pytest.mark.parametrize("turns", range(12))
def test_a_cancellation_is_never_lost(turns: int) -> None:
    """Whatever the election does in that very moment."""

    async def check() -> None:
        store, work = LeaseStore(), Work()
        task = asyncio.ensure_future(election_on(store, "me").run(work))
        await work.begun.wait()
        await asyncio.sleep(leader.RETRY)  # a renewal begins
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=5)
        assert task.cancelled()

    simulate(check())


def test_an_api_server_that_hangs_while_it_is_asked_for_the_lease_back_delays_the_end_little() -> None:
    async def check() -> float:
        store, line, work = LeaseStore(), Line(), Work()
        now = asyncio.get_running_loop().time
        task = asyncio.ensure_future(election_on(store, "me", line).run(work))
        await work.begun.wait()
        line.delay = 1000.0
        task.cancel()
        before = now()
        await asyncio.wait({task})
        assert task.cancelled()
        return now() - before

    assert simulate(check()) <= leader.RELEASE_WITHIN


def test_trouble_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        line = Line()
        work = Work()
        async with candidate(election_on(LeaseStore(), "me", line), work):
            await work.begun.wait()
            line.error = KubeError(0, "Connection", "no route")
            await work.ended.wait()

    with caplog.at_level(logging.WARNING):
        simulate(check())
    text = [record.message for record in caplog.records]
    assert text[0] == "me leads n/lead"
    assert "no route" in text[1]
