"""What the user function holds: plain values, how a delta changes them, and the delta between two of them.

The proxy keeps one of these for each stream. It follows the function's own deltas by the function's rules, so that a difference to it is
exactly what the function has not seen; a function never gets its own change back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cloudstate_core.pb.cloudstate import crdt_pb2
from stateful_proxy.crdt.kinds import NO_TYPE, Element, Incompatible, Kind, any_of, element_of, elements_of, kind_of

Delta = crdt_pb2.CrdtDelta
MAX_UNSIGNED, MAX_SIGNED, MIN_SIGNED = 2**64 - 1, 2**63 - 1, -(2**63)


@dataclass(frozen=True, slots=True)
class Count:
    """A GCounter or PNCounter."""

    kind: Kind
    total: int


@dataclass(frozen=True, slots=True)
class Elements:
    """A GSet or ORSet."""

    kind: Kind
    elements: frozenset[Element]


@dataclass(frozen=True, slots=True)
class Register:
    """An LWWRegister."""

    element: Element
    kind: Kind = Kind.LWWREGISTER


@dataclass(frozen=True, slots=True)
class Raised:
    """A Flag."""

    value: bool
    kind: Kind = Kind.FLAG


@dataclass(frozen=True, slots=True)
class Tally:
    """A Vote. A function that makes one believes itself the only voter until it is told otherwise."""

    self_vote: bool
    votes_for: int
    total_voters: int
    kind: Kind = Kind.VOTE


@dataclass(frozen=True, slots=True)
class Entries:
    """An ORMap."""

    entries: Mapping[Element, View] = field(default_factory=dict)
    kind: Kind = Kind.ORMAP


View = Count | Elements | Register | Raised | Tally | Entries

EMPTY: Mapping[Kind, View] = {
    Kind.GCOUNTER: Count(Kind.GCOUNTER, 0),
    Kind.PNCOUNTER: Count(Kind.PNCOUNTER, 0),
    Kind.GSET: Elements(Kind.GSET, frozenset()),
    Kind.ORSET: Elements(Kind.ORSET, frozenset()),
    Kind.LWWREGISTER: Register(Element("", b"")),
    Kind.FLAG: Raised(False),
    Kind.ORMAP: Entries(),
    Kind.VOTE: Tally(False, 0, 1),
}


def applied(view: View | None, delta: Delta) -> View | Incompatible:
    """The function's value after its own delta; None: it had none."""
    kind = kind_of(delta)
    if kind is None:
        return NO_TYPE
    if view is None:
        view = EMPTY[kind]
    if view.kind is not kind:
        return Incompatible(f"a delta for {kind.name} does not fit a {view.kind.name}")
    match view:
        case Count():
            return Count(kind, view.total + (delta.gcounter.increment if kind is Kind.GCOUNTER else delta.pncounter.change))
        case Elements():
            return Elements(kind, _elements_after(view.elements, delta))
        case Register():
            return Register(element_of(delta.lwwregister.value))
        case Raised():
            return Raised(view.value or delta.flag.value)
        case Tally():
            vote = delta.vote.self_vote
            return Tally(vote, view.votes_for + vote - view.self_vote, view.total_voters)
        case Entries():
            return _entries_after(view.entries, delta.ormap)


def _elements_after(elements: frozenset[Element], delta: Delta) -> frozenset[Element]:
    if delta.HasField("gset"):
        return elements.union(elements_of(delta.gset.added))
    kept = frozenset[Element]() if delta.orset.cleared else elements
    return kept.difference(elements_of(delta.orset.removed)).union(elements_of(delta.orset.added))


