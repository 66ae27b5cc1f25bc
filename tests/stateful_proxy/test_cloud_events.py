"""CloudEvents as HTTP requests, as payloads of methods, and as what answers are published as."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateful_proxy.eventing.cloud_events import CloudEvent, InvalidEvent, is_event, of_request, request_headers
from stateful_proxy.eventing.payloads import event_of, metadata_of, payload_of, unwrapped, wrapped

BASE = {"id": "1", "source": "/shop", "specversion": "1.0", "type": "t.One"}
BINARY = {f"ce-{name}": value for name, value in BASE.items()}
STRUCTURED = {"content-type": "application/cloudevents+json; charset=utf-8"}

texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1)
events = st.builds(
    CloudEvent,
    st.dictionaries(st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True), texts).map(lambda more: {**more, **BASE}),
    st.sampled_from(["", "application/json", "text/plain; charset=utf-8", "application/octet-stream"]),
    st.binary(),
)


@given(events)
def test_binary_mode_comes_back_as_it_was(event: CloudEvent) -> None:
    headers = request_headers(event)
    assert all(0x21 <= ord(c) < 0x7F for name, value in headers.items() if name.startswith("ce-") for c in value)
    assert of_request(headers, event.data) == event


@given(events)
def test_structured_mode_says_the_same(event: CloudEvent) -> None:
    document = {**event.attributes, "data_base64": base64.b64encode(event.data).decode()}
    if event.content_type:
        document["datacontenttype"] = event.content_type
    found = of_request(STRUCTURED, json.dumps(document).encode())
    assert (found.attributes, found.data) == (event.attributes, event.data)
    assert found.content_type == (event.content_type or "application/json")


@given(st.binary(), st.dictionaries(st.sampled_from(["content-type", *BINARY, "ce-x", "ce-X y"]), st.text()))
def test_whatever_comes_is_an_event_or_says_what_is_wrong(body: bytes, headers: dict[str, str]) -> None:
    with contextlib.suppress(InvalidEvent):
        assert of_request(headers, body).attributes["id"]


@pytest.mark.parametrize(
    ("members", "data", "content_type"),
    [
        ({"data": {"a": [1, "ü"]}}, '{"a":[1,"ü"]}'.encode(), "application/json"),
        ({"data": "text"}, b'"text"', "application/json"),
        ({"data": "text", "datacontenttype": "text/plain"}, b"text", "text/plain"),
        ({"data": "<a/>", "datacontenttype": "application/xml"}, b"<a/>", "application/xml"),
        ({"data": {"a": 1}, "datacontenttype": "application/vnd.shop+json"}, b'{"a":1}', "application/vnd.shop+json"),
        ({"data_base64": "AP8="}, b"\x00\xff", "application/json"),
        ({"data": None}, b"", "application/json"),
        ({}, b"", "application/json"),
    ],
)
def test_data_of_structured_mode(members: dict[str, Any], data: bytes, content_type: str) -> None:
    event = of_request(STRUCTURED, json.dumps({**BASE, **members}).encode())
    assert (event.data, event.content_type) == (data, content_type)


def test_attributes_that_are_no_texts_are_written_as_json_has_them() -> None:
    event = of_request(STRUCTURED, json.dumps({**BASE, "flag": True, "count": 3, "none": None}).encode())
    assert event.attributes == {**BASE, "flag": "true", "count": "3"}


@pytest.mark.parametrize(
    ("headers", "body", "told"),
    [
        ({}, b"{}", "attribute id: must be there"),
        ({**BINARY, "ce-source": ""}, b"", "attribute source: must be there"),
        ({**BINARY, "ce-specversion": "0.3"}, b"", "'0.3' is not supported; it must be 1.0"),
        ({**BINARY, "ce-my_name": "x"}, b"", "attribute 'my_name': names have lower-case letters and digits only"),
        ({"content-type": "application/cloudevents-batch+json"}, b"[]", "one at a time"),
        (STRUCTURED, b"{", "body: is not JSON"),
        (STRUCTURED, b"[" * 100_000, "body: is not JSON"),
        (STRUCTURED, b"[]", "body: must be a JSON object"),
        (STRUCTURED, b"\xff", "body: is not UTF-8"),
        (STRUCTURED, b'{"id": "1", "id": "2"}', "field 'id' is there twice"),
        (STRUCTURED, json.dumps({**BASE, "data_base64": "?"}).encode(), "data_base64: is not base64"),
        (STRUCTURED, json.dumps({**BASE, "subject": "\ud800"}).encode(), "body: is not JSON: .*surrogates not allowed"),
        (STRUCTURED, json.dumps({**BASE, "data": ["\ud800"]}).encode(), "body: is not JSON: .*surrogates not allowed"),
        (STRUCTURED, json.dumps({**BASE, "more": {"\ud800": 1}}).encode(), "body: is not JSON: .*surrogates not allowed"),
        (STRUCTURED, json.dumps({**BASE, "datacontenttype": 1}).encode(), "datacontenttype: must be a text"),
    ],
)
def test_what_is_no_event_says_why(headers: dict[str, str], body: bytes, told: str) -> None:
    with pytest.raises(InvalidEvent, match=told.replace("[", r"\[")):
        of_request(headers, body)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (BINARY, True),
        (STRUCTURED, True),
        ({"content-type": "Application/CloudEvents-Batch+json"}, True),
        ({"content-type": "application/json"}, False),
    ],
)
def test_what_says_that_it_is_an_event(headers: dict[str, str], expected: bool) -> None:
    assert is_event(headers) is expected


@pytest.mark.parametrize(
    ("content_type", "type_url", "value"),
    [
        ("application/protobuf", "type.googleapis.com/t.One", b"d"),
        ("application/x-protobuf; proto=t.Two", "type.googleapis.com/t.Two", b"d"),
        ('application/vnd.google.protobuf; messageType="t.Three"', "type.googleapis.com/t.Three", b"d"),
        ("application/vnd.cloudstate.protobuf.any", "t.One", b"d"),
        ("application/json", "json.cloudstate.io/t.One", b"\n\x01d"),
        ("Application/Vnd.shop+JSON; charset=utf-8", "json.cloudstate.io/t.One", b"\n\x01d"),
        ("text/plain", "p.cloudstate.io/string", b"\n\x01d"),
        ("image/png", "p.cloudstate.io/bytes", b"\n\x01d"),
        ("", "p.cloudstate.io/bytes", b"\n\x01d"),
    ],
)
def test_payloads_by_content_type(content_type: str, type_url: str, value: bytes) -> None:
    found = payload_of(CloudEvent(BASE, content_type, b"d"))
    assert (found.type_url, found.value) == (type_url, value)


def test_text_is_utf8_in_a_payload() -> None:
    assert payload_of(CloudEvent(BASE, "text/plain; charset=latin-1", "ü".encode("latin-1"))).value == wrapped("ü".encode())
    assert payload_of(CloudEvent(BASE, "text/plain; charset=nonsense", b"\xfc")).value == wrapped(b"\xfc")


def test_metadata_has_the_attributes_and_the_content_type() -> None:
    entries = {entry.key: entry.string_value for entry in metadata_of(CloudEvent(BASE, "text/plain", b"")).entries}
    assert entries == {**BINARY, "Content-Type": "text/plain"}


@pytest.mark.parametrize(
    ("type_url", "value", "kind", "content_type", "data"),
    [
        ("json.cloudstate.io/t.One", b"\n\x02{}", "t.One", "application/json", b"{}"),
        ("p.cloudstate.io/string", b"\n\x02hi", "p.cloudstate.io/string", "text/plain; charset=utf-8", b"hi"),
        ("p.cloudstate.io/bytes", b"", "p.cloudstate.io/bytes", "application/octet-stream", b""),
        ("type.googleapis.com/t.One", b"\n\x02hi", "t.One", "application/protobuf", b"\n\x02hi"),
    ],
)
def test_answers_as_events(type_url: str, value: bytes, kind: str, content_type: str, data: bytes) -> None:
    event = event_of(type_url, value, [], "t.S", "id", "2026-11-25T00:00:00.000Z")
    attributes = {"id": "id", "source": "t.S", "specversion": "1.0", "type": kind, "time": "2026-11-25T00:00:00.000Z"}
    assert event == CloudEvent(attributes, content_type, data)


def test_metadata_of_an_answer_goes_before_what_is_made_up() -> None:
    headers = [
        ("ce-id", b"mine"), ("ce-type", b"t.Other"), ("ce-subject", "zoë".encode()), ("ce-source", b""), ("ce-a-b", b"no"), ("x", b"no"),
        ("content-type", b"application/x-thing"), ("ce-raw", b"\xff"),
    ]  # fmt: skip
    event = event_of("type.googleapis.com/t.One", b"v", headers, "t.S", "id", "now")
    assert event.attributes == {
        "id": "mine", "source": "t.S", "specversion": "1.0", "type": "t.Other", "time": "now", "subject": "zoë", "raw": "\ufffd",
    }  # fmt: skip
    assert event.content_type == "application/x-thing"


@given(st.binary())
def test_what_is_wrapped_is_found_again(data: bytes) -> None:
    assert unwrapped(wrapped(data)) == data


@pytest.mark.parametrize(
    ("message", "data"), [(b"", b""), (b"\n\x01a", b"a"), (b"\n\x01a\n\x01b", b"b"), (b"\x10\x01\n\x01a", b"a"), (b"\n\x05ab", b"\n\x05ab")]
)
def test_what_is_no_message_is_published_as_it_is(message: bytes, data: bytes) -> None:
    assert unwrapped(message) == data
