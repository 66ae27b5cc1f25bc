"""The discovery conversation: patience with an absent function, clear words for a wrong one."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from cloudstate_core.pb.cloudstate import entity_pb2
from cloudstate_core.transport import api
from stateful_proxy.discovery import DISCOVER, REPORT_ERROR, Discovery
from stateful_proxy.service import EVENT_SOURCED, ServiceModel

ABSENT = (14, "connection refused", [], True)
GOOD = (0, "", [], False)


class Talk:
    """A discovery that has begun."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.models: list[ServiceModel] = []
        self.discovery = Discovery(transport, 1, "127.0.0.1:8080", "1.2", self.models.append)
        self.discovery.start()

    def event(self, kind: int, stream: int, data: bytes = b"", detail: Any = None) -> bool:
        return self.discovery.on_event((kind, stream, data, detail))

    def paths(self) -> list[str]:
        return [stream.path for stream in self.transport.streams.values()]


@pytest.fixture
def talk(transport: Any) -> Talk:
    return Talk(transport)


def good_answer() -> bytes:
    """The smallest spec that can be served: one service, one method, one key."""
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    key = file.message_type.add(name="M").field.add(name="id", number=1, type=9, label=1)
    key.options.MergeFromString(b"\xc0\x43\x01")
    file.service.add(name="S").method.add(name="Do", input_type=".t.M", output_type=".t.M")
    spec = entity_pb2.EntitySpec(proto=descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString())
    spec.entities.add(entity_type=EVENT_SOURCED, service_name="t.S", persistence_id="p")
    return spec.SerializeToString()


def test_the_proxy_introduces_itself(talk: Talk) -> None:
    stream = talk.transport.streams[1]
    question = entity_pb2.ProxyInfo.FromString(stream.sent[0])
    assert (stream.path, stream.half_closed) == (DISCOVER, True)
    assert (question.protocol_major_version, question.protocol_minor_version, question.proxy_version) == (0, 2, "1.2")
    assert list(question.supported_entity_types) == [EVENT_SOURCED]


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
    assert (talk.transport.fire(), talk.paths()) == ([], [DISCOVER, DISCOVER])


@pytest.mark.parametrize("answer", [b"", b"\xff\xff\xff"])
def test_a_wrong_answer_is_reported_and_not_asked_for_again(talk: Talk, answer: bytes) -> None:
    talk.event(api.STREAM_MESSAGE, 1, answer)
    talk.event(api.STREAM_CLOSED, 1, detail=GOOD)
    assert not talk.models
    assert "cannot be served" in talk.discovery.problem
    assert talk.paths() == [DISCOVER, REPORT_ERROR]
    assert entity_pb2.UserFunctionError.FromString(talk.transport.streams[2].sent[0]).message in talk.discovery.problem
    assert talk.transport.streams[2].half_closed
    talk.event(api.STREAM_CLOSED, 2, detail=(12, "no such method", [], False))
    assert talk.transport.fire() == []


def test_an_answer_of_a_call_that_failed_does_not_count(talk: Talk) -> None:
    talk.event(api.STREAM_MESSAGE, 1, good_answer())
    talk.event(api.STREAM_CLOSED, 1, detail=(13, "crashed", [], False))
    assert not talk.models
    assert talk.transport.fire() != []


def test_events_of_others_are_left_alone(talk: Talk) -> None:
    assert not talk.event(api.STREAM_MESSAGE, 7, b"x")
    assert not talk.event(api.CALL, 1)
