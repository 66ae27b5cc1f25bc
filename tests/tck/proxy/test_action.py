"""Conformance: verifying proxy test: action."""

from __future__ import annotations

import json

import grpc
import pytest

from tests.tck.client import Client, Exchange, Page, outcome
from tests.tck.messages import Action as Ac
from tests.tck.messages import effect, failure, forward, reply
from tests.tck.pb.cloudstate.tck.model import action_pb2 as pb
from tests.tck.scripted import STREAMED, STREAMED_IN, STREAMED_OUT, UNARY, Call, ScriptedFunction

pytestmark = pytest.mark.asyncio(loop_scope="session")

MODEL, TWO = "cloudstate.tck.model.action.ActionTckModel", "cloudstate.tck.model.action.ActionTwo"
CALL_TWO = (TWO, "Call")
TEXT = "text/plain; charset=UTF-8"


def response(text: str) -> pb.Response:
    return pb.Response(message=text)


def request(*steps: pb.ProcessStep) -> pb.Request:
    """One group with these steps."""
    return pb.Request(groups=[pb.ProcessGroup(steps=steps)])


def says(text: str) -> pb.ProcessStep:
    return pb.ProcessStep(reply=pb.Reply(message=text))


def fails(text: str) -> pb.ProcessStep:
    return pb.ProcessStep(fail=pb.Fail(message=text))


def forwards(other: str) -> pb.ProcessStep:
    return pb.ProcessStep(forward=pb.Forward(id=other))


def causes(other: str) -> pb.ProcessStep:
    return pb.ProcessStep(effect=pb.SideEffect(id=other))


def begin(client: Client, name: str, *requests: pb.Request, ended: bool) -> Exchange[pb.Response]:
    return client.stream(f"/{MODEL}/{name}", pb.Response, *requests, ended=ended)


async def answer_two(function: ScriptedFunction, other: str, text: str) -> None:
    """The second service gets a call of its own, and answers it."""
    call = await function.call(UNARY)
    await call.expect(Ac.command(TWO, "Call", pb.OtherRequest(id=other)))
    await call.expect_end()
    await call.close(Ac.response(reply(response(text))))


async def opened(function: ScriptedFunction, path: str, name: str) -> Call:
    """A call with streamed requests begins with the names alone."""
    call = await function.call(path)
    await call.expect(Ac.command(MODEL, name))
    return call


async def test_verify_unary_command_processing(function: ScriptedFunction, client: Client) -> None:
    answer = client.unary(f"/{MODEL}/ProcessUnary", request(says("one")), pb.Response)
    call = await function.call(UNARY)
    await call.expect(Ac.command(MODEL, "ProcessUnary", request(says("one"))))
    await call.expect_end()
    await call.close(Ac.response(reply(response("one"))))
    assert await answer == response("one")


async def test_verify_streamed_in_command_processing(function: ScriptedFunction, client: Client) -> None:
    exchange = begin(client, "ProcessStreamedIn", request(says("one")), ended=False)
    call = await opened(function, STREAMED_IN, "ProcessStreamedIn")
    await call.expect(Ac.request(request(says("one"))))
    exchange.send(request(says("two")))
    await call.expect(Ac.request(request(says("two"))))
    exchange.end()
    await call.expect_end()
    await call.close(Ac.response(reply(response("two"))))
    assert await exchange.read() == response("two")
    await exchange.expect_end()


async def test_verify_streamed_out_command_processing(function: ScriptedFunction, client: Client) -> None:
    asked = pb.Request(groups=[pb.ProcessGroup(steps=[says(text)]) for text in ("A", "B", "C")])
    exchange = begin(client, "ProcessStreamedOut", asked, ended=True)
    call = await function.call(STREAMED_OUT)
    await call.expect(Ac.command(MODEL, "ProcessStreamedOut", asked))
    await call.expect_end()
    for text in ("A", "B", "C"):
        await call.send(Ac.response(reply(response(text))))
        assert await exchange.read() == response(text), "each arrives without waiting for the next"
    await call.close()
    await exchange.expect_end()


async def test_verify_streamed_command_processing(function: ScriptedFunction, client: Client) -> None:
    exchange = begin(client, "ProcessStreamed", ended=False)
    call = await opened(function, STREAMED, "ProcessStreamed")
    for text in ("A", "B", "C"):
        exchange.send(request(says(text)))
        await call.expect(Ac.request(request(says(text))))
        await call.send(Ac.response(reply(response(text))))
        assert await exchange.read() == response(text)
    exchange.end()
    await call.expect_end()
    await call.close()
    await exchange.expect_end()


