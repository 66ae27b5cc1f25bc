"""What may come over HTTP (JSON, queries, gRPC-Web frames, CloudEvents), and what functions may answer there. Each request has one answer."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from google.api import annotations_pb2, http_pb2, httpbody_pb2
from google.protobuf import any_pb2, descriptor_pb2, duration_pb2, message_factory, struct_pb2, timestamp_pb2, wrappers_pb2

from cloudstate_core.pb.cloudstate import entity_pb2, eventing_pb2
from cloudstate_core.transport.api import Header
from stateful_proxy.callers import Callers
from stateful_proxy.eventing.subscriptions import topic_subscriptions
from stateful_proxy.eventing.topics import Topics
from stateful_proxy.http_calls import HttpCalls
from stateful_proxy.invocation import Invocation
from stateful_proxy.service import ACTION, MethodInfo, ServiceModel, model_of
from stateful_proxy.transcoding.template import InvalidTemplate, parse
from tests.fuzz.draw import Draw

F = descriptor_pb2.FieldDescriptorProto
_IMPORTS = (any_pb2, timestamp_pb2, duration_pb2, wrappers_pb2, struct_pb2, httpbody_pb2)
_FIELDS: Sequence[tuple[str, int, str, bool]] = (
    ("name", 9, "", False), ("small", 5, "", False), ("big_number", 3, "", False), ("count", 4, "", False), ("ratio", 1, "", False),
    ("flag", 8, "", False), ("raw", 12, "", False), ("color", 14, ".t.Color", False), ("inner", 11, ".t.All", False), ("words", 9, "", True),
    ("at", 11, ".google.protobuf.Timestamp", False), ("span", 11, ".google.protobuf.Duration", False), ("parts", 11, ".t.All", True),
    ("maybe", 11, ".google.protobuf.Int64Value", False), ("bytes", 11, ".google.protobuf.BytesValue", False),
    ("any", 11, ".google.protobuf.Any", False), ("value", 11, ".google.protobuf.Value", False), ("struct", 11, ".google.protobuf.Struct", False),
    ("file", 11, ".google.api.HttpBody", False), ("numbers", 5, "", True), ("off", 8, "", True), ("colors", 14, ".t.Color", True),
)  # fmt: skip
_RULES: Sequence[dict[str, Any]] = (
    {"post": "/a/{name}", "body": "*"}, {"get": "/a/{name}"}, {"put": "/i/{small}/{flag}", "body": "inner"}, {"get": "/d/{inner.name=x/*}:go"},
    {"post": "/f/{name=**}", "body": "file"}, {"post": "/w", "body": "value", "response_body": "words"}, {"get": "/n/{big_number}/{color}/{raw}"},
    {"patch": "/o/{ratio}", "body": "any", "response_body": "inner"},
)  # fmt: skip
_TYPES = (".t.All", ".google.api.HttpBody")
_CALLS = (
    ("POST", "/topics/t"), ("POST", "/"), ("POST", "/a/x"), ("GET", "/a/x"), ("PUT", "/i/1/true"), ("GET", "/d/x/y:go"), ("POST", "/f/a/b%2Fc"),
    ("POST", "/w"), ("GET", "/n/7/RED/AA=="), ("PATCH", "/o/1.5"), ("POST", "/t.S/Raw"), ("POST", "/t.S/RawStream"), ("POST", "/t.S/Do0"),
)  # fmt: skip
_PATHS = ("/topics/x", "/topics/%74", "/a/%", "/n/9e9/1/%ff", "", "/a/x", "/t.S/Do0")
_VERBS = ("POST", "GET", "PUT", "PATCH", "DELETE", "get", "HEAD", "")
_MEDIA = (
    "application/json",
    "",
    "application/json; charset=utf-8",
    "text/plain",
    "application/grpc-web",
    "application/grpc-web-text+proto",
    "x/y",
    "application/cloudevents+json",
    "application/protobuf",
    "text/plain; charset=x",
    "application/cloudevents-batch+json",
)
_JSON: Sequence[bytes] = (
    b"{}", b'{"name":"a"}', b'{"bigNumber":"1","big_number":2}', b'{"inner":{"inner":{}},"words":["a",null]}', b'{"at":"2020-01-01T00:00:00Z"}',
    b'{"any":{"@type":"type.googleapis.com/t.All","name":"x"}}', b'{"any":{"@type":"x"}}', b'{"any":{"@type":7}}', b'{"struct":{"a":[1,{}]}}',
    b'{"value":null,"maybe":null,"ratio":"NaN","flag":"true"}', b'{"small":1e400,"raw":"*"}', b'{"span":"1s","color":9,"colors":["RED","x"]}',
    b'{"id":"1","source":"s","specversion":"1.0","type":"t.All","data":{"name":"a"}}', b'{"id":"1","source":"s","specversion":"1.0","type":"t.All"}',
    b'{"id":"1","source":"s","specversion":"1.0","type":"y","data_base64":"AA=","datacontenttype":"text/plain"}', b'{"id":1,"datacontenttype":2}',
    b'{"id":"\\ud800","source":"s","specversion":"1.0","type":"t.All","data_base64":"gA==","datacontenttype":"application/protobuf"}',
    b"null", b"[]", b'"a"', b"1", b"[" * 2000, b'{"inner":' * 300, b'{"a":1,"a":2}', b"\xff", b'{"name":"\\ud800"}', b'{"\\ud800":1}',
    b'{"count":-1}', b'{"parts":{}}',
    b'{"at":"0000-00-00T00:00:00Z"}', b'{"span":"1e9s"}', b'{"bytes":"_-"}', b'{"numbers":[1.5]}', b'{"file":{"data":"AA=="}}', b'{"parts":[{},7]}',
)  # fmt: skip
_QUERIES = (
    "", "small=1", "inner.name=a&words=b&words=c", "flag=1", "parts.name=a", "at=x", "any=1", "=", "&&", "a%", "raw=%ff", "small=²", "color=٣",
    "bigNumber=99999999999999999999", "inner=1", "name=a&name=b", "maybe=1", "bytes=%20-_", "struct.fields=1", "value=1", "span=3s", "small=-",
    "small=--1", "ratio=1e999", "off=true&off=false", "colors=GREEN", "inner.inner.inner.small=%31", "name=%ed%a0%80",
    "inner.value=1", "struct=%7b%7d",
)  # fmt: skip


def _model() -> ServiceModel:
    """A service with fields of every sort and rules of every sort; of each pair of methods the second streams its answers."""
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    file.dependency.extend(module.DESCRIPTOR.name for module in _IMPORTS)
    color = file.enum_type.add(name="Color")
    for number, name in enumerate(("RED", "GREEN")):
        color.value.add(name=name, number=number)
    everything = file.message_type.add(name="All")
    for number, (name, kind, type_name, repeated) in enumerate(_FIELDS, 1):
        field: Any = everything.field.add(
            name=name, number=number, type_name=type_name or None, label=F.LABEL_REPEATED if repeated else F.LABEL_OPTIONAL
        )
        field.type = kind
    service = file.service.add(name="S")
    for number, rule in enumerate(_RULES):
        method = service.method.add(name=f"Do{number}", input_type=_TYPES[0], output_type=_TYPES[0], server_streaming=number % 2 == 1)
        method.options.Extensions[annotations_pb2.http].CopyFrom(http_pb2.HttpRule(**rule))
    for name, streams in (("Raw", False), ("RawStream", True)):
        service.method.add(name=name, input_type=_TYPES[1], output_type=_TYPES[1], server_streaming=streams)
    for name, input_type, group in (("Heard", _TYPES[0], "g"), ("HeardAny", ".google.protobuf.Any", "h")):
        method = service.method.add(name=name, input_type=input_type, output_type=_TYPES[0])
        options: Any = method.options
        source = getattr(options.Extensions[eventing_pb2.eventing], "in")
        source.topic, source.consumer_group = "t", group
    files = [descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb) for module in _IMPORTS]
    spec = entity_pb2.EntitySpec(proto=descriptor_pb2.FileDescriptorSet(file=[*files, file]).SerializeToString())
    spec.entities.add(entity_type=ACTION, service_name="t.S")
    spec.service_info.protocol_minor_version = 2
    return model_of(spec)


_MODEL = _model()


class _Http:
    """A transport with one HTTP call. Whatever is told of it must be possible in HTTP, and its answer ends once."""

    def __init__(self, headers: Sequence[Header]) -> None:
        self._headers = headers
        self.begun = self.ended = False

    def headers(self, call: int) -> list[Header]:
        return list(self._headers)

    def respond(self, call: int, status: int, headers: Sequence[Header], body: bytes) -> None:
        self._begin(status, headers)
        self.respond_data(call, body)
        self.ended = True

    def respond_begin(self, call: int, status: int, headers: Sequence[Header] = ()) -> None:
        self._begin(status, headers)

    def _begin(self, status: int, headers: Sequence[Header]) -> None:
        assert not self.begun, "an answer begins once"
        assert 200 <= status <= 599
        for name, value in headers:
            assert isinstance(value, bytes), name
            assert not any(byte < 0x20 or byte == 0x7F for byte in value), f"header {name} cannot hold {value!r}"
        self.begun = True

    def respond_data(self, call: int, data: bytes) -> None:
        assert self.begun, "an answer has begun"
        assert not self.ended, "an answer has not ended"
        assert isinstance(data, bytes)

    def respond_end(self, call: int) -> None:
        self.respond_data(call, b"")
        self.ended = True

    def limit(self, call: int, seconds: float) -> None:
        assert self.begun
        self.ended = True

    def reply(self, call: int, message: bytes, headers: Sequence[Header] = ()) -> None:
        assert self.ended, "only the end of the answer detaches its sink"

    def send_message(self, call: int, message: bytes, headers: Sequence[Header] = ()) -> None:
        assert self.ended, "only the end of the answer detaches its sink"

    def finish(self, call: int, status: int, message: str = "", trailers: Sequence[Header] = ()) -> None:
        assert self.ended, "only the end of the answer detaches its sink"


def fuzz_http(data: bytes) -> None:
    """Whatever is asked, and whatever the function answers, a request has one answer."""
    draw = Draw(data, rarity=4)
    media = draw.choice((_MEDIA[0], draw.choice(_MEDIA)))
    accept = draw.choice(("", "text/event-stream", "application/grpc-web-text", draw.text(10)))
    headers = [("content-type", media.encode()), ("accept", accept.encode("latin-1", "replace")), ("x", draw.raw(8)), *_event_headers(draw)]
    transport: Any = _Http(headers)
    callers = Callers(transport)

    def execute(call: int, method: MethodInfo, payload: bytes, picked: tuple[bytes, ...]) -> None:
        if media.startswith("application/json") and not method.name.startswith("Heard"):  # other forms are passed on as they are
            _input(method).FromString(payload)
        _answer(draw, callers, call, method)

    def invoke(call: int, invocation: Invocation) -> None:
        execute(call, invocation.method, invocation.payload, (b"", b"", b""))

    topics = Topics(callers, invoke, lambda call: None, _MODEL, topic_subscriptions(_MODEL))
    calls = HttpCalls(transport, _MODEL, callers, execute, callers.detach, topics)
    verb, path = draw.choice(_CALLS)
    if draw.seldom():
        verb, path = draw.choice(_VERBS), _path(draw)
    calls.begin(1, _body(draw, media), verb, _with_query(draw, path), (b"", b"", b""))
    assert transport.ended


def _plain(text: str) -> str:
    """Without halves of pairs: what a string of the transport's or of protobuf can be."""
    return text.encode("utf-8", "replace").decode()


