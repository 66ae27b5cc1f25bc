"""Values as Anys: the exact bytes, and that what goes out comes back as it was."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
from cloudstate_sdk.any_values import Float32, Int32, Json, from_any, to_any
from google.protobuf import any_pb2, descriptor_pool
from hypothesis import given
from hypothesis import strategies as st

from tests.tck.pb.cloudstate.tck.model import crdt_pb2 as model

POOL = model.DESCRIPTOR.pool


def packed(url: str, data: bytes) -> any_pb2.Any:
    return any_pb2.Any(type_url=url, value=data)


EXACT: list[tuple[Any, str, bytes]] = [
    ("", "p.cloudstate.io/string", b""),
    ("é", "p.cloudstate.io/string", b"\x0a\x02\xc3\xa9"),
    (b"\x00", "p.cloudstate.io/bytes", b"\x0a\x01\x00"),
    (False, "p.cloudstate.io/bool", b""),
    (True, "p.cloudstate.io/bool", b"\x08\x01"),
    (0, "p.cloudstate.io/int64", b""),
    (-1, "p.cloudstate.io/int64", b"\x08" + b"\xff" * 9 + b"\x01"),
    (Int32(5), "p.cloudstate.io/int32", b"\x08\x05"),
    (0.0, "p.cloudstate.io/double", b""),
    (1.5, "p.cloudstate.io/double", b"\x09" + struct.pack("<d", 1.5)),
    (Float32(1.5), "p.cloudstate.io/float", b"\x0d" + struct.pack("<f", 1.5)),
    (Json({"b": "é", "a": [1, None]}), "json.cloudstate.io/object", b'\x0a\x17{"a":[1,null],"b":"\xc3\xa9"}'),
    (Json([], "com.example.List"), "json.cloudstate.io/com.example.List", b"\x0a\x02[]"),
    (model.Forward(id="x"), "type.googleapis.com/cloudstate.tck.model.crdt.Forward", b"\x0a\x01x"),
]


@pytest.mark.parametrize(("value", "url", "data"), EXACT)
def test_the_bytes_are_those_of_the_protocol_and_come_back_as_they_were(value: Any, url: str, data: bytes) -> None:
    assert to_any(value) == packed(url, data)
    found = from_any(packed(url, data), POOL)
    assert (type(found), found) == (type(value), value)


@given(st.one_of(st.text(), st.binary(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False)))
def test_primitives_come_back(value: Any) -> None:
    found = from_any(to_any(value), POOL)
    assert (type(found), found) == (type(value), value)
    if isinstance(value, float):
        assert math.copysign(1, found) == math.copysign(1, value)


DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)


@given(DOCUMENTS)
def test_documents_come_back_and_equal_ones_have_equal_bytes(document: Any) -> None:
    assert from_any(to_any(Json(document)), POOL) == Json(document)
    if isinstance(document, dict):
        assert to_any(Json(dict(reversed(document.items())))) == to_any(Json(document))


@pytest.mark.parametrize("url", ["p.cloudstate.io/uint32", "type.googleapis.com/example.Unknown", "thing", ""])
def test_what_nobody_here_knows_stays_an_any_and_goes_out_as_it_came(url: str) -> None:
    unknown = packed(url, b"\x08\x01")
    assert from_any(unknown, POOL) == unknown
    assert to_any(unknown) == unknown


@pytest.mark.parametrize("value", [object(), None, {"a": 1}, [1]])
def test_other_objects_are_no_values(value: Any) -> None:
    with pytest.raises(TypeError, match="is not a protobuf message, str, bytes"):
        to_any(value)


@pytest.mark.parametrize("value", [2**63, Int32(2**31), Json(math.nan)])
def test_a_value_that_does_not_fit_its_kind_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        to_any(value)


@pytest.mark.parametrize("url", ["p.cloudstate.io/string", "json.cloudstate.io/object", "type.googleapis.com/cloudstate.tck.model.crdt.Forward"])
def test_bytes_that_are_no_such_value_say_so(url: str) -> None:
    with pytest.raises(ValueError, match=f"{url}: the bytes are no such value"):
        from_any(packed(url, b"\x0a\x05x"), POOL)


def test_a_pool_without_the_type_leaves_the_any() -> None:
    encoded = to_any(model.Forward(id="x"))
    assert from_any(encoded, descriptor_pool.DescriptorPool()) is encoded
