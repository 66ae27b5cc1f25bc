"""The discovery conversation: patience with an absent function, clear words for a wrong one."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from cloudstate_core.pb.cloudstate import entity_pb2
from cloudstate_core.transport import api
from stateful_proxy.discovery import DISCOVER, REPORT_ERROR, REPORTS_A_SECOND, REPORTS_AT_ONCE, Discovery
from stateful_proxy.service import EVENT_SOURCED, ServiceModel

ABSENT = (14, "connection refused", [], True)
GOOD = (0, "", [], False)


class Talk:
    """A discovery that has begun."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.models: list[ServiceModel] = []
        self.others: list[str] = []
        self.problems: list[str] = []
        self.discovery = Discovery(transport, 1, "127.0.0.1:8080", "1.2", self.models.append, self.others.append, self._changed)
        self.discovery.start()

    def _changed(self) -> None:
        self.problems.append(self.discovery.problem)

    def answer(self, answer: bytes) -> None:
        """The function answers the question that is out."""
        stream = max(n for n, s in self.transport.streams.items() if s.path == DISCOVER)
        self.event(api.STREAM_MESSAGE, stream, answer)
        self.event(api.STREAM_CLOSED, stream, detail=GOOD)

    def questions(self) -> int:
        return self.paths().count(DISCOVER)

    def event(self, kind: int, stream: int, data: bytes = b"", detail: Any = None) -> bool:
        return self.discovery.on_event((kind, stream, data, detail))

    def paths(self) -> list[str]:
        return [stream.path for stream in self.transport.streams.values()]


@pytest.fixture
def talk(transport: Any) -> Talk:
    return Talk(transport)


def good_answer(method: str = "Do", persistence_id: str = "p", message: str = "M") -> bytes:
    """The smallest spec that can be served: one service, one method, one key."""
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    key = file.message_type.add(name=message).field.add(name="id", number=1, type=9, label=1)
    key.options.MergeFromString(b"\xc0\x43\x01")
    file.service.add(name="S").method.add(name=method, input_type=f".t.{message}", output_type=f".t.{message}")
    spec = entity_pb2.EntitySpec(proto=descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString())
    spec.entities.add(entity_type=EVENT_SOURCED, service_name="t.S", persistence_id=persistence_id)
    return spec.SerializeToString()


def test_the_proxy_introduces_itself(talk: Talk) -> None:
    stream = talk.transport.streams[1]
    question = entity_pb2.ProxyInfo.FromString(stream.sent[0])
    assert (stream.path, stream.half_closed) == (DISCOVER, True)
    assert (question.protocol_major_version, question.protocol_minor_version, question.proxy_version) == (0, 2, "1.2")
    assert sorted(question.supported_entity_types) == [
        "cloudstate.action.ActionProtocol",
        "cloudstate.crdt.Crdt",
        "cloudstate.eventsourced.EventSourced",
        "cloudstate.valueentity.ValueEntity",
    ]


def test_it_asks_again_first_soon_then_seldom(talk: Talk) -> None:
    delays = []
    for attempt in range(1, 20):
        assert talk.event(api.STREAM_CLOSED, attempt, detail=ABSENT)
        assert "127.0.0.1:8080" in talk.discovery.problem
        assert "connection refused" in talk.discovery.problem
        delays += talk.transport.fire()
    assert delays == sorted(delays)
    assert delays[0] <= 0.1
    assert 1.0 <= delays[-1] <= 10.0
    assert talk.paths() == [DISCOVER] * 20


def test_a_good_answer_makes_the_model_once(talk: Talk) -> None:
    talk.event(api.STREAM_CLOSED, 1, detail=ABSENT)
    talk.transport.fire()
    talk.event(api.STREAM_MESSAGE, 2, good_answer())
    assert not talk.models
    talk.event(api.STREAM_CLOSED, 2, detail=GOOD)
    assert [list(model.methods) for model in talk.models] == [["/t.S/Do"]]
    assert talk.discovery.problem == ""
    talk.transport.fire()
    assert talk.paths() == [DISCOVER, DISCOVER]
    assert talk.problems[-1] == ""


