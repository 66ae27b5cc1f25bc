"""Mistakes that the reference makes or made, each as input and right behaviour, through a real proxy.

| mistake | held by |
|---|---|
| a path is decoded twice, `+` becomes a space | test_a_key_in_a_path_is_decoded_once |
| a call that fails early takes its connection along | test_a_call_that_fails_leaves_its_connection_alone |
| early failures by HTTP are a bare 500 | test_what_fails_early_is_told_by_http |
| calls fail while the function restarts, and the first one after it | test_function_process.py: test_a_function_that_restarts_as_it_was_goes_on |
| in-memory entities come back empty on another node | test_proxy_process.py: test_every_proxy_serves_every_key (one journal for all) |
| a crashed node's entities hang | test_ownership.py: test_the_successor_forces_a_silent_owner_only_after_the_time_of_the_entry |
| a deliberate failure has no status | test_verify_failures of each kind here |
| passivation logs errors | test_passivation_leaves_no_trace_in_the_log |
| entities cannot see a header at all | test_entities_get_the_headers_that_were_chosen |
| request metadata carries artefacts, `-bin` stays base64 | test_actions_get_the_headers_of_the_caller |
| a CRDT's failure of one command loses its description | test_a_crdt_fails_one_command_with_its_description |
| the queue of an entity is unbounded | test_entities.py: test_a_full_mailbox_is_told_without_key_or_payload |
| two activations of one entity while a shard moves | test_ownership.py, test_entities_history.py (any interleaving, one history) |
| calls fail while shards move | test_proxy_process.py: test_nothing_acknowledged_is_lost_or_done_twice_when_a_proxy_ends |
| two components share a persistence id | test_service.py: test_what_cannot_be_served_is_said |
| an effect on an unknown target fails its command | test_an_effect_on_nobody_changes_nothing |
| a reply without client action is an OK without message | test_no_answer_is_an_error |
| a snapshot without events vanishes silently | test_a_snapshot_without_events_is_told_and_not_stored |
| gRPC-Web is refused over HTTP/1.1 | test_grpc_web_over_http_1 |
| grpc-timeout is passed on only | test_a_deadline_is_kept |
"""

from __future__ import annotations

import asyncio
import http.client
import json
import operator
import pathlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from cloudstate_core.pb.cloudstate import action_pb2, entity_pb2, event_sourced_pb2
from tests.stateful_proxy.processes import until
from tests.tck import scripted
from tests.tck.client import Client, Page, outcome
from tests.tck.messages import Action as Ac
from tests.tck.messages import Crdt as Cr
from tests.tck.messages import EventSourced as Es
from tests.tck.messages import ValueEntity as Ve
from tests.tck.messages import effect, failure, forward, packed, reply
from tests.tck.pb.cloudstate.tck.model import action_pb2 as actions
from tests.tck.pb.cloudstate.tck.model import crdt_pb2 as crdts
from tests.tck.pb.cloudstate.tck.model import eventsourced_pb2 as pb
from tests.tck.pb.cloudstate.tck.model import valueentity_pb2 as values
from tests.tck.scripted import STREAMED, UNARY, ScriptedFunction
from tests.tck.worlds import ABANDONED, World, started

pytestmark = pytest.mark.asyncio(loop_scope="session")

ACTION, ACTION_TWO = "cloudstate.tck.model.action.ActionTckModel", "cloudstate.tck.model.action.ActionTwo"
MODEL, TWO, CONFIGURED = (f"cloudstate.tck.model.EventSourced{name}" for name in ("TckModel", "Two", "Configured"))
VALUE_CONFIGURED = "cloudstate.tck.model.valueentity.ValueEntityConfigured"
CRDT = "cloudstate.tck.model.crdt.CrdtTckModel"
NOBODY = ("cloudstate.tck.model.Nobody", "Call")
ASKED = actions.Request(groups=[actions.ProcessGroup()])
TEXT = "text/plain; charset=UTF-8"
Status = grpc.StatusCode
DEADLINE = 5.0
"""Seconds: short, and long enough for a call to come to the function before."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared_world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One for these cases alone: a function that ends streams is asked again what it serves."""
    async with started(tmp_path_factory.mktemp("bugs"), steady=False) as world:
        yield world


