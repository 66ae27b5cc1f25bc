"""The transport suite's bench: a recorded transport under test, and peers that share no code with it (grpcio, python h2).

A test that takes `bench` runs once for each backend that has what the test `needs`: LIMITS tells, in one place, what grpcio lacks.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import importlib.util
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import pytest

from cloudstate_core.journal.api import Journal, JournalError
from cloudstate_core.journal.redis_address import redis_address
from cloudstate_core.journal.redis_journal import RedisJournal
from cloudstate_core.transport import api, create
from cloudstate_core.transport.api import Event, Header, ListenOptions, Transport
from tests import journal_stores

BACKENDS = ("native", "grpcio")
LIMITS = {
    "native": frozenset[str](),
    "grpcio": frozenset(
        {
            "authority",  # grpc.aio tells a server no :authority
            "http1",  # a gRPC port speaks no HTTP/1.1 (an http_only port does)
            "http2_plain",  # nor plain HTTP/2
            "user_agent",  # a channel writes its own user-agent
            "connections",  # grpc.aio does not count connections
            "strict_frames",  # grpc's core forgives DATA on stream 0
            "opaque_messages",  # grpc unpacks messages on their way
            "many_connections",  # grpc's core keeps one per channel
        }
    ),
}
PATIENCE = 60.0
"""Seconds until a condition that has not come is a failure."""
DEADLINES = (0.3, 3.0, 20.0)
"""Seconds to try in turn where a call must get somewhere and run out of its time there: on a busy machine a short time is over before."""


def pytest_configure(config: Any) -> None:
    """Register the suite's marker."""
    config.addinivalue_line("markers", "needs(*capabilities): runs only on transport backends that have them (see LIMITS)")


def pytest_generate_tests(metafunc: Any) -> None:
    """One run for each backend that can do what the test needs."""
    if "transport_backend" in metafunc.fixturenames:
        needed = {need for marker in metafunc.definition.iter_markers("needs") for need in marker.args}
        metafunc.parametrize("transport_backend", [name for name in BACKENDS if not needed & LIMITS[name]])


