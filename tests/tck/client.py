"""What calls a proxy from outside: gRPC with any message, plain HTTP/1.1, and server reflection."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from cloudstate_core.pb.grpc.reflection.v1alpha import reflection_pb2

M = TypeVar("M", bound=Message)
T = TypeVar("T")
LIMIT = 60.0
"""Seconds after which a call fails."""


@dataclass(frozen=True)
class Page:
    """An HTTP answer."""

    status: int
    content_type: str
    text: str


class Client:
    """A client of the proxy's public port. Calls begin at once; a test awaits their outcome when the function has played its part."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")

    def unary(self, path: str, request: Message, answers: type[M]) -> asyncio.Task[M]:
        """Begin a call; its task has the answer."""

        async def run() -> M:
            method: Any = self.channel.unary_unary(path, response_deserializer=answers.FromString)
            answer: M = await method(request.SerializeToString(), timeout=LIMIT)
            return answer

        return _begun(run())

    def stream(self, path: str, answers: type[M], *requests: Message, ended: bool = True) -> Exchange[M]:
        """Begin a call with a stream on either side or both; `ended`: there are no further requests."""
        return Exchange(self.channel.stream_stream(path, response_deserializer=answers.FromString), requests, ended)

    async def post(self, path: str, body: str = "", verb: str = "POST", content_type: str = "application/json") -> Page:
        """One HTTP/1.1 request on a connection of its own."""

        def run() -> Page:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
            try:
                connection.request(verb, path, body.encode(), {"Content-Type": content_type} if content_type else {})
                answer = connection.getresponse()
                return Page(answer.status, answer.getheader("Content-Type", ""), answer.read().decode())
            finally:
                connection.close()

        return await asyncio.to_thread(run)

    def posting(self, path: str, body: str = "", **more: str) -> asyncio.Task[Page]:
        """The same, begun."""
        return _begun(self.post(path, body, **more))

    async def reflect(self, *questions: reflection_pb2.ServerReflectionRequest) -> list[reflection_pb2.ServerReflectionResponse]:
        """All answers on one stream of server reflection."""
        path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        exchange = self.stream(path, reflection_pb2.ServerReflectionResponse, *questions)
        answers = [await exchange.read() for _ in questions]
        await exchange.expect_end()
        return answers

    async def close(self) -> None:
        """Close the connection."""
        await self.channel.close()


def _begun(call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Its task. A test that fails before it looks at the outcome leaves nothing behind that complains of it."""
    task = asyncio.create_task(call)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


class Exchange(Generic[M]):
    """A call with streams, as its caller sees it."""

    def __init__(self, method: Any, requests: tuple[Message, ...], ended: bool) -> None:
        self._requests: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.send(*requests)
        if ended:
            self.end()
        self._call = method(self._outgoing(), timeout=LIMIT)

    async def _outgoing(self) -> AsyncIterator[bytes]:
        while (data := await self._requests.get()) is not None:
            yield data

    def send(self, *requests: Message) -> None:
        """Send these."""
        for request in requests:
            self._requests.put_nowait(request.SerializeToString())

    def end(self) -> None:
        """There are no further requests."""
        self._requests.put_nowait(None)

    async def read(self) -> M:
        """The next answer; the error of a call that has failed."""
        answer = await self._call.read()
        assert answer is not grpc.aio.EOF, f"the call ended instead of answering: {await self._call.code()} {await self._call.details()}"
        return cast(M, answer)

    async def expect_end(self) -> None:
        """There is no further answer, and all is well."""
        assert await self._call.read() is grpc.aio.EOF
        assert await self._call.code() is grpc.StatusCode.OK

    async def error(self) -> tuple[grpc.StatusCode, str]:
        """Status and text with which the call fails."""
        return await outcome(self._call.read())

    def cancel(self) -> None:
        """The caller goes away."""
        self._call.cancel()


async def outcome(answer: Any) -> tuple[grpc.StatusCode, str]:
    """Status and text with which a call fails."""
    try:
        found = await answer
    except grpc.aio.AioRpcError as error:
        return error.code(), str(error.details())
    raise AssertionError(f"the call was answered instead of failing: {found}")
