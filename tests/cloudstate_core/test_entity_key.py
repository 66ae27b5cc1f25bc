"""The key reader against google.protobuf: for whatever message, the same value as decoding it whole."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from cloudstate_core.entity_key import MalformedMessage, key_of

F = descriptor_pb2.FieldDescriptorProto
TYPES: dict[str, tuple[int, Any]] = {
    "text": (F.TYPE_STRING, st.text(max_size=20)),
    "i32": (F.TYPE_INT32, st.integers(-(2**31), 2**31 - 1)),
    "i64": (F.TYPE_INT64, st.integers(-(2**63), 2**63 - 1)),
    "u32": (F.TYPE_UINT32, st.integers(0, 2**32 - 1)),
    "u64": (F.TYPE_UINT64, st.integers(0, 2**64 - 1)),
    "s32": (F.TYPE_SINT32, st.integers(-(2**31), 2**31 - 1)),
    "s64": (F.TYPE_SINT64, st.integers(-(2**63), 2**63 - 1)),
    "f32": (F.TYPE_FIXED32, st.integers(0, 2**32 - 1)),
    "f64": (F.TYPE_FIXED64, st.integers(0, 2**64 - 1)),
    "sf32": (F.TYPE_SFIXED32, st.integers(-(2**31), 2**31 - 1)),
    "sf64": (F.TYPE_SFIXED64, st.integers(-(2**63), 2**63 - 1)),
    "flag": (F.TYPE_BOOL, st.booleans()),
    "raw": (F.TYPE_BYTES, st.text(max_size=9).map(str.encode)),
}


def _message_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="entity_key_test.proto", package="entity_key_test", syntax="proto3")
    message = file.message_type.add(name="M")
    for number, (name, (kind, _)) in enumerate(TYPES.items(), 1):
        message.field.add(name=name, number=number, type=kind, label=F.LABEL_OPTIONAL, proto3_optional=True, oneof_index=number - 1)
    message.field.add(name="inner", number=99, type=F.TYPE_MESSAGE, label=F.LABEL_OPTIONAL, type_name=".entity_key_test.M")
    for name in TYPES:
        message.oneof_decl.add(name=f"_{name}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("entity_key_test.M"))


M = _message_class()
NUMBERS = {name: number for number, name in enumerate(TYPES, 1)}
MESSAGES = st.fixed_dictionaries({}, optional={name: values for name, (_, values) in TYPES.items()})


def text_of(message: Any, name: str) -> str:
    value = getattr(message, name)
    if not message.HasField(name):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.decode() if isinstance(value, bytes) else str(value)


@given(MESSAGES, st.sampled_from(list(TYPES)))
def test_a_field_reads_as_protobuf_reads_it(values: dict[str, Any], name: str) -> None:
    message = M(**values)
    assert key_of(message.SerializeToString(), [((NUMBERS[name],), TYPES[name][0])]) == text_of(message, name)


@given(MESSAGES, st.sampled_from(list(TYPES)))
def test_a_nested_field_reads_as_protobuf_reads_it(values: dict[str, Any], name: str) -> None:
    message = M(text="outer", inner=M(**values))
    assert key_of(message.SerializeToString(), [((99, NUMBERS[name]), TYPES[name][0])]) == text_of(message.inner, name)


@given(st.lists(MESSAGES, min_size=1, max_size=4), st.sampled_from(list(TYPES)))
def test_the_last_of_repeated_occurrences_counts(parts: list[dict[str, Any]], name: str) -> None:
    data = b"".join(M(**values).SerializeToString() for values in parts)
    assert key_of(data, [((NUMBERS[name],), TYPES[name][0])]) == text_of(M.FromString(data), name)


@given(MESSAGES)
def test_several_fields_are_joined(values: dict[str, Any]) -> None:
    message = M(**values)
    texts = [text_of(message, name) for name in ("text", "i32")]
    expected = "-".join(texts) if any(texts) else ""
    assert key_of(message.SerializeToString(), [((NUMBERS[n],), TYPES[n][0]) for n in ("text", "i32")]) == expected


@given(st.binary(max_size=60), st.sampled_from(list(TYPES)))
def test_any_bytes_give_a_key_or_malformed(data: bytes, name: str) -> None:
    try:
        found = key_of(data, [((NUMBERS[name],), TYPES[name][0])])
    except MalformedMessage:
        return
    assert isinstance(found, str)


@pytest.mark.parametrize(
    "data", [b"\x0a\x05abc", b"\x0a", b"\xff" * 11, b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7fx", b"\x0d\x01", b"\x0a\x01\xff"]
)
def test_what_is_cut_short_or_no_text_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        key_of(data, [((1,), F.TYPE_STRING)])