def process(client: Client, key: str) -> asyncio.Task[pb.Response]:
    return client.unary(f"/{MODEL}/Process", pb.Request(id=key), pb.Response)


async def opened(function: ScriptedFunction, key: str, service: str = MODEL, name: str = "Process") -> scripted.Call:
    """A new event sourced entity has got its first command."""
    stream = await function.call(scripted.EVENT_SOURCED)
    await stream.expect(Es.init(service, key))
    await stream.expect(Es.command(key, 1, name, pb.Request(id=key)))
    return stream


async def acted(function: ScriptedFunction, path: str = UNARY, name: str = "ProcessUnary") -> scripted.Call:
    """An action has been called."""
    call = await function.call(path)
    await call.expect(Ac.command(ACTION, name, ASKED))
    await call.expect_end()
    return call


@pytest.mark.parametrize(
    ("path", "means"),
    [
        ("a%2Bb", "a+b"),
        ("a+b", "a+b"),
        ("a%20b", "a b"),
        ("a%252Bb", "a%2Bb"),
        ("a%25", "a%"),
        ("a%2Fb", "a/b"),
        ("a:b", "a:b"),
        ("a%3Ab", "a:b"),
        ("%C3%A4", "ä"),
        ("a=b&c", "a=b&c"),
    ],
)
async def test_a_key_in_a_path_is_decoded_once(function: ScriptedFunction, client: Client, key: str, path: str, means: str) -> None:
    answer = client.posting(f"/tck/model/eventsourced/{path}-{key}", "{}")
    stream = await opened(function, f"{means}-{key}")
    await stream.send(Es.reply(1, reply(pb.Response())))
    assert await answer == Page(200, "application/json", '{"message":""}')


# Calls that fail before their first answer -------------------------------------------------------------------------------

Fault = Callable[[ScriptedFunction, Client, str], Awaitable[tuple[grpc.StatusCode, str]]]


async def an_empty_key(function: ScriptedFunction, client: Client, key: str) -> tuple[grpc.StatusCode, str]:
    return await outcome(process(client, ""))


async def a_request_that_does_not_parse(function: ScriptedFunction, client: Client, key: str) -> tuple[grpc.StatusCode, str]:
    method: Any = client.channel.unary_unary(f"/{MODEL}/Process")
    return await outcome(method(b"\xff\xff", timeout=20))


async def an_unknown_method(function: ScriptedFunction, client: Client, key: str) -> tuple[grpc.StatusCode, str]:
    return await outcome(client.unary(f"/{MODEL}/Forget", pb.Request(id=key), pb.Response))


async def an_unknown_service(function: ScriptedFunction, client: Client, key: str) -> tuple[grpc.StatusCode, str]:
    return await outcome(client.unary("/no.such.Service/Call", pb.Request(id=key), pb.Response))


async def a_forward_to_nobody(function: ScriptedFunction, client: Client, key: str) -> tuple[grpc.StatusCode, str]:
    answer = process(client, key)
    stream = await opened(function, key)
    await stream.send(Es.reply(1, forward(NOBODY, pb.Request(id=key))))
    found = await outcome(answer)
    assert NOBODY[0] in await function.report(), "the function is told"
    return found


async def an_actions_forward_to_nobody(function: ScriptedFunction, client: Client, key: str) -> tuple[grpc.StatusCode, str]:
    answer = client.unary(f"/{ACTION}/ProcessUnary", ASKED, actions.Response)
    call = await acted(function)
    await call.close(Ac.response(forward(NOBODY, pb.Request(id=key))))
    found = await outcome(answer)
    assert NOBODY[0] in await function.report(), "the function is told"
    return found


async def an_action_with_a_status_of_its_own(function: ScriptedFunction, client: Client, key: str) -> tuple[grpc.StatusCode, str]:
    answer = client.unary(f"/{ACTION}/ProcessUnary", ASKED, actions.Response)
    await (await acted(function)).fail(Status.NOT_FOUND, "no such thing")
    return await outcome(answer)


