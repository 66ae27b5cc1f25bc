"""The copy of a value that the function holds, as the proxy follows it: what it is given, what it changes, and what it does not know yet."""

from __future__ import annotations

from collections.abc import Callable

from cloudstate_core.pb.cloudstate import crdt_pb2
from stateful_proxy.crdt import views
from stateful_proxy.crdt.causality import Onlooker
from stateful_proxy.crdt.kinds import Incompatible
from stateful_proxy.crdt.replica import Operation, Replica


class FunctionCopy:
    """Made with the stream: the function is given the replica's value then. `living` tells which replicas are up."""

    def __init__(self, replica: Replica, living: Callable[[], frozenset[str]]) -> None:
        self._replica, self._living = replica, living
        self._held = self._view()
        replica.shown()

    @property
    def empty(self) -> bool:
        """The function holds no value."""
        return self._held is None

    @property
    def gone(self) -> bool:
        """The function holds a value, and there is none any more."""
        return self._held is not None and self._replica.state is None

    def whole(self) -> crdt_pb2.CrdtDelta | None:
        """All of it, as a delta on empty; None when it is empty."""
        if self._held is None:
            return None
        whole = views.whole_of(self._held)
        assert not isinstance(whole, Incompatible), "every value comes from empty"
        return whole

    def change(self, delta: crdt_pb2.CrdtDelta, now: int) -> Operation | Incompatible:
        """The function has changed its copy. `now` is wall-clock time in milliseconds."""
        held = views.applied(self._held, delta)
        if isinstance(held, Incompatible):
            return held
        operation = self._replica.update(delta, now)
        if not isinstance(operation, Incompatible):
            self._held = held
        return operation

    def news(self, members_changed: bool) -> crdt_pb2.CrdtDelta | Incompatible | None:
        """What brings the copy up to date, which is taken for given to the function; None when there is nothing."""
        may_differ = isinstance(self._held, views.Register | views.Tally | views.Entries)  # by a clock that loses, and by who votes
        if not (self._replica.news or may_differ or members_changed):
            return None
        view = self._view()
        if view is None:
            return None
        delta = views.whole_of(view) if self._held is None else views.difference(self._held, view)
        if not isinstance(delta, Incompatible):
            self._held = view
            self._replica.shown()
        return delta

    def _view(self) -> views.View | None:
        state = self._replica.state
        return state.view(Onlooker(self._replica.name, self._living())) if state is not None else None
