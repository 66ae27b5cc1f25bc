"""Answers given piece by piece: each piece arrives at once, nobody is told anything twice, and a reader who does not read costs no memory."""

from __future__ import annotations

import http.client
import random
import socket
import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event
from tests.cloudstate_core.conftest import DEADLINES

PIECE = bytes(1 << 20)


def begun(bench: Any, status: int = 200, headers: Any = ()) -> Callable[[Event], None]:
    """A policy: begin every answer, and leave the rest to the test."""

    def policy(event: Event) -> None:
        if event[0] == api.HTTP:
            bench.transport.respond_begin(event[1], status, headers)

    return policy


def asked(port: int, method: str = "GET", version: str = "1.1") -> socket.socket:
    """A connection on which one request was sent."""
    link = socket.create_connection(("127.0.0.1", port), timeout=30)
    link.sendall(f"{method} / HTTP/{version}\r\nHost: a\r\n\r\n".encode())
    return link


def until(link: socket.socket, end: bytes) -> bytes:
    """What comes up to `end`; less when the connection ends first."""
    data = b""
    while not data.endswith(end) and (more := link.recv(1)):
        data += more
    return data


def pieces(bench: Any, call: int, *data: bytes) -> None:
    bench.do(lambda: [bench.transport.respond_data(call, piece) for piece in data])


def end(bench: Any, call: int) -> None:
    bench.do(lambda: bench.transport.respond_end(call))


@pytest.mark.parametrize("peek", [True, False])
def test_each_piece_arrives_at_once_and_the_connection_is_used_again(bench: Any, peek: bool) -> None:
    bench.policy = begun(bench, 206, [("content-type", b"text/event-stream"), ("x-a", b"1")])
    link = http.client.HTTPConnection("127.0.0.1", bench.listen(http_only=True, peek=peek), timeout=30)
    for count in (1, 2):
        link.request("GET", "/")
        answer = link.getresponse()
        call = bench.wait(api.HTTP, count)[-1][1]
        assert (answer.status, answer.headers["content-type"], answer.headers["x-a"]) == (206, "text/event-stream", "1")
        assert (answer.headers["transfer-encoding"], "content-length" in answer.headers) == ("chunked", False)
        for n in range(20):
            pieces(bench, call, b"", b"data: %d\n" % n, b"\n")
            assert answer.readline() + answer.readline() == b"data: %d\n\n" % n
        end(bench, call)
        assert answer.read() == b""
    link.close()
    bench.settled()
    assert not bench.of(api.CALL_CANCELLED)
    assert bench.transport.stats().open_calls == 0


def test_an_answer_begun_and_ended_in_one_turn_is_whole(bench: Any) -> None:
    def policy(event: Event) -> None:
        if event[0] == api.HTTP:
            bench.transport.respond_begin(event[1], 200)
            for piece in sent:
                bench.transport.respond_data(event[1], piece)
            bench.transport.respond_end(event[1])
            bench.transport.respond_data(event[1], b"late")
            bench.transport.respond(event[1], 500, [], b"late")

    sent = [b"a", PIECE, b"", b"z" * 100_000]
    bench.policy = policy
    link = http.client.HTTPConnection("127.0.0.1", bench.listen(http_only=True), timeout=30)
    for _ in range(3):
        link.request("POST", "/", body=b"x" * 1000)
        answer = link.getresponse()
        assert (answer.status, answer.read()) == (200, b"".join(sent))
    bench.settled()
    assert not bench.of(api.CALL_CANCELLED)


