"""Replicated values: whatever the order, the duplicates and the losses of messages, replicas come to the same; and to the right."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from google.protobuf.any_pb2 import Any as AnyValue
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudstate_core.pb.cloudstate import crdt_pb2 as pb
from stateful_proxy.crdt import views, wire
from stateful_proxy.crdt.causality import FOLDED, Onlooker, Stamp, Store
from stateful_proxy.crdt.counters import Counter
from stateful_proxy.crdt.flag import Flag
from stateful_proxy.crdt.kinds import Incompatible, Kind, element_of, elements_of
from stateful_proxy.crdt.map import Map
from stateful_proxy.crdt.register import LWWRegister
from stateful_proxy.crdt.sets import Set
from stateful_proxy.crdt.state import REMEMBERED, Record, State, applied, compacted, merged
from tests.stateful_proxy.crdt.strategies import deltas

REPLICAS = ("a", "b", "c")
KINDS = pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name)
UP = frozenset(REPLICAS)


def delta_of(**cases: object) -> pb.CrdtDelta:
    return pb.CrdtDelta(**cases)  # type: ignore[arg-type]


def text(value: str) -> AnyValue:
    return AnyValue(type_url="p.cloudstate.io/string", value=value.encode())


def sure(outcome: State | Incompatible) -> State:
    assert isinstance(outcome, State), outcome
    return outcome


class World:
    """Replicas that change a value, and every message they ever sent: each holds the sender's whole state."""

    def __init__(self) -> None:
        self.states: dict[str, State | None] = dict.fromkeys(REPLICAS)
        self.sent: list[State] = []

    def act(self, replica: str, delta: pb.CrdtDelta, now: int) -> None:
        before = self.states[replica]
        number = (before.context.get(replica, 0) if before else 0) + 1
        after = sure(applied(before, delta, Stamp(replica, number, now)))
        self.states[replica] = after
        self.sent.append(after)

    def hear(self, replica: str, message: State) -> None:
        before = self.states[replica]
        self.states[replica] = message if before is None else sure(merged(before, message))

    def exchange(self) -> list[State]:
        """Everybody hears everybody, twice; the states."""
        for _ in range(2):
            for replica in REPLICAS:
                for other in REPLICAS:
                    if (state := self.states[other]) is not None:
                        self.hear(replica, state)
        return [state for state in self.states.values() if state is not None]


Step = tuple[str, pb.CrdtDelta | int, int]


def steps(kind: Kind) -> st.SearchStrategy[list[Step]]:
    """Who acts, by which delta or hearing which message, and when."""
    return st.lists(st.tuples(st.sampled_from(REPLICAS), st.one_of(deltas(kind), st.integers(0, 30)), st.integers(0, 5)), max_size=14)


def play(kind: Kind, plan: Sequence[Step]) -> World:
    world = World()
    for replica, what, now in plan:
        if isinstance(what, int):
            if world.sent:
                world.hear(replica, world.sent[what % len(world.sent)])
        else:
            world.act(replica, what, now)
    return world


@KINDS
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_replicas_converge_whatever_was_lost_reordered_or_doubled(kind: Kind, data: st.DataObject) -> None:
    states = play(kind, data.draw(steps(kind))).exchange()
    assert all(state == states[0] for state in states)


@KINDS
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_value_is_what_the_history_of_operations_says(kind: Kind, data: st.DataObject) -> None:
    """An oracle that knows nothing of dots: each operation with all that its replica had seen before it."""
    plan = data.draw(steps(kind))
    past: dict[str, frozenset[int]] = dict.fromkeys(REPLICAS, frozenset())
    messages: list[frozenset[int]] = []
    history: list[tuple[str, pb.CrdtDelta, frozenset[int]]] = []
    for replica, what, _ in plan:
        if not isinstance(what, int):
            history.append((replica, what, past[replica]))
            past[replica] |= {len(history) - 1}
            messages.append(past[replica])
        elif messages:
            past[replica] |= messages[what % len(messages)]
    states = play(kind, plan).exchange()
    if states:
        assert_as_told(kind, history, states[0].view(Onlooker("a", UP)))


