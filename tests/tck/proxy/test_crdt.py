"""Conformance: verifying proxy test: CRDT entity."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import grpc
import pytest
from google.protobuf import any_pb2

from cloudstate_core.pb.cloudstate import crdt_pb2 as crdt
from tests.tck import scripted
from tests.tck.client import Client, Exchange, Page, outcome
from tests.tck.messages import Crdt as Cr
from tests.tck.messages import effect, failure, forward, reply
from tests.tck.pb.cloudstate.tck.model import crdt_pb2 as pb
from tests.tck.scripted import Call, ScriptedFunction

pytestmark = pytest.mark.asyncio(loop_scope="session")

MODEL, TWO, CONFIGURED = (f"cloudstate.tck.model.crdt.Crdt{name}" for name in ("TckModel", "Two", "Configured"))
CALL_TWO = (TWO, "Call")
TEXT = "text/plain; charset=UTF-8"
DELETE = pb.RequestAction(delete=pb.Delete())


def changed(**update: object) -> pb.RequestAction:
    """One update, as in `changed(pncounter=…)`."""
    return pb.RequestAction(update=pb.Update(**update))  # type: ignore[arg-type]


def pn_counter(value: int) -> pb.Response:
    return pb.Response(state=pb.State(pncounter=pb.PNCounterValue(value=value)))


def g_counter(value: int) -> pb.Response:
    return pb.Response(state=pb.State(gcounter=pb.GCounterValue(value=value)))


def g_set(*elements: str) -> pb.Response:
    return pb.Response(state=pb.State(gset=pb.GSetValue(elements=elements)))


def vote(mine: bool, votes: int) -> pb.Response:
    """A vote with one voter."""
    return pb.Response(state=pb.State(vote=pb.VoteValue(self_vote=mine, votes_for=votes, total_voters=1)))


def element(text: str) -> any_pb2.Any:
    """A string as an element of a set."""
    raw = text.encode()
    return any_pb2.Any(type_url="p.cloudstate.io/string", value=b"\x0a" + bytes([len(raw)]) + raw)


async def opened(function: ScriptedFunction, service: str, key: str) -> Call:
    """The stream of a CRDT that does not exist."""
    stream = await function.call(scripted.CRDT)
    await stream.expect(Cr.init(service, key))
    return stream


class Conversation:
    """Commands to one CRDT of the model, and what the function answers."""

    def __init__(self, function: ScriptedFunction, client: Client, key: str) -> None:
        self.function, self.client, self.key = function, client, key
        self.number = 0
        self.stream: Call

    async def asked(self, *actions: pb.RequestAction) -> asyncio.Task[pb.Response]:
        """A command arrives at the function."""
        request = pb.Request(id=self.key, actions=actions)
        answer = self.client.unary(f"/{MODEL}/Process", request, pb.Response)
        self.number += 1
        if self.number == 1:
            self.stream = await opened(self.function, MODEL, self.key)
        await self.stream.expect(Cr.command(self.key, self.number, "Process", request))
        return answer

    async def step(self, actions: Sequence[pb.RequestAction], state: pb.Response, update: crdt.CrdtDelta | None = None, delete: bool = False) -> None:
        """A command, its answer, and what the caller gets."""
        answer = await self.asked(*actions)
        await self.stream.send(Cr.reply(self.number, reply(state), update, delete))
        assert await answer == state


async def delete_two(function: ScriptedFunction, client: Client, two: Call, key: str, number: int) -> None:
    """The CRDT of the second service is deleted by a command of its own."""
    request = pb.Request(id=key, actions=[DELETE])
    answer = client.unary(f"/{TWO}/Call", request, pb.Response)
    await two.expect(Cr.command(key, number, "Call", request))
    await two.send(Cr.reply(number, reply(pb.Response()), delete=True))
    assert await answer == pb.Response()
    await two.expect_closed()


async def test_verify_state_changes(function: ScriptedFunction, client: Client, key: str) -> None:
    """The function's changes do not come back to it; the deletion closes the stream."""
    talk = Conversation(function, client, f"PNCounter-{key}")
    await talk.step([], pn_counter(0))
    total = 0
    for change in (1, -2, 44, -44, 10):
        total += change
        update = crdt.CrdtDelta(pncounter=crdt.PNCounterDelta(change=change))
        await talk.step([changed(pncounter=pb.PNCounterUpdate(change=change))], pn_counter(total), update)
    await talk.step([], pn_counter(total))
    await talk.step([DELETE], pn_counter(0), delete=True)
    await talk.stream.expect_closed()


