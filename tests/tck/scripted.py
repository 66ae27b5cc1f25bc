"""A user function that is played by a test: it sees every call of the proxy, says what each one is answered, and tells of any it did not expect.

The protocol's own messages are compared for equality, as the conformance suite does: a field too much is as wrong as a field too few.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from cloudstate_core.pb.cloudstate import action_pb2, crdt_pb2, entity_pb2, event_sourced_pb2, value_entity_pb2

PATIENCE = 30.0
"""Seconds to wait for what must come; nothing waits that long when all is well."""
EVENT_SOURCED = "/cloudstate.eventsourced.EventSourced/handle"
VALUE_ENTITY = "/cloudstate.valueentity.ValueEntity/handle"
CRDT = "/cloudstate.crdt.Crdt/handle"
UNARY, STREAMED_IN, STREAMED_OUT, STREAMED = (
    f"/cloudstate.action.ActionProtocol/{name}" for name in ("handleUnary", "handleStreamedIn", "handleStreamedOut", "handleStreamed")
)
DISCOVER, REPORT_ERROR = "/cloudstate.EntityDiscovery/discover", "/cloudstate.EntityDiscovery/reportError"
INCOMING: dict[str, type[Message]] = {
    EVENT_SOURCED: event_sourced_pb2.EventSourcedStreamIn,
    VALUE_ENTITY: value_entity_pb2.ValueEntityStreamIn,
    CRDT: crdt_pb2.CrdtStreamIn,
    **dict.fromkeys((UNARY, STREAMED_IN, STREAMED_OUT, STREAMED), action_pb2.ActionCommand),
}
"""What the proxy sends on each of the protocol's calls."""
M = TypeVar("M", bound=Message)
_END, _CANCELLED = "end of requests", "cancellation"


class Call:
    """One call that the proxy makes of the function; a stream of an entity is one as well."""

    def __init__(self, path: str, context: Any) -> None:
        self.path, self._context = path, context
        self._seen: asyncio.Queue[Message | str] = asyncio.Queue()
        self._ended: asyncio.Future[tuple[grpc.StatusCode, str]] = asyncio.get_running_loop().create_future()
        self._over = asyncio.Event()
        self.cancelled = self._released = False

    async def serve(self) -> None:
        """Take messages until the call is ended by the test or cancelled by the proxy."""
        reader = asyncio.create_task(self._read())
        try:
            status, text = await self._ended
            if status is not grpc.StatusCode.OK:
                await self._context.abort(status, text)
        except asyncio.CancelledError:
            self.cancelled = True
            self._seen.put_nowait(_CANCELLED)
            raise
        finally:
            self._over.set()
            reader.cancel()

    async def _read(self) -> None:
        while (data := await self._context.read()) is not grpc.aio.EOF:
            self._seen.put_nowait(INCOMING[self.path].FromString(data))
        self._seen.put_nowait(_END)
        if self._released:
            self._end()

    async def _next(self, what: object) -> Message | str:
        try:
            return await asyncio.wait_for(self._seen.get(), PATIENCE)
        except TimeoutError:
            raise AssertionError(f"{self.path}: nothing came in {PATIENCE:g} s, expected was: {what}") from None

    async def expect(self, message: Message) -> None:
        """The next thing on this call is this message and no other. Metadata of action commands is left to `take`."""
        seen = await self.take(type(message), message)
        if isinstance(seen, action_pb2.ActionCommand):
            seen.ClearField("metadata")
        assert seen == message, f"{self.path}: expected was:\n{message}\nbut there came:\n{seen}"

    async def take(self, kind: type[M], what: object = "a message") -> M:
        """The next thing on this call, which is a message of that kind."""
        seen = await self._next(what)
        assert isinstance(seen, kind), f"{self.path}: expected was:\n{what}\nbut there came:\n{seen}"
        return seen

    async def expect_end(self) -> None:
        """The proxy says that it sends no more."""
        seen = await self._next(_END)
        assert seen == _END, f"{self.path}: expected was the end of requests, but there came:\n{seen}"

    async def expect_cancelled(self) -> None:
        """The proxy gives the call up. A cancelled call may also show an end of its requests."""
        while (seen := await self._next(_CANCELLED)) == _END:
            pass
        assert seen == _CANCELLED, f"{self.path}: expected was a cancellation, but there came:\n{seen}"

    async def expect_over(self) -> None:
        """The proxy has done with this call: it says that no more comes, or gives the call up."""
        seen = await self._next("the end of the call")
        assert seen in (_END, _CANCELLED), f"{self.path}: expected was the end of the call, but there came:\n{seen}"
        await self.release()

    async def expect_closed(self) -> None:
        """The proxy ends the stream in good order, and so does the function; not by a reset."""
        await self.expect_end()
        await self.close()

    async def send(self, *messages: Message) -> None:
        """The function sends these."""
        for message in messages:
            await self._context.write(message.SerializeToString())

    async def close(self, *last: Message) -> None:
        """The function sends these and ends the call well."""
        await self.send(*last)
        self._end()
        await asyncio.wait_for(self._over.wait(), PATIENCE)
        assert not self.cancelled, f"{self.path}: was reset by the proxy instead of ended"

    async def fail(self, status: grpc.StatusCode, text: str) -> None:
        """The function ends the call with a status of its own."""
        self._end(status, text)
        await asyncio.wait_for(self._over.wait(), PATIENCE)

    def _end(self, status: grpc.StatusCode = grpc.StatusCode.OK, text: str = "") -> None:
        if not self._ended.done():
            self._ended.set_result((status, text))

    def unexpected(self) -> list[str]:
        """What came on this call and was not looked at."""
        return [] if self._released else [f"{self.path}: {self._seen.get_nowait()}" for _ in range(self._seen.qsize())]

    async def release(self) -> None:
        """No test looks at this call any more: an open action is answered, an entity's stream lives until the proxy ends it."""
        self._released = True
        if self.path not in (EVENT_SOURCED, VALUE_ENTITY, CRDT) and not self._over.is_set():
            with contextlib.suppress(Exception):
                await self.send(action_pb2.ActionResponse())
            self._end()


