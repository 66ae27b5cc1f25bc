"""The value of one key as a function's process holds it: who looks at it, what they change, and what the proxy says."""

from __future__ import annotations

from google.protobuf.descriptor_pool import DescriptorPool

from cloudstate_sdk.crdt.base import Crdt, Held, Scope, applied, kind_of, view
from cloudstate_sdk.pb.cloudstate.crdt_pb2 import CrdtDelta


class Replica:
    """See the module. `kind` is the type that the entity is declared with, None: its first command chooses."""

    def __init__(self, kind: type[Crdt] | None, pool: DescriptorPool) -> None:
        self._kind, self.pool = kind, pool
        self._held: Held | None = None
        self._empty: dict[type[Crdt], Held] = {}
        """What commands look at while there is no value, so that all of them see it when one has begun it."""
        self.changes = 0
        """How often the value has been changed, here and by others."""

    @property
    def exists(self) -> bool:
        """There is a value."""
        return self._held is not None

    def look(self, scope: Scope, kind: type[Crdt] | None = None) -> Crdt:
        """A view on the value, or on a new one of type `kind` or the declared one. LookupError when there is neither; TypeError when the value
        is of another type."""
        wanted = kind or self._kind
        if self._held is not None:
            found = view(self._held, scope)
            if wanted is not None and not isinstance(found, wanted):
                raise TypeError(f"the value is a {type(found).__name__}, not a {wanted.__name__}; delete it first to change its type")
            return found
        if wanted is None:
            raise LookupError("there is no value yet; context.get_or_create makes one, or declare the entity with crdt=...")
        return view(self._begun(wanted), scope)

    def _begun(self, kind: type[Crdt]) -> Held:
        return self._empty.setdefault(kind, kind._empty())

    def settle(self, changed: Crdt | None) -> CrdtDelta | None:
        """Make what was changed through a view part of the value; what the proxy is to be told, None: nothing. TypeError when others have made a
        value of another type meanwhile."""
        if changed is None or not changed._changed():
            return None
        if self._held is not None and self._held.field != changed._field:
            other = type(view(self._held, Scope(self.pool))).__name__
            raise TypeError(f"the value was made a {other} by another command, not a {type(changed).__name__}")
        changed._rebase(self._held or self._begun(type(changed)))
        delta = changed._delta()
        changed._commit()
        self._held = changed._held
        self.changes += 1
        return delta

    def apply(self, delta: CrdtDelta) -> None:
        """Others have changed the value. ValueError when the change is none for it."""
        kind = kind_of(delta)
        self._held = applied(self._held or self._begun(kind), delta)
        self.changes += 1

    def delete(self) -> None:
        """The value is gone."""
        self._held = None
        self._empty.clear()