async def a_streamed_action_with_a_status_of_its_own(function: ScriptedFunction, client: Client, key: str) -> tuple[grpc.StatusCode, str]:
    exchange = client.stream(f"/{ACTION}/ProcessStreamedOut", actions.Response, ASKED)
    await (await acted(function, scripted.STREAMED_OUT, "ProcessStreamedOut")).fail(Status.FAILED_PRECONDITION, "not now")
    return await exchange.error()


async def a_deadline(function: ScriptedFunction, client: Client, key: str) -> tuple[grpc.StatusCode, str]:
    method: Any = client.channel.unary_unary(f"/{ACTION}/ProcessUnary")
    answer = asyncio.ensure_future(outcome(method(ASKED.SerializeToString(), timeout=DEADLINE)))
    call = await acted(function)
    await call.expect_cancelled()
    return (await answer)[0], ""


FAULTS: list[tuple[Fault, grpc.StatusCode, str]] = [
    (an_empty_key, Status.INVALID_ARGUMENT, "id"),
    (a_request_that_does_not_parse, Status.INVALID_ARGUMENT, "cloudstate.tck.model.Request"),
    (an_unknown_method, Status.UNIMPLEMENTED, "Forget"),
    (an_unknown_service, Status.UNIMPLEMENTED, "no.such.Service"),
    (a_forward_to_nobody, Status.UNKNOWN, NOBODY[0]),
    (an_actions_forward_to_nobody, Status.UNKNOWN, NOBODY[0]),
    (an_action_with_a_status_of_its_own, Status.NOT_FOUND, "no such thing"),
    (a_streamed_action_with_a_status_of_its_own, Status.FAILED_PRECONDITION, "not now"),
    (a_deadline, Status.DEADLINE_EXCEEDED, ""),
]


@pytest.mark.parametrize(("fault", "status", "text"), FAULTS, ids=[fault.__name__ for fault, *_ in FAULTS])
async def test_a_call_that_fails_leaves_its_connection_alone(
    function: ScriptedFunction, client: Client, key: str, fault: Fault, status: grpc.StatusCode, text: str
) -> None:
    """It has its status, and a call that is open on the same connection goes on."""
    bystander = client.stream(f"/{ACTION}/ProcessStreamed", actions.Response, ASKED, ended=False)
    beside = await function.call(STREAMED)
    await beside.expect(Ac.command(ACTION, "ProcessStreamed"))
    await beside.expect(Ac.request(ASKED))
    found = await fault(function, client, key)
    assert found[0] is status
    assert text in found[1]
    bystander.send(ASKED)
    await beside.expect(Ac.request(ASKED))
    await beside.send(Ac.response(reply(actions.Response(message="still here"))))
    assert await bystander.read() == actions.Response(message="still here")
    bystander.end()
    await beside.expect_closed()
    await bystander.expect_end()


async def test_a_deadline_is_kept(world: World, function: ScriptedFunction, client: Client, key: str) -> None:
    """Also for a command that waits behind another one: the function never sees it."""
    first = process(client, key)
    stream = await opened(function, key)
    method: Any = client.channel.unary_unary(f"/{MODEL}/Process")
    abandoned = world.proxy.figure(ABANDONED)
    found = await outcome(method(pb.Request(id=key, actions=[pb.RequestAction(fail=pb.Fail(message="late"))]).SerializeToString(), timeout=DEADLINE))
    assert found[0] is Status.DEADLINE_EXCEEDED
    await until(lambda: world.proxy.figure(ABANDONED) == abandoned + 1, "the proxy knows")
    await stream.send(Es.reply(1, reply(pb.Response(message="x"))))
    assert (await first).message == "x"
    answer = process(client, key)
    await stream.expect(Es.command(key, 2, "Process", pb.Request(id=key)))
    await stream.send(Es.reply(2, reply(pb.Response(message="x"))))
    await answer


async def test_no_answer_is_an_error(function: ScriptedFunction, client: Client, key: str) -> None:
    """A reply without client action is one for nobody: fine for an event, an error for who waits."""
    answer = process(client, key)
    stream = await opened(function, key)
    await stream.send(Es.reply(1, None))
    assert (await outcome(answer))[0] is Status.UNKNOWN
    answer_two = client.unary(f"/{ACTION}/ProcessUnary", ASKED, actions.Response)
    await (await acted(function)).close(Ac.response())
    assert (await outcome(answer_two))[0] is Status.UNKNOWN


