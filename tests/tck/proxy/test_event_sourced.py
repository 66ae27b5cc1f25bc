"""Conformance: verifying proxy test: event sourced entity."""

from __future__ import annotations

import asyncio
import json

import grpc
import pytest

from tests.tck import scripted
from tests.tck.client import Client, Page, outcome
from tests.tck.messages import EventSourced as Es
from tests.tck.messages import effect, failure, forward, reply
from tests.tck.pb.cloudstate.tck.model import eventsourced_pb2 as pb
from tests.tck.scripted import Call, ScriptedFunction

pytestmark = pytest.mark.asyncio(loop_scope="session")

MODEL, TWO, CONFIGURED = (f"cloudstate.tck.model.EventSourced{name}" for name in ("TckModel", "Two", "Configured"))
CALL_TWO = (TWO, "Call")
TEXT = "text/plain; charset=UTF-8"


def emit(value: str) -> pb.RequestAction:
    return pb.RequestAction(emit=pb.Emit(value=value))


def fail(text: str) -> pb.RequestAction:
    return pb.RequestAction(fail=pb.Fail(message=text))


def persisted(value: str) -> pb.Persisted:
    return pb.Persisted(value=value)


def response(text: str) -> pb.Response:
    return pb.Response(message=text)


def process(client: Client, request: pb.Request) -> asyncio.Task[pb.Response]:
    return client.unary(f"/{MODEL}/Process", request, pb.Response)


async def opened(function: ScriptedFunction, service: str, key: str) -> Call:
    """The stream of an entity that has no events."""
    stream = await function.call(scripted.EVENT_SOURCED)
    await stream.expect(Es.init(service, key))
    return stream


async def test_verify_state_changes(function: ScriptedFunction, client: Client, key: str) -> None:
    """Ten events with a snapshot every five; what is stored is what the function sent, as a restart of the entity shows."""
    answer = process(client, pb.Request(id=key))
    stream = await opened(function, MODEL, key)
    await stream.expect(Es.command(key, 1, "Process", pb.Request(id=key)))
    await stream.send(Es.reply(1, reply(response(""))))
    assert await answer == response("")
    state = ""
    for n in range(1, 11):
        request, state = pb.Request(id=key, actions=[emit(f"{n},")]), f"{state}{n},"
        answer = process(client, request)
        await stream.expect(Es.command(key, n + 1, "Process", request))
        snapshot = persisted(state) if n % 5 == 0 else None
        await stream.send(Es.reply(n + 1, reply(response(state)), [persisted(f"{n},")], snapshot))
        assert await answer == response(state)
    several = pb.Request(id=key, actions=[emit("a"), emit("b"), emit("c")])
    answer = process(client, several)
    await stream.expect(Es.command(key, 12, "Process", several))
    await stream.send(Es.reply(12, reply(response(state + "abc")), [persisted("a"), persisted("b"), persisted("c")]))
    assert await answer == response(state + "abc")
    answer = process(client, pb.Request(id=key))
    await stream.expect(Es.command(key, 13, "Process", pb.Request(id=key)))
    await stream.send(Es.reply(13, failure(13, "once more", restart=True)))
    assert await outcome(answer) == (grpc.StatusCode.UNKNOWN, "once more")
    await stream.expect_closed()
    stream = await function.call(scripted.EVENT_SOURCED)
    await stream.expect(Es.init(MODEL, key, persisted(state), 10))
    for sequence, value in enumerate("abc", 11):
        await stream.expect(Es.event(sequence, persisted(value)))


async def test_verify_forwards_and_side_effects(function: ScriptedFunction, client: Client, key: str) -> None:
    """The second service has a stream of its own, for the same id; ids count on there, and the first entity's events are stored."""
    request = pb.Request(id=key, actions=[emit("x"), pb.RequestAction(forward=pb.Forward(id=key))])
    answer = process(client, request)
    stream = await opened(function, MODEL, key)
    await stream.expect(Es.command(key, 1, "Process", request))
    await stream.send(Es.reply(1, forward(CALL_TWO, pb.Request(id=key)), [persisted("x")]))
    two = await opened(function, TWO, key)
    await two.expect(Es.command(key, 1, "Call", pb.Request(id=key)))
    await two.send(Es.reply(1, reply(response("two"))))
    assert await answer == response("two")
    request = pb.Request(id=key, actions=[pb.RequestAction(effect=pb.Effect(id=key, synchronous=False))])
    answer = process(client, request)
    await stream.expect(Es.command(key, 2, "Process", request))
    await stream.send(Es.reply(2, reply(response("x")), effects=[effect(CALL_TWO, pb.Request(id=key))]))
    assert await answer == response("x"), "an effect that is not synchronous keeps nobody waiting"
    await two.expect(Es.command(key, 2, "Call", pb.Request(id=key)))
    await two.send(Es.reply(2, reply(response(""))))
    request = pb.Request(id=key, actions=[pb.RequestAction(effect=pb.Effect(id=key, synchronous=True))])
    answer = process(client, request)
    await stream.expect(Es.command(key, 3, "Process", request))
    await stream.send(Es.reply(3, reply(response("x")), effects=[effect(CALL_TWO, pb.Request(id=key), synchronous=True)]))
    await two.expect(Es.command(key, 3, "Call", pb.Request(id=key)))
    await asyncio.sleep(0.02)
    assert not answer.done(), "a synchronous effect is awaited"
    await two.send(Es.reply(3, reply(response(""))))
    assert await answer == response("x")


