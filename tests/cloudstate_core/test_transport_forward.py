"""Forwarding: what passes through the transport, and how each forward ends."""

from __future__ import annotations

import functools
import json
import queue
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, Outcome
from tests.cloudstate_core.conftest import DEADLINES


def outcomes(bench: Any, count: int = 1) -> list[Any]:
    bench.wait(api.FORWARDED, count)
    bench.settled()
    found = [event[3] for event in bench.of(api.FORWARDED)]
    assert len(found) == count
    assert not bench.of(api.CALL_CANCELLED)
    return found


def test_headers_body_answer_and_trailers_pass_whole(bench: Any, peers: Any, channel: Any) -> None:
    upstream = bench.transport.connect(peers().target)
    bench.policy = bench.forwarding(upstream, (("x-new", b"added"), ("x-old", b"replaced")), ("secret-*", "x-gone"))
    sent = [("x-a", "1"), ("x-a", "2"), ("x-b-bin", b"\x00\xff"), ("x-old", "old"), ("secret-a", "s"), ("x-gone", "g"), ("x-gone-not", "k")]
    body, call = channel(bench.listen(peek=True)).unary_unary("/test/Inspect").with_call(b"hello", metadata=sent, timeout=30)
    seen = json.loads(body)
    headers = [tuple(item) for item in seen["headers"] if item[0] != "user-agent"]
    assert seen["messages"] == ["hello"]
    assert [value for name, value in headers if name == "x-a"] == ["1", "2"]
    assert ("x-b-bin", "\x00\xff") in headers
    assert [value for name, value in headers if name == "x-old"] == ["replaced"]
    assert ("x-new", "added") in headers
    assert ("x-gone-not", "k") in headers
    assert not {"secret-a", "x-gone"} & {name for name, _ in headers}
    assert dict(call.initial_metadata())["x-answer-bin"] == b"\x00\xff"
    assert dict(call.trailing_metadata())["x-trailer-bin"] == b"\x01\xfe"
    assert outcomes(bench) == [(Outcome.DELIVERED, "0")]


@pytest.mark.needs("user_agent")
def test_the_user_agent_passes(bench: Any, peers: Any, raw: Any) -> None:
    peer = peers()
    bench.policy = bench.forwarding(bench.transport.connect(peer.target))
    client = raw.client(bench.listen(peek=True))
    assert client.status(client.request("/test/Inspect", raw.message(b"m"), headers=(("user-agent", "mine/1"),)))["grpc-status"] == "0"
    assert dict(peer.seen[0][1])["user-agent"] == "mine/1"