@pytest.mark.parametrize("seed", range(3))
def test_the_body_is_the_pieces_however_they_are_cut_and_timed(bench: Any, seed: int) -> None:
    chance = random.Random(seed)
    bench.policy = begun(bench)
    link = http.client.HTTPConnection("127.0.0.1", bench.listen(http_only=True), timeout=30)
    for count in range(1, 11):
        link.request("GET", "/")
        answer = link.getresponse()
        call = bench.wait(api.HTTP, count)[-1][1]
        sent = [chance.randbytes(chance.choice([0, 1, 10, 1000, 100_000])) for _ in range(chance.randrange(20))]
        left = list(sent)
        while left:
            turn = chance.randint(1, len(left))
            pieces(bench, call, *left[:turn])
            del left[:turn]
        end(bench, call)
        assert answer.read() == b"".join(sent)
    bench.settled()
    assert not bench.of(api.CALL_CANCELLED)


def test_a_content_length_of_policy_takes_the_place_of_chunks(bench: Any) -> None:
    bench.policy = begun(bench, 200, [("content-length", b"6")])
    link = http.client.HTTPConnection("127.0.0.1", bench.listen(http_only=True), timeout=30)
    link.request("GET", "/")
    answer = link.getresponse()
    call = bench.of(api.HTTP)[0][1]
    pieces(bench, call, b"abc")
    assert answer.read(3) == b"abc"
    bench.do(lambda: [bench.transport.respond_data(call, b"def"), bench.transport.respond_end(call)])
    assert (answer.headers["content-length"], answer.headers["transfer-encoding"], answer.read()) == ("6", None, b"def")


def test_http_1_0_is_answered_until_the_connection_ends(bench: Any) -> None:
    bench.policy = begun(bench)
    link = asked(bench.listen(http_only=True), version="1.0")
    call = bench.wait(api.HTTP)[0][1]
    assert b"chunked" not in until(link, b"\r\n\r\n").lower()
    pieces(bench, call, b"one\n")
    assert until(link, b"\n") == b"one\n"
    pieces(bench, call, b"two")
    end(bench, call)
    assert until(link, b"never") == b"two"


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_an_answer_without_a_body_has_no_reader(bench: Any, method: str, status: int) -> None:
    bench.policy = begun(bench, status)
    link = http.client.HTTPConnection("127.0.0.1", bench.listen(http_only=True), timeout=30)
    for count in (1, 2):
        link.request(method, "/")
        answer = link.getresponse()
        assert (answer.status, answer.read()) == (status, b"")
        assert len(bench.wait(api.CALL_CANCELLED, count)) == count
        pieces(bench, bench.of(api.HTTP)[-1][1], b"nobody reads this")
    end(bench, bench.of(api.HTTP)[-1][1])
    bench.settled()
    assert [event[1] for event in bench.of(api.CALL_CANCELLED)] == [event[1] for event in bench.of(api.HTTP)]
    assert bench.transport.stats().open_calls == 0


def test_an_answer_without_a_body_that_is_ended_is_not_told(bench: Any) -> None:
    def policy(event: Event) -> None:
        if event[0] == api.HTTP:
            bench.transport.respond_begin(event[1], 200)
            bench.transport.respond_data(event[1], b"not for you")
            bench.transport.respond_end(event[1])

    bench.policy = policy
    link = http.client.HTTPConnection("127.0.0.1", bench.listen(http_only=True), timeout=30)
    for _ in range(2):
        link.request("HEAD", "/")
        assert link.getresponse().read() == b""
    bench.settled()
    assert not bench.of(api.CALL_CANCELLED)


def test_a_caller_that_leaves_amid_its_answer_is_told_once(bench: Any) -> None:
    bench.policy = begun(bench)
    link = asked(bench.listen(http_only=True))
    call = bench.wait(api.HTTP)[0][1]
    pieces(bench, call, b"one\n")
    assert until(link, b"one\n")
    link.close()
    assert bench.wait(api.CALL_CANCELLED)[0][1] == call
    pieces(bench, call, b"late")
    end(bench, call)
    bench.settled()
    assert len(bench.of(api.CALL_CANCELLED)) == 1
    assert bench.transport.stats().open_calls == 0


def flood(bench: Any, call: int, count: int) -> None:
    """Send `count` MiB in turns of one each, so that what can go out goes out in between."""
    for _ in range(count):
        pieces(bench, call, PIECE)


