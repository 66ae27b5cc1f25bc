"""Encodes an action's requests for the function: `ActionCommand`s, from parts prepared once for each method.

What the function reads is what protobuf would have encoded. Protobuf itself took a third of the time of a unary call.
"""

from __future__ import annotations

from stateful_proxy.entity import varint
from stateful_proxy.service import MethodInfo


class ActionCommands:
    """Encodes. What is kept is bounded by the number of methods."""

    def __init__(self) -> None:
        self._prepared: dict[str, tuple[bytes, bytes]] = {}

    def opening(self, method: MethodInfo, metadata: bytes) -> bytes:
        """A command that only says which method is meant; `metadata` is encoded."""
        return self._parts(method)[0] + _metadata(metadata)

    def whole(self, method: MethodInfo, payload: bytes, type_url: str, metadata: bytes) -> bytes:
        """A command with everything; `type_url` '': that of the method's input type."""
        return self._parts(method)[0] + self.payload(method, payload, type_url) + _metadata(metadata)

    def payload(self, method: MethodInfo, payload: bytes, type_url: str) -> bytes:
        """A command with a payload alone."""
        url = _url(type_url) if type_url else self._parts(method)[1]
        return b'"' + _sized(url + b"\x12" + _sized(payload) if payload else url)

    def _parts(self, method: MethodInfo) -> tuple[bytes, bytes]:
        """A method's names, and the type of its payloads."""
        parts = self._prepared.get(method.path)
        if parts is None:
            names = b"\x12" + _sized(method.service.encode()) + b"\x1a" + _sized(method.name.encode())
            parts = self._prepared[method.path] = (names, _url(f"type.googleapis.com/{method.input_type}"))
        return parts


def _sized(content: bytes) -> bytes:
    return varint(len(content)) + content


def _metadata(metadata: bytes) -> bytes:
    return b"*" + _sized(metadata) if metadata else b""


def _url(type_url: str) -> bytes:
    """The field `type_url` of an Any."""
    return b"\n" + _sized(type_url.encode())