def assert_as_told(kind: Kind, history: list[tuple[str, pb.CrdtDelta, frozenset[int]]], view: views.View) -> None:
    ops = [delta for _, delta, _ in history]
    match view:
        case views.Count():
            assert view.total == sum(delta.gcounter.increment + delta.pncounter.change for delta in ops)
        case views.Raised():
            assert view.value == any(delta.flag.value for delta in ops)
        case views.Tally():
            last = {replica: delta.vote.self_vote for replica, delta, _ in history}
            assert (view.self_vote, view.votes_for, view.total_voters) == (last.get("a", False), sum(last.values()), 3)
        case views.Register():
            assert view.element in {element_of(delta.lwwregister.value) for delta in ops}
        case views.Elements():
            added = [set(elements_of([*delta.gset.added, *delta.orset.added])) for delta in ops]
            taken = [set(elements_of(delta.orset.removed)) for delta in ops]
            assert view.elements == {
                element
                for number, elements in enumerate(added)
                for element in elements
                if not any(number in past and (delta.orset.cleared or element in taken[at]) for at, (_, delta, past) in enumerate(history))
            }
        case views.Entries():
            adds = [{element_of(entry.key) for entry in delta.ormap.added} for delta in ops]
            gone = [set(elements_of(delta.ormap.removed)) for delta in ops]
            for number, keys_ in enumerate(adds):
                for key in keys_:
                    if not any(number in past and (d.ormap.cleared or key in gone[at]) for at, (_, d, past) in enumerate(history)):
                        assert key in view.entries
            for key in view.entries:
                assert any(key in keys_ for keys_ in adds)
                last = [d for _, d, past in history if len(past) == len(history) - 1]
                assert not any(d.ormap.cleared and key not in adds[-1] for d in last), "the last operation had seen everything"


@KINDS
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_merging_is_commutative_associative_and_idempotent(kind: Kind, data: st.DataObject) -> None:
    sent = play(kind, data.draw(steps(kind))).sent
    if not sent:
        return
    one, two, three = (data.draw(st.sampled_from(sent)) for _ in range(3))
    assert merged(one, one) == one
    both = sure(merged(one, two))
    assert both == merged(two, one)
    assert merged(both, one) == both
    assert merged(both, three) == merged(one, sure(merged(two, three)))


@KINDS
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_is_written_is_read_again(kind: Kind, data: st.DataObject) -> None:
    for number, state in enumerate(play(kind, data.draw(steps(kind))).exchange()):
        record = compacted(Record(state, number), frozenset(data.draw(st.sets(st.sampled_from(REPLICAS)))))
        assert wire.decoded(wire.encoded(record)) == record


@pytest.mark.parametrize("data", [b"", b"\xff", wire.encoded(Record(State(Flag(), {}), 1))[:-1]])
def test_what_is_no_record_is_not_read(data: bytes) -> None:
    with pytest.raises(wire.Unreadable):
        wire.decoded(data)


# The function's side ----------------------------------------------------------------------------------------------------


@KINDS
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_difference_brings_the_function_from_one_view_to_the_other(kind: Kind, data: st.DataObject) -> None:
    """From nothing to every state; and from an earlier one to it wherever the type allows that."""
    world = play(kind, data.draw(steps(kind)))
    world.exchange()
    up = frozenset(data.draw(st.sets(st.sampled_from(REPLICAS), min_size=1)))
    final = [state.view(Onlooker("a", up)) for state in world.states.values() if state is not None]
    for before in [None, *(state.view(Onlooker("a", UP)) for state in world.sent)]:
        for after in final:
            delta = views.whole_of(after) if before is None else views.difference(before, after)
            assert not isinstance(delta, Incompatible), delta
            if delta is None:
                assert before == after
            else:
                told = views.applied(before, delta)
                if delta.HasField("vote"):
                    told = views.Tally(delta.vote.self_vote, delta.vote.votes_for, delta.vote.total_voters)
                assert _without_votes(told) == _without_votes(after)


def _without_votes(view: object) -> object:
    """Numbers of voters travel in one direction only: `views.applied` follows the function's own deltas, which do not carry them."""
    if isinstance(view, views.Entries):
        return {key: _without_votes(value) for key, value in view.entries.items()}
    return type(view) if isinstance(view, views.Tally) else view