def _input(method: MethodInfo) -> Any:
    return message_factory.GetMessageClass(_MODEL.pool.FindMessageTypeByName(method.input_type))


def _event_headers(draw: Draw) -> list[Header]:
    """Those of a CloudEvent in binary mode, mostly whole."""
    if draw.flag():
        return []
    event = {"id": b"1", "source": b"/s", "specversion": b"1.0", "type": draw.often(b"t.All", (b"", b"x", b"a/b", b"%ff"))}
    if draw.flag():
        event[draw.often("subject", ("id", "source", "specversion", "type", "A", "x-y"))] = draw.often(b"a%20b", (b"", b"%", b"%ed%a0%80", b"\xff"))
    return [(f"ce-{name}", value) for name, value in event.items()]


def _path(draw: Draw) -> str:
    return draw.choice(_PATHS) if draw.flag() else "/" + draw.choice(("a/", "n/1/RED/", "f/", "")) + quote(draw.raw(10), safe="/%:")


def _with_query(draw: Draw, path: str) -> str:
    if draw.flag():
        return path
    query = draw.choice(_QUERIES) if not draw.seldom() else _plain(draw.text(30))
    return f"{path}?{query}"


def _body(draw: Draw, media: str) -> bytes:
    body = draw.choice(_JSON)
    if media.startswith("application/grpc-web"):
        body = bytes([draw.choice((0, 0, 0, 1, 128)), 0, 0, 0, len(part := draw.raw(20))]) + part
    return draw.mutated(body) if draw.seldom() else body


