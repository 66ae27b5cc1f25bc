"""Calls of actions whose either side leaves early, sends much, or does not keep up: what the other side sees."""

from __future__ import annotations

import asyncio
import http.client
from typing import Any

import grpc
import pytest

from tests.tck.client import Client
from tests.tck.messages import Action as Ac
from tests.tck.messages import effect, failure, forward, reply
from tests.tck.pb.cloudstate.tck.model import action_pb2 as pb
from tests.tck.scripted import STREAMED, STREAMED_IN, STREAMED_OUT, UNARY, Call, ScriptedFunction

pytestmark = pytest.mark.asyncio(loop_scope="session")

MODEL, TWO = "cloudstate.tck.model.action.ActionTckModel", "cloudstate.tck.model.action.ActionTwo"
ASKED = pb.Request(groups=[pb.ProcessGroup()])
SHAPES = [("ProcessUnary", UNARY), ("ProcessStreamedIn", STREAMED_IN), ("ProcessStreamedOut", STREAMED_OUT), ("ProcessStreamed", STREAMED)]
each_shape = pytest.mark.parametrize(("name", "path"), SHAPES, ids=[name for name, _ in SHAPES])


def answer(text: str) -> Any:
    return Ac.response(reply(pb.Response(message=text)))


async def opened(function: ScriptedFunction, name: str, path: str) -> Call:
    """A call with one request has come in; streamed requests may follow."""
    call = await function.call(path)
    if path in (STREAMED, STREAMED_IN):
        await call.expect(Ac.command(MODEL, name))
        await call.expect(Ac.request(ASKED))
    else:
        await call.expect(Ac.command(MODEL, name, ASKED))
        await call.expect_end()
    return call


@each_shape
async def test_a_caller_who_leaves_takes_the_functions_call_along(function: ScriptedFunction, client: Client, name: str, path: str) -> None:
    exchange = client.stream(f"/{MODEL}/{name}", pb.Response, ASKED, ended=path in (UNARY, STREAMED_OUT))
    call = await opened(function, name, path)
    exchange.cancel()
    await call.expect_cancelled()


@each_shape
async def test_the_functions_own_status(function: ScriptedFunction, client: Client, name: str, path: str) -> None:
    exchange = client.stream(f"/{MODEL}/{name}", pb.Response, ASKED)
    call = await opened(function, name, path)
    await call.fail(grpc.StatusCode.ALREADY_EXISTS, "there is one: ä")
    assert await exchange.error() == (grpc.StatusCode.ALREADY_EXISTS, "there is one: ä")
    await function.forget()


async def test_a_status_after_answers(function: ScriptedFunction, client: Client) -> None:
    exchange = client.stream(f"/{MODEL}/ProcessStreamedOut", pb.Response, ASKED)
    call = await opened(function, "ProcessStreamedOut", STREAMED_OUT)
    await call.send(answer("one"))
    assert await exchange.read() == pb.Response(message="one")
    await call.fail(grpc.StatusCode.ABORTED, "enough")
    assert await exchange.error() == (grpc.StatusCode.ABORTED, "enough")


async def test_an_early_answer_drops_the_rest_of_the_requests(function: ScriptedFunction, client: Client) -> None:
    exchange = client.stream(f"/{MODEL}/ProcessStreamedIn", pb.Response, ASKED, ended=False)
    call = await opened(function, "ProcessStreamedIn", STREAMED_IN)
    await call.close(answer("enough"))
    assert await exchange.read() == pb.Response(message="enough")
    await exchange.expect_end()
    await function.forget()


async def test_a_stream_without_requests(function: ScriptedFunction, client: Client) -> None:
    exchange = client.stream(f"/{MODEL}/ProcessStreamedIn", pb.Response)
    call = await function.call(STREAMED_IN)
    await call.expect(Ac.command(MODEL, "ProcessStreamedIn"))
    await call.expect_end()
    await call.close(answer("nothing came"))
    assert await exchange.read() == pb.Response(message="nothing came")
    await exchange.expect_end()


async def test_a_stream_without_answers(function: ScriptedFunction, client: Client) -> None:
    exchange = client.stream(f"/{MODEL}/ProcessStreamedOut", pb.Response, ASKED)
    call = await opened(function, "ProcessStreamedOut", STREAMED_OUT)
    await call.close()
    await exchange.expect_end()


async def test_a_failure_after_answers(function: ScriptedFunction, client: Client) -> None:
    exchange = client.stream(f"/{MODEL}/ProcessStreamedOut", pb.Response, ASKED)
    call = await opened(function, "ProcessStreamedOut", STREAMED_OUT)
    await call.send(answer("one"), Ac.response(failure(0, "no more")))
    assert await exchange.read() == pb.Response(message="one")
    assert await exchange.error() == (grpc.StatusCode.UNKNOWN, "no more")
    await call.expect_over()


