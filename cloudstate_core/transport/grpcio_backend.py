"""The transport on grpc.aio: the reference for the native engine, and the fallback where no native wheel exists.

One asyncio loop in a thread of its own carries everything. Limits, told rather than hidden:

* A gRPC port speaks no HTTP/1.1 and no plain HTTP/2 (`ListenOptions.http_only` ports speak HTTP/1.1); only gRPC is forwarded, and a
  forward of plain HTTP is answered 501.
* `:authority` of a gRPC call is not told by grpc.aio: picked, it is b''. A forwarded call carries grpc's own user-agent.
* Whether a lost call was processed is read from grpc's error text (`grpcio_wire`); `stats().connections` is 0.
* A caller that leaves amid its request is told apart from one that has ended it by what grpc tells right after; to an upstream that the call
  was forwarded to, the end of its request may come before the cancellation.
* `max_header_bytes` binds a peer once it has acknowledged the connection's settings; before that grpc's own 16 MiB do.
* A drain leaves admin ports open until `stop`, so that probes and metrics are answered; calls open after its grace are cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import grpc.aio

from cloudstate_core.transport import api, grpcio_wire
from cloudstate_core.transport.api import Event, Header, ListenOptions, Stats
from cloudstate_core.transport.grpcio_calls import Calls, Handler
from cloudstate_core.transport.grpcio_http import HttpListener, HttpRequest
from cloudstate_core.transport.grpcio_loop import EventLoop
from cloudstate_core.transport.grpcio_streams import Streams

MAX_PENDING = 100_000
"""Requests that may wait for the loop. From 1,000 on (its default) grpc's core rejects some at random, as CANCELLED, whoever sent them."""
_OK = ("finish", grpcio_wire.CODES[0], "", ())


