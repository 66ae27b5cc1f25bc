"""Server side of the transport: what a grpcio client sees, and what policy is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event
from tests.cloudstate_core.conftest import DEADLINES


@pytest.mark.parametrize("size", [0, 1, 100, 16384, 65535, 65536, 10_000_000])
def test_a_unary_call_brings_every_byte_both_ways(bench: Any, channel: Any, size: int) -> None:
    bench.policy = bench.echo
    payload = bytes(range(256)) * (size // 256 + 1)
    assert channel(bench.listen()).unary_unary("/test/Echo")(payload[:size], timeout=30) == payload[:size]
    bench.settled()
    assert [event[0] for event in bench.events] == [api.CALL]
    assert bench.events[0][3][:2] == ("/test/Echo", True)


def test_a_burst_that_the_callback_thread_has_not_seen_yet_is_answered_whole(bench: Any, channel: Any) -> None:
    """While policy is busy thousands of requests pile up before it; none may be lost for that."""
    busy = threading.Event()
    bench.policy = bench.echo
    port = bench.listen()
    method = channel(port).unary_unary("/test/Echo")
    assert method(b"first", timeout=30) == b"first"
    bench.transport.post(lambda: busy.wait(30) and None)
    waiting = [method.future(b"%d" % n, timeout=100) for n in range(4000)]
    busy.set()
    assert [future.result() for future in waiting] == [b"%d" % n for n in range(4000)]


def test_a_thousand_calls_are_open_at_once_on_one_connection(bench: Any, channel: Any) -> None:
    port = bench.listen()
    method = channel(port).unary_unary("/test/Echo")
    futures = [method.future(str(n).encode(), timeout=60) for n in range(1000)]
    calls = bench.wait(api.CALL, 1000)
    assert bench.transport.stats().open_calls == 1000
    bench.do(lambda: [bench.transport.reply(call, data) for _, call, data, _ in reversed(calls)])
    assert [future.result() for future in futures] == [str(n).encode() for n in range(1000)]
    bench.until(lambda: bench.transport.stats().open_calls == 0, "no open call is left")
    assert len(bench.threads) == 1
    assert len({call for _, call, _, _ in calls}) == 1000


def test_headers_come_whole_and_picked_in_order(bench: Any, channel: Any) -> None:
    seen: list[Any] = []

    def policy(event: Event) -> None:
        seen.append(bench.transport.headers(event[1]))
        bench.transport.reply(event[1], b"", [("x-out", b"1"), ("x-out-bin", b"\x00\xfe")])

    bench.policy = policy
    port = bench.listen(pick=("x-b", "absent", "x-bin-bin"))
    sent = (("x-a", "1"), ("x-a", "2"), ("x-b", "b"), ("x-bin-bin", b"\x00\xff\x80"))
    _, call = channel(port).unary_unary("/test/Echo").with_call(b"m", metadata=sent, timeout=30)
    got = [(name, value) for name, value in seen[0] if name.startswith("x-")]
    assert got == [("x-a", b"1"), ("x-a", b"2"), ("x-b", b"b"), ("x-bin-bin", b"\x00\xff\x80")]
    assert not [name for name, _ in seen[0] if name.startswith(":")]
    assert bench.events[0][3][2] == (b"b", b"", b"\x00\xff\x80")
    assert dict(call.initial_metadata())["x-out"] == "1"
    assert dict(call.initial_metadata())["x-out-bin"] == b"\x00\xfe"


@pytest.mark.needs("authority")
def test_the_authority_can_be_picked(bench: Any, raw: Any) -> None:
    bench.policy = bench.echo
    client = raw.client(bench.listen(pick=(":authority",)))
    assert client.status(client.request(body=raw.message(b"m")))["grpc-status"] == "0"
    assert bench.events[0][3][2] == (b"cart.example.com",)


def test_headers_of_a_call_that_is_over_are_empty(bench: Any, channel: Any) -> None:
    bench.policy = bench.echo
    channel(bench.listen()).unary_unary("/test/Echo")(b"m", timeout=30)
    assert bench.do(lambda: bench.transport.headers(bench.events[0][1])) == []
    assert bench.do(lambda: bench.transport.headers(123456)) == []


@pytest.mark.parametrize("status", [code.value[0] for code in grpc.StatusCode if code.value[0]])
def test_a_call_fails_with_its_status_message_and_trailers(bench: Any, channel: Any, status: int) -> None:
    text = "nicht möglich: 100% \n ☃"
    bench.policy = lambda event: bench.transport.finish(event[1], status, text, [("x-why", b"because"), ("x-why-bin", b"\x00\x80")])
    with pytest.raises(grpc.RpcError) as failure:
        channel(bench.listen()).unary_unary("/test/Echo")(b"m", timeout=30)
    assert failure.value.code().value[0] == status
    assert failure.value.details() == text
    trailers = dict(failure.value.trailing_metadata())
    assert (trailers["x-why"], trailers["x-why-bin"]) == ("because", b"\x00\x80")


def test_a_failure_is_trailers_only_and_percent_encoded_on_the_wire(bench: Any, raw: Any) -> None:
    bench.policy = lambda event: bench.transport.finish(event[1], 9, "50% ü")
    client = raw.client(bench.listen())
    stream = client.request(body=raw.message(b"m"))
    headers = client.status(stream)
    assert (headers[":status"], headers["grpc-status"]) == ("200", "9")
    assert headers["grpc-message"].upper() == "50%25 %C3%BC"
    assert client.until(raw.events.ResponseReceived, stream).stream_ended is not None
    assert not [e for e in client.events if isinstance(e, raw.events.DataReceived)]


def test_a_streaming_call_is_told_message_by_message(bench: Any, channel: Any) -> None:
    bench.policy = bench.echo
    call = channel(bench.listen()).stream_stream("/test/Chat")(iter([b"a", b"", b"c" * 100_000]), timeout=30)
    assert list(call) == [b"a", b"", b"c" * 100_000]
    kinds = [event[0] for event in bench.events]
    assert kinds[0] == api.CALL
    assert kinds.count(api.CALL) + kinds.count(api.CALL_MESSAGE) == 3 + (bench.events[0][3][1] is None)
    assert kinds[-1] == api.CALL_END or bench.events[0][3][1]


def test_messages_go_out_while_the_client_still_sends(bench: Any, channel: Any) -> None:
    bench.policy = bench.echo
    more = threading.Event()

    def requests() -> Iterator[bytes]:
        yield b"first"
        assert more.wait(30)
        yield b"second"

    call = channel(bench.listen()).stream_stream("/test/Chat")(requests(), timeout=30)
    assert next(call) == b"first"
    more.set()
    assert list(call) == [b"second"]


def test_a_cancelled_call_is_told_once_and_a_late_reply_is_a_no_op(bench: Any, channel: Any) -> None:
    port = bench.listen()
    future = channel(port).unary_unary("/test/Echo").future(b"m", timeout=30)
    call = bench.wait(api.CALL)[0][1]
    future.cancel()
    told = bench.wait(api.CALL_CANCELLED)[0]
    assert told[1] == call
    assert isinstance(told[3], str)
    bench.do(lambda: bench.transport.reply(call, b"late"))
    bench.do(lambda: bench.transport.finish(call, 13, "late"))
    bench.do(lambda: bench.transport.send_message(call, b"late"))
    bench.policy = bench.echo
    assert channel(port).unary_unary("/test/Echo")(b"again", timeout=30) == b"again"
    bench.settled()
    assert len(bench.of(api.CALL_CANCELLED)) == 1
    assert bench.transport.stats().open_calls == 0


def test_a_lost_connection_cancels_every_call_on_it_once(bench: Any, raw: Any) -> None:
    client = raw.client(bench.listen())
    for n in range(20):
        client.request(body=raw.message(str(n).encode()))
    calls = {event[1] for event in bench.wait(api.CALL, 20)}
    client.socket.close()
    assert {event[1] for event in bench.wait(api.CALL_CANCELLED, 20)} == calls
    bench.settled()
    assert len(bench.of(api.CALL_CANCELLED)) == 20


def test_an_answered_call_is_not_cancelled_by_a_disconnect(bench: Any, raw: Any) -> None:
    bench.policy = bench.echo
    port = bench.listen()
    client = raw.client(port)
    assert client.status(client.request(body=raw.message(b"m")))["grpc-status"] == "0"
    client.socket.close()
    other = raw.client(port)
    assert other.status(other.request(body=raw.message(b"m")))["grpc-status"] == "0"
    bench.settled()
    assert not bench.of(api.CALL_CANCELLED)


def test_a_deadline_is_kept_by_the_backend(bench: Any, raw: Any) -> None:
    client = raw.client(bench.listen())
    for seconds in DEADLINES:
        stream = client.request(body=raw.message(b"m"), headers=(("grpc-timeout", f"{seconds * 1000:.0f}m"),))
        answer = client.status(stream)
        assert answer.get("grpc-status") == "4" or answer.get("reset") == "8", answer
        if bench.of(api.CALL):  # one whose deadline passes before it can be told is not told
            break
    call = bench.of(api.CALL)[-1][1]
    bench.until(lambda: call in [event[1] for event in bench.of(api.CALL_CANCELLED)], "its end is told")
    bench.do(lambda: bench.transport.reply(call, b"late"))
    bench.settled()
    assert [event[1] for event in bench.of(api.CALL_CANCELLED)].count(call) == 1


def test_a_client_sees_its_deadline(bench: Any, channel: Any) -> None:
    method = channel(bench.listen()).unary_unary("/test/Echo")
    for seconds in DEADLINES:
        with pytest.raises(grpc.RpcError) as failure:
            method(b"m", timeout=seconds)
        assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        if bench.of(api.CALL):  # it may pass before there is a connection
            break
    bench.wait(api.CALL_CANCELLED)


def test_finishing_twice_answers_once(bench: Any, channel: Any) -> None:
    def policy(event: Event) -> None:
        bench.transport.reply(event[1], b"one")
        bench.transport.reply(event[1], b"two")
        bench.transport.finish(event[1], 13)

    bench.policy = policy
    method = channel(bench.listen()).unary_unary("/test/Echo")
    assert [method(b"m", timeout=30) for _ in range(3)] == [b"one"] * 3


def test_of_several_values_the_last_one_is_picked(bench: Any, channel: Any) -> None:
    bench.policy = bench.echo
    port = bench.listen(pick=("x-a", "x-b"))
    channel(port).unary_unary("/test/Echo")(b"m", metadata=[("x-a", "the caller's"), ("x-b", "b"), ("x-a", "the ingress's")], timeout=30)
    assert bench.of(api.CALL)[0][3][2] == (b"the ingress's", b"b")
