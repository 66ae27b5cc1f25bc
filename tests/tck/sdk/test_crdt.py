"""The conformance suite's model cases of replicated values in general, under its names: forwards, effects, failures, streams, consistency."""

from __future__ import annotations

import grpc.aio
import pytest
from cloudstate_sdk.pb.cloudstate import crdt_pb2 as pb
from cloudstate_sdk.pb.cloudstate import entity_pb2

from tests.tck.pb.cloudstate.tck.model import crdt_pb2 as model
from tests.tck.sdk.crdt_playing import (
    MODEL,
    TWO,
    TYPE,
    Case,
    CrdtStream,
    Delta,
    asks,
    change,
    effects,
    ordered,
    packed,
    play,
    replied,
    stream,
    text,
    texts,
)
from tests.tck.sdk.playing import discovered

# Discovery --------------------------------------------------------------------------------------------------------------


async def test_verify_crdt_entity_discovery(channel: grpc.aio.Channel) -> None:
    for service, persistence_id in ((MODEL, "crdt-tck-model"), (TWO, "crdt-tck-model-two")):
        found = await discovered(channel, service)
        assert (found.entity_type, found.persistence_id, found.HasField("passivation_strategy")) == (TYPE, persistence_id, False)


async def test_verify_crdt_configured_entity(channel: grpc.aio.Channel) -> None:
    found = await discovered(channel, "cloudstate.tck.model.crdt.CrdtConfigured")
    assert (found.entity_type, found.persistence_id, found.passivation_strategy.timeout.timeout) == (TYPE, "crdt-configured", 100)


# Values -----------------------------------------------------------------------------------------------------------------


def g_counter(value: int) -> model.State:
    return model.State(gcounter=model.GCounterValue(value=value))


def pn_counter(value: int) -> model.State:
    return model.State(pncounter=model.PNCounterValue(value=value))


def g_set(elements: str) -> model.State:
    return model.State(gset=model.GSetValue(elements=list(elements)))


def grow(*increments: int) -> list[model.RequestAction]:
    return [change(gcounter=model.GCounterUpdate(increment=by)) for by in increments]


def count(*changes: int) -> list[model.RequestAction]:
    return [change(pncounter=model.PNCounterUpdate(change=by)) for by in changes]


def collect(element: str) -> model.RequestAction:
    return change(gset=model.GSetUpdate(add=element))


def grown(by: int) -> Delta:
    return Delta(gcounter=pb.GCounterDelta(increment=by))


def changed(by: int) -> Delta:
    return Delta(pncounter=pb.PNCounterDelta(change=by))


def collected(elements: str) -> Delta:
    return Delta(gset=pb.GSetDelta(added=texts(elements)))


# Effects and failures ---------------------------------------------------------------------------------------------------

FAIL = model.RequestAction(fail=model.Fail(message="expected failure"))


def calls(name: str, synchronous: bool = False) -> model.RequestAction:
    return model.RequestAction(effect=model.Effect(id=name, synchronous=synchronous))


def entries(**deltas: Delta) -> Delta:
    added = [pb.ORMapEntryDelta(key=text(key.replace("_", "-")), delta=delta) for key, delta in deltas.items()]
    return Delta(ormap=pb.ORMapDelta(added=added))


MAP_ACTIONS = [
    change(ormap=model.ORMapUpdate(add="PNCounter-1")),
    *(
        change(ormap=model.ORMapUpdate(update=model.ORMapEntryUpdate(key="GSet-1", update=model.Update(gset=model.GSetUpdate(add=element)))))
        for element in "abc"
    ),
    *(calls(name) for name in "123"),
]
MAP_STATE = model.State(
    ormap=model.ORMapValue(
        entries=[
            model.ORMapEntryValue(key="GSet-1", value=g_set("abc")),
            model.ORMapEntryValue(key="PNCounter-1", value=pn_counter(0)),
        ]
    )
)

