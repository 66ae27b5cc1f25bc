"""Messages as HTTP responses: canonical proto3 JSON, one field of it, or a raw body; whole or as a stream; and errors with their status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format, message_factory
from google.protobuf.message import Message

from stateful_proxy.transcoding.rules import HTTP_BODY, Route

JSON, EVENTS = "application/json", "text/event-stream"
TEXT = [("content-type", b"text/plain; charset=UTF-8")]
STATUS: Mapping[int, int] = {
    0: 200, 1: 499, 2: 500, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409, 11: 400, 12: 501, 13: 500, 14: 503, 15: 500, 16: 401,
}  # fmt: skip
"""HTTP status by gRPC status, the canonical mapping."""
_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


class Response:
    """How the answers of one call are written. `accept` = what the caller takes, as the header has it."""

    def __init__(self, route: Route, accept: str) -> None:
        self._route = route
        self._class = message_factory.GetMessageClass(route.method.output_type)
        self._raw = route.method.output_type.full_name == HTTP_BODY
        self._events = not self._raw and EVENTS in accept

    def whole(self, payload: bytes) -> tuple[str, bytes]:
        """Content type and body of a call's only answer. DecodeError when it is no message of the method's output type, ValueError when HTTP
        or JSON cannot hold it."""
        message = self._class.FromString(payload)
        if self._raw:
            return _http_body(message)
        return JSON, self._json(message).encode()

    def begin(self, payload: bytes | None) -> str:
        """Content type of a stream whose first answer this is; None: it has none."""
        if self._raw:
            return _http_body(self._class.FromString(payload or b""))[0]
        return EVENTS if self._events else JSON

    def item(self, payload: bytes) -> bytes:
        """One answer of a stream: a line of JSON, a server-sent event, or a piece of a raw body."""
        message = self._class.FromString(payload)
        if self._raw:
            return _http_body(message)[1]
        text = self._json(message)
        return f"data: {text}\n\n".encode() if self._events else f"{text}\n".encode()

    def error(self, status: int, text: str) -> bytes:
        """A failure within a stream that has begun; b'' where a stream can only be cut."""
        if not self._events:
            return b""
        return f"event: error\ndata: {json.dumps({'code': status, 'message': text}, ensure_ascii=False)}\n\n".encode()

    def _json(self, message: Message) -> str:
        found: Any = json_format.MessageToDict(message, always_print_fields_with_no_presence=True)
        if self._route.response_body:
            field = self._route.method.output_type.fields_by_name[self._route.response_body]
            found = found.get(field.json_name)
        return _ENCODER.encode(found)


def _http_body(message: Message) -> tuple[str, bytes]:
    content_type: str = getattr(message, "content_type")  # noqa: B009 - the class comes from the function's descriptors
    data: bytes = getattr(message, "data")  # noqa: B009
    if not content_type.isprintable():
        raise ValueError(f"content_type {content_type!r}: must have no control characters")
    return content_type or "application/octet-stream", data
