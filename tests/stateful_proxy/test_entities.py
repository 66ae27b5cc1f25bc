"""The event sourced protocol as seen from the function and from the caller, one rule a test."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cloudstate_core.journal.api import Activate, Append, Fenced, Lookup, Refused, Regressed, Unbound, Unknown
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
    bench.call()
    bench.entities.passivate(time.monotonic() + 45)
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
    bench.event(api.STREAM_MESSAGE, 1, b"\xff\xff\xff")
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


# The journal's answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("applied", [True, False])
def test_unknown_append_is_settled_by_a_new_activation(bench: Any, applied: bool) -> None:
    call = bench.call(command_id="c1")
    bench.journal.fail(Append, Unknown("timeout"), applied)
    bench.reply(1, 1, b"sum", [b"e1"])
    bindings = {o.binding for o in bench.journal.operations if isinstance(o, Activate)}
    assert len(bindings) == 2
    assert bench.transport.streams[1].ended
    if not applied:
        assert call not in bench.transport.answers
        bench.reply(2, 1, b"sum", [b"e1"])
    assert bench.transport.answers[call].body == b"sum"
    assert bench.history() == [b"e1"]


@pytest.mark.parametrize("applied", [True, False])
def test_unknown_append_while_the_shard_drains(bench: Any, applied: bool) -> None:
    """A caller is always answered, and the drain ends, whatever had become of the append."""
    call, drained = bench.call(command_id="c1"), []
    bench.journal.fail(Append, Unknown("timeout"), applied)
    bench.entities.drain_shard(0, lambda: drained.append(True))
    bench.reply(1, 1, b"sum", [b"e1"])
    assert bench.transport.answers[call].refused is not applied
    assert drained == [True]


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("command_id", ["c1", ""])
def test_unknown_append_and_then_fenced(bench: Any, applied: bool, command_id: str) -> None:
    """'Not executed' is only ever said of a command that was not: the journal is asked by command id."""
    call = bench.call(command_id=command_id)
    bench.journal.fail(Append, Unknown("timeout"), applied)
    bench.journal.holding = True
    bench.reply(1, 1, b"sum", [b"e1"])
    bench.journal.claim(0, "other")
    bench.journal.release()
    bench.batch.flush()
    answer = bench.transport.answers[call]
    assert bench.losses[0][0] == 0
    if command_id:
        assert (answer.body if applied else answer.refused) == (b"sum" if applied else True)
    else:
        assert (answer.status, answer.refused) == (Status.UNAVAILABLE, False)
        assert "may have been" in answer.text


@pytest.mark.parametrize("applied", [True, False])
def test_shard_dropped_while_an_unknown_append_is_settled(bench: Any, applied: bool) -> None:
    call = bench.call(command_id="c1")
    bench.journal.fail(Append, Unknown("timeout"), applied)
    bench.journal.holding = True
    bench.reply(1, 1, b"sum", [b"e1"])
    held, bench.journal._held = bench.journal._held, []
    held[0]()
    bench.batch.flush()
    bench.entities.drop_shard(0)
    assert call not in bench.transport.answers
    bench.journal.release()
    bench.batch.flush()
    assert bench.transport.answers[call].refused is not applied
    assert bench.entities.active == 0


def test_a_duplicate_is_answered_with_the_stored_outcome_and_the_functions_copy_rebuilt(bench: Any) -> None:
    bench.call(command_id="c1")
    bench.reply(1, 1, b"first", [b"e1"])
    again = bench.call(command_id="c1")
    bench.reply(1, 2, b"second", [b"e2"])
    assert bench.transport.answers[again].body == b"first"
    assert bench.history() == [b"e1"]
    assert bench.transport.streams[1].ended


def test_a_retry_is_looked_up_before_it_is_executed(bench: Any) -> None:
    bench.call(command_id="c1")
    bench.reply(1, 1, b"first", [b"e1"])
    again, fresh = bench.call(command_id="c1", retry=True), bench.call(command_id="c2", retry=True)
    assert bench.transport.answers[again].body == b"first"
    assert fresh not in bench.transport.answers
    assert bench.kinds(1) == ["init", "command", "command"]


def test_a_retry_whose_shard_is_lost_during_the_lookup_is_refused(bench: Any) -> None:
    bench.call()
    bench.reply(1, 1)
    bench.journal.holding = True
    call = bench.call(command_id="c1", retry=True)
    bench.entities.drop_shard(0)
    bench.journal.release()
    bench.batch.flush()
    assert bench.transport.answers[call].refused
    assert bench.kinds(1) == ["init", "command"]
    assert bench.entities.active == 0


def test_a_retry_whose_stream_ends_during_the_lookup_runs_on_a_new_one(bench: Any) -> None:
    bench.call()
    bench.reply(1, 1)
    bench.journal.holding = True
    call = bench.call(command_id="c1", retry=True)
    assert isinstance(bench.journal.operations[-1], Lookup)
    bench.closed(1)
    bench.journal.release()
    bench.batch.flush()
    bench.reply(2, 1, b"sum")
    assert bench.transport.answers[call].body == b"sum"


@pytest.mark.parametrize("outcome", [Refused("the disk is full"), Unknown("the disk is full")])
def test_a_retry_that_cannot_be_looked_up_is_not_executed(bench: Any, outcome: Any) -> None:
    bench.call()
    bench.reply(1, 1, events=[b"e1"])
    bench.journal.fail(Lookup, outcome)
    call = bench.call(command_id="c1", retry=True)
    assert bench.transport.answers[call].status == Status.UNAVAILABLE
    assert "the disk is full" in bench.transport.answers[call].text
    assert bench.kinds(1) == ["init", "command"]
    bench.call()
    assert bench.kinds(1) == ["init", "command", "command"]


@pytest.mark.parametrize("when", ["before", "while it is read"])
def test_no_entity_comes_to_life_while_the_function_is_away(bench: Any, when: str) -> None:
    bench.journal.holding = when != "before"
    bench.entities.closed = "" if bench.journal.holding else "the function is away"
    call = bench.call()
    bench.entities.closed = "the function is away"
    bench.journal.release()
    bench.batch.flush()
    answer = bench.transport.answers[call]
    assert (answer.status, answer.refused) == (Status.UNAVAILABLE, False)
    assert answer.text.endswith("not executed: the function is away")
    assert (bench.transport.streams, bench.entities.active) == ({}, 0)
    bench.entities.closed = ""
    again = bench.call()
    bench.reply(1, 1, b"sum")
    assert bench.transport.answers[again].body == b"sum"


@pytest.mark.parametrize("outcome", [Fenced(9), Unbound(9)])
def test_fenced_appends_are_refused_and_the_shard_is_lost(bench: Any, outcome: Any) -> None:
    first, second = bench.call(), bench.call()
    bench.journal.fail(Append, outcome)
    bench.reply(1, 1, events=[b"e"])
    assert bench.transport.answers[first].refused
    assert bench.transport.answers[second].refused
    assert bench.losses == [(0, 9)]
    assert bench.entities.active == 0


def test_unbound_of_the_own_epoch_activates_and_executes_again(bench: Any) -> None:
    call = bench.call()
    bench.journal.fail(Append, Unbound(0))
    bench.reply(1, 1, events=[b"e"])
    assert bench.kinds(2) == ["init", "command"]
    bench.reply(2, 1, b"sum", [b"e"])
    assert bench.transport.answers[call].body == b"sum"


def test_a_refusing_journal_is_unavailable_and_the_functions_copy_is_dropped(bench: Any) -> None:
    call = bench.call()
    bench.journal.fail(Append, Refused("disk full"))
    bench.reply(1, 1, events=[b"e"])
    answer = bench.transport.answers[call]
    assert (answer.status, answer.text) == (Status.UNAVAILABLE, "test.Counter: disk full")
    assert bench.transport.streams[1].ended


def test_regressed_raises_the_alarm(bench: Any) -> None:
    call = bench.call()
    bench.journal.fail(Append, Regressed(0))
    bench.reply(1, 1, events=[b"e"])
    assert bench.transport.answers[call].status == Status.DATA_LOSS
    assert bench.entities.regressed == 1


def test_an_activation_that_fails_fails_its_commands(bench: Any) -> None:
    bench.journal.fail(Activate, Unknown("timeout"))
    call = bench.call()
    assert (bench.transport.answers[call].status, bench.entities.active) == (Status.UNAVAILABLE, 0)


def test_a_stream_that_ends_during_the_append_does_not_lose_the_answer(bench: Any) -> None:
    call, waiting = bench.call(), bench.call()
    bench.journal.holding = True
    bench.reply(1, 1, b"sum", [b"e1"])
    bench.closed(1)
    bench.journal.release()
    bench.batch.flush()
    assert bench.transport.answers[call].body == b"sum"
    assert bench.kinds(2) == ["init", "event", "command"]
    bench.reply(2, 1, b"sum")
    assert bench.transport.answers[waiting].body == b"sum"


def test_appends_of_one_batch_travel_together(bench: Any) -> None:
    for key in "abc":
        bench.call(entity=key)
    before = bench.journal.batches
    for stream in (1, 2, 3):
        out = _wrong_reply(1)
        out.reply.events.add(value=b"e")
        bench.entities.on_event((api.STREAM_MESSAGE, stream, out.SerializeToString(), None))
    bench.batch.flush()
    assert bench.journal.batches == before + 1
    assert all(answer.status == 0 for answer in bench.transport.answers.values())


# Shards -----------------------------------------------------------------------------------------------------------------


def test_drain_finishes_what_is_in_flight_and_refuses_the_rest(bench: Any) -> None:
    drained: list[bool] = []
    idle, busy, waiting = bench.call(entity="idle"), bench.call(entity="busy"), bench.call(entity="busy")
    bench.reply(1, 1)
    other = bench.call(entity="elsewhere", shard=1)
    bench.entities.drain_shard(0, lambda: drained.append(True))
    assert bench.transport.answers[idle].status == 0
    assert bench.transport.answers[waiting].refused
    assert bench.transport.streams[1].half_closed
    assert not drained
    late = bench.call(entity="busy")
    assert bench.transport.answers[late].refused
    bench.reply(2, 1, b"sum", [b"e"])
    assert bench.transport.answers[busy].body == b"sum"
    assert drained == [True]
    assert other not in bench.transport.answers
    assert bench.entities.active == 1


def test_draining_an_empty_shard_is_done_at_once(bench: Any) -> None:
    drained: list[bool] = []
    bench.entities.drain_shard(3, lambda: drained.append(True))
    assert drained == [True]


def test_drop_resets_streams_and_refuses(bench: Any) -> None:
    call, waiting = bench.call(), bench.call()
    bench.entities.drop_shard(0)
    assert bench.transport.answers[call].refused
    assert bench.transport.answers[waiting].refused
    assert bench.transport.streams[1].reset
    assert bench.entities.active == 0


def test_a_late_activation_of_a_dropped_entity_does_not_touch_its_successor(bench: Any) -> None:
    bench.journal.holding = True
    old = bench.call()
    bench.entities.drop_shard(0)
    bench.tokens[0] = bench.journal.claim(0)
    new, drained = bench.call(), []
    bench.journal.release()
    bench.batch.flush()
    assert bench.transport.answers[old].refused
    bench.entities.drain_shard(0, lambda: drained.append(True))
    assert not drained
    bench.reply(1, 1, b"sum")
    assert bench.transport.answers[new].body == b"sum"
    assert drained == [True]


def test_what_is_at_the_function_is_told_while_it_is_there_and_no_longer(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("stateful_proxy.entities.time.monotonic", lambda: clock[0])

    def seconds(count: float) -> float:
        clock[0] += count
        bench.entities.load(clock[0])
        return float(bench.entities.function_concurrency)

    bench.entities.load(clock[0])
    bench.call(entity="a")
    bench.call(entity="a")
    bench.call(entity="b", shard=1)
    assert seconds(1) == pytest.approx(2.0), "the second command of an entity waits in the proxy, not at the function"
    clock[0] += 0.5
    bench.reply(2, 1)
    assert seconds(0.5) == pytest.approx(1.5)
    bench.reply(1, 1)
    bench.reply(1, 2)
    assert seconds(1) == 0.0, "nothing is left over of what has been answered"


# Functions that serve few streams ---------------------------------------------------------------------------------------


def test_the_entity_idle_longest_makes_room(make_bench: Any) -> None:
    bench = make_bench(streams=2)
    for stream, name in enumerate("abc", 1):
        call = bench.call(entity=name)
        bench.reply(stream, 1)
        assert bench.transport.answers[call].status == Status.OK
    assert [bench.transport.streams[n].ended for n in (1, 2, 3)] == [True, False, False]
    assert bench.entities.active == 2


def test_commands_wait_for_a_stream_while_all_are_busy_and_go_on_in_order(make_bench: Any) -> None:
    bench = make_bench(streams=1)
    first, waiting, last = bench.call(entity="a"), bench.call(entity="b"), bench.call(entity="c")
    assert list(bench.transport.streams) == [1]
    bench.reply(1, 1)
    assert bench.sent(2)[0].init.entity_id == "b"
    bench.reply(2, 1)
    bench.reply(3, 1)
    assert [bench.transport.answers[call].status for call in (first, waiting, last)] == [Status.OK] * 3


def test_a_place_that_a_crash_frees_is_taken(make_bench: Any) -> None:
    bench = make_bench(streams=1)
    bench.call(entity="a")
    waiting = bench.call(entity="b")
    bench.closed(1)
    bench.reply(2, 1)
    assert bench.transport.answers[waiting].status == Status.OK


def test_one_whose_caller_left_takes_no_place(make_bench: Any) -> None:
    bench = make_bench(streams=1)
    bench.call(entity="a")
    gone, waiting = bench.call(entity="b"), bench.call(entity="c")
    bench.entities.cancelled(gone)
    bench.reply(1, 1)
    assert bench.sent(2)[0].init.entity_id == "c"
    bench.reply(2, 1)
    assert bench.transport.answers[waiting].status == Status.OK


@pytest.mark.parametrize("how", ["drain_shard", "drop_shard"])
def test_a_shard_that_leaves_takes_those_along_that_wait_for_a_stream(make_bench: Any, how: str) -> None:
    bench = make_bench(streams=1)
    bench.call(entity="a", shard=0)
    waiting = bench.call(entity="b", shard=1)
    drained: list[int] = []
    if how == "drain_shard":
        bench.entities.drain_shard(1, lambda: drained.append(1))
        assert drained == [1]
    else:
        bench.entities.drop_shard(1)
    assert bench.transport.answers[waiting].refused
    bench.reply(1, 1)
    assert list(bench.transport.streams) == [1]


def test_a_function_that_does_not_answer_loses_that_stream(bench: Any) -> None:
    call, waiting = bench.call(), bench.call()
    bench.entities.passivate(time.monotonic() + 59)
    assert not bench.transport.answers
    bench.entities.passivate(time.monotonic() + 61)
    assert bench.transport.answers[call].status == Status.DEADLINE_EXCEEDED
    assert "has not answered within 60 s" in bench.transport.answers[call].text
    assert bench.transport.answers[waiting].status == Status.UNAVAILABLE
    assert bench.transport.streams[1].reset


def test_no_more_than_so_many_entities_wait_for_a_stream(make_bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stateful_proxy.residents.MOST_QUEUED", 2)
    bench = make_bench(streams=1)
    calls = [bench.call(entity=name) for name in "abcd"]
    assert bench.transport.answers[calls[3]].status == Status.RESOURCE_EXHAUSTED
    again = bench.call(entity="b")
    bench.reply(1, 1)
    bench.reply(2, 1)
    bench.reply(2, 2)
    assert [bench.transport.answers[call].status for call in (calls[0], calls[1], again)] == [Status.OK] * 3
    bench.reply(3, 1)
    assert bench.transport.answers[calls[2]].status == Status.OK
