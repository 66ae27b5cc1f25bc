"""What proxies tell each other, and what callers who ask for more than the journal wait for."""

from __future__ import annotations

from typing import Any

import pytest

from cloudstate_core.journal.api import EntityKey, Refused, Swap, Unknown
from cloudstate_core.pb.cloudstate import crdt_pb2 as pb
from cloudstate_core.pb.cloudstate_knative.v1 import peer_pb2
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Status
from stateful_proxy.crdt import replication, wire
from stateful_proxy.crdt.storing import STORE_LIMIT
from tests.stateful_proxy.crdt.bench import KEY, CrdtBench, adding, elsewhere, plus, text

OTHERS = ("b", "c")


@pytest.fixture
def bench() -> CrdtBench:
    return CrdtBench(others=OTHERS)


def pushed(bench: CrdtBench, request: int) -> list[peer_pb2.Replication.Change]:
    """What a request to another proxy carries."""
    stream = bench.transport.streams[request]
    assert stream.half_closed
    return list(peer_pb2.Replication.FromString(stream.sent[0]).changes)


def updated(bench: CrdtBench, delta: pb.CrdtDelta, consistency: Any = pb.LOCAL, **more: Any) -> int:
    """A command whose reply changes the value; the call. News goes out."""
    call = bench.call()
    stream = max(n for n, s in bench.transport.streams.items() if s.path != replication.REPLICATE)
    bench.reply(stream, bench.sent(stream)[-1].command.id, delta, consistency=consistency, **more)
    bench.fire_only(0.0)
    return call


def acknowledge(bench: CrdtBench, request: int, status: int = Status.OK) -> None:
    bench.event(api.STREAM_MESSAGE, request, b"")
    bench.event(api.STREAM_CLOSED, request, b"", (int(status), "", [], False))


def unacknowledged(bench: CrdtBench) -> list[int]:
    return list(bench.replication._sent)


# Telling ----------------------------------------------------------------------------------------------------------------


def test_what_the_journal_has_goes_to_every_other_proxy(bench: CrdtBench) -> None:
    updated(bench, plus(1))
    assert len(bench.requests()) == 2
    for request in bench.requests():
        (change,) = pushed(bench, request)
        assert (change.persistence_id, change.entity_id, change.version) == ("presence", "a", 1)
        assert wire.decoded(change.record) == bench.stored()


def test_what_the_journal_has_not_goes_to_nobody(bench: CrdtBench) -> None:
    bench.call()
    bench.journal.holding = True
    bench.reply(1, 1, plus(1))
    bench.fire_only(0.0)
    assert bench.requests() == []
    bench.journal.release()
    bench.fire_only(0.0)
    assert len(bench.requests()) == 2


def test_a_deletion_goes_out_as_one(bench: CrdtBench) -> None:
    updated(bench, plus(1))
    updated(bench, None, delete=True)  # type: ignore[arg-type]
    (change,) = pushed(bench, bench.requests()[-1])
    assert (change.WhichOneof("value"), change.version) == ("deleted", 2)


def test_a_large_record_goes_out_as_a_notice(bench: CrdtBench) -> None:
    updated(bench, adding("x" * 40_000))
    (change,) = pushed(bench, bench.requests()[0])
    assert (change.WhichOneof("value"), change.version) == (None, 1)


def test_one_request_carries_the_newest_of_many_keys(bench: CrdtBench) -> None:
    for entity in ("a", "b", "a"):
        bench.replication.publish(EntityKey("presence", entity), len(bench.transport.timers) + 1, b"")
    bench.replication.publish(EntityKey("presence", "a"), 9, b"")
    bench.fire_only(0.0)
    assert len(bench.requests()) == 2
    assert sorted((c.entity_id, c.version) for c in pushed(bench, bench.requests()[0])) == [("a", 9), ("b", 2)]


def test_what_was_not_acknowledged_is_told_again_as_a_notice(bench: CrdtBench) -> None:
    updated(bench, plus(1))
    lost, received = bench.requests()
    acknowledge(bench, lost, Status.UNAVAILABLE)
    acknowledge(bench, received)
    bench.fire()
    bench.fire()
    again = bench.requests()[2:]
    assert len(again) == 1
    (change,) = pushed(bench, again[0])
    assert (change.WhichOneof("value"), change.version) == (None, 1)


def test_a_proxy_that_stays_away_is_given_up(bench: CrdtBench) -> None:
    updated(bench, plus(1))
    for _ in range(50):
        for request in unacknowledged(bench):
            acknowledge(bench, request, Status.UNAVAILABLE)
        bench.fire()
    assert unacknowledged(bench) == []
    assert len(bench.requests()) == 2 * replication.GIVE_UP


def test_requests_to_one_proxy_are_bounded_and_the_rest_follows(bench: CrdtBench) -> None:
    for number in range(20):
        bench.replication.publish(EntityKey("presence", str(number)), 1, b"")
        bench.fire_only(0.0)
    assert len(bench.requests()) == 2 * replication.MAX_IN_FLIGHT
    for _ in range(3):
        for request in unacknowledged(bench):
            acknowledge(bench, request)
        bench.fire_only(0.0)
    told = [c.entity_id for request in bench.requests() for c in pushed(bench, request)]
    assert sorted(told) == sorted([str(n) for n in range(20)] * 2)


