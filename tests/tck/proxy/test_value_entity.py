"""Conformance: verifying proxy test: entity (value entities)."""

from __future__ import annotations

import asyncio
import json

import grpc
import pytest

from tests.tck import scripted
from tests.tck.client import Client, Page, outcome
from tests.tck.messages import ValueEntity as Ve
from tests.tck.messages import effect, failure, forward, reply
from tests.tck.pb.cloudstate.tck.model import valueentity_pb2 as pb
from tests.tck.scripted import Call, ScriptedFunction

pytestmark = pytest.mark.asyncio(loop_scope="session")

MODEL, TWO, CONFIGURED = (f"cloudstate.tck.model.valueentity.ValueEntity{name}" for name in ("TckModel", "Two", "Configured"))
CALL_TWO = (TWO, "Call")
TEXT = "text/plain; charset=UTF-8"
DELETE = pb.RequestAction(delete=pb.Delete())


def update(value: str) -> pb.RequestAction:
    return pb.RequestAction(update=pb.Update(value=value))


def fail(text: str) -> pb.RequestAction:
    return pb.RequestAction(fail=pb.Fail(message=text))


def persisted(value: str) -> pb.Persisted:
    return pb.Persisted(value=value)


def response(text: str) -> pb.Response:
    return pb.Response(message=text)


def process(client: Client, request: pb.Request) -> asyncio.Task[pb.Response]:
    return client.unary(f"/{MODEL}/Process", request, pb.Response)


async def opened(function: ScriptedFunction, service: str, key: str) -> Call:
    """The stream of an entity that has no state."""
    stream = await function.call(scripted.VALUE_ENTITY)
    await stream.expect(Ve.init(service, key))
    return stream


async def test_verify_state_changes(function: ScriptedFunction, client: Client, key: str) -> None:
    steps: list[tuple[list[pb.RequestAction], str]] = [
        ([], ""),
        ([update("one")], "one"),
        ([update("two")], "two"),
        ([], "two"),
        ([DELETE], ""),
        ([], ""),
        ([update("three"), update("four")], "four"),
        ([], "four"),
    ]
    stream: Call | None = None
    for number, (actions, state) in enumerate(steps, 1):
        request = pb.Request(id=key, actions=actions)
        answer = process(client, request)
        stream = stream or await opened(function, MODEL, key)
        await stream.expect(Ve.command(key, number, "Process", request))
        changed = persisted(state) if actions and state else None
        await stream.send(Ve.reply(number, reply(response(state)), changed, delete=DELETE in actions))
        assert await answer == response(state)


async def test_verify_forwards_and_side_effects(function: ScriptedFunction, client: Client, key: str) -> None:
    """The second service has a stream of its own, for the same id, on which ids count from 1; the first entity goes on undisturbed."""
    request = pb.Request(id=key, actions=[update("one"), pb.RequestAction(forward=pb.Forward(id=key))])
    answer = process(client, request)
    stream = await opened(function, MODEL, key)
    await stream.expect(Ve.command(key, 1, "Process", request))
    await stream.send(Ve.reply(1, forward(CALL_TWO, pb.Request(id=key)), persisted("one")))
    two = await opened(function, TWO, key)
    await two.expect(Ve.command(key, 1, "Call", pb.Request(id=key)))
    await two.send(Ve.reply(1, reply(response("two"))))
    assert await answer == response("two")
    request = pb.Request(id=key, actions=[pb.RequestAction(effect=pb.Effect(id=key))])
    answer = process(client, request)
    await stream.expect(Ve.command(key, 2, "Process", request))
    await stream.send(Ve.reply(2, reply(response("one")), effects=[effect(CALL_TWO, pb.Request(id=key))]))
    assert await answer == response("one"), "an effect that is not synchronous keeps nobody waiting"
    await two.expect(Ve.command(key, 2, "Call", pb.Request(id=key)))
    await two.send(Ve.reply(2, reply(response(""))))
    answer = process(client, pb.Request(id=key))
    await stream.expect(Ve.command(key, 3, "Process", pb.Request(id=key)))
    await stream.send(Ve.reply(3, reply(response("one"))))
    assert await answer == response("one")


async def test_verify_failures(function: ScriptedFunction, client: Client, key: str) -> None:
    request = pb.Request(id=key, actions=[update("one")])
    answer = process(client, request)
    stream = await opened(function, MODEL, key)
    await stream.expect(Ve.command(key, 1, "Process", request))
    await stream.send(Ve.reply(1, reply(response("one")), persisted("one")))
    assert await answer == response("one")
    request = pb.Request(id=key, actions=[fail("expected failure")])
    answer = process(client, request)
    await stream.expect(Ve.command(key, 2, "Process", request))
    await stream.send(Ve.reply(2, failure(2, "expected failure")))
    assert await outcome(answer) == (grpc.StatusCode.UNKNOWN, "expected failure")
    answer = process(client, pb.Request(id=key))
    await stream.expect(Ve.command(key, 3, "Process", pb.Request(id=key)))
    await stream.send(Ve.reply(3, reply(response("one"))))
    assert await answer == response("one"), "the stream is the same"


async def test_verify_http_api(function: ScriptedFunction, client: Client, key: str) -> None:
    route = f"/tck/model/entity/{key}"
    answer = client.posting(route, json.dumps({"actions": [{"update": {"value": "one"}}]}))
    stream = await opened(function, MODEL, key)
    await stream.expect(Ve.command(key, 1, "Process", pb.Request(id=key, actions=[update("one")])))
    await stream.send(Ve.reply(1, reply(response("one")), persisted("one")))
    assert await answer == Page(200, "application/json", '{"message":"one"}')
    answer = client.posting(f"/{TWO}/Call", json.dumps({"id": key}))
    two = await opened(function, TWO, key)
    await two.expect(Ve.command(key, 1, "Call", pb.Request(id=key)))
    await two.send(Ve.reply(1, reply(response(""))))
    assert await answer == Page(200, "application/json", '{"message":""}')
    answer = client.posting(route, json.dumps({"actions": [{"fail": {"message": "expected failure"}}]}))
    await stream.expect(Ve.command(key, 2, "Process", pb.Request(id=key, actions=[fail("expected failure")])))
    await stream.send(Ve.reply(2, failure(2, "expected failure")))
    assert await answer == Page(500, TEXT, "expected failure")
    answer = client.posting(route, json.dumps({"actions": [{"delete": {}}]}))
    await stream.expect(Ve.command(key, 3, "Process", pb.Request(id=key, actions=[DELETE])))
    await stream.send(Ve.reply(3, reply(response("")), delete=True))
    assert await answer == Page(200, "application/json", '{"message":""}')


async def test_verify_passivation_timeout(function: ScriptedFunction, client: Client, key: str) -> None:
    answer = client.unary(f"/{CONFIGURED}/Call", pb.Request(id=key), pb.Response)
    stream = await opened(function, CONFIGURED, key)
    await stream.expect(Ve.command(key, 1, "Call", pb.Request(id=key)))
    await stream.send(Ve.reply(1, reply(response("configured"))))
    assert await answer == response("configured")
    await stream.expect_closed()  # by its own timeout: that of the proxy is an hour
