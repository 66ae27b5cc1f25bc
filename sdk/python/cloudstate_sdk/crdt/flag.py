"""A flag: down at first, and up for good once somebody has raised it."""

from __future__ import annotations

from cloudstate_sdk.crdt.base import Crdt, Held, Scope
from cloudstate_sdk.pb.cloudstate.crdt_pb2 import CrdtDelta, FlagDelta


class HeldFlag(Held):
    """Whether it is up."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.field, self.value = "flag", False

    def apply(self, delta: CrdtDelta) -> None:
        self.value = self.value or delta.flag.value


class Flag(Crdt, field="flag"):
    """Goes up once, and never down again."""

    _held: HeldFlag

    def __init__(self, scope: Scope | None = None, held: Held | None = None) -> None:
        super().__init__(scope, held)
        self._raised = False

    @classmethod
    def _empty(cls) -> HeldFlag:
        return HeldFlag()

    @property
    def value(self) -> bool:
        """It is up."""
        return self._held.value or self._raised

    def __bool__(self) -> bool:
        return self.value

    def __repr__(self) -> str:
        return f"Flag({self.value})"

    def enable(self) -> None:
        """Raise it, for good."""
        self._scope.check()
        self._raised = not self._held.value

    def _changed(self) -> bool:
        return self._raised

    def _delta(self) -> CrdtDelta:
        return CrdtDelta(flag=FlagDelta(value=self._raised))

    def _commit(self) -> None:
        self._held.value = self.value
        self._raised = False

    def _forget(self) -> None:
        self._raised = False
