"""Events that come by HTTP go to every consumer of their topic; answers are published before their callers get them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import any_pb2

from cloudstate_core.transport import api
from cloudstate_core.transport.api import Status
from stateful_proxy.eventing.subscriptions import Subscription
from stateful_proxy.ownership import Elsewhere
from tests.stateful_proxy.dispatching import METHOD, PATH, STREAMED, Bench

ACTION_METHOD = replace(STREAMED, path="/test.Feed/Hear", service="test.Feed", input_type="google.protobuf.Any", client_streaming=False)
EVENT = {"ce-id": "7", "ce-source": "/shop", "ce-specversion": "1.0", "ce-type": "test.Amount"}
PROTOBUF = {**EVENT, "content-type": "application/protobuf"}
OTHER = {**EVENT, "ce-type": "t.Other", "content-type": "application/json"}
TOPICS = [
    Subscription("orders", "test.Counter", {"test.Amount": METHOD}),
    Subscription("orders", "test.Feed", {"google.protobuf.Any": ACTION_METHOD}),
    Subscription("bills", "test.Feed", {"google.protobuf.Any": ACTION_METHOD}),
]


class Receiver:
    """A proxy's topics, posted to without HTTP."""

    def __init__(self, topics: list[Subscription]) -> None:
        self.bench = Bench(topics=topics)
        self.answers: list[tuple[int, str]] = []
        self.requests = 0

    def post(self, path: str, headers: Mapping[str, str], body: bytes = b"k") -> None:
        topics = self.bench.dispatch.topics
        assert topics.wants("POST", path, headers)
        self.requests += 1
        topics.take(self.requests, path, headers, body, lambda status, text: self.answers.append((status, text)))


def test_every_consumer_gets_an_event_and_the_sender_hears_when_all_are_done() -> None:
    receiver = Receiver(TOPICS)
    receiver.post("/topics/orders", PROTOBUF)
    around, callers = receiver.bench.around, receiver.bench.callers
    [(command, _, _)] = around.commands
    assert (command.key, command.payload, command.passed) == ("k", b"k", False)
    assert around.begun == [(b"k", False, False)]
    callers.reply(command.call, b"")
    assert not receiver.answers
    callers.reply(command.call - 1, b"")
    assert receiver.answers == [(204, "")]
    assert receiver.bench.dispatch.topics.handled == 1


def test_an_event_that_comes_again_has_the_same_command_id_and_another_one_has_not() -> None:
    receiver = Receiver(TOPICS[:1])
    for headers in (PROTOBUF, PROTOBUF, {**PROTOBUF, "ce-id": "8"}, {**PROTOBUF, "ce-source": "/other"}):
        receiver.post("/topics/orders", headers)
    ids = [command.command_id for command, _, _ in receiver.bench.around.commands]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    assert all(ids)


def test_a_failure_of_one_consumer_is_the_senders_once_all_have_ended() -> None:
    receiver = Receiver(TOPICS)
    receiver.post("/topics/orders", PROTOBUF)
    call = receiver.bench.around.commands[0][0].call
    receiver.bench.callers.finish(call, Status.UNAVAILABLE, "not now")
    assert not receiver.answers
    receiver.bench.callers.reply(call - 1, b"")
    assert receiver.answers == [(503, "not now")]


def test_a_sender_that_goes_is_not_answered_and_its_deliveries_are_given_up() -> None:
    receiver = Receiver(TOPICS)
    receiver.post("/topics/orders", PROTOBUF)
    call = receiver.bench.around.commands[0][0].call
    assert receiver.bench.dispatch.on_event((api.CALL_CANCELLED, receiver.requests, b"", "reset"))
    assert receiver.bench.around.left >= {call, call - 1}
    receiver.bench.callers.reply(call, b"")
    receiver.bench.callers.reply(call - 1, b"")
    assert not receiver.answers