def test_a_reader_who_does_not_read_is_cut_and_told_once(bench: Any) -> None:
    bench.policy = begun(bench)
    link = asked(bench.listen(http_only=True))
    call = bench.wait(api.HTTP)[0][1]
    flood(bench, call, 128)
    assert [event[1] for event in bench.wait(api.CALL_CANCELLED)] == [call]
    bench.until(lambda: bench.transport.stats().open_calls == 0, "the call is forgotten")
    received = 0
    try:
        while more := link.recv(1 << 20):
            received += len(more)
    except ConnectionError:
        pass
    assert received < 80 << 20
    bench.settled()
    assert len(bench.of(api.CALL_CANCELLED)) == 1


def test_a_slow_reader_gets_every_byte(bench: Any) -> None:
    bench.policy = begun(bench)
    link = http.client.HTTPConnection("127.0.0.1", bench.listen(http_only=True), timeout=30)
    link.request("GET", "/")
    answer = link.getresponse()
    call = bench.of(api.HTTP)[0][1]
    for _ in range(10):
        flood(bench, call, 20)
        assert len(answer.read(20 << 20)) == 20 << 20
    end(bench, call)
    assert answer.read() == b""
    bench.settled()
    assert not bench.of(api.CALL_CANCELLED)


@pytest.mark.parametrize("when", ["before", "with", "after"])
def test_a_limit_cuts_an_answer_that_has_begun(bench: Any, when: str) -> None:
    def begin(call: int) -> None:
        bench.transport.respond_begin(call, 200)
        bench.transport.respond_data(call, b"hello")

    def policy(event: Event) -> None:
        if event[0] != api.HTTP:
            return
        if when != "after":
            bench.transport.limit(event[1], seconds)
        if when == "before":
            bench.transport.post(lambda: begin(event[1]))
        else:
            begin(event[1])

    def received() -> bytes:
        """What came of the answer's body before the cut; b'' also where the limit has passed before the answer had begun."""
        answer = http.client.HTTPResponse(asked(port))
        try:
            answer.begin()
            if when == "after":
                assert answer.read(5) == b"hello"
                bench.do(lambda: bench.transport.limit(bench.of(api.HTTP)[-1][1], seconds))
            answer.read()
        except http.client.IncompleteRead as cut:
            return b"hello" if when == "after" else cut.partial
        except ConnectionError:
            return b""
        assert answer.status == 504, "it was not cut"
        return b""

    bench.policy = policy
    port = bench.listen(http_only=True)
    for seconds in DEADLINES:  # noqa: B007 (policy sets it)
        if received() == b"hello":
            break
    else:
        pytest.fail("the answer never began before its limit")
    calls = [event[1] for event in bench.of(api.HTTP)]
    bench.wait(api.CALL_CANCELLED, len(calls))
    bench.settled()
    assert [event[1] for event in bench.of(api.CALL_CANCELLED)] == calls


def test_an_answer_that_cannot_be_made_whole_is_cut(bench: Any) -> None:
    bench.policy = begun(bench)
    link = asked(bench.listen(http_only=True))
    call = bench.wait(api.HTTP)[0][1]
    pieces(bench, call, b"half")
    answer = http.client.HTTPResponse(link)
    answer.begin()
    assert answer.read(4) == b"half"
    bench.do(lambda: bench.transport.limit(call, 0.0))
    with pytest.raises(http.client.IncompleteRead):
        answer.read()
    assert bench.wait(api.CALL_CANCELLED)[0][1] == call


@pytest.mark.needs("http1")
def test_a_drain_waits_for_an_answer_that_has_begun(bench: Any) -> None:
    bench.policy = begun(bench)
    link = http.client.HTTPConnection("127.0.0.1", bench.listen(), timeout=30)
    link.request("GET", "/")
    answer = link.getresponse()
    call = bench.of(api.HTTP)[0][1]
    done = threading.Event()
    bench.do(lambda: bench.transport.drain(60.0, done.set))
    assert not done.wait(0.3)
    pieces(bench, call, b"kept")
    end(bench, call)
    assert answer.read() == b"kept"
    assert done.wait(30)


