"""Messages as HTTP responses: canonical JSON, one field of it, raw bodies, and streams of each."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.api import httpbody_pb2
from google.protobuf import message_factory

from cloudstate_core.transport.api import Status
from stateful_proxy.transcoding.responses import STATUS, Response
from stateful_proxy.transcoding.rules import Route

from .world import route, routes


def encoded(of: Route, **fields: Any) -> bytes:
    payload: bytes = message_factory.GetMessageClass(of.method.output_type)(**fields).SerializeToString()
    return payload


def test_defaults_are_printed_unset_messages_are_not_and_large_numbers_are_text() -> None:
    [of] = routes()
    content_type, body = Response(of, "").whole(encoded(of, name="ä", big_number=5, raw=b"\xff", color=1))
    assert content_type == "application/json"
    assert json.loads(body) == {
        "name": "ä", "small": 0, "bigNumber": "5", "ratio": 0.0, "flag": False, "raw": "/w==", "color": "GREEN", "words": [], "parts": [],
    }  # fmt: skip
    assert b" " not in body
    assert b"\n" not in body


@pytest.mark.parametrize("streamed", [False, True])
def test_a_content_type_that_no_header_can_hold_is_refused(streamed: bool) -> None:
    [of] = routes(output_type=".google.api.HttpBody")
    response, payload = Response(of, ""), httpbody_pb2.HttpBody(content_type="text/plain\r\nx: y", data=b"d").SerializeToString()
    with pytest.raises(ValueError, match="must have no control characters"):
        response.begin(payload) if streamed else response.whole(payload)


@pytest.mark.parametrize(
    ("field", "body"),
    [("small", b"2"), ("big_number", b'"5"'), ("raw", b'"/w=="'), ("words", b'["a"]'), ("inner", b'{"text":"x"}'), ("flag", b"false")],
)
def test_one_field_in_the_same_form(field: str, body: bytes) -> None:
    of = route(get="/a", response_body=field)
    payload = encoded(of, small=2, big_number=5, raw=b"\xff", words=["a"], inner={"text": "x"})
    assert Response(of, "").whole(payload) == ("application/json", body)


def test_nothing_is_an_empty_object_and_a_raw_body_is_itself() -> None:
    [of] = routes(output_type=".t.Inner")
    assert Response(of, "").whole(b"") == ("application/json", b'{"text":""}')
    [raw] = routes(output_type=".google.api.HttpBody")
    assert Response(raw, "").whole(encoded(raw, content_type="image/png", data=b"\x00")) == ("image/png", b"\x00")


def test_streams() -> None:
    [of] = routes(output_type=".t.Inner")
    lines, events = Response(of, "application/json"), Response(of, "text/event-stream, */*")
    assert (lines.begin(b""), events.begin(b"")) == ("application/json", "text/event-stream")
    assert lines.item(encoded(of, text="x")) == b'{"text":"x"}\n'
    assert events.item(encoded(of, text="x")) == b'data: {"text":"x"}\n\n'
    assert lines.error(5, "gone") == b""
    assert events.error(5, "gone") == b'event: error\ndata: {"code": 5, "message": "gone"}\n\n'


def test_every_status_has_its_counterpart() -> None:
    assert set(STATUS) == set(map(int, Status))
    assert (STATUS[Status.UNKNOWN], STATUS[Status.UNAUTHENTICATED], STATUS[Status.UNIMPLEMENTED]) == (500, 401, 501)