@pytest.mark.parametrize(
    ("topics", "path", "headers", "body", "status", "text"),
    [
        (TOPICS, "/topics/nope", PROTOBUF, b"k", 404, "topic 'nope': this function takes events of bills, orders"),
        (TOPICS, "/", PROTOBUF, b"k", 404, "/: no topic is named; this function takes events of bills, orders: post to /topics/TOPIC"),
        ([], "/topics/a", PROTOBUF, b"k", 404, "topic 'a': this function takes events of no topic"),
        (TOPICS, "/topics/orders", {"content-type": "application/json"}, b"{}", 400, "attribute id: must be there and not be empty"),
        (TOPICS, "/topics/orders", OTHER, b"{}", 422, "topic orders: no method of consumer group test.Counter takes json.cloudstate.io/t.Other"),
        (TOPICS[:1], "/topics/orders", PROTOBUF, b"\xff", 400, "the request is not a test.Amount: ends early"),
        (TOPICS[:1], "/topics/orders", PROTOBUF, b"", 400, "test.Amount.id must not be empty"),
    ],
)
def test_what_cannot_be_taken_is_told(topics: list[Subscription], path: str, headers: Mapping[str, str], body: bytes, status: int, text: str) -> None:
    receiver = Receiver(topics)
    receiver.post(path, headers, body)
    [(code, told)] = receiver.answers
    assert code == status
    assert text in told
    assert not receiver.bench.around.commands
    assert not receiver.bench.around.begun


def test_a_function_with_one_topic_needs_no_name() -> None:
    receiver = Receiver(TOPICS[2:])
    structured = {"content-type": "application/cloudevents+json"}
    receiver.post("/", structured, json.dumps({"id": "1", "source": "s", "specversion": "1.0", "type": "t", "data": {}}).encode())
    assert receiver.bench.around.begun == [(b"\n\x02{}", False, False)]


@pytest.mark.parametrize(
    ("verb", "path", "headers"),
    [("GET", "/topics/orders", PROTOBUF), ("POST", "/", {"content-type": "application/json"}), ("POST", "/topics", PROTOBUF)],
)
def test_other_requests_are_left_alone(verb: str, path: str, headers: Mapping[str, str]) -> None:
    assert not Receiver(TOPICS).bench.dispatch.topics.wants(verb, path, headers)


# Publications -----------------------------------------------------------------------------------------------------------

OUT = replace(METHOD, out="sums")
STREAM_OUT = replace(STREAMED, path="/test.Feed/All", out="sums", client_streaming=False, server_streaming=True)


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.around.methods[PATH] = OUT
    bench.around.methods[STREAM_OUT.path] = STREAM_OUT
    return bench


def test_an_answer_is_published_before_its_caller_gets_it(bench: Bench) -> None:
    call = bench.call()
    bench.callers.reply(call, b"sum", [("ce-subject", "zoë".encode()), ("content-type", b"x/y"), ("x-more", b"1")])
    [(topic, event)] = bench.sink.events
    assert (topic, event.data, event.content_type) == ("sums", b"sum", "x/y")
    assert {name: event.attributes[name] for name in ("source", "type", "subject")} == {
        "source": "test.Counter", "type": "test.Sum", "subject": "zoë",
    }  # fmt: skip
    assert not bench.around.replies
    bench.sink.done[0]("")
    assert bench.around.replies == {call: [b"sum"]}
    assert bench.end(call) == (0, "", [])
    assert bench.publications.published == 1


def test_the_answer_of_a_command_that_is_asked_for_again_is_the_same_event(bench: Bench) -> None:
    for data, command_id in ((b"k", b"1"), (b"k", b"1"), (b"k", b"2"), (b"other", b"1"), (b"k", b""), (b"k", b"")):
        bench.callers.reply(bench.call(data, picked=(command_id, b"", b"")), b"sum")
    ids = [event.attributes["id"] for _, event in bench.sink.events]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 5


def test_a_caller_is_told_when_the_answer_could_not_be_published(bench: Bench) -> None:
    call = bench.call()
    bench.callers.reply(call, b"sum")
    bench.sink.done[0]("the broker is away")
    status, text, _ = bench.end(call)
    assert status == Status.UNAVAILABLE
    assert text == f"{PATH}: was executed, but its answer could not be published to topic 'sums': the broker is away"
    assert not bench.around.replies
    assert bench.publications.failed == 1


