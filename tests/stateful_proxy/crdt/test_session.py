"""The CRDT protocol as seen from the function and from the caller, one rule a test."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from cloudstate_core.journal.api import Read, Refused, Swap, Unknown
from cloudstate_core.pb.cloudstate import crdt_pb2 as pb
from cloudstate_core.pb.cloudstate import entity_pb2
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Status
from stateful_proxy.in_flight import InFlight
from stateful_proxy.invocation import Invocation
from tests.stateful_proxy.crdt.bench import CrdtBench, adding, elsewhere, hear, plus, text, vote


def test_a_new_value_gets_init_without_delta_then_the_command(bench: CrdtBench) -> None:
    bench.call(payload=b"payload", entity="k")
    init, command = bench.sent(1)
    assert bench.transport.streams[1].path == "/cloudstate.crdt.Crdt/handle"
    assert init == pb.CrdtStreamIn(init=pb.CrdtInit(service_name="test.Presence", entity_id="k"))
    expected = entity_pb2.Command(entity_id="k", id=1, name="Add")
    expected.payload.type_url, expected.payload.value = "type.googleapis.com/test.Ask", b"payload"
    assert command == pb.CrdtStreamIn(command=expected)


def test_only_streamed_methods_are_told_as_streamed(bench: CrdtBench) -> None:
    bench.call("Watch")
    assert bench.sent(1)[1].command.streamed


def test_chosen_metadata_reaches_the_function(bench: CrdtBench) -> None:
    metadata = entity_pb2.Metadata(entries=[entity_pb2.MetadataEntry(key="ce-id", string_value="7")])
    bench.crdts.command(1, Invocation(bench.methods["/test.Presence/Add"], b"x"), "a", metadata.SerializeToString())
    bench.batch.flush()
    assert bench.sent(1)[1].command.metadata == metadata


def test_the_answer_waits_for_the_journal(bench: CrdtBench) -> None:
    call = bench.call()
    bench.journal.holding = True
    bench.reply(1, 1, plus(5), b"five")
    assert call not in bench.transport.answers
    bench.journal.release()
    assert bench.transport.answers[call].body == b"five"
    assert bench.journal_has().version == 1


def test_the_functions_own_change_does_not_come_back(bench: CrdtBench) -> None:
    for number in range(1, 4):
        bench.call()
        bench.reply(1, number, plus(1))
    assert bench.kinds(1) == ["init", "command", "command", "command"]


def test_a_write_that_loses_by_its_clock_is_taken_back_from_the_function(bench: CrdtBench) -> None:
    def written(value: str, clock: int) -> pb.CrdtDelta:
        return pb.CrdtDelta(lwwregister=pb.LWWRegisterDelta(value=text(value), clock=pb.CUSTOM, custom_clock_value=clock))

    for number, delta in enumerate((written("x", 5), written("y", 4), written("z", 6)), 1):
        bench.call()
        bench.reply(1, number, delta)
    assert bench.deltas(1) == [pb.CrdtDelta(lwwregister=pb.LWWRegisterDelta(value=text("x")))], "and the others stand"
    assert bench.kinds(1) == ["init", "command", "command", "delta", "command"]


def test_many_commands_are_in_flight_and_answered_in_any_order(bench: CrdtBench) -> None:
    calls = [bench.call() for _ in range(3)]
    assert [m.command.id for m in bench.sent(1)[1:]] == [1, 2, 3]
    for number in (2, 3, 1):
        bench.reply(1, number, plus(1), str(number).encode())
    assert [bench.transport.answers[call].body for call in calls] == [b"1", b"2", b"3"]


def test_passivated_and_back_with_the_value_as_a_delta_on_empty(bench: CrdtBench) -> None:
    bench.call()
    bench.reply(1, 1, plus(5))
    bench.later(40)
    assert bench.transport.streams[1].half_closed
    assert bench.crdts.active == 0
    bench.call()
    assert bench.sent(2)[0].init.delta == plus(5)
    assert bench.sent(2)[1].command.id == 1


def test_a_value_with_open_streams_or_commands_is_not_passivated(bench: CrdtBench) -> None:
    bench.call("Watch")
    bench.later(40)
    bench.reply(1, 1, streamed=True)
    bench.later(40)
    assert bench.crdts.active == 1
    bench.stream_message(1, 1, end=True)
    bench.later(40)
    assert bench.crdts.active == 0


def test_a_value_that_is_not_stored_yet_is_not_passivated(bench: CrdtBench) -> None:
    bench.call()
    bench.journal.holding = True
    bench.reply(1, 1, plus(1))
    bench.later(40)
    assert bench.crdts.active == 1
    bench.journal.release()
    bench.later(40)
    assert bench.crdts.active == 0


# Changes from elsewhere -------------------------------------------------------------------------------------------------


def test_a_change_from_elsewhere_comes_as_a_delta(pair: tuple[CrdtBench, CrdtBench]) -> None:
    one, two = pair
    one.call()
    one.reply(1, 1, plus(1))
    elsewhere(one, two, plus(4))
    hear(one)
    assert one.deltas(1) == [plus(4)]


def test_a_value_made_elsewhere_comes_as_a_delta_on_empty(pair: tuple[CrdtBench, CrdtBench]) -> None:
    one, two = pair
    one.call()
    one.reply(1, 1)
    elsewhere(one, two, adding("x"))
    hear(one)
    assert one.deltas(1) == [adding("x")]


def test_deltas_wait_until_every_command_is_answered_and_come_as_one(pair: tuple[CrdtBench, CrdtBench]) -> None:
    one, two = pair
    one.call(), one.call()
    elsewhere(one, two, plus(4))
    hear(one)
    one.reply(1, 2, plus(1))
    elsewhere(one, two, plus(3))
    hear(one)
    assert one.deltas(1) == []
    one.reply(1, 1)
    assert one.deltas(1) == [plus(7)]


def test_a_removal_takes_only_what_the_function_has_seen(pair: tuple[CrdtBench, CrdtBench]) -> None:
    one, two = pair
    one.call()
    one.reply(1, 1, adding("a", "b"))
    one.call()
    elsewhere(one, two, adding("a", "c"))
    hear(one)
    one.reply(1, 2, pb.CrdtDelta(orset=pb.ORSetDelta(cleared=True)))
    assert one.deltas(1) == [adding("a", "c")], "both were added by somebody who had not seen the clearing"


def test_two_replicas_make_a_value_at_the_same_time_and_nothing_is_lost(pair: tuple[CrdtBench, CrdtBench]) -> None:
    one, two = pair
    calls = one.call(), two.call()
    one.journal.holding = True
    one.reply(1, 1, plus(1))
    two.reply(1, 1, plus(2))
    one.journal.release()
    one.batch.flush(), two.batch.flush()
    assert [one.told(calls[0])[0], two.told(calls[1])[0]] == [0, 0]
    hear(one)
    assert (one.deltas(1), two.deltas(1)) == ([plus(2)], [plus(1)])


def test_another_type_than_somebody_else_made_at_the_same_time_fails(pair: tuple[CrdtBench, CrdtBench]) -> None:
    one, two = pair
    call = one.call()
    elsewhere(one, two, plus(2))
    one.reply(1, 1, vote(True))
    status, told = one.told(call)
    assert status == Status.ABORTED
    assert "VOTE does not fit a PNCOUNTER" in told
    one.call()
    assert one.transport.streams[1].reset
    assert one.sent(2)[0].init.delta == plus(2)


# Votes ------------------------------------------------------------------------------------------------------------------


def votes(self_vote: bool, votes_for: int, total: int) -> pb.CrdtDelta:
    return pb.CrdtDelta(vote=pb.VoteDelta(self_vote=self_vote, votes_for=votes_for, total_voters=total))


def test_a_vote_has_one_voter_where_there_is_one_proxy(bench: CrdtBench) -> None:
    bench.call()
    bench.reply(1, 1, vote(True))
    assert bench.deltas(1) == []
    bench.later(40)
    bench.call()
    assert bench.sent(2)[0].init.delta == votes(True, 1, 1)


def test_votes_count_those_who_are_up_and_follow_the_members(pair: tuple[CrdtBench, CrdtBench]) -> None:
    one, two = pair
    one.call()
    one.reply(1, 1, vote(True))
    assert one.deltas(1) == [votes(True, 1, 2)]
    elsewhere(one, two, vote(True))
    hear(one)
    assert one.deltas(1)[1:] == [votes(True, 2, 2)]
    one.peers.others = frozenset()
    one.crdts.members_changed()
    assert one.deltas(1)[2:] == [votes(True, 1, 1)]
    one.peers.others = frozenset(["third"])
    one.crdts.members_changed()
    assert one.deltas(1)[3:] == [votes(True, 1, 2)]


def test_a_vote_in_a_map_is_told_the_other_voters(pair: tuple[CrdtBench, CrdtBench]) -> None:
    one, _ = pair
    one.call()
    entry = pb.ORMapEntryDelta(key=text("k"), delta=vote(False))
    one.reply(1, 1, pb.CrdtDelta(ormap=pb.ORMapDelta(added=[entry])))
    expected = pb.ORMapEntryDelta(key=text("k"), delta=votes(False, 0, 2))
    assert one.deltas(1) == [pb.CrdtDelta(ormap=pb.ORMapDelta(updated=[expected]))]


# Deletion ---------------------------------------------------------------------------------------------------------------


def test_a_deletion_is_stored_answered_and_closes_the_stream(bench: CrdtBench) -> None:
    bench.call()
    bench.reply(1, 1, plus(5))
    call = bench.call()
    bench.reply(1, 2, body=b"gone", delete=True)
    assert bench.transport.answers[call].body == b"gone"
    assert bench.transport.streams[1].half_closed
    assert (bench.stored(), bench.crdts.active) == (None, 0)


def test_a_deleted_key_may_be_used_again_at_once(bench: CrdtBench) -> None:
    bench.call()
    bench.reply(1, 1, plus(5))
    bench.call()
    bench.journal.holding = True
    bench.reply(1, 2, delete=True)
    call = bench.call()
    assert bench.kinds(1) == ["init", "command", "command"], "it waits for the end of the value that was"
    bench.journal.release()
    bench.batch.flush()
    assert bench.sent(2)[0] == pb.CrdtStreamIn(init=pb.CrdtInit(service_name="test.Presence", entity_id="a"))
    bench.reply(2, 1, adding("x"))
    assert bench.told(call)[0] == 0
    assert bench.stored().incarnation == 3


def test_deleted_elsewhere(pair: tuple[CrdtBench, CrdtBench]) -> None:
    one, two = pair
    one.call()
    one.reply(1, 1, plus(1))
    watch = one.call("Watch")
    one.reply(1, 2, streamed=True)
    two.call()
    two.reply(1, 1, delete=True)
    hear(one)
    assert one.kinds(1)[-1] == "delete"
    assert one.transport.streams[1].half_closed
    assert one.told(watch) == (0, "")


def test_deleted_elsewhere_while_a_command_is_unanswered(pair: tuple[CrdtBench, CrdtBench]) -> None:
    one, two = pair
    one.call()
    one.reply(1, 1, plus(1))
    call = one.call()
    two.call()
    two.reply(1, 1, delete=True)
    hear(one)
    waiting = one.call()
    assert one.kinds(1) == ["init", "command", "command"]
    one.reply(1, 2, plus(1))
    assert one.told(call) == (
        Status.ABORTED,
        "/test.Presence/Add: the value was deleted at the same time; a deletion wins over other changes",
    )
    assert one.kinds(1) == ["init", "command", "command", "delete"]
    assert one.kinds(2) == ["init", "command"]
    one.reply(2, 1)
    assert one.told(waiting)[0] == 0


def test_an_update_loses_against_a_deletion_that_is_stored_first(pair: tuple[CrdtBench, CrdtBench]) -> None:
    one, two = pair
    one.call()
    one.reply(1, 1, plus(1))
    call = one.call()
    two.call()
    two.reply(1, 1, delete=True)
    one.reply(1, 2, plus(1))
    status, told = one.told(call)
    assert status == Status.ABORTED
    assert "deletion wins" in told
    assert one.stored() is None
    assert one.kinds(1)[-1] == "delete"


# Failures ---------------------------------------------------------------------------------------------------------------


def test_a_stream_failure_with_a_command_id_fails_that_command_only(bench: CrdtBench) -> None:
    one, two, watch = bench.call(), bench.call(), bench.call("Watch")
    bench.reply(1, 3, streamed=True)
    bench.say(1, failure=entity_pb2.Failure(command_id=1, description="went wrong"))
    bench.say(1, failure=entity_pb2.Failure(command_id=3, description="wrong too"))
    assert (bench.told(one), bench.told(watch)) == ((Status.UNKNOWN, "went wrong"), (Status.UNKNOWN, "wrong too"))
    bench.reply(1, 2)
    assert bench.told(two)[0] == 0
    assert bench.kinds(1) == ["init", "command", "command", "command"]


BREACHES: dict[str, Callable[[CrdtBench], None]] = {
    "failure of the entity": lambda bench: bench.say(1, failure=entity_pb2.Failure(description="all is lost")),
    "reply to no command": lambda bench: bench.reply(1, 7),
    "second reply to one command": lambda bench: bench.reply(1, 1),
    "streamed reply to a unary call": lambda bench: bench.reply(1, 2, streamed=True),
    "message before the reply": lambda bench: bench.stream_message(1, 3),
    "message for no command": lambda bench: bench.stream_message(1, 7),
    "answer without a cancellation": lambda bench: bench.answer_cancellation(1, 1),
    "empty message": lambda bench: bench.say(1),
    "garbage": lambda bench: bench.event(api.STREAM_MESSAGE, 1, b"\xff") and None,
    "change of another type": lambda bench: bench.reply(1, 2, adding("x")),
    "change of no type": lambda bench: bench.reply(1, 2, pb.CrdtDelta()),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_breaches_end_the_stream_and_the_next_command_begins_anew(bench: CrdtBench, breach: str) -> None:
    bench.call()
    bench.reply(1, 1, plus(1))
    calls = [bench.call(), bench.call("Watch")]
    BREACHES[breach](bench)
    assert bench.transport.streams[1].reset
    assert [bench.told(call)[0] for call in calls] == [Status.UNKNOWN, Status.UNKNOWN]
    bench.call()
    assert bench.sent(2)[0].init.delta == plus(1)


def test_an_update_that_does_not_fit_is_reported_and_fails_its_caller(bench: CrdtBench) -> None:
    bench.call()
    bench.reply(1, 1, plus(1))
    call = bench.call()
    bench.reply(1, 2, adding("x"))
    status, told = bench.told(call)
    assert status == Status.UNKNOWN
    assert "a delta for ORSET does not fit a PNCOUNTER" in told
    assert told in bench.reported


def test_a_function_that_does_not_answer_is_given_up(bench: CrdtBench) -> None:
    watch = bench.call("Watch")
    bench.reply(1, 1, streamed=True)
    before = time.monotonic()
    call = bench.call()
    bench.crdts.tick(before + 59)
    assert call not in bench.transport.answers
    bench.later(61)
    assert bench.told(call) == (Status.DEADLINE_EXCEEDED, "/test.Presence/Add: the function has not answered within 60 s")
    assert bench.told(watch)[0] == Status.DEADLINE_EXCEEDED
    assert bench.transport.streams[1].reset


def test_commands_at_the_function_are_counted_until_they_are_answered(bench: CrdtBench) -> None:
    def at_the_function() -> float:
        later = time.monotonic() + 1_000
        bench.in_flight.average(later)
        return bench.in_flight.average(later + 10)

    bench.call(), bench.call("Watch"), bench.call()
    assert at_the_function() == 3
    bench.reply(1, 1), bench.reply(1, 2, streamed=True)
    assert at_the_function() == 1
    bench.closed(1)
    assert at_the_function() == 0


def test_an_average_weighs_by_time() -> None:
    counted = InFlight(0.0)
    counted.add(1, 2.0)
    counted.add(3, 8.0)
    assert counted.average(10.0) == pytest.approx((6 * 1 + 2 * 4) / 10)
    counted.add(-4, 11.0)
    assert counted.average(14.0) == pytest.approx(1.0)


def test_a_function_that_closes_its_stream_fails_what_is_open(bench: CrdtBench) -> None:
    call = bench.call()
    bench.closed(1, 0)
    assert bench.told(call) == (Status.UNKNOWN, "Unexpected entity termination")
    call = bench.call()
    bench.closed(2, 14, "connection refused", refused=True)
    status, told = bench.told(call)
    assert status == Status.UNAVAILABLE
    assert "cannot be reached" in told


def test_what_is_being_stored_outlives_the_stream(bench: CrdtBench) -> None:
    call = bench.call()
    bench.journal.holding = True
    bench.reply(1, 1, plus(1))
    bench.closed(1, 0)
    bench.journal.release()
    bench.batch.flush()
    assert bench.transport.answers[call].body == b"ok"
    assert bench.crdts.active == 0
    bench.call()
    assert bench.sent(2)[0].init.delta == plus(1)


def test_too_many_commands_at_one_key_are_refused() -> None:
    bench = CrdtBench(commands=2)
    bench.call(), bench.call()
    assert bench.told(bench.call())[0] == Status.RESOURCE_EXHAUSTED
    bench.call(entity="b")
    bench.reply(1, 1)
    assert bench.call() not in bench.transport.answers


# The journal ------------------------------------------------------------------------------------------------------------


def test_a_value_that_cannot_be_read_is_not_served(bench: CrdtBench) -> None:
    bench.journal.fail(Read, Unknown("no route"))
    call = bench.call()
    assert bench.told(call) == (Status.UNAVAILABLE, "/test.Presence/Add: not executed: no route")
    assert bench.crdts.active == 0
    bench.call()
    assert bench.kinds(1) == ["init", "command"]


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("delta", [plus(1), None], ids=["update", "delete"])
def test_a_swap_of_unknown_outcome_counts_once(bench: CrdtBench, applied: bool, delta: Any) -> None:
    bench.call()
    bench.reply(1, 1, plus(1))
    call = bench.call()
    bench.journal.fail(Swap, Unknown("lost"), applied=applied)
    bench.reply(1, 2, delta, delete=delta is None)
    assert call not in bench.transport.answers
    bench.fire_only(1.0)
    assert bench.told(call)[0] == 0
    record = bench.stored()
    if delta is None:
        assert record is None
    else:
        bench.later(40)
        bench.call()
        assert bench.sent(2)[0].init.delta == plus(2)


def test_a_journal_that_refuses_for_long_fails_the_caller_and_the_update_stays(bench: CrdtBench) -> None:
    call = bench.call()
    for _ in range(3):
        bench.journal.fail(Swap, Refused("disk full"))
    bench.reply(1, 1, plus(1))
    bench.fire()
    status, told = bench.told(call)
    assert status == Status.UNAVAILABLE
    assert "disk full" in told
    assert "it stays" in told
    while bench.journal_has().version == 0:
        bench.fire()
    bench.later(40)
    bench.call()
    assert bench.sent(2)[0].init.delta == plus(1)
