"""Plain HTTP at the transport: HTTP/1.1 on admin ports everywhere, on every port of the native engine, and forwarded."""

from __future__ import annotations

import http.client
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, Outcome


def answer(bench: Any) -> Any:
    def policy(event: Event) -> None:
        if event[0] == api.HTTP:
            method, target, picked = event[3]
            body = json.dumps([method, target, [p.decode() for p in picked], event[2].decode()]).encode()
            bench.transport.respond(event[1], 201, [("content-type", b"application/json"), ("x-a", b"1")], body)

    return policy


@pytest.fixture
def backend_server() -> Iterator[int]:
    """An HTTP/1.1 server that tells what it was asked."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            text = json.dumps([self.command, self.path, dict(self.headers.items()), len(body)]).encode()
            self.send_response(207)
            self.send_header("content-length", str(len(text)))
            self.send_header("x-upstream", "yes")
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def check(bench: Any, port: int) -> None:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for body in (b"", b"hello", b"x" * 100_000):
        link.request("POST", "/a/b?c=d", body=body, headers={"User-Agent": "me"})
        got = link.getresponse()
        assert (got.status, got.headers["x-a"], got.headers["content-type"]) == (201, "1", "application/json")
        assert json.loads(got.read()) == ["POST", "/a/b?c=d", ["me", f"127.0.0.1:{port}"], body.decode()]
    link.close()


def test_an_admin_port_answers_http(bench: Any) -> None:
    bench.policy = answer(bench)
    check(bench, bench.listen(http_only=True, pick=("user-agent", ":authority")))


@pytest.mark.needs("http1")
def test_a_grpc_port_answers_http_too(bench: Any, channel: Any) -> None:
    bench.policy = answer(bench)
    port = bench.listen(pick=("user-agent", ":authority"))
    check(bench, port)
    bench.policy = bench.echo
    assert channel(port).unary_unary("/test/Echo")(b"m", timeout=30) == b"m"


def test_a_body_over_the_limit_is_413_and_a_bad_request_is_not_told(bench: Any) -> None:
    bench.policy = answer(bench)
    port = bench.listen(http_only=True, max_message_bytes=1000)
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    link.request("POST", "/", body=bytes(1001))
    assert link.getresponse().status == 413
    for broken in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\ncontent-length: x\r\n\r\n"):
        other = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        other.connect()
        other.sock.sendall(broken)
        assert b" 4" in (other.sock.recv(4096) or b" 400 or closed, at the least")[:16]
    bench.settled()
    assert not bench.of(api.HTTP)


def test_a_client_that_wants_the_connection_closed_gets_that(bench: Any) -> None:
    bench.policy = answer(bench)
    link = http.client.HTTPConnection("127.0.0.1", bench.listen(http_only=True), timeout=30)
    link.request("GET", "/", headers={"Connection": "close"})
    assert link.getresponse().read()
    assert link.sock is None or link.sock.recv(1) == b""


def test_a_client_that_leaves_is_told_as_cancelled(bench: Any) -> None:
    link = http.client.HTTPConnection("127.0.0.1", bench.listen(http_only=True), timeout=30)
    link.request("GET", "/")
    call = bench.wait(api.HTTP)[0][1]
    link.close()
    assert bench.wait(api.CALL_CANCELLED)[0][1] == call
    bench.do(lambda: bench.transport.respond(call, 200, [], b"late"))


@pytest.mark.needs("http2_plain")
def test_http2_that_is_not_grpc_is_http(bench: Any, raw: Any) -> None:
    bench.policy = answer(bench)
    client = raw.client(bench.listen(pick=(":authority",)))
    stream = client.h2.get_next_available_stream_id()
    client.h2.send_headers(stream, [(":method", "GET"), (":scheme", "http"), (":path", "/x?y"), (":authority", "me")], end_stream=True)
    client.flush()
    assert client.status(stream)[":status"] == "201"
    assert bench.of(api.HTTP)[0][3] == ("GET", "/x?y", (b"me",))


@pytest.mark.needs("http1")
@pytest.mark.parametrize("size", [0, 10, 5_000_000])
def test_http1_is_forwarded_whole(bench: Any, backend_server: int, size: int) -> None:
    upstream = bench.transport.connect(f"127.0.0.1:{backend_server}")
    bench.policy = bench.forwarding(upstream, (("x-new", b"1"),), ("secret-*",))
    link = http.client.HTTPConnection("127.0.0.1", bench.listen(peek=True), timeout=30)
    link.request("POST", "/p?q=1", body=bytes(size), headers={"x-a": "1", "secret-x": "s", "Host": "cart.example.com"})
    got = link.getresponse()
    assert (got.status, got.headers["x-upstream"]) == (207, "yes")
    method, path, headers, length = json.loads(got.read())
    headers = {name.lower(): value for name, value in headers.items()}
    assert (method, path, length) == ("POST", "/p?q=1", size)
    assert (headers["x-a"], headers["x-new"], headers["host"]) == ("1", "1", "cart.example.com")
    assert "secret-x" not in headers
    assert bench.wait(api.FORWARDED)[0][3] == (Outcome.DELIVERED, "207")


@pytest.mark.needs("http1")
def test_http1_to_nobody_is_refused_and_can_be_answered(bench: Any) -> None:
    upstream = bench.transport.connect("127.0.0.1:1")

    def policy(event: Event) -> None:
        if event[0] == api.HTTP:
            bench.transport.forward(event[1], upstream)
        elif event[0] == api.FORWARDED:
            bench.transport.respond(event[1], 503, [], b"nobody")

    bench.policy = policy
    link = http.client.HTTPConnection("127.0.0.1", bench.listen(peek=True), timeout=30)
    link.request("GET", "/")
    assert link.getresponse().status == 503
    assert bench.wait(api.FORWARDED)[0][3][0] is Outcome.REFUSED
