"""`limit`: a call ends in time wherever it is, with the status its caller understands, and is told once."""

from __future__ import annotations

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

LIMIT = 0.3


def limiting(bench: Any, upstream: int | None = None) -> Any:
    def policy(event: Event) -> None:
        if event[0] in (api.CALL, api.HTTP):
            bench.transport.limit(event[1], LIMIT)
            if upstream is not None:
                bench.transport.forward(event[1], upstream)

    return policy


def only(bench: Any, kind: int) -> Any:
    found = bench.wait(kind)
    bench.settled()
    assert [len(bench.of(api.CALL_CANCELLED, api.FORWARDED)), len(found)] == [1, 1]
    return found[0][3]


@pytest.mark.parametrize("peek", [True, False])
def test_a_call_that_waits_for_policy_ends(bench: Any, channel: Any, peek: bool) -> None:
    bench.policy = limiting(bench)
    began = time.monotonic()
    with pytest.raises(grpc.RpcError) as late:
        channel(bench.listen(peek=peek)).unary_unary("/test/Echo")(b"m", timeout=30)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert LIMIT <= time.monotonic() - began < 10
    only(bench, api.CALL_CANCELLED)


def test_a_forwarded_call_ends_at_the_upstream_too_and_is_not_told_of_the_limit(bench: Any, peers: Any, channel: Any) -> None:
    peer = peers()
    bench.policy = limiting(bench, bench.transport.connect(peer.target))
    with pytest.raises(grpc.RpcError) as late:
        channel(bench.listen(peek=True)).unary_unary("/test/Slow")(b"m", timeout=30)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert only(bench, api.FORWARDED)[0] is Outcome.CANCELLED
    assert peer.cancelled.wait(30)


def test_without_a_deadline_of_the_caller_the_upstream_gets_none(bench: Any, raw: Any) -> None:
    def behaviour(state: Any, event: Any) -> None:
        if isinstance(event, raw.events.RequestReceived):
            seen.append(dict(event.headers))
            state.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "0")], end_stream=True)

    seen: list[dict[str, str]] = []
    bench.policy = limiting(bench, bench.transport.connect(raw.server(behaviour).target))
    client = raw.client(bench.listen(peek=True))
    assert client.status(client.request("/test/Echo", raw.message(b"m")))["grpc-status"] == "0"
    assert "grpc-timeout" not in seen[0]


def test_an_answer_that_has_begun_ends_with_the_status(bench: Any, peers: Any, channel: Any) -> None:
    bench.policy = limiting(bench, bench.transport.connect(peers().target))
    call = channel(bench.listen(peek=True)).stream_stream("/test/Greet")(forever(done := threading.Event()), timeout=30)
    try:
        assert next(call) == b"hello"
        with pytest.raises(grpc.RpcError) as late:
            list(call)
    finally:
        done.set()
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert only(bench, api.FORWARDED)[0] is Outcome.CANCELLED


def forever(done: threading.Event) -> Iterator[bytes]:
    """Request messages of a stream that stays open until the test is over."""
    yield b"m"
    done.wait(30)


def test_a_call_that_ends_in_time_does_not_hear_of_it(bench: Any, peers: Any, channel: Any) -> None:
    bench.policy = limiting(bench, bench.transport.connect(peers().target))
    port = bench.listen(peek=True)
    assert channel(port).unary_unary("/test/Echo")(b"m", timeout=30) == b"m"
    over = threading.Event()
    bench.do(lambda: bench.transport.after(LIMIT * 2, over.set))
    assert over.wait(30)
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
    """An HTTP/1.1 server: '/silent' gets nothing, everything else a first chunk and no more."""

    def serve(link: socket.socket) -> None:
        with link:
            if b"/silent" not in link.recv(65536):
                link.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
            ended.append(link.recv(1))  # b'' when the front closes

    def accept() -> None:
        try:
            while True:
                serve(listener.accept()[0])
        except OSError:
            pass

    ended: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], ended


@pytest.mark.needs("http1")
@pytest.mark.parametrize("peek", [True, False])
def test_http1_is_504_before_its_answer_and_cut_after_it_has_begun(bench: Any, half_answering: Any, peek: bool) -> None:
    port, ended = half_answering
    bench.policy = limiting(bench, bench.transport.connect(f"127.0.0.1:{port}"))
    front = bench.listen(peek=peek)
    link = http.client.HTTPConnection("127.0.0.1", front, timeout=30)
    link.request("GET", "/silent")
    assert link.getresponse().status == 504
    link = http.client.HTTPConnection("127.0.0.1", front, timeout=30)
    link.request("GET", "/")
    answer = link.getresponse()
    assert answer.status == 200
    with pytest.raises(http.client.IncompleteRead) as cut:
        answer.read()
    assert cut.value.partial == b"hello"
    bench.until(lambda: ended == [b"", b""], "both upstream connections are closed")
    assert [event[3][0] for event in bench.wait(api.FORWARDED, 2)] == [Outcome.CANCELLED] * 2
    assert bench.transport.stats().open_calls == 0
