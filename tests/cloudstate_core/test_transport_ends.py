"""Before its beginning nothing is told of a call, and nothing after its end; what was answered before still arrives."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, ListenOptions

LARGE = bytes(1_000_000)
"""More than a client's window takes."""


@pytest.mark.parametrize("how", ["reset", "malformed"])
def test_of_a_call_that_ends_before_it_is_told_nothing_is_told(transport_backend: str, bench: Any, raw: Any, how: str) -> None:
    other = type(bench.transport)()
    try:
        port = other.listen("127.0.0.1", 0, ListenOptions(streaming_paths=frozenset({"/test/Chat"})))
        client = raw.client(port)
        second = raw.message(b"two", compressed=how == "malformed")
        stream = client.request("/test/Chat", raw.message(b"one") + second, end=False)
        client.arrived()
        if how == "reset":
            client.h2.reset_stream(stream, 8)
            client.arrived()
        last, told, whole = raw.client(port).request(body=raw.message(b"last")), list[Event](), threading.Event()
        assert last

        def on_batch(events: list[Event]) -> None:
            told.extend(events)
            if any(event[2] == b"last" for event in events):
                whole.set()

        other.start(on_batch)
        assert whole.wait(30)
        known: set[int] = set()
        for kind, call, _, _ in told:
            assert kind == api.CALL or call in known
            known.add(call)
    finally:
        other.stop()
        other.join()


def test_of_a_call_that_policy_has_finished_nothing_more_is_told_while_its_answer_waits(bench: Any, raw: Any) -> None:
    client = raw.client(bench.listen())
    stream = client.request("/test/Chat", raw.message(b"one"), end=False)
    call = bench.wait(api.CALL)[0][1]
    bench.settled()
    bench.do(lambda: [bench.transport.send_message(call, LARGE), bench.transport.finish(call, 0)])
    told = bench.of(api.CALL_MESSAGE)
    client.h2.send_data(stream, raw.message(b"two"), end_stream=True)
    client.arrived()
    bench.settled()
    assert bench.of(api.CALL_MESSAGE, api.CALL_END, api.CALL_CANCELLED) == told
    for event in client.data():
        client.acknowledge(event)
    client.flush()
    assert client.status(stream)["grpc-status"] == "0"
    assert b"".join(event.data for event in client.data()) == raw.message(LARGE)


@pytest.mark.needs("opaque_messages")
def test_a_malformed_message_after_policy_has_finished_is_not_told_either(bench: Any, raw: Any) -> None:
    client = raw.client(bench.listen())
    stream = client.request("/test/Chat", raw.message(b"one"), end=False)
    call = bench.wait(api.CALL)[0][1]
    bench.do(lambda: [bench.transport.send_message(call, LARGE), bench.transport.finish(call, 0)])
    client.h2.send_data(stream, raw.message(b"two", compressed=1), end_stream=True)
    client.arrived()
    bench.settled()
    assert not bench.of(api.CALL_CANCELLED)
    for event in client.data():
        client.acknowledge(event)
    client.flush()
    assert client.status(stream)["grpc-status"] == "0"


@pytest.mark.needs("opaque_messages")
def test_what_was_answered_before_a_malformed_message_still_arrives_and_the_call_ends(bench: Any, raw: Any) -> None:
    client = raw.client(bench.listen())
    stream = client.request("/test/Chat", raw.message(b"one"), end=False)
    call = bench.wait(api.CALL)[0][1]
    bench.do(lambda: bench.transport.send_message(call, LARGE))
    client.h2.send_data(stream, raw.message(b"two", compressed=1), end_stream=True)
    client.flush()
    assert bench.wait(api.CALL_CANCELLED)[0][1] == call
    for event in client.data():
        client.acknowledge(event)
    client.flush()
    assert client.status(stream)["grpc-status"] == "12"
    assert b"".join(event.data for event in client.data()) == raw.message(LARGE)
    bench.until(lambda: bench.transport.stats().open_calls == 0, "nothing of the call is left")


@pytest.mark.needs("http2_plain")
@pytest.mark.parametrize("answer", [b"small", LARGE])
def test_an_answer_in_the_turn_of_a_forward_stands_whatever_its_size(bench: Any, peers: Any, raw: Any, answer: bytes) -> None:
    upstream = bench.transport.connect(peers().target)

    def policy(event: Event) -> None:
        if event[0] == api.HTTP:
            bench.transport.forward(event[1], upstream)
            bench.transport.respond(event[1], 201, [], answer)

    bench.policy = policy
    client = raw.client(bench.listen())
    stream = client.h2.get_next_available_stream_id()
    client.h2.send_headers(stream, [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "me")], end_stream=True)
    client.flush()
    assert client.status(stream)[":status"] == "201"
    assert b"".join(event.data for event in client.data()) == answer
    assert [event[3][0] for event in bench.wait(api.FORWARDED)] == [api.Outcome.CANCELLED]
