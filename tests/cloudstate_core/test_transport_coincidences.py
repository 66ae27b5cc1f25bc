"""Two things in one moment: the callback thread stands still while both happen, and meets them together."""

from __future__ import annotations

import contextlib
import functools
import http.client
import queue
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cloudstate_core.transport import api
from cloudstate_core.transport.api import Outcome


@contextlib.contextmanager
def standing_still(bench: Any) -> Iterator[None]:
    """What happens in here, and what is posted, meets the transport at once."""
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        go_on.wait(30)

    bench.transport.post(hold)
    assert held.wait(30)
    try:
        yield
    finally:
        go_on.set()


def ends(bench: Any) -> list[tuple[int, Any]]:
    """How calls ended, once something has told it and nothing more comes."""
    bench.until(lambda: bool(bench.of(api.FORWARDED, api.CALL_CANCELLED)), "the call ends")
    bench.settled()
    return [(kind, detail[0] if kind == api.FORWARDED else "") for kind, _, _, detail in bench.of(api.FORWARDED, api.CALL_CANCELLED)]


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """Takes connections and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def upstream(bench: Any, listener: socket.socket) -> int:
    found: int = bench.transport.connect(f"127.0.0.1:{listener.getsockname()[1]}")
    return found


@pytest.mark.needs("http1")
def test_a_caller_that_leaves_as_its_request_is_forwarded_ends_the_forward(bench: Any, silent: socket.socket) -> None:
    link = http.client.HTTPConnection("127.0.0.1", bench.listen(peek=True), timeout=30)
    link.request("GET", "/")
    call = bench.wait(api.HTTP)[0][1]
    to = upstream(bench, silent)
    with standing_still(bench):
        link.close()
        bench.transport.post(lambda: bench.transport.forward(call, to))
    assert ends(bench) == [(api.FORWARDED, Outcome.CANCELLED)]


@pytest.mark.needs("http1")
def test_a_caller_that_leaves_as_its_forwarded_request_is_answered_ends_the_forward(bench: Any, silent: socket.socket) -> None:
    bench.policy = bench.forwarding(upstream(bench, silent))
    link = http.client.HTTPConnection("127.0.0.1", bench.listen(peek=True), timeout=30)
    link.request("GET", "/")
    call = bench.wait(api.HTTP)[0][1]
    taken, _ = silent.accept()
    with taken:
        assert taken.recv(1000)
        with standing_still(bench):
            link.close()
            bench.transport.post(lambda: bench.transport.respond(call, 503, [], b""))
        assert ends(bench) == [(api.FORWARDED, Outcome.CANCELLED)]


def test_an_answer_of_policy_stands_against_a_refusal(bench: Any, raw: Any) -> None:
    """Which of the two a call meets first differs from time to time."""
    asked: queue.Queue[tuple[Any, int]] = queue.Queue()

    def behaviour(state: Any, event: Any) -> None:
        if isinstance(event, raw.events.StreamEnded):
            asked.put((state, event.stream_id))

    refusing = raw.server(behaviour)
    bench.policy = bench.forwarding(bench.transport.connect(refusing.target))
    client = raw.client(bench.listen())
    for count in range(1, 101):
        stream = client.request(body=raw.message(b"m"))
        state, refused = asked.get(timeout=30)
        call = bench.wait(api.CALL, count)[-1][1]
        with standing_still(bench), refusing.lock:
            answer = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "14"), (api.REFUSED_HEADER, "not-owner")]
            state.send_headers(refused, answer, end_stream=True)
            refusing._links[0].sendall(state.data_to_send())
            bench.transport.post(functools.partial(bench.transport.finish, call, 10, "by hand"))
        assert bench.wait(api.FORWARDED, count)[-1][3][0] is Outcome.CANCELLED, count
        assert client.status(stream)["grpc-status"] == "10"


def test_a_caller_that_leaves_amid_its_request_is_no_failure_of_the_upstream(bench: Any, raw: Any) -> None:
    asked = threading.Event()

    def behaviour(state: Any, event: Any) -> None:
        if isinstance(event, raw.events.DataReceived):
            asked.set()

    bench.policy = bench.forwarding(bench.transport.connect(raw.server(behaviour).target))
    client = raw.client(bench.listen(peek=True))
    stream = client.request("/test/Upload", raw.message(b"a"), end=False)
    assert asked.wait(30)
    client.h2.reset_stream(stream, 8)
    client.flush()
    assert ends(bench) == [(api.FORWARDED, Outcome.CANCELLED)]


def test_callers_that_leave_together_cost_those_who_stay_nothing(bench: Any, raw: Any) -> None:
    client = raw.client(bench.listen())
    stream = client.request(body=raw.message(b"stays"))
    call = bench.wait(api.CALL)[0][1]
    with standing_still(bench):
        for _ in range(100):
            client.h2.reset_stream(client.request(body=raw.message(b"leaves")), 8)
        client.flush()
    bench.settled()
    bench.do(lambda: bench.transport.reply(call, b"kept"))
    assert client.status(stream)["grpc-status"] == "0"
    assert b"".join(event.data for event in client.data()) == raw.message(b"kept")