async def test_effects_come_with_failures_too(function: ScriptedFunction, client: Client) -> None:
    """A synchronous one is done before the caller hears of the failure."""
    exchange = client.stream(f"/{MODEL}/ProcessUnary", pb.Response, ASKED)
    call = await opened(function, "ProcessUnary", UNARY)
    failed = asyncio.ensure_future(exchange.error())
    await call.close(Ac.response(failure(0, "no"), [effect((TWO, "Call"), pb.OtherRequest(id="x"), synchronous=True)]))
    two = await function.call(UNARY)
    await two.expect(Ac.command(TWO, "Call", pb.OtherRequest(id="x")))
    await two.expect_end()
    await asyncio.sleep(0.02)
    assert not failed.done()
    await two.close(Ac.response(failure(0, "nobody hears of this")))
    assert await failed == (grpc.StatusCode.UNKNOWN, "no")


async def test_answers_behind_a_forward_wait_for_it(function: ScriptedFunction, client: Client) -> None:
    exchange = client.stream(f"/{MODEL}/ProcessStreamedOut", pb.Response, ASKED)
    call = await opened(function, "ProcessStreamedOut", STREAMED_OUT)
    await call.close(answer("one"), Ac.response(forward((TWO, "Call"), pb.OtherRequest(id="x"))), answer("three"))
    two = await function.call(UNARY)
    await two.expect(Ac.command(TWO, "Call", pb.OtherRequest(id="x")))
    await two.expect_end()
    assert await exchange.read() == pb.Response(message="one")
    await two.close(answer("two"))
    assert [(await exchange.read()).message for _ in range(2)] == ["two", "three"]
    await exchange.expect_end()


async def test_a_forward_to_a_streamed_method_carries_one_request(function: ScriptedFunction, client: Client) -> None:
    exchange = client.stream(f"/{MODEL}/ProcessStreamedOut", pb.Response, ASKED)
    call = await opened(function, "ProcessStreamedOut", STREAMED_OUT)
    await call.close(Ac.response(forward((MODEL, "ProcessStreamed"), ASKED)))
    target = await opened(function, "ProcessStreamed", STREAMED)
    await target.expect_end()
    await target.close(answer("one"), answer("two"))
    assert [(await exchange.read()).message for _ in range(2)] == ["one", "two"]
    await exchange.expect_end()


async def test_much_in_order(function: ScriptedFunction, client: Client) -> None:
    """Thousands of small answers, and one as large as a function may send."""
    exchange = client.stream(f"/{MODEL}/ProcessStreamedOut", pb.Response, ASKED)
    call = await opened(function, "ProcessStreamedOut", STREAMED_OUT)
    sending = asyncio.ensure_future(call.close(*[answer(str(n)) for n in range(3_000)]))
    assert [(await exchange.read()).message for _ in range(3_000)] == [str(n) for n in range(3_000)]
    await sending
    await exchange.expect_end()


async def test_a_large_answer(function: ScriptedFunction, client: Client) -> None:
    text = "x" * (3 << 20)
    exchange = client.stream(f"/{MODEL}/ProcessUnary", pb.Response, ASKED)
    call = await opened(function, "ProcessUnary", UNARY)
    await call.close(answer(text))
    assert (await exchange.read()).message == text
    await exchange.expect_end()


@pytest.mark.parametrize(
    ("accept", "content_type", "body"),
    [
        ("", "application/json", b'{"message":"one"}\n{"message":"two"}\n'),
        ("text/event-stream", "text/event-stream", b'data:{"message":"one"}\n\ndata:{"message":"two"}\n\n'),
    ],
    ids=["json", "server-sent events"],
)
async def test_streamed_answers_by_http(function: ScriptedFunction, client: Client, accept: str, content_type: str, body: bytes) -> None:
    """The first answer is there before the second one is given."""
    first: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()

    def call() -> tuple[str, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
        headers = {"Content-Type": "application/json", **({"Accept": accept} if accept else {})}
        connection.request("POST", f"/{MODEL}/ProcessStreamedOut", b'{"groups":[{}]}', headers)
        response = connection.getresponse()
        begun = response.read1()
        loop.call_soon_threadsafe(first.set_result, begun)
        found = response.getheader("Content-Type", ""), begun + response.read()
        connection.close()
        return found

    asking = asyncio.create_task(asyncio.to_thread(call))
    at_function = await opened(function, "ProcessStreamedOut", STREAMED_OUT)
    await at_function.send(answer("one"))
    assert b"one" in await asyncio.wait_for(first, 30)
    await at_function.close(answer("two"))
    found = await asking
    assert found[0].split(";")[0] == content_type
    assert found[1].replace(b"data: ", b"data:") == body
