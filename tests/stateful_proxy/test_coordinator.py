"""The proxy's stream to the leader: opened again when it ends or falls silent, on a new connection each time."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.transport import api
from stateful_proxy.coordinator import SILENCE_LIMIT, Coordinator

TARGET = "leader:1"


class Line:
    """The part of a transport that the stream uses; what is opened on a connection is open until the test says that it has ended."""

    def __init__(self) -> None:
        self.connected: list[int] = []
        self.opened: list[tuple[int, int]] = []
        """Connection and stream, in order."""
        self.sent: list[tuple[int, pb.JoinRequest]] = []
        self.resets: list[int] = []
        self.timers: list[Callable[[], None]] = []
        self._last = 0

    def _next(self) -> int:
        self._last += 1
        return self._last

    def connect(self, target: str) -> int:
        assert target == TARGET
        self.connected.append(self._next())
        return self.connected[-1]

    def disconnect(self, upstream: int) -> None:
        self.connected.remove(upstream)

    def open(self, upstream: int, path: str) -> int:
        assert upstream in self.connected
        self.opened.append((upstream, self._next()))
        return self.opened[-1][1]

    def send(self, stream: int, message: bytes) -> None:
        self.sent.append((stream, pb.JoinRequest.FromString(message)))

    def reset(self, stream: int) -> None:
        self.resets.append(stream)

    def after(self, delay: float, callback: Callable[[], None]) -> int:
        self.timers.append(callback)
        return self._next()

    def fire(self) -> None:
        timers, self.timers = self.timers, []
        for timer in timers:
            timer()


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def coordinator(line: Line) -> Coordinator:
    """Of a proxy that holds nothing."""
    ownership: Any = SimpleNamespace(owned={}, generation=0, shard_count=0, apply=lambda generation, entries: None)
    entities: Any = SimpleNamespace(load=lambda now: {}, function_concurrency=0.0, active=0)
    peers: Any = SimpleNamespace(update=lambda members: None)
    probe: Any = SimpleNamespace(ask=lambda now: None, ok=True)
    hello = pb.Hello(service="ns/cart", member=pb.Member(member_id="a"))
    transport: Any = line
    found = Coordinator(transport, TARGET, hello, ownership, entities, lambda now: 0.0, peers, probe, lambda: None)
    found.start()
    return found


def closed(stream: int, text: str = "gone") -> api.Event:
    return (api.STREAM_CLOSED, stream, b"", (14, text, [], False))


def test_a_leader_that_went_without_a_word_is_looked_for_on_a_new_connection(line: Line, coordinator: Coordinator) -> None:
    """Its machine answers nothing any more, not even that the connection is gone: whoever leads now is behind the name, not behind that."""
    (connection, stream), = line.opened
    coordinator.on_event((api.STREAM_MESSAGE, stream, pb.JoinResponse(map=pb.MapUpdate()).SerializeToString(), None))
    coordinator.tick(time.monotonic() + SILENCE_LIMIT)
    assert line.resets == [stream]
    coordinator.on_event(closed(stream))
    line.fire()
    assert [upstream for upstream, _ in line.opened] == [connection, *line.connected]
    assert line.connected != [connection]
    first, second = (request.WhichOneof("message") for at, request in line.sent if at == line.opened[-1][1])
    assert (first, second) == ("hello", "heartbeat")
    assert coordinator.joined, "what was owned stays owned while the leader is away"


def test_a_stream_that_ends_is_opened_again_once(line: Line, coordinator: Coordinator) -> None:
    (_, stream), = line.opened
    assert coordinator.on_event(closed(stream))
    assert not coordinator.on_event(closed(stream)), "that of no stream any more"
    coordinator.tick(time.monotonic() + SILENCE_LIMIT)
    line.fire()
    line.fire()
    assert (len(line.opened), len(line.connected), line.resets) == (2, 1, [])
