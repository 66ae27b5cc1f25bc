"""Replicated values of the SDK behind two real proxies: all types agree, streams hear of the other pod, and values outlive all pods."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cloudstate_sdk import Function

from kn_cloudstate.ports import free_port
from tests.stateful_proxy.crdt.function import CrdtCluster
from tests.stateful_proxy.processes import BACKENDS, PATIENCE, ProxyProcess
from tests.tck.pb.cloudstate.tck.model import crdt_pb2 as model
from tests.tck.sdk.crdt_function import CRDT_MODELS

SERVICE = "cloudstate.tck.model.crdt.CrdtTckModel"
DELETE = model.RequestAction(delete=model.Delete())


class ModelFunction:
    """The suite's models, where the cluster's own function would be."""

    def __init__(self) -> None:
        self.port = free_port()

    async def start(self) -> None:
        self.server, _ = await Function(*CRDT_MODELS).start("127.0.0.1", self.port)

    async def stop(self) -> None:
        await self.server.stop(None)


@pytest.fixture(params=BACKENDS)
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[CrdtCluster]:
    made = CrdtCluster(request.param)
    made.function = ModelFunction()  # type: ignore[assignment]
    await made.start()
    yield made
    await made.stop()


async def process(proxy: ProxyProcess, key: str, *actions: model.RequestAction) -> model.State:
    """A command at one pod; the value there then."""
    call: Any = proxy.channel.unary_unary(f"/{SERVICE}/Process", model.Request.SerializeToString, model.Response.FromString)
    answer = await call(model.Request(id=key, actions=actions), timeout=60, wait_for_ready=True)
    return model.State.FromString(answer.state.SerializeToString())


async def shows(proxy: ProxyProcess, key: str, expected: model.State) -> None:
    """Wait until a pod shows a value."""
    found = model.State()
    try:
        async with asyncio.timeout(PATIENCE):
            while (found := await process(proxy, key)) != expected:
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"{key}: after {PATIENCE:g} s it shows {found}, not {expected}")


def update(**change: Any) -> model.RequestAction:
    return model.RequestAction(update=model.Update(**change))


def entry(key: str, **change: Any) -> model.RequestAction:
    return update(ormap=model.ORMapUpdate(update=model.ORMapEntryUpdate(key=key, update=model.Update(**change))))


def write(value: str, number: int) -> model.RequestAction:
    clock = model.LWWRegisterClock(clockType=model.LWWRegisterClockType.CUSTOM, customClockValue=2**61 + number)
    return update(lwwregister=model.LWWRegisterUpdate(value=value, clock=clock))


def move(**step: str) -> model.RequestAction:
    return update(orset=model.ORSetUpdate(**step))  # type: ignore[arg-type]


def vote(mine: bool, votes: int, voters: int) -> model.State:
    return model.State(vote=model.VoteValue(self_vote=mine, votes_for=votes, total_voters=voters))


def g_counter(value: int) -> model.State:
    return model.State(gcounter=model.GCounterValue(value=value))


def pn_counter(value: int) -> model.State:
    return model.State(pncounter=model.PNCounterValue(value=value))


def g_set(elements: str) -> model.State:
    return model.State(gset=model.GSetValue(elements=list(elements)))


def or_set(*elements: str) -> model.State:
    return model.State(orset=model.ORSetValue(elements=elements))


MAP = model.State(
    ormap=model.ORMapValue(
        entries=[model.ORMapEntryValue(key="GSet-1", value=g_set("x")), model.ORMapEntryValue(key="PNCounter-1", value=pn_counter(3))]
    )
)
BOTH: list[tuple[str, list[list[model.RequestAction]], model.State]] = [
    ("GCounter-1", [[update(gcounter=model.GCounterUpdate(increment=n))] for n in (2, 3)], g_counter(5)),
    ("PNCounter-1", [[update(pncounter=model.PNCounterUpdate(change=n))] for n in (2, -5)], pn_counter(-3)),
    ("GSet-1", [[update(gset=model.GSetUpdate(add=letter))] for letter in "ab"], g_set("ab")),
    ("ORSet-1", [[move(add="a"), move(add="b")], [move(add="c"), move(remove="c")]], or_set("a", "b")),
    ("LWWRegister-1", [[write("one", 1)], [write("two", 2)]], model.State(lwwregister=model.LWWRegisterValue(value="two"))),
    ("Flag-1", [[update(flag=model.FlagUpdate())], []], model.State(flag=model.FlagValue(value=True))),
    (
        "ORMap-1",
        [
            [entry("PNCounter-1", pncounter=model.PNCounterUpdate(change=4))],
            [entry("PNCounter-1", pncounter=model.PNCounterUpdate(change=-1)), entry("GSet-1", gset=model.GSetUpdate(add="x"))],
        ],
        MAP,
    ),
]
"""Keys, what is done to each at two pods at the same time, and what all pods must show."""


async def test_both_pods_show_what_both_have_changed_and_it_outlives_them(cluster: CrdtCluster) -> None:
    pods = [await cluster.proxy(f"pod-{number}") for number in (1, 2)]
    for key, programs, _ in BOTH:
        await asyncio.gather(*(process(pod, key, *program) for pod, program in zip(pods, programs, strict=True)))
    for key, _, expected in BOTH:
        for pod in pods:
            await shows(pod, key, expected)
    for pod in pods:
        await pod.end(signal.SIGKILL)
    third = await cluster.proxy("pod-3")
    for key, _, expected in BOTH:
        assert await process(third, key) == expected


async def test_a_vote_counts_the_pods_that_are_up(cluster: CrdtCluster) -> None:
    pods = [await cluster.proxy(f"pod-{number}") for number in (1, 2)]
    yes = update(vote=model.VoteUpdate(self_vote=True))
    await process(pods[0], "Vote-1", yes)
    for pod, mine in zip(pods, (True, False), strict=True):
        await shows(pod, "Vote-1", vote(mine, 1, 2))
    await process(pods[1], "Vote-1", yes)
    await shows(pods[0], "Vote-1", vote(True, 2, 2))
    await pods[0].end()
    await shows(pods[1], "Vote-1", vote(True, 1, 1))


async def test_a_stream_hears_of_the_other_pod_and_its_end_is_seen_there(cluster: CrdtCluster) -> None:
    here, there = [await cluster.proxy(f"pod-{number}") for number in (1, 2)]
    call: Any = here.channel.unary_stream(f"/{SERVICE}/ProcessStreamed", model.StreamedRequest.SerializeToString, model.Response.FromString)
    hello, bye = (model.Update(orset=model.ORSetUpdate(**step)) for step in ({"add": "me"}, {"remove": "me"}))  # type: ignore[arg-type]
    watching = call(model.StreamedRequest(id="ORSet-2", initial_update=hello, cancel_update=bye))
    async with asyncio.timeout(PATIENCE):
        assert list((await watching.read()).state.orset.elements) == ["me"]
        await process(there, "ORSet-2", move(add="you"))
        assert list((await watching.read()).state.orset.elements) == ["me", "you"]
    await shows(there, "ORSet-2", or_set("me", "you"))
    watching.cancel()
    await shows(there, "ORSet-2", or_set("you"))


async def test_a_deleted_value_is_gone_at_both_pods_and_may_begin_anew(cluster: CrdtCluster) -> None:
    here, there = [await cluster.proxy(f"pod-{number}") for number in (1, 2)]
    grow = update(gcounter=model.GCounterUpdate(increment=7))
    await process(here, "GCounter-2", grow)
    await shows(there, "GCounter-2", g_counter(7))
    await process(here, "GCounter-2", DELETE)
    await shows(there, "GCounter-2", g_counter(0))
    await process(there, "GCounter-2", grow)
    await shows(here, "GCounter-2", g_counter(7))
