"""Upstreams and client streams of the grpcio transport.

Each stream is read by a task of its own, so that nobody else's cancellation ends it, and ends with exactly one STREAM_CLOSED.
A forgotten upstream is closed when the last call on it has ended.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from cloudstate_core.transport import api, grpcio_wire
from cloudstate_core.transport.api import Header
from cloudstate_core.transport.grpcio_loop import EventLoop

CONNECT_LIMIT = 5_000
"""Milliseconds that a connection may take until the peer has greeted. By its name grpc's option is about pauses, but an attempt has no longer than
it says, and a peer may be far away or busy; one that refuses is still found out at once."""
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 1 << 20),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", CONNECT_LIMIT),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
]


class Upstream:
    """A channel and how many calls are on it."""

    def __init__(self, target: str, loop: EventLoop) -> None:
        self._loop = loop
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._users = 0
        self._forgotten = False

    def reserve(self) -> None:
        """Somebody is about to begin a call here: the channel stays open until as many `end`s."""
        self._users += 1

    def begin(self, path: str, headers: Sequence[Header], timeout: float | None) -> Any:
        """A bidirectional call, which was reserved."""
        method: Any = self._channel.stream_stream(path)
        return method(metadata=grpcio_wire.metadata(headers), timeout=timeout)

    def end(self) -> None:
        """A call that was reserved has ended, or never begins."""
        self._users -= 1
        self._close_unused()

    def forget(self) -> None:
        """Nothing begins here any more."""
        self._forgotten = True
        self._close_unused()

    def _close_unused(self) -> None:
        if self._forgotten and not self._users:
            self._loop.spawn(self.close())

    async def close(self) -> None:
        """End every call on it."""
        await self._channel.close()


@dataclass(slots=True, eq=False)
class _Stream:
    call: Any
    out: collections.deque[bytes | None] = field(default_factory=collections.deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    unpaused: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0
    """Bytes that wait for the peer."""
    awaited: bool = False
    """Whether policy waits until there are none."""

    def __post_init__(self) -> None:
        self.unpaused.set()
        self.call.add_done_callback(self._done)

    def _done(self, call: Any) -> None:
        """A pause holds back the peer's end, not what this side has ended."""
        if call.cancelled() or call.time_remaining() == 0:
            self.unpaused.set()

    def put(self, message: bytes | None) -> None:
        self.waiting += len(message or b"")
        self.out.append(message)
        self.wake.set()

    async def read(self) -> Any:
        """The next message, once the stream is not paused."""
        await self.unpaused.wait()
        message = await self.call.read()
        await self.unpaused.wait()
        return message

    async def write(self, drained: Callable[[], None]) -> None:
        """Write what was sent, in order, as fast as flow control lets it."""
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError, grpc.aio.BaseError):
            while True:
                while not self.out:
                    self.wake.clear()
                    await self.wake.wait()
                message = self.out.popleft()
                if message is None:
                    await self.call.done_writing()
                    return
                await grpcio_wire.write(self.call, message)
                self.waiting -= len(message)
                if self.awaited and not self.waiting:
                    self.awaited = False
                    drained()


class Streams:
    """The client half of the transport; see `Transport` for what its methods promise."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._streams: dict[int, _Stream] = {}
        self._upstreams: dict[int, Upstream] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def upstream(self, upstream: int) -> Upstream | None:
        """A registered upstream."""
        return self._upstreams.get(upstream)

    def connect(self, target: str) -> int:
        """Register an upstream."""
        upstream = next(self._loop.ids)

        async def make() -> None:
            self._upstreams[upstream] = Upstream(target, self._loop)

        if self._loop.inside():
            self._upstreams[upstream] = Upstream(target, self._loop)
        else:
            self._loop.run(make())
        return upstream

    def disconnect(self, upstream: int) -> None:
        """Forget an upstream."""
        if (found := self._upstreams.pop(upstream, None)) is not None:
            found.forget()

    def open(self, upstream: int, path: str, headers: Sequence[Header], timeout: float | None) -> int:
        """Open a client stream."""
        stream = next(self._loop.ids)
        if (found := self._upstreams.get(upstream)) is None:
            text = f"no upstream {upstream}: it was disconnected or never connected"
            closed: tuple[int, str, list[Header], bool] = (int(api.Status.UNAVAILABLE), text, [], True)
            self._loop.emit((api.STREAM_CLOSED, stream, b"", closed))
        else:
            found.reserve()
            self._streams[stream] = _Stream(found.begin(path, headers, timeout))
            self._loop.spawn(self._read(stream, self._streams[stream], found))
        return stream

    async def _read(self, stream_id: int, stream: _Stream, upstream: Upstream) -> None:
        call, heard = stream.call, False
        writer = self._loop.spawn(stream.write(lambda: self._loop.emit((api.DRAINED, stream_id, b"", None))))
        try:
            heard = bool(await call.initial_metadata())
            while (message := await stream.read()) is not grpc.aio.EOF:
                heard = True
                self._loop.emit((api.STREAM_MESSAGE, stream_id, message, None))
            status, text, trailers = await call.code(), await call.details() or "", await call.trailing_metadata()
        except asyncio.CancelledError:
            status, text, trailers = grpc.StatusCode.CANCELLED, "reset by this side", ()
        except grpc.aio.AioRpcError as error:
            status, text, trailers = error.code(), error.details() or "", error.trailing_metadata()
        writer.cancel()
        self._streams.pop(stream_id, None)
        upstream.end()
        refused = not heard and grpcio_wire.unprocessed(status, text)
        self._loop.emit((api.STREAM_CLOSED, stream_id, b"", (status.value[0], text, grpcio_wire.headers(trailers), refused)))

    def send(self, stream: int, message: bytes | None) -> None:
        """Send a message; None half-closes."""
        if (found := self._streams.get(stream)) is not None:
            found.put(message)

    def reset(self, stream: int) -> None:
        """Cancel a stream; its task then tells that it is closed."""
        if (found := self._streams.get(stream)) is not None:
            found.call.cancel()

    def backlog(self, stream: int) -> int:
        """Bytes that wait for the peer; policy is told when there are none any more."""
        if (found := self._streams.get(stream)) is None:
            return 0
        found.awaited = found.waiting > 0
        return found.waiting

    def pause(self, stream: int, paused: bool) -> None:
        """Tell no further messages, or tell them again."""
        if (found := self._streams.get(stream)) is not None:
            (found.unpaused.clear if paused else found.unpaused.set)()

    async def close(self) -> None:
        """End everything."""
        for upstream in [*self._upstreams.values()]:
            await upstream.close()
