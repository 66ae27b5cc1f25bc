"""Bad input at the transport's server side: it is refused, policy never sees it, and the next caller is served."""

from __future__ import annotations

import socket
from typing import Any

import grpc
import pytest

from cloudstate_core.transport import api

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@pytest.fixture
def served(bench: Any, channel: Any) -> Any:
    """A listener that echoes, and a check that it still does and told policy of nothing else."""
    bench.policy = bench.echo
    port = bench.listen(max_message_bytes=1_000_000, max_header_bytes=16_384)

    def still_serves() -> None:
        assert channel(port).unary_unary("/test/Echo")(b"still", timeout=30) == b"still"
        bench.settled()
        assert [event[2] for event in bench.of(api.CALL)] == [b"still"]

    return port, still_serves


def test_a_message_over_the_limit_is_resource_exhausted(served: Any, channel: Any) -> None:
    port, still_serves = served
    with pytest.raises(grpc.RpcError) as failure:
        channel(port).unary_unary("/test/Echo")(bytes(1_000_001), timeout=30)
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    still_serves()


def test_a_message_at_the_limit_passes(bench: Any, channel: Any) -> None:
    bench.policy = bench.echo
    port = bench.listen(max_message_bytes=1_000_000)
    assert len(channel(port).unary_unary("/test/Echo")(bytes(1_000_000), timeout=30)) == 1_000_000


def test_a_length_that_lies_is_refused_without_waiting_for_the_bytes(served: Any, raw: Any) -> None:
    port, still_serves = served
    client = raw.client(port)
    stream = client.request(body=b"\x00\xff\xff\xff\xff" + b"x" * 10, end=False)
    answer = client.status(stream)
    assert answer.get("grpc-status") == "8" or "reset" in answer, answer
    still_serves()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "no message"),
        (b"\x00\x00\x00", "half a length prefix"),
        (b"\x00\x00\x00\x00\x0aabc", "half a message"),
        (b"\x00\x00\x00\x00\x01a\x00\x00\x00\x00\x01b", "two messages"),
        (b"\x01\x00\x00\x00\x01a", "compressed without an encoding"),
    ],
)
def test_a_unary_call_that_is_not_one_message_fails(served: Any, raw: Any, body: bytes, why: str) -> None:
    port, still_serves = served
    client = raw.client(port)
    answer = client.status(client.request(body=body))
    assert answer.get("grpc-status", "0") != "0" or "reset" in answer, (why, answer)
    still_serves()


def test_a_header_block_over_the_limit_is_refused(served: Any, raw: Any) -> None:
    port, still_serves = served
    client = raw.client(port)
    assert client.until(raw.events.RemoteSettingsChanged)  # and acknowledged: grpc holds a peer to its settings only then
    huge = tuple((f"x-{n}", "v" * 1000) for n in range(60))
    answer = client.status(client.request(body=raw.message(b"m"), headers=huge))
    assert answer.get("grpc-status", "0") != "0" or answer.get(":status") == "431" or answer.keys() & {"reset", "closed"}, answer
    still_serves()


def closes(port: int, sent: bytes, why: str) -> None:
    """Send it on a connection of its own, which must then be closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as link:
        link.sendall(sent)
        try:
            while link.recv(65536):
                pass
        except ConnectionError:
            pass
        except TimeoutError:
            pytest.fail(f"the connection was left open after {why}")


GARBAGE = {
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
    "a frame above the frame limit": PREFACE + b"\xff" * 200,
    "a SETTINGS frame of 5 bytes": PREFACE + b"\x00\x00\x05\x04\x00\x00\x00\x00\x00abcde",
    "broken HPACK": PREFACE + SETTINGS + b"\x00\x00\x04\x01\x05\x00\x00\x00\x01\xff\xff\xff\xff",
}


@pytest.mark.parametrize("why", GARBAGE)
def test_a_malformed_frame_closes_that_connection_alone(served: Any, why: str) -> None:
    port, still_serves = served
    closes(port, GARBAGE[why], why)
    still_serves()


@pytest.mark.needs("strict_frames")
def test_data_on_stream_0_closes_that_connection_alone(served: Any) -> None:
    port, still_serves = served
    closes(port, PREFACE + SETTINGS + b"\x00\x00\x04\x00\x00\x00\x00\x00\x00abcd", "DATA on stream 0")
    still_serves()


def test_thousands_of_resets_cost_nobody_else_anything(served: Any, raw: Any, channel: Any, bench: Any) -> None:
    """Rapid reset: streams opened and reset at once; policy may be told of some, never of an uncancelled one."""
    port, _ = served
    client = raw.client(port)
    bench.policy = lambda event: bench.echo(event) if event[2] == b"still" else None
    try:
        for _ in range(2000):
            stream = client.request(body=raw.message(b"m"), end=False)
            client.h2.reset_stream(stream, 8)
            client.flush()
    except (ConnectionError, TimeoutError):
        pass
    assert channel(port).unary_unary("/test/Echo")(b"still", timeout=30) == b"still"
    client.socket.close()
    bench.until(lambda: bench.transport.stats().open_calls == 0, "every reset call is forgotten")


def test_a_slow_reader_does_not_hold_up_the_others(bench: Any, raw: Any, channel: Any) -> None:
    bench.policy = lambda event: bench.transport.reply(event[1], bytes(5_000_000) if event[2] == b"big" else event[2])
    port = bench.listen()
    client = raw.client(port)
    stream = client.request(body=raw.message(b"big"))
    assert client.until(raw.events.DataReceived, stream) is not None
    assert channel(port).unary_unary("/test/Echo")(b"quick", timeout=30) == b"quick"
    received = sum(len(e.data) for e in client.data())
    assert received <= 65535
    for event in client.data():
        client.acknowledge(event)
    client.flush()
    assert client.status(stream)["grpc-status"] == "0"
    assert sum(len(e.data) for e in client.data()) == 5_000_005
