"""The turns of proxy and function on a CRDT's stream: many commands at once, streamed ones, cancellations, passivation, deletion, failures.

An entity whose commands are all answered may leave memory at any moment, so the next command of a case comes before the last answer.
"""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from google.protobuf import any_pb2

from cloudstate_core.pb.cloudstate import crdt_pb2 as crdt
from tests.stateful_proxy.processes import until
from tests.tck import scripted
from tests.tck.client import Client, Exchange, outcome
from tests.tck.messages import Crdt as Cr
from tests.tck.messages import reply
from tests.tck.pb.cloudstate.tck.model import crdt_pb2 as pb
from tests.tck.scripted import Call, ScriptedFunction
from tests.tck.worlds import ABANDONED, World, started

pytestmark = pytest.mark.asyncio(loop_scope="session")

MODEL = "cloudstate.tck.model.crdt.CrdtTckModel"
IDLE = 0.2
"""Seconds after which the CRDTs of these cases leave memory."""
UNKNOWN = grpc.StatusCode.UNKNOWN


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared_world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One whose entities are soon idle, and whose function may break."""
    folder = tmp_path_factory.mktemp("crdts")
    async with started(folder, f"sqlite:{folder / 'journal.db'}", steady=False, CLOUDSTATE_PASSIVATION_TIMEOUT=f"{IDLE * 1000:.0f}ms") as world:
        yield world


def process(client: Client, key: str) -> asyncio.Task[pb.Response]:
    return client.unary(f"/{MODEL}/Process", pb.Request(id=key), pb.Response)


def watch(client: Client, key: str) -> Exchange[pb.Response]:
    return client.stream(f"/{MODEL}/ProcessStreamed", pb.Response, pb.StreamedRequest(id=key))


def state(value: int) -> pb.Response:
    return pb.Response(state=pb.State(gcounter=pb.GCounterValue(value=value)))


def add(increment: int) -> crdt.CrdtDelta:
    return crdt.CrdtDelta(gcounter=crdt.GCounterDelta(increment=increment))


async def opened(function: ScriptedFunction, key: str, delta: crdt.CrdtDelta | None = None) -> Call:
    """The stream of a CRDT, with its value if it has one."""
    stream = await function.call(scripted.CRDT)
    await stream.expect(Cr.init(MODEL, key, delta))
    return stream


async def asked(stream: Call, key: str, number: int) -> None:
    """A command has come."""
    await stream.expect(Cr.command(key, number, "Process", pb.Request(id=key)))


async def watched(stream: Call, key: str, number: int) -> None:
    """A streamed command has come."""
    await stream.expect(Cr.command(key, number, "ProcessStreamed", pb.StreamedRequest(id=key), streamed=True))


async def silent(stream: Call, seconds: float = 0.1) -> None:
    """Nothing comes on this stream."""
    await asyncio.sleep(seconds)
    assert stream.unexpected() == []


async def test_commands_are_answered_in_any_order(function: ScriptedFunction, client: Client, key: str) -> None:
    first = process(client, key)
    stream = await opened(function, key)
    await asked(stream, key, 1)
    second = process(client, key)
    await asked(stream, key, 2)
    third = process(client, key)
    await asked(stream, key, 3)
    await stream.send(Cr.reply(3, reply(state(1)), add(1)))
    assert await third == state(1)
    await stream.send(Cr.reply(1, reply(state(3)), add(2)))
    assert await first == state(3)
    await stream.send(Cr.reply(2, reply(state(3))))
    assert await second == state(3)
    await stream.expect_closed()


async def test_a_streamed_command_whose_answer_does_not_stream_ends_with_it(function: ScriptedFunction, client: Client, key: str) -> None:
    exchange = watch(client, key)
    stream = await opened(function, key)
    await watched(stream, key, 1)
    await stream.send(Cr.reply(1, reply(state(0))))
    assert await exchange.read() == state(0)
    await exchange.expect_end()
    await stream.expect_closed()


async def test_the_function_ends_a_streamed_command(function: ScriptedFunction, client: Client, key: str) -> None:
    """With a last message or without; no cancellation follows."""
    first = watch(client, key)
    stream = await opened(function, key)
    await watched(stream, key, 1)
    second = watch(client, key)
    await watched(stream, key, 2)
    for number, exchange, last in ((1, first, reply(state(2))), (2, second, None)):
        await stream.send(Cr.reply(number, reply(state(0)), streamed=True), Cr.message(number, reply(state(1))), Cr.message(number, last, end=True))
        assert [await exchange.read() for _ in range(2 if last is None else 3)] == [state(0), state(1), state(2)][: 2 if last is None else 3]
        await exchange.expect_end()
    await stream.expect_closed()


async def test_a_caller_who_leaves_before_the_reply(world: World, function: ScriptedFunction, client: Client, key: str) -> None:
    """The cancellation comes when the function has replied, and once."""
    abandoned = world.proxy.figure(ABANDONED)
    exchange = watch(client, key)
    stream = await opened(function, key)
    await watched(stream, key, 1)
    exchange.cancel()
    await until(lambda: world.proxy.figure(ABANDONED) == abandoned + 1, "the proxy knows")
    answer = process(client, key)
    await asked(stream, key, 2)
    await stream.send(Cr.reply(1, None, streamed=True))
    await stream.expect(Cr.cancelled(key, 1))
    await stream.send(Cr.message(1, reply(state(0))), Cr.cancel_response(1, add(5)))
    await stream.send(Cr.reply(2, reply(state(5))))
    assert await answer == state(5)
    await stream.expect_closed()
    answer = process(client, key)
    stream = await opened(function, key, add(5))
    await asked(stream, key, 1)
    await stream.send(Cr.reply(1, reply(state(5))))
    await answer
    await stream.expect_closed()


async def test_a_caller_who_leaves_before_the_reply_of_a_call_that_does_not_stream(
    world: World, function: ScriptedFunction, client: Client, key: str
) -> None:
    abandoned = world.proxy.figure(ABANDONED)
    exchange = watch(client, key)
    stream = await opened(function, key)
    await watched(stream, key, 1)
    exchange.cancel()
    await until(lambda: world.proxy.figure(ABANDONED) == abandoned + 1, "the proxy knows")
    await stream.send(Cr.reply(1, reply(state(0))))
    await stream.expect_closed()


async def test_a_cancellation_that_is_not_answered_blocks_nothing(function: ScriptedFunction, client: Client, key: str) -> None:
    exchange = watch(client, key)
    stream = await opened(function, key)
    await watched(stream, key, 1)
    await stream.send(Cr.reply(1, reply(state(0)), streamed=True))
    assert await exchange.read() == state(0)
    waiting = process(client, key)
    await asked(stream, key, 2)
    exchange.cancel()
    await stream.expect(Cr.cancelled(key, 1))
    answer = process(client, key)
    await asked(stream, key, 3)
    await stream.send(Cr.reply(3, reply(state(1)), add(1)))
    assert await answer == state(1)
    await stream.send(Cr.reply(2, reply(state(1))))
    assert await waiting == state(1)
    await stream.expect_closed()


async def test_a_silent_stream_is_cancelled_by_an_http_caller_who_hangs_up(function: ScriptedFunction, client: Client, key: str) -> None:
    """Although the stream has not carried a single message."""
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
    body = f'{{"id":"{key}","empty":true}}'
    await asyncio.to_thread(connection.request, "POST", f"/{MODEL}/ProcessStreamed", body, {"Content-Type": "application/json"})
    stream = await opened(function, key)
    await stream.expect(Cr.command(key, 1, "ProcessStreamed", pb.StreamedRequest(id=key, empty=True), streamed=True))
    await stream.send(Cr.reply(1, None, streamed=True))
    await silent(stream)
    connection.close()
    await stream.expect(Cr.cancelled(key, 1))
    await stream.send(Cr.cancel_response(1))
    await stream.expect_closed()


async def test_an_open_stream_keeps_the_entity_in_memory(function: ScriptedFunction, client: Client, key: str) -> None:
    exchange = watch(client, key)
    stream = await opened(function, key)
    await watched(stream, key, 1)
    await stream.send(Cr.reply(1, reply(state(0)), streamed=True))
    assert await exchange.read() == state(0)
    await silent(stream, IDLE + 2.2)
    exchange.cancel()
    await stream.expect(Cr.cancelled(key, 1))
    await stream.send(Cr.cancel_response(1))
    await stream.expect_closed()


def text(value: str) -> any_pb2.Any:
    raw = value.encode()
    return any_pb2.Any(type_url="p.cloudstate.io/string", value=b"\x0a" + bytes([len(raw)]) + raw)


def entry(name: str, delta: crdt.CrdtDelta) -> crdt.ORMapEntryDelta:
    return crdt.ORMapEntryDelta(key=text(name), delta=delta)


VALUES: list[tuple[str, list[crdt.CrdtDelta], crdt.CrdtDelta]] = [
    ("GCounter", [add(40), add(2)], add(42)),
    (
        "PNCounter",
        [crdt.CrdtDelta(pncounter=crdt.PNCounterDelta(change=n)) for n in (5, -12)],
        crdt.CrdtDelta(pncounter=crdt.PNCounterDelta(change=-7)),
    ),
    ("GSet", [crdt.CrdtDelta(gset=crdt.GSetDelta(added=[text("a")]))] * 2, crdt.CrdtDelta(gset=crdt.GSetDelta(added=[text("a")]))),
    (
        "ORSet",
        [crdt.CrdtDelta(orset=crdt.ORSetDelta(added=[text("a"), text("b")])), crdt.CrdtDelta(orset=crdt.ORSetDelta(removed=[text("a")]))],
        crdt.CrdtDelta(orset=crdt.ORSetDelta(added=[text("b")])),
    ),
    (
        "LWWRegister",
        [crdt.CrdtDelta(lwwregister=crdt.LWWRegisterDelta(value=text(v))) for v in "xy"],
        crdt.CrdtDelta(lwwregister=crdt.LWWRegisterDelta(value=text("y"))),
    ),
    ("Flag", [crdt.CrdtDelta(flag=crdt.FlagDelta(value=True))], crdt.CrdtDelta(flag=crdt.FlagDelta(value=True))),
    (
        "ORMap",
        [
            crdt.CrdtDelta(ormap=crdt.ORMapDelta(added=[entry("GCounter-a", add(1)), entry("GCounter-b", add(2))])),
            crdt.CrdtDelta(ormap=crdt.ORMapDelta(removed=[text("GCounter-a")], updated=[entry("GCounter-b", add(3))])),
        ],
        crdt.CrdtDelta(ormap=crdt.ORMapDelta(added=[entry("GCounter-b", add(5))])),
    ),
    (
        "Vote",
        [crdt.CrdtDelta(vote=crdt.VoteDelta(self_vote=True))],
        crdt.CrdtDelta(vote=crdt.VoteDelta(self_vote=True, votes_for=1, total_voters=1)),
    ),
]


@pytest.mark.parametrize(("kind", "updates", "value"), VALUES, ids=[kind for kind, *_ in VALUES])
async def test_a_value_comes_back_after_passivation(
    function: ScriptedFunction, client: Client, key: str, kind: str, updates: list[crdt.CrdtDelta], value: crdt.CrdtDelta
) -> None:
    """As the difference to nothing, whatever led to it; and after its deletion there is none."""
    key = f"{kind}-{key}"
    answers = [process(client, key)]
    stream = await opened(function, key)
    await asked(stream, key, 1)
    for number in range(2, len(updates) + 1):
        answers.append(process(client, key))
        await asked(stream, key, number)
    for number, (update, answer) in enumerate(zip(updates, answers, strict=True), 1):
        await stream.send(Cr.reply(number, reply(pb.Response()), update))
        await answer
    await stream.expect_closed()
    answer = process(client, key)
    stream = await opened(function, key, value)
    await asked(stream, key, 1)
    await stream.send(Cr.reply(1, reply(pb.Response()), delete=True))
    await answer
    await stream.expect_closed()
    answer = process(client, key)
    stream = await opened(function, key)
    await asked(stream, key, 1)
    await stream.send(Cr.reply(1, reply(pb.Response())))
    await answer
    await stream.expect_closed()


async def test_another_type_than_it_has_is_refused(function: ScriptedFunction, client: Client, key: str) -> None:
    answer = process(client, key)
    stream = await opened(function, key)
    await asked(stream, key, 1)
    second = process(client, key)
    await asked(stream, key, 2)
    await stream.send(Cr.reply(1, reply(state(1)), add(1)))
    await answer
    await stream.send(Cr.reply(2, reply(state(1)), crdt.CrdtDelta(flag=crdt.FlagDelta(value=True))))
    assert (await outcome(second))[0] is UNKNOWN
    assert "FLAG" in await function.report(), "the function is told"
    await function.forget()


@pytest.mark.parametrize("consistency", ["LOCAL", "MAJORITY", "ALL"])
async def test_write_consistency_of_one_node(function: ScriptedFunction, client: Client, key: str, consistency: str) -> None:
    answer = process(client, key)
    stream = await opened(function, key)
    await asked(stream, key, 1)
    out = Cr.reply(1, reply(state(1)), add(1))
    out.reply.state_action.write_consistency = crdt.CrdtWriteConsistency.Value(consistency)  # type: ignore[assignment]
    await stream.send(out)
    assert await answer == state(1)
    await stream.expect_closed()


async def test_a_reply_that_streams_to_a_command_that_does_not_is_a_breach(function: ScriptedFunction, client: Client, key: str) -> None:
    answer = process(client, key)
    stream = await opened(function, key)
    await asked(stream, key, 1)
    await stream.send(Cr.reply(1, reply(state(1)), streamed=True))
    assert (await outcome(answer))[0] is UNKNOWN
    assert "streamed" in await function.report(), "the function is told"
    await stream.expect_over()


@pytest.mark.parametrize("broken", ["failure", "end"])
async def test_a_crash_ends_every_open_call(function: ScriptedFunction, client: Client, key: str, broken: str) -> None:
    watching, waiting = watch(client, key), process(client, key)
    stream = await opened(function, key)
    first = await stream.take(crdt.CrdtStreamIn)
    second = await stream.take(crdt.CrdtStreamIn)
    assert {first.command.name, second.command.name} == {"Process", "ProcessStreamed"}
    streamed = first if first.command.streamed else second
    await stream.send(Cr.reply(streamed.command.id, reply(state(0)), streamed=True))
    assert await watching.read() == state(0)
    if broken == "failure":
        out = crdt.CrdtStreamOut()
        out.failure.description = "a secret of the handler"
        await stream.send(out)
        await stream.expect_over()
    else:
        await stream.close()
    assert (await outcome(waiting))[0] is UNKNOWN
    assert (await watching.error())[0] is UNKNOWN
    answer = process(client, key)
    stream = await opened(function, key)
    await asked(stream, key, 1)
    await stream.send(Cr.reply(1, reply(state(0))))
    assert await answer == state(0)
    await stream.expect_closed()