def test_a_failure_is_not_published(bench: Bench) -> None:
    call = bench.call()
    bench.callers.finish(call, Status.UNKNOWN, "no")
    assert bench.end(call) == (Status.UNKNOWN, "no", [])
    assert not bench.sink.events


def test_a_command_without_an_answer_is_an_error_and_not_published(bench: Bench) -> None:
    call = bench.call()
    bench.callers.unanswered(call, PATH)
    assert bench.end(call)[:2] == (Status.UNKNOWN, f"{PATH}: the function gave no answer for the caller")
    assert not bench.sink.events


def test_answers_of_a_stream_are_published_one_after_another_and_then_it_ends(bench: Bench) -> None:
    call = bench.call(path=STREAM_OUT.path)
    for number in (b"1", b"2", b"3"):
        bench.callers.message(call, number)
    bench.callers.finish(call, Status.OK)
    for number in range(3):
        assert len(bench.sink.events) == number + 1
        assert call not in bench.around.ended
        bench.sink.done[number]("")
    assert bench.around.replies == {call: [b"1", b"2", b"3"]}
    assert bench.end(call)[0] == Status.OK
    assert not bench.drained


def test_who_streams_faster_than_is_published_is_held_back(bench: Bench) -> None:
    call = bench.call(path=STREAM_OUT.path)
    bench.callers.message(call, b"x" * 1000)
    assert bench.callers.backlog(call) > 1000
    assert not bench.drained
    bench.sink.done[0]("")
    assert bench.callers.backlog(call) == 0
    assert bench.drained == [call]


def test_a_stream_that_cannot_be_published_is_cancelled(bench: Bench) -> None:
    call = bench.call(path=STREAM_OUT.path)
    bench.callers.message(call, b"1")
    bench.callers.message(call, b"2")
    bench.sink.done[0]("away")
    assert bench.end(call)[0] == Status.UNAVAILABLE
    assert bench.cancelled == [call]
    assert len(bench.sink.events) == 1


def test_a_command_that_another_proxy_executes_is_published_there(bench: Bench) -> None:
    call = bench.call()
    [(command, _, _)] = bench.around.commands
    bench.around.admission = Elsewhere("b")
    assert bench.around.reroute(command)
    bench.around.fire()
    assert [forwarded for forwarded, _, _ in bench.around.forwards] == [call]
    bench.callers.reply(call, b"sum")
    assert not bench.sink.events
    assert bench.around.replies == {call: [b"sum"]}


def test_a_caller_that_leaves_changes_nothing_of_what_is_published(bench: Bench) -> None:
    call = bench.call()
    bench.callers.reply(call, b"sum")
    bench.dispatch.on_event((api.CALL_CANCELLED, call, b"", "reset"))
    bench.sink.done[0]("")
    assert bench.publications.published == 1


def test_what_a_method_of_any_answers_is_published_by_its_own_type(bench: Bench) -> None:
    anything: Any = replace(OUT, output_type="google.protobuf.Any")
    bench.around.methods[PATH] = anything
    call = bench.call()
    bench.callers.reply(call, any_pb2.Any(type_url="json.cloudstate.io/t.E", value=b"\n\x02{}").SerializeToString())
    [(_, event)] = bench.sink.events
    assert (event.type, event.content_type, event.data) == ("t.E", "application/json", b"{}")
    other = bench.call()
    bench.callers.reply(other, b"\xff")
    assert bench.end(other)[0] == Status.UNAVAILABLE


def test_an_answer_without_a_type_is_no_event(bench: Bench) -> None:
    bench.around.methods[PATH] = replace(OUT, output_type="google.protobuf.Any")
    call = bench.call()
    bench.callers.reply(call, b"")
    assert (bench.end(call)[0], bench.sink.events) == (Status.UNAVAILABLE, [])
    assert "the answer has no type URL" in bench.end(call)[1]
