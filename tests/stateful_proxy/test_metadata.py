"""Metadata from headers and headers from metadata: what passes, in which form, and what entities get by choice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudstate_core.pb.cloudstate import entity_pb2
from cloudstate_core.transport.api import Header
from stateful_proxy.metadata import Chosen, headers_of, metadata_of

HEADERS: list[Header] = [("x-a", b"1"), ("x-bin", b"\x00\xff"), ("ce-id", b"7"), ("x-a", b"2"), ("user-agent", "b\xe4r".encode("latin-1"))]


def entries(metadata: bytes) -> list[tuple[str, str | bytes]]:
    found = entity_pb2.Metadata.FromString(metadata).entries
    return [(e.key, e.bytes_value if e.WhichOneof("value") == "bytes_value" else e.string_value) for e in found]


def test_headers_become_entries_in_their_order() -> None:
    assert entries(metadata_of(HEADERS)) == [("x-a", "1"), ("x-bin", b"\x00\xff"), ("ce-id", "7"), ("x-a", "2"), ("user-agent", "b\xe4r")]


@pytest.mark.parametrize("name", ["te", "grpc-timeout", "grpc-encoding", "connection", "content-length", "host", "cloudstate-hop", ":path"])
def test_what_belongs_to_the_transport_stays_out(name: str) -> None:
    assert metadata_of([(name, b"x")]) == b""
    assert headers_of(entity_pb2.Metadata.FromString(metadata_of([("x", b"1"), (name, b"x")]))) == [("x", b"1")]


@pytest.mark.parametrize(
    ("names", "passed"),
    [
        ((), []),
        (("x-a",), ["1", "2"]),
        (("x-*",), ["1", b"\x00\xff", "2"]),
        (("ce-*", "x-a"), ["1", "7", "2"]),
        (("ce",), []),
    ],
)
def test_entities_get_what_is_chosen(names: tuple[str, ...], passed: list[str | bytes]) -> None:
    chosen = Chosen(names)
    assert bool(chosen) is bool(names)
    assert [value for _, value in entries(chosen.of(metadata_of(HEADERS)))] == passed


NAMES = st.from_regex(r"x[0-9a-z_.\-]{0,200}(-bin)?", fullmatch=True)


@given(st.lists(st.tuples(NAMES, st.binary(max_size=300)), max_size=5))
def test_metadata_is_encoded_as_protobuf_does(headers: list[Header]) -> None:
    expected = entity_pb2.Metadata()
    for name, value in headers:
        binary = name.endswith("-bin")
        entry = entity_pb2.MetadataEntry(key=name, bytes_value=value if binary else None, string_value=None if binary else value.decode("latin-1"))
        expected.entries.append(entry)
    assert metadata_of(headers) == expected.SerializeToString()


def test_nothing_chosen_is_nothing_encoded() -> None:
    assert Chosen(("y",)).of(metadata_of(HEADERS)) == Chosen(("x-a",)).of(b"") == b""
