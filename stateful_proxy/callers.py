"""Who waits for the outcome of a call: a gRPC caller, or something else that speaks for one.

A call is a number. Positive ones are the transport's; those that came in by other ways (HTTP/JSON, an event, a side effect) have a sink that takes
the answer instead, and those that came from nowhere have a negative number of their own. Whoever executes a command answers here and need not
know the difference. Guarantees: an answer to a call that has ended is a no-op; a sink hears `finish` once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from cloudstate_core.transport.api import Header, Status, Transport


class Sink(Protocol):
    """Takes the outcome of one call."""

    def message(self, payload: bytes, headers: Sequence[Header]) -> None:
        """One answer, an encoded message of the method's output type; headers come with the first one only."""

    def finish(self, status: int, text: str, trailers: Sequence[Header]) -> None:
        """The end of the call, a gRPC status; without a message before it when there was none."""


class Wrapping(Sink):
    """A sink that stands between a call and who takes its outcome."""

    def __init__(self, inner: Sink) -> None:
        self.inner = inner
        self.waiting = 0
        """Bytes of answers that it holds back."""


class _Caller:
    """Who has made a call of the transport's, as a sink."""

    def __init__(self, transport: Transport, call: int, path: str, streamed: bool) -> None:
        self._transport, self._call, self._path, self._streamed = transport, call, path, streamed
        self._answered = False

    def message(self, payload: bytes, headers: Sequence[Header]) -> None:
        """One answer."""
        self._answered = True
        self._transport.send_message(self._call, payload, headers)

    def finish(self, status: int, text: str, trailers: Sequence[Header]) -> None:
        """The end."""
        if status == Status.OK and not self._answered and not self._streamed:
            self._transport.finish(self._call, Status.UNKNOWN, _unanswered(self._path))
        else:
            self._transport.finish(self._call, status, text, trailers)


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

    def wrap(self, call: int, path: str, streamed: bool, make: Callable[[Sink], Wrapping]) -> None:
        """Put a sink between a call of a method and who takes its outcome so far. `streamed`: it may have any number of answers."""
        inner = self._sinks.get(call)
        if inner is None and call > 0:
            inner = _Caller(self._transport, call, path, streamed)
        if inner is not None:
            self._sinks[call] = make(inner)

    def unwrap(self, call: int) -> None:
        """Take it away again."""
        if isinstance(sink := self._sinks.get(call), Wrapping):
            if isinstance(sink.inner, _Caller):
                del self._sinks[call]
            else:
                self._sinks[call] = sink.inner

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
        held = sink.waiting if isinstance(sink := self._sinks.get(call), Wrapping) else 0
        return held + (self._transport.backlog(call) if call > 0 else 0)

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
            self._transport.finish(call, Status.UNKNOWN, _unanswered(path))


def _unanswered(path: str) -> str:
    return f"{path}: the function gave no answer for the caller"
