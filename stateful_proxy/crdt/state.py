"""One replicated value with what it has seen, and the record of it that the journal keeps.

Two states of the same life and compaction merge: whatever the order, and however often, all replicas come to the same. A record of a later
life, or of a later compaction of the same one, replaces an earlier one whole.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

from cloudstate_core.pb.cloudstate import crdt_pb2
from stateful_proxy.crdt.causality import FOLDED, Contexts, Dots, Fold, Onlooker, Stamp, Store
from stateful_proxy.crdt.kinds import NO_TYPE, Incompatible, Kind, kind_of
from stateful_proxy.crdt.map import EMPTY
from stateful_proxy.crdt.views import View

REMEMBERED = 64
"""Folded replicas whose last operation is still remembered. One of them that was alive after all can tell what of its own was folded in."""

MAX_DEPTH = 20
"""Maps within maps: what is written can always be read again, and protobuf reads no deeper than 100 messages."""


@dataclass(frozen=True, slots=True)
class State:
    """A value and its context."""

    store: Store
    context: Dots

    @property
    def kind(self) -> Kind:
        """Its type."""
        return self.store.kind

    def view(self, onlooker: Onlooker) -> View:
        """What the function is to see."""
        return self.store.view(onlooker)


def applied(state: State | None, delta: crdt_pb2.CrdtDelta, stamp: Stamp) -> State | Incompatible:
    """The state after a function's delta; None: there was no value, the delta makes one of its type."""
    kind = kind_of(delta)
    if kind is None:
        return NO_TYPE
    if _depth(delta) > MAX_DEPTH:
        return Incompatible(f"maps are nested deeper than {MAX_DEPTH}")
    store = EMPTY[kind] if state is None else state.store
    if store.kind is not kind:
        return Incompatible(f"a delta for {kind.name} does not fit a {store.kind.name}")
    after = store.applied(delta, stamp)
    if isinstance(after, Incompatible):
        return after
    return State(after, {**({} if state is None else state.context), stamp.replica: stamp.number})


def _depth(delta: crdt_pb2.CrdtDelta) -> int:
    return 1 + max((_depth(entry.delta) for entry in [*delta.ormap.updated, *delta.ormap.added]), default=0)


def merged(mine: State, theirs: State) -> State | Incompatible:
    """Both of them."""
    if mine.kind is not theirs.kind:
        return Incompatible(f"a {theirs.kind.name} does not merge with a {mine.kind.name}")
    context = {r: max(mine.context.get(r, 0), theirs.context.get(r, 0)) for r in mine.context.keys() | theirs.context.keys()}
    return State(mine.store.merged(theirs.store, Contexts(mine.context, theirs.context)), context)


@dataclass(frozen=True, slots=True)
class Record:
    """A value as the journal has it."""

    state: State
    incarnation: int
    """Journal version at which this life of the key began."""
    compaction: int = 0
    folded: tuple[str, ...] = field(default=())
    """Replicas that were folded in lately and have done nothing since, the oldest first. The context still tells their last operation."""

    @property
    def age(self) -> tuple[int, int]:
        """Of two records, the one with the higher age replaces the other; only equal ones merge."""
        return (self.incarnation, self.compaction)


def departed(record: Record, living: Set[str]) -> frozenset[str]:
    """Replicas that have left something in a record, are not up, and have not been folded in."""
    return frozenset(record.state.context.keys() - living - set(record.folded) - {FOLDED})


def compacted(record: Record, living: Set[str]) -> Record:
    """What replicas that are not up have left, folded into one; the same record when there is nothing to fold."""
    new = departed(record, living)
    if not new:
        return record
    number = record.compaction + 1
    earlier = [name for name in record.folded if name not in living]
    folded = tuple([*earlier, *sorted(new)][-REMEMBERED:])
    context = record.state.context
    gone = frozenset(context.keys() - living)
    fold = Fold(gone | {FOLDED}, number, frozenset(living) | set(folded))
    kept = {r: n for r, n in context.items() if r not in gone or r in folded}
    return Record(State(record.state.store.folded(fold), {**kept, FOLDED: number}), record.incarnation, number, folded)
