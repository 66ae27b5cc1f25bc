"""Answers whose publication ends when nobody waits for them any more: whoever has given up stays with that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cloudstate_core.pb.cloudstate import entity_pb2
from cloudstate_core.transport import api
from stateful_proxy.eventing import event_log
from stateful_proxy.eventing.event_log import ANSWER_LIMIT
from stateful_proxy.eventing.publication import Publications
from stateful_proxy.eventing.subscriptions import Subscription
from stateful_proxy.follow_ups import Origin
from stateful_proxy.service import MethodInfo
from tests.stateful_proxy.dispatching import METHOD, FakeSink
from tests.stateful_proxy.test_eventing_event_log import CARTS, ONE, Consumers
from tests.stateful_proxy.test_topics import PROTOBUF, Receiver

OUT = replace(METHOD, out="sums")


class Publisher:
    """Publishes the one answer of a call, when the test says that it is published."""

    def __init__(self, bench: Any) -> None:
        self.callers, self.sink = bench.callers, FakeSink()
        self.publications = Publications(bench.callers, self.sink, lambda call: None, lambda call: None)

    def answer(self, call: int, method: MethodInfo) -> None:
        self.publications.begin(call, replace(method, out="sums"))
        self.callers.reply(call, b"")


def test_a_sender_that_has_gone_is_not_looked_for() -> None:
    receiver = Receiver([Subscription("orders", "test.Counter", {"test.Amount": OUT})])
    receiver.post("/topics/orders", PROTOBUF)
    bench = receiver.bench
    bench.callers.reply(bench.around.commands[0][0].call, b"")
    bench.dispatch.on_event((api.CALL_CANCELLED, receiver.requests, b"", "reset"))
    bench.sink.done[0]("")
    assert (receiver.answers, bench.publications.published, bench.dispatch.topics.handled) == ([], 1, 0)


def test_an_event_that_is_to_be_given_again_is_not_taken_for_handled(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log.time, "monotonic", lambda: 1_000.0)
    consumers, publisher = Consumers(bench, CARTS), Publisher(bench)
    consumers.own(0)
    consumers.append(b"1", b"2")
    publisher.answer(consumers.invoked[0][0], ONE)
    consumers.logs.tick(1_000.0 + ANSWER_LIMIT)
    publisher.sink.done[0]("")
    assert (consumers.given, consumers.logs.handled) == ([b"1"], 0)
    bench.transport.fire()
    assert consumers.given == [b"1", b"1"]


def test_a_forward_that_was_given_up_says_nothing(bench: Any) -> None:
    said: list[object] = []
    publisher = Publisher(bench)
    bench.methods[ONE.path] = ONE
    forward = entity_pb2.Forward(service_name="t.A", command_name="One")
    relay = bench.follow_ups.relay(
        Origin(1, bench.method, (), ""), forward, lambda payload, headers: said.append(payload), lambda status, text: said.append(status)
    )
    publisher.answer(relay.call, ONE)
    relay.withdraw()
    publisher.sink.done[0]("")
    assert said == []
