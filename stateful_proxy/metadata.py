"""Metadata of the protocol and headers of the transport, each made of the other.

What belongs to the transport, or to the way between our own parts, stays out of both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from cloudstate_core.pb.cloudstate import entity_pb2
from cloudstate_core.transport.api import Header

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

    def of(self, metadata: entity_pb2.Metadata | None) -> bytes:
        """Those of the entries that are chosen, in their order, encoded; empty: none."""
        chosen = entity_pb2.Metadata()
        for entry in metadata.entries if metadata is not None else ():
            name = entry.key.lower()
            if name in self._names or name.startswith(self._prefixes):
                chosen.entries.append(entry)
        return chosen.SerializeToString()


def headers_of(metadata: entity_pb2.Metadata) -> list[Header]:
    """A reply's metadata as response headers; what no header can carry, or what belongs to the transport, is left out."""
    headers = []
    for entry in metadata.entries:
        name, binary = entry.key.lower(), entry.WhichOneof("value") == "bytes_value"
        if not _NAME.fullmatch(name) or _RESERVED.match(name) or binary is not name.endswith("-bin"):
            continue
        if binary:
            headers.append((name, entry.bytes_value))
        elif entry.string_value.isascii() and entry.string_value.isprintable():
            headers.append((name, entry.string_value.encode()))
    return headers


def metadata_of(headers: Iterable[Header]) -> entity_pb2.Metadata:
    """Request headers as metadata for the function, in their order; `-bin` values are taken as they are, decoded."""
    metadata = entity_pb2.Metadata()
    for name, value in headers:
        if _NOT_PASSED.match(name):
            continue
        if name.endswith("-bin"):
            metadata.entries.add(key=name, bytes_value=value)
        else:
            metadata.entries.add(key=name, string_value=value.decode("latin-1"))
    return metadata