@pytest.mark.parametrize("peek", [True, False])
@pytest.mark.parametrize("size", [0, 100, 10_000_000])
def test_every_byte_passes(bench: Any, peers: Any, channel: Any, size: int, peek: bool) -> None:
    bench.policy = bench.forwarding(bench.transport.connect(peers().target))
    payload = (bytes(range(256)) * (size // 256 + 1))[:size]
    assert channel(bench.listen(peek=peek)).unary_unary("/test/Echo")(payload, timeout=60) == payload
    assert outcomes(bench) == [(Outcome.DELIVERED, "0")]


def test_an_application_failure_is_delivered_whole(bench: Any, peers: Any, channel: Any) -> None:
    bench.policy = bench.forwarding(bench.transport.connect(peers().target))
    with pytest.raises(grpc.RpcError) as failure:
        channel(bench.listen(peek=True)).unary_unary("/test/Fail")(b"m", timeout=30)
    assert (failure.value.code(), failure.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "nicht möglich: 100%")
    assert dict(failure.value.trailing_metadata())["x-why"] == "because"
    assert outcomes(bench) == [(Outcome.DELIVERED, "9")]


def test_a_refused_forward_passes_nothing_and_the_next_one_succeeds(bench: Any, peers: Any, channel: Any) -> None:
    owner, other = bench.transport.connect(peers().target), bench.transport.connect(peers().target)

    def policy(event: Event) -> None:
        if event[0] == api.CALL:
            bench.transport.forward(event[1], other, [("x-path", b"refuse")])
        elif event[0] == api.FORWARDED and event[3][0] is Outcome.REFUSED:
            bench.transport.forward(event[1], owner)

    refusing = peers()
    refusing.inspect = refusing.refuse
    other = bench.transport.connect(refusing.target)
    bench.policy = policy
    body = channel(bench.listen(peek=True)).unary_unary("/test/Inspect")(b"kept", timeout=30)
    assert json.loads(body)["messages"] == ["kept"]
    assert "x-path" not in dict(json.loads(body)["headers"])
    assert outcomes(bench, 2) == [(Outcome.REFUSED, "not-owner;generation=12;next=pod-b"), (Outcome.DELIVERED, "0")]


def test_an_upstream_nobody_listens_on_is_refused_and_the_call_can_be_failed(bench: Any, channel: Any) -> None:
    upstream = bench.transport.connect("127.0.0.1:1")

    def policy(event: Event) -> None:
        if event[0] == api.CALL:
            bench.transport.forward(event[1], upstream)
        else:
            bench.transport.finish(event[1], 14, "nobody is there")

    bench.policy = policy
    with pytest.raises(grpc.RpcError) as failure:
        channel(bench.listen(peek=True)).unary_unary("/test/Echo")(b"m", timeout=30)
    assert failure.value.details() == "nobody is there"
    assert outcomes(bench)[0][0] is Outcome.REFUSED


def test_a_forgotten_upstream_is_refused(bench: Any, peers: Any, channel: Any) -> None:
    upstream = bench.transport.connect(peers().target)
    bench.do(lambda: bench.transport.disconnect(upstream))

    def policy(event: Event) -> None:
        if event[0] == api.CALL:
            bench.transport.forward(event[1], upstream)
        else:
            bench.transport.reply(event[1], b"by hand")

    bench.policy = policy
    assert channel(bench.listen(peek=True)).unary_unary("/test/Echo")(b"m", timeout=30) == b"by hand"
    assert outcomes(bench)[0][0] is Outcome.REFUSED


def test_an_upstream_forgotten_while_a_call_is_on_its_way_ends_that_call_all_the_same(bench: Any, peers: Any, channel: Any) -> None:
    targets = [peers().target for _ in range(20)]

    def policy(event: Event) -> None:
        if event[0] == api.CALL:
            upstream = bench.transport.connect(targets.pop())
            bench.transport.forward(event[1], upstream)
            bench.transport.disconnect(upstream)
        elif event[3][0] is Outcome.REFUSED:
            bench.transport.reply(event[1], b"m")

    bench.policy = policy
    echo = channel(bench.listen(peek=True)).unary_unary("/test/Echo")
    assert [echo(b"m", timeout=30) for _ in range(20)] == [b"m"] * 20
    assert {outcome for outcome, _ in outcomes(bench, 20)} <= {Outcome.DELIVERED, Outcome.REFUSED}


def test_an_upstream_lost_after_it_may_have_acted_fails_the_call(bench: Any, raw: Any, channel: Any) -> None:
    server = raw.server(lambda state, event: isinstance(event, raw.events.DataReceived))
    bench.policy = bench.forwarding(bench.transport.connect(server.target))
    with pytest.raises(grpc.RpcError) as failure:
        channel(bench.listen(peek=True)).unary_unary("/test/Echo")(b"m", timeout=30)
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    assert outcomes(bench)[0][0] is Outcome.FAILED


def test_an_upstream_lost_mid_answer_fails_the_call(bench: Any, raw: Any, channel: Any) -> None:
    def behaviour(state: Any, event: Any) -> None:
        if isinstance(event, raw.events.DataReceived) and event.data:
            state.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc")])
            state.send_data(event.stream_id, raw.message(b"half"))

    server = raw.server(behaviour)
    bench.policy = bench.forwarding(bench.transport.connect(server.target))
    answers = channel(bench.listen(peek=True)).unary_stream("/test/Echo")(b"m", timeout=30)
    assert next(answers) == b"half"
    server.cut()
    with pytest.raises(grpc.RpcError) as failure:
        next(answers)
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    assert outcomes(bench)[0][0] is Outcome.FAILED


def test_a_callers_cancel_reaches_the_upstream(bench: Any, peers: Any, channel: Any) -> None:
    peer = peers()
    bench.policy = bench.forwarding(bench.transport.connect(peer.target))
    future = channel(bench.listen(peek=True)).unary_unary("/test/Slow").future(b"m", timeout=60)
    bench.until(lambda: bool(peer.seen), "the upstream has the call")
    future.cancel()
    assert peer.cancelled.wait(30)
    assert outcomes(bench)[0][0] is Outcome.CANCELLED


def test_a_cancel_in_the_batch_of_the_forward_still_ends_it_once(bench: Any, peers: Any, channel: Any) -> None:
    """The forward is asked for after the caller has gone but before the backend has told so."""
    peer = peers()
    upstream = bench.transport.connect(peer.target)
    future = channel(bench.listen(peek=True)).unary_unary("/test/Slow").future(b"m", timeout=60)
    call = bench.wait(api.CALL)[0][1]
    future.cancel()
    bench.do(lambda: bench.transport.forward(call, upstream))
    bench.until(lambda: bool(bench.of(api.FORWARDED, api.CALL_CANCELLED)), "the call ends")
    bench.settled()
    assert len(bench.of(api.FORWARDED, api.CALL_CANCELLED)) == 1


def test_the_deadline_travels_and_ends_the_forward(bench: Any, peers: Any, channel: Any) -> None:
    peer = peers()
    bench.policy = bench.forwarding(bench.transport.connect(peer.target))
    method = channel(bench.listen(peek=True)).unary_unary("/test/Slow")
    for seconds in DEADLINES:
        with pytest.raises(grpc.RpcError) as failure:
            method(b"m", timeout=seconds)
        assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        if peer.seen:  # else it has passed on the way there
            break
    assert peer.cancelled.wait(30)
    calls = [event[1] for event in bench.of(api.CALL)]
    bench.until(lambda: len(bench.of(api.FORWARDED, api.CALL_CANCELLED)) >= len(calls), "each has ended")
    bench.settled()
    assert sorted(event[1] for event in bench.of(api.FORWARDED, api.CALL_CANCELLED)) == calls
    # Caller and peer end at the same deadline: whichever is heard of first decides what the forward came to.
    assert bench.of(api.FORWARDED)[-1][3][0] in (Outcome.CANCELLED, Outcome.DELIVERED)


def test_a_stream_passes_both_ways_while_both_are_open(bench: Any, peers: Any, channel: Any) -> None:
    bench.policy = bench.forwarding(bench.transport.connect(peers().target))
    answered = threading.Semaphore(0)

    def requests() -> Iterator[bytes]:
        for n in range(50):
            yield b"%d" % n
            assert answered.acquire(timeout=30)

    got = []
    for data in channel(bench.listen(peek=True, streaming_paths=frozenset())).stream_stream("/test/Chat")(requests(), timeout=60):
        got.append(data)
        answered.release()
    assert got == [b"%d" % n for n in range(50)]
    assert outcomes(bench) == [(Outcome.DELIVERED, "0")]


def test_a_refused_stream_loses_no_message(bench: Any, peers: Any, channel: Any) -> None:
    owner = bench.transport.connect(peers().target)
    refusing = peers()
    refusing.chat = refusing.refuse
    other = bench.transport.connect(refusing.target)
    refused = threading.Event()

    def policy(event: Event) -> None:
        if event[0] == api.CALL:
            bench.transport.forward(event[1], other)
        elif event[0] == api.FORWARDED and event[3][0] is Outcome.REFUSED:
            refused.set()
            bench.transport.forward(event[1], owner)

    def requests() -> Iterator[bytes]:
        yield b"a"
        yield b"b"
        assert refused.wait(30)
        yield b"c"

    bench.policy = policy
    call = channel(bench.listen(peek=True, streaming_paths=frozenset())).stream_stream("/test/Chat")(requests(), timeout=60)
    assert list(call) == [b"a", b"b", b"c"]


def test_a_refusal_that_meets_a_further_message_loses_neither(bench: Any, peers: Any, raw: Any) -> None:
    """The upstream refuses and closes its stream in the very moment in which the caller sends on; which is seen first differs from time to time."""
    asked: queue.Queue[tuple[Any, int]] = queue.Queue()

    def behaviour(state: Any, event: Any) -> None:
        if isinstance(event, raw.events.DataReceived):
            asked.put((state, event.stream_id))  # one for each call: what is sent on is not read here any more

    def policy(event: Event) -> None:
        if event[0] == api.CALL:
            bench.transport.forward(event[1], other)
        elif event[0] == api.FORWARDED and event[3][0] is Outcome.REFUSED:
            bench.transport.forward(event[1], owner)

    def hold(held: threading.Event, go_on: threading.Event) -> None:
        held.set()
        go_on.wait(30)

    refusing = raw.server(behaviour)
    other, owner = bench.transport.connect(refusing.target), bench.transport.connect(peers().target)
    bench.policy = policy
    client = raw.client(bench.listen(peek=True, streaming_paths=frozenset()))
    for count in range(1, 101):
        stream = client.request("/test/Chat", raw.message(b"a"), end=False)
        state, refused = asked.get(timeout=30)
        held, go_on = threading.Event(), threading.Event()
        bench.transport.post(functools.partial(hold, held, go_on))
        assert held.wait(30)
        with refusing.lock:
            answer = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "14"), (api.REFUSED_HEADER, "not-owner")]
            state.send_headers(refused, answer, end_stream=True)
            state.reset_stream(refused, 0)
            refusing._links[0].sendall(state.data_to_send())
        client.h2.send_data(stream, raw.message(b"b"))
        client.flush()
        go_on.set()
        bench.wait(api.FORWARDED, 2 * count - 1)
        client.h2.send_data(stream, raw.message(b"c"), end_stream=True)
        client.flush()
        assert client.status(stream)["grpc-status"] == "0", count
        assert b"".join(e.data for e in client.data() if e.stream_id == stream) == b"".join(map(raw.message, (b"a", b"b", b"c")))
        bench.wait(api.FORWARDED, 2 * count)
    assert outcomes(bench, 200) == [(Outcome.REFUSED, "not-owner"), (Outcome.DELIVERED, "0")] * 100