@pytest.mark.parametrize("synchronous", [True, False])
async def test_an_effect_on_nobody_changes_nothing(function: ScriptedFunction, client: Client, key: str, synchronous: bool) -> None:
    answer = process(client, key)
    stream = await opened(function, key)
    effects = [effect(NOBODY, pb.Request(id=key), synchronous)]
    await stream.send(Es.reply(1, reply(pb.Response(message="fine")), [pb.Persisted(value="x")], effects=effects))
    assert await answer == pb.Response(message="fine")
    assert NOBODY[0] in await function.report(), "the function is told"


@pytest.mark.parametrize("synchronous", [True, False])
async def test_an_effect_that_fails_changes_nothing(function: ScriptedFunction, client: Client, key: str, synchronous: bool) -> None:
    answer = process(client, key)
    stream = await opened(function, key)
    effects = [effect((ACTION_TWO, "Call"), actions.OtherRequest(id=key), synchronous)]
    await stream.send(Es.reply(1, reply(pb.Response(message="fine")), effects=effects))
    call = await function.call(UNARY)
    await call.expect(Ac.command(ACTION_TWO, "Call", actions.OtherRequest(id=key)))
    await call.expect_end()
    await call.close(Ac.response(failure(0, "the effect failed")))
    assert await answer == pb.Response(message="fine")


async def test_a_snapshot_without_events_is_told_and_not_stored(function: ScriptedFunction, client: Client, key: str) -> None:
    answer = process(client, key)
    stream = await opened(function, key)
    await stream.send(Es.reply(1, reply(pb.Response()), snapshot=pb.Persisted(value="wrong")))
    await answer
    assert "snapshot" in await function.report()
    answer = process(client, key)
    await stream.expect(Es.command(key, 2, "Process", pb.Request(id=key)))
    await stream.send(Es.reply(2, failure(2, "again", restart=True)))
    await outcome(answer)
    await stream.expect_closed()
    stream = await function.call(scripted.EVENT_SOURCED)
    await stream.expect(Es.init(MODEL, key))


async def test_a_reply_of_another_type_is_passed_on_and_told(function: ScriptedFunction, client: Client, key: str) -> None:
    answer = process(client, key)
    stream = await opened(function, key)
    await stream.send(Es.reply(1, reply(pb.Persisted(value="\x0a"))))
    await answer
    warning = f"Warning: {MODEL}.Process: Expected reply type_url to be [type.googleapis.com/cloudstate.tck.model.Response]"
    assert await function.report() == f"{warning} but was [type.googleapis.com/cloudstate.tck.model.Persisted]."


async def test_passivation_leaves_no_trace_in_the_log(world: World, key: str) -> None:
    """Nor anything for later: the same entities come and go as often as they like."""
    function, client, before = world.function, world.client, world.log.read_bytes()
    for _ in range(2):
        answer = client.unary(f"/{CONFIGURED}/Call", pb.Request(id=key), pb.Response)
        stream = await opened(function, key, CONFIGURED, "Call")
        await stream.send(Es.reply(1, reply(pb.Response())))
        await answer
        value = client.unary(f"/{VALUE_CONFIGURED}/Call", values.Request(id=key), values.Response)
        other = await function.call(scripted.VALUE_ENTITY)
        await other.expect(Ve.init(VALUE_CONFIGURED, key))
        await other.expect(Ve.command(key, 1, "Call", values.Request(id=key)))
        await other.send(Ve.reply(1, reply(values.Response())))
        await value
        await stream.expect_closed()
        await other.expect_closed()
    assert world.log.read_bytes() == before


# Metadata ----------------------------------------------------------------------------------------------------------------


