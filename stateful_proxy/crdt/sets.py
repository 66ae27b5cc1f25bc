"""GSet and ORSet: each element carries the dots that added it; removing takes away the dots seen, so a concurrent addition wins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cloudstate_core.pb.cloudstate import crdt_pb2
from stateful_proxy.crdt.causality import Contexts, Dots, Fold, Onlooker, Stamp
from stateful_proxy.crdt.kinds import Element, Kind, elements_of
from stateful_proxy.crdt.views import Elements

_NONE: Dots = {}


@dataclass(frozen=True, slots=True)
class Set:
    """Elements and what added them. A GSet is an ORSet that nobody removes from (but with its key, in an ORMap)."""

    kind: Kind
    elements: Mapping[Element, Dots] = field(default_factory=dict)

    def applied(self, delta: crdt_pb2.CrdtDelta, stamp: Stamp) -> Set:
        """See Store."""
        if self.kind is Kind.GSET:
            added = elements_of(delta.gset.added)
            elements = dict(self.elements)
        else:
            added = elements_of(delta.orset.added)
            elements = {} if delta.orset.cleared else dict(self.elements)
            for element in elements_of(delta.orset.removed):
                elements.pop(element, None)
        elements.update(dict.fromkeys(added, stamp.dots))
        return Set(self.kind, elements)

    def merged(self, other: Set, contexts: Contexts) -> Set:
        """See Store."""
        elements: dict[Element, Dots] = {}
        for element, mine in self.elements.items():
            if dots := contexts.dots(mine, other.elements.get(element, _NONE)):
                elements[element] = dots
        for element, theirs in other.elements.items():
            if element not in self.elements and (dots := contexts.dots(_NONE, theirs)):
                elements[element] = dots
        return Set(self.kind, elements)

    def folded(self, fold: Fold) -> Set:
        """See Store."""
        return Set(self.kind, {element: fold.dots(dots) for element, dots in self.elements.items()})

    def view(self, onlooker: Onlooker) -> Elements:
        """See Store."""
        return Elements(self.kind, frozenset(self.elements))