async def test_verify_failures(function: ScriptedFunction, client: Client, key: str) -> None:
    """Whatever comes with a failure is not stored; a restart closes the stream and opens the next one at once."""
    request = pb.Request(id=key, actions=[emit("x")])
    answer = process(client, request)
    stream = await opened(function, MODEL, key)
    await stream.expect(Es.command(key, 1, "Process", request))
    await stream.send(Es.reply(1, reply(response("x")), [persisted("x")]))
    assert await answer == response("x")
    request = pb.Request(id=key, actions=[fail("expected failure")])
    answer = process(client, request)
    await stream.expect(Es.command(key, 2, "Process", request))
    await stream.send(Es.reply(2, failure(2, "expected failure")))
    assert await outcome(answer) == (grpc.StatusCode.UNKNOWN, "expected failure")
    answer = process(client, pb.Request(id=key))
    await stream.expect(Es.command(key, 3, "Process", pb.Request(id=key)))
    await stream.send(Es.reply(3, reply(response("x"))))
    assert await answer == response("x"), "the stream is the same"
    request = pb.Request(id=key, actions=[emit("y"), fail("after emitting")])
    answer = process(client, request)
    await stream.expect(Es.command(key, 4, "Process", request))
    await stream.send(Es.reply(4, failure(4, "after emitting", restart=True)))
    assert await outcome(answer) == (grpc.StatusCode.UNKNOWN, "after emitting")
    await stream.expect_closed()
    stream = await function.call(scripted.EVENT_SOURCED)
    await stream.expect(Es.init(MODEL, key))
    await stream.expect(Es.event(1, persisted("x")))
    answer = process(client, pb.Request(id=key))
    await stream.expect(Es.command(key, 1, "Process", pb.Request(id=key)))
    await stream.send(Es.reply(1, reply(response("x"))))
    assert await answer == response("x")


async def test_verify_http_api(function: ScriptedFunction, client: Client, key: str) -> None:
    route = f"/tck/model/eventsourced/{key}"
    answer = client.posting(route, json.dumps({"actions": [{"emit": {"value": "x"}}]}))
    stream = await opened(function, MODEL, key)
    await stream.expect(Es.command(key, 1, "Process", pb.Request(id=key, actions=[emit("x")])))
    await stream.send(Es.reply(1, reply(response("x")), [persisted("x")]))
    assert await answer == Page(200, "application/json", '{"message":"x"}')
    answer = client.posting(f"/{TWO}/Call", json.dumps({"id": key}))
    two = await opened(function, TWO, key)
    await two.expect(Es.command(key, 1, "Call", pb.Request(id=key)))
    await two.send(Es.reply(1, reply(response(""))))
    assert await answer == Page(200, "application/json", '{"message":""}')
    answer = client.posting(route, json.dumps({"actions": [{"fail": {"message": "expected failure"}}]}))
    await stream.expect(Es.command(key, 2, "Process", pb.Request(id=key, actions=[fail("expected failure")])))
    await stream.send(Es.reply(2, failure(2, "expected failure")))
    assert await answer == Page(500, TEXT, "expected failure")
    answer = client.posting(route, json.dumps({"actions": [{"emit": {"value": "y"}}, {"fail": {"message": "after emitting"}}]}))
    await stream.expect(Es.command(key, 3, "Process", pb.Request(id=key, actions=[emit("y"), fail("after emitting")])))
    await stream.send(Es.reply(3, failure(3, "after emitting", restart=True)))
    assert await answer == Page(500, TEXT, "after emitting")
    await stream.expect_closed()
    stream = await function.call(scripted.EVENT_SOURCED)
    await stream.expect(Es.init(MODEL, key))
    await stream.expect(Es.event(1, persisted("x")))
    answer = client.posting(route, "{}")
    await stream.expect(Es.command(key, 1, "Process", pb.Request(id=key)))
    await stream.send(Es.reply(1, reply(response("x"))))
    assert await answer == Page(200, "application/json", '{"message":"x"}')


async def test_verify_passivation_timeout(function: ScriptedFunction, client: Client, key: str) -> None:
    answer = client.unary(f"/{CONFIGURED}/Call", pb.Request(id=key), pb.Response)
    stream = await opened(function, CONFIGURED, key)
    await stream.expect(Es.command(key, 1, "Call", pb.Request(id=key)))
    await stream.send(Es.reply(1, reply(response("configured"))))
    assert await answer == response("configured")
    await stream.expect_closed()  # by its own timeout: that of the proxy is an hour