EFFECTS = [
    Case(
        "verify reply with side effect to second service",
        "GSet",
        [
            stream(
                asks(collect("o"), shows=g_set("o"), tells=collected("o")),
                asks(calls("x"), shows=g_set("o"), effects=effects("x")),
                asks(shows=g_set("o")),
            )
        ],
    ),
    Case(
        "verify synchronous side effect to second service",
        "ORSet",
        [stream(asks(calls("x", synchronous=True), shows=model.State(orset=model.ORSetValue()), effects=effects("x*")))],
    ),
    Case(
        "verify reply with multiple side effects",
        "Flag",
        [stream(asks(*(calls(name) for name in "123"), shows=model.State(flag=model.FlagValue()), effects=effects("1", "2", "3")))],
    ),
    Case(
        "verify reply with multiple side effects and state changes",
        "ORMap",
        [
            stream(
                asks(
                    *MAP_ACTIONS,
                    shows=MAP_STATE,
                    tells=entries(GSet_1=collected("abc"), PNCounter_1=changed(0)),
                    effects=effects("1", "2", "3"),
                )
            )
        ],
    ),
]


@pytest.mark.parametrize("case", EFFECTS, ids=[case.name for case in EFFECTS])
async def test_effects(channel: grpc.aio.Channel, case: Case) -> None:
    await play(channel, case)


def forwarded(number: int, name: str, tells: Delta | None = None, others: tuple[str, ...] = ()) -> pb.CrdtStreamOut:
    """The second service is to answer."""
    forward = entity_pb2.Forward(service_name=TWO, command_name="Call", payload=packed(model.Request(id=name)))
    reply = pb.CrdtReply(command_id=number, client_action=entity_pb2.ClientAction(forward=forward), side_effects=effects(*others))
    if tells is not None:
        reply.state_action.update.CopyFrom(ordered(tells))
    return pb.CrdtStreamOut(reply=reply)


def forward(name: str) -> model.RequestAction:
    return model.RequestAction(forward=model.Forward(id=name))


async def test_verify_forward_to_second_service(channel: grpc.aio.Channel) -> None:
    live = await CrdtStream(channel, "GCounter").init()
    await live.asked(asks(*grow(42), shows=g_counter(42), tells=grown(42)))
    assert await live.told(forward("x")) == forwarded(2, "x")
    await live.asked(asks(shows=g_counter(42)))
    await live.passivate()


async def test_verify_forward_with_state_changes(channel: grpc.aio.Channel) -> None:
    live = await CrdtStream(channel, "PNCounter").init()
    assert await live.told(*count(-42), forward("x")) == forwarded(1, "x", changed(-42))
    await live.passivate()


async def test_verify_forward_and_side_effect_to_second_service(channel: grpc.aio.Channel) -> None:
    live = await CrdtStream(channel, "LWWRegister").init()
    empty = Delta(lwwregister=pb.LWWRegisterDelta(value=text("")))
    assert await live.told(calls("b"), forward("a")) == forwarded(1, "a", empty, ("b",))
    await live.passivate()


def failed(number: int) -> pb.CrdtStreamOut:
    failure = entity_pb2.Failure(command_id=number, description="expected failure")
    return pb.CrdtStreamOut(reply=pb.CrdtReply(command_id=number, client_action=entity_pb2.ClientAction(failure=failure)))


async def test_verify_failure_action(channel: grpc.aio.Channel) -> None:
    live = await CrdtStream(channel, "GCounter").init()
    assert await live.told(FAIL) == failed(1)
    await live.passivate()


async def test_verify_connection_after_failure_action(channel: grpc.aio.Channel) -> None:
    live = await CrdtStream(channel, "PNCounter").init()
    await live.asked(asks(*count(42), shows=pn_counter(42), tells=changed(42)))
    assert await live.told(FAIL) == failed(2)
    await live.asked(asks(shows=pn_counter(42)))
    await live.passivate()


# Streams ----------------------------------------------------------------------------------------------------------------


def began(number: int, state: model.State | None) -> pb.CrdtStreamOut:
    """The first answer of a stream that stays open; None: there is none."""
    return pb.CrdtStreamOut(reply=pb.CrdtReply(command_id=number, client_action=None if state is None else replied(state), streamed=True))


def streamed(number: int, state: model.State, end: bool = False, others: tuple[str, ...] = ()) -> pb.CrdtStreamOut:
    """A further answer."""
    message = pb.CrdtStreamedMessage(command_id=number, client_action=replied(state), side_effects=effects(*others), end_stream=end)
    return pb.CrdtStreamOut(streamed_message=message)