# Hearing ----------------------------------------------------------------------------------------------------------------


def request_of(*changes: peer_pb2.Replication.Change) -> bytes:
    return peer_pb2.Replication(changes=changes).SerializeToString()


def change_of(version: int, **value: Any) -> peer_pb2.Replication.Change:
    return peer_pb2.Replication.Change(persistence_id=KEY.persistence_id, entity_id=KEY.entity_id, version=version, **value)


def test_news_become_a_delta_and_are_acknowledged(pair: tuple[CrdtBench, CrdtBench]) -> None:
    one, two = pair
    updated(one, plus(1))
    elsewhere(one, two, plus(4))
    two.fire_only(0.0)
    one.crdts.received(900, two.transport.streams[two.requests()[0]].sent[0])
    assert one.deltas(1) == [plus(4)]
    assert one.transport.answers[900].status == 0


def test_a_notice_is_acknowledged_once_the_journal_was_read(pair: tuple[CrdtBench, CrdtBench]) -> None:
    one, two = pair
    updated(one, plus(1))
    elsewhere(one, two, plus(4))
    one.journal.holding = True
    one.crdts.received(900, request_of(change_of(2)))
    one.batch.flush()
    assert 900 not in one.transport.answers
    one.journal.release()
    assert one.transport.answers[900].status == 0
    assert one.deltas(1) == [plus(4)]


def test_news_of_keys_that_are_not_in_memory_and_old_ones_are_acknowledged_only(bench: CrdtBench) -> None:
    updated(bench, plus(1))
    other = peer_pb2.Replication.Change(persistence_id="presence", entity_id="elsewhere", version=3)
    old = change_of(1, record=wire.encoded(bench.stored()))
    reads = len(bench.journal.operations)
    bench.crdts.received(900, request_of(other, old, change_of(1)))
    bench.batch.flush()
    assert bench.transport.answers[900].status == 0
    assert (bench.kinds(1), len(bench.journal.operations)) == (["init", "command"], reads)


def test_news_that_overtake_the_first_reading_are_not_missed(pair: tuple[CrdtBench, CrdtBench]) -> None:
    one, two = pair
    updated(two, plus(1))
    one.journal.holding = True
    one.call()
    one.journal.holding = False
    elsewhere(one, two, plus(4))
    two.fire_only(0.0)
    one.crdts.received(900, two.transport.streams[two.requests()[-1]].sent[0])
    assert 900 not in one.transport.answers
    one.journal.release()
    one.batch.flush()
    assert one.transport.answers[900].status == 0
    assert one.sent(1)[0].init.delta == plus(1)
    one.reply(1, 1)
    assert one.deltas(1) == [plus(4)]


@pytest.mark.parametrize("data", [b"\xff", request_of(change_of(2, record=b"\xff"))])
def test_what_cannot_be_read_is_refused_whole(bench: CrdtBench, data: bytes) -> None:
    bench.crdts.received(900, data)
    assert bench.transport.answers[900].status == Status.INVALID_ARGUMENT


# Write consistency ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("consistency", "needed"), [(pb.LOCAL, 0), (pb.MAJORITY, 1), (pb.ALL, 2)])
def test_callers_wait_for_as_many_as_they_asked_for(bench: CrdtBench, consistency: Any, needed: int) -> None:
    call = updated(bench, plus(1), consistency)
    for request in bench.requests()[:needed]:
        assert call not in bench.transport.answers
        acknowledge(bench, request)
    assert bench.told(call)[0] == 0


@pytest.mark.parametrize("consistency", [pb.MAJORITY, pb.ALL])
def test_a_proxy_alone_is_majority_and_all(consistency: Any) -> None:
    bench = CrdtBench()
    assert bench.told(updated(bench, plus(1), consistency))[0] == 0


def test_who_leaves_is_waited_for_no_longer(bench: CrdtBench) -> None:
    call = updated(bench, plus(1), pb.ALL)
    acknowledge(bench, bench.requests()[0])
    bench.peers.others = frozenset("b")
    bench.crdts.members_changed()
    assert bench.told(call)[0] == 0


def test_who_joins_must_have_it_too(bench: CrdtBench) -> None:
    call = updated(bench, plus(1), pb.ALL)
    bench.peers.others, bench.peers.known = frozenset("bcd"), {"b": 100, "c": 101, "d": 102}
    bench.crdts.members_changed()
    bench.fire_only(0.0)
    for request in unacknowledged(bench):
        assert call not in bench.transport.answers
        acknowledge(bench, request)
    assert bench.told(call)[0] == 0