@KINDS
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_proxy_and_function_apply_a_delta_alike(kind: Kind, data: st.DataObject) -> None:
    """A function alone: after any of its deltas, what the proxy would show it is what it holds already."""
    state, view, alone = None, None, Onlooker("a", frozenset("a"))
    for number, delta in enumerate(data.draw(st.lists(deltas(kind), max_size=8)), 1):
        if kind is Kind.LWWREGISTER:
            delta.lwwregister.clock = pb.DEFAULT
        _default_clocks(delta)
        state, view = sure(applied(state, delta, Stamp("a", number, number))), views.applied(view, delta)
        assert state.view(alone) == view


def _default_clocks(delta: pb.CrdtDelta) -> None:
    """A write that loses by its clock is held by the function until the proxy tells it better; not what is asked here."""
    for entry in [*delta.ormap.updated, *delta.ormap.added]:
        if entry.delta.HasField("lwwregister"):
            entry.delta.lwwregister.clock = pb.DEFAULT
        _default_clocks(entry.delta)


# Departed replicas ------------------------------------------------------------------------------------------------------


def holders(store: Store) -> set[str]:
    """Replicas that something in a store is filed under. Votes of departed ones are kept for a while: they do not count."""
    match store:
        case Counter():
            return set(store.slots)
        case Set():
            return {replica for dots in store.elements.values() for replica in dots}
        case LWWRegister():
            return set(store.writes)
        case Flag():
            return set(store.dots)
        case Map():
            entries = [entry for values in store.entries.values() for entry in values.values()]
            return {replica for entry in entries for replica in entry.dots}.union(*(holders(entry.store) for entry in entries))
    return set()


@KINDS
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_folding_departed_replicas_changes_no_view_and_convergence_goes_on(kind: Kind, data: st.DataObject) -> None:
    world = play(kind, data.draw(steps(kind)))
    states = world.exchange()
    living = frozenset(data.draw(st.sets(st.sampled_from(REPLICAS), min_size=1)))
    if not states:
        return
    before = Record(states[0], 7)
    after = compacted(before, living)
    for replica in living:
        assert after.state.view(Onlooker(replica, living)) == before.state.view(Onlooker(replica, living))
    assert compacted(after, living) is after
    assert holders(after.state.store) <= living | {FOLDED}
    again = World()
    again.states = dict.fromkeys(REPLICAS, after.state)
    again.sent = [after.state]
    for replica, what, now in data.draw(steps(kind)):
        if isinstance(what, int):
            again.hear(replica, again.sent[what % len(again.sent)])
        else:
            again.act(replica, what, now)
    folded = again.exchange()
    assert all(state == folded[0] for state in folded)


@KINDS
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_a_value_that_outlives_many_replicas_stays_small(kind: Kind, data: st.DataObject) -> None:
    """Each process that changes it departs before the next one comes."""
    changes = data.draw(st.lists(deltas(kind), min_size=4, max_size=4))
    record: Record | None = None
    sizes = []
    for life in range(4 * REMEMBERED):
        name = f"pod-{life:04}"
        stamp = Stamp(name, 1, life)
        before = None if record is None else compacted(record, frozenset([name]))
        state = sure(applied(before and before.state, changes[life % 4], stamp))
        record = Record(state, 1) if before is None else Record(state, 1, before.compaction, before.folded)
        sizes.append(len(wire.encoded(record)))
        assert len(record.state.context) <= REMEMBERED + 3
    assert max(sizes[2 * REMEMBERED :]) <= max(sizes[REMEMBERED : 2 * REMEMBERED]) + 200


def test_a_replica_folded_by_mistake_finds_its_last_operation_and_its_vote() -> None:
    one = sure(applied(None, delta_of(vote=pb.VoteDelta(self_vote=True)), Stamp("a", 1, 0)))
    two = sure(applied(one, delta_of(vote=pb.VoteDelta(self_vote=True)), Stamp("b", 1, 0)))
    record = compacted(Record(two, 1), frozenset("b"))
    assert (record.folded, record.state.context) == (("a",), {"a": 1, "b": 1, FOLDED: 1})
    assert record.state.view(Onlooker("a", frozenset("ab"))) == views.Tally(True, 2, 2)
    assert record.state.view(Onlooker("b", frozenset("b"))) == views.Tally(True, 1, 1)


# Single rules -----------------------------------------------------------------------------------------------------------


