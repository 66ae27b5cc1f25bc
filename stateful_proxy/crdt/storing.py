"""Waits until a change is where the function asked it to be: in the journal, or acknowledged by other proxies as well.

The wait is bounded: then the caller gets a failure that tells how far the change has come. The change itself stays.
"""

from __future__ import annotations

from collections.abc import Callable

from cloudstate_core.pb.cloudstate import crdt_pb2
from cloudstate_core.transport.api import Status
from stateful_proxy.crdt.delivery import Problem, Stored
from stateful_proxy.crdt.keeper import Keeper
from stateful_proxy.crdt.replica import Operation
from stateful_proxy.crdt.surroundings import Surroundings

STORE_LIMIT = 5.0
"""Seconds in which an update must be where it was asked to be, else its caller gets a failure. The update stays."""


class Storing:
    """Waits until an operation is where it was asked to be, or its time is over."""

    def __init__(self, around: Surroundings, keeper: Keeper, path: str, consistency: crdt_pb2.CrdtWriteConsistency, stored: Stored) -> None:
        self._around, self._keeper, self._path, self._consistency, self._stored = around, keeper, path, consistency, stored
        self._stop: Callable[[], None] | None = None
        self._late = False
        """The time is over."""
        self._timer = around.after(STORE_LIMIT, self._over)

    def keep(self, operation: Operation, then: Callable[[Operation], None]) -> None:
        """Bring it into the journal; `then`, when it is there or lost, after the caller has been answered."""

        def settled(version: int, reason: str) -> None:
            if reason:
                self._done((Status.ABORTED, f"{self._path}: the change has no effect: {reason}"))
            elif not self._late:
                self._stop = self._around.replication.when_held(self._keeper.key, version, self._consistency, self._done)
            then(operation)

        self._keeper.keep(operation, settled)

    def _done(self, problem: Problem | None = None) -> None:
        self._around.transport.cancel(self._timer)
        self._stored.settle(problem)

    def _over(self) -> None:
        self._late = True
        if self._stop is not None:
            self._stop()
            what = f"not {'all' if self._consistency == crdt_pb2.ALL else 'most'} proxies of the service have acknowledged the update"
            text = f"{self._path}: {what} within {STORE_LIMIT:g} s; it is stored and stays"
        else:
            why = self._keeper.problem or "it gave no answer"
            text = f"{self._path}: the journal has not taken the update within {STORE_LIMIT:g} s ({why}); it stays, and is tried further"
        self._stored.settle((Status.UNAVAILABLE, text))
