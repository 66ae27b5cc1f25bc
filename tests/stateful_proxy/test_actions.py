"""Actions in their four shapes, as seen from the function and from the caller."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudstate_core.pb.cloudstate import action_pb2, entity_pb2
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Status
from stateful_proxy.action_commands import ActionCommands
from stateful_proxy.actions import MOST_RESPONSES, MOST_WAITING, Actions
from stateful_proxy.callers import Callers
from stateful_proxy.follow_ups import FollowUps
from stateful_proxy.invocation import Invocation
from stateful_proxy.service import ACTION, STATELESS_FUNCTION, MethodInfo

URL = "type.googleapis.com/t.Out"


def method(name: str, streams_in: bool = False, streams_out: bool = False, entity_type: str = ACTION) -> MethodInfo:
    return MethodInfo(f"/t.A/{name}", "t.A", name, "t.A", entity_type, "t.In", "t.Out", (), "", None, streams_in, streams_out, owned=False)


UNARY, IN, OUT, BOTH = method("Unary"), method("In", True), method("Out", False, True), method("Both", True, True)


class Stage:
    """Actions with a function and callers that the test plays."""

    def __init__(self, transport: Any) -> None:
        self.transport, self.reported = transport, list[str]()
        self.callers = Callers(transport)
        self.follow_ups = FollowUps(transport, self.callers, {m.path: m for m in (UNARY, IN, OUT, BOTH)}, self.reported.append, self.flush)
        self.invoked: list[tuple[int, Invocation]] = []
        self.flushes = 0
        self.follow_ups.invoke = lambda call, invocation: self.invoked.append((call, invocation))
        self.cancelled: list[int] = []
        self.follow_ups.cancel = self.cancelled.append
        self.actions = Actions(transport, 1, self.callers, self.follow_ups, self.reported.append)
        self.messages: list[tuple[int, bytes]] = []
        transport.send_message = lambda call, message, headers=(): self.messages.append((call, message))

    def flush(self) -> None:
        self.flushes += 1

    def begin(self, of: MethodInfo, payload: bytes = b"p", metadata: bytes = b"", more: bool = False) -> int:
        self.actions.begin(1, Invocation(of, payload, metadata), more)
        return 1

    def got(self) -> list[action_pb2.ActionCommand]:
        return [action_pb2.ActionCommand.FromString(message) for message in self.transport.streams[1].sent]

    def say(self, reply: bytes | None = None, failure: str = "", forward: str = "", effects: tuple[tuple[str, bool], ...] = ()) -> None:
        response = action_pb2.ActionResponse()
        if reply is not None:
            response.reply.payload.type_url, response.reply.payload.value = URL, reply
        if failure:
            response.failure.description = failure
        if forward:
            response.forward.service_name, response.forward.command_name = "t.A", forward
        for name, synchronous in effects:
            response.side_effects.add(service_name="t.A", command_name=name, synchronous=synchronous)
        self.actions.on_event((api.STREAM_MESSAGE, 1, response.SerializeToString(), None))

    def close(self, status: int = 0, text: str = "", refused: bool = False) -> None:
        self.actions.on_event((api.STREAM_CLOSED, 1, b"", (status, text, [], refused)))


@pytest.fixture
def stage(transport: Any) -> Stage:
    return Stage(transport)


@pytest.mark.parametrize(
    ("of", "path"),
    [
        (UNARY, "/cloudstate.action.ActionProtocol/handleUnary"),
        (IN, "/cloudstate.action.ActionProtocol/handleStreamedIn"),
        (OUT, "/cloudstate.action.ActionProtocol/handleStreamedOut"),
        (BOTH, "/cloudstate.action.ActionProtocol/handleStreamed"),
        (method("Old", entity_type=STATELESS_FUNCTION), "/cloudstate.function.StatelessFunction/handleUnary"),
    ],
)
def test_each_shape_has_its_method(stage: Stage, of: MethodInfo, path: str) -> None:
    stage.begin(of)
    assert stage.transport.streams[1].path == path


def test_one_request_carries_names_payload_and_metadata(stage: Stage) -> None:
    metadata = entity_pb2.Metadata(entries=[entity_pb2.MetadataEntry(key="k", string_value="v")])
    stage.begin(UNARY, b"p", metadata.SerializeToString())
    expected = action_pb2.ActionCommand(service_name="t.A", name="Unary", metadata=metadata)
    expected.payload.type_url, expected.payload.value = "type.googleapis.com/t.In", b"p"
    assert stage.got() == [expected]
    assert stage.transport.streams[1].half_closed


def test_streamed_requests_follow_a_message_of_names(stage: Stage) -> None:
    stage.begin(IN, b"one", more=True)
    assert stage.actions.feed(1, b"two")
    first, *rest = stage.got()
    assert (first.name, first.HasField("payload")) == ("In", False)
    assert [(m.service_name, m.name, m.payload.value) for m in rest] == [("", "", b"one"), ("", "", b"two")]
    assert not stage.transport.streams[1].half_closed
    assert stage.actions.end(1)
    assert stage.transport.streams[1].half_closed


def test_in_protocol_0_1_every_streamed_request_has_the_names(stage: Stage) -> None:
    metadata = entity_pb2.Metadata(entries=[entity_pb2.MetadataEntry(key="k", string_value="v")])
    stage.begin(method("Old", True, entity_type=STATELESS_FUNCTION), b"one", metadata.SerializeToString(), more=True)
    assert stage.actions.feed(1, b"two")
    assert [(m.service_name, m.name, m.payload.value, len(m.metadata.entries)) for m in stage.got()] == [
        ("t.A", "Old", b"one", 1),
        ("t.A", "Old", b"two", 0),
    ]


@pytest.mark.parametrize(("entity_type", "messages"), [(ACTION, 1), (STATELESS_FUNCTION, 0)])
def test_a_streamed_call_without_a_request(stage: Stage, entity_type: str, messages: int) -> None:
    stage.actions.begin(1, Invocation(method("In", True, entity_type=entity_type), b""), empty=True)
    assert len(stage.got()) == messages
    assert stage.transport.streams[1].half_closed


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=300)


@given(TEXT, TEXT, st.binary(max_size=20_000), TEXT, TEXT)
def test_requests_are_encoded_as_protobuf_does(service: str, name: str, payload: bytes, type_url: str, value: str) -> None:
    of = MethodInfo(f"/{service}/{name}", service, name, "p", ACTION, "t.In", "t.Out", (), "", None)
    metadata = entity_pb2.Metadata(entries=[entity_pb2.MetadataEntry(key="k", string_value=value)])
    names = action_pb2.ActionCommand(service_name=service, name=name, metadata=metadata)
    with_payload = action_pb2.ActionCommand()
    with_payload.payload.type_url, with_payload.payload.value = type_url or "type.googleapis.com/t.In", payload
    commands, encoded = ActionCommands(), metadata.SerializeToString()
    read = action_pb2.ActionCommand.FromString
    for _ in range(2):  # the second time from prepared parts
        assert read(commands.opening(of, encoded)) == names
        assert commands.payload(of, payload, type_url) == with_payload.SerializeToString()
        whole = read(commands.whole(of, payload, type_url, encoded))
        assert (whole.name, whole.service_name, whole.payload, whole.metadata) == (name, service, with_payload.payload, metadata)


def test_many_answers_behind_an_effect(stage: Stage) -> None:
    stage.begin(OUT)
    stage.say(b"0", effects=(("Unary", True),))
    for n in range(1, 3_000):
        stage.say(b"%d" % n)
    stage.callers.reply(stage.invoked[0][0], b"")
    assert [int(message) for _, message in stage.messages] == list(range(3_000))


def test_requests_after_the_functions_end_go_nowhere(stage: Stage) -> None:
    stage.begin(BOTH, more=True)
    stage.say(b"1", effects=(("Unary", True),))
    stage.close()
    sent = list(stage.transport.streams[1].sent)
    assert stage.actions.feed(1, b"late")
    assert stage.actions.end(1)
    assert stage.transport.streams[1].sent == sent
    stage.callers.reply(stage.invoked[0][0], b"")
    assert (stage.messages, stage.transport.answers[1].status) == ([(1, b"1")], Status.OK)


def test_the_end_of_an_answered_call_concerns_nobody_else(stage: Stage) -> None:
    stage.begin(UNARY)
    stage.say(b"out")
    stage.say(b"once more")
    assert stage.actions.on_event((api.STREAM_CLOSED, 1, b"", (0, "", [], False)))
    assert not stage.actions.on_event((api.STREAM_CLOSED, 1, b"", (0, "", [], False)))
    assert stage.transport.answers[1].body == b"out"


def test_one_answer(stage: Stage) -> None:
    stage.begin(UNARY)
    stage.say(b"out")
    stage.close()
    assert (stage.transport.answers[1].body, stage.reported) == (b"out", [])


def test_an_answer_of_another_type_is_passed_on_and_reported(stage: Stage) -> None:
    stage.begin(method("Other"))
    response = action_pb2.ActionResponse()
    response.reply.payload.type_url, response.reply.payload.value = "type.googleapis.com/t.In", b"out"
    stage.actions.on_event((api.STREAM_MESSAGE, 1, response.SerializeToString(), None))
    assert stage.transport.answers[1].body == b"out"
    assert stage.reported == ["Warning: t.A.Other: Expected reply type_url to be [type.googleapis.com/t.Out] but was [type.googleapis.com/t.In]."]


def test_streamed_answers_come_in_order_and_end_with_the_functions_stream(stage: Stage) -> None:
    stage.begin(OUT)
    for reply in (b"1", b"2"):
        stage.say(reply)
    stage.say(effects=(("Unary", False),))
    stage.say(b"3")
    assert stage.messages == [(1, b"1"), (1, b"2"), (1, b"3")]
    assert 1 not in stage.transport.answers
    stage.close()
    assert stage.transport.answers[1].status == Status.OK


def test_a_synchronous_effect_holds_back_what_comes_after_it(stage: Stage) -> None:
    stage.begin(OUT)
    stage.say(b"1", effects=(("Unary", True),))
    stage.say(b"2")
    stage.close()
    assert (stage.messages, stage.transport.answers) == ([], {})
    stage.callers.finish(stage.invoked[0][0], Status.UNKNOWN, "failed")
    assert stage.messages == [(1, b"1"), (1, b"2")]
    assert stage.transport.answers[1].status == Status.OK


@pytest.mark.parametrize("of", [UNARY, IN, OUT, BOTH])
def test_a_failure_ends_the_call_and_the_requests(stage: Stage, of: MethodInfo) -> None:
    stage.begin(of, more=of.client_streaming)
    stage.say(failure="no", effects=(("Unary", False),))
    assert (stage.transport.answers[1].status, stage.transport.answers[1].text) == (Status.UNKNOWN, "no")
    assert stage.transport.streams[1].reset is (of is not UNARY), "a unary call ends with its one answer, without force"
    assert len(stage.invoked) == 1, "actions may ask for effects together with a failure"
    stage.close(1)
    assert not stage.actions.feed(1, b"late")


@pytest.mark.parametrize("of", [UNARY, IN, OUT, BOTH])
def test_the_functions_own_status_reaches_the_caller(stage: Stage, of: MethodInfo) -> None:
    stage.begin(of, more=of.client_streaming)
    stage.close(Status.NOT_FOUND, "no such thing")
    assert (stage.transport.answers[1].status, stage.transport.answers[1].text) == (Status.NOT_FOUND, "no such thing")


def test_a_function_that_cannot_be_reached_is_unavailable(stage: Stage) -> None:
    stage.begin(UNARY)
    stage.close(Status.UNAVAILABLE, "refused", refused=True)
    assert (stage.transport.answers[1].status, stage.transport.answers[1].text) == (
        Status.UNAVAILABLE,
        "the user function cannot be reached: refused",
    )


@pytest.mark.parametrize("says", [True, False])
def test_no_answer_is_an_error_for_a_caller(stage: Stage, says: bool) -> None:
    stage.begin(UNARY)
    if says:
        stage.say()
    stage.close()
    assert (stage.transport.answers[1].status, stage.transport.answers[1].text) == (
        Status.UNKNOWN,
        "/t.A/Unary: the function gave no answer for the caller",
    )


def test_what_does_not_parse_fails_that_call(stage: Stage) -> None:
    stage.begin(UNARY)
    stage.actions.on_event((api.STREAM_MESSAGE, 1, b"\xff", None))
    assert stage.transport.answers[1].text == "/t.A/Unary: the function's answer does not parse"
    assert stage.transport.streams[1].reset


def test_a_unary_forward_hands_the_call_over(stage: Stage) -> None:
    stage.begin(UNARY)
    stage.say(forward="Out")
    [(call, invocation)] = stage.invoked
    assert (call, invocation.method, invocation.chain) == (1, OUT, ("/t.A/Unary",))
    stage.close()
    assert 1 not in stage.transport.answers, "the target answers now"


def test_a_forward_within_a_stream_is_answered_within_it(stage: Stage) -> None:
    stage.begin(OUT)
    stage.say(b"1")
    stage.say(forward="Unary")
    stage.say(b"3")
    assert stage.messages == [(1, b"1")]
    stage.callers.reply(stage.invoked[0][0], b"2")
    assert stage.messages == [(1, b"1"), (1, b"2"), (1, b"3")]
    stage.close()
    assert stage.transport.answers[1].status == Status.OK


def test_a_forward_that_fails_within_a_stream_fails_the_stream(stage: Stage) -> None:
    stage.begin(OUT)
    stage.say(forward="Unary")
    stage.callers.finish(stage.invoked[0][0], Status.NOT_FOUND, "gone")
    assert stage.transport.answers[1].status == Status.NOT_FOUND
    assert stage.transport.streams[1].reset


@pytest.mark.parametrize("end", ["the caller leaves", "the function fails", "the target ends"])
def test_a_forward_within_a_stream_ends_with_the_stream(stage: Stage, end: str) -> None:
    stage.begin(OUT)
    stage.say(forward="Both")
    [(relay, _)] = stage.invoked
    if end == "the caller leaves":
        assert stage.actions.cancelled(1)
    elif end == "the function fails":
        stage.close(Status.ABORTED, "enough")
        assert 1 not in stage.transport.answers, "what the function said before comes first"
        stage.callers.finish(relay, Status.NOT_FOUND, "gone")
    else:
        stage.callers.finish(relay, Status.OK)
        stage.close()
    assert stage.cancelled == ([relay] if end == "the caller leaves" else [])
    stage.callers.reply(relay, b"late")
    assert stage.messages == []


def test_a_caller_who_leaves_takes_the_functions_call_along(stage: Stage) -> None:
    stage.begin(BOTH, more=True)
    assert stage.actions.cancelled(1)
    assert stage.transport.streams[1].reset
    assert not stage.actions.cancelled(1)


def test_concurrency_is_the_average_since_it_was_asked_last(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("stateful_proxy.actions.time.monotonic", lambda: clock[0])
    stage.actions.concurrency(100.0)
    stage.begin(UNARY)
    clock[0] = 101.0
    assert stage.actions.concurrency(102.0) == pytest.approx(1.0)
    clock[0] = 103.0
    stage.say(b"out")
    assert stage.actions.concurrency(104.0) == pytest.approx(0.5)
    assert stage.actions.concurrency(105.0) == 0.0


def test_a_function_that_reads_slowly_slows_down_its_caller(stage: Stage) -> None:
    stage.actions.begin(7, Invocation(IN, b"one"), more=True)
    stage.transport.backlogs[1] = MOST_WAITING
    stage.actions.feed(7, b"two")
    assert stage.transport.paused == set()
    stage.transport.backlogs[1] += 1
    stage.actions.feed(7, b"three")
    assert stage.transport.paused == {("call", 7)}
    assert stage.actions.drained(1)
    assert stage.transport.paused == set()
    assert not stage.actions.drained(99)


@pytest.mark.parametrize("of", [OUT, BOTH])
def test_a_caller_that_reads_slowly_slows_down_the_function(stage: Stage, of: MethodInfo) -> None:
    stage.actions.begin(7, Invocation(of, b"p"))
    stage.say(b"a")
    assert stage.transport.paused == set()
    stage.transport.backlogs[7] = MOST_WAITING + 1
    stage.say(b"b")
    stage.say(b"c")
    assert stage.transport.paused == {("stream", 1)}
    stage.transport.backlogs[7] = 0
    assert stage.actions.drained(7)
    assert stage.transport.paused == set()
    assert stage.messages == [(7, b"a"), (7, b"b"), (7, b"c")]
    stage.close()
    assert not stage.actions.drained(7)


def test_a_function_waits_while_its_responses_cannot_be_carried_out(stage: Stage) -> None:
    stage.actions.begin(7, Invocation(OUT, b"p"))
    stage.say(b"first", effects=(("Unary", True),))
    for n in range(MOST_RESPONSES):
        stage.say(b"%d" % n)
    assert stage.transport.paused == set()
    stage.say(b"one too many")
    assert stage.transport.paused == {("stream", 1)}
    [(effect, _)] = stage.invoked
    stage.callers.reply(effect, b"")
    assert stage.transport.paused == set()
    assert len(stage.messages) == MOST_RESPONSES + 2
