"""The seam between policy (Python) and the data path (HTTP/2, HTTP/1.1, gRPC framing, flow control).

Two backends implement it: the native engine and, as reference and fallback, grpcio. Guarantees of both:

* All callbacks (`on_batch`, posted callables, timers) run on one thread, one at a time: policy needs no locks.
* The interpreter is entered once per batch of events; everything that `on_batch` asks for is written afterwards together.
* Every call ends exactly once: answered, failed, or `CALL_CANCELLED` (then its id is dead; answering it is a no-op).
* Every opened stream ends with exactly one `STREAM_CLOSED`; every `forward` with exactly one `FORWARDED`.
* Deadlines (`grpc-timeout`, `limit`) are kept by the backend: it answers DEADLINE_EXCEEDED (HTTP 504) and tells `CALL_CANCELLED`, or
  `FORWARDED` with CANCELLED for a call that is away; an answer that has begun is ended with that status, or cut where there is none (HTTP).
* All methods but `post`, `start`, `stop` and `join` may be called on the callback thread only (or before `start`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Header = tuple[str, bytes]
"""Lower-case name and value as bytes. Values of `-bin` names are decoded from base64, those of plain HTTP too; one that is no base64 stays raw."""

# Kinds of events. Plain integers: they are compared on the innermost path.
CALL = 0
"""gRPC call began. id = call, data = first message, detail = `(path, complete, picked)`: `path` is '/pkg.Service/Method';
`complete` True when this is the whole request, False when more messages may follow (only for streaming paths and peeking listeners),
None when data (b'' then) is no message, because the first one has not come at once (within some 10 ms) or never will: on a streaming path
CALL_MESSAGE or CALL_END tells which, on a peeking listener (where it may also be unreadable) `peek` does;
`picked` = tuple of the values (bytes, b'' when absent, the last one of several) of `ListenOptions.pick`, in that order.
Unary paths are told only when the request is complete and well-formed (exactly one message)."""
CALL_MESSAGE = 1
"""A further request message of a streaming call (see `pause`), or what `peek` asked for. id = call, data = message, detail = None."""
CALL_END = 2
"""The client half-closed a streaming call that was not told with `complete` True. id = call, data = b'', detail = None."""
CALL_CANCELLED = 3
"""The caller is gone (reset, disconnect, deadline). id = call, detail = reason str. The id is dead."""
STREAM_MESSAGE = 4
"""A message on a stream opened by `open`. id = stream, data = message, detail = None."""
STREAM_CLOSED = 5
"""id = stream, data = b'', detail = `(grpc_status: int, message: str, trailers: list[Header], refused: bool)`.
`refused` True: no byte of the stream was processed by the peer (connect failure, REFUSED_STREAM), so a retry is safe."""
FORWARDED = 6
"""A forward ended. id = call, data = b'', detail = `(Outcome, text)`."""
HTTP = 7
"""A request that is not gRPC (HTTP/1.1, or HTTP/2 without a gRPC content type; gRPC-Web is not gRPC). id = call, data = whole body (b''
on a peeking listener, which passes bodies through), detail = `(method: str, path_and_query: str, picked)`."""
DRAINED = 8
"""Nothing waits any more of what was sent on a call or stream; told once for each `backlog` that was not 0, or for several together.
id = call or stream, data = b'', detail = None."""

Event = tuple[int, int, bytes, Any]
EventHandler = Callable[[Event], bool]
"""Handles an event; False when it belongs to somebody else."""


class Outcome(enum.IntEnum):
    """How a forward ended."""

    DELIVERED = 0
    """An answer of the upstream was passed to the caller; `text` = grpc-status or HTTP status as text."""
    REFUSED = 1
    """Nothing can have happened upstream; the call is still open: forward it again or fail it. `text` says why
    (for a refusal by the peer's `REFUSED_HEADER`, that header's value)."""
    FAILED = 2
    """The upstream was lost after it may have acted; the backend has failed the call with UNAVAILABLE (HTTP 502)."""
    CANCELLED = 3
    """The caller went away or its deadline passed; no CALL_CANCELLED follows."""


MOST_WAITING = 64 * 1024 * 1024
"""Bytes of an answer that may wait for a caller who reads slowly. With more, the answer is cut and CALL_CANCELLED tells that the caller is gone."""

REFUSED_HEADER = "cloudstate-refused"
"""Header of a trailers-only answer (of any answer, where the call is plain HTTP) by which a proxy says 'not executed, ask elsewhere'.
Value e.g. `not-owner;generation=12;next=pod-b`.
A forward that gets it ends REFUSED and passes nothing to the caller."""


class Status(enum.IntEnum):
    """gRPC status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class ListenOptions:
    """What a listener accepts."""

    peek: bool = False
    """Tell gRPC calls at their first message, or without it when it does not come at once, and let `forward` pass everything through as it
    came; else unary calls are buffered whole."""
    streaming_paths: frozenset[str] = frozenset()
    """Paths told message by message (CALL, CALL_MESSAGE, CALL_END)."""
    pick: tuple[str, ...] = ()
    """Request headers delivered with each CALL and HTTP event; `:authority` names the HTTP/2 authority or HTTP/1.1 Host."""
    max_message_bytes: int = 16 * 1024 * 1024
    """Larger request messages are refused with RESOURCE_EXHAUSTED (HTTP 413)."""
    max_header_bytes: int = 64 * 1024
    max_concurrent_streams: int = 10_000
    http_only: bool = False
    """An admin port: only plain HTTP requests are expected (a backend whose gRPC server speaks no HTTP/1.1 serves it apart)."""


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters since start."""

    batches: int
    events: int
    open_calls: int
    open_streams: int
    connections: int


class Transport(Protocol):
    """Connections in, batches of events out; see the module docstring for the guarantees."""

    def start(self, on_batch: Callable[[list[Event]], None]) -> None:
        """Start the I/O thread; `on_batch` is called on it with at least one event. An exception from it is logged."""

    def listen(self, host: str, port: int, options: ListenOptions) -> int:
        """Bind and serve gRPC over h2c, HTTP/1.1 and plain HTTP/2 on one port; returns the bound port (0 asks for a free one).
        May be called before or after `start`, from any thread. OSError when the address is taken, naming it."""

    def connect(self, target: str) -> int:
        """Register an upstream 'host:port' (h2c by prior knowledge, HTTP/1.1 for forwarded HTTP/1.1 requests). Connections
        are made when first needed and made again, with back-off, when lost. Returns its id."""

    def disconnect(self, upstream: int) -> None:
        """Forget an upstream; calls in flight on it go on until they end."""

    def headers(self, call: int) -> list[Header]:
        """All request headers of an open call, in order, without pseudo-headers."""

    def open(self, upstream: int, path: str, headers: Sequence[Header] = (), timeout: float | None = None) -> int:
        """Open a gRPC client stream; messages sent before the connection stands are queued. Returns its id."""

    def send(self, stream: int, message: bytes) -> None:
        """Send one message on a client stream; a no-op on a closed one."""

    def half_close(self, stream: int) -> None:
        """No more messages from this side."""

    def reset(self, stream: int) -> None:
        """Cancel a client stream; STREAM_CLOSED (CANCELLED) follows."""

    def pause_stream(self, stream: int) -> None:
        """Tell no more messages of a client stream until `resume_stream`; flow control stops the peer as for `pause`. What was read before may
        still be told once. The peer's end is told after its messages; `reset` and the timeout close a paused stream too."""

    def resume_stream(self, stream: int) -> None:
        """Tell the messages again, from where they were paused."""

    def reply(self, call: int, message: bytes, headers: Sequence[Header] = ()) -> None:
        """Answer a unary gRPC call: headers, one message, grpc-status 0."""

    def send_message(self, call: int, message: bytes, headers: Sequence[Header] = ()) -> None:
        """One response message of a streaming gRPC call, written at once; see MOST_WAITING. `headers` go out before the first one; with a
        later one they are dropped."""

    def finish(self, call: int, status: int, message: str = "", trailers: Sequence[Header] = ()) -> None:
        """End a gRPC call with a status (trailers-only if no message was sent)."""

    def backlog(self, either: int) -> int:
        """Bytes sent on a call or stream that wait for its reader (roughly: not what a connection has taken over); 0 when it is over. When it
        is not 0, DRAINED follows once nothing waits, unless the call or stream ends first. With `pause` it passes a reader's pace on."""

    def pause(self, call: int) -> None:
        """Tell no more of a streaming call's request, neither CALL_MESSAGE nor CALL_END, until `resume`; flow control stops the client when
        its window is full (the native engine's: 256 KiB a call). What was read before may still be told once. CALL_CANCELLED comes all the same,
        and answers go out."""

    def resume(self, call: int) -> None:
        """Tell the request again, from where it was paused."""

    def respond(self, call: int, status: int, headers: Sequence[Header], body: bytes) -> None:
        """Answer an HTTP event whole. `content-length` is set where `headers` have none."""

    def respond_begin(self, call: int, status: int, headers: Sequence[Header] = ()) -> None:
        """Begin to answer an HTTP event piece by piece: chunked over HTTP/1.1 (unless `headers` tell a `content-length`, which then binds),
        until the connection ends over HTTP/1.0, as DATA over HTTP/2. Until `respond_end`, CALL_CANCELLED tells that nobody reads any more:
        the caller is gone, does not keep up (MOST_WAITING), or gets no body (HEAD; status 204 and 304). A no-op on a call that is away."""

    def respond_data(self, call: int, data: bytes) -> None:
        """A further piece of the body, written at once; b'' writes nothing. A no-op before `respond_begin`."""

    def respond_end(self, call: int) -> None:
        """The body is whole; the call is answered. A no-op before `respond_begin`. One that cannot be made whole is cut by `limit(call, 0.0)`, so
        that the caller does not take it for whole; CALL_CANCELLED follows."""

    def forward(self, call: int, upstream: int, headers: Sequence[Header] = (), remove: Sequence[str] = ()) -> None:
        """Pass an open call to an upstream: all its headers whole (without hop-by-hop ones; `headers` replace or add,
        `remove` are dropped; a name ending in '*' is a prefix), body, response, trailers; with flow control both ways.
        The remaining deadline travels as grpc-timeout. An HTTP/1.1 request that asks for another protocol (`Upgrade`, but for HTTP/2) is
        passed on as such; once the upstream has agreed (101), bytes pass both ways until both sides have ended.

        A no-op on a call that is away, or whose answer has begun. To answer a call that is away ends its forward, as CANCELLED."""

    def peek(self, call: int) -> None:
        """Tell the first message of a call that was told without it (`complete` None): CALL_MESSAGE follows, b'' when the call has none, or
        CALL_CANCELLED when the backend had to refuse the message (its size, its compression)."""

    def limit(self, call: int, seconds: float) -> None:
        """End an open call in `seconds` at the latest, wherever it is then; it is not told to the upstream, as a grpc-timeout would be.

        To be asked before the answer of an HTTP/1.1 upstream begins: later the native engine keeps what was set before."""

    def after(self, delay: float, callback: Callable[[], None]) -> int:
        """Call back once after `delay` seconds on the callback thread; returns a timer id."""

    def cancel(self, timer: int) -> None:
        """Forget a timer; a no-op when it has fired."""

    def post(self, callback: Callable[[], None]) -> None:
        """From any thread: run `callback` on the callback thread."""

    def drain(self, grace: float, done: Callable[[], None]) -> None:
        """Stop accepting, send GOAWAY, let open calls and answers on their way end; `done` is called when none is open, or after `grace` seconds."""

    def stats(self) -> Stats:
        """Counters; from any thread."""

    def stop(self) -> None:
        """Close everything and end the I/O thread. From any thread."""

    def join(self) -> None:
        """Wait until the I/O thread has ended."""
