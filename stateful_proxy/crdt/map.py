"""ORMap: keys with values of any type, other maps among them.

Removing a key takes away what was seen of it; what is added to the key at the same time stays. A key may hold values of two types where two
replicas have added it at the same time: the type with the lower number is seen, on every replica, until the key is removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from cloudstate_core.pb.cloudstate import crdt_pb2
from stateful_proxy.crdt.causality import Contexts, Dots, Fold, Onlooker, Stamp, Store
from stateful_proxy.crdt.counters import Counter
from stateful_proxy.crdt.flag import Flag, Vote
from stateful_proxy.crdt.kinds import NO_TYPE, Element, Incompatible, Kind, element_of, elements_of, kind_of
from stateful_proxy.crdt.register import LWWRegister
from stateful_proxy.crdt.sets import Set
from stateful_proxy.crdt.views import Entries


class Entry(NamedTuple):
    """A value under a key. The dots are of the operations that touched it last: they hold the key, even while its value is empty."""

    dots: Dots
    store: Store


Values = Mapping[Kind, Entry]
"""What one key holds; nearly always of one type."""


@dataclass(frozen=True, slots=True)
class Map:
    """Keys and what they hold; no key holds nothing."""

    entries: Mapping[Element, Values] = field(default_factory=dict)
    kind: Kind = Kind.ORMAP

    def applied(self, delta: crdt_pb2.CrdtDelta, stamp: Stamp) -> Map | Incompatible:
        """See Store. In this order: clear, remove, update what is there, add."""
        change = delta.ormap
        entries: dict[Element, Values] = {} if change.cleared else dict(self.entries)
        for key in elements_of(change.removed):
            entries.pop(key, None)
        for update in change.updated:
            key, kind = element_of(update.key), kind_of(update.delta)
            values = entries.get(key)
            if values is None or kind is not min(values):
                continue
            if isinstance(store := values[kind].store.applied(update.delta, stamp), Incompatible):
                return store
            entries[key] = {**values, kind: Entry(stamp.dots, store)}
        for addition in change.added:
            if (kind := kind_of(addition.delta)) is None:
                return NO_TYPE
            key = element_of(addition.key)
            present = entries.get(key, {}).get(kind)
            if isinstance(store := (present.store if present else EMPTY[kind]).applied(addition.delta, stamp), Incompatible):
                return store
            entries[key] = {kind: Entry(stamp.dots, store)}
        return Map(entries)

    def merged(self, other: Map, contexts: Contexts) -> Map:
        """See Store."""
        entries: dict[Element, Values] = {}
        for key in self.entries.keys() | other.entries.keys():
            if values := _merged(self.entries.get(key, {}), other.entries.get(key, {}), contexts):
                entries[key] = values
        return Map(entries)

    def folded(self, fold: Fold) -> Map:
        """See Store."""
        return Map({key: {k: Entry(fold.dots(e.dots), e.store.folded(fold)) for k, e in v.items()} for key, v in self.entries.items()})

    def view(self, onlooker: Onlooker) -> Entries:
        """See Store."""
        return Entries({key: values[min(values)].store.view(onlooker) for key, values in self.entries.items()})


def _merged(mine: Values, theirs: Values, contexts: Contexts) -> Values:
    """What one key holds after a merge; nothing when it was removed."""
    values: dict[Kind, Entry] = {}
    for kind in mine.keys() | theirs.keys():
        nothing = Entry({}, EMPTY[kind])
        one, two = mine.get(kind, nothing), theirs.get(kind, nothing)
        if dots := contexts.dots(one.dots, two.dots):
            values[kind] = Entry(dots, one.store.merged(two.store, contexts))
    return values


EMPTY: Mapping[Kind, Store] = {
    Kind.GCOUNTER: Counter(Kind.GCOUNTER),
    Kind.PNCOUNTER: Counter(Kind.PNCOUNTER),
    Kind.GSET: Set(Kind.GSET),
    Kind.ORSET: Set(Kind.ORSET),
    Kind.LWWREGISTER: LWWRegister(),
    Kind.FLAG: Flag(),
    Kind.ORMAP: Map(),
    Kind.VOTE: Vote(),
}