async def test_verify_forwards_and_side_effects(function: ScriptedFunction, client: Client, key: str) -> None:
    talk = Conversation(function, client, key := f"GSet-{key}")
    await talk.step([changed(gset=pb.GSetUpdate(add="one"))], g_set("one"), crdt.CrdtDelta(gset=crdt.GSetDelta(added=[element("one")])))
    answer = await talk.asked(changed(gset=pb.GSetUpdate(add="two")), pb.RequestAction(forward=pb.Forward(id=key)))
    update = crdt.CrdtDelta(gset=crdt.GSetDelta(added=[element("two")]))
    await talk.stream.send(Cr.reply(2, forward(CALL_TWO, pb.Request(id=key)), update))
    two = await opened(function, TWO, key)
    await two.expect(Cr.command(key, 1, "Call", pb.Request(id=key)))
    await two.send(Cr.reply(1, reply(pb.Response())))
    assert await answer == pb.Response()
    answer = await talk.asked(pb.RequestAction(effect=pb.Effect(id=key)))
    await talk.stream.send(Cr.reply(3, reply(g_set("one", "two")), effects=[effect(CALL_TWO, pb.Request(id=key))]))
    assert await answer == g_set("one", "two"), "an effect that is not synchronous keeps nobody waiting"
    await two.expect(Cr.command(key, 2, "Call", pb.Request(id=key)))
    await two.send(Cr.reply(2, reply(pb.Response())))
    await talk.step([DELETE], g_set(), delete=True)
    await talk.stream.expect_closed()
    await delete_two(function, client, two, key, 3)


async def test_verify_failures(function: ScriptedFunction, client: Client, key: str) -> None:
    talk = Conversation(function, client, f"GCounter-{key}")
    update = crdt.CrdtDelta(gcounter=crdt.GCounterDelta(increment=42))
    await talk.step([changed(gcounter=pb.GCounterUpdate(increment=42))], g_counter(42), update)
    answer = await talk.asked(pb.RequestAction(fail=pb.Fail(message="expected failure")))
    await talk.stream.send(Cr.reply(2, failure(2, "expected failure")))
    assert await outcome(answer) == (grpc.StatusCode.UNKNOWN, "expected failure")
    await talk.step([], g_counter(42))
    await talk.step([DELETE], g_counter(0), delete=True)
    await talk.stream.expect_closed()