def ordered(*deltas_: pb.CrdtDelta) -> State:
    """One replica applies these, at 10, 11, 12 milliseconds."""
    state: State | None = None
    for number, delta in enumerate(deltas_):
        state = sure(applied(state, delta, Stamp("a", number + 1, 10 + number)))
    assert state is not None
    return state


def write(value: str, clock: pb.CrdtClock = pb.DEFAULT, given_: int = 0) -> pb.CrdtDelta:
    return delta_of(lwwregister=pb.LWWRegisterDelta(value=text(value), clock=clock, custom_clock_value=given_))


@pytest.mark.parametrize(
    ("writes", "held", "clock"),
    [
        ([("x", pb.DEFAULT, 0), ("y", pb.DEFAULT, 0)], "y", 11),
        ([("x", pb.CUSTOM, 500), ("y", pb.DEFAULT, 0)], "y", 501),
        ([("x", pb.REVERSE, 0), ("y", pb.REVERSE, 0)], "x", -10),
        ([("x", pb.CUSTOM, 5), ("y", pb.CUSTOM, 4)], "x", 5),
        ([("x", pb.CUSTOM, 5), ("y", pb.CUSTOM, 5)], "y", 5),
        ([("x", pb.CUSTOM, 5), ("y", pb.CUSTOM_AUTO_INCREMENT, 3)], "y", 6),
        ([("x", pb.CUSTOM, 5), ("y", pb.CUSTOM_AUTO_INCREMENT, 9)], "y", 9),
        ([("x", pb.CUSTOM, 2**63 - 1), ("y", pb.CUSTOM_AUTO_INCREMENT, 0)], "y", 2**63 - 1),
    ],
)
def test_clocks(writes: list[tuple[str, pb.CrdtClock, int]], held: str, clock: int) -> None:
    state = ordered(*(write(*each) for each in writes))
    assert state.view(Onlooker("a", UP)) == views.Register(views.Element("p.cloudstate.io/string", held.encode()))
    assert state.store.held.clock == clock  # type: ignore[attr-defined]


def test_equal_clocks_are_decided_by_the_writers_whoever_merges() -> None:
    one = sure(applied(None, write("x", pb.CUSTOM, 5), Stamp("a", 1, 0)))
    two = sure(applied(None, write("y", pb.CUSTOM, 5), Stamp("b", 1, 0)))
    for state in (merged(one, two), merged(two, one)):
        assert sure(state).view(Onlooker("c", UP)) == views.Register(views.Element("p.cloudstate.io/string", b"y"))


def entry(key: str, **cases: object) -> pb.ORMapEntryDelta:
    return pb.ORMapEntryDelta(key=text(key), delta=delta_of(**cases))


def mapping(**parts: object) -> pb.CrdtDelta:
    return delta_of(ormap=pb.ORMapDelta(**parts))  # type: ignore[arg-type]


PLUS = pb.GCounterDelta(increment=2)


def keys(state: State) -> dict[bytes, views.View]:
    view = state.view(Onlooker("a", UP))
    assert isinstance(view, views.Entries)
    return {key.value: value for key, value in view.entries.items()}


def test_an_update_of_a_key_wins_over_its_removal_at_the_same_time_and_counts_alone() -> None:
    base = sure(applied(None, mapping(added=[entry("k", gcounter=PLUS)]), Stamp("a", 1, 0)))
    removed = sure(applied(base, mapping(removed=[text("k")]), Stamp("a", 2, 0)))
    updated = sure(applied(base, mapping(updated=[entry("k", gcounter=PLUS)]), Stamp("b", 1, 0)))
    assert keys(sure(merged(removed, updated))) == {b"k": views.Count(Kind.GCOUNTER, 2)}
    assert sure(merged(removed, base)) == removed, "what was removed does not come back"


def test_an_update_of_a_key_that_is_gone_or_of_another_type_is_skipped() -> None:
    base = ordered(mapping(added=[entry("k", gcounter=PLUS)]))
    after = sure(applied(base, mapping(updated=[entry("k", flag=pb.FlagDelta(value=True)), entry("none", gcounter=PLUS)]), Stamp("a", 2, 0)))
    assert keys(after) == {b"k": views.Count(Kind.GCOUNTER, 2)}


