"""CRDT entities of the SDK as a proxy sees them: several commands at once, what a failing one leaves (nothing), and mistakes of handlers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from cloudstate_sdk import Change, CrdtContext, Function, GCounter, NotYourTurn, PNCounter, StreamedContext, command, crdt_entity
from cloudstate_sdk.pb.cloudstate import crdt_pb2 as pb
from cloudstate_sdk.pb.cloudstate import entity_pb2

from tests.tck.pb.cloudstate.tck.model import crdt_pb2 as model
from tests.tck.sdk.crdt_playing import CrdtStream, Delta, replied

SERVICE = "cloudstate.tck.model.crdt.CrdtTckModel"
GATES: dict[str, asyncio.Event] = {}
"""What the commands named so wait for."""
KEPT: list[CrdtContext[PNCounter]] = []


def shown(value: int) -> model.Response:
    return model.Response(state=model.State(pncounter=model.PNCounterValue(value=value)))


async def gate(name: str) -> None:
    await asyncio.wait_for(GATES.setdefault(name, asyncio.Event()).wait(), 60)


@crdt_entity(SERVICE, persistence_id="tally", descriptor=model.DESCRIPTOR, crdt=PNCounter)
class Tally:
    """Counts the effects of a request, waits for the gate that a forward names, and makes the mistake that a failure names."""

    @command
    async def process(self, request: model.Request, context: CrdtContext[PNCounter]) -> Any:
        for step in request.actions:
            match step.WhichOneof("action"):
                case "update":
                    context.state.increment(step.update.pncounter.change)
                case "forward":
                    await gate(step.forward.id)
                case "fail":
                    return self.mistake(step.fail.message, context)
        return shown(context.state.value)

    def mistake(self, name: str, context: CrdtContext[PNCounter]) -> Any:
        match name:
            case "no message":
                return "no message"
            case "another type":
                return context.get_or_create(GCounter)
            case "raise":
                raise ValueError("something is wrong")
            case "interrupted":
                raise asyncio.CancelledError  # as what is awaited does that somebody else has cancelled
            case "fail":
                context.fail("no")
            case "keep":
                KEPT.append(context)
            case "too late":
                KEPT[-1].state.increment()
        return shown(context.state.value)

    @command
    async def process_streamed(self, request: model.StreamedRequest, context: StreamedContext[PNCounter]) -> model.Response | None:
        """The id of the first effect says what happens with a change."""
        how = request.effects[0].id

        def changed(change: Change[PNCounter]) -> Any:
            match how:
                case "write":
                    change.state.increment()
                case "fail":
                    change.fail("over")
                case "odd":
                    return shown(change.state.value) if change.state.value % 2 else None
            return shown(change.state.value)

        async def slowly(change: Change[PNCounter]) -> Any:
            value = change.state.value
            await gate(f"told {value}")
            return shown(value)

        def cancelled(last: CrdtContext[PNCounter]) -> None:
            last.state.increment(100)
            raise ValueError("cannot say good-bye")

        if how != "only once":
            context.on_change(slowly if how == "slowly" else changed)
        if how == "cancelled badly":
            context.on_cancel(cancelled)
        seen = shown(context.state.value)
        if how == "begins slowly":
            await gate("begun")
        return seen


@pytest.fixture
async def live(serving: Callable[..., Any]) -> AsyncIterator[CrdtStream]:
    GATES.clear()
    KEPT.clear()
    async with serving(Tally) as channel:
        live = await CrdtStream(channel, "PNCounter").init()
        yield live
        await live.passivate()


def count(by: int) -> model.RequestAction:
    return model.RequestAction(update=model.Update(pncounter=model.PNCounterUpdate(change=by)))


def wait(name: str) -> model.RequestAction:
    return model.RequestAction(forward=model.Forward(id=name))


def does(mistake: str) -> model.RequestAction:
    return model.RequestAction(fail=model.Fail(message=mistake))


def answered(number: int, value: int, by: int = 0, streamed: bool = False) -> pb.CrdtStreamOut:
    reply = pb.CrdtReply(command_id=number, client_action=replied(shown(value).state), streamed=streamed)
    if by:
        reply.state_action.update.pncounter.change = by
    return pb.CrdtStreamOut(reply=reply)


def told(number: int, value: int) -> pb.CrdtStreamOut:
    return pb.CrdtStreamOut(streamed_message=pb.CrdtStreamedMessage(command_id=number, client_action=replied(shown(value).state)))


def broken(number: int, text: str) -> pb.CrdtStreamOut:
    return pb.CrdtStreamOut(failure=entity_pb2.Failure(command_id=number, description=text))


def others(by: int) -> Delta:
    return Delta(pncounter=pb.PNCounterDelta(change=by))


async def watching(live: CrdtStream, how: str, value: int = 0, streamed: bool = True) -> int:
    number = await live.ask(model.StreamedRequest(id=live.key, effects=[model.Effect(id=how)]), "ProcessStreamed")
    assert await live.read() == answered(number, value, streamed=streamed)
    return number


def opened(name: str) -> None:
    GATES.setdefault(name, asyncio.Event()).set()


# Several at once --------------------------------------------------------------------------------------------------------


async def test_commands_run_at_once_and_are_answered_as_they_finish_each_with_its_own_change(live: CrdtStream) -> None:
    await live.process(count(1), wait("one"))
    await live.process(count(10), wait("two"))
    assert await live.told(count(100)) == answered(3, 100, 100)
    opened("two")
    assert await live.read() == answered(2, 110, 10)
    opened("one")
    assert await live.read() == answered(1, 111, 1)


async def test_a_command_that_fails_takes_only_its_own_change_with_it(live: CrdtStream) -> None:
    await live.process(count(1), wait("one"), does("raise"))
    await live.process(count(10), wait("two"))
    opened("two")
    assert await live.read() == answered(2, 10, 10)
    opened("one")
    assert await live.read() == broken(1, "something is wrong")
    assert await live.told() == answered(3, 10)


async def test_what_others_change_meanwhile_is_seen_and_not_told_back(live: CrdtStream) -> None:
    await live.process(count(1), wait("one"))
    await live.write(delta=others(50))
    assert await live.told() == answered(2, 50)
    opened("one")
    assert await live.read() == answered(1, 51, 1)


async def test_a_stream_of_the_proxy_that_ends_lets_commands_finish(live: CrdtStream) -> None:
    await live.process(count(1), wait("one"))
    await live._call.done_writing()
    opened("one")
    assert await live.read() == answered(1, 1, 1)


async def test_others_delete_it_and_a_new_value_begins(live: CrdtStream) -> None:
    assert await live.told(count(5)) == answered(1, 5, 5)
    number = await watching(live, "all", 5)
    await live.write(delete=pb.CrdtDelete())
    assert await live.told(count(1)) == answered(number + 1, 1, 1), "and the stream hears no more"


async def test_a_change_that_was_under_way_when_others_deleted_it_begins_a_new_value(live: CrdtStream) -> None:
    assert await live.told(count(5)) == answered(1, 5, 5)
    await live.process(count(1), wait("one"))
    await live.write(delete=pb.CrdtDelete())
    assert await live.told() == answered(3, 0)
    opened("one")
    assert (await live.read()).reply.state_action.update == others(1)
    assert await live.told() == answered(4, 1)


# Mistakes ---------------------------------------------------------------------------------------------------------------

MISTAKES = [
    ("no message", "'no message' is not a protobuf message"),
    ("another type", "the value is a PNCounter, not a GCounter"),
    ("raise", "something is wrong"),
    ("interrupted", "something that the command waited for was cancelled"),
]


@pytest.mark.parametrize(("mistake", "text"), MISTAKES)
async def test_a_mistake_fails_its_command_and_changes_nothing(live: CrdtStream, mistake: str, text: str) -> None:
    assert await live.told(count(1)) == answered(1, 1, 1)
    assert await live.told(count(10), does(mistake)) == broken(2, text)
    assert await live.told() == answered(3, 1)


async def test_a_fail_is_an_answer_and_changes_nothing(live: CrdtStream) -> None:
    refusal = entity_pb2.ClientAction(failure=entity_pb2.Failure(command_id=1, description="no"))
    assert await live.told(count(10), does("fail")) == pb.CrdtStreamOut(reply=pb.CrdtReply(command_id=1, client_action=refusal))
    assert await live.told() == answered(2, 0)


async def test_a_command_that_nobody_has_says_so(live: CrdtStream) -> None:
    assert broken(await live.ask(model.Request(), "Nope"), f"{SERVICE}.Nope: this entity has no such command") == await live.read()


async def test_a_value_cannot_be_changed_when_its_command_is_over(live: CrdtStream) -> None:
    assert await live.told(count(1), does("keep")) == answered(1, 1, 1)
    [context] = KEPT
    assert context.state.value == 1
    with pytest.raises(NotYourTurn, match="only while a command or a cancellation is handled"):
        context.state.increment()
    assert (await live.told(does("too late"))).failure.description.startswith("a replicated value changes only while")
    assert await live.told() == answered(3, 1)


# Streams ----------------------------------------------------------------------------------------------------------------


async def test_a_stream_hears_of_others_changes_and_skips_what_it_wants(live: CrdtStream) -> None:
    number = await watching(live, "odd")
    await live.write(delta=others(1))
    assert await live.read() == told(number, 1)
    await live.write(delta=others(1))
    await live.write(delta=others(3))
    assert await live.read() == told(number, 5)


async def test_a_stream_whose_watcher_waits_hears_of_changes_in_their_order(live: CrdtStream) -> None:
    number = await watching(live, "slowly")
    assert await live.told(count(1)) == answered(2, 1, 1)
    assert await live.told(count(1)) == answered(3, 2, 1)
    opened("told 2")
    opened("told 1")
    first, second = await live.read(), await live.read()
    assert first in (told(number, 1), told(number, 2)), "the watcher sees the value as it is when it is called"
    assert second == told(number, 2)


async def test_a_stream_that_begins_while_another_command_changes_the_value_hears_of_that(live: CrdtStream) -> None:
    beginning = await live.ask(model.StreamedRequest(id=live.key, effects=[model.Effect(id="begins slowly")]), "ProcessStreamed")
    assert await live.told(count(1)) == answered(2, 1, 1)
    opened("begun")
    assert await live.read() == answered(beginning, 0, streamed=True), "which is what it saw at first"
    assert await live.read() == told(beginning, 1)
    assert await live.told(count(1)) == answered(3, 2, 1)
    assert await live.read() == told(beginning, 2)


async def test_a_watcher_that_waits_when_others_change_the_value_holds_no_command_up(live: CrdtStream) -> None:
    number = await watching(live, "slowly")
    await live.write(delta=others(1))
    assert await live.told() == answered(2, 1)
    opened("told 1")
    assert await live.read() == told(number, 1)


async def test_a_command_that_asks_for_nothing_more_has_one_answer(live: CrdtStream) -> None:
    await watching(live, "only once", streamed=False)
    assert await live.told(count(1)) == answered(2, 1, 1), "and nothing of the change comes to the first"


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("write", broken(1, "a replicated value cannot be changed by on_change, which only tells of changes")),
        (
            "fail",
            pb.CrdtStreamOut(
                streamed_message=pb.CrdtStreamedMessage(
                    command_id=1,
                    end_stream=True,
                    client_action=entity_pb2.ClientAction(failure=entity_pb2.Failure(command_id=1, description="over")),
                )
            ),
        ),
    ],
)
async def test_a_watcher_that_fails_ends_its_stream_only(live: CrdtStream, how: str, expected: pb.CrdtStreamOut) -> None:
    await watching(live, how)
    other = await watching(live, "all")
    await live.write(delta=others(1))
    assert await live.read() == expected
    assert await live.read() == told(other, 1)
    await live.write(delta=others(1))
    assert await live.read() == told(other, 2)


async def test_a_cancellation_is_always_answered_and_changes_nothing_when_it_fails(live: CrdtStream) -> None:
    number = await watching(live, "all")
    await live.cancel(number)
    assert await live.read() == pb.CrdtStreamOut(stream_cancelled_response=pb.CrdtStreamCancelledResponse(command_id=number))
    await live.cancel(number)
    assert await live.read() == pb.CrdtStreamOut(stream_cancelled_response=pb.CrdtStreamCancelledResponse(command_id=number))
    number = await watching(live, "cancelled badly")
    await live.cancel(number)
    assert await live.read() == broken(number, "cannot say good-bye")
    assert await live.told() == answered(3, 0)


# The proxy's mistakes, and definitions ----------------------------------------------------------------------------------


async def test_a_stream_that_does_not_begin_with_init_is_refused(serving: Callable[..., Any]) -> None:
    async with serving(Tally) as channel:
        live = CrdtStream(channel, "PNCounter")
        await live.process(count(1))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await live.read()
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_value_of_another_type_than_declared_fails_each_command(serving: Callable[..., Any]) -> None:
    async with serving(Tally) as channel:
        live = await CrdtStream(channel, "PNCounter").init(Delta(gcounter=pb.GCounterDelta(increment=1)))
        text = "the value is a GCounter, not a PNCounter; delete it first to change its type"
        assert await live.told(count(1)) == broken(1, text)
        await live.passivate()


def test_discovery_names_the_kind() -> None:
    assert [definition.entity_type for definition in Function(Tally)._definitions.values()] == ["cloudstate.crdt.Crdt"]
