"""Client streams of the transport (entity streams, the journal, the leader) against grpcio and raw HTTP/2 peers."""

from __future__ import annotations

from typing import Any

import pytest

from cloudstate_core.transport import api
from kn_cloudstate.ports import free_port


def data_of(bench: Any, stream: int) -> list[bytes]:
    return [event[2] for event in bench.of(api.STREAM_MESSAGE) if event[1] == stream]


def closed(bench: Any, stream: int) -> Any:
    bench.until(lambda: any(e[1] == stream for e in bench.of(api.STREAM_CLOSED)), f"stream {stream} is closed")
    bench.settled()
    found = [event for event in bench.of(api.STREAM_CLOSED) if event[1] == stream]
    assert len(found) == 1
    return found[0][3]


def begin(bench: Any, target: str, path: str, *messages: bytes, **options: Any) -> int:
    upstream = bench.transport.connect(target)

    def go() -> int:
        stream = bench.transport.open(upstream, path, **options)
        for message in messages:
            bench.transport.send(stream, message)
        return int(stream)

    return int(bench.do(go))


def test_a_stream_echoes_in_order_and_ends_once(bench: Any, peers: Any) -> None:
    stream = begin(bench, peers().target, "/test/Echo", *(b"%d" % n for n in range(200)), b"")
    bench.wait(api.STREAM_MESSAGE, 201)
    bench.do(lambda: bench.transport.half_close(stream))
    status, _, _, refused = closed(bench, stream)
    assert (status, refused) == (0, False)
    assert data_of(bench, stream) == [b"%d" % n for n in range(200)] + [b""]
    assert bench.transport.stats().open_streams == 0


def test_headers_and_timeout_travel_and_trailers_return(bench: Any, peers: Any) -> None:
    peer = peers()
    stream = begin(bench, peer.target, "/test/Inspect", b"m", headers=[("x-a", b"1"), ("x-a-bin", b"\x00\xff")], timeout=25.0)
    bench.do(lambda: bench.transport.half_close(stream))
    status, _, trailers, _ = closed(bench, stream)
    assert status == 0
    assert {("x-trailer", b"two"), ("x-trailer-bin", b"\x01\xfe")} <= set(trailers)
    sent = dict(peer.seen[0][1])
    assert (sent["x-a"], sent["x-a-bin"]) == ("1", b"\x00\xff")


def test_a_failure_of_the_application_is_told_whole(bench: Any, peers: Any) -> None:
    status, text, trailers, refused = closed(bench, begin(bench, peers().target, "/test/Fail", b"m"))
    assert (status, text, refused) == (9, "nicht möglich: 100%", False)
    assert ("x-why", b"because") in trailers


def test_a_stream_carries_more_than_any_window(bench: Any, peers: Any) -> None:
    """Trap 2: without WINDOW_UPDATEs of the stream it stalls at 64 KB, without the connection's a little later."""
    stream = begin(bench, peers().target, "/test/Echo")
    chunk = bytes(1_000_000)
    for n in range(70):
        bench.do(lambda: bench.transport.send(stream, chunk))
        bench.wait(api.STREAM_MESSAGE, n + 1)
    assert sum(map(len, data_of(bench, stream))) == 70_000_000


def test_many_streams_share_an_upstream(bench: Any, peers: Any) -> None:
    upstream = bench.transport.connect(peers().target)
    streams = bench.do(lambda: [bench.transport.open(upstream, "/test/Echo") for _ in range(20)])
    bench.do(lambda: [bench.transport.send(stream, b"%d" % stream) for stream in streams for _ in range(10)])
    bench.wait(api.STREAM_MESSAGE, 200)
    assert all(data_of(bench, stream) == [b"%d" % stream] * 10 for stream in streams)


def test_reset_cancels_the_peer_and_closes_once(bench: Any, peers: Any) -> None:
    peer = peers()
    stream = begin(bench, peer.target, "/test/Slow", b"m")
    bench.until(lambda: bool(peer.seen), "the peer has the stream")
    bench.do(lambda: bench.transport.reset(stream))
    assert closed(bench, stream)[0] == 1
    assert peer.cancelled.wait(30)
    bench.do(lambda: [bench.transport.send(stream, b"late"), bench.transport.half_close(stream), bench.transport.reset(stream)])
    closed(bench, stream)


