"""Metadata of the protocol and headers of the transport, each made of the other.

What belongs to the transport, or to the way between our own parts, stays out of both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from cloudstate_core.pb.cloudstate import entity_pb2
from cloudstate_core.transport.api import Header
from stateful_proxy.entity import varint

_NAME = re.compile(r"[0-9a-z_.\-]+")
_RESERVED = re.compile(r"grpc-|cloudstate-|(content-type|content-length|te|trailer|connection|transfer-encoding|upgrade|keep-alive|host)$")
_NOT_PASSED = re.compile(
    r"grpc-|cloudstate-|knative-serving-|k-proxy-request$|:"
    r"|(content-length|te|trailer|connection|transfer-encoding|upgrade|keep-alive|host|accept-encoding)$"
)


class Chosen:
    """The headers that commands of entities carry along, by an explicit choice: an entity's commands are part of its history, and what callers
    send beside the request is not. `names` are lower-case; one that ends in '*' stands for all that begin so."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(name for name in names if not name.endswith("*"))
        self._prefixes = tuple(name[:-1] for name in names if name.endswith("*"))

    def __bool__(self) -> bool:
        return bool(self._names or self._prefixes)

    def of(self, metadata: bytes) -> bytes:
        """Those of the entries that are chosen, in their order; encoded, as they came."""
        chosen = entity_pb2.Metadata()
        for entry in entity_pb2.Metadata.FromString(metadata).entries:
            name = entry.key.lower()
            if name in self._names or name.startswith(self._prefixes):
                chosen.entries.append(entry)
        return chosen.SerializeToString()


def event_headers(metadata: entity_pb2.Metadata) -> list[Header]:
    """Metadata as it is: also what only an event can carry, such as a content type, or text in UTF-8."""
    return [(e.key.lower(), e.bytes_value if e.WhichOneof("value") == "bytes_value" else e.string_value.encode()) for e in metadata.entries]


def carried(headers: Iterable[Header]) -> list[Header]:
    """What response headers can carry of an event's."""
    return [(name, value) for name, value in headers if _passes(name, value, name.endswith("-bin"))]


def headers_of(metadata: entity_pb2.Metadata) -> list[Header]:
    """A reply's metadata as response headers; what no header can carry, or what belongs to the transport, is left out."""
    headers = []
    for entry in metadata.entries:
        name, binary = entry.key.lower(), entry.WhichOneof("value") == "bytes_value"
        value = entry.bytes_value if binary else entry.string_value.encode()
        if _passes(name, value, binary):
            headers.append((name, value))
    return headers


def _passes(name: str, value: bytes, binary: bool) -> bool:
    if not _NAME.fullmatch(name) or _RESERVED.match(name) or binary is not name.endswith("-bin"):
        return False
    return binary or all(0x20 <= byte < 0x7F for byte in value)


def metadata_of(headers: Iterable[Header]) -> bytes:
    """Request headers as metadata for the function, encoded, in their order; `-bin` values are taken as they are, decoded.

    Encoded here and not by protobuf: every call of an action brings some, and most have the same names.
    """
    parts: list[bytes] = []
    for name, value in headers:
        head = _entry_head(name)
        if head is None:
            continue
        if head[-1] == _STRING_VALUE and not value.isascii():
            value = value.decode("latin-1").encode()
        entry = head + varint(len(value)) + value
        parts += (b"\n", varint(len(entry)), entry)
    return b"".join(parts)


_STRING_VALUE, _BYTES_VALUE = 0x12, 0x1A
"""Tags of a MetadataEntry's fields."""


@lru_cache(maxsize=512)
def _entry_head(name: str) -> bytes | None:
    """The encoded entry of a header up to its value; None for one that is not passed."""
    if _NOT_PASSED.match(name):
        return None
    key = name.encode()
    return b"\n" + varint(len(key)) + key + bytes([_BYTES_VALUE if name.endswith("-bin") else _STRING_VALUE])
