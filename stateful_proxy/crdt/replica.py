"""One key as one replica has it (pure): the journal's record, operations that are not in the journal yet, and what the function has seen.

The journal puts the records of a key in one order, each with a version, and every record contains the ones before it. So the newest record
one has heard of, with one's own operations on top, is always the right state. Operations are kept as the function's deltas: on a record that
replaces instead of merging (a compaction, a value that somebody else made first) they are applied anew. An operation is in a record when the
record's context reaches its number, under whatever record it was applied; so none is lost, and none counted twice.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

from cloudstate_core.pb.cloudstate import crdt_pb2
from stateful_proxy.crdt.causality import Stamp
from stateful_proxy.crdt.kinds import Incompatible
from stateful_proxy.crdt.state import Record, State, applied, compacted, merged

DELETED = "the value was deleted at the same time; a deletion wins over other changes"


@dataclass(slots=True, eq=False)
class Operation:
    """A change of this replica's that is to come into the journal. `delta` None deletes the value."""

    number: int
    delta: crdt_pb2.CrdtDelta | None
    now: int
    incarnation: int
    """Life of the key that it changes; 0: it makes a value, and takes the life that this gets."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What a record settles."""

    done: list[Operation] = field(default_factory=list)
    """In the journal."""
    lost: list[tuple[Operation, str]] = field(default_factory=list)
    """Without effect, for this reason."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What is to be swapped into the journal."""

    expected_version: int
    record: Record | None
    covers: int
    """Number of the last operation that is in it."""


class Replica:
    """The state of one key. `name` is unique for each process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.version = -1
        """Journal version of `record`; -1: not read yet."""
        self.record: Record | None = None
        self.state: State | None = None
        """The record with this replica's operations on top; None: there is no value."""
        self.seen: State | None = None
        """What of it the function has seen, with the function's own changes: its next delta removes nothing else."""
        self.news = False
        """The function has not been told everything."""
        self.pending: list[Operation] = []
        self.ended = False
        """The life that was served has ended; this replica is of no more use."""
        self.in_doubt = False
        """A swap may have happened or may yet."""
        self._clock = 0

    @property
    def deleting(self) -> bool:
        """The value is to be deleted."""
        return any(operation.delta is None for operation in self.pending)

    def shown(self) -> None:
        """The function has been told everything."""
        self.seen, self.news = self.state, False

    # Changes of the function's ------------------------------------------------------------------------------------------

    def update(self, delta: crdt_pb2.CrdtDelta, now: int) -> Operation | Incompatible:
        """Apply a delta. `now` is wall-clock time in milliseconds."""
        stamp = Stamp(self.name, self._clock + 1, now)
        seen = applied(self.seen, delta, stamp)
        if isinstance(seen, Incompatible):
            return seen
        state = seen if self.state is self.seen or self.state is None else merged(self.state, seen)
        if isinstance(state, Incompatible):
            return state
        self.seen, self.state = seen, state
        return self._operation(delta, now)

    def delete(self, now: int) -> Operation:
        """Delete the value. Nothing is changed after it."""
        return self._operation(None, now)

    def _operation(self, delta: crdt_pb2.CrdtDelta | None, now: int) -> Operation:
        self._clock += 1
        operation = Operation(self._clock, delta, now, self.record.incarnation if self.record is not None else 0)
        self.pending.append(operation)
        return operation

    # To the journal -----------------------------------------------------------------------------------------------------

    def proposal(self, living: Set[str] | None = None) -> Proposal:
        """The record with everything that is pending, of which there is something. `living`: fold what other replicas have left in it."""
        covers = self.pending[-1].number
        if self.deleting:
            return Proposal(self.version, None, covers)
        if self.record is None:
            assert self.state is not None
            return Proposal(self.version, Record(self.state, self.version + 1), covers)
        assert self.state is not None
        before = self.record
        folded = tuple(name for name in before.folded if name != self.name)
        record = Record(self.state, before.incarnation, before.compaction, folded)
        return Proposal(self.version, record if living is None else compacted(record, living), covers)

    def learn(self, version: int, record: Record | None, covers: int = 0) -> Learned:
        """The journal has this at this version; `covers`: by a proposal of ours. Older news than what is known changes nothing."""
        if version <= self.version or self.ended:
            return Learned()
        first, before = self.version < 0, self.record
        self.record, self.version = record, version
        done = [operation for operation in self.pending if operation.number <= covers]
        for operation in done:
            operation.incarnation = operation.incarnation or version
        learned = Learned(done)
        kept = [operation for operation in self.pending[len(done) :] if not self._settled(operation, learned)]
        self.in_doubt = False
        if record is not None:
            self._clock = max(self._clock, record.state.context.get(self.name, 0))
        gone = before is not None and (record is None or record.incarnation != before.incarnation)
        if gone or any(operation.delta is None for operation in learned.done):
            self.ended, self.pending = True, []
            learned.lost.extend((operation, DELETED) for operation in kept)
        elif covers and before is not None and record is not None and record.age == before.age:
            self.pending = kept  # the state has it all
        else:
            self._rebase(before, kept, learned)
        if first:
            self.shown()  # the function is given what was read first as a whole
        return learned

    def regressed(self, version: int, record: Record | None) -> Learned:
        """The journal has an older version than it once had: it has lost writes. The next proposal brings back what is here."""
        if record is not None and (self.record is None or record.age > self.record.age):
            self.version = version - 1
            return self.learn(version, record)
        self.version = version
        if record is not None and self.record is not None and self.state is not None and record.age == self.record.age:
            state = merged(record.state, self.state)
            assert isinstance(state, State), "one life has one type"
            self.state, self.news = state, True
        return Learned()

    def _settled(self, operation: Operation, learned: Learned) -> bool:
        """Whether the new record tells what became of an operation."""
        record = self.record
        makes = operation.incarnation == 0
        if record is None or not (makes or operation.incarnation == record.incarnation):
            if operation.delta is None:
                learned.done.append(operation)
            elif not makes or self.in_doubt:
                learned.lost.append((operation, DELETED))
            else:
                return False
            return True
        operation.incarnation = record.incarnation
        if operation.delta is None or record.state.context.get(self.name, 0) < operation.number:
            return False
        learned.done.append(operation)
        return True

    def _rebase(self, before: Record | None, kept: list[Operation], learned: Learned) -> None:
        """Put what is pending on top of the new record."""
        record = self.record
        self.pending, self.news = kept, True
        if record is not None and before is not None and record.age == before.age:
            assert self.state is not None
            state = merged(record.state, self.state)
            assert isinstance(state, State), "one life has one type"
            self.state = state
            return
        made = self.state is not None
        self.state, lost = _on_top(record.state if record is not None else None, kept, self.name)
        for operation, reason in lost:
            self.pending.remove(operation)
            learned.lost.append((operation, reason))
        if made:
            self.seen = self.state


def _on_top(state: State | None, operations: list[Operation], name: str) -> tuple[State | None, list[tuple[Operation, str]]]:
    """The state after these operations, and those that do not fit it."""
    lost = []
    for operation in operations:
        if operation.delta is None:
            continue
        after = applied(state, operation.delta, Stamp(name, operation.number, operation.now))
        if isinstance(after, Incompatible):
            lost.append((operation, after.reason))
        else:
            state = after
    return state, lost