def test_two_types_under_one_key_show_the_same_one_everywhere_and_go_together() -> None:
    one = sure(applied(None, mapping(added=[entry("k", flag=pb.FlagDelta(value=True))]), Stamp("a", 1, 0)))
    two = sure(applied(None, mapping(added=[entry("k", gcounter=PLUS)]), Stamp("b", 1, 0)))
    both = sure(merged(one, two))
    assert keys(both) == {b"k": views.Count(Kind.GCOUNTER, 2)}
    assert keys(sure(applied(both, mapping(removed=[text("k")]), Stamp("a", 2, 0)))) == {}


def test_a_key_made_anew_is_told_as_removed_and_added() -> None:
    before = views.Entries({views.Element("", b"k"): views.Count(Kind.GCOUNTER, 5)})
    for value in (views.Count(Kind.GCOUNTER, 2), views.Raised(True)):
        delta = views.difference(before, views.Entries({views.Element("", b"k"): value}))
        assert isinstance(delta, pb.CrdtDelta)
        assert ([k.value for k in delta.ormap.removed], len(delta.ormap.added), len(delta.ormap.updated)) == ([b"k"], 1, 0)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("abc", "abd", pb.ORSetDelta(removed=[text("c")], added=[text("d")])),
        ("abc", "d", pb.ORSetDelta(cleared=True, added=[text("d")])),
        ("abc", "", pb.ORSetDelta(cleared=True)),
        ("", "ab", pb.ORSetDelta(added=[text("a"), text("b")])),
        ("ab", "c", pb.ORSetDelta(cleared=True, added=[text("c")])),
    ],
)
def test_differences_of_sets_clear_when_that_is_shorter(before: str, after: str, expected: pb.ORSetDelta) -> None:
    one, two = (views.Elements(Kind.ORSET, frozenset(views.Element(text(c).type_url, c.encode()) for c in cs)) for cs in (before, after))
    assert views.difference(one, two) == delta_of(orset=expected)


def gcount(n: int) -> pb.CrdtDelta:
    return delta_of(gcounter=pb.GCounterDelta(increment=n))


@pytest.mark.parametrize(
    ("first", "second", "rule"),
    [
        (gcount(1), delta_of(flag=pb.FlagDelta()), "does not fit"),
        (gcount(1), pb.CrdtDelta(), "names no type"),
        (gcount(2**64 - 1), gcount(1), "between"),
        (delta_of(pncounter=pb.PNCounterDelta(change=2**63 - 1)), delta_of(pncounter=pb.PNCounterDelta(change=1)), "between"),
        (mapping(), mapping(added=[pb.ORMapEntryDelta(key=text("k"))]), "names no type"),
    ],
)
def test_what_a_value_cannot_take_is_an_error_value(first: pb.CrdtDelta, second: pb.CrdtDelta, rule: str) -> None:
    outcome = applied(ordered(first), second, Stamp("a", 2, 0))
    assert isinstance(outcome, Incompatible)
    assert rule in outcome.reason


def test_types_that_differ_do_not_merge() -> None:
    assert isinstance(merged(ordered(gcount(1)), ordered(delta_of(flag=pb.FlagDelta()))), Incompatible)


def test_maps_are_nested_no_deeper_than_can_be_read_again() -> None:
    delta = gcount(1)
    for _ in range(19):
        delta = mapping(added=[pb.ORMapEntryDelta(key=text("k"), delta=delta)])
    record = Record(ordered(delta), 1)
    assert wire.decoded(wire.encoded(record)) == record
    deeper = mapping(added=[pb.ORMapEntryDelta(key=text("k"), delta=delta)])
    assert isinstance(applied(None, deeper, Stamp("a", 1, 0)), Incompatible)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (views.Count(Kind.GCOUNTER, 2), views.Count(Kind.GCOUNTER, 1)),
        (views.Raised(True), views.Raised(False)),
        (views.Elements(Kind.GSET, frozenset([views.Element("", b"x")])), views.Elements(Kind.GSET, frozenset())),
        (views.Raised(True), views.Count(Kind.GCOUNTER, 1)),
    ],
)
def test_what_cannot_become_the_other_has_no_difference(before: views.View, after: views.View) -> None:
    assert isinstance(views.difference(before, after), Incompatible)
