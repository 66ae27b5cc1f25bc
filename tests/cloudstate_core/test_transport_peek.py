"""Peeking listeners: a call is told with its first message, or without it when it does not come or cannot be read; nothing is lost."""

from __future__ import annotations

import gzip
import queue
from typing import Any

import grpc
import pytest

from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, Outcome


def test_a_server_may_speak_first(bench: Any, peers: Any, channel: Any) -> None:
    upstream = bench.transport.connect(peers().target)
    bench.policy = bench.forwarding(upstream)
    call = channel(bench.listen(peek=True)).stream_stream("/test/Greet")(iter_later := Later(), timeout=30)
    assert next(call) == b"hello"
    iter_later.put(b"one")
    assert next(call) == b"one"
    iter_later.put(None)
    assert list(call) == []
    assert bench.of(api.CALL)[0][3][1] is None
    assert bench.wait(api.FORWARDED)[0][3] == (Outcome.DELIVERED, "0")


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


@pytest.mark.parametrize("messages", [[b"one", b"two"], []])
def test_a_message_that_comes_late_is_told_when_it_is_asked_for(bench: Any, peers: Any, channel: Any, messages: list[bytes]) -> None:
    upstream = bench.transport.connect(peers().target)

    def policy(event: Event) -> None:
        if event[0] == api.CALL:
            assert event[2:] == (b"", ("/test/Echo", None, ()))
            bench.transport.peek(event[1])
        elif event[0] == api.CALL_MESSAGE:
            bench.transport.forward(event[1], upstream)

    bench.policy = policy
    requests = Later()
    call = channel(bench.listen(peek=True)).stream_stream("/test/Echo")(requests, timeout=30)
    bench.wait(api.CALL)
    for message in [*messages, None]:
        requests.put(message)
    assert list(call) == messages
    assert [event[2] for event in bench.of(api.CALL_MESSAGE)] == [messages[0] if messages else b""]
    assert bench.wait(api.FORWARDED)[0][3] == (Outcome.DELIVERED, "0")


def test_a_caller_that_leaves_before_its_first_message_is_told_once(bench: Any, channel: Any) -> None:
    bench.policy = lambda event: bench.transport.peek(event[1]) if event[0] == api.CALL else None
    call = channel(bench.listen(peek=True)).stream_stream("/test/Echo")(requests := Later(), timeout=30)
    bench.wait(api.CALL)
    call.cancel()
    requests.put(None)
    assert bench.wait(api.CALL_CANCELLED)[0][1] == bench.of(api.CALL)[0][1]
    bench.settled()
    assert len(bench.of(api.CALL_CANCELLED)) == 1
    assert not bench.of(api.CALL_MESSAGE)


@pytest.mark.needs("opaque_messages")
def test_a_compressed_call_passes_as_it_came(bench: Any, raw: Any) -> None:
    body = raw.message(gzip.compress(b"hello"), compressed=1)
    seen: list[bytes] = []

    def behaviour(state: Any, event: Any) -> None:
        if isinstance(event, raw.events.DataReceived):
            seen.append(event.data)
            state.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "0")], end_stream=True)

    bench.policy = bench.forwarding(bench.transport.connect(raw.server(behaviour).target))
    client = raw.client(bench.listen(peek=True))
    assert client.status(client.request("/test/Echo", body, headers=(("grpc-encoding", "gzip"),)))["grpc-status"] == "0"
    assert b"".join(seen) == body
    assert bench.of(api.CALL)[0][3][1] is None


@pytest.mark.needs("opaque_messages")
@pytest.mark.parametrize(
    ("body", "status"),
    [((1, b"x"), grpc.StatusCode.UNIMPLEMENTED), ((0, bytes(2000)), grpc.StatusCode.RESOURCE_EXHAUSTED)],
)
def test_a_first_message_that_cannot_be_read_is_refused_when_it_is_asked_for(bench: Any, raw: Any, body: Any, status: Any) -> None:
    bench.policy = lambda event: bench.transport.peek(event[1]) if event[0] == api.CALL else None
    client = raw.client(bench.listen(peek=True, max_message_bytes=1000))
    assert client.status(client.request("/test/Echo", raw.message(body[1], body[0])))["grpc-status"] == str(status.value[0])
    assert len(bench.wait(api.CALL_CANCELLED)) == 1
