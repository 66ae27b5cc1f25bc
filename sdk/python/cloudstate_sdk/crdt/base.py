"""What all replicated data types have: a value that is held, changes on top of it, and the rule of when it may be changed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from google.protobuf import any_pb2, descriptor_pool
from google.protobuf.descriptor_pool import DescriptorPool

from cloudstate_sdk.any_values import from_any, to_any
from cloudstate_sdk.pb.cloudstate.crdt_pb2 import CrdtDelta


class NotYourTurn(Exception):
    """A value was changed when nobody may: says when one may."""


@dataclass(slots=True)
class Scope:
    """What the views of one command share: the message types that its values may have, and whether changes are allowed."""

    pool: DescriptorPool
    closed: str = ""
    """Why nothing may be changed; empty: it may."""
    around: Scope | None = None
    """Of the map that the value is in: what is closed there is closed here."""

    def check(self) -> None:
        """NotYourTurn when nothing may be changed."""
        if self.closed:
            raise NotYourTurn(self.closed)
        if self.around is not None:
            self.around.check()

    def inner(self) -> Scope:
        """For one value of a map."""
        return Scope(self.pool, around=self)


class Element(NamedTuple):
    """An element, key or value as it travels. Elements with the same bytes are the same."""

    type_url: str
    value: bytes

    @staticmethod
    def of(value: Any) -> Element:
        """A value, encoded. TypeError or ValueError when it cannot be."""
        encoded = to_any(value)
        return Element(encoded.type_url, encoded.value)

    @staticmethod
    def read(encoded: any_pb2.Any) -> Element:
        """An element of a delta."""
        return Element(encoded.type_url, encoded.value)

    @property
    def encoded(self) -> any_pb2.Any:
        """For a delta."""
        return any_pb2.Any(type_url=self.type_url, value=self.value)

    def decoded(self, pool: DescriptorPool) -> Any:
        """The value."""
        return from_any(self.encoded, pool)


class Held(ABC):
    """A value as this process holds it. `field` names its type in the protocol."""

    __slots__ = ("field",)
    field: str

    @abstractmethod
    def apply(self, delta: CrdtDelta) -> None:
        """Change it as a delta of the proxy says, which is one for its type."""


class Crdt(ABC):
    """A replicated value. Made by itself it is empty and belongs to nobody; a command gets one that others have too."""

    _field: ClassVar[str]
    _kinds: ClassVar[dict[str, type[Crdt]]] = {}

    def __init_subclass__(cls, field: str = "", **more: Any) -> None:
        """`field` names the type in the protocol."""
        super().__init_subclass__(**more)
        if field:
            cls._field = field
            cls._kinds[field] = cls

    def __init__(self, scope: Scope | None = None, held: Held | None = None) -> None:
        self._scope = scope or Scope(descriptor_pool.Default())
        self._held: Held = held if held is not None else self._empty()

    @classmethod
    @abstractmethod
    def _empty(cls) -> Held:
        """A new value to hold."""

    @abstractmethod
    def _changed(self) -> bool:
        """Something has been changed through this view."""

    @abstractmethod
    def _delta(self) -> CrdtDelta:
        """The changes made through this view; without any, an empty change of this type. To be taken right before they are committed."""

    @abstractmethod
    def _commit(self) -> None:
        """Make the changes part of the held value."""

    @abstractmethod
    def _forget(self) -> None:
        """Drop the changes."""

    def _rebase(self, held: Held | None) -> None:
        """Put the changes on top of what others have made meanwhile, when that is of the same type."""
        if held is not None and held.field == self._field:
            self._held = held


def kind_of(delta: CrdtDelta) -> type[Crdt]:
    """The type that a delta is for. ValueError when it names none."""
    field = delta.WhichOneof("delta")
    if field is None:
        raise ValueError("a delta without a type")
    return Crdt._kinds[field]


def applied(held: Held | None, delta: CrdtDelta) -> Held:
    """The value after a delta of the proxy; None: there was none. ValueError when it is one for another type."""
    kind = kind_of(delta)
    if held is None:
        held = kind._empty()
    if held.field != kind._field:
        raise ValueError(f"a delta for a {kind._field} came for a {held.field}")
    held.apply(delta)
    return held


def view(held: Held, scope: Scope) -> Crdt:
    """A view on a held value."""
    return Crdt._kinds[held.field](scope, held)
