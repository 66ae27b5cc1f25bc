"""What an entity does with the journal's answers: refusals, doubts, duplicates and fences, one rule a test."""

from __future__ import annotations

from typing import Any

import pytest

from cloudstate_core.journal.api import Activate, Append, Fenced, Lookup, Refused, Regressed, Unbound, Unknown
from cloudstate_core.pb.cloudstate import event_sourced_pb2
from cloudstate_core.transport.api import Status

Out = event_sourced_pb2.EventSourcedStreamOut


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


@pytest.mark.parametrize("payload", [b"\xff", b"\xff\xffx", b"\xff\x0a\x00", b""])
def test_a_duplicates_answer_is_the_payload_whatever_its_bytes(bench: Any, payload: bytes) -> None:
    bench.call(command_id="c1")
    bench.reply(1, 1, payload, [b"e1"])
    again = bench.call(command_id="c1")
    bench.reply(1, 2, b"second", [b"e2"])
    assert (bench.transport.answers[again].status, bench.transport.answers[again].body) == (0, payload)


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
    bench.entities.lives.closed = "" if bench.journal.holding else "the function is away"
    call = bench.call()
    bench.entities.lives.closed = "the function is away"
    bench.journal.release()
    bench.batch.flush()
    answer = bench.transport.answers[call]
    assert (answer.status, answer.refused) == (Status.UNAVAILABLE, False)
    assert answer.text.endswith("not executed: the function is away")
    assert (bench.transport.streams, bench.entities.active) == ({}, 0)
    bench.entities.lives.closed = ""
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
        out = Out()
        out.reply.command_id = 1
        out.reply.client_action.reply.payload.value = b"x"
        out.reply.events.add(value=b"e")
        bench.entities.message(stream, out.SerializeToString())
    bench.batch.flush()
    assert bench.journal.batches == before + 1
    assert all(answer.status == 0 for answer in bench.transport.answers.values())
