"""Server calls of the grpcio transport: from the first message to the one answer, or on to an upstream.

Each call is one task of grpc's server, which carries out in order what policy asks for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio

from cloudstate_core.transport import api, grpcio_wire
from cloudstate_core.transport.api import Header, ListenOptions, Outcome
from cloudstate_core.transport.grpcio_call import Call, Requests
from cloudstate_core.transport.grpcio_loop import EventLoop
from cloudstate_core.transport.grpcio_streams import Upstream

PEEK_PATIENCE = 0.01
"""Seconds that a listener waits for the first message before it tells the call without it."""
LEAVE_PATIENCE = 0.02
"""Seconds that the end of a request waits for word that the caller has left: grpc tells a reader of messages of both alike, and only then which."""


class Calls:
    """The open gRPC calls of all listeners."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._calls: dict[int, Call] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def get(self, call: int) -> Call | None:
        """An open call that policy may act on."""
        found = self._calls.get(call)
        return None if found is None or found.forwarding else found

    def headers(self, call: int) -> list[Header]:
        """Its request headers, [] when it is over."""
        found = self._calls.get(call)
        return [] if found is None else grpcio_wire.headers(found.context.invocation_metadata())

    def finish(self, call: int, *items: tuple[Any, ...]) -> None:
        """Do the last things policy asks for; the call is then over for policy, once its forward is if it is away."""
        away = self._calls.get(call)
        if away is not None and away.forwarding and len(items) == 1 and away.aborted is None:
            _, *ended = items[0]
            away.aborted = (ended[0], ended[1], ended[2])
            if away.stream is not None:
                away.stream.cancel()
        if (found := self.get(call)) is not None:
            del self._calls[call]
            for item in items:
                found.put(*item)

    def send(self, call: int, message: bytes, headers: Sequence[Header]) -> None:
        """One message of a streamed answer; a caller who does not keep up loses the call."""
        if (found := self.get(call)) is None:
            return
        if headers and not found.begun:
            found.put("headers", headers)
        found.begun = True
        found.waiting += len(message)
        found.put("message", message)
        if found.waiting > api.MOST_WAITING and found.task is not None:
            found.out.clear()
            found.task.cancel()
            self._gone(found)

    def backlog(self, call: int) -> int:
        """Bytes that wait for the caller; policy is told when there are none any more."""
        if (found := self.get(call)) is None:
            return 0
        found.awaited = found.waiting > 0
        return found.waiting

    def pause(self, call: int, paused: bool) -> None:
        """Tell no further request messages, or tell them again."""
        if (found := self.get(call)) is not None:
            (found.unpaused.clear if paused else found.unpaused.set)()

    def forward(self, call: int, upstream: Upstream | None, headers: Sequence[Header], remove: Sequence[str]) -> None:
        """Pass on; without an upstream it is refused."""
        if (found := self.get(call)) is None:
            return
        if upstream is None:
            self._loop.emit((api.FORWARDED, call, b"", (Outcome.REFUSED, "the upstream was disconnected or never connected")))
            return
        found.send_to(upstream, headers, remove)

    def peek(self, call: int) -> None:
        """Tell the first message when it comes."""
        if (found := self.get(call)) is not None:
            self._loop.spawn(self._tell_first(found))

    async def _tell_first(self, call: Call) -> None:
        message = await call.requests.get(0)
        if message is None:
            await self._left(call)
        if self.get(call.number) is call and not call.context.cancelled():
            self._loop.emit((api.CALL_MESSAGE, call.number, message or b"", None))

    async def _left(self, call: Call) -> None:
        """Give a caller whose messages have ended the time to turn out to have left, lest half a request be taken for a whole one."""
        if call.task is not None:
            await asyncio.wait({call.task}, timeout=LEAVE_PATIENCE)

    def limit(self, call: int, seconds: float) -> None:
        """End it in `seconds`."""
        if (found := self._calls.get(call)) is not None:
            found.timer = self._loop.after(seconds, lambda: self._late(found))

    def _late(self, call: Call) -> None:
        if self._calls.get(call.number) is not call:
            return
        call.late = True
        if not call.forwarding:
            del self._calls[call.number]
            call.put("finish", grpc.StatusCode.DEADLINE_EXCEEDED, grpcio_wire.LATE, ())
            self._loop.emit((api.CALL_CANCELLED, call.number, b"", grpcio_wire.LATE))
        elif call.stream is not None:
            call.stream.cancel()  # its task then finds that it is late

    async def serve(self, path: str, options: ListenOptions, source: AsyncIterator[bytes], context: Any) -> None:
        """One call from its first message to its end; the task of grpc's server."""
        call = Call(next(self._loop.ids), path, context, Requests(source, self._loop))
        call.task = asyncio.current_task()
        try:
            if await self._begin(call, options):
                await self._answer(call)
        except asyncio.CancelledError:
            self._gone(call)
            if call.waiting <= api.MOST_WAITING:
                raise
            call.end(grpc.StatusCode.RESOURCE_EXHAUSTED, "the caller reads too slowly: too much waits for it", ())
        except grpc.aio.BaseError:  # a write to a caller that has gone
            self._gone(call)
        finally:
            self._calls.pop(call.number, None)
            call.came_back()
            call.unpaused.set()
            self._loop.cancel(call.timer)

    async def _begin(self, call: Call, options: ListenOptions) -> bool:
        """Read what policy must see before it is told: the first message, and for a unary call that it is the only one."""
        streaming, first = call.path in options.streaming_paths, None
        complete: bool | None = not (streaming or options.peek)
        try:
            async with asyncio.timeout(PEEK_PATIENCE if options.peek or streaming else None):
                first = await call.requests.get(0)
            complete = None if streaming and first is None else complete or first is None
        except TimeoutError:
            complete = None
        if not streaming and not options.peek and (first is None or await call.requests.get(1) is not None):
            call.end(grpc.StatusCode.INTERNAL, f"{call.path}: a unary call takes exactly one request message", ())
            return False
        self._calls[call.number] = call
        metadata = grpcio_wire.headers(call.context.invocation_metadata())
        picked = tuple(next((value for name, value in reversed(metadata) if name == wanted), b"") for wanted in options.pick)
        self._loop.emit((api.CALL, call.number, first or b"", (call.path, complete, picked)))
        if streaming:
            self._loop.spawn(self._tell_messages(call, 0 if complete is None else 1))
        return True

    async def _tell_messages(self, call: Call, index: int) -> None:
        while True:
            await call.unpaused.wait()
            message = await call.requests.get(index)
            if message is None:
                await self._left(call)
            await call.unpaused.wait()
            if call.number not in self._calls:
                break
            if message is None:
                self._loop.emit((api.CALL_END, call.number, b"", None))
                break
            self._loop.emit((api.CALL_MESSAGE, call.number, message, None))
            index += 1
            call.requests.passed_on(index, answered=True)

    def _gone(self, call: Call) -> None:
        """The caller went away before the answer: tell it once, in the form that policy waits for."""
        if self._calls.pop(call.number, None) is not None:
            reason = grpcio_wire.LATE if call.expired() else "the caller is gone"
            if call.forwarding:
                self._loop.emit((api.FORWARDED, call.number, b"", (Outcome.CANCELLED, reason)))
            else:
                self._loop.emit((api.CALL_CANCELLED, call.number, b"", reason))

    async def _answer(self, call: Call) -> None:
        """Carry out what policy asks for until the call is finished."""
        while True:
            kind, *rest = await call.next()
            if kind == "forward":
                if await self._pass_on(call, *rest):
                    return
            elif kind == "headers":
                await call.context.send_initial_metadata(grpcio_wire.metadata(rest[0]))
            elif kind == "message":
                await call.context.write(rest[0])
                call.waiting -= len(rest[0])
                if call.awaited and not call.waiting and call.number in self._calls:
                    call.awaited = False
                    self._loop.emit((api.DRAINED, call.number, b"", None))
            else:
                call.end(*rest)
                return

    async def _pass_on(self, call: Call, upstream: Upstream, headers: Sequence[Header], remove: Sequence[str]) -> bool:
        """Forward once; True when the caller has been answered."""
        replaced = {name for name, _ in headers} | grpcio_wire.OWN_HEADERS
        whole = grpcio_wire.headers(call.context.invocation_metadata())
        kept = [(name, value) for name, value in whole if name not in replaced and not grpcio_wire.removed(name, remove)]
        call.stream = stream = upstream.begin(call.path, [*kept, *headers], call.context.time_remaining())
        if call.late or call.aborted:
            stream.cancel()
        writer = self._loop.spawn(self._pass_requests(call, stream))
        try:
            if initial := await stream.initial_metadata():
                call.answered = True
                await call.context.send_initial_metadata(list(initial))
            while (message := await stream.read()) is not grpc.aio.EOF:
                call.answered = True
                await call.context.write(message)
            status, text, trailers = await stream.code(), await stream.details(), await stream.trailing_metadata()
        except grpc.aio.AioRpcError as error:
            status, text, trailers = error.code(), error.details(), error.trailing_metadata()
        except asyncio.CancelledError:
            if call.task is not None and call.task.cancelling():
                raise
            status, text, trailers = grpc.StatusCode.DEADLINE_EXCEEDED, grpcio_wire.LATE, ()
            if not call.late and not call.aborted:
                status, text = grpc.StatusCode.UNAVAILABLE, grpcio_wire.CLOSED
        finally:
            call.stream = None
            writer.cancel()
            stream.cancel()
            call.came_back()
        return self._settle(call, status, text or "", grpcio_wire.headers(trailers))

    async def _pass_requests(self, call: Call, stream: Any) -> None:
        index = 0
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError, grpc.aio.BaseError):
            while (message := await call.requests.get(index)) is not None:
                await grpcio_wire.write(stream, message)
                index += 1
                call.requests.passed_on(index, call.answered)
            await stream.done_writing()

    def _settle(self, call: Call, status: grpc.StatusCode, text: str, trailers: list[Header]) -> bool:
        """Tell how a forward ended, and answer unless it was refused."""
        refusal = next((value.decode("latin-1") for name, value in trailers if name == api.REFUSED_HEADER), None)
        if refusal is None and not trailers and grpcio_wire.unprocessed(status, text):
            refusal = text
        outcome = (Outcome.DELIVERED, str(status.value[0]))
        if call.aborted is not None:
            outcome, (status, text, trailers) = (Outcome.CANCELLED, "answered by policy"), (*call.aborted[:2], list(call.aborted[2]))
        elif status is grpc.StatusCode.DEADLINE_EXCEEDED and call.expired():
            outcome = (Outcome.CANCELLED, grpcio_wire.LATE)
        elif not call.answered and call.requests.whole and refusal is not None:
            call.forwarding = False
            self._loop.emit((api.FORWARDED, call.number, b"", (Outcome.REFUSED, refusal)))
            return False
        elif refusal is not None or (not trailers and grpcio_wire.lost(status, text)):
            outcome, status = (Outcome.FAILED, text), grpc.StatusCode.UNAVAILABLE
        self._calls.pop(call.number, None)
        call.end(status, text, trailers)
        self._loop.emit((api.FORWARDED, call.number, b"", outcome))
        return True


class Handler(grpc.GenericRpcHandler):
    """Gives every method of a listener to `Calls` as bytes both ways."""

    def __init__(self, calls: Calls, options: ListenOptions) -> None:
        self._calls, self._options = calls, options

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """See grpc."""
        path = handler_call_details.method

        async def behaviour(requests: AsyncIterator[bytes], context: Any) -> None:
            await self._calls.serve(path, self._options, requests, context)

        return grpc.stream_stream_rpc_method_handler(behaviour)
