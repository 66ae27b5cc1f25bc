"""Sets: one that only grows, and one whose elements come and go. Elements are the same when their encoded bytes are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Generic, TypeVar

from cloudstate_sdk.crdt.base import Crdt, Element, Held, Scope
from cloudstate_sdk.pb.cloudstate.crdt_pb2 import CrdtDelta, GSetDelta, ORSetDelta

T = TypeVar("T")


class HeldSet(Held):
    """Elements, in the order in which they came here."""

    __slots__ = ("elements",)

    def __init__(self, field: str) -> None:
        self.field = field
        self.elements: dict[Element, None] = {}

    def apply(self, delta: CrdtDelta) -> None:
        if self.field == "gset":
            self.change(False, (), map(Element.read, delta.gset.added))
        else:
            self.change(delta.orset.cleared, map(Element.read, delta.orset.removed), map(Element.read, delta.orset.added))

    def change(self, cleared: bool, removed: Iterable[Element], added: Iterable[Element]) -> None:
        """Clear, then remove, then add."""
        if cleared:
            self.elements.clear()
        for element in removed:
            self.elements.pop(element, None)
        self.elements.update(dict.fromkeys(added))


class _Set(Crdt, Collection[T], Generic[T]):
    _held: HeldSet

    def __init__(self, scope: Scope | None = None, held: Held | None = None) -> None:
        super().__init__(scope, held)
        self._cleared = False
        self._removed: dict[Element, None] = {}
        """Of the held elements; empty when all of them have been cleared away."""
        self._added: dict[Element, None] = {}
        """Beside the held elements that are left."""

    @classmethod
    def _empty(cls) -> HeldSet:
        return HeldSet(cls._field)

    def _has(self, element: Element) -> bool:
        return element in self._added or (element in self._held.elements and not self._cleared and element not in self._removed)

    def _present(self) -> Iterator[Element]:
        if not self._cleared:
            yield from (element for element in self._held.elements if element not in self._removed and element not in self._added)
        yield from self._added

    def __contains__(self, value: object) -> bool:
        return self._has(Element.of(value))

    def __iter__(self) -> Iterator[T]:
        return iter([element.decoded(self._scope.pool) for element in self._present()])

    def __len__(self) -> int:
        return sum(1 for _ in self._present())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self)})"

    def add(self, value: T) -> None:
        """Put an element in; nothing changes when it is there. TypeError or ValueError when it cannot be encoded."""
        self._scope.check()
        element = Element.of(value)
        if self._has(element):
            return
        if element in self._removed:
            del self._removed[element]
        else:
            self._added[element] = None

    def update(self, values: Iterable[T]) -> None:
        """Put several elements in."""
        for value in values:
            self.add(value)

    def _changed(self) -> bool:
        return bool(self._cleared or self._removed or self._added)

    def _commit(self) -> None:
        self._held.change(self._cleared, self._removed, self._added)
        self._forget()

    def _forget(self) -> None:
        self._cleared = False
        self._removed.clear()
        self._added.clear()


class GSet(_Set[T], field="gset"):
    """A set that only grows."""

    def _delta(self) -> CrdtDelta:
        return CrdtDelta(gset=GSetDelta(added=[element.encoded for element in self._added]))


class ORSet(_Set[T], field="orset"):
    """A set whose elements come and go. Who adds an element wins over who removes it at the same time elsewhere."""

    def discard(self, value: T) -> None:
        """Take an element out, if it is in."""
        self._scope.check()
        element = Element.of(value)
        if not self._has(element):
            return
        self._added.pop(element, None)
        if element in self._held.elements and not self._cleared:
            self._removed[element] = None

    def remove(self, value: T) -> None:
        """Take an element out. KeyError when it is not in."""
        if value not in self:
            raise KeyError(value)
        self.discard(value)

    def clear(self) -> None:
        """Take all elements out."""
        self._scope.check()
        if len(self):
            self._forget()
            self._cleared = True

    def _delta(self) -> CrdtDelta:
        removed, added = ([element.encoded for element in elements] for elements in (self._removed, self._added))
        return CrdtDelta(orset=ORSetDelta(cleared=self._cleared, removed=removed, added=added))
