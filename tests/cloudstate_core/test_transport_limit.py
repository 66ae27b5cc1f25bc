"""`limit`: a call ends in time wherever it is, with the status its caller understands, and is told once."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, Outcome
from tests.cloudstate_core.conftest import DEADLINES

LIMIT = 0.3


def limiting(bench: Any, upstream: int | None = None, seconds: float = LIMIT) -> Any:
    def policy(event: Event) -> None:
        if event[0] in (api.CALL, api.HTTP):
            bench.transport.limit(event[1], seconds)
            if upstream is not None:
                bench.transport.forward(event[1], upstream)

    return policy


def only(bench: Any, kind: int) -> Any:
    """How the last call ended, once each has ended, once and in this way."""
    calls = [event[1] for event in bench.of(api.CALL, api.HTTP)]
    found = bench.wait(kind, len(calls))
    bench.settled()
    assert sorted(event[1] for event in bench.of(api.CALL_CANCELLED, api.FORWARDED)) == calls
    return next(event[3] for event in found if event[1] == calls[-1])


@pytest.mark.parametrize("peek", [True, False])
def test_a_call_that_waits_for_policy_ends(bench: Any, channel: Any, peek: bool) -> None:
    bench.policy = limiting(bench)
    began = time.monotonic()
    with pytest.raises(grpc.RpcError) as late:
        channel(bench.listen(peek=peek)).unary_unary("/test/Echo")(b"m")  # without a deadline of its own
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - began >= LIMIT
    only(bench, api.CALL_CANCELLED)


def test_a_forwarded_call_ends_at_the_upstream_too_and_is_not_told_of_the_limit(bench: Any, peers: Any, channel: Any) -> None:
    peer = peers()
    upstream = bench.transport.connect(peer.target)
    method = channel(bench.listen(peek=True)).unary_unary("/test/Slow")
    for seconds in DEADLINES:
        bench.policy = limiting(bench, upstream, seconds)
        with pytest.raises(grpc.RpcError) as late:
            method(b"m")
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        if peer.seen:  # else it has passed on the way there
            break
    assert only(bench, api.FORWARDED)[0] is Outcome.CANCELLED
    assert peer.cancelled.wait(30)


def test_without_a_deadline_of_the_caller_the_upstream_gets_none(bench: Any, raw: Any) -> None:
    def behaviour(state: Any, event: Any) -> None:
        if isinstance(event, raw.events.RequestReceived):
            seen.append(dict(event.headers))
            state.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "0")], end_stream=True)

    seen: list[dict[str, str]] = []
    bench.policy = limiting(bench, bench.transport.connect(raw.server(behaviour).target), 60.0)
    client = raw.client(bench.listen(peek=True))
    assert client.status(client.request("/test/Echo", raw.message(b"m")))["grpc-status"] == "0"
    assert "grpc-timeout" not in seen[0]


def test_an_answer_that_has_begun_ends_with_the_status(bench: Any, peers: Any, channel: Any) -> None:
    upstream = bench.transport.connect(peers().target)
    method = channel(bench.listen(peek=True)).stream_stream("/test/Greet")
    answers: list[bytes] = []
    for seconds in DEADLINES:
        bench.policy = limiting(bench, upstream, seconds)
        done = threading.Event()
        try:
            with pytest.raises(grpc.RpcError) as late:
                answers.extend(method(forever(done)))
        finally:
            done.set()
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        if answers:  # else it has passed before the answer began
            break
    assert answers[0] == b"hello"
    assert only(bench, api.FORWARDED)[0] is Outcome.CANCELLED


def forever(done: threading.Event) -> Iterator[bytes]:
    """Request messages of a stream that stays open until the test is over."""
    yield b"m"
    done.wait(60)


def test_a_call_that_ends_in_time_does_not_hear_of_it(bench: Any, peers: Any, channel: Any) -> None:
    upstream = bench.transport.connect(peers().target)
    method = channel(bench.listen(peek=True)).unary_unary("/test/Echo")
    answer = b""
    for seconds in DEADLINES:
        bench.policy = limiting(bench, upstream, seconds)
        with contextlib.suppress(grpc.RpcError):
            answer = method(b"m")
            break
    assert answer == b"m"
    over = threading.Event()
    bench.do(lambda: bench.transport.after(seconds * 2, over.set))
    assert over.wait(60)
    assert only(bench, api.FORWARDED) == (Outcome.DELIVERED, "0")


@pytest.mark.parametrize("peek", [True, False])
def test_plain_http_that_waits_is_504(bench: Any, peek: bool) -> None:
    bench.policy = limiting(bench)
    link = http.client.HTTPConnection("127.0.0.1", bench.listen(peek=peek, http_only=True), timeout=30)
    link.request("GET", "/")
    assert link.getresponse().status == 504
    only(bench, api.CALL_CANCELLED)


@pytest.mark.needs("http2_plain")
@pytest.mark.parametrize("peek", [True, False])
def test_plain_http2_is_504_before_its_answer(bench: Any, raw: Any, peek: bool) -> None:
    bench.policy = limiting(bench, bench.transport.connect(raw.server(lambda state, event: None).target))
    client = raw.client(bench.listen(peek=peek))
    stream = client.h2.get_next_available_stream_id()
    client.h2.send_headers(stream, [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "me")], end_stream=True)
    client.flush()
    assert client.status(stream)[":status"] == "504"
    assert only(bench, api.FORWARDED)[0] is Outcome.CANCELLED


@pytest.fixture
def half_answering() -> Iterator[Any]:
    """An HTTP/1.1 server: '/silent' gets nothing, everything else a first chunk and no more. Its port, what it was asked, and what ended each."""

    def serve(link: socket.socket) -> None:
        with link, contextlib.suppress(OSError):
            if not (request := link.recv(65536)):
                return  # the limit has passed before the request was sent
            asked.append(request)
            if b"/silent" not in request:
                link.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
            ended.append(link.recv(1))  # b'' when the front closes

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                serve(listener.accept()[0])

    asked: list[bytes] = []
    ended: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], asked, ended


@pytest.mark.needs("http1")
@pytest.mark.parametrize("peek", [True, False])
def test_http1_is_504_before_its_answer_and_cut_after_it_has_begun(bench: Any, half_answering: Any, peek: bool) -> None:
    port, asked, ended = half_answering
    upstream, front = bench.transport.connect(f"127.0.0.1:{port}"), bench.listen(peek=peek)

    def ask(path: str, seconds: float) -> http.client.HTTPResponse:
        bench.policy = limiting(bench, upstream, seconds)
        link = http.client.HTTPConnection("127.0.0.1", front, timeout=30)
        link.request("GET", path)
        return link.getresponse()

    for seconds in DEADLINES:
        assert ask("/silent", seconds).status == 504
        if asked:  # else it has passed on the way there
            break
    got = b""
    for seconds in DEADLINES:
        answer = ask("/", seconds)
        if answer.status == 200:
            with pytest.raises(http.client.IncompleteRead) as cut:
                answer.read()
            got = cut.value.partial
        if got:  # else it has passed before the answer began
            break
    assert got == b"hello"
    bench.until(lambda: len(ended) == len(asked) >= 2, "the upstream connections are closed")
    assert set(ended) == {b""}
    assert only(bench, api.FORWARDED)[0] is Outcome.CANCELLED
    assert {event[3][0] for event in bench.of(api.FORWARDED)} == {Outcome.CANCELLED}
    assert bench.transport.stats().open_calls == 0
