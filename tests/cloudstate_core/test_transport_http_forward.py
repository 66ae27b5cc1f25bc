"""HTTP/1.1 through the transport: bodies of every shape, answers of every size, connections that are used again, and their ends."""

from __future__ import annotations

import http.client
import http.server
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cloudstate_core.transport import api
from cloudstate_core.transport.api import Outcome

pytestmark = pytest.mark.needs("http1")
LARGE = 64 * 1024 * 1024


class Handler(http.server.BaseHTTPRequestHandler):
    """Echoes; '/large' sends LARGE bytes, '/early' answers before it has read the body."""

    protocol_version = "HTTP/1.1"
    seen: list[dict[str, str]]

    def do_POST(self) -> None:
        self.seen.append({name.lower(): value for name, value in self.headers.items()})
        if self.path == "/early":
            self.close_connection = True
            return self.answer(413, b"too much")
        if self.headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/chunked":
            self.send_response(200)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for start in range(0, len(body), 1000):
                piece = body[start : start + 1000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
            return None
        return self.answer(200, body)

    def do_GET(self) -> None:
        self.seen.append({name.lower(): value for name, value in self.headers.items()})
        if self.path == "/large":
            self.send_response(200)
            self.send_header("content-length", str(LARGE))
            self.end_headers()
            for _ in range(LARGE // 65536):
                self.wfile.write(bytes(65536))
        else:
            self.answer(200, self.path.encode())

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "12345")
        self.end_headers()

    def do_DELETE(self) -> None:
        self.send_response(204)
        self.end_headers()

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.send_header("connection", "keep-alive, x-once")
        self.send_header("x-once", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    """An HTTP/1.1 server of Python's own; `seen` = the headers of each request."""
    handler = type("Own", (Handler,), {"seen": []})
    found: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    found.daemon_threads, found.seen = True, handler.seen  # type: ignore[attr-defined]
    found.handle_error = lambda *_: None  # a client that leaves is no error
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture(params=[True, False], ids=["peek", "whole"])
def link(request: Any, bench: Any, server: Any) -> Iterator[http.client.HTTPConnection]:
    """A client of a front that passes everything on, bodies as they come or once they are whole."""
    bench.policy = bench.forwarding(bench.transport.connect(f"127.0.0.1:{server.server_address[1]}"))
    made = http.client.HTTPConnection("127.0.0.1", bench.listen(peek=request.param), timeout=30)
    made.peek = request.param  # type: ignore[attr-defined]
    yield made
    made.close()


@pytest.mark.parametrize("path", ["/plain", "/chunked"])
@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("size", [1, 3_000_000])
def test_bodies_pass_whole_however_they_are_sent(link: Any, server: Any, path: str, chunked: bool, size: int) -> None:
    body = (bytes(range(256)) * (size // 256 + 1))[:size]
    for _ in range(2):  # the second one on the same connections
        link.request("POST", path, body=iter([body[: size // 2], body[size // 2 :]]) if chunked else body, encode_chunked=chunked)
        answer = link.getresponse()
        assert answer.read() == body
        assert "x-once" not in answer.headers
    sent = server.seen[0]
    passed_through = chunked and link.peek  # a whole body has a length
    assert ("transfer-encoding" in sent, "content-length" in sent) == (passed_through, not passed_through)


def test_answers_without_a_body(link: Any) -> None:
    for _ in range(2):
        link.request("HEAD", "/")
        answer = link.getresponse()
        assert (answer.status, answer.headers["content-length"], answer.read()) == (200, "12345", b"")
        link.request("DELETE", "/")
        answer = link.getresponse()
        assert (answer.status, answer.read()) == (204, b"")


def test_a_client_that_waits_for_100_continue_gets_it(bench: Any, link: Any) -> None:
    raw = socket.create_connection(("127.0.0.1", link.port), timeout=30)
    raw.sendall(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    assert raw.recv(100).startswith(b"HTTP/1.1 100")
    raw.sendall(b"hello")
    answer = http.client.HTTPResponse(raw)
    answer.begin()
    assert (answer.status, answer.read()) == (200, b"hello")


@pytest.mark.parametrize("link", [True], indirect=True)
def test_an_answer_that_comes_before_the_body_was_sent_passes(bench: Any, link: Any) -> None:
    raw = socket.create_connection(("127.0.0.1", link.port), timeout=30)
    raw.sendall(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nsome")
    answer = http.client.HTTPResponse(raw)
    answer.begin()
    assert (answer.status, answer.read()) == (413, b"too much")


def test_a_large_answer_passes_at_the_pace_of_its_reader_and_counts_until_its_end(bench: Any, link: Any) -> None:
    link.request("GET", "/large")
    answer = link.getresponse()
    assert len(answer.read(1000)) == 1000
    bench.settled()
    assert not bench.of(api.FORWARDED)
    assert bench.transport.stats().open_calls == 1
    done = threading.Event()
    bench.do(lambda: bench.transport.drain(60.0, done.set))
    assert not done.wait(0.3), "a drain waits for an answer on its way"
    assert len(answer.read()) == LARGE - 1000
    assert bench.wait(api.FORWARDED)[0][3] == (Outcome.DELIVERED, "200")
    assert done.wait(30)


def test_a_client_that_leaves_a_large_answer_is_told_once(bench: Any, link: Any) -> None:
    link.request("GET", "/large")
    link.getresponse().read(1000)
    link.close()
    assert bench.wait(api.FORWARDED)[0][3][0] is Outcome.CANCELLED
    bench.settled()
    assert len(bench.of(api.FORWARDED, api.CALL_CANCELLED)) == 1


def test_hop_by_hop_headers_stay_on_their_hop(link: Any, server: Any) -> None:
    mine = {"Connection": "keep-alive, X-Mine", "X-Mine": "1", "Keep-Alive": "timeout=9", "TE": "trailers", "Proxy-Authorization": "x", "X-Kept": "1"}
    link.request("GET", "/", headers=mine)
    assert link.getresponse().read() == b"/"
    seen = server.seen[0]
    assert seen["x-kept"] == "1"
    assert not {"x-mine", "keep-alive", "te", "proxy-authorization"} & seen.keys()


def test_a_get_on_a_connection_that_the_upstream_closed_just_then_is_sent_again(bench: Any) -> None:
    def serve() -> None:
        for answers in (1, 2):  # the first connection is closed on its second request, unanswered
            connection, _ = listener.accept()
            with connection:
                for _ in range(answers):
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                if answers == 1:
                    connection.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        bench.policy = bench.forwarding(bench.transport.connect(f"127.0.0.1:{listener.getsockname()[1]}"))
        link = http.client.HTTPConnection("127.0.0.1", bench.listen(peek=True), timeout=30)
        for _ in range(3):
            link.request("GET", "/")
            answer = link.getresponse()
            assert (answer.status, answer.read()) == (200, b"ok")
