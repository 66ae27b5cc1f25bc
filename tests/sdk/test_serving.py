"""What serves a function keeps its promises on the engine and on grpcio: ends, cancellation, back pressure, and a stop in good order."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from cloudstate_sdk import ActionContext, Function, action, command
from cloudstate_sdk.pb.cloudstate import action_pb2
from cloudstate_sdk.serving import start as start_serving
from google.protobuf.message import Message

from tests.stateful_proxy.processes import WITHOUT
from tests.tck.pb.cloudstate.tck.model import action_pb2 as actions

DOER, LIMIT = "cloudstate.tck.model.action.ActionTckModel", 60.0
Serving = Callable[..., contextlib.AbstractAsyncContextManager[grpc.aio.Channel]]


class Probe:
    """What a handler did, and what it waits for."""

    def __init__(self) -> None:
        self.count = 0
        self.cancelled, self.go = asyncio.Event(), asyncio.Event()


def doer(probe: Probe) -> type:
    """An action that notes what becomes of its calls."""

    @action(DOER, descriptor=actions.DESCRIPTOR)
    class Doer:
        @command
        async def process_unary(self, request: actions.Request, context: ActionContext) -> actions.Response:
            probe.count += 1
            try:
                await probe.go.wait()
            except asyncio.CancelledError:
                probe.cancelled.set()
                raise
            return actions.Response(message="done")

        @command
        async def process_streamed_in(self, requests: AsyncIterator[actions.Request], context: ActionContext) -> actions.Response:
            await probe.go.wait()
            async for request in requests:
                probe.count += request.ByteSize()
            return actions.Response(message=str(probe.count))

        @command
        async def process_streamed_out(self, request: actions.Request, context: ActionContext) -> AsyncIterator[actions.Response]:
            try:
                while not probe.go.is_set():
                    probe.count += 1
                    yield actions.Response(message="x" * 10_000)
            finally:
                probe.cancelled.set()

        @command
        async def process_streamed(self, requests: AsyncIterator[actions.Request], context: ActionContext) -> AsyncIterator[actions.Response]:
            number = 0
            async for _ in requests:
                number += 1
                yield actions.Response(message=str(number))
            yield actions.Response(message="end")

    return Doer


def command_of(shape: str, request: Message | None = None) -> bytes:
    found = action_pb2.ActionCommand(service_name=DOER, name=f"Process{shape}")
    if request is not None:
        found.payload.Pack(request)
    return found.SerializeToString()


def path(shape: str) -> str:
    return f"/cloudstate.action.ActionProtocol/handle{shape}"


def text(answer: bytes) -> str:
    return actions.Response.FromString(action_pb2.ActionResponse.FromString(answer).reply.payload.value).message


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.005)


async def steady(value: Callable[[], int]) -> None:
    """Wait until a count of what passes at full speed stands still, which it does at a small part of what memory has room for."""
    async with asyncio.timeout(LIMIT):
        before = -1
        while not before == value() > 0:
            before = value()
            assert before < 10_000, "nothing holds it back"
            await asyncio.sleep(0.3)


async def test_a_stream_is_answered_message_by_message(serving: Serving) -> None:
    async with serving(doer(Probe())) as channel:
        call: Any = channel.stream_stream(path("Streamed"))(timeout=LIMIT)
        await call.write(command_of("Streamed"))
        for number in ("1", "2", "3"):
            await call.write(command_of("Streamed", actions.Request()))
            assert text(await call.read()) == number
        await call.done_writing()
        assert text(await call.read()) == "end"
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_a_stream_without_any_message_ends(serving: Serving) -> None:
    async with serving(doer(Probe())) as channel:
        call: Any = channel.stream_stream(path("Streamed"))(iter(()), timeout=LIMIT)
        [answer] = [answer async for answer in call]
        assert "(none).(none): this function has no such action" in action_pb2.ActionResponse.FromString(answer).failure.description


async def test_a_first_message_may_come_late(serving: Serving) -> None:
    async with serving(doer(Probe())) as channel:
        call: Any = channel.stream_stream(path("Streamed"))(timeout=LIMIT)
        await call.wait_for_connection()  # the call is on its way, without a message
        await call.write(command_of("Streamed"))
        await call.write(command_of("Streamed", actions.Request()))
        assert text(await call.read()) == "1"
        call.cancel()


async def test_a_method_that_is_not_there_is_told(serving: Serving) -> None:
    async with serving(doer(Probe())) as channel:
        call: Any = channel.unary_unary("/cloudstate.eventsourced.EventSourced/handle")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", timeout=LIMIT)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_message_that_does_not_parse_fails_the_call_alone(serving: Serving) -> None:
    probe = Probe()
    probe.go.set()
    async with serving(doer(probe)) as channel:
        call: Any = channel.unary_unary(path("Unary"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\xff", timeout=LIMIT)
        assert caught.value.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
        assert text(await call(command_of("Unary", actions.Request()), timeout=LIMIT)) == "done"


@pytest.mark.parametrize("leaves", ["cancels", "disconnects", "runs out of time"])
async def test_a_handler_whose_caller_has_left_is_cancelled(serving: Serving, leaves: str) -> None:
    probe = Probe()
    async with serving(doer(probe)) as channel:
        method: Any = channel.unary_unary(path("Unary"))
        if leaves == "runs out of time":
            async with asyncio.timeout(LIMIT):
                while not probe.count:  # a call whose time was over before the handler had begun is none to look at
                    with pytest.raises(grpc.aio.AioRpcError):
                        await method(command_of("Unary", actions.Request()), timeout=0.5)
        else:
            call = method(command_of("Unary", actions.Request()), timeout=LIMIT)
            await until(lambda: probe.count == 1)
            if leaves == "cancels":
                call.cancel()
            else:
                await channel.close()
        async with asyncio.timeout(LIMIT):
            await probe.cancelled.wait()


async def test_a_caller_who_leaves_a_streamed_answer_ends_it(serving: Serving) -> None:
    probe = Probe()
    async with serving(doer(probe)) as channel:
        call: Any = channel.unary_stream(path("StreamedOut"))(command_of("StreamedOut", actions.Request()), timeout=LIMIT)
        assert len(text(await call.read())) == 10_000
        call.cancel()
        async with asyncio.timeout(LIMIT):
            await probe.cancelled.wait()


async def test_an_answer_waits_for_a_caller_who_reads_slowly(serving: Serving) -> None:
    probe = Probe()
    async with serving(doer(probe)) as channel:
        call: Any = channel.unary_stream(path("StreamedOut"))(command_of("StreamedOut", actions.Request()), timeout=LIMIT)
        await call.read()
        await steady(lambda: probe.count)  # how many 10 kB fill the windows is the client's choice
        probe.go.set()
        read = 1
        while await call.read() is not grpc.aio.EOF:
            read += 1
        assert read == probe.count, "and none is lost"


async def test_requests_wait_for_a_handler_that_reads_slowly(serving: Serving) -> None:
    probe, written = Probe(), 0
    big = actions.Request(groups=[actions.ProcessGroup(steps=[actions.ProcessStep(reply=actions.Reply(message="x" * 10_000))])])
    async with serving(doer(probe)) as channel:
        call: Any = channel.stream_unary(path("StreamedIn"))(timeout=LIMIT)

        async def write() -> None:
            nonlocal written
            await call.write(command_of("StreamedIn"))
            while not probe.go.is_set():
                await call.write(command_of("StreamedIn", big))
                written += 1
            await call.done_writing()

        writing = asyncio.create_task(write())
        await steady(lambda: written)
        probe.go.set()
        await writing
        assert text(await call) == str(written * big.ByteSize()), "and none is lost"


async def test_large_messages_pass_whole(serving: Serving) -> None:
    probe = Probe()
    probe.go.set()
    large = actions.Request(groups=[actions.ProcessGroup(steps=[actions.ProcessStep(reply=actions.Reply(message="x" * 20_000_000))])])
    async with serving(doer(probe)) as channel:
        call: Any = channel.stream_unary(path("StreamedIn"))(iter([command_of("StreamedIn"), command_of("StreamedIn", large)]), timeout=LIMIT)
        assert text(await call) == str(large.ByteSize())


# Cancellations ----------------------------------------------------------------------------------------------------------


def stubborn(probe: Probe) -> type:
    """An action that loses its cancellation to what it catches, and goes on."""

    @action(DOER, descriptor=actions.DESCRIPTOR)
    class Stubborn(doer(probe)):  # type: ignore[misc]
        @command
        async def process_streamed(self, requests: AsyncIterator[actions.Request], context: ActionContext) -> AsyncIterator[actions.Response]:
            try:
                async for _ in requests:
                    probe.count += 1
                    with contextlib.suppress(asyncio.CancelledError):
                        await probe.go.wait()
                    yield actions.Response()
            finally:
                probe.cancelled.set()

    return Stubborn


@pytest.mark.parametrize("leaves", ["the caller", "the function"])
async def test_a_handler_that_loses_its_cancellation_ends_with_its_requests(transport: str, leaves: str) -> None:
    probe = Probe()
    server, port = await Function(stubborn(probe)).start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.stream_stream(path("Streamed"))(timeout=10 * LIMIT)  # it is not this that ends it
        await call.write(command_of("Streamed"))
        await call.write(command_of("Streamed", actions.Request()))
        await until(lambda: probe.count == 1)
        async with asyncio.timeout(LIMIT):
            if leaves == "the caller":
                call.cancel()
            else:
                await server.stop(None)
            await probe.cancelled.wait()
    await server.stop(None)


def interrupted() -> type:
    """An action whose methods wait for something that is cancelled elsewhere."""

    async def wait() -> None:
        shared = asyncio.get_running_loop().create_future()
        shared.cancel()
        await shared

    @action(DOER, descriptor=actions.DESCRIPTOR)
    class Interrupted:
        @command
        async def process_unary(self, request: actions.Request, context: ActionContext) -> Any:
            await wait()

        @command
        async def process_streamed_in(self, requests: AsyncIterator[actions.Request], context: ActionContext) -> Any:
            await wait()

        @command
        async def process_streamed_out(self, request: actions.Request, context: ActionContext) -> AsyncIterator[Any]:
            await wait()
            yield

        @command
        async def process_streamed(self, requests: AsyncIterator[actions.Request], context: ActionContext) -> AsyncIterator[Any]:
            await wait()
            yield

    return Interrupted


@pytest.mark.parametrize("shape", ["Unary", "StreamedIn", "StreamedOut", "Streamed"])
async def test_a_cancellation_of_something_else_fails_the_call(serving: Serving, shape: str) -> None:
    async with serving(interrupted()) as channel:
        kinds = {
            "Unary": channel.unary_unary, "StreamedIn": channel.stream_unary, "StreamedOut": channel.unary_stream, "Streamed": channel.stream_stream,
        }  # fmt: skip
        method: Any = kinds[shape](path(shape))
        request = command_of(shape, actions.Request())
        call = method(iter([request]) if shape in ("StreamedIn", "Streamed") else request, timeout=LIMIT)
        [answer] = [await call] if shape in ("Unary", "StreamedIn") else [answer async for answer in call]
        assert action_pb2.ActionResponse.FromString(answer).failure.description == "something that the command waited for was cancelled"


# Life -------------------------------------------------------------------------------------------------------------------


async def refusal(method: Any) -> grpc.StatusCode:
    """Call until it is refused; the status then."""
    async with asyncio.timeout(LIMIT):
        while True:
            try:
                await method(b"", timeout=LIMIT)
            except grpc.aio.AioRpcError as error:
                return error.code()


async def test_a_stop_lets_a_call_end_within_its_grace(transport: str) -> None:
    probe = Probe()
    server, port = await Function(doer(probe)).start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method: Any = channel.unary_unary(path("Unary"))
        call = method(command_of("Unary", actions.Request()), timeout=LIMIT)
        await until(lambda: probe.count == 1)
        stopping = asyncio.create_task(server.stop(LIMIT))
        # grpcio cancels a call that arrives just as it stops listening
        assert await refusal(channel.unary_unary("/cloudstate.EntityDiscovery/discover")) in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert not stopping.done()
        probe.go.set()
        assert text(await call) == "done"
        async with asyncio.timeout(LIMIT):
            await stopping


@pytest.mark.parametrize("grace", [None, 0.2])
async def test_a_stop_cancels_what_goes_on(transport: str, grace: float | None) -> None:
    probe = Probe()
    server, port = await Function(doer(probe)).start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method: Any = channel.unary_unary(path("Unary"))
        call = method(command_of("Unary", actions.Request()), timeout=LIMIT)
        await until(lambda: probe.count == 1)
        async with asyncio.timeout(LIMIT):
            await server.stop(grace)
            await probe.cancelled.wait()
        with pytest.raises(grpc.aio.AioRpcError):
            await call
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_port_that_is_taken_is_told(transport: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
            await Function(doer(Probe())).start("127.0.0.1", port)


async def test_a_transport_is_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^transport='fast': must be auto, native or grpcio$"):
        await start_serving({}, "127.0.0.1", 0, "fast")
    monkeypatch.setenv("CLOUDSTATE_SDK_TRANSPORT", "slow")
    with pytest.raises(ValueError, match=r"^CLOUDSTATE_SDK_TRANSPORT='slow': must be auto, native or grpcio$"):
        await start_serving({}, "127.0.0.1", 0)
    server, _ = await start_serving({}, "127.0.0.1", 0, "grpcio")
    assert isinstance(server, grpc.aio.Server)
    await server.stop(None)


async def test_without_the_engine_grpcio_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLOUDSTATE_SDK_TRANSPORT", raising=False)
    monkeypatch.setitem(__import__("sys").modules, "cloudstate_sdk.native", None)
    server, _ = await start_serving({}, "127.0.0.1", 0)
    assert isinstance(server, grpc.aio.Server)
    await server.stop(None)
    with pytest.raises(ImportError, match=r"^the native engine is not installed; it comes with `pip install cloudstate-sdk\[engine\]`$"):
        await start_serving({}, "127.0.0.1", 0, "native")


@pytest.mark.skipif(WITHOUT, reason="no wheel")
async def test_calls_that_are_cancelled_at_any_moment_leave_nothing() -> None:
    probe, choice = Probe(), random.Random(4)
    probe.go.set()
    server: Any
    server, port = await Function(doer(probe)).start("127.0.0.1", 0, "native")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:

        async def one() -> None:
            call: Any = channel.stream_stream(path("Streamed"))(timeout=LIMIT)
            leaves = choice.randrange(6)
            with contextlib.suppress(asyncio.CancelledError, asyncio.InvalidStateError):  # as grpc tells it, of a call that this side has left
                for number in range(6):
                    if number == leaves:
                        call.cancel()
                    await call.write(command_of("Streamed", actions.Request()))
                    assert text(await call.read()) == str(number + 1)
            with contextlib.suppress(asyncio.CancelledError):
                call.cancel()
                await call.code()

        for _ in range(20):
            await asyncio.gather(*(one() for _ in range(50)))
        await until(lambda: not server._calls)
    await server.stop(None)


@pytest.mark.skipif(WITHOUT, reason="no wheel")
async def test_plain_http_is_told_that_this_is_no_place_for_it() -> None:
    server, port = await Function(doer(Probe())).start("127.0.0.1", 0, "native")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    async with asyncio.timeout(LIMIT):
        answer = await reader.read()
    writer.close()
    await server.stop(None)
    assert answer.startswith(b"HTTP/1.1 415 ")
    assert answer.endswith(b"this port speaks gRPC\n")
