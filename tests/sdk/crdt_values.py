"""Replicated values as plain ones, to compare: the function's view, and what the proxy believes the function to hold; and random changes of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cloudstate_sdk.crdt import Clock, Crdt, Flag, GCounter, GSet, LWWRegister, ORMap, ORSet, PNCounter, Vote
from hypothesis import strategies as st

from stateful_proxy.crdt import views
from stateful_proxy.crdt.kinds import Kind

KINDS: dict[Kind, type[Crdt]] = {
    Kind.GCOUNTER: GCounter, Kind.PNCOUNTER: PNCounter, Kind.GSET: GSet, Kind.ORSET: ORSet,
    Kind.LWWREGISTER: LWWRegister, Kind.FLAG: Flag, Kind.ORMAP: ORMap, Kind.VOTE: Vote,
}  # fmt: skip
Change = Callable[[Any], None]


def plain(value: Crdt) -> Any:
    """What a function sees of a value."""
    match value:
        case GCounter() | PNCounter() | LWWRegister() | Flag():
            return type(value).__name__, value.value
        case GSet() | ORSet():
            assert len(value) == len(list(value))
            return type(value).__name__, frozenset(value)
        case Vote():
            return "Vote", value.self_vote, value.votes_for, value.total_voters
        case ORMap():
            assert len(value) == len(list(value))
            return "ORMap", {key: plain(inner) for key, inner in value.items()}
    raise AssertionError(value)


def believed(view: views.View) -> Any:
    """What the proxy believes that a function sees."""
    name = KINDS[view.kind].__name__
    match view:
        case views.Count():
            return name, view.total
        case views.Elements():
            return name, frozenset(_text(element) for element in view.elements)
        case views.Register():
            return name, _text(view.element)
        case views.Raised():
            return name, view.value
        case views.Tally():
            return name, view.self_vote, view.votes_for, view.total_voters
        case views.Entries():
            return name, {_text(key): believed(inner) for key, inner in view.entries.items()}


def _text(element: Any) -> str | None:
    return element.value[2:].decode() if element.type_url else None


letters = st.sampled_from("abcd")


def changes(kind: Kind, depth: int = 2) -> st.SearchStrategy[Change]:
    """One thing that a function may do with a value."""
    match kind:
        case Kind.GCOUNTER:
            return st.integers(0, 9).map(lambda by: lambda counter: counter.increment(by))
        case Kind.PNCOUNTER:
            return st.integers(-9, 9).map(lambda by: lambda counter: counter.decrement(by))
        case Kind.GSET:
            return letters.map(lambda letter: lambda found: found.add(letter))
        case Kind.ORSET:
            one = st.tuples(st.sampled_from(["add", "discard"]), letters).map(lambda told: lambda found: getattr(found, told[0])(told[1]))
            return one | one | st.just(lambda found: found.clear())
        case Kind.LWWREGISTER:
            return st.tuples(letters, st.sampled_from(Clock)).map(lambda told: lambda register: register.set(told[0], told[1], 7))
        case Kind.FLAG:
            return st.just(lambda flag: flag.enable())
        case Kind.VOTE:
            return st.booleans().map(lambda yes: lambda vote: vote.vote(yes))
        case Kind.ORMAP:
            inner = st.tuples(
                letters, kinds(depth - 1).flatmap(lambda kind: st.tuples(st.just(kind), st.lists(changes(kind, depth - 1), max_size=3)))
            )
            update = inner.map(lambda told: lambda found: _change_value(found, told[0], *told[1]))
            return update | update | letters.map(lambda key: lambda found: found.remove(key)) | st.just(lambda found: found.clear())


def kinds(depth: int = 2) -> st.SearchStrategy[Kind]:
    """All types; maps while there is depth left."""
    return st.sampled_from([kind for kind in Kind if kind is not Kind.ORMAP or depth > 0])


def _change_value(found: Any, key: str, kind: Kind, program: list[Change]) -> None:
    wanted = KINDS[kind]
    if key in found and not isinstance(found[key], wanted):
        del found[key]
    value = found.get_or_create(key, wanted)
    for change in program:
        change(value)
