"""What the transport reads out of grpc's own values: metadata as headers, and what became of a lost call.

grpc tells neither whether the peer processed a call nor whether a status is the peer's own: both are read from the text of the error.
A text that is not known counts as "it may have acted", which costs a retry and never a command executed twice.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from collections.abc import Sequence
from typing import Any

import grpc

from cloudstate_core.transport.api import Header

CODES = {code.value[0]: code for code in grpc.StatusCode}
LATE = "the deadline has passed"
CLOSED = "the connection was closed by this side"
OWN_HEADERS = frozenset({"te", "content-type", "user-agent", "grpc-timeout", "grpc-encoding", "grpc-accept-encoding", "accept-encoding"})
"""Headers that a channel writes itself."""
_UNPROCESSED = ("failed to connect", "rst_stream with error code 7", "stream removed (goaway received", "connection refused")
"""A GOAWAY that is told within another cause came before that: streams that it left alone ended with their connection."""
_LOST = (
    *_UNPROCESSED,
    "goaway received",
    CLOSED,
    "stream removed",
    "socket closed",
    "connection reset",
    "broken pipe",
    "endpoint",
    "transport closed",
    "keepalive",
    "internal error from core",
)


def metadata(headers: Sequence[Header]) -> list[tuple[str, str | bytes]]:
    """Headers as grpc takes them."""
    return [(name, value if name.endswith("-bin") else value.decode("latin-1")) for name, value in headers]


def headers(found: Any) -> list[Header]:
    """grpc's metadata as headers."""
    return [(key, value if isinstance(value, bytes) else value.encode("latin-1")) for key, value in found or ()]


def plain_header(line: str) -> Header:
    """A header line of HTTP/1.1; the value of a `-bin` name is decoded where it is base64."""
    name, _, text = line.partition(":")
    name, value = name.strip().lower(), text.strip().encode("latin-1")
    if name.endswith("-bin"):
        with contextlib.suppress(binascii.Error):
            return name, base64.b64decode(value.rstrip(b"=") + b"=" * (-len(value.rstrip(b"=")) % 4), validate=True)
    return name, value


def unprocessed(status: grpc.StatusCode, text: str) -> bool:
    """Whether the peer cannot have acted on the call."""
    return status is grpc.StatusCode.UNAVAILABLE and any(known in text.lower() for known in _UNPROCESSED)


def lost(status: grpc.StatusCode, text: str) -> bool:
    """Whether the status stands for a connection or stream that broke, and not for an answer."""
    return status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL) and any(known in text.lower() for known in _LOST)


def removed(name: str, patterns: Sequence[str]) -> bool:
    """Whether a header's name is one of `patterns` (a trailing '*' makes a prefix)."""
    return any(name.startswith(p[:-1]) if p.endswith("*") else name == p for p in patterns)


async def write(call: Any, message: bytes) -> None:
    """Write on a client call. Not grpc's own `write`: on a call that the peer has ended, that puts INTERNAL in place of the peer's status.

    Raises a `grpc.RpcError`, `grpc.aio.BaseError` or `asyncio.InvalidStateError` when the call is over; its reader then has the status.
    """
    await call.wait_for_connection()
    if call.done():
        raise asyncio.InvalidStateError("the call is over")
    await call._cython_call.send_serialized_message(message)
