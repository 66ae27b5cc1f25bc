"""A map whose values are replicated themselves, each of its own type.

Views on its values record their own changes; the map's change is made of theirs, and of which keys have come and gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from cloudstate_sdk.crdt.base import Crdt, Element, Held, Scope, applied, view
from cloudstate_sdk.pb.cloudstate.crdt_pb2 import CrdtDelta, ORMapDelta, ORMapEntryDelta

K = TypeVar("K")
V = TypeVar("V", bound=Crdt)
C = TypeVar("C", bound=Crdt)
GONE = "the key of this value has been removed from its ORMap; take the value from the map again"


class HeldMap(Held):
    """Keys, in the order in which they came here, and their values."""

    __slots__ = ("entries",)

    def __init__(self) -> None:
        self.field = "ormap"
        self.entries: dict[Element, Held] = {}

    def apply(self, delta: CrdtDelta) -> None:
        """Clear, remove, update, add. An update for a key that is gone or of another type is skipped."""
        if delta.ormap.cleared:
            self.entries.clear()
        for encoded in delta.ormap.removed:
            self.entries.pop(Element.read(encoded), None)
        for entry in delta.ormap.updated:
            if (held := self.entries.get(Element.read(entry.key))) is not None and held.field == entry.delta.WhichOneof("delta"):
                held.apply(entry.delta)
        for entry in delta.ormap.added:
            key = Element.read(entry.key)
            held = self.entries.get(key)
            same = held is not None and held.field == entry.delta.WhichOneof("delta")
            self.entries[key] = applied(held if same else None, entry.delta)


class ORMap(Crdt, Mapping[K, V], field="ormap"):
    """Keys with replicated values. Who changes a value wins over who removes its key at the same time elsewhere."""

    _held: HeldMap

    def __init__(self, scope: Scope | None = None, held: Held | None = None) -> None:
        super().__init__(scope, held)
        self._cleared = False
        self._removed: dict[Element, None] = {}
        """Of the held keys; empty when all of them have been cleared away."""
        self._created: dict[Element, Crdt] = {}
        self._views: dict[Element, Crdt] = {}
        """On held values."""

    @classmethod
    def _empty(cls) -> HeldMap:
        return HeldMap()

    def _kept(self, key: Element) -> bool:
        """It is one of the held keys that are left."""
        return key in self._held.entries and not self._cleared and key not in self._removed

    def _find(self, key: Element) -> Crdt | None:
        if key in self._created:
            return self._created[key]
        if not self._kept(key):
            return None
        held, found = self._held.entries[key], self._views.get(key)
        if found is None or found._held is not held:
            found = self._views[key] = view(held, self._scope.inner())
        return found

    def _present(self) -> Iterator[Element]:
        yield from (key for key in self._held.entries if self._kept(key) and key not in self._created)
        yield from self._created

    def __contains__(self, key: object) -> bool:
        element = Element.of(key)
        return element in self._created or self._kept(element)

    def __getitem__(self, key: K) -> V:
        found: Any = self._find(Element.of(key))
        if found is None:
            raise KeyError(key)
        return found  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[K]:
        return iter([key.decoded(self._scope.pool) for key in self._present()])

    def __len__(self) -> int:
        return sum(1 for _ in self._present())

    def __repr__(self) -> str:
        return f"ORMap({{{', '.join(f'{key!r}: {value!r}' for key, value in self.items())}}})"

    def get_or_create(self, key: K, kind: type[C]) -> C:
        """The value of a key, which is made when it is not there. TypeError when it is there with another type."""
        element = Element.of(key)
        found = self._find(element)
        if found is None:
            self._scope.check()
            found = self._created[element] = kind(self._scope.inner())
        if not isinstance(found, kind):
            raise TypeError(f"{key!r} holds a {type(found).__name__}, not a {kind.__name__}; remove it first to change its type")
        return found

    def __delitem__(self, key: K) -> None:
        """Remove a key and its value. KeyError when it is not there."""
        self._scope.check()
        element = Element.of(key)
        if element not in self._created and not self._kept(element):
            raise KeyError(key)
        self._detach(self._created.pop(element, None))
        if self._kept(element):
            self._removed[element] = None
            self._detach(self._views.pop(element, None))

    def remove(self, key: K) -> None:
        """Remove a key and its value, if it is there."""
        if key in self:
            del self[key]

    def clear(self) -> None:
        """Remove all keys."""
        self._scope.check()
        if len(self):
            for value in (*self._created.values(), *self._views.values()):
                self._detach(value)
            self._forget()
            self._cleared, self._views = True, {}

    @staticmethod
    def _detach(value: Crdt | None) -> None:
        if value is not None:
            value._forget()
            value._scope.closed = GONE

    def _updated(self) -> dict[Element, Crdt]:
        """Views on held values that have been changed; not those whose key somebody else has removed meanwhile."""
        return {k: v for k, v in self._views.items() if v._changed() and self._kept(k) and self._held.entries[k] is v._held}

    def _changed(self) -> bool:
        return bool(self._cleared or self._removed or self._created or self._updated())

    def _delta(self) -> CrdtDelta:
        for key, value in self._created.items():
            value._rebase(self._held.entries[key] if self._kept(key) else None)
        updated, added = (
            [ORMapEntryDelta(key=key.encoded, delta=value._delta()) for key, value in values.items()] for values in (self._updated(), self._created)
        )
        return CrdtDelta(ormap=ORMapDelta(cleared=self._cleared, removed=[k.encoded for k in self._removed], updated=updated, added=added))

    def _commit(self) -> None:
        entries, updated = self._held.entries, self._updated()
        if self._cleared:
            entries.clear()
        for key in self._removed:
            entries.pop(key, None)
        for value in updated.values():
            value._commit()
        for key, value in self._created.items():
            value._commit()
            entries[key] = value._held
        self._views |= self._created
        self._created = {}
        self._forget()

    def _forget(self) -> None:
        for value in self._views.values():
            value._forget()
        self._cleared, self._removed, self._created = False, {}, {}
