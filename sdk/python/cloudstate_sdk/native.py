"""Serves gRPC methods on the native engine (`cloudstate_engine`): a fifth of the CPU that grpcio takes for a command when many entities are busy.

The engine does its I/O on a thread of its own; handlers run on the event loop, as on grpcio. What has come in crosses over in batches, and what
goes out too. Guarantees: messages of a call keep their order; a call whose caller is gone is cancelled; neither requests nor answers
of a call wait here without limit (MOST_WAITING).
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from cloudstate_engine import Engine

log = logging.getLogger(__name__)

_CALL, _MESSAGE, _END, _CANCELLED, _HTTP, _DRAINED = 0, 1, 2, 3, 7, 8
"""Kinds of the engine's events."""
MOST_WAITING = 128 * 1024
"""Bytes of a stream's requests or answers that may wait."""
OVERHEAD = 64
"""Bytes that a waiting message counts for besides its own."""
UNLIMITED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class _Options:
    """What the engine's listener accepts; see `Options` of its interface."""

    streaming_paths: frozenset[str]
    peek: bool = False
    pick: tuple[str, ...] = ()
    max_message_bytes: int = UNLIMITED
    max_header_bytes: int = 64 * 1024
    max_concurrent_streams: int = UNLIMITED
    http_only: bool = False


