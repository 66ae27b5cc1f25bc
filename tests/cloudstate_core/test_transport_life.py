"""Life of a transport: ports, threads, timers, failures of policy, drain and stop."""

from __future__ import annotations

import http.client
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import hyperframe.frame
import pytest

from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, ListenOptions


@pytest.mark.parametrize("http_only", [False, True])
def test_a_taken_port_is_an_error_that_names_it(bench: Any, http_only: bool) -> None:
    port = bench.listen()
    with pytest.raises(OSError, match=str(port)):
        bench.transport.listen("127.0.0.1", port, ListenOptions(http_only=http_only))


def test_a_transport_listens_on_many_ports_and_from_the_callback_thread(bench: Any, channel: Any) -> None:
    bench.policy = bench.echo
    ports = [bench.listen(), bench.listen(), bench.do(bench.listen)]
    assert len(set(ports)) == 3
    for port in ports:
        assert (
            channel(port).unary_unary(
                "/test/Echo",
            )(b"m", timeout=30, wait_for_ready=True)
            == b"m"
        )


def test_post_runs_on_the_one_callback_thread_in_order(bench: Any, channel: Any) -> None:
    ran: list[tuple[int, int]] = []

    def poster(number: int) -> None:
        for n in range(200):
            bench.transport.post(lambda n=n: (ran.append((number, n)), bench.threads.add(threading.get_ident())))

    threads = [threading.Thread(target=poster, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    bench.policy = bench.echo
    assert channel(bench.listen()).unary_unary("/test/Echo")(b"m", timeout=30) == b"m"
    for thread in threads:
        thread.join()
    bench.until(lambda: len(ran) == 800, "every posted callable ran")
    assert all([n for who, n in ran if who == number] == list(range(200)) for number in range(4))
    assert len(bench.threads) == 1
    assert threading.get_ident() not in bench.threads


def test_timers_fire_once_in_order_and_not_when_cancelled(bench: Any) -> None:
    fired: list[str] = []
    start = time.monotonic()

    def arm() -> None:
        late = bench.transport.after(0.2, lambda: fired.append(f"late {time.monotonic() - start >= 0.19}"))
        bench.transport.after(0.05, lambda: fired.append("early"))
        gone = bench.transport.after(0.1, lambda: fired.append("cancelled"))
        bench.transport.after(0.0, lambda: fired.append("now"))
        bench.transport.cancel(gone)
        bench.transport.cancel(gone)
        assert late != gone

    bench.do(arm)
    bench.until(lambda: len(fired) == 3, "three timers fired")
    assert fired == ["now", "early", "late True"]


def test_a_timer_may_be_cancelled_after_it_fired_or_by_another(bench: Any) -> None:
    fired: list[str] = []

    def arm() -> None:
        second = bench.transport.after(0.1, lambda: fired.append("second"))
        first = bench.transport.after(0.02, lambda: (fired.append("first"), bench.transport.cancel(second)))
        bench.transport.after(0.2, lambda: (bench.transport.cancel(first), fired.append("third")))

    bench.do(arm)
    bench.until(lambda: "third" in fired, "the last timer fired")
    assert fired == ["first", "third"]


def test_of_timers_that_are_due_together_one_may_still_cancel_another(bench: Any) -> None:
    fired: list[str] = []

    def arm() -> None:
        second = bench.transport.after(0.02, lambda: fired.append("second"))
        bench.transport.after(0.01, lambda: (fired.append("first"), bench.transport.cancel(second)))
        bench.transport.after(0.03, lambda: fired.append("third"))
        time.sleep(0.1)  # all three are due when the thread comes to them

    bench.do(arm)
    bench.until(lambda: "third" in fired, "the last timer fired")
    assert fired == ["first", "third"]


@pytest.mark.parametrize("where", ["batch", "post", "timer"])
def test_an_exception_is_logged_and_the_transport_goes_on(bench: Any, channel: Any, caplog: Any, where: str) -> None:
    def bad() -> None:
        raise ValueError("policy is broken")

    port = bench.listen()
    method = channel(port).unary_unary("/test/Echo")
    with caplog.at_level(logging.ERROR):
        if where == "batch":
            bench.policy = lambda event: bad()
            unanswered = method.future(b"m", timeout=60)
            bench.wait(api.CALL)
        elif where == "post":
            bench.transport.post(bad)
        else:
            bench.do(lambda: bench.transport.after(0.0, bad))
        bench.until(lambda: "policy is broken" in caplog.text, "the exception is logged")
    bench.policy = bench.echo
    assert method(b"again", timeout=30) == b"again"
    if where == "batch":
        unanswered.cancel()


def test_events_before_start_wait_for_it(transport_backend: str, bench: Any, raw: Any) -> None:
    other = type(bench.transport)()
    try:
        client = raw.client(other.listen("127.0.0.1", 0, ListenOptions()))
        stream = client.request(body=raw.message(b"early"))
        client.arrived()

        def on_batch(events: list[Event]) -> None:
            for event in events:
                other.reply(event[1], event[2])

        other.start(on_batch)
        assert client.status(stream)["grpc-status"] == "0"
        assert [event.data for event in client.data()] == [raw.message(b"early")]
    finally:
        other.stop()
        other.join()


def test_drain_lets_open_calls_end_and_refuses_new_ones(bench: Any, channel: Any) -> None:
    port = bench.listen()
    held = channel(port).unary_unary("/test/Echo").future(b"held", timeout=60)
    call = bench.wait(api.CALL)[0][1]
    done = threading.Event()
    bench.do(lambda: bench.transport.drain(60.0, done.set))

    def refused() -> bool:
        try:
            channel(port).unary_unary("/test/Echo")(b"new", timeout=1)
        except grpc.RpcError as error:
            return bool(error.code() is grpc.StatusCode.UNAVAILABLE)
        return False

    bench.until(refused, "new calls are refused")
    assert not done.is_set()
    bench.do(lambda: bench.transport.reply(call, b"kept"))
    assert held.result() == b"kept"
    assert done.wait(30)


def frames(client: Any) -> Iterator[Any]:
    """The frames of a connection as they come, pings answered (python-h2 itself takes any GOAWAY for the end)."""
    data = b""
    while more := client.read():
        data += more
        while len(data) >= 9 and len(data) >= (size := 9 + int.from_bytes(data[:3], "big")):
            frame, _ = hyperframe.frame.Frame.parse_frame_header(memoryview(data[:9]))
            frame.parse_body(memoryview(data[9:size]))
            data = data[size:]
            if isinstance(frame, hyperframe.frame.PingFrame) and "ACK" not in frame.flags:
                pong = hyperframe.frame.PingFrame(0, frame.opaque_data)
                pong.flags.add("ACK")
                client.socket.sendall(pong.serialize())
            yield frame


def test_a_drained_connection_gets_goaway_and_its_answer(bench: Any, raw: Any) -> None:
    client = raw.client(bench.listen())
    stream = client.request(body=raw.message(b"held"))
    call = bench.wait(api.CALL)[0][1]
    done = threading.Event()
    bench.do(lambda: bench.transport.drain(60.0, done.set))
    found = frames(client)
    goaway = next(frame for frame in found if isinstance(frame, hyperframe.frame.GoAwayFrame))
    assert goaway.error_code == 0
    assert goaway.last_stream_id >= stream
    assert not done.is_set()
    bench.do(lambda: bench.transport.reply(call, b"kept"))
    assert b"".join(frame.data for frame in found if isinstance(frame, hyperframe.frame.DataFrame)) == raw.message(b"kept")
    assert done.wait(30)


def test_a_stream_that_comes_after_goaway_harms_nobody_else(bench: Any, raw: Any) -> None:
    """A client may have written it before it read of the end: head, message, and room for the answer. It learns by the last stream's number that
    nothing was done."""
    client = raw.client(bench.listen())
    stream = client.request(body=raw.message(b"held"))
    call = bench.wait(api.CALL)[0][1]
    bench.do(lambda: bench.transport.drain(60.0, lambda: None))
    found = frames(client)
    assert next(f for f in found if isinstance(f, hyperframe.frame.GoAwayFrame) and f.last_stream_id == stream).error_code == 0
    late = client.request(body=raw.message(b"late"))
    client.socket.sendall(hyperframe.frame.WindowUpdateFrame(late, window_increment=65535).serialize())
    client.socket.sendall(hyperframe.frame.RstStreamFrame(late, error_code=8).serialize())
    client.socket.sendall(hyperframe.frame.PingFrame(0, b"arrived?").serialize())
    assert next(f for f in found if isinstance(f, hyperframe.frame.PingFrame) and "ACK" in f.flags).opaque_data == b"arrived?"
    bench.do(lambda: bench.transport.reply(call, b"kept"))
    assert b"".join(f.data for f in found if isinstance(f, hyperframe.frame.DataFrame)) == raw.message(b"kept")


def drain_behind(bench: Any, answer: Callable[[], None]) -> threading.Event:
    """Answer, and drain at once, while the client reads nothing: that it waits. Set once the drain is done."""
    order: list[str] = []
    drained, later = threading.Event(), threading.Event()

    def act() -> None:
        answer()
        bench.transport.drain(60.0, lambda: [order.append("drained"), drained.set()])
        bench.transport.after(0.5, lambda: [order.append("later"), later.set()])

    bench.do(act)
    assert later.wait(30)
    assert order == ["later"]
    return drained


def drains_after(bench: Any, client: Any, stream: int, answer: Callable[[], None]) -> bytes:
    """Drain behind an answer for which the client has no room; the body that came once it had."""
    drained = drain_behind(bench, answer)
    for of in (0, stream):
        client.socket.sendall(hyperframe.frame.WindowUpdateFrame(of, window_increment=2_000_000).serialize())
    body = b"".join(frame.data for frame in frames(client) if isinstance(frame, hyperframe.frame.DataFrame))
    assert drained.wait(30)
    return body


def test_a_drain_waits_for_an_answer_that_its_reader_has_no_room_for_yet(bench: Any, raw: Any) -> None:
    client, large = raw.client(bench.listen()), bytes(1_000_000)
    stream = client.request(body=raw.message(b"m"))
    call = bench.wait(api.CALL)[0][1]
    assert drains_after(bench, client, stream, lambda: bench.transport.reply(call, large)) == raw.message(large)


@pytest.mark.needs("http2_plain")
def test_a_drain_waits_for_a_plain_answer_that_its_reader_has_no_room_for_yet(bench: Any, raw: Any) -> None:
    client, large = raw.client(bench.listen()), bytes(1_000_000)
    stream = client.h2.get_next_available_stream_id()
    client.h2.send_headers(stream, [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "me")], end_stream=True)
    client.flush()
    call = bench.wait(api.HTTP)[0][1]
    assert drains_after(bench, client, stream, lambda: bench.transport.respond(call, 200, [], large)) == large


@pytest.mark.needs("http1")
def test_a_drain_waits_for_an_http1_answer_that_its_reader_does_not_take_yet(bench: Any) -> None:
    link, large = http.client.HTTPConnection("127.0.0.1", bench.listen(), timeout=30), bytes(64 * 1024 * 1024)
    link.request("GET", "/")
    call = bench.wait(api.HTTP)[0][1]
    drained = drain_behind(bench, lambda: bench.transport.respond(call, 200, [], large))
    assert link.getresponse().read() == large
    assert drained.wait(30)


def test_drain_is_done_at_once_without_calls_and_after_its_grace_with_them(bench: Any, channel: Any) -> None:
    bench.listen()
    at_once = threading.Event()
    bench.do(lambda: bench.transport.drain(60.0, at_once.set))
    assert at_once.wait(20)
    port = bench.listen()
    held = channel(port).unary_unary("/test/Echo").future(b"held", timeout=60)
    bench.wait(api.CALL)
    later = threading.Event()
    start = time.monotonic()
    bench.do(lambda: bench.transport.drain(0.5, later.set))
    assert later.wait(30)
    assert time.monotonic() - start >= 0.45
    held.cancel()


def test_stop_ends_open_calls_and_the_thread_from_any_state(bench: Any, channel: Any, peers: Any) -> None:
    port = bench.listen()
    future = channel(port).unary_unary("/test/Echo").future(b"m", timeout=60)
    upstream = bench.transport.connect(peers().target)
    bench.do(lambda: bench.transport.open(upstream, "/test/Slow"))
    bench.wait(api.CALL)
    bench.transport.stop()
    bench.transport.join()
    with pytest.raises(grpc.RpcError):
        future.result()
    bench.transport.stop()
    bench.transport.join()


def test_stats_count(bench: Any, channel: Any) -> None:
    bench.policy = bench.echo
    method = channel(bench.listen()).unary_unary("/test/Echo")
    for _ in range(10):
        method(b"m", timeout=30)
    stats = bench.transport.stats()
    assert stats.events == 10
    assert 1 <= stats.batches <= 10


@pytest.mark.needs("connections")
def test_stats_count_connections(bench: Any, raw: Any) -> None:
    bench.policy = bench.echo
    port = bench.listen()
    clients = [raw.client(port) for _ in range(3)]
    for client in clients:
        assert client.status(client.request(body=raw.message(b"m")))["grpc-status"] == "0"
    assert bench.transport.stats().connections == 3
    for client in clients:
        client.socket.close()
    bench.until(lambda: bench.transport.stats().connections == 0, "closed connections are forgotten")