def test_pieces_before_the_beginning_are_no_ops_and_a_whole_answer_can_follow(bench: Any) -> None:
    def policy(event: Event) -> None:
        if event[0] == api.HTTP:
            bench.transport.respond_data(event[1], b"nothing")
            bench.transport.respond_end(event[1])
            bench.transport.respond(event[1], 200, [], b"whole")

    bench.policy = policy
    link = http.client.HTTPConnection("127.0.0.1", bench.listen(http_only=True), timeout=30)
    link.request("GET", "/")
    assert link.getresponse().read() == b"whole"


def test_a_grpc_call_is_not_answered_as_http(bench: Any, channel: Any) -> None:
    def policy(event: Event) -> None:
        bench.transport.respond_begin(event[1], 200)
        bench.transport.respond_data(event[1], b"x")
        bench.transport.respond_end(event[1])
        bench.transport.reply(event[1], b"reply")

    bench.policy = policy
    assert channel(bench.listen()).unary_unary("/test/Echo")(b"m", timeout=30) == b"reply"


# HTTP/2 -----------------------------------------------------------------------------------------------------------------


def http2(client: Any, method: str = "GET", headers: tuple[Any, ...] = (), body: bytes | None = None) -> int:
    """Ask by plain HTTP/2."""
    stream = int(client.h2.get_next_available_stream_id())
    block = [(":method", method), (":scheme", "http"), (":path", "/a?b=c"), (":authority", "me"), *headers]
    client.h2.send_headers(stream, block, end_stream=body is None)
    if body is not None:
        client.h2.send_data(stream, body, end_stream=True)
    client.flush()
    return stream


@pytest.mark.needs("http2_plain")
def test_each_piece_arrives_at_once_over_http2(bench: Any, raw: Any) -> None:
    bench.policy = begun(bench, 206, [("x-a", b"1")])
    client = raw.client(bench.listen())
    stream = http2(client)
    assert dict(client.until(raw.events.ResponseReceived, stream).headers) == {":status": "206", "x-a": "1"}
    call = bench.of(api.HTTP)[0][1]
    for n in range(20):
        pieces(bench, call, b"", b"%d" % n)
        while len(client.data()) <= n:
            assert client.pump(ack=True)
        assert client.data()[n].data == b"%d" % n
    end(bench, call)
    assert client.until(raw.events.StreamEnded, stream)
    bench.settled()
    assert not bench.of(api.CALL_CANCELLED)


@pytest.mark.needs("http2_plain")
def test_an_answer_without_a_body_has_no_reader_over_http2(bench: Any, raw: Any) -> None:
    bench.policy = begun(bench)
    client = raw.client(bench.listen())
    stream = http2(client, "HEAD")
    assert client.status(stream)[":status"] == "200"
    assert not client.data()
    assert bench.wait(api.CALL_CANCELLED)[0][1] == bench.of(api.HTTP)[0][1]


@pytest.mark.needs("http2_plain")
@pytest.mark.parametrize("how", ["reset", "closed"])
def test_a_caller_that_leaves_amid_its_answer_is_told_once_over_http2(bench: Any, raw: Any, how: str) -> None:
    bench.policy = begun(bench)
    client = raw.client(bench.listen())
    stream = http2(client)
    assert client.until(raw.events.ResponseReceived, stream)
    if how == "reset":
        client.h2.reset_stream(stream, 8)
        client.flush()
    else:
        client.socket.close()
    assert bench.wait(api.CALL_CANCELLED)[0][1] == bench.of(api.HTTP)[0][1]
    bench.settled()
    assert len(bench.of(api.CALL_CANCELLED)) == 1