def _answer(draw: Draw, callers: Callers, call: int, method: MethodInfo) -> None:
    """The function's answers, as good as the function is."""
    for _ in range(draw.choice((1, 0, 2)) if method.server_streaming else draw.choice((1, 0))):
        payload = draw.raw(30)
        if method.output_type == _TYPES[1][1:] and not draw.seldom():
            payload = httpbody_pb2.HttpBody(content_type=_plain(draw.text(20)), data=payload).SerializeToString()
        if method.server_streaming:
            callers.message(call, payload, [("x", b"1")])
        else:
            callers.reply(call, payload, [("x", b"1")])
    if method.server_streaming or draw.flag():
        callers.finish(call, draw.choice((0, 2, 14, 16, 17, 99)), _plain(draw.text(20)), [("y", b"2"), ("z-bin", b"\xff")])
    callers.unanswered(call, method.path)


def fuzz_template(data: bytes) -> None:
    """A path template is parsed or refused, and matches or not."""
    draw = Draw(data)
    text = "".join(draw.choice(("/", "a", "{", "}", "*", "**", "=", ":", ".", "{a}", "{b=x/*}", "%2F", "%", "é", " ")) for _ in range(draw.below(12)))
    with contextlib.suppress(InvalidTemplate):
        template = parse(text if not draw.flag(4) else draw.text())
        template.match(draw.text())
        template.match(draw.choice(("/a", "/a/b:c", "", "//", "/a/%2f", "/x/y:", "/é/%")))
        assert template.rank


__all__ = ["fuzz_http", "fuzz_template"]