class Aborted(Exception):
    """A handler ends its call with a status."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class _Context:
    """What a handler may do with its call, besides answering."""

    async def abort(self, code: grpc.StatusCode, text: str) -> NoReturn:
        raise Aborted(code.value[0], text)


class _Call:
    """One call, on the event loop: its requests as an iterator, its answers as they leave, and the task between them."""

    def __init__(self, server: NativeServer, number: int, parse: Callable[[bytes], Any]) -> None:
        self._server, self._number, self._parse = server, number, parse
        self._requests: deque[bytes] = deque()
        self._ended = self._paused = False
        self._waiting = self._unsent = 0
        self._arrival: asyncio.Future[None] | None = None
        self._drain: asyncio.Future[None] | None = None

    def message(self, data: bytes) -> None:
        """A request has come."""
        self._requests.append(data)
        self._waiting += len(data) + OVERHEAD
        if self._waiting > MOST_WAITING and not self._paused:
            self._paused = True
            self._server.ask("pause", self._number)
        _wake(self._arrival)

    def end(self) -> None:
        """No more requests come."""
        self._ended = True
        _wake(self._arrival)

    def drained(self) -> None:
        """The caller has read what was sent."""
        _wake(self._drain)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        while not self._requests:
            if self._ended:
                raise StopAsyncIteration
            self._arrival = self._server.loop.create_future()
            await self._arrival
        data = self._requests.popleft()
        self._waiting -= len(data) + OVERHEAD
        if self._paused and self._waiting <= MOST_WAITING // 2:
            self._paused = False
            self._server.ask("resume", self._number)
        return self._parse(data)

    async def send(self, data: bytes) -> None:
        """One message of a streamed answer; waits for a caller who reads slowly."""
        self._server.ask("send_message", self._number, data)
        self._unsent += len(data) + OVERHEAD
        if self._unsent > MOST_WAITING:
            self._unsent, self._drain = 0, self._server.loop.create_future()
            self._server.ask("backlog", self._number)
            await self._drain


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


def _leave(call: _Call, task: asyncio.Task[None]) -> None:
    """Nobody is there any more. A handler may lose its cancellation to what it catches; it ends all the same, since no request comes."""
    task.cancel()
    call.end()


class NativeServer:
    """A gRPC server, of the methods of some paths."""

    def __init__(self, methods: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        self.loop = asyncio.get_running_loop()
        self._methods = methods
        self._engine = Engine()
        self._thread = threading.Thread(target=self._engine.run, args=(_log, range(4)), name="engine", daemon=True)
        self._calls: dict[int, tuple[_Call, asyncio.Task[None]]] = {}
        self._outbox: list[tuple[str, tuple[Any, ...]]] = []

    def start(self, host: str, port: int) -> int:
        """Serve; the port. OSError when it is taken."""
        self._thread.start()
        atexit.register(self._end)
        self._engine.start(self._arrived)
        streaming = (path for path, method in self._methods.items() if method.request_streaming)
        try:
            return self._engine.listen(host.strip("[]"), port, _Options(frozenset(streaming)))
        except OSError:
            self._end()
            raise

    async def stop(self, grace: float | None) -> None:
        """Take no more calls, and end those that are still open after `grace` seconds, at once when it is None."""
        if grace:
            idle = asyncio.Event()
            self._engine.drain(grace, lambda: self._crosses(idle.set))
            await idle.wait()
        calls = list(self._calls.values())
        for call, task in calls:
            _leave(call, task)
        await asyncio.gather(*(task for _, task in calls), return_exceptions=True)
        await asyncio.to_thread(self._end)

    def ask(self, method: str, *arguments: Any) -> None:
        """Have the engine do something, together with what else this turn of the loop asks for."""
        if not self._outbox:
            self.loop.call_soon(self._flush)
        self._outbox.append((method, arguments))

    def _flush(self) -> None:
        asked, self._outbox = self._outbox, []
        self._engine.post(lambda: self._do(asked))

    # On the engine's thread.

    def _do(self, asked: list[tuple[str, tuple[Any, ...]]]) -> None:
        for method, arguments in asked:
            found = getattr(self._engine, method)(*arguments)
            if method == "backlog" and not found:
                self._arrived([(_DRAINED, arguments[0], b"", None)])

    def _arrived(self, batch: list[tuple[int, int, bytes, Any]]) -> None:
        self._crosses(self._take, batch)

    def _crosses(self, callback: Callable[..., None], *arguments: Any) -> None:
        try:
            self.loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            log.debug("the event loop has ended before the server")

    # On the event loop.

    def _take(self, batch: list[tuple[int, int, bytes, Any]]) -> None:
        for kind, number, data, detail in batch:
            if kind == _CALL:
                self._begin(number, data, *detail[:2])
            elif kind == _HTTP:
                self.ask("respond", number, 415, [], b"this port speaks gRPC\n")
            elif (found := self._calls.get(number)) is None:
                continue
            elif kind == _MESSAGE:
                found[0].message(data)
            elif kind == _END:
                found[0].end()
            elif kind == _DRAINED:
                found[0].drained()
            elif kind == _CANCELLED:
                _leave(*found)

    def _begin(self, number: int, data: bytes, path: str, complete: bool | None) -> None:
        method = self._methods.get(path)
        if method is None:
            self.ask("finish", number, grpc.StatusCode.UNIMPLEMENTED.value[0], f"{path}: this function has no such method")
            return
        call = _Call(self, number, method.request_deserializer or bytes)
        if complete is not None:
            call.message(data)
        if complete:
            call.end()
        task = self.loop.create_task(self._serve(number, call, method))
        task.add_done_callback(lambda _: self._calls.pop(number))
        self._calls[number] = call, task

    async def _serve(self, number: int, call: _Call, method: Any) -> None:
        try:
            requests = call if method.request_streaming else await anext(call)
            if not method.response_streaming:
                run = method.stream_unary if method.request_streaming else method.unary_unary
                self.ask("reply", number, method.response_serializer(await run(requests, _CONTEXT)))
                return
            run = method.stream_stream if method.request_streaming else method.unary_stream
            async with aclosing(run(requests, _CONTEXT)) as answers:
                async for answer in answers:
                    await call.send(method.response_serializer(answer))
            self.ask("finish", number, 0)
        except Aborted as error:
            self.ask("finish", number, error.code, str(error))
        except Exception as error:
            log.exception("a call failed")
            self.ask("finish", number, grpc.StatusCode.UNKNOWN.value[0], f"Unexpected {type(error)}: {error}")

    def _end(self) -> None:
        self._engine.stop()
        self._thread.join()
        atexit.unregister(self._end)


_CONTEXT = _Context()


def _log(error: BaseException) -> None:
    log.error("a mistake on the engine's thread", exc_info=error)
