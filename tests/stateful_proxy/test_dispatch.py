"""Where each call goes: here, to its owner, to wait, or back with a clear answer."""

from __future__ import annotations

from typing import Any

import pytest

from cloudstate_core.hashing import shard_of
from cloudstate_core.pb.cloudstate_knative.v1 import peer_pb2
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Outcome, Status
from stateful_proxy import health
from stateful_proxy.commands import MAX_PASSES
from stateful_proxy.dispatch import listen_options
from stateful_proxy.ownership import Elsewhere, Unavailable, Unowned, Waiting
from stateful_proxy.peers import SEALED
from tests.stateful_proxy.dispatching import METHOD, PATH, SHARDS, STREAMED, TOKEN, Bench


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_an_owned_call_becomes_a_command(bench: Bench) -> None:
    call = bench.call(b"k", picked=(b"id-1", b"", b"1"))
    shard = shard_of("counter", "k", SHARDS)
    [(command, to, token)] = bench.around.commands
    assert (to, token) == (shard, TOKEN)
    found = (command.call, command.method, command.key, command.payload, command.command_id, command.retry, command.passed)
    assert found == (call, METHOD, "k", b"k", "id-1", True, False)


@pytest.mark.parametrize(
    ("data", "path", "command_id", "status", "text"),
    [
        (b"", PATH, b"", Status.INVALID_ARGUMENT, "test.Amount.id must not be empty"),
        (b"\xff", PATH, b"", Status.INVALID_ARGUMENT, "not a test.Amount: ends early"),
        (b"k", PATH, b"x" * 257, Status.INVALID_ARGUMENT, "must not be longer than 256"),
        (b"k", "/test.Counter/Nope", b"", Status.UNIMPLEMENTED, "/test.Counter/Nope: is not a method of this service; services here: test.Counter"),
    ],
)
def test_a_bad_call_is_told_what_is_wrong(bench: Bench, data: bytes, path: str, command_id: bytes, status: Status, text: str) -> None:
    code, message, trailers = bench.end(bench.call(data, path, (command_id, b"", b"")))
    assert (code, trailers) == (status, [])
    assert text in message
    assert not bench.around.commands


def test_a_call_is_passed_to_its_owner_once(bench: Bench) -> None:
    bench.around.admission = Elsewhere("b")
    first, second = bench.call(), bench.call()
    assert bench.around.forwards == [(first, 1, [("cloudstate-hop", b"1")]), (second, 1, [("cloudstate-hop", b"1")])]
    assert bench.around.connected == ["b:8559"]
    hopped = bench.call(picked=(b"", b"1", b""))
    assert bench.end(hopped)[2] == [(api.REFUSED_HEADER, b"not-owner;generation=9;next=b")]


def test_an_unknown_owner_is_named_in_the_refusal(bench: Bench) -> None:
    bench.around.admission = Elsewhere("c")
    status, _, trailers = bench.end(bench.call())
    assert (status, trailers) == (Status.UNAVAILABLE, [(api.REFUSED_HEADER, b"not-owner;generation=9;next=c")])


def test_a_shard_of_nobody_has_an_owner_in_a_moment(bench: Bench) -> None:
    bench.around.admission = Unowned()
    call = bench.call()
    bench.around.fire()
    assert not bench.around.ended
    bench.around.admission = TOKEN
    bench.around.fire()
    assert [command.call for command, _, _ in bench.around.commands] == [call]


def test_a_shard_that_stays_nobodys_is_refused_and_at_once_to_another_proxy(bench: Bench) -> None:
    bench.around.admission = Unowned()
    call = bench.call()
    for _ in range(MAX_PASSES):
        bench.around.fire()
    assert bench.end(call)[2] == [(api.REFUSED_HEADER, b"no-owner;generation=9")]
    assert bench.end(bench.call(picked=(b"", b"1", b"", b"")))[2] == [(api.REFUSED_HEADER, b"no-owner;generation=9")]


def test_a_journal_that_is_away_is_an_error_not_a_refusal(bench: Bench) -> None:
    bench.around.admission = Unavailable("shard 1 cannot be claimed: disk full")
    status, message, trailers = bench.end(bench.call())
    assert (status, trailers) == (Status.UNAVAILABLE, [])
    assert "disk full" in message


def test_a_waiting_call_runs_once_its_shard_is_here(bench: Bench) -> None:
    bench.around.admission = Waiting()
    call = bench.call()
    assert call not in bench.around.ended
    bench.around.admission = TOKEN
    bench.around.waiting.pop(call)()
    assert [command.call for command, _, _ in bench.around.commands] == [call]


def test_a_caller_who_leaves_while_waiting_is_not_served(bench: Bench) -> None:
    bench.around.admission = Waiting()
    call = bench.call()
    assert bench.dispatch.on_event((api.CALL_CANCELLED, call, b"", "deadline"))
    assert not bench.around.waiting


