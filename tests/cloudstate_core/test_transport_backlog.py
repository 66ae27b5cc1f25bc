"""Back-pressure by policy: `backlog` and DRAINED with `pause` pass a slow reader's pace on to a fast sender, and nothing piles up between."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event

PIECE = bytes(100_000)
HIGH = 1_000_000
"""Bytes that may wait before policy lets the sender pause."""


class Relay:
    """A policy: each call on '/test/Chat' passes to and from a stream of its own, at the pace of the slower side."""

    def __init__(self, bench: Any, upstream: int, path: str) -> None:
        self.bench, self.transport, self.upstream, self.path = bench, bench.transport, upstream, path
        self.peer: dict[int, int] = {}
        self.most = 0
        """The most that was ever seen waiting."""
        self.pauses = 0

    def __call__(self, event: Event) -> None:
        kind, source, data, detail = event
        if kind == api.CALL:
            stream = self.transport.open(self.upstream, self.path)
            self.peer[source], self.peer[stream] = stream, source
        if kind == api.CALL_MESSAGE or (kind == api.CALL and detail[1] is not None):
            self.transport.send(self.peer[source], data)
            self.heed(self.peer[source], lambda: self.transport.pause(source))
        if kind == api.CALL_END or (kind == api.CALL and detail[1]):
            self.transport.half_close(self.peer[source])
        elif kind == api.STREAM_MESSAGE:
            self.transport.send_message(self.peer[source], data)
            self.heed(self.peer[source], lambda: self.transport.pause_stream(source))
        elif kind == api.STREAM_CLOSED:
            self.transport.finish(self.peer[source], detail[0], detail[1])
        elif kind == api.DRAINED:
            self.transport.resume(self.peer[source])
            self.transport.resume_stream(self.peer[source])

    def heed(self, sink: int, pause: Any) -> None:
        waiting = self.transport.backlog(sink)
        self.most = max(self.most, waiting)
        if waiting > HIGH:
            self.pauses += 1
            pause()


def test_a_slow_caller_slows_down_the_upstream_and_gets_every_byte(bench: Any, peers: Any, raw: Any) -> None:
    peer = peers()
    bench.policy = relay = Relay(bench, bench.transport.connect(peer.target), "/test/Download")
    client = raw.client(bench.listen())
    stream = client.request("/test/Chat", raw.message(b"go"))
    assert client.until(raw.events.DataReceived, stream) is not None
    seen: list[int] = []

    def level() -> bool:
        seen.append(peer.produced)
        return relay.pauses > 0 and len(set(seen[-25:])) == 1

    bench.until(level, "the upstream is stopped")
    assert peer.produced < 60 << 20
    for event in client.data():
        client.acknowledge(event)
    client.flush()
    assert client.status(stream)["grpc-status"] == "0"
    assert sum(len(event.data) for event in client.data()) == 1024 * 65541
    assert relay.most <= HIGH + (4 << 20), "the rest of what was read before the pause"


def test_a_slow_upstream_slows_down_the_caller_and_gets_every_byte(bench: Any, peers: Any, channel: Any) -> None:
    peer = peers()
    go, given, taken = threading.Event(), [0], [0]

    def swallow(requests: Any, context: Any) -> Iterator[bytes]:
        assert go.wait(60)
        for message in requests:
            taken[0] += len(message)
        yield b"%d" % taken[0]

    def requests() -> Iterator[bytes]:
        for _ in range(1000):
            given[0] += len(PIECE)
            yield PIECE

    peer.swallow = swallow
    bench.policy = relay = Relay(bench, bench.transport.connect(peer.target), "/test/Swallow")
    future = channel(bench.listen()).stream_unary("/test/Chat").future(requests(), timeout=120)
    seen: list[int] = []

    def level() -> bool:
        seen.append(given[0])
        return relay.pauses > 0 and len(set(seen[-25:])) == 1

    bench.until(level, "the caller is stopped")
    assert given[0] < 80_000_000
    go.set()
    assert future.result() == b"%d" % (1000 * len(PIECE))
    assert relay.most <= HIGH + (4 << 20), "the rest of what was read before the pause"


def test_what_waits_for_a_connection_is_counted_and_told(bench: Any, peers: Any) -> None:
    peer = peers()
    upstream = bench.transport.connect(peer.target)

    def go() -> tuple[int, int]:
        stream = bench.transport.open(upstream, "/test/Echo")
        assert bench.transport.backlog(stream) == 0
        bench.transport.send(stream, PIECE)
        return stream, bench.transport.backlog(stream)

    stream, waiting = bench.do(go)
    assert waiting >= len(PIECE)
    assert bench.wait(api.DRAINED)[0][1] == stream
    assert bench.do(lambda: bench.transport.backlog(stream)) == 0
    bench.settled()
    assert len(bench.of(api.DRAINED)) == 1


def test_the_backlog_of_an_http_answer_is_told_when_it_has_gone(bench: Any) -> None:
    bench.policy = lambda event: bench.transport.respond_begin(event[1], 200) if event[0] == api.HTTP else None
    link = http.client.HTTPConnection("127.0.0.1", bench.listen(http_only=True), timeout=30)
    link.request("GET", "/")
    answer = link.getresponse()
    call = bench.of(api.HTTP)[0][1]
    sent = 0

    def send() -> int:
        bench.transport.respond_data(call, PIECE)
        return int(bench.transport.backlog(call))

    while bench.do(send) < HIGH:
        sent += len(PIECE)
        assert sent < 64 << 20
    sent += len(PIECE)
    assert len(answer.read(sent)) == sent
    bench.until(lambda: bench.do(lambda: bench.transport.backlog(call)) == 0, "nothing waits")
    assert bench.wait(api.DRAINED)[-1][1] == call
    bench.do(lambda: bench.transport.respond_end(call))
    assert answer.read() == b""


@pytest.mark.parametrize("over", [True, False])
def test_where_nothing_waits_there_is_no_backlog_and_nothing_is_told(bench: Any, channel: Any, over: bool) -> None:
    seen: list[int] = []

    def policy(event: Event) -> None:
        if event[0] == api.CALL and not over:
            seen.append(bench.transport.backlog(event[1]))
        bench.transport.reply(event[1], event[2])
        if over:
            seen.append(bench.transport.backlog(event[1]))

    bench.policy = policy
    assert channel(bench.listen()).unary_unary("/test/Echo")(b"m", timeout=30) == b"m"
    bench.settled()
    assert (seen, bench.of(api.DRAINED)) == ([0], [])
    assert bench.do(lambda: bench.transport.backlog(123456)) == 0