async def test_actions_get_the_headers_of_the_caller(function: ScriptedFunction, client: Client) -> None:
    """As sent, repeated ones apart and in their order, binary ones decoded; nothing that belongs to the transport."""
    sent = [("x-one", "1"), ("x-two", "a b, c"), ("x-one", "2"), ("x-raw-bin", b"\x00\xff\x10"), ("ce-type", "t")]
    method: Any = client.channel.unary_unary(f"/{ACTION}/ProcessUnary", response_deserializer=actions.Response.FromString)
    answer = asyncio.ensure_future(method(ASKED.SerializeToString(), metadata=sent, timeout=20))
    call = await function.call(UNARY)
    command = await call.take(action_pb2.ActionCommand)
    found = [(e.key, e.string_value if e.WhichOneof("value") == "string_value" else e.bytes_value) for e in command.metadata.entries]
    own = {"user-agent", "content-type"}
    name = operator.itemgetter(0)
    assert sorted((entry for entry in found if entry[0] not in own), key=name) == sorted(sent, key=name)
    await call.expect_end()
    await call.close(Ac.response(reply(actions.Response(message="x"))))
    assert (await answer).message == "x"


async def test_entities_get_the_headers_that_were_chosen(tmp_path: pathlib.Path, key: str) -> None:
    """And no others; a forward takes along what it says itself."""
    async with started(tmp_path, steady=False, CLOUDSTATE_ENTITY_HEADERS="X-User, ce-*") as world:
        sent = [("x-user", "ann"), ("x-other", "1"), ("ce-id", "7"), ("x-user", "bob"), ("x-users", "2")]
        method: Any = world.client.channel.unary_unary(f"/{MODEL}/Process", response_deserializer=pb.Response.FromString)
        answer = asyncio.ensure_future(method(pb.Request(id=key).SerializeToString(), metadata=sent, timeout=20))
        stream = await world.function.call(scripted.EVENT_SOURCED)
        await stream.expect(Es.init(MODEL, key))
        command = (await stream.take(event_sourced_pb2.EventSourcedStreamIn)).command
        assert sorted((e.key, e.string_value) for e in command.metadata.entries) == [("ce-id", "7"), ("x-user", "ann"), ("x-user", "bob")]
        command.ClearField("metadata")
        assert command == Es.command(key, 1, "Process", pb.Request(id=key)).command
        onward = forward((TWO, "Call"), pb.Request(id=key))
        onward.forward.metadata.entries.add(key="x-user", string_value="eve")
        onward.forward.metadata.entries.add(key="x-other", string_value="mallory")
        await stream.send(Es.reply(1, onward))
        two = await world.function.call(scripted.EVENT_SOURCED)
        await two.expect(Es.init(TWO, key))
        expected = Es.command(key, 1, "Call", pb.Request(id=key))
        expected.command.metadata.entries.add(key="x-user", string_value="eve")
        await two.expect(expected)
        await two.send(Es.reply(1, reply(pb.Response(message="two"))))
        assert (await answer).message == "two"


def with_metadata() -> action_pb2.ActionResponse:
    """An answer with a text and a binary entry."""
    metadata = entity_pb2.Metadata()
    metadata.entries.add(key="x-text", string_value="told")
    metadata.entries.add(key="x-raw-bin", bytes_value=b"\x01\x02")
    return action_pb2.ActionResponse(reply=entity_pb2.Reply(payload=packed(actions.Response(message="x")), metadata=metadata))


@pytest.mark.parametrize("name", ["ProcessUnary", "ProcessStreamedOut"])
async def test_metadata_of_a_reply_becomes_headers(function: ScriptedFunction, client: Client, name: str) -> None:
    """Of the first one, where there are several."""
    method: Any = client.channel.unary_stream(f"/{ACTION}/{name}", response_deserializer=actions.Response.FromString)
    call = method(ASKED.SerializeToString(), timeout=20)
    at_function = await acted(function, UNARY if name == "ProcessUnary" else scripted.STREAMED_OUT, name)
    await at_function.close(with_metadata())
    assert (await call.read()).message == "x"
    headers = {key: value for key, value in await call.initial_metadata() if key.startswith("x-")}
    assert headers == {"x-text": "told", "x-raw-bin": b"\x01\x02"}
    assert await call.read() is grpc.aio.EOF