def test_too_many_waiting_calls_are_told_so(bench: Bench) -> None:
    bench.around.admission, bench.around.full = Waiting(), True
    assert bench.end(bench.call())[0] == Status.RESOURCE_EXHAUSTED


def test_what_an_entity_gives_back_goes_to_the_next_owner(bench: Bench) -> None:
    call = bench.call(b"k", picked=(b"id-1", b"", b""))
    [(command, _, _)] = bench.around.commands
    bench.around.admission = Elsewhere("b")
    assert bench.around.reroute(command)
    assert not bench.around.ended
    bench.around.fire()
    assert [(forwarded, headers) for forwarded, _, headers in bench.around.forwards] == [(call, [("cloudstate-hop", b"1")])]


def test_what_an_entity_gives_back_that_a_proxy_passed_on_is_that_proxys(bench: Bench) -> None:
    bench.call(b"k", picked=(b"", b"1", b"", b""))
    [(command, _, _)] = bench.around.commands
    assert command.passed
    assert not bench.around.reroute(command)
    assert not bench.around.timers


def test_a_caller_that_leaves_while_its_command_is_on_its_way_again_is_forgotten(bench: Bench) -> None:
    call = bench.call(b"k")
    bench.around.reroute(bench.around.commands[0][0])
    assert bench.dispatch.on_event((api.CALL_CANCELLED, call, b"", "reset"))
    bench.around.fire()
    assert len(bench.around.commands) == 1


def test_an_id_that_grew_on_the_way_is_taken_from_another_proxy(bench: Bench) -> None:
    bench.call(b"k", picked=(b"x" * 300, b"1", b"", b""))
    assert [command.command_id for command, _, _ in bench.around.commands] == ["x" * 300]


def test_a_refused_forward_is_tried_again_and_finds_the_shard_here(bench: Bench) -> None:
    bench.around.admission = Elsewhere("b")
    call = bench.call()
    bench.dispatch.on_event((api.FORWARDED, call, b"", (Outcome.REFUSED, "not-owner;generation=10;next=me")))
    assert call not in bench.around.ended
    bench.around.admission = TOKEN
    bench.around.fire()
    assert [command.call for command, _, _ in bench.around.commands] == [call]


def test_a_forward_that_stays_refused_ends_with_the_peers_refusal(bench: Bench) -> None:
    bench.around.admission = Elsewhere("b")
    call = bench.call()
    refused = (api.FORWARDED, call, b"", (Outcome.REFUSED, "no-owner\r\nx: ü"))
    delays = []
    for _ in range(MAX_PASSES):
        bench.dispatch.on_event(refused)
        delays.append(bench.around.fire())
    bench.dispatch.on_event(refused)
    assert bench.end(call)[2] == [(api.REFUSED_HEADER, b"no-owner  x: ?")]
    assert len(bench.around.forwards) == MAX_PASSES + 1
    assert 1.0 < sum(delays) < 1.2


def test_a_caller_who_leaves_between_two_passes_is_not_served(bench: Bench) -> None:
    bench.around.admission = Elsewhere("b")
    call = bench.call()
    bench.dispatch.on_event((api.FORWARDED, call, b"", (Outcome.REFUSED, "no-owner")))
    assert bench.dispatch.on_event((api.CALL_CANCELLED, call, b"", "reset"))
    bench.around.fire()
    assert len(bench.around.forwards) == 1


def test_a_caller_who_leaves_before_the_transport_passes_it_on_is_forgotten(bench: Bench) -> None:
    bench.around.admission = Elsewhere("b")
    call = bench.call()
    assert bench.around.forwards
    assert bench.commands.cancelled(call), "the transport tells no end of a forward that it could not begin"
    assert not bench.commands.cancelled(call)
    bench.commands.passed_on(call, Outcome.REFUSED, "")
    assert not bench.around.timers


@pytest.mark.parametrize("outcome", [Outcome.DELIVERED, Outcome.FAILED, Outcome.CANCELLED])
def test_other_ends_of_a_forward_need_no_answer(bench: Bench, outcome: Outcome) -> None:
    bench.dispatch.on_event((api.FORWARDED, 1, b"", (outcome, "")))
    assert not bench.around.ended


def test_upstreams_of_members_that_are_gone_are_forgotten(bench: Bench) -> None:
    bench.around.admission = Elsewhere("b")
    bench.call()
    bench.peers.update([])
    assert bench.around.disconnected == [1]


