"""Where each call goes: here, to its owner, to wait, or back with a clear answer."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from cloudstate_core.entity_key import MalformedMessage
from cloudstate_core.hashing import shard_of
from cloudstate_core.journal.api import Token
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2, peer_pb2
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Outcome, Status
from stateful_proxy import health
from stateful_proxy.absence import Absence
from stateful_proxy.callers import Callers
from stateful_proxy.commands import MAX_PASSES, Commands
from stateful_proxy.dispatch import Dispatch, listen_options
from stateful_proxy.entity import Command
from stateful_proxy.eventing.cloud_events import CloudEvent
from stateful_proxy.eventing.publication import Publications
from stateful_proxy.eventing.subscriptions import Subscription
from stateful_proxy.health import Health
from stateful_proxy.invocation import Invocation
from stateful_proxy.metadata import Chosen
from stateful_proxy.ownership import Elsewhere, Unavailable, Unowned, Waiting
from stateful_proxy.peers import SEALED, Peers
from stateful_proxy.service import ACTION, EVENT_SOURCED, MethodInfo

SHARDS = 16
PATH = "/test.Counter/Add"
METHOD = MethodInfo(PATH, "test.Counter", "Add", "counter", EVENT_SOURCED, "test.Amount", "test.Sum", (((1,), 9),), "test.Amount.id", None)
STREAMED = replace(METHOD, path="/test.Adder/All", service="test.Adder", entity_type=ACTION, key_fields=(), client_streaming=True, owned=False)
TOKEN = Token(3, b"nonce")


class Surroundings:
    """Transport, model, ownership and entities in one recorder."""

    def __init__(self) -> None:
        self.ended: dict[int, tuple[int, str, list[api.Header]]] = {}
        self.replies: dict[int, list[bytes]] = {}
        self.forwards: list[tuple[int, int, list[api.Header]]] = []
        self.connected: list[str] = []
        self.disconnected: list[int] = []
        self.sent: list[tuple[str, bytes]] = []
        self.headed: list[list[api.Header]] = []
        self.resets: list[int] = []
        self.admission: Any = TOKEN
        self.waiting: dict[int, Callable[[], None]] = {}
        self.full = False
        self.left: set[int] = set()
        """Calls whose callers went."""
        self.commands: list[tuple[Command, int, Token]] = []
        self.reroute: Callable[[Command], bool] = lambda command: False
        self.seals: list[tuple[str, int, int, int]] = []
        self.begun: list[tuple[bytes, bool, bool]] = []
        self.methods = {PATH: METHOD, STREAMED.path: STREAMED}
        self.services = ["test.Counter"]
        self.shard_count, self.generation = SHARDS, 9

        self.timers: list[tuple[float, Callable[[], None]]] = []

    # Transport
    def after(self, delay: float, callback: Callable[[], None]) -> int:
        self.timers.append((delay, callback))
        return len(self.timers)

    def fire(self) -> float:
        [(delay, callback)] = self.timers
        self.timers.clear()
        callback()
        return delay

    def finish(self, call: int, status: int, message: str = "", trailers: Sequence[api.Header] = ()) -> None:
        assert call not in self.ended
        self.ended[call] = (int(status), message, list(trailers))

    def reply(self, call: int, message: bytes, headers: Sequence[api.Header] = ()) -> None:
        self.send_message(call, message)
        self.finish(call, 0)

    def send_message(self, call: int, message: bytes, headers: Sequence[api.Header] = ()) -> None:
        self.replies.setdefault(call, []).append(message)

    def backlog(self, call: int) -> int:
        return 0

    def headers(self, call: int) -> list[api.Header]:
        return []

    def forward(self, call: int, upstream: int, headers: Sequence[api.Header] = ()) -> None:
        self.forwards.append((call, upstream, list(headers)))

    def connect(self, target: str) -> int:
        self.connected.append(target)
        return len(self.connected)

    def disconnect(self, upstream: int) -> None:
        self.disconnected.append(upstream)

    def open(self, upstream: int, path: str, headers: Sequence[api.Header] = (), timeout: float | None = None) -> int:
        self.sent.append((path, b""))
        self.headed.append(list(headers))
        return len(self.sent)

    def reset(self, stream: int) -> None:
        self.resets.append(stream)

    def send(self, stream: int, message: bytes) -> None:
        self.sent[stream - 1] = (self.sent[stream - 1][0], message)

    def half_close(self, stream: int) -> None:
        pass

    # Model
    def key(self, method: MethodInfo, payload: bytes) -> str:
        if payload == b"\xff":
            raise MalformedMessage("ends early")
        return payload.decode()

    # Ownership
    def admit(self, shard: int) -> Any:
        return self.admission

    def when_ready(self, shard: int, call: int, retry: Callable[[], None]) -> bool:
        if not self.full:
            self.waiting[call] = retry
        return not self.full

    def withdraw(self, call: int) -> bool:
        return self.waiting.pop(call, None) is not None

    def sealed_by(self, *notice: Any) -> None:
        self.seals.append(notice)

    # Entities
    def command(self, command: Command, shard: int, token: Token) -> None:
        self.commands.append((command, shard, token))

    def route_again(self, reroute: Callable[[Command], bool]) -> None:
        self.reroute = reroute

    # Actions
    def begin(self, call: int, invocation: Invocation, more: bool, empty: bool) -> None:
        self.begun.append((invocation.payload, more, empty))

    def feed(self, call: int, payload: bytes) -> bool:
        return False

    def end(self, call: int) -> bool:
        return False

    def cancelled(self, call: int) -> bool:
        self.left.add(call)
        return False


class FakeSink:
    """Remembers what is published, until it is told how that ended."""

    def __init__(self) -> None:
        self.events: list[tuple[str, CloudEvent]] = []
        self.done: list[Callable[[str], None]] = []

    def publish(self, topic: str, event: CloudEvent, done: Callable[[str], None]) -> None:
        self.events.append((topic, event))
        self.done.append(done)


class Bench:
    """A dispatch in its surroundings."""

    def __init__(self, alone: bool = False, topics: Sequence[Subscription] = ()) -> None:
        self.sink, self.cancelled, self.drained = FakeSink(), list[int](), list[int]()
        around: Any = Surroundings()
        self.around: Surroundings = around
        self.peers = Peers(around, "me")
        members = [coordination_pb2.Member(member_id=m, peer_address=f"{m}:8559") for m in ("me", "b")]
        self.peers.update(members)
        self.serving = True
        self.health = Health(around, around.services, lambda: self.serving)
        callers = Callers(around)
        self.absence = Absence(around, callers)
        peers = None if alone else self.peers
        publications = self.publications = Publications(callers, self.sink, self.cancelled.append, self.drained.append)
        commands = self.commands = Commands(around, callers, around, around, peers, self.absence, publications, lambda: None)
        self.callers = callers
        self.dispatch = Dispatch(around, around, callers, commands, around, around, around, self.health, Chosen(()), publications, topics)
        self.calls = 0

    def call(self, data: bytes = b"k", path: str = PATH, picked: tuple[bytes, ...] = (b"", b"", b""), complete: bool | None = True) -> int:
        self.calls += 1
        assert self.dispatch.on_event((api.CALL, self.calls, data, (path, complete, picked)))
        return self.calls

    def end(self, call: int) -> tuple[int, str, list[api.Header]]:
        return self.around.ended[call]


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


# Commands of our own: forwards, side effects and events for another proxy's entities ----------------------------------------


class Told:
    """Who waits for a command of our own."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def message(self, payload: bytes, headers: Any) -> None:
        self.heard.append(payload)

    def finish(self, status: int, text: str, trailers: Any) -> None:
        self.heard.append((int(status), text))


