"""The consumers of event logs on a real (memory) journal: what methods are given, when cursors move, and where it stops."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cloudstate_core.journal.api import Activate, Append, At, Commit, Cursor, EntityKey, LogEntry, ReadLog, Token, Unknown, Value
from cloudstate_core.pb.cloudstate import entity_pb2
from cloudstate_core.transport.api import Status
from stateful_proxy.eventing import event_log
from stateful_proxy.eventing.event_log import ANSWER_LIMIT, EventLogs, event_metadata
from stateful_proxy.eventing.subscriptions import ANY, Subscription
from stateful_proxy.invocation import Invocation
from stateful_proxy.service import ACTION, MethodInfo
from tests.journals import run


def method(name: str, input_type: str) -> MethodInfo:
    return MethodInfo(f"/t.A/{name}", "t.A", name, "t.A", ACTION, input_type, "t.Done", (), "", None, owned=False)


ONE, ANYTHING = method("One", "t.One"), method("Any", ANY)
CARTS = Subscription("carts", "t.A", {"t.One": ONE, ANY: ANYTHING})
ORDERS = Subscription("orders", "t.A", {"t.One": ONE})
ANN = EntityKey("carts", "ann")


class Consumers:
    """The consumers under test; the test is the function and the owner of the shards."""

    def __init__(self, bench: Any, *subscriptions: Subscription) -> None:
        self.bench, self.journal, self.transport = bench, bench.journal, bench.transport
        self.invoked: list[tuple[int, Invocation]] = []
        self.given_up: list[int] = []
        self.logs = EventLogs(
            bench.transport, bench.batch, bench.callers, self._invoke, self.given_up.append, bench, bench.entities, subscriptions
        )
        self.tokens: dict[int, Token] = bench.tokens
        self.seqs: dict[EntityKey, int] = {}

    def _invoke(self, call: int, what: Invocation) -> None:
        self.invoked.append((call, what))

    def own(self, *shards: int) -> None:
        self.logs.owned({shard: self.tokens[shard] for shard in shards})
        self.bench.batch.flush()

    def append(self, *events: bytes, key: EntityKey = ANN, shard: int = 0, url: str = "type.googleapis.com/t.One") -> None:
        """Events are stored, and the consumers hear of it."""
        token, seq = self.tokens[shard], self.seqs.get(key, 0)
        values = tuple(Value(url, event) for event in events)
        run(self.journal, Activate(shard, token, key, b"b"), Append(shard, token, key, b"b", seq, values))
        self.seqs[key] = seq + len(events)
        self.logs.appended(shard, key.persistence_id)
        self.bench.batch.flush()

    def end(self, status: int = Status.OK, text: str = "") -> Invocation:
        """The last delivery ends."""
        call, invocation = self.invoked[-1]
        self.bench.callers.finish(call, status, text)
        self.bench.batch.flush()
        return invocation

    @property
    def given(self) -> list[bytes]:
        """The events that the function was given so far."""
        return [invocation.payload for _, invocation in self.invoked]

    def cursor(self, shard: int = 0, consumer: str = "t.A/carts") -> int:
        (outcome,) = run(self.journal, Cursor(shard, consumer))
        assert isinstance(outcome, At)
        return outcome.offset

    def asked(self, kind: type) -> int:
        return sum(isinstance(operation, kind) for operation in self.journal.operations)


@pytest.fixture
def consumers(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Consumers:
    """No time passes but that which a test lets pass: the cursor would be saved each second."""
    monkeypatch.setattr(event_log.time, "monotonic", lambda: 1_000.0)
    monkeypatch.setattr(event_log.random, "random", lambda: 0.5)
    return Consumers(bench, CARTS)


def test_events_are_given_one_after_the_other_as_cloud_events(consumers: Consumers) -> None:
    consumers.own(0)
    consumers.append(b"1", b"2")
    assert consumers.given == [b"1"]
    first = consumers.end()
    assert consumers.given == [b"1", b"2"]
    assert (first.method, first.type_url, first.command_id) == (ONE, "type.googleapis.com/t.One", "t.A/carts/0/1")
    assert [(entry.key, entry.string_value) for entry in entity_pb2.Metadata.FromString(first.metadata).entries] == [
        ("ce-id", "0-1"),
        ("ce-source", "carts"),
        ("ce-specversion", "1.0"),
        ("ce-type", "type.googleapis.com/t.One"),
        ("ce-subject", "ann"),
        ("Content-Type", "application/vnd.cloudstate.protobuf.any"),
    ]


def test_what_was_there_before_is_given_when_the_shard_is_taken(consumers: Consumers) -> None:
    consumers.append(b"1")
    assert consumers.given == []
    consumers.own(0)
    assert consumers.given == [b"1"]


def test_a_consumer_goes_on_at_its_cursor(consumers: Consumers) -> None:
    consumers.append(b"1", b"2")
    run(consumers.journal, Commit(0, consumers.tokens[0], "t.A/carts", 1))
    consumers.own(0)
    assert consumers.given == [b"2"]


def test_every_subscription_has_a_place_of_its_own(bench: Any) -> None:
    consumers = Consumers(bench, CARTS, ORDERS, Subscription("carts", "t.B", {ANY: ANYTHING}))
    consumers.append(b"1")
    consumers.append(b"o", key=EntityKey("orders", "x"))
    consumers.own(0)
    assert sorted((call_and_what[1].method.name, call_and_what[1].payload) for call_and_what in consumers.invoked) == [
        ("Any", b"1"), ("One", b"1"), ("One", b"o"),
    ]  # fmt: skip


def test_a_method_that_does_not_answer_is_given_up_too_when_the_shard_has_gone(consumers: Consumers) -> None:
    consumers.own(0, 1)
    consumers.append(b"1")
    consumers.append(b"2", key=EntityKey("carts", "bob"), shard=1)
    (hanging, _), (slow, _) = consumers.invoked
    consumers.own()
    consumers.bench.callers.finish(slow, Status.OK)
    assert consumers.given_up == []
    assert consumers.transport.fire() == [ANSWER_LIMIT, ANSWER_LIMIT]
    assert consumers.given_up == [hanging]


def test_the_cursor_moves_behind_what_was_handled(consumers: Consumers) -> None:
    consumers.own(0)
    consumers.append(*[b"%d" % n for n in range(30)])
    for number in range(1, 26):
        consumers.end()
        assert consumers.cursor() == (20 if number >= 20 else 0)
    consumers.logs.tick(1e12)
    consumers.bench.batch.flush()
    assert consumers.cursor() == 25


def test_an_idle_consumer_asks_nothing(consumers: Consumers) -> None:
    consumers.own(0)
    consumers.append(b"1")
    consumers.end()
    reads = consumers.asked(ReadLog)
    for now in range(10):
        consumers.logs.tick(now * 1e6)
        consumers.bench.batch.flush()
    assert consumers.asked(ReadLog) == reads == 2, "at the start, and when there was something"
    consumers.append(b"elsewhere", shard=1, key=EntityKey("carts", "bob"))
    assert consumers.asked(ReadLog) == reads


def test_a_failure_is_tried_again_and_nothing_overtakes_it(consumers: Consumers, caplog: pytest.LogCaptureFixture) -> None:
    consumers.own(0)
    consumers.append(b"1", b"2")
    for _ in range(3):
        consumers.end(Status.UNKNOWN, "it is wrong")
        assert consumers.given[-1] == b"1"
    assert consumers.transport.fire() == [3.0], "a rest that has begun is one rest"


def test_rests_grow_and_a_success_ends_them(consumers: Consumers, caplog: pytest.LogCaptureFixture) -> None:
    consumers.own(0)
    consumers.append(b"1", b"2")
    rests = []
    for _ in range(4):
        consumers.end(Status.UNKNOWN, "it is wrong")
        rests += consumers.transport.fire()
    assert rests == [3.0, 6.0, 12.0, 24.0]
    assert consumers.given == [b"1"] * 5
    consumers.end()
    assert consumers.given[-1] == b"2"
    assert caplog.text.count("it is wrong") == 1, "told once"


def test_an_event_that_no_method_takes_is_told_and_holds_the_consumer_up(bench: Any, caplog: pytest.LogCaptureFixture) -> None:
    consumers = Consumers(bench, ORDERS)
    consumers.append(b"?", key=EntityKey("orders", "x"), url="json.cloudstate.io/Strange")
    consumers.own(0)
    assert consumers.given == []
    assert "no method of consumer group t.A takes json.cloudstate.io/Strange; they take t.One" in caplog.text
    assert len(bench.transport.timers) == 1


def test_a_method_that_does_not_answer_is_given_up_and_the_event_given_again(consumers: Consumers, caplog: pytest.LogCaptureFixture) -> None:
    consumers.own(0)
    consumers.append(b"1", b"2")
    [(call, _)] = consumers.invoked
    began = time.monotonic()
    consumers.logs.tick(began + ANSWER_LIMIT - 1)
    assert consumers.given_up == []
    for _ in range(2):
        consumers.logs.tick(began + ANSWER_LIMIT + 1)
    assert consumers.given_up == [call]
    assert f"{ONE.path} has not answered within 90 s" in caplog.text
    consumers.bench.callers.reply(call, b"")
    assert consumers.given == [b"1"], "nobody hears the late answer"
    consumers.transport.fire()
    assert consumers.given == [b"1", b"1"]
    consumers.end()
    assert consumers.given == [b"1", b"1", b"2"]


@pytest.mark.parametrize("question", [Cursor, ReadLog])
def test_a_journal_that_does_not_answer_is_asked_again(consumers: Consumers, question: type) -> None:
    consumers.journal.fail(question, Unknown("lost"))
    consumers.append(b"1")
    consumers.own(0)
    assert consumers.given == []
    consumers.transport.fire()
    assert consumers.given == [b"1"]


def test_a_cursor_that_could_not_be_stored_is_stored_later(consumers: Consumers) -> None:
    consumers.own(0)
    consumers.append(b"1")
    consumers.journal.fail(Commit, Unknown("lost"))
    consumers.end()
    consumers.logs.tick(1e6)
    consumers.bench.batch.flush()
    assert consumers.cursor() == 0
    consumers.logs.tick(2e6)
    consumers.bench.batch.flush()
    assert consumers.cursor() == 1


def test_a_shard_that_is_given_up_is_left_in_good_order(consumers: Consumers) -> None:
    consumers.own(0)
    consumers.append(b"1", b"2")
    consumers.end()
    drained: list[int] = []
    consumers.logs.drain_shard(0, lambda: drained.append(0))
    consumers.bench.batch.flush()
    assert (consumers.cursor(), drained) == (1, [0])
    consumers.end()
    assert consumers.given == [b"1", b"2"], "what was under way counts no more: the next owner gives it again"
    consumers.own()
    consumers.append(b"3")
    assert consumers.cursor() == 1


def test_a_lost_shard_is_noticed_and_consumed_no_more(consumers: Consumers) -> None:
    consumers.own(0)
    consumers.append(*[b"%d" % n for n in range(40)])
    token = consumers.journal.claim(0, "another")
    for _ in range(20):
        consumers.end()
    assert consumers.bench.losses == [(0, token.epoch)]
    consumers.end()
    assert len(consumers.given) == 20
    assert consumers.cursor() == 0


def test_a_shard_that_comes_back_is_consumed_under_its_new_token(consumers: Consumers) -> None:
    consumers.own(0)
    consumers.append(b"1", b"2")
    consumers.end()
    consumers.tokens[0] = consumers.journal.claim(0)
    consumers.own(0)
    assert consumers.given == [b"1", b"2", b"1"], "the cursor had not been stored"
    consumers.end()
    consumers.end()
    consumers.logs.tick(1e6)
    consumers.bench.batch.flush()
    assert consumers.cursor() == 2


def test_metadata_tells_events_of_different_shards_apart() -> None:
    entry = LogEntry(7, "ann", 1, Value("t", b""))
    ids = [event_metadata(shard, "carts", entry).entries[0].string_value for shard in (1, 2)]
    assert ids == ["1-7", "2-7"]