class Bench:
    """A transport whose events are recorded; `policy` handles each on the callback thread."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.events: list[Event] = []
        self.threads: set[int] = set()
        self.policy: Callable[[Event], object] = lambda event: None
        self._told = threading.Condition()

    def on_batch(self, events: list[Event]) -> None:
        """Record and handle a batch."""
        with self._told:
            self.events.extend(events)
            self.threads.add(threading.get_ident())
            self._told.notify_all()
        for event in events:
            self.policy(event)

    def listen(self, **options: Any) -> int:
        """A listening port; '/test/Chat' streams."""
        options.setdefault("streaming_paths", frozenset({"/test/Chat"}))
        return self.transport.listen("127.0.0.1", 0, ListenOptions(**options))

    def of(self, *kinds: int) -> list[Event]:
        """The events of these kinds so far."""
        with self._told:
            return [event for event in self.events if event[0] in kinds]

    def wait(self, kind: int, count: int = 1) -> list[Event]:
        """The events of a kind, once there are `count`."""
        self.until(lambda: len(self.of(kind)) >= count, f"{count} events of kind {kind}")
        return self.of(kind)

    def until(self, true: Callable[[], bool], what: str) -> None:
        """Wait on a state."""
        deadline = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < deadline, f"never came: {what}; events: {[(e[0], e[1], e[3]) for e in self.events[-20:]]}"
            with self._told:
                self._told.wait(0.02)

    def do(self, action: Callable[[], Any]) -> Any:
        """Run on the callback thread; its result."""
        result: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def run() -> None:
            try:
                result.set_result(action())
            except BaseException as error:
                result.set_exception(error)

        self.transport.post(run)
        return result.result(PATIENCE)

    def settled(self) -> None:
        """Return when the events of everything done so far have been told."""
        for _ in range(5):
            self.do(lambda: None)

    def echo(self, event: Event) -> None:
        """A policy: answer unary calls, '/test/Chat' message by message."""
        kind, call, data, detail = event
        if kind == api.CALL and detail[0] != "/test/Chat":
            self.transport.reply(call, data)
        elif kind == api.CALL_MESSAGE or (kind == api.CALL and detail[1] is not None):
            self.transport.send_message(call, data)
        if kind == api.CALL_END or (kind == api.CALL and detail[0] == "/test/Chat" and detail[1]):
            self.transport.finish(call, 0)

    def forwarding(self, upstream: int, headers: tuple[Header, ...] = (), remove: tuple[str, ...] = ()) -> Callable[[Event], None]:
        """A policy: pass every call on."""

        def policy(event: Event) -> None:
            if event[0] in (api.CALL, api.HTTP):
                self.transport.forward(event[1], upstream, headers, remove)

        return policy


@pytest.fixture
def bench(transport_backend: str) -> Iterator[Bench]:
    """A started transport of the backend under test."""
    if transport_backend == "native" and importlib.util.find_spec("cloudstate_engine") is None and not os.environ.get("CI"):
        pytest.skip("the native engine is not built here; with CI set this is a failure")
    transport = create(transport_backend)
    found = Bench(transport)
    transport.start(found.on_batch)
    yield found
    transport.stop()
    transport.join()


class PeerServer:
    """A grpcio server with the behaviours a test needs; it shares no code with the transports."""

    def __init__(self, port: int = 0) -> None:
        self.release = threading.Event()
        self.holding = threading.Event()
        """`slow` has a message that it has not given back."""
        self.cancelled = threading.Event()
        self.produced = 0
        self.seen: list[tuple[str, list[Any]]] = []
        options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
        self._server = grpc.server(concurrent.futures.ThreadPoolExecutor(32), handlers=[self._handler()], options=options)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()
        self.target = f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        """End at once."""
        self.release.set()
        self._server.stop(0).wait()

    def _handler(self) -> grpc.GenericRpcHandler:
        peer = self

        class Handler(grpc.GenericRpcHandler):
            def service(self, details: Any) -> Any:
                behaviour = getattr(peer, details.method.rsplit("/", 1)[1].lower())

                def counted(requests: Any, context: Any) -> Any:
                    peer.seen.append((details.method, list(context.invocation_metadata())))
                    return behaviour(requests, context)

                return grpc.stream_stream_rpc_method_handler(counted)

        return Handler()

    def echo(self, requests: Any, context: Any) -> Iterator[bytes]:
        """Each message back, as it comes."""
        yield from requests

    chat = echo

    def inspect(self, requests: Any, context: Any) -> Iterator[bytes]:
        """The request's headers as JSON; headers and trailers of its own."""
        context.send_initial_metadata([("x-answer", "one"), ("x-answer-bin", b"\x00\xff")])
        messages = [message.decode() for message in requests]
        context.set_trailing_metadata([("x-trailer", "two"), ("x-trailer-bin", b"\x01\xfe")])
        headers = [(k, v.decode("latin-1") if isinstance(v, bytes) else v) for k, v in context.invocation_metadata()]
        yield json.dumps({"headers": headers, "messages": messages}).encode()

    def slow(self, requests: Any, context: Any) -> Iterator[bytes]:
        """Each message back once `release` is set."""
        if not context.add_callback(self.cancelled.set):
            self.cancelled.set()
        for message in requests:
            self.holding.set()
            while not self.release.wait(0.05):
                if not context.is_active():
                    return
            yield message

    def fail(self, requests: Any, context: Any) -> Iterator[bytes]:
        """A refusal of the application's own."""
        context.set_trailing_metadata([("x-why", "because")])
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "nicht möglich: 100%")
        yield b""

    def refuse(self, requests: Any, context: Any) -> Iterator[bytes]:
        """'Not executed, ask elsewhere'."""
        context.set_trailing_metadata([(api.REFUSED_HEADER, "not-owner;generation=12;next=pod-b")])
        context.abort(grpc.StatusCode.UNAVAILABLE, "not the owner")
        yield b""

    def greet(self, requests: Any, context: Any) -> Iterator[bytes]:
        """Speaks first."""
        yield b"hello"
        yield from requests

    def download(self, requests: Any, context: Any) -> Iterator[bytes]:
        """64 MB in messages of 64 KB."""
        next(requests)
        for _ in range(1024):
            self.produced += 65536
            yield bytes(65536)