class GrpcioTransport:
    """See `cloudstate_core.transport.api.Transport`."""

    def __init__(self) -> None:
        self._loop = EventLoop()
        self._calls = Calls(self._loop)
        self._streams = Streams(self._loop)
        self._requests: dict[int, HttpRequest] = {}
        self._servers: list[grpc.aio.Server] = []
        self._listeners: list[HttpListener] = []
        self.join = self._loop.join
        self.post = self._loop.post
        self.after = self._loop.after
        self.cancel = self._loop.cancel
        self.start: Callable[[Callable[[list[Event]], None]], None] = self._loop.start

    # Life ---------------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """See Transport."""

        async def close() -> None:
            for listener in self._listeners:
                await listener.stop()
            await asyncio.gather(*(server.stop(0) for server in self._servers))
            await self._streams.close()

        self._loop.stop(close)

    def stats(self) -> Stats:
        """See Transport."""
        return Stats(self._loop.batches, self._loop.events, len(self._calls) + len(self._requests), len(self._streams), 0)

    def drain(self, grace: float, done: Callable[[], None]) -> None:
        """See Transport."""

        async def close() -> None:
            await asyncio.gather(*(server.stop(grace) for server in self._servers))
            self._loop.guard(done)

        self._loop.spawn(close())

    def listen(self, host: str, port: int, options: ListenOptions) -> int:
        """See Transport."""
        if self._loop.inside():
            server, bound = self._bind(host, port, options)
            self._loop.spawn(server.start())
            return bound

        async def bind() -> int:
            server, bound = self._bind(host, port, options)
            await server.start()
            return bound

        return self._loop.run(bind())

    def _bind(self, host: str, port: int, options: ListenOptions) -> tuple[grpc.aio.Server | HttpListener, int]:
        if options.http_only:
            listener = HttpListener(host, port, options, lambda request: self._told(request, options), self._left)
            self._listeners.append(listener)
            return listener, listener.port
        server = grpc.aio.server(
            handlers=[Handler(self._calls, options)],
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", options.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", options.max_header_bytes),
                ("grpc.absolute_max_metadata_size", options.max_header_bytes),
                ("grpc.max_concurrent_streams", options.max_concurrent_streams),
                ("grpc.server.max_pending_requests", MAX_PENDING),
                ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING),
            ],
        )
        try:
            bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError as error:
            raise OSError(f"cannot listen on {host}:{port}: the address is taken or not ours") from error
        self._servers.append(server)
        return server, bound

    # Server side --------------------------------------------------------------------------------------------------------

    def _told(self, request: HttpRequest, options: ListenOptions) -> None:
        request.call = next(self._loop.ids)
        self._requests[request.call] = request
        picked = tuple(request.header(name) for name in options.pick)
        self._loop.emit((api.HTTP, request.call, request.body, (request.method, request.target, picked)))

    def _left(self, request: HttpRequest) -> None:
        if self._requests.pop(request.call, None) is not None:
            self._loop.emit((api.CALL_CANCELLED, request.call, b"", request.why))

    def headers(self, call: int) -> list[Header]:
        """See Transport."""
        return self._requests[call].headers if call in self._requests else self._calls.headers(call)

    def reply(self, call: int, message: bytes, headers: Sequence[Header] = ()) -> None:
        """See Transport."""
        sent = (("message", message), _OK)
        self._calls.finish(call, *((("headers", headers), *sent) if headers else sent))

    def send_message(self, call: int, message: bytes, headers: Sequence[Header] = ()) -> None:
        """See Transport."""
        self._calls.send(call, message, headers)

    def backlog(self, either: int) -> int:
        """See Transport."""
        request = self._requests.get(either)
        if request is None:
            return self._calls.backlog(either) + self._streams.backlog(either)
        if request.waiting:
            request.on_drained = lambda: self._loop.emit((api.DRAINED, either, b"", None))
        return request.waiting

    def pause(self, call: int) -> None:
        """See Transport."""
        self._calls.pause(call, True)

    def resume(self, call: int) -> None:
        """See Transport."""
        self._calls.pause(call, False)

    def finish(self, call: int, status: int, message: str = "", trailers: Sequence[Header] = ()) -> None:
        """See Transport."""
        self._calls.finish(call, ("finish", grpcio_wire.CODES[status], message, trailers))

    def respond(self, call: int, status: int, headers: Sequence[Header], body: bytes) -> None:
        """See Transport."""
        if (found := self._requests.get(call)) is not None and not found.answer.done():
            del self._requests[call]
            found.respond(status, headers, body)

    def respond_begin(self, call: int, status: int, headers: Sequence[Header] = ()) -> None:
        """See Transport."""
        if (found := self._requests.get(call)) is not None:
            found.begin(status, headers)

    def respond_data(self, call: int, data: bytes) -> None:
        """See Transport."""
        if (found := self._requests.get(call)) is not None:
            found.send(data)

    def respond_end(self, call: int) -> None:
        """See Transport."""
        if (found := self._requests.get(call)) is not None and found.answer.done():
            del self._requests[call]
            found.end()

    def forward(self, call: int, upstream: int, headers: Sequence[Header] = (), remove: Sequence[str] = ()) -> None:
        """See Transport."""
        if call in self._requests:
            why = "the grpcio transport forwards gRPC calls only; HTTP/1.1 and WebSockets need the native engine"
            self._requests.pop(call).respond(501, [("content-type", b"text/plain; charset=utf-8")], f"{why}\n".encode())
            self._loop.emit((api.FORWARDED, call, b"", (api.Outcome.FAILED, why)))
        else:
            self._calls.forward(call, self._streams.upstream(upstream), headers, remove)

    def peek(self, call: int) -> None:
        """See Transport."""
        self._calls.peek(call)

    def limit(self, call: int, seconds: float) -> None:
        """See Transport."""
        if call in self._requests:
            self._loop.after(seconds, lambda: self._late(call))
        else:
            self._calls.limit(call, seconds)

    def _late(self, call: int) -> None:
        if (found := self._requests.pop(call, None)) is not None:
            if found.answer.done():
                found.cut()
            found.respond(504, [], b"the deadline has passed\n")
            self._loop.emit((api.CALL_CANCELLED, call, b"", grpcio_wire.LATE))

    # Client side --------------------------------------------------------------------------------------------------------

    def connect(self, target: str) -> int:
        """See Transport."""
        return self._streams.connect(target)

    def disconnect(self, upstream: int) -> None:
        """See Transport."""
        self._streams.disconnect(upstream)

    def open(self, upstream: int, path: str, headers: Sequence[Header] = (), timeout: float | None = None) -> int:
        """See Transport."""
        return self._streams.open(upstream, path, headers, timeout)

    def send(self, stream: int, message: bytes) -> None:
        """See Transport."""
        self._streams.send(stream, message)

    def half_close(self, stream: int) -> None:
        """See Transport."""
        self._streams.send(stream, None)

    def reset(self, stream: int) -> None:
        """See Transport."""
        self._streams.reset(stream)

    def pause_stream(self, stream: int) -> None:
        """See Transport."""
        self._streams.pause(stream, True)

    def resume_stream(self, stream: int) -> None:
        """See Transport."""
        self._streams.pause(stream, False)
