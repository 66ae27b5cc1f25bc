"""Streamed requests: what is told of them in which order, and that a paused one costs its sender time and the transport no memory."""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event
from tests.cloudstate_core.conftest import DEADLINES

CHUNK = bytes(100_000)
LARGE = 1000
"""Chunks of an upload of 100 MB."""
MOST_AHEAD = {"native": 8_000_000, "grpcio": 50_000_000}
"""Bytes that may be on their way to a policy that is not told them: windows (grpc's grow) and buffers of both sides."""


class Later:
    """Request messages that are given one by one; None ends them."""

    def __init__(self) -> None:
        self._queue: queue.Queue[bytes | None] = queue.Queue()
        self.put = self._queue.put

    def __iter__(self) -> Later:
        return self

    def __next__(self) -> bytes:
        if (message := self._queue.get(timeout=30)) is None:
            raise StopIteration
        return message


class Upload:
    """An upload of `LARGE` chunks that counts what the client has given away."""

    def __init__(self) -> None:
        self.given = 0

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(LARGE):
            self.given += 1
            yield CHUNK

    def rests(self, bench: Any, most: int) -> None:
        """Return when the client gives nothing more away, and check that it has kept the most of it."""
        seen: list[int] = []

        def level() -> bool:
            seen.append(self.given)
            return len(seen) > 25 and len(set(seen[-25:])) == 1

        bench.until(level, "the client is stopped")
        assert self.given * len(CHUNK) <= most


END = "end"


def request_of(bench: Any, call: int) -> list[Any]:
    """The messages that were told of a call's request so far, and END after its last one, however they were told."""
    told: list[Any] = []
    for kind, of, data, detail in bench.of(api.CALL, api.CALL_MESSAGE, api.CALL_END):
        complete = detail[1] if kind == api.CALL else None
        if of == call and (kind == api.CALL_MESSAGE or (kind == api.CALL and complete is not None)):
            told.append(data)
        if of == call and (kind == api.CALL_END or complete is True):
            told.append(END)
    return told


@pytest.mark.parametrize("half_close", ["at once", "later"])
def test_a_request_without_any_message_is_told_with_its_end(bench: Any, raw: Any, half_close: str) -> None:
    bench.policy = lambda event: bench.transport.finish(event[1], 0) if event[0] == api.CALL_END else None
    client = raw.client(bench.listen())
    stream = client.request("/test/Chat", b"" if half_close == "at once" else None, end=True)
    if half_close == "later":
        bench.wait(api.CALL)
        client.h2.end_stream(stream)
        client.flush()
    assert client.status(stream)["grpc-status"] == "0"
    assert [event[2:] for event in bench.of(api.CALL, api.CALL_END)] == [(b"", ("/test/Chat", None, ())), (b"", None)]


def test_a_call_is_told_without_its_first_message_when_that_does_not_come_at_once(bench: Any, channel: Any) -> None:
    def policy(event: Event) -> None:
        if event[0] == api.CALL:
            bench.transport.send_message(event[1], b"welcome")
        elif event[0] == api.CALL_END:
            bench.transport.finish(event[1], 0)

    bench.policy = policy
    requests = Later()
    answers = channel(bench.listen()).stream_stream("/test/Chat")(requests, timeout=30)
    assert next(answers) == b"welcome"
    for item in (b"one", b"two", None):
        requests.put(item)
    assert list(answers) == []
    call = bench.of(api.CALL)[0]
    assert call[2:] == (b"", ("/test/Chat", None, ()))
    assert request_of(bench, call[1]) == [b"one", b"two", END]


def test_an_empty_message_is_a_message(bench: Any, raw: Any) -> None:
    client = raw.client(bench.listen())
    client.request("/test/Chat", raw.message(b""), end=True)
    call = bench.wait(api.CALL)[0][1]
    bench.until(lambda: request_of(bench, call) == [b"", END], "the request is told whole")


def test_a_call_is_told_at_its_first_message_and_ended_by_its_half_close(bench: Any, channel: Any) -> None:
    requests = Later()
    requests.put(b"one")
    future = channel(bench.listen()).stream_unary("/test/Chat").future(requests, timeout=60)
    call = bench.wait(api.CALL)[0][1]
    requests.put(b"two")
    bench.until(lambda: request_of(bench, call) == [b"one", b"two"], "both messages are told")
    requests.put(None)
    bench.until(lambda: request_of(bench, call) == [b"one", b"two", END], "the end is told")
    bench.do(lambda: bench.transport.reply(call, b"both"))
    assert future.result() == b"both"