def ask(bench: Bench, told: Told) -> int:
    """A forward asks for the entity 'k', which came by two other methods."""
    call = bench.callers.attach(told)
    bench.dispatch.invoke(call, Invocation(METHOD, b"k", b"", "c1/f", ("/a.A/X", "/b.B/Y")))
    return call


def ended(bench: Bench, stream: int, status: int = 0, text: str = "", trailers: Any = (), refused: bool = False) -> None:
    assert bench.commands.on_event((api.STREAM_CLOSED, stream, b"", (status, text, list(trailers), refused)))


def test_it_is_asked_of_the_owner_with_its_id_and_its_way(bench: Bench) -> None:
    bench.around.admission, told = Elsewhere("b"), Told()
    ask(bench, told)
    assert bench.around.sent == [(PATH, b"k")]
    assert bench.around.headed == [
        [("cloudstate-hop", b"1"), ("cloudstate-chain", b"/a.A/X,/b.B/Y"), ("cloudstate-command-id", b"c1/f")],
    ]
    assert bench.commands.on_event((api.STREAM_MESSAGE, 1, b"sum", None))
    ended(bench, 1)
    assert told.heard == [b"sum", (Status.OK, "")]


def test_the_owner_knows_the_way_of_a_command_that_another_proxy_asks(bench: Bench) -> None:
    call = bench.call(b"k", picked=(b"c1/f", b"1", b"", b"/a.A/X,/b.B/Y"))
    command = bench.around.commands[0][0]
    assert (command.call, command.chain) == (call, ("/a.A/X", "/b.B/Y"))


def test_the_owners_error_is_the_commands(bench: Bench) -> None:
    bench.around.admission, told = Elsewhere("b"), Told()
    ask(bench, told)
    ended(bench, 1, Status.UNKNOWN, "no such item")
    assert told.heard == [(Status.UNKNOWN, "no such item")]


@pytest.mark.parametrize(
    "refusal", [{"trailers": [(api.REFUSED_HEADER, b"not-owner")], "status": Status.UNAVAILABLE}, {"refused": True, "status": 14}]
)
def test_a_refusal_is_tried_again_and_finds_the_shard_here(bench: Bench, refusal: dict[str, Any]) -> None:
    bench.around.admission, told = Elsewhere("b"), Told()
    call = ask(bench, told)
    ended(bench, 1, **refusal)
    bench.around.admission = TOKEN
    bench.around.fire()
    assert [command.call for command, _, _ in bench.around.commands] == [call]
    assert told.heard == []


def test_one_whose_shard_is_nobodys_waits_and_gives_up_at_last(bench: Bench) -> None:
    bench.around.admission, told = Unowned(), Told()
    ask(bench, told)
    for _ in range(MAX_PASSES):
        assert told.heard == []
        bench.around.fire()
    [(status, text)] = told.heard
    assert (status, text) == (Status.UNAVAILABLE, "not executed: no-owner;generation=9")


def test_one_that_nobody_waits_for_any_more_is_taken_back(bench: Bench) -> None:
    bench.around.admission, told = Elsewhere("b"), Told()
    call = ask(bench, told)
    assert bench.dispatch.cancel(call)
    assert bench.around.resets == [1]
    assert not bench.commands.on_event((api.STREAM_CLOSED, 1, b"", (1, "", [], False)))
    assert told.heard == []


def test_what_is_remembered_of_keys_is_bounded(bench: Bench) -> None:
    def use(first: int, count: int) -> None:
        for number in range(first, first + count):
            key = f"entity-{number:06d}"
            assert bench.commands.shard(METHOD, key) == shard_of("counter", key, SHARDS)

    use(0, 10_000)
    tracemalloc.start()
    try:
        use(10_000, 50_000)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4_000_000