class ScriptedFunction(grpc.GenericRpcHandler):
    """The function's server. `spec` is its answer to discovery; `steady`: it ends no stream unasked, so that it is asked once."""

    def __init__(self, spec: entity_pb2.EntitySpec, port: int, steady: bool = True) -> None:
        self.spec, self.port, self.steady = spec, port, steady
        self.asked: list[entity_pb2.ProxyInfo] = []
        """Every question of discovery."""
        self.reports: list[str] = []
        self._new: asyncio.Queue[Call] = asyncio.Queue()
        self._calls: list[Call] = []

    async def start(self) -> None:
        """Serve."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((self,))
        assert self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        """End as a process does that is killed."""
        await self._server.stop(0)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """What serves a path."""
        path = str(details.method)
        if path == DISCOVER:
            return grpc.unary_unary_rpc_method_handler(cast(Any, self._discover), entity_pb2.ProxyInfo.FromString)
        if path == REPORT_ERROR:
            return grpc.unary_unary_rpc_method_handler(cast(Any, self._report), entity_pb2.UserFunctionError.FromString)
        if path not in INCOMING:
            return None
        return grpc.stream_stream_rpc_method_handler(cast(Any, self._server_of(path)))

    def _server_of(self, path: str) -> Callable[[Any, Any], Awaitable[None]]:
        async def serve(requests: Any, context: Any) -> None:
            call = Call(path, context)
            self._calls.append(call)
            self._new.put_nowait(call)
            await call.serve()

        return serve

    async def _discover(self, question: entity_pb2.ProxyInfo, context: Any) -> bytes:
        self.asked.append(question)
        return self.spec.SerializeToString()

    async def _report(self, error: entity_pb2.UserFunctionError, context: Any) -> bytes:
        self.reports.append(error.message)
        return b""

    async def call(self, path: str) -> Call:
        """The next call the proxy makes, which is of that path."""
        try:
            call = await asyncio.wait_for(self._new.get(), PATIENCE)
        except TimeoutError:
            raise AssertionError(f"no call came in {PATIENCE:g} s, expected was one of {path}; reported: {self.reports}") from None
        assert call.path == path, f"expected was a call of {path}, but there came one of {call.path}"
        return call

    async def report(self) -> str:
        """The next mistake that the proxy tells of."""
        async with asyncio.timeout(PATIENCE):
            while not self.reports:
                await asyncio.sleep(0.005)
        return self.reports.pop(0)

    async def expect_silence(self, seconds: float = 0.05) -> None:
        """Nothing came that no test asked for, and nothing comes for a while."""
        await asyncio.sleep(seconds)
        found = [f"a call of {self._new.get_nowait().path}" for _ in range(self._new.qsize())]
        found += [line for call in self._calls for line in call.unexpected()]
        found += [f"a report: {text}" for text in self.reports]
        found += [f"{len(self.asked)} questions of discovery"] if self.steady and len(self.asked) != 1 else []
        assert not found, "unexpected: " + "; ".join(found)

    async def forget(self) -> None:
        """The next case begins from nothing; streams of entities go on."""
        for call in self._calls:
            await call.release()
        self._calls.clear()
        self.reports.clear()
        while not self._new.empty():
            self._new.get_nowait()