def test_an_answer_may_come_before_the_request_is_whole(bench: Any, channel: Any) -> None:
    bench.policy = lambda event: bench.transport.reply(event[1], b"enough") if event[0] == api.CALL else None
    requests = Later()
    requests.put(b"one")
    assert channel(bench.listen()).stream_unary("/test/Chat")(requests, timeout=30) == b"enough"
    requests.put(None)
    bench.settled()
    assert not bench.of(api.CALL_CANCELLED)


def test_a_paused_upload_stops_its_client_and_comes_whole_when_resumed(bench: Any, channel: Any, transport_backend: str) -> None:
    def policy(event: Event) -> None:
        if event[0] == api.CALL:
            bench.transport.pause(event[1])
        elif event[0] == api.CALL_END:
            bench.transport.reply(event[1], b"whole")

    bench.policy = policy
    upload = Upload()
    future = channel(bench.listen()).stream_unary("/test/Chat").future(iter(upload), timeout=120)
    call = bench.wait(api.CALL)[0][1]
    upload.rests(bench, MOST_AHEAD[transport_backend])
    told = len(bench.of(api.CALL_MESSAGE)) * len(CHUNK)
    assert told <= 2 * 256 * 1024, "what was read before the pause"
    bench.do(lambda: bench.transport.resume(call))
    assert future.result() == b"whole"
    *messages, last = request_of(bench, call)
    assert ([len(data) for data in messages], last) == ([len(CHUNK)] * LARGE, END)


def test_an_upload_can_be_paused_again_and_again_and_its_end_waits_too(bench: Any, channel: Any) -> None:
    """A policy that takes one message at a time, each when the last one is done with."""

    def policy(event: Event) -> None:
        if event[0] in (api.CALL, api.CALL_MESSAGE, api.CALL_END):
            bench.transport.pause(event[1])

    bench.policy = policy
    sent = [b"%d" % n for n in range(50)]
    future = channel(bench.listen()).stream_unary("/test/Chat").future(iter(sent), timeout=60)
    call = bench.wait(api.CALL)[0][1]

    def whole() -> bool:
        bench.do(lambda: bench.transport.resume(call))
        return bool(bench.of(api.CALL_END))

    bench.until(whole, "the end is told")
    assert request_of(bench, call) == [*sent, END]
    bench.do(lambda: bench.transport.reply(call, b"done"))
    assert future.result() == b"done"


def test_a_paused_call_holds_up_neither_others_nor_its_own_answer(bench: Any, channel: Any, transport_backend: str) -> None:
    def policy(event: Event) -> None:
        if event[0] == api.CALL and event[3][0] == "/test/Chat":
            bench.transport.pause(event[1])
            bench.transport.send_message(event[1], b"wait")
        elif event[0] == api.CALL:
            bench.transport.reply(event[1], event[2])

    bench.policy = policy
    opened, upload = channel(bench.listen()), Upload()
    answers = opened.stream_stream("/test/Chat")(iter(upload), timeout=60)
    assert next(answers) == b"wait"
    upload.rests(bench, MOST_AHEAD[transport_backend])
    assert [opened.unary_unary("/test/Echo")(b"%d" % n * 10_000, timeout=30) for n in range(20)] == [b"%d" % n * 10_000 for n in range(20)]
    call = bench.of(api.CALL)[0][1]
    bench.do(lambda: bench.transport.finish(call, 9, "no more"))
    with pytest.raises(grpc.RpcError) as failure:
        next(answers)
    assert failure.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    bench.settled()
    assert not bench.of(api.CALL_CANCELLED)


@pytest.mark.parametrize("how", ["cancel", "close", "limit"])
def test_the_end_of_a_paused_call_is_told_once(bench: Any, raw: Any, how: str) -> None:
    bench.policy = lambda event: bench.transport.pause(event[1]) if event[0] == api.CALL else None
    client = raw.client(bench.listen())
    stream = client.request("/test/Chat", raw.message(b"one"), end=False)
    call = bench.wait(api.CALL)[0][1]
    before = request_of(bench, call)
    assert before in ([b"one"], [])
    client.h2.send_data(stream, raw.message(b"two"))
    client.flush()
    if how == "cancel":
        client.h2.reset_stream(stream, 8)
        client.flush()
    elif how == "close":
        client.socket.close()
    else:
        bench.do(lambda: bench.transport.limit(call, 0.2))
    assert bench.wait(api.CALL_CANCELLED)[0][1] == call
    bench.do(lambda: [bench.transport.resume(call), bench.transport.pause(call)])
    bench.settled()
    assert request_of(bench, call) == before
    assert len(bench.of(api.CALL_CANCELLED)) == 1
    if how == "limit":
        assert dict(client.until(raw.events.ResponseReceived, stream).headers)["grpc-status"] == "4"