@pytest.fixture
def peers() -> Iterator[Callable[..., PeerServer]]:
    """Start grpcio servers that end with the test."""
    with contextlib.ExitStack() as stack:

        def start(port: int = 0) -> PeerServer:
            peer = PeerServer(port)
            stack.callback(peer.stop)
            return peer

        yield start


@pytest.fixture
def channel() -> Iterator[Callable[[int], grpc.Channel]]:
    """Open grpcio channels to a port; they close with the test."""
    with contextlib.ExitStack() as stack:

        def open_channel(port: int) -> grpc.Channel:
            options = [
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_retries", 0),
                ("grpc.max_metadata_size", 1 << 20),
            ]
            return stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}", options=options))

        yield open_channel


def message(data: bytes, compressed: int = 0) -> bytes:
    """A gRPC length-prefixed message."""
    return bytes([compressed]) + len(data).to_bytes(4, "big") + data


class RawClient:
    """A python-h2 client with nothing done behind the test's back (no window updates unless `ack`)."""

    def __init__(self, port: int, window: int = 65535) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.events: list[Any] = []
        self.flush()

    def flush(self) -> None:
        """Write what h2 has to say."""
        self.socket.sendall(self.h2.data_to_send())

    def request(self, path: str = "/test/Echo", body: bytes | None = None, end: bool = True, headers: tuple[Any, ...] = ()) -> int:
        """Send one gRPC request; the body is as given (framing too). Returns the stream id."""
        stream = self.h2.get_next_available_stream_id()
        block = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "cart.example.com")]
        self.h2.send_headers(stream, [*block, ("content-type", "application/grpc"), ("te", "trailers"), *headers], end_stream=False)
        if body is not None:
            self.h2.send_data(stream, body, end_stream=end)
        self.flush()
        return stream

    def read(self) -> bytes:
        """Raw bytes from the connection, b'' at its end."""
        try:
            return self.socket.recv(65536)
        except ConnectionError:
            return b""

    def pump(self, ack: bool = False) -> bool:
        """Read once; False at the end of the connection."""
        if not (data := self.read()):
            return False
        for event in self.h2.receive_data(data):
            self.events.append(event)
            if ack and isinstance(event, h2.events.DataReceived):
                self.acknowledge(event)
        with contextlib.suppress(ConnectionError):
            self.flush()
        return True

    def arrived(self) -> None:
        """Return when the other side has read everything sent so far: it answers a PING in its turn."""
        self.h2.ping(b"arrived?")
        self.flush()
        assert self.until(h2.events.PingAckReceived), "the connection has ended"

    def acknowledge(self, event: Any) -> None:
        """Open the windows again for received data."""
        if event.flow_controlled_length:
            self.h2.increment_flow_control_window(event.flow_controlled_length)
            with contextlib.suppress(h2.exceptions.StreamClosedError):
                self.h2.increment_flow_control_window(event.flow_controlled_length, event.stream_id)

    def until(self, kind: type, stream: int | None = None) -> Any:
        """The first event of a type (of a stream), or None when the connection ends first."""
        while True:
            for event in self.events:
                if isinstance(event, kind) and (stream is None or event.stream_id == stream):
                    return event
            if not self.pump():
                return None

    def data(self) -> list[Any]:
        """The DATA events so far."""
        return [event for event in self.events if isinstance(event, h2.events.DataReceived)]

    def status(self, stream: int) -> dict[str, str]:
        """Response headers and trailers of a stream together, once it has ended; {'reset': code} if it was reset."""
        while True:
            mine = [e for e in self.events if getattr(e, "stream_id", None) == stream]
            for event in mine:
                if isinstance(event, h2.events.StreamReset):
                    return {"reset": str(int(event.error_code))}
            if any(isinstance(e, h2.events.StreamEnded) for e in mine):
                kinds = (h2.events.ResponseReceived, h2.events.TrailersReceived)
                return {k: v for e in mine if isinstance(e, kinds) for k, v in e.headers}
            if not self.pump(ack=True):
                return {"closed": "1"}