def test_a_slow_reader_stops_the_upstream_and_memory_stays_bounded(bench: Any, peers: Any, raw: Any) -> None:
    """64 MB wait at the upstream, not in the transport; they come when the reader reads."""
    peer = peers()
    bench.policy = bench.forwarding(bench.transport.connect(peer.target))
    client = raw.client(bench.listen(peek=True))
    stream = client.request("/test/Download", raw.message(b"go"))
    assert client.until(raw.events.DataReceived, stream) is not None
    levels: list[int] = []

    def level() -> bool:
        levels.append(peer.produced)
        return len(levels) > 50 and len(set(levels[-50:])) == 1

    bench.until(level, "the upstream is no longer read")
    assert peer.produced <= 24 * 1024 * 1024
    for event in client.data():
        client.acknowledge(event)
    client.flush()
    assert client.status(stream)["grpc-status"] == "0"
    assert sum(len(e.data) for e in client.data()) == 1024 * 65541


def test_to_answer_a_call_that_is_away_ends_its_forward(bench: Any, peers: Any, channel: Any) -> None:
    peer = peers()
    bench.policy = bench.forwarding(bench.transport.connect(peer.target))
    future = channel(bench.listen()).unary_unary("/test/Slow").future(b"m", timeout=60)
    bench.until(lambda: bool(peer.seen), "the upstream has the call")
    bench.do(lambda: bench.transport.finish(bench.of(api.CALL)[0][1], 10, "by hand"))
    assert future.exception(timeout=30).code() is grpc.StatusCode.ABORTED
    assert outcomes(bench)[0][0] is Outcome.CANCELLED
    assert peer.cancelled.wait(30)


def test_to_answer_a_call_in_the_turn_of_its_forward_ends_it_too(bench: Any, peers: Any, channel: Any) -> None:
    upstream = bench.transport.connect(peers().target)

    def policy(event: Event) -> None:
        if event[0] == api.CALL:
            bench.transport.forward(event[1], upstream)
            bench.transport.forward(event[1], upstream)
            bench.transport.send_message(event[1], b"x")
            bench.transport.finish(event[1], 10, "by hand")

    bench.policy = policy
    with pytest.raises(grpc.RpcError) as failure:
        channel(bench.listen()).unary_unary("/test/Echo")(b"m", timeout=30)
    assert failure.value.code() is grpc.StatusCode.ABORTED
    assert outcomes(bench)[0][0] is Outcome.CANCELLED
