"""The event sourced protocol as seen from the function and from the caller, one rule a test."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cloudstate_core.journal.api import Append
from cloudstate_core.pb.cloudstate import event_sourced_pb2
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Status
from stateful_proxy.kinds import kinds_of
from stateful_proxy.libraries import Quirks

Out = event_sourced_pb2.EventSourcedStreamOut


def test_a_new_entity_gets_init_then_the_command(bench: Any) -> None:
    bench.call(b"payload", entity="k")
    init, command = bench.sent(1)
    assert bench.transport.streams[1].path == "/cloudstate.eventsourced.EventSourced/handle"
    assert (init.init.service_name, init.init.entity_id, init.init.HasField("snapshot")) == ("test.Counter", "k", False)
    assert (command.command.entity_id, command.command.id, command.command.name) == ("k", 1, "Add")
    assert (command.command.payload.type_url, command.command.payload.value) == ("type.googleapis.com/test.Amount", b"payload")


def test_the_answer_waits_for_its_events(bench: Any) -> None:
    call = bench.call()
    bench.journal.holding = True
    bench.reply(1, 1, b"sum", [b"e1", b"e2"])
    assert call not in bench.transport.answers
    bench.journal.release()
    assert bench.transport.answers[call].body == b"sum"
    assert bench.history() == [b"e1", b"e2"]


def test_no_events_no_append(bench: Any) -> None:
    call = bench.call()
    bench.reply(1, 1, b"sum", snapshot=b"ignored without events")
    assert bench.reported[-1] == "/test.Counter/Add: a snapshot without events is not stored; send it with the last event in it"
    assert bench.transport.answers[call].body == b"sum"
    assert not [o for o in bench.journal.operations if isinstance(o, Append)]


def test_one_command_in_flight_and_the_others_in_order(bench: Any) -> None:
    calls = [bench.call(str(n).encode()) for n in range(3)]
    for number, call in enumerate(calls, 1):
        commands = [m.command for m in bench.sent(1) if m.HasField("command")]
        assert [(c.id, c.payload.value) for c in commands] == [(n, str(n - 1).encode()) for n in range(1, number + 1)]
        bench.reply(1, number, events=[b"e"])
        assert bench.transport.answers[call].status == 0


def test_passivated_and_back_with_snapshot_and_the_events_after_it(bench: Any) -> None:
    bench.call()
    bench.reply(1, 1, events=[b"e1"])
    bench.call()
    bench.reply(1, 2, events=[b"e2"], snapshot=b"state")
    bench.call()
    bench.reply(1, 3, events=[b"e3"])
    bench.entities.passivate(time.monotonic() + 45)
    assert bench.transport.streams[1].half_closed
    assert bench.entities.active == 0
    bench.call()
    init, event, command = bench.sent(2)
    assert (init.init.snapshot.snapshot_sequence, init.init.snapshot.snapshot.value) == (2, b"state")
    assert (event.event.sequence, event.event.payload.value, command.command.id) == (3, b"e3", 1)


def test_snapshots_of_a_library_that_cannot_read_them_are_not_kept(make_bench: Any) -> None:
    bench = make_bench(kinds=kinds_of(Quirks(reads_snapshots=False)))
    bench.call()
    bench.reply(1, 1, events=[b"e1"], snapshot=b"state")
    bench.entities.passivate(time.monotonic() + 45)
    bench.call()
    assert bench.kinds(2) == ["init", "event", "command"]
    assert not bench.sent(2)[0].init.HasField("snapshot")


def test_busy_entities_are_not_passivated(bench: Any) -> None:
    before = time.monotonic()
    bench.call()
    bench.entities.passivate(before + 45)
    assert bench.entities.active == 1


def test_metadata_becomes_headers_but_the_transports_own_stay_its_own(bench: Any) -> None:
    call = bench.call()
    bench.reply(1, 1, metadata={"X-Trace": "1", "grpc-status": "0", ":path": "/", "content-type": "x", "bad name": "1", api.REFUSED_HEADER: "1"})
    assert bench.transport.answers[call].headers == [("x-trace", b"1")]


# Failures ---------------------------------------------------------------------------------------------------------------


def test_deliberate_failure_keeps_the_stream(bench: Any) -> None:
    call = bench.call()
    bench.reply(1, 1, failure="no such item")
    answer = bench.transport.answers[call]
    assert (answer.status, answer.text, answer.refused) == (Status.UNKNOWN, "no such item", False)
    bench.call()
    assert bench.kinds(1) == ["init", "command", "command"]


def test_failure_with_events_stores_nothing_and_rebuilds(bench: Any) -> None:
    bench.call()
    bench.reply(1, 1, events=[b"e1"])
    call = bench.call()
    bench.reply(1, 2, events=[b"never"], failure="no")
    assert bench.transport.answers[call].text == "no"
    assert bench.history() == [b"e1"]
    assert bench.transport.streams[1].ended
    assert bench.kinds(2) == ["init", "event"]


def test_restart_reopens_at_once_and_goes_on_in_order(bench: Any) -> None:
    bench.call()
    bench.reply(1, 1, events=[b"e1"])
    calls = [bench.call(p) for p in (b"fails", b"second", b"third")]
    bench.reply(1, 2, failure="again", restart=True)
    assert bench.transport.answers[calls[0]].text == "again"
    assert bench.transport.streams[1].ended
    assert bench.kinds(2) == ["init", "event", "command"]
    assert bench.sent(2)[2].command.id == 1
    assert bench.sent(2)[2].command.payload.value == b"second"
    bench.reply(2, 1)
    assert bench.sent(2)[3].command.payload.value == b"third"


def test_restart_without_waiting_commands_opens_before_the_next_one(bench: Any) -> None:
    bench.call()
    bench.reply(1, 1, failure="again", restart=True)
    assert bench.kinds(2) == ["init"]


def _failure(command_id: int) -> Out:
    out = Out()
    out.failure.command_id, out.failure.description = command_id, "internal detail"
    return out


def _wrong_reply(command_id: int) -> Out:
    out = Out()
    out.reply.command_id = command_id
    out.reply.client_action.reply.payload.value = b"x"
    return out


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (_failure(1), "Unexpected entity failure"),
        (_failure(0), "Unexpected entity failure"),
        (_failure(9), "Unexpected entity failure"),
        (_wrong_reply(2), "Unexpected entity reply"),
        (_wrong_reply(0), "Unexpected entity reply"),
        (Out(), "Unexpected entity reply"),
    ],
)
def test_crashes_and_breaches(bench: Any, message: Out, text: str) -> None:
    first, second = bench.call(), bench.call()
    bench.say(1, message)
    answers = bench.transport.answers
    assert (answers[first].status, answers[first].text) == (Status.UNKNOWN, text)
    assert (answers[second].status, answers[second].text) == (Status.UNKNOWN, "Entity terminated")
    assert bench.transport.streams[1].ended
    bench.call()
    assert bench.kinds(2) == ["init", "command"]


def test_a_message_that_does_not_parse_is_a_breach(bench: Any) -> None:
    call = bench.call()
    bench.message(1, b"\xff\xff\xff")
    assert bench.transport.answers[call].text == "Unexpected entity reply"


def test_an_unasked_reply_ends_the_stream_only(bench: Any) -> None:
    bench.call()
    bench.reply(1, 1)
    bench.reply(1, 1)
    assert bench.transport.streams[1].ended
    assert bench.entities.active == 0


@pytest.mark.parametrize(
    ("status", "refused", "expected", "text"),
    [
        (0, False, Status.UNKNOWN, "Unexpected entity termination"),
        (13, False, Status.UNKNOWN, "Unexpected entity termination"),
        (14, False, Status.UNAVAILABLE, "cannot be reached"),
        (14, True, Status.UNAVAILABLE, "cannot be reached"),
    ],
)
def test_stream_ends_by_itself(bench: Any, status: int, refused: bool, expected: Status, text: str) -> None:
    call = bench.call()
    bench.closed(1, status, "gone", refused)
    assert bench.transport.answers[call].status == expected
    assert text in bench.transport.answers[call].text
    assert bench.entities.active == 0


@pytest.mark.parametrize("events", [(), (b"e",)])
def test_reply_without_client_action_is_an_error_for_the_caller(bench: Any, events: tuple[bytes, ...]) -> None:
    call = bench.call()
    bench.reply(1, 1, None, events)
    assert bench.transport.answers[call].status == Status.UNKNOWN
    assert bench.history() == list(events)


def test_a_full_mailbox_is_told_without_key_or_payload(make_bench: Any) -> None:
    bench = make_bench(mailbox=2)
    calls = [bench.call(b"secret-payload", entity="secret-key") for _ in range(4)]
    answer = bench.transport.answers[calls[3]]
    assert (answer.status, answer.text) == (
        Status.RESOURCE_EXHAUSTED,
        "test.Counter: 2 commands wait for this entity, no more are taken",
    )


def test_a_queued_command_of_a_gone_caller_is_dropped_the_one_in_flight_goes_on(bench: Any) -> None:
    first, second, third = bench.call(b"1"), bench.call(b"2"), bench.call(b"3")
    for call in (first, second):
        bench.transport.gone.add(call)
        assert bench.entities.cancelled(call)
    bench.reply(1, 1, events=[b"e1"])
    bench.reply(1, 2)
    assert [m.command.payload.value for m in bench.sent(1)[1:]] == [b"1", b"3"]
    assert bench.history() == [b"e1"]
    assert bench.transport.answers.keys() == {third}