class RawServer:
    """A python-h2 server; `behaviour(connection, event)` acts on each event and returns True to close the connection, as `cut` does."""

    def __init__(self, behaviour: Callable[[h2.connection.H2Connection, Any], object]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.behaviour = behaviour
        self.events: collections.deque[Any] = collections.deque()
        self.connections = 0
        self.greets_after = 0.0
        """Seconds until it sends its settings."""
        self.lock = threading.Lock()
        """Held while the state of a connection is used: python-h2 is for one thread at a time."""
        self._links: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.connections += 1
                self._links.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        state.initiate_connection()
        with contextlib.suppress(OSError, h2.exceptions.ProtocolError), link:
            time.sleep(self.greets_after)
            link.sendall(state.data_to_send())
            while data := link.recv(65536):
                ends = False
                with self.lock:
                    for event in state.receive_data(data):
                        self.events.append(event)
                        ends = bool(self.behaviour(state, event)) or ends
                    link.sendall(state.data_to_send())
                if ends:
                    return

    def cut(self) -> None:
        """Lose every connection."""
        for link in self._links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Accept no more."""
        self.listener.close()


@pytest.fixture
def raw() -> Iterator[SimpleNamespace]:
    """Raw HTTP/2 peers: `client(port, …)`, `server(behaviour)`, `message(bytes)`; closed with the test."""
    with contextlib.ExitStack() as stack:

        def client(port: int, window: int = 65535) -> RawClient:
            made = RawClient(port, window)
            stack.callback(made.socket.close)
            return made

        def server(behaviour: Callable[[h2.connection.H2Connection, Any], object]) -> RawServer:
            made = RawServer(behaviour)
            stack.callback(made.close)
            return made

        yield SimpleNamespace(client=client, server=server, message=message, events=h2.events)


# Journals ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=journal_stores.STORES)
def journal(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Journal]:
    """An opened journal, once for each store."""
    with journal_stores.store(request.param, tmp_path, lambda: request.getfixturevalue("shared_redis").url)() as opened:
        yield opened


@pytest.fixture(params=journal_stores.DURABLE)
def store(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> journal_stores.Store:
    """Each store that keeps what it was given, to be opened again and again."""
    return journal_stores.store(request.param, tmp_path, lambda: request.getfixturevalue("shared_redis").url)


@pytest.fixture
def keyspace(tmp_path: pathlib.Path) -> str:
    """A keyspace in Redis of the test's own."""
    return f"redis/{tmp_path.name}"


@pytest.fixture
def open_redis(keyspace: str) -> Iterator[Callable[..., RedisJournal]]:
    """Open journals, by default of the test's own keyspace; JournalError when that is impossible."""
    journals: list[RedisJournal] = []

    def start(server: Any, shards: int = 4, keyspace: str = keyspace, password: str = "", url: str = "") -> RedisJournal:
        opened: concurrent.futures.Future[Journal | JournalError] = concurrent.futures.Future()
        journals.append(RedisJournal(redis_address(url or server.url, password), keyspace, shards, opened.set_result))
        result = opened.result(PATIENCE)
        if isinstance(result, JournalError):
            raise result
        assert result is journals[-1]
        return journals[-1]

    yield start
    for journal in journals:
        journal.close()
