"""What the parameter of a method takes, by its annotation: a message class, `str`, `bytes`, `bool`, `int`, `float`, `Json`, an `Any` as it is, or
whatever is a `Value`.

Guarantee: a method never gets a value of another kind than it is annotated with.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import any_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message

from cloudstate_sdk.any_values import JSON, MESSAGES, PRIMITIVES, Float32, Int32, Json, Value, from_any

EVERYTHING = ""
"""In place of a type URL: whatever has no method of its own."""
_URLS: dict[type, str] = {
    str: PRIMITIVES + "string",
    bytes: PRIMITIVES + "bytes",
    bool: PRIMITIVES + "bool",
    Int32: PRIMITIVES + "int32",
    int: PRIMITIVES + "int64",
    Float32: PRIMITIVES + "float",
    float: PRIMITIVES + "double",
    Json: JSON,
    any_pb2.Any: EVERYTHING,
    object: EVERYTHING,
}
_WIDE: dict[type, type] = {Int32: int, Float32: float}
_WIDER = {_URLS[narrow]: _URLS[wide] for narrow, wide in _WIDE.items()}


def kind_of(annotation: Any) -> type | None:
    """The class of what an annotation lets in, `object` for `Value`; None for an annotation that no value fits."""
    if annotation == Value:
        return object
    if isinstance(annotation, type) and annotation is not object and (annotation in _URLS or issubclass(annotation, Message)):
        return annotation
    return None


def url_of(kind: type) -> str:
    """Type URL of the values of a kind, EVERYTHING for those that have many; JSON documents share the beginning of theirs."""
    found = _URLS.get(kind)
    return MESSAGES + kind.DESCRIPTOR.full_name if found is None else found  # type: ignore[attr-defined]


def urls_for(url: str) -> tuple[str, ...]:
    """Under which URLs the method for a value may be found, the closest first."""
    return url, JSON if url.startswith(JSON) else _WIDER.get(url, url), EVERYTHING


def empty(kind: type) -> Any:
    """What stands for a value that is not there: an empty message, text or document, zero, False; None where it could be of any kind."""
    if kind is object:
        return None
    return Json(None) if kind is Json else kind()


def adapted(value: Any, kind: type) -> Any:
    """The value as one of a kind: numbers take on the width of theirs. TypeError when it is none."""
    if not _fits(value, _WIDE.get(kind, kind)):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return kind(value) if kind in _WIDE else value


def _fits(value: Any, kind: type) -> bool:
    """A value is of a kind; True and False are no numbers here."""
    return isinstance(value, kind) and (not isinstance(value, bool) or kind in (bool, object))


def read(payload: any_pb2.Any, kind: type, pool: DescriptorPool) -> Any:
    """A value of a kind. ValueError when the payload is none."""
    if kind is any_pb2.Any:
        return payload
    if issubclass(kind, Message):
        if payload.type_url.rpartition("/")[2] != kind.DESCRIPTOR.full_name:
            raise ValueError(f"{payload.type_url} is no {kind.DESCRIPTOR.full_name}")
        try:
            return kind.FromString(payload.value)
        except DecodeError as error:
            raise ValueError(f"no {kind.DESCRIPTOR.full_name}: {error}") from error
    value = from_any(payload, pool)
    if not _fits(value, kind):
        raise ValueError(f"{payload.type_url} is no {kind.__name__}")
    return value
