"""GCounter and PNCounter: each replica keeps its own sum, and the value is the sum of the sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cloudstate_core.pb.cloudstate import crdt_pb2
from stateful_proxy.crdt.causality import FOLDED, Contexts, Fold, Onlooker, Stamp
from stateful_proxy.crdt.kinds import Incompatible, Kind
from stateful_proxy.crdt.views import MAX_SIGNED, MAX_UNSIGNED, MIN_SIGNED, Count

Slot = tuple[int, int]
"""Number of the replica's last operation here, and its sum."""

_RANGE = {Kind.GCOUNTER: (0, MAX_UNSIGNED), Kind.PNCOUNTER: (MIN_SIGNED, MAX_SIGNED)}


@dataclass(frozen=True, slots=True)
class Counter:
    """One slot a replica. A replica's new slot replaces its old one, so a merge takes the newer."""

    kind: Kind
    slots: Mapping[str, Slot] = field(default_factory=dict)

    def applied(self, delta: crdt_pb2.CrdtDelta, stamp: Stamp) -> Counter | Incompatible:
        """See Store. A change of zero leaves no slot."""
        change = delta.gcounter.increment if self.kind is Kind.GCOUNTER else delta.pncounter.change
        if not change:
            return self
        _, own = self.slots.get(stamp.replica, (0, 0))
        low, high = _RANGE[self.kind]
        total = sum(amount for _, amount in self.slots.values()) + change
        if not (low <= total <= high and -MAX_UNSIGNED <= own + change <= MAX_UNSIGNED):
            return Incompatible(f"a {self.kind.name} must stay between {low} and {high}")
        return Counter(self.kind, {**self.slots, stamp.replica: (stamp.number, own + change)})

    def merged(self, other: Counter, contexts: Contexts) -> Counter:
        """See Store."""
        if self.slots == other.slots:
            return self
        slots: dict[str, Slot] = {}
        for one, two, seen in ((self, other, contexts), (other, self, contexts.swapped())):
            for replica, slot in one.slots.items():
                there = two.slots.get(replica)
                if seen.survives(replica, slot[0], there and there[0]):
                    slots[replica] = max(slot, slots.get(replica, slot))
        return Counter(self.kind, slots)

    def folded(self, fold: Fold) -> Counter:
        """See Store."""
        slots = {r: slot for r, slot in self.slots.items() if r not in fold.gone}
        left = sum(amount for r, (_, amount) in self.slots.items() if r in fold.gone)
        return Counter(self.kind, {**slots, FOLDED: (fold.number, left)} if left else slots)

    def view(self, onlooker: Onlooker) -> Count:
        """See Store. Concurrent changes may leave the range of the type together: the view stops at its ends."""
        low, high = _RANGE[self.kind]
        return Count(self.kind, min(high, max(low, sum(amount for _, amount in self.slots.values()))))
