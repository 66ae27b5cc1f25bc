"""Values as they travel: anything that a function keeps, returns or emits, as a `google.protobuf.Any`, and back.

A value is a protobuf message, a `str`, `bytes`, `bool`, `int` or `float`, or `Json`. Equal values have equal bytes, because elements of sets and
keys of maps are compared by them. What comes from another language goes back as it was: an `int32` is read as `Int32`, a `float` as `Float32`,
and what has no class here stays an `Any`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf import any_pb2, message_factory, wrappers_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message

MESSAGES = "type.googleapis.com/"
PRIMITIVES = "p.cloudstate.io/"
JSON = "json.cloudstate.io/"


class Int32(int):
    """An integer of 32 bits, for functions that other languages share values with; a plain `int` has 64."""


class Float32(float):
    """A number in single precision, for functions that other languages share values with; a plain `float` is in double."""


@dataclass(frozen=True, slots=True)
class Json:
    """A JSON document: what `json` reads and writes. `type` is the name under which another language may know its shape."""

    value: Any
    type: str = "object"


Value = Message | str | bytes | bool | int | float | Json
"""What can be kept, returned or emitted."""

_WRITERS: tuple[tuple[type, str, type[Message]], ...] = (
    (str, "string", wrappers_pb2.StringValue),
    (bytes, "bytes", wrappers_pb2.BytesValue),
    (bool, "bool", wrappers_pb2.BoolValue),
    (Int32, "int32", wrappers_pb2.Int32Value),
    (int, "int64", wrappers_pb2.Int64Value),
    (Float32, "float", wrappers_pb2.FloatValue),
    (float, "double", wrappers_pb2.DoubleValue),
)
"""The first class that a value is of decides. A wrapper holds its value in field 1, as the protocol wants it, and a default in no bytes at all."""
_READERS: dict[str, tuple[Callable[[Any], Any], type[Message]]] = {name: (kind, wrapper) for kind, name, wrapper in _WRITERS}


def to_any(value: Any) -> any_pb2.Any:
    """A value, encoded. An Any is taken as it is. TypeError when it is none of the kinds, ValueError when it does not fit its kind."""
    if isinstance(value, any_pb2.Any):
        return value
    if isinstance(value, Message):
        return any_pb2.Any(type_url=MESSAGES + value.DESCRIPTOR.full_name, value=value.SerializeToString(deterministic=True))
    if isinstance(value, Json):
        text = json.dumps(value.value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return any_pb2.Any(type_url=JSON + value.type, value=wrappers_pb2.StringValue(value=text).SerializeToString())
    for kind, name, wrapper in _WRITERS:
        if isinstance(value, kind):
            return any_pb2.Any(type_url=PRIMITIVES + name, value=wrapper(value=value).SerializeToString())
    raise TypeError(f"{value!r} is not a protobuf message, str, bytes, bool, int, float or Json")


def from_any(encoded: any_pb2.Any, pool: DescriptorPool) -> Any:
    """The value in an Any; `pool` knows the message types. The Any itself when nobody here knows its type; ValueError when its bytes are not of
    it."""
    url, data = encoded.type_url, encoded.value
    prefix, _, name = url.rpartition("/")
    try:
        if prefix + "/" == PRIMITIVES and name in _READERS:
            kind, wrapper = _READERS[name]
            return kind(_inner(wrapper, data))
        if url.startswith(JSON):
            return Json(json.loads(_inner(wrappers_pb2.StringValue, data)), url.removeprefix(JSON))
        if prefix + "/" != PRIMITIVES and (found := _message(name, pool)) is not None:
            return found.FromString(data)
    except (DecodeError, ValueError) as error:
        raise ValueError(f"{url}: the bytes are no such value: {error}") from error
    return encoded


def _inner(wrapper: type[Message], data: bytes) -> Any:
    return wrapper.FromString(data).value  # type: ignore[attr-defined]


def _message(name: str, pool: DescriptorPool) -> type[Message] | None:
    """The class of a message; None when the pool does not know it."""
    try:
        return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
    except KeyError:
        return None
