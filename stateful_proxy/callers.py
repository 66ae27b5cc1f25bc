"""Who waits for the outcome of a call: a gRPC caller, or something else that speaks for one.

A call is a number. Positive ones are the transport's; those that came in by other ways (HTTP/JSON, an event, a side effect) have a sink that takes
the answer instead, and those that came from nowhere have a negative number of their own. Whoever executes a command answers here and need not
know the difference. Guarantees: an answer to a call that has ended is a no-op; a sink hears `finish` once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cloudstate_core.transport.api import Header, Status, Transport


class Sink(Protocol):
    """Takes the outcome of one call."""

    def message(self, payload: bytes, headers: Sequence[Header]) -> None:
        """One answer, an encoded message of the method's output type; headers come with the first one only."""

    def finish(self, status: int, text: str, trailers: Sequence[Header]) -> None:
        """The end of the call, a gRPC status; without a message before it when there was none."""


class Callers:
    """Answers calls, each in its own way."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._sinks: dict[int, Sink] = {}
        self._last = 0

    def attach(self, sink: Sink, call: int = 0) -> int:
        """Let a sink take the outcome of a call of the transport's, or of a new one. The call's number."""
        if not call:
            self._last -= 1
            call = self._last
        self._sinks[call] = sink
        return call

    def detach(self, call: int) -> None:
        """Nobody waits any more."""
        self._sinks.pop(call, None)

    def reply(self, call: int, payload: bytes, headers: Sequence[Header] = ()) -> None:
        """The one answer of a call, and its end."""
        sink = self._sinks.pop(call, None) if self._sinks else None
        if sink is not None:
            sink.message(payload, headers)
            sink.finish(Status.OK, "", ())
        elif call > 0:
            self._transport.reply(call, payload, headers)

    def message(self, call: int, payload: bytes, headers: Sequence[Header] = ()) -> None:
        """One answer of several."""
        sink = self._sinks.get(call)
        if sink is not None:
            sink.message(payload, headers)
        elif call > 0:
            self._transport.send_message(call, payload, headers)

    def backlog(self, call: int) -> int:
        """Bytes of the answer that wait for the caller; DRAINED follows when there are some."""
        return self._transport.backlog(call) if call > 0 else 0

    def finish(self, call: int, status: int, text: str = "", trailers: Sequence[Header] = ()) -> None:
        """End a call with a status."""
        sink = self._sinks.pop(call, None) if self._sinks else None
        if sink is not None:
            sink.finish(status, text, trailers)
        elif call > 0:
            self._transport.finish(call, status, text, trailers)

    def unanswered(self, call: int, path: str) -> None:
        """The command was executed, and the function gave no answer: fine for an event or an effect, an error for who expects a message."""
        sink = self._sinks.pop(call, None)
        if sink is not None:
            sink.finish(Status.OK, "", ())
        elif call > 0:
            self._transport.finish(call, Status.UNKNOWN, f"{path}: the function gave no answer for the caller")
