"""A register: one value, of which the last write stays."""

from __future__ import annotations

from enum import IntEnum
from typing import Generic, TypeVar

from cloudstate_sdk.crdt.base import Crdt, Element, Held, Scope
from cloudstate_sdk.pb.cloudstate import crdt_pb2
from cloudstate_sdk.pb.cloudstate.crdt_pb2 import CrdtDelta, LWWRegisterDelta

T = TypeVar("T")


class Clock(IntEnum):
    """What decides which of several writes is the last."""

    DEFAULT = crdt_pb2.DEFAULT
    """The proxy's wall clock: the latest write stays."""
    REVERSE = crdt_pb2.REVERSE
    """The proxy's wall clock backwards: the first write stays."""
    CUSTOM = crdt_pb2.CUSTOM
    """A number of your own: the write with the greatest stays."""
    CUSTOM_AUTO_INCREMENT = crdt_pb2.CUSTOM_AUTO_INCREMENT
    """A number of your own, or one above that of the present value when yours is not greater: a later write here always stays."""


class HeldRegister(Held):
    """The value; None before the first write."""

    __slots__ = ("element",)

    def __init__(self) -> None:
        self.field = "lwwregister"
        self.element: Element | None = None

    def apply(self, delta: CrdtDelta) -> None:
        written = Element.read(delta.lwwregister.value)
        self.element = written if written.type_url else None


class LWWRegister(Crdt, Generic[T], field="lwwregister"):
    """A value that is replaced as a whole."""

    _held: HeldRegister

    def __init__(self, scope: Scope | None = None, held: Held | None = None) -> None:
        super().__init__(scope, held)
        self._write: Element | None = None
        self._clock, self._stamp = Clock.DEFAULT, 0

    @classmethod
    def _empty(cls) -> HeldRegister:
        return HeldRegister()

    @property
    def value(self) -> T | None:
        """The value; None before the first write. A message is a copy: changing it changes nothing until it is set."""
        element = self._write or self._held.element
        return element.decoded(self._scope.pool) if element is not None else None

    @value.setter
    def value(self, value: T) -> None:
        self.set(value)

    def set(self, value: T, clock: Clock = Clock.DEFAULT, custom: int = 0) -> None:
        """Write; `custom` is the number of the custom clocks. TypeError or ValueError when the value cannot be encoded."""
        self._scope.check()
        self._write = Element.of(value)
        self._clock, self._stamp = clock, custom

    def __repr__(self) -> str:
        return f"LWWRegister({self.value!r})"

    def _changed(self) -> bool:
        return self._write is not None

    def _delta(self) -> CrdtDelta:
        delta = CrdtDelta(lwwregister=LWWRegisterDelta(clock=self._clock.value, custom_clock_value=self._stamp))
        if self._write is not None:
            delta.lwwregister.value.CopyFrom(self._write.encoded)
        return delta

    def _commit(self) -> None:
        if self._write is not None:
            self._held.element = self._write
        self._forget()

    def _forget(self) -> None:
        self._write = None
        self._clock, self._stamp = Clock.DEFAULT, 0
