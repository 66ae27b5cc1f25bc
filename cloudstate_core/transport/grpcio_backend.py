"""The transport on grpc.aio: the reference for the native engine, and the fallback where no native wheel exists.

One asyncio loop in a thread of its own carries everything. Limits, told rather than hidden: a gRPC listener speaks no HTTP/1.1 (admin
ports do, `ListenOptions.http_only`), `forward` passes gRPC calls only, and whether a lost call was refused is read from grpc's error text.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, Header, ListenOptions, Outcome, Stats
from cloudstate_core.transport.grpcio_http import HttpListener, HttpRequest

log = logging.getLogger(__name__)

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_NOT_SENT = ("failed to connect", "connection refused", "unavailable: channel")
_HOP = {"te", "content-type", "user-agent", "grpc-timeout", "grpc-accept-encoding", "grpc-encoding", "accept-encoding"}


def _metadata(headers: Sequence[Header]) -> list[tuple[str, str | bytes]]:
    return [(name, value if name.endswith("-bin") else value.decode("latin-1")) for name, value in headers]


def _headers(metadata: Any) -> list[Header]:
    return [(key, value if isinstance(value, bytes) else value.encode("latin-1")) for key, value in metadata or ()]


@dataclass(slots=True, eq=False)
class _Call:
    """A server call in progress; `out` holds what policy asked for, in order."""

    path: str
    context: Any
    requests: AsyncIterator[bytes]
    first: bytes
    complete: bool
    out: collections.deque[tuple[Any, ...]] = field(default_factory=collections.deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, *item: Any) -> None:
        self.out.append(item)
        self.wake.set()


@dataclass(slots=True, eq=False)
class _Stream:
    """A client stream; its task owns the call, so that nobody else's cancellation can end it."""

    out: collections.deque[bytes | None] = field(default_factory=collections.deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class GrpcioTransport:
    """See `cloudstate_core.transport.api.Transport`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._on_batch: Callable[[list[Event]], None] = lambda events: None
        self._events: list[Event] = []
        self._ids = itertools.count(1)
        self._calls: dict[int, _Call | HttpRequest] = {}
        self._streams: dict[int, _Stream] = {}
        self._upstreams: dict[int, grpc.aio.Channel] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._servers: list[grpc.aio.Server | HttpListener] = []
        self._batches = self._count = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._run, name="transport", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        pending = asyncio.all_tasks(self._loop)
        for task in pending:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        self._loop.close()

    # Life ---------------------------------------------------------------------------------------------------------------

    def start(self, on_batch: Callable[[list[Event]], None]) -> None:
        """See Transport."""
        self._on_batch = on_batch

    def stop(self) -> None:
        """See Transport."""

        async def close() -> None:
            self._on_batch = lambda events: None
            for server in self._servers:
                await server.stop(0)
            for channel in self._upstreams.values():
                await channel.close()
            self._loop.stop()

        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(lambda: self._spawn(close()))

    def join(self) -> None:
        """See Transport."""
        self._thread.join()

    def stats(self) -> Stats:
        """See Transport."""
        return Stats(self._batches, self._count, len(self._calls), len(self._streams), len(self._upstreams))

    def drain(self, grace: float, done: Callable[[], None]) -> None:
        """See Transport."""

        async def close() -> None:
            deadline = self._loop.time() + grace
            stops = [asyncio.create_task(server.stop(grace)) for server in self._servers if not isinstance(server, HttpListener)]
            while self._calls and self._loop.time() < deadline:
                await asyncio.sleep(0.01)
            self._guard(done)
            await asyncio.gather(*stops)

        self._spawn(close())

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _emit(self, event: Event) -> None:
        if not self._events:
            self._loop.call_soon(self._flush)
        self._events.append(event)

    def _flush(self) -> None:
        events, self._events = self._events, []
        self._batches += 1
        self._count += len(events)
        self._guard(lambda: self._on_batch(events))

    def _guard(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:
            log.exception("a transport callback failed")

    # Server side --------------------------------------------------------------------------------------------------------

    def listen(self, host: str, port: int, options: ListenOptions) -> int:
        """See Transport."""
        if threading.current_thread() is self._thread:
            server, bound = self._bind(host, port, options)
            self._spawn(server.start())
            return bound

        async def bind() -> int:
            server, bound = self._bind(host, port, options)
            await server.start()
            return bound

        return asyncio.run_coroutine_threadsafe(bind(), self._loop).result()

    def _bind(self, host: str, port: int, options: ListenOptions) -> tuple[grpc.aio.Server | HttpListener, int]:
        if options.http_only:
            listener = HttpListener(host, port, lambda request: self._http(request, options))
            self._servers.append(listener)
            return listener, listener.port
        server = grpc.aio.server(
            handlers=[_Handler(self, options)],
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", options.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", options.max_header_bytes),
                ("grpc.max_concurrent_streams", options.max_concurrent_streams),
            ],
        )
        try:
            bound = server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise OSError(f"cannot listen on {host}:{port}: the address is taken or not ours") from error
        self._servers.append(server)
        return server, bound

    def _http(self, request: HttpRequest, options: ListenOptions) -> None:
        call = next(self._ids)
        self._calls[call] = request
        picked = tuple(request.header(":authority" if p == ":authority" else p) for p in options.pick)
        self._emit((api.HTTP, call, request.body, (request.method, request.target, picked)))

    async def serve(self, path: str, options: ListenOptions, requests: AsyncIterator[bytes], context: Any) -> None:
        """One server call from its first message to its end."""
        call_id = next(self._ids)
        try:
            call = await self._begin(path, options, requests, context)
            if call is None:
                return
            self._calls[call_id] = call
            metadata = dict(_headers(context.invocation_metadata()))
            picked = tuple(metadata.get(p, b"") for p in options.pick)
            self._emit((api.CALL, call_id, call.first, (path, call.complete, picked)))
            if path in options.streaming_paths and not call.complete:
                self._spawn(self._read_on(call_id, call))
            await self._answer(call)
        except asyncio.CancelledError:
            if call_id in self._calls:
                self._emit((api.CALL_CANCELLED, call_id, b"", "the caller is gone"))
            raise
        finally:
            self._calls.pop(call_id, None)

    async def _begin(self, path: str, options: ListenOptions, requests: AsyncIterator[bytes], context: Any) -> _Call | None:
        """Read what policy must see before it is told: the first message, and for unary paths that it is the only one."""
        first = await anext(requests, None)
        if path in options.streaming_paths or options.peek:
            return _Call(path, context, requests, first or b"", first is None)
        if first is None or await anext(requests, None) is not None:
            context.set_code(grpc.StatusCode.INTERNAL)
            context.set_details(f"{path}: a unary call takes exactly one request message")
            return None
        return _Call(path, context, requests, first, True)

    async def _read_on(self, call_id: int, call: _Call) -> None:
        with contextlib.suppress(asyncio.CancelledError, grpc.RpcError):
            async for message in call.requests:
                if call_id not in self._calls:
                    return
                self._emit((api.CALL_MESSAGE, call_id, message, None))
            if call_id in self._calls:
                self._emit((api.CALL_END, call_id, b"", None))

    async def _answer(self, call: _Call) -> None:
        """Carry out what policy asks for until the call is finished."""
        while True:
            while not call.out:
                call.wake.clear()
                await call.wake.wait()
            kind, *rest = call.out.popleft()
            if kind == "forward":
                if await self._pass_on(call, *rest):
                    return
            elif kind == "headers":
                await call.context.send_initial_metadata(_metadata(rest[0]))
            elif kind == "message":
                await call.context.write(rest[0])
            else:
                status, message, trailers = rest
                call.context.set_trailing_metadata(_metadata(trailers))
                call.context.set_code(_CODES[status])
                call.context.set_details(message)
                return

    def headers(self, call: int) -> list[Header]:
        """See Transport."""
        found = self._calls.get(call)
        if found is None:
            return []
        return found.headers if isinstance(found, HttpRequest) else _headers(found.context.invocation_metadata())

    def reply(self, call: int, message: bytes, headers: Sequence[Header] = ()) -> None:
        """See Transport."""
        if isinstance(found := self._calls.pop(call, None), _Call):
            if headers:
                found.put("headers", headers)
            found.put("message", message)
            found.put("finish", 0, "", ())

    def send_message(self, call: int, message: bytes) -> None:
        """See Transport."""
        if isinstance(found := self._calls.get(call), _Call):
            found.put("message", message)

    def finish(self, call: int, status: int, message: str = "", trailers: Sequence[Header] = ()) -> None:
        """See Transport."""
        if isinstance(found := self._calls.pop(call, None), _Call):
            found.put("finish", status, message, trailers)

    def respond(self, call: int, status: int, headers: Sequence[Header], body: bytes) -> None:
        """See Transport."""
        if isinstance(found := self._calls.pop(call, None), HttpRequest):
            found.respond(status, headers, body)

    # Forwarding ---------------------------------------------------------------------------------------------------------

    def forward(self, call: int, upstream: int, headers: Sequence[Header] = (), remove: Sequence[str] = ()) -> None:
        """See Transport."""
        found = self._calls.get(call)
        if isinstance(found, _Call):
            found.put("forward", call, upstream, headers, remove)
        elif found is not None:
            self.respond(call, 501, [("content-type", b"text/plain")], b"this backend forwards gRPC calls only\n")

    async def _pass_on(self, call: _Call, call_id: int, upstream: int, headers: Sequence[Header], remove: Sequence[str]) -> bool:
        """Forward once; True when the caller has been answered."""
        replaced = {name for name, _ in headers}
        kept = [(n, v) for n, v in _headers(call.context.invocation_metadata()) if n not in _HOP | replaced and not _removed(n, remove)]
        method: Any = self._upstreams[upstream].stream_stream(call.path)
        stream = method(
            self._requests(call), metadata=_metadata([*kept, *headers]), timeout=call.context.time_remaining()
        )
        answered = False
        try:
            while (message := await stream.read()) is not grpc.aio.EOF:
                if not answered:
                    answered = True
                    await call.context.send_initial_metadata(list(await stream.initial_metadata()))
                await call.context.write(message)
            status, details, trailers = await stream.code(), await stream.details(), await stream.trailing_metadata()
        except grpc.aio.AioRpcError as error:
            status, details, trailers = error.code(), error.details() or "", error.trailing_metadata()
        except asyncio.CancelledError:
            stream.cancel()
            if self._calls.pop(call_id, None) is not None:
                self._emit((api.FORWARDED, call_id, b"", (Outcome.CANCELLED, "the caller is gone")))
            raise
        return self._settle(call, call_id, answered, status, details, trailers)

    def _settle(self, call: _Call, call_id: int, answered: bool, status: Any, details: str, trailers: Any) -> bool:
        """Decide how a forward ended, tell it, and answer unless it was refused."""
        found = _headers(trailers)
        refusal = next((value for name, value in found if name == api.REFUSED_HEADER), None)
        unsent = status is grpc.StatusCode.UNAVAILABLE and any(text in (details or "").lower() for text in _NOT_SENT)
        if not answered and (refusal is not None or unsent):
            self._emit((api.FORWARDED, call_id, b"", (Outcome.REFUSED, refusal.decode() if refusal is not None else details)))
            return False
        lost = status is grpc.StatusCode.UNAVAILABLE and not found and not answered
        self._calls.pop(call_id, None)
        call.context.set_trailing_metadata(_metadata(found))
        call.context.set_code(status)
        call.context.set_details(details or "")
        outcome = (Outcome.FAILED, details) if lost else (Outcome.DELIVERED, str(status.value[0]))
        self._emit((api.FORWARDED, call_id, b"", outcome))
        return True

    async def _requests(self, call: _Call) -> AsyncIterator[bytes]:
        if call.first or not call.complete:
            yield call.first
        if not call.complete:
            async for message in call.requests:
                yield message

    # Client side --------------------------------------------------------------------------------------------------------

    def connect(self, target: str) -> int:
        """See Transport."""
        upstream = next(self._ids)

        def make() -> None:
            self._upstreams[upstream] = grpc.aio.insecure_channel(
                target,
                options=[
                    ("grpc.max_receive_message_length", -1),
                    ("grpc.max_send_message_length", -1),
                    ("grpc.initial_reconnect_backoff_ms", 50),
                    ("grpc.min_reconnect_backoff_ms", 50),
                    ("grpc.max_reconnect_backoff_ms", 1000),
                    ("grpc.use_local_subchannel_pool", 1),
                    ("grpc.enable_retries", 0),
                ],
            )

        if threading.current_thread() is self._thread:
            make()
        else:
            self._loop.call_soon_threadsafe(make)
        return upstream

    def disconnect(self, upstream: int) -> None:
        """See Transport."""
        channel = self._upstreams.pop(upstream, None)
        if channel is not None:
            self._spawn(channel.close(grace=10))

    def open(self, upstream: int, path: str, headers: Sequence[Header] = (), timeout: float | None = None) -> int:
        """See Transport."""
        stream_id = next(self._ids)
        stream = self._streams[stream_id] = _Stream()
        method: Any = self._upstreams[upstream].stream_stream(path)
        call = method(metadata=_metadata(headers), timeout=timeout)
        stream.task = self._spawn(self._own(stream_id, stream, call))
        return stream_id

    async def _own(self, stream_id: int, stream: _Stream, call: Any) -> None:
        writer = self._spawn(_write(stream, call))
        heard = False
        try:
            while (message := await call.read()) is not grpc.aio.EOF:
                heard = True
                self._emit((api.STREAM_MESSAGE, stream_id, message, None))
            status, details, trailers = await call.code(), await call.details(), await call.trailing_metadata()
        except asyncio.CancelledError:
            call.cancel()
            status, details, trailers = grpc.StatusCode.CANCELLED, "reset by this side", ()
        except grpc.aio.AioRpcError as error:
            status, details, trailers = error.code(), error.details() or "", error.trailing_metadata()
        finally:
            writer.cancel()
            self._streams.pop(stream_id, None)
        refused = not heard and status is grpc.StatusCode.UNAVAILABLE and any(t in (details or "").lower() for t in _NOT_SENT)
        self._emit((api.STREAM_CLOSED, stream_id, b"", (status.value[0], details or "", _headers(trailers), refused)))

    def send(self, stream: int, message: bytes) -> None:
        """See Transport."""
        if (found := self._streams.get(stream)) is not None:
            found.out.append(message)
            found.wake.set()

    def half_close(self, stream: int) -> None:
        """See Transport."""
        if (found := self._streams.get(stream)) is not None:
            found.out.append(None)
            found.wake.set()

    def reset(self, stream: int) -> None:
        """See Transport."""
        if (found := self._streams.get(stream)) is not None and found.task is not None:
            found.task.cancel()

    # Time ---------------------------------------------------------------------------------------------------------------

    def after(self, delay: float, callback: Callable[[], None]) -> int:
        """See Transport."""
        timer = next(self._ids)

        def fire() -> None:
            self._timers.pop(timer, None)
            self._guard(callback)

        if threading.current_thread() is self._thread:
            self._timers[timer] = self._loop.call_later(delay, fire)
        else:
            self._loop.call_soon_threadsafe(lambda: self._timers.__setitem__(timer, self._loop.call_later(delay, fire)))
        return timer

    def cancel(self, timer: int) -> None:
        """See Transport."""
        if (handle := self._timers.pop(timer, None)) is not None:
            handle.cancel()

    def post(self, callback: Callable[[], None]) -> None:
        """See Transport."""
        self._loop.call_soon_threadsafe(self._guard, callback)


async def _write(stream: _Stream, call: Any) -> None:
    """Write what was sent, in order, as fast as flow control lets it."""
    with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
        while True:
            while not stream.out:
                stream.wake.clear()
                await stream.wake.wait()
            message = stream.out.popleft()
            if message is None:
                await call.done_writing()
                return
            await call.write(message)


def _removed(name: str, patterns: Sequence[str]) -> bool:
    return any(name.startswith(p[:-1]) if p.endswith("*") else name == p for p in patterns)


class _Handler(grpc.GenericRpcHandler):
    """Gives every method to the transport as a stream of bytes both ways."""

    def __init__(self, transport: GrpcioTransport, options: ListenOptions) -> None:
        self._transport, self._options = transport, options

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        path = handler_call_details.method

        async def behaviour(requests: AsyncIterator[bytes], context: Any) -> None:
            await self._transport.serve(path, self._options, requests, context)

        return grpc.stream_stream_rpc_method_handler(behaviour)


