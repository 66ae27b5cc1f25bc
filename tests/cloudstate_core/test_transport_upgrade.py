"""HTTP/1.1 connections that switch protocols: both directions pass, each at the pace of its reader and until its own end."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, Outcome
from tests.cloudstate_core.conftest import DEADLINES

pytestmark = pytest.mark.needs("http1")
AGREED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: abc\r\n\r\n"
ASKED = (
    b"GET /chat HTTP/1.1\r\nHost: cart.example.com\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: k\r\nKnative-Serving-Revision: r\r\n\r\n"
)


class Server:
    """Takes one connection, keeps the request's head, answers as told, then hands the socket to the test."""

    def __init__(self, answer: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._answer = answer
        self.head = b""
        self.link: socket.socket | None = None
        self._ready = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        link, _ = self._listener.accept()
        link.settimeout(30)
        while b"\r\n\r\n" not in self.head:
            self.head += link.recv(65536)
        link.sendall(self._answer)
        self.link = link
        self._ready.set()

    def socket(self) -> socket.socket:
        assert self._ready.wait(30)
        assert self.link is not None
        return self.link

    def close(self) -> None:
        self._listener.close()
        if self.link is not None:
            self.link.close()


@pytest.fixture
def server() -> Iterator[Callable[[bytes], Server]]:
    made: list[Server] = []

    def make(answer: bytes = AGREED) -> Server:
        made.append(Server(answer))
        return made[-1]

    yield make
    for one in made:
        one.close()


def head(link: socket.socket) -> bytes:
    """The head of an answer, and not a byte more."""
    read = b""
    while not read.endswith(b"\r\n\r\n"):
        byte = link.recv(1)
        assert byte, read
        read += byte
    return read


def switched(bench: Any, upstream: Server) -> socket.socket:
    """A client's connection that has switched protocols."""
    bench.policy = bench.forwarding(bench.transport.connect(upstream.target), (("k-proxy-request", b"activator"),), ("knative-serving-*",))
    client = socket.create_connection(("127.0.0.1", bench.listen(peek=True)), timeout=30)
    client.sendall(ASKED)
    assert head(client).startswith(b"HTTP/1.1 101 ")
    return client


def test_the_request_and_the_agreement_pass_with_their_headers(bench: Any, server: Any) -> None:
    upstream = server()
    bench.policy = bench.forwarding(bench.transport.connect(upstream.target), (("k-proxy-request", b"activator"),), ("knative-serving-*",))
    client = socket.create_connection(("127.0.0.1", bench.listen(peek=True)), timeout=30)
    client.sendall(ASKED + b"early")
    answer = head(client).lower()
    for line in (b"http/1.1 101", b"connection: upgrade", b"upgrade: websocket", b"sec-websocket-accept: abc"):
        assert line in answer
    asked = upstream.head.lower()
    for line in (b"get /chat", b"connection: upgrade", b"upgrade: websocket", b"sec-websocket-key: k", b"k-proxy-request: activator"):
        assert line in asked
    assert b"knative-serving" not in asked
    assert b"keep-alive" not in asked
    assert upstream.socket().recv(5) == b"early"
    client.close()


def test_bytes_pass_both_ways_and_the_call_counts_until_both_ends(bench: Any, server: Any) -> None:
    upstream = server()
    client = switched(bench, upstream)
    there = upstream.socket()
    for n in range(20):
        client.sendall(b"ping %d" % n)
        assert there.recv(100) == b"ping %d" % n
        there.sendall(b"pong %d" % n)
        assert client.recv(100) == b"pong %d" % n
    bench.settled()
    assert not bench.of(api.FORWARDED)
    assert bench.transport.stats().open_calls == 1
    client.shutdown(socket.SHUT_WR)
    assert there.recv(100) == b""
    there.sendall(b"still here")  # one direction has ended, not both
    assert client.recv(100) == b"still here"
    bench.settled()
    assert not bench.of(api.FORWARDED)
    there.close()
    assert client.recv(100) == b""
    assert bench.wait(api.FORWARDED)[0][3] == (Outcome.DELIVERED, "101")
    bench.until(lambda: bench.transport.stats().open_calls == 0, "no call is open")
    assert not bench.of(api.CALL_CANCELLED)


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_side_that_is_lost_takes_the_other_with_it(bench: Any, server: Any, who: str) -> None:
    upstream = server()
    client = switched(bench, upstream)
    there = upstream.socket()
    lost, left = (client, there) if who == "client" else (there, client)
    lost.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
    lost.close()
    with contextlib.suppress(ConnectionResetError):
        assert left.recv(100) == b""
    assert len(bench.wait(api.FORWARDED)) == 1


def test_a_slow_reader_stops_the_sender(bench: Any, server: Any) -> None:
    upstream = server()
    client = switched(bench, upstream)
    there = upstream.socket()
    there.setblocking(False)
    sent, stalled = 0, 0
    while stalled < 20:  # until neither buffer on the way takes more
        try:
            sent += there.send(bytes(65536))
            stalled = 0
        except BlockingIOError:
            stalled += 1
            bench.settled()
            threading.Event().wait(0.01)
        assert sent < 64 * 1024 * 1024, "nothing holds the sender back"
    read = 0
    while read < sent:
        chunk = client.recv(1 << 20)
        assert chunk
        read += len(chunk)
    there.send(b"x")
    assert client.recv(1) == b"x"


def test_a_refusal_to_switch_is_an_answer_like_any_other(bench: Any, server: Any) -> None:
    upstream = server(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno")
    bench.policy = bench.forwarding(bench.transport.connect(upstream.target))
    client = socket.create_connection(("127.0.0.1", bench.listen(peek=True)), timeout=30)
    client.sendall(ASKED)
    assert head(client).startswith(b"HTTP/1.1 426")
    assert client.recv(2) == b"no"
    assert bench.wait(api.FORWARDED)[0][3] == (Outcome.DELIVERED, "426")


def test_http2_is_not_switched_to(bench: Any, server: Any) -> None:
    upstream = server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    bench.policy = bench.forwarding(bench.transport.connect(upstream.target))
    client = socket.create_connection(("127.0.0.1", bench.listen(peek=True)), timeout=30)
    client.sendall(ASKED.replace(b"websocket", b"h2c"))
    assert head(client).startswith(b"HTTP/1.1 200")
    assert b"upgrade" not in upstream.head.lower()


def test_a_switch_that_nobody_asked_for_is_an_error(bench: Any, server: Any) -> None:
    upstream = server()
    bench.policy = bench.forwarding(bench.transport.connect(upstream.target))
    link = http.client.HTTPConnection("127.0.0.1", bench.listen(peek=True), timeout=30)
    link.request("GET", "/")
    assert link.getresponse().status == 502
    assert bench.wait(api.FORWARDED)[0][3][0] is Outcome.FAILED


def test_the_limit_cuts_it(bench: Any, server: Any) -> None:
    def policy(event: Event) -> None:
        if event[0] == api.HTTP:
            bench.transport.limit(event[1], seconds)
            bench.transport.forward(event[1], target)

    bench.policy = policy
    port = bench.listen(peek=True)
    for seconds in DEADLINES:  # noqa: B007 (policy sets it)
        upstream = server()
        target = bench.transport.connect(upstream.target)
        client = socket.create_connection(("127.0.0.1", port), timeout=30)
        client.sendall(ASKED)
        if switched := head(client).startswith(b"HTTP/1.1 101 "):  # else the limit has passed before both agreed
            break
    assert switched
    assert client.recv(1) == b""
    assert upstream.socket().recv(1) == b""
    bench.until(lambda: len(bench.of(api.FORWARDED)) == len(bench.of(api.HTTP)), "each has ended")
    assert {event[3][0] for event in bench.of(api.FORWARDED)} == {Outcome.CANCELLED}


def test_a_drain_lets_it_live_until_its_grace_is_over(bench: Any, server: Any) -> None:
    upstream = server()
    client = switched(bench, upstream)
    done = threading.Event()
    bench.do(lambda: bench.transport.drain(30.0, done.set))
    client.sendall(b"after")
    assert upstream.socket().recv(100) == b"after"
    assert not done.is_set()
    client.close()
    upstream.socket().close()
    assert done.wait(30)