@pytest.mark.needs("http2_plain")
def test_a_limit_resets_an_answer_that_has_begun_over_http2(bench: Any, raw: Any) -> None:
    def policy(event: Event) -> None:
        if event[0] == api.HTTP:
            bench.transport.limit(event[1], 0.3)
            bench.transport.respond_begin(event[1], 200)

    bench.policy = policy
    client = raw.client(bench.listen())
    assert "reset" in client.status(http2(client))
    assert bench.wait(api.CALL_CANCELLED)[0][1] == bench.of(api.HTTP)[0][1]


@pytest.mark.needs("http2_plain")
def test_a_reader_who_does_not_read_is_cut_over_http2_and_others_are_served(bench: Any, raw: Any) -> None:
    bench.policy = begun(bench)
    client = raw.client(bench.listen())
    slow = http2(client)
    assert client.until(raw.events.ResponseReceived, slow)
    call = bench.of(api.HTTP)[0][1]
    flood(bench, call, 70)
    assert [event[1] for event in bench.wait(api.CALL_CANCELLED)] == [call]
    bench.policy = lambda event: bench.transport.respond(event[1], 200, [], b"")
    assert client.status(http2(client))[":status"] == "200"
    assert client.status(slow) == {"reset": "11"}


@pytest.mark.needs("http2_plain")
def test_a_drain_waits_for_an_answer_that_has_begun_over_http2(bench: Any, raw: Any) -> None:
    bench.policy = begun(bench)
    client = raw.client(bench.listen())
    stream = http2(client)
    assert client.until(raw.events.ResponseReceived, stream)
    call = bench.of(api.HTTP)[0][1]
    done = threading.Event()
    bench.do(lambda: bench.transport.drain(60.0, done.set))
    assert not done.wait(0.3)
    end(bench, call)
    assert done.wait(30)
    assert not bench.of(api.CALL_CANCELLED)


# gRPC -------------------------------------------------------------------------------------------------------------------


def test_headers_go_out_with_the_first_message(bench: Any, channel: Any) -> None:
    def policy(event: Event) -> None:
        if event[0] == api.CALL:
            bench.transport.send_message(event[1], b"one", [("x-out", b"1"), ("x-out", b"2"), ("x-out-bin", b"\x00\xfe")])
            bench.transport.send_message(event[1], b"two", [("x-late", b"1")])
            more.append(event[1])

    more: list[int] = []
    bench.policy = policy
    answers = channel(bench.listen()).unary_stream("/test/Echo")(b"m", timeout=30)
    assert next(answers) == b"one"
    initial = list(answers.initial_metadata())
    assert [value for name, value in initial if name == "x-out"] == ["1", "2"]
    assert dict(initial)["x-out-bin"] == b"\x00\xfe"
    assert "x-late" not in dict(initial)
    bench.do(lambda: bench.transport.finish(more[0], 9, "no more", [("x-trailer", b"3")]))
    assert next(answers) == b"two"
    with pytest.raises(grpc.RpcError) as failure:
        next(answers)
    assert (failure.value.code(), failure.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "no more")
    assert dict(failure.value.trailing_metadata())["x-trailer"] == "3"


def test_a_grpc_reader_who_does_not_read_is_cut_and_told_once(bench: Any, raw: Any) -> None:
    def policy(event: Event) -> None:
        if event[0] == api.CALL:
            bench.transport.send_message(event[1], b"first")

    bench.policy = policy
    client = raw.client(bench.listen())
    stream = client.request(body=raw.message(b"m"))
    call = bench.wait(api.CALL)[0][1]
    for _ in range(80):
        bench.do(lambda: bench.transport.send_message(call, PIECE))
    assert [event[1] for event in bench.wait(api.CALL_CANCELLED)] == [call]
    ended = client.status(stream)
    assert ended.get("reset") == "11" or ended["grpc-status"] == "8", ended
    bench.do(lambda: bench.transport.finish(call, 0))
    bench.settled()
    assert len(bench.of(api.CALL_CANCELLED)) == 1
    assert bench.transport.stats().open_calls == 0
