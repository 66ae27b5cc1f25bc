"""What a function may announce: valid descriptor sets with everything that may be wrong in them, and then with bytes changed at random."""

from __future__ import annotations

import contextlib
from typing import Any

from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2, timestamp_pb2

from cloudstate_core.entity_key import MalformedMessage
from cloudstate_core.pb.cloudstate import entity_pb2, eventing_pb2
from cloudstate_core.pb.grpc.reflection.v1alpha import reflection_pb2
from stateful_proxy import reflection
from stateful_proxy.eventing.subscriptions import check_eventing
from stateful_proxy.service import ACTION, CRDT, EVENT_SOURCED, STATELESS_FUNCTION, VALUE_ENTITY, InvalidSpec, ServiceModel, difference, model_of
from tests.fuzz.draw import Draw

_TAGS = {b"\x8a\xd3\xe4\x93\x02": b"\x82\xd3\xe4\x93\x02", b"\xd2\x43": b"\xca\x43", b"\xa2\xb5\x18": b"\x9a\xb5\x18"}
"""Tags of options that no extension has, and those that they are replaced with: `google.api.http`, `cloudstate.eventing`, and its old number.
Protobuf would not let us write the latter with any content."""

F = descriptor_pb2.FieldDescriptorProto
ENTITY_TYPES = (EVENT_SOURCED, VALUE_ENTITY, ACTION, CRDT, STATELESS_FUNCTION, "", "cloudstate.other.Other")
NAMES = ("M", "N", "S", "id", "a_b", "aB", "_", "t", "t.M", ".t.M", "", "9", "ä", "M.N", "google.protobuf.Timestamp", "x" * 300, "a-b", "a b")
TYPES = (".t.M", ".t.N", ".google.protobuf.Timestamp", "t.M", "M", "", ".t.Missing", ".t.E", ".t.S", ".", "..")
FILES = ("t.proto", "u.proto", "google/protobuf/timestamp.proto", "", "t", "cloudstate/entity_key.proto", "ä.proto")
KEYS = (b"", b"\xc0\x43\x01", b"\x90\xb5\x18\x01", b"\xc0\x43\x00", b"\xc2\x43\x01\x01", b"\xc0\x43\x01\x90\xb5\x18\x01", b"\x08\x01", b"\x30\x01")
PATHS = ("/a", "/a/{id}", "/a/{id=b/*}", "/a/{id=**}:v", "/{id.id}", "", "a", "/", "/**", "/{id", "/{id}/{id}", "/a:b:c", "/%zz/{a_b}", "/{9}")
BODIES = ("", "*", "id", "a_b", "n", "missing", "*.id")


def fuzz_spec(data: bytes) -> None:
    """A discovery answer is served or refused, whatever is in it; and what is served can be asked about."""
    draw = Draw(data)
    draw.rarity = draw.choice((64, 256, 8))
    spec = _spec(draw)
    with contextlib.suppress(InvalidSpec):
        model = model_of(spec)
        _ask(draw, model)
        check_eventing(model, sink=draw.flag())
        assert difference(model, model_of(spec)) == ""


def _spec(draw: Draw) -> entity_pb2.EntitySpec:
    files = descriptor_pb2.FileDescriptorSet(file=[_file(draw, number) for number in range(1 + draw.below(3))])
    if draw.flag():
        files.file.append(descriptor_pb2.FileDescriptorProto.FromString(timestamp_pb2.DESCRIPTOR.serialized_pb))
    spec = entity_pb2.EntitySpec(proto=files.SerializeToString())
    for placeholder, tag in _TAGS.items():
        spec.proto = spec.proto.replace(placeholder, tag)
    if draw.seldom() and draw.flag():
        spec.proto = draw.mutated(spec.proto)
    for _ in range(draw.often(1, (0, 2, 3))):
        entity = spec.entities.add(
            entity_type=draw.often(draw.choice(ENTITY_TYPES[:5]), ENTITY_TYPES),
            service_name=draw.often("t.S", NAMES),
            persistence_id=draw.choice(("", "p")),
        )
        if draw.flag(4):
            entity.passivation_strategy.timeout.timeout = draw.number(8)
    spec.service_info.protocol_minor_version = draw.often(2, (1, 0, 3))
    spec.service_info.protocol_major_version = 1 if draw.seldom() else 0
    if draw.seldom():
        with contextlib.suppress(Exception):  # bytes that are no EntitySpec do not come this far
            spec = entity_pb2.EntitySpec.FromString(draw.mutated(spec.SerializeToString()))
    return spec