def test_reset_in_the_batch_that_opened_it_closes_once(bench: Any, peers: Any) -> None:
    upstream = bench.transport.connect(peers().target)

    def go() -> int:
        stream = bench.transport.open(upstream, "/test/Echo")
        bench.transport.reset(stream)
        return int(stream)

    assert closed(bench, bench.do(go))[0] == 1
    assert bench.transport.stats().open_streams == 0


def test_a_timeout_closes_with_deadline_exceeded(bench: Any, peers: Any) -> None:
    assert closed(bench, begin(bench, peers().target, "/test/Slow", b"m", timeout=0.3))[0] == 4


def test_a_refused_connection_is_safe_to_retry_and_comes_back(bench: Any, peers: Any) -> None:
    port = free_port()
    upstream = bench.transport.connect(f"127.0.0.1:{port}")
    status, text, _, refused = closed(bench, bench.do(lambda: bench.transport.open(upstream, "/test/Echo")))
    assert (status, refused) == (14, True), text
    peers(port)

    def echoed() -> bool:
        stream = bench.do(lambda: bench.transport.open(upstream, "/test/Echo"))
        bench.do(lambda: bench.transport.send(stream, b"back"))
        bench.until(lambda: any(e[1] == stream for e in bench.of(api.STREAM_MESSAGE, api.STREAM_CLOSED)), "an answer")
        return bool(data_of(bench, stream))

    bench.until(echoed, "the upstream is reached again")


def answering(raw: Any, message: bytes) -> Any:
    """A peer that answers each piece of a request with a message, and does not end."""

    def behaviour(state: Any, event: Any) -> None:
        if isinstance(event, raw.events.DataReceived) and event.data:
            state.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc")])
            state.send_data(event.stream_id, raw.message(message))

    return raw.server(behaviour)


def test_a_peer_that_takes_its_time_to_greet_is_waited_for(bench: Any, raw: Any) -> None:
    server = answering(raw, b"at last")
    server.greets_after = 1.0
    stream = begin(bench, server.target, "/test/Echo", b"m")
    bench.until(lambda: bool(bench.of(api.STREAM_MESSAGE, api.STREAM_CLOSED)), "an answer")
    assert data_of(bench, stream) == [b"at last"]


def test_a_server_that_dies_mid_stream_is_unavailable_once(bench: Any, raw: Any) -> None:
    server = answering(raw, b"half")
    stream = begin(bench, server.target, "/test/Echo", b"m")
    bench.wait(api.STREAM_MESSAGE)
    server.cut()
    status, _, _, refused = closed(bench, stream)
    assert (status, refused) == (14, False)
    assert data_of(bench, stream) == [b"half"]


def goaway(last: int) -> bytes:
    """A GOAWAY frame without an error, after which python-h2 goes on: streams beyond `last` were not processed."""
    return b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + last.to_bytes(4, "big") + bytes(4)


@pytest.mark.parametrize("how", ["REFUSED_STREAM", "GOAWAY"])
def test_a_stream_the_peer_did_not_process_is_refused(bench: Any, raw: Any, how: str) -> None:
    def behaviour(state: Any, event: Any) -> None:
        if isinstance(event, raw.events.RequestReceived):
            if how == "GOAWAY":  # and the connection stays: its end must not overtake what was said
                state._data_to_send += goaway(0)
            else:
                state.reset_stream(event.stream_id, 7)

    status, text, _, refused = closed(bench, begin(bench, raw.server(behaviour).target, "/test/Echo", b"m"))
    assert (status, refused) == (14, True), text


@pytest.mark.parametrize("code", [0, 2])
def test_a_stream_that_was_lost_after_a_goaway_that_left_it_alone_may_have_been_processed(bench: Any, raw: Any, code: int) -> None:
    def behaviour(state: Any, event: Any) -> bool:
        if not isinstance(event, raw.events.DataReceived):
            return False
        state.close_connection(code, last_stream_id=event.stream_id)
        return True  # and the connection ends

    status, text, _, refused = closed(bench, begin(bench, raw.server(behaviour).target, "/test/Echo", b"m"))
    assert (status, refused) == (14, False), text


