"""What commands on replicated values may do, and those who go on answering: each time the value changes, and when their caller has gone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import Any, Generic, TypeVar, cast

from cloudstate_sdk.context import CommandContext
from cloudstate_sdk.crdt.base import Crdt, Scope
from cloudstate_sdk.crdt.replica import Replica
from cloudstate_sdk.pb.cloudstate import crdt_pb2, entity_pb2

C = TypeVar("C", bound=Crdt)
D = TypeVar("D", bound=Crdt)

OVER = "a replicated value changes only while a command or a cancellation is handled, and this one is over"
WATCHING = "a replicated value cannot be changed by on_change, which only tells of changes"


class WriteConsistency(IntEnum):
    """How many pods must have a change before the caller gets the answer. Each also has it in the journal by then."""

    LOCAL = crdt_pb2.LOCAL
    """This one."""
    MAJORITY = crdt_pb2.MAJORITY
    """More than half."""
    ALL = crdt_pb2.ALL
    """Every one."""


class CrdtContext(CommandContext, Generic[C]):
    """Of a command on a replicated value, or of the end of a streamed one whose caller has gone."""

    def __init__(self, entity_id: str, replica: Replica, metadata: entity_pb2.Metadata | None = None) -> None:
        super().__init__(entity_id, metadata)
        self.write_consistency = WriteConsistency.LOCAL
        """How many pods must have what this command changes, before its caller gets the answer."""
        self.deleted = False
        self._replica, self._scope = replica, Scope(replica.pool)
        self._view: Crdt | None = None

    @property
    def exists(self) -> bool:
        """There is a value, or this command has begun one."""
        return self._replica.exists or (self._view is not None and self._view._changed())

    @property
    def state(self) -> C:
        """The value; a new one of the declared type when there is none. LookupError when there is none and no type is declared."""
        if self._view is None:
            self._view = self._replica.look(self._scope)
        return cast(C, self._view)

    def get_or_create(self, kind: type[D]) -> D:
        """The value; a new one of type `kind` when there is none. TypeError when it is of another type."""
        if self._view is None:
            self._view = self._replica.look(self._scope, kind)
        if not isinstance(self._view, kind):
            raise TypeError(f"the value is a {type(self._view).__name__}, not a {kind.__name__}")
        return self._view

    @property
    def view(self) -> Crdt | None:
        """What the command has looked at and may have changed."""
        return self._view

    def close(self) -> None:
        """The command is over: nothing may be changed through it any more, and what it has not settled is forgotten."""
        super().close()
        self._scope.closed = OVER
        if self._view is not None:
            self._view._forget()

    def delete(self) -> None:
        """Delete the value everywhere when the command is done, whatever others change meanwhile; a later command may begin a new one."""
        self._scope.check()
        self.deleted = True


class StreamedContext(CrdtContext[C]):
    """Of a command that streams its answers: what it returns is the first one. The stream stays open when it asks for changes or for the
    cancellation."""

    def __init__(self, entity_id: str, replica: Replica, metadata: entity_pb2.Metadata | None = None) -> None:
        super().__init__(entity_id, replica, metadata)
        self.watcher: Callable[[Change[C]], Any] | None = None
        self.canceller: Callable[[CrdtContext[C]], Any] | None = None
        self.wraps = False
        """Its answers are of any type."""

    @property
    def stays(self) -> bool:
        """The stream goes on after the first answer."""
        return self.watcher is not None or self.canceller is not None

    def on_change(self, watcher: Callable[[Change[C]], Any]) -> None:
        """Call `watcher` each time others change the value; what it returns is the next answer, None: none this time. It may be async."""
        self.watcher = watcher

    def on_cancel(self, canceller: Callable[[CrdtContext[C]], Awaitable[None] | None]) -> None:
        """Call `canceller` when the caller has gone, but not when the function has ended the stream. It may change the value, and be async."""
        self.canceller = canceller


class Change(CommandContext, Generic[C]):
    """Of one change that a stream is told. `fail` ends the stream: its caller sees the text."""

    def __init__(self, entity_id: str, replica: Replica) -> None:
        super().__init__(entity_id)
        self.ended = False
        self._replica = replica

    @property
    def state(self) -> C:
        """The value, to be read."""
        return cast(C, self._replica.look(Scope(self._replica.pool, WATCHING)))

    def end(self) -> None:
        """End the stream with this answer."""
        self.ended = True