def test_a_caller_that_leaves_has_not_ended_its_request(bench: Any, channel: Any) -> None:
    method = channel(bench.listen()).stream_stream("/test/Chat")
    for count in range(1, 101):
        requests = Later()
        requests.put(b"one")
        call = method(requests, timeout=60)
        bench.wait(api.CALL, count)
        call.cancel()
        requests.put(None)
        bench.wait(api.CALL_CANCELLED, count)
    bench.settled()
    assert not bench.of(api.CALL_END)


def test_to_pause_what_is_not_streamed_or_not_there_is_a_no_op(bench: Any, channel: Any) -> None:
    def policy(event: Event) -> None:
        bench.transport.pause(event[1])
        bench.transport.resume(event[1] + 12345)
        bench.transport.pause_stream(12345)
        bench.transport.reply(event[1], event[2])

    bench.policy = policy
    assert channel(bench.listen()).unary_unary("/test/Echo")(b"m", timeout=30) == b"m"


# Client streams ---------------------------------------------------------------------------------------------------------


def messages_of(bench: Any, stream: int) -> list[bytes]:
    return [event[2] for event in bench.of(api.STREAM_MESSAGE) if event[1] == stream]


def test_a_paused_stream_stops_its_peer_and_comes_whole_when_resumed(bench: Any, peers: Any, transport_backend: str) -> None:
    peer = peers()
    bench.policy = lambda event: bench.transport.pause_stream(event[1])
    upstream = bench.transport.connect(peer.target)
    stream = bench.do(lambda: bench.transport.open(upstream, "/test/Download"))
    bench.do(lambda: bench.transport.send(stream, b"go"))
    bench.wait(api.STREAM_MESSAGE)
    seen: list[int] = []

    def level() -> bool:
        seen.append(peer.produced)
        return len(seen) > 25 and len(set(seen[-25:])) == 1

    bench.until(level, "the peer is stopped")
    assert peer.produced <= MOST_AHEAD[transport_backend]
    assert len(messages_of(bench, stream)) * 65536 <= 1 << 20, "what was read before the pause"
    bench.do(lambda: bench.transport.half_close(stream))
    bench.policy = lambda event: None
    bench.do(lambda: bench.transport.resume_stream(stream))
    closed = bench.wait(api.STREAM_CLOSED)[0]
    assert closed[3][0] == 0
    assert [len(data) for data in messages_of(bench, stream)] == [65536] * 1024


@pytest.mark.parametrize("how", ["reset", "timeout"])
def test_this_sides_end_of_a_paused_stream_is_told_at_once(bench: Any, peers: Any, how: str) -> None:
    def events(*kinds: int) -> list[Event]:
        return [event for event in bench.of(*kinds) if event[1] == stream]

    def opened(timeout: float | None) -> int:
        stream = int(bench.transport.open(upstream, "/test/Echo", timeout=timeout))
        bench.transport.send(stream, b"one")
        return stream

    upstream = bench.transport.connect(peers().target)
    for seconds in DEADLINES if how == "timeout" else (None,):
        stream = bench.do(functools.partial(opened, seconds))
        bench.until(lambda: bool(events(api.STREAM_MESSAGE, api.STREAM_CLOSED)), "the message is back, or the time is over")
        if events(api.STREAM_MESSAGE):
            break
    bench.do(lambda: bench.transport.pause_stream(stream))
    if how == "reset":
        bench.do(lambda: bench.transport.reset(stream))
    bench.until(lambda: bool(events(api.STREAM_CLOSED)), "the end is told")
    assert events(api.STREAM_CLOSED)[0][3][0] == (1 if how == "reset" else 4)
    bench.do(lambda: bench.transport.resume_stream(stream))
    bench.settled()
    assert len(events(api.STREAM_CLOSED)) == 1


def test_the_peers_end_is_told_after_its_messages(bench: Any, peers: Any) -> None:
    peer = peers()
    gone = threading.Event()
    upstream = bench.transport.connect(peer.target)
    stream = bench.do(lambda: bench.transport.open(upstream, "/test/Echo"))
    bench.do(lambda: bench.transport.send(stream, b"first"))
    bench.wait(api.STREAM_MESSAGE)
    bench.do(lambda: bench.transport.pause_stream(stream))
    bench.do(lambda: [bench.transport.send(stream, b"%d" % n) for n in range(20)])
    bench.do(lambda: bench.transport.half_close(stream))
    bench.do(lambda: bench.transport.after(0.3, gone.set))
    assert gone.wait(30)
    bench.settled()
    assert not bench.of(api.STREAM_CLOSED)
    bench.do(lambda: bench.transport.resume_stream(stream))
    assert bench.wait(api.STREAM_CLOSED)[0][3][0] == 0
    assert messages_of(bench, stream) == [b"first", *(b"%d" % n for n in range(20))]
