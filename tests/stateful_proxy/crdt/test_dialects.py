"""Functions of protocol 0.1: whole values instead of deltas on empty, and other numbers."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudstate_core.pb.cloudstate import crdt_pb2 as pb
from cloudstate_core.pb.cloudstate_knative.v1 import crdt_0_1_pb2 as old
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Status
from stateful_proxy.crdt import dialects, views
from stateful_proxy.crdt.dialects import Legacy, Present
from stateful_proxy.crdt.kinds import Incompatible
from stateful_proxy.libraries import quirks_of
from tests.stateful_proxy.crdt.bench import CrdtBench, adding, elsewhere, text, vote
from tests.stateful_proxy.crdt.strategies import any_deltas


@pytest.fixture
def bench() -> CrdtBench:
    return CrdtBench(dialect=Legacy())


def sent(bench: CrdtBench, stream: int = 1) -> list[old.CrdtStreamIn]:
    return [old.CrdtStreamIn.FromString(message) for message in bench.transport.streams[stream].sent]


def reply(bench: CrdtBench, number: int, **action: Any) -> None:
    out = old.CrdtStreamOut(reply=old.CrdtReply(command_id=number, state_action=old.CrdtStateAction(**action)))
    out.reply.client_action.reply.payload.value = b"ok"
    bench.event(api.STREAM_MESSAGE, 1, out.SerializeToString())


def test_a_value_is_made_by_create_and_changed_by_update(bench: CrdtBench) -> None:
    calls = [bench.call(), bench.call()]
    reply(bench, 1, create=old.CrdtState(pncounter=old.PNCounterState(value=5)))
    reply(bench, 2, update=old.CrdtDelta(pncounter=pb.PNCounterDelta(change=-2)), write_consistency=pb.ALL)
    assert [bench.told(call)[0] for call in calls] == [0, 0]
    assert [m.WhichOneof("message") for m in sent(bench)] == ["init", "command", "command"]
    bench.later(40)
    bench.call()
    assert sent(bench, 2)[0].init.state == old.CrdtState(pncounter=old.PNCounterState(value=3))


def test_news_are_a_state_first_and_deltas_then() -> None:
    bench = CrdtBench(others=["other"], dialect=Legacy())
    other = CrdtBench(others=["me"], journal=bench.journal)
    other.replication.member = "other"
    bench.call()
    reply(bench, 1)
    for letter in "xy":
        elsewhere(bench, other, adding(letter))
        bench.later(1)
    first, second = sent(bench)[2:]
    assert first.state == old.CrdtState(orset=old.ORSetState(items=[text("x")]))
    assert second.changed == old.CrdtDelta(orset=pb.ORSetDelta(added=[text("y")]))
    call = other.call()
    stream = [n for n, s in other.transport.streams.items() if not s.ended and "Crdt" in s.path][-1]
    other.reply(stream, other.sent(stream)[-1].command.id, delete=True)
    assert other.told(call)[0] == 0
    bench.later(1)
    assert sent(bench)[-1].WhichOneof("message") == "deleted"


def test_a_library_that_would_forget_a_first_value_gets_it_with_a_new_stream() -> None:
    bench = CrdtBench(others=["other"], dialect=Legacy(keeps_first_value=False))
    other = CrdtBench(others=["me"], journal=bench.journal)
    other.replication.member = "other"
    watching = bench.call("Watch")
    bench.event(api.STREAM_MESSAGE, 1, old.CrdtStreamOut(reply=old.CrdtReply(command_id=1, streamed=True)).SerializeToString())
    elsewhere(bench, other, adding("x"))
    bench.later(1)
    assert [m.WhichOneof("message") for m in sent(bench)] == ["init", "command"]
    assert bench.transport.streams[1].half_closed
    assert bench.told(watching)[0] == Status.UNAVAILABLE
    bench.call()
    stream = [n for n, s in bench.transport.streams.items() if "Crdt" in s.path][-1]
    assert sent(bench, stream)[0].init.state == old.CrdtState(orset=old.ORSetState(items=[text("x")]))


@pytest.mark.parametrize(
    ("protocol", "library", "dialect", "keeps"),
    [
        ((0, 2), "cloudstate-java-support 0.6.0", Present, True),
        ((0, 1), "cloudstate-java-support 0.5.2", Legacy, False),
        ((0, 1), "cloudstate 0.0.3", Legacy, True),
        ((0, 1), "", Legacy, True),
    ],
)
def test_the_dialect_of_a_function(protocol: tuple[int, int], library: str, dialect: type[Any], keeps: bool) -> None:
    found = dialects.dialect_of(protocol, quirks_of(library))
    assert (type(found), found.keeps_first_value) == (dialect, keeps)


def test_new_keys_of_maps_are_whole_values_both_ways(bench: CrdtBench) -> None:
    bench.call()
    made = old.ORMapEntry(key=text("k"), value=old.CrdtState(gset=old.GSetState(items=[text("x")])))
    reply(bench, 1, update=old.CrdtDelta(ormap=old.ORMapDelta(added=[made])))
    bench.later(40)
    bench.call()
    assert sent(bench, 2)[0].init.state == old.CrdtState(ormap=old.ORMapState(entries=[made]))


def test_a_deletion(bench: CrdtBench) -> None:
    bench.call(), bench.call()
    reply(bench, 1, create=old.CrdtState(flag=pb.FlagDelta(value=True)))
    reply(bench, 2, delete=pb.CrdtDelete())
    assert bench.stored() is None
    assert bench.transport.streams[1].half_closed


def test_a_cancelled_stream_may_change_the_value(bench: CrdtBench) -> None:
    call = bench.call("Watch")
    out = old.CrdtStreamOut(reply=old.CrdtReply(command_id=1, streamed=True))
    out.reply.state_action.create.pncounter.value = 1
    bench.event(api.STREAM_MESSAGE, 1, out.SerializeToString())
    bench.hang_up(call)
    assert sent(bench)[-1].stream_cancelled.id == 1
    response = old.CrdtStreamOut(stream_cancelled_response=old.CrdtStreamCancelledResponse(command_id=1))
    response.stream_cancelled_response.state_action.update.pncounter.change = -1
    bench.event(api.STREAM_MESSAGE, 1, response.SerializeToString())
    bench.later(40)
    bench.call()
    assert sent(bench, 2)[0].init.state == old.CrdtState(pncounter=old.PNCounterState(value=0))


def test_votes_have_other_numbers() -> None:
    state = old.CrdtState()
    dialects._to_state(pb.CrdtDelta(vote=pb.VoteDelta(self_vote=True, votes_for=2, total_voters=3)), state)
    assert state.vote.SerializeToString() == b"\x08\x02\x10\x03\x18\x01"


@settings(max_examples=200, deadline=None)
@given(first=any_deltas(2), then=st.lists(any_deltas(2), max_size=4))
def test_whole_values_and_differences_mean_the_same_in_both(first: pb.CrdtDelta, then: list[pb.CrdtDelta]) -> None:
    before = views.applied(None, first)
    after = before
    for delta in then:
        changed = views.applied(after, delta)
        after = after if isinstance(changed, Incompatible) else changed
    assert not isinstance(before, Incompatible)
    assert not isinstance(after, Incompatible)
    state, back = old.CrdtState(), pb.CrdtDelta()
    whole = views.whole_of(after)
    assert not isinstance(whole, Incompatible)
    dialects._to_state(whole, state)
    dialects._to_delta(old.CrdtState.FromString(state.SerializeToString()), back)
    assert own(back) == own(whole)
    change = views.difference(before, after)
    if isinstance(change, pb.CrdtDelta):
        changed_, again = old.CrdtDelta(), pb.CrdtDelta()
        dialects._to_old(change, changed_)
        dialects._to_now(old.CrdtDelta.FromString(changed_.SerializeToString()), again)
        assert own(again) == own(change)


def own(delta: pb.CrdtDelta) -> pb.CrdtDelta:
    """Without what the function cannot say: numbers of votes in whole values, which travel to it only."""
    copy = pb.CrdtDelta.FromString(delta.SerializeToString())
    if copy.HasField("vote"):
        copy.vote.CopyFrom(vote(copy.vote.self_vote).vote)
    for entry in [*copy.ormap.updated, *copy.ormap.added]:
        entry.delta.CopyFrom(own(entry.delta))
    return copy


def test_garbage_does_not_parse() -> None:
    for dialect in (Present(), Legacy()):
        with pytest.raises(DecodeError):
            dialect.decode(b"\xff")


def test_empty_answers_stay_empty_and_answers_stay_answers() -> None:
    for out in (old.CrdtStreamOut(), old.CrdtStreamOut(reply=old.CrdtReply()), old.CrdtStreamOut(failure={"description": "d"})):
        assert Legacy().decode(out.SerializeToString()).WhichOneof("message") == out.WhichOneof("message")