def test_a_seal_notice_is_taken_on_the_peer_port_only(bench: Bench) -> None:
    notice = peer_pb2.SealedNotice(owner="b", shard=3, since=7, epoch=4).SerializeToString()
    assert bench.end(bench.call(notice, SEALED))[0] == Status.UNIMPLEMENTED
    model: Any = bench.around
    data_port, peer_port = listen_options(model), listen_options(model, peer=True)
    picked = (b"",) * len(peer_port.pick)
    assert bench.end(bench.call(notice, SEALED, picked))[0] == Status.OK
    assert bench.around.seals == [("b", 3, 7, 4)]
    assert bench.end(bench.call(b"\xff", SEALED, picked))[0] == Status.INVALID_ARGUMENT
    assert len(peer_port.pick) != len(data_port.pick)


def test_a_notice_is_sent_to_the_successor(bench: Bench) -> None:
    bench.peers.announce("b", 3, 7, 4)
    bench.peers.announce("gone", 3, 7, 4)
    [(path, message)] = bench.around.sent
    assert path == SEALED
    assert peer_pb2.SealedNotice.FromString(message) == peer_pb2.SealedNotice(owner="me", shard=3, since=7, epoch=4)


@pytest.mark.parametrize(("service", "answer"), [(b"", health.SERVING), (b"\n\x0ctest.Counter", health.SERVING)])
def test_health_check(bench: Bench, service: bytes, answer: bytes) -> None:
    assert bench.around.replies[bench.call(service, health.CHECK)] == [answer]
    bench.serving = False
    assert bench.around.replies[bench.call(service, health.CHECK)] == [health.NOT_SERVING]


def test_health_of_another_service_is_not_found(bench: Bench) -> None:
    assert bench.end(bench.call(b"\n\x01x", health.CHECK))[0] == Status.NOT_FOUND
    assert bench.end(bench.call(b"\n\xff", health.CHECK))[0] == Status.INVALID_ARGUMENT


def test_a_watch_outlives_the_half_close_and_tells_changes(bench: Bench) -> None:
    call, unknown, gone = bench.call(b"", health.WATCH), bench.call(b"\n\x01x", health.WATCH), bench.call(b"", health.WATCH)
    bench.dispatch.on_event((api.CALL_END, call, b"", None))
    bench.dispatch.on_event((api.CALL_CANCELLED, gone, b"", "reset"))
    bench.serving = False
    bench.health.changed()
    bench.health.changed()
    assert bench.around.replies[call] == [health.SERVING, health.NOT_SERVING]
    assert bench.around.replies[unknown] == [health.SERVICE_UNKNOWN]
    assert bench.around.replies[gone] == [health.SERVING]
    bench.health.close()
    assert set(bench.around.ended) == {call, unknown}


def test_who_comes_back_to_watch_a_proxy_that_ends_does_not_keep_it(bench: Bench) -> None:
    first = bench.call(b"", path=health.WATCH)
    bench.serving = False
    bench.health.close()
    again = bench.call(b"", path=health.WATCH)
    for call, told in ((first, [health.SERVING, health.NOT_SERVING]), (again, [health.NOT_SERVING])):
        assert bench.around.replies[call] == told
        assert bench.end(call)[0] == Status.UNAVAILABLE


def test_a_malformed_reflection_request_ends_that_call(bench: Bench) -> None:
    path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    assert bench.end(bench.call(b"\xff", path, complete=False))[0] == Status.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("data", "complete", "begun"),
    [(b"m", True, (b"m", False, False)), (b"m", False, (b"m", True, False)), (b"", None, (b"", True, True))],
    ids=["one request", "the first of several", "none yet"],
)
def test_a_streamed_call_reaches_the_function_as_soon_as_it_is_told(
    bench: Bench, data: bytes, complete: bool | None, begun: tuple[bytes, bool, bool]
) -> None:
    bench.call(data, STREAMED.path, complete=complete)
    assert bench.around.begun == [begun]


def test_who_has_not_said_yet_what_to_watch_is_answered_then(bench: Bench) -> None:
    call, silent = bench.call(b"", health.WATCH, complete=None), bench.call(b"", health.WATCH, complete=None)
    assert bench.around.replies == {}
    bench.dispatch.on_event((api.CALL_MESSAGE, call, b"\n\x01x", None))
    bench.dispatch.on_event((api.CALL_END, call, b"", None))
    bench.dispatch.on_event((api.CALL_END, silent, b"", None))
    assert bench.around.replies == {call: [health.SERVICE_UNKNOWN]}
    assert bench.end(silent)[0] == Status.INVALID_ARGUMENT


def test_reflection_without_a_question_ends_without_an_answer(bench: Bench) -> None:
    call = bench.call(b"", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", complete=None)
    bench.dispatch.on_event((api.CALL_END, call, b"", None))
    assert (bench.around.replies, bench.end(call)[0]) == ({}, Status.OK)


def test_events_that_are_not_calls_are_left_alone(bench: Bench) -> None:
    assert not bench.dispatch.on_event((api.STREAM_MESSAGE, 1, b"", None))
    assert not bench.dispatch.on_event((api.CALL_CANCELLED, 99, b"", "reset"))
