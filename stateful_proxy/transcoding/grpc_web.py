"""gRPC-Web: gRPC for callers that have no HTTP/2 trailers. Frames are gRPC's, trailers come as a last one; the text forms are base64."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Sequence
from urllib.parse import quote

PREFIX, TEXT_PREFIX = "application/grpc-web", "application/grpc-web-text"
_TYPES = frozenset((PREFIX, f"{PREFIX}+proto", TEXT_PREFIX, f"{TEXT_PREFIX}+proto"))
_HEAD = struct.Struct(">BI")
_TRAILERS = 0x80


class Malformed(Exception):
    """A body that is no gRPC-Web request: says why."""


def media_of(content_type: str) -> str:
    """The content type when it is one of gRPC-Web's, else ''."""
    media = content_type.partition(";")[0].strip().lower()
    return media if media in _TYPES else ""


def answer_type(media: str, accept: str) -> str:
    """Content type of the answer: text when that is asked for, else as the request's."""
    wanted = media_of(accept.partition(",")[0])
    return wanted or media


def messages(media: str, body: bytes) -> list[bytes]:
    """The messages of a request. Malformed when its frames are not whole, or compressed."""
    if media.startswith(TEXT_PREFIX):
        body = _decoded(body)
    found, at = [], 0
    while at < len(body):
        if at + _HEAD.size > len(body):
            raise Malformed("the body ends within a frame's head")
        flags, length = _HEAD.unpack_from(body, at)
        at += _HEAD.size
        if at + length > len(body):
            raise Malformed(f"a frame of {length} bytes is not whole")
        if flags & 1:
            raise Malformed("a message is compressed, which was not agreed on")
        if not flags & _TRAILERS:
            found.append(body[at : at + length])
        at += length
    return found


def _decoded(body: bytes) -> bytes:
    """Base64 of one piece or of several, each padded on its own."""
    raw, found = b"".join(body.split()), bytearray()
    if len(raw) % 4:
        raise Malformed("the body is not base64: its length is not a multiple of 4")
    try:
        for at in range(0, len(raw), 4):
            found += base64.b64decode(raw[at : at + 4], validate=True)
    except binascii.Error as error:
        raise Malformed(f"the body is not base64: {error}") from error
    return bytes(found)


def message_frame(media: str, message: bytes) -> bytes:
    """A message as it goes out."""
    return _encoded(media, _HEAD.pack(0, len(message)) + message)


def trailers_frame(media: str, status: int, text: str, trailers: Sequence[tuple[str, bytes]] = ()) -> bytes:
    """The end of an answer."""
    lines = [f"grpc-status:{status}\r\n".encode()]
    if text:
        lines.append(f"grpc-message:{quote(text, safe=' !#$&()*+,-./:;<=>?@[]^_`{|}~')}\r\n".encode())
    lines += [name.encode() + b":" + _value(name, value) + b"\r\n" for name, value in trailers]
    block = b"".join(lines)
    return _encoded(media, _HEAD.pack(_TRAILERS, len(block)) + block)


def _value(name: str, value: bytes) -> bytes:
    """A trailer's value as HTTP writes it: binary ones in base64."""
    return base64.b64encode(value).rstrip(b"=") if name.endswith("-bin") else value


def _encoded(media: str, frame: bytes) -> bytes:
    return base64.b64encode(frame) if media.startswith(TEXT_PREFIX) else frame
