"""The replicated types as a function uses them: what they show, what they refuse, and the exact change that they tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cloudstate_sdk import any_values
from cloudstate_sdk.crdt import Clock, Crdt, Flag, GCounter, GSet, LWWRegister, NotYourTurn, ORMap, ORSet, PNCounter, Vote
from cloudstate_sdk.pb.cloudstate.crdt_pb2 import CrdtDelta, VoteDelta

from tests.tck.pb.cloudstate.tck.model import crdt_pb2 as model

Delta = dict[str, Any]


def element(value: Any) -> Any:
    return any_values.to_any(value)


def entry(key: str, **delta: Any) -> Delta:
    return {"key": element(key), "delta": CrdtDelta(**delta)}


def committed(value: Any, *changes: Callable[[Any], Any]) -> Any:
    for change in changes:
        change(value)
    value._commit()
    return value


def letters(kind: Any, text: str) -> Any:
    return committed(kind(), lambda found: found.update(text))


def scores() -> ORMap[str, Any]:
    """Holds a PNCounter under `a` and an ORSet under `b`."""
    return committed(  # type: ignore[no-any-return]
        ORMap(), lambda found: found.get_or_create("a", PNCounter).increment(3), lambda found: found.get_or_create("b", ORSet).add("x")
    )


def again(found: Any) -> None:
    del found["a"]
    found.get_or_create("a", GCounter).increment(2)


def made_and_removed(found: Any) -> None:
    found.get_or_create("c", Flag).enable()
    found.remove("c")


TOLD: list[tuple[str, Crdt, Callable[[Any], Any], Delta]] = [
    ("counts add up", GCounter(), lambda c: (c.increment(), c.increment(2)), {"gcounter": {"increment": 3}}),
    ("up and down", PNCounter(), lambda c: (c.increment(2), c.decrement(), c.decrement(4)), {"pncounter": {"change": -3}}),
    ("only new elements", letters(GSet, "a"), lambda s: s.update("aba"), {"gset": {"added": [element("b")]}}),
    ("only present ones go", letters(ORSet, "ab"), lambda s: (s.remove("a"), s.discard("z")), {"orset": {"removed": [element("a")]}}),
    ("in and out again", letters(ORSet, "ab"), lambda s: (s.add("c"), s.remove("c"), s.remove("b")), {"orset": {"removed": [element("b")]}}),
    ("out and in again", letters(ORSet, "ab"), lambda s: (s.remove("a"), s.add("a"), s.add("c")), {"orset": {"added": [element("c")]}}),
    ("cleared, and filled", letters(ORSet, "ab"), lambda s: (s.clear(), s.add("a")), {"orset": {"cleared": True, "added": [element("a")]}}),
    ("what was added is cleared", ORSet(), lambda s: (s.add("a"), s.clear(), s.add("x")), {"orset": {"cleared": True, "added": [element("x")]}}),
    ("the last write", LWWRegister(), lambda r: (r.set("a"), r.set("b")), {"lwwregister": {"value": element("b")}}),
    ("by assignment", LWWRegister(), lambda r: setattr(r, "value", 7), {"lwwregister": {"value": element(7)}}),
    (
        "with a clock",
        LWWRegister(),
        lambda r: r.set("a", Clock.CUSTOM_AUTO_INCREMENT, 9),
        {"lwwregister": {"value": element("a"), "clock": 3, "custom_clock_value": 9}},
    ),
    ("up", Flag(), lambda f: (f.enable(), f.enable()), {"flag": {"value": True}}),
    ("yes", Vote(), lambda v: v.vote(True), {"vote": {"self_vote": True}}),
    (
        "new keys, one untouched",
        ORMap(),
        lambda m: (m.get_or_create("a", GCounter), m.get_or_create("b", Flag).enable()),
        {"ormap": {"added": [entry("a", gcounter={}), entry("b", flag={"value": True})]}},
    ),
    ("a value changes", scores(), lambda m: m["a"].increment(4), {"ormap": {"updated": [entry("a", pncounter={"change": 4})]}}),
    ("a key goes, with its change", scores(), lambda m: (m["a"].increment(), m.remove("a")), {"ormap": {"removed": [element("a")]}}),
    ("of another type", scores(), again, {"ormap": {"removed": [element("a")], "added": [entry("a", gcounter={"increment": 2})]}}),
    (
        "all keys go, and one comes",
        scores(),
        lambda m: (m["a"].increment(), m.clear(), m.get_or_create("a", PNCounter)),
        {"ormap": {"cleared": True, "added": [entry("a", pncounter={})]}},
    ),
    (
        "maps in maps",
        committed(ORMap(), lambda m: m.get_or_create("in", ORMap).get_or_create("a", GSet).add("x")),
        lambda m: m["in"]["a"].add("y"),
        {"ormap": {"updated": [entry("in", ormap={"updated": [entry("a", gset={"added": [element("y")]})]})]}},
    ),
]


@pytest.mark.parametrize(("value", "change", "expected"), [case[1:] for case in TOLD], ids=[case[0] for case in TOLD])
def test_a_change_is_told_exactly(value: Crdt, change: Callable[[Any], Any], expected: Delta) -> None:
    change(value)
    assert value._changed()
    assert value._delta() == CrdtDelta(**expected)
    value._commit()
    assert not value._changed()


NOTHING: list[tuple[str, Crdt, Callable[[Any], Any]]] = [
    ("by nothing", PNCounter(), lambda c: (c.increment(3), c.decrement(3))),
    ("there already", letters(GSet, "ab"), lambda s: s.update("ba")),
    ("not there", letters(ORSet, "ab"), lambda s: s.discard("c")),
    ("cleared when empty", ORSet(), lambda s: s.clear()),
    ("raised already", committed(Flag(), lambda f: f.enable()), lambda f: f.enable()),
    ("back and forth", Vote(), lambda v: (v.vote(True), v.vote(False))),
    ("only read", scores(), lambda m: (m["a"].value, list(m["b"]), m.get_or_create("a", PNCounter))),
    ("cleared when it has no keys", ORMap(), lambda m: m.clear()),
    ("a key comes and goes", scores(), made_and_removed),
]


@pytest.mark.parametrize(("value", "change"), [case[1:] for case in NOTHING], ids=[case[0] for case in NOTHING])
def test_what_changes_nothing_is_not_told(value: Crdt, change: Callable[[Any], Any]) -> None:
    change(value)
    assert not value._changed()


REFUSED: list[tuple[Crdt, Callable[[Any], Any], type[Exception], str]] = [
    (GCounter(), lambda c: c.increment(-1), ValueError, "a GCounter only grows"),
    (GCounter(), lambda c: (c.increment(2**64 - 1), c.increment()), ValueError, "cannot grow by more than"),
    (PNCounter(), lambda c: c.increment(2**63), ValueError, "cannot change by less than"),
    (GSet(), lambda s: s.add(object()), TypeError, "is not a protobuf message, str"),
    (ORSet(), lambda s: s.remove("a"), KeyError, "a"),
    (LWWRegister(), lambda r: r.set([1]), TypeError, "is not a protobuf message, str"),
    (ORMap(), lambda m: m["a"], KeyError, "a"),
    (ORMap(), lambda m: m.__delitem__("a"), KeyError, "a"),
    (scores(), lambda m: m.get_or_create("a", ORSet), TypeError, "'a' holds a PNCounter, not a ORSet; remove it first"),
]


@pytest.mark.parametrize(("value", "change", "error", "text"), REFUSED)
def test_what_a_type_cannot_do_says_so_and_changes_nothing(value: Crdt, change: Callable[[Any], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        change(value)
    value._forget()
    assert not value._changed()


def test_messages_json_and_primitives_are_elements_and_equal_ones_are_the_same() -> None:
    found: ORSet[Any] = ORSet()
    found.update([1, True, 1.0, "1", b"1", any_values.Int32(1), any_values.Json({"b": 1, "a": 2}), model.Forward(id="1")])
    found.update([1, any_values.Json({"a": 2, "b": 1}), model.Forward(id="1")])
    assert len(found) == 8
    assert model.Forward(id="1") in found
    assert model.Forward(id="2") not in found
    assert [type(value) for value in found] == [int, bool, float, str, bytes, any_values.Int32, any_values.Json, model.Forward]


def test_a_message_that_a_register_gives_is_a_copy() -> None:
    register: LWWRegister[model.Forward] = LWWRegister()
    assert register.value is None
    register.value = model.Forward(id="1")
    taken = register.value
    assert taken is not None
    taken.id = "2"
    assert register.value == model.Forward(id="1")


def test_a_vote_counts_its_own_change_on_top_of_what_it_was_told() -> None:
    vote = Vote()
    assert (vote.self_vote, vote.votes_for, vote.total_voters) == (False, 0, 1)
    vote._held.apply(CrdtDelta(vote=VoteDelta(self_vote=True, votes_for=2, total_voters=3)))
    vote.vote(False)
    assert (vote.self_vote, vote.votes_for, vote.total_voters) == (False, 1, 3)


def test_a_map_is_a_mapping() -> None:
    found = scores()
    found.get_or_create("c", Flag)
    assert list(found) == ["a", "b", "c"]
    assert ("a" in found, "z" in found, len(found), found.get("z")) == (True, False, 3, None)
    assert repr(found) == "ORMap({'a': PNCounter(3), 'b': ORSet(['x']), 'c': Flag(False)})"
    del found["b"]
    assert [type(value).__name__ for value in found.values()] == ["PNCounter", "Flag"]


@pytest.mark.parametrize("remove", [lambda m: m.remove("a"), lambda m: m.clear()])
@pytest.mark.parametrize("found", [scores(), ORMap()])
def test_the_value_of_a_key_that_is_gone_cannot_be_changed(found: ORMap[str, Any], remove: Callable[[Any], Any]) -> None:
    counter = found.get_or_create("a", PNCounter)
    remove(found)
    with pytest.raises(NotYourTurn, match="has been removed from its ORMap"):
        counter.increment()


@pytest.mark.parametrize(
    ("value", "change"),
    [
        (GCounter(), lambda c: c.increment()),
        (PNCounter(), lambda c: c.decrement()),
        (GSet(), lambda s: s.add("a")),
        (ORSet(), lambda s: s.discard("a")),
        (ORSet(), lambda s: s.clear()),
        (LWWRegister(), lambda r: r.set("a")),
        (Flag(), lambda f: f.enable()),
        (Vote(), lambda v: v.vote(True)),
        (ORMap(), lambda m: m.get_or_create("a", Flag)),
        (ORMap(), lambda m: m.clear()),
        (scores(), lambda m: m.remove("a")),
        (scores(), lambda m: m["a"].increment()),
    ],
)
def test_nothing_changes_when_it_is_nobodys_turn(value: Crdt, change: Callable[[Any], Any]) -> None:
    value._scope.closed = "not now"
    with pytest.raises(NotYourTurn, match="not now"):
        change(value)
    assert not value._changed()
