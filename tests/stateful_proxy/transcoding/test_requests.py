"""HTTP requests as messages: path, query and body, and a clear word about whatever cannot be taken."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from stateful_proxy.transcoding.requests import BadRequest, message_of

from .world import parsed, route

GET = {"get": "/a/{name}"}
POST = {"post": "/a/{name}", "body": "*"}
FIELD = {"post": "/a/{name}", "body": "inner"}
JSON = "application/json"


def taken(rule: dict[str, Any], query: str = "", body: bytes = b"", content_type: str = JSON, **variables: str) -> dict[str, Any]:
    """The request message as proto3 JSON, without what has the default value."""
    of = route(**rule)
    found: dict[str, Any] = json_format.MessageToDict(parsed(of, message_of(of, variables, query, content_type, body)))
    return found


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("small=3", {"small": 3}),
        ("big_number=9007199254740993", {"bigNumber": "9007199254740993"}),
        ("bigNumber=-1", {"bigNumber": "-1"}),
        ("ratio=1.5", {"ratio": 1.5}),
        ("flag=true", {"flag": True}),
        ("color=GREEN", {"color": "GREEN"}),
        ("color=1", {"color": "GREEN"}),
        ("raw=AQI%3D", {"raw": "AQI="}),
        ("raw=AQI", {"raw": "AQI="}),
        ("raw=-_8", {"raw": "+/8="}),
        ("inner.text=x&inner.deep.text=y", {"inner": {"text": "x", "deep": {"text": "y"}}}),
        ("words=a&words=b", {"words": ["a", "b"]}),
        ("at=2020-01-02T03:04:05Z", {"at": "2020-01-02T03:04:05Z"}),
        ("span=1.5s", {"span": "1.500s"}),
        ("maybe=7", {"maybe": "7"}),
        ("", {}),
    ],
)
def test_query_parameters(query: str, message: dict[str, Any]) -> None:
    assert taken(GET, query, name="k") == {"name": "k", **message}


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("nope=1", "query parameter nope: t.All has no such field"),
        ("inner.nope=1", "query parameter inner.nope: t.All has no such field"),
        ("inner=1", "query parameter inner: is a message; name one of its fields"),
        ("parts.text=1", "query parameter parts.text: leads through a repeated field"),
        ("small=x", "query parameter small: 'x' must be a whole number"),
        ("small=99999999999", "query parameter small: '99999999999' is no value of it"),
        ("flag=yes", "query parameter flag: 'yes' must be true or false"),
        ("color=BLUE", "query parameter color: 'BLUE' is no value of it"),
        ("raw=%21", "query parameter raw: is not base64"),
        ("at=yesterday", "query parameter at: 'yesterday' is no value of it"),
        ("small=1&small=2", "query parameter small: is there 2 times; the field is not repeated"),
        ("name=other", "query parameter name: is in the path already"),
    ],
)
def test_a_wrong_query_is_named(query: str, text: str) -> None:
    with pytest.raises(BadRequest) as error:
        taken(GET, query, name="k")
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("rule", "body", "message"),
    [
        (POST, b'{"small":3,"bigNumber":"4","ratio":null}', {"small": 3, "bigNumber": "4"}),
        (POST, b'{"big_number":4}', {"bigNumber": "4"}),
        (POST, b"", {}),
        (POST, b'{"name":"of the body","small":1}', {"small": 1}),
        (FIELD, b'{"text":"x"}', {"inner": {"text": "x"}}),
        (GET, b"ignored", {}),
    ],
)
def test_bodies(rule: dict[str, Any], body: bytes, message: dict[str, Any]) -> None:
    assert taken(rule, body=body, name="k") == {"name": "k", **message}


def test_body_of_one_field_the_rest_from_the_query() -> None:
    assert taken(FIELD, "small=2", b'{"text":"x"}', name="k") == {"name": "k", "small": 2, "inner": {"text": "x"}}


def test_a_path_variable_with_the_default_value_still_wins() -> None:
    assert taken({"post": "/a/{small}", "body": "*"}, body=b'{"small":5}', small="0") == {}


def test_a_nested_path_variable_leaves_its_neighbours() -> None:
    rule = {"post": "/a/{inner.text}", "body": "*"}
    assert taken(rule, body=b'{"inner":{"text":"no","deep":{"text":"y"}}}', **{"inner.text": "x"}) == {"inner": {"text": "x", "deep": {"text": "y"}}}


@pytest.mark.parametrize(
    ("rule", "query", "body", "content_type", "text"),
    [
        (POST, "", b"{", JSON, "body: "),
        (POST, "", b'{"nope":1}', JSON, "nope"),
        (POST, "", b'{"small":"x"}', JSON, "small"),
        (POST, "", b"[]", JSON, "body: "),
        (POST, "", b'{"small":1,"small":2}', JSON, "field 'small' is there twice"),
        (POST, "", b"\xff", JSON, "body: is not UTF-8"),
        (POST, "", b"{}", "text/plain", "content-type text/plain: the body of this method must be application/json"),
        (POST, "", b"{}", "", "content-type (none)"),
        (POST, "small=1", b"{}", JSON, "query parameter small: not taken here, where the body is the whole message"),
        (FIELD, "inner.text=1", b"{}", JSON, "query parameter inner.text: is the body already"),
        (FIELD, "", b'1},{"name":"x"', JSON, "body: is not JSON"),
        (POST, "", b"[" * 100_000, JSON, "body: "),
        (POST, "", b'{"\\ud800":1}', JSON, "body: is not JSON"),
        (POST, "", b'{"name":"\\udc00\\ud800"}', JSON, "body: is not JSON"),
    ],
)
def test_a_wrong_body_is_named(rule: dict[str, Any], query: str, body: bytes, content_type: str, text: str) -> None:
    with pytest.raises(BadRequest) as error:
        taken(rule, query, body, content_type, name="k")
    assert text in str(error.value)


def test_a_charset_is_no_hindrance() -> None:
    assert taken(POST, body=b'{"small":1}', content_type="application/json; charset=utf-8", name="k") == {"name": "k", "small": 1}


def test_a_raw_body() -> None:
    rule = {"post": "/a/{name}", "body": "file"}
    assert taken(rule, body=b"\x00\x01", content_type="image/png", name="k") == {
        "name": "k",
        "file": {"contentType": "image/png", "data": "AAE="},
    }


@given(query=st.text(), body=st.binary(), content_type=st.sampled_from([JSON, "", "text/plain", "application/json;"]), name=st.text())
def test_nothing_but_a_bad_request_is_raised(query: str, body: bytes, content_type: str, name: str) -> None:
    for rule in (GET, POST, FIELD):
        of = route(**rule)
        with contextlib.suppress(BadRequest):
            message_of(of, {"name": name}, query, content_type, body)