def _file(draw: Draw, number: int) -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name=draw.often(FILES[number % 2], FILES), package=draw.often("t" if not number else "u", NAMES))
    file.syntax = draw.often("proto3", ("proto2", "", "editions", "proto4"))
    file.dependency.extend(draw.choice(FILES) for _ in range(draw.often(0, (1, 2))))
    if draw.seldom():
        file.public_dependency.append(draw.number(1))
    for name in ("M", "N") if draw.flag() else ("M",):
        _message(draw, file.message_type.add(name=draw.often(name, NAMES)))
    if draw.flag(4):
        enum = file.enum_type.add(name="E")
        for value in range(draw.often(2, (0, 1))):
            enum.value.add(name=draw.often(f"E{value}", NAMES), number=draw.often(value, (0, -1, 2**31 - 1)))
    if draw.seldom():
        file.extension.add(name="ext", number=draw.number(2), type=F.TYPE_STRING, label=F.LABEL_OPTIONAL, extendee=draw.choice(TYPES))
    for _ in range(0 if draw.seldom() else 1):
        service = file.service.add(name=draw.often("S", NAMES))
        for name in ("Do", "Other")[: 1 + draw.below(2)]:
            _method(draw, service.method.add(name=draw.often(name, NAMES)))
    return file


def _message(draw: Draw, message: Any) -> None:
    for number in range(1, 2 + draw.below(4)):
        kind: Any = draw.often(draw.choice((9, 5, 3, 8, 12, 1)), (14, 11, 10, 0, 18, 4, 6))
        field = message.field.add(
            name=draw.often(("id", "a_b", "n", "c")[(number - 1) % 4], NAMES), number=draw.often(number, (0, -1, 19_000, 2**29, 1))
        )
        field.type, field.label = kind or F.TYPE_STRING, draw.often(F.LABEL_OPTIONAL, (F.LABEL_REPEATED, F.LABEL_REQUIRED))
        if kind in (10, 11, 14) or draw.seldom():
            field.type_name = draw.choice(TYPES)
        field.options.MergeFromString(KEYS[1] if number == 1 and not draw.seldom() else draw.often(b"", KEYS))
        if draw.seldom():
            field.json_name = draw.choice(NAMES)
        if draw.seldom():
            field.default_value = draw.choice(NAMES)
        if draw.seldom():
            field.oneof_index = draw.number(1)
        if draw.seldom():
            field.proto3_optional = True
    if draw.seldom():
        message.oneof_decl.add(name=draw.choice(NAMES))
    if draw.seldom():
        message.nested_type.add(name=draw.choice(NAMES)).options.map_entry = True


def _method(draw: Draw, method: Any) -> None:
    method.input_type, method.output_type = (draw.often(".t.M", TYPES) for _ in range(2))
    method.client_streaming, method.server_streaming = draw.seldom(), draw.seldom()
    if draw.flag():
        rule = method.options.Extensions[annotations_pb2.http]
        _rule(draw, rule)
        for _ in range(draw.below(3)):
            _rule(draw, rule.additional_bindings.add())
    if draw.seldom():
        method.options.MergeFromString(draw.choice(list(_TAGS)) + bytes([len(part := draw.raw(20))]) + part)
    elif draw.seldom():
        eventing = method.options.Extensions[eventing_pb2.eventing]
        source = getattr(eventing, "in")
        source.consumer_group = draw.often("", ("g", "h"))
        setattr(source, draw.choice(("topic", "event_log")), draw.often("x", ("", "p", "y")))
        if draw.flag():
            eventing.out.topic = draw.choice(("x", "", "y"))


def _rule(draw: Draw, rule: http_pb2.HttpRule) -> None:
    path = draw.often(draw.choice(PATHS[:4]), PATHS) if not draw.seldom() else draw.raw(20).decode("utf-8", "replace")
    verb = draw.often(draw.choice(("get", "post", "put", "delete", "patch")), ("custom", ""))
    if verb == "custom":
        rule.custom.kind, rule.custom.path = draw.choice(("*", "HEAD", "")), path
    elif verb:
        setattr(rule, verb, path)
    rule.body, rule.response_body = draw.often(draw.choice(("", "*", "id")), BODIES), draw.often("", BODIES)
    if draw.seldom():
        rule.selector = draw.choice(("t.S.Do", "t.S.Other", "x"))


def _ask(draw: Draw, model: ServiceModel) -> None:
    """What routers, callers and reflection ask of a model."""
    model.method_table()
    for method in model.methods.values():
        with contextlib.suppress(MalformedMessage):
            model.key(method, draw.raw())
    for route in model.routes:
        route.template.match(draw.choice(PATHS))
    for name in ("t.S", "t.S.Do", "t.M.id", *NAMES):
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=name, file_by_filename="")
        reflection.answer(model, request.SerializeToString())