async def test_verify_streamed_responses_for_connection_tracking(function: ScriptedFunction, client: Client, key: str) -> None:
    """One caller watches the votes; another one votes by being there, and hears nothing all the while."""
    key = f"Vote-{key}"

    def begin(request: pb.StreamedRequest) -> Exchange[pb.Response]:
        return client.stream(f"/{MODEL}/ProcessStreamed", pb.Response, request)

    watching = pb.StreamedRequest(id=key)
    monitor = begin(watching)
    stream = await opened(function, MODEL, key)
    await stream.expect(Cr.command(key, 1, "ProcessStreamed", watching, streamed=True))
    await stream.send(Cr.reply(1, reply(vote(False, 0)), streamed=True))
    assert await monitor.read() == vote(False, 0)
    cast, withdrawn = (pb.Update(vote=pb.VoteUpdate(self_vote=mine)) for mine in (True, False))
    being_there = pb.StreamedRequest(id=key, initial_update=cast, cancel_update=withdrawn, empty=True)
    connection = begin(being_there)
    await stream.expect(Cr.command(key, 2, "ProcessStreamed", being_there, streamed=True))
    await stream.send(Cr.reply(2, None, crdt.CrdtDelta(vote=crdt.VoteDelta(self_vote=True)), streamed=True))
    await stream.send(Cr.message(1, reply(vote(True, 1))))
    assert await monitor.read() == vote(True, 1)
    connection.cancel()
    await stream.expect(Cr.cancelled(key, 2))
    await stream.send(Cr.cancel_response(2, crdt.CrdtDelta(vote=crdt.VoteDelta(self_vote=False))))
    await stream.send(Cr.message(1, reply(vote(False, 0))))
    assert await monitor.read() == vote(False, 0)
    monitor.cancel()
    await stream.expect(Cr.cancelled(key, 1))
    await stream.send(Cr.cancel_response(1))
    answer = client.unary(f"/{MODEL}/Process", pb.Request(id=key, actions=[DELETE]), pb.Response)
    await stream.expect(Cr.command(key, 3, "Process", pb.Request(id=key, actions=[DELETE])))
    await stream.send(Cr.reply(3, reply(vote(False, 0)), delete=True))
    assert await answer == vote(False, 0)
    await stream.expect_closed()


async def test_verify_http_api(function: ScriptedFunction, client: Client, key: str) -> None:
    key = f"PNCounter-{key}"
    route = f"/tck/model/crdt/{key}"
    answer = client.posting(route, "{}")
    stream = await opened(function, MODEL, key)
    await stream.expect(Cr.command(key, 1, "Process", pb.Request(id=key)))
    await stream.send(Cr.reply(1, reply(pn_counter(0))))
    assert await answer == Page(200, "application/json", '{"state":{"pncounter":{"value":"0"}}}')
    answer = client.posting(route, json.dumps({"actions": [{"update": {"pncounter": {"change": "-42"}}}]}))
    request = pb.Request(id=key, actions=[changed(pncounter=pb.PNCounterUpdate(change=-42))])
    await stream.expect(Cr.command(key, 2, "Process", request))
    await stream.send(Cr.reply(2, reply(pn_counter(-42)), crdt.CrdtDelta(pncounter=crdt.PNCounterDelta(change=-42))))
    assert await answer == Page(200, "application/json", '{"state":{"pncounter":{"value":"-42"}}}')
    answer = client.posting(route, json.dumps({"actions": [{"fail": {"message": "expected failure"}}]}))
    await stream.expect(Cr.command(key, 3, "Process", pb.Request(id=key, actions=[pb.RequestAction(fail=pb.Fail(message="expected failure"))])))
    await stream.send(Cr.reply(3, failure(3, "expected failure")))
    assert await answer == Page(500, TEXT, "expected failure")
    answer = client.posting(f"/{TWO}/Call", json.dumps({"id": key}))
    two = await opened(function, TWO, key)
    await two.expect(Cr.command(key, 1, "Call", pb.Request(id=key)))
    await two.send(Cr.reply(1, reply(pb.Response())))
    assert await answer == Page(200, "application/json", "{}")
    answer = client.posting(route, json.dumps({"actions": [{"delete": {}}]}))
    await stream.expect(Cr.command(key, 4, "Process", pb.Request(id=key, actions=[DELETE])))
    await stream.send(Cr.reply(4, reply(pn_counter(0)), delete=True))
    assert await answer == Page(200, "application/json", '{"state":{"pncounter":{"value":"0"}}}')
    await stream.expect_closed()
    await delete_two(function, client, two, key, 2)


async def test_verify_passivation_timeout(function: ScriptedFunction, client: Client, key: str) -> None:
    answer = client.unary(f"/{CONFIGURED}/Call", pb.Request(id=key), pb.Response)
    stream = await opened(function, CONFIGURED, key)
    await stream.expect(Cr.command(key, 1, "Call", pb.Request(id=key)))
    await stream.send(Cr.reply(1, reply(pb.Response())))
    assert await answer == pb.Response()
    await stream.expect_closed()  # by its own timeout: that of the proxy is an hour
