"""The hand-made encoding of commands is protobuf's."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cloudstate_core.pb.cloudstate import entity_pb2, event_sourced_pb2
from stateful_proxy.entity import CommandEncoder, id_field, varint
from stateful_proxy.kinds import KINDS
from stateful_proxy.service import EVENT_SOURCED, MethodInfo

TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=300)


@given(key=TEXT, number=st.integers(1, 2**63 - 1), name=TEXT, kind=TEXT, payload=st.binary(max_size=40_000), header=TEXT)
def test_commands_are_encoded_as_protobuf_does(key: str, number: int, name: str, kind: str, payload: bytes, header: str) -> None:
    method = MethodInfo("/s/" + name, "s", name, "p", EVENT_SOURCED, kind, kind, (((1,), 9),), "k", None)
    encoder, tag = CommandEncoder(), KINDS[EVENT_SOURCED].command_tag
    for command_id in (number, 1):
        encoded = encoder.encode(tag, id_field(key), command_id, method, payload)
        command: Any = event_sourced_pb2.EventSourcedStreamIn.FromString(encoded).command
        assert (command.entity_id, command.id, command.name, command.streamed) == (key, command_id, name, False)
        assert (command.payload.type_url, command.payload.value) == ("type.googleapis.com/" + kind, payload)
        assert not command.HasField("metadata")
        metadata = entity_pb2.Metadata(entries=[entity_pb2.MetadataEntry(key=header, string_value=header)])
        command.metadata.CopyFrom(metadata)
        encoded = encoder.encode(tag, id_field(key), command_id, method, payload, metadata.SerializeToString())
        assert event_sourced_pb2.EventSourcedStreamIn.FromString(encoded).command == command


@given(st.integers(0, 2**63 - 1))
def test_varint(number: int) -> None:
    encoded = varint(number)
    value = sum((byte & 127) << (7 * place) for place, byte in enumerate(encoded))
    assert (value, all(byte & 128 for byte in encoded[:-1]), encoded[-1] < 128) == (number, True, True)