def _entries_after(entries: Mapping[Element, View], delta: crdt_pb2.ORMapDelta) -> Entries | Incompatible:
    after = {} if delta.cleared else dict(entries)
    for key in elements_of(delta.removed):
        after.pop(key, None)
    for entry in delta.updated:
        key = element_of(entry.key)
        before = after.get(key)
        if before is None or before.kind is not kind_of(entry.delta):
            continue
        if isinstance(changed := applied(before, entry.delta), Incompatible):
            return changed
        after[key] = changed
    for entry in delta.added:
        key = element_of(entry.key)
        before = after.get(key)
        same = before is not None and before.kind is kind_of(entry.delta)
        if isinstance(changed := applied(before if same else None, entry.delta), Incompatible):
            return changed
        after[key] = changed
    return Entries(after)


# Differences ------------------------------------------------------------------------------------------------------------


def difference(before: View | None, after: View) -> Delta | Incompatible | None:
    """What turns one into the other; None when they are the same. With `before` None, the whole value as a delta on empty."""
    if before == after:
        return None
    if before is None:
        before = EMPTY[after.kind]
    if before.kind is not after.kind:
        return Incompatible(f"a {before.kind.name} cannot become a {after.kind.name}")
    match before, after:
        case Count(), Count():
            return _count(before, after)
        case Elements(), Elements():
            return _elements(before, after)
        case Register(), Register():
            return Delta(lwwregister=crdt_pb2.LWWRegisterDelta(value=any_of(after.element)))
        case Raised(), Raised():
            if before.value and not after.value:
                return Incompatible("a FLAG that is set never goes back")
            return Delta(flag=crdt_pb2.FlagDelta(value=after.value))
        case Tally(), Tally():
            vote = crdt_pb2.VoteDelta(self_vote=after.self_vote, votes_for=after.votes_for, total_voters=after.total_voters)
            return Delta(vote=vote)
        case Entries(), Entries():
            return _entries(before.entries, after.entries)
    raise AssertionError("kinds and classes belong together")


def _count(before: Count, after: Count) -> Delta | Incompatible:
    change = after.total - before.total
    if after.kind is Kind.GCOUNTER:
        if change < 0:
            return Incompatible("a GCOUNTER never shrinks")
        return Delta(gcounter=crdt_pb2.GCounterDelta(increment=change))
    if not MIN_SIGNED <= change <= MAX_SIGNED:
        return Incompatible("a PNCOUNTER cannot change by so much at once")
    return Delta(pncounter=crdt_pb2.PNCounterDelta(change=change))


def _elements(before: Elements, after: Elements) -> Delta | Incompatible:
    added, removed = sorted(after.elements - before.elements), sorted(before.elements - after.elements)
    if after.kind is Kind.GSET:
        if removed:
            return Incompatible("a GSET never loses elements")
        return Delta(gset=crdt_pb2.GSetDelta(added=map(any_of, added)))
    if len(added) + len(removed) > len(after.elements):
        return Delta(orset=crdt_pb2.ORSetDelta(cleared=True, added=map(any_of, sorted(after.elements))))
    return Delta(orset=crdt_pb2.ORSetDelta(removed=map(any_of, removed), added=map(any_of, added)))


def _entries(before: Mapping[Element, View], after: Mapping[Element, View]) -> Delta | Incompatible:
    """A key whose value cannot change so by deltas (another type, or made anew since) goes and comes again."""
    delta = crdt_pb2.ORMapDelta(cleared=not after and bool(before))
    removed = set() if delta.cleared else before.keys() - after.keys()
    for key in sorted(after):
        change = difference(before[key], after[key]) if key in before else None
        if key in before and isinstance(change, Incompatible):
            removed.add(key)
        elif key in before:
            if change is not None:
                delta.updated.add(key=any_of(key), delta=change)
            continue
        whole = whole_of(after[key])
        if isinstance(whole, Incompatible):
            return whole
        delta.added.add(key=any_of(key), delta=whole)
    delta.removed.extend(map(any_of, sorted(removed)))
    return Delta(ormap=delta)


def whole_of(view: View) -> Delta | Incompatible:
    """A value as a delta on empty; an empty one too names its type."""
    delta = difference(None, view)
    if delta is not None:
        return delta
    empty = Delta()
    getattr(empty, view.kind.name.lower()).SetInParent()
    return empty
