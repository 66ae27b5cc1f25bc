"""Counters: one that only grows, and one that goes both ways. Changes made at the same time all count."""

from __future__ import annotations

from cloudstate_sdk.crdt.base import Crdt, Held, Scope
from cloudstate_sdk.pb.cloudstate.crdt_pb2 import CrdtDelta, GCounterDelta, PNCounterDelta

UNSIGNED, LEAST, MOST = 2**64 - 1, -(2**63), 2**63 - 1


class HeldCount(Held):
    """A sum."""

    __slots__ = ("total",)

    def __init__(self, field: str) -> None:
        self.field, self.total = field, 0

    def apply(self, delta: CrdtDelta) -> None:
        self.total += delta.gcounter.increment if self.field == "gcounter" else delta.pncounter.change


class _Counter(Crdt):
    _held: HeldCount

    def __init__(self, scope: Scope | None = None, held: Held | None = None) -> None:
        super().__init__(scope, held)
        self._change = 0

    @classmethod
    def _empty(cls) -> HeldCount:
        return HeldCount(cls._field)

    @property
    def value(self) -> int:
        """The sum of all changes, everybody's."""
        return self._held.total + self._change

    def __int__(self) -> int:
        return self.value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.value})"

    def _changed(self) -> bool:
        return self._change != 0

    def _commit(self) -> None:
        self._held.total += self._change
        self._change = 0

    def _forget(self) -> None:
        self._change = 0


class GCounter(_Counter, field="gcounter"):
    """A counter that only grows."""

    def increment(self, by: int = 1) -> None:
        """Count on. ValueError when `by` is negative, or one command counts beyond 64 bits."""
        self._scope.check()
        if by < 0:
            raise ValueError(f"a GCounter only grows: it cannot be incremented by {by}; a PNCounter can")
        if self._change + by > UNSIGNED:
            raise ValueError(f"a GCounter cannot grow by more than {UNSIGNED} in one command")
        self._change += by

    def _delta(self) -> CrdtDelta:
        return CrdtDelta(gcounter=GCounterDelta(increment=self._change))


class PNCounter(_Counter, field="pncounter"):
    """A counter that goes both ways."""

    def increment(self, by: int = 1) -> None:
        """Add `by`, which may be negative. ValueError when one command counts beyond 64 bits."""
        self._scope.check()
        if not LEAST <= self._change + by <= MOST:
            raise ValueError(f"a PNCounter cannot change by less than {LEAST} or more than {MOST} in one command")
        self._change += by

    def decrement(self, by: int = 1) -> None:
        """Subtract `by`. ValueError as for `increment`."""
        self.increment(-by)

    def _delta(self) -> CrdtDelta:
        return CrdtDelta(pncounter=PNCounterDelta(change=self._change))