async def test_metadata_of_a_reply_becomes_headers_by_http(function: ScriptedFunction, client: Client) -> None:
    """Binary ones in base64; padding does not matter."""

    def call() -> tuple[str, str]:
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
        connection.request("POST", "/tck/model/action/unary", b'{"groups":[{}]}', {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.getheader("x-text", ""), answer.getheader("x-raw-bin", "").rstrip("=")

    page = asyncio.create_task(asyncio.to_thread(call))
    await (await acted(function)).close(with_metadata())
    assert await page == ("told", "AQI")


# HTTP --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "content_type", "status"),
    [
        ("/no/such/route", "{}", "application/json", 404),
        ("/tck/model/eventsourced/", "{}", "application/json", 404),
        ("/tck/model/eventsourced/a", "{", "application/json", 400),
        ("/tck/model/eventsourced/a", '{"nonsense":1}', "application/json", 400),
        ("/tck/model/eventsourced/a", "{}", "text/html", 400),
        (f"/{MODEL}/Process", "{}", "application/json", 400),
    ],
    ids=["no route", "empty segment", "malformed", "unknown field", "content type", "no key"],
)
async def test_what_fails_early_is_told_by_http(client: Client, path: str, body: str, content_type: str, status: int) -> None:
    page = await client.post(path, body, content_type=content_type)
    assert page.status == status
    assert (page.text == "") is (status == 404), "a mistake is named, what is not there has nothing to say"


@pytest.mark.parametrize(
    ("status", "told"),
    [(Status.NOT_FOUND, 404), (Status.INVALID_ARGUMENT, 400), (Status.PERMISSION_DENIED, 403), (Status.RESOURCE_EXHAUSTED, 429)],
)
async def test_an_actions_own_status_by_http(function: ScriptedFunction, client: Client, status: grpc.StatusCode, told: int) -> None:
    answer = client.posting("/tck/model/action/unary", json.dumps({"groups": [{}]}))
    await (await acted(function)).fail(status, "so it is")
    assert await answer == Page(told, TEXT, "so it is")


async def test_grpc_web_over_http_1(function: ScriptedFunction, client: Client) -> None:
    """A message frame and a frame of trailers, in one body."""
    request = ASKED.SerializeToString()

    def call() -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
        body = b"\x00" + struct.pack(">I", len(request)) + request
        connection.request("POST", f"/{ACTION}/ProcessUnary", body, {"Content-Type": "application/grpc-web+proto"})
        answer = connection.getresponse()
        found = answer.status, answer.getheader("Content-Type", ""), answer.read()
        connection.close()
        return found

    asking = asyncio.create_task(asyncio.to_thread(call))
    await (await acted(function)).close(Ac.response(reply(actions.Response(message="x"))))
    status, content_type, body = await asking
    assert (status, content_type) == (200, "application/grpc-web+proto")
    message = actions.Response(message="x").SerializeToString()
    assert body.startswith(b"\x00" + struct.pack(">I", len(message)) + message)
    trailers = body[5 + len(message) :]
    assert trailers[0] == 0x80
    assert b"grpc-status:0" in trailers.lower().replace(b" ", b"")


# CRDTs -------------------------------------------------------------------------------------------------------------------


async def test_a_crdt_fails_one_command_with_its_description(function: ScriptedFunction, client: Client, key: str) -> None:
    """A failure on the stream that names a command is that command's alone: its stream and the others go on."""
    key, method = f"GCounter-{key}", f"/{CRDT}/Process"
    first = client.unary(method, crdts.Request(id=key), crdts.Response)
    stream = await function.call(scripted.CRDT)
    await stream.expect(Cr.init(CRDT, key))
    await stream.expect(Cr.command(key, 1, "Process", crdts.Request(id=key)))
    second = client.unary(method, crdts.Request(id=key), crdts.Response)
    await stream.expect(Cr.command(key, 2, "Process", crdts.Request(id=key)))
    failed = Cr.reply(0, None)
    failed.failure.command_id, failed.failure.description = 1, "exactly this"
    await stream.send(failed)
    assert await outcome(first) == (Status.UNKNOWN, "exactly this")
    await stream.send(Cr.reply(2, reply(crdts.Response())))
    assert await second == crdts.Response()