def cancelled(number: int, update: Delta) -> pb.CrdtStreamOut:
    response = pb.CrdtStreamCancelledResponse(command_id=number, state_action=pb.CrdtStateAction(update=update))
    return pb.CrdtStreamOut(stream_cancelled_response=response)


async def watching(live: CrdtStream, first: model.State | None, **request: object) -> int:
    """Ask for a stream; its number."""
    number = await live.ask(model.StreamedRequest(id=live.key, **request), "ProcessStreamed")  # type: ignore[arg-type]
    assert await live.read() == began(number, first)
    return number


async def test_verify_streamed_responses(channel: grpc.aio.Channel) -> None:
    live = await CrdtStream(channel, "GCounter").init()
    number = await watching(live, g_counter(0))
    for by, total in ((1, 1), (2, 3), (3, 6)):
        await live.asked(asks(*grow(by), shows=g_counter(total), tells=grown(by)))
        assert await live.read() == streamed(number, g_counter(total))
    await live.passivate()


async def test_verify_streamed_responses_with_stream_ending_action(channel: grpc.aio.Channel) -> None:
    live = await CrdtStream(channel, "GCounter").init()
    number = await watching(live, g_counter(0), end_state=g_counter(3))
    await live.asked(asks(*grow(1), shows=g_counter(1), tells=grown(1)))
    assert await live.read() == streamed(number, g_counter(1))
    await live.asked(asks(*grow(2), shows=g_counter(3), tells=grown(2)))
    assert await live.read() == streamed(number, g_counter(3), end=True)
    await live.asked(asks(*grow(3), shows=g_counter(6), tells=grown(3)))
    await live.passivate()


async def test_verify_streamed_responses_with_cancellation(channel: grpc.aio.Channel) -> None:
    live = await CrdtStream(channel, "PNCounter").init()
    number = await watching(live, pn_counter(0), cancel_update=model.Update(pncounter=model.PNCounterUpdate(change=-42)))
    for by, total in ((10, 10), (20, 30)):
        await live.asked(asks(*count(by), shows=pn_counter(total), tells=changed(by)))
        assert await live.read() == streamed(number, pn_counter(total))
    await live.cancel(number)
    assert await live.read() == cancelled(number, changed(-42))
    await live.asked(asks(shows=pn_counter(-12)))
    await live.asked(asks(*count(30), shows=pn_counter(18), tells=changed(30)))
    await live.passivate()


async def test_verify_empty_streamed_responses_with_cancellation(channel: grpc.aio.Channel) -> None:
    live = await CrdtStream(channel, "PNCounter").init()
    await live.asked(asks(*count(10), shows=pn_counter(10), tells=changed(10)))
    number = await watching(live, None, empty=True, cancel_update=model.Update(pncounter=model.PNCounterUpdate(change=-42)))
    await live.cancel(number)
    assert await live.read() == cancelled(number, changed(-42))
    await live.asked(asks(shows=pn_counter(-32)))
    await live.passivate()


async def test_verify_streamed_responses_with_side_effects(channel: grpc.aio.Channel) -> None:
    live = await CrdtStream(channel, "GSet").init()
    number = await watching(live, g_set(""), effects=[model.Effect(id="one"), model.Effect(id="two", synchronous=True)])
    for element, shown in (("a", "a"), ("b", "ab")):
        await live.asked(asks(collect(element), shows=g_set(shown), tells=collected(element)))
        assert await live.read() == streamed(number, g_set(shown), others=("one", "two*"))
    await live.passivate()


# Consistency ------------------------------------------------------------------------------------------------------------


async def test_verify_write_consistency_can_be_configured(channel: grpc.aio.Channel) -> None:
    live = await CrdtStream(channel, "GCounter").init()
    total = 0
    for by, asked, told in ((1, model.LOCAL, pb.LOCAL), (2, model.MAJORITY, pb.MAJORITY), (3, model.ALL, pb.ALL)):
        total += by
        number = await live.process(change(gcounter=model.GCounterUpdate(increment=by), write_consistency=asked))
        action = pb.CrdtStateAction(update=grown(by), write_consistency=told)
        assert await live.read() == pb.CrdtStreamOut(
            reply=pb.CrdtReply(command_id=number, client_action=replied(g_counter(total)), state_action=action)
        )
    await live.passivate()
