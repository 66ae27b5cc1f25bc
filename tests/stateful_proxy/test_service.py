"""What is accepted as a discovery answer, and what each refusal says."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given
from hypothesis import strategies as st

from cloudstate_core.entity_key import MalformedMessage
from cloudstate_core.pb.cloudstate import entity_pb2
from stateful_proxy.service import EVENT_SOURCED, InvalidSpec, difference, model_of

F = descriptor_pb2.FieldDescriptorProto
OPTION_1080, OPTION_50002 = b"\xc0\x43\x01", b"\x90\xb5\x18\x01"


def field(name: str, number: int, kind: int = F.TYPE_STRING, options: bytes = b"", repeated: bool = False) -> Any:
    made = F(name=name, number=number, type=kind, label=F.LABEL_REPEATED if repeated else F.LABEL_OPTIONAL)  # type: ignore[arg-type]
    if options:
        made.options.MergeFromString(options)
    return made


def file(name: str, package: str = "t", imports: tuple[str, ...] = (), fields: tuple[Any, ...] = (), service: str = "", **stream: bool) -> Any:
    """A file with message M of these fields and, if asked, a service with one method `Do(M) returns (M)`."""
    made = descriptor_pb2.FileDescriptorProto(name=name, package=package, syntax="proto3", dependency=imports)
    if fields:
        made.message_type.add(name="M", field=fields)
    if service:
        made.service.add(name=service).method.add(name="Do", input_type=f".{package}.M", output_type=f".{package}.M", **stream)
    return made


KEY, KEY_2 = field("id", 1, options=OPTION_1080), field("id", 2, options=OPTION_1080)
PLAIN = file("t.proto", fields=(KEY,), service="S")


def spec(*files: Any, entity_type: str = EVENT_SOURCED, service: str = "t.S", persistence_id: str = "p", timeout: int = 0) -> Any:
    made = entity_pb2.EntitySpec(proto=descriptor_pb2.FileDescriptorSet(file=files).SerializeToString())
    entity = made.entities.add(entity_type=entity_type, service_name=service, persistence_id=persistence_id)
    if timeout:
        entity.passivation_strategy.timeout.timeout = timeout
    made.service_info.protocol_minor_version = 2
    return made


def test_a_method_as_routers_and_entities_need_it() -> None:
    model = model_of(spec(PLAIN, timeout=1500))
    method = model.methods["/t.S/Do"]
    assert (method.service, method.name, method.persistence_id, method.passivation) == ("t.S", "Do", "p", 1.5)
    assert (method.input_type, method.output_type, method.key_names) == ("t.M", "t.M", "t.M.id")
    (row,) = model.method_table()
    assert (row.path, row.persistence_id, list(row.key_fields[0].numbers), row.key_fields[0].type) == ("/t.S/Do", "p", [1], F.TYPE_STRING)


@pytest.mark.parametrize("option", [OPTION_1080, OPTION_50002, OPTION_1080 + OPTION_50002])
def test_either_option_number_marks_a_key(option: bytes) -> None:
    model = model_of(spec(file("t.proto", fields=(field("x", 1), field("id", 2, options=option)), service="S")))
    assert model.key(model.methods["/t.S/Do"], b"\x0a\x01x\x12\x01k") == "k"


@pytest.mark.parametrize("option", [b"\xc2\x43\x01x", b"\x92\xb5\x18\x01x", b"\xc0\x43\x00"])
def test_an_option_of_that_number_that_is_no_flag_marks_nothing(option: bytes) -> None:
    model = model_of(spec(file("t.proto", fields=(field("x", 1, options=option), KEY_2), service="S")))
    assert model.methods["/t.S/Do"].key_names == "t.M.id"


def test_several_keys_are_joined_in_the_order_of_declaration() -> None:
    fields = (field("b", 2, options=OPTION_1080), field("n", 3, F.TYPE_INT32, OPTION_1080), field("a", 1, options=OPTION_50002))
    model = model_of(spec(file("t.proto", fields=fields, service="S")))
    method = model.methods["/t.S/Do"]
    assert model.key(method, b"\x0a\x01a\x12\x01b\x18\x07") == "b-7-a"
    assert model.key(method, b"") == ""
    assert method.key_names == "t.M.b and t.M.n and t.M.a"


def test_a_request_that_is_cut_short_is_told_apart_from_one_without_key() -> None:
    model = model_of(spec(PLAIN))
    with pytest.raises(MalformedMessage):
        model.key(model.methods["/t.S/Do"], b"\x0a\x05ab")


@given(st.text(min_size=1), st.binary(max_size=20))
def test_the_key_survives_whatever_else_is_in_the_request(key: str, rest: bytes) -> None:
    model = model_of(spec(PLAIN))
    raw = key.encode()
    value = entity_pb2.Command(entity_id=key).SerializeToString()
    other = entity_pb2.Failure(description=rest.hex()).SerializeToString()
    assert model.key(model.methods["/t.S/Do"], other + value + other) == key
    assert raw in value


FILES = (
    file("a.proto", "a", fields=(field("x", 1),)),
    file("b.proto", "b", imports=("a.proto",), fields=(field("x", 1),)),
    file("t.proto", "t", imports=("b.proto", "a.proto"), fields=(KEY,), service="S"),
)


@pytest.mark.parametrize("order", list(itertools.permutations(FILES)))
def test_files_come_in_any_order_and_more_than_once(order: tuple[Any, ...]) -> None:
    assert list(model_of(spec(*order, *order)).methods) == ["/t.S/Do"]


@pytest.mark.parametrize("version", [(0, 0), (0, 1), (0, 2)])
def test_versions_that_are_spoken(version: tuple[int, int]) -> None:
    made = spec(PLAIN)
    made.service_info.protocol_major_version, made.service_info.protocol_minor_version = version
    assert model_of(made).methods


@pytest.mark.parametrize("version", [(0, 0), (0, 1)])
def test_old_versions_can_be_refused(version: tuple[int, int]) -> None:
    made = spec(PLAIN)
    made.service_info.protocol_major_version, made.service_info.protocol_minor_version = version
    with pytest.raises(InvalidSpec) as error:
        model_of(made, (0, 2))
    assert str(error.value).startswith("protocol version 0.1: this proxy is set to take 0.2 and later (CLOUDSTATE_OLDEST_PROTOCOL)")
    assert model_of(spec(PLAIN), (0, 2)).methods


def no_entity() -> Any:
    made = spec(PLAIN)
    del made.entities[:]
    return made


def version_1() -> Any:
    made = spec(PLAIN)
    made.service_info.protocol_major_version = 1
    return made


def not_descriptors() -> Any:
    made = spec(PLAIN)
    made.proto = b"\xff\xff"
    return made


def same_persistence_id() -> Any:
    made = spec(PLAIN, file("u.proto", "u", fields=(KEY,), service="S"))
    made.entities.add(entity_type=EVENT_SOURCED, service_name="u.S", persistence_id="p")
    return made


CIRCLE = (file("a.proto", "a", imports=("b.proto",)), file("b.proto", "b", imports=("a.proto",)))


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (no_entity(), "serves no entity"),
        (version_1(), "protocol version 1.2"),
        (not_descriptors(), "is not a serialized google.protobuf.FileDescriptorSet"),
        (same_persistence_id(), "same persistence id 'p'"),
        (spec(FILES[2], FILES[1]), "a.proto (imported by b.proto)"),
        (spec(PLAIN, *CIRCLE), "in a circle: a.proto, b.proto"),
        (spec(PLAIN, service="t.Other"), "t.Other: EntitySpec.proto does not define this service"),
        (spec(PLAIN, service=""), "does not define this service"),
        (spec(PLAIN, service="t.M"), "t.M: EntitySpec.proto does not define this service"),
        (spec(PLAIN, entity_type="cloudstate.View"), "'cloudstate.View' is not supported; supported: cloudstate.action.ActionProtocol, "),
        (spec(file("t.proto", fields=(field("x", 1),), service="S")), "t.S.Do: t.M has no entity key"),
        (spec(file("t.proto", fields=(field("x", 1, options=b"\xc0\x43\x00"),), service="S")), "has no entity key"),
        (spec(file("t.proto", fields=(field("x", 1, options=OPTION_1080, repeated=True),), service="S")), "has no entity key"),
        (spec(file("t.proto", fields=(KEY,), service="S", client_streaming=True)), "t.S.Do: is a streaming method"),
        (spec(file("t.proto", fields=(KEY,), service="S", server_streaming=True)), "t.S.Do: is a streaming method"),
        (spec(file("t.proto", service="S")), "t.proto"),
    ],
)
def test_what_cannot_be_served_is_said(made: Any, text: str) -> None:
    with pytest.raises(InvalidSpec) as error:
        model_of(made)
    assert text in str(error.value)


BESIDE = file("u.proto", "u", fields=(field("x", 1),))
MORE = file("t.proto", fields=(KEY,), service="S")
MORE.service[0].method.add(name="More", input_type=".t.M", output_type=".t.M")


@pytest.mark.parametrize(
    ("after", "says"),
    [
        (spec(PLAIN), ""),
        (spec(PLAIN, PLAIN), ""),
        (spec(file("t.proto", fields=(KEY,), service="T"), service="t.T"), "/t.S/Do is gone"),
        (spec(MORE), "/t.S/More came"),
        (spec(PLAIN, timeout=5), "/t.S/Do is not what it was"),
        (spec(file("t.proto", fields=(field("id", 2, options=OPTION_1080),), service="S")), "/t.S/Do is not what it was"),
        (spec(file("t.proto", fields=(KEY, field("more", 2)), service="S")), "the descriptors of t.proto are not what they were"),
        (spec(PLAIN, BESIDE), "the descriptors of u.proto are not what they were"),
    ],
)
def test_what_is_otherwise_than_before_is_said(after: Any, says: str) -> None:
    assert difference(model_of(spec(PLAIN)), model_of(after)) == says


def test_files_in_another_order_are_no_difference() -> None:
    assert difference(model_of(spec(*FILES)), model_of(spec(*reversed(FILES)))) == ""
