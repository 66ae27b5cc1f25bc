"""The kit of replicated values: what commands change, what others change, and what streams are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from cloudstate_sdk import (
    Change,
    CrdtContext,
    Float32,
    GCounter,
    LWWRegister,
    NotYourTurn,
    ORMap,
    ORSet,
    PNCounter,
    StreamedContext,
    Vote,
    WriteConsistency,
    command,
    crdt_entity,
    value_entity,
)
from cloudstate_sdk.definition import DefinitionError
from cloudstate_sdk.testkit import Crashed, CrdtKit

from tests.tck.pb.cloudstate.tck.model import crdt_pb2 as model
from tests.tck.pb.cloudstate.tck.model import valueentity_pb2 as values

SERVICE = "cloudstate.tck.model.crdt.CrdtTckModel"


@crdt_entity(SERVICE, persistence_id="hits", descriptor=model.DESCRIPTOR, crdt=GCounter)
class Hits:
    """Counts; who streams hears of each change by others until there are ten."""

    @command
    async def process(self, request: model.Request, context: CrdtContext[GCounter]) -> model.Response:
        await asyncio.sleep(0)
        steps = len(request.actions)
        if steps == 13:
            context.state.increment(1)
            context.fail("thirteen is no number")
        if steps == 14:
            raise ValueError("fourteen is worse")
        if steps == 15:
            context.delete()
        elif steps:
            context.write_consistency = WriteConsistency.MAJORITY
            context.state.increment(steps)
        context.reply_metadata("x-hits", str(context.state.value))
        return answer(context.state.value)

    @command
    def process_streamed(self, request: model.StreamedRequest, context: StreamedContext[GCounter]) -> model.Response:
        def changed(change: Change[GCounter]) -> model.Response:
            if change.state.value >= 10:
                change.end()
            return answer(change.state.value)

        context.on_change(changed)
        context.on_cancel(lambda last: last.state.increment(100))
        return answer(context.state.value)


def answer(value: int) -> model.Response:
    return model.Response(state=model.State(gcounter=model.GCounterValue(value=value)))


def steps(count: int) -> model.Request:
    return model.Request(id="a", actions=[model.RequestAction() for _ in range(count)])


def test_a_command_shows_what_it_changed() -> None:
    kit = CrdtKit(Hits, "a")
    assert kit.state is None
    result = kit.call("Process", steps(2))
    assert result.reply == answer(2)
    assert result.metadata == [("x-hits", "2")]
    assert (result.changed, result.deleted, result.write_consistency) == (True, False, WriteConsistency.MAJORITY)
    assert kit.state.value == 2
    assert not kit.call("Process", steps(0)).changed


def test_what_is_stored_outlives_the_instance() -> None:
    kit = CrdtKit(Hits, "a")
    kit.call("Process", steps(2))
    kit.others(lambda hits: hits.increment(5))
    kit.call("Process", steps(1))
    assert kit.restart().value == 8
    assert kit.call("Process", steps(0)).reply == answer(8)


def test_a_failure_changes_nothing_and_a_crash_neither() -> None:
    kit = CrdtKit(Hits, "a")
    kit.call("Process", steps(1))
    assert kit.call("Process", steps(13)).failure == "thirteen is no number"
    assert kit.state.value == 1
    with pytest.raises(Crashed, match="Hits: fourteen is worse"):
        kit.call("Process", steps(14))
    assert kit.call("Process", steps(0)).reply == answer(1)


async def test_commands_that_come_at_once_are_each_answered() -> None:
    kit = CrdtKit(Hits, "a")
    results = await asyncio.gather(*(kit.acall("Process", steps(count)) for count in (1, 2, 3)))
    assert [result.reply for result in results] == [answer(1), answer(3), answer(6)]


def test_a_crash_fails_its_command_and_no_stream_of_others() -> None:
    kit = CrdtKit(Hits, "a")
    stream = kit.stream("ProcessStreamed", model.StreamedRequest(id="a"))
    with pytest.raises(Crashed, match="Hits: fourteen is worse"):
        kit.call("Process", steps(14))
    kit.call("Process", steps(1))
    assert (stream.open, [told.reply for told in stream.answers]) == (True, [answer(1)])


def test_a_watcher_that_crashes_closes_its_stream() -> None:
    kit = of(GCounter, lambda change: 1 // 0)
    stream, other = (kit.stream("ProcessStreamed", model.StreamedRequest(id=name)) for name in ("watch", "wait"))
    with pytest.raises(Crashed, match="by zero"):
        kit.others(lambda hits: hits.increment(1))
    assert (stream.open, other.open) == (False, True)
    assert kit.state.value == 1


def test_a_deleted_value_is_gone_and_its_streams_are_closed() -> None:
    kit = CrdtKit(Hits, "a")
    kit.call("Process", steps(3))
    stream = kit.stream("ProcessStreamed", model.StreamedRequest(id="a"))
    assert kit.call("Process", steps(15)).deleted
    assert not stream.open
    assert kit.state is None
    assert kit.restart() is None


def test_streams_hear_of_changes_until_they_end() -> None:
    kit = CrdtKit(Hits, "a")
    stream = kit.stream("ProcessStreamed", model.StreamedRequest(id="a"))
    assert (stream.first.reply, stream.open, stream.answers) == (answer(0), True, [])
    kit.others(lambda hits: hits.increment(4))
    kit.call("Process", steps(1))
    assert [told.reply for told in stream.answers] == [answer(4), answer(5)]
    kit.others(lambda hits: hits.increment(5))
    assert not stream.open
    assert stream.answers[-1].reply == answer(10)
    kit.others(lambda hits: hits.increment(1))
    assert len(stream.answers) == 3


def test_a_caller_who_leaves_may_leave_a_change() -> None:
    kit = CrdtKit(Hits, "a")
    stream = kit.stream("ProcessStreamed", model.StreamedRequest(id="a"))
    kit.cancel(stream)
    kit.cancel(stream)
    assert not stream.open
    assert kit.state.value == 100


async def test_tests_may_be_coroutines() -> None:
    kit = CrdtKit(Hits, "a")
    stream = await kit.astream("ProcessStreamed", model.StreamedRequest(id="a"))
    await kit.acall("Process", steps(1))
    await kit.aothers(lambda hits: hits.increment(1))
    assert [told.reply for told in stream.answers] == [answer(1), answer(2)]
    await kit.acancel(stream)
    assert kit.state.value == 102
    with pytest.raises(RuntimeError, match="await the kit's `acall`"):
        kit.call("Process", steps(1))


def test_mistakes_of_a_test_are_told() -> None:
    kit = CrdtKit(Hits, "a")
    with pytest.raises(TypeError, match=r"CrdtTckModel\.ProcessStreamed: is for the kit's `stream`"):
        kit.call("ProcessStreamed", model.StreamedRequest(id="a"))
    with pytest.raises(TypeError, match=r"CrdtTckModel\.Process: is for the kit's `call`"):
        kit.stream("Process", steps(1))
    with pytest.raises(LookupError, match="has no command 'Nope'"):
        kit.call("Nope", steps(1))
    kit.call("Process", steps(1))
    with pytest.raises(NotYourTurn):
        kit.state.increment(1)


def of(kind: type, watcher: Callable[[Change[Any]], Any] | None = None) -> CrdtKit:
    """A kit of a value of some type that its commands do not touch; `watcher` is that of streams whose id says `watch`."""

    @crdt_entity(SERVICE, persistence_id="x", descriptor=model.DESCRIPTOR, crdt=kind)
    class Idle:
        @command
        def process(self, request: model.Request, context: CrdtContext[Any]) -> model.Response:
            if isinstance(context.state, Vote):
                context.state.vote(True)
            return model.Response()

        @command
        def process_streamed(self, request: model.StreamedRequest, context: StreamedContext[Any]) -> None:
            if watcher is not None:
                context.on_change(watcher if request.id == "watch" else lambda _: None)

    return CrdtKit(Idle)


def test_a_vote_counts_its_own_and_those_of_others() -> None:
    kit = of(Vote)
    kit.vote(2, 4)
    assert (kit.state.self_vote, kit.state.votes_for, kit.state.total_voters) == (False, 2, 5)
    kit.call("Process", steps(0))
    assert (kit.state.self_vote, kit.state.votes_for, kit.state.total_voters) == (True, 3, 5)
    kit.vote(0, 1)
    assert (kit.state.votes_for, kit.state.total_voters) == (1, 2)
    assert kit.restart().self_vote
    with pytest.raises(TypeError, match="by the kit's `vote`"):
        kit.others(lambda vote: vote.vote(True))


def test_collections_and_registers_are_changed_by_others() -> None:
    tags = of(ORSet)
    tags.others(lambda found: found.add("a"))
    tags.others(lambda found: (found.discard("a"), found.add("b")))
    assert set(tags.restart()) == {"b"}
    name = of(LWWRegister)
    name.others(lambda register: register.set(Float32(1.5)))
    assert name.restart().value == 1.5
    scores = of(ORMap)
    scores.others(lambda found: found.get_or_create("ann", PNCounter).increment(-3))
    assert scores.restart()["ann"].value == -3


def test_a_component_of_another_kind_is_refused() -> None:
    @value_entity("cloudstate.tck.model.valueentity.ValueEntityTwo", persistence_id="v", descriptor=values.DESCRIPTOR, state=values.Persisted)
    class Box:
        @command
        def call(self, request: values.Request, context: Any) -> values.Response:
            return values.Response()

    with pytest.raises(DefinitionError, match="this kit is for"):
        CrdtKit(Box)