def test_after_a_graceful_goaway_the_stream_goes_on_and_new_ones_use_a_new_connection(bench: Any, raw: Any) -> None:
    def behaviour(state: Any, event: Any) -> None:
        if isinstance(event, raw.events.RequestReceived):
            state.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc")])
        if isinstance(event, raw.events.DataReceived) and event.data:
            state.send_data(event.stream_id, raw.message(b"ok"))
            if b"bye" in event.data:  # what went out goes on
                state._data_to_send += goaway(1)

    server = raw.server(behaviour)
    upstream = bench.transport.connect(server.target)
    first = bench.do(lambda: bench.transport.open(upstream, "/test/Echo"))
    bench.do(lambda: bench.transport.send(first, b"bye"))
    bench.wait(api.STREAM_MESSAGE, 1)

    def second_connection() -> bool:
        stream = bench.do(lambda: bench.transport.open(upstream, "/test/Echo"))
        bench.do(lambda: bench.transport.send(stream, b"new"))
        bench.until(lambda: any(e[1] == stream for e in bench.of(api.STREAM_MESSAGE, api.STREAM_CLOSED)), "an answer")
        return bool(data_of(bench, stream)) and server.connections == 2

    bench.until(second_connection, "a new connection is used")
    bench.do(lambda: bench.transport.send(first, b"more"))
    bench.until(lambda: len(data_of(bench, first)) == 2, "the old stream goes on")


def test_forgetting_an_upstream_leaves_its_streams_alone(bench: Any, peers: Any) -> None:
    upstream = bench.transport.connect(peers().target)
    stream = bench.do(lambda: bench.transport.open(upstream, "/test/Echo"))
    bench.do(lambda: bench.transport.send(stream, b"one"))
    bench.wait(api.STREAM_MESSAGE, 1)
    bench.do(lambda: bench.transport.disconnect(upstream))
    bench.do(lambda: bench.transport.send(stream, b"two"))
    bench.wait(api.STREAM_MESSAGE, 2)
    bench.do(lambda: bench.transport.half_close(stream))
    assert closed(bench, stream)[0] == 0
    refused = closed(bench, bench.do(lambda: bench.transport.open(upstream, "/test/Echo")))
    assert (refused[0], refused[3]) == (14, True)


def test_a_caller_that_cancels_mid_read_leaves_the_entity_stream_alive(bench: Any, peers: Any, channel: Any) -> None:
    """Trap 1: the entity's stream belongs to nobody's call."""
    peer = peers()
    entity = begin(bench, peer.target, "/test/Slow")
    callers: list[int] = []

    def policy(event: Any) -> None:
        if event[0] == api.CALL:
            callers.append(event[1])
            bench.transport.send(entity, event[2])
        elif event[0] == api.STREAM_MESSAGE:
            bench.transport.reply(callers.pop(0), event[2])

    bench.policy = policy
    method = channel(bench.listen()).unary_unary("/test/Command")
    first = method.future(b"first", timeout=60)
    bench.wait(api.CALL)
    assert peer.holding.wait(30)
    first.cancel()
    bench.wait(api.CALL_CANCELLED)
    peer.release.set()
    bench.wait(api.STREAM_MESSAGE)
    assert [method(b"%d" % n, timeout=30) for n in range(20)] == [b"%d" % n for n in range(20)]
    assert not bench.of(api.STREAM_CLOSED)


@pytest.mark.needs("many_connections")
def test_streams_beyond_what_one_connection_takes_go_on_another(bench: Any, raw: Any) -> None:
    opened: list[int] = []

    def behaviour(state: Any, event: Any) -> None:
        if isinstance(event, raw.events.RequestReceived):
            opened.append(event.stream_id)

    server = raw.server(behaviour)  # python-h2 lets 100 streams begin
    upstream = bench.transport.connect(server.target)
    streams = bench.do(lambda: [bench.transport.open(upstream, "/test/Slow") for _ in range(150)])
    bench.until(lambda: len(opened) == 150, "all streams have begun")
    assert server.connections == 2
    bench.do(lambda: [bench.transport.reset(stream) for stream in streams])
    bench.wait(api.STREAM_CLOSED, 150)