@pytest.mark.parametrize("answer", [b"", b"\xff\xff\xff"])
def test_a_wrong_answer_is_reported_once_and_asked_for_again(talk: Talk, answer: bytes) -> None:
    talk.answer(answer)
    assert not talk.models
    assert "127.0.0.1:8080: cannot be served: " in talk.discovery.problem
    assert talk.paths() == [DISCOVER, REPORT_ERROR]
    assert entity_pb2.UserFunctionError.FromString(talk.transport.streams[2].sent[0]).message in talk.discovery.problem
    assert talk.transport.streams[2].half_closed
    talk.event(api.STREAM_CLOSED, 2, detail=(12, "no such method", [], False))
    assert talk.transport.fire() == [5.0]
    talk.answer(answer)
    assert talk.paths() == [DISCOVER, REPORT_ERROR, DISCOVER]
    talk.transport.fire()
    talk.answer(good_answer())
    assert (len(talk.models), talk.discovery.problem, talk.others) == (1, "", [])


def test_an_attempt_that_takes_too_long_says_so(talk: Talk) -> None:
    talk.event(api.STREAM_CLOSED, 1, detail=(4, "deadline", [], False))
    assert talk.discovery.problem == "user function at 127.0.0.1:8080: has not answered discovery within 10 s"


@pytest.fixture
def known(talk: Talk) -> Talk:
    """The function has answered, and may be asked again."""
    talk.answer(good_answer())
    talk.transport.fire()
    return talk


def test_a_function_that_ends_a_stream_is_asked_again_and_goes_on_if_it_is_the_same(known: Talk) -> None:
    known.discovery.again(lost=False)
    assert (known.questions(), known.discovery.problem) == (2, "")
    known.answer(good_answer())
    assert (len(known.models), known.discovery.problem, known.others) == (1, "", [])


def test_a_function_that_cannot_be_reached_gets_no_command_until_it_has_answered(known: Talk) -> None:
    known.discovery.again(lost=True)
    assert "the connection was lost" in known.discovery.problem
    known.event(api.STREAM_CLOSED, 2, detail=ABSENT)
    assert "connection refused" in known.discovery.problem
    assert known.transport.fire() == [0.05]
    known.answer(good_answer())
    assert known.problems[-1] == known.discovery.problem == ""


def test_streams_that_end_one_after_the_other_ask_once_a_second(known: Talk) -> None:
    for _ in range(5):
        known.discovery.again(lost=False)
    assert known.questions() == 2
    known.answer(good_answer())
    known.discovery.again(lost=False)
    assert known.questions() == 2
    assert known.transport.fire() == [1.0]
    assert known.questions() == 3


def test_the_answer_of_a_function_that_has_gone_since_does_not_count(known: Talk) -> None:
    known.discovery.again(lost=False)
    known.discovery.again(lost=True)
    known.answer(good_answer())
    assert "the connection was lost" in known.discovery.problem
    known.transport.fire()
    known.answer(good_answer())
    assert known.discovery.problem == ""


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (good_answer(method="Other"), "came back as another: /t.S/Do is gone"),
        (good_answer(persistence_id="q"), "came back as another: /t.S/Do is not what it was"),
        (good_answer(message="N"), "came back as another: /t.S/Do is not what it was"),
        (b"", "cannot be served: the function serves no entity"),
    ],
)
def test_a_function_that_comes_back_as_another_is_told_of_once(known: Talk, answer: bytes, says: str) -> None:
    known.discovery.again(lost=True)
    known.answer(answer)
    (told,) = known.others
    assert f"127.0.0.1:8080: {says}" in told
    assert told.endswith("starts anew for anything else")
    assert says in known.discovery.problem
    assert len(known.models) == 1
    assert known.transport.fire() == []


def test_an_answer_of_a_call_that_failed_does_not_count(talk: Talk) -> None:
    talk.event(api.STREAM_MESSAGE, 1, good_answer())
    talk.event(api.STREAM_CLOSED, 1, detail=(13, "crashed", [], False))
    assert not talk.models
    assert talk.transport.fire() != []


def test_events_of_others_are_left_alone(talk: Talk) -> None:
    assert not talk.event(api.STREAM_MESSAGE, 7, b"x")
    assert not talk.event(api.CALL, 1)


def test_a_function_that_makes_the_same_mistake_with_every_answer_is_not_told_of_each(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1_000.0]
    monkeypatch.setattr("stateful_proxy.discovery.time.monotonic", lambda: clock[0])

    def told() -> int:
        return talk.paths().count(REPORT_ERROR)

    for _ in range(3 * REPORTS_AT_ONCE):
        talk.discovery.report_error("again")
    assert told() == REPORTS_AT_ONCE
    clock[0] += 2
    for _ in range(3 * REPORTS_AT_ONCE):
        talk.discovery.report_error("again")
    assert told() == REPORTS_AT_ONCE + 2 * REPORTS_A_SECOND