async def test_verify_unary_forwards_and_side_effects(function: ScriptedFunction, client: Client) -> None:
    answer = client.unary(f"/{MODEL}/ProcessUnary", request(forwards("other")), pb.Response)
    call = await function.call(UNARY)
    await call.expect(Ac.command(MODEL, "ProcessUnary", request(forwards("other"))))
    await call.expect_end()
    await call.close(Ac.response(forward(CALL_TWO, pb.OtherRequest(id="other"))))
    await answer_two(function, "other", "two")
    assert await answer == response("two")
    asked = request(says("one"), causes("another"))
    answer = client.unary(f"/{MODEL}/ProcessUnary", asked, pb.Response)
    call = await function.call(UNARY)
    await call.expect(Ac.command(MODEL, "ProcessUnary", asked))
    await call.expect_end()
    await call.close(Ac.response(reply(response("one")), [effect(CALL_TWO, pb.OtherRequest(id="another"))]))
    assert await answer == response("one"), "an effect that is not synchronous keeps nobody waiting"
    await answer_two(function, "another", "")


async def test_verify_streamed_forwards_and_side_effects(function: ScriptedFunction, client: Client) -> None:
    exchange = begin(client, "ProcessStreamed", request(forwards("other")), ended=False)
    call = await opened(function, STREAMED, "ProcessStreamed")
    await call.expect(Ac.request(request(forwards("other"))))
    await call.send(Ac.response(forward(CALL_TWO, pb.OtherRequest(id="other"))))
    await answer_two(function, "other", "two")
    assert await exchange.read() == response("two")
    exchange.send(request(causes("another")))
    await call.expect(Ac.request(request(causes("another"))))
    await call.send(Ac.response(effects=[effect(CALL_TWO, pb.OtherRequest(id="another"))]))
    await answer_two(function, "another", "")
    exchange.end()
    await call.expect_end()
    await call.close()
    await exchange.expect_end()


async def test_verify_unary_failures(function: ScriptedFunction, client: Client) -> None:
    answer = client.unary(f"/{MODEL}/ProcessUnary", request(fails("expected failure")), pb.Response)
    call = await function.call(UNARY)
    await call.expect(Ac.command(MODEL, "ProcessUnary", request(fails("expected failure"))))
    await call.expect_end()
    await call.close(Ac.response(failure(0, "expected failure")))
    assert await outcome(answer) == (grpc.StatusCode.UNKNOWN, "expected failure")


async def test_verify_streamed_failures(function: ScriptedFunction, client: Client) -> None:
    """The function hears of the call before there is a request; the failure ends it for both sides although neither has ended it."""
    exchange = begin(client, "ProcessStreamed", ended=False)
    call = await opened(function, STREAMED, "ProcessStreamed")
    exchange.send(request(fails("expected failure")))
    await call.expect(Ac.request(request(fails("expected failure"))))
    await call.send(Ac.response(failure(0, "expected failure")))
    assert await exchange.error() == (grpc.StatusCode.UNKNOWN, "expected failure")
    await call.expect_over()


async def test_verify_unary_http_api(function: ScriptedFunction, client: Client) -> None:
    route = "/tck/model/action/unary"
    answer = client.posting(route, json.dumps({"groups": [{"steps": [{"reply": {"message": "foo"}}]}]}))
    call = await function.call(UNARY)
    await call.expect(Ac.command(MODEL, "ProcessUnary", request(says("foo"))))
    await call.expect_end()
    await call.close(Ac.response(reply(response("foo"))))
    assert await answer == Page(200, "application/json", '{"message":"foo"}')
    answer = client.posting(route, json.dumps({"groups": [{"steps": [{"fail": {"message": "boom"}}]}]}))
    call = await function.call(UNARY)
    await call.expect(Ac.command(MODEL, "ProcessUnary", request(fails("boom"))))
    await call.expect_end()
    await call.close(Ac.response(failure(0, "boom")))
    assert await answer == Page(500, TEXT, "boom")
    answer = client.posting(f"/{TWO}/Call", json.dumps({"id": "foo"}))
    await answer_two(function, "foo", "")
    assert await answer == Page(200, "application/json", '{"message":""}')
