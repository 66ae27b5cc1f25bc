"""What policy relies on for plain HTTP on a listener that does not peek: whole bodies, all headers, and forwards that can be refused."""

from __future__ import annotations

import collections
import http.client
import http.server
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, Header, Outcome

HOP: tuple[Header, ...] = (("cloudstate-hop", b"1"),)
REFUSAL = "not-owner;generation=12;next=pod-b"


class Seen(collections.deque[tuple[str, str, dict[str, str], bytes]]):
    """Requests that a server has got: method, target, headers, body."""


@pytest.fixture
def servers() -> Iterator[Callable[[Callable[[http.server.BaseHTTPRequestHandler], None]], tuple[str, Seen]]]:
    """Start HTTP/1.1 servers of Python's own, each answering as it is told to; their addresses and what they have seen."""
    started: list[http.server.ThreadingHTTPServer] = []

    def start(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> tuple[str, Seen]:
        seen = Seen()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                seen.append((self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body))
                answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        started.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"127.0.0.1:{server.server_address[1]}", seen

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def answers(status: int, *headers: tuple[str, str], body: bytes = b"ok") -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    """A server's whole answer."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in (*headers, ("content-length", str(len(body)))):
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def asking(bench: Any, first: str, then: str) -> Callable[[Event], None]:
    """A policy: ask one upstream, and the other one when it refuses."""
    upstreams = bench.transport.connect(first), bench.transport.connect(then)

    def policy(event: Event) -> None:
        if event[0] in (api.CALL, api.HTTP):
            bench.transport.forward(event[1], upstreams[0], HOP)
        elif event[0] == api.FORWARDED and event[3][0] is Outcome.REFUSED:
            bench.transport.forward(event[1], upstreams[1], [("cloudstate-hop", b"2")])

    return policy


def test_an_admin_ports_event_has_its_whole_body_and_all_headers(bench: Any) -> None:
    def policy(event: Event) -> None:
        if event[0] == api.HTTP:
            seen.append((event[2], bench.transport.headers(event[1])))
            bench.transport.respond(event[1], 200, [], b"")

    seen: list[Any] = []
    bench.policy = policy
    link = http.client.HTTPConnection("127.0.0.1", bench.listen(http_only=True, pick=("x-a-bin",)), timeout=30)
    body = bytes(range(256)) * 4000
    sent = {"X-A": "1", "x-a-bin": "AP8", "x-b-bin": "AP+AAA==", "x-c-bin": "not base64!", "Content-Type": "a/b"}
    link.request("POST", "/p", body=body, headers=sent)
    assert link.getresponse().status == 200
    assert seen[0][0] == body
    headers = dict(seen[0][1])
    assert (headers["x-a"], headers["x-a-bin"], headers["x-b-bin"]) == (b"1", b"\x00\xff", b"\x00\xff\x80\x00")
    assert (headers["x-c-bin"], headers["content-type"]) == (b"not base64!", b"a/b")
    assert headers["content-length"] == str(len(body)).encode()
    assert headers["host"] == f"127.0.0.1:{link.port}".encode()
    assert bench.of(api.HTTP)[0][3] == ("POST", "/p", (b"\x00\xff",))


@pytest.mark.needs("http1")
@pytest.mark.parametrize("chunked", [True, False])
def test_a_chunked_body_is_whole_too(bench: Any, chunked: bool) -> None:
    bench.policy = lambda event: bench.transport.respond(event[1], 200, [], event[2][::-1])
    link = http.client.HTTPConnection("127.0.0.1", bench.listen(), timeout=30)
    parts = [b"a" * 100_000, b"b", b"c" * 3_000_000]
    for _ in range(2):
        link.request("POST", "/", body=iter(parts) if chunked else b"".join(parts), encode_chunked=chunked)
        assert link.getresponse().read() == b"".join(parts)[::-1]


@pytest.mark.needs("http1")
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_refused_request_is_passed_on_whole_again(bench: Any, servers: Any, method: str, chunked: bool) -> None:
    refusing, refused = servers(answers(503, ("cloudstate-refused", REFUSAL), body=b"not the owner"))
    owner, taken = servers(answers(201, ("x-owner", "yes"), ("x-answer-bin", "AP8=")))
    bench.policy = asking(bench, refusing, owner)
    body = b"" if method == "GET" else bytes(range(256)) * 8000
    link = http.client.HTTPConnection("127.0.0.1", bench.listen(), timeout=30)
    sent = {"X-A": "1", "x-a-bin": "AP8", "cloudstate-hop": "0", "content-type": "application/json", "Host": "cart.example.com"}
    for count in (1, 2):
        link.request(method, "/p/a?q=1%20", body=iter([body[:1000], body[1000:]]) if chunked else body, headers=sent, encode_chunked=chunked)
        answer = link.getresponse()
        assert (answer.status, answer.headers["x-owner"], answer.headers["x-answer-bin"], answer.read()) == (201, "yes", "AP8=", b"ok")
        assert "cloudstate-refused" not in answer.headers
        ended = [event[3] for event in bench.wait(api.FORWARDED, 2 * count)[-2:]]
        assert ended == [(Outcome.REFUSED, REFUSAL), (Outcome.DELIVERED, "201")]
        for hop, (got_method, target, headers, got_body) in (("1", refused[-1]), ("2", taken[-1])):
            assert (got_method, target, got_body) == (method, "/p/a?q=1%20", body)
            assert (headers["x-a"], headers["x-a-bin"], headers["content-type"]) == ("1", "AP8", "application/json")
            assert (headers["cloudstate-hop"], headers["host"]) == (hop, "cart.example.com")
            assert "transfer-encoding" not in headers
    assert (len(refused), len(taken)) == (2, 2)
    assert not bench.of(api.CALL_CANCELLED)


@pytest.mark.needs("http1")
def test_a_refused_request_can_be_answered_by_policy_whole_and_piece_by_piece(bench: Any, servers: Any) -> None:
    refusing, _ = servers(answers(503, ("cloudstate-refused", REFUSAL)))
    upstream = bench.transport.connect(refusing)

    def policy(event: Event) -> None:
        if event[0] == api.HTTP:
            bench.transport.forward(event[1], upstream)
            bench.transport.respond_begin(event[1], 500)  # it is away: no-ops
            bench.transport.respond_data(event[1], b"x")
            bench.transport.respond_end(event[1])
        elif bench.of(api.HTTP)[-1][3][1] == "/whole":
            bench.transport.respond(event[1], 200, [], b"by hand")
        else:
            bench.transport.respond_begin(event[1], 200)
            bench.transport.respond_data(event[1], b"by ")
            bench.transport.respond_data(event[1], b"hand")
            bench.transport.respond_end(event[1])

    bench.policy = policy
    link = http.client.HTTPConnection("127.0.0.1", bench.listen(), timeout=30)
    for path in ("/whole", "/pieces"):
        link.request("GET", path)
        answer = link.getresponse()
        assert (answer.status, answer.read()) == (200, b"by hand")
    bench.settled()
    assert [event[3][0] for event in bench.of(api.FORWARDED)] == [Outcome.REFUSED] * 2
    assert not bench.of(api.CALL_CANCELLED)


@pytest.mark.needs("http1")
@pytest.mark.parametrize("peek", [True, False])
def test_a_streamed_answer_of_the_upstream_passes_as_it_comes(bench: Any, servers: Any, peek: bool) -> None:
    more = threading.Semaphore(0)

    def stream(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        for n in range(5):
            line = b"data: %d\n" % n
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            assert more.acquire(timeout=30)
        handler.wfile.write(b"0\r\n\r\n")

    bench.policy = bench.forwarding(bench.transport.connect(servers(stream)[0]), HOP)
    link = http.client.HTTPConnection("127.0.0.1", bench.listen(peek=peek), timeout=30)
    link.request("POST", "/", body=b"go")
    answer = link.getresponse()
    for n in range(5):
        assert answer.readline() == b"data: %d\n" % n
        more.release()
    assert answer.read() == b""
    assert bench.wait(api.FORWARDED)[0][3] == (Outcome.DELIVERED, "200")


# HTTP/2 -----------------------------------------------------------------------------------------------------------------


def ask(client: Any, method: str, headers: tuple[Any, ...] = (), body: bytes | None = None) -> int:
    """Send one plain HTTP/2 request, a body in small frames."""
    stream = int(client.h2.get_next_available_stream_id())
    block = [(":method", method), (":scheme", "http"), (":path", "/p/a?q=1%20"), (":authority", "cart.example.com"), *headers]
    client.h2.send_headers(stream, block, end_stream=body is None)
    for start in range(0, len(body or b""), 1000):
        client.h2.send_data(stream, (body or b"")[start : start + 1000])
    if body is not None:
        client.h2.end_stream(stream)
    client.flush()
    return stream


@pytest.mark.needs("http2_plain")
@pytest.mark.parametrize("size", [None, 0, 50_000])
def test_a_refused_request_is_passed_on_whole_again_over_http2(bench: Any, raw: Any, size: int | None) -> None:
    def answering(status: str, *headers: tuple[str, str]) -> Callable[[Any, Any], None]:
        def behaviour(state: Any, event: Any) -> None:
            if isinstance(event, raw.events.DataReceived):
                state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if isinstance(event, raw.events.StreamEnded):
                state.send_headers(event.stream_id, [(":status", status), *headers])
                state.send_data(event.stream_id, b"body of " + status.encode(), end_stream=True)

        return behaviour

    refusing, owner = raw.server(answering("503", ("cloudstate-refused", REFUSAL))), raw.server(answering("201", ("x-owner", "yes")))
    bench.policy = asking(bench, refusing.target, owner.target)
    client = raw.client(bench.listen())
    body = None if size is None else bytes(range(250)) * (size // 250)
    stream = ask(client, "PUT", (("x-a", "1"), ("x-a-bin", "AP8"), ("content-type", "application/json")), body)
    answer = client.status(stream)
    assert (answer[":status"], answer["x-owner"], "cloudstate-refused" in answer) == ("201", "yes", False)
    assert b"".join(event.data for event in client.data()) == b"body of 201"
    assert [event[3] for event in bench.wait(api.FORWARDED, 2)] == [(Outcome.REFUSED, REFUSAL), (Outcome.DELIVERED, "201")]
    for server, hop in ((refusing, "1"), (owner, "2")):
        [request] = [event for event in server.events if isinstance(event, raw.events.RequestReceived)]
        headers = dict(request.headers)
        assert (headers[":method"], headers[":path"], headers["x-a"], headers["x-a-bin"]) == ("PUT", "/p/a?q=1%20", "1", "AP8")
        assert (headers["cloudstate-hop"], headers["content-type"]) == (hop, "application/json")
        assert b"".join(event.data for event in server.events if isinstance(event, raw.events.DataReceived)) == (body or b"")
    event = bench.of(api.HTTP)[0]
    assert (event[2], event[3]) == (body or b"", ("PUT", "/p/a?q=1%20", ()))


@pytest.mark.needs("http2_plain")
def test_a_streamed_answer_of_the_upstream_passes_as_it_comes_over_http2(bench: Any, raw: Any) -> None:
    more = threading.Semaphore(0)
    states: list[Any] = []

    def behaviour(state: Any, event: Any) -> None:
        if isinstance(event, raw.events.StreamEnded):
            state.send_headers(event.stream_id, [(":status", "200")])
        if isinstance(event, raw.events.PingReceived | raw.events.StreamEnded):
            states.append(state)

    server = raw.server(behaviour)
    bench.policy = bench.forwarding(bench.transport.connect(server.target), HOP)
    client = raw.client(bench.listen())
    stream = ask(client, "GET")
    assert client.until(raw.events.ResponseReceived, stream)
    for n in range(5):
        with server.lock:
            states[0].send_data(1, b"%d" % n, end_stream=n == 4)
            server._links[0].sendall(states[0].data_to_send())
        while len(client.data()) <= n:
            assert client.pump()
        assert client.data()[n].data == b"%d" % n
    assert client.until(raw.events.StreamEnded, stream)
    assert not more.acquire(blocking=False)
    assert bench.wait(api.FORWARDED)[0][3] == (Outcome.DELIVERED, "200")


@pytest.mark.needs("http2_plain")
def test_all_headers_of_an_http2_request_are_told(bench: Any, raw: Any) -> None:
    def policy(event: Event) -> None:
        if event[0] == api.HTTP:
            seen.append(bench.transport.headers(event[1]))
            bench.transport.respond(event[1], 200, [], b"")

    seen: list[list[Header]] = []
    bench.policy = policy
    client = raw.client(bench.listen())
    assert client.status(ask(client, "GET", (("x-a", "1"), ("x-b", "2"), ("x-a", "3"), ("x-a-bin", "AP8="))))[":status"] == "200"
    assert [header for header in seen[0] if header[0] == "x-a"] == [("x-a", b"1"), ("x-a", b"3")]
    assert {("x-b", b"2"), ("x-a-bin", b"\x00\xff")} <= set(seen[0])
    assert not [name for name, _ in seen[0] if name.startswith(":")]


# gRPC-Web ---------------------------------------------------------------------------------------------------------------

WEB = ["application/grpc-web", "application/grpc-web+proto", "application/grpc-web-text", "application/grpc-web-text+proto"]


@pytest.mark.needs("http1")
@pytest.mark.parametrize("content_type", [*WEB, "application/grpc"])
def test_grpc_web_is_plain_http(bench: Any, content_type: str) -> None:
    bench.policy = lambda event: bench.transport.respond(event[1], 200, [("content-type", content_type.encode())], event[2])
    link = http.client.HTTPConnection("127.0.0.1", bench.listen(pick=("content-type",)), timeout=30)
    link.request("POST", "/test/Echo", body=b"\0\0\0\0\1a", headers={"content-type": content_type})
    assert link.getresponse().read() == b"\0\0\0\0\1a"
    assert bench.events == [(api.HTTP, bench.events[0][1], b"\0\0\0\0\1a", ("POST", "/test/Echo", (content_type.encode(),)))]


@pytest.mark.needs("http2_plain")
@pytest.mark.parametrize("content_type", WEB)
def test_grpc_web_is_plain_http_over_http2(bench: Any, raw: Any, content_type: str) -> None:
    bench.policy = lambda event: bench.transport.respond(event[1], 200, [], event[2])
    client = raw.client(bench.listen())
    stream = ask(client, "POST", (("content-type", content_type),), b"\0\0\0\0\1a")
    assert client.status(stream)[":status"] == "200"
    assert [event[0] for event in bench.events] == [api.HTTP]
    assert b"".join(event.data for event in client.data()) == b"\0\0\0\0\1a"