def test_too_few_in_time_is_a_failure_and_the_update_stays(bench: CrdtBench) -> None:
    call = updated(bench, plus(1), pb.ALL)
    bench.fire_only(STORE_LIMIT)
    status, told = bench.told(call)
    assert status == Status.UNAVAILABLE
    assert told == "/test.Presence/Add: not all proxies of the service have acknowledged the update within 5 s; it is stored and stays"
    assert bench.stored() is not None
    for request in unacknowledged(bench):
        acknowledge(bench, request)


# The journal under several proxies --------------------------------------------------------------------------------------


def test_a_lost_race_is_run_again_on_what_the_winner_wrote(pair: tuple[CrdtBench, CrdtBench]) -> None:
    one, two = pair
    updated(one, plus(1))
    call = one.call()
    elsewhere(one, two, plus(4))
    one.reply(1, 2, plus(2))
    assert one.told(call)[0] == 0
    assert one.deltas(1) == [plus(4)]
    one.later(40)
    one.call()
    assert one.sent(max(n for n, s in one.transport.streams.items() if s.path != replication.REPLICATE))[0].init.delta == plus(7)


def test_what_departed_replicas_left_is_folded_with_the_next_change(pair: tuple[CrdtBench, CrdtBench]) -> None:
    one, two = pair
    updated(two, plus(4))
    updated(one, plus(1))
    assert (one.stored().compaction, set(one.stored().state.context)) == (0, {"me", "other"})
    one.peers.others = frozenset()
    one.crdts.members_changed()
    assert one.stored().compaction == 0, "nothing is written for that alone"
    updated(one, plus(1))
    assert one.stored().compaction == 1
    assert set(one.stored().state.store.slots) == {"me", ""}
    assert one.deltas(1) == []


def test_who_was_folded_by_mistake_goes_on_and_counts_once(pair: tuple[CrdtBench, CrdtBench]) -> None:
    """The hardest case: its own change was in doubt when the other took it for departed."""
    one, two = pair
    updated(one, plus(1))
    one.journal.fail(Swap, Unknown("lost"), applied=True)
    call = updated(one, plus(10))
    two.peers.others = frozenset()
    two.crdts.members_changed()
    elsewhere(one, two, plus(100))
    assert one.stored().compaction == 1
    one.fire_only(1.0)
    assert one.told(call)[0] == 0
    assert one.deltas(1) == [plus(100)]
    updated(one, plus(1_000))
    two.later(40)
    two.call()
    stream = max(n for n, s in two.transport.streams.items() if s.path != replication.REPLICATE)
    assert two.sent(stream)[0].init.delta == plus(1_111)


def test_updates_that_wait_go_to_the_journal_together(bench: CrdtBench) -> None:
    for _ in range(4):
        bench.call()
    bench.journal.holding = True
    for number in range(1, 5):
        bench.reply(1, number, plus(1))
    bench.journal.holding = False
    bench.journal.release()
    bench.batch.flush()
    assert [bench.told(call)[0] for call in range(1, 5)] == [0] * 4
    assert bench.journal_has().version == 2


def test_an_outage_is_ridden_out_by_one_request_at_a_time(bench: CrdtBench) -> None:
    for _ in range(5):
        bench.journal.fail(Swap, Refused("read-only"))
    updated(bench, plus(1))
    operations = len(bench.journal.operations)
    delays = []
    while bench.journal_has().version == 0:
        due = sorted({delay for delay, _ in bench.transport.timers})[0]
        delays.append(due)
        bench.fire_only(due)
    assert delays == [0.05, 0.1, 0.2, 0.4, 0.8]
    assert len(bench.journal.operations) - operations == 10, "a read and a swap each time"


def test_a_removal_counts_across_a_compaction(pair: tuple[CrdtBench, CrdtBench]) -> None:
    """What the function removes was added by a replica that is folded while the command is at the function."""
    one, two = pair
    updated(two, adding("x", "y"))
    two.later(40)
    updated(one, adding("w"))
    one.call()
    two.replication.member = "third"
    elsewhere(one, two, adding("z"))
    assert one.stored().compaction == 1
    one.later(1)
    one.reply(1, 2, pb.CrdtDelta(orset=pb.ORSetDelta(removed=[text("x")])))
    two.later(1)
    stream = max(n for n, s in two.transport.streams.items() if s.path != replication.REPLICATE)
    assert two.deltas(stream) == [pb.CrdtDelta(orset=pb.ORSetDelta(removed=[text("x")]))]


@pytest.mark.parametrize("kept", [0, 1])
def test_a_journal_that_lost_writes_gets_them_again(bench: CrdtBench, kept: int) -> None:
    """As after a failover to a replica that lagged."""
    earlier = bench.journal_has()
    for number in range(3):
        updated(bench, plus(10**number))
        earlier = bench.journal_has() if number == 0 and kept else earlier
    bench.journal.inner._values[KEY] = earlier
    call = updated(bench, plus(1_000))
    assert bench.told(call)[0] == 0
    assert bench.deltas(1) == []
    bench.later(40)
    bench.call()
    stream = max(n for n, s in bench.transport.streams.items() if s.path != replication.REPLICATE)
    assert bench.sent(stream)[0].init.delta == plus(1_111)
