"""Two things in one moment: the callback thread stands still while both happen, and meets them together."""

from __future__ import annotations

import contextlib
import http.client
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
